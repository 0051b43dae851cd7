"""What one NIfTI file holds: its grid, and whether its voxels are intensities or labels; of a label map, how much of each."""

import hashlib
import io
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from curvas_assets.cohort.discovery.layout import Kind
from curvas_assets.errors import PatientError
from curvas_assets.geometry import Grid, require_one_header
from curvas_assets.label_values import MOST_VALUE
from curvas_assets.nifti import GZIP, judge_file, judge_header, read_slabs
from curvas_assets.study import Intake

BEGINNING = 1 << 20
"""Bytes of a file that a first look reads."""
MOST_UNPACKED = 1 << 23
"""Bytes that a first look unpacks: voxels of a few slices."""
LARGEST = 16 * 2**30
"""Bytes of voxels beyond which a file is not read."""
MOST_LABELS = 300
"""Different values above which voxels are intensities. The largest sets of labels in use have about 120."""
FEW = 16
"""Different values up to which voxels are labels without a look at their neighbours."""
LEAST_COHERENT = 0.6
"""Least share of neighbouring voxels, neither of them background, with the same value in a label map."""
ENOUGH_PAIRS = 200_000
MOST_FRACTIONS = 0.3
"""Share of voxels with fractions above which they are intensities. A label map that was interpolated has them at boundaries only."""
NO_NUMBERS, WITHOUT = "it holds voxels that are NaN or infinite", "Export it again without them."
INTAKE = Intake()
"""The intake's tolerances, by default."""


@dataclass(frozen=True)
class Look:
    """A first look at a file.

    Args:
        grid: of the volume; None if the file is no volume that the platform reads, or its header leaves open where it lies.
        kind: what its voxels are, as far as they were read; `labels` also where all of them are 0.
        sure: whether more voxels cannot change that.
        low: smallest value read; None where none was.
        high: largest value read.
        defect: why the file cannot be used.
        remedy: what to do about that.
    """

    grid: Grid | None
    kind: Kind | None
    sure: bool = False
    low: float | None = None
    high: float | None = None
    defect: str = ""
    remedy: str = ""


@dataclass(frozen=True)
class LabelMap:
    """A label map that was read whole.

    Args:
        voxels: value → voxels.
        centres: value → mean position of its voxels as a share of the volume along (left to right, back to front, bottom to top).
        digest: of its voxels.
        fractions: largest distance of a voxel from a whole number.
        negative: whether values below 0 occur; they are not in `voxels`.
        finite: whether every voxel is a number; the others are read as 0.
    """

    voxels: Mapping[int, int]
    centres: Mapping[int, tuple[float, float, float]]
    digest: str
    fractions: float = 0.0
    negative: bool = False
    finite: bool = True


class _Judge:
    """Intensities or labels, from the voxels that were seen."""

    def __init__(self) -> None:
        self.low, self.high = np.inf, -np.inf
        self.kind: Kind = "labels"
        self.sure = False
        self.fractions = 0.0
        self.finite = True
        self.counts = np.zeros(1, np.int64)
        self._pairs = self._alike = self._odd = self._drawn = 0

    def see(self, slab: npt.NDArray[Any]) -> None:
        """Take some slices (z, Y, X) into account."""
        finite = slab if slab.dtype.kind in "iu" else slab[np.isfinite(slab)]
        self.finite &= finite.size == slab.size
        if not finite.size:
            return
        self.low, self.high = min(self.low, float(finite.min())), max(self.high, float(finite.max()))
        whole = slab
        if slab.dtype.kind == "f":
            slab = np.nan_to_num(slab, nan=0.0, posinf=0.0, neginf=0.0)
            whole = np.rint(slab)
            self.fractions = max(self.fractions, float(np.abs(slab - whole).max()))
            self._odd += int((np.abs(slab - whole) > INTAKE.label_tolerance).sum())
        self._drawn += int(np.count_nonzero(slab))
        if self.low < -1 or self.high > MOST_VALUE:
            self.kind, self.sure = "image", True
            return
        if self._odd > MOST_FRACTIONS * self._drawn:
            self.kind, self.sure = "image", self._odd >= ENOUGH_PAIRS
            return
        whole = whole.astype(np.int32, copy=False)
        drawn = whole[whole > 0]
        self.counts = _added(self.counts, np.bincount(drawn))
        distinct = int(np.count_nonzero(self.counts))
        if distinct > MOST_LABELS:
            self.kind, self.sure = "image", True
        elif distinct > FEW:
            left, right = whole[..., :-1], whole[..., 1:]
            both = (left != 0) & (right != 0)
            self._pairs += int(both.sum())
            self._alike += int(((left == right) & both).sum())
            if self._pairs and self._alike < LEAST_COHERENT * self._pairs:
                self.kind = "image"
                self.sure = self._pairs >= ENOUGH_PAIRS
            else:
                self.kind = "labels"
        else:
            self.kind = "labels"


def _added(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> npt.NDArray[Any]:
    longer, shorter = (one, other) if len(one) >= len(other) else (other, one)
    total = longer.copy()
    total[: len(shorter)] += shorter
    return total


def look(beginning: bytes, size: int) -> Look:
    """What the first bytes of a NIfTI file tell; nothing is raised, because one odd file must not hide the others.

    Args:
        beginning: the file's first bytes, as stored; `BEGINNING` of them, or all.
        size: of the whole file, bytes.
    """
    try:
        content, ended = _unpacked(beginning)
        stream = io.BytesIO(content)
        promise = judge_header(
            stream,
            LARGEST,
            limit="Look at the file in a viewer: this is larger than any scan.",
            attempted="looking at the file",
            subject="it",
            error=PatientError,
        )
        held = len(content) if len(beginning) == size and ended else None if beginning.startswith(GZIP) else size
        if held is not None and held < promise.size:
            found = f"the file is cut short: its header promises {promise.size} bytes, and it holds {held}"
            return Look(None, None, defect=found, remedy="Copy it again from its source.")
        header = nib.Nifti1Header.from_fileobj(io.BytesIO(content))
        x, y, z = promise.shape
        grid = Grid((z, y, x), np.asarray(header.get_best_affine(), np.float64))
        judge, seen = _first_voxels(content, header, promise.dtype, (y, x), z)
        if not judge.finite:
            return Look(None, *seen, NO_NUMBERS, WITHOUT)
        try:
            require_one_header(
                header,
                grid,
                spacing_tolerance_mm=INTAKE.spacing_tolerance_mm,
                place_tolerance_mm=INTAKE.origin_tolerance_mm,
                attempted="looking at the file",
                subject="it",
                error=PatientError,
            )
        except PatientError as error:
            return Look(None, *seen, error.found, error.remedy)
        return Look(grid, *seen)
    except PatientError as error:
        return Look(None, None, defect=error.found, remedy=error.remedy)
    except zlib.error as error:
        found = f"the file is truncated or damaged ({error})"
        return Look(None, None, defect=found, remedy="Copy it again from its source.")
    except Exception as error:  # nibabel raises many kinds
        words = " ".join(str(error).split())
        found = f"it is no NIfTI file that can be read ({type(error).__name__}: {words:.120})"
        return Look(None, None, defect=found, remedy="Convert it again from its source.")


def _unpacked(beginning: bytes) -> tuple[bytes, bool]:
    """The beginning, unpacked as far as a first look goes, and whether all of it was unpacked."""
    if not beginning.startswith(GZIP):
        return beginning[:MOST_UNPACKED], len(beginning) <= MOST_UNPACKED
    part = zlib.decompressobj(zlib.MAX_WBITS | 16)
    content = part.decompress(beginning, MOST_UNPACKED)
    return content, not part.unconsumed_tail and not part.unused_data


def _first_voxels(
    content: bytes, header: Any, dtype: np.dtype[Any], plane: tuple[int, int], depth: int
) -> tuple[_Judge, tuple[Kind, bool, float | None, float | None]]:
    begins, (y, x) = int(header["vox_offset"]), plane
    count = min((len(content) - begins) // dtype.itemsize, depth * y * x)
    judge = _Judge()
    if count > 0:
        voxels = np.frombuffer(content, dtype, count, begins)
        slope, inter = header.get_slope_inter()
        if (slope, inter) not in ((None, None), (1, 0)):
            voxels = voxels.astype(np.float64) * slope + inter
        rows = count // x
        judge.see(voxels[: rows * x].reshape(1, rows, x) if rows else voxels.reshape(1, 1, count))
    read = np.isfinite(judge.low)
    return judge, (
        judge.kind,
        judge.sure or count >= depth * y * x,
        judge.low if read else None,
        judge.high if read else None,
    )


def read_label_map(path: Path, patient: str) -> LabelMap | None:
    """Everything that a label map holds; None where its voxels are intensities, as soon as that is sure.

    Args:
        path: of the file.
        patient: whose it is, for messages.

    Raises:
        PatientError: it cannot be read to its end.
    """
    told: Any = {"attempted": f"reading {path.name}", "subject": patient, "error": PatientError}
    image = _opened(path, told)
    judge, digest = _Judge(), hashlib.blake2b(digest_size=16)
    _, y_size, x_size = Grid.of(image).shape
    sums: list[npt.NDArray[Any]] = [np.zeros(1), np.zeros(1), np.zeros(1)]
    for z0, slab in read_slabs(image, **told):
        judge.see(slab)
        if judge.sure and judge.kind == "image":
            return None
        digest.update(np.ascontiguousarray(slab).tobytes())
        drawn = np.flatnonzero(slab)
        values = np.rint(np.nan_to_num(slab.ravel()[drawn], nan=0, posinf=0, neginf=0)).astype(np.int64)
        drawn, values = drawn[values > 0], values[values > 0]
        if len(drawn):
            row, x = np.divmod(drawn, x_size)
            z, y = np.divmod(row, y_size)
            sums = [_added(s, np.bincount(values, axis)) for s, axis in zip(sums, (z + z0, y, x), strict=True)]
    if judge.kind == "image":
        return None
    counts = {int(value): int(judge.counts[value]) for value in np.flatnonzero(judge.counts)}
    centres = {value: _centre(image, [float(s[value]) / n for s in sums]) for value, n in counts.items()}
    return LabelMap(counts, centres, digest.hexdigest(), judge.fractions, judge.low <= -0.5, judge.finite)


def _centre(image: Any, mean: list[float]) -> tuple[float, float, float]:
    """A mean voxel (z, y, x) as shares along left to right, back to front and bottom to top, whatever the voxel order."""
    shares = [at / max(size - 1, 1) for at, size in zip(mean[::-1], image.shape, strict=True)]
    found = [0.5, 0.5, 0.5]
    for share, code in zip(shares, Grid.of(image).orientation, strict=True):
        axis = next(axis for axis, ends in enumerate(("RL", "AP", "SI")) if code in ends)
        found[axis] = share if code in "RAS" else 1 - share
    return found[0], found[1], found[2]


def read_intensities(path: Path, patient: str) -> tuple[float, float, float]:
    """Smallest, median and largest intensity of a scan; the median of every seventh voxel.

    Raises:
        PatientError: it cannot be read to its end, or holds voxels that are no numbers.
    """
    told: Any = {"attempted": f"reading {path.name}", "subject": patient, "error": PatientError}
    image = _opened(path, told)
    low, high, some = np.inf, -np.inf, list[npt.NDArray[Any]]()
    for _, slab in read_slabs(image, **told):
        if slab.dtype.kind == "f" and not np.isfinite(slab).all():
            raise PatientError(told["attempted"], patient, NO_NUMBERS, WITHOUT)
        low, high = min(low, float(slab.min())), max(high, float(slab.max()))
        some.append(slab.ravel()[::7].astype(np.float32))
    return low, float(np.median(np.concatenate(some))), high


def _opened(path: Path, told: Mapping[str, Any]) -> Any:
    limit = "Look at the file in a viewer: this is larger than any scan."
    try:
        judge_file(path, LARGEST, limit=limit, **told)
        return nib.load(path)
    except PatientError:
        raise
    except Exception as error:
        found = f"it is no NIfTI file that can be read ({type(error).__name__})"
        raise PatientError(told["attempted"], told["subject"], found, "Convert it again from its source.") from error
