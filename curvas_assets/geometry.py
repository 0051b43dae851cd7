"""A scan's geometry: where its voxels lie in the world, in which order, and whether every reader sees it so.

A NIfTI header says where voxels lie up to three times: sform, qform, and the voxel size `pixdim`. nibabel takes the sform;
ITK, by which nnU-Net reads, chooses between sform and qform and applies the unit of length. `require_one_reading` refuses
headers that they read differently, so that all code after the intake may use nibabel's affine as the geometry. Of
files, this module reads only the headers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from nibabel.affines import voxel_sizes
from nibabel.orientations import aff2axcodes, apply_orientation, inv_ornt_aff
from nibabel.spatialimages import HeaderDataError

from curvas_assets.errors import CurvasError

Affine = npt.NDArray[np.float64]
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""nibabel's RAS+ to ITK's LPS+, and back."""
TILT_DEGREES = 0.05
"""Axes further from perpendicular than this are sheared. ITK refuses from 0.006 to 0.01 degrees, unless it takes a qform."""
ROUNDING_DEGREES = 0.08
"""How far the rounding of a qform alone rotates a volume. Its quaternion is float32, and near half a turn (LPS) an
error of 1e-7 becomes 6e-4. Measured: 0.6 mm at the far corner of a clinical volume, with ITK and nibabel alike."""
NO_CODE = 0
SAME_SPACING = 1e-5
"""Relative tolerance; float32 rounding of a spacing stays below it."""
MM3_PER_ML = 1000.0
"""A millilitre is a cm³."""


@dataclass(frozen=True, eq=False)
class Grid:
    """The geometry of a volume: how many voxels it has, how large they are and where they lie.

    Args:
        shape: voxels along (Z, Y, X).
        affine: voxel (x, y, z) → RAS+ mm, as nibabel gives it.
    """

    shape: tuple[int, int, int]
    affine: Affine

    @classmethod
    def of(cls, image: Any) -> "Grid":
        """The grid of a nibabel image of three axes."""
        x, y, z = (int(n) for n in image.shape)
        return cls((z, y, x), np.asarray(image.affine, np.float64))

    @classmethod
    def with_voxels(cls, shape: Sequence[int], spacing_mm: Sequence[float]) -> "Grid":
        """A grid of shape and voxel size along (Z, Y, X), in the order LPS, whose first voxel is the world's origin."""
        (depth, height, width), (z, y, x) = map(int, shape), map(float, spacing_mm)
        return cls((depth, height, width), np.diag([-x, -y, z, 1.0]))

    def read_as(self, affine: npt.ArrayLike) -> "Grid":
        """The same voxels where another affine puts them."""
        return Grid(self.shape, np.asarray(affine, np.float64))

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size along (Z, Y, X), mm."""
        return spacing_of(self.affine)

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel, ml: the affine's determinant; of sheared axes, the product of the spacings would be too
        large.
        """
        return abs(float(np.linalg.det(self.affine[:3, :3]))) / MM3_PER_ML

    @property
    def orientation(self) -> str:
        """Directions in which the array axes X, Y, Z run, e.g. `LPS`."""
        return order_of(self.affine)

    @property
    def axial(self) -> int:
        """The array axis, of (Z, Y, X), that runs along superior–inferior: 0 of axial slices."""
        x, y, z = (code in "SI" for code in self.orientation)
        return (z, y, x).index(True)


def order_of(affine: npt.ArrayLike) -> str:
    """The voxel order of a scan, such as LPS: directions in which the array axes X, Y, Z run."""
    return "".join(map(str, aff2axcodes(np.asarray(affine, np.float64))))


def spacing_of(affine: npt.ArrayLike) -> tuple[float, float, float]:
    """Voxel size along (Z, Y, X), mm, of an affine."""
    x, y, z = (float(s) for s in voxel_sizes(np.asarray(affine, np.float64)))
    return z, y, x


def by(sizes: Sequence[float]) -> str:
    """A shape for people, such as 866 × 512 × 512; also sizes of up to six digits, such as 5 × 3.5 × 3.5."""
    return " × ".join(f"{size:g}" for size in sizes)


def mm(spacing: Sequence[float]) -> str:
    """Voxel sizes for people, such as 5 × 0.8 × 0.8; of measured ones, four digits."""
    return " × ".join(f"{s:.4g}" for s in spacing)


def tilt_degrees(affine: npt.ArrayLike) -> float:
    """Tilt, degrees: how far the worst pair of axes is from a right angle. In a sheared CT it is the gantry's tilt."""
    directions = _directions(np.asarray(affine, np.float64))
    between = (directions.T @ directions)[np.triu_indices(3, 1)]
    return float(np.rad2deg(np.arcsin(np.clip(np.abs(between).max(), 0, 1))))


def itk_affine(path: Path) -> Affine:
    """The affine by which ITK, and so nnU-Net, reads a NIfTI file: voxel (x, y, z) → RAS+ mm. The header alone is read.

    Raises:
        RuntimeError: ITK refuses the file.
    """
    import SimpleITK as sitk  # 0.2 s, and only the intake needs it

    reader = sitk.ImageFileReader()
    reader.SetImageIO("NiftiImageIO")
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(reader.GetDirection()[:9], (3, 3)) * np.array(reader.GetSpacing()[:3])
    affine[:3, 3] = reader.GetOrigin()[:3]
    return LPS @ affine


def require_one_reading(
    path: Path,
    image: Any,
    *,
    spacing_tolerance_mm: float,
    place_tolerance_mm: float,
    attempted: str,
    subject: str,
    error: type[CurvasError],
) -> None:
    """Refuse a header that two readers read differently, and axes that are not perpendicular.

    Args:
        path: the NIfTI file.
        image: the same file, opened by nibabel; three axes.
        spacing_tolerance_mm: by which voxel sizes may differ.
        place_tolerance_mm: by which a voxel's place may differ.
        attempted: what the geometry is wanted for, for the message.
        subject: whose it is.
        error: the kind of error to raise.

    Raises:
        CurvasError: of the kind `error`; tells both readings, and a remedy that moves no voxel in the world.
    """
    require_one_header(
        image.header,
        Grid.of(image),
        path,
        spacing_tolerance_mm=spacing_tolerance_mm,
        place_tolerance_mm=place_tolerance_mm,
        attempted=attempted,
        subject=subject,
        error=error,
    )


def require_one_header(
    header: Any,
    grid: Grid,
    path: Path | None = None,
    *,
    spacing_tolerance_mm: float,
    place_tolerance_mm: float,
    attempted: str,
    subject: str,
    error: type[CurvasError],
) -> None:
    """As `require_one_reading`, of a header and the grid that nibabel reads from it; without the file, ITK is not asked."""
    if not np.isfinite(grid.affine).all() or abs(np.linalg.det(grid.affine[:3, :3])) < 1e-9:
        found = f"its affine is not usable: {np.round(grid.affine, 3).tolist()}"
        raise error(attempted, subject, found, "Convert it again from its DICOM series.")
    if int(header["sform_code"]) == NO_CODE and int(header["qform_code"]) == NO_CODE:
        raise error(
            attempted,
            subject,
            "its header does not say where the voxels lie (sform_code and qform_code are 0), so that left and right are not known",
            "Convert it again from its source; or, if you know the orientation, write it (nibabel: "
            "image.set_sform(affine, 1); image.set_qform(affine, 1)).",
        )
    tilt = tilt_degrees(grid.affine)
    if tilt > TILT_DEGREES:
        raise _sheared(tilt, attempted, subject, error)
    sizes = tuple(float(abs(s)) for s in header["pixdim"][3:0:-1])
    if not _apart(sizes, grid.spacing_mm) <= spacing_tolerance_mm:
        raise error(
            attempted,
            subject,
            f"its header gives two voxel sizes: {mm(grid.spacing_mm)} mm (z × y × x) by the affine that nibabel reads, {mm(sizes)} by pixdim",
            "Find out the true size (DICOM: PixelSpacing, and the distance of the slices), and write it to both (nibabel: "
            "image.set_sform(affine, 1); image.set_qform(affine, 1)), in the scan and its annotations alike.",
        )
    for reader, affine in _other_readings(path, header, tilt, attempted, subject, error):
        if not _apart(spacing_of(affine), grid.spacing_mm) <= spacing_tolerance_mm:
            raise error(
                attempted,
                subject,
                f"voxels are {mm(grid.spacing_mm)} mm (z × y × x) as nibabel reads them, {mm(spacing_of(affine))} by {reader}; "
                f"the header's unit of length has the code {int(header['xyzt_units']) & 7} (2 is mm)",
                "Write the true size and the unit mm (nibabel: image.set_sform(affine, 1); image.set_qform(affine, 1); "
                "image.header.set_xyzt_units('mm')), in the scan and its annotations alike.",
            )
        read = grid.read_as(affine)
        if not same_place(read, grid, place_tolerance_mm):
            far, turn = displacement_mm(read, grid), turned_degrees(affine, grid.affine)
            raise error(
                attempted,
                subject,
                f"the affine that nibabel reads and {reader} put the same voxel up to {far:.4g} mm apart, turned by {turn:.3g}° "
                f"({grid.orientation}, origin {_point(grid.affine)}; {''.join(aff2axcodes(affine))}, origin {_point(affine)})",
                "Find out which one is right (convert the DICOM series again, or look at both in a viewer) and write it as both "
                "(nibabel: image.set_qform(image.get_sform(), 1), or image.set_sform(image.get_qform(), 1)).",
            )


def _other_readings(
    path: Path | None, header: Any, tilt: float, attempted: str, subject: str, error: type[CurvasError]
) -> Iterator[tuple[str, Affine]]:
    """The other readers of the header and their affines: the qform if there is one beside the sform, then ITK."""
    anew = "Convert it again from its DICOM series, or save it anew with nibabel, sform and qform written."
    if int(header["sform_code"]) != NO_CODE and int(header["qform_code"]) != NO_CODE:
        try:
            yield "the qform", np.asarray(header.get_qform(), np.float64)
        except (HeaderDataError, ValueError) as reason:
            raise error(attempted, subject, f"its qform is no rotation ({reason})", anew) from reason
    if path is None:
        return
    try:
        by_itk = itk_affine(path)
    except RuntimeError as reason:
        if tilt > 0.001:
            raise _sheared(tilt, attempted, subject, error) from reason
        words = " ".join(str(reason).split())[-120:]
        found = f"ITK, by which nnU-Net reads, refuses its header ({words})"
        raise error(attempted, subject, found, anew) from reason
    yield "nnU-Net's reader (ITK)", by_itk


def _sheared(tilt: float, attempted: str, subject: str, error: type[CurvasError]) -> CurvasError:
    found = f"its axes are {tilt:.3g}° from perpendicular (gantry tilt), which nnU-Net's reader (ITK) refuses"
    if tilt < 0.1:
        remedy = (
            "So small a tilt comes from a rounded header. Rewrite the headers of the scan and its annotations with "
            "perpendicular axes (nibabel: image.set_qform(image.affine, 1); image.set_sform(image.get_qform(), 1))."
        )
    else:
        remedy = (
            "Resample the scan and its annotations onto perpendicular axes (nibabel.processing.resample_to_output: the scan "
            "with order=1, cval=-1000, the annotations with order=0), or convert the DICOM series with tilt correction (dcm2niix)."
        )
    return error(attempted, subject, found, remedy)


# Two grids -----------------------------------------------------------------------------------------------------------


def displacement_mm(one: Grid, other: Grid) -> float:
    """The largest distance between the places that two grids of one shape give a corner."""
    return float(_corner_distances(one, other).max())


def turned_degrees(one: npt.ArrayLike, other: npt.ArrayLike) -> float:
    """The largest angle between the axes of two affines, axis by axis, degrees."""
    a, b = _directions(np.asarray(one, np.float64)), _directions(np.asarray(other, np.float64))
    chord = np.linalg.norm(a - b, axis=0).max()  # not acos, which is only noise where the cosine is near 1
    return float(np.rad2deg(2 * np.arcsin(np.clip(chord / 2, 0, 1))))


def same_place(one: Grid, other: Grid, tolerance_mm: float) -> bool:
    """Whether two grids of one shape and equal voxel sizes lie at one place, up to a tolerance or a qform's rounding.

    The caller compares the voxel sizes, because rounding is recognised here only as a small rotation.
    """
    distances = _corner_distances(one, other)
    rounded = turned_degrees(one.affine, other.affine) <= ROUNDING_DEGREES and distances.min() <= tolerance_mm
    return bool(distances.max() <= tolerance_mm or rounded)


def voxel_order(grid: Grid, onto: Grid) -> npt.NDArray[np.float64]:
    """How to permute and flip one grid's axes X, Y, Z so that they run like another's, as nibabel's (3, 2) orientation.

    This is the nearest possible order; `same_place` decides whether the grids then agree.
    """
    overlap = _directions(onto.affine).T @ _directions(grid.affine)  # [target axis, own axis]
    strength, order = np.abs(overlap), np.full((3, 2), np.nan)
    for _ in range(3):
        target, own = np.unravel_index(np.argmax(strength), (3, 3))
        order[own] = target, 1.0 if overlap[target, own] >= 0 else -1.0
        strength[target, :] = strength[:, own] = -1
    return order


def is_same_order(order: npt.NDArray[np.float64]) -> bool:
    """Whether an order from `voxel_order` leaves every axis as it is."""
    return bool((order == [[0, 1], [1, 1], [2, 1]]).all())


def reordered_grid(grid: Grid, order: npt.NDArray[np.float64]) -> Grid:
    """The grid of a volume whose axes have been permuted and flipped; every voxel stays where it is in the world."""
    x, y, z = (int(n) for n in np.array(grid.shape[::-1])[np.argsort(order[:, 0])])
    return Grid((z, y, x), grid.affine @ inv_ornt_aff(order, grid.shape[::-1]))


def reordered(voxels: npt.NDArray[Any], order: npt.NDArray[np.float64]) -> npt.NDArray[Any]:
    """The voxels (Z, Y, X) of a volume in another order, contiguous."""
    return np.ascontiguousarray(apply_orientation(voxels.transpose(2, 1, 0), order).transpose(2, 1, 0))


def require_same_grid(
    stored: Grid,
    order: npt.NDArray[np.float64],
    scan: Grid,
    *,
    spacing_tolerance_mm: float,
    place_tolerance_mm: float,
    remedy: str,
    attempted: str,
    subject: str,
    error: type[CurvasError],
    what: str = "annotation",
) -> None:
    """Require that an annotation, in its scan's voxel order, has the scan's shape, voxel sizes and place.

    Args:
        stored: grid of the annotation as its file has it.
        order: from `voxel_order`, onto the scan.
        scan: the scan's grid.
        spacing_tolerance_mm: by which voxel sizes may differ.
        place_tolerance_mm: by which a voxel's place may differ.
        remedy: what to do, for the message.
        attempted: what was attempted, for the message.
        subject: whose they are.
        error: the kind of error to raise.
        what: what it is if it is no annotation, for the message.

    Raises:
        CurvasError: of the kind `error`; says in what they differ.
    """
    turned = reordered_grid(stored, order)
    also = "" if is_same_order(order) else f", in the scan's order {scan.orientation} (stored as {stored.orientation})"
    if turned.shape != scan.shape:
        found = f"the {what} has {by(turned.shape)} voxels{also}, the image {by(scan.shape)} (Z × Y × X)"
        raise error(attempted, subject, found, remedy)
    if _apart(turned.spacing_mm, scan.spacing_mm) > spacing_tolerance_mm:
        found = f"the {what}'s spacing is {mm(turned.spacing_mm)} mm{also}, the image's {mm(scan.spacing_mm)}"
        raise error(attempted, subject, f"{found} (tolerance {spacing_tolerance_mm:g})", remedy)
    if not same_place(turned, scan, place_tolerance_mm):
        far = displacement_mm(turned, scan)
        found = f"their affines put the same voxel up to {far:.4g} mm apart{also}"
        raise error(attempted, subject, f"{found} (tolerance {place_tolerance_mm:g})", remedy)


def _corner_distances(one: Grid, other: Grid) -> npt.NDArray[np.float64]:
    z, y, x = other.shape
    corners = np.array([[i, j, k, 1.0] for i in (0, x - 1) for j in (0, y - 1) for k in (0, z - 1)]).T
    difference = (one.affine - other.affine) @ corners
    return np.linalg.norm(difference[:3], axis=0)


def _directions(affine: Affine) -> npt.NDArray[np.float64]:
    return affine[:3, :3] / voxel_sizes(affine)


def _apart(one: Sequence[float], other: Sequence[float]) -> float:
    return float(np.abs(np.subtract(one, other)).max())  # NaN stays NaN


def _point(affine: Affine) -> str:
    return "(" + ", ".join(f"{c:.4g}" for c in affine[:3, 3]) + ")"
