"""Tests between the three families of predictors: the study's published one, and the paired one that fits the design.

Belongs here: the tests, their corrections, effect sizes and intervals (DEFINITIONS, Statistics). Does not belong here:
reading, averaging over organs (`reduction`), words. The tests and the bootstrap are SciPy's.
"""

import warnings
from collections.abc import Mapping
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from curvas_assets.errors import StatisticsError
from curvas_assets.statistics.directions import directions
from curvas_assets.statistics.reduction import checked_scores, reduce_scores
from curvas_assets.study import Statistics

Alternative = Literal["greater", "less"]
PAIRS = (("general", "annotator"), ("general", "individual"), ("annotator", "individual"))
"""The three comparisons of the study, in its order; the first of each is the one said to be better."""
COLUMNS = (
    "metric",
    "alternative",
    "pair",
    "first",
    "second",
    "n_first",
    "n_second",
    "nan_first",
    "nan_second",
    "U",
    "p",
    "p_bonferroni",
    "n_pairs",
    "unpaired_patients",
    "wilcoxon",
    "p_wilcoxon",
    "p_holm",
    "rank_biserial",
    "median_difference",
    "ci_low",
    "ci_high",
    "note",
)
STANDARD = Statistics()
ROUNDING = 1e-7
"""Differences of family means smaller than this, relative to the means, are rounding, of sums and of probabilities at 16
bits: `confidence`, linear in the probabilities, has the same mean in every family, up to 3e-8 on the demo's patients."""


def compare_families(
    scores: pd.DataFrame,
    metric: str,
    alternative: Alternative,
    *,
    bootstrap_samples: int = 9999,
    bootstrap_seed: int = 20250515,
    confidence_level: float = 0.95,
) -> pd.DataFrame:
    """Is one family of predictors better than another on a metric? The published test and the paired one, side by side.

    Published: one-sided Mann–Whitney U over all values of two families, asymptotic with continuity correction,
    Bonferroni over the pairs tested. It takes the values of one patient under nine models for independent.
    Paired: per patient the mean within each family, one-sided Wilcoxon signed-rank on the differences (zeros left out),
    Holm over the pairs tested, matched-pairs rank-biserial correlation, and the median difference with its percentile
    bootstrap interval over patients.

    Args:
        scores: columns `patient`, `predictor`, `family` (general, annotator, individual), `metric`, `value`. With `organ`
            or `annotator` columns it is reduced first (`reduce_scores`). Also the result of `read_published_scores`.
        metric: the metric to compare.
        alternative: `greater` where higher is better, `less` where lower is: what is claimed of the first family.
        bootstrap_samples: resamples of the patients.
        bootstrap_seed: seed of the resampling.
        confidence_level: of the bootstrap interval.

    Returns:
        One row per pair (general–annotator, general–individual, annotator–individual):
        `n_first`, `n_second` (defined values), `nan_first`, `nan_second` (undefined, left out), `U` (of the first),
        `p`, `p_bonferroni`; `n_pairs` (patients in both), `unpaired_patients` (in one only), `wilcoxon` (sum of the
        ranks of positive differences), `p_wilcoxon`, `p_holm`, `rank_biserial` (−1 … 1, positive when the first is
        higher), `median_difference` (first − second, unit of the metric), `ci_low`, `ci_high`; `note` says why a figure
        is NaN.

    Raises:
        StatisticsError: a column or the metric is missing, a value stands there twice, or the alternative is unknown.

    References:
        Mann & Whitney 1947, doi:10.1214/aoms/1177730491; Kerby 2014, doi:10.2466/11.IT.3.1 (rank-biserial).
    """
    if alternative not in ("greater", "less"):
        raise StatisticsError(
            "comparing families", metric, f"the alternative is {alternative!r}", "Use 'greater' or 'less'."
        )
    if not 0 < confidence_level < 1:
        raise StatisticsError(
            "comparing families", metric, f"the confidence level is {confidence_level}", "Use one between 0 and 1."
        )
    table = checked_scores(_table_of(scores), ("patient", "predictor", "family", "metric", "value"))
    table = table[table["metric"] == metric]
    if table.empty:
        present = sorted(map(str, _table_of(scores)["metric"].unique()))
        raise StatisticsError(
            "comparing families", metric, "no score of this metric is in the table", f"Use one of {present}."
        )
    reduced = reduce_scores(table)
    resample = np.random.default_rng(bootstrap_seed)
    rows = [
        {"metric": metric, "alternative": alternative, "pair": f"{first} vs {second}", "first": first, "second": second}
        | _published(reduced, first, second, alternative)
        | _paired(reduced, first, second, alternative, bootstrap_samples, resample, confidence_level)
        for first, second in PAIRS
    ]
    result = pd.DataFrame(rows)
    result["p_bonferroni"] = corrected(result["p"], "bonferroni")
    result["p_holm"] = corrected(result["p_wilcoxon"], "holm")
    result["note"] = result["note_published"].where(
        result["note_paired"] == "", result["note_published"] + "; " + result["note_paired"]
    )
    result["note"] = result["note"].str.strip("; ")
    return result[list(COLUMNS)]


def compare_all_families(
    scores: pd.DataFrame,
    statistics: Statistics = STANDARD,
    *,
    alternatives: Mapping[str, Alternative] | None = None,
) -> pd.DataFrame:
    """`compare_families` for every metric of the table that has a better side, one below the other.

    Args:
        scores: as for `compare_families`.
        statistics: the study's settings of the bootstrap. Its seed is used anew for each metric, so that a metric's
            rows do not depend on which others are in the table.
        alternatives: metric → `greater` or `less`; taken from the metrics' directions when left out. Metrics without one
            are not tested.

    Raises:
        StatisticsError: as for `compare_families`.
    """
    table = checked_scores(_table_of(scores), ("metric",))
    sides = alternatives_of(directions()) if alternatives is None else alternatives
    parts = [
        compare_families(
            part,
            str(metric),
            sides[str(metric)],
            bootstrap_samples=statistics.bootstrap_samples,
            bootstrap_seed=statistics.bootstrap_seed,
        )
        for metric, part in table.groupby("metric", sort=False)
        if str(metric) in sides
    ]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(COLUMNS))


def alternatives_of(better: Mapping[str, str]) -> dict[str, Alternative]:
    """The alternative of each metric: that the first family is better."""
    sides: Mapping[str, Alternative] = {"higher": "greater", "lower": "less"}
    return {metric: sides[direction] for metric, direction in better.items() if direction in sides}


def corrected(p: pd.Series, method: Literal["bonferroni", "holm"]) -> npt.NDArray[np.float64]:
    """P values corrected for the tests that were possible; NaN stays NaN and does not count as a test.

    statsmodels' `multipletests` gives the same (a test says so), but collects garbage at every call: 0.07 s in a small
    process, and each metric is corrected on its own.
    """
    values = p.to_numpy(float)
    result = np.full(values.shape, np.nan)
    tested = np.flatnonzero(~np.isnan(values))
    if method == "bonferroni":
        result[tested] = np.minimum(1, values[tested] * tested.size)
        return result
    ordered = tested[np.argsort(values[tested], kind="stable")]
    steps = values[ordered] * np.arange(tested.size, 0, -1)
    result[ordered] = np.minimum(1, np.maximum.accumulate(steps)) if tested.size else steps
    return result


def _table_of(scores: pd.DataFrame) -> pd.DataFrame:
    """The table itself, also of what `read_published_scores` returns."""
    return scores if isinstance(scores, pd.DataFrame) else getattr(scores, "scores", scores)


def _published(reduced: pd.DataFrame, first: str, second: str, alternative: Alternative) -> dict[str, object]:
    """The study's test: all values of one family against all of the other."""
    one, two = (reduced.loc[reduced["family"] == family, "value"].to_numpy(float) for family in (first, second))
    x, y = one[~np.isnan(one)], two[~np.isnan(two)]
    row: dict[str, object] = {
        "n_first": x.size,
        "n_second": y.size,
        "nan_first": one.size - x.size,
        "nan_second": two.size - y.size,
        "U": np.nan,
        "p": np.nan,
        "note_published": "",
    }
    if not x.size or not y.size:
        empty = " and ".join(family for family, values in ((first, x), (second, y)) if not values.size)
        return row | {"note_published": f"no defined value of {empty}"}
    with np.errstate(divide="ignore", invalid="ignore"):  # all values equal: the variance is 0 and p is 1
        test = stats.mannwhitneyu(x, y, alternative=alternative, method="asymptotic", use_continuity=True)
    return row | {"U": float(test.statistic), "p": float(test.pvalue)}


def _paired(
    reduced: pd.DataFrame,
    first: str,
    second: str,
    alternative: Alternative,
    samples: int,
    resample: np.random.Generator,
    level: float,
) -> dict[str, object]:
    """The same patients under both families: differences of the family means, patient by patient."""
    defined = reduced[reduced["value"].notna()]
    one, two = (
        defined[defined["family"] == family]
        .groupby("patient")["value"]
        .agg(lambda v: float(np.mean(v.to_numpy(float))))
        for family in (first, second)
    )
    both = one.index.intersection(two.index).sort_values()
    row: dict[str, object] = {
        "n_pairs": len(both),
        "unpaired_patients": len(one.index.symmetric_difference(two.index)),
        "wilcoxon": np.nan,
        "p_wilcoxon": np.nan,
        "rank_biserial": np.nan,
        "median_difference": np.nan,
        "ci_low": np.nan,
        "ci_high": np.nan,
        "note_paired": "",
    }
    if not len(both):
        return row | {"note_paired": "no patient with both families"}
    difference = paired_differences(one.loc[both].to_numpy(float), two.loc[both].to_numpy(float))
    row["median_difference"] = _median(difference)
    if not difference.any():
        # SciPy divides by zero here; nothing differs, so nothing speaks for the alternative.
        row |= {"wilcoxon": 0.0, "p_wilcoxon": 1.0, "rank_biserial": 0.0, "note_paired": "all differences are zero"}
    else:
        test = stats.wilcoxon(difference, alternative=alternative, zero_method="wilcox")
        ranks = np.count_nonzero(difference)
        row["wilcoxon"] = float(test.statistic)  # one-sided: the ranks of positive differences
        row["p_wilcoxon"] = float(test.pvalue)
        row["rank_biserial"] = 2 * float(test.statistic) / (ranks * (ranks + 1) / 2) - 1
    if len(both) < 2:
        return row | {"note_paired": _joined(row["note_paired"], "one patient has no bootstrap interval")}
    with np.errstate(invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # infinite differences, told in the note
        interval = stats.bootstrap(
            (difference,),
            np.median,
            n_resamples=samples,
            batch=max(1, 4_000_000 // difference.size),
            confidence_level=level,
            method="percentile",
            rng=resample,
        ).confidence_interval
    if np.isfinite([interval.low, interval.high]).all():
        row["ci_low"], row["ci_high"] = float(interval.low), float(interval.high)
    else:
        row["note_paired"] = _joined(row["note_paired"], "infinite differences: no finite bootstrap interval")
    return row


def paired_differences(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """First − second, where two infinite values of the same sign are equal and rounding is zero."""
    with np.errstate(invalid="ignore"):
        difference = one - two
        scale = np.maximum(np.abs(one), np.abs(two))
        equal = (one == two) | (np.abs(difference) <= ROUNDING * np.where(np.isfinite(scale), scale, 0))
    return np.where(equal, 0.0, difference)


def _median(values: np.ndarray) -> float:
    with np.errstate(invalid="ignore"):
        return float(np.median(values))


def _joined(note: object, more: str) -> str:
    return f"{note}; {more}" if note else more
