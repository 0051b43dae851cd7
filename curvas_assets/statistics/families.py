"""Tests between two families of predictors, or two predictors: the study's published one, and the one that fits the design.

Belongs here: the tests on tables of scores, their corrections, sizes and intervals, what is not inferior, and which metric
answers which question. Does not belong here: the randomisation itself (`randomisation`), reading, averaging over organs
(`reduction`), words. The published test and the bootstrap are SciPy's.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy

from curvas_assets.errors import StatisticsError
from curvas_assets.statistics.directions import directions
from curvas_assets.statistics.pairs import PAIRS, Pair, sides_of
from curvas_assets.statistics.randomisation import ROUNDING, flip_signs, randomise
from curvas_assets.statistics.reduction import checked_scores, reduced_scores, require_table
from curvas_assets.study import Statistics

Alternative = Literal["greater", "less"]
COLUMNS = (
    "metric",
    "alternative",
    "pair",
    "first",
    "second",
    "kind",
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
    "p_smallest",
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
    "kind",
    "n_pairs",
    "margin",
    "level",
    "mean_difference",
    "bound",
    "p",
    "p_smallest",
    "not_inferior",
    "note",
)
FEWEST = 6
"""Patients below which there is no interval and nothing is called significant: with 3 patients a nominal 95 % interval
covers 76 %, with 2 it covers 50 %."""
NEEDED = ("patient", "predictor", "family", "metric", "value")
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
    pairs: Sequence[Pair] = PAIRS,
    draws: int = 9999,
    seed: int = 20250515,
    confidence_level: float = 0.95,
) -> pd.DataFrame:
    """Is one family of predictors better than another on a metric? The published test and the valid one, side by side.

    Either side may be a single predictor, too.

    Published: one-sided Mann–Whitney U over all values of two families, asymptotic with continuity correction,
    Bonferroni over the pairs tested of the same kind. It treats the values of one patient under nine models as independent.
    Within patients: each patient's win probability, the share of (first, second) predictor pairs in which the first is
    better (ties half), averaged over patients and tested against ½ by randomisation within patients (`randomise`), Holm
    over the pairs tested of the same kind. Beside it the size: the mean over patients of the difference of family means,
    with a BCa bootstrap interval over patients. Both are statements about these predictors on patients like these, not about other
    seeds or annotators.

    Args:
        scores: columns `patient`, `predictor`, `family` (general, annotator, individual), `metric`, `value`. With `organ`
            or `annotator` columns it is reduced first (`reduce_scores`). Also the result of `read_published_scores`.
        metric: the metric to compare.
        alternative: `greater` where higher is better, `less` where lower is: what is claimed of the first family.
        pairs: to compare; the three of general, annotator and individual when left out.
        draws: of the randomisation, and resamples of the patients for the interval.
        seed: of both. Each pair draws on its own, so that its figures do not depend on the others.
        confidence_level: of the two-sided interval.

    Returns:
        One row per pair, with its `kind`:
        `n_first`, `n_second` (defined values), `nan_first`, `nan_second` (undefined, left out), `U` (of the first),
        `p`, `p_bonferroni`; `n_pairs` (patients with a defined value in both), `unpaired_patients` (the others),
        `win_probability` (0 … 1, above ½ when the first wins more often, by the alternative's side), `p_randomisation` (the first is
        better), `p_randomisation_two_sided` (it differs), `p_randomisation_holm` (of the one-sided), `p_smallest` (the least
        that the one-sided one could be with these patients and predictors), `mean_difference` (first − second, unit of the metric), `interval_low`, `interval_high` (none below 6 patients); `note` says why a
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
        {"metric": metric, "alternative": alternative, **_named(pair)}
        | _compared(reduced, pair, alternative, draws, [seed, pair.number], confidence_level)
        for pair in pairs
    ]
    result = pd.DataFrame(rows, columns=list(COLUMNS))
    for _, own in result.groupby("kind", sort=False):
        result.loc[own.index, "p_bonferroni"] = corrected(own["p"], "bonferroni")
        result.loc[own.index, "p_randomisation_holm"] = corrected(own["p_randomisation"], "holm")
    return result.astype({"p_bonferroni": float, "p_randomisation_holm": float})


def compare_all_families(
    scores: pd.DataFrame,
    statistics: Statistics = STANDARD,
    *,
    pairs: Sequence[Pair] = PAIRS,
    alternatives: Mapping[str, Alternative] | None = None,
) -> pd.DataFrame:
    """`compare_families` for every metric of the table that has a better side, one below the other.

    Args:
        scores: as for `compare_families`.
        statistics: the study's draws and seed. The seed is used anew for each metric, so that a metric's rows do not
            depend on which others are in the table.
        pairs: as for `compare_families`.
        alternatives: metric → `greater` or `less`; taken from the metrics' directions when left out. Metrics without one
            are not tested.

    Raises:
        StatisticsError: as for `compare_families`.
    """
    table = checked_scores(_table_of(scores), NEEDED)
    sides = alternatives_of(directions()) if alternatives is None else alternatives
    table = reduced_scores(table[table["metric"].isin(list(sides))])  # all at once: pandas takes as long for one metric
    parts = [
        compare_families(
            part, str(metric), sides[str(metric)], pairs=pairs, draws=statistics.draws, seed=statistics.seed
        )
        for metric, part in table.groupby("metric", sort=False)
        if str(metric) in sides
    ]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(COLUMNS))


def with_questions(comparisons: pd.DataFrame, statistics: Statistics = STANDARD) -> pd.DataFrame:
    """Comparisons with the question that each answers, and p corrected over all tests that answer one.

    Args:
        comparisons: from `compare_all_families`, all of a study together: the corrections count every row.
        statistics: names the primary metrics.

    Returns:
        The table with `question` (what a primary metric answers, `exploratory` for every other metric), `p_adjusted` of
        `p_randomisation` and `adjustment`, which says how. Primary metrics: Holm over all pairs of all primary metrics,
        so that one of them is called significant by chance in at most alpha of the studies, however they depend on each
        other. Exploratory ones: Benjamini and Hochberg's false discovery rate over all exploratory tests, which takes
        tests that do not pull against each other; it sorts what is worth a look and proves nothing.

    References:
        Holm 1979, Scand J Stat 6:65; Benjamini & Hochberg 1995, doi:10.1111/j.2517-6161.1995.tb02031.x.
    """
    require_table(comparisons)
    of_metric = {metric: question for question, metric in statistics.primary.items()}
    questions = [of_metric.get(str(metric), EXPLORATORY) for metric in comparisons["metric"]]
    told = comparisons.assign(question=pd.Series(questions, index=comparisons.index, dtype=str))
    if "p_randomisation" not in told:
        return told
    p = told["p_randomisation"].to_numpy(float)
    tested, exploratory = ~np.isnan(p), (told["question"] == EXPLORATORY).to_numpy()
    adjusted, how = np.full(p.shape, np.nan), np.full(p.shape, "", object)
    primary, rest = tested & ~exploratory, tested & exploratory
    adjusted[primary] = corrected(told["p_randomisation"][primary], "holm")
    how[primary] = f"Holm over {np.count_nonzero(primary)} tests"
    if rest.any():
        adjusted[rest] = scipy.stats.false_discovery_control(p[rest], method="bh")
    how[rest] = f"false discovery rate over {np.count_nonzero(rest)} tests"
    return told.assign(p_adjusted=adjusted, adjustment=pd.Series(how, index=told.index, dtype=str))


def non_inferiority(
    scores: pd.DataFrame,
    statistics: Statistics = STANDARD,
    *,
    pairs: Sequence[Pair] = PAIRS,
    metric: str | None = None,
    alternative: Alternative | None = None,
) -> pd.DataFrame:
    """Is the first of each pair not worse than the second by more than the margin?

    Not being significantly worse does not show that nothing is lost; this does, if two conditions hold. The bound, the
    one-sided BCa bootstrap bound at level 1 − alpha of the mean over patients of the difference of means (the lower one
    where higher is better), lies on the good side of the margin. And p, of the randomisation that turns the signs of the
    patients' differences from the margin (`flip_signs`), is at most alpha: with 6 patients the bound alone would call a
    loss of just the margin harmless in 10 % of the studies, twice as often as it says. Each pair stands for itself,
    without a correction over pairs.

    Args:
        scores: as for `compare_families`.
        statistics: gives `alpha`, `draws`, `seed`, in `primary` the metric of accuracy, `non_inferiority_margin` for it,
            and in `margins` those of further metrics.
        pairs: as for `compare_families`.
        metric: this metric alone, in whose unit the margin then is.
        alternative: `greater` where higher is better; from the metric's direction when left out.

    Returns:
        One row per metric and pair, the metric of accuracy first: `metric`, `pair`, `first`, `second`, `kind`, `n_pairs`
        (patients), `margin`, `level` (one-sided), `mean_difference` (first − second), `bound` (none below 6 patients, nor
        beside an infinite mean), `p`, `p_smallest` (the least that it could be with so many patients), `not_inferior`
        (missing where there is no bound), `note`. No rows of a metric that is not in the table.

    Raises:
        StatisticsError: a column is missing, a value stands there twice, or a metric has no better side.

    References:
        Piaggio et al. 2012 (CONSORT), doi:10.1001/jama.2012.87802.
    """
    accuracy = statistics.primary.get("accuracy", "dice")
    there = set(checked_scores(_table_of(scores), ("metric",))["metric"])
    rows = []
    for name in [metric] if metric else dict.fromkeys((accuracy, *statistics.margins)):
        if name not in there:
            continue
        side = alternative or alternatives_of(directions()).get(name)
        if side is None:
            raise StatisticsError(
                "testing non-inferiority",
                name,
                "it has no better side",
                "Name a metric with one in statistics.primary.",
            )
        margin = statistics.margins.get(name, statistics.non_inferiority_margin)
        reduced = _reduced(scores, name)
        rows += [
            {"metric": name, **_named(pair)} | _not_inferior(reduced, pair, side, margin, statistics) for pair in pairs
        ]
    return pd.DataFrame(rows, columns=list(MARGIN_COLUMNS)).astype({"not_inferior": "boolean"})


def _named(pair: Pair) -> dict[str, str]:
    return {"pair": str(pair), "first": pair.first, "second": pair.second, "kind": pair.kind}


class AgainstMargin(NamedTuple):
    """Patients' differences against a margin.

    Attributes:
        mean: of the differences.
        bound: one-sided, of the mean; NaN where there is none.
        p: that the loss is the margin or more; NaN beside an infinite difference.
        smallest: the least that `p` could be with so many patients.
        holds: whether the loss is shown to be smaller than the margin; None without a bound.
        note: what there is to say.
    """

    mean: float
    bound: float
    p: float
    smallest: float
    holds: bool | None
    note: str


def against_margin(
    differences: npt.NDArray[np.float64],
    alternative: Alternative,
    margin: float,
    *,
    alpha: float = 0.05,
    draws: int = 9999,
    seed: Sequence[int] = (20250515,),
) -> AgainstMargin:
    """Is the mean loss smaller than the margin? `non_inferiority` for the differences of one pair.

    Args:
        differences: (patients,) first − second, unit of the metric; infinite where a mean is.
        alternative: `greater` where higher is better, `less` where lower is.
        margin: above 0, unit of the metric.
        alpha: level of the bound and of p.
        draws: of both.
        seed: of both.
    """
    mean, low, high, note = _size(differences, draws, list(seed), 1 - alpha, alternative)
    bound, p, smallest = low if alternative == "greater" else high, np.nan, np.nan
    if not np.isfinite(differences).all():  # the mean leaves out just the worst patients
        bound, note = np.nan, f"{note}: no bound"
    elif differences.size:
        beyond = margin + (differences if alternative == "greater" else -differences)
        beyond[np.abs(beyond) <= ROUNDING * margin] = 0
        p, smallest = flip_signs(beyond, draws=draws, seed=np.random.default_rng([*seed, 1]))
    holds = (bound > -margin if alternative == "greater" else bound < margin) and p <= alpha
    return AgainstMargin(mean, bound, p, smallest, None if np.isnan(bound) else bool(holds), note)


def _not_inferior(
    reduced: pd.DataFrame, pair: Pair, side: Alternative, margin: float, statistics: Statistics
) -> dict[str, object]:
    """The difference of a pair against the margin."""
    one, two, shared = sides_of(reduced, pair)
    means = patient_differences(one, two).means
    seed = (statistics.seed, pair.number)
    found = against_margin(means, side, margin, alpha=statistics.alpha, draws=statistics.draws, seed=seed)
    return {
        "n_pairs": means.size,
        "margin": margin,
        "level": 1 - statistics.alpha,
        "mean_difference": found.mean,
        "bound": found.bound,
        "p": found.p,
        "p_smallest": found.smallest,
        "not_inferior": pd.NA if found.holds is None else found.holds,
        "note": "; ".join(part for part in (shared, found.note) if part),
    }


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


def _compared(
    reduced: pd.DataFrame, pair: Pair, alternative: Alternative, draws: int, seed: list[int], level: float
) -> dict[str, object]:
    """Both tests of a pair on one metric."""
    one, two, shared = sides_of(reduced, pair)
    published = _published(one["value"].to_numpy(float), two["value"].to_numpy(float), pair, alternative)
    within = _within(patient_differences(one, two), alternative, draws, seed, level)
    notes = (shared, published.pop("note"), within.pop("note"))
    return published | within | {"note": "; ".join(str(note) for note in notes if note)}


def _published(
    one: npt.NDArray[np.float64], two: npt.NDArray[np.float64], pair: Pair, alternative: Alternative
) -> dict[str, object]:
    """The study's test: all values of one side against all of the other."""
    x, y = one[~np.isnan(one)], two[~np.isnan(two)]
    row: dict[str, object] = {
        "n_first": x.size,
        "n_second": y.size,
        "nan_first": one.size - x.size,
        "nan_second": two.size - y.size,
        "U": np.nan,
        "p": np.nan,
        "note": "",
    }
    if not x.size or not y.size:
        empty = " and ".join(side for side, values in ((pair.first, x), (pair.second, y)) if not values.size)
        return row | {"note": f"no defined value of {empty}"}
    with np.errstate(divide="ignore", invalid="ignore"):  # all values equal: the variance is 0 and p is 1
        test = scipy.stats.mannwhitneyu(x, y, alternative=alternative, method="asymptotic", use_continuity=True)
    return row | {"U": float(test.statistic), "p": float(test.pvalue)}


def patient_differences(first: pd.DataFrame, second: pd.DataFrame) -> Differences:
    """Both sides of each patient, in an order that does not depend on the tables'.

    Args:
        first: reduced scores of the first side: `patient`, `value`.
        second: the same of the second.
    """
    patients = pd.Index(sorted({*first["patient"], *second["patient"]}))
    sides = []
    for part in (first, second):
        part = part.sort_values(["patient", "value"], kind="stable")
        column = part.groupby("patient", sort=False).cumcount().to_numpy()
        values = np.full((len(patients), 1 + column.max(initial=0)), np.nan)
        values[patients.get_indexer(pd.Index(part["patient"])), column] = part["value"].to_numpy(float)
        sides.append(values)
    one, two = sides
    both = ~np.isnan(one).all(axis=1) & ~np.isnan(two).all(axis=1)
    means = [np.nanmean(side[both], axis=1) for side in sides] if both.any() else [np.empty(0)] * 2
    return Differences(one, two, _difference(*means), int(np.count_nonzero(~both)))


def _within(
    differences: Differences, alternative: Alternative, draws: int, seed: list[int], level: float
) -> dict[str, object]:
    """The same patients under both sides: who wins, and by how much."""
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
        "p_smallest": test.smallest,
        "mean_difference": mean,
        "interval_low": low,
        "interval_high": high,
        "note": note,
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
    table = checked_scores(_table_of(scores), NEEDED)
    table = table[table["metric"] == metric]
    if table.empty:
        present = sorted(map(str, _table_of(scores)["metric"].unique()))
        raise StatisticsError(
            "comparing families", metric, "no score of this metric is in the table", f"Use one of {present}."
        )
    return reduced_scores(table)
