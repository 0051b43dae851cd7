"""Converts nnU-Net's own prediction files to softmax volumes and back, to import and export predictions.

    <case>.npz       `probabilities` (class, z, y, x), float, in the order of the label values; in the voxel order into which
                     nnU-Net's reader brought the scan, which for NibabelIOWithReorient is RAS and not the scan's
    <case>.nii.gz    the label map on the scan's voxels
    <case>.pkl       geometry as nnU-Net keeps it; written for nnU-Net, never read, because unpickling can execute code

Both ways hold a few slices in memory. An npz is compressed from the first class to the last, so reading it slab by slab
needs an unpacked copy on disk while the import lasts. An array is unpacked only if its header fits the patient.
"""

import pickle
import tempfile
import zipfile
import zlib
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import IO, Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.openers import ImageOpener

from curvas_assets.codes import DEPTH
from curvas_assets.disk import full, is_full
from curvas_assets.errors import CorruptArtefactError, StorageError
from curvas_assets.geometry import LPS, Grid, by, displacement_mm, order_of, same_place
from curvas_assets.inputs import as_grid, as_path, existing_folder, made_folder
from curvas_assets.probabilities import require_probabilities
from curvas_assets.storage.encoding import decode
from curvas_assets.storage.maps import MapWriter
from curvas_assets.storage.objects import FolderObjects, ObjectStore
from curvas_assets.storage.softmax import SoftmaxFacts, SoftmaxVolume, SoftmaxWriter
from curvas_assets.voxel_order import DAMAGED, READERS, Turn, turned_grid

PROBABILITIES = "probabilities"
"""nnU-Net's name of the array in its npz."""
LABELS_AGREE = 0.99
"""Share of foreground voxels in which the label map must be the probabilities' argmax. It is 1 as nnU-Net writes them,
a little less after its postprocessing, and near 0 when classes are in another order."""
SAME_PLACE_MM = 0.1
SAME_SPACING_MM = 1e-3
IMPORTING = "importing an nnU-Net prediction"
EXPORTING = "exporting a prediction for nnU-Net"


@dataclass(frozen=True)
class NnunetFiles:
    """What an export wrote."""

    probabilities: Path
    labels: Path
    properties: Path


def import_nnunet_prediction(
    npz: str | Path,
    label_map: str | Path,
    store: ObjectStore,
    key: str,
    *,
    class_names: Sequence[str],
    shape: Sequence[int],
    affine: npt.ArrayLike,
    labels: Mapping[str, int] | None = None,
    reader: str | None = None,
    provenance: Mapping[str, Any] | None = None,
    scratch: str | Path | None = None,
) -> SoftmaxFacts:
    """Store a prediction that nnU-Net wrote (`--save_probabilities`) as a softmax volume, checked against its patient.

    Args:
        npz: holds `probabilities` (C, Z, Y, X), float16, float32 or float64.
        label_map: the NIfTI beside it, on the scan's voxels in any voxel order.
        store: where the volume goes.
        key: of the volume.
        class_names: of the study, background first.
        shape: of the patient's scan, (Z, Y, X).
        affine: of the patient's scan, as nibabel gives it.
        labels: of the `dataset.json` the model was trained with (class → value), if it is at hand; it must say the same.
        reader: `image_reader_writer` of the `plans.json` beside it, which says in which voxel order the probabilities are.
            None: the label map's order or RAS, whichever makes it the argmax; the label map's if no organ is found.
        provenance: goes into the attributes, with the files' names.
        scratch: where the unpacked copy stands meanwhile; None takes the system's temporary folder.

    Returns:
        What was stored. Nothing is visible in the store unless all of it was right.

    Raises:
        CorruptArtefactError: a file is damaged, cut short, or not what its name says.
        DiskError: there is no room to unpack it; says how much is needed.
        StorageError: shape, place, spacing, number or order of classes are not the patient's and the study's, the values
            are no probabilities, or the two files are not of one prediction.
    """
    told: Any = {"attempted": IMPORTING, "subject": "the prediction", "error": StorageError}
    npz, label_map = as_path(npz, **told), as_path(label_map, **told)
    told["subject"] = npz.name
    scan = as_grid(shape, None, affine, **told)
    scratch = None if scratch is None else existing_folder(scratch, **told)
    if isinstance(class_names, str) or not isinstance(class_names, Sequence):
        raise _refused(npz, f"classes {class_names!r:.80}", "Give the study's class names, background first.")
    _require_labels(npz, labels, class_names)
    if reader is not None and reader not in READERS:
        remedy = f"Predict with one of {', '.join(READERS)}."
        raise _refused(npz, f"nnU-Net read the scan by {reader!r:.80}", remedy)
    drawn = _require_place(label_map, scan)
    orders = [(READERS[reader] if reader else None) or drawn]
    if reader is None and drawn != "RAS":
        orders.append("RAS")
    shapes = {order: (len(class_names), *turned_grid(scan, order).shape) for order in orders}
    with _unpacked(npz, scratch, list(shapes.values())) as array, _labels(label_map, scratch) as drawn_labels:
        fitting = [order for order in orders if shapes[order] == array.shape]
        for order in fitting:
            turned = {} if Turn.to(order, scan.affine).nothing else {"voxel_order_of_file": order}
            told_of_it = {**(provenance or {}), "imported_from": [npz.name, label_map.name], **turned}
            writer = SoftmaxWriter(store, key, scan, class_names=class_names, provenance=told_of_it)
            try:
                return _store((npz, label_map), array, order, drawn_labels, drawn, writer)
            except _DisagreementError:
                if order == fitting[-1]:
                    raise
    raise AssertionError("an array of no fitting order has been refused")


def _store(
    files: tuple[Path, Path],
    probabilities: "_UnpackedArray",
    order: str,
    labels: "_UnpackedArray",
    drawn: str,
    writer: SoftmaxWriter,
) -> SoftmaxFacts:
    """Store probabilities of a voxel order, on the scan's voxels, if the label map, of the order `drawn`, is their argmax."""
    scan, agreement = writer.grid, _Agreement()
    of_file, of_labels = Turn.to(order, scan.affine), Turn.to(drawn, scan.affine)
    with writer:
        for z0 in range(0, scan.shape[0], DEPTH):
            z1 = min(z0 + DEPTH, scan.shape[0])
            slab = probabilities.slab(z0, z1, of_file)
            require_probabilities(slab, attempted=IMPORTING, subject=files[0].name, error=StorageError, z0=z0)
            agreement.add(slab, labels.slab(z0, z1, of_labels))
            writer.write(z0, slab)
        agreement.require(*files)
    return writer.facts


def _require_labels(npz: Path, labels: Any, class_names: Sequence[str]) -> None:
    """Require that the model's classes are the study's, each with its position as value."""
    if labels is None:
        return
    if not isinstance(labels, Mapping) or not all(isinstance(value, Integral) for value in labels.values()):
        lists = isinstance(labels, Mapping) and any(isinstance(value, list | tuple) for value in labels.values())
        what = ": regions, whose probabilities overlap and do not sum to 1" if lists else ""
        raise _refused(
            npz,
            f"its model's labels are {labels!r:.200}{what}, the study's classes {list(class_names)}",
            "Give the prediction of a model that was trained on labels: class → a whole number in dataset.json.",
        )
    if dict(labels) != {name: value for value, name in enumerate(class_names)}:
        raise _refused(
            npz,
            f"its model's labels are {dict(labels)}, the study's classes {list(class_names)}",
            "Reorder the classes of its probabilities and its label map.",
        )


def export_nnunet_prediction(
    volume: SoftmaxVolume, folder: str | Path, case: str, *, compression: int = 1
) -> NnunetFiles:
    """Write a stored volume as nnU-Net's files, which its ensembling and evaluation take.

    Args:
        volume: an opened softmax volume.
        folder: receives `<case>.npz`, `<case>.nii.gz`, `<case>.pkl`.
        case: nnU-Net's name of the patient.
        compression: zlib level of the npz, 0 … 9. nnU-Net's own is 6: four times as long for a tenth of the size.

    Raises:
        StorageError: it is no opened volume, the folder cannot be made, or case or compression are not as said.
    """
    if not isinstance(volume, SoftmaxVolume):
        remedy = "Open it first, with read_softmax or open_softmax."
        raise StorageError(EXPORTING, str(case), f"a {type(volume).__name__} instead of an opened volume", remedy)
    if not isinstance(case, str) or not case or Path(case).name != case:
        raise StorageError(EXPORTING, "the case", f"case = {case!r:.80}", "Give the patient's name in nnU-Net.")
    if not isinstance(compression, int) or not 0 <= compression <= 9:
        raise StorageError(EXPORTING, case, f"compression = {compression!r:.80}", "Give a whole number from 0 to 9.")
    folder = made_folder(folder, attempted=EXPORTING, subject=case, error=StorageError)
    files = NnunetFiles(*(folder / f"{case}{suffix}" for suffix in (".npz", ".nii.gz", ".pkl")))
    header = {"descr": "<f4", "fortran_order": False, "shape": tuple(volume.shape)}
    archive = zipfile.ZipFile(files.probabilities, "w", zipfile.ZIP_DEFLATED, compresslevel=compression)
    with archive, archive.open(f"{PROBABILITIES}.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array_header_1_0(member, header)  # type: ignore[arg-type]
        for c in range(volume.shape[0]):  # the class axis is the slowest: one pass over the volume each
            for z0, _, codes in volume.code_slabs():
                del z0
                member.write(_probability(codes, volume.levels, c).data)
    with MapWriter(
        FolderObjects(folder),
        files.labels.name,
        volume.grid,
        kind="labels",
        scratch=folder,
    ) as writer:
        for z0 in range(0, volume.shape[1], DEPTH):
            writer.write(z0, volume.labels(z0, min(z0 + DEPTH, volume.shape[1])))
    files.properties.write_bytes(pickle.dumps(nnunet_properties(volume.grid)))
    return files


def nnunet_properties(grid: Grid) -> dict[str, Any]:
    """What nnU-Net keeps of a scan's geometry beside a prediction, for a scan it did not crop."""
    lps = LPS @ grid.affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    return {
        "sitk_stuff": {
            "spacing": tuple(float(s) for s in spacing),
            "origin": tuple(float(o) for o in lps[:3, 3]),
            "direction": tuple(float(d) for d in (lps[:3, :3] / spacing).ravel()),
        },
        "spacing": [float(s) for s in spacing[::-1]],
        "shape_before_cropping": tuple(int(n) for n in grid.shape),
        "bbox_used_for_cropping": [[0, int(n)] for n in grid.shape],
        "shape_after_cropping_and_before_resampling": tuple(int(n) for n in grid.shape),
    }


def _probability(codes: npt.NDArray[np.uint16], levels: npt.NDArray[np.float64], c: int) -> npt.NDArray[np.float32]:
    """Probabilities of one class, little-endian float32 (dz, Y, X)."""
    p = decode(codes, levels)[0] if c == 0 else levels[codes[c - 1]]
    return np.ascontiguousarray(p, "<f4")


# The files of an upload ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _UnpackedArray:
    """An array in a file, C order, its last axes Z, Y, X in the file's voxel order: slabs are read, never the whole."""

    file: IO[bytes]
    begin: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    slope: float = 1
    inter: float = 0

    def slab(self, z0: int, z1: int, turn: Turn) -> npt.NDArray[Any]:
        """Slices of the scan, (…, dz, Y, X) on its own voxels; `turn` maps these to the file's."""
        # Mapped anew for each slab, so that what was read does not count as this process's memory.
        whole = np.memmap(self.file, self.dtype, "r", self.begin, self.shape)
        values = np.ascontiguousarray(turn.back(np.asarray(whole))[..., z0:z1, :, :])
        values = values.copy() if np.shares_memory(values, whole) else values
        return values if (self.slope, self.inter) == (1, 0) else np.rint(values * self.slope + self.inter)


@contextmanager
def _unpacked(npz: Path, scratch: Path | None, allowed: Sequence[tuple[int, ...]]) -> Generator[_UnpackedArray]:
    """The probabilities of an npz, unpacked to a file that allows random access. The checksum and the shape, one of
    those allowed, are verified.
    """
    with tempfile.TemporaryFile(prefix="nnunet-", dir=scratch) as copy:
        try:
            with zipfile.ZipFile(npz) as archive:
                names = archive.namelist()
                if f"{PROBABILITIES}.npy" not in names:
                    held = ", ".join(name.removesuffix(".npy") for name in names) or "nothing"
                    raise _refused(
                        npz, f"it holds {held:.200}, not {PROBABILITIES}", "Predict with --save_probabilities."
                    )
                with archive.open(f"{PROBABILITIES}.npy") as member:
                    shape, dtype = _array_header(npz, member)
                    _require_shape(npz, shape, allowed)
                    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
                    _copy(npz, member, copy, size, scratch)
        except FileNotFoundError as error:
            raise _refused(npz, "there is no such file", "Upload the .npz beside the .nii.gz.") from error
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError) as error:
            raise _damaged(npz, error) from error
        yield _UnpackedArray(copy, 0, shape, dtype)


def _array_header(npz: Path, member: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of the array that follows in a stream; floats in C order."""
    try:
        major, _ = np.lib.format.read_magic(member)
        read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(member)
    except ValueError as error:
        raise _damaged(npz, error) from error
    if dtype.kind != "f" or fortran:
        order = "Fortran" if fortran else "C"
        found = f"{PROBABILITIES} is {dtype} in {order} order"
        raise _refused(npz, found, "Save it as floats, class axis first, in C order.")
    return shape, dtype


def _copy(path: Path, stream: Any, copy: IO[bytes], size: int, scratch: Path | None) -> None:
    """So many bytes of a stream to a file; the stream must then end, where its checksum is verified."""
    left = size
    while left and (chunk := stream.read(min(left, 1 << 22))):
        try:
            copy.write(chunk)
        except OSError as error:
            folder = scratch or Path(tempfile.gettempdir())
            if is_full(error, folder):
                raise full(IMPORTING, path.name, folder, error, size) from error
            raise
        left -= len(chunk)
    if left or stream.read(1):
        raise _damaged(path, EOFError(f"it holds {'less' if left else 'more'} than its header promises"))
    try:
        copy.flush()
    except OSError as error:
        raise full(IMPORTING, path.name, scratch or Path(tempfile.gettempdir()), error, size) from error


@contextmanager
def _labels(path: Path, scratch: Path | None) -> Generator[_UnpackedArray]:
    """The label map, unpacked: NIfTI's X-fastest order is C order of (Z, Y, X)."""
    image = nib.Nifti1Image.from_filename(path)
    array: Any = image.dataobj
    shape, dtype = tuple(int(n) for n in image.shape[::-1]), np.dtype(array.dtype)
    with tempfile.TemporaryFile(prefix="nnunet-", dir=scratch) as copy:
        try:
            with ImageOpener(str(path)) as file:
                file.read(array.offset)
                _copy(path, file, copy, int(np.prod(shape, dtype=np.int64)) * dtype.itemsize, scratch)
        except (OSError, EOFError, zlib.error) as error:
            raise _damaged(path, error) from error
        yield _UnpackedArray(copy, 0, shape, dtype, float(array.slope), float(array.inter))


class _DisagreementError(StorageError):
    """The label map is not the argmax."""


class _Agreement:
    """In how many foreground voxels the label map is the argmax."""

    def __init__(self) -> None:
        self.same = self.either = 0

    def add(self, slab: npt.NDArray[np.floating], truth: npt.NDArray[Any]) -> None:
        found = slab.argmax(axis=0)
        foreground = (found > 0) | (truth > 0)
        self.either += int(np.count_nonzero(foreground))
        self.same += int(np.count_nonzero((found == truth) & foreground))

    def require(self, npz: Path, label_map: Path) -> None:
        if self.same < LABELS_AGREE * self.either:
            raise _DisagreementError(
                IMPORTING,
                npz.name,
                f"{label_map.name} is the argmax of its probabilities in only {self.same} of {self.either} organ voxels",
                "Check that both files are of one prediction and that classes are in the order of their labels.",
            )


def _require_place(label_map: Path, scan: Grid) -> str:
    """The voxel order of a label map that lies on the scan's voxels."""
    try:
        image = nib.Nifti1Image.from_filename(label_map)
        shape, affine = tuple(image.shape[::-1]), np.asarray(image.affine, np.float64)
        kind = np.dtype(image.get_data_dtype()).kind
    except FileNotFoundError as error:
        raise _refused(label_map, "there is no such file", "Upload the .nii.gz beside the .npz.") from error
    except DAMAGED as error:
        raise _damaged(label_map, error) from error
    again = "Predict the patient's own image.nii.gz, without resampling or moving it."
    if kind not in "iuf" or not np.isfinite(affine).all() or not abs(np.linalg.det(affine[:3, :3])) > 1e-9:
        raise _refused(label_map, f"it holds {kind} at {np.round(affine[:3], 3).tolist()}, no label map", again)
    order = order_of(affine)
    expected = turned_grid(scan, order)
    if shape != expected.shape:
        raise _refused(label_map, f"it has {by(shape)} voxels (z, y, x), the scan {by(expected.shape)}", again)
    found = expected.read_as(affine)
    ours, theirs = expected.spacing_mm, found.spacing_mm
    if np.abs(np.subtract(ours, theirs)).max() > SAME_SPACING_MM:
        raise _refused(label_map, f"its spacing is {by(theirs)} mm (z, y, x), the scan's {by(ours)}", again)
    if not same_place(expected, found, SAME_PLACE_MM):
        apart = displacement_mm(expected, found)
        raise _refused(label_map, f"its affine puts the same voxel {apart:.1f} mm away from where the scan does", again)
    return order


def _require_shape(npz: Path, found: tuple[int, ...], allowed: Sequence[tuple[int, ...]]) -> None:
    if found in allowed:
        return
    whole = allowed[0]
    if len(found) == 4 and found[0] != whole[0] and found[1:] in [one[1:] for one in allowed]:
        raise _refused(
            npz, f"it has {found[0]} classes, the study {whole[0]}", "Use a model that was trained for this study."
        )
    hint = " (its axes are x, y, z)" if found == (whole[0], *whole[:0:-1]) else ""
    raise _refused(
        npz,
        f"its array is {by(found)}{hint}, expected (class, z, y, x) {by(whole)}",
        "Give the probabilities of this patient on the scan's voxels, as nnU-Net writes them.",
    )


def _refused(path: Path, found: str, remedy: str) -> StorageError:
    return StorageError(IMPORTING, path.name, found, remedy)


def _damaged(path: Path, error: BaseException) -> CorruptArtefactError:
    return CorruptArtefactError(
        IMPORTING, path.name, f"the file is damaged or cut short ({' '.join(str(error).split())})", "Upload it again."
    )
