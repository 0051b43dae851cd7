"""Reading one patient: a CT and one label map per annotator, validated to the last byte and described.

What is wrong is a PatientError that tells what was found and what to do. What is odd but usable is a warning. Nothing is
stored here, and nothing outside the patient's folder is read.
"""

import gzip
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.affines import voxel_sizes
from nibabel.filebasedimages import ImageFileError
from nibabel.openers import ImageOpener
from nibabel.orientations import aff2axcodes
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from curvas_assets.errors import CurvasError, PatientError
from curvas_assets.inputs import existing_folder, to_array
from curvas_assets.storage.labels import DEPTH, PackedLabels
from curvas_assets.study import Study, load_study

Labels = npt.NDArray[np.uint8]
PERCENTILES = (0.5, 5, 50, 95, 99.5)
BLOCK = 32
"""Slices looked at together: what a check needs beside the volume stays below 100 MB at clinical size."""
ROUNDED = 1e-12
"""Labels further from an integer than this are said to have been rounded."""


@dataclass(frozen=True)
class Patient:
    """A patient that passed intake.

    Args:
        id: the patient's whole name, e.g. UKCHLL077.
        scan: CT in HU, int16 (or float32 if the file holds fractions), (Z, Y, X).
        annotations: one label map per annotator in the study's order, uint8 (R, Z, Y, X).
        spacing_mm: voxel size along (Z, Y, X), mm.
        affine: of the image as nibabel gives it: voxel (x, y, z) → RAS+ mm.
        facts: geometry, intensities, organ volumes and agreement, ready for JSON.
        warnings: what is odd, each a sentence.
        exclusions: rows for the exclusion ledger: patient, annotator, organ, reason.
    """

    id: str
    scan: npt.NDArray[Any]
    annotations: Labels
    spacing_mm: tuple[float, float, float]
    affine: npt.NDArray[np.float64]
    facts: dict[str, Any]
    warnings: tuple[str, ...] = ()
    exclusions: tuple[dict[str, str], ...] = field(default=())


def read_patient(folder: str | Path, study: Study | str | Path) -> Patient:
    """Read, validate and describe the patient in a folder.

    Args:
        folder: named like the patient, with or without the study's prefix; holds the files the study names.
        study: organs, annotators, file names and tolerances; the study itself, or its name or path for `load_study`.

    Raises:
        PatientError: there is no such folder, a file is missing, unreadable, truncated or not 3-D; shapes, affines or spacings disagree; a label
            is not the study's; a voxel is NaN or infinite. Nothing of the patient is to be used then.
    """
    study = load_study(study)
    folder = existing_folder(folder, attempted="reading a patient", subject="the patient", error=PatientError)
    patient = _patient_id(folder, study)
    _require_files(folder, study, patient, [study.image, *(a.file for a in study.annotators)])
    image = _load(folder / study.image, patient)
    scan = _scan(image, patient, study.image)
    spacing_mm = _spacing_zyx(image)
    annotations = np.empty((len(study.annotators), *scan.shape), np.uint8)

    def keep(r: int, z0: int, slab: Labels) -> None:
        annotations[r, z0 : z0 + len(slab)] = slab

    warnings, exclusions = _annotations(folder, study, patient, image, keep)
    facts = {
        "shape": list(scan.shape),
        "spacing_mm": list(spacing_mm),
        "extent_mm": [round(n * s, 3) for n, s in zip(scan.shape, spacing_mm, strict=True)],
        "orientation": "".join(aff2axcodes(image.affine)),
        "dtype": str(scan.dtype),
        "body_region": [[s.start, s.stop] for s in body_region(scan)],
        **_describe_intensities(scan),
        **_describe_annotations(annotations, study, spacing_mm),
    }
    return Patient(
        patient,
        scan,
        annotations,
        spacing_mm,
        np.asarray(image.affine, np.float64),
        facts,
        tuple(warnings),
        tuple(exclusions),
    )


def read_annotations(folder: str | Path, study: Study | str | Path) -> PackedLabels:
    """The label maps of a patient alone, validated among themselves; the CT is not needed.

    They are read 16 slices at a time and held compressed: a patient of 866 × 512 × 512 takes some MB.

    Returns:
        uint8 (R, Z, Y, X), sliced as a NumPy array is.

    Raises:
        PatientError: as `read_patient`, for the annotations; the first one stands for the image.
    """
    study = load_study(study)
    folder = existing_folder(folder, attempted="reading annotations", subject="the patient", error=PatientError)
    patient = _patient_id(folder, study)
    _require_files(folder, study, patient, [annotator.file for annotator in study.annotators])
    first = _load(folder / study.annotators[0].file, patient)
    x, y, z = first.shape
    annotations = PackedLabels(len(study.annotators), (z, y, x))
    _annotations(folder, study, patient, first, annotations.put)
    return annotations


def body_region(scan: Any) -> tuple[slice, slice, slice]:
    """The in-plane bounding box of CT > 0 HU over all slices, every slice included (the challenge's crop).

    Args:
        scan: CT in HU, (Z, Y, X): an array, a tensor or nested lists.

    Returns:
        Slices along (Z, Y, X); empty in plane if no voxel is above 0 HU.

    Raises:
        PatientError: it is no array of three axes.
    """
    values = to_array(scan)
    if values is None or values.ndim != 3 or values.dtype.kind not in "fiub":
        found = f"a {type(scan).__name__}" + ("" if values is None else f" of shape {values.shape}, {values.dtype}")
        raise PatientError("finding the body", "the scan", found, "Give the CT in HU, (z, y, x).")
    scan = values
    rows = np.zeros(scan.shape[1], bool)
    columns = np.zeros(scan.shape[2], bool)
    for z in range(0, scan.shape[0], BLOCK):
        above = np.any(scan[z : z + BLOCK] > 0, axis=0)
        rows |= np.any(above, axis=1)
        columns |= np.any(above, axis=0)
    return slice(0, scan.shape[0]), _extent(rows), _extent(columns)


def _extent(occupied: npt.NDArray[np.bool_]) -> slice:
    where = np.flatnonzero(occupied)
    return slice(int(where[0]), int(where[-1]) + 1) if where.size else slice(0, 0)


# Files ---------------------------------------------------------------------------------------------------------------


def _patient_id(folder: Path, study: Study) -> str:
    try:
        return study.patients.normalise(Path(folder).name)
    except CurvasError as error:
        raise PatientError("reading the folder", Path(folder).name, error.found, error.remedy) from error


def _require_files(folder: Path, study: Study, patient: str, names: Sequence[str]) -> None:
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        there = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
        raise PatientError(
            "looking for the files",
            patient,
            f"{', '.join(missing)} missing (found {', '.join(there) or 'nothing'})",
            f"Upload {len(names)} files: {', '.join(names)}.",
        )


def _load(path: Path, patient: str) -> Any:
    """A NIfTI image whose file was read to its end and whose header is that of a 3-D volume."""
    attempt = f"reading {path.name}"
    try:
        _read_to_end(path)
        image = nib.Nifti1Image.from_filename(path)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise PatientError(
            attempt, patient, f"the file is truncated or damaged ({error})", "Upload it again from its source."
        ) from error
    except (ImageFileError, WrapStructError, HeaderDataError, OSError, ValueError) as error:
        raise PatientError(
            attempt,
            patient,
            f"it is no NIfTI file ({' '.join(str(error).split())})",
            "Convert it to .nii.gz and upload it.",
        ) from error
    if len(image.shape) != 3 or 0 in image.shape:
        raise PatientError(
            attempt, patient, f"it has shape {image.shape}, not three axes", "Upload one 3-D volume per file."
        )
    affine = np.asarray(image.affine, np.float64)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise PatientError(
            attempt, patient, f"its affine is not usable: {np.round(affine, 3).tolist()}", "Mend the header."
        )
    return image


def _read_to_end(path: Path) -> None:
    """Decompress a .gz to its end, which verifies its checksum and length."""
    with path.open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    if path.suffix == ".gz" and not compressed:
        raise ImageFileError("it is not compressed, although its name ends in .gz")
    if compressed:
        with gzip.open(path, "rb") as stream:
            while stream.read(1 << 24):
                pass


def _spacing_zyx(image: Any) -> tuple[float, float, float]:
    """Voxel size along (Z, Y, X), mm, from the affine."""
    x, y, z = (float(s) for s in voxel_sizes(image.affine))
    return z, y, x


def _slabs(image: Any, patient: str, name: str) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """(z0, voxels (≤ 16, Y, X)) from the first slice to the last; as stored if the scale is trivial, else scaled.

    In a NIfTI file x varies fastest and z slowest, so that the bytes of a slab, one after the other, are in (Z, Y, X)
    order: the one place where axes are swapped.
    """
    stored = image.dataobj
    x, y, z = stored.shape
    scaled = (
        None if (stored.slope, stored.inter) == (1, 0) else np.float32 if stored.dtype.itemsize <= 2 else np.float64
    )
    with ImageOpener(image.get_filename()) as file:
        file.seek(stored.offset)
        for z0 in range(0, z, DEPTH):
            depth = min(DEPTH, z - z0)
            wanted = depth * y * x * stored.dtype.itemsize
            content = file.read(wanted)
            if len(content) < wanted:
                raise PatientError(
                    f"reading {name}",
                    patient,
                    f"the file holds fewer voxels than its header promises: it ends in slice {z0 + len(content) * depth // wanted} of {z}",
                    "Upload it again from its source.",
                )
            voxels = np.frombuffer(content, stored.dtype).reshape(depth, y, x)
            yield z0, voxels if scaled is None else voxels.astype(scaled) * stored.slope + stored.inter


# The scan ------------------------------------------------------------------------------------------------------------


def _scan(image: Any, patient: str, name: str) -> npt.NDArray[Any]:
    """The CT as int16 if it holds whole HU, else float32."""
    slabs = _slabs(image, patient, name)
    _, first = next(slabs)
    values = np.empty(image.shape[::-1], first.dtype.newbyteorder("="))
    values[: len(first)] = first
    for z0, slab in slabs:
        values[z0 : z0 + len(slab)] = slab
    if not np.issubdtype(values.dtype, np.integer):
        bad = sum(int((~np.isfinite(values[z : z + BLOCK])).sum()) for z in range(0, len(values), BLOCK))
        if bad:
            raise PatientError(
                f"reading {name}", patient, f"{bad} voxels are NaN or infinite", "Export the scan again without them."
            )
        whole = all(
            (values[z : z + BLOCK] == np.round(values[z : z + BLOCK])).all() for z in range(0, len(values), BLOCK)
        )
        if not whole:
            return values.astype(np.float32, copy=False)
    low, high = values.min(), values.max()
    fits = np.iinfo(np.int16).min <= low and high <= np.iinfo(np.int16).max
    return values.astype(np.int16 if fits else np.float32, copy=False)


def _describe_intensities(scan: npt.NDArray[Any]) -> dict[str, Any]:
    sample = scan[:: max(1, scan.shape[0] // 64), ::2, ::2] if scan.size > 1 << 24 else scan
    return {
        "hu_range": [float(scan.min()), float(scan.max())],
        "hu_percentiles": dict(
            zip([str(p) for p in PERCENTILES], np.percentile(sample, PERCENTILES).round(2).tolist(), strict=True)
        ),
    }


# The annotations -----------------------------------------------------------------------------------------------------


def _annotations(
    folder: Path, study: Study, patient: str, image: Any, keep: Callable[[int, int, Labels], None]
) -> tuple[list[str], list[dict[str, str]]]:
    """Hand every annotator's validated slabs to `keep(annotator, z0, slab)`; warnings and exclusions."""
    warnings: list[str] = []
    exclusions: list[dict[str, str]] = []
    for r, annotator in enumerate(study.annotators):
        annotation = _load(folder / annotator.file, patient)
        _require_same_geometry(study, patient, annotator.file, annotation, image)
        present = np.zeros(len(study.organs) + 1, np.int64)
        rounded = 0.0
        for z0, slab in _slabs(annotation, patient, annotator.file):
            labels, far = _labels(slab, study, patient, annotator.file)
            keep(r, z0, labels)
            present += np.bincount(labels.ravel(), minlength=len(present))
            rounded = max(rounded, far)
        if rounded > ROUNDED:
            warnings.append(f"{annotator.file}: labels were up to {rounded:.2g} from an integer and were rounded")
        for organ, label in study.organs.items():
            if not present[label]:
                reason = f"{annotator.file} has no {organ}"
                warnings.append(reason)
                exclusions.append({"patient": patient, "annotator": annotator.name, "organ": organ, "reason": reason})
    return warnings, exclusions


def _require_same_geometry(study: Study, patient: str, name: str, annotation: Any, image: Any) -> None:
    """Shape, spacing and position of an annotation are the image's."""
    attempt = f"comparing {name} with {study.image}"
    if annotation.shape != image.shape:
        raise PatientError(
            attempt,
            patient,
            f"the annotation has {_zyx_text(annotation.shape)} voxels, the image {_zyx_text(image.shape)} (Z × Y × X)",
            "Upload the annotation of this scan.",
        )
    ours, theirs = _spacing_zyx(image), _spacing_zyx(annotation)
    if max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) > study.intake.spacing_tolerance_mm:
        raise PatientError(
            attempt,
            patient,
            f"the annotation's spacing is {_mm(theirs)} mm, the image's {_mm(ours)} (tolerance {study.intake.spacing_tolerance_mm:g})",
            "Copy the image's header to the annotation if it was drawn on this image; else upload the right one.",
        )
    far = _largest_displacement_mm(annotation.affine, image.affine, image.shape)
    if far > study.intake.origin_tolerance_mm:
        raise PatientError(
            attempt,
            patient,
            f"their affines put the same voxel up to {far:.4g} mm apart (tolerance {study.intake.origin_tolerance_mm:g})",
            "Copy the image's header to the annotation if it was drawn on this image; else upload the right one.",
        )


def _largest_displacement_mm(one: npt.NDArray[Any], other: npt.NDArray[Any], shape: Sequence[int]) -> float:
    """How far apart two affines put a corner of the volume, at most."""
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape])).reshape(3, -1)
    difference = (np.asarray(one) - np.asarray(other)) @ np.vstack([corners, np.ones(corners.shape[1])])
    return float(np.linalg.norm(difference[:3], axis=0).max())


def _labels(slab: npt.NDArray[Any], study: Study, patient: str, name: str) -> tuple[Labels, float]:
    """A slab's labels as whole numbers, and the largest distance from one."""
    allowed = {0: "background", **{label: organ for organ, label in study.organs.items()}}
    whole, worst = slab, 0.0
    if not np.issubdtype(slab.dtype, np.integer):
        bad = int((~np.isfinite(slab)).sum())
        if bad:
            raise PatientError(
                f"reading {name}", patient, f"{bad} voxels of the label map are NaN or infinite", "Export it again."
            )
        whole = np.round(slab)
        worst = float(np.abs(slab - whole).max())
    strange = [f"{label:g}" for label in np.unique(whole) if label not in allowed]
    if strange or worst > study.intake.label_tolerance:
        what = f"label {', '.join(strange[:5])}" if strange else f"labels up to {worst:.3g} from an integer"
        raise PatientError(
            f"reading {name}",
            patient,
            f"{what} (allowed: {', '.join(f'{k} {v}' for k, v in sorted(allowed.items()))})",
            "Map the labels to the study's, or add the organ to the study.",
        )
    return whole.astype(np.uint8), worst


def _describe_annotations(annotations: Labels, study: Study, spacing_mm: Sequence[float]) -> dict[str, Any]:
    """Organ volumes per annotator and Dice between annotators, from one count of label pairs per pair of annotators."""
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    classes = len(study.organs) + 1
    counts = [np.bincount(a.ravel(), minlength=classes) for a in annotations]
    volumes = {
        organ: {a.name: round(float(c[label]) * voxel_ml, 3) for a, c in zip(study.annotators, counts, strict=True)}
        for organ, label in study.organs.items()
    }
    agreement: dict[str, dict[str, float | None]] = {}
    for i, j in combinations(range(len(annotations)), 2):
        joint = np.zeros(classes * classes, np.int64)
        for z in range(0, annotations.shape[1], BLOCK):
            pair = annotations[i, z : z + BLOCK].astype(np.uint16) * classes + annotations[j, z : z + BLOCK]
            joint += np.bincount(pair.ravel(), minlength=classes * classes)
        both = joint.reshape(classes, classes).diagonal()
        names = f"{study.annotators[i].name}–{study.annotators[j].name}"
        agreement[names] = {}
        for organ, label in study.organs.items():
            total = int(counts[i][label] + counts[j][label])
            agreement[names][organ] = round(2 * int(both[label]) / total, 4) if total else None
    return {"organ_volumes_ml": volumes, "dice_between_annotators": agreement}


def _zyx_text(shape: Sequence[int]) -> str:
    return " × ".join(map(str, reversed(shape)))


def _mm(spacing: Sequence[float]) -> str:
    return " × ".join(f"{s:.4g}" for s in spacing)
