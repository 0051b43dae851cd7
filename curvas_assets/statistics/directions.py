"""On which side each metric is better.

Belongs here: the directions used where nobody gives any. Does not belong here: anything else about metrics, which
`curvas_assets.scoring` registers.
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
    "member_dice",
)
LOWER_IS_BETTER = (
    "hausdorff",
    "hd95",
    "assd",
    "crps",
    "crps_published",
    "ece",
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
DIRECTIONS: Mapping[str, str] = {**dict.fromkeys(HIGHER_IS_BETTER, "higher"), **dict.fromkeys(LOWER_IS_BETTER, "lower")}
"""Metric → `higher` or `lower`; entropies and the agreement of annotators have no better side."""
