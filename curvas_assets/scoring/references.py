# numba infers the types of its functions:
# pyright: reportMissingParameterType=false
"""What `dice` and `confidence` compare a prediction with: the annotators' consensus, one label map made of theirs, or their
mean response cut at several heights. And what a pass counts for that, beside what it counts anyway.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from numba import njit

from curvas_assets.codes import Levels
from curvas_assets.fusing import fuse, majority
from curvas_assets.scoring.counting import Counts, Packer, Slices, Spans
from curvas_assets.scoring.registry import CUTS, OF, REFERENCES, Row
from curvas_assets.storage.labels import PackedLabels

Reference = Literal["consensus", "majority", "staple", "thresholds"]
NOTHING_COUNTED = np.zeros((0, 0, 0), np.uint8)
NO_BOX = (0, 0, 0, 0, 0, 0)


class Comparison(Protocol):
    """What a prediction scores against a reference; each value has a note."""

    def dice(self, c: int) -> tuple[float, str]:
        """Dice of class c."""
        ...

    def confidence(self, c: int) -> tuple[float, str]:
        """Mean of class c's probability inside, and of its complement outside."""
        ...


@dataclass(frozen=True)
class Wanted:
    """What a pass counts of each predictor beside what it counts anyway.

    Args:
        reference: with what predictions are compared.
        fused: STAPLE's label map (1, Z, Y, X) of the whole scan, sliceable; None for other references.
        tumour: its label; 0 if the study has no vessels to be scored.
        around: the voxels (in the region) around the annotators' tumours; None if nobody drew one.
    """

    reference: Reference = "consensus"
    fused: Any = None
    tumour: int = 0
    around: Spans | None = None

    @property
    def anything(self) -> bool:
        """Whether there is anything to count."""
        return self.reference != "consensus" or self.tumour > 0

    def labels(self, drawn: npt.NDArray[np.uint8], z0: int, region: Spans) -> npt.NDArray[np.uint8]:
        """The reference's label map (dz, Y, X) of the slices from z0 on, in the region; of no slice if it has none."""
        if self.reference == "majority":
            return majority(drawn)
        if self.reference == "staple":
            return np.ascontiguousarray(self.fused[0, z0 : z0 + drawn.shape[1], region[1], region[2]])
        return NOTHING_COUNTED


def _drawn_at(height: int, annotators: int) -> npt.NDArray[np.bool_]:
    """Whether 0, 1 … R annotators who drew an organ are more than a cut's share of them."""
    return OF * np.arange(annotators + 1) > height * annotators


def staple(annotations: Any, organs: int) -> PackedLabels:
    """STAPLE's label map (1, Z, Y, X) of a scan's annotations, packed."""
    packed = PackedLabels(1, annotations.shape[1:])
    packed.put_whole(0, fuse(annotations, "staple", organs))
    return packed


@dataclass(frozen=True)
class Further:
    """What a pass counted beside; N voxels, C classes, R annotators, K cuts, B bins.

    Args:
        confusion: int64 (C, C): voxels by the reference's label and the predicted one; of none if there is no such map.
        mass: float64 (C,): sum of the probability of the reference's label, where it is that.
        cut: int64 (C, 1 + R, 1 + K): voxels by class, how many annotators gave it, and how many cuts its probability exceeds.
        cut_mass: float64 (C, 1 + R): sum of the class's probability where so many annotators gave it.
        near: int64 (B,) and float64 (B,): voxels around the tumour, and their confidence, by bin of the confidence that the
            voxel is or is not the tumour.
        near_hits: int64 (R, B): where an annotator says so, too.
        exceeded: uint8 (1, Z, Y, X), in the region: how many cuts the tumour's probability exceeds.
    """

    confusion: npt.NDArray[np.int64]
    mass: npt.NDArray[np.float64]
    cut: npt.NDArray[np.int64]
    cut_mass: npt.NDArray[np.float64]
    near: tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]
    near_hits: npt.NDArray[np.int64]
    exceeded: PackedLabels


class FurtherPass:
    """Counts of one predictor, fed some slices at a time, in order; by one thread at a time.

    Args:
        wanted: what is counted.
        annotators: R.
        classes: C, background included.
        shape: of the region (Z, Y, X).
        bins: B.
        levels: the probability of each code, if codes are known.
    """

    def __init__(
        self,
        wanted: Wanted,
        annotators: int,
        classes: int,
        shape: tuple[int, int, int],
        bins: int,
        levels: Levels | None,
    ):
        self._wanted, self._voxels = wanted, math.prod(shape)
        self._levels = np.zeros(1, np.float32) if levels is None else levels.astype(np.float32)
        self._cuts = np.array(CUTS, np.float64)
        # Levels ascend, so that a code exceeds a cut from some code on; all of it is exact in float64.
        self._codes = np.searchsorted(OF * self._levels.astype(np.float64), self._cuts, side="right")
        self._confusion, self._mass = np.zeros((classes, classes), np.int64), np.zeros(classes)
        self._cut = np.zeros((classes, annotators + 1, len(CUTS) + 1), np.int64)
        self._cut_mass = np.zeros((classes, annotators + 1))
        self._near, self._near_mass = np.zeros(bins, np.int64), np.zeros(bins)
        self._near_hits = np.zeros((annotators, bins), np.int64)
        self._packer = Packer(PackedLabels(1, shape))
        around = wanted.around
        self._box = NO_BOX if around is None else tuple(limit for span in around for limit in (span.start, span.stop))

    def add(self, slices: Slices, labels: npt.NDArray[np.uint8], reference: npt.NDArray[np.uint8]) -> None:
        """The next slices, their predicted labels (dz, Y, X), and the reference's."""
        wanted = self._wanted
        if wanted.reference in ("majority", "staple"):
            _count_map(slices, self._levels, labels, reference, self._confusion, self._mass)
        if wanted.reference == "thresholds" or wanted.tumour:
            exceeded = np.empty(labels.shape, np.uint8) if wanted.tumour else NOTHING_COUNTED
            _count_cuts(
                slices, self._levels, self._codes, self._cuts, wanted.tumour, self._cut, self._cut_mass, exceeded
            )
            if wanted.tumour:
                self._packer.add(exceeded)
        if wanted.tumour and wanted.around is not None:
            _count_near(slices, self._levels, wanted.tumour, self._box, self._near, self._near_mass, self._near_hits)

    def counts(self) -> Further:
        """What was counted; nothing can be added after it."""
        self._packer.finish()
        confusion, cut = self._confusion.copy(), self._cut.copy()
        confusion[0, 0] += self._voxels - confusion.sum()
        cut[:, 0, 0] += self._voxels - cut.sum(axis=(1, 2))
        return Further(
            confusion,
            self._mass,
            cut,
            self._cut_mass,
            (self._near, self._near_mass),
            self._near_hits,
            self._packer.labels,
        )


class Consensus:
    """Comparison with the voxels on which all annotators agree; the others are left out."""

    def __init__(self, found: Counts):
        self._found = found

    def dice(self, c: int) -> tuple[float, str]:
        """2 TP / (2 TP + FP + FN) where all annotators gave the class, or none did."""
        votes = self._found.votes
        false, hits, inside = int(votes[c, 0, 1]), int(votes[c, -1, 1]), int(votes[c, -1].sum())
        if inside:
            return 2 * hits / (inside + hits + false), ""
        if false:
            return 0.0, "no consensus voxel, but false positives"
        return math.nan, "no consensus voxel and no false positive"

    def confidence(self, c: int) -> tuple[float, str]:
        """½ [(1 − mean outside) + mean inside]."""
        inside, outside = int(self._found.votes[c, -1].sum()), int(self._found.votes[c, 0].sum())
        if not (inside and outside):
            return math.nan, "no consensus voxel" if not inside else "no voxel outside"
        mass_in, mass_out = (float(n) for n in self._found.consensus[c])
        return _both_sides(mass_in / inside, mass_out / outside), ""


class OneMap:
    """Comparison with one label map of the annotators', every voxel of the region counting.

    Args:
        found: of the pass.
        further: what it counted beside.
        reference: `majority` or `staple`.
    """

    def __init__(self, found: Counts, further: Further, reference: Reference):
        self._found, self._further, self._said = found, further, REFERENCES[reference].note

    def dice(self, c: int) -> tuple[float, str]:
        """Dice of the two masks: both empty NaN, one empty 0."""
        confusion = self._further.confusion
        both = int(confusion[c].sum() + confusion[:, c].sum())
        if not both:
            return math.nan, _notes(self._said, "organ in neither of the two")
        return 2 * int(confusion[c, c]) / both, self._said

    def confidence(self, c: int) -> tuple[float, str]:
        """½ [(1 − mean outside) + mean inside]."""
        inside = int(self._further.confusion[c].sum())
        outside = self._found.voxels - inside
        if not (inside and outside):
            return math.nan, _notes(
                self._said, "the reference has no voxel of it" if not inside else "no voxel outside"
            )
        mass_in = float(self._further.mass[c])
        mass_out = float(self._found.soft_voxels[c]) - mass_in
        return _both_sides(mass_in / inside, mass_out / outside), self._said


class Thresholds:
    """Comparison of the share of annotators and the probability, both cut at each of several heights.

    Args:
        found: of the pass.
        further: what it counted beside.
    """

    def __init__(self, found: Counts, further: Further):
        self._found, self._further, self._said = found, further, REFERENCES["thresholds"].note

    def sizes(self, c: int) -> npt.NDArray[np.int64]:
        """Of each cut: voxels above it in the annotators' share, in the probability, and in both; (K, 3)."""
        cut = self._further.cut[c]
        annotators = cut.shape[0] - 1
        found = []
        for k, height in enumerate(CUTS, 1):
            drawn = _drawn_at(height, annotators)
            found.append([cut[drawn].sum(), cut[:, k:].sum(), cut[drawn, k:].sum()])
        return np.array(found)

    def dice_at(self, c: int) -> list[float]:
        """Dice of each cut: both empty NaN, one empty 0."""
        return [2 * int(b) / int(d + p) if d + p else math.nan for d, p, b in self.sizes(c)]

    def dice(self, c: int) -> tuple[float, str]:
        """The mean over the cuts at which the organ is there."""
        return self._mean(self.dice_at(c), "organ in neither of the two")

    def confidence(self, c: int) -> tuple[float, str]:
        """½ [(1 − mean outside) + mean inside], the share of annotators cut at each height; the mean over cuts."""
        annotators = self._further.cut.shape[1] - 1
        voxels, mass = self._further.cut[c].sum(axis=1), self._further.cut_mass[c]
        whole, found = float(self._found.soft_voxels[c]), []
        for height in CUTS:
            drawn = _drawn_at(height, annotators)
            inside, mass_in = int(voxels[drawn].sum()), float(mass[drawn].sum())
            outside = self._found.voxels - inside
            defined = inside and outside
            found.append(_both_sides(mass_in / inside, (whole - mass_in) / outside) if defined else math.nan)
        return self._mean(found, "no voxel on one side")

    def _mean(self, values: Sequence[float], why: str) -> tuple[float, str]:
        defined = [value for value in values if not math.isnan(value)]
        left_out = len(values) - len(defined)
        note = _notes(self._said, f"{why} at {left_out} of {len(values)} cuts" if left_out else "")
        return float(np.mean(defined)) if defined else math.nan, note


def comparison(reference: Reference, found: Counts, further: Further | None) -> Comparison:
    """What a prediction is compared with."""
    if further is None or reference == "consensus":
        return Consensus(found)
    return Thresholds(found, further) if reference == "thresholds" else OneMap(found, further, reference)


def cut_by_cut(found: Counts, further: Further, organs: Mapping[str, int]) -> Iterator[Row]:
    """`dice_cut1` … `dice_cut6`."""
    against = Thresholds(found, further)
    for organ, c in organs.items():
        for k, (height, value) in enumerate(zip(CUTS, against.dice_at(c), strict=True), 1):
            note = f"cut at {height / OF:g}"
            nothing = "organ in neither of the two" if math.isnan(value) else ""
            yield f"dice_cut{k}", organ, "", value, _notes(note, nothing)


def _both_sides(inside: float, outside: float) -> float:
    return min(max(((1 - outside) + inside) / 2, 0.0), 1.0)  # beyond is a rounding error


def _notes(*notes: str) -> str:
    return "; ".join(filter(None, notes))


@njit(cache=True, nogil=True, inline="always")
def _probability(slices, levels, c, z, y, x):
    """A voxel's probability of an organ, as it is decoded or as the array has it, between 0 and 1."""
    if slices.codes.shape[0] > 0:
        return levels[slices.codes[c - 1, slices.z0 + z, slices.y0 + y, slices.x0 + x]]
    p = slices.p[c, slices.z0 + z, slices.y0 + y, slices.x0 + x]
    return min(max(p, np.float32(0.0)), np.float32(1.0))


@njit(cache=True, nogil=True)
def _count_map(slices, levels, labels, reference, confusion, mass):
    """Count voxels by the reference's and the predicted label; those of two backgrounds are not looked at."""
    own = np.zeros(mass.size)
    for z in range(labels.shape[0]):
        own[:] = 0.0
        for y in range(labels.shape[1]):
            for x in range(labels.shape[2]):
                c = reference[z, y, x]
                if c == 0 and labels[z, y, x] == 0:
                    continue
                confusion[c, labels[z, y, x]] += 1
                if c > 0:
                    own[c] += np.float64(_probability(slices, levels, c, z, y, x))
        mass += own


@njit(cache=True, nogil=True)
def _count_cuts(slices, levels, first_codes, cuts, tumour, voxels, mass, exceeded):
    """Count voxels by how many annotators gave a class and how many cuts its probability exceeds.

    Voxels that nobody gave to an organ and where no cut is exceeded are not looked at.
    """
    annotators, depth, height, width = slices.drawn.shape
    classes, coded = voxels.shape[0], slices.codes.shape[0] > 0
    busy, own = np.empty(width, np.bool_), np.zeros(mass.shape)
    for z in range(depth):
        own[:] = 0.0
        for y in range(height):
            busy[:] = False
            for r in range(annotators):
                labels = slices.drawn[r, z, y]
                for x in range(width):
                    busy[x] |= labels[x] != 0
            for c in range(1, classes):
                if coded:
                    codes = slices.codes[c - 1, slices.z0 + z, slices.y0 + y, slices.x0 : slices.x0 + width]
                    for x in range(width):
                        busy[x] |= codes[x] >= first_codes[0]
                else:
                    p = slices.p[c, slices.z0 + z, slices.y0 + y, slices.x0 : slices.x0 + width]
                    for x in range(width):
                        busy[x] |= OF * np.float64(p[x]) > cuts[0]
            if exceeded.shape[0] > 0:
                exceeded[z, y] = 0
            for x in range(width):
                if not busy[x]:
                    continue
                for c in range(1, classes):
                    given, above = 0, 0
                    for r in range(annotators):
                        given += slices.drawn[r, z, y, x] == c
                    p = np.float64(_probability(slices, levels, c, z, y, x))
                    while above < cuts.size and OF * p > cuts[above]:
                        above += 1
                    voxels[c, given, above] += 1
                    if given > 0:
                        own[c, given] += p
                    if c == tumour:
                        exceeded[z, y, x] = above
        mass += own


@njit(cache=True, nogil=True)
def _count_near(slices, levels, tumour, box, voxels, mass, hits):
    """Count the voxels of a box by the confidence with which they are, or are not, the tumour."""
    bins, own = voxels.size, np.zeros(mass.size)
    for z in range(max(box[0] - slices.z_first, 0), min(box[1] - slices.z_first, slices.drawn.shape[1])):
        own[:] = 0.0
        for y in range(box[2], box[3]):
            for x in range(box[4], box[5]):
                p = np.float64(_probability(slices, levels, tumour, z, y, x))
                found = p > 0.5
                confidence = p if found else 1.0 - p
                b = min(np.int64(confidence * bins), bins - 1)
                voxels[b] += 1
                own[b] += confidence
                for r in range(hits.shape[0]):
                    hits[r, b] += (slices.drawn[r, z, y, x] == tumour) == found
        mass += own
