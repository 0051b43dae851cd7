"""Softmax volumes at clinical size: bytes, seconds and memory of storing, ensembling, scoring and exporting them.

Run `python -m benchmarks.volumes` for 128 × 256 × 256 voxels, `python -m benchmarks.volumes --full` for 866 × 512 × 512
(about half an hour on two cores, 10 GB of disk). The phantom is an overconfident network's (see `phantoms`), which is the
larger and the harder to keep; one volume of a mild network is stored beside it. Everything goes to and from a real S3 server on this machine.
Each part is a process of its own, whose highest resident set is printed; nnU-Net's own export and averaging stand beside
ours at the smaller size, which is what they can bear. Fails when a target of the full size is missed by more than the
machine's load explains, that is: when bytes, errors or memory are off, or twice the seconds are used.
"""

import argparse
import gzip
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numba import njit, prange

from benchmarks import phantoms
from benchmarks.phantoms import CLASSES, FULL_SIZE, ORGANS, SPACING_MM
from curvas_assets.geometry import Grid
from curvas_assets.local.server import EmbeddedS3
from curvas_assets.orchestration.usage import PeakMemory
from curvas_assets.storage.connection import S3Settings, connect
from curvas_assets.storage.softmax import SoftmaxWriter, open_softmax

SMALL_SIZE = (128, 256, 256)
PATIENTS, MODELS, ENSEMBLES = 65, 9, 4
MEMBERS = [f"m{i}" for i in range(MODELS)]
GROUPS = {"ensemble_anno1": MEMBERS[:3], "ensemble_anno2": MEMBERS[3:6], "ensemble_anno3": MEMBERS[6:]}
GROUPS["ensemble_all"] = MEMBERS
AFFINE = np.diag([-SPACING_MM[2], -SPACING_MM[1], SPACING_MM[0], 1.0])
Shape = tuple[int, int, int]
TARGETS = {
    "MB": 110,
    "write_s": 10,
    "read_s": 2,
    "slab_s": 0.1,
    "ensembles_s": 60,
    "ensembles_GiB": 2,
    "prediction_GiB": 16,
    "stored_GB": 80,
}


class Clock:
    """Wall and CPU seconds of pieces of work, and the highest memory meanwhile."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0
        self.memory = PeakMemory()

    def __enter__(self) -> "Clock":
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall += time.perf_counter() - self._wall
        self.cpu += time.process_time() - self._cpu

    def facts(self) -> dict[str, float]:
        return {"s": self.wall, "cpu_s": self.cpu, "GiB": self.memory.peak() / 2**30}


def store():
    """The bucket of the environment this process was started with."""
    return connect(S3Settings.from_environment(os.environ))


def writer(key: str, shape: Shape, predictor: str) -> SoftmaxWriter:
    return SoftmaxWriter(
        store(),
        key,
        Grid(shape, AFFINE),
        class_names=CLASSES,
        provenance={"patient": "P1", "predictor": predictor},
    )


def key_of(shape: Shape, model: str) -> str:
    return f"output/{shape[0]}/{model}/softmax.zarr"


# Parts ---------------------------------------------------------------------------------------------------------------


def part_mild(shape: Shape) -> dict[str, Any]:
    """The same of a network that was trained a little, whose far voxels are noise."""
    return part_volume(shape, confident=False)


def part_volume(shape: Shape, *, confident: bool = True) -> dict[str, Any]:
    """Write, read, and compare with what was written; the making of the phantom is not counted."""
    with writer("warm", (16, 64, 64), "warm") as warm:  # kernels loaded
        for z0, slab in phantoms.softmax_slabs((16, 64, 64)):
            warm.write(z0, slab)
    open_softmax(store(), "warm").slab(0, 16)

    key, write = key_of(shape, "m0" if confident else "mild"), Clock()
    writing = writer(key, shape, "m0")
    for z0, slab in phantoms.softmax_slabs(shape, confident=confident):
        with write:
            writing.write(z0, slab)
    with write:
        writing.__exit__(None, None, None)
    written = write.facts()

    reading = []
    for _ in range(3):
        with Clock() as read:
            for _ in _probabilities(open_softmax(store(), key)):
                pass
        reading.append(read.facts())
    whole = Clock()
    with whole:
        open_softmax(store(), key).slab(0, shape[0])
    of_array = whole.facts()
    volume = open_softmax(store(), key)
    latencies = []
    for z0 in range(0, shape[0] - 16, max(16, shape[0] // 20)):
        with Clock() as one:
            volume.slab(z0, z0 + 16)
        latencies.append(one.wall)
    with Clock() as cold:
        open_softmax(store(), key).slab(shape[0] // 2, min(shape[0] // 2 + 16, shape[0]))
    return {
        "MB": writing.facts.size / 1e6,
        "write": written,
        "read": min(reading, key=lambda facts: facts["s"]),
        "whole_array": of_array,
        "slab_median_s": float(np.median(latencies)),
        "slab_worst_s": max(latencies),
        "slab_with_opening_s": cold.wall,
        **_errors(shape, volume, confident),
        "scores": _score_errors(shape, volume, confident) if shape == SMALL_SIZE else {},
    }


def _probabilities(volume) -> Iterator[tuple[int, np.ndarray]]:
    from curvas_assets.storage.encoding import decode

    for z0, _, codes in volume.code_slabs():
        yield z0, decode(codes, volume.levels)


def _errors(shape: Shape, volume, confident: bool) -> dict[str, float]:
    """What storing changed, against the float32 original."""
    reference = phantoms.label_maps(shape, 1)[0]
    sums = np.zeros((2, len(CLASSES) + 1))  # soft voxels per class, entropy; original and stored
    bins = np.zeros((2, 50, 3))
    found = np.zeros(2)  # largest error, labels changed
    stored = _probabilities(volume)
    for z0, slab in phantoms.softmax_slabs(shape, confident=confident):
        _, read = next(stored)
        for which, p in enumerate((slab, read)):
            parts = np.zeros((p.shape[1], sums.shape[1]))
            histogram = np.zeros((p.shape[1], *bins.shape[1:]))
            _measure(p, reference[z0 : z0 + p.shape[1]], parts, histogram)
            sums[which] += parts.sum(axis=0)
            bins[which] += histogram.sum(axis=0)
        found[0] = max(found[0], float(np.abs(slab - read).max()))
        found[1] += np.count_nonzero(slab.argmax(axis=0) != read.argmax(axis=0))
    ece = np.abs(bins[..., 1] - bins[..., 2]).sum(axis=1) / bins[..., 0].sum(axis=1)
    relative = np.abs(sums[1] / sums[0] - 1)
    return {
        "largest_error": float(found[0]),
        "labels_changed": int(found[1]),
        "ece_error": float(abs(ece[1] - ece[0])),
        "soft_volume_error": float(relative[1 : len(CLASSES)].max()),
        "entropy_error": float(relative[-1]),
    }


RELATIVE = ("aurc", "eaurc", "augrc", "nll", "predictive_entropy")
ABSOLUTE = ("auroc", "auroc_error", "ece", "classwise_ece")


def _score_errors(shape: Shape, volume, confident: bool) -> dict[str, float]:
    """The largest difference over organs and annotators between the scores of what is stored and of the float32 array."""
    from curvas_assets.scoring import PatientReference

    reference = PatientReference(phantoms.label_maps(shape, 3), SPACING_MM, organs=ORGANS)
    exact = reference.score(phantoms.softmax(shape, confident=confident)).table
    both = exact.merge(reference.score(volume).table, on=["metric", "organ", "annotator"])
    apart = (both["value_x"] - both["value_y"]).abs()
    share = (apart / both["value_x"].abs()).groupby(both["metric"]).max()
    return {**{m: float(share[m]) for m in RELATIVE}, **apart.groupby(both["metric"]).max()[list(ABSOLUTE)].to_dict()}


@njit(parallel=True, cache=True)
def _measure(p, reference, parts, histogram):
    """Per slice: soft voxels of each class and entropy; per confidence bin voxels, confidence and hits."""
    for z in prange(p.shape[1]):
        for y in range(p.shape[2]):
            for x in range(p.shape[3]):
                best = 0
                for c in range(p.shape[0]):
                    value = np.float64(p[c, z, y, x])
                    parts[z, c] += value
                    if value > 0.0:
                        parts[z, p.shape[0]] -= value * np.log(value)
                    if p[c, z, y, x] > p[best, z, y, x]:
                        best = c
                confidence = np.float64(p[best, z, y, x])
                b = min(int(confidence * 50), 49)
                histogram[z, b, 0] += 1
                histogram[z, b, 1] += confidence
                histogram[z, b, 2] += best == reference[z, y, x]


def part_members(shape: Shape) -> dict[str, Any]:
    """Store every member that is not there yet."""
    sizes = []
    for i, name in enumerate(MEMBERS):
        with writer(key_of(shape, name), shape, name) as writing:
            for z0, slab in phantoms.softmax_slabs(shape, i, confident=True):
                writing.write(z0, slab)
        sizes.append(writing.facts.size / 1e6)
    return {"MB": float(np.mean(sizes))}


def part_ensembles(shape: Shape) -> dict[str, Any]:
    """Nine members to four ensembles with their maps, as the asset does it: fetch, average, encode, map, store."""
    from contextlib import contextmanager
    from types import SimpleNamespace

    from curvas_assets.stages.ensemble import _store_ensembles
    from curvas_assets.storage.layout import Layout

    @contextmanager
    def scratch(_subject: str, _bytes: int = 0) -> Iterator[Path]:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)

    objects, layout = store(), Layout()
    tools = SimpleNamespace(objects=objects, layout=layout, scratch=scratch, code=lambda *_: {})
    volumes = {name: open_softmax(objects, key_of(shape, name)) for name in MEMBERS}
    with Clock() as work:
        _store_ensembles(tools, f"{shape[0]}", volumes, GROUPS)
    sizes = {
        name: objects.head(layout.ensemble_map(f"{shape[0]}", "ensemble_all", name)).size / 1e6
        for name in ("entropy", "mutual_information", "labels")
    }
    softmax = np.mean([open_softmax(objects, layout.softmax(f"{shape[0]}", name)).size / 1e6 for name in GROUPS])
    return {**work.facts(), "MB": float(softmax), "maps_MB": sizes}


def part_stream(shape: Shape) -> dict[str, Any]:
    """Nine members to one mean and its entropies, read only: what nnU-Net's averaging does, from S3."""
    from curvas_assets.ensembling import stream_ensembles

    objects = store()
    volumes = {name: open_softmax(objects, key_of(shape, name)) for name in MEMBERS}
    next(stream_ensembles(volumes, {"ensemble_all": MEMBERS}))
    with Clock() as work:
        for _ in stream_ensembles(volumes, {"ensemble_all": MEMBERS}):
            pass
    return work.facts()


def part_scoring(shape: Shape) -> dict[str, Any]:
    """The whole panel of one ensemble with its nine members, against three annotators in a file.

    The asset holds the annotations in memory: a byte per voxel and annotator beside what is measured here.
    """
    from curvas_assets.scoring import PatientReference
    from curvas_assets.storage.layout import Layout

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "annotations.npy")
        annotations = np.lib.format.open_memmap(path, "w+", np.uint8, (3, *shape))
        for r, labels in enumerate(phantoms.label_maps(shape, 3)):
            annotations[r] = labels
        del annotations, labels
        reference = PatientReference(_OnDisk(path), SPACING_MM, organs=ORGANS)
        volumes = [open_softmax(store(), key_of(shape, name)) for name in MEMBERS]
        ensemble = open_softmax(store(), Layout().softmax(f"{shape[0]}", "ensemble_all"))
        with Clock() as work:
            reference.score(ensemble, members=volumes)
        return work.facts()


class _OnDisk:
    """An array in a file whose pages are let go of after each look: an array in memory would be counted as scoring's."""

    def __init__(self, path: Path):
        self.path = path
        whole = np.load(path, mmap_mode="r")
        self.shape, self.ndim, self.dtype = whole.shape, whole.ndim, whole.dtype

    def __getitem__(self, where: Any) -> np.ndarray:
        return np.load(self.path, mmap_mode="r")[where].copy()


def part_nnunet(shape: Shape) -> dict[str, Any]:
    """nnU-Net's own npz export of one volume, its reading, and its averaging of nine; and ours of the same files."""
    from nnunetv2.ensembling.ensemble import merge_files
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    from curvas_assets.storage.nnunet_exchange import import_nnunet_prediction, nnunet_properties

    labels = LabelManager({name: c for c, name in enumerate(CLASSES)}, None)
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for i in range(MODELS):
            softmax = phantoms.softmax(shape, i, confident=True)
            path = Path(folder, f"m{i}.npz")
            with Clock() as export:  # the last lines of nnU-Net's export_prediction_from_logits
                np.savez_compressed(path, probabilities=softmax)
                properties = nnunet_properties(Grid(shape, AFFINE))
                path.with_suffix(".pkl").write_bytes(pickle.dumps(properties))
                SimpleITKIO().write_seg(
                    softmax.argmax(axis=0).astype(np.uint8), str(path.with_suffix(".nii.gz")), properties
                )
            files.append(path)
        size = files[0].stat().st_size / 1e6
        with Clock() as read:
            np.load(files[0])["probabilities"]
        with Clock() as merge:
            merge_files([str(f) for f in files], str(Path(folder, "merged")), ".nii.gz", SimpleITKIO(), labels, False)
        with Clock() as bring_in:
            import_nnunet_prediction(
                files[0],
                files[0].with_suffix(".nii.gz"),
                store(),
                "imported",
                class_names=CLASSES,
                shape=shape,
                affine=AFFINE,
            )
    return {
        "MB": size,
        "export": export.facts(),
        "read": read.facts(),
        "average": merge.facts(),
        "our_import": bring_in.facts(),
    }


def part_prediction(shape: Shape) -> dict[str, Any]:
    """One patient by one model with nnU-Net's own preprocessing and sliding window: only the network is a trivial one."""
    import torch

    from curvas_assets.cohort.phantom import write_cohort
    from curvas_assets.segmentation import Predictor, prepare_dataset, train_model
    from curvas_assets.study import ModelId
    from curvas_assets_tests.segmentation.conftest import tiny_study

    class Linear(torch.nn.Module):
        """Logits that follow the intensity: what is measured is everything around the network."""

        def forward(self, scan: torch.Tensor) -> torch.Tensor:
            return torch.cat([scan * 0 + 3, *(scan * weight - 1 for weight in (0.5, -0.5, 1.0))], dim=1)

        def load_state_dict(self, *_: Any, **__: Any) -> None:
            """The model's weights are not used."""

    study = tiny_study(epochs=1, iterations_per_epoch=1, validation_iterations_per_epoch=1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_cohort(folder, patients=study.training_patients(), shape=(30, 56, 56), spacing_mm=(8, 6, 6), seed=5)
        scans = {
            p: (folder / p / study.image_files[0], folder / p / "annotation_1.nii.gz")
            for p in study.training_patients()
        }
        prepare_dataset(study, "anno1", scans, folder / "dataset")
        train_model(study, ModelId("anno1", 7, "all"), folder / "dataset", folder / "model")
        plans = json.loads((folder / "model" / "plans.json").read_text())
        configuration = plans["configurations"]["3d_fullres"]
        configuration["spacing"], configuration["patch_size"] = [1.1, 0.8, 0.8], [128, 128, 128]
        (folder / "model" / "plans.json").write_text(json.dumps(plans))
        _write_scan(folder / "image.nii.gz", shape)

        told: list[str] = []
        predictor = Predictor(study, tell=told.append)
        scan = predictor.open(folder / "image.nii.gz", "P1")
        loaded = predictor.load(folder / "model")
        loaded.predictor.network = Linear()
        loaded.predictor.tile_step_size = 1.0
        with Clock() as predict:
            prediction = predictor.predict(scan, folder / "model")
        before_export = predict.facts()
        export = Clock()
        with export, writer("predicted", shape, "m0") as writing:
            for z0, slab in prediction.encoded:
                writing.write_encoded(z0, slab)
        return {
            "estimated_GiB": prediction.memory_bytes / 2**30,
            "preprocessing_and_window": before_export,
            "export_and_storing": export.facts(),
            "told": told[0],
        }


def _write_scan(path: Path, shape: Shape) -> None:
    """A CT in HU, int16, that is made and compressed slab by slab."""
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape(shape[::-1])
    header.set_sform(AFFINE, code=1)
    header.set_qform(AFFINE, code=1)
    header["magic"], header["vox_offset"] = b"n+1", 352
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(header.binaryblock + b"\0\0\0\0")
        for _, slab in phantoms.softmax_slabs(shape):
            hu = np.where(slab[0] == 1, -1000, 150 * slab[1] + 100 * slab[2] + 60 * slab[3] + 20)
            file.write(hu.astype("<i2").tobytes())


PARTS: dict[str, Callable[[Shape], dict[str, Any]]] = {
    name.removeprefix("part_"): function for name, function in list(globals().items()) if name.startswith("part_")
}


# The table -----------------------------------------------------------------------------------------------------------


class Runner:
    """Runs parts as processes that see one S3 server."""

    def __init__(self, environment: dict[str, str]):
        self.environment = {**os.environ, **environment}
        self.missed: list[str] = []

    def run(self, part: str, shape: Shape) -> dict[str, Any]:
        load = os.getloadavg()[0]
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.volumes", "--part", part, "--shape", *map(str, shape)],
            env=self.environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        facts = json.loads(done.stdout.splitlines()[-1])
        by = " × ".join(map(str, shape))
        print(f"-- {part} at {by}: {time.perf_counter() - start:.0f} s in all, load {load:.1f}", flush=True)
        return facts

    def say(self, what: str, value: float, unit: str, target: float | None = None, slack: float = 1.0) -> None:
        """Print a figure beside its target; note it when it is missed by more than `slack` times."""
        told = f"{value:12.3g} {unit:<6}"
        if target is not None:
            told += f" (must reach ≤ {target:g})"
            if value > slack * target:
                self.missed.append(f"{what}: {value:.3g} {unit}, must reach {target:g}")
        print(f"   {what:<58}{told}", flush=True)


def main(shape: Shape) -> int:
    """Every part; 1 if a target was missed."""
    full = shape == FULL_SIZE
    target = TARGETS.get if full else lambda name: None
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; seconds are wall seconds, CPU seconds beside them")
    with tempfile.TemporaryDirectory() as state, EmbeddedS3(Path(state)) as server:
        runner = Runner(server.environment())
        run, say = runner.run, runner.say

        volume = run("volume", shape)
        say("one softmax volume", volume["MB"], "MB", target("MB"))
        say("written, with its upload", volume["write"]["s"], "s", target("write_s"), 2)
        say("  CPU", volume["write"]["cpu_s"], "s")
        say("fetched and decoded to float32, slab by slab", volume["read"]["s"], "s", target("read_s"), 2)
        say("  CPU", volume["read"]["cpu_s"], "s")
        say("fetched and decoded to one float32 array", volume["whole_array"]["s"], "s", target("read_s"), 2)
        say("a slab of 16 slices, median", volume["slab_median_s"], "s", target("slab_s"), 2)
        say("a slab of 16 slices, worst", volume["slab_worst_s"], "s")
        say("a slab of 16 slices, opening included", volume["slab_with_opening_s"], "s")
        say("labels changed", volume["labels_changed"], "voxels", 0)
        say("largest error of a probability", volume["largest_error"], "", 3e-4)
        say("error of ECE", volume["ece_error"], "", 1e-5)
        say("error of soft organ volumes, relative", volume["soft_volume_error"], "", 1e-4)
        say("error of mean entropy, relative", volume["entropy_error"], "", 2e-3)
        mild = run("mild", shape)
        say("a mild network's volume", mild["MB"], "MB")
        say("  written", mild["write"]["s"], "s")
        say("  labels changed", mild["labels_changed"], "voxels", 0)
        say("  largest error of a probability", mild["largest_error"], "", 3e-4)
        for name, scores in (("overconfident", run("volume", SMALL_SIZE)), ("mild", run("mild", SMALL_SIZE))):
            for metric, off in scores["scores"].items():
                bound = (
                    5e-4 if "auroc" in metric else 1e-5 if "ece" in metric else 2e-3 if "entropy" in metric else 5e-3
                )
                say(f"  {metric} of the stored {name} volume, off by", off, "", bound)

        members = run("members", shape)
        ensembles = run("ensembles", shape)
        say("9 members → 4 ensembles and 12 maps", ensembles["s"], "s", target("ensembles_s"), 2)
        say("  CPU", ensembles["cpu_s"], "s")
        say("  peak memory", ensembles["GiB"], "GiB", target("ensembles_GiB"))
        maps = ensembles["maps_MB"]
        for name, megabytes in maps.items():
            say(f"  {name} of ensemble_all", megabytes, "MB")
        volumes_gb = PATIENTS * (MODELS * members["MB"] + ENSEMBLES * ensembles["MB"]) / 1e3
        say(
            f"all volumes: 65 × (9 × {members['MB']:.1f} + 4 × {ensembles['MB']:.1f} MB)",
            volumes_gb,
            "GB",
            target("stored_GB"),
        )
        say("  their maps beside them", PATIENTS * ENSEMBLES * sum(maps.values()) / 1e3, "GB")

        half = (shape[0] // 2, *shape[1:])
        run("members", half)
        for part, title in (("ensembles", "ensembling"), ("scoring", "scoring one ensemble with nine members")):
            small, large = run(part, half), run(part, shape)
            say(f"{title}: seconds", large["s"], "s")
            say(f"{title}: peak memory", large["GiB"], "GiB")
            say("  of half the slices", small["GiB"], "GiB")
            say("  memory when the slices double", large["GiB"] / small["GiB"], "times", 1.1 if full else None)

        run("members", SMALL_SIZE)
        theirs, ours = run("nnunet", SMALL_SIZE), run("volume", SMALL_SIZE)
        streamed = run("stream", SMALL_SIZE)
        say("nnU-Net's npz", theirs["MB"], "MB")
        say("  ours", ours["MB"], "MB")
        say("nnU-Net's export of probabilities", theirs["export"]["cpu_s"], "CPU s")
        say("  ours, upload included", ours["write"]["cpu_s"], "CPU s")
        say("nnU-Net's npz read", theirs["read"]["cpu_s"], "CPU s")
        say("  ours, fetched and decoded", ours["read"]["cpu_s"], "CPU s")
        say("nnU-Net's averaging of 9", theirs["average"]["cpu_s"], "CPU s")
        say("  ours, fetched, with entropies", streamed["cpu_s"], "CPU s")
        say("an npz brought in", theirs["our_import"]["s"], "s")

        prediction = run("prediction", shape)
        window, export = prediction["preprocessing_and_window"], prediction["export_and_storing"]
        say("prediction but for its network: estimated beside the process", prediction["estimated_GiB"], "GiB")
        say("  preprocessing and sliding window, peak", window["GiB"], "GiB", target("prediction_GiB"))
        say("  seconds", window["s"], "s")
        say("  resampling, encoding and upload, peak", export["GiB"], "GiB", target("prediction_GiB"))
        say("  seconds", export["s"], "s")
        print(f"   {prediction['told']}")
    for line in runner.missed:
        print(f"MISSED {line}")
    return int(bool(runner.missed))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="866 × 512 × 512 instead of 128 × 256 × 256")
    parser.add_argument("--part", choices=PARTS, help="one part in this process; prints JSON")
    parser.add_argument("--shape", type=int, nargs=3)
    given, _ = parser.parse_known_args()
    size = tuple(given.shape) if given.shape else FULL_SIZE if given.full else SMALL_SIZE
    if given.part:
        print(json.dumps(PARTS[given.part](size)))
        sys.exit(0)
    sys.exit(main(size))
