"""One pass over the voxels of a predictor: exact integer counts, from which every metric without geometry follows.

Probabilities come as 16-bit codes, so a histogram over codes keeps all that ranks, bins and sums need: nothing is sorted,
and what is held is one slab. Runs of voxels where nobody saw an organ, the predictor none either, are only counted.
Where all annotators agree, which is nearly everywhere, one increment per class serves them all; pairs of annotators are
looked at only where they disagree.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from numba import njit, prange

from curvas_assets.errors import ScoringError
from curvas_assets.parallel import PARALLEL
from curvas_assets.scoring.uncertainty_maps import MapSummary
from curvas_assets.storage.labels import DEPTH, PackedLabels

FULL = 65535
CODES = FULL + 1
CLIP = 1e-7
"""Probabilities below it count as it in the negative log likelihood (DEFINITIONS: nll)."""
GROUP = 4
"""Annotators whose answers share one histogram, one row per combination of answers."""
RUN = 16
"""Voxels of a row that are skipped together if there is nothing in them."""
MOST_VOXELS = 2**32 - 1

Slab = tuple[int, int, npt.NDArray[np.uint16]]


@dataclass(frozen=True)
class Counts:
    """What one pass found; N voxels in the region, C classes (0 is background), R annotators.

    Args:
        voxels: N.
        top: int64 (R, 2, 65536): voxels by annotator, whether the predicted label is the annotator's, and code of the
            largest probability.
        classes: int64 (C, R, 2, 65536): voxels by class, annotator, whether the annotator gave the class, and its code.
        overlap: int64 (1 + R, 1 + R, C): voxels to which both label maps give the class; map 0 is the prediction, r the
            annotator r. On the diagonal, the class's volume.
        votes: int64 (C, 1 + R, 2): voxels by class, how many annotators gave it, and whether it is the prediction.
        consensus_codes: int64 (C, 2): sum of the class's codes where all annotators gave it, and where none did.
        published_dice: float64 (C,): mean over slices of the mean over rows of the one-dimensional Dice, over rows with
            consensus; NaN without any.
        disagreement: float64 (4,): Σ d, Σ d², Σ d·u, Σ u² of the annotators' entropy d and the predictive entropy u.
        entropy: the map of predictive entropy, aggregated.
        labels: the predicted label map of the region.
        boxes: per class the voxels (start, stop along z, y, x) that hold it in any label map, in the region; None without.
    """

    voxels: int
    top: npt.NDArray[np.int64]
    classes: npt.NDArray[np.int64]
    overlap: npt.NDArray[np.int64]
    votes: npt.NDArray[np.int64]
    consensus_codes: npt.NDArray[np.int64]
    published_dice: npt.NDArray[np.float64]
    disagreement: npt.NDArray[np.float64]
    entropy: MapSummary
    labels: PackedLabels
    boxes: list[tuple[slice, slice, slice] | None]

    def code_sum(self, c: int) -> int:
        """Sum of a class's codes over the region."""
        return int(self.classes[c, 0].sum(axis=0) @ np.arange(CODES))


def count(
    slabs: Iterator[Slab], annotations: Any, classes: int, region: tuple[slice, slice, slice], threshold: float
) -> Counts:
    """Count a predictor's slabs against the annotations.

    Args:
        slabs: (z0, z1, foreground codes (C − 1, z1 − z0, Y, X)) from the first slice to the last.
        annotations: uint8 (R, Z, Y, X), sliceable.
        classes: C, background included.
        region: slices along (Z, Y, X) with start and stop; voxels outside do not count.
        threshold: nats, above which a voxel's entropy counts as high.

    Raises:
        ScoringError: the region holds more voxels than are counted exactly.
    """
    zs, ys, xs = region
    shape = (zs.stop - zs.start, ys.stop - ys.start, xs.stop - xs.start)
    if np.prod(shape, dtype=float) > MOST_VOXELS:
        raise ScoringError("scoring", "the patient", f"a region of {shape} voxels", "Score parts of it.")
    annotators, threads = annotations.shape[0], numba.get_num_threads()
    groups, patterns = -(-annotators // GROUP), 2 ** min(annotators, GROUP)
    top = np.zeros((threads, groups, patterns, CODES), np.uint32)
    histograms = np.zeros((threads, classes, groups, patterns, CODES), np.uint32)
    agreed = np.zeros((threads, classes, classes), np.int64)
    overlap = np.zeros((threads, annotators + 1, annotators + 1, classes), np.int64)
    votes = np.zeros((threads, classes, annotators + 1, 2), np.int64)
    codes_where = np.zeros((threads, 2, classes), np.int64)
    empty = np.zeros(threads, np.int64)
    boxes = np.tile(np.array([2**31, -1] * 3, np.int64), (threads, classes, 1))
    sums = np.zeros((shape[0], 4))
    rows = np.zeros((shape[0], classes, 2))
    entropy = MapSummary(shape, classes, threshold)
    packed = _Packer(PackedLabels(1, shape))
    for z0, z1, codes in slabs:
        lo, hi = max(z0, zs.start), min(z1, zs.stop)
        if lo >= hi:
            continue
        part = np.ascontiguousarray(codes[:, lo - z0 : hi - z0])
        drawn = np.ascontiguousarray(annotations[:, lo:hi, ys, xs])
        if drawn.size and drawn.max() >= classes:
            raise ScoringError(
                "scoring",
                "the patient",
                f"label {drawn.max()} in the annotations, between slices {lo} and {hi}",
                f"Labels are 0 to {classes - 1}.",
            )
        labels = np.zeros((hi - lo, *shape[1:]), np.uint8)
        nats = np.zeros(labels.shape, np.int32)
        here = slice(lo - zs.start, hi - zs.start)
        with PARALLEL:
            _count(part, drawn, ys.start, xs.start, here.start, top, histograms, agreed, overlap, votes, codes_where,
                   empty, boxes, sums[here], rows[here], labels, nats, entropy.units, entropy_of(), _votes_entropy(annotators))  # fmt: skip
        entropy.add(nats)
        packed.add(labels)
    packed.finish()
    whole = _Sums(
        top.sum(axis=0, dtype=np.int64),
        histograms.sum(axis=0, dtype=np.int64),
        agreed.sum(axis=0),
        overlap.sum(axis=0),
        votes.sum(axis=0),
        codes_where.sum(axis=0),
        int(empty.sum()),
    )
    return Counts(
        voxels=int(np.prod(shape)),
        top=_by_annotator(whole.top_with_empty(annotators), annotators),
        classes=np.stack([_by_annotator(h, annotators) for h in whole.histograms_with_empty(annotators)]),
        overlap=whole.all_overlap(),
        votes=whole.all_votes(),
        consensus_codes=whole.consensus_codes(),
        published_dice=_mean_over_slices(rows),
        disagreement=np.array([np.sum(column) for column in sums.T]),
        entropy=entropy,
        labels=packed.labels,
        boxes=[_span(boxes[:, c]) for c in range(classes)],
    )


def slabs_of_array(codes: npt.NDArray[np.uint16]) -> Iterator[Slab]:
    """An array of codes as slabs."""
    for z0 in range(0, codes.shape[1], DEPTH):
        z1 = min(z0 + DEPTH, codes.shape[1])
        yield z0, z1, codes[:, z0:z1]


def region_of(shape: Sequence[int], region: tuple[slice, slice, slice] | None) -> tuple[slice, slice, slice]:
    """A region with its starts and stops, the whole image if none is given."""
    spans = [slice(None)] * 3 if region is None else list(region)
    z, y, x = (slice(*span.indices(n)[:2]) for span, n in zip(spans, shape, strict=True))
    return z, y, x


@dataclass
class _Sums:
    """Counts of all threads, where agreeing annotators and empty runs are still kept apart."""

    top: npt.NDArray[np.int64]
    histograms: npt.NDArray[np.int64]
    agreed: npt.NDArray[np.int64]
    overlap: npt.NDArray[np.int64]
    votes: npt.NDArray[np.int64]
    codes_where: npt.NDArray[np.int64]
    empty: int

    def __post_init__(self) -> None:
        self.agreed[0, 0] += self.empty

    def top_with_empty(self, annotators: int) -> npt.NDArray[np.int64]:
        for group, full in enumerate(_full_patterns(annotators)):
            self.top[group, full, FULL] += self.empty
        return self.top

    def histograms_with_empty(self, annotators: int) -> npt.NDArray[np.int64]:
        for group, full in enumerate(_full_patterns(annotators)):
            self.histograms[0, group, full, FULL] += self.empty
            self.histograms[1:, group, 0, 0] += self.empty
        return self.histograms

    def all_overlap(self) -> npt.NDArray[np.int64]:
        """Overlaps, those of voxels where the annotators agree included, symmetric."""
        overlap = self.overlap + np.triu(self.overlap.transpose(2, 0, 1), 1).transpose(2, 1, 0)
        both, predicted, drawn = np.diag(self.agreed), self.agreed.sum(axis=1), self.agreed.sum(axis=0)
        overlap[0, 0] += predicted
        overlap[0, 1:] += both
        overlap[1:, 0] += both
        overlap[1:, 1:] += drawn
        return overlap

    def all_votes(self) -> npt.NDArray[np.int64]:
        votes, both = self.votes.copy(), np.diag(self.agreed)
        predicted, drawn = self.agreed.sum(axis=1), self.agreed.sum(axis=0)
        votes[:, -1, 1] += both
        votes[:, -1, 0] += drawn - both
        votes[:, 0, 1] += predicted - both
        votes[:, 0, 0] += self.agreed.sum() - predicted - drawn + both
        return votes

    def consensus_codes(self) -> npt.NDArray[np.int64]:
        inside, mixed = self.codes_where
        total = self.histograms[:, 0].sum(axis=1) @ np.arange(CODES)
        return np.stack([inside, total - inside - mixed], axis=1)


class _Packer:
    """Collects slabs of any depth into a packed label map, which takes 16 slices at a time."""

    def __init__(self, labels: PackedLabels):
        self.labels = labels
        self._pending: list[npt.NDArray[np.uint8]] = []
        self._z = 0

    def add(self, slab: npt.NDArray[np.uint8]) -> None:
        self._pending.append(slab)
        whole = self._pending[0] if len(self._pending) == 1 else np.concatenate(self._pending)
        full = len(whole) // DEPTH * DEPTH
        for z in range(0, full, DEPTH):
            self._put(whole[z : z + DEPTH])
        self._pending = [whole[full:]] if full < len(whole) else []

    def finish(self) -> None:
        if self._pending:
            self._put(np.concatenate(self._pending))

    def _put(self, slab: npt.NDArray[np.uint8]) -> None:
        self.labels.put(0, self._z, slab)
        self._z += DEPTH


def _full_patterns(annotators: int) -> list[int]:
    """Of each group, the combination in which every annotator says yes."""
    return [2 ** min(GROUP, annotators - first) - 1 for first in range(0, annotators, GROUP)]


def _by_annotator(patterns: npt.NDArray[np.int64], annotators: int) -> npt.NDArray[np.int64]:
    """(group, combination, code) → (annotator, no or yes, code)."""
    combinations = np.arange(patterns.shape[1])
    out = np.empty((annotators, 2, CODES), np.int64)
    for r in range(annotators):
        says = (combinations >> (r % GROUP)) & 1 == 1
        rows = patterns[r // GROUP]
        out[r, 1] = rows[says].sum(axis=0)
        out[r, 0] = rows[~says].sum(axis=0)
    return out


def _mean_over_slices(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Of (slice, class, [sum, number] of rows): mean over slices of the mean over rows."""
    total, number = rows[..., 0], rows[..., 1]
    filled = number > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(filled, total / np.maximum(number, 1), 0).sum(axis=0) / filled.sum(axis=0)


def _span(box: npt.NDArray[np.int64]) -> tuple[slice, slice, slice] | None:
    low, high = box.min(axis=0)[::2], box.max(axis=0)[1::2]
    if high[0] < 0:
        return None
    z, y, x = (slice(int(a), int(b) + 1) for a, b in zip(low, high, strict=True))
    return z, y, x


@cache
def entropy_of() -> npt.NDArray[np.float64]:
    """−p ln p of every code."""
    p = np.arange(CODES) / FULL
    return -p * np.log(np.where(p > 0, p, 1))


@cache
def _votes_entropy(annotators: int) -> npt.NDArray[np.float64]:
    """−q ln q of q = k of R annotators."""
    q = np.arange(annotators + 1) / annotators
    return -q * np.log(np.where(q > 0, q, 1))


@njit(parallel=True, cache=True, nogil=True)
def _count(codes, drawn, y0, x0, z_first, top, histograms, agreed, overlap, votes, codes_where, empty, boxes, sums, rows,
           labels, nats, units, table, votes_entropy):  # fmt: skip
    foreground = codes.shape[0]
    classes = foreground + 1
    annotators, depth, height, width = drawn.shape
    groups = top.shape[1]
    for z in prange(depth):
        t = numba.get_thread_id()  # type: ignore[attr-defined]
        full = np.empty(groups, np.int64)
        for g in range(groups):
            full[g] = 2 ** min(GROUP, annotators - g * GROUP) - 1
        code = np.empty(classes, np.int64)
        given = np.empty(classes, np.int64)
        pattern = np.empty(groups, np.int64)
        row = np.empty((3, classes), np.int64)  # of this row: consensus, true positives, false positives
        low = np.empty(classes, np.int64)
        high = np.empty(classes, np.int64)
        s_d = s_dd = s_du = s_uu = 0.0
        skipped = 0
        for y in range(height):
            row[:] = 0
            low[:] = width
            high[:] = -1
            x = 0
            while x < width:
                stop = min(x + RUN, width)
                anything = np.uint16(0)
                for c in range(foreground):
                    for i in range(x, stop):
                        anything |= codes[c, z, y0 + y, x0 + i]
                for r in range(annotators):
                    for i in range(x, stop):
                        anything |= drawn[r, z, y, i]
                if anything == 0:
                    skipped += stop - x
                    x = stop
                    continue
                for i in range(x, stop):
                    rest = FULL
                    for c in range(foreground):
                        k = np.int64(codes[c, z, y0 + y, x0 + i])
                        code[c + 1] = k
                        rest -= k
                    code[0] = rest
                    best, value = 0, rest
                    u = table[rest]
                    for c in range(1, classes):
                        u += table[code[c]]
                        if code[c] > value:
                            best, value = c, code[c]
                    s_uu += u * u
                    nats[z, y, i] = np.int32(u * units + 0.5)
                    label = np.int64(drawn[0, z, y, i])
                    same = True
                    for r in range(1, annotators):
                        same &= drawn[r, z, y, i] == label
                    if same:
                        for g in range(groups):
                            for c in range(classes):
                                histograms[t, c, g, full[g] if c == label else 0, code[c]] += np.uint32(1)
                            top[t, g, full[g] if best == label else 0, value] += np.uint32(1)
                        agreed[t, best, label] += 1
                        codes_where[t, 0, label] += code[label]
                        if best + label == 0:
                            continue
                        row[0, label] += 1
                        if best == label:
                            row[1, label] += 1
                        else:
                            row[2, best] += 1
                        low[label] = min(low[label], i)
                        high[label] = i
                    else:
                        given[:] = 0
                        pattern[:] = 0
                        for r in range(annotators):
                            own = np.int64(drawn[r, z, y, i])
                            given[own] += 1
                            low[own] = min(low[own], i)
                            high[own] = i
                            if own == best:
                                pattern[r // GROUP] |= 1 << (r % GROUP)
                                overlap[t, 0, r + 1, own] += 1
                            for other in range(r, annotators):
                                if drawn[other, z, y, i] == own:
                                    overlap[t, r + 1, other + 1, own] += 1
                        overlap[t, 0, 0, best] += 1
                        for g in range(groups):
                            top[t, g, pattern[g], value] += np.uint32(1)
                        d = 0.0
                        for c in range(classes):
                            d += votes_entropy[given[c]]
                            votes[t, c, given[c], 1 if best == c else 0] += 1
                            if given[c] > 0:
                                codes_where[t, 1, c] += code[c]
                            elif best == c:
                                row[2, c] += 1
                            pattern[:] = 0
                            for r in range(annotators):
                                if drawn[r, z, y, i] == c:
                                    pattern[r // GROUP] |= 1 << (r % GROUP)
                            for g in range(groups):
                                histograms[t, c, g, pattern[g], code[c]] += np.uint32(1)
                        s_d += d
                        s_dd += d * d
                        s_du += d * u
                    labels[z, y, i] = best
                    low[best] = min(low[best], i)
                    high[best] = i
                x = stop
            for c in range(1, classes):
                if row[0, c] > 0 and y > 0:
                    rows[z, c, 0] += 2 * row[1, c] / (row[0, c] + row[1, c] + row[2, c])
                    rows[z, c, 1] += 1
                if high[c] >= 0:
                    box = boxes[t, c]
                    box[0] = min(box[0], z_first + z)
                    box[1] = max(box[1], z_first + z)
                    box[2] = min(box[2], y)
                    box[3] = max(box[3], y)
                    box[4] = min(box[4], low[c])
                    box[5] = max(box[5], high[c])
        empty[t] += skipped
        sums[z, 0] += s_d
        sums[z, 1] += s_dd
        sums[z, 2] += s_du
        sums[z, 3] += s_uu
