# numba infers the types of its functions:
# pyright: reportMissingParameterType=false
"""Uncertainty maps, aggregated as they stream past: mean, largest patch mean, mean above a threshold.

Values are fixed-point integers, so that box sums are exact and do not depend on order or threads.
"""

import math

import numpy as np
import numpy.typing as npt
from numba import njit, prange

from curvas_assets.parallel import PARALLEL

PATCH = 10
"""Side of the patches, voxels (Kahl et al. 2024, arXiv:2401.08501)."""


class MapSummary:
    """Aggregates of one map, fed slab by slab in z order.

    Args:
        shape: (Z, Y, X) of the whole map.
        classes: C; no entropy is above ln C, which sets the unit.
        threshold: nats; voxels above it enter `above`.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, threshold: float):
        self.shape = shape
        self.units = 2.0 ** math.floor(30.999 - math.log2(max(math.log(classes), 1)))
        """Units of a nat, as many as int32 holds: 2³⁰ for 4 classes."""
        self.patch = tuple(min(PATCH, n) for n in shape)
        self._threshold = int(threshold * self.units)
        self._sum = self._above_sum = self._above_count = 0
        depth, height, width = self.patch
        plane = (shape[1] - height + 1, shape[2] - width + 1)
        self._recent = np.zeros((depth, *plane), np.int64)
        self._column = np.zeros(plane, np.int64)
        self._z = 0
        self._largest: int | None = None

    def add(self, slab: npt.NDArray[np.int32]) -> None:
        """The next slices (dz, Y, X), in `units` of a nat."""
        planes = np.zeros((len(slab), *self._column.shape), np.int64)
        totals = np.zeros((len(slab), 3), np.int64)
        with PARALLEL:
            _planes(slab, self.patch[1], self.patch[2], self._threshold, planes, totals)
            largest = _slide(planes, self._recent, self._column, self._z)
        self._sum += int(totals[:, 0].sum())
        self._above_sum += int(totals[:, 1].sum())
        self._above_count += int(totals[:, 2].sum())
        self._z += len(slab)
        if self._z >= self.patch[0] and (self._largest is None or largest > self._largest):
            self._largest = int(largest)

    @property
    def mean(self) -> float:
        """Mean over all voxels, nats."""
        return self._sum / self.units / math.prod(self.shape)

    @property
    def patch_maximum(self) -> float:
        """Largest mean over a patch, nats; patches slide by one voxel and lie within the map."""
        assert self._largest is not None, "no slab was added"
        return self._largest / self.units / math.prod(self.patch)

    @property
    def above(self) -> float:
        """Mean over the voxels above the threshold, nats; NaN if there is none."""
        return self._above_sum / self.units / self._above_count if self._above_count else math.nan


@njit(parallel=True, cache=True, nogil=True)
def _planes(slab, height, width, threshold, planes, totals):
    """In-plane box sums of every slice, and its sum, sum above the threshold and number above it."""
    for z in prange(slab.shape[0]):
        rows = np.zeros(planes.shape[2], np.int64)
        total = above = number = 0
        filled = False
        for y in range(slab.shape[1]):
            for x in range(slab.shape[2]):
                value = np.int64(slab[z, y, x])
                total += value
                filled |= value != 0
                if value > threshold:
                    above += value
                    number += 1
        totals[z, 0], totals[z, 1], totals[z, 2] = total, above, number
        if not filled:
            continue
        for y in range(slab.shape[1]):
            _add_row(slab[z, y], width, 1, rows)
            if y >= height:
                _add_row(slab[z, y - height], width, -1, rows)
            if y >= height - 1:
                planes[z, y - height + 1] = rows


@njit(cache=True, nogil=True, inline="always")
def _add_row(row, width, sign, rows):
    running = np.int64(0)
    for x in range(row.size):
        running += row[x]
        if x >= width:
            running -= row[x - width]
        if x >= width - 1:
            rows[x - width + 1] += sign * running


@njit(parallel=True, cache=True, nogil=True)
def _slide(planes, recent, column, z_first):
    """Slide the box down z: `column` holds the sum of the last planes, `recent` those planes."""
    depth = recent.shape[0]
    largest = np.full(planes.shape[1], np.iinfo(np.int64).min)
    for y in prange(planes.shape[1]):
        most = largest[y]
        for z in range(planes.shape[0]):
            slot = (z_first + z) % depth
            complete = z_first + z >= depth - 1
            for x in range(planes.shape[2]):
                value = planes[z, y, x]
                column[y, x] += value - recent[slot, y, x]
                recent[slot, y, x] = value
                if complete and column[y, x] > most:
                    most = column[y, x]
        largest[y] = most
    return largest.max()
