"""The store stays away for a while: what becomes of the storage work of each stage, and how long does it wait?

    python -m benchmarks.outages [--seconds 60 --seconds 300] [--freeze]

Each stage's storage operations go round in a thread of its own, on an S3 server that is killed in their middle and started
again after so many seconds (or frozen, with `--freeze`: connections stand and nothing is answered). All content is compared.
"""

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import psutil

from curvas_assets.ensembling import stream_ensembles
from curvas_assets.geometry import Grid
from curvas_assets.local.server import EmbeddedS3
from curvas_assets.stages.train import Checkpoints
from curvas_assets.storage import directories, tables
from curvas_assets.storage.connection import S3Settings, connect
from curvas_assets.storage.maps import MapWriter, download_map
from curvas_assets.storage.objects import ObjectStore
from curvas_assets.storage.patience import Patience
from curvas_assets.storage.softmax import SoftmaxWriter, open_softmax

PATIENCE_SECONDS = 600.0
SHAPE = (4, 96, 128, 128)
NAMES = ["background", "pancreas", "kidney", "liver"]


@dataclass
class Stage:
    """The storage work of one stage, again and again.

    Args:
        name: of the stage.
        work: once round; raises if what it reads is not what was written.
    """

    name: str
    work: Callable[[], None]
    rounds: int = 0
    failures: list[str] = field(default_factory=list)
    longest: float = 0.0

    def go_on(self, until: threading.Event) -> None:
        while not until.is_set():
            begin = time.monotonic()
            try:
                self.work()
            except Exception as error:
                self.failures.append(f"{type(error).__name__}: {error}")
            self.longest = max(self.longest, time.monotonic() - begin)
            self.rounds += 1
            until.wait(0.5)


def stages(store: ObjectStore, scratch: Path) -> list[Stage]:
    """Each stage's operations, on artefacts of its own."""
    rng = np.random.default_rng(0)
    image, checkpoint = rng.bytes(20_000_000), rng.bytes(12_000_000)
    (scratch / "image.nii.gz").write_bytes(image)
    dataset = scratch / "dataset"
    (dataset / "cases").mkdir(parents=True)
    for i in range(12):
        (dataset / "cases" / f"{i}.b2nd").write_bytes(rng.bytes(2_000_000))
    p = rng.random(SHAPE).astype(np.float32) ** 8
    p /= p.sum(axis=0)
    table = pd.DataFrame({"patient": ["P1"] * 1000, "value": rng.random(1000)})
    counts: dict[str, int] = {}

    def turn(name: str) -> int:
        counts[name] = counts.get(name, 0) + 1
        return counts[name]

    def require(right: bool, what: str) -> None:
        if not right:
            raise AssertionError(f"{what} is not what was written")

    def volume(key: str) -> None:
        with SoftmaxWriter(store, key, Grid.with_voxels(SHAPE[1:], (1, 1, 1)), class_names=NAMES) as writer:
            for z0 in range(0, SHAPE[1], 16):
                writer.write(z0, p[:, z0 : z0 + 16])

    def intake() -> None:
        store.upload("data/P1/image.nii.gz", scratch / "image.nii.gz")
        require([i.key for i in store.list("data/P1/")] == ["data/P1/image.nii.gz"], "the listing")
        store.download("data/P1/image.nii.gz", scratch / "intake")
        require((scratch / "intake").read_bytes() == image, "the image")
        tables.write_json(store, "output/P1/scan.json", {"turn": turn("intake")})
        require(tables.read_json(store, "output/P1/scan.json")["turn"] == counts["intake"], "the record")

    def preparation() -> None:
        (dataset / "plans.json").write_text(str(turn("preparation")))
        directories.write_directory(store, "artifacts/preprocessing/a", dataset)
        with tempfile.TemporaryDirectory(dir=scratch) as back:
            folder = directories.read_directory(store, "artifacts/preprocessing/a", Path(back))
            require((folder / "plans.json").read_text() == str(counts["preparation"]), "the dataset")

    def training() -> None:
        unfinished = Checkpoints(store, "artifacts/training/m", print)
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            unfinished.fetch(Path(folder, "resumed"))
            content = checkpoint + str(turn("training")).encode()
            path = Path(folder, Checkpoints.FILE)
            path.write_bytes(content)
            unfinished.keep(path, 1)
            require(directories.read_file(store, "artifacts/training/m", Checkpoints.FILE) == content, "the checkpoint")

    def prediction() -> None:
        volume("output/P1/m1/softmax.zarr")
        require(store.head("output/P1/m1/softmax.zarr/zarr.json") is not None, "the presence check")
        labels = open_softmax(store, "output/P1/m1/softmax.zarr").labels(32, 64)
        require(bool((labels == p[:, 32:64].argmax(axis=0)).all()), "the volume")

    def ensembling() -> None:
        members = {"m": open_softmax(store, "output/P2/m/softmax.zarr")}
        for _ in stream_ensembles(members, {"e": ["m"]}):
            pass
        with MapWriter(
            store,
            "output/P2/e/labels.nii.gz",
            Grid.with_voxels(SHAPE[1:], (1, 1, 1)),
            kind="labels",
            scratch=scratch,
        ) as writer:
            writer.write(0, p.argmax(axis=0).astype(np.uint8))
        download_map(store, "output/P2/e/labels.nii.gz", scratch / "labels.nii.gz")

    def scoring() -> None:
        open_softmax(store, "output/P3/m/softmax.zarr").verify()
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            table.assign(turn=turn("scoring")).to_parquet(Path(folder, "scores.parquet"), index=False)
            directories.write_directory(store, "metrics/P3/scores", Path(folder))
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            directories.read_directory(store, "metrics/P3/scores", Path(folder))
            found = pd.read_parquet(Path(folder, "scores.parquet"))
            require(int(found["turn"].iloc[0]) == counts["scoring"], "the scores")

    def report() -> None:
        tables.write_table(store, "metrics/study_scores.parquet", table)
        pd.testing.assert_frame_equal(tables.read_table(store, "metrics/study_scores.parquet"), table)
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            Path(folder, "report.html").write_text(f"{turn('report')}" * 100_000)
            directories.write_directory(store, "reports/report", Path(folder))

    for patient in ("P2", "P3"):
        volume(f"output/{patient}/m/softmax.zarr")
    works = (intake, preparation, training, prediction, ensembling, scoring, report)
    return [Stage(work.__name__, work) for work in works]


def measure(seconds: float, freeze: bool) -> int:
    """One outage: prints what came of each stage; how many failed."""
    told: list[str] = []
    with tempfile.TemporaryDirectory() as folder, EmbeddedS3(Path(folder)) as server:
        patience = Patience(PATIENCE_SECONDS, told.append)
        store = connect(S3Settings.from_environment(server.environment()), patience=patience)
        working = stages(store, Path(folder))
        until = threading.Event()
        threads = [threading.Thread(target=stage.go_on, args=(until,)) for stage in working]
        for thread in threads:
            thread.start()
        _wait(lambda: all(stage.rounds >= 2 for stage in working))
        usual = {stage.name: stage.longest for stage in working}
        before = {stage.name: stage.rounds for stage in working}
        pid = server.pid
        assert pid is not None
        process = psutil.Process(pid)
        if freeze:
            process.suspend()
            time.sleep(seconds)
            process.resume()
        else:
            process.kill()
            process.wait(30)
            time.sleep(seconds)
            server.start()
        back = time.monotonic()
        _wait(lambda: all(stage.rounds >= before[stage.name] + 2 for stage in working))
        recovered = time.monotonic() - back
        until.set()
        for thread in threads:
            thread.join()
        server.stop(1)
    how = "frozen" if freeze else "killed"
    print(f"store {how} for {seconds:.0f} s; two rounds of all stages after its return: {recovered:.1f} s")
    for stage in working:
        failed = f"{len(stage.failures)} failed" + (f": {stage.failures[0]}" if stage.failures else "")
        print(f"  {stage.name:12} usual {usual[stage.name]:5.1f} s, longest {stage.longest:6.1f} s, {failed}")
    gaps = len(told)
    print(f"  {gaps} lines in the log, e.g. {told[0] if told else 'none'}\n  … {told[-1] if told else ''}", flush=True)
    return sum(bool(stage.failures) for stage in working)


def _wait(done: Callable[[], bool], seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            sys.exit("the stages did not go on")
        time.sleep(0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, action="append")
    parser.add_argument("--freeze", action="store_true")
    arguments = parser.parse_args(sys.argv[1:] if sys.argv[0].endswith("outages.py") else [])
    failed = sum(measure(seconds, arguments.freeze) for seconds in arguments.seconds or [60.0])
    sys.exit(f"{failed} stages failed" if failed else 0)


if __name__ == "__main__":
    main()
