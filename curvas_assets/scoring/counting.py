"""One pass over the voxels of a predictor: counts and sums from which every metric without geometry follows.

Probabilities are taken as they are, in float32, and nothing is sorted: confidences lie between 1 / C and 1, where float32
has few enough values to count each. Sums are float64 by slice, added up in the order of the slices, so that they do not
depend on threads. Runs of voxels where nobody saw an organ, the predictor none either, are only counted. Where all
annotators agree, which is nearly everywhere, one increment per class serves them all; pairs of annotators are looked at
only where they disagree.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from numba import njit, prange

from curvas_assets.entropy import entropy_near_one, entropy_of_small, entropy_term, entropy_terms
from curvas_assets.errors import ScoringError
from curvas_assets.parallel import PARALLEL
from curvas_assets.scoring.published import PublishedCalibration
from curvas_assets.scoring.uncertainty_maps import MapSummary
from curvas_assets.storage.labels import DEPTH, PackedLabels

CLIP = 1e-7
"""Probabilities below it count as it in the negative log likelihood."""
GROUP = 4
"""Annotators whose answers share one histogram, one row per combination of answers."""
RUN = 16
"""Voxels of a row that are skipped together if there is nothing in them."""
SURE = 0.99
"""A background above it is sure; −p ln p and −ln p are series there."""
MOST_VOXELS = 2**32 - 1
NEARLY = 0.95
"""Of 1 / C, the least that a confidence can be: what lies below are sums that are not quite 1."""
ONE = int(np.float32(1.0).view(np.int32))

Slab = tuple[int, int, npt.NDArray[np.float32], npt.NDArray[np.uint16] | None]
"""z0, z1, probabilities (C, z1 − z0, Y, X), and the foreground's codes if the softmax is a stored one."""


@dataclass(frozen=True)
class Confidences:
    """How many voxels have each confidence, and how many of them are wrong.

    Args:
        values: float64 (D,), the distinct confidences, ascending.
        voxels: int64 (D,).
        wrong: int64 (R, D), voxels whose predicted label is not the annotator's.
    """

    values: npt.NDArray[np.float64]
    voxels: npt.NDArray[np.int64]
    wrong: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Ranks:
    """How many voxels have each rank of one organ's probability, and to how many of them an annotator gave the organ.

    Args:
        voxels: int64 (L,), ascending in probability.
        positives: int64 (R, L).
    """

    voxels: npt.NDArray[np.int64]
    positives: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Counts:
    """What one pass found; N voxels in the region, C classes (0 is background), R annotators.

    Args:
        voxels: N.
        confidences: of the predicted label.
        bins: of each class's probability: voxels int64 (C, B) and sum of probabilities float64 (C, B).
        bin_hits: int64 (R, C, B), voxels of a bin to which the annotator gave the class.
        ranks: of each organ; None where the codes were not known.
        overlap: int64 (1 + R, 1 + R, C): voxels to which both label maps give the class; map 0 is the prediction, r the
            annotator r. On the diagonal, the class's volume.
        votes: int64 (C, 1 + R, 2): voxels by class, how many annotators gave it, and whether it is the prediction.
        consensus: float64 (C, 2): sum of the class's probability where all annotators gave it, and where none did.
        proper: float64 (R, 2): sums over voxels of the squared distance and of −ln of the annotator's class.
        published_dice: float64 (C,): mean over slices of the mean over rows of the one-dimensional Dice, over rows with
            consensus; NaN without any.
        published_ece: float64 (R,): the calibration error as the challenge's code adds it up.
        disagreement: float64 (4,): Σ d, Σ d², Σ d·u, Σ u² of the annotators' entropy d and the predictive entropy u.
        entropy: the map of predictive entropy, aggregated.
        labels: the predicted label map of the region.
        boxes: per class the voxels (start, stop along z, y, x) that hold it in any label map, in the region; None without.
    """

    voxels: int
    confidences: Confidences
    bins: tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]
    bin_hits: npt.NDArray[np.int64]
    ranks: list[Ranks] | None
    overlap: npt.NDArray[np.int64]
    votes: npt.NDArray[np.int64]
    consensus: npt.NDArray[np.float64]
    proper: npt.NDArray[np.float64]
    published_dice: npt.NDArray[np.float64]
    published_ece: npt.NDArray[np.float64]
    disagreement: npt.NDArray[np.float64]
    entropy: MapSummary
    labels: PackedLabels
    boxes: list[tuple[slice, slice, slice] | None]

    @property
    def soft_voxels(self) -> npt.NDArray[np.float64]:
        """Sum of each class's probability over the region, (C,)."""
        return self.bins[1].sum(axis=1)


def count(
    slabs: Iterator[Slab],
    annotations: Any,
    classes: int,
    region: tuple[slice, slice, slice],
    threshold: float,
    bins: int,
    levels: npt.NDArray[np.float64] | None = None,
) -> Counts:
    """Count a predictor's slabs against the annotations.

    Args:
        slabs: from the first slice to the last.
        annotations: uint8 (R, Z, Y, X), sliceable.
        classes: C, background included.
        region: slices along (Z, Y, X) with start and stop; voxels outside do not count.
        threshold: nats, above which a voxel's entropy counts as high.
        bins: B, of each class's probability.
        levels: the probability of each code, if slabs have codes.

    Raises:
        ScoringError: the region holds more voxels than are counted exactly.
    """
    zs, ys, xs = region
    shape = (zs.stop - zs.start, ys.stop - ys.start, xs.stop - xs.start)
    if np.prod(shape, dtype=float) > MOST_VOXELS:
        raise ScoringError("scoring", "the patient", f"a region of {shape} voxels", "Score parts of it.")
    annotators, threads = annotations.shape[0], numba.get_num_threads()
    groups, patterns = -(-annotators // GROUP), 2 ** min(annotators, GROUP)
    table = np.zeros(1) if levels is None else entropy_terms(levels)
    least = int(np.float32(NEARLY / classes).view(np.int32))
    every = np.zeros((threads, ONE - least + 1), np.uint32)
    ranks = np.zeros((threads, classes - 1, groups, patterns, table.size), np.uint32)
    binned = np.zeros((threads, classes, bins), np.int64)
    hits = np.zeros((threads, annotators + 1, classes, bins), np.int64)  # the last row: all annotators agree
    agreed = np.zeros((threads, classes, classes), np.int64)
    overlap = np.zeros((threads, annotators + 1, annotators + 1, classes), np.int64)
    votes = np.zeros((threads, classes, annotators + 1, 2), np.int64)
    empty = np.zeros(threads, np.int64)
    boxes = np.tile(np.array([2**31, -1] * 3, np.int64), (threads, classes, 1))
    mass = np.zeros((classes, bins))
    where = np.zeros((2, classes))  # probability where all gave the class, where some did
    proper = np.zeros((annotators + 1, 2))
    disagreement = np.zeros(4)
    rows = np.zeros((shape[0], classes, 2))
    wrong: list[list[npt.NDArray[np.int32]]] = [[] for _ in range(annotators)]
    entropy = MapSummary(shape, classes, threshold)
    packed = _Packer(PackedLabels(1, shape))
    published = PublishedCalibration(annotators, bins)
    for z0, z1, softmax, codes in slabs:
        lo, hi = max(z0, zs.start), min(z1, zs.stop)
        if lo >= hi:
            continue
        part = np.ascontiguousarray(softmax[:, lo - z0 : hi - z0])
        coded = (
            np.zeros((0, 1, 1, 1), np.uint16) if codes is None else np.ascontiguousarray(codes[:, lo - z0 : hi - z0])
        )
        drawn = np.ascontiguousarray(annotations[:, lo:hi, ys, xs])
        if drawn.size and drawn.max() >= classes:
            raise ScoringError(
                "scoring",
                "the patient",
                f"label {drawn.max()} in the annotations, between slices {lo} and {hi}",
                f"Labels are 0 to {classes - 1}.",
            )
        labels = np.zeros((hi - lo, *shape[1:]), np.uint8)
        confidence = np.ones(labels.shape, np.float32)
        nats = np.zeros(labels.shape, np.int32)
        by_slice = (
            np.zeros((hi - lo, classes, bins)),
            np.zeros((hi - lo, 2, classes)),
            np.zeros((hi - lo, annotators + 1, 2)),
            np.zeros((hi - lo, 4)),
        )
        first = lo - zs.start
        with PARALLEL:
            _count(part, coded, drawn, ys.start, xs.start, first, least, table, _votes_entropy(annotators), entropy.units,
                   every, ranks, binned, hits, agreed, overlap, votes, empty, boxes, *by_slice,
                   rows[first : first + hi - lo], confidence, labels, nats)  # fmt: skip
        for total, parts in zip((mass, where, proper, disagreement), by_slice, strict=True):
            for one in parts:  # in order: sums are the same however many slices a slab has
                total += one
        for r in range(annotators):
            wrong[r].append(confidence[labels != drawn[r]].view(np.int32))
        published.add(confidence, labels, drawn)
        entropy.add(nats)
        packed.add(labels)
    packed.finish()
    unseen = int(empty.sum())
    agreements = agreed.sum(axis=0)
    agreements[0, 0] += unseen
    in_bins = binned.sum(axis=0)
    in_bins[0, -1] += unseen
    in_bins[1:, 0] += unseen
    mass[0, -1] += unseen
    bin_hits = hits.sum(axis=0)
    bin_hits[-1, 0, -1] += unseen
    where[0, 0] += unseen
    return Counts(
        voxels=int(np.prod(shape)),
        confidences=_confidences(every, wrong, least, unseen),
        bins=(in_bins, mass),
        bin_hits=bin_hits[:-1] + bin_hits[-1],
        ranks=None if levels is None else _ranks(ranks.sum(axis=0, dtype=np.int64), annotators, unseen),
        overlap=_all_overlap(overlap.sum(axis=0), agreements),
        votes=_all_votes(votes.sum(axis=0), agreements),
        consensus=np.stack([where[0], mass.sum(axis=1) - where.sum(axis=0)], axis=1),
        proper=proper[:-1] + proper[-1],
        published_dice=_mean_over_slices(rows),
        published_ece=published.errors(),
        disagreement=disagreement,
        entropy=entropy,
        labels=packed.labels,
        boxes=[_span(boxes[:, c]) for c in range(classes)],
    )


def region_of(shape: Sequence[int], region: tuple[slice, slice, slice] | None) -> tuple[slice, slice, slice]:
    """A region with its starts and stops, the whole image if none is given."""
    spans = [slice(None)] * 3 if region is None else list(region)
    z, y, x = (slice(*span.indices(n)[:2]) for span, n in zip(spans, shape, strict=True))
    return z, y, x


def by_annotator(patterns: npt.NDArray[np.int64], annotators: int) -> npt.NDArray[np.int64]:
    """(group, combination, …) → (annotator, …): what is counted for a combination in which the annotator says yes."""
    combinations = np.arange(patterns.shape[1])
    return np.stack(
        [patterns[r // GROUP][(combinations >> (r % GROUP)) & 1 == 1].sum(axis=0) for r in range(annotators)]
    )


def _confidences(
    every: npt.NDArray[np.uint32], wrong: list[list[npt.NDArray[np.int32]]], least: int, unseen: int
) -> Confidences:
    for own in every[1:]:
        every[0] += own  # no more voxels than uint32 holds
    voxels = every[0]
    voxels[-1] += np.uint32(unseen)
    found = np.flatnonzero(voxels)
    errors = np.zeros((len(wrong), found.size), np.int64)
    for row, parts in zip(errors, wrong, strict=True):
        bits, times = np.unique(np.concatenate(parts) if parts else np.zeros(0, np.int32), return_counts=True)
        np.add.at(row, np.searchsorted(found, np.maximum(bits - least, 0)), times)
    values = (found + least).astype(np.int32).view(np.float32).astype(np.float64)
    return Confidences(values, voxels[found].astype(np.int64), errors)


def _ranks(histograms: npt.NDArray[np.int64], annotators: int, unseen: int) -> list[Ranks]:
    """Per organ, from its histograms (group, combination, code)."""
    histograms[:, :, 0, 0] += unseen
    found = []
    for histogram in histograms:
        every = histogram[0].sum(axis=0)
        filled = every > 0
        found.append(Ranks(every[filled], by_annotator(histogram[..., filled], annotators)))
    return found


def _all_overlap(overlap: npt.NDArray[np.int64], agreed: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Overlaps, those of voxels where the annotators agree included, symmetric."""
    overlap = overlap + np.triu(overlap.transpose(2, 0, 1), 1).transpose(2, 1, 0)
    both, predicted, drawn = np.diag(agreed), agreed.sum(axis=1), agreed.sum(axis=0)
    overlap[0, 0] += predicted
    overlap[0, 1:] += both
    overlap[1:, 0] += both
    overlap[1:, 1:] += drawn
    return overlap


def _all_votes(votes: npt.NDArray[np.int64], agreed: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Votes, those of voxels where the annotators agree included."""
    both, predicted, drawn = np.diag(agreed), agreed.sum(axis=1), agreed.sum(axis=0)
    votes[:, -1, 1] += both
    votes[:, -1, 0] += drawn - both
    votes[:, 0, 1] += predicted - both
    votes[:, 0, 0] += agreed.sum() - predicted - drawn + both
    return votes


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
def _votes_entropy(annotators: int) -> npt.NDArray[np.float64]:
    """−q ln q of q = k of R annotators."""
    return entropy_terms(np.arange(annotators + 1) / annotators)


@njit(cache=True, nogil=True)
def _bits(value):
    """A float32's bits, which grow with it."""
    return np.float32(value).view(np.int32)


@njit(cache=True, nogil=True, inline="always")
def _loss(p):
    """−ln p, clipped; near 1 by its series in 1 − p."""
    if p >= 0.99:
        s = 1.0 - p
        return s * (1.0 + s * (1 / 2 + s * (1 / 3 + s * (1 / 4 + s * (1 / 5 + s / 6)))))
    return -np.log(max(p, CLIP))


@njit(cache=True, nogil=True, inline="always")
def nothing_in(p, drawn, z, y, x, stop, y0, x0):
    """Whether a run of voxels is certainly background, for the prediction and for every annotator."""
    for i in range(x, stop):
        if p[0, z, y0 + y, x0 + i] != np.float32(1.0):
            return False
    something = False
    for c in range(1, p.shape[0]):
        for i in range(x, stop):
            something |= p[c, z, y0 + y, x0 + i] > np.float32(0.0)
    for r in range(drawn.shape[0]):
        for i in range(x, stop):
            something |= drawn[r, z, y, i] != 0
    return not something


@njit(cache=True, nogil=True, inline="always")
def _surely_background(p, drawn, z, y, x, stop, y0, x0, bins):
    """Whether a run of voxels is background for all, with probabilities in the outermost bins, so that sums over it do."""
    last = np.float32(max(1.0 - 1.0 / bins, SURE))
    first = np.float32(1.0 / bins)
    unsure = False
    background = p[0, z, y0 + y]
    for i in range(x, stop):
        unsure |= not background[x0 + i] > last
    for c in range(1, p.shape[0]):
        values = p[c, z, y0 + y]
        for i in range(x, stop):
            unsure |= not values[x0 + i] < first
    for r in range(drawn.shape[0]):
        values = drawn[r, z, y]
        for i in range(x, stop):
            unsure |= values[i] != 0
    return not unsure


@njit(parallel=True, cache=True, nogil=True)
def _count(p, codes, drawn, y0, x0, z_first, least, table, votes_entropy, units, every, ranks, binned, hits, agreed,
           overlap, votes, empty, boxes, mass, where, proper, sums, rows, confidence, labels, nats):  # fmt: skip
    classes = p.shape[0]
    annotators, depth, height, width = drawn.shape
    coded = codes.shape[0] > 0
    groups, bins = ranks.shape[2], binned.shape[2]
    for z in prange(depth):
        t = numba.get_thread_id()  # type: ignore[attr-defined]
        full = np.empty(groups, np.int64)
        for g in range(groups):
            full[g] = 2 ** min(GROUP, annotators - g * GROUP) - 1
        v = np.empty(classes)
        b = np.empty(classes, np.int64)
        given = np.empty(classes, np.int64)
        pattern = np.empty(groups, np.int64)
        run_u, run_square = np.empty(RUN), np.empty(RUN)
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
                if nothing_in(p, drawn, z, y, x, stop, y0, x0):
                    skipped += stop - x
                    x = stop
                    continue
                if _surely_background(p, drawn, z, y, x, stop, y0, x0, bins):
                    n = stop - x
                    run_u[:n] = 0.0
                    run_square[:n] = 0.0
                    for c in range(1, classes):
                        values, total = p[c, z, y0 + y, x0 + x : x0 + stop], 0.0
                        for i in range(n):
                            own = np.float64(max(values[i], np.float32(0.0)))
                            total += own
                            run_square[i] += own * own
                        binned[t, c, 0] += n
                        mass[z, c, 0] += total
                        if coded:
                            own_codes = codes[c - 1, z, y0 + y, x0 + x : x0 + stop]
                            for i in range(n):
                                run_u[i] += table[own_codes[i]]
                            for g in range(groups):
                                own_ranks = ranks[t, c - 1, g, 0]
                                for i in range(n):
                                    own_ranks[own_codes[i]] += np.uint32(1)
                        else:
                            for i in range(n):
                                run_u[i] += entropy_of_small(np.float64(max(values[i], np.float32(0.0))))
                    values = p[0, z, y0 + y, x0 + x : x0 + stop]
                    total = squares = losses = 0.0
                    for i in range(n):
                        own = np.float64(min(values[i], np.float32(1.0)))
                        total += own
                        squares += run_square[i] + (own - 1.0) * (own - 1.0)
                        losses += _loss(own)
                        run_u[i] += entropy_near_one(own)
                        s_uu += run_u[i] * run_u[i]
                        nats[z, y, x + i] = np.int32(run_u[i] * units + 0.5)
                        confidence[z, y, x + i] = own
                    for i in range(n):
                        every[t, max(_bits(min(values[i], np.float32(1.0))) - least, 0)] += np.uint32(1)
                    binned[t, 0, bins - 1] += n
                    mass[z, 0, bins - 1] += total
                    hits[t, annotators, 0, bins - 1] += n
                    proper[z, annotators, 0] += squares
                    proper[z, annotators, 1] += losses
                    where[z, 0, 0] += total
                    agreed[t, 0, 0] += n
                    low[0] = min(low[0], x)
                    high[0] = stop - 1
                    x = stop
                    continue
                for i in range(x, stop):
                    best, value = 0, np.float32(-1.0)
                    u = square = 0.0
                    for c in range(classes):
                        own = min(max(p[c, z, y0 + y, x0 + i], np.float32(0.0)), np.float32(1.0))
                        v[c] = own
                        square += v[c] * v[c]
                        if own > value:
                            best, value = c, own
                        b[c] = min(np.int64(v[c] * bins), bins - 1)
                        binned[t, c, b[c]] += 1
                        mass[z, c, b[c]] += v[c]
                        if coded and c > 0:
                            u += table[codes[c - 1, z, y0 + y, x0 + i]]
                        else:
                            u += entropy_term(v[c])
                    s_uu += u * u
                    nats[z, y, i] = np.int32(u * units + 0.5)
                    every[t, max(_bits(value) - least, 0)] += np.uint32(1)
                    confidence[z, y, i] = value
                    label = np.int64(drawn[0, z, y, i])
                    same = True
                    for r in range(1, annotators):
                        same &= drawn[r, z, y, i] == label
                    if same:
                        hits[t, annotators, label, b[label]] += 1
                        proper[z, annotators, 0] += square - 2 * v[label] + 1.0
                        proper[z, annotators, 1] += _loss(v[label])
                        where[z, 0, label] += v[label]
                        if coded:
                            for c in range(1, classes):
                                code = codes[c - 1, z, y0 + y, x0 + i]
                                for g in range(groups):
                                    ranks[t, c - 1, g, full[g] if c == label else 0, code] += np.uint32(1)
                        agreed[t, best, label] += 1
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
                        for r in range(annotators):
                            own_label = np.int64(drawn[r, z, y, i])
                            given[own_label] += 1
                            low[own_label] = min(low[own_label], i)
                            high[own_label] = i
                            hits[t, r, own_label, b[own_label]] += 1
                            proper[z, r, 0] += square - 2 * v[own_label] + 1.0
                            proper[z, r, 1] += _loss(v[own_label])
                            if own_label == best:
                                overlap[t, 0, r + 1, own_label] += 1
                            for other in range(r, annotators):
                                if drawn[other, z, y, i] == own_label:
                                    overlap[t, r + 1, other + 1, own_label] += 1
                        overlap[t, 0, 0, best] += 1
                        d = 0.0
                        for c in range(classes):
                            d += votes_entropy[given[c]]
                            votes[t, c, given[c], 1 if best == c else 0] += 1
                            if given[c] > 0:
                                where[z, 1, c] += v[c]
                            elif best == c:
                                row[2, c] += 1
                            if coded and c > 0:
                                pattern[:] = 0
                                for r in range(annotators):
                                    if drawn[r, z, y, i] == c:
                                        pattern[r // GROUP] |= 1 << (r % GROUP)
                                for g in range(groups):
                                    ranks[t, c - 1, g, pattern[g], codes[c - 1, z, y0 + y, x0 + i]] += np.uint32(1)
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
