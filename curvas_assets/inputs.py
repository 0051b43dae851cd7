"""Converts what people pass to one form: paths as text or path objects, arrays of any kind, sizes as lists or tuples.

Each of these functions takes what was `attempted`, the `subject` it was attempted for and the kind of `error` to raise, so
that the message is about the function that was called. Probabilities have a module of their own.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from curvas_assets.errors import CurvasError
from curvas_assets.geometry import SAME_SPACING, Grid


def as_path(value: Any, *, attempted: str, subject: str, error: type[CurvasError]) -> Path:
    """A path, from text or a path object; `~` is the home folder.

    Args:
        value: what was given.
        attempted: what it is wanted for, for the message.
        subject: whose it is.
        error: the kind of error to raise.

    Raises:
        CurvasError: of the kind `error`: it is no path.
    """
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(text, str) or not text.strip() or "\0" in text:
        raise error(attempted, subject, f"{value!r:.80} instead of a path", "Give a path, as text or pathlib.Path.")
    text = os.path.expanduser(text)  # nibabel does so too
    if text.startswith("~"):
        raise error(
            attempted, subject, f"{text!r:.80}, which names a user who does not exist", "Give an existing path."
        )
    return Path(text)


def existing_file(value: Any, *, attempted: str, subject: str, error: type[CurvasError]) -> Path:
    """The path of an existing file; errors as in `as_path`, and if there is no file."""
    path = as_path(value, attempted=attempted, subject=subject, error=error)
    return _existing(path, "file", attempted, subject, error)


def existing_folder(value: Any, *, attempted: str, subject: str, error: type[CurvasError]) -> Path:
    """The path of an existing folder; errors as in `as_path`, and if there is no folder."""
    path = as_path(value, attempted=attempted, subject=subject, error=error)
    return _existing(path, "folder", attempted, subject, error)


def made_folder(value: Any, *, attempted: str, subject: str, error: type[CurvasError]) -> Path:
    """The path of a folder, which is made with its parents if necessary; errors as in `as_path`, and if it cannot be made."""
    path = as_path(value, attempted=attempted, subject=subject, error=error)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as reason:
        found = f"{path} cannot be made a folder ({reason.strerror or type(reason).__name__})"
        raise error(attempted, subject, found, "Give another folder, or make room for this one.") from reason
    return path


def as_spacing(value: Any, *, attempted: str, subject: str, error: type[CurvasError]) -> tuple[float, float, float]:
    """Voxel size along (Z, Y, X), mm, of three finite positive numbers; an error of the kind given for anything else."""
    remedy = "Give three finite lengths above 0, mm, along (z, y, x), e.g. (5.0, 0.8, 0.8)."
    array = to_array(value)
    if array is None or array.dtype.kind not in "fiu" or array.shape != (3,):
        found = f"spacing {value!r:.80}" if array is None or array.size < 9 else f"spacing of shape {array.shape}"
        raise error(attempted, subject, found, remedy)
    z, y, x = (float(length) for length in array)
    if not (np.isfinite(array).all() and min(z, y, x) > 0):
        raise error(attempted, subject, f"spacing {(z, y, x)}", remedy)
    return z, y, x


def as_shape(value: Any, *, attempted: str, subject: str, error: type[CurvasError]) -> tuple[int, int, int]:
    """Voxels along (Z, Y, X), of three whole numbers above 0; an error of the kind given for anything else."""
    array = to_array(value)
    if array is None or array.dtype.kind not in "iu" or array.shape != (3,) or array.min() < 1:
        raise error(attempted, subject, f"shape {value!r:.80}", "Give three numbers of voxels along (z, y, x).")
    z, y, x = (int(n) for n in array)
    return z, y, x


def as_affine(value: Any, *, attempted: str, subject: str, error: type[CurvasError]) -> npt.NDArray[np.float64]:
    """A finite affine, float64 (4, 4), as nibabel gives it; an error of the kind given for anything else."""
    array = to_array(value)
    if array is None or array.dtype.kind not in "fiu" or array.shape != (4, 4) or not np.isfinite(array).all():
        found = f"a {type(value).__name__}" if array is None else f"an affine of shape {array.shape}, {array.dtype}"
        raise error(
            attempted, subject, found, "Give the affine of the scan, 4 × 4 finite numbers, as nibabel gives it."
        )
    return np.asarray(array, np.float64)


def as_grid(
    shape: Any, spacing_mm: Any, affine: Any, *, attempted: str, subject: str, error: type[CurvasError]
) -> Grid:
    """The grid of a volume from what a user gives of it; an error of the kind given for anything else.

    Args:
        shape: voxels along (Z, Y, X).
        spacing_mm: voxel size along (Z, Y, X); None takes the affine's, or 1 mm without one.
        affine: as nibabel gives it; None puts the volume at the world's origin, in the order LPS.
        attempted: what the grid is wanted for, for the message.
        subject: whose it is.
        error: the kind of error to raise.
    """
    told: Any = {"attempted": attempted, "subject": subject, "error": error}
    voxels = as_shape(shape, **told)
    spacing = None if spacing_mm is None else as_spacing(spacing_mm, **told)
    if affine is None:
        return Grid.with_voxels(voxels, spacing or (1.0, 1.0, 1.0))
    grid = Grid(voxels, as_affine(affine, **told))
    if not min(grid.spacing_mm) > 0:
        found = f"an affine with voxels of {grid.spacing_mm} mm (z, y, x)"
        raise error(attempted, subject, found, "Give the affine of the scan, as nibabel gives it.")
    if spacing is not None and not np.allclose(spacing, grid.spacing_mm, rtol=SAME_SPACING, atol=0):
        found = f"voxels of {spacing} mm (z, y, x), and of {grid.spacing_mm} mm by the affine"
        raise error(attempted, subject, found, "Give the affine alone; it says the voxel size.")
    return grid


def to_array(values: Any) -> npt.NDArray[Any] | None:
    """An array from what people pass: NumPy's, torch's on any device, nested lists, numbers; None from anything else."""
    try:
        if isinstance(values, list | tuple):
            values = [_from_torch(value) if hasattr(value, "detach") else value for value in values]
        array = np.asarray(_from_torch(values) if hasattr(values, "detach") else values)
    except (TypeError, ValueError, RuntimeError, OverflowError):  # ragged lists; sparse tensors and those without data
        return None
    return None if array.dtype == object else array


def _from_torch(tensor: Any) -> npt.NDArray[Any]:
    """A tensor as an array, on the CPU and as float32 if it is bfloat16, which NumPy does not know."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if "bfloat16" in str(tensor.dtype) else tensor).numpy()


def _existing(path: Path, kind: str, attempted: str, subject: str, error: type[CurvasError]) -> Path:
    try:
        there = path.is_file() if kind == "file" else path.is_dir()
        other = not there and path.exists()
    except OSError:  # a name too long, a folder that may not be looked into
        there = other = False
    if not there:
        found = f"{path} is no {kind}" if other else f"there is no {kind} {path}"
        raise error(attempted, subject, found, "Check the path.")
    return path
