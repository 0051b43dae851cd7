"""What nnU-Net expects of its process: path variables, process counts, threads, a device. Set here and nowhere else."""

import os
import shutil
import warnings
from collections.abc import Generator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

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


def usable_cores() -> int:
    """Cores that this process may use, by its affinity and its container's share of time."""
    from joblib import cpu_count  # of scikit-learn; os.cpu_count knows the machine alone

    return int(cpu_count())


def has_compiler() -> bool:
    """Whether torch.compile finds the C compiler that Triton takes."""
    return bool(os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang"))


def dataset_name(annotator: str) -> str:
    """nnU-Net's name of an annotator's dataset, without the hyphens of the annotator's name."""
    return DATASET_NAME.format(annotator=annotator.replace("-", ""))
