"""The report's charts, each as an interactive plotly figure and as a matplotlib figure for print, from the same tidy data.

Belongs here: charts of tables. Does not belong here: pictures of slices and surfaces (`pictures`), text, arithmetic on
scores beyond pooling what is drawn (`curvas_assets.statistics` does the rest).
"""

import pandas as pd

from curvas_assets.errors import ReportError
from curvas_assets.report.style import FAMILIES

RELIABILITY_COLUMNS = ("lower", "upper", "count", "accuracy", "confidence")


def pooled_reliability(bins: pd.DataFrame) -> pd.DataFrame:
    """Bins pooled over patients, predictors and annotators, by family.

    Args:
        bins: `lower`, `upper` (edges of the confidence bin), `count` (voxels), `accuracy`, `confidence` (means within
            the bin; anything where `count` is 0), and possibly `family`.

    Returns:
        `family` ("" when there was none), `lower`, `upper`, `count`, `accuracy`, `confidence`; NaN where `count` is 0.

    Raises:
        ReportError: a column is missing.
    """
    missing = [column for column in RELIABILITY_COLUMNS if column not in bins]
    if missing:
        raise ReportError(
            "drawing a reliability diagram",
            "the table of bins",
            f"it has no {', '.join(missing)}",
            f"Give the columns {list(RELIABILITY_COLUMNS)}.",
        )
    table = bins.assign(
        family=bins.get("family", ""),
        correct=(bins["count"] * bins["accuracy"]).where(bins["count"] > 0, 0.0),
        confident=(bins["count"] * bins["confidence"]).where(bins["count"] > 0, 0.0),
    )
    pooled = table.groupby(["family", "lower", "upper"], as_index=False)[["count", "correct", "confident"]].sum()
    filled = pooled["count"].where(pooled["count"] > 0)
    pooled["accuracy"] = pooled["correct"] / filled
    pooled["confidence"] = pooled["confident"] / filled
    order = {family: rank for rank, family in enumerate(FAMILIES)}
    pooled = pooled.sort_values(["family", "lower"], key=lambda c: c.map(order).fillna(9) if c.name == "family" else c)
    return pooled.drop(columns=["correct", "confident"]).reset_index(drop=True)
