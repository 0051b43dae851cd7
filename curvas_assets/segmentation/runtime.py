"""What nnU-Net expects of its process: path variables, process counts, threads, a device. Set here and nowhere else."""

import os
import shutil
import sys
import threading
import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, redirect_stdout
from io import TextIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from curvas_assets.machine import usable_cores

if TYPE_CHECKING:
    import torch

PLANS_NAME = "nnUNetPlans"
DATASET_NAME = "Dataset001_{annotator}"
"""nnU-Net's name of an annotator's dataset; it is in the plans, and a stock installation needs that form."""

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


@contextmanager
def cudnn_as_stock() -> Generator[None]:
    """What nnU-Net's `run_training` sets before it trains: cuDNN takes the fastest algorithm it finds, if that is not
    deterministic either.
    """
    from torch.backends import cudnn

    before = cudnn.benchmark, cudnn.deterministic
    cudnn.benchmark, cudnn.deterministic = True, False
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic = before


def numerics() -> dict[str, Any]:
    """How torch computes at the moment, for the record of a training."""
    import torch

    return {
        "threads": torch.get_num_threads(),
        "cudnn_benchmark": bool(torch.backends.cudnn.benchmark),
        "cudnn_deterministic": bool(torch.backends.cudnn.deterministic),
        "tf32_convolutions": bool(torch.backends.cudnn.allow_tf32),
        "tf32_matrix_products": bool(torch.backends.cuda.matmul.allow_tf32),
    }


def preprocessing_threads() -> int:
    """Threads that share the preprocessing of a scan; each holds slices of its own, so there are four at most."""
    return min(4, usable_cores())


def has_compiler() -> bool:
    """Whether torch.compile finds the C compiler that Triton takes."""
    return bool(os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang"))


def dataset_name(annotator: str) -> str:
    """nnU-Net's name of an annotator's dataset, without the hyphens of the annotator's name."""
    return DATASET_NAME.format(annotator=annotator.replace("-", ""))
