"""Calibration: how far probabilities and frequencies differ, from counts of confidences and of bins."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from curvas_assets.scoring.counting import Confidences, Counts
from curvas_assets.scoring.registry import Row

Counted = npt.NDArray[Any]
BACKGROUND = "background"


def calibration(found: Counts, organs: Mapping[str, int], ece_bins: int, ace_bins: int) -> Iterator[Row]:
    """`ece`, `ace`, `adaptive_ece`, `classwise_ece`, `brier`, `nll` per annotator; `ece_mean_response` per organ."""
    names = {BACKGROUND: 0, **organs}
    top = found.confidences
    voxels, mass = found.bins
    for r in range(len(top.wrong)):
        annotator = str(r + 1)
        right = top.voxels - top.wrong[r]
        yield "ece", "", annotator, expected_error(*_bins(top, right, ece_bins)), ""
        yield (
            "ece_published",
            "",
            annotator,
            float(found.published_ece[r]),
            "added up in float32, as the challenge does",
        )
        yield "ace", "", annotator, average_error(*_bins(top, right, ace_bins)), ""
        yield "adaptive_ece", "", annotator, equal_count_error(top, right, ace_bins), ""
        each = {name: expected_error(voxels[c], found.bin_hits[r, c], mass[c]) for name, c in names.items()}
        for organ in organs:
            yield "classwise_ece", organ, annotator, each[organ], ""
        yield "classwise_ece", "", annotator, sum(each.values()) / len(each), "mean over classes, background included"
        yield "brier", "", annotator, float(found.proper[r, 0]) / found.voxels, ""
        yield "nll", "", annotator, float(found.proper[r, 1]) / found.voxels, "clipped at 1e-7"
    for organ, c in organs.items():
        responses = found.bin_hits[:, c].mean(axis=0)
        yield "ece_mean_response", organ, "", expected_error(voxels[c], responses, mass[c]), ""


def reliability(found: Counts, bins: int) -> pd.DataFrame:
    """The bins behind `ece`: annotator, bin, lower, upper, count, confidence, accuracy (NaN where a bin is empty)."""
    edges = np.linspace(0, 1, bins + 1)
    parts = []
    for r, wrong in enumerate(found.confidences.wrong, 1):
        voxels, correct, mass = _bins(found.confidences, found.confidences.voxels - wrong, bins)
        with np.errstate(invalid="ignore", divide="ignore"):
            parts.append(
                pd.DataFrame(
                    {
                        "annotator": str(r),
                        "bin": np.arange(bins),
                        "lower": edges[:-1],
                        "upper": edges[1:],
                        "count": voxels.astype(np.int64),
                        "confidence": mass / voxels,
                        "accuracy": correct / voxels,
                    }
                )
            )
    return pd.concat(parts, ignore_index=True)


def expected_error(voxels: Counted, hits: Counted, mass: Counted) -> float:
    """Σ n_b/n |frequency − mean probability| over bins.

    Args:
        voxels: (bins,) n_b.
        hits: (bins,) voxels, or shares of voxels, for which the event came true.
        mass: (bins,) sum of the probabilities.
    """
    return float(np.abs(hits - mass).sum() / voxels.sum())


def average_error(voxels: Counted, hits: Counted, mass: Counted) -> float:
    """As `expected_error`, but every bin that holds a voxel counts the same."""
    filled = voxels > 0
    return float((np.abs(hits - mass)[filled] / voxels[filled]).mean())


def equal_count_error(top: Confidences, right: Counted, bins: int) -> float:
    """As `average_error`, in bins of equally many voxels. Voxels of one confidence that a limit divides go to both sides in
    proportion, so that the order within a tie does not matter.

    References:
        Nguyen & O'Connor 2015, arXiv:1508.05154 (equal-count bins).
    """
    rank = np.concatenate([[0], np.cumsum(top.voxels)]).astype(float)
    limits = np.linspace(0, rank[-1], bins + 1)
    hits = np.diff(np.interp(limits, rank, np.concatenate([[0], np.cumsum(right)])))
    mass = np.diff(np.interp(limits, rank, np.concatenate([[0], np.cumsum(top.voxels * top.values)])))
    return float(np.abs(hits - mass).sum() / rank[-1])


def _bins(top: Confidences, right: Counted, bins: int) -> tuple[Counted, Counted, Counted]:
    """Voxels, right ones and sum of confidences in each bin [lower, upper), the last one closed."""
    of = np.minimum((top.values * bins).astype(np.int64), bins - 1)
    voxels, hits, mass = (
        np.bincount(of, weights=each, minlength=bins) for each in (top.voxels, right, top.voxels * top.values)
    )
    return voxels, hits, mass
