"""A DICOM image series: where its slices lie, checked by their headers, and its voxels, by ITK's reader."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from curvas_assets.errors import CurvasError, PatientError
from curvas_assets.geometry import LPS, TILT_DEGREES, Grid, mm, tilt_degrees

HEADER = (
    *("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID", "Modality"),
    *("PatientID", "PatientName", "PatientBirthDate", "ImagePositionPatient", "ImageOrientationPatient"),
    *("PixelSpacing", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel"),
)
"""Attributes of an image that are read; nothing else of its header is."""
OFF_GRID = 0.1
"""Share of the distance between slices by which one may lie off an even grid. Headers round to 0.1 mm or finer, up to
0.08 of thin slices; a slice that is missing puts another one off by half the distance or more."""
SAME_DIRECTION = 1e-3
REMEDY = "Export the series again, whole and as it was acquired, or leave this patient out."


def library(name: str) -> Any:
    """A library of the extra, loaded when it is needed.

    Raises:
        CurvasError: it is not installed.
    """
    try:
        return import_module(name)
    except ImportError as reason:
        raise CurvasError(
            "loading the DICOM library",
            name,
            f"it cannot be imported ({reason})",
            "Install it: pip install 'curvas-assets[dicom]'.",
        ) from reason


@dataclass(frozen=True)
class Slice:
    """What one image file's header says.

    Args:
        path: of the file.
        header: the attributes `HEADER`, as pydicom has them.
    """

    path: Path
    header: Any

    def numbers(self, name: str, count: int) -> npt.NDArray[np.float64] | None:
        """An attribute of so many finite numbers; None if it is not that."""
        value = self.header.get(name)
        try:
            numbers = np.array([float(v) for v in (() if value is None else value)])
        except (TypeError, ValueError):
            return None
        return numbers if numbers.shape == (count,) and np.isfinite(numbers).all() else None


@dataclass(frozen=True)
class Series:
    """An image series whose slices lie on one even grid with perpendicular axes.

    Args:
        uid: SeriesInstanceUID.
        slices: in the order of the grid's axis Z, along the normal of the slices (rows × columns).
        grid: of the voxels (Z, Y, X): a file's rows are Y, its columns X.
    """

    uid: str
    slices: tuple[Slice, ...]
    grid: Grid

    @classmethod
    def of(cls, slices: Sequence[Slice], *, attempted: str, subject: str) -> "Series":
        """The series that files make up, in any order.

        Raises:
            PatientError: several volumes or times in one series, a slice is missing, uneven distances, a tilted gantry,
                no place in the patient, a single slice, or several frames in one file.
        """

        def refuse(found: str, remedy: str = REMEDY) -> PatientError:
            return PatientError(attempted, subject, found, remedy)

        first = slices[0].header
        if any(int(s.header.get("NumberOfFrames") or 1) > 1 for s in slices):
            raise refuse(
                "its series has several frames in one file (enhanced multi-frame)",
                "Export it as classic images, one file per slice (dcm4che: emf2sf).",
            )
        if any(int(s.header.get("SamplesPerPixel") or 1) != 1 for s in slices):
            raise refuse("its images are in colour: screenshots or a derived picture")
        places = [s.numbers("ImagePositionPatient", 3) for s in slices]
        directions = [s.numbers("ImageOrientationPatient", 6) for s in slices]
        pixels = [s.numbers("PixelSpacing", 2) for s in slices]
        if any(value is None for value in (*places, *directions, *pixels)):
            raise refuse(
                "the place of an image is not known: no ImagePositionPatient, ImageOrientationPatient or PixelSpacing"
            )
        sizes = {(int(s.header.get("Rows") or 0), int(s.header.get("Columns") or 0)) for s in slices}
        position, orientation, pixel = np.array(places), np.array(directions), np.array(pixels)
        if (
            len(sizes) > 1
            or np.abs(orientation - orientation[0]).max() > SAME_DIRECTION
            or np.abs(pixel / pixel[0] - 1).max() > SAME_DIRECTION
        ):
            raise refuse("the images of its series differ in size, voxel size or direction: a localiser among them?")
        if not min(min(size) for size in sizes):
            raise refuse("an image does not say how many rows and columns it has")
        if len(slices) < 2:
            raise refuse("its series has a single image, and so no distance between slices")
        along_x, along_y = orientation[0, :3], orientation[0, 3:]
        depth = position @ np.cross(along_x, along_y)
        order = np.argsort(depth, kind="stable")
        _require_even(depth[order], refuse)
        position = position[order]
        affine = np.eye(4)
        affine[:3, 0], affine[:3, 1] = along_x * pixel[0, 1], along_y * pixel[0, 0]
        affine[:3, 2] = (position[-1] - position[0]) / (len(slices) - 1)
        affine[:3, 3] = position[0]
        tilt = tilt_degrees(affine)
        if tilt > TILT_DEGREES:
            raise refuse(
                f"its axes are {tilt:.3g}° from perpendicular (gantry tilt), which nnU-Net's reader (ITK) refuses",
                "Correct the tilt (dcm2niix does), of the annotations too, and give the platform NIfTI files.",
            )
        rows, columns = sizes.pop()
        grid = Grid((len(slices), rows, columns), LPS @ affine)
        return cls(str(first.SeriesInstanceUID), tuple(slices[i] for i in order), grid)

    @property
    def lps(self) -> npt.NDArray[np.float64]:
        """Voxel (x, y, z) → DICOM's patient coordinates, LPS+ mm."""
        return LPS @ self.grid.affine

    def voxels(self, *, attempted: str, subject: str) -> npt.NDArray[Any]:
        """The voxels (Z, Y, X), rescaled (HU of a CT): int16 if they are whole and fit, else float32.

        ITK's reader (GDCM) decodes every transfer syntax that it has, and applies slope and intercept of each slice.

        Raises:
            PatientError: a file cannot be read or decoded.
        """
        import SimpleITK as sitk

        reader = sitk.ImageFileReader()
        reader.SetImageIO("GDCMImageIO")
        voxels: npt.NDArray[Any] | None = None
        for z, one in enumerate(self.slices):
            reader.SetFileName(str(one.path))
            try:
                _require_whole(one.path)
                values = sitk.GetArrayFromImage(reader.Execute())
            except Exception as reason:  # of pydicom's many kinds, and ITK's RuntimeError
                found = f"slice {z + 1} of {len(self.slices)} cannot be decoded: damaged, or unknown to ITK"
                raise PatientError(attempted, subject, found, REMEDY) from reason
            if values.shape != (1, *self.grid.shape[1:]):
                found = f"slice {z + 1} of {len(self.slices)} decodes to shape {values.shape}"
                raise PatientError(attempted, subject, found, REMEDY)
            if voxels is None:
                voxels = np.empty(self.grid.shape, np.int16)
            if voxels.dtype == np.int16 and not _is_int16(values):
                voxels = voxels.astype(np.float32)
            voxels[z] = values[0]
        assert voxels is not None
        return voxels


def _require_whole(path: Path) -> None:
    """An error of any kind unless a file holds all its pixels: ITK reads what is missing as zeros, without a word."""
    file = library("pydicom").dcmread(path, specific_tags=["Rows", "Columns", "BitsAllocated", "PixelData"])
    wanted = int(file.Rows) * int(file.Columns) * int(file.BitsAllocated) // 8
    if not file.PixelData or (not file.file_meta.TransferSyntaxUID.is_compressed and len(file.PixelData) < wanted):
        raise ValueError(f"{len(file.PixelData)} bytes of pixels, not {wanted}")


def _is_int16(values: npt.NDArray[Any]) -> bool:
    low, high = np.iinfo(np.int16).min, np.iinfo(np.int16).max
    fits = bool(values.min() >= low and values.max() <= high)
    return fits and (values.dtype.kind in "iu" or bool((values == np.rint(values)).all()))


def _require_even(depth: npt.NDArray[np.float64], refuse: Any) -> None:
    """Slices, sorted, whose distances are equal up to what headers round."""
    gaps = np.diff(depth)
    usual = float(np.median(gaps))
    if gaps.min() < max(1e-3, OFF_GRID * usual):
        n = int((gaps < max(1e-3, OFF_GRID * usual)).sum())
        raise refuse(
            f"{n} of its {len(depth)} images lie where another one does: several times or volumes in one series"
        )
    even = np.linspace(depth[0], depth[-1], len(depth))
    off = float(np.abs(depth - even).max())
    if off > OFF_GRID * usual:
        wide = int((gaps > 1.5 * usual).sum())
        told = f"slices are missing in {wide} places" if wide else "the distance between its slices varies"
        raise refuse(f"{told}: from {gaps.min():.4g} to {mm([gaps.max()])} mm")
