"""On which side each metric is better.

Belongs here: the directions used where nobody gives any. Does not belong here: anything else about metrics, which
`curvas_assets.scoring` registers. The registry's word counts; the names below are metrics of `scoring/definitions.md` that
a table may hold although this version does not score them (a published one, an older one).
"""

from collections.abc import Mapping

HIGHER_IS_BETTER = (
    "dice",
    "dice_published",
    "dice_annotator",
    "nsd",
    "confidence",
    "ncc",
    "auroc",
    "auroc_error",
)
LOWER_IS_BETTER = (
    "hausdorff",
    "hd95",
    "assd",
    "crps",
    "crps_published",
    "ece",
    "ece_published",
    "ace",
    "adaptive_ece",
    "classwise_ece",
    "ece_mean_response",
    "brier",
    "nll",
    "ged",
    "aurc",
    "eaurc",
    "augrc",
)
KNOWN: Mapping[str, str] = {**dict.fromkeys(HIGHER_IS_BETTER, "higher"), **dict.fromkeys(LOWER_IS_BETTER, "lower")}
"""Metric → `higher` or `lower`; entropies and the agreement of annotators or of members have no
better side."""


def directions() -> dict[str, str]:
    """Metric → `higher`, `lower`, or empty where neither is better: the registry's, and what else is known."""
    from curvas_assets.scoring.registry import METRICS  # with numba: only when it is asked for

    return {**KNOWN, **{name: metric.direction for name, metric in METRICS.items()}}
