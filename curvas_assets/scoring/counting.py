# numba infers the types of its functions:
# pyright: reportMissingParameterType=false
"""One pass over the voxels of a predictor: counts and sums from which every metric without geometry follows.

Probabilities are taken as they are, in float32, and nothing is sorted: confidences lie between 1 / C and 1, where
float32 has so few values that each can be counted. Sums are float64 by slice, added up in the order of the slices, so
that they do not depend on threads. A stored volume is decoded row by row, where it is counted. Of runs of voxels in which neither an annotator nor the predictor sees an organ,
only the number of voxels is taken. Where all annotators agree, which is nearly everywhere, one increment per class
serves them all; pairs of annotators are looked at only where they disagree.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from curvas_assets.codes import DEPTH, NOTHING, Codes, Levels, background_of, entropy_of_codes, leads
from curvas_assets.entropy import entropy_near_one, entropy_of_small, entropy_term, entropy_terms
from curvas_assets.scoring.occurrences import Occurrences
from curvas_assets.scoring.published import PublishedCalibration
from curvas_assets.scoring.uncertainty_maps import MapSummary
from curvas_assets.storage.labels import PackedLabels

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
SOMETHING, SOFT, UNSURE, DRAWN = (np.uint8(1 << bit) for bit in range(4))
"""Kinds of voxels, see `kinds_in`; `DRAWN`: an annotator gave it to an organ."""
ONE = int(np.float32(1.0).view(np.int32))
OFTEN = ONE - 2**20
"""Confidences from here on (bits of 15/16) have a counter each; what is below is less common, and is noted."""
NEARLY_NOTHING = 1.9e-3
"""Two softmaxes that differ from certain background by no more than this differ from each other by no more."""

Spans = tuple[slice, slice, slice]
"""Along (Z, Y, X), each with start and stop."""


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


class Slices(NamedTuple):
    """Some slices of a predictor, and what the annotators say of them.

    Args:
        p: probabilities float32 (C, z, Y, X) of a slab of the whole image; of no class where codes are known.
        codes: uint16 (C − 1, z, Y, X) of a stored volume's slab, of no class where they are not known.
        drawn: the annotators' label maps uint8 (R, dz, height, width) of these slices, in the region.
        z0, y0, x0: where these slices begin in the slab, and the region in the image.
        z_first: of the first of these slices, counted from the region's beginning.
    """

    p: npt.NDArray[np.float32]
    codes: Codes
    drawn: npt.NDArray[np.uint8]
    z0: int
    y0: int
    x0: int
    z_first: int


class Tables(NamedTuple):
    """What the kernels look up.

    Args:
        least: bits of the smallest confidence that is told from others.
        levels: p of each code, as it is decoded.
        entropy: −p ln p of each code.
        rounded: −p ln p of each code's decoded p.
        exact: whether that is the same, as it is unless levels are no float32 (the first format).
        votes_entropy: −q ln q of q = k / R, for k of R annotators.
        units: how many units of the entropy map make a nat.
    """

    least: int
    levels: npt.NDArray[np.float32]
    entropy: npt.NDArray[np.float64]
    rounded: npt.NDArray[np.float64]
    exact: bool
    votes_entropy: npt.NDArray[np.float64]
    units: float


class _Tallies(NamedTuple):
    """What is counted in whole numbers. The arrays of all parts have the part as first axis; one part's lack this axis.

    Args:
        often: voxels by confidence, float32's bits from `OFTEN` on.
        ranks: voxels by (organ, group of annotators, combination of answers, code).
        binned: voxels by (class, bin).
        hits: voxels by (annotator, class, bin) to which the annotator gave the class; the last row: to which all did.
        agreed: voxels where all annotators agree, by (predicted, annotated class).
        overlap: elsewhere, voxels to which two label maps give a class: upper triangle, the prediction first.
        votes: elsewhere, voxels by (class, how many annotators gave it, whether it is the prediction).
        empty: voxels that were skipped, as one number.
        boxes: by class the least and the largest z, y and x that hold it.
    """

    often: npt.NDArray[np.uint32]
    ranks: npt.NDArray[np.uint32]
    binned: npt.NDArray[np.int64]
    hits: npt.NDArray[np.int64]
    agreed: npt.NDArray[np.int64]
    overlap: npt.NDArray[np.int64]
    votes: npt.NDArray[np.int64]
    empty: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.int64]


class _Sums(NamedTuple):
    """What is summed in float64. The sums by slice, of the slices that are counted at once, have the slice as first axis;
    those of one slice, or the total, lack it.

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


class Maps(NamedTuple):
    """What is written of each voxel (dz, height, width), or of each run of voxels.

    Args:
        labels: uint8, the predicted label.
        confidence: float32, its probability.
        nats: int32, the entropy in units.
        entropies: float64, the entropy in nats as members add it up; of no slice where no ensemble needs it.
        unsure: uint8 (dz, height, runs), whether a run is not as good as certain background; likewise.
    """

    labels: npt.NDArray[np.uint8]
    confidence: npt.NDArray[np.float32]
    nats: npt.NDArray[np.int32]
    entropies: npt.NDArray[np.float64]
    unsure: npt.NDArray[np.uint8]


class Scratch(NamedTuple):
    """Working arrays of one thread, which each slice uses anew.

    Args:
        rows, foreground: of a row of voxels: probabilities float32 (C, width), and the sum of the foreground's.
        terms: of a row: −p ln p of each organ's p (C − 1, width).
        kinds: of a row, padded to whole runs: what a voxel is not, see `_look`.
        near, u, of_member, squares, losses: of a row, by voxel, right where it is background for all: the background's part
            of the entropy, the entropy, the entropy as members add it up, the squared distance, and −ln of the background.
        p: probability of each class at a voxel.
        bins: its bin.
        given: how many annotators gave the class.
        answers: by group of annotators, the combination of their answers about one organ.
        all_yes: by group, the combination in which all say yes.
        row: of a row, by class: voxels of the consensus, true positives and false positives.
        low, high: of a row, by class: the least and the largest x that hold it.
        seldom, wrong: notes of the bits of confidences: those below `OFTEN`, and (annotator, note) the wrong ones.
        noted: how many notes there are: of `seldom`, and of each annotator's.
    """

    rows: npt.NDArray[np.float32]
    foreground: npt.NDArray[np.float64]
    terms: npt.NDArray[np.float64]
    kinds: npt.NDArray[np.uint8]
    near: npt.NDArray[np.float64]
    u: npt.NDArray[np.float64]
    of_member: npt.NDArray[np.float64]
    squares: npt.NDArray[np.float64]
    losses: npt.NDArray[np.float64]
    p: npt.NDArray[np.float64]
    bins: npt.NDArray[np.int64]
    given: npt.NDArray[np.int64]
    answers: npt.NDArray[np.int64]
    all_yes: npt.NDArray[np.int64]
    row: npt.NDArray[np.int64]
    low: npt.NDArray[np.int64]
    high: npt.NDArray[np.int64]
    seldom: npt.NDArray[np.int32]
    wrong: npt.NDArray[np.int32]
    noted: npt.NDArray[np.int64]


def scratch(classes: int, annotators: int, slices: int, height: int, width: int) -> Scratch:
    """Working arrays for some slices of a region; pages that no note needs take no memory."""
    groups = -(-annotators // HISTOGRAM_ANNOTATORS)
    members = [min(HISTOGRAM_ANNOTATORS, annotators - g * HISTOGRAM_ANNOTATORS) for g in range(groups)]
    voxels = slices * height * width
    return Scratch(
        rows=np.empty((classes, width), np.float32),
        foreground=np.empty(width),
        terms=np.empty((classes - 1, width)),
        kinds=np.zeros(-(-width // RUN) * RUN, np.uint8),
        near=np.empty(width),
        u=np.empty(width),
        of_member=np.empty(width),
        squares=np.empty(width),
        losses=np.empty(width),
        p=np.empty(classes),
        bins=np.empty(classes, np.int64),
        given=np.empty(classes, np.int64),
        answers=np.empty(groups, np.int64),
        all_yes=np.array([2**n - 1 for n in members], np.int64),
        row=np.empty((3, classes), np.int64),
        low=np.empty(classes, np.int64),
        high=np.empty(classes, np.int64),
        seldom=np.empty(voxels, np.int32),
        wrong=np.empty((annotators, voxels), np.int32),
        noted=np.zeros(1 + annotators, np.int64),
    )


def tables(classes: int, annotators: int, units: float, levels: Levels | None) -> Tables:
    """What the kernels look up of a predictor; `levels` are the probabilities of its codes, if it has any."""
    known = np.zeros(1) if levels is None else levels
    decoded = known.astype(np.float32)
    return Tables(
        least=int(np.float32(NEARLY / classes).view(np.int32)),
        levels=decoded,
        entropy=entropy_of_codes(known),
        rounded=entropy_of_codes(decoded.astype(np.float64)),
        exact=np.array_equal(known, decoded),
        votes_entropy=_votes_entropy(annotators),
        units=units,
    )


class Pass:
    """One pass over a region's slices, in order, at most 16 at a time. Threads may count parts of the same slices side by
    side.

    Args:
        annotators: R.
        classes: C, background included.
        shape: of the region (Z, Y, X).
        threshold: nats, above which a voxel's entropy counts as high.
        bins: B, of each class's probability.
        levels: the probability of each code, if codes are known.
        parts: how many parts of the same slices are counted at once, at most.
    """

    def __init__(
        self,
        annotators: int,
        classes: int,
        shape: tuple[int, int, int],
        threshold: float,
        bins: int,
        levels: Levels | None,
        parts: int = 1,
    ):
        self._annotators, self._classes, self._shape, self._bins = annotators, classes, shape, bins
        self._has_codes = levels is not None
        self._entropy = MapSummary(shape, classes, threshold)
        self.tables = tables(classes, annotators, self._entropy.units, levels)
        self._tallies = self._no_tallies(parts)
        self._sums = self._no_sums()
        self._by_slice = self._no_sums(min(DEPTH, shape[0]))
        self._rows = np.zeros((shape[0], classes, 2))
        self._seldom = Occurrences()
        self._wrong = [Occurrences() for _ in range(annotators)]
        self._packer = Packer(PackedLabels(1, shape))
        self._published = PublishedCalibration(annotators, bins)

    def count(self, slices: Slices, maps: Maps, own: Scratch, part: int, first: int, last: int) -> None:
        """Count the slices first … last − 1 of these, and write their maps; `part` tells threads apart."""
        tallies = _Tallies(*(each[part] for each in self._tallies))
        own.noted[:] = 0
        _count(first, last, slices, self.tables, tallies, self._by_slice, self._rows[slices.z_first :], maps, own)
        self._seldom.add(own.seldom[: own.noted[0]])
        for of_annotator, notes, number in zip(self._wrong, own.wrong, own.noted[1:], strict=True):
            of_annotator.add(notes[:number])

    def take(self, slices: Slices, maps: Maps) -> None:
        """Take over the maps of the slices that were counted: what depends on their order."""
        for total, parts in zip(self._sums, self._by_slice, strict=True):
            for one in parts[: len(maps.labels)]:  # in order: the same however they were divided
                total += one
                one[...] = 0
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
            confidences=_confidences(tallies.often.sum(axis=0, dtype=np.uint32), self._seldom, self._wrong, unseen),
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

    def _no_tallies(self, parts: int) -> _Tallies:
        annotators, classes, bins = self._annotators, self._classes, self._bins
        groups, answers = -(-annotators // HISTOGRAM_ANNOTATORS), 2 ** min(annotators, HISTOGRAM_ANNOTATORS)
        return _Tallies(
            often=np.zeros((parts, ONE - OFTEN + 1), np.uint32),
            ranks=np.zeros((parts, classes - 1, groups, answers, self.tables.entropy.size), np.uint32),
            binned=np.zeros((parts, classes, bins), np.int64),
            hits=np.zeros((parts, annotators + 1, classes, bins), np.int64),
            agreed=np.zeros((parts, classes, classes), np.int64),
            overlap=np.zeros((parts, annotators + 1, annotators + 1, classes), np.int64),
            votes=np.zeros((parts, classes, annotators + 1, 2), np.int64),
            empty=np.zeros((parts, 1), np.int64),
            boxes=np.tile(np.array([2**31, -1] * 3, np.int64), (parts, classes, 1)),
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


def in_image(box: Spans, region: Spans) -> Spans:
    """A box of the region as one of the image."""
    z, y, x = (slice(of.start + b.start, of.start + b.stop) for of, b in zip(region, box, strict=True))
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
    often: npt.NDArray[np.uint32], seldom: Occurrences, wrong: Sequence[Occurrences], unseen: int
) -> Confidences:
    often[-1] += np.uint32(unseen)  # no more voxels than uint32 holds
    filled = np.flatnonzero(often)
    bits, times = seldom.counted()
    found = np.concatenate([bits, (filled + OFTEN).astype(np.int32)])
    errors = np.zeros((len(wrong), found.size), np.int64)
    for row, of_annotator in zip(errors, wrong, strict=True):
        own, voxels = of_annotator.counted()
        row[np.searchsorted(found, own)] = voxels
    return Confidences(
        found.view(np.float32).astype(np.float64), np.concatenate([times, often[filled].astype(np.int64)]), errors
    )


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


class Packer:
    """Collects slabs of any depth into a packed label map, which takes 16 slices at a time."""

    def __init__(self, labels: PackedLabels):
        self.labels = labels
        self._held = np.empty((min(DEPTH, labels.shape[1]), *labels.shape[2:]), np.uint8)
        self._z = 0

    def add(self, slab: npt.NDArray[np.uint8]) -> None:
        """The next slices, which are copied."""
        for one in slab:
            self._held[self._z % DEPTH] = one
            self._z += 1
            if self._z % DEPTH == 0:
                self.labels.put(0, self._z - DEPTH, self._held)

    def finish(self) -> None:
        rest = self._z % DEPTH
        if rest:
            self.labels.put(0, self._z - rest, self._held[:rest])


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


# The kernels do without numba's runtime (`_nrt=False`): nothing in them makes or keeps an array, but references to two
# dozen arrays would be counted up and down for every voxel, which takes a quarter of the time.


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)  # type: ignore[call-overload] - its stub lacks _nrt
def load_row(z, y, slices, levels, rows, foreground):
    """A row's probabilities (C, width), in the region: decoded from codes, or as the array has them."""
    width, at, z = rows.shape[1], slices.y0 + y, slices.z0 + z
    begin, end = slices.x0, slices.x0 + rows.shape[1]
    if slices.codes.shape[0] == 0:
        for c in range(rows.shape[0]):
            line, out = slices.p[c, z, at, begin:end], rows[c]
            for i in range(width):
                out[i] = line[i]
        return
    some = np.uint16(NOTHING)
    for c in range(slices.codes.shape[0]):
        codes = slices.codes[c, z, at, begin:end]
        for i in range(width):
            some |= codes[i]
    if some == NOTHING:
        rows[0] = np.float32(1.0)
        rows[1:] = np.float32(0.0)
        return
    foreground[:] = 0.0
    for c in range(slices.codes.shape[0]):
        codes, out = slices.codes[c, z, at, begin:end], rows[c + 1]
        for i in range(width):
            level = levels[codes[i]]
            out[i] = level
            foreground[i] += np.float64(level)
    background = rows[0]
    for i in range(width):
        background[i] = background_of(foreground[i])


@njit(cache=True, nogil=True, inline="always")
def _kind_of_background(p, last):
    """What a probability of the background says of its voxel's kind."""
    return (
        np.uint8(p != np.float32(1.0)) * SOMETHING
        | np.uint8(not p > last) * SOFT
        | np.uint8(not (p >= np.float32(1.0 - NEARLY_NOTHING))) * UNSURE
        | np.uint8(not (p <= np.float32(1.0))) * UNSURE
    )


@njit(cache=True, nogil=True, inline="always")
def _kind_of_organ(p, first):
    """What a probability of an organ says of its voxel's kind."""
    return (
        np.uint8(p > np.float32(0.0)) * SOMETHING
        | np.uint8(not p < first) * SOFT
        | np.uint8(not (p >= np.float32(0.0))) * UNSURE
        | np.uint8(not (p <= np.float32(NEARLY_NOTHING))) * UNSURE
    )


# The loops below run over rows and few arrays each, so that they are vectorised.


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)  # type: ignore[call-overload] - its stub lacks _nrt
def kinds_in(rows, bins, kinds):
    """What each voxel of a row is not: `SOMETHING` if it is not certain background (1, and 0 for every organ), `SOFT` if a
    probability lies in another than the outermost bins, `UNSURE` if one is not nearly 1 or 0.
    """
    last = np.float32(max(1.0 - 1.0 / bins, SURE))
    first = np.float32(1.0 / bins)
    background = rows[0]
    for i in range(background.size):
        kinds[i] = _kind_of_background(background[i], last)
    for c in range(1, rows.shape[0]):
        values = rows[c]
        for i in range(values.size):
            kinds[i] |= _kind_of_organ(values[i], first)


@njit(cache=True, nogil=True, inline="always")
def kind_of_run(kinds, x):
    """What is not true of all voxels of a run."""
    kind = np.uint8(0)
    for i in range(x, x + RUN):
        kind |= kinds[i]
    return kind


@njit(cache=True, nogil=True, inline="always")
def _bits(value):
    """The bits of a float32, which increase with its value."""
    return np.float32(value).view(np.int32)


@njit(cache=True, nogil=True, inline="always")
def _loss(p):
    """−ln p, clipped; near 1 by its series in 1 − p."""
    return _loss_near_one(p) if p >= 0.99 else -np.log(max(p, CLIP))


@njit(cache=True, nogil=True, inline="always")
def _loss_near_one(p):
    """The same from 0.99 on."""
    s = 1.0 - p
    return s * (1.0 + s * (1 / 2 + s * (1 / 3 + s * (1 / 4 + s * (1 / 5 + s / 6)))))


@njit(cache=True, nogil=True)
def _count(first, last, slices, tables, tallies, sums, rows, maps, own):
    """Count the slices first … last − 1.

    `sums` are those of each slice; `rows` (slice, class, 2) are, over the rows of the slice with consensus, the sum of the
    one-dimensional Dice and the number of rows.
    """
    for z in range(first, last):
        of_slice = _Sums(sums.mass[z], sums.where[z], sums.proper[z], sums.disagreement[z])
        _count_slice(z, slices, tables, tallies, of_slice, rows[z], maps, own)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)  # type: ignore[call-overload] - its stub lacks _nrt
def _count_slice(z, slices, tables, tallies, sums, rows, maps, scratch):
    """Count one slice, row by row, in runs of voxels: skipped, sure to be background, or looked at one by one."""
    height, width = slices.drawn.shape[2:]
    skipped = 0
    of_members = maps.entropies.shape[0] > 0
    maps.labels[z] = 0
    for y in range(height):
        scratch.row[:] = 0
        scratch.low[:] = width
        scratch.high[:] = -1
        load_row(z, y, slices, tables.levels, scratch.rows, scratch.foreground)
        _look(z, y, slices, tables, tallies.binned.shape[1], scratch)
        _write_row(scratch.rows[0], scratch.u, tables.units, maps.confidence[z, y], maps.nats[z, y])
        if of_members:
            _write_entropies(scratch.of_member, maps.entropies[z, y])
        for x in range(0, width, RUN):
            kind = kind_of_run(scratch.kinds, x)
            stop = min(x + RUN, width)
            if kind & (SOMETHING | DRAWN) == 0:
                skipped += stop - x
            elif kind & (SOFT | DRAWN) == 0:
                _count_background(z, y, x, stop, slices, tables, tallies, sums, scratch)
            else:
                for i in range(x, stop):
                    _count_voxel(z, y, i, slices, tables, tallies, sums, maps, scratch)
            if of_members:
                maps.unsure[z, y, x // RUN] = kind & UNSURE != 0
        _close_row(slices.z_first + z, y, scratch, rows, tallies.boxes)
    tallies.empty[0] += skipped


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)  # type: ignore[call-overload] - its stub lacks _nrt
def _look(z, y, slices, tables, bins, scratch):
    """Whatever of a row can be computed for all its voxels at once, taking them for background."""
    rows, kinds, terms = scratch.rows, scratch.kinds, scratch.terms
    width = rows.shape[1]
    kinds_in(rows, bins, kinds)
    for r in range(slices.drawn.shape[0]):
        labels = slices.drawn[r, z, y]
        for i in range(width):
            kinds[i] |= np.uint8(labels[i] != 0) * DRAWN
    u, of_member, near = scratch.u, scratch.of_member, scratch.near
    squares, losses, background = scratch.squares, scratch.losses, rows[0]
    for i in range(width):
        near[i] = entropy_near_one(np.float64(min(background[i], np.float32(1.0))))
    for i in range(width):
        losses[i] = _loss_near_one(np.float64(min(background[i], np.float32(1.0))))
    of_member[:] = 0.0
    u[:] = 0.0
    squares[:] = 0.0
    _add_row(near, of_member)
    for c in range(1, rows.shape[0]):
        own, values = terms[c - 1], rows[c]
        if slices.codes.shape[0] > 0:
            codes = slices.codes[c - 1, slices.z0 + z, slices.y0 + y, slices.x0 : slices.x0 + width]
            for i in range(width):
                own[i] = tables.rounded[codes[i]]
            _add_row(own, of_member)
            if not tables.exact:
                for i in range(width):
                    own[i] = tables.entropy[codes[i]]
        else:
            for i in range(width):
                own[i] = entropy_of_small(np.float64(max(values[i], np.float32(0.0))))
            _add_row(own, of_member)
        _add_row(own, u)
        for i in range(width):
            p = np.float64(max(values[i], np.float32(0.0)))
            squares[i] += p * p
    for i in range(width):
        p = np.float64(min(background[i], np.float32(1.0)))
        squares[i] += (p - 1.0) * (p - 1.0)
    _add_row(near, u)


@njit(cache=True, nogil=True, inline="always")
def _add_row(values, total):
    for i in range(total.size):
        total[i] += values[i]


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)  # type: ignore[call-overload] - its stub lacks _nrt
def _write_row(background, u, units, confidence, nats):
    """Write a row's maps, taking its voxels for background."""
    for i in range(confidence.size):
        confidence[i] = min(background[i], np.float32(1.0))
    for i in range(nats.size):
        nats[i] = np.int32(u[i] * units + 0.5)


@njit(cache=True, nogil=True, inline="always")
def _write_entropies(of_member, entropies):
    for i in range(entropies.size):
        entropies[i] = of_member[i]


@njit(cache=True, nogil=True, inline="always")
def _count_background(z, y, x, stop, slices, tables, tallies, sums, scratch):
    """Count a run of voxels that are background for all, from what `_look` has found."""
    classes, annotators, bins = scratch.rows.shape[0], slices.drawn.shape[0], tallies.binned.shape[1]
    for c in range(1, classes):
        values, total = scratch.rows[c, x:stop], 0.0
        for i in range(values.size):
            total += np.float64(max(values[i], np.float32(0.0)))
        tallies.binned[c, 0] += stop - x
        sums.mass[c, 0] += total
    for c in range(1, slices.codes.shape[0] + 1):
        codes = slices.codes[c - 1, slices.z0 + z, slices.y0 + y, slices.x0 + x : slices.x0 + stop]
        for g in range(tallies.ranks.shape[1]):
            ranks = tallies.ranks[c - 1, g, 0]
            for i in range(codes.size):
                ranks[codes[i]] += np.uint32(1)
    background, u = scratch.rows[0, x:stop], scratch.u[x:stop]
    of_run, losses_of_run = scratch.squares[x:stop], scratch.losses[x:stop]
    total = squares = losses = 0.0
    squared_entropy = sums.disagreement[3]  # added voxel by voxel, as when voxels are counted one by one
    for i in range(background.size):
        total += np.float64(min(background[i], np.float32(1.0)))
        squares += of_run[i]
        losses += losses_of_run[i]
        squared_entropy += u[i] * u[i]
    for i in range(background.size):
        tallies.often[_bits(min(background[i], np.float32(1.0))) - OFTEN] += np.uint32(1)
    sums.disagreement[3] = squared_entropy
    tallies.binned[0, bins - 1] += stop - x
    sums.mass[0, bins - 1] += total
    tallies.hits[annotators, 0, bins - 1] += stop - x
    sums.proper[annotators, 0] += squares
    sums.proper[annotators, 1] += losses
    sums.where[0, 0] += total
    tallies.agreed[0, 0] += stop - x


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
        for r in range(slices.drawn.shape[0]):
            if slices.drawn[r, z, y, i] != best:
                scratch.wrong[r, scratch.noted[1 + r]] = max(_bits(maps.confidence[z, y, i]), tables.least)
                scratch.noted[1 + r] += 1


@njit(cache=True, nogil=True, inline="always")
def _count_prediction(z, y, i, slices, tables, tallies, sums, maps, scratch):
    """What a voxel has without annotators: its predicted class, its predictive entropy in nats, and Σ p²."""
    bins = tallies.binned.shape[1]
    best, most = 0, np.float32(-1.0)
    u = of_member = square = 0.0
    for c in range(scratch.rows.shape[0]):
        own = min(max(scratch.rows[c, i], np.float32(0.0)), np.float32(1.0))
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
            code = slices.codes[c - 1, slices.z0 + z, slices.y0 + y, slices.x0 + i]
            u += tables.entropy[code]
            of_member += tables.rounded[code]
        else:
            term = entropy_term(p)
            u += term
            of_member += term
    sums.disagreement[3] += u * u
    bits = max(_bits(most), tables.least)
    if bits >= OFTEN:
        tallies.often[bits - OFTEN] += np.uint32(1)
    else:
        scratch.seldom[scratch.noted[0]] = bits
        scratch.noted[0] += 1
    maps.nats[z, y, i] = np.int32(u * tables.units + 0.5)
    maps.confidence[z, y, i] = most
    if maps.entropies.shape[0] > 0:
        maps.entropies[z, y, i] = of_member
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
        code = slices.codes[c - 1, slices.z0 + z, slices.y0 + y, slices.x0 + i]
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
        ranks[g, answers[g], slices.codes[c - 1, slices.z0 + z, slices.y0 + y, slices.x0 + i]] += np.uint32(1)


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
