"""Training scans and their label maps as nnU-Net is to see them, read once, however many annotators' datasets are made.

All are brought into one voxel order (`voxel_order.CANONICAL`). Plans and intensities are the dataset's business.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import numpy.typing as npt

from curvas_assets.codes import DEPTH
from curvas_assets.errors import CurvasError, SegmentationError
from curvas_assets.fusing import fuse
from curvas_assets.geometry import Grid, is_same_order, order_of, reordered, require_same_grid, voxel_order
from curvas_assets.nifti import read_slabs, read_type
from curvas_assets.storage.labels import PackedLabels
from curvas_assets.study import Study
from curvas_assets.voxel_order import CANONICAL, DAMAGED, itk_reads, open_image, turned_image

Images = tuple[Path, ...]
"""A file for each channel of a scan, in the study's order."""


@dataclass(frozen=True)
class TrainingScan:
    """A scan in the canonical order.

    Args:
        files: of each channel's voxels as they are stored, (Z, Y, X), for NumPy.
        grid: of the voxels.
        box: of the voxels that are not 0 in a channel, [start, stop] along (Z, Y, X).
        facts: `spacing` (mm along Z, Y, X) and ITK's geometry, as nnU-Net's reader gives them: those of the first channel.
    """

    files: tuple[Path, ...]
    grid: Grid
    box: list[list[int]]
    facts: dict[str, Any]

    def channels(self) -> list[npt.NDArray[Any]]:
        """The voxels of each channel (Z, Y, X), mapped from their files."""
        return [np.load(file, mmap_mode="r") for file in self.files]

    def properties(self) -> dict[str, Any]:
        """The facts, for nnU-Net to add its own."""
        return deepcopy(self.facts)


class TrainingScans:
    """Reads scans and label maps when they are first asked for, and keeps them: scans on disk, label maps compressed in memory.

    A label map is forgotten when its case is preprocessed, unless annotators share their statistics of intensities: these
    are of everybody's label maps, which are all kept then.

    Args:
        study: organs and tolerances.
        folder: receives voxels as they are stored, two bytes each of a CT, and preprocessed images that annotators share.
    """

    def __init__(self, study: Study, folder: str | Path):
        self.study, self.folder = study, Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.images: dict[str, Path] = {}
        """Preprocessed images that several annotators may share, by all that they depend on."""
        self._scans: dict[tuple[str, Images], TrainingScan] = {}
        self._labels: dict[tuple[str, Images, Path], PackedLabels] = {}
        self._fused: dict[tuple[str, Images, str, tuple[Path, ...]], PackedLabels] = {}

    def scan(self, patient: str, images: Images) -> TrainingScan:
        """A patient's scan, of one file per channel. What prediction takes as unscaled (also a slope of 0 or NaN) is unscaled here
        too.

        Raises:
            SegmentationError: a file is damaged, ITK, by which nnU-Net reads, has another geometry of it, or channels lie on
                different voxels.
        """
        if (patient, images) not in self._scans:
            number = len(self._scans)

            def read() -> TrainingScan:
                targets = [self.folder / f"{number}_{channel}.npy" for channel in range(len(images))]
                channels = [_read_channel(file, patient, to) for file, to in zip(images, targets, strict=True)]
                return _training_scan(self.study, channels, [file.name for file in images], patient)

            self._scans[patient, images] = _saying_whose("reading the scan", patient, read)
        return self._scans[patient, images]

    def labels(self, patient: str, images: Images, annotation: Path) -> PackedLabels:
        """A label map of a patient on the voxels of the scan: uint8 (1, Z, Y, X), whatever order its file has, with the study's
        classes in place of the file's values.

        Raises:
            SegmentationError: the file is damaged, lies elsewhere than the scan, or has a value that the study does not know.
        """
        key = patient, images, annotation
        if key not in self._labels:
            grid = self.scan(patient, images).grid
            self._labels[key] = _saying_whose(
                "reading the annotation", patient, lambda: _read_labels(self.study, annotation, grid, patient)
            )
        return self._labels[key]

    def forget(self, patient: str, images: Images, annotation: Path) -> None:
        """Free a label map's memory; it is read again if it is asked for."""
        self._labels.pop((patient, images, annotation), None)
        for key in [key for key in self._fused if key[:2] == (patient, images) and annotation in key[3]]:
            del self._fused[key]

    def fused(
        self, patient: str, images: Images, annotations: Sequence[Path], rule: Literal["majority", "staple"]
    ) -> PackedLabels:
        """One label map of several annotators', as `labels`.

        Raises:
            SegmentationError: as `labels`.
        """
        key = patient, images, rule, tuple(annotations)
        if key not in self._fused:
            drawn = PackedLabels.stacked([self.labels(patient, images, annotation) for annotation in annotations])
            dense = fuse(drawn, rule, len(self.study.labels))
            self._fused[key] = PackedLabels(1, self.scan(patient, images).grid.shape)
            self._fused[key].put_whole(0, dense)
        return self._fused[key]

    def unions(self, patient: str, images: Images, annotations: Sequence[Path]) -> PackedLabels:
        """1 where any annotator sees an organ, as `labels`."""
        grid = self.scan(patient, images).grid
        drawn = [self.labels(patient, images, annotation) for annotation in annotations]
        union = PackedLabels(1, grid.shape)
        for z0 in range(0, grid.shape[0], DEPTH):
            anywhere = np.any([one[0, z0 : z0 + DEPTH] for one in drawn], axis=0)
            union.put(0, z0, anywhere.astype(np.uint8))
        return union


def unusable(attempt: str, patient: str, error: Exception) -> SegmentationError:
    """The error of a patient at whom nnU-Net, or a reader of files, stopped."""
    return SegmentationError(
        attempt,
        patient,
        f"nnU-Net stopped with {type(error).__name__}: {' '.join(str(error).split())[:300]}",
        "If the scan is at fault, name the patient in the study's exclusions; else report it.",
    )


def _saying_whose(attempt: str, patient: str, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except CurvasError:
        raise
    except (*DAMAGED, RuntimeError) as error:  # RuntimeError is ITK's
        raise unusable(attempt, patient, error) from error


@dataclass(frozen=True)
class _Channel:
    """A channel as `TrainingScan` describes it, with the `place` that ITK reads of it."""

    file: Path
    grid: Grid
    place: dict[str, Any]


def _read_channel(path: Path, patient: str, target: Path) -> _Channel:
    """A channel, whose voxels are written to `target`.

    The file is read to its end, because ITK accepts one that is cut short or damaged, and reads NaN and infinity as 0,
    without a word. Voxels without a scale are taken from this reading; with one, the file is read again, by ITK, whose
    arithmetic of a scale is its own. A file in another order, or whose geometry ITK reads otherwise than we, is first
    rewritten with a header that has only one reading, and read by ITK.
    """
    told: Any = {"attempted": "reading the scan", "subject": patient, "error": SegmentationError}
    image = open_image(path, **told)
    as_it_is = order_of(image.affine) == CANONICAL and itk_reads(path, image.affine)
    slabs = _finite(image, told)
    unscaled = (image.dataobj.slope, image.dataobj.inter) == (1, 0)  # also where the header's slope is 0 or NaN
    if unscaled and as_it_is:
        return _read_by_slabs(path, image, slabs, target)
    voxels = _whole(image, slabs) if unscaled else None
    for _ in slabs:
        pass
    if as_it_is:
        return _read_by_itk(path, image, target)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        handed = Path(folder, "turned.nii")
        nib.save(turned_image(image, CANONICAL, voxels), handed)
        del voxels
        turned: Any = nib.Nifti1Image.from_filename(handed)
        if not itk_reads(handed, turned.affine):
            raise SegmentationError(
                told["attempted"],
                patient,
                f"ITK, by which nnU-Net reads, takes its grid for another than its affine {np.round(image.affine[:3], 4).tolist()}",
                "Resample the scan and its annotations to a rectangular grid, with one geometry in the header.",
            )
        return _read_by_itk(handed, turned, target)


def _whole(image: Any, slabs: Iterator[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Voxels as they are stored, (X, Y, Z)."""
    whole, z0 = np.empty(image.shape[::-1], image.dataobj.dtype), 0
    for slab in slabs:
        whole[z0 : z0 + len(slab)] = slab
        z0 += len(slab)
    return whole.T


def _finite(image: Any, told: dict[str, Any]) -> Iterator[npt.NDArray[Any]]:
    for _, slab in read_slabs(image, **told):
        if slab.dtype.kind == "f" and not np.isfinite(slab).all():
            remedy = "Export the scan again without them."
            raise SegmentationError(told["attempted"], told["subject"], "voxels are NaN or infinite", remedy)
        yield slab


def _read_by_slabs(path: Path, image: Any, slabs: Iterator[npt.NDArray[Any]], target: Path) -> _Channel:
    """As `_read_by_itk`, of voxels without a scale; ITK reads the header alone.

    A slope of 0 or NaN means "no scale" in NIfTI, and prediction reads it so; ITK would add the intercept.
    """
    import SimpleITK as sitk

    dtype, shape = read_type(image), tuple(int(n) for n in image.shape[::-1])
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    with target.open("wb") as file:  # not through a mapping: on a full disk, that would kill the process
        np.lib.format.write_array_header_1_0(file, described)
        for slab in slabs:
            file.write(slab.astype(dtype, copy=False).data)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    placed = sitk.Image([1, 1, 1], sitk.sitkUInt8)  # an image does not keep the sign of each zero of a header
    placed.SetSpacing(reader.GetSpacing())
    placed.SetOrigin(reader.GetOrigin())
    placed.SetDirection(reader.GetDirection())
    return _channel(placed, image, target)


def _read_by_itk(path: Path, image: Any, target: Path) -> _Channel:
    """As nnU-Net's reader `SimpleITKIO`, but for its copy as float32."""
    import SimpleITK as sitk

    read = sitk.ReadImage(str(path))
    np.save(target, sitk.GetArrayViewFromImage(read))
    return _channel(read, image, target)


def _channel(read: Any, image: Any, target: Path) -> _Channel:
    place = {"spacing": read.GetSpacing(), "origin": read.GetOrigin(), "direction": read.GetDirection()}
    return _Channel(target, Grid.of(image), place)


def _training_scan(study: Study, channels: Sequence[_Channel], names: Sequence[str], patient: str) -> TrainingScan:
    from curvas_assets.segmentation.preprocessing import nonzero_box

    first, *others = channels
    for name, other in zip(names[1:], others, strict=True):
        require_one_grid(study, first.grid, other.grid, (names[0], name), patient)
        order = voxel_order(other.grid, first.grid)
        if not is_same_order(
            order
        ):  # of an oblique scan, headers that differ by a rounding may have two nearest orders
            np.save(other.file, reordered(np.load(other.file), order))
    facts = {"sitk_stuff": first.place, "spacing": list(np.abs(list(first.place["spacing"])[::-1]))}
    files = tuple(channel.file for channel in channels)
    return TrainingScan(files, first.grid, nonzero_box([np.load(file, mmap_mode="r") for file in files]), facts)


def require_one_grid(study: Study, grid: Grid, other: Grid, names: tuple[str, str], patient: str) -> None:
    """Require that a further channel of a scan lies on the voxels of the first, in whatever order.

    Args:
        study: its tolerances.
        grid: of the first channel.
        other: of the further one.
        names: of their files.
        patient: whose they are.

    Raises:
        SegmentationError: it lies elsewhere.
    """
    require_same_grid(
        other,
        voxel_order(other, grid),
        grid,
        spacing_tolerance_mm=study.intake.spacing_tolerance_mm,
        place_tolerance_mm=study.intake.origin_tolerance_mm,
        remedy="Resample it onto the voxels of the first channel.",
        attempted=f"comparing {names[1]} with {names[0]}",
        subject=patient,
        error=SegmentationError,
        what="channel",
    )


def _read_labels(study: Study, path: Path, scan: Grid, patient: str) -> PackedLabels:
    """A label map on the grid of a scan, from a file in any voxel order."""
    attempt = f"comparing {path.name} with its scan"
    drawn = open_image(path, attempted=attempt, subject=patient, error=SegmentationError)
    order = voxel_order(Grid.of(drawn), scan)
    require_same_grid(
        Grid.of(drawn),
        order,
        scan,
        spacing_tolerance_mm=study.intake.spacing_tolerance_mm,
        place_tolerance_mm=study.intake.origin_tolerance_mm,
        remedy="Give the annotation of this scan, on its voxels.",
        attempted=attempt,
        subject=patient,
        error=SegmentationError,
    )
    labels = PackedLabels(1, scan.shape)
    same_order = is_same_order(order)
    whole = np.empty(() if same_order else drawn.shape[::-1], np.uint8)
    for z0, slab in read_slabs(drawn, attempted=f"reading {path.name}", subject=patient, error=SegmentationError):
        values, voxels = study.label_values.read(slab if slab.dtype.kind in "iu" else np.rint(slab))
        if strange := study.label_values.unknown(voxels):
            found = f"label {', '.join(map(str, strange[:5]))}, which is no organ of the study and is not ignored"
            remedy = "Add it to organs or to ignored_labels in the study, or map it in the file."
            raise SegmentationError(f"reading {path.name}", patient, found, remedy)
        if same_order:
            labels.put(0, z0, values)
        else:
            whole[z0 : z0 + len(values)] = values
    if not same_order:
        whole = reordered(whole, order)
        labels.put_whole(0, whole)
    return labels
