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

    Voxels and hits are counted in whole numbers, which float32 holds up to 2²⁴. The sum of confidences depends on the order
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
        self._hits = np.zeros((annotators, bins + 1), np.int64)

    def add(
        self, confidence: npt.NDArray[np.float32], labels: npt.NDArray[np.uint8], drawn: npt.NDArray[np.uint8]
    ) -> None:
        """The next slices: confidence and predicted label (dz, Y, X), the annotators' label maps (R, dz, Y, X)."""
        _add(confidence, labels, drawn, self._edges, self._voxels, self._confidence, self._hits)

    def errors(self) -> npt.NDArray[np.float64]:
        """The calibration error by annotator, (R,)."""
        hits, voxels = (np.minimum(each, FULL).astype(np.float32) for each in (self._hits, self._voxels))
        filled = np.where(voxels > 0, voxels, np.float32(1))
        share = voxels / voxels.sum(dtype=np.float32)
        return (np.abs(hits / filled - self._confidence / filled) * share).sum(axis=1, dtype=np.float32).astype(float)


@njit(cache=True, nogil=True)
def _add(confidence, labels, drawn, edges, voxels, totals, hits):
    bins = edges.size - 1
    for z in range(labels.shape[0]):
        for y in range(labels.shape[1]):
            for x in range(0, labels.shape[2], RUN):
                stop = min(x + RUN, labels.shape[2])
                if _sure_and_right(confidence[z, y], labels[z, y], drawn, z, y, x, stop, edges[bins - 1]):
                    _add_sure(confidence[z, y], x, stop, voxels, totals, hits)
                else:
                    _add_voxels(confidence[z, y], labels[z, y], drawn, z, y, x, stop, edges, voxels, totals, hits)


@njit(cache=True, nogil=True, inline="always")
def _sure_and_right(confidence, labels, drawn, z, y, x, stop, least):
    """Whether a run of voxels has the label that all annotators gave, with a confidence in one of the two last bins."""
    other = False
    for i in range(x, stop):
        other |= confidence[i] < least
    for r in range(drawn.shape[0]):
        own = drawn[r, z, y]
        for i in range(x, stop):
            other |= labels[i] != own[i]
    return not other


@njit(cache=True, nogil=True, inline="always")
def _add_sure(confidence, x, stop, voxels, totals, hits):
    """Add such a run; the last bin is that of exactly 1."""
    last = voxels.size - 2
    ones = 0
    for i in range(x, stop):
        ones += confidence[i] >= np.float32(1.0)
    total = totals[last]
    if total < np.float32(FULL):
        for i in range(x, stop):
            total += confidence[i] if confidence[i] < np.float32(1.0) else np.float32(0.0)
        totals[last] = total
    voxels[last] += stop - x - ones
    voxels[last + 1] += ones
    totals[last + 1] = min(voxels[last + 1], FULL)
    for r in range(hits.shape[0]):
        hits[r, last] += stop - x - ones
        hits[r, last + 1] += ones


@njit(cache=True, nogil=True, inline="always")
def _add_voxels(confidence, labels, drawn, z, y, x, stop, edges, voxels, totals, hits):
    bins = edges.size - 1
    for i in range(x, stop):
        c = confidence[i]
        b = min(np.int64(c * np.float32(bins)), bins)
        while edges[b] > c:
            b -= 1
        while b < bins and edges[b + 1] <= c:
            b += 1
        voxels[b] += 1
        totals[b] += c
        for r in range(drawn.shape[0]):
            hits[r, b] += labels[i] == drawn[r, z, y, i]
