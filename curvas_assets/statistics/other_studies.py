"""Two studies side by side: the same patients, the predictors of one against those of the other.

Belongs here: which rows of two tables of scores answer each other, and the table of their differences. Does not belong here: the
tests themselves (`families`), reading tables.
"""

from collections.abc import Sequence

import pandas as pd

from curvas_assets.statistics.families import compare_all_families, corrected
from curvas_assets.statistics.pairs import Pair
from curvas_assets.statistics.reduction import WHOLE, checked_scores, reduced_scores
from curvas_assets.study import Statistics

COLUMNS = (
    "other",
    "metric",
    "question",
    "level",
    "first",
    "second",
    "n_pairs",
    "unpaired_patients",
    "mean_first",
    "mean_second",
    "mean_difference",
    "interval_low",
    "interval_high",
    "win_probability",
    "p",
    "p_adjusted",
    "note",
)
SEPARATOR = ": "
"""Between a study and its family or predictor, as they stand side by side; names have no colon."""


def compare_studies(
    own: pd.DataFrame, other: pd.DataFrame, statistics: Statistics, *, names: tuple[str, str], families: Sequence[str]
) -> pd.DataFrame:
    """Is a family or predictor of one study better than its namesake of another, on the patients of both?

    Every primary metric, family by family and, where both studies have a predictor of one name, predictor by predictor.
    The test within patients and the interval over patients are those of `compare_families`, two-sided, because neither study
    is claimed to be better; p is corrected by Holm over all rows of one level. Means over organs are of the organs that both
    studies score. Else values are compared as they were scored: they answer each other only if both studies evaluate alike
    (region, reference, bins; what is of the whole image also needs the same classes).

    Args:
        own: long scores of this study.
        other: the same of the other study.
        statistics: primary metrics, draws and seed.
        names: of this study and of the other, which differ.
        families: in the order in which they are told.

    Returns:
        One row per metric and pair: `other`, `metric`, `question`, `level` (family or predictor), `first` and `second` (the name
        in each study), `n_pairs` (patients), `unpaired_patients`, `mean_first`, `mean_second` (over those patients),
        `mean_difference` (first − second), `interval_low`, `interval_high`, `win_probability` (of the first), `p` (two-sided),
        `p_adjusted`, `note`. Empty if the studies share no patient.

    Raises:
        StatisticsError: a column is missing, or a value stands there twice.
    """
    question = {metric: name for name, metric in statistics.primary.items()}
    checked = [checked_scores(table, ("metric", "patient", "predictor", "family")) for table in (own, other)]
    tables = [reduced_scores(table) for table in _of_shared_organs(*checked)]
    shared = set(tables[0]["patient"]) & set(tables[1]["patient"])
    both = [table[table["patient"].isin(shared) & table["metric"].isin(question)] for table in tables]
    pairs = {
        "family": [one for one in families if all(one in set(table["family"]) for table in both)],
        "predictor": [one for one in dict.fromkeys(both[0]["predictor"]) if one in set(both[1]["predictor"])],
    }
    joined = pd.concat([_named(table, name) for table, name in zip(both, names, strict=True)], ignore_index=True)
    rows: list[dict[str, object]] = []
    for level, found in pairs.items():
        first, second = names
        sides = [Pair(f"{first}{SEPARATOR}{one}", f"{second}{SEPARATOR}{one}", "configured") for one in found]
        compared = compare_all_families(joined, statistics, pairs=sides) if sides and len(joined) else pd.DataFrame()
        if compared.empty:
            continue
        adjusted = corrected(compared["p_randomisation_two_sided"], "holm")
        for row, p in zip(compared.to_dict(orient="records"), adjusted, strict=True):
            means = _means(joined[joined["metric"] == row["metric"]], level, row["first"], row["second"])
            own_row = {
                "other": names[1],
                "question": question[row["metric"]],
                "level": level,
                "first": row["first"].partition(SEPARATOR)[2],
                "second": row["second"].partition(SEPARATOR)[2],
                "mean_first": means[0],
                "mean_second": means[1],
                "p": row["p_randomisation_two_sided"],
                "p_adjusted": p,
            }
            rows.append({**{name: row[name] for name in TAKEN}, **own_row})
    return pd.DataFrame(rows, columns=list(COLUMNS))


TAKEN = (
    "metric",
    "n_pairs",
    "unpaired_patients",
    "mean_difference",
    "interval_low",
    "interval_high",
    "win_probability",
    "note",
)
"""Columns that are those of `compare_families`."""


def _of_shared_organs(own: pd.DataFrame, other: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Both tables without the organs that only one of them scores."""
    if "organ" not in own or "organ" not in other:
        return own, other
    organs = [table["organ"].astype("string").fillna("") for table in (own, other)]
    shared = (set(organs[0]) & set(organs[1])) | set(WHOLE)
    return own[organs[0].isin(shared)], other[organs[1].isin(shared)]


def _named(table: pd.DataFrame, study: str) -> pd.DataFrame:
    """The table with families and predictors that say whose they are."""
    return table.assign(
        **{column: f"{study}{SEPARATOR}" + table[column].astype(str) for column in ("family", "predictor")}
    )


def _means(joined: pd.DataFrame, level: str, first: str, second: str) -> tuple[float, float]:
    """Means over the patients that have a value on both sides, of each patient's mean."""
    sides = [joined[joined[level] == side].groupby("patient")["value"].mean().dropna() for side in (first, second)]
    patients = sides[0].index.intersection(sides[1].index)
    return float(sides[0][patients].mean()), float(sides[1][patients].mean())
