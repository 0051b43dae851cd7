"""The cohort, what of it was scored, and everything that was left out or is in doubt."""

import pandas as pd

from curvas_assets.report.blocks import Absent, Block, Heading, Text
from curvas_assets.report.facts import Facts
from curvas_assets.report.tables import MISSING, counted


def write(facts: Facts) -> list[Block]:
    """The cohort, the patients excluded, cells that were not scored, and the ledger of values left out."""
    w = facts.words
    blocks = [*_cohort(facts), *_excluded(facts)]
    if missing := _missing_cells(facts):
        blocks.append(Text(w("missing_cells", missing=counted(missing))))
    return blocks + _ledger(facts)


def _cohort(facts: Facts) -> list[Block]:
    w, cohort = facts.words, facts.inputs.cohort
    scored = {"scored": facts.patients, "predictors": facts.predictors}
    if cohort is None or not len(cohort):
        return [Text(w("scored_text", **scored)), Absent(w("no_cohort"))]
    blocks: list[Block] = [Text(w("cohort_text", patients=len(cohort), sets=_sets(facts, cohort), **scored))]
    if "doubts" in cohort:  # the reasons are in the table and in the ledger
        doubted = cohort.loc[cohort["doubts"].fillna("") != "", "patient"]
        cohort = cohort.drop(columns=["doubts"])
        if len(doubted):
            blocks.append(Text(w("doubted_intensities", n=len(doubted), patients=counted(list(doubted)))))
    return [
        *blocks,
        facts.table(cohort, facts.headings(*cohort.columns), caption=w("cohort"), folded=len(cohort) > 12),
    ]


def _sets(facts: Facts, cohort: pd.DataFrame) -> str:
    """Each set with its number of patients."""
    if "set" not in cohort:
        return MISSING
    counts = cohort["set"].fillna("").replace("", MISSING).value_counts(sort=False)
    return ", ".join(f"{facts.words.told(str(name))} {count}" for name, count in counts.items())


def _excluded(facts: Facts) -> list[Block]:
    w, exclusions = facts.words, facts.study.exclusions
    if not exclusions:
        return [Text(w("no_excluded_patients"))]
    table = pd.DataFrame(exclusions.items(), columns=["patient", "reason"])
    return [Heading(w("excluded_patients")), facts.table(table, facts.headings("patient", "reason"))]


def _missing_cells(facts: Facts) -> list[str]:
    """Patients and predictors that belong together and were never scored together."""
    scores, study = facts.scores, facts.study
    present = set(zip(scores["patient"], scores["predictor"], strict=True))
    return [
        f"{patient} × {predictor}"
        for patient in scores["patient"].unique()
        for predictor in scores["predictor"].unique()
        if (patient, predictor) not in present
        and (not study.cross_validated or predictor in study.predictors_of(str(patient)))
    ]


def _ledger(facts: Facts) -> list[Block]:
    """Everything that was left out or is odd, grouped by reason."""
    w, ledger = facts.words, facts.inputs.exclusions
    if ledger is None:
        undefined = facts.scores[facts.scores["value"].isna()]
        ledger = undefined.assign(reason=undefined.get("note", pd.Series("", index=undefined.index)))
    if not len(ledger):
        return [Heading(w("ledger")), Text(w("no_ledger"))]
    keys = [column for column in ("reason", "metric", "organ", "annotator") if column in ledger]
    filled = ledger.assign(**{key: ledger[key].astype("string").fillna("").astype(str) for key in keys})
    grouped = (
        facts.named(filled)
        .groupby(keys, sort=False)
        .agg(
            values=("patient", "size"),
            patients=("patient", lambda names: counted(list(dict.fromkeys(map(str, names))))),
        )
        .reset_index()
    )
    columns = facts.headings(*keys, "values", "patients")
    return [
        Heading(w("ledger")),
        Text(w("ledger_text", n=len(ledger))),
        facts.table(grouped, columns, caption=w("ledger"), folded=len(grouped) > 15),
    ]
