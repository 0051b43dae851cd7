"""One pass over the voxels of a predictor: exact integer counts, from which every metric without geometry follows.

Probabilities come as 16-bit codes, so a histogram over codes keeps all that ranks, bins and sums need: nothing is sorted,
nothing is held but one slab. Voxels where nobody saw an organ and the predictor none either are only counted.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from numba import njit, prange

from curvas_assets.parallel import PARALLEL

FULL = 65535
CODES = FULL + 1
CLIP = 1e-7
"""Probabilities below it count as it in the negative log likelihood (DEFINITIONS: nll)."""
DEPTH = 16


@dataclass(frozen=True)
class Counts:
    """What one pass found; N voxels in the region, C classes, F foreground classes, R annotators.

    Args:
        voxels: N.
        top: int64 (R, 2, 65536): voxels by annotator, whether the predicted label is the annotator's, and code of the
            largest probability.
        organ: int64 (F, R, 2, 65536): voxels by class, annotator, whether the annotator gave the class, and its code.
        confusion: int64 (R, C, C): voxels by annotator, predicted label, annotator's label.
        consensus: int64 (F, 6): per class voxels in the consensus, true positives, voxels nobody gave it, false
            positives, sum of codes in the consensus, sum of codes where nobody gave it.
        code_squares: Σ over voxels and classes of code².
        code_of_label: int64 (R,): Σ over voxels of the code of the annotator's label.
        log_loss: (R,): Σ over voxels of −ln p of the annotator's label, clipped.
        entropy: Σ over voxels of the predictive entropy, nats.
        maps: Σ of disagreement, its square, of entropy squared and of their product.
    """

    voxels: int
    top: npt.NDArray[np.int64]
    organ: npt.NDArray[np.int64]
    confusion: npt.NDArray[np.int64]
    consensus: npt.NDArray[np.int64]
    code_squares: int
    code_of_label: npt.NDArray[np.int64]
    log_loss: npt.NDArray[np.float64]
    entropy: float
    maps: npt.NDArray[np.float64]


def count(
    slabs: Iterator[tuple[int, int, npt.NDArray[np.uint16]]],
    annotations: Any,
    classes: int,
    region: tuple[slice, slice, slice],
) -> Counts:
    """Count a predictor's slabs against the annotations.

    Args:
        slabs: (z0, z1, foreground codes (F, z1 − z0, Y, X)) from the first slice to the last.
        annotations: uint8 (R, Z, Y, X), sliceable.
        classes: C, background included.
        region: slices along (Z, Y, X) with start and stop; voxels outside do not count.
    """
    threads = numba.get_num_threads()
    annotators, foreground = annotations.shape[0], classes - 1
    zs, ys, xs = region
    top = np.zeros((threads, annotators, 2, CODES), np.int64)
    organ = np.zeros((threads, foreground, annotators, 2, CODES), np.int64)
    confusion = np.zeros((threads, annotators, classes, classes), np.int64)
    consensus = np.zeros((threads, foreground, 6), np.int64)
    integers = np.zeros((threads, 2 + annotators), np.int64)
    floats = np.zeros((threads, 5 + annotators), np.float64)
    voxels = 0
    for z0, z1, codes in slabs:
        lo, hi = max(z0, zs.start), min(z1, zs.stop)
        if lo >= hi:
            continue
        part = np.ascontiguousarray(codes[:, lo - z0 : hi - z0, ys, xs])
        drawn = np.ascontiguousarray(annotations[:, lo:hi, ys, xs])
        voxels += part[0].size
        with PARALLEL:
            _count(part, drawn, top, organ, confusion, consensus, integers, floats, *_tables(annotators))
    top, organ, confusion, consensus = (a.sum(axis=0) for a in (top, organ, confusion, consensus))
    whole, sums = integers.sum(axis=0), floats.sum(axis=0)
    empty = int(whole[0])  # background for everybody, with certainty
    top[:, 1, FULL] += empty
    organ[:, :, 0, 0] += empty
    confusion[:, 0, 0] += empty
    consensus[:, 2] += empty
    return Counts(
        voxels=voxels,
        top=top,
        organ=organ,
        confusion=confusion,
        consensus=consensus,
        code_squares=int(whole[1]) + empty * FULL * FULL,
        code_of_label=whole[2:] + empty * FULL,
        log_loss=sums[5:],
        entropy=float(sums[0]),
        maps=sums[1:5],
    )


def slabs_of_array(codes: npt.NDArray[np.uint16]) -> Iterator[tuple[int, int, npt.NDArray[np.uint16]]]:
    """An array of codes as slabs."""
    for z0 in range(0, codes.shape[1], DEPTH):
        z1 = min(z0 + DEPTH, codes.shape[1])
        yield z0, z1, codes[:, z0:z1]


_TABLES: dict[int, tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]] = {}


def _tables(annotators: int) -> tuple[npt.NDArray[np.float64], ...]:
    """−p ln p and −ln p of every code; −q ln q of k of R annotators."""
    if annotators not in _TABLES:
        p = np.arange(CODES) / FULL
        q = np.arange(annotators + 1) / annotators
        _TABLES[annotators] = (
            -p * np.log(np.where(p > 0, p, 1)),
            -np.log(np.maximum(p, CLIP)),
            -q * np.log(np.where(q > 0, q, 1)),
        )
    return _TABLES[annotators]


@njit(parallel=True, cache=True, nogil=True)
def _count(codes, drawn, top, organ, confusion, consensus, integers, floats, entropy_of, loss_of, vote_entropy_of):
    foreground, depth, height, width = codes.shape
    annotators = drawn.shape[0]
    threads = top.shape[0]
    rows = depth * height
    for t in prange(threads):
        votes = np.zeros(foreground + 1, np.int64)
        for row in range(rows * t // threads, rows * (t + 1) // threads):
            z, y = row // height, row % height
            for x in range(width):
                anything = 0
                for c in range(foreground):
                    anything |= codes[c, z, y, x]
                for r in range(annotators):
                    anything |= drawn[r, z, y, x]
                if anything == 0:
                    integers[t, 0] += 1
                    continue
                rest = FULL
                for c in range(foreground):
                    rest -= np.int64(codes[c, z, y, x])
                best, value = 0, rest
                squares = rest * rest
                entropy = entropy_of[rest]
                for c in range(foreground):
                    code = np.int64(codes[c, z, y, x])
                    squares += code * code
                    entropy += entropy_of[code]
                    if code > value:
                        best, value = c + 1, code
                integers[t, 1] += squares
                floats[t, 0] += entropy
                votes[:] = 0
                for r in range(annotators):
                    label = drawn[r, z, y, x]
                    votes[label] += 1
                    top[t, r, 1 if label == best else 0, value] += 1
                    confusion[t, r, best, label] += 1
                    code = rest if label == 0 else np.int64(codes[label - 1, z, y, x])
                    integers[t, 2 + r] += code
                    floats[t, 5 + r] += loss_of[code]
                disagreement = 0.0
                for c in range(foreground + 1):
                    disagreement += vote_entropy_of[votes[c]]
                floats[t, 1] += disagreement
                floats[t, 2] += disagreement * disagreement
                floats[t, 3] += entropy * entropy
                floats[t, 4] += disagreement * entropy
                for c in range(foreground):
                    code = np.int64(codes[c, z, y, x])
                    for r in range(annotators):
                        organ[t, c, r, 1 if drawn[r, z, y, x] == c + 1 else 0, code] += 1
                    if votes[c + 1] == annotators:
                        consensus[t, c, 0] += 1
                        consensus[t, c, 1] += best == c + 1
                        consensus[t, c, 4] += code
                    elif votes[c + 1] == 0:
                        consensus[t, c, 2] += 1
                        consensus[t, c, 3] += best == c + 1
                        consensus[t, c, 5] += code


def region_of(shape: Sequence[int], region: tuple[slice, slice, slice] | None) -> tuple[slice, slice, slice]:
    """A region with its starts and stops, the whole image if none is given."""
    spans = [slice(None)] * 3 if region is None else list(region)
    z, y, x = (slice(*span.indices(n)[:2]) for span, n in zip(spans, shape, strict=True))
    return z, y, x
