# numba infers the types of its functions:
# pyright: reportMissingParameterType=false
"""The calibration error as the challenge's evaluation adds it up, only to stand beside its table.

torchmetrics keeps its bins in float32 and adds voxel by voxel: a count stops at 2²⁴, and small terms are lost in large
sums. The resulting error is off by percents on small images and by multiples on large ones. It depends on the order of
the voxels, which is the image's order in both programs.
"""

import numpy as np
import numpy.typing as npt
from numba import njit, prange

from curvas_assets.parallel import PARALLEL


class PublishedCalibration:
    """Sums of one predictor, fed slab by slab in the image's order.

    Args:
        annotators: R.
        bins: of equal width; a confidence of exactly 1 has one more of its own.

    References:
        torchmetrics `multiclass_calibration_error`, norm l1, as CURVAS 2024 uses it, doi:10.5281/zenodo.10979641.
    """

    def __init__(self, annotators: int, bins: int):
        self._edges = np.linspace(0, 1, bins + 1, dtype=np.float32)
        self._sums = np.zeros((annotators, bins + 1, 3), np.float32)

    def add(
        self, confidence: npt.NDArray[np.float32], labels: npt.NDArray[np.uint8], drawn: npt.NDArray[np.uint8]
    ) -> None:
        """The next slices: confidence and predicted label (dz, Y, X), the annotators' label maps (R, dz, Y, X)."""
        with PARALLEL:
            _add(confidence.ravel(), labels.ravel(), drawn.reshape(len(drawn), -1), self._edges, self._sums)

    def errors(self) -> npt.NDArray[np.float64]:
        """The calibration error by annotator, (R,)."""
        voxels, confidence, hits = np.moveaxis(self._sums, -1, 0)
        filled = np.where(voxels > 0, voxels, np.float32(1))
        share = voxels / voxels.sum(axis=1, keepdims=True, dtype=np.float32)
        return (np.abs(hits / filled - confidence / filled) * share).sum(axis=1, dtype=np.float32).astype(float)


@njit(parallel=True, cache=True, nogil=True)
def _add(confidence, labels, drawn, edges, sums):
    one = np.float32(1.0)
    bins = edges.size - 1
    for r in prange(drawn.shape[0]):
        labels_of, own = drawn[r], sums[r]
        b, voxels, total, hits = 0, own[0, 0], own[0, 1], own[0, 2]  # the current bin's; neighbours mostly share it
        low, high = edges[0], edges[1]
        for i in range(confidence.size):
            c = confidence[i]
            if c < low or c >= high:
                own[b, 0], own[b, 1], own[b, 2] = voxels, total, hits
                b = min(np.int64(c * np.float32(bins)), bins)
                while edges[b] > c:
                    b -= 1
                while b < bins and edges[b + 1] <= c:
                    b += 1
                voxels, total, hits = own[b, 0], own[b, 1], own[b, 2]
                low, high = edges[b], edges[b + 1] if b < bins else np.float32(np.inf)
            voxels += one
            total += c
            hits += one if labels[i] == labels_of[i] else np.float32(0)
        own[b, 0], own[b, 1], own[b, 2] = voxels, total, hits
