"""Where the scores of single models vary: between patients, annotators and seeds, and what more of these would bring.

Belongs here: the mixed model with crossed random effects, its intervals, and forecasts of the mean's precision. Does not
belong here: tests between families (`families`), words. The model is fitted in closed form, from the mean squares of a
balanced design: a study has the same models for every patient, and patients with a hole are left out and counted.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, product
from math import inf, prod
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy

from curvas_assets.errors import StatisticsError
from curvas_assets.predictors import ModelId
from curvas_assets.statistics.families import EXPLORATORY
from curvas_assets.statistics.reduction import WHOLE, checked_scores, reduce_scores, require_table
from curvas_assets.study import Statistics

Floats = npt.NDArray[np.float64]
PATIENT, ANNOTATOR, SEED, REFERENCE = "patient", "annotator", "seed", "reference"
"""Random effects: `annotator` is whose label maps a model learned from, `reference` whose a score is taken against."""
RESIDUAL = "residual"
JOINED = ":"
"""Between the effects of an interaction: `patient:annotator`."""
PER_ANNOTATOR = ("dice_annotator",)
"""Metrics that are examined annotator by annotator, beside the primary ones: they have the effect `reference`, too."""
LEVEL = 0.95
"""Of the two-sided intervals."""
COLUMNS = (
    "metric",
    "unit",
    "question",
    "component",
    "degrees_of_freedom",
    "mean_square",
    "variance",
    "low",
    "high",
    "share",
    "share_low",
    "share_high",
    "n_patients",
    "n_annotators",
    "n_seeds",
    "n_references",
    "left_out",
    "note",
)
PRECISION_COLUMNS = (
    "metric",
    "unit",
    "patients",
    "annotators",
    "seeds",
    "standard_error",
    "low",
    "high",
    "same_patients",
    "same_patients_low",
    "same_patients_high",
    "as_studied",
    "note",
)
STANDARD = Statistics()
_COUNTS = {PATIENT: "n_patients", ANNOTATOR: "n_annotators", SEED: "n_seeds", REFERENCE: "n_references"}
_NUMBERS = ("mean_square", "variance", "low", "high", "share", "share_low", "share_high")
_STEPS, _CONVERGED, _FLOOR = 500, 1e-12, 1e-12
Term = tuple[str, ...]


class Strata(NamedTuple):
    """What a balanced crossed design tells of its variances.

    Attributes:
        terms: effects and pairs of them, then the empty one of the residual.
        sizes: effect → how many levels.
        freedom: (terms,) degrees of freedom.
        squares: (terms,) mean squares.
        expected: (terms, terms) such that `expected` @ variances are the expected mean squares.
    """

    terms: tuple[Term, ...]
    sizes: dict[str, int]
    freedom: Floats
    squares: Floats
    expected: Floats


class _Block(NamedTuple):
    """The largest part of the scores without a hole."""

    values: Floats
    left_out: int
    notes: tuple[str, ...]


def variance_components(scores: pd.DataFrame, statistics: Statistics = STANDARD) -> pd.DataFrame:
    """How much of the variance of the individual models' scores patients, annotators and seeds carry.

    The model is y = μ + patient + annotator + seed + their products by two + residual, all of them random and normal,
    where the annotator is the one whose label maps the model learned from. Each fold of a seed counts as a seed of its
    own. The residual is what is left within a patient, annotator and seed: there is one score for each, so that it holds
    the product of all three. `PER_ANNOTATOR` metrics have the annotator that a score is taken against as a fourth effect.

    Estimates are restricted maximum likelihood, none below 0. Intervals are generalised confidence intervals from the
    same mean squares (each is a multiple of χ²): with two annotators or three they are wide, and say so, where a
    parametric bootstrap would be far too narrow. Both rest on normal effects.

    Args:
        scores: long scores: `patient`, `predictor`, `family`, `metric`, `value`, with `organ` and `annotator` where they are
            known. Only models of the family `individual` are used.
        statistics: names the primary metrics, all of which are examined, and gives `draws` and `seed` of the intervals.

    Returns:
        One row per metric and component (`patient`, `annotator`, `seed`, `patient:annotator`, …, `residual`): `metric`,
        `unit` (of the score; a variance has its square), `question`, `degrees_of_freedom`, `mean_square`, `variance`,
        `low`, `high` (95 %), `share` of the sum of the variances with `share_low` and `share_high`, `n_patients`,
        `n_annotators`, `n_seeds`, `n_references` (used), `left_out` (patients with a hole), and a `note`, which says why
        where there are no numbers. No rows of a metric that is not in the table.

    Raises:
        StatisticsError: a column is missing, or a value stands there twice.

    References:
        Searle, Casella & McCulloch 1992, Variance Components, ch. 4; Weerahandi 1993, doi:10.1080/01621459.1993.10476355
        (generalised confidence intervals).
    """
    table = checked_scores(scores, ("patient", "predictor", "family", "metric", "value"))
    of_metric = {metric: question for question, metric in statistics.primary.items()}
    wanted = [name for name in (*of_metric, *PER_ANNOTATOR) if name in set(table["metric"])]
    rows: list[dict[str, object]] = []
    for metric in dict.fromkeys(wanted):
        own = table[(table["metric"] == metric) & (table["family"] == "individual")]
        units = own["unit"].astype("string").fillna("") if "unit" in own else pd.Series(dtype="string")
        about = {
            "metric": metric,
            "unit": str(units.iloc[0]) if len(units) else "",
            "question": of_metric.get(metric, EXPLORATORY),
        }
        rows += [about | row for row in _components(own, metric in PER_ANNOTATOR, statistics)]
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(
        {
            **dict.fromkeys((*_COUNTS.values(), "left_out", "degrees_of_freedom"), "int64"),
            **dict.fromkeys(_NUMBERS, float),
        }
    )


def projected_precision(
    components: pd.DataFrame,
    statistics: Statistics = STANDARD,
    *,
    annotators: Sequence[float] = (),
    seeds: Sequence[float] = (),
) -> pd.DataFrame:
    """How precise the models' mean score would be with other numbers of annotators and seeds.

    The standard error of the mean over as many patients as were scored, and any number of annotators and seeds: the
    square root of the sum of each variance over the number of its levels that are averaged. It is that of the mean of
    the models' scores; an ensemble's own score is not a mean of scores, and has no such formula.

    Args:
        components: from `variance_components`.
        statistics: `draws` and `seed` of the intervals, as for `variance_components`.
        annotators: numbers of annotators; 1, those of the study, one more, twice as many and infinitely many when left
            out.
        seeds: the same of seeds.

    Returns:
        One row per metric, number of annotators and number of seeds: `metric`, `unit`, `patients`, `annotators`, `seeds`
        (infinite without a limit), `standard_error` for new patients, annotators and seeds, `same_patients`: for the same
        patients with new annotators and seeds, with their 95 % intervals; `as_studied` marks the study's own numbers.
        Metrics without numbers have no rows, nor have those examined annotator by annotator.

    Raises:
        StatisticsError: it is not a table of components.
    """
    require_table(components)
    if lacking := [column for column in COLUMNS if column not in components]:
        raise StatisticsError(
            "foretelling the precision of a mean",
            "the components of variance",
            f"the table has no column {', '.join(lacking)}",
            "Give what variance_components returns.",
        )
    rows: list[dict[str, object]] = []
    for metric, part in components.groupby("metric", sort=False):
        strata = _strata_of(part)
        if strata is None or REFERENCE in strata.sizes:
            continue
        sizes, variances = strata.sizes, part["variance"].to_numpy(float)
        drawn = _drawn(strata, statistics)
        numbers = [
            given or sorted({1, size, size + 1, 2 * size, inf})
            for given, size in ((annotators, sizes[ANNOTATOR]), (seeds, sizes[SEED]))
        ]
        for of_annotators, of_seeds in product(*numbers):
            counts = {PATIENT: sizes[PATIENT], ANNOTATOR: of_annotators, SEED: of_seeds}
            row: dict[str, object] = {
                "metric": metric,
                "unit": part["unit"].iloc[0],
                "patients": sizes[PATIENT],
                "annotators": float(of_annotators),
                "seeds": float(of_seeds),
                "as_studied": (of_annotators, of_seeds) == (sizes[ANNOTATOR], sizes[SEED]),
                "note": part["note"].iloc[0],
            }
            weights = np.array([1 / prod(counts[effect] for effect in term or counts) for term in strata.terms])
            again = np.where([term == (PATIENT,) for term in strata.terms], 0.0, weights)
            for name, low, high, by in (
                ("standard_error", "low", "high", weights),
                ("same_patients", "same_patients_low", "same_patients_high", again),
            ):
                row[name] = float(np.sqrt(by @ variances))
                row[low], row[high] = _around(np.sqrt(drawn @ by), np.sqrt(by @ variances))
            rows.append(row)
    return pd.DataFrame(rows, columns=list(PRECISION_COLUMNS))


# The design ------------------------------------------------------------------------------------------------------------


def _components(own: pd.DataFrame, per_annotator: bool, statistics: Statistics) -> list[dict[str, object]]:
    """The rows of one metric."""
    effects = (PATIENT, ANNOTATOR, SEED, REFERENCE) if per_annotator else (PATIENT, ANNOTATOR, SEED)
    values, why = _values(own, effects)
    block = None if why else _largest_block(values, effects)
    if block is None or min(block.values.shape) < 2:
        why = why or "no patient has a defined value of every model"
        counts = {_COUNTS[effect]: len(values.index.unique(effect)) if len(values) else 0 for effect in effects}
        empty = {"degrees_of_freedom": 0, "left_out": 0, "n_references": 0, "note": why, **counts}
        return [{"component": _named(term), **empty} for term in _terms(effects)]
    counts = {_COUNTS[effect]: 0 for effect in _COUNTS} | dict(
        zip((_COUNTS[effect] for effect in effects), block.values.shape, strict=True)
    )
    notes = block.notes if np.ptp(block.values) > 0 else (*block.notes, "all values are equal")
    common = {**counts, "left_out": block.left_out, "note": "; ".join(notes)}
    return [row | common for row in components_of(block.values, effects, statistics)]


def components_of(values: Floats, effects: Sequence[str], statistics: Statistics = STANDARD) -> list[dict[str, object]]:
    """The components of a balanced crossed design with one value for each combination, as `variance_components` names them.

    Args:
        values: one axis for each effect, two levels or more each, no NaN.
        effects: names of the axes.
        statistics: `draws` and `seed` of the intervals.

    Raises:
        StatisticsError: as for `mean_squares`.
    """
    strata = mean_squares(values, effects)
    variances, drawn = restricted_likelihood(strata), _drawn(strata, statistics)
    total, totals = variances.sum(), drawn.sum(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):  # equal values: nothing to share
        shares, drawn_shares = variances / total, drawn / totals
    rows: list[dict[str, object]] = []
    for number, term in enumerate(strata.terms):
        low, high = _around(drawn[:, number], variances[number])
        share_low, share_high = _around(drawn_shares[:, number], shares[number]) if total > 0 else (np.nan, np.nan)
        rows.append(
            {
                "component": _named(term),
                "degrees_of_freedom": int(strata.freedom[number]),
                "mean_square": strata.squares[number],
                "variance": variances[number],
                "low": low,
                "high": high,
                "share": shares[number],
                "share_low": share_low,
                "share_high": share_high,
            }
        )
    return rows


def _values(own: pd.DataFrame, effects: tuple[str, ...]) -> tuple[pd.Series, str]:
    """Finite values by their levels of all effects, and why there is nothing to estimate, if so."""
    models: dict[str, ModelId] = {}
    for name in own["predictor"].unique():
        models[name] = ModelId.parse(name)
    if own.empty:
        return pd.Series(dtype=float), "no individual model was scored"
    if REFERENCE in effects:
        names = own["annotator"].astype("string").fillna("") if "annotator" in own else pd.Series("", index=own.index)
        parts = [
            reduce_scores(own[names == name].assign(annotator="")).assign(reference=str(name))
            for name in names.unique()
            if name not in WHOLE
        ]
        if not parts:
            return pd.Series(dtype=float), "the scores do not name the annotator that they are taken against"
        reduced = pd.concat(parts, ignore_index=True)
    else:
        reduced = reduce_scores(own)
    folds = (
        reduced.assign(fold=[models[name].fold for name in reduced["predictor"]]).groupby("patient")["fold"].nunique()
    )
    if folds.max() == 1 and len({model.fold for model in models.values()}) > 1:
        why = "each patient has the models of one fold alone, so that patients and models cannot be told apart"
        return pd.Series(dtype=float), why
    levels = reduced.assign(
        annotator=[models[name].annotator for name in reduced["predictor"]],
        seed=[f"{models[name].seed} fold {models[name].fold}" for name in reduced["predictor"]],
    )
    values = levels.set_index(list(effects))["value"].sort_index()
    counts = {effect: values.index.unique(effect).size for effect in effects}
    for effect, told in ((ANNOTATOR, "annotator"), (SEED, "seed"), (REFERENCE, "annotator"), (PATIENT, "patient")):
        if counts.get(effect) == 1:
            return values, f"one {told} alone: nothing tells how others vary"
    return values[np.isfinite(values.to_numpy(float))], ""


def _largest_block(values: pd.Series, effects: tuple[str, ...]) -> _Block | None:
    """All patients without a hole, after leaving out annotators or seeds if that keeps more scores."""
    if values.empty:
        return None
    levels = [list(values.index.unique(effect)) for effect in effects]
    whole = np.full([len(one) for one in levels], np.nan)
    places = tuple(
        pd.Index(one).get_indexer(values.index.get_level_values(e)) for one, e in zip(levels, effects, strict=True)
    )
    whole[places] = values.to_numpy(float)
    notes: list[str] = []

    def kept(block: Floats) -> tuple[int, int]:
        defined = ~np.isnan(block)
        return int(defined.reshape(len(block), -1).all(axis=1).sum()) * block[0].size, -int((~defined).sum())

    while True:
        options = [
            (kept(np.delete(whole, level, axis)), axis, level)
            for axis in range(1, whole.ndim)
            for level in range(whole.shape[axis])
            if whole.shape[axis] > 2
        ]
        best = max(options, key=lambda option: option[0], default=None)
        if best is None or best[0] <= kept(whole) or kept(whole)[1] == 0:
            break
        _, axis, level = best
        told = "annotator" if effects[axis] == REFERENCE else effects[axis]
        notes.append(f"{told} {levels[axis].pop(level)} is left out: some scores are missing")
        whole = np.delete(whole, level, axis)
    complete = ~np.isnan(whole).reshape(len(whole), -1).any(axis=1)
    left_out = int(np.count_nonzero(~complete))
    if left_out:
        notes.append(f"{left_out} patients without a finite score of every model are left out")
    return _Block(whole[complete], left_out, tuple(notes)) if complete.sum() > 1 else None


# The model -------------------------------------------------------------------------------------------------------------


def _terms(effects: Iterable[str]) -> tuple[Term, ...]:
    """Effects, pairs of them, and the residual."""
    names = tuple(effects)
    return (*((name,) for name in names), *combinations(names, 2), ())


def _named(term: Term) -> str:
    return JOINED.join(term) or RESIDUAL


def mean_squares(values: Floats, effects: Sequence[str]) -> Strata:
    """The analysis of variance of a balanced crossed design with one value for each combination.

    Args:
        values: one axis for each effect, two levels or more each, no NaN.
        effects: names of the axes.

    Raises:
        StatisticsError: an axis has one level, there are as many names as axes, or a value is not finite.

    >>> strata = mean_squares(np.array([[1.0, 2.0], [3.0, 6.0]]), ["patient", "seed"])
    >>> strata.squares[:2]
    array([9., 4.])
    """
    if values.ndim != len(effects) or min(values.shape) < 2 or not np.isfinite(values).all():
        raise StatisticsError(
            "splitting a variance",
            ", ".join(effects),
            f"the values have the shape {values.shape} and {np.count_nonzero(~np.isfinite(values))} are not finite",
            "Give one finite value for each combination of two or more levels of each effect.",
        )
    axes = {effect: axis for axis, effect in enumerate(effects)}
    sizes = {effect: values.shape[axis] for effect, axis in axes.items()}
    terms = _terms(effects) if len(effects) > 2 else (*((name,) for name in effects), ())

    def mean(term: Term) -> Floats:
        return values.mean(axis=tuple(axis for effect, axis in axes.items() if effect not in term), keepdims=True)

    effects_of: dict[Term, Floats] = {(): mean(())}
    for term in terms[:-1]:
        below = [part for size in range(len(term)) for part in combinations(term, size)]
        effects_of[term] = mean(term) - sum(effects_of[part] for part in below)
    left = values - sum(effects_of.values())
    repeats = [_repeats(term, sizes) for term in terms[:-1]]
    sums = [count * float((effects_of[term] ** 2).sum()) for count, term in zip(repeats, terms[:-1], strict=True)]
    freedom = [prod(sizes[effect] - 1 for effect in term) for term in terms[:-1]]
    freedom.append(values.size - 1 - sum(freedom))
    squares = np.array([*sums, float((left**2).sum())]) / np.array(freedom)
    negligible = (1e-14 * max(1e-300, float(np.abs(values).max()))) ** 2 * values.size  # the rounding of the means
    squares[squares <= negligible] = 0
    return Strata(terms, sizes, np.array(freedom, float), squares, _expected(terms, sizes))


def restricted_likelihood(strata: Strata) -> Floats:
    """The variances, none below 0, under which the mean squares are likeliest (REML).

    The mean squares of a balanced design are independent multiples of χ², so that the restricted likelihood is that of a
    gamma regression with non-negative coefficients: weighted non-negative least squares, until nothing changes.
    """
    scale = float(strata.squares.max())
    if scale <= 0:
        return np.zeros(len(strata.terms))
    squares, expected, freedom = strata.squares / scale, strata.expected, strata.freedom

    def fitted(variances: Floats) -> Floats:
        return np.maximum(expected @ variances, _FLOOR)

    def unlikely(variances: Floats) -> float:
        means = fitted(variances)
        return float(freedom @ (np.log(means) + squares / means))

    variances = np.maximum(np.linalg.solve(expected, squares), 0)
    for _ in range(_STEPS):
        weights = np.sqrt(freedom) / fitted(variances)
        towards, _ = scipy.optimize.nnls(expected * weights[:, None], squares * weights)
        before, step = unlikely(variances), 1.0
        while step > 1e-6 and unlikely(variances + step * (towards - variances)) > before:
            step /= 2
        moved = variances + step * (towards - variances)
        if before - unlikely(moved) <= _CONVERGED * max(1.0, abs(before)):
            break
        variances = moved
    return variances * scale


def _drawn(strata: Strata, statistics: Statistics) -> Floats:
    """Generalised pivots of the variances (draws, terms): what each would be if the mean squares had been luckier or not."""
    rng = np.random.default_rng([statistics.seed, 2])
    chi = rng.chisquare(strata.freedom, size=(statistics.draws, strata.freedom.size))
    pivots = strata.freedom * strata.squares / chi
    return np.maximum(np.linalg.solve(strata.expected, pivots.T).T, 0)


def _around(drawn: Floats, estimate: float) -> tuple[float, float]:
    """The middle 95 % of draws; never without the estimate itself, which may lie outside where others were held at 0."""
    low, high = np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return min(float(low), float(estimate)), max(float(high), float(estimate))


def _repeats(term: Term, sizes: Mapping[str, int]) -> int:
    """How many scores of a balanced design share one level of a term."""
    return prod(size for effect, size in sizes.items() if effect not in term)


def _expected(terms: Sequence[Term], sizes: Mapping[str, int]) -> Floats:
    """Of which multiple of each variance the expected mean squares are the sum, a row for each term; the last is the residual."""
    expected = np.zeros((len(terms), len(terms)))
    expected[:, -1] = 1
    for row, column in product(range(len(terms) - 1), repeat=2):
        if set(terms[row]) <= set(terms[column]):
            expected[row, column] = _repeats(terms[column], sizes)
    return expected


def _strata_of(part: pd.DataFrame) -> Strata | None:
    """The strata behind the rows of one metric; None without numbers."""
    if part["variance"].isna().any():
        return None
    terms: tuple[Term, ...] = tuple(
        () if name == RESIDUAL else tuple(str(name).split(JOINED)) for name in part["component"]
    )
    sizes = {term[0]: int(part[_COUNTS[term[0]]].iloc[0]) for term in terms if len(term) == 1}
    freedom, squares = (part[name].to_numpy(float) for name in ("degrees_of_freedom", "mean_square"))
    return Strata(terms, sizes, freedom, squares, _expected(terms, sizes))
