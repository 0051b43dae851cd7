"""One label map of several annotators': the label of most of them, or their STAPLE estimate.

Both are rules for a voxel's combination of labels, so volumes of any size are fused slab by slab. Training on fused labels
and the references of metrics use the same rules. What is done with the fused map does not belong here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from curvas_assets.codes import DEPTH

LabelMaps = npt.NDArray[np.uint8]
Fuse = Callable[[LabelMaps], LabelMaps]
"""Label maps (R, …) of any voxels → one label map (…)."""
CONVERGED = 1e-14
"""STAPLE ends when no squared change of a sensitivity or specificity exceeds this: ITK's own limit."""
MOST_ITERATIONS = 10_000


def fusion(annotations: Any, how: Literal["majority", "staple"], organs: Mapping[str, int]) -> Fuse:
    """The rule that makes one label map of a patient's annotations.

    Args:
        annotations: uint8 (R, Z, Y, X), sliceable along z.
        how: `majority` needs no look at the voxels; `staple` takes one pass over all of them.
        organs: name → label.
    """
    return majority if how == "majority" else Staple.of(annotations, organs)


def majority(annotations: LabelMaps) -> LabelMaps:
    """The label of most annotators at each voxel; the lowest label wins a tie, so the background before an organ.

    Args:
        annotations: uint8 (R, …).

    >>> majority(np.array([[0, 1, 2, 2], [0, 1, 1, 0]], np.uint8)).tolist()
    [0, 1, 1, 0]
    """
    annotations = np.asarray(annotations)
    fused = annotations[0].copy()
    apart = (annotations[1:] != fused).any(axis=0)
    given = annotations[:, apart]
    best, most = np.zeros(given.shape[1], np.uint8), np.zeros(given.shape[1], np.int64)
    for label in np.unique(given):
        votes = (given == label).sum(axis=0)
        more = votes > most
        best[more], most[more] = label, votes[more]
    fused[apart] = best
    return fused


@dataclass(frozen=True)
class Estimate:
    """STAPLE's estimate of one organ.

    Args:
        answers: uint64 (N,), ascending: combinations of the annotators' answers, bit r for a yes of annotator r.
        probability: float64 (N,), of the organ, at a voxel with these answers.
        sensitivity: float64 (R,), by annotator.
        specificity: float64 (R,).
    """

    answers: npt.NDArray[np.uint64]
    probability: npt.NDArray[np.float64]
    sensitivity: npt.NDArray[np.float64]
    specificity: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Staple:
    """STAPLE of label maps: each organ against everything else; a voxel gets the organ whose probability is largest and
    above one half, the lowest label winning a tie, and is background if there is none.

    Args:
        estimates: label → its estimate.

    References:
        Warfield et al. 2004, doi:10.1109/TMI.2004.828354, as ITK's STAPLEImageFilter has it: the prior is the annotators' mean
        share of the scan's voxels.
    """

    estimates: Mapping[int, Estimate]

    @classmethod
    def of(cls, annotations: Any, organs: Mapping[str, int]) -> "Staple":
        """The estimate from all voxels of a scan.

        Args:
            annotations: uint8 (R, Z, Y, X), sliceable along z.
            organs: name → label.
        """
        annotators, depth = annotations.shape[0], annotations.shape[1]
        counts: dict[int, dict[int, int]] = {label: {} for label in organs.values()}
        for z in range(0, depth, DEPTH):
            slab = np.asarray(annotations[:, z : z + DEPTH])
            given = slab[:, slab.any(axis=0)]
            for label, found in counts.items():
                for answers, voxels in zip(*np.unique(_answers(given, label), return_counts=True), strict=True):
                    found[int(answers)] = found.get(int(answers), 0) + int(voxels)
        voxels = int(np.prod(annotations.shape[1:], dtype=np.int64))
        return cls({label: _estimate(found, annotators, voxels) for label, found in counts.items()})

    def __call__(self, annotations: LabelMaps) -> LabelMaps:
        """The fused label map (…) of label maps (R, …) of the scan's voxels."""
        annotations = np.asarray(annotations)
        fused = np.zeros(annotations.shape[1:], np.uint8)
        drawn = annotations.any(axis=0)
        given = annotations[:, drawn]
        best, most = np.zeros(given.shape[1], np.uint8), np.full(given.shape[1], 0.5)
        for label, estimate in sorted(self.estimates.items()):
            place = np.searchsorted(estimate.answers, _answers(given, label))
            probability = estimate.probability[place]
            more = probability > most
            best[more], most[more] = label, probability[more]
        fused[drawn] = best
        return fused


def _answers(given: LabelMaps, label: int) -> npt.NDArray[np.uint64]:
    """The combination of answers about one label at each of several voxels, from label maps (R, voxels)."""
    found = np.zeros(given.shape[1], np.uint64)
    for r, of_annotator in enumerate(given):
        found |= (of_annotator == label).astype(np.uint64) << np.uint64(r)
    return found


def _estimate(counts: Mapping[int, int], annotators: int, voxels: int) -> Estimate:
    """STAPLE's expectation maximisation over combinations of answers instead of voxels, which gives the same sums.

    Args:
        counts: combination → voxels, in which voxels without any label may be missing.
        annotators: R.
        voxels: of the scan.
    """
    whole = {**counts, 0: counts.get(0, 0) + voxels - sum(counts.values())}
    answers = np.array(sorted(whole), np.uint64)
    times = np.array([whole[int(one)] for one in answers], np.float64)
    yes = (answers[:, None] >> np.arange(annotators, dtype=np.uint64) & np.uint64(1)).astype(bool)
    weight = yes.mean(axis=1)
    prior = float(times @ weight) / voxels
    if prior in (0.0, 1.0):  # nobody drew it, or everybody everywhere
        return Estimate(answers, weight, np.full(annotators, np.nan), np.full(annotators, np.nan))
    sensitivity = specificity = np.full(annotators, -10.0)
    for _ in range(MOST_ITERATIONS):
        last, inside, outside = (sensitivity, specificity), times * weight, times * (1 - weight)
        sensitivity, specificity = inside @ yes / inside.sum(), outside @ ~yes / outside.sum()
        of_organ = prior * np.where(yes, sensitivity, 1 - sensitivity).prod(axis=1)
        of_rest = (1 - prior) * np.where(yes, 1 - specificity, specificity).prod(axis=1)
        weight = of_organ / (of_organ + of_rest)
        changes = (sensitivity - last[0], specificity - last[1])
        if all((change**2 <= CONVERGED).all() for change in changes):
            break
    return Estimate(answers, weight, sensitivity, specificity)
