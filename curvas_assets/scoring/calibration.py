"""Calibration: how far probabilities and frequencies differ, from histograms over 16-bit codes."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from curvas_assets.scoring.counting import CLIP, CODES, FULL, Counts
from curvas_assets.scoring.registry import Row

Histogram = npt.NDArray[Any]
BACKGROUND = "background"
CODE = np.arange(CODES, dtype=np.int64)


def calibration(found: Counts, organs: Mapping[str, int], ece_bins: int, ace_bins: int) -> Iterator[Row]:
    """`ece`, `ace`, `adaptive_ece`, `classwise_ece`, `brier`, `nll` per annotator; `ece_mean_response` per organ."""
    names = {BACKGROUND: 0, **organs}
    squares = sum(int(_total(h) @ CODE**2) for h in found.classes[:, 0])
    losses = -np.log(np.maximum(CODE / FULL, CLIP))
    for r in range(found.top.shape[0]):
        annotator = str(r + 1)
        top, own = found.top[r], found.classes[:, r]
        yield "ece", "", annotator, expected_error(top[1], _total(top), ece_bins), ""
        yield "ace", "", annotator, average_error(top[1], _total(top), ace_bins), ""
        yield "adaptive_ece", "", annotator, equal_count_error(top[1], _total(top), ace_bins), ""
        each = {name: expected_error(own[c, 1], _total(own[c]), ece_bins) for name, c in names.items()}
        for organ in organs:
            yield "classwise_ece", organ, annotator, each[organ], ""
        yield "classwise_ece", "", annotator, sum(each.values()) / len(each), "mean over classes, background included"
        given = int((own[:, 1] @ CODE).sum())
        yield "brier", "", annotator, (squares / FULL - 2 * given) / FULL / found.voxels + 1, ""
        yield "nll", "", annotator, float((own[:, 1] @ losses).sum()) / found.voxels, "clipped at 1e-7"
    for organ, c in organs.items():
        responses = found.classes[c, :, 1].mean(axis=0)
        yield "ece_mean_response", organ, "", expected_error(responses, _total(found.classes[c, 0]), ece_bins), ""


def reliability(found: Counts, bins: int) -> pd.DataFrame:
    """The bins behind `ece`: annotator, bin, lower, upper, count, confidence, accuracy (NaN where a bin is empty)."""
    edges = np.linspace(0, 1, bins + 1)
    parts = []
    for r, top in enumerate(found.top, 1):
        voxels, correct, codes = _bins(top[1], _total(top), bins)
        with np.errstate(invalid="ignore", divide="ignore"):
            parts.append(
                pd.DataFrame(
                    {
                        "annotator": str(r),
                        "bin": np.arange(bins),
                        "lower": edges[:-1],
                        "upper": edges[1:],
                        "count": voxels.astype(np.int64),
                        "confidence": codes / FULL / voxels,
                        "accuracy": correct / voxels,
                    }
                )
            )
    return pd.concat(parts, ignore_index=True)


def expected_error(positive: Histogram, every: Histogram, bins: int) -> float:
    """Σ n_b/n |frequency − mean probability| over bins of equal width.

    Args:
        positive: (65536,) voxels, or shares of voxels, for which the event came true, by code.
        every: (65536,) voxels by code.
        bins: their number.
    """
    voxels, hits, codes = _bins(positive, every, bins)
    return float(np.abs(hits - codes / FULL).sum() / voxels.sum())


def average_error(positive: Histogram, every: Histogram, bins: int) -> float:
    """As `expected_error`, but every bin that holds a voxel counts the same."""
    voxels, hits, codes = _bins(positive, every, bins)
    filled = voxels > 0
    return float((np.abs(hits - codes / FULL)[filled] / voxels[filled]).mean())


def equal_count_error(positive: Histogram, every: Histogram, bins: int) -> float:
    """As `average_error`, in bins of equally many voxels. Voxels of one code that a limit divides go to both sides in
    proportion, so that the order within a tie does not matter.

    References:
        Nguyen & O'Connor 2015, arXiv:1508.05154 (equal-count bins).
    """
    rank = np.concatenate([[0], np.cumsum(every)]).astype(float)
    limits = np.linspace(0, rank[-1], bins + 1)
    hits = np.diff(np.interp(limits, rank, np.concatenate([[0], np.cumsum(positive)])))
    codes = np.diff(np.interp(limits, rank, np.concatenate([[0], np.cumsum(every * CODE)]) / FULL))
    return float(np.abs(hits - codes).sum() / rank[-1])


def _total(histogram: Histogram) -> Histogram:
    """Both answers together."""
    return histogram.sum(axis=0)


def _bins(positive: Histogram, every: Histogram, bins: int) -> tuple[npt.NDArray[Any], ...]:
    """Voxels, positives and sum of codes in each bin [lower, upper), the last one closed.

    Limits are whole codes: with 50 bins those of 0.2, 0.4, … lie on one, where float edges may fall on either side.
    """
    limits = -(-np.arange(1, bins) * FULL // bins)
    ends = np.concatenate([[0], limits, [CODES]])
    return tuple(np.diff(np.concatenate([[0], np.cumsum(h)])[ends]) for h in (every, positive, every * CODE))
