"""Units in which people read the scores: volumes are scored in mm³ and shown in cm³, in the report, the UI and the console.

Belongs here: the conversion of tables for reading, and a metric's name with its unit. What is stored, tested and ranked
keeps the unit it was scored in; it stands in the column `unit`.
"""

from collections.abc import Collection

import pandas as pd

from curvas_assets.geometry import MM3_PER_ML

SHOWN = "cm³"
MM3 = ("mm³", "mm3")
CM3_PER_MM3 = 1 / MM3_PER_ML
_DIFFERENCES = ("mean_first", "mean_second", "mean_difference", "interval_low", "interval_high", "bound", "margin")
_MEANS = ("value", "mean", "sd", "median", "q1", "q3")
_VARIANCES = ("mean_square", "variance", "low", "high")


def shown_unit(unit: str) -> str:
    """The unit in which a metric of this unit is read."""
    return SHOWN if unit in MM3 else unit


def with_unit(name: str, unit: str) -> str:
    """A metric's name with the unit in which people read it.

    >>> with_unit("crps", "mm³"), with_unit("CRPS (cut)", "mm³"), with_unit("dice", "")
    ('crps (cm³)', 'CRPS (cut, cm³)', 'dice')
    """
    if not unit:
        return name
    shown = shown_unit(unit)
    return f"{name[:-1]}, {shown})" if name.endswith(")") else f"{name} ({shown})"


def units_of(scores: pd.DataFrame) -> dict[str, str]:
    """Metric → the unit of its scores; empty where they have none."""
    if "unit" not in scores:
        return {}
    own = scores[["metric", "unit"]].drop_duplicates("metric").astype("string").fillna("")
    return dict(zip(own["metric"].astype(str), own["unit"].astype(str), strict=True))


def shown_scores(scores: pd.DataFrame) -> pd.DataFrame:
    """Scores, or means of them, in the units they are read in.

    Args:
        scores: with `unit`, and `value` or `mean`, `sd`, `median`, `q1`, `q3`; other columns stay as they are.
    """
    if "unit" not in scores:
        return scores
    shown = scores.copy()
    in_mm3 = shown["unit"].isin(MM3)
    _convert(shown, in_mm3, _MEANS, CM3_PER_MM3)
    shown["unit"] = shown["unit"].mask(in_mm3, SHOWN)
    return shown


def shown_differences(comparisons: pd.DataFrame, in_mm3: Collection[str]) -> pd.DataFrame:
    """Comparisons of families in the units they are read in.

    Args:
        comparisons: from `compare_all_families` or `non_inferiority`; they name no unit.
        in_mm3: the metrics that were scored in mm³.
    """
    shown = comparisons.copy()
    if len(shown):
        hit = shown["metric"].isin(list(in_mm3))
        _convert(shown, hit, _DIFFERENCES, CM3_PER_MM3)
    return shown


def shown_variances(components: pd.DataFrame) -> pd.DataFrame:
    """Components of variance in the units that their scores are read in, squared.

    Args:
        components: from `variance_components`.
    """
    shown, in_mm3 = components.copy(), components["unit"].isin(MM3)
    _convert(shown, in_mm3, _VARIANCES, CM3_PER_MM3**2)
    shown["unit"] = shown["unit"].mask(in_mm3, SHOWN)
    return shown


def _convert(shown: pd.DataFrame, rows: pd.Series, columns: Collection[str], factor: float) -> None:
    """Multiply those of the columns that a table has, in some of its rows."""
    for column in (column for column in columns if column in shown):
        values = shown[column].astype(float)
        shown[column] = values.mask(rows, values * factor)


def scored_in_mm3(scores: pd.DataFrame) -> frozenset[str]:
    """The metrics whose scores are in mm³."""
    return frozenset(metric for metric, unit in units_of(scores).items() if unit in MM3)
