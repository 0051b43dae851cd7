# numba infers the types of its functions:
# pyright: reportMissingParameterType=false
"""One pass over the voxels of a predictor: counts and sums from which every metric without geometry follows.

Probabilities are taken as they are, in float32, and nothing is sorted: confidences lie between 1 / C and 1, where
float32 has so few values that each can be counted. Sums are float64 by slice, added up in the order of the slices, so
that they do not depend on threads. Of runs of voxels in which neither an annotator nor the predictor sees an organ,
only the number of voxels is taken. Where all annotators agree, which is nearly everywhere, one increment per class
serves them all; pairs of annotators are looked at only where they disagree.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt
from numba import njit, prange

from curvas_assets.codes import NOTHING, Codes, Levels, entropy_of_codes, leads
from curvas_assets.entropy import entropy_near_one, entropy_of_small, entropy_term, entropy_terms
from curvas_assets.errors import ScoringError
from curvas_assets.parallel import PARALLEL
from curvas_assets.scoring.published import PublishedCalibration
from curvas_assets.scoring.uncertainty_maps import MapSummary
from curvas_assets.storage.labels import DEPTH, PackedLabels

CLIP = 1e-7
"""Smaller probabilities count as this value in the negative log-likelihood."""
HISTOGRAM_ANNOTATORS = 4
"""Annotators whose answers share one histogram, one row per combination of answers."""
RUN = 16
"""Voxels of a row that are skipped together if there is nothing in them."""
SURE = 0.99
"""A background above this counts as sure; −p ln p and −ln p are computed by series there."""
MOST_VOXELS = 2**32 - 1
NEARLY = 0.95
"""Share of 1 / C, the least possible confidence; lower values come from sums that are not quite 1."""
ONE = int(np.float32(1.0).view(np.int32))

Spans = tuple[slice, slice, slice]
"""Along (Z, Y, X), each with start and stop."""
PredictedSlab = tuple[int, int, npt.NDArray[np.float32], Codes | None]
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
    boxes: list[Spans | None]

    @property
    def soft_voxels(self) -> npt.NDArray[np.float64]:
        """Sum of each class's probability over the region, (C,)."""
        return self.bins[1].sum(axis=1)


def count(
    slabs: Iterator[PredictedSlab],
    annotations: Any,
    classes: int,
    region: Spans,
    threshold: float,
    bins: int,
    levels: Levels | None = None,
) -> Counts:
    """Count a predictor's slabs against the annotations.

    Args:
        slabs: from the first slice to the last.
        annotations: uint8 (R, Z, Y, X), sliceable.
        classes: C, background included.
        region: voxels outside do not count.
        threshold: nats, above which a voxel's entropy counts as high.
        bins: B, of each class's probability.
        levels: the probability of each code, if slabs have codes.

    Raises:
        ScoringError: the region holds more voxels than are counted exactly, or an annotation holds a label that is no class.
    """
    zs, ys, xs = region
    shape = (zs.stop - zs.start, ys.stop - ys.start, xs.stop - xs.start)
    if np.prod(shape, dtype=float) > MOST_VOXELS:
        raise ScoringError("scoring", "the patient", f"a region of {shape} voxels", "Score parts of it.")
    found = _Pass(annotations.shape[0], classes, shape, threshold, bins, levels)
    for z0, z1, softmax, codes in slabs:
        lo, hi = max(z0, zs.start), min(z1, zs.stop)
        if lo >= hi:
            continue
        drawn = np.ascontiguousarray(annotations[:, lo:hi, ys, xs])
        if drawn.size and drawn.max() >= classes:
            raise ScoringError(
                "scoring",
                "the patient",
                f"label {drawn.max()} in the annotations, between slices {lo} and {hi}",
                f"Labels are 0 to {classes - 1}.",
            )
        own = slice(lo - z0, hi - z0)
        part = np.zeros((0, 1, 1, 1), np.uint16) if codes is None else np.ascontiguousarray(codes[:, own])
        found.add(_Slices(np.ascontiguousarray(softmax[:, own]), part, drawn, ys.start, xs.start, lo - zs.start))
    return found.counts()


class _Slices(NamedTuple):
    """What the pass reads of some slices.

    Args:
        p: probabilities float32 (C, dz, Y, X) of the whole image.
        codes: uint16 (C − 1, dz, Y, X), of no class where they are not known.
        drawn: the annotators' label maps uint8 (R, dz, height, width) of the region.
        y0, x0: where the region begins in the image.
        z_first: of the first of these slices, counted from the region's beginning.
    """

    p: npt.NDArray[np.float32]
    codes: Codes
    drawn: npt.NDArray[np.uint8]
    y0: int
    x0: int
    z_first: int


class _Tables(NamedTuple):
    """What the pass looks up: `least`, the bits of the smallest confidence that has a count of its own; −p ln p of each
    code; −q ln q of q = k / R, for k of R annotators; and how many units of the entropy map make a nat.
    """

    least: int
    entropy: npt.NDArray[np.float64]
    votes_entropy: npt.NDArray[np.float64]
    units: float


class _Tallies(NamedTuple):
    """What is counted in whole numbers. The arrays of all threads have the thread as first axis; one thread's lack this
    axis.

    Args:
        every: voxels by confidence, float32's bits from `least` on.
        ranks: voxels by (organ, group of annotators, combination of answers, code).
        binned: voxels by (class, bin).
        hits: voxels by (annotator, class, bin) to which the annotator gave the class; the last row: to which all did.
        agreed: voxels where all annotators agree, by (predicted, annotated class).
        overlap: elsewhere, voxels to which two label maps give a class: upper triangle, the prediction first.
        votes: elsewhere, voxels by (class, how many annotators gave it, whether it is the prediction).
        empty: voxels that were skipped, as one number.
        boxes: by class the least and the largest z, y and x that hold it.
    """

    every: npt.NDArray[np.uint32]
    ranks: npt.NDArray[np.uint32]
    binned: npt.NDArray[np.int64]
    hits: npt.NDArray[np.int64]
    agreed: npt.NDArray[np.int64]
    overlap: npt.NDArray[np.int64]
    votes: npt.NDArray[np.int64]
    empty: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.int64]


class _Sums(NamedTuple):
    """What is summed in float64. The sums of all slices have the slice as first axis; those of one slice, or the total,
    lack it.

    Args:
        mass: sum of probabilities by (class, bin).
        where: of each class, the sum of its probability where all annotators gave it, and where some but not all did.
        proper: by annotator, and in the last row for all at once, the squared distance and −ln of the annotator's class.
        disagreement: Σ d, Σ d², Σ d·u, Σ u².
    """

    mass: npt.NDArray[np.float64]
    where: npt.NDArray[np.float64]
    proper: npt.NDArray[np.float64]
    disagreement: npt.NDArray[np.float64]


class _Maps(NamedTuple):
    """What the pass writes of each voxel (dz, height, width): the confidence, the predicted label, the entropy in units."""

    confidence: npt.NDArray[np.float32]
    labels: npt.NDArray[np.uint8]
    nats: npt.NDArray[np.int32]


class _Pass:
    """One pass over a region's slices, in order.

    Args:
        annotators: R.
        classes: C, background included.
        shape: of the region (Z, Y, X).
        threshold: nats, above which a voxel's entropy counts as high.
        bins: B, of each class's probability.
        levels: the probability of each code, if codes are known.
    """

    def __init__(
        self,
        annotators: int,
        classes: int,
        shape: tuple[int, int, int],
        threshold: float,
        bins: int,
        levels: Levels | None,
    ):
        self._annotators, self._classes, self._shape, self._bins = annotators, classes, shape, bins
        self._has_codes = levels is not None
        self._entropy = MapSummary(shape, classes, threshold)
        self._tables = _Tables(
            int(np.float32(NEARLY / classes).view(np.int32)),
            np.zeros(1) if levels is None else entropy_of_codes(levels),
            _votes_entropy(annotators),
            self._entropy.units,
        )
        self._tallies = self._no_tallies(numba.get_num_threads())
        self._sums = self._no_sums()
        self._rows = np.zeros((shape[0], classes, 2))
        self._wrong: list[list[npt.NDArray[np.int32]]] = [[] for _ in range(annotators)]
        self._packer = _Packer(PackedLabels(1, shape))
        self._published = PublishedCalibration(annotators, bins)

    def add(self, slices: _Slices) -> None:
        """Count the next slices."""
        voxels = slices.drawn.shape[1:]
        maps = _Maps(np.ones(voxels, np.float32), np.zeros(voxels, np.uint8), np.zeros(voxels, np.int32))
        by_slice = self._no_sums(voxels[0])
        rows = self._rows[slices.z_first : slices.z_first + voxels[0]]
        with PARALLEL:
            _count(slices, self._tables, self._tallies, by_slice, rows, maps)
        for total, parts in zip(self._sums, by_slice, strict=True):
            for one in parts:  # in order: sums are the same however many slices a slab has
                total += one
        for r in range(self._annotators):
            self._wrong[r].append(maps.confidence[maps.labels != slices.drawn[r]].view(np.int32))
        self._published.add(maps.confidence, maps.labels, slices.drawn)
        self._entropy.add(maps.nats)
        self._packer.add(maps.labels)

    def counts(self) -> Counts:
        """What was found; nothing can be added after it."""
        self._packer.finish()
        tallies, sums, unseen = self._tallies, self._sums, int(self._tallies.empty.sum())
        agreed, binned, hits = (parts.sum(axis=0) for parts in (tallies.agreed, tallies.binned, tallies.hits))
        # Voxels that were skipped: a background of 1, which all annotators gave.
        agreed[0, 0] += unseen
        binned[0, -1] += unseen
        binned[1:, 0] += unseen
        hits[-1, 0, -1] += unseen
        sums.mass[0, -1] += unseen
        sums.where[0, 0] += unseen
        ranks = None
        if self._has_codes:
            ranks = _ranks(tallies.ranks.sum(axis=0, dtype=np.int64), self._annotators, unseen)
        return Counts(
            voxels=int(np.prod(self._shape)),
            confidences=_confidences(tallies.every, self._wrong, self._tables.least, unseen),
            bins=(binned, sums.mass),
            bin_hits=hits[:-1] + hits[-1],
            ranks=ranks,
            overlap=_all_overlap(tallies.overlap.sum(axis=0), agreed),
            votes=_all_votes(tallies.votes.sum(axis=0), agreed),
            consensus=np.stack([sums.where[0], sums.mass.sum(axis=1) - sums.where.sum(axis=0)], axis=1),
            proper=sums.proper[:-1] + sums.proper[-1],
            published_dice=_mean_over_slices(self._rows),
            published_ece=self._published.errors(),
            disagreement=sums.disagreement,
            entropy=self._entropy,
            labels=self._packer.labels,
            boxes=[_span(tallies.boxes[:, c]) for c in range(self._classes)],
        )

    def _no_tallies(self, threads: int) -> _Tallies:
        annotators, classes, bins = self._annotators, self._classes, self._bins
        groups, answers = -(-annotators // HISTOGRAM_ANNOTATORS), 2 ** min(annotators, HISTOGRAM_ANNOTATORS)
        return _Tallies(
            every=np.zeros((threads, ONE - self._tables.least + 1), np.uint32),
            ranks=np.zeros((threads, classes - 1, groups, answers, self._tables.entropy.size), np.uint32),
            binned=np.zeros((threads, classes, bins), np.int64),
            hits=np.zeros((threads, annotators + 1, classes, bins), np.int64),
            agreed=np.zeros((threads, classes, classes), np.int64),
            overlap=np.zeros((threads, annotators + 1, annotators + 1, classes), np.int64),
            votes=np.zeros((threads, classes, annotators + 1, 2), np.int64),
            empty=np.zeros((threads, 1), np.int64),
            boxes=np.tile(np.array([2**31, -1] * 3, np.int64), (threads, classes, 1)),
        )

    def _no_sums(self, *slices: int) -> _Sums:
        return _Sums(
            mass=np.zeros((*slices, self._classes, self._bins)),
            where=np.zeros((*slices, 2, self._classes)),
            proper=np.zeros((*slices, self._annotators + 1, 2)),
            disagreement=np.zeros((*slices, 4)),
        )


def region_of(shape: Sequence[int], region: Spans | None) -> Spans:
    """A region with its starts and stops, the whole image if none is given."""
    spans = [slice(None)] * 3 if region is None else list(region)
    z, y, x = (slice(*span.indices(n)[:2]) for span, n in zip(spans, shape, strict=True))
    return z, y, x


def by_annotator(patterns: npt.NDArray[np.int64], annotators: int) -> npt.NDArray[np.int64]:
    """(group, combination, …) → (annotator, …): the counts of the combinations in which the annotator says yes."""
    combinations = np.arange(patterns.shape[1])
    return np.stack(
        [
            patterns[r // HISTOGRAM_ANNOTATORS][(combinations >> (r % HISTOGRAM_ANNOTATORS)) & 1 == 1].sum(axis=0)
            for r in range(annotators)
        ]
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
    histograms[:, :, 0, NOTHING] += unseen
    found = []
    for histogram in histograms:
        every = histogram[0].sum(axis=0)
        filled = every > 0
        found.append(Ranks(every[filled], by_annotator(histogram[..., filled], annotators)))
    return found


def _all_overlap(overlap: npt.NDArray[np.int64], agreed: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Symmetric overlaps, including those of voxels where the annotators agree."""
    overlap = overlap + np.triu(overlap.transpose(2, 0, 1), 1).transpose(2, 1, 0)
    both, predicted, drawn = np.diag(agreed), agreed.sum(axis=1), agreed.sum(axis=0)
    overlap[0, 0] += predicted
    overlap[0, 1:] += both
    overlap[1:, 0] += both
    overlap[1:, 1:] += drawn
    return overlap


def _all_votes(votes: npt.NDArray[np.int64], agreed: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Votes, including those of voxels where the annotators agree."""
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


def _span(box: npt.NDArray[np.int64]) -> Spans | None:
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
    """The bits of a float32, which increase with its value."""
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
    """Whether a run is background for all, with probabilities only in the outermost bins, so that sums suffice."""
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


class _Scratch(NamedTuple):
    """Working arrays for the voxels of a slice.

    Args:
        p: probability of each class at a voxel.
        bins: its bin.
        given: how many annotators gave the class.
        answers: by group of annotators, the combination of their answers about one organ.
        all_yes: by group, the combination in which all say yes.
        u, squares: of a run: entropy of each voxel, and its sum of p² over the organs.
        row: of a row, by class: voxels of the consensus, true positives and false positives.
        low, high: of a row, by class: the least and the largest x that hold it.
    """

    p: npt.NDArray[np.float64]
    bins: npt.NDArray[np.int64]
    given: npt.NDArray[np.int64]
    answers: npt.NDArray[np.int64]
    all_yes: npt.NDArray[np.int64]
    u: npt.NDArray[np.float64]
    squares: npt.NDArray[np.float64]
    row: npt.NDArray[np.int64]
    low: npt.NDArray[np.int64]
    high: npt.NDArray[np.int64]


@njit(cache=True, nogil=True)
def _scratch(classes, annotators, groups):
    all_yes = np.empty(groups, np.int64)
    for g in range(groups):
        all_yes[g] = 2 ** min(HISTOGRAM_ANNOTATORS, annotators - g * HISTOGRAM_ANNOTATORS) - 1
    return _Scratch(
        np.empty(classes),
        np.empty(classes, np.int64),
        np.empty(classes, np.int64),
        np.empty(groups, np.int64),
        all_yes,
        np.empty(RUN),
        np.empty(RUN),
        np.empty((3, classes), np.int64),
        np.empty(classes, np.int64),
        np.empty(classes, np.int64),
    )


@njit(parallel=True, cache=True, nogil=True)
def _count(slices, tables, tallies, sums, rows, maps):
    """Count some slices, each in a thread of its own.

    `tallies` are those of all threads, `sums` those of each slice; `rows` (slice, class, 2) are, over the rows of the slice
    with consensus, the sum of the one-dimensional Dice and the number of rows.
    """
    for z in prange(slices.drawn.shape[1]):
        t = numba.get_thread_id()  # type: ignore[attr-defined]
        own = _Tallies(
            tallies.every[t],
            tallies.ranks[t],
            tallies.binned[t],
            tallies.hits[t],
            tallies.agreed[t],
            tallies.overlap[t],
            tallies.votes[t],
            tallies.empty[t],
            tallies.boxes[t],
        )
        of_slice = _Sums(sums.mass[z], sums.where[z], sums.proper[z], sums.disagreement[z])
        scratch = _scratch(slices.p.shape[0], slices.drawn.shape[0], tallies.ranks.shape[2])
        # numba compiles this body with an unsigned z for its threads, and once more with a signed one; one type serves both.
        _count_slice(np.int64(z), slices, tables, own, of_slice, rows[z], maps, scratch)


# Without numba's runtime: nothing here makes or keeps an array, but references to two dozen arrays would be counted up and
# down for every voxel, which takes a quarter of the time.
@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)  # type: ignore[call-overload] - its stub lacks _nrt
def _count_slice(z, slices, tables, tallies, sums, rows, maps, scratch):
    """Count one slice, row by row, in runs of voxels: skipped, sure to be background, or looked at one by one."""
    height, width = slices.drawn.shape[2:]
    bins = tallies.binned.shape[1]
    skipped = 0
    for y in range(height):
        scratch.row[:] = 0
        scratch.low[:] = width
        scratch.high[:] = -1
        for x in range(0, width, RUN):
            stop = min(x + RUN, width)
            if nothing_in(slices.p, slices.drawn, z, y, x, stop, slices.y0, slices.x0):
                skipped += stop - x
            elif _surely_background(slices.p, slices.drawn, z, y, x, stop, slices.y0, slices.x0, bins):
                _count_background(z, y, x, stop, slices, tables, tallies, sums, maps, scratch)
            else:
                for i in range(x, stop):
                    _count_voxel(z, y, i, slices, tables, tallies, sums, maps, scratch)
        _close_row(slices.z_first + z, y, scratch, rows, tallies.boxes)
    tallies.empty[0] += skipped


@njit(cache=True, nogil=True, inline="always")
def _count_background(z, y, x, stop, slices, tables, tallies, sums, maps, scratch):
    """Count a run of voxels that are background for all, class by class, so that the loops run in vectors."""
    classes, annotators, bins = slices.p.shape[0], slices.drawn.shape[0], tallies.binned.shape[1]
    begin, end, n = slices.x0 + x, slices.x0 + stop, stop - x
    u, run_squares = scratch.u, scratch.squares
    u[:n] = 0.0
    run_squares[:n] = 0.0
    for c in range(1, classes):
        values, total = slices.p[c, z, slices.y0 + y, begin:end], 0.0
        for i in range(n):
            own = np.float64(max(values[i], np.float32(0.0)))
            total += own
            run_squares[i] += own * own
        tallies.binned[c, 0] += n
        sums.mass[c, 0] += total
        if slices.codes.shape[0] > 0:
            codes = slices.codes[c - 1, z, slices.y0 + y, begin:end]
            for i in range(n):
                u[i] += tables.entropy[codes[i]]
            for g in range(tallies.ranks.shape[1]):
                ranks = tallies.ranks[c - 1, g, 0]
                for i in range(n):
                    ranks[codes[i]] += np.uint32(1)
        else:
            for i in range(n):
                u[i] += entropy_of_small(np.float64(max(values[i], np.float32(0.0))))
    values = slices.p[0, z, slices.y0 + y, begin:end]
    total = squares = losses = 0.0
    squared_entropy = sums.disagreement[3]  # added voxel by voxel, as when voxels are counted one by one
    for i in range(n):
        own = np.float64(min(values[i], np.float32(1.0)))
        total += own
        squares += run_squares[i] + (own - 1.0) * (own - 1.0)
        losses += _loss(own)
        u[i] += entropy_near_one(own)
        squared_entropy += u[i] * u[i]
        maps.nats[z, y, x + i] = np.int32(u[i] * tables.units + 0.5)
        maps.confidence[z, y, x + i] = own
    for i in range(n):
        tallies.every[max(_bits(min(values[i], np.float32(1.0))) - tables.least, 0)] += np.uint32(1)
    sums.disagreement[3] = squared_entropy
    tallies.binned[0, bins - 1] += n
    sums.mass[0, bins - 1] += total
    tallies.hits[annotators, 0, bins - 1] += n
    sums.proper[annotators, 0] += squares
    sums.proper[annotators, 1] += losses
    sums.where[0, 0] += total
    tallies.agreed[0, 0] += n


@njit(cache=True, nogil=True, inline="always")
def _count_voxel(z, y, i, slices, tables, tallies, sums, maps, scratch):
    """Count one voxel of whatever kind."""
    best, u, square = _count_prediction(z, y, i, slices, tables, tallies, sums, maps, scratch)
    label = np.int64(slices.drawn[0, z, y, i])
    same = True
    for r in range(1, slices.drawn.shape[0]):
        same &= slices.drawn[r, z, y, i] == label
    if same:
        _count_agreement(z, y, i, label, best, square, slices, tallies, sums, scratch)
    else:
        _count_disagreement(z, y, i, best, u, square, slices, tables, tallies, sums, scratch)
    if best + label > 0 or not same:
        maps.labels[z, y, i] = best
        scratch.low[best] = min(scratch.low[best], i)
        scratch.high[best] = i


@njit(cache=True, nogil=True, inline="always")
def _count_prediction(z, y, i, slices, tables, tallies, sums, maps, scratch):
    """What a voxel has without annotators: its predicted class, its predictive entropy in nats, and Σ p²."""
    bins = tallies.binned.shape[1]
    best, most = 0, np.float32(-1.0)
    u = square = 0.0
    for c in range(slices.p.shape[0]):
        own = min(max(slices.p[c, z, slices.y0 + y, slices.x0 + i], np.float32(0.0)), np.float32(1.0))
        p = np.float64(own)
        scratch.p[c] = p
        square += p * p
        if leads(own, most):
            best, most = c, own
        b = min(np.int64(p * bins), bins - 1)
        scratch.bins[c] = b
        tallies.binned[c, b] += 1
        sums.mass[c, b] += p
        if slices.codes.shape[0] > 0 and c > 0:
            u += tables.entropy[slices.codes[c - 1, z, slices.y0 + y, slices.x0 + i]]
        else:
            u += entropy_term(p)
    sums.disagreement[3] += u * u
    tallies.every[max(_bits(most) - tables.least, 0)] += np.uint32(1)
    maps.nats[z, y, i] = np.int32(u * tables.units + 0.5)
    maps.confidence[z, y, i] = most
    return best, u, square


@njit(cache=True, nogil=True, inline="always")
def _count_agreement(z, y, i, label, best, square, slices, tallies, sums, scratch):
    """Count a voxel to which all annotators give one label: once for all of them."""
    annotators = slices.drawn.shape[0]
    p, row = scratch.p[label], scratch.row
    tallies.hits[annotators, label, scratch.bins[label]] += 1
    sums.proper[annotators, 0] += square - 2 * p + 1.0
    sums.proper[annotators, 1] += _loss(p)
    sums.where[0, label] += p
    for c in range(1, slices.codes.shape[0] + 1):
        code = slices.codes[c - 1, z, slices.y0 + y, slices.x0 + i]
        for g in range(scratch.all_yes.size):
            tallies.ranks[c - 1, g, scratch.all_yes[g] if c == label else 0, code] += np.uint32(1)
    tallies.agreed[best, label] += 1
    if best + label > 0:
        row[0, label] += 1
        if best == label:
            row[1, label] += 1
        else:
            row[2, best] += 1
        scratch.low[label] = min(scratch.low[label], i)
        scratch.high[label] = i


@njit(cache=True, nogil=True, inline="always")
def _count_disagreement(z, y, i, best, u, square, slices, tables, tallies, sums, scratch):
    """Count a voxel to which annotators give different labels: annotator by annotator, pair by pair."""
    annotators, given = slices.drawn.shape[0], scratch.given
    given[:] = 0
    for r in range(annotators):
        label = np.int64(slices.drawn[r, z, y, i])
        given[label] += 1
        scratch.low[label] = min(scratch.low[label], i)
        scratch.high[label] = i
        tallies.hits[r, label, scratch.bins[label]] += 1
        sums.proper[r, 0] += square - 2 * scratch.p[label] + 1.0
        sums.proper[r, 1] += _loss(scratch.p[label])
        if label == best:
            tallies.overlap[0, r + 1, label] += 1
        for other in range(r, annotators):
            if slices.drawn[other, z, y, i] == label:
                tallies.overlap[r + 1, other + 1, label] += 1
    tallies.overlap[0, 0, best] += 1
    d = 0.0
    for c in range(given.size):
        d += tables.votes_entropy[given[c]]
        tallies.votes[c, given[c], 1 if best == c else 0] += 1
        if given[c] > 0:
            sums.where[1, c] += scratch.p[c]
        elif best == c:
            scratch.row[2, c] += 1
    for c in range(1, slices.codes.shape[0] + 1):
        _count_answers(z, y, i, c, slices, tallies.ranks[c - 1], scratch.answers)
    sums.disagreement[0] += d
    sums.disagreement[1] += d * d
    sums.disagreement[2] += d * u


@njit(cache=True, nogil=True, inline="always")
def _count_answers(z, y, i, c, slices, ranks, answers):
    """Count a voxel's code of class c in the histogram (group, combination, code) of each group's answers about that class."""
    answers[:] = 0
    for r in range(slices.drawn.shape[0]):
        if slices.drawn[r, z, y, i] == c:
            answers[r // HISTOGRAM_ANNOTATORS] |= 1 << (r % HISTOGRAM_ANNOTATORS)
    for g in range(answers.size):
        ranks[g, answers[g], slices.codes[c - 1, z, slices.y0 + y, slices.x0 + i]] += np.uint32(1)


@njit(cache=True, nogil=True, inline="always")
def _close_row(z, y, scratch, rows, boxes):
    """Add a row's one-dimensional Dice to its slice's (the challenge leaves out row 0), and widen the boxes of its classes."""
    row = scratch.row
    for c in range(1, scratch.low.size):
        if row[0, c] > 0 and y > 0:
            rows[c, 0] += 2 * row[1, c] / (row[0, c] + row[1, c] + row[2, c])
            rows[c, 1] += 1
        if scratch.high[c] >= 0:
            box = boxes[c]
            box[0] = min(box[0], z)
            box[1] = max(box[1], z)
            box[2] = min(box[2], y)
            box[3] = max(box[3], y)
            box[4] = min(box[4], scratch.low[c])
            box[5] = max(box[5], scratch.high[c])
