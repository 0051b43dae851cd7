"""Intervals for organ volumes by split conformal prediction: from the errors on validation patients, with honest coverage.

Belongs here: margins, intervals, how often they hold, and how often they may be expected to. Does not belong here: volumes
themselves (`curvas_assets.scoring`), which predictors get intervals (`Study.interval_predictors`), words.

Two targets, each organ by organ. `mean`: the mean of the annotators' volumes of a new patient. `annotator`: the volume that
one of them drew, chosen at random. The error is |V̂ − V| with the predictor's expected volume V̂, in mm³: it is defined
where an organ is empty, on either side, and one quantile serves both sides, because a quantile for each would take about
twice the patients. An interval is [max(0, V̂ − q), V̂ + q]; no volume is negative, so cutting at 0 loses no coverage.

The one assumption is that a new patient and the validation patients are exchangeable, and that the predictor has learned
from none of them. Groups of another distribution break it, so coverage is observed by group, too.

References:
    Lei et al. 2018, doi:10.1080/01621459.2017.1307116 (split conformal intervals); Vovk 2012, arXiv:1209.2673 (the law of
    their coverage); Lee, Barber & Willett 2023, arXiv:2306.06342 (several values of each patient).
"""

import math
from collections.abc import Collection, Mapping, Sequence
from fractions import Fraction
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy

from curvas_assets.errors import StatisticsError
from curvas_assets.statistics.reduction import checked_scores
from curvas_assets.statistics.units import CM3_PER_MM3

Target = Literal["mean", "annotator"]
TARGETS: tuple[Target, ...] = ("mean", "annotator")
PREDICTED, DRAWN = "volume", "volume_annotator"
VOLUMES = (PREDICTED, DRAWN)
"""Metrics that are sizes, not qualities."""
COLUMNS = (
    *("patient", "group", "predictor", "organ", "target", "volume", "lower", "upper", "margin", "drawn_mean"),
    *("annotators", "covered", "level", "attainable", "claimed", "n_fitted", "note"),
)
COVERAGE_COLUMNS = (
    *("predictor", "organ", "target", "group", "n_fitted", "margin", "claimed", "n_patients", "observed"),
    *("observed_low", "observed_high", "expected_low", "expected_high", "p"),
)
EVERY_GROUP = ""
CONFIDENCE = 0.95
"""Of the exact binomial interval of an observed coverage."""
SPREAD = 0.9
"""Share of all sets of as many validation patients whose coverage lies within what is expected."""
IN_SAMPLE = "fitted on the same patients: no coverage is guaranteed"
"""Note on a predictor that was calibrated on the patients whose errors give its margin."""
_IN_MM3 = ("volume", "lower", "upper", "margin", "drawn_mean")


def attainable_level(patients: int) -> float:
    """The highest level at which errors of so many patients give a bounded interval: n / (n + 1).

    >>> attainable_level(5) == 5 / 6, attainable_level(9)
    (True, 0.9)
    """
    return patients / (patients + 1)


def conformal_margin(errors: Sequence[Sequence[float]], level: float | Fraction) -> float:
    """The margin that the error of a new patient keeps with a probability of at least the level.

    It is the smallest q for which the mean, over the n patients and one more that counts as beyond any q, of the share of a
    patient's errors up to q reaches the level. Of one error a patient, that is the ⌈(n + 1) · level⌉-th smallest.

    Args:
        errors: of each patient one or several, 0 or above; of several, the new patient's is one chosen at random.
        level: above 0, below 1; a decimal number counts as it is written, so that 0.9 is nine tenths.

    Returns:
        The margin in the errors' unit; ∞ if the level is above n / (n + 1).

    Raises:
        StatisticsError: an error is negative or NaN, a patient has none, or the level is not within 0 and 1.

    >>> conformal_margin([[3.0], [1.0], [2.0]], 0.5), conformal_margin([[3.0], [1.0], [2.0]], 0.9)
    (2.0, inf)
    """
    exact = _exact(level)
    if any(not len(own) for own in errors):
        raise StatisticsError("finding a margin", "the errors", "a patient has none", "Leave this patient out.")
    values = np.array([error for own in errors for error in own], dtype=float)
    if np.isnan(values).any() or (values < 0).any():
        raise StatisticsError(
            "finding a margin", "the errors", "one is negative or undefined", "Give distances, and leave NaN out."
        )
    if exact * (len(errors) + 1) > len(errors):
        return math.inf
    whole = math.lcm(*(len(own) for own in errors))  # in whole numbers, so that nothing is decided by a rounding
    weights = np.repeat([whole // len(own) for own in errors], [len(own) for own in errors])
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(reached, math.ceil(exact * (len(errors) + 1) * whole))])


def expected_coverage(patients: int, level: float | Fraction, share: float = SPREAD) -> tuple[float, float]:
    """Between which bounds the coverage over all new patients lies, for a share of all sets of so many validation patients.

    Given these patients, the coverage of one error each follows Beta(k, n + 1 − k), k = ⌈(n + 1) · level⌉, if errors have no
    ties (with ties it is higher). Its mean is k / (n + 1), over all such sets; the coverage of one's own set is never known.

    Raises:
        StatisticsError: the level is above n / (n + 1), or not within 0 and 1.
    """
    law = scipy.stats.beta(*_ranks(patients, level))
    return float(law.ppf((1 - share) / 2)), float(law.ppf((1 + share) / 2))


def chance_of_so_few(covered: int, patients: int, fitted: int, level: float | Fraction) -> float:
    """How likely so few of some new patients are covered if they and the validation patients are exchangeable.

    The covered ones of m new patients follow the beta-binomial law of (m, k, n + 1 − k), if errors have no ties. A small
    value speaks against exchangeability; a binomial test would take the coverage of these validation patients for known.

    Args:
        covered: of the new patients.
        patients: m, how many new patients.
        fitted: n, how many validation patients.
        level: claimed.
    """
    return float(scipy.stats.betabinom(patients, *_ranks(fitted, level)).cdf(covered))


def chance_is_small(p: float) -> bool:
    """Whether so few are covered that it is worth a word: a sign to look, and no test of a hypothesis of the study."""
    return p < 1 - CONFIDENCE


def is_a_size(metric: str) -> bool:
    """Whether a metric is a size, of which no mean over organs and patients says anything."""
    return metric in VOLUMES


def volume_intervals(
    fitted: pd.DataFrame,
    scores: pd.DataFrame,
    predictors: Sequence[str],
    level: float,
    *,
    in_sample: Collection[str] = (),
) -> pd.DataFrame:
    """An interval for every organ of every patient, from errors of other patients.

    With n of these the level is at most n / (n + 1): where more is asked, the interval is that of this level, and it claims
    no more. Nothing of the patients who get intervals enters a margin.

    Args:
        fitted: long scores of the validation patients, with the metrics `volume` and `volume_annotator` in mm³: `patient`,
            `predictor`, `metric`, `organ`, `annotator`, `value`.
        scores: the same of the patients who get intervals, and their `group`.
        predictors: whose volumes get intervals.
        level: asked for, above 0, below 1.
        in_sample: predictors that were calibrated on the validation patients. Their errors there are smaller than elsewhere,
            so that their intervals claim no level.

    Returns:
        One row per patient, predictor, organ and target: `volume` (predicted), `lower`, `upper`, `margin`, `drawn_mean`
        (mean of the annotators' volumes), all in mm³; `annotators` (how many drew), `covered` (share of the target inside:
        0 or 1 of the mean), `level`, `attainable` (n / (n + 1)), `claimed` (NaN: nothing), `n_fitted` (n), `note`. No row where
        no validation patient has a volume.

    Raises:
        StatisticsError: a column is missing, a volume stands there twice, a patient is on both sides, or the level is not
            within 0 and 1.
    """
    asked = _exact(level)
    known, new = (_volumes_of(table, predictors) for table in (fitted, scores))
    if both := sorted({key.patient for key in known} & {key.patient for key in new}):
        raise StatisticsError(
            "finding intervals for volumes",
            ", ".join(both),
            "their errors would give the margin of their own intervals",
            "Give other patients to fit on than those who get intervals.",
        )
    groups = dict(zip(scores["patient"], scores["group"], strict=True)) if "group" in scores else {}
    rows = []
    for predictor in predictors:
        own = {key: volume for key, volume in new.items() if key.predictor == predictor}
        for organ in dict.fromkeys(key.organ for key in own):
            learned = [known[key] for key in known if (key.predictor, key.organ) == (predictor, organ)]
            if not learned:
                continue
            n = len(learned)
            claimed = min(asked, Fraction(n, n + 1))
            margins = {target: conformal_margin([one.errors(target) for one in learned], claimed) for target in TARGETS}
            said = {"level": level, "attainable": attainable_level(n), "n_fitted": n}
            said |= {"claimed": math.nan if predictor in in_sample else float(claimed)}
            said |= {"note": IN_SAMPLE if predictor in in_sample else ""}
            rows += [
                {"patient": key.patient, "group": groups.get(key.patient, ""), "predictor": predictor, "organ": organ}
                | volume.interval(target, margins[target])
                | said
                for key, volume in own.items()
                if key.organ == organ
                for target in TARGETS
            ]
    whole = {"annotators": "int64", "n_fitted": "int64"}
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(whole)


def observed_coverage(intervals: pd.DataFrame) -> pd.DataFrame:
    """How often intervals hold, over all patients, and in each group where there are several.

    Args:
        intervals: from `volume_intervals`.

    Returns:
        One row per predictor, organ, target and group (empty: all patients): `n_fitted`, `margin` (mm³), `claimed`,
        `n_patients`, `observed` (mean of `covered`). Of the mean of the annotators, whose every patient is inside or not,
        also `observed_low`, `observed_high`: its exact 95 % binomial interval (Clopper & Pearson 1934,
        doi:10.1093/biomet/26.4.404), which holds for these validation patients; `expected_low`, `expected_high`: from
        `expected_coverage`; `p`: from `chance_of_so_few`. NaN of the target `annotator`, whose patients may be partly
        inside, and without a claim the last three.
    """
    rows = []
    for (predictor, organ, target), part in intervals.groupby(["predictor", "organ", "target"], sort=False):
        grouped = {EVERY_GROUP: part}
        if part["group"].nunique() > 1:
            grouped |= {str(name): own for name, own in part.groupby("group") if name != EVERY_GROUP}
        for group, own in grouped.items():
            first, n = own.iloc[0], len(own)
            row: dict[str, object] = {"predictor": predictor, "organ": organ, "target": target, "group": group}
            row |= {name: first[name] for name in ("n_fitted", "margin", "claimed")}
            row |= {"n_patients": n, "observed": float(own["covered"].mean())}
            if target == "mean":
                inside, fitted = int(own["covered"].sum()), int(first["n_fitted"])
                low, high = scipy.stats.binomtest(inside, n).proportion_ci(CONFIDENCE, "exact")
                row |= {"observed_low": float(low), "observed_high": float(high)}
                if not math.isnan(first["claimed"]):
                    claimed = min(_exact(first["level"]), Fraction(fitted, fitted + 1))
                    row |= dict(zip(("expected_low", "expected_high"), expected_coverage(fitted, claimed), strict=True))
                    row |= {"p": chance_of_so_few(inside, n, fitted, claimed)}
            rows.append(row)
    return pd.DataFrame(rows, columns=list(COVERAGE_COLUMNS))


def in_cm3(table: pd.DataFrame) -> pd.DataFrame:
    """Intervals, or what was observed of them, with volumes as people read them."""
    return table.assign(**{name: table[name].astype(float) * CM3_PER_MM3 for name in _IN_MM3 if name in table})


class _Key(NamedTuple):
    patient: str
    predictor: str
    organ: str


class _Volumes(NamedTuple):
    """An organ's volume as it is predicted, and as each annotator drew it, mm³."""

    predicted: float
    drawn: npt.NDArray[np.float64]

    def wanted(self, target: Target) -> npt.NDArray[np.float64]:
        return self.drawn if target == "annotator" else self.drawn.mean(keepdims=True)

    def errors(self, target: Target) -> list[float]:
        return np.abs(self.predicted - self.wanted(target)).tolist()

    def interval(self, target: Target, margin: float) -> dict[str, object]:
        # Inside is what errs by no more than the margin, as the margin was counted: the limits are rounded sums.
        return {
            "target": target,
            "volume": self.predicted,
            "lower": max(0.0, self.predicted - margin),
            "upper": self.predicted + margin,
            "margin": margin,
            "drawn_mean": float(self.drawn.mean()),
            "annotators": len(self.drawn),
            "covered": float(np.mean(np.array(self.errors(target)) <= margin)),
        }


def _volumes_of(scores: pd.DataFrame, predictors: Collection[str]) -> Mapping[_Key, _Volumes]:
    """What is known of both sides: the predicted volume, and those of who annotated the patient."""
    table = checked_scores(scores, ("patient", "predictor", "metric", "organ", "annotator", "value"))
    table = table[table["metric"].isin(VOLUMES) & table["predictor"].isin(predictors) & (table["annotator"] != "mean")]
    keys = ["patient", "predictor", "organ"]
    if (twice := table.duplicated([*keys, "metric", "annotator"])).any():
        one = table.loc[twice, [*keys, "annotator"]].iloc[0].to_dict()
        raise StatisticsError(
            "finding intervals for volumes",
            str(one["patient"]),
            f"a volume stands there twice: {one}",
            "Give each once.",
        )
    defined = table[table["value"].notna()]
    values, is_predicted = defined["value"].to_numpy(float), (defined["metric"] == PREDICTED).to_numpy()
    found = {}
    for key, rows in defined.groupby(keys, sort=False).indices.items():
        predicted, drawn = (values[rows][is_predicted[rows] == side] for side in (True, False))
        if predicted.size and drawn.size:
            found[_Key(*map(str, key))] = _Volumes(float(predicted[0]), drawn)  # type: ignore[arg-type] - a tuple of names
    return found


def _ranks(patients: int, level: float | Fraction) -> tuple[int, int]:
    """(k, n + 1 − k): the parameters of the law of the coverage."""
    rank = math.ceil(_exact(level) * (patients + 1))
    if rank > patients:
        raise StatisticsError(
            "telling an expected coverage",
            f"{patients} patients",
            f"the level {float(level):g} is above n / (n + 1)",
            "Ask for the attainable level at most.",
        )
    return rank, patients + 1 - rank


def _exact(level: float | Fraction) -> Fraction:
    """The level as it is written: 0.1 is a tenth, and not the nearest binary number."""
    exact = Fraction(str(level)) if math.isfinite(level) else Fraction(0)
    if not 0 < exact < 1:
        raise StatisticsError(
            "finding a margin", "the level", f"it is {level}", "Use one above 0 and below 1, such as 0.9."
        )
    return exact
