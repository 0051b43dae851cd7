"""Failure detection: does the prediction know where it is wrong? From counts of confidences and ranks."""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from curvas_assets.scoring.counting import Counts, Ranks
from curvas_assets.scoring.registry import Row

CURVE_POINTS = 300
"""Points kept of a risk–coverage curve; its area is computed from all of them."""


def failure(found: Counts, ranks: Sequence[Ranks], organs: Mapping[str, int]) -> Iterator[Row]:
    """`auroc` per organ and annotator; `auroc_error`, `aurc`, `eaurc` and `augrc` per annotator."""
    for organ, of in zip(organs, ranks, strict=True):
        for r, positives in enumerate(of.positives, 1):
            yield "auroc", organ, str(r), *auroc(positives, of.voxels - positives, "annotated voxel")
    voxels = found.confidences.voxels
    for r, wrong in enumerate(found.confidences.wrong, 1):
        yield "auroc_error", "", str(r), *auroc(wrong[::-1], (voxels - wrong)[::-1], "wrong voxel")
        area, generalised, best = risk_areas(wrong, voxels - wrong)
        yield "aurc", "", str(r), area, ""
        yield "eaurc", "", str(r), max(area - best, 0.0), ""  # tied errors: see `risk_areas`
        yield "augrc", "", str(r), generalised, ""


def auroc(positives: npt.NDArray[np.int64], negatives: npt.NDArray[np.int64], what: str) -> tuple[float, str]:
    """Share of (positive, negative) pairs in which the positive has the higher rank, ties counted half; and a note.

    Args:
        positives: (ranks,) how many positives have each rank, ascending.
        negatives: (ranks,) how many negatives have each rank.
        what: a positive's name, for the note.
    """
    p, n = int(positives.sum()), int(negatives.sum())
    if p == 0 or n == 0:
        return math.nan, f"no {what}" if p == 0 else f"nothing but {what}s"
    below = np.cumsum(negatives) - negatives
    return (float(positives.astype(float) @ below) + 0.5 * float(positives.astype(float) @ negatives)) / p / n, ""


def risk_curve(wrong: npt.NDArray[np.int64], right: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.float64], ...]:
    """Coverage and risk at every distinct confidence t, over {confidence ≥ t}; coverage grows to 1."""
    kept = np.cumsum((wrong + right)[::-1])
    errors = np.cumsum(wrong[::-1])
    distinct = (wrong + right)[::-1] > 0
    kept, errors = kept[distinct], errors[distinct]
    return kept / kept[-1], errors / kept


def risk_areas(wrong: npt.NDArray[np.int64], right: npt.NDArray[np.int64]) -> tuple[float, float, float]:
    """Areas under the risk–coverage and generalised-risk curves, and the risk–coverage area of a perfect ranking.

    One point per distinct confidence, trapezoids in coverage, flat down to coverage 0 (the generalised risk goes to 0
    there). The perfect ranking, integrated by the same rule, has the right voxels first as one group, then each error as a
    point of its own. Tied errors share a trapezoid, whose area can be smaller than that of the perfect ranking; the
    excess is then set to 0.

    Args:
        wrong: (confidences,) errors at each confidence, ascending.
        right: (confidences,) right voxels.

    >>> [round(area, 3) for area in risk_areas(np.array([1, 1, 0]), np.array([0, 0, 2]))]  # 7/48, 1/8, 7/48
    [0.146, 0.125, 0.146]
    """
    coverage, risk = risk_curve(wrong, right)
    steps = np.diff(coverage, prepend=0.0)
    area = float(steps @ ((risk + np.concatenate([risk[:1], risk[:-1]])) / 2))
    generalised = risk * coverage
    general_area = float(steps @ ((generalised + np.concatenate([[0.0], generalised[:-1]])) / 2))
    return area, general_area, _perfect(int(right.sum()), int(wrong.sum()))


def curves(found: Counts) -> pd.DataFrame:
    """Risk–coverage curves, thinned: annotator, coverage, risk."""
    parts = []
    for r, wrong in enumerate(found.confidences.wrong, 1):
        coverage, risk = risk_curve(wrong, found.confidences.voxels - wrong)
        grid = np.unique(
            np.searchsorted(coverage, np.linspace(coverage[0], 1, CURVE_POINTS)).clip(0, len(coverage) - 1)
        )
        parts.append(pd.DataFrame({"annotator": str(r), "coverage": coverage[grid], "risk": risk[grid]}))
    return pd.concat(parts, ignore_index=True)


def _perfect(right: int, errors: int) -> float:
    """Trapezoids of the risk j / (right + j) over j = 0 … errors, in steps of 1 / n of coverage.

    If no voxel is right, the risk is 1 throughout. Harmonic numbers give Σ j / (right + j): 10⁸ terms at no cost.
    """
    n = right + errors
    if errors == 0 or right == 0:
        return float(errors > 0)
    whole = errors - right * (_harmonic(n) - _harmonic(right))
    return (whole - errors / n / 2) / n


def _harmonic(n: int) -> float:
    from scipy.special import digamma

    return float(digamma(n + 1)) + np.euler_gamma
