"""A predictor's probabilities as a fractional DICOM SEG on the grid of the series that was predicted."""

import hashlib
import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from curvas_assets import geometry
from curvas_assets.dicom.annotations import RTSTRUCT, SEG
from curvas_assets.dicom.organs import codes_of
from curvas_assets.dicom.series import HEADER, Series, Slice, library
from curvas_assets.errors import PatientError
from curvas_assets.geometry import Grid
from curvas_assets.inputs import as_path, existing_file, existing_folder

ATTEMPTED = "writing a DICOM SEG"
LEVELS = 255
"""Highest value of a byte, which stands for probability 1."""
SPACING_TOLERANCE_MM, PLACE_TOLERANCE_MM = 0.01, 0.1
"""By which the probabilities' voxels may differ from the series': DICOM writes decimals, NIfTI binary floats."""
SLACK = 1e-4
"""By which a probability may lie outside of 0 … 1 before it is refused."""


def write_probabilities_seg(
    probabilities: str | Path | Mapping[str, str | Path],
    series: str | Path,
    out: str | Path,
    *,
    predictor: str,
    organs: Sequence[str] | None = None,
    series_number: int = 900,
) -> Path:
    """Write one fractional SEG (PROBABILITY, 8 bit) with a segment for each organ.

    It refers to the images of the series and carries their patient and study, so it is as identifying as they are.

    Args:
        probabilities: NIfTI on the voxels of the series, in any voxel order, 0 … 1: organ → one 3-D file each; or one
            file of four axes (X, Y, Z, organ), or of three for a single organ, whose names `organs` gives.
        series: folder of the image series; other series, RTSTRUCT and SEG in it are left aside if only one series fits.
        out: file that is written, replaced if it is there.
        predictor: its name: in the series description, and as the algorithm's.
        organs: names along the fourth axis; if the first is `background`, that volume is left out. Of files by organ:
            their order; None for that of the mapping.
        series_number: of the new series.

    Returns:
        `out`. UIDs follow from the series, the predictor and the probabilities: the same content has the same ones.

    Raises:
        CurvasError: a library is missing.
        PatientError: a file is missing or no probabilities, no series fits their voxels, or more than one does.
    """
    if not isinstance(predictor, str) or not predictor.strip() or len(predictor) > 57 or "\\" in predictor:
        raise _wrong("a predictor", f"the name {predictor!r:.80}", "Give one of 1 to 57 characters, without \\.")
    told: Any = {"attempted": ATTEMPTED, "subject": predictor, "error": PatientError}
    pydicom, highdicom = library("pydicom"), library("highdicom")
    out = as_path(out, **told)
    volumes, grid = _volumes(probabilities, organs, predictor)
    scan = _series_for(existing_folder(series, **told), grid, predictor)
    order = geometry.voxel_order(grid, scan.grid)
    names = list(volumes)
    values = np.empty((*scan.grid.shape, len(names)), np.float32)
    digest = hashlib.sha256(f"{scan.uid}|{predictor}|{','.join(names)}".encode())
    for c, name in enumerate(names):
        values[..., c] = geometry.reordered(_checked(volumes[name], name, predictor), order)
        digest.update(np.rint(values[..., c] * LEVELS).astype(np.uint8).tobytes())
    if not values.max() * LEVELS >= 0.5:
        raise _wrong(predictor, "all probabilities are 0", "Give the probabilities of the organs, without background.")
    version = importlib.metadata.version("curvas-assets")
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=predictor, family=library("pydicom.sr.codedict").codes.DCM.ArtificialIntelligence, version=version
    )
    segments = [_segment(n, name, algorithm) for n, name in enumerate(names, start=1)]
    made: Any = highdicom.seg.Segmentation(
        source_images=[pydicom.dcmread(s.path, stop_before_pixels=True) for s in scan.slices],
        pixel_array=values,
        segmentation_type="FRACTIONAL",
        fractional_type="PROBABILITY",
        max_fractional_value=LEVELS,
        segment_descriptions=segments,
        series_instance_uid=pydicom.uid.generate_uid(entropy_srcs=["series", digest.hexdigest()]),
        sop_instance_uid=pydicom.uid.generate_uid(entropy_srcs=["instance", digest.hexdigest()]),
        series_number=series_number,
        instance_number=1,
        manufacturer="curvas-assets",
        manufacturer_model_name=predictor,
        software_versions=version,
        device_serial_number="none",
        content_label="PROBABILITIES",
        content_description=f"probabilities of {predictor}"[:64],
        series_description=f"CURVAS {predictor}",
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    made.save_as(out)
    return out


def _wrong(subject: str, found: str, remedy: str) -> PatientError:
    return PatientError(ATTEMPTED, subject, found, remedy)


# Probabilities --------------------------------------------------------------------------------------------------------


def _volumes(given: Any, organs: Sequence[str] | None, predictor: str) -> tuple[dict[str, Any], Grid]:
    """Organ → voxels that are not loaded yet, (X, Y, Z), and their grid."""
    if isinstance(given, Mapping):
        files = {str(organ): _open(path, predictor) for organ, path in given.items()}
        names = list(files) if organs is None else list(organs)
        if not files or set(names) != set(files):
            found = f"files of {', '.join(files) or 'nothing'}, and organs {', '.join(names)}"
            raise _wrong(predictor, found, "Give one file for each organ.")
        grids = [_grid(image, name, 3, predictor) for name, image in files.items()]
        if any(g.shape != grids[0].shape or not np.allclose(g.affine, grids[0].affine, atol=1e-3) for g in grids):
            raise _wrong(predictor, "the files lie on different voxels", "Give files of one patient and predictor.")
        return {name: files[name].dataobj for name in names}, grids[0]
    image, names = _open(given, predictor), list(organs or ())
    axes = len(image.shape)
    grid = _grid(image, Path(given).name, 4 if axes == 4 else 3, predictor)
    count = image.shape[3] if axes == 4 else 1
    skipped = 1 if len(names) == count and names[:1] == ["background"] else 0
    if len(names) != count or len(set(names)) != count or count == skipped:
        raise _wrong(predictor, f"{len(names)} names of organs for {count} volumes", "Name each volume once: --organs.")
    if axes == 3:
        return {names[0]: image.dataobj}, grid
    return {name: _Channel(image.dataobj, c) for c, name in enumerate(names) if c >= skipped}, grid


class _Channel:
    """One volume of a file of four axes, read when it is wanted."""

    def __init__(self, stored: Any, channel: int):
        self._stored, self._channel = stored, channel

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return np.asarray(self._stored[..., self._channel], dtype)


def _open(path: Any, predictor: str) -> Any:
    path = existing_file(path, attempted=ATTEMPTED, subject=predictor, error=PatientError)
    try:
        return nib.Nifti1Image.from_filename(path)
    except Exception as reason:  # whatever nibabel raises over a header, the file is at fault
        raise _wrong(predictor, f"{path.name} is no NIfTI file", "Give the probabilities as .nii.gz.") from reason


def _grid(image: Any, name: str, axes: int, predictor: str) -> Grid:
    if len(image.shape) != axes:
        raise _wrong(predictor, f"{name} has shape {image.shape}", "Give (x, y, z), or (x, y, z, organ) in one file.")
    x, y, z = (int(n) for n in image.shape[:3])
    return Grid((z, y, x), np.asarray(image.affine, np.float64))


def _checked(volume: Any, organ: str, predictor: str) -> npt.NDArray[np.float32]:
    """Voxels (Z, Y, X), within 0 … 1."""
    try:
        values = np.asarray(volume, np.float32).transpose(2, 1, 0)
    except (OSError, EOFError, ValueError) as reason:
        raise _wrong(predictor, f"the file of {organ} is damaged ({reason})", "Download it again.") from reason
    low, high = float(values.min()), float(values.max())
    if not (low >= -SLACK and high <= 1 + SLACK):
        raise _wrong(
            predictor,
            f"{organ} holds values from {low:g} to {high:g}",
            "Give probabilities, 0 … 1, not labels or logits.",
        )
    return np.clip(values, 0, 1)


# Series and segments --------------------------------------------------------------------------------------------------


def _series_for(folder: Path, grid: Grid, predictor: str) -> Series:
    """The one series in a folder on whose voxels the probabilities lie."""
    pydicom = library("pydicom")
    slices: dict[str, list[Slice]] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(HEADER))
        except Exception:  # whatever pydicom raises over a file, it is none of the series
            continue
        if header.get("SOPClassUID") not in (RTSTRUCT, *SEG) and "Rows" in header and header.get("SeriesInstanceUID"):
            slices.setdefault(str(header.SeriesInstanceUID), []).append(Slice(path, header))
    fitting: list[Series] = []
    reasons: list[PatientError] = []
    for files in slices.values():
        try:
            one = Series.of(files, attempted=ATTEMPTED, subject=predictor)
            geometry.require_same_grid(
                grid,
                geometry.voxel_order(grid, one.grid),
                one.grid,
                spacing_tolerance_mm=SPACING_TOLERANCE_MM,
                place_tolerance_mm=PLACE_TOLERANCE_MM,
                remedy="Give the series that was predicted.",
                attempted=ATTEMPTED,
                subject=predictor,
                error=PatientError,
            )
            fitting.append(one)
        except PatientError as reason:
            reasons.append(reason)
    if len(fitting) == 1:
        return fitting[0]
    if len(reasons) == 1 and not fitting:
        raise reasons[0]
    found = f"{len(fitting)} of {len(slices)} image series in {folder} have the voxels of the probabilities, not 1"
    raise _wrong(predictor, found, "Give the folder of the series that was predicted.")


def _segment(number: int, organ: str, algorithm: Any) -> Any:
    highdicom = library("highdicom")
    category, kind, side = codes_of(organ)
    segment = highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=organ[:64],
        segmented_property_category=category,
        segmented_property_type=kind,
        algorithm_type="AUTOMATIC",
        algorithm_identification=algorithm,
    )
    if side is not None:
        (written,) = segment.SegmentedPropertyTypeCodeSequence
        written.SegmentedPropertyTypeModifierCodeSequence = [highdicom.sr.CodedConcept.from_code(side)]
    return segment
