"""Failure detection: does the prediction know where it is wrong? From histograms over confidence, nothing is sorted."""

import math
from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd

from curvas_assets.scoring.counting import Counts
from curvas_assets.scoring.registry import Row

CURVE_POINTS = 300
"""Points kept of a risk–coverage curve; its area is computed from all of them."""


def failure(found: Counts, organs: Mapping[str, int]) -> Iterator[Row]:
    """`auroc` per organ and annotator; `auroc_error`, `aurc`, `eaurc` and `augrc` per annotator."""
    for organ, c in organs.items():
        for r, (absent, present) in enumerate(found.classes[c], 1):
            yield "auroc", organ, str(r), *auroc(present, absent, "annotated voxel")
    for r, (wrong, right) in enumerate(found.top, 1):
        yield "auroc_error", "", str(r), *auroc(wrong[::-1], right[::-1], "wrong voxel")
        area, generalised, best = risk_areas(wrong, right)
        yield "aurc", "", str(r), area, ""
        yield "eaurc", "", str(r), area - best, ""
        yield "augrc", "", str(r), generalised, ""


def auroc(positives: npt.NDArray[np.int64], negatives: npt.NDArray[np.int64], what: str) -> tuple[float, str]:
    """Share of (positive, negative) pairs in which the positive has the larger code, ties counted half; and a note.

    Args:
        positives: (codes,) how many positives have each code.
        negatives: (codes,) how many negatives do.
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
    """Areas under the risk–coverage and generalised-risk curves, and that of a perfect ranking.

    One point per distinct confidence, trapezoids in coverage, flat down to coverage 0 (the generalised risk goes to 0
    there). The perfect ranking keeps every error for the last: the mean over k of the k smallest risks' mean.
    """
    coverage, risk = risk_curve(wrong, right)
    steps = np.diff(coverage, prepend=0.0)
    area = float(steps @ ((risk + np.concatenate([risk[:1], risk[:-1]])) / 2))
    generalised = risk * coverage
    general_area = float(steps @ ((generalised + np.concatenate([[0.0], generalised[:-1]])) / 2))
    n, errors = int((wrong + right).sum()), int(wrong.sum())
    return area, general_area, _perfect(n, errors)


def curves(found: Counts) -> pd.DataFrame:
    """Risk–coverage curves, thinned: annotator, coverage, risk."""
    parts = []
    for r, (wrong, right) in enumerate(found.top, 1):
        coverage, risk = risk_curve(wrong, right)
        grid = np.unique(
            np.searchsorted(coverage, np.linspace(coverage[0], 1, CURVE_POINTS)).clip(0, len(coverage) - 1)
        )
        parts.append(pd.DataFrame({"annotator": str(r), "coverage": coverage[grid], "risk": risk[grid]}))
    return pd.concat(parts, ignore_index=True)


def _perfect(n: int, errors: int) -> float:
    """(1/n) Σ_{k = n−e+1}^{n} (k − (n − e))/k, without summing 10⁸ terms: harmonic numbers by their asymptotic series."""
    right = n - errors
    return (errors - right * (_harmonic(n) - _harmonic(right))) / n if errors else 0.0


def _harmonic(n: int) -> float:
    from scipy.special import digamma

    return float(digamma(n + 1)) + np.euler_gamma
