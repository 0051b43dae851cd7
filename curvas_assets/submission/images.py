"""The image that comes in, and those that go out: MetaImage or NIfTI, read and written by ITK, on one grid.

A scan that is no NIfTI file becomes one, without another value or another place of any voxel, because the platform reads
NIfTI.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from curvas_assets.errors import PatientError
from curvas_assets.geometry import LPS, by, require_one_reading
from curvas_assets.nifti import judge_file
from curvas_assets.study import Intake
from curvas_assets.voxel_order import DAMAGED, open_image

NIFTI = (".nii.gz", ".nii")
FORMATS = (".mha", *NIFTI)
READING = "reading the scan"


@dataclass(frozen=True)
class ScanFile:
    """The scan that came in.

    Args:
        given: the file as it came.
        nifti: the same voxels at the same places as NIfTI: the file itself, or a copy.
        shape: voxels along (Z, Y, X).
    """

    given: Path
    nifti: Path
    shape: tuple[int, int, int]


def the_only_image(folder: Path) -> Path:
    """The one image of a folder.

    Raises:
        PatientError: there is no such folder, none or several images in it, or files of another kind.
    """
    folder = Path(folder)
    if not folder.is_dir():
        beside = sorted(path.name for path in folder.parent.glob("*")) if folder.parent.is_dir() else []
        found = f"there is no folder {folder}; {folder.parent} holds {', '.join(beside[:8]) or 'nothing'}"
        remedy = "Mount the input there, or export the submission with the name of the image's folder (image)."
        raise PatientError(READING, "the input", found, remedy)
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    images = [path for path in files if path.name.lower().endswith(FORMATS)]
    if len(images) != 1:
        held = ", ".join(path.name for path in files[:8]) or "nothing"
        found = f"{folder} holds {held}: {len(images)} images ({', '.join(FORMATS)}), and one scan is predicted"
        raise PatientError(READING, "the input", found, "Give one CT as .mha or .nii.gz.")
    return images[0]


def take_in(path: Path, intake: Intake, scratch: Path) -> ScanFile:
    """A scan as the platform reads scans.

    Args:
        path: the image.
        intake: what the study accepts of a file's geometry and size.
        scratch: a folder for the copy.

    Raises:
        PatientError: it is damaged, no 3-D volume of one number a voxel, too large, or two readers would see its geometry
            differently.
    """
    path = Path(path)
    nifti = path if path.name.lower().endswith(NIFTI) else _as_nifti(path, intake, scratch)
    told: Any = {"attempted": READING, "subject": path.name, "error": PatientError}
    largest, limit = intake.largest_volume_gib * 2**30, "Raise intake.largest_volume_gib if the machine has the memory."
    try:
        judge_file(nifti, largest, limit=limit, **told)
    except DAMAGED as error:
        found = f"it is no NIfTI file ({' '.join(str(error).split())[:200]})"
        raise PatientError(READING, path.name, found, "Give one CT as .mha or .nii.gz.") from error
    image = open_image(nifti, **told)
    require_one_reading(
        nifti,
        image,
        spacing_tolerance_mm=intake.spacing_tolerance_mm,
        place_tolerance_mm=intake.origin_tolerance_mm,
        **told,
    )
    x, y, z = (int(n) for n in image.shape)
    return ScanFile(path, nifti, (z, y, x))


def _as_nifti(path: Path, intake: Intake, scratch: Path) -> Path:
    """A copy whose voxels and geometry are the image's; uncompressed, because it is read soon and once."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        size, parts = reader.GetSize(), reader.GetNumberOfComponents()
        if len(size) != 3 or min(size) < 1 or parts != 1:
            found = f"it has {by(size)} voxels (x × y × z) of {parts} numbers each, not three axes of one number"
            raise PatientError(READING, path.name, found, "Give one 3-D volume of numbers.")
        if 8 * float(np.prod(size, dtype=float)) > 2 * intake.largest_volume_gib * 2**30:
            found = f"its header tells of {by(size)} voxels (x × y × z)"
            remedy = "Raise intake.largest_volume_gib if the machine has the memory."
            raise PatientError(READING, path.name, found, remedy)
        image = reader.Execute()
    except RuntimeError as error:
        found = f"ITK cannot read it ({' '.join(str(error).split())[-200:]})"
        raise PatientError(READING, path.name, found, "Give one CT as .mha or .nii.gz.") from error
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    voxels = sitk.GetArrayViewFromImage(image)
    if voxels.dtype.kind not in "iuf":
        raise PatientError(READING, path.name, f"its voxels are {voxels.dtype}", "Give one number a voxel.")
    copy = nib.Nifti1Image(voxels.transpose(2, 1, 0), LPS @ affine, dtype=voxels.dtype)
    copy.set_sform(LPS @ affine, 1)
    copy.set_qform(LPS @ affine, 1)
    copy.header.set_xyzt_units("mm")
    target = Path(scratch) / "scan.nii"
    nib.save(copy, target)
    return target


def write_like(scan: ScanFile, slabs: Iterator[tuple[int, npt.NDArray[Any]]], dtype: npt.DTypeLike, path: Path) -> None:
    """Write a volume on the scan's grid, with the geometry that ITK reads of the file that came in.

    Args:
        scan: whose grid it is.
        slabs: (z0, (dz, Y, X)) from the first slice to the last; memory holds the whole volume, for a moment twice.
        dtype: of the voxels.
        path: of the image; its folder is made.

    Raises:
        PatientError: it cannot be written.
    """
    import SimpleITK as sitk

    whole = np.empty(scan.shape, dtype)
    for z0, slab in slabs:
        whole[z0 : z0 + len(slab)] = slab
    like = sitk.ImageFileReader()
    like.SetFileName(str(scan.given))
    like.ReadImageInformation()
    image = sitk.GetImageFromArray(whole)
    del whole
    image.SetSpacing(like.GetSpacing())
    image.SetOrigin(like.GetOrigin())
    image.SetDirection(like.GetDirection())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(image, str(path), useCompression=True)
    except (OSError, RuntimeError) as error:
        found = f"{path} cannot be written ({' '.join(str(error).split())[-200:]})"
        raise PatientError("writing the result", scan.given.name, found, "Give a folder with room in it.") from error
