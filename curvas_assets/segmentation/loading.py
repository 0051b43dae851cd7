"""The batches of a training: which, in which order, and by how many processes they are loaded and augmented.

Each batch is drawn from generators that (seed, epoch, phase, number) alone determine. So it does not matter which
process makes it, how many there are, or where a training was resumed: the batches are equal to the bit. What is in a
batch is nnU-Net's own doing, by its own loaders and transforms.

Loader processes come from a fork server (a process without threads; a fork of the training process, which has threads,
may hang for good), live as long as the training, and work ahead across epochs. Loads torch; imported only by `trainer`
and by loader processes.
"""

import multiprocessing
import os
import pickle
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from curvas_assets.study import MOST_LOADER_WORKERS

PHASES = ("train", "validation")
Phase = Literal["train", "validation"]
Batch = dict[str, Any]
"""`data` float32 (B, C, Z, Y, X), `target` int16 (B, 1, Z, Y, X) for each output of the network, `keys`: the patients."""
SEQUENCE = 2
"""Number of the rule by which batches are drawn. Another rule gives other batches, and other models."""

AHEAD = 4
"""Batches that each process may be ahead. Batches are taken in order, and some take several times as long as others, so
that processes wait for a slow one: with 12, simulated, for 17 % of the time if each is 2 ahead, 9 % with 4, 6 % with 6.
"""
WORKER_BYTES = 400 << 20
"""Memory of a loader process beside its batches, with a margin."""
BATCHES_AT_WORK = 10
"""Memory of a loader process in batches: what it holds while it makes one, and what it has made. Together measured,
with 2 ahead: 140 to 460 MiB for batches of 25 MiB (2 × 128³ voxels), which this estimates at 650."""
SHARED_MEMORY = Path("/dev/shm")
SERVED = (
    "nnunetv2.training.dataloading.data_loader",
    "batchgeneratorsv2.transforms.noise.gaussian_blur",
    "batchgeneratorsv2.transforms.spatial.spatial",
    "batchgeneratorsv2.transforms.spatial.low_resolution",
    "batchgeneratorsv2.transforms.utils.deep_supervision_downsampling",
)
"""What the fork server imports once for all loader processes: 2.3 s of CPU time and 380 MiB, which they share."""


class LoaderEndedError(RuntimeError):
    """A loader process ended while the training still needed it; says which, and how."""


class Step(NamedTuple):
    """One batch of a training: the `number`-th of a phase of an epoch, all counted from 0."""

    epoch: int
    phase: Phase
    number: int


class Source(Protocol):
    """Makes batches out of whatever the global generators of random, NumPy and torch draw: nnU-Net's loaders."""

    def __next__(self) -> Batch: ...


# Which batches ---------------------------------------------------------------------------------------------------------


class Order(Sampler[Step]):
    """All batches from the beginning of an epoch on, in the order in which a training takes them.

    Args:
        first: epoch to begin with.
        end: epoch before which to end.
        counts: batches of each phase in an epoch, in the order of the phases.
    """

    def __init__(self, first: int, end: int, counts: Mapping[Phase, int]):
        self.first, self.end, self.counts = first, end, dict(counts)

    def __iter__(self) -> Iterator[Step]:
        for epoch in range(self.first, self.end):
            for phase, count in self.counts.items():
                for number in range(count):
                    yield Step(epoch, phase, number)


@contextmanager
def drawing(seed: int, step: Step) -> Generator[None]:
    """Draw a batch: the global generators are what (seed, step) determines, and afterwards what they were before, so
    that the network's own draws depend on nothing here. Torch computes by one thread, as in a loader process.
    """
    mixed = np.random.SeedSequence([seed, step.epoch + 1, PHASES.index(step.phase) + 1, step.number]).generate_state(3)
    before = random.getstate(), np.random.get_state(), torch.default_generator.get_state()  # noqa: NPY002
    threads = torch.get_num_threads()
    random.seed(int(mixed[0]))
    np.random.seed(int(mixed[1]))  # noqa: NPY002 - nnU-Net draws from the global generator
    torch.default_generator.manual_seed(int(mixed[2]))  # torch.manual_seed would also seed the GPU's
    torch.set_num_threads(1)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.default_generator.set_state(before[2])
        torch.set_num_threads(threads)


class Batches(Dataset[Batch]):
    """Step → batch.

    Args:
        seed: of the model.
        sources: of each phase.
        through: how a batch leaves a loader process: its arrays are put into shared memory, or sent through a pipe. What
            shared memory cannot take goes through the pipe.
    """

    def __init__(self, seed: int, sources: Mapping[Phase, Source], through: Literal["shared memory", "pipe"]):
        self.seed, self.sources, self.through = seed, dict(sources), through

    def __getstate__(self) -> dict[str, Any]:
        """For a loader process. Plain pickling: torch's own would put what tensors there are into shared memory."""
        return {**vars(self), "sources": pickle.dumps(self.sources)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, sources=pickle.loads(state["sources"]))

    def __getitem__(self, step: Step) -> Batch:
        with drawing(self.seed, step):
            batch = next(self.sources[step.phase])
        if get_worker_info() is None:
            return _each(batch, _as_it_is)
        if self.through == "shared memory":
            try:
                return _each(batch, torch.Tensor.share_memory_)
            except RuntimeError:  # unable to allocate shared memory
                pass
        return _each(batch, torch.Tensor.numpy)


def _each(batch: Batch, change: Callable[[torch.Tensor], Any]) -> Batch:
    """A batch with each of its tensors changed; targets are one tensor, or a list of one for each output."""
    target = batch["target"]
    targets = [change(t) for t in target] if isinstance(target, list) else change(target)
    return {"data": change(batch["data"]), "target": targets, "keys": [str(key) for key in batch["keys"]]}


def bytes_of(batch: Batch) -> int:
    """Size of a batch's tensors, bytes."""
    target = batch["target"]
    tensors = [batch["data"], *(target if isinstance(target, list) else [target])]
    return sum(t.numel() * t.element_size() for t in tensors)


# By how many processes -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loading:
    """How a training's batches are loaded.

    Args:
        workers: loader processes; 0 if the training process does it.
        through: how batches come from there.
        why: in words, for the log and the record.
    """

    workers: int
    through: Literal["shared memory", "pipe"]
    why: str


def plan_loading(
    wanted: int | Literal["auto"],
    device: str,
    batch_bytes: int,
    *,
    cores: int,
    memory_bytes: int,
    shared_bytes: int | None,
) -> Loading:
    """How many processes load, and how their batches reach the training.

    Args:
        wanted: the study's `training.loader_workers`.
        device: `cuda`, `mps` or `cpu`.
        batch_bytes: of one batch.
        cores: that this process may use.
        memory_bytes: that may still be taken.
        shared_bytes: free in /dev/shm; None where there is none.
    """
    workers, why = _workers(wanted, device, batch_bytes, cores, memory_bytes)
    if not workers:
        return Loading(0, "shared memory", why)
    needed = (AHEAD * workers + 2) * batch_bytes
    if shared_bytes is not None and needed > 0.8 * shared_bytes:
        found = f"/dev/shm has {_mib(shared_bytes)} free, and batches made ahead take {_mib(needed)}"
        return Loading(workers, "pipe", f"{why}; batches come through pipes, which is slower, because {found}")
    return Loading(workers, "shared memory", why)


def _workers(
    wanted: int | Literal["auto"], device: str, batch_bytes: int, cores: int, memory_bytes: int
) -> tuple[int, str]:
    if wanted != "auto":
        by = "the training process itself loads" if wanted == 0 else f"{_processes(wanted)} by the study file"
        return wanted, by
    if device != "cuda":
        return 0, f"auto: the training process itself loads, as the device is {device}"
    each = WORKER_BYTES + BATCHES_AT_WORK * batch_bytes
    limits = {
        "nnU-Net's own number": MOST_LOADER_WORKERS,
        f"{cores} cores, of which one trains": cores - 1,
        f"{_mib(memory_bytes)} of memory, {_mib(each)} each": memory_bytes // 2 // each,
    }
    reason, least = min(limits.items(), key=lambda limit: limit[1])
    workers = max(0, int(least))
    return workers, f"auto: {_processes(workers)} ({reason})"


def _processes(count: int) -> str:
    return {0: "no loader process", 1: "1 loader process"}.get(count, f"{count} loader processes")


def _mib(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"


def free_shared_memory() -> int | None:
    """Bytes free in /dev/shm; None where there is none."""
    try:
        facts = os.statvfs(SHARED_MEMORY)
    except OSError:
        return None
    return facts.f_bavail * facts.f_frsize


# The processes ---------------------------------------------------------------------------------------------------------


def context() -> Any:
    """Where loader processes come from: a fork server with what they import, which ends with this process."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(list(SERVED))  # without effect if this process has a server already
    return server


class BatchStream:
    """The batches of a training, one after the other, made ahead by the loader processes.

    If one of these ends too early, the others are killed, so that `take` fails instead of waiting for ever for the rest of
    a batch.

    Attributes:
        through_pipe: whether any batch came, or will come, through a pipe: such batches are not in page-locked memory.

    Args:
        batches: all there are.
        order: in which they are taken.
        loading: by how many processes.
        pin: whether batches are copied to page-locked memory, from which a GPU fetches them without waiting.
        tell: told once if shared memory becomes too small.
    """

    def __init__(
        self,
        batches: Batches,
        order: Order,
        loading: Loading,
        *,
        pin: bool,
        tell: Callable[[str], None] = lambda _: None,
    ):
        self.loading, self.tell = loading, tell
        self.through_pipe = loading.through == "pipe"
        self._watcher: _Watcher | None = None
        self._expected = iter(order)
        options: dict[str, Any] = {"num_workers": loading.workers}
        if loading.workers:
            options |= {
                "prefetch_factor": AHEAD,
                "multiprocessing_context": context(),
                "worker_init_fn": _begin,
            }
        loader = DataLoader(
            batches,
            batch_size=None,
            sampler=order,
            collate_fn=_as_it_is,
            pin_memory=pin,
            generator=torch.Generator(),  # else it would draw from the global one
            **options,
        )
        with _without_main_module():
            self._batches: Any = iter(loader)
        if loading.workers:
            self._watcher = _Watcher(self.workers, self._batches)

    @property
    def workers(self) -> list[Any]:
        """The loader processes."""
        return list(getattr(self._batches, "_workers", ()))

    def of(self, phase: Phase) -> Iterator[Batch]:
        """The batches of one phase, as a training's loop takes them: `next` at its time gives the next one."""
        return iter(lambda: self.take(phase), None)

    def take(self, phase: Phase) -> Batch:
        """The next batch.

        Args:
            phase: of which it must be: a loop in another order than the stream's is an error of the program.

        Raises:
            LoaderEndedError: a loader process has ended.
        """
        step = next(self._expected)
        if step.phase != phase:
            raise AssertionError(f"{step} is next, not a batch of {phase}")
        self._require_workers(step)
        try:
            batch = next(self._batches)
        except (RuntimeError, OSError, EOFError) as error:  # torch's own word for it, or that of a broken pipe to it
            self._require_workers(step, error)
            raise
        if isinstance(batch["data"], np.ndarray):
            if not self.through_pipe:
                self.tell("/dev/shm is full: batches that it cannot take come through pipes, which is slower")
            self.through_pipe = True
            batch = _each(batch, torch.from_numpy)
        return batch

    def _require_workers(self, step: Step, cause: BaseException | None = None) -> None:
        workers = self.workers
        if self._watcher is None or not wait([worker.sentinel for worker in workers], timeout=1 if cause else 0):
            return
        number = self._watcher.first_ended()
        worker = workers[number]
        raise LoaderEndedError(
            f"loader process {number + 1} of {len(workers)} (pid {worker.pid}) {_ended(worker.exitcode)} before batch "
            f"{step.number} of {step.phase} in epoch {step.epoch}"
        ) from cause

    def close(self) -> None:
        """End the loader processes; return when they have ended."""
        if self._watcher is not None:
            if not self._watcher.close():
                self._batches._workers_done_event = threading.Event()  # a killed process may hold the old one's lock
            self._batches._shutdown_workers()


class _Watcher:
    """Ends all loader processes, and what waits for their batches, when one of them ends before `close` is called.

    A process that is killed while it sends a batch through a pipe leaves the reader waiting for the rest without a timeout,
    because the other processes and the training could still write to the pipe. On CUDA the reader is a thread of torch's,
    for whose end torch waits before its own.

    Args:
        workers: the loader processes.
        batches: torch's iterator over what they send.
    """

    def __init__(self, workers: list[Any], batches: Any):
        self._closed = False
        self._lock = threading.Lock()
        self._workers = workers
        self._writer = batches._worker_result_queue._writer
        self._ended: list[int] = []
        # Refers to no iterator of torch's, which would otherwise live, with its processes, as long as this thread.
        self._thread = threading.Thread(target=self._watch, name="watches loader processes", daemon=True)
        self._thread.start()

    def first_ended(self) -> int:
        """Which process ended before the others were killed, counted from 0; one has ended."""
        self._thread.join()
        return self._ended[0]

    def close(self) -> bool:
        """From now on processes may end; returns whether all still ran."""
        with self._lock:
            self._closed = True
            return not self._ended

    def _watch(self) -> None:
        sentinels = [worker.sentinel for worker in self._workers]
        ended = wait(sentinels)
        with self._lock:
            self._ended = [number for number, sentinel in enumerate(sentinels) if sentinel in ended]
            if self._closed or self._writer.closed:
                return
            for worker in self._workers:
                worker.kill()
            nowhere = os.open(os.devnull, os.O_WRONLY)
            # Instead of closing it: torch may still write to it, which must not fail.
            os.dup2(nowhere, self._writer.fileno(), inheritable=False)
            os.close(nowhere)


def _ended(code: int) -> str:
    if code < 0:
        try:
            return f"was killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"was killed by signal {-code}"
    return f"ended with exit code {code}"


def _as_it_is(anything: Any) -> Any:
    return anything


def _begin(_: int) -> None:
    """In a loader process: end with the training, however that ends, and keep quiet."""
    training = multiprocessing.parent_process()

    def follow() -> None:
        if training is not None:
            training.join()
        os._exit(1)

    threading.Thread(target=follow, name="ends with its training", daemon=True).start()
    warnings.simplefilter("ignore")


@contextmanager
def _without_main_module() -> Generator[None]:
    """Start processes that do not run this program's main module again: it may be Dagster's, or a script that trains."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
