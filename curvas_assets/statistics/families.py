"""Tests between the three families of predictors: the study's published one, and the one that fits the design.

Belongs here: the tests on tables of scores, their corrections, sizes and intervals, what is not inferior, and which metric
answers which question. Does not belong here: the randomisation itself (`randomisation`), reading, averaging over organs
(`reduction`), words. The published test and the bootstrap are SciPy's.
"""

import warnings
from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy

from curvas_assets.errors import StatisticsError
from curvas_assets.statistics.directions import directions
from curvas_assets.statistics.randomisation import ROUNDING, randomise
from curvas_assets.statistics.reduction import checked_scores, reduce_scores, require_table
from curvas_assets.study import Statistics

Alternative = Literal["greater", "less"]
PAIRS = (("general", "annotator"), ("general", "individual"), ("annotator", "individual"))
"""The three comparisons of the study, in its order; the claim is that the first of each is better."""
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
    "win_probability",
    "p_randomisation",
    "p_randomisation_two_sided",
    "p_randomisation_holm",
    "mean_difference",
    "interval_low",
    "interval_high",
    "note",
)
MARGIN_COLUMNS = (
    "metric",
    "pair",
    "first",
    "second",
    "n_pairs",
    "margin",
    "level",
    "mean_difference",
    "bound",
    "not_inferior",
    "note",
)
FEWEST = 6
"""Patients below which there is no interval and nothing is called significant: with 3 patients a nominal 95 % interval
covers 76 %, with 2 it covers 50 %."""
EXPLORATORY = "exploratory"
STANDARD = Statistics()


class Differences(NamedTuple):
    """Patients under two families.

    Attributes:
        first: (patients, most predictors) values of the first family, patients in order, NaN where there is none.
        second: the same of the second.
        means: (patients with both,) first − second of the family means; infinite where one of them is.
        unpaired: patients of one or both families without a defined value in both.
    """

    first: npt.NDArray[np.float64]
    second: npt.NDArray[np.float64]
    means: npt.NDArray[np.float64]
    unpaired: int


def compare_families(
    scores: pd.DataFrame,
    metric: str,
    alternative: Alternative,
    *,
    draws: int = 9999,
    seed: int = 20250515,
    confidence_level: float = 0.95,
) -> pd.DataFrame:
    """Is one family of predictors better than another on a metric? The published test and the valid one, side by side.

    Published: one-sided Mann–Whitney U over all values of two families, asymptotic with continuity correction,
    Bonferroni over the pairs tested. It treats the values of one patient under nine models as independent.
    Within patients: each patient's win probability, the share of (first, second) predictor pairs in which the first is
    better (ties half), averaged over patients and tested against ½ by randomisation within patients (`randomise`), Holm
    over the pairs tested. Beside it the size: the mean over patients of the difference of family means, with a BCa
    bootstrap interval over patients. Both are statements about these predictors on patients like these, not about other
    seeds or annotators.

    Args:
        scores: columns `patient`, `predictor`, `family` (general, annotator, individual), `metric`, `value`. With `organ`
            or `annotator` columns it is reduced first (`reduce_scores`). Also the result of `read_published_scores`.
        metric: the metric to compare.
        alternative: `greater` where higher is better, `less` where lower is: what is claimed of the first family.
        draws: of the randomisation, and resamples of the patients for the interval.
        seed: of both. Each pair draws on its own, so that its figures do not depend on the others.
        confidence_level: of the two-sided interval.

    Returns:
        One row per pair (general–annotator, general–individual, annotator–individual):
        `n_first`, `n_second` (defined values), `nan_first`, `nan_second` (undefined, left out), `U` (of the first),
        `p`, `p_bonferroni`; `n_pairs` (patients with a defined value in both), `unpaired_patients` (the others),
        `win_probability` (0 … 1, above ½ when the first wins more often, by the alternative's side), `p_randomisation` (the first is
        better), `p_randomisation_two_sided` (it differs), `p_randomisation_holm` (of the one-sided), `mean_difference`
        (first − second, unit of the metric), `interval_low`, `interval_high` (none below 6 patients); `note` says why a
        figure is NaN and how many patients with an infinite mean the size leaves out.

    Raises:
        StatisticsError: a column or the metric is missing, a value stands there twice, or the alternative is unknown.

    References:
        Mann & Whitney 1947, doi:10.1214/aoms/1177730491; Phipson & Smyth 2010, doi:10.2202/1544-6115.1585; Holm 1979,
        Scand J Stat 6:65; Efron 1987, doi:10.1080/01621459.1987.10478410 (BCa).
    """
    if alternative not in ("greater", "less"):
        raise StatisticsError(
            "comparing families", metric, f"the alternative is {alternative!r}", "Use 'greater' or 'less'."
        )
    if not 0 < confidence_level < 1:
        raise StatisticsError(
            "comparing families", metric, f"the confidence level is {confidence_level}", "Use one between 0 and 1."
        )
    if draws < 1:
        raise StatisticsError("comparing families", metric, f"there are {draws} draws", "Use 9999 or so.")
    reduced = _reduced(scores, metric)
    rows = [
        {"metric": metric, "alternative": alternative, "pair": f"{first} vs {second}", "first": first, "second": second}
        | _published(reduced, first, second, alternative)
        | _within(reduced, first, second, alternative, draws, [seed, number], confidence_level)
        for number, (first, second) in enumerate(PAIRS)
    ]
    result = pd.DataFrame(rows)
    result["p_bonferroni"] = corrected(result["p"], "bonferroni")
    result["p_randomisation_holm"] = corrected(result["p_randomisation"], "holm")
    result["note"] = [
        "; ".join(note for note in notes if note)
        for notes in zip(result["note_published"], result["note_within"], strict=True)
    ]
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
        statistics: the study's draws and seed. The seed is used anew for each metric, so that a metric's rows do not
            depend on which others are in the table.
        alternatives: metric → `greater` or `less`; taken from the metrics' directions when left out. Metrics without one
            are not tested.

    Raises:
        StatisticsError: as for `compare_families`.
    """
    table = checked_scores(_table_of(scores), ("metric",))
    sides = alternatives_of(directions()) if alternatives is None else alternatives
    parts = [
        compare_families(part, str(metric), sides[str(metric)], draws=statistics.draws, seed=statistics.seed)
        for metric, part in table.groupby("metric", sort=False)
        if str(metric) in sides
    ]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(COLUMNS))


def with_questions(comparisons: pd.DataFrame, statistics: Statistics = STANDARD) -> pd.DataFrame:
    """Comparisons with the column `question`: what a primary metric answers, `exploratory` for every other metric."""
    require_table(comparisons)
    of_metric = {metric: question for question, metric in statistics.primary.items()}
    questions = [of_metric.get(str(metric), EXPLORATORY) for metric in comparisons["metric"]]
    return comparisons.assign(question=pd.Series(questions, index=comparisons.index, dtype=str))


def non_inferiority(
    scores: pd.DataFrame,
    statistics: Statistics = STANDARD,
    *,
    metric: str | None = None,
    alternative: Alternative | None = None,
) -> pd.DataFrame:
    """Is the first family of each pair not worse than the second by more than the margin?

    Not being significantly worse does not show that nothing is lost; this does. The bound is the one-sided BCa bootstrap
    bound, at level 1 − alpha, of the mean over patients of the difference of family means (the lower one where higher is
    better). The first family is not inferior when the bound lies on the good side of the margin. Each pair stands for
    itself, without a correction over pairs.

    Args:
        scores: as for `compare_families`.
        statistics: gives `alpha`, `draws`, `seed`, `non_inferiority_margin` and, in `primary`, the metric of accuracy.
        metric: another metric, in whose unit the margin then is.
        alternative: `greater` where higher is better; from the metric's direction when left out.

    Returns:
        One row per pair: `metric`, `pair`, `first`, `second`, `n_pairs` (patients), `margin`, `level` (one-sided),
        `mean_difference` (first − second), `bound` (none below 6 patients, nor beside an infinite mean), `not_inferior`
        (missing where there is no bound), `note`. No row when the metric is not in the table.

    Raises:
        StatisticsError: a column is missing, a value stands there twice, or the metric has no better side.

    References:
        Piaggio et al. 2012 (CONSORT), doi:10.1001/jama.2012.87802.
    """
    name = metric or statistics.primary.get("accuracy", "dice")
    if name not in set(checked_scores(_table_of(scores), ("metric",))["metric"]):
        return pd.DataFrame(columns=list(MARGIN_COLUMNS)).astype({"not_inferior": "boolean"})
    side = alternative or alternatives_of(directions()).get(name)
    if side is None:
        raise StatisticsError(
            "testing non-inferiority", name, "it has no better side", "Name a metric with one in statistics.primary."
        )
    reduced = _reduced(scores, name)
    margin, level = statistics.non_inferiority_margin, 1 - statistics.alpha
    rows = []
    for number, (first, second) in enumerate(PAIRS):
        differences = patient_differences(reduced, first, second)
        mean, low, high, note = _size(
            differences.means,
            statistics.draws,
            [statistics.seed, number],
            level,
            "greater" if side == "greater" else "less",
        )
        bound = low if side == "greater" else high
        if not np.isfinite(differences.means).all():  # the mean leaves out just the worst patients
            bound, note = np.nan, f"{note}: no bound"
        holds = bound > -margin if side == "greater" else bound < margin
        rows.append(
            {"metric": name, "pair": f"{first} vs {second}", "first": first, "second": second}
            | {"n_pairs": differences.means.size, "margin": margin, "level": level, "mean_difference": mean}
            | {"bound": bound, "not_inferior": pd.NA if np.isnan(bound) else bool(holds), "note": note}
        )
    return pd.DataFrame(rows, columns=list(MARGIN_COLUMNS)).astype({"not_inferior": "boolean"})


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
        test = scipy.stats.mannwhitneyu(x, y, alternative=alternative, method="asymptotic", use_continuity=True)
    return row | {"U": float(test.statistic), "p": float(test.pvalue)}


def patient_differences(reduced: pd.DataFrame, first: str, second: str) -> Differences:
    """Both families of each patient, in an order that does not depend on the table's."""
    of_pair = reduced[reduced["family"].isin([first, second])].sort_values(["patient", "value"], kind="stable")
    patients = of_pair["patient"].unique()
    sides = []
    for family in (first, second):
        part = of_pair[of_pair["family"] == family]
        column = part.groupby("patient", sort=False).cumcount().to_numpy()
        values = np.full((len(patients), 1 + column.max(initial=0)), np.nan)
        values[pd.Index(patients).get_indexer(pd.Index(part["patient"])), column] = part["value"].to_numpy(float)
        sides.append(values)
    one, two = sides
    both = ~np.isnan(one).all(axis=1) & ~np.isnan(two).all(axis=1)
    means = [np.nanmean(side[both], axis=1) for side in sides] if both.any() else [np.empty(0)] * 2
    return Differences(one, two, _difference(*means), int(np.count_nonzero(~both)))


def _within(
    reduced: pd.DataFrame,
    first: str,
    second: str,
    alternative: Alternative,
    draws: int,
    seed: list[int],
    level: float,
) -> dict[str, object]:
    """The same patients under both families: who wins, and by how much."""
    differences = patient_differences(reduced, first, second)
    test = randomise(
        differences.first, differences.second, alternative, draws=draws, seed=np.random.default_rng([*seed, 0])
    )
    mean, low, high, note = _size(differences.means, draws, [*seed, 1], level, "two-sided")
    return {
        "n_pairs": test.wins.size,
        "unpaired_patients": differences.unpaired,
        "win_probability": test.win_probability,
        "p_randomisation": test.p,
        "p_randomisation_two_sided": test.p_two_sided,
        "mean_difference": mean,
        "interval_low": low,
        "interval_high": high,
        "note_within": note,
    }


def _size(
    differences: npt.NDArray[np.float64],
    draws: int,
    seed: list[int],
    level: float,
    side: Literal["two-sided", "greater", "less"],
) -> tuple[float, float, float, str]:
    """Mean of the finite differences, its BCa interval, and what there is to say about both."""
    if not differences.size:
        return np.nan, np.nan, np.nan, "no patient with both families"
    finite = differences[np.isfinite(differences)]
    notes = []
    if left_out := differences.size - finite.size:
        notes.append(f"{left_out} patients with an infinite mean, left out of the mean difference")
    if not finite.size:
        return np.nan, np.nan, np.nan, "; ".join(notes)
    mean = float(finite.mean())
    if finite.size < FEWEST:
        return mean, np.nan, np.nan, "; ".join([*notes, f"fewer than {FEWEST} patients: no interval"])
    if np.ptp(finite) == 0:  # nothing to resample; the jackknife of BCa would divide by zero
        notes.append("all differences are zero" if finite[0] == 0 else "all differences are equal")
        return mean, mean, mean, "; ".join(notes)
    interval = bca_interval(finite, draws, seed, level, side)
    if np.isnan(interval).any():
        return mean, np.nan, np.nan, "; ".join([*notes, "the bootstrap gives no interval"])
    return mean, *interval, "; ".join(notes)


def bca_interval(
    values: npt.NDArray[np.float64],
    draws: int,
    seed: int | list[int],
    level: float,
    side: Literal["two-sided", "greater", "less"] = "two-sided",
) -> tuple[float, float]:
    """BCa bootstrap interval of the mean over patients; one-sided with an infinite other end.

    SciPy's: 10 000 resamples of 65 patients take 0.01 s. `greater` bounds from below, `less` from above.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # degenerate resamples: NaN, told in the note
        interval = scipy.stats.bootstrap(
            (values,),
            np.mean,
            n_resamples=draws,
            batch=max(1, 4_000_000 // values.size),
            confidence_level=level,
            alternative=side,
            method="BCa",
            rng=np.random.default_rng(seed),
        ).confidence_interval
    return float(interval.low), float(interval.high)


def _difference(one: npt.NDArray[np.float64], two: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """First − second where both are finite, with rounding as zero; infinite elsewhere."""
    finite = np.isfinite(one) & np.isfinite(two)
    one, two = np.where(finite, one, 0), np.where(finite, two, 0)
    rounding = np.abs(one - two) <= ROUNDING * np.maximum(np.abs(one), np.abs(two))
    return np.where(finite, np.where(rounding, 0.0, one - two), np.inf)


def _reduced(scores: pd.DataFrame, metric: str) -> pd.DataFrame:
    """One value per patient and predictor of this metric."""
    table = checked_scores(_table_of(scores), ("patient", "predictor", "family", "metric", "value"))
    table = table[table["metric"] == metric]
    if table.empty:
        present = sorted(map(str, _table_of(scores)["metric"].unique()))
        raise StatisticsError(
            "comparing families", metric, "no score of this metric is in the table", f"Use one of {present}."
        )
    return reduce_scores(table)
