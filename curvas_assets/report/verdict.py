"""What the data allow to say about the question: do ensembles reduce uncertainty without hurting accuracy?

Belongs here: the class of the answer, from tests that were made. Does not belong here: the tests (`curvas_assets.statistics`), its
words (`sections.question`). Nothing is called decided below `FEWEST` patients, nor by a p that is not corrected for all primary
metrics and pairs.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pandas as pd

from curvas_assets.statistics.efficiency import ACCURACY, SINGLE
from curvas_assets.statistics.families import FEWEST, corrected
from curvas_assets.study import Family, Statistics, Study

ENSEMBLES = ("general", "fused ensemble", "annotator", "folds", "snapshots", "flips")
"""Families of ensembles; the question is answered for the first of them that was compared with the individual models."""
FAMILIES: tuple[str, ...] = (*ENSEMBLES, *get_args(Family))
"""Families in the order in which one of their predictors leads the report."""
Uncertainty = Literal["better", "partly", "mixed", "undecided", "worse", "few", "untested"]
Accuracy = Literal["improved", "unharmed", "slightly", "undecided", "lower", "harmed", "unbounded", "few", "untested"]


@dataclass(frozen=True)
class Compared:
    """A metric under both families.

    Args:
        metric: which.
        difference: mean over patients, first − second, in the unit that is shown.
        low: of its 95 % interval over patients; NaN without one.
        high: of its interval.
        p: one-sided, that the first is better, corrected.
        p_two_sided: that they differ, corrected.
        wins: mean win probability of the first.
        patients: with both.
        direction: `higher` or `lower`, whichever is better; without one, neither family is.
    """

    metric: str
    difference: float
    low: float
    high: float
    p: float
    p_two_sided: float
    wins: float
    patients: int
    direction: str

    def is_better(self, alpha: float) -> bool:
        """Whether the first family wins more often than by chance, and gains on average: the whole interval is a gain."""
        return self._wins_more(alpha) and self._gains()[0] > 0

    def is_worse(self, alpha: float) -> bool:
        """Whether the first family loses more often than by chance, and on average: the whole interval is a loss."""
        return self._wins_less(alpha) and self._gains()[1] < 0

    def is_contradictory(self, alpha: float) -> bool:
        """Whether the first family wins more or less often than by chance, while its mean difference does not follow."""
        decided = self.is_better(alpha) or self.is_worse(alpha)
        return not decided and (self._wins_more(alpha) or self._wins_less(alpha))

    def p_of_wins(self, alpha: float) -> float:
        """The p by which the first family wins more or less often than by chance; NaN if neither is shown."""
        return self.p if self._wins_more(alpha) else self.p_two_sided if self._wins_less(alpha) else np.nan

    def _wins_more(self, alpha: float) -> bool:
        return self.patients >= FEWEST and self.p < alpha

    def _wins_less(self, alpha: float) -> bool:
        return self.patients >= FEWEST and self.p_two_sided < alpha and self.wins < 0.5

    def _gains(self) -> tuple[float, float]:
        """The interval of the difference as gains, the lower end first; NaN without one."""
        match self.direction:
            case "higher":
                return self.low, self.high
            case "lower":
                return -self.high, -self.low
            case _:
                return np.nan, np.nan


@dataclass(frozen=True)
class Verdict:
    """What may be said of a family of ensembles against the individual models.

    Args:
        first: the family of ensembles; empty if none was compared.
        patients: on whom, at most.
        uncertainty: class of the first sentence.
        better: measures of uncertainty that are better by more than chance.
        worse: that are worse by more than chance.
        open: of which neither is shown.
        lacking: measures of uncertainty that were not compared: not scored, or without a value on both sides.
        accuracy: class of the second sentence.
        accurate: the metric of accuracy under both; None if it was not compared.
        margin: the row of its test of non-inferiority; None without one.
    """

    first: str
    patients: int
    uncertainty: Uncertainty
    better: Sequence[Compared]
    worse: Sequence[Compared]
    open: Sequence[Compared]
    lacking: Sequence[str]
    accuracy: Accuracy
    accurate: Compared | None
    margin: pd.Series | None


def leading_predictor(study: Study, scored: Iterable[str]) -> str:
    """The predictor that the study is about: its first general ensemble, or the first of what there is; empty without any."""
    known = set(map(str, scored))
    present = [name for name in study.predictors if name in known]
    families = {name: study.family(name) for name in present}
    return next((name for family in FAMILIES for name in present if families[name] == family), "")


def judge(
    comparisons: pd.DataFrame, margins: pd.DataFrame, statistics: Statistics, directions: Mapping[str, str]
) -> Verdict:
    """The answer to the study's question.

    Args:
        comparisons: from `compare_all_families`, possibly with `p_adjusted` from `with_questions`; may be empty.
        margins: from `non_inferiority`; may be empty.
        statistics: primary metrics and level.
        directions: metric → which side is better.
    """
    primary = list(statistics.primary.values())
    tested = corrected_tests(comparisons, statistics)
    against = tested[tested["second"] == SINGLE] if len(tested) else tested
    compared = set(against.loc[against["n_pairs"] > 0, "first"]) if len(against) else set()
    first = next((family for family in ENSEMBLES if family in compared), "")
    of_first = [_compared(row, directions) for _, row in against.iterrows() if row["first"] == first]
    found = {one.metric: one for one in of_first}
    found = {metric: one for metric, one in found.items() if one.patients}
    accurate = found.pop(statistics.primary.get(ACCURACY, ""), None)
    ordered = [found[metric] for metric in primary if metric in found]
    alpha = statistics.alpha
    better = [one for one in ordered if one.is_better(alpha)]
    worse = [one for one in ordered if one.is_worse(alpha) and one not in better]
    lacking = [m for m in primary if m not in found and m != statistics.primary.get(ACCURACY)]
    undecided = [one for one in ordered if one not in better and one not in worse]
    margin = against_single(margins, first, statistics.primary.get(ACCURACY, ""))
    return Verdict(
        first=first,
        patients=max((one.patients for one in [*ordered, *([accurate] if accurate else [])]), default=0),
        uncertainty=_uncertainty(len(ordered) + len(lacking), ordered, better, worse),
        better=better,
        worse=worse,
        open=undecided,
        lacking=lacking,
        accuracy=_accuracy(accurate, margin, alpha, statistics.non_inferiority_margin),
        accurate=accurate,
        margin=margin,
    )


def _uncertainty(
    asked: int, ordered: Sequence[Compared], better: Sequence[Compared], worse: Sequence[Compared]
) -> Uncertainty:
    """Better only if each measure that the study asks for is."""
    if not ordered:
        return "untested"
    if max(one.patients for one in ordered) < FEWEST:
        return "few"
    if better:
        return "mixed" if worse else "better" if len(better) == asked else "partly"
    return "worse" if worse else "undecided"


def _accuracy(accurate: Compared | None, margin: pd.Series | None, alpha: float, allowed: float) -> Accuracy:
    if accurate is None or margin is None:
        return "untested"
    if accurate.patients < FEWEST:
        return "few"
    if pd.isna(margin["bound"]) or pd.isna(margin["not_inferior"]):
        return "unbounded"
    loss = 1 if accurate.direction == "lower" else -1  # a difference of this sign is a loss
    ends = sorted([loss * accurate.low, loss * accurate.high])  # of the loss
    if bool(margin["not_inferior"]):
        if accurate.is_better(alpha):
            return "improved"
        return "slightly" if ends[0] > 0 else "unharmed"
    if ends[0] > allowed:
        return "harmed"
    return "lower" if ends[0] > 0 else "undecided"


def against_single(table: pd.DataFrame, first: str, metric: str) -> pd.Series | None:
    """The row of a family against the individual models, of a metric; None if there is none."""
    if not len(table) or not first:
        return None
    rows = table[(table["first"] == first) & (table["second"] == SINGLE) & (table["metric"] == metric)]
    return rows.iloc[0] if len(rows) else None


def corrected_tests(comparisons: pd.DataFrame, statistics: Statistics) -> pd.DataFrame:
    """Tests of primary metrics with `better` and `differs`, p values corrected by Holm over all these metrics and pairs.

    Args:
        comparisons: as for `judge`.
        statistics: primary metrics.
    """
    if not len(comparisons):
        return comparisons
    tested = comparisons[comparisons["metric"].isin(list(statistics.primary.values()))]
    if not len(tested):
        return tested
    better = (
        tested["p_adjusted"] if "p_adjusted" in tested else pd.Series(_holm(tested["p_randomisation"]), tested.index)
    )
    return tested.assign(better=better, differs=_holm(tested["p_randomisation_two_sided"]))


def _holm(p: pd.Series) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    return corrected(p.astype(float), "holm")


def _compared(row: pd.Series, directions: Mapping[str, str]) -> Compared:
    return Compared(
        metric=str(row["metric"]),
        difference=float(row["mean_difference"]),
        low=float(row["interval_low"]),
        high=float(row["interval_high"]),
        p=float(row["better"]),
        p_two_sided=float(row["differs"]),
        wins=float(row["win_probability"]),
        patients=int(row["n_pairs"]),
        direction=directions.get(str(row["metric"]), ""),
    )
