"""Scores: every predictor of a patient against every annotator, and the study's one table."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from curvas_assets.cohort import read_annotations
from curvas_assets.errors import MissingArtefactError, ScoringError
from curvas_assets.report import previews
from curvas_assets.scoring import (
    PatientReference,
    PatientScores,
    check_scores,
    metric_table,
    metrics_of,
    study_columns,
)
from curvas_assets.scoring.registry import PAIR
from curvas_assets.stages.calibrated import with_calibrated
from curvas_assets.stages.checks import Check, StepChecks
from curvas_assets.stages.patients import fetch_files, grid_of, scored_region
from curvas_assets.stages.stored import Artefact, Artefacts, Outcome, Picture, Stored, one_by_one
from curvas_assets.stages.table import SCORES
from curvas_assets.stages.toolkit import Toolkit
from curvas_assets.statistics import shown_scores, shown_unit, units_of, with_unit
from curvas_assets.statistics.reduction import WHOLE
from curvas_assets.storage import directories
from curvas_assets.storage.layout import Cell
from curvas_assets.storage.softmax import SoftmaxVolume
from curvas_assets.study import Study

Opened = Callable[[str], tuple[Mapping[str, Any], dict[str, list[str]]]]
"""Patient → the opened volumes of its predictors, and of each ensemble its members."""
KEY_METRICS = ("dice", "confidence", "ece", "crps", "predictive_entropy")
"""Shown in the UI beside the whole table."""
OUT = "_out"
"""Folder of what is stored, beside the patient's; no patient is called so."""
CHECKS = (
    Check(
        "scores_are_sound",
        "Every predictor is there, every value lies in its metric's range, no NaN is without a reason.",
        of_defects=True,
    ),
)
STUDY_CHECK = Check(
    "patients_are_scored", "Every patient whom the study scores is in the table, with every predictor that it has."
)


def score_patients(
    tools: Toolkit,
    patients: Sequence[str],
    checks: StepChecks,
    *,
    softmax: Artefacts,
    variant_softmax: Artefacts,
    ensemble_softmax: Artefacts,
    calibrators: Artefact,
    scan: Artefacts,
) -> Iterator[tuple[str, Outcome]]:
    """All predictors of patients on every metric, organ and annotator; reliability bins, risk–coverage curves."""

    def opened(patient: str) -> tuple[Mapping[str, Any], dict[str, list[str]]]:
        volumes, ensembles = _volumes(tools.study, patient, softmax, variant_softmax, ensemble_softmax)
        return with_calibrated(tools.study, patient, volumes, calibrators), ensembles

    yield from one_by_one(lambda patient: _score(tools, patient, opened, scan, checks))(patients)


def _score(tools: Toolkit, patient: str, opened: Opened, scan: Artefacts, checks: StepChecks) -> Stored:
    study, key = tools.study, tools.layout.scores(patient)
    predictors = study.predictors_of(patient)
    with tools.scratch(patient) as scratch:
        reference = reference_of(tools, patient, scan[patient].record(), scratch)
        volumes, ensembles = opened(patient)
        found: dict[str, PatientScores] = {}
        for predictor, scores in reference.score_all(
            volumes, ensembles, scored=predictors, progress=Telling(tools.tell, patient, "slices of all predictors")
        ):
            found[predictor] = scores
            tools.tell(f"{patient}: {predictor} scored, {len(found)} of {len(predictors)} predictors")
        written = {
            name: _labelled(study, patient, {p: getattr(scores, name) for p, scores in found.items()})
            for name in ("table", "reliability", "risk_coverage")
        }
        Path(scratch, OUT).mkdir()
        for name, frame in written.items():
            file = "scores" if name == "table" else name
            columns = pa.Table.from_pandas(frame, preserve_index=False)
            SCORES.schemas[file].require_written(columns, f"{tools.objects.name}/{key}/{file}.parquet")
            frame.to_parquet(Path(scratch, OUT, f"{file}.parquet"), index=False)
        evaluation = study.evaluation
        expected = metrics_of(evaluation.reference, vessels=bool(evaluation.vascular.vessels))
        problems = check_scores(written["table"], predictors=predictors, metrics=expected)
        if problems:
            raise checks["scores_are_sound"].refuse(
                patient, ScoringError("scoring", patient, "; ".join(problems), "Report it: this must never happen.")
            )
        checks["scores_are_sound"].look(patient)
        stored = directories.write_directory(tools.objects, key, Path(scratch, OUT))
    table = written["table"]
    undefined = table[table["value"].isna()]
    general = next((p for p in predictors if study.family(p) == "general"), predictors[-1])
    return Stored(
        key,
        stored.version,
        {
            "patient": patient,
            "predictors": len(found),
            "rows": len(table),
            "undefined": len(undefined),
            "bytes": stored.size,
            "scores": means_by_predictor(table),
            "exclusions": undefined[["predictor", "metric", "organ", "annotator", "note"]],
            "reliability": Picture(
                previews.reliability_diagram(found[general].reliability, title=f"{general} of {patient}"),
                f"reliability of {general}, {patient}",
            ),
        },
    )


def reference_of(tools: Toolkit, patient: str, record: dict[str, Any], scratch: Path) -> PatientReference:
    """What a patient's predictors are scored against, from the files that the intake validated."""
    study, folder = tools.study, Path(scratch, patient)
    files = fetch_files(tools.objects, record, folder, [annotator.file for annotator in study.annotators])
    blank = record.get("not_annotated", [])
    z, y, x = (slice(start, stop) for start, stop in scored_region(study, record))
    return PatientReference(
        read_annotations(files, study, not_annotated=blank),
        grid_of(record).spacing_mm,
        organs=study.labels,
        scored_organs=study.scored_organs,
        region=(z, y, x),
        ece_bins=study.evaluation.ece_bins,
        ace_bins=study.evaluation.ace_bins,
        tolerance_mm=study.evaluation.tolerance_mm,
        reference=study.evaluation.reference,
        tumour=study.evaluation.vascular.tumour,
        vessels=study.evaluation.vascular.vessels,
        annotators=study.annotator_names,
        not_annotated=blank,
    )


def _volumes(
    study: Study, patient: str, softmax: Artefacts, variant_softmax: Artefacts, ensemble_softmax: Artefacts
) -> tuple[dict[str, SoftmaxVolume], dict[str, list[str]]]:
    """The patient's models, ensembles and variants of models that are members only, opened; of each ensemble its members.

    Raises:
        MissingArtefactError: one has not been materialised.
        ScoringError: an ensemble is the mean of others than its members now.
    """
    volumes: dict[str, SoftmaxVolume] = {}
    ensembles: dict[str, list[str]] = {}
    for predictor in study.predictors_of(patient):
        cell = str(Cell(predictor, patient))
        if study.predicted_by(predictor) == "calibrated":
            continue
        if study.predicted_by(predictor) == "model":
            volumes[predictor] = softmax[cell].volume()
            continue
        ensembles[predictor] = [str(model) for model in study.members(predictor, patient)]
        volumes[predictor] = ensemble_softmax[cell].volume()
        require_members(volumes[predictor].provenance.get("members"), ensembles[predictor], cell)
    for variant in map(str, study.variants_of(patient)):
        volumes[variant] = variant_softmax[str(Cell(variant, patient))].volume()
    return volumes, ensembles


class Telling:
    """Tells how far the pass over a patient's volumes is, at every quarter of what is counted."""

    def __init__(self, tell: Callable[[str], None], patient: str, what: str):
        self._tell, self._patient, self._what, self._quarters = tell, patient, what, 0

    def __call__(self, done: int, of: int) -> None:
        if 4 * done // of > self._quarters:
            self._quarters = 4 * done // of
            self._tell(f"{self._patient}: {done} of {of} {self._what} counted")


def merge_scores(tools: Toolkit, scores: Artefacts) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Scores of all patients in one long table, stored as `metrics.csv` too, and what people look for in it.

    Raises:
        MissingArtefactError: nobody is scored.
    """
    study, objects, layout = tools.study, tools.objects, tools.layout
    wanted = study.scored_patients(scores)
    scored = [p for p in sorted(scores) if p in wanted and directories.exists(objects, layout.scores(p))]
    unscored = [p for p in wanted if p not in scored]
    if not scored:
        raise MissingArtefactError(
            "merging the scores",
            study.name,
            f"none of {len(wanted)} patients is scored",
            "Materialise scores first.",
        )
    table = pd.concat(
        [of_the_study(study, patient, scores[patient].table("scores")) for patient in scored], ignore_index=True
    )
    objects.put(
        layout.merged_csv(), study_columns(table, reference=study.evaluation.reference).to_csv(index=False).encode()
    )
    if unscored:
        tools.warn(f"no scores yet of {', '.join(unscored)}: they are not in the table")
    return table, {
        "patients": len(scored),
        "not scored": ", ".join(unscored) or "none",
        "predictors": int(table["predictor"].nunique()),
        "metrics": int(table["metric"].nunique()),
        "metrics.csv": f"{objects.name}/{layout.merged_csv()} (the study's columns; CRPS in mm³, as scored)",
        "means": means_by_predictor(table),
        "what the metrics are": shown_registry(study),
    }


def require_members(averaged: Sequence[str] | None, members: Sequence[str], cell: str) -> None:
    """Raise a ScoringError if an ensemble averages other models than its members now; one that names none passes."""
    if averaged is None or set(averaged) == set(members):
        return
    gone, come = sorted(set(averaged) - set(members)), sorted(set(members) - set(averaged))
    found = [
        f"without {', '.join(come)}" if come else "",
        f"with {', '.join(gone)}, no members any more" if gone else "",
    ]
    raise ScoringError(
        "scoring",
        cell,
        f"the ensemble is the mean of {len(averaged)} models, {' and '.join(part for part in found if part)}",
        "Materialise ensemble_softmax of this patient again, then score it; `study` does both.",
    )


def of_the_study(study: Study, patient: str, table: pd.DataFrame) -> pd.DataFrame:
    """A patient's stored rows of the study's current predictors, with their families and the patient's group now."""
    predictors = study.predictors_of(patient)
    kept = table[table["predictor"].isin(predictors)]
    family = {predictor: study.family(predictor) for predictor in predictors}
    return kept.assign(
        family=kept["predictor"].map(family).astype(object),
        group=study.patient_group(patient) or "",
        annotator=_named(study, kept["annotator"]),
    ).reset_index(drop=True)


def _named(study: Study, annotators: pd.Series) -> pd.Series:
    """Annotators by name, also of a table of before code version 7, which numbers them."""
    names = {str(number): name for number, name in enumerate(study.annotator_names, 1)}
    told = set(annotators) - set(WHOLE)
    if told <= set(study.annotator_names) or not all(set(one.split("-")) <= set(names) for one in told):
        return annotators
    pairs = {"-".join(two): PAIR.join(names[one] for one in two) for two in combinations(names, 2)}
    return annotators.map({one: one for one in WHOLE} | names | pairs)


def not_scored(study: Study, table: pd.DataFrame) -> list[str]:
    """Patients and predictors that the study scores and the table does not hold."""
    held = table.groupby("patient")["predictor"].agg(set).to_dict()
    absent = {p: [one for one in study.predictors_of(p) if one not in held.get(p, ())] for p in study.scored_patients()}
    return [
        f"{patient} is not scored" if patient not in held else f"{patient} is not scored by {', '.join(predictors)}"
        for patient, predictors in absent.items()
        if predictors
    ]


def means_by_predictor(table: pd.DataFrame) -> pd.DataFrame:
    """Key metrics with their units, averaged over all values of a predictor (without NaN): one row per predictor."""
    key = table[table["metric"].isin(KEY_METRICS) & table["annotator"].isin(WHOLE)]
    shown = shown_scores(key)
    means = shown.groupby(["predictor", "metric"], sort=False)["value"].mean().unstack("metric")
    units = units_of(shown)
    means = means.reindex(columns=[metric for metric in KEY_METRICS if metric in means])
    return means.rename(columns={metric: with_unit(metric, units.get(metric, "")) for metric in means}).reset_index()


def shown_registry(study: Study) -> pd.DataFrame:
    """The metrics that a study has, in the units in which they are read."""
    table = metric_table(study.evaluation.reference, vessels=bool(study.evaluation.vascular.vessels))
    return table.assign(unit=[shown_unit(unit) for unit in table["unit"]])


def _labelled(study: Study, patient: str, frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Frames of several predictors, one below the other, each row saying whose it is."""
    group = study.patient_group(patient) or ""
    parts = [
        frame.assign(patient=patient, predictor=predictor, family=study.family(predictor), group=group)
        for predictor, frame in frames.items()
    ]
    whole = pd.concat(parts, ignore_index=True)
    return whole[
        ["patient", "predictor", "family", "group", *(c for c in parts[0].columns if c in frames[next(iter(frames))])]
    ]
