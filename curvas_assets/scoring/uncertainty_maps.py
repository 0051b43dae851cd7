# numba infers the types of its functions:
# pyright: reportMissingParameterType=false
"""Uncertainty maps, aggregated as they stream past: mean, largest patch mean, mean above a threshold.

Values are fixed-point integers, so that box sums are exact and do not depend on order or threads.
"""

import math

import numpy as np
import numpy.typing as npt
from numba import njit

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
        self._recent = np.zeros((self.patch[0], *shape[1:]), np.int32)
        self._column = np.zeros(shape[1:], np.int64)
        self._z = 0
        self._largest = np.full(1, np.iinfo(np.int64).min)

    def add(self, slab: npt.NDArray[np.int32]) -> None:
        """The next slices (dz, Y, X), in `units` of a nat."""
        for one in slab:
            own = self._recent[self._z % self.patch[0]]
            self._z += 1
            complete = self._z >= self.patch[0]
            total, above, number = _advance(
                one, own, self._column, self.patch[1], self.patch[2], self._threshold, complete, self._largest
            )
            self._sum += int(total)
            self._above_sum += int(above)
            self._above_count += int(number)

    @property
    def mean(self) -> float:
        """Mean over all voxels, nats."""
        return self._sum / self.units / math.prod(self.shape)

    @property
    def patch_maximum(self) -> float:
        """Largest mean over a patch, nats; patches slide by one voxel and lie within the map."""
        assert self._z == self.shape[0], "slices are missing"
        return int(self._largest[0]) / self.units / math.prod(self.patch)

    @property
    def above(self) -> float:
        """Mean over the voxels above the threshold, nats; NaN if there is none."""
        return self._above_sum / self.units / self._above_count if self._above_count else math.nan


@njit(cache=True, nogil=True)
def _advance(new, old, column, height, width, threshold, complete, largest):
    """Move the box one slice on: `column` holds the sum of its slices, `old` is the slice that it leaves, or zeros.

    `old` becomes the new slice, and `largest` the largest sum of a patch so far.

    Returns:
        The slice's sum, its sum above the threshold, and how many voxels are above it.
    """
    total = above = number = np.int64(0)
    band = np.zeros(column.shape[1], np.int64)  # of the last rows of the column
    most = largest[0]
    for y in range(column.shape[0]):
        of_row, coming, going = column[y], new[y], old[y]
        for x in range(of_row.size):
            value = np.int64(coming[x])
            total += value
            high = value > threshold
            above += value if high else 0
            number += high
            of_row[x] += value - np.int64(going[x])
            going[x] = coming[x]
        if not complete:
            continue
        tallest = np.int64(np.iinfo(np.int64).min)
        leaving = column[y - height] if y >= height else column[y]
        kept = np.int64(1) if y >= height else np.int64(0)
        for x in range(band.size):
            band[x] += of_row[x] - kept * leaving[x]
            tallest = max(tallest, band[x])
        if y >= height - 1 and tallest * width > most:  # else no patch that ends here can be larger
            running = np.int64(0)
            for x in range(band.size):
                running += band[x]
                if x >= width:
                    running -= band[x - width]
                if x >= width - 1:
                    most = max(most, running)
    largest[0] = most
    return total, above, number
