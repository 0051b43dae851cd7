"""Reading one patient: a CT, or the channels of a scan, and one label map per annotator, validated to the last byte and described.

A defect raises a PatientError that says what was found and what to do. Something odd but usable gives a warning.
Nothing is stored here, and nothing but the patient's files is read.
"""

import gzip
import math
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from curvas_assets import geometry
from curvas_assets.codes import DEPTH
from curvas_assets.cohort.files import PatientFiles, files_in
from curvas_assets.errors import CurvasError, PatientError
from curvas_assets.file_paths import told
from curvas_assets.geometry import Grid
from curvas_assets.inputs import existing_folder, to_array
from curvas_assets.label_values import MOST_VALUE, LabelValues
from curvas_assets.machine import available_memory
from curvas_assets.nifti import judge_file, read_slabs, read_type
from curvas_assets.storage.labels import PackedLabels
from curvas_assets.study import Annotator, Channel, Study, load_study

Labels = npt.NDArray[np.uint8]
PERCENTILES = (0.5, 5, 50, 95, 99.5)
BLOCK = 32
"""Slices that are checked at a time, so that a check needs less than 100 MB beside the volume at clinical size."""
ROUNDED = 1e-12
"""If a label is further from an integer than this, a warning says that it was rounded."""
SAME_MM = 1e-3
"""Headers that put voxels no further apart than this count as equal, because float32 is no more exact."""
SOFT_TISSUE_HU = (-200, 300)
LEAST_SOFT_TISSUE = 0.005
"""Least share of a CT's voxels that are soft tissue or fat. A body fills a tenth of its field of view or more."""
READERS = 2
"""Files that are read side by side. Unpacking and comparing arrays let other threads run."""
RESAMPLE = (
    "Resample the annotation onto the scan's voxels by their place in the world, nearest neighbour (SimpleITK: "
    "Resample(annotation, image, Transform(), sitkNearestNeighbor)), and look at it over the scan; do not copy one header over the "
    "other, which moves labels. If it does not fit then, it is another scan's."
)
RESAMPLE_CHANNEL = (
    "Resample the channel onto the voxels of the first by their place in the world, linearly (SimpleITK: Resample(channel, first, "
    "Transform(), sitkLinear)), and look at one over the other; if they do not fit then, register them first."
)


@dataclass(frozen=True)
class Patient:
    """A patient that passed intake.

    Args:
        id: the patient's whole name, e.g. UKCHLL077.
        scan: CT in HU, or the first channel, int16 (or float32 if the file holds fractions), (Z, Y, X).
        annotations: one label map per annotator in the study's order, uint8 (R, Z, Y, X), with the study's classes
            (`Study.labels`) in place of the files' values.
        grid: of the image as nibabel reads it. ITK reads the same, or the patient is refused.
        facts: geometry, intensities, organ volumes and agreement, ready for JSON.
        warnings: what is odd, each a sentence.
        exclusions: rows for the exclusion ledger: patient, annotator, organ, reason.
        not_annotated: annotators who did not annotate this patient: their map is blank (`intake.blank_annotation`), or there is
            none (`intake.missing_annotation`). Maps of zeros stand for them among `annotations`; they are no reference and
            train nothing.
        further_channels: the other channels of the study, in its order, on the voxels of the first.
    """

    id: str
    scan: npt.NDArray[Any]
    annotations: Labels
    grid: Grid
    facts: dict[str, Any]
    warnings: tuple[str, ...] = ()
    exclusions: tuple[dict[str, str], ...] = field(default=())
    not_annotated: tuple[str, ...] = ()
    further_channels: tuple[npt.NDArray[Any], ...] = ()

    @property
    def channels(self) -> tuple[npt.NDArray[Any], ...]:
        """All channels, (Z, Y, X) each."""
        return (self.scan, *self.further_channels)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size along (Z, Y, X), mm."""
        return self.grid.spacing_mm

    @property
    def affine(self) -> npt.NDArray[np.float64]:
        """Voxel (x, y, z) → RAS+ mm, as nibabel gives it."""
        return self.grid.affine


def read_patient(source: PatientFiles | str | Path, study: Study | str | Path) -> Patient:
    """Read, validate and describe a patient.

    An annotation, or a further channel, in another voxel order of the scan's own space is brought into the scan's order: voxels
    are moved in the array, never in the world, and `facts` and `warnings` say so.

    Args:
        source: the patient's files, as `find_patients` finds them; or the patient's own folder, named like the patient, with or
            without the study's prefix, if the study's files stand in such folders.
        study: organs, annotators, file names and tolerances; the study itself, or its name or path for `load_study`.

    Raises:
        PatientError: there is no such folder, a file is missing (but for those that `require_files` allows), unreadable, truncated, larger than its header or the study
            says, not 3-D or no scalars; axes are not perpendicular; nibabel and ITK read the geometry differently; an
            annotation or a further channel lies elsewhere than the scan; a label is not the study's; a voxel is NaN or infinite; nobody annotated.
            Nothing of the patient is to be used then. Or more memory is needed than is free, which may be retried.
    """
    study = load_study(study)
    files = _files(source, study, "reading a patient")
    patient, missing = files.patient, require_files(files, study)
    images = [_load(files, file, study) for file in study.image_files]
    names = [files.told(file) for file in study.image_files]
    grid = Grid.of(images[0])
    orders = [
        _order_of_channel(study, patient, grid, image, name, names[0])
        for image, name in zip(images, names, strict=True)
    ]
    _require_memory(images, grid, study, patient)
    annotations = np.empty((len(study.annotators), *grid.shape), np.uint8)

    def keep(r: int, z0: int, slab: Labels) -> None:
        annotations[r, z0 : z0 + len(slab)] = slab

    with ThreadPoolExecutor(READERS) as threads:
        reading = [threads.submit(_scan, *each, patient) for each in zip(images, names, orders, strict=True)]
        found = threads.submit(_annotations, files, study, grid, study.image_files[0], missing, keep)
        channels = [one.result() for one in reading]  # if both are at fault, the scan is told of
        read = found.result()
    reordered = [
        (name, Grid.of(image).orientation)
        for name, image, order in zip(names, images, orders, strict=True)
        if not geometry.is_same_order(order)
    ]
    moved = [
        f"{name} is stored in the voxel order {was}, {names[0]} in {grid.orientation}: it was reordered, and every voxel stays at its place"
        for name, was in reordered
    ]
    stored, intensities = _describe_images(study, images, channels, grid)
    facts = {
        "shape": list(grid.shape),
        "spacing_mm": list(grid.spacing_mm),
        "extent_mm": [round(n * s, 3) for n, s in zip(grid.shape, grid.spacing_mm, strict=True)],
        "orientation": grid.orientation,
        **stored,
        "reordered": read.reordered,
        **intensities,
        **_describe_annotations(annotations, study, grid.voxel_ml, read.not_annotated),
        **_describe_values(study.label_values, read.voxels),
    }
    return Patient(
        patient,
        channels[0],
        annotations,
        grid,
        facts,
        (*moved, *read.warnings, *implausible_intensities(facts)),
        tuple(read.exclusions),
        tuple(read.not_annotated),
        tuple(channels[1:]),
    )


def read_annotations(
    source: PatientFiles | str | Path, study: Study | str | Path, *, not_annotated: Collection[str] = ()
) -> PackedLabels:
    """The label maps of a patient alone, validated, on the voxels of the CT if it is there; else of the first annotation.

    They are read 16 slices at a time and held compressed: a patient of 866 × 512 × 512 takes some MB. A map in another
    voxel order is held whole for a moment, at one byte per voxel.

    Args:
        source: as for `read_patient`.
        study: as for `read_patient`.
        not_annotated: annotators whose files may be missing, because the intake found that they did not annotate this patient.

    Returns:
        uint8 (R, Z, Y, X), with the study's classes (`Study.labels`); sliced as a NumPy array is; zeros of those whose file is missing.

    Raises:
        PatientError: as `read_patient`, for the annotations.
    """
    study = load_study(study)
    files = _files(source, study, "reading annotations")
    missing = [annotator for annotator in study.annotators if annotator.file not in files]
    required = [annotator.file for annotator in missing if annotator.name not in not_annotated]
    if required or len(missing) == len(study.annotators):
        raise _incomplete(files, required or [annotator.file for annotator in missing])
    like = next(file for file in study.files if file in files)
    grid = Grid.of(_load(files, like, study))
    annotations = PackedLabels(len(study.annotators), grid.shape)
    _annotations(files, study, grid, like, [annotator.name for annotator in missing], annotations.put)
    return annotations


def bring_onto_scan(path: str | Path, scan: Grid, patient: str = "") -> bool:
    """Rewrite a validated annotation on the voxels of its scan, for readers that take the file as it is. It keeps its values.

    Args:
        path: the annotation, which `read_patient` has taken in; replaced if its voxel order or its header is not the scan's.
        scan: the scan's grid, which becomes the annotation's.
        patient: whose it is, for messages; else the name of its folder.

    Returns:
        Whether the file was replaced.

    Raises:
        PatientError: in the scan's order, its shape is not the scan's, so it is not the annotation that was taken in.
    """
    path = Path(path)
    patient = patient or path.parent.name
    image = nib.Nifti1Image.from_filename(path)
    stored = Grid.of(image)
    order = geometry.voxel_order(stored, scan)
    turned = geometry.reordered_grid(stored, order)
    if turned.shape != scan.shape:
        found = f"it has {geometry.by(turned.shape)} voxels in the scan's order, the scan {geometry.by(scan.shape)} (Z × Y × X)"
        raise PatientError(f"reordering {path.name}", patient, found, "Materialise its scan again.")
    if geometry.is_same_order(order) and geometry.displacement_mm(turned, scan) <= SAME_MM:
        return False
    labels: npt.NDArray[np.uint8 | np.uint16] = np.empty(image.shape[::-1], np.uint8)
    for z0, slab in _slabs(image, patient, path.name):
        whole = slab if slab.dtype.kind in "ui" else np.rint(slab)  # of uint8, rint would make float16
        if whole.min() < 0 or int(whole.max()) > MOST_VALUE:  # `ignored_labels: rest` makes such values background
            whole = np.where((whole < 0) | (whole > MOST_VALUE), 0, whole)
        if int(whole.max()) > np.iinfo(labels.dtype).max:
            labels = labels.astype(np.uint16)
        labels[z0 : z0 + len(slab)] = whole
    labels = geometry.reordered(labels, order)
    written = nib.Nifti1Image(labels.transpose(2, 1, 0), scan.affine)
    written.set_sform(scan.affine, 1)
    written.set_qform(scan.affine, 1)
    nib.save(written, path)
    return True


def body_region(scan: Any, *, axial: int = 0) -> tuple[slice, slice, slice]:
    """The in-plane bounding box of CT > 0 HU over all axial slices, every slice included (the challenge's crop).

    Args:
        scan: CT in HU, (Z, Y, X): an array, a tensor or nested lists.
        axial: the array axis along superior–inferior, which is kept whole: 0 where slices are axial.

    Returns:
        Slices along (Z, Y, X); empty in plane if no voxel is above 0 HU.

    Raises:
        PatientError: it is no array of three axes, or it has no such axis.
    """
    values = to_array(scan)
    if values is None or values.ndim != 3 or values.dtype.kind not in "fiub" or axial not in (0, 1, 2):
        found = f"a {type(scan).__name__}" + ("" if values is None else f" of shape {values.shape}, {values.dtype}")
        found += "" if axial in (0, 1, 2) else f", axial = {axial!r:.20}"
        raise PatientError("finding the body", "the scan", found, "Give the CT in HU, (z, y, x), and axial 0, 1 or 2.")
    scan = values
    occupied = [np.zeros(n, bool) for n in scan.shape]
    for z in range(0, scan.shape[0], BLOCK):
        above = scan[z : z + BLOCK] > 0
        in_plane = above.any(axis=0)
        occupied[0][z : z + BLOCK] = above.any(axis=(1, 2))
        occupied[1] |= in_plane.any(axis=1)
        occupied[2] |= in_plane.any(axis=0)
    z, y, x = (slice(0, n) if axis == axial else _extent(occupied[axis]) for axis, n in enumerate(scan.shape))
    return z, y, x


def _extent(occupied: npt.NDArray[np.bool_]) -> slice:
    where = np.flatnonzero(occupied)
    return slice(int(where[0]), int(where[-1]) + 1) if where.size else slice(0, 0)


# Files ---------------------------------------------------------------------------------------------------------------


def _files(source: PatientFiles | str | Path, study: Study, attempted: str) -> PatientFiles:
    """The patient's files, of a folder those that it holds."""
    if isinstance(source, PatientFiles):
        return source
    return files_in(existing_folder(source, attempted=attempted, subject="the patient", error=PatientError), study)


def require_files(files: PatientFiles, study: Study) -> list[str]:
    """The annotators whose file is missing, whom `intake.missing_annotation` counts as not having annotated the patient.

    Raises:
        PatientError: the scan is missing, every label map is, or one is and the study refuses that.
    """
    missing = [file for file in study.files if file not in files]
    annotators = [annotator for annotator in study.annotators if annotator.file in missing]
    nobody = len(annotators) == len(study.annotators)
    if missing and (nobody or len(annotators) < len(missing) or study.intake.missing_annotation == "refused"):
        raise _incomplete(files, missing, study.files)
    return [annotator.name for annotator in annotators]


def _incomplete(files: PatientFiles, missing: Sequence[str], wanted: Sequence[str] = ()) -> PatientError:
    there = ", ".join(files.there or [path.name for path in files.paths.values()])
    names = [files.told(file) for file in wanted or missing]
    return PatientError(
        "looking for the files",
        files.patient,
        f"{', '.join(files.told(file) for file in missing)} missing (found {there or 'nothing'})",
        f"Upload {len(names)} files: {', '.join(names)}.",
    )


def _load(files: PatientFiles, file: str, study: Study) -> Any:
    """A NIfTI image whose header is that of one 3-D volume in one place; `_slabs` reads and verifies what follows.

    The header is judged first and limits how much is read after it, because a small file may unpack to any size.
    """
    path, patient, attempt = files[file], files.patient, f"reading {files.told(file)}"
    asked: Any = {"attempted": attempt, "subject": patient, "error": PatientError}
    gib = study.intake.largest_volume_gib
    limit = (
        f"The most is {gib:g} GiB (intake.largest_volume_gib in the study); raise it if the scan is as large as that."
    )
    try:
        judge_file(path, gib * 2**30, limit=limit, **asked)
        image = nib.Nifti1Image.from_filename(path)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise PatientError(
            attempt, patient, f"the file is truncated or damaged ({error})", "Upload it again from its source."
        ) from error
    except CurvasError:
        raise
    except OSError as error:
        if error.errno is None:
            raise _no_nifti(attempt, patient, error) from error
        raise PatientError(
            attempt, patient, f"it cannot be read ({error.strerror})", "Make it a file that this user may read."
        ) from error
    except Exception as error:  # whatever nibabel and NumPy raise over a header, the file is at fault
        raise _no_nifti(attempt, patient, error) from error
    geometry.require_one_reading(
        path,
        image,
        spacing_tolerance_mm=study.intake.spacing_tolerance_mm,
        place_tolerance_mm=study.intake.origin_tolerance_mm,
        **asked,
    )
    return image


def _no_nifti(attempt: str, patient: str, error: Exception) -> PatientError:
    words = " ".join(str(error).split()) or type(error).__name__
    return PatientError(attempt, patient, f"it is no NIfTI file ({words:.200})", "Convert it to .nii.gz and upload it.")


def _slabs(image: Any, patient: str, name: str) -> Any:
    """A file's voxels, 16 slices at a time, as `read_slabs` gives them."""
    return read_slabs(image, attempted=f"reading {name}", subject=patient, error=PatientError)


def _require_memory(images: Sequence[Any], grid: Grid, study: Study, patient: str) -> None:
    """An error if the scan and its annotations need more memory than is free, which says so before the process is killed.

    A voxel takes its bytes as it is read, beside it those of what it becomes (int16 or float32) if that is another type, a
    byte for each annotator, and one for an annotation that is reordered. Channels are counted like that one by one.
    """
    voxels, types, each = math.prod(grid.shape), [read_type(image) for image in images], 0
    for read in types:
        each += read.itemsize + {np.dtype(np.int16): 0, np.dtype(np.float32): 2}.get(read, 4)
    needed = voxels * (each + len(study.annotators) + 1)
    available = available_memory()
    if needed > available:
        kinds = " and ".join(str(read) for read in dict.fromkeys(types))
        of = f"{len(images)} channels of " if len(images) > 1 else ""
        raise PatientError(
            f"reading {', '.join(told(file, patient) for file in study.image_files)}",
            patient,
            f"about {needed / 2**30:.1f} GiB of memory are needed for {of}{geometry.by(grid.shape)} voxels of {kinds} with "
            f"{len(study.annotators)} annotations, and {available / 2**30:.1f} GiB are free",
            "Give the step more memory; a scan of whole HU takes the least as int16.",
            may_retry=True,  # other steps give memory back
        )


# The scan ------------------------------------------------------------------------------------------------------------


def _order_of_channel(
    study: Study, patient: str, grid: Grid, image: Any, name: str, first: str
) -> npt.NDArray[np.float64]:
    """How a channel is reordered onto the first one; a PatientError if it lies elsewhere."""
    order = geometry.voxel_order(Grid.of(image), grid)
    geometry.require_same_grid(
        Grid.of(image),
        order,
        grid,
        spacing_tolerance_mm=study.intake.spacing_tolerance_mm,
        place_tolerance_mm=study.intake.origin_tolerance_mm,
        remedy=RESAMPLE_CHANNEL,
        attempted=f"comparing {name} with {first}",
        subject=patient,
        error=PatientError,
        what="channel",
    )
    return order


def _scan(image: Any, name: str, order: npt.NDArray[np.float64], patient: str) -> npt.NDArray[Any]:
    """A channel as int16 if it holds whole numbers that fit, as of HU, else float32; in the order of the first."""
    slabs = _slabs(image, patient, name)
    _, first = next(slabs)
    values = np.empty(image.shape[::-1], first.dtype.newbyteorder("="))
    values[: len(first)] = first
    for z0, slab in slabs:
        values[z0 : z0 + len(slab)] = slab
    kept = _smallest(values, patient, name)
    return kept if geometry.is_same_order(order) else geometry.reordered(kept, order)


def _smallest(values: npt.NDArray[Any], patient: str, name: str) -> npt.NDArray[Any]:
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


def _describe_images(
    study: Study, images: Sequence[Any], channels: Sequence[npt.NDArray[Any]], grid: Grid
) -> tuple[dict[str, Any], dict[str, Any]]:
    """How the scan is stored and where its body is, and what its intensities are. Of the one CT that `image` names they are facts of the
    patient; else `channels` holds those of each channel, and the body is that of the first CT among them.
    """
    described = [
        (
            {"dtype": str(values.dtype), "stored_dtype": str(image.get_data_dtype())},
            _describe_intensities(values, channel),
        )
        for channel, image, values in zip(study.images, images, channels, strict=True)
    ]
    body: dict[str, Any] = {}
    for channel, values in zip(study.images, channels, strict=True):
        if channel.is_ct and not body:
            body["body_region"] = [[s.start, s.stop] for s in body_region(values, axial=grid.axial)]
    if not study.channels:
        ((stored, intensities),) = described
        return {**stored, **body}, intensities
    return body, {"channels": {one.name: a | b for one, (a, b) in zip(study.channels, described, strict=True)}}


def _describe_intensities(scan: npt.NDArray[Any], channel: Channel) -> dict[str, Any]:
    unit = "hu_" if channel.is_ct else ""
    sample = scan[:: max(1, scan.shape[0] // 64), ::2, ::2] if scan.size > 1 << 24 else scan
    low, high = SOFT_TISSUE_HU
    described: dict[str, Any] = {
        f"{unit}range": [float(scan.min()), float(scan.max())],
        f"{unit}percentiles": dict(
            zip([str(p) for p in PERCENTILES], np.percentile(sample, PERCENTILES).round(2).tolist(), strict=True)
        ),
    }
    if unit:
        soft = int(np.count_nonzero((sample >= low) & (sample <= high)))
        described["soft_tissue_share"] = round(soft / sample.size, 4)
    return described


def implausible_intensities(facts: Mapping[str, Any]) -> list[str]:
    """Why the intensities of a CT may not be Hounsfield units, or another channel tells nothing, a sentence each; empty if they look
    like it.

    Args:
        facts: `hu_range`, and `soft_tissue_share` if it is known, or these of several `channels`, as `Patient.facts` holds them.
            A channel that is no CT has a `range`.
    """
    if "channels" in facts:
        each: Mapping[str, Mapping[str, Any]] = facts["channels"]
        return [f"{name}: {doubt}" for name, one in each.items() for doubt in implausible_intensities(one)]
    if "hu_range" not in facts:
        low, high = facts["range"]
        return [f"every voxel of this channel is {low:g}"] if low == high else []
    low, high = facts["hu_range"]
    told = f"the intensities may be no Hounsfield units ({low:g} … {high:g}): "
    if low == high:
        return [told + "every voxel has the same"]
    odd = [] if low < -500 else [told + "no voxel is as dark as air"]
    if low >= 0:
        grey = "as 8-bit grey values have it" if high <= 255 else "as scanners store it before the intercept is added"
        odd = [told + f"no voxel is negative, {grey}"]
    odd += [] if high > 0 else [told + "no voxel is as bright as tissue"]
    odd += [] if low > -32769 and high < 32768 else [told + "that is beyond any CT"]
    share = facts.get("soft_tissue_share")
    if not odd and share is not None and share < LEAST_SOFT_TISSUE:
        least, most = SOFT_TISSUE_HU
        odd.append(told + f"only {100 * share:.2g} % of the voxels lie where soft tissue does, {least} … {most}")
    return odd


# The annotations -----------------------------------------------------------------------------------------------------


@dataclass
class _Read:
    """What reading the annotations found beside their labels. `voxels`: annotator → value of the file → how many voxels have it."""

    warnings: list[str] = field(default_factory=list)
    exclusions: list[dict[str, str]] = field(default_factory=list)
    not_annotated: list[str] = field(default_factory=list)
    reordered: dict[str, str] = field(default_factory=dict)
    voxels: dict[str, Counter[int]] = field(default_factory=dict)


def _annotations(
    files: PatientFiles,
    study: Study,
    grid: Grid,
    like: str,
    missing: Collection[str],
    keep: Callable[[int, int, Labels], None],
) -> _Read:
    """Hand every annotator's validated slabs, on the scan's grid, to `keep(annotator, z0, slab)`, and slabs of zeros for those
    whose file is missing; returns other findings.

    Findings reach the report and those it is shared with: they name the annotator, and not the file, whose name may tell
    more of people and folders than the study does. Errors name the file, for whoever is to mend it.
    """
    read, patient = _Read(), files.patient
    for r, annotator in enumerate(study.annotators):
        name, drawn_by = files.told(annotator.file), f"the annotation of {annotator.name}"
        if annotator.name in missing:
            for z0 in range(0, grid.shape[0], DEPTH):
                keep(r, z0, np.zeros((min(DEPTH, grid.shape[0] - z0), *grid.shape[1:]), np.uint8))
            _note_not_annotated(read, patient, annotator, f"{drawn_by} is missing")
            continue
        annotation = _load(files, annotator.file, study)
        order = geometry.voxel_order(Grid.of(annotation), grid)
        geometry.require_same_grid(
            Grid.of(annotation),
            order,
            grid,
            spacing_tolerance_mm=study.intake.spacing_tolerance_mm,
            place_tolerance_mm=study.intake.origin_tolerance_mm,
            remedy=RESAMPLE,
            attempted=f"comparing {name} with {files.told(like)}",
            subject=patient,
            error=PatientError,
        )
        same_order = geometry.is_same_order(order)
        turned = np.empty(() if same_order else annotation.shape[::-1], np.uint8)
        voxels = read.voxels[annotator.name] = Counter()
        rounded = 0.0
        for z0, slab in _slabs(annotation, patient, name):
            labels, drawn, far = _labels(slab, study, patient, name)
            if same_order:
                keep(r, z0, labels)
            else:
                turned[z0 : z0 + len(labels)] = labels
            voxels.update(drawn)
            rounded = max(rounded, far)
        if not same_order:
            turned = geometry.reordered(turned, order)
            for z0 in range(0, len(turned), DEPTH):
                keep(r, z0, turned[z0 : z0 + DEPTH])
            was = read.reordered[annotator.name] = Grid.of(annotation).orientation
            read.warnings.append(
                f"{drawn_by} is stored in the voxel order {was}, the scan in {grid.orientation}: "
                "it was reordered, and every label stays at its place"
            )
        if rounded > ROUNDED:
            read.warnings.append(f"{drawn_by}: labels were up to {rounded:.2g} from an integer and were rounded")
        _look_for_organs(read, study, patient, annotator, drawn_by)
    if len(read.not_annotated) == len(study.annotators):
        raise PatientError(
            "reading the annotations",
            patient,
            f"every label map{' that is there' if missing else ''} is blank, and intake.blank_annotation says that such a map means "
            "not_annotated",
            "Upload the annotations, exclude the patient in the study, or set intake.blank_annotation to absent if it has no organ.",
        )
    return read


def _note_not_annotated(read: _Read, patient: str, annotator: Annotator, why: str) -> None:
    reason = f"{why}: not annotated, so it trains nothing and nothing is scored against it"
    read.not_annotated.append(annotator.name)
    read.warnings.append(reason)
    read.exclusions.append({"patient": patient, "annotator": annotator.name, "organ": "", "reason": reason})


def _look_for_organs(read: _Read, study: Study, patient: str, annotator: Annotator, drawn_by: str) -> None:
    """Report a blank map with the study's meaning of it, and organs that an annotator did not draw as absent."""
    present = {study.label_values.class_of(value) for value in read.voxels[annotator.name]}
    if not present - {0} and study.intake.blank_annotation == "not_annotated":
        only = " but for ignored labels" if read.voxels[annotator.name] else ""
        _note_not_annotated(read, patient, annotator, f"{drawn_by} is blank{only}")
        return
    for organ, label in study.labels.items():
        if label not in present:
            reason = f"{drawn_by} has no {organ}: taken as absent, which counts in training and scores"
            read.warnings.append(reason)
            read.exclusions.append({"patient": patient, "annotator": annotator.name, "organ": organ, "reason": reason})


def _labels(slab: npt.NDArray[Any], study: Study, patient: str, name: str) -> tuple[Labels, dict[int, int], float]:
    """A slab's classes, how often each value of the file occurs, and the largest distance of a value from a whole number."""
    whole, worst = slab, 0.0
    if not np.issubdtype(slab.dtype, np.integer):
        bad = int((~np.isfinite(slab)).sum())
        if bad:
            raise PatientError(
                f"reading {name}", patient, f"{bad} voxels of the label map are NaN or infinite", "Export it again."
            )
        whole = np.round(slab)
        worst = float(np.abs(slab - whole).max())
    values = study.label_values
    labels, voxels = values.read(whole)
    strange = values.unknown(voxels)
    if strange or worst > study.intake.label_tolerance:
        what = f"label {_few(map(str, strange))}" if strange else f"labels up to {worst:.3g} from an integer"
        allowed = [(0, "background"), *((value, organ) for organ, of in values.organs.items() for value in of)]
        ignored = [] if values.ignored == "rest" else [(value, "ignored") for value in values.ignored]
        raise PatientError(
            f"reading {name}",
            patient,
            f"{what} (allowed: {_few((f'{value} {of}' for value, of in sorted(allowed + ignored)), 20)})",
            _remedy(strange),
        )
    return labels, voxels, worst


def _remedy(strange: Sequence[int]) -> str:
    """What to do about values that the study does not know; about labels that are no whole numbers, if there are none."""
    if not strange:
        return "Export the label map again with whole numbers."
    if min(strange) < 1 or max(strange) > MOST_VALUE:  # which organs and a list of ignored values cannot name
        return (
            f"Give organs values from 1 to {MOST_VALUE} in the file and the background 0, or write ignored_labels: rest in the study: "
            "all that organs does not name is then background."
        )
    return "Add the values to organs in the study, or to ignored_labels if they are to be read as background."


def _few(words: Iterable[str], most: int = 5) -> str:
    """The first of some words, and how many there are beside."""
    named = list(words)
    return ", ".join(named[:most]) + (f" and {len(named) - most} more" if len(named) > most else "")


def _describe_values(values: LabelValues, voxels: Mapping[str, Mapping[int, int]]) -> dict[str, Any]:
    """Annotator → how many voxels had which value: of each organ, and of those that were ignored. Nothing where the values of files
    are the study's classes and none was ignored: then a record is the same whatever else the study ignores.
    """
    described: dict[str, Any] = {}
    for annotator, found in voxels.items():
        organs = {
            organ: {str(value): found[value] for value in of if value in found} for organ, of in values.organs.items()
        }
        ignored = {str(value): found[value] for value in sorted(found) if values.class_of(value) == 0}
        described[annotator] = {"organs": organs, "ignored": ignored}
    if values.is_plain and not any(one["ignored"] for one in described.values()):
        return {}
    return {"label_values": described}


def _describe_annotations(
    annotations: Labels, study: Study, voxel_ml: float, not_annotated: Sequence[str]
) -> dict[str, Any]:
    """Organ volumes per annotator and Dice between annotators, from one count of label pairs per pair of annotators.

    Both are None for annotators who did not annotate the patient.
    """
    classes = len(study.organs) + 1
    joint = {pair: np.zeros((classes, classes), np.int64) for pair in combinations(range(len(annotations)), 2)}
    counts = np.zeros((len(annotations), classes), np.int64)
    for z in range(0, annotations.shape[1], BLOCK):
        slab = annotations[:, z : z + BLOCK]
        drawn = slab[:, slab.any(axis=0)]  # background for every annotator is nearly all, and no fact needs it
        counts += [np.bincount(labels, minlength=classes) for labels in drawn]
        for (i, j), of_pair in joint.items():
            both = np.bincount(drawn[i].astype(np.uint16) * classes + drawn[j], minlength=classes * classes)
            of_pair += both.reshape(classes, classes)
    volumes = {
        organ: {
            a.name: None if a.name in not_annotated else round(float(c[label]) * voxel_ml, 3)
            for a, c in zip(study.annotators, counts, strict=True)
        }
        for organ, label in study.labels.items()
    }
    agreement: dict[str, dict[str, float | None]] = {}
    for (i, j), of_pair in joint.items():
        both = of_pair.diagonal()
        names = f"{study.annotators[i].name}–{study.annotators[j].name}"
        agreement[names] = {}
        blank = {study.annotators[i].name, study.annotators[j].name} & set(not_annotated)
        for organ, label in study.labels.items():
            total = int(counts[i][label] + counts[j][label])
            agreement[names][organ] = round(2 * int(both[label]) / total, 4) if total and not blank else None
    return {"organ_volumes_ml": volumes, "dice_between_annotators": agreement}
