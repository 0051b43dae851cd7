"""What nnU-Net expects of its process: path variables, process counts, threads, a device. Set here and nowhere else."""

import ctypes
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, redirect_stdout
from functools import cache
from io import TextIOBase
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    import torch

PLANS_NAME = "nnUNetPlans"
DATASET_NAME = "Dataset001_{annotator}"
"""nnU-Net's name of an annotator's dataset; it is in the plans, and a stock installation needs that form."""

PR_SET_PDEATHSIG = 1

_FIXED = {
    "nnUNet_def_n_proc": "1",  # read when nnunetv2 is imported
    "nnUNet_n_proc_DA": "1",  # 0 breaks planning; our trainer makes its own loaders
    "nnUNet_wandb_enabled": "0",
}


class _UntilTheLastLeaves:
    """A block that several threads are in at once: the first one sets it up, the last one takes it down."""

    def __init__(self, set_up: Callable[[], AbstractContextManager[object]]):
        self._set_up, self._lock, self._inside, self._held = set_up, threading.Lock(), 0, ExitStack()

    @contextmanager
    def __call__(self) -> Generator[None]:
        with self._lock:
            if not self._inside:
                self._held.enter_context(self._set_up())
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if not self._inside:
                    self._held.close()


@contextmanager
def _variables(wanted: Mapping[str, str]) -> Generator[None]:
    """Environment variables for the length of a block."""
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


_fixed_variables = _UntilTheLastLeaves(lambda: _variables(_FIXED))


@contextmanager
def nnunet_folders(
    raw: Path | None = None, preprocessed: Path | None = None, results: Path | None = None
) -> Generator[None]:
    """nnU-Net's path variables for the length of a block; nnU-Net 2.8 reads them when it uses them.

    Several threads may be in such blocks at once, as long as no two of them name folders.
    """
    folders = {"nnUNet_raw": raw, "nnUNet_preprocessed": preprocessed, "nnUNet_results": results}
    wanted = {name: str(folder) for name, folder in folders.items() if folder is not None}
    with _fixed_variables(), _variables(wanted):
        yield


@cache
def forked_children_end_with_their_parent() -> None:
    """On Linux, make all loaders that this process forks from now on end with it, even when it is killed. Otherwise
    they would keep their memory and wait for ever for somebody to take their batches.
    """
    if sys.platform == "linux":
        prctl = ctypes.CDLL(None).prctl
        os.register_at_fork(after_in_child=lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL))


class _Hushed(TextIOBase):
    """Standard output without what threads print inside `quiet`."""

    def __init__(self, beyond: TextIO):
        self.beyond = beyond

    def write(self, text: str) -> int:
        return len(text) if getattr(_this_thread, "quiet_blocks", 0) else self.beyond.write(text)

    def flush(self) -> None:
        self.beyond.flush()


_this_thread = threading.local()


@contextmanager
def _hushed_process() -> Generator[None]:
    with redirect_stdout(_Hushed(sys.stdout)), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


_hushed = _UntilTheLastLeaves(_hushed_process)


@contextmanager
def quiet() -> Generator[None]:
    """Drop what nnU-Net prints in this thread. Warnings are off in the whole process while any thread is in such a block."""
    with _hushed():
        _this_thread.quiet_blocks = getattr(_this_thread, "quiet_blocks", 0) + 1
        try:
            yield
        finally:
            _this_thread.quiet_blocks -= 1


def choose_device(wanted: str) -> "torch.device":
    """The device of a setting: `auto` takes CUDA, then Apple's MPS, then the CPU."""
    import torch

    if wanted != "auto":
        return torch.device(wanted)
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


@contextmanager
def pinned_threads(threads: int | None, device: "torch.device") -> Generator[int]:
    """A fixed number of torch threads for a block: sums on the CPU depend on it in the last digits."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads or (1 if device.type == "cpu" else before))
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def dataset_name(annotator: str) -> str:
    """nnU-Net's name of an annotator's dataset, without the hyphens of the annotator's name."""
    return DATASET_NAME.format(annotator=annotator.replace("-", ""))
