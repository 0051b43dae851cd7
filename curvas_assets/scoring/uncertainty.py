"""Uncertainty: of the annotators, of the prediction, and how the two go together."""

import math
from collections.abc import Iterator, Mapping
from itertools import combinations

import numpy as np
import numpy.typing as npt

from curvas_assets.geometry import by
from curvas_assets.scoring.accuracy import pair_dice
from curvas_assets.scoring.counting import Counts
from curvas_assets.scoring.members import MemberCounts
from curvas_assets.scoring.references import Comparison
from curvas_assets.scoring.registry import PAIR, Row
from curvas_assets.scoring.uncertainty_maps import PATCH, MapSummary


def aleatoric(found: Counts, organs: Mapping[str, int], reference: Comparison) -> Iterator[Row]:
    """`confidence`, `ncc`, `ncc_annotators`, `agreement` and `agreement_kappa`."""
    for organ, c in organs.items():
        yield "confidence", organ, "", *reference.confidence(c)
    yield "ncc", "", "", *_disagreement_correlation(found)
    annotators = range(1, found.overlap.shape[0])
    for one, other in combinations(annotators, 2):
        each = [phi(found.overlap[:, :, c], one, other, found.voxels) for c in organs.values()]
        defined = [value for value in each if not math.isnan(value)]
        left_out = len(each) - len(defined)
        note = f"{left_out} of {len(each)} organs undefined" if left_out else ""
        yield "ncc_annotators", "", f"{one}{PAIR}{other}", float(np.mean(defined)) if defined else math.nan, note
    if len(annotators) < 2:
        yield "ncc_annotators", "", "", math.nan, "one annotator"
    for organ, c in organs.items():
        if len(annotators) < 2:
            yield "agreement", organ, "", math.nan, "one annotator"
            yield "agreement_kappa", organ, "", math.nan, "one annotator"
            continue
        yield "agreement", organ, "", *_mean_pair_dice(found.overlap[:, :, c], list(annotators), "annotators drew")
        yield "agreement_kappa", organ, "", *fleiss_kappa(found.votes[c].sum(axis=1))


def epistemic(found: Counts, members: MemberCounts | None, organs: Mapping[str, int]) -> Iterator[Row]:
    """Entropies and mutual information; of an ensemble also `ged` and `member_dice`."""
    yield from _aggregates("predictive_entropy", found.entropy)
    if members is None:
        return
    yield from _aggregates("expected_entropy", members.expected_entropy)
    yield from _aggregates("mutual_information", members.mutual_information)
    annotators = found.overlap.shape[0] - 1
    count = len(members.overlap) - annotators
    yield "ged", "", "", energy_distance(members.overlap[:, :, list(organs.values())], count), ""
    for organ, c in organs.items():
        if count < 2:
            yield "member_dice", organ, "", math.nan, "one member"
        else:
            yield (
                "member_dice",
                organ,
                "",
                *_mean_pair_dice(members.overlap[:, :, c], list(range(count)), "members found"),
            )


def phi(overlap: npt.NDArray[np.int64], one: int, other: int, voxels: int) -> float:
    """Pearson correlation of two masks from their overlap and sizes; NaN if one is empty or covers every voxel."""
    a, b, both = (int(n) for n in (overlap[one, one], overlap[other, other], overlap[one, other]))
    variance = a * (voxels - a) * b * (voxels - b)
    return (voxels * both - a * b) / math.sqrt(variance) if variance else math.nan


def fleiss_kappa(votes: npt.NDArray[np.int64]) -> tuple[float, str]:
    """Fleiss' κ of R annotators, organ against not organ, over the evaluation region; and a note.

    Over the union of their organ alone it would be Dice − 1 for two annotators, whatever they drew.

    Args:
        votes: (1 + R,): voxels that exactly 0, 1, … R annotators gave the organ.

    References:
        Fleiss 1971, doi:10.1037/h0031619.
    """
    annotators, voxels = len(votes) - 1, int(votes.sum())
    n = np.arange(annotators + 1)
    share = float(votes @ n) / (voxels * annotators)
    if share in (0.0, 1.0):
        return math.nan, "no annotator drew the organ" if share == 0 else "every voxel is the organ for every annotator"
    by_chance = share**2 + (1 - share) ** 2
    agreeing = n * (n - 1) + (annotators - n) * (annotators - n - 1)
    # Disagreement is summed, not agreement: annotators agree on nearly all of 10⁸ voxels.
    differing = annotators * (annotators - 1) - agreeing
    observed = float(votes @ differing) / (voxels * annotators * (annotators - 1))
    return 1 - observed / (1 - by_chance), ""


def energy_distance(overlap: npt.NDArray[np.int64], members: int) -> float:
    """2 E d(S, Y) − E d(S, S′) − E d(Y, Y′) of members S and annotators Y, d = 1 − mean organ Dice.

    All pairs enter, a label map with itself too. An organ in neither of two label maps counts as agreement.

    Args:
        overlap: int64 (M + R, M + R, organs), members first.
        members: M.

    References:
        Kohl et al. 2018, arXiv:1806.05034.
    """
    sizes = np.diagonal(overlap).T
    both = (sizes[:, None] + sizes[None, :]).astype(float)
    dice = np.where(both > 0, 2 * overlap / np.where(both > 0, both, 1), 1.0)
    distance = 1 - dice.mean(axis=2)
    across, within, between = distance[:members, members:], distance[:members, :members], distance[members:, members:]
    return float(2 * across.mean() - within.mean() - between.mean())


def _aggregates(metric: str, summary: MapSummary) -> Iterator[Row]:
    below = f"negative, {summary.mean:.3g}: taken for 0" if summary.mean < 0 else ""
    yield metric, "", "", max(summary.mean, 0.0), below
    note = "" if summary.patch == (PATCH,) * 3 else f"patches of {by(summary.patch)} voxels"
    yield f"{metric}_patch", "", "", max(summary.patch_maximum, 0.0), note
    yield f"{metric}_above", "", "", summary.above, "no voxel above the threshold" if math.isnan(summary.above) else ""


def _disagreement_correlation(found: Counts) -> tuple[float, str]:
    n = found.voxels
    d, dd, du, uu = (float(s) for s in found.disagreement)
    u = found.entropy.mean * n
    varies_d, varies_u = dd - d * d / n, uu - u * u / n
    if varies_d <= 1e-12 * max(dd, 1) or varies_u <= 1e-12 * max(uu, 1):
        return math.nan, "the annotators agree everywhere" if dd == 0 else "a map is constant"
    return (du - d * u / n) / math.sqrt(varies_d * varies_u), ""


def _mean_pair_dice(overlap: npt.NDArray[np.int64], maps: list[int], who: str) -> tuple[float, str]:
    each = [pair_dice(overlap, one, other) for one, other in combinations(maps, 2)]
    defined = [value for value in each if not math.isnan(value)]
    if not defined:
        return math.nan, f"no {who.removesuffix('s drew').removesuffix('s found')} has the organ"
    left_out = len(each) - len(defined)
    return float(np.mean(defined)), f"{left_out} of {len(each)} pairs have no organ" if left_out else ""
