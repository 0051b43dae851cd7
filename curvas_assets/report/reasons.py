"""Why a patient may stand out, as far as scores, annotations and the cohort tell.

Belongs here: reasons that are read from data. Does not belong here: who stands out (`curvas_assets.statistics.outliers`), any
guess. What is said is what is there to be seen; that it is the cause is not claimed.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from curvas_assets.report.facts import Facts
from curvas_assets.report.tables import counted
from curvas_assets.statistics.reduction import WHOLE

MOST_ORGANS = 3
"""Organs of which one kind of reason has a sentence each; further ones are named together."""
AGREEMENTS = ("agreement", "agreement_dice")
"""Metrics of how well annotators agree on an organ."""
_Found = tuple[float, str, str]
"""How far an organ is from the ordinary, its name, and what is said of it."""


def reasons_for(facts: Facts, patient: str, metric: str, predictor: str) -> list[str]:
    """What is special about a patient, for a metric of a predictor; empty if nothing can be read from the data."""
    organ = _worst_organ(facts, patient, metric, predictor)
    found = [
        *_of_scores(facts, patient, metric, predictor, organ),
        *_of_annotations(facts, patient, organ),
        *_of_agreement(facts, patient, organ),
        *_of_cohort(facts, patient),
    ]
    return list(dict.fromkeys(found))


def _worst_organ(facts: Facts, patient: str, metric: str, predictor: str) -> str:
    """The organ with the patient's worst value; empty where the metric is not by organ."""
    rows = _of_organs(facts, metric, predictor)
    rows = rows[(rows["patient"] == patient) & rows["value"].notna()]
    if rows.empty or rows["organ"].nunique() < 2:
        return str(rows["organ"].iloc[0]) if len(rows) else ""
    by_organ = rows.groupby("organ", sort=False)["value"].mean()
    return str(by_organ.idxmin() if facts.directions.get(metric) == "higher" else by_organ.idxmax())


def _of_organs(facts: Facts, metric: str, predictor: str) -> pd.DataFrame:
    scores = facts.of_metric(metric)
    return scores[~scores["organ"].isin(WHOLE) & (scores["predictor"] == predictor)]


def _of_scores(facts: Facts, patient: str, metric: str, predictor: str, organ: str) -> Iterator[str]:
    """The organ that is worst, and what scoring noted of this patient."""
    w = facts.words
    rows = _of_organs(facts, metric, predictor)
    if organ and rows["organ"].nunique() > 1:  # of one organ alone, its value is the patient's
        rows = rows[rows["organ"] == organ]
        value = float(rows.loc[rows["patient"] == patient, "value"].mean())
        middle = float(rows.groupby("patient")["value"].mean().median())
        yield w("reason_organ", organ=w.organ(organ), value=w.number(value), median=w.number(middle))
    own = facts.of_metric(metric)
    own = own[(own["patient"] == patient) & (own["predictor"] == predictor)]
    notes = own["note"].astype("string").fillna("") if "note" in own else pd.Series(dtype="string")
    yield from (w.told(note) for note in dict.fromkeys(map(str, notes)) if note)


def _of_annotations(facts: Facts, patient: str, organ: str) -> Iterator[str]:
    """Organs that some annotator did not draw, and the smallest organ of all patients."""
    w, anatomy = facts.words, facts.inputs.anatomy
    if anatomy is None or not len(anatomy):
        yield from _of_ledger(facts, patient)
        return
    undrawn: list[_Found] = []
    for name, rows in anatomy[anatomy["patient"] == patient].groupby("organ", sort=False):
        absent = [str(a) for a, ml in zip(rows["annotator"], rows["volume_ml"], strict=True) if ml == 0]
        if absent:
            said = w("reason_absent", organ=w.organ(str(name)), annotators=", ".join(absent), of=len(rows))
            undrawn.append((len(absent) / len(rows), str(name), said))
    yield from _most(facts, undrawn, "absent")
    drawn, smallest = anatomy[anatomy["volume_ml"] > 0], list[_Found]()
    for name, rows in drawn.groupby("organ", sort=False):
        means = rows.groupby("patient")["volume_ml"].mean()
        if (not organ or name == organ) and len(means) > 2 and means.idxmin() == patient:
            value, middle = w.number(float(means.min())), w.number(float(means.median()))
            said = w("reason_smallest", organ=w.organ(str(name)), n=len(means), value=value, median=middle)
            smallest.append((1 - float(means.min() / means.median()), str(name), said))
    yield from _most(facts, smallest, "smallest")


def _of_ledger(facts: Facts, patient: str) -> Iterator[str]:
    ledger = facts.inputs.exclusions
    if ledger is None or not {"patient", "organ", "annotator", "reason"} <= set(ledger.columns):
        return
    own = ledger[(ledger["patient"] == patient) & (ledger.get("predictor", "") == "")]
    yield from (w for w in dict.fromkeys(facts.words.told(str(reason)) for reason in own["reason"] if reason))


def _of_agreement(facts: Facts, patient: str, organ: str) -> Iterator[str]:
    """The organ on which annotators agree less than on other patients."""
    w = facts.words
    for metric in AGREEMENTS:
        rows = facts.of_metric(metric)
        rows = rows[rows["value"].notna()]
        rows = rows[~rows["organ"].isin(WHOLE)]
        lowest: list[_Found] = []
        for name, part in rows.groupby("organ", sort=False):
            if organ and name != organ:
                continue
            means = part.groupby("patient")["value"].mean()
            low = len(means) > 2 and patient in means.index and means[patient] <= np.quantile(means, 0.1)
            if low and means[patient] < means.median():
                value, middle = w.number(float(means[patient])), w.number(float(means.median()))
                said = w("reason_agreement", organ=w.organ(str(name)), value=value, median=middle)
                lowest.append((float(means.median() - means[patient]), str(name), said))
        yield from _most(facts, lowest, "agreement")


def _most(facts: Facts, found: list[_Found], kind: str) -> Iterator[str]:
    """What is said of the organs that are farthest from the ordinary, and the names of the others: 14 sentences say nothing."""
    w = facts.words
    ranked = sorted(found, key=lambda one: -one[0])
    yield from (said for _, _, said in ranked[:MOST_ORGANS])
    if others := [w.organ(name) for _, name, _ in ranked[MOST_ORGANS:]]:
        yield w(f"reason_{kind}_more", n=len(others), organs=counted(others))


def _of_cohort(facts: Facts, patient: str) -> Iterator[str]:
    """A group that models did not train on, and intensities that nobody may trust."""
    w, study, cohort = facts.words, facts.study, facts.inputs.cohort
    group = facts.group_of.get(patient, "")
    if study.in_distribution_group and group and group != study.in_distribution_group:
        yield w("reason_group", group=group, training=study.in_distribution_group)
    if cohort is not None and "doubts" in cohort:
        doubts = cohort.loc[cohort["patient"] == patient, "doubts"].fillna("")
        yield from (w.told(str(doubt)) for doubt in doubts if doubt)
