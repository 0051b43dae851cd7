"""Previews of a patient: the scan, label maps and maps of uncertainty on a coarser grid, as 8-bit NIfTI.

Belongs here: the coarser grid, averaging onto it, and the files. Does not belong here: reading a patient (`stages.preview`),
the pages that show it (`bundle`). Whole volumes are never held: slabs stream through, and what they leave is the size of the
preview.

A preview's voxel is a block of whole voxels of the scan, so its world coordinates are exact: its centre is the block's.
Intensities and maps are means over the block; a label is the block's most frequent one, the lowest of several.
"""

import gzip
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import numpy.typing as npt

from curvas_assets.codes import DEPTH
from curvas_assets.errors import ReportError
from curvas_assets.geometry import Grid
from curvas_assets.nifti import header_of

FINEST_MM = 2.0
"""Voxels of a preview are about this long at least, mm."""
MOST_VOXELS = 2_200_000
"""Voxels of a preview at most. With three annotators and four maps it takes about a byte each in the bundle, so that 65
patients stay below 200 MB (measured: `docs/sharing.md`)."""
MARGIN_MM = 20.0
"""How far a preview goes beyond all that anyone labelled, mm."""
LEVELS = 250
"""Steps between the ends of what 8 bits hold; zero is exact."""

Numbers = npt.NDArray[Any]
Labels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Plan:
    """A preview's grid, and the voxels of the scan that each of its voxels stands for.

    Args:
        scan: the scan's grid.
        start: first voxel of the scan along (Z, Y, X) that is in it.
        block: voxels of the scan in one of its own, along (Z, Y, X).
        shape: its voxels along (Z, Y, X).
    """

    scan: Grid
    start: tuple[int, int, int]
    block: tuple[int, int, int]
    shape: tuple[int, int, int]

    @property
    def grid(self) -> Grid:
        """Where its voxels lie in the world: the centre of each is that of its block."""
        step = np.diag([*self.block[::-1], 1.0]).astype(np.float64)
        step[:3, 3] = [at + (n - 1) / 2 for at, n in zip(self.start[::-1], self.block[::-1], strict=True)]
        return Grid(self.shape, self.scan.affine @ step)

    @property
    def stop(self) -> tuple[int, int, int]:
        """The voxel of the scan after the last one that is in it, along (Z, Y, X)."""
        z, y, x = (at + n * own for at, n, own in zip(self.start, self.block, self.shape, strict=True))
        return z, y, x

    @property
    def crop(self) -> tuple[slice, slice, slice]:
        """The voxels of the scan that are in it."""
        z, y, x = (slice(a, b) for a, b in zip(self.start, self.stop, strict=True))
        return z, y, x

    def record(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "scan_shape": list(self.scan.shape),
            "affine": self.scan.affine.tolist(),
            "start": list(self.start),
            "block": list(self.block),
            "shape": list(self.shape),
        }

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Plan":
        """From its record."""
        (z, y, x), affine = record["scan_shape"], np.asarray(record["affine"], np.float64)
        return cls(Grid((z, y, x), affine), _three(record["start"]), _three(record["block"]), _three(record["shape"]))


def plan_preview(
    scan: Grid,
    box: Sequence[tuple[int, int]],
    *,
    finest_mm: float = FINEST_MM,
    most_voxels: int = MOST_VOXELS,
    margin_mm: float = MARGIN_MM,
) -> Plan:
    """The preview of a part of a scan: as fine as allowed, voxels about as long along each axis.

    Args:
        scan: its grid.
        box: first voxel and the one after the last, along (Z, Y, X), of what is to be seen.
        finest_mm: length of a voxel, mm, that is fine enough.
        most_voxels: voxels at most; where the part is larger, they are longer.
        margin_mm: how far it goes beyond the box, mm, where the scan does.

    >>> plan = plan_preview(Grid.with_voxels((100, 512, 512), (5, 0.8, 0.8)), [(20, 80), (100, 400), (100, 400)])
    >>> plan.block, plan.shape
    ((1, 2, 2), (68, 175, 175))
    """
    spans = []
    for (first, last), n, mm in zip(box, scan.shape, scan.spacing_mm, strict=True):
        beyond = ceil(margin_mm / mm)
        spans.append((max(0, first - beyond), min(n, last + beyond)))
    target = finest_mm
    while True:
        block = [
            min(max(1, round(target / mm)), stop - start)
            for mm, (start, stop) in zip(scan.spacing_mm, spans, strict=True)
        ]
        shape = [
            min(ceil((stop - start) / b), n // b) for b, (start, stop), n in zip(block, spans, scan.shape, strict=True)
        ]
        if np.prod(shape) <= most_voxels or all(n == 1 for n in shape):
            break
        target *= 1.02
    starts = [min(start, n - b * k) for (start, _), n, b, k in zip(spans, scan.shape, block, shape, strict=True)]
    return Plan(scan, _three(starts), _three(block), _three(shape))


def bounding_box(maps: Any, depth: int = DEPTH) -> list[tuple[int, int]] | None:
    """First voxel and the one after the last, along (Z, Y, X), of whatever any label map labels; None where nothing is.

    Args:
        maps: uint8 (R, Z, Y, X), an array or `PackedLabels`.
        depth: slices that are looked at together.
    """
    found = [np.zeros(n, np.bool_) for n in maps.shape[1:]]
    for z0 in range(0, maps.shape[1], depth):
        slab: Any = np.asarray(maps[:, z0 : z0 + depth]).any(axis=0)
        if slab.any():
            found[0][z0 : z0 + len(slab)] = slab.any(axis=(1, 2))
            found[1] |= slab.any(axis=(0, 2))
            found[2] |= slab.any(axis=(0, 1))
    if not found[0].any():
        return None
    return [(int(where.argmax()), len(where) - int(where[::-1].argmax())) for where in found]


class BlockMeans:
    """Means over the blocks of a plan, from slabs in any order that cover the scan.

    Args:
        plan: of the preview.
    """

    def __init__(self, plan: Plan):
        self.plan = plan
        self._sums = np.zeros(plan.shape, np.float32)

    def part(self, z0: int, z1: int) -> tuple[slice, slice, slice] | None:
        """Of a slab from slice z0 to z1, the voxels that count; None if none does."""
        (first, last), (_, y, x) = (self.plan.start[0], self.plan.stop[0]), self.plan.crop
        low, high = max(z0, first), min(z1, last)
        return (slice(low - z0, high - z0), y, x) if low < high else None

    def add(self, z0: int, slab: Numbers) -> None:
        """A slab (dz, Y, X) of the whole scan that begins at slice z0."""
        part = self.part(z0, z0 + len(slab))
        if part is not None:
            self.add_part(max(z0, self.plan.start[0]), slab[part])

    def add_part(self, z0: int, part: Numbers) -> None:
        """The voxels that count of a slab, whose first slice is slice z0 of the scan."""
        _, by, bx = self.plan.block
        flat = np.zeros((len(part), *self.plan.shape[1:]), np.float32)
        for j in range(by):
            for i in range(bx):
                flat += part[:, j::by, i::bx]
        for offset, plane in enumerate(flat):
            self._sums[(z0 + offset - self.plan.start[0]) // self.plan.block[0]] += plane

    def values(self) -> npt.NDArray[np.float32]:
        """The means (Z, Y, X) of the preview."""
        return self._sums / np.float32(np.prod(self.plan.block))


def block_labels(plan: Plan, labels: Labels) -> Labels:
    """The most frequent label of each block, the lowest of several.

    Args:
        plan: of the preview.
        labels: the voxels of the scan that are in whole rows of blocks: (k × block, Y, X) of the plan's crop.
    """
    bz, by, bx = plan.block
    deep = len(labels) // bz
    best = np.zeros((deep, *plan.shape[1:]), np.uint8)
    most = np.full(best.shape, -1, np.int32)
    for label in np.unique(labels):
        own, count = labels == label, np.zeros(best.shape, np.int32)
        for k in range(bz):
            for j in range(by):
                for i in range(bx):
                    count += own[k::bz, j::by, i::bx]
        better = count > most
        best[better], most[better] = label, count[better]
    return best


def rows_of_blocks(plan: Plan) -> Iterator[tuple[slice, slice]]:
    """Slices of the preview, a few at a time, and the slices of the scan that they stand for."""
    at_once = max(1, 32 // plan.block[0])
    for first in range(0, plan.shape[0], at_once):
        last = min(first + at_once, plan.shape[0])
        begin = plan.start[0] + first * plan.block[0]
        yield slice(first, last), slice(begin, begin + (last - first) * plan.block[0])


def scaled(values: Numbers, low: float, high: float) -> tuple[Labels, float, float]:
    """Values as 8 bits, with NIfTI's slope and intercept; what lies beyond the ends is put there.

    Args:
        values: any shape.
        low: value of 0.
        high: value of `LEVELS`.

    Returns:
        uint8, slope and intercept: value = slope × stored + intercept, to half a slope.

    Raises:
        ReportError: the ends are no interval.
    """
    if not np.isfinite([low, high]).all() or low >= high:
        raise ReportError(
            "making a preview", "its values", f"they go from {low} to {high}", "Give two ends, the lower one first."
        )
    slope = (high - low) / LEVELS
    stored = np.rint((np.clip(np.nan_to_num(values, nan=low), low, high) - low) / slope)
    return stored.astype(np.uint8), slope, low


def nifti(
    stored: Labels,
    grid: Grid,
    *,
    slope: float = 1.0,
    intercept: float = 0.0,
    description: str = "",
    are_labels: bool = False,
) -> bytes:
    """A compressed NIfTI file of 8-bit values; the same values give the same bytes.

    Args:
        stored: uint8 (Z, Y, X).
        grid: where the voxels lie.
        slope: of the values.
        intercept: of the values.
        description: up to 79 characters for the header.
        are_labels: the header says so; viewers draw contours of labels then.
    """
    header = header_of(grid, np.uint8, slope, intercept)
    if are_labels:
        header.set_intent("label")
    header["descrip"] = description.encode()[:79]
    return gzip.compress(header.binaryblock + b"\0\0\0\0" + np.ascontiguousarray(stored).tobytes(), 9, mtime=0)


def centre_mm(mask: Numbers, grid: Grid) -> list[float] | None:
    """A point (RAS+, mm) in the middle of the largest connected part of a mask, inside it; None of nothing.

    Two kidneys have their centre of mass between them: there is nothing to be seen there.

    Args:
        mask: bool (Z, Y, X).
        grid: where its voxels lie.
    """
    from scipy import ndimage

    parts, count = ndimage.label(mask)
    if not count:
        return None
    largest = np.argwhere(parts == 1 + int(np.bincount(parts.ravel())[1:].argmax()))
    away = (largest - largest.mean(axis=0)) * np.array(grid.spacing_mm)
    return _world(largest[int((away**2).sum(axis=1).argmin())], grid)


def most_uncertain_mm(entropy: Numbers, grid: Grid) -> list[float] | None:
    """A point (RAS+, mm) of the axial slice with most entropy: where most of it is, within the slice. None without entropy."""
    across = tuple(axis for axis in range(3) if axis != grid.axial)
    of_slice = entropy.sum(axis=across, dtype=np.float64)
    if not of_slice.any():
        return None
    at: list[Any] = [slice(None)] * 3
    at[grid.axial] = fullest = int(of_slice.argmax())
    plane = entropy[tuple(at)]
    place = list(map(int, np.unravel_index(int(plane.argmax()), plane.shape)))
    place.insert(grid.axial, fullest)
    return _world(place, grid)


def _world(voxel: Sequence[int] | Numbers, grid: Grid) -> list[float]:
    z, y, x = map(float, voxel)
    return [round(float(v), 2) for v in (grid.affine @ [x, y, z, 1.0])[:3]]


def _three(values: Sequence[int]) -> tuple[int, int, int]:
    z, y, x = map(int, values)
    return z, y, x
