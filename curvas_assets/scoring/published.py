# numba infers the types of its functions:
# pyright: reportMissingParameterType=false
"""The calibration error as the challenge's evaluation adds it up, only to stand beside its table.

torchmetrics keeps its bins in float32 and adds voxel by voxel: a count stops at 2²⁴, and small terms are lost in large
sums. The resulting error is off by percents on small images and by multiples on large ones. It depends on the order of
the voxels, which is the image's order in both programs.
"""

import numpy as np
import numpy.typing as npt
from numba import njit

RUN = 16
"""Voxels of a row that are looked at together."""
FULL = 2**24
"""Where a float32 that counts, or adds up numbers below 1, stays for ever."""


class PublishedCalibration:
    """Sums of one predictor, fed slab by slab in the image's order.

    Voxels and misses are counted in whole numbers, which float32 holds up to 2²⁴. The sum of confidences depends on the order
    of its voxels, but not on the annotator.

    Args:
        annotators: R.
        bins: of equal width; a confidence of exactly 1 has one more of its own.

    References:
        torchmetrics `multiclass_calibration_error`, norm l1, as CURVAS 2024 uses it, doi:10.5281/zenodo.10979641.
    """

    def __init__(self, annotators: int, bins: int):
        self._edges = np.linspace(0, 1, bins + 1, dtype=np.float32)
        self._voxels = np.zeros(bins + 1, np.int64)
        self._confidence = np.zeros(bins + 1, np.float32)
        self._misses = np.zeros((annotators, bins + 1), np.int64)

    def add(
        self, confidence: npt.NDArray[np.float32], labels: npt.NDArray[np.uint8], drawn: npt.NDArray[np.uint8]
    ) -> None:
        """The next slices: confidence and predicted label (dz, Y, X), the annotators' label maps (R, dz, Y, X)."""
        _add(confidence, labels, drawn, self._edges, self._voxels, self._confidence, self._misses)

    def errors(self) -> npt.NDArray[np.float64]:
        """The calibration error by annotator, (R,)."""
        hits, voxels = (
            np.minimum(each, FULL).astype(np.float32) for each in (self._voxels - self._misses, self._voxels)
        )
        filled = np.where(voxels > 0, voxels, np.float32(1))
        share = voxels / voxels.sum(dtype=np.float32)
        return (np.abs(hits / filled - self._confidence / filled) * share).sum(axis=1, dtype=np.float32).astype(float)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)  # type: ignore[call-overload] - see `counting`
def _add(confidence, labels, drawn, edges, voxels, totals, misses):
    last = edges.size - 2
    width = labels.shape[2]
    for z in range(labels.shape[0]):
        for y in range(labels.shape[1]):
            for x in range(0, width, RUN):
                if x + RUN <= width and _sure_and_right(confidence, labels, drawn, z, y, x, edges[last]):
                    _add_sure(confidence[z, y], x, voxels, totals)
                else:
                    stop = min(x + RUN, width)
                    _add_voxels(confidence[z, y], x, stop, edges, voxels, totals)
                    _add_misses(confidence[z, y], labels[z, y], drawn, z, y, x, stop, edges, misses)


@njit(cache=True, nogil=True, inline="always")
def _sure_and_right(confidence, labels, drawn, z, y, x, least):
    """Whether a run of voxels has the label that all annotators gave, with a confidence in one of the two last bins."""
    other = False
    sure, given = confidence[z, y, x : x + RUN], labels[z, y, x : x + RUN]
    for i in range(RUN):  # loops of a known length run in vectors
        other |= sure[i] < least
    for r in range(drawn.shape[0]):
        own = drawn[r, z, y, x : x + RUN]
        for i in range(RUN):
            other |= given[i] != own[i]
    return not other


@njit(cache=True, nogil=True, inline="always")
def _add_sure(confidence, x, voxels, totals):
    """Add such a run; the last bin is that of exactly 1."""
    last = voxels.size - 2
    run = confidence[x : x + RUN]
    ones = 0
    for i in range(RUN):
        ones += run[i] >= np.float32(1.0)
    total = totals[last]
    if total < np.float32(FULL):
        for i in range(RUN):
            c = run[i]
            total += c if c < np.float32(1.0) else np.float32(0.0)
        totals[last] = total
    voxels[last] += RUN - ones
    voxels[last + 1] += ones
    totals[last + 1] = min(voxels[last + 1], FULL)


@njit(cache=True, nogil=True, inline="always")
def _bin_of(c, edges):
    bins = edges.size - 1
    b = min(np.int64(c * np.float32(bins)), bins)
    while edges[b] > c:
        b -= 1
    while b < bins and edges[b + 1] <= c:
        b += 1
    return b


@njit(cache=True, nogil=True, inline="always")
def _add_voxels(confidence, x, stop, edges, voxels, totals):
    """Add a run of any kind; neighbours mostly share a bin."""
    b, number = edges.size - 2, 0
    low, high, total = edges[b], edges[b + 1], totals[b]
    for i in range(x, stop):
        c = confidence[i]
        if c < low or c >= high:
            voxels[b], totals[b], number = voxels[b] + number, total, 0
            b = _bin_of(c, edges)
            low, high, total = edges[b], edges[b + 1] if b < edges.size - 1 else np.float32(np.inf), totals[b]
        total += c
        number += 1
    voxels[b], totals[b] = voxels[b] + number, total


@njit(cache=True, nogil=True, inline="always")
def _add_misses(confidence, labels, drawn, z, y, x, stop, edges, misses):
    for r in range(drawn.shape[0]):
        own = drawn[r, z, y]
        for i in range(x, stop):
            if labels[i] != own[i]:
                misses[r, _bin_of(confidence[i], edges)] += 1
