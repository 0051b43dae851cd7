"""What nnU-Net expects of its process: path variables, process counts, threads, a device. Set here and nowhere else."""

import ctypes
import os
import signal
import sys
import warnings
from collections.abc import Generator
from contextlib import contextmanager, redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

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


@contextmanager
def nnunet_folders(
    raw: Path | None = None, preprocessed: Path | None = None, results: Path | None = None
) -> Generator[None]:
    """nnU-Net's path variables for the length of a block; nnU-Net 2.8 reads them when it uses them."""
    wanted = {
        **_FIXED,
        **{
            name: str(folder)
            for name, folder in (
                ("nnUNet_raw", raw),
                ("nnUNet_preprocessed", preprocessed),
                ("nnUNet_results", results),
            )
            if folder is not None
        },
    }
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


@cache
def forked_children_end_with_their_parent() -> None:
    """On Linux, make all loaders that this process forks from now on end with it, even when it is killed. Otherwise
    they would keep their memory and wait for ever for somebody to take their batches.
    """
    if sys.platform == "linux":
        prctl = ctypes.CDLL(None).prctl
        os.register_at_fork(after_in_child=lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL))


@contextmanager
def quiet() -> Generator[StringIO]:
    """Keep what nnU-Net prints off the step's output; the text is at hand for an error."""
    printed = StringIO()
    with redirect_stdout(printed), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield printed


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


def usable_cores(most: int = 4) -> int:
    """Cores that this process may use, up to `most`."""
    try:
        return min(most, len(os.sched_getaffinity(0)))
    except AttributeError:  # not on Linux
        return min(most, os.cpu_count() or 1)


def dataset_name(annotator: str) -> str:
    """nnU-Net's name of an annotator's dataset, without the hyphens of the annotator's name."""
    return DATASET_NAME.format(annotator=annotator.replace("-", ""))
