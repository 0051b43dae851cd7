"""From the long table of scores to one value per patient, predictor and metric, and to means over patients.

Belongs here: averaging, and the count of what was left out of each average. Does not belong here: tests (`families`),
metrics (`curvas_assets.scoring`). Every average says how many undefined values it left out.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from curvas_assets.errors import StatisticsError

WHOLE = ("", "mean", "all")
"""Entries of `organ` and `annotator` that already stand for all of them."""
KEYS = ("patient", "predictor", "metric")
SUMMARY = ("n", "n_nan", "n_infinite", "mean", "sd", "median", "q1", "q3", "minimum", "maximum")


def reduce_scores(scores: pd.DataFrame) -> pd.DataFrame:
    """One value per patient, predictor and metric: the mean over annotators, then over organs.

    A row for all annotators (`annotator` empty or `mean`) or for all organs is taken as it is where there is one, and
    the single rows are ignored. Undefined values (NaN) are left out of the mean and counted; an infinite one (a
    Hausdorff distance to nothing) makes it infinite.

    Args:
        scores: long table with `patient`, `predictor`, `metric`, `value`; `organ`, `annotator`, `family`, `group` and
            `unit` where they are known.

    Returns:
        `patient`, `predictor`, `family`, `group`, `metric`, `value`, `unit`, `n_values` (values averaged) and `n_nan`
        (values left out), in the order of the input.

    Raises:
        StatisticsError: a column is missing, or a value stands there twice.
    """
    table = checked_scores(scores, ("patient", "predictor", "metric", "value"))
    for column in ("organ", "annotator", "family", "group", "unit"):
        table[column] = _texts(table[column]) if column in table else ""
    table["value"] = pd.to_numeric(table["value"], errors="coerce").astype(float)
    keys: list[str] = list(KEYS)
    twice = table.duplicated([*keys, "organ", "annotator"], keep=False)
    if twice.any():
        one = table.loc[twice, [*keys, "organ", "annotator"]].iloc[0].to_dict()
        raise StatisticsError(
            "reducing scores",
            f"{one['patient']}, {one['predictor']}",
            f"{int(twice.sum())} values appear more than once, the first being {one}",
            "Give each metric, organ and annotator of a patient and predictor once.",
        )
    table = _whole_first(table, keys, "organ")
    table = _whole_first(table, [*keys, "organ"], "annotator")
    per_organ = _mean(table, [*keys, "organ"])
    means = _mean(per_organ, keys, values="n_values", missing="n_nan")
    first = table.groupby(keys, sort=False, as_index=False)[["family", "group", "unit"]].first()
    reduced = first.merge(means, on=keys, how="left")
    return reduced[["patient", "predictor", "family", "group", "metric", "value", "unit", "n_values", "n_nan"]]


def reduced_scores(scores: pd.DataFrame) -> pd.DataFrame:
    """Scores as `reduce_scores` gives them; as they are if they have been reduced."""
    require_table(scores)
    return scores if {"n_values", "n_nan"} <= set(scores.columns) else reduce_scores(scores)


def summarise(scores: pd.DataFrame, by: Sequence[str] = ("predictor",)) -> pd.DataFrame:
    """Means and quartiles over patients, per metric and group of predictors.

    Args:
        scores: long table as for `reduce_scores`, or its result.
        by: columns that name a group: `predictor`, `family`, `group`, or several.

    Returns:
        One row per metric and group: `metric`, the columns of `by`, `unit`, then `n` (defined values), `n_nan` (undefined,
        left out), `n_infinite` (left out of mean and sd, kept in median and quartiles), `mean`, `sd` (ddof 1), `median`,
        `q1`, `q3`, `minimum`, `maximum`, and `n_patients` with a defined value.

    Raises:
        StatisticsError: a column is missing, or a value stands there twice.
    """
    require_table(scores)
    reduced = reduced_scores(scores)
    reduced = checked_scores(reduced, ("patient", "metric", "value", *by))
    rows = []
    for key, part in reduced.groupby(["metric", *by], sort=False):
        values = part["value"].to_numpy(float)
        defined = values[~np.isnan(values)]
        finite = defined[np.isfinite(defined)]
        q1, median, q3 = _quartiles(defined)
        rows.append(
            dict(zip(["metric", *by], key, strict=True))  # type: ignore[arg-type]
            | {
                "unit": part["unit"].iloc[0] if "unit" in part else "",
                "n": defined.size,
                "n_nan": values.size - defined.size,
                "n_infinite": defined.size - finite.size,
                "mean": finite.mean() if finite.size else np.nan,
                "sd": finite.std(ddof=1) if finite.size > 1 else np.nan,
                "median": median,
                "q1": q1,
                "q3": q3,
                "minimum": defined.min() if defined.size else np.nan,
                "maximum": defined.max() if defined.size else np.nan,
                "n_patients": part.loc[part["value"].notna(), "patient"].nunique(),
            }
        )
    return pd.DataFrame(rows, columns=["metric", *by, "unit", *SUMMARY, "n_patients"])


def best_predictors(summary: pd.DataFrame, directions: dict[str, str]) -> pd.DataFrame:
    """A summary with `best` true where a group has the best mean of its metric.

    A group with fewer infinite values comes before one with more, whatever the mean of the rest. Ties are all best.

    Args:
        summary: from `summarise`.
        directions: metric → `higher` or `lower`; a metric that is not named has no best.
    """
    require_table(summary)
    marked = summary.assign(best=False)
    for metric, part in summary[summary["mean"].notna()].groupby("metric", sort=False):
        if directions.get(str(metric)) not in ("higher", "lower"):
            continue
        part = part[part["n_infinite"] == part["n_infinite"].min()]
        top = part["mean"].max() if directions[str(metric)] == "higher" else part["mean"].min()
        marked.loc[part.index[part["mean"] == top], "best"] = True
    return marked


def checked_scores(scores: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """A copy of the scores that certainly has these columns; a StatisticsError names what is missing."""
    require_table(scores)
    missing = [column for column in columns if column not in scores]
    if missing:
        raise StatisticsError(
            "reading scores",
            "the table of scores",
            f"it has no column {', '.join(missing)} (found {list(scores.columns)})",
            "Give the long table of scores: patient, predictor, family, metric, value.",
        )
    return scores.copy()


def require_table(scores: object) -> None:
    """A StatisticsError unless this is a table: a path, for one, is not read."""
    if not isinstance(scores, pd.DataFrame):
        raise StatisticsError(
            "reading scores",
            "the table of scores",
            f"a {type(scores).__name__} instead of a table",
            "Give a DataFrame, e.g. of pandas.read_csv, or what read_published_scores returns.",
        )


def _texts(column: pd.Series) -> pd.Series:
    """The column as text, empty where it is undefined; itself where it is that already, which converting takes time to find."""
    if column.dtype == "str" and not column.hasnans:
        return column
    return column.astype("string").fillna("").astype(str)


def _whole_first(table: pd.DataFrame, keys: list[str], column: str) -> pd.DataFrame:
    """The table without single rows of `column` wherever it has a row for all of them."""
    whole = table[column].isin(WHOLE)
    has_whole = whole.groupby([table[key] for key in keys], sort=False).transform("any")
    return table[whole | ~has_whole]


def _mean(table: pd.DataFrame, keys: list[str], values: str | None = None, missing: str | None = None) -> pd.DataFrame:
    """Mean of `value` without NaN, how many values it averages and how many it leaves out. `values` and `missing` name
    columns with these counts of an earlier average.
    """
    undefined = table["value"].isna()
    work = table[keys].assign(
        total=table["value"].fillna(0.0),
        defined=(~undefined).astype(int),
        n_values=(~undefined).astype(int) if values is None else table[values],
        n_nan=undefined.astype(int) if missing is None else table[missing],
    )
    grouped = work.groupby(keys, sort=False, as_index=False)[["total", "defined", "n_values", "n_nan"]].sum()
    grouped["value"] = grouped["total"] / grouped["defined"].where(grouped["defined"] > 0)
    return grouped.drop(columns=["total", "defined"])


def _quartiles(values: np.ndarray) -> tuple[float, float, float]:
    """Quartiles that stay defined beside infinities: a quantile between a finite and an infinite value is infinite."""
    if not values.size:
        return np.nan, np.nan, np.nan
    with np.errstate(invalid="ignore"):
        linear = np.quantile(values, [0.25, 0.5, 0.75])
        if not np.isnan(linear).any():
            return float(linear[0]), float(linear[1]), float(linear[2])
        higher = np.quantile(values, [0.25, 0.5, 0.75], method="higher")
    q1, median, q3 = np.where(np.isnan(linear), higher, linear)
    return float(q1), float(median), float(q3)
