"""Claims proved here.

- Batches are equal to the bit whether the training process or one or three loader processes make them, in every run, and
  after a resume; so are the weights. They also do not depend on torch's threads, on /dev/shm, nor on what was drawn before.
- Making a batch leaves the generators and the threads of the training process as they were.
- A loader process that is killed ends the training with an error that says so; a resume continues to the same weights.
  So does one that is killed while it sends a batch through a pipe, and all others end with it.
- Where /dev/shm is too small, or fills up later, this is told, and batches come through pipes; processes start without it.
- No loader process is left after a training has ended or failed.
- `auto` counts by cores, memory and nnU-Net's own number on CUDA, and is 0 elsewhere.
- The record says how torch computed, and is equal whoever loaded; cuDNN is set as stock nnU-Net sets it, and only while a
  training runs.
"""

import hashlib
import inspect
import json
import pickle
import random
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from curvas_assets.errors import SegmentationError
from curvas_assets.segmentation import loading, train_model
from curvas_assets.segmentation.loading import (
    Batches,
    BatchStream,
    LoaderEndedError,
    Loading,
    Order,
    Step,
    plan_loading,
)
from curvas_assets.segmentation.trainer import StudyTrainer
from curvas_assets.study import ModelId, Study
from curvas_assets_tests.segmentation.conftest import tiny_study
from curvas_assets_tests.segmentation.large_batches import OneSends

MODEL = ModelId("anno1", 7, "all")
MIB = 2**20


def _study(workers: int | str, threads: int = 1) -> Study:
    return tiny_study(loader_workers=workers, threads=threads, epochs=2, validation_iterations_per_epoch=1)


@pytest.fixture
def seen(monkeypatch) -> list[str]:
    """Digests of the batches that trainings take while a test runs, and what the network would draw with them."""
    digests: list[str] = []

    def remembering(step):
        def taken(self, batch: dict[str, Any]) -> Any:
            digest = hashlib.sha256(repr(batch["keys"]).encode())
            for tensor in [batch["data"], *batch["target"], torch.rand(3)]:
                digest.update(str(tensor.dtype).encode() + tensor.numpy().tobytes())
            digests.append(digest.hexdigest())
            return step(self, batch)

        return taken

    for name in ("train_step", "validation_step"):
        monkeypatch.setattr(StudyTrainer, name, remembering(getattr(StudyTrainer, name)))
    return digests


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "fold_all" / "checkpoint_best.pth", weights_only=True)["network_weights"]


def _equal(one: Path, other: Path) -> bool:
    first, second = _weights(one), _weights(other)
    return all(torch.equal(first[name], second[name]) for name in first)


def _record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "training.json").read_text())


def _loaders() -> list[int]:
    """Loader processes of this process: children of the fork server, which is its child."""
    me = psutil.Process()
    return [child.pid for child in me.children(recursive=True) if child.ppid() != me.pid]


def test_batches_and_weights_do_not_depend_on_who_loads_nor_on_a_resume(dataset, tmp_path, seen, monkeypatch):
    checkpoints: list[bytes] = []
    train_model(
        _study(0),
        MODEL,
        dataset,
        tmp_path / "alone",
        on_checkpoint=lambda path, _: checkpoints.append(path.read_bytes()),
    )
    alone = list(seen)
    assert len(alone) == len(set(alone)) == 2 * (3 + 1)
    seen.clear()
    outcome = train_model(_study(1), MODEL, dataset, tmp_path / "helped")
    assert seen == alone
    assert _equal(tmp_path / "alone", tmp_path / "helped")
    assert _loaders() == []
    assert "1 loader process" in outcome.loading
    assert _record(tmp_path / "helped") == _record(tmp_path / "alone")
    (tmp_path / "first.pth").write_bytes(checkpoints[0])
    seen.clear()
    resumed = train_model(_study(3), MODEL, dataset, tmp_path / "resumed", resume_from=tmp_path / "first.pth")
    assert resumed.resumed_at_epoch == 1
    assert "3 loader processes" in resumed.loading
    assert seen == alone[4:]
    assert _equal(tmp_path / "alone", tmp_path / "resumed")
    assert _loaders() == []
    monkeypatch.setattr("curvas_assets.segmentation.trainer.free_shared_memory", lambda: 1000)
    seen.clear()
    told: list[str] = []
    outcome = train_model(_study(3, threads=2), MODEL, dataset, tmp_path / "piped", tell=told.append)
    assert seen == alone
    assert told == [outcome.loading]
    assert (
        "3 loader processes by the study file; batches come through pipes, which is slower, because /dev/shm" in told[0]
    )


def test_a_killed_loader_ends_the_training_and_a_resume_continues(dataset, tmp_path):
    kept, killed = tmp_path / "kept.pth", list[int]()

    def kill(_: object) -> None:
        one, *others = [psutil.Process(pid) for pid in _loaders()]
        one.kill()
        killed.append(one.pid)
        _, left = psutil.wait_procs([one, *others], 60)  # the others end with it
        assert not left

    with pytest.raises(
        SegmentationError,
        match=r"anno1_init7_foldall: training failed: loader process \d of 2 \(pid \d+\) was killed by SIGKILL before batch "
        r"0 of train in epoch 1\. If .* lower training\.loader_workers.* continues from its last checkpoint",
    ) as caught:
        train_model(
            _study(2),
            MODEL,
            dataset,
            tmp_path / "killed",
            on_epoch=kill,
            on_checkpoint=lambda path, _: kept.write_bytes(path.read_bytes()),
        )
    assert f"(pid {killed[0]})" in str(caught.value)
    assert caught.value.may_retry
    assert _loaders() == []
    assert not (tmp_path / "killed").exists()
    train_model(_study(0), MODEL, dataset, tmp_path / "alone")
    resumed = train_model(_study(0), MODEL, dataset, tmp_path / "resumed", resume_from=kept)
    assert resumed.resumed_at_epoch == 1
    assert _equal(tmp_path / "alone", tmp_path / "resumed")


@pytest.mark.timeout(180)
def test_a_loader_that_is_killed_while_it_sends_a_batch_is_noticed():
    batches = Batches(7, {"train": OneSends()}, "pipe")
    stream = BatchStream(batches, Order(0, 1, {"train": 4}), Loading(2, "pipe", ""), pin=False)
    try:
        sending, other = stream.workers
        assert stream._batches._worker_result_queue._reader.poll(60)  # it has begun, and the pipe takes 64 KiB
        sending.kill()
        with pytest.raises(LoaderEndedError, match=rf"process 1 of 2 \(pid {sending.pid}\) was killed by SIGKILL"):
            stream.take("train")
        other.join(60)
        assert other.exitcode is not None
    finally:
        stream.close()


def test_no_loader_is_left_when_a_training_fails(dataset, tmp_path, monkeypatch):
    def fail(self, batch):
        assert _loaders()
        raise ZeroDivisionError

    monkeypatch.setattr(StudyTrainer, "train_step", fail)
    with pytest.raises(ZeroDivisionError):
        train_model(_study(1), MODEL, dataset, tmp_path / "model")
    assert _loaders() == []


class _Drawn:
    """A source that takes from every generator, with a little tensor for each."""

    def __next__(self) -> dict[str, Any]:
        drawn = [random.random(), np.random.random(), torch.rand(1).item(), torch.get_num_threads()]  # noqa: NPY002
        return {"data": torch.tensor(drawn), "target": torch.ones(1), "keys": ["PHANTOM001"]}


def test_a_batch_is_drawn_from_its_step_and_leaves_the_training_process_as_it_was():
    batches = Batches(7, {"train": _Drawn(), "validation": _Drawn()}, "shared memory")
    steps = [Step(epoch, phase, number) for epoch in (0, 1) for phase in loading.PHASES for number in (0, 1)]
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
        drawn = [tuple(batches[step]["data"].tolist()) for step in steps]
        after = random.random(), np.random.random(), torch.rand(1).item(), torch.get_num_threads()  # noqa: NPY002
        random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
        assert after == (random.random(), np.random.random(), torch.rand(1).item(), 2)  # noqa: NPY002
    finally:
        torch.set_num_threads(threads)
    assert len(set(drawn)) == len(steps)
    assert {threads for *_, threads in drawn} == {1}
    assert drawn == [tuple(batches[step]["data"].tolist()) for step in steps]
    other = Batches(8, batches.sources, "shared memory")
    assert tuple(other[steps[0]]["data"].tolist()) != drawn[0]


def test_shared_memory_that_fills_up_later_is_told_and_the_batches_come(monkeypatch):
    def full(self) -> None:
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    batches = Batches(7, {"train": _Drawn()}, "shared memory")
    whole = batches[Step(0, "train", 0)]
    monkeypatch.setattr(loading, "get_worker_info", object)  # as in a loader process
    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    told: list[str] = []
    order = Order(0, 1, {"train": 2})
    stream = BatchStream(batches, order, Loading(0, "shared memory", ""), pin=False, tell=told.append)
    assert not stream.through_pipe
    taken = [stream.take("train"), stream.take("train")]
    assert stream.through_pipe
    assert torch.equal(taken[0]["data"], whole["data"])
    assert len(told) == 1
    assert told[0].startswith("/dev/shm is full")


def test_loader_processes_start_without_shared_memory(monkeypatch):
    def full(self) -> None:
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", full)
    source = _Drawn()
    source.cache = torch.arange(4.0)  # as nnU-Net's transforms keep some
    with pytest.raises(RuntimeError):
        ForkingPickler.dumps({"train": source})
    there = pickle.loads(ForkingPickler.dumps(Batches(7, {"train": source}, "pipe")))
    assert torch.equal(there.sources["train"].cache, source.cache)
    step = Step(0, "train", 0)
    assert torch.equal(there[step]["data"], Batches(7, {"train": source}, "pipe")[step]["data"])


def test_a_loop_in_another_order_than_the_streams_is_noticed():
    stream = BatchStream(
        Batches(7, {"train": _Drawn()}, "shared memory"),
        Order(0, 1, {"train": 1, "validation": 1}),
        Loading(0, "shared memory", ""),
        pin=False,
    )
    with pytest.raises(AssertionError, match="epoch=0, phase='train', number=0"):
        stream.take("validation")


@pytest.mark.parametrize(
    ("facts", "workers", "says"),
    [
        ({}, 12, "auto: 12 loader processes (nnU-Net's own number)"),
        ({"cores": 5}, 4, "auto: 4 loader processes (5 cores, of which one trains)"),
        ({"cores": 1}, 0, "auto: no loader process (1 cores, of which one trains)"),
        ({"memory_bytes": 5200 * MIB}, 4, "auto: 4 loader processes (5,200 MiB of memory, 650 MiB each)"),
        ({"memory_bytes": 100 * MIB}, 0, "auto: no loader process"),
        ({"device": "cpu"}, 0, "auto: the training process itself loads, as the device is cpu"),
        ({"device": "mps"}, 0, "as the device is mps"),
        ({"wanted": 3, "device": "cpu", "cores": 1}, 3, "3 loader processes by the study file"),
        ({"wanted": 0}, 0, "the training process itself loads"),
    ],
)
def test_the_number_of_loader_processes_follows_the_machine(facts, workers, says):
    usual = {"wanted": "auto", "device": "cuda", "cores": 64, "memory_bytes": 2**40, "shared_bytes": 2**40}
    plan = plan_loading(batch_bytes=25 * MIB, **{**usual, **facts})
    assert plan.workers == workers
    assert says in plan.why
    assert plan.through == "shared memory"


def test_pipes_are_taken_where_shared_memory_does_not_hold_what_is_made_ahead():
    asked = {"device": "cuda", "batch_bytes": 25 * MIB, "cores": 8, "memory_bytes": 2**40}
    small = plan_loading(4, shared_bytes=64 * MIB, **asked)
    assert (small.workers, small.through) == (4, "pipe")
    assert "/dev/shm has 64 MiB free, and batches made ahead take 450 MiB" in small.why
    assert plan_loading(4, shared_bytes=600 * MIB, **asked).through == "shared memory"
    assert plan_loading(4, shared_bytes=None, **asked).through == "shared memory"
    assert plan_loading(0, shared_bytes=0, **asked).through == "shared memory"


def test_torch_computes_as_stock_nnunet_has_it_while_a_training_runs(dataset, tmp_path):
    from nnunetv2.run import run_training

    stock = inspect.getsource(run_training.run_training)
    assert "cudnn.deterministic = False" in stock
    assert "cudnn.benchmark = True" in stock
    assert "torch.set_num_threads(1)" in inspect.getsource(run_training.run_training_entry)  # on CUDA
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic
    cudnn.benchmark, cudnn.deterministic = False, True
    during: list[tuple[bool, bool]] = []
    try:
        outcome = train_model(
            tiny_study(epochs=1, iterations_per_epoch=1, loader_workers="auto"),
            MODEL,
            dataset,
            tmp_path / "model",
            on_epoch=lambda _: during.append((cudnn.benchmark, cudnn.deterministic)),
        )
        assert (cudnn.benchmark, cudnn.deterministic) == (False, True)
    finally:
        cudnn.benchmark, cudnn.deterministic = before
    assert during == [(True, False)]
    record = _record(tmp_path / "model")
    said = {name: record[name] for name in ("threads", "mixed_precision", "compiled", "pinned_memory")}
    assert said == {"threads": 1, "mixed_precision": False, "compiled": False, "pinned_memory": False}
    assert outcome.loading == "auto: the training process itself loads, as the device is cpu"
    assert any("(seed, epoch, phase, number)" in line for line in record["not_as_stock"])
