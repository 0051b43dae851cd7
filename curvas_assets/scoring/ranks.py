# numba infers the types of its functions:
# pyright: reportMissingParameterType=false
"""Ranks of an organ's probability in an array of floats, exactly, without sorting all of it.

Only the order of annotated voxels against the others matters, and annotated ones are few. They are sorted; every other
voxel is placed among them. (A stored volume has few enough levels to count each: `counting` does.)
"""

from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from numba import njit, prange

from curvas_assets.codes import DEPTH
from curvas_assets.parallel import PARALLEL
from curvas_assets.scoring.counting import Ranks

SHIFT = 14
"""Low bits of float32 that the first lookup ignores: this leaves 512 entries for each doubling of p."""


def rank_organ(softmax: npt.NDArray[Any], annotations: Any, c: int, region: tuple[slice, slice, slice]) -> Ranks:
    """Ranks of one class's probability.

    Args:
        softmax: probabilities (C, Z, Y, X); taken as float32, as `counting` takes them.
        annotations: uint8 (R, Z, Y, X), sliceable.
        c: the class.
        region: slices along (Z, Y, X) with start and stop; voxels outside do not count.
    """
    zs, ys, xs = region
    slabs = [slice(z, min(z + DEPTH, zs.stop)) for z in range(zs.start, zs.stop, DEPTH)]
    annotators = annotations.shape[0]

    found: list[npt.NDArray[np.float32]] = []
    who: list[npt.NDArray[np.bool_]] = []
    for here in slabs:
        gave = annotations[:, here, ys, xs] == c
        anybody = gave.any(axis=0)
        found.append(_taken(softmax[c, here, ys, xs][anybody]))
        who.append(gave[:, anybody])
    values, place = np.unique(np.concatenate(found), return_inverse=True)
    answers = np.concatenate(who, axis=1)
    # Rank 2 k is what lies below the k-th annotated value and above the one before, rank 2 k + 1 what equals it.
    positives = np.zeros((annotators, 2 * values.size + 1), np.int64)
    for r in range(annotators):
        positives[r, 1::2] = np.bincount(place[answers[r]], minlength=values.size)
    voxels = np.zeros((numba.get_num_threads(), 2 * values.size + 1), np.int64)
    voxels[0, 1::2] = np.bincount(place, minlength=values.size)
    first = int(values.view(np.int32)[0]) >> SHIFT if values.size else 0
    keys = (np.append(values, np.float32(2)).view(np.int32) >> SHIFT) - first
    begins = np.searchsorted(keys, np.arange((0x3F800000 >> SHIFT) - first + 3)).astype(np.int32)
    for here in slabs:
        p, drawn = np.asarray(softmax[c, here], np.float32), np.ascontiguousarray(annotations[:, here, ys, xs])
        with PARALLEL:
            _place(p, drawn, ys.start, xs.start, c, values, begins, first, voxels)
    return Ranks(voxels.sum(axis=0), positives)


def _taken(p: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """As `counting` takes them: float32 from 0 to 1, and −0 as 0."""
    return np.clip(p.astype(np.float32), 0, 1) + np.float32(0)


@njit(parallel=True, cache=True, nogil=True)
def _place(p, drawn, y0, x0, c, values, begins, first, voxels):
    """Add to `voxels` the slices' voxels to which nobody gave class c; `begins` covers keys from `first` on."""
    annotators, depth, height, width = drawn.shape
    for z in prange(depth):
        own = voxels[numba.get_thread_id()]  # type: ignore[attr-defined]
        below = 0
        annotated = np.empty(width, np.bool_)
        for y in range(height):
            annotated[:] = False
            for r in range(annotators):
                labels = drawn[r, z, y]
                for x in range(width):
                    annotated[x] |= labels[x] == c
            line = p[z, y0 + y, x0 : x0 + width]
            for x in range(width):
                if annotated[x]:
                    continue
                v = min(max(line[x], np.float32(0.0)), np.float32(1.0)) + np.float32(0.0)
                key = (np.float32(v).view(np.int32) >> SHIFT) - first
                if key < 0:
                    below += 1
                    continue
                low, high = begins[key], begins[key + 1]
                while low < high:  # the first annotated value that is not below
                    middle = (low + high) // 2
                    if values[middle] < v:
                        low = middle + 1
                    else:
                        high = middle
                own[2 * low + (1 if low < values.size and values[low] == v else 0)] += 1
        own[0] += below
