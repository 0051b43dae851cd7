"""The voxel order that nnU-Net is given, and the way back to the scan's own.

A network tells left from right only by the order of its array's axes. So nnU-Net gets every scan in one order, and its
output is brought back to the scan's own voxels: axes are permuted and flipped, nothing is resampled. Orders are written
as nibabel writes them, by where the x, y and z axis of a NIfTI file point: LPS is a CT as ITK keeps it, with an array
(z, y, x) whose z goes to the head. Geometry is nibabel's reading of the header here as everywhere on the platform.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.affines import voxel_sizes
from nibabel.filebasedimages import ImageFileError
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from curvas_assets.errors import CurvasError
from curvas_assets.geometry import (
    ROUNDING_DEGREES,
    SAME_SPACING,
    TILT_DEGREES,
    Grid,
    itk_affine,
    order_of,
    reordered,
    reordered_grid,
    tilt_degrees,
    turned_degrees,
    voxel_order,
)
from curvas_assets.inputs import existing_file

CANONICAL = "LPS"
"""The order of our datasets and of the models trained on them."""
RECORD = "voxel_order"
"""Where an order stands in `dataset.json`; nnU-Net leaves unknown keys alone."""
READERS: dict[str, str | None] = {"SimpleITKIO": None, "NibabelIO": None, "NibabelIOWithReorient": "RAS"}
"""nnU-Net's readers of NIfTI, and the order each brings a scan into; None leaves it in the file's."""
DAMAGED = (ImageFileError, WrapStructError, HeaderDataError, OSError, EOFError, ValueError, zlib.error)
"""What nibabel raises for a file that is none, or is cut short."""

Number = TypeVar("Number", bound=np.generic)


@dataclass(frozen=True)
class Turn:
    """How the axes of the scan's own array map to those of the one handed over. Both are (…, Z, Y, X), slowest first.

    Args:
        axes: for each axis of the scan, the axis of the other array that runs along it.
        flipped: for each axis of the scan, whether that axis runs the other way.
    """

    axes: tuple[int, int, int]
    flipped: tuple[bool, bool, bool]

    @classmethod
    def to(cls, order: str | None, affine: npt.ArrayLike) -> "Turn":
        """From a scan's own order to another one; None leaves it as it is."""
        if order is None:
            return cls((0, 1, 2), (False, False, False))
        by_x = _orientation(order, affine)
        return cls(
            tuple(2 - int(axis) for axis, _ in by_x[::-1]),  # type: ignore[arg-type]
            tuple(bool(sign < 0) for _, sign in by_x[::-1]),  # type: ignore[arg-type]
        )

    @property
    def nothing(self) -> bool:
        """Whether a volume stays as it is."""
        return self.axes == (0, 1, 2) and not any(self.flipped)

    def forth(self, volume: npt.NDArray[Number]) -> npt.NDArray[Number]:
        """A view of a volume on the scan's voxels, in the order that is handed over."""
        inner = volume[(..., *(slice(None, None, -1 if flip else 1) for flip in self.flipped))]
        return _permuted(inner, [self.axes.index(axis) for axis in range(3)])

    def back(self, volume: npt.NDArray[Number]) -> npt.NDArray[Number]:
        """A view of a volume in the order that was handed over, on the scan's voxels."""
        inner = _permuted(volume, self.axes)
        return inner[(..., *(slice(None, None, -1 if flip else 1) for flip in self.flipped))]


def _permuted(volume: npt.NDArray[Number], axes: Sequence[int]) -> npt.NDArray[Number]:
    lead = volume.ndim - 3
    return volume.transpose([*range(lead), *(lead + axis for axis in axes)])


def _orientation(order: str, affine: npt.ArrayLike) -> npt.NDArray[np.float64]:
    return ornt_transform(io_orientation(np.asarray(affine, np.float64)), axcodes2ornt(tuple(order)))


def is_order(value: Any) -> bool:
    """Whether it is three letters, one of L and R, one of P and A, one of S and I."""
    pairs = {"L": 0, "R": 0, "P": 1, "A": 1, "S": 2, "I": 2}
    return isinstance(value, str) and sorted(pairs.get(letter, 3) for letter in value) == [0, 1, 2]


def turned_grid(grid: Grid, order: str | None) -> Grid:
    """The same grid in another voxel order; None leaves it as it is."""
    return grid if order is None else reordered_grid(grid, _orientation(order, grid.affine))


# Files ---------------------------------------------------------------------------------------------------------------


def open_image(path: Any, *, attempted: str, subject: str, error: type[CurvasError]) -> Any:
    """A NIfTI image of three axes on a rectangular grid, its voxels not read yet.

    Args:
        path: of the file.
        attempted: what it is wanted for, for the message.
        subject: whose it is.
        error: the kind of error to raise.

    Raises:
        CurvasError: of the kind `error`: there is no such file, it is no 3-D NIfTI of numbers, or its grid is sheared.
    """
    path = existing_file(path, attempted=attempted, subject=subject, error=error)
    try:
        image = nib.Nifti1Image.from_filename(path)
        kind, axes = np.dtype(image.get_data_dtype()).kind, len(image.shape)
    except DAMAGED as reason:
        found = f"{path.name} is no 3-D NIfTI file ({' '.join(str(reason).split())[:200]})"
        raise error(attempted, subject, found, "Give the CT as .nii.gz.") from reason
    if axes != 3 or 0 in image.shape or kind not in "iuf":
        found = f"{path.name} is no 3-D NIfTI file: it has shape {image.shape} of {image.get_data_dtype()}"
        raise error(attempted, subject, found, "Give one 3-D volume of numbers as .nii.gz.")
    affine = np.asarray(image.affine, np.float64)
    lengths = voxel_sizes(affine)
    if not np.isfinite(affine).all() or not lengths.min() > 0:
        found = f"the affine of {path.name} is {np.round(affine[:3], 3).tolist()}"
        raise error(attempted, subject, found, "Mend the header.")
    tilt = tilt_degrees(affine)
    if tilt > TILT_DEGREES:
        raise error(
            attempted,
            subject,
            f"the grid of {path.name} is sheared by {tilt:.1f}° (a tilted gantry), and nnU-Net's grids are rectangular",
            "Resample the scan and its annotations to a rectangular grid.",
        )
    return image


def spacing_of(image: Any) -> list[float]:
    """Voxel size along (Z, Y, X), mm: the header's own numbers, which nnU-Net reads, where they are the affine's."""
    sizes, written = voxel_sizes(image.affine), np.asarray(image.header.get_zooms()[:3], np.float64)
    chosen = written if np.allclose(written, sizes, rtol=SAME_SPACING, atol=0) else sizes
    return [float(length) for length in chosen[::-1]]


def read_voxels(image: Any, order: str | None) -> tuple[npt.NDArray[np.float32], list[float]]:
    """The voxels and the spacing of an image in a voxel order, as nnU-Net's readers give them.

    Returns:
        float32 (1, Z, Y, X), and mm along these three axes.
    """
    turn = Turn.to(order, image.affine)
    stored = np.asanyarray(image.dataobj).transpose(2, 1, 0)  # a NIfTI file's x varies fastest
    spacing = spacing_of(image)
    voxels = np.ascontiguousarray(turn.forth(stored), np.float32)
    return voxels[None], [spacing[turn.axes.index(axis)] for axis in range(3)]


def read_channels(images: Sequence[Any], order: str | None) -> tuple[list[npt.NDArray[np.float32]], list[float]]:
    """The channels of a scan, as `read_voxels` gives one. Further channels are brought onto the voxels of the first.

    Args:
        images: of nibabel, which lie on the same voxels, in whatever orders.
        order: that is wanted; None for that of the first image.

    Returns:
        float32 (Z, Y, X) of each, and the first one's mm along these axes.
    """
    first, *others = images
    voxels, spacing = read_voxels(first, order)
    grid, turn = Grid.of(first), Turn.to(order, first.affine)
    channels = [voxels[0]]
    for image in others:
        stored = np.asanyarray(image.dataobj).transpose(2, 1, 0)
        placed = reordered(stored, voxel_order(Grid.of(image), grid))
        channels.append(np.ascontiguousarray(turn.forth(placed), np.float32))
    return channels, spacing


def turned_image(image: Any, order: str, voxels: npt.NDArray[Any] | None = None) -> Any:
    """The same image in another voxel order, whose header gives every reader one geometry.

    Args:
        image: of nibabel.
        order: such as LPS.
        voxels: (X, Y, Z) on the image's grid, to be stored in place of its own; whole numbers, without a scale.
    """
    orientation = _orientation(order, image.affine)
    stored = image.dataobj.get_unscaled() if voxels is None else voxels
    affine = image.affine @ inv_ornt_aff(orientation, image.shape)
    turned = np.asarray(nib.orientations.apply_orientation(stored, orientation))
    header = image.header.copy()
    header.set_data_dtype(turned.dtype)
    out = nib.Nifti1Image(turned, affine, header)
    out.header.set_zooms([float(length) for length in voxel_sizes(affine)])
    out.set_sform(affine, 1)
    out.set_qform(affine, 1)
    slope, inter = (image.dataobj.slope, image.dataobj.inter) if voxels is None else (1, 0)
    out.header.set_slope_inter(slope, inter)
    return out


def itk_reads(path: Path, affine: npt.ArrayLike) -> bool:
    """Whether ITK, by which nnU-Net reads, gives a file's voxels in an affine's order and at its spacing.

    nnU-Net uses nothing else of a geometry. The place is not compared: from a qform, ITK puts the far corner of a
    clinical volume 0.6 mm off, since a float32 quaternion near half a turn (LPS) cannot hold angles below 0.04°.
    """
    try:
        place = itk_affine(path)
    except RuntimeError:  # a direction that is no rotation
        return False
    return (
        order_of(place) == order_of(affine)
        and turned_degrees(place, affine) <= ROUNDING_DEGREES
        and bool(np.abs(voxel_sizes(place) / voxel_sizes(np.asarray(affine)) - 1).max() <= SAME_SPACING)
    )
