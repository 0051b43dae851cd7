"""Scores: every predictor of a patient against every annotator, and the study's one table."""

from collections.abc import Sequence
from pathlib import Path

import dagster as dg
import pandas as pd

from curvas_assets.assets.cohort import OWNERS, fetch_files, region_of
from curvas_assets.cohort import read_annotations
from curvas_assets.errors import MissingArtefactError, ScoringError
from curvas_assets.orchestration import metadata
from curvas_assets.orchestration.bucket import Bucket
from curvas_assets.orchestration.cells import materialise, one_by_one
from curvas_assets.orchestration.checks import Check, Checks, specs
from curvas_assets.orchestration.execution import RETRY, StageNeeds
from curvas_assets.orchestration.io_manager import Artefacts, Stored, artefact, table_version
from curvas_assets.orchestration.partitions import Partitions
from curvas_assets.orchestration.scratch import scratch_space
from curvas_assets.report import previews
from curvas_assets.scoring import PatientReference, check_scores, metric_table, study_columns
from curvas_assets.statistics import shown_scores, shown_unit, units_of, with_unit
from curvas_assets.storage import directories
from curvas_assets.storage.layout import Cell
from curvas_assets.study import Study

GROUP = "scores"
KEY_METRICS = ("dice", "confidence", "ece", "crps", "predictive_entropy")
"""Shown in the UI beside the whole table."""

CHECKS = (
    Check(
        "scores_are_sound",
        "Every predictor is there, every value lies in its metric's range, no NaN is without a reason.",
        dg.AssetCheckSeverity.ERROR,
    ),
)
STUDY_CHECK = Check(
    "patients_are_scored", "Every patient whom the study scores is in the table, with every predictor that it has."
)


def build(study: Study, partitions: Partitions) -> list[dg.AssetsDefinition]:
    """The scores of one study."""
    needs = StageNeeds.of(study)

    @dg.asset(
        ins={
            "softmax": dg.AssetIn(partition_mapping=partitions.same("patient")),
            "ensemble_softmax": dg.AssetIn(partition_mapping=partitions.same("patient")),
            "scan": dg.AssetIn(partition_mapping=dg.IdentityPartitionMapping()),
        },
        partitions_def=partitions.test_patient,
        backfill_policy=dg.BackfillPolicy.multi_run(10),
        group_name=GROUP,
        owners=OWNERS,
        kinds={"numba", "parquet"},
        code_version=f"4-{study.fingerprint('evaluation', 'organs', 'annotators', 'members', 'held_out')}",
        metadata=artefact("folder"),
        output_required=False,
        op_tags=needs.scoring.op_tags,
        retry_policy=RETRY,
        check_specs=specs("scores", CHECKS, partitions.test_patient),
    )
    def scores(
        context: dg.AssetExecutionContext,
        bucket: Bucket,
        softmax: Artefacts,
        ensemble_softmax: Artefacts,
        scan: Artefacts,
    ):
        """All predictors of one patient on every metric, organ and annotator; reliability bins, risk–coverage curves."""
        objects, layout = bucket.checked_objects(hours=needs.scoring.hours * len(context.partition_keys)), bucket.layout
        checks = Checks(*CHECKS)

        def score_patient(patient: str) -> Stored:
            predictors = study.predictors_of(patient)
            record = scan[patient].record()
            with scratch_space(patient) as scratch:
                folder = Path(scratch, patient)
                fetch_files(objects, record, folder, [annotator.file for annotator in study.annotators])
                z, y, x = (slice(start, stop) for start, stop in region_of(study, record))
                reference = PatientReference(
                    read_annotations(folder, study),
                    tuple(record["facts"]["spacing_mm"]),
                    organs=study.organs,
                    region=(z, y, x),
                    ece_bins=study.evaluation.ece_bins,
                    ace_bins=study.evaluation.ace_bins,
                    tolerance_mm=study.evaluation.tolerance_mm,
                    not_annotated=[study.annotator_names.index(a) + 1 for a in record.get("not_annotated", [])],
                )
                found = {}
                for count, predictor in enumerate(predictors, 1):
                    key = str(Cell(predictor, patient))
                    if study.family(predictor) == "individual":
                        found[predictor] = reference.score(softmax[key].volume())
                    else:
                        names = [str(m) for m in study.members(predictor, patient)]
                        mean = ensemble_softmax[key].volume()
                        require_members(mean.provenance.get("members"), names, key)
                        members = [softmax[str(Cell(m, patient))].volume() for m in names]
                        found[predictor] = reference.score(mean, members=members)
                    context.log.info(f"{patient}: {predictor} scored, {count} of {len(predictors)}")
                written = {
                    name: _labelled(
                        study, patient, study.patient_group(patient), {p: getattr(s, name) for p, s in found.items()}
                    )
                    for name in ("table", "reliability", "risk_coverage")
                }
                Path(scratch, "out").mkdir()
                for name, frame in written.items():
                    frame.to_parquet(
                        Path(scratch, "out", f"{'scores' if name == 'table' else name}.parquet"), index=False
                    )
                problems = check_scores(written["table"], predictors=predictors)
                if problems:
                    raise checks["scores_are_sound"].refuse(
                        patient,
                        ScoringError("scoring", patient, "; ".join(problems), "Report it: scores must never be so."),
                    )
                checks["scores_are_sound"].look(patient)
                key = layout.scores(patient)
                stored = directories.write_directory(objects, key, Path(scratch, "out"))
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
                    "scores": metadata.table(means_by_predictor(table)),
                    "exclusions": metadata.table(undefined[["predictor", "metric", "organ", "annotator", "note"]]),
                    "reliability": metadata.image(
                        previews.reliability_diagram(found[general].reliability, title=f"{general} of {patient}"),
                        f"reliability of {general}, {patient}",
                    ),
                },
            )

        yield from materialise(context, objects, one_by_one(score_patient), checks)

    @dg.asset(
        ins={"scores": dg.AssetIn(partition_mapping=dg.AllPartitionMapping())},
        group_name=GROUP,
        owners=OWNERS,
        kinds={"parquet", "csv"},
        code_version=f"3-{study.fingerprint('sets', 'groups', 'exclusions', 'members', 'held_out')}",
        metadata=artefact("table"),
        check_specs=[STUDY_CHECK.spec("study_scores")],
        op_tags=needs.report.op_tags,
        retry_policy=RETRY,
    )
    def study_scores(context: dg.AssetExecutionContext, bucket: Bucket, scores: Artefacts):
        """Scores of all patients in one long table, and as `metrics.csv` with the study's columns.

        Who is in it, with which predictors, families and groups, is decided by the study file as it stands now.
        """
        objects, layout = bucket.checked_objects(), bucket.layout
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
        wide = study_columns(table)
        objects.put(layout.merged_csv(), wide.to_csv(index=False).encode())
        if unscored:
            context.log.warning(f"no scores yet of {', '.join(unscored)}: they are not in the table")
        return dg.MaterializeResult(
            value=table,
            check_results=[STUDY_CHECK.result("study_scores", not_scored(study, table))],
            data_version=dg.DataVersion(table_version(table)),
            metadata={
                "patients": len(scored),
                "not scored": ", ".join(unscored) or "none",
                "predictors": int(table["predictor"].nunique()),
                "metrics": int(table["metric"].nunique()),
                "metrics.csv": f"{objects.name}/{layout.merged_csv()} (the study's columns; CRPS in mm³, as scored)",
                "means": metadata.table(means_by_predictor(table)),
                "what the metrics are": metadata.table(shown_registry()),
            },
        )

    return [scores, study_scores]


def require_members(averaged: Sequence[str] | None, members: Sequence[str], cell: str) -> None:
    """A ScoringError if an ensemble is the mean of others than its members now; of a volume that does not say, nothing."""
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
    """A patient's stored rows as the study has them now: its predictors' alone, with their families and the patient's group."""
    predictors = study.predictors_of(patient)
    kept = table[table["predictor"].isin(predictors)]
    family = {predictor: study.family(predictor) for predictor in predictors}
    return kept.assign(
        family=kept["predictor"].map(family).astype(object), group=study.patient_group(patient) or ""
    ).reset_index(drop=True)


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
    """Key metrics with their units, averaged over what a predictor has of each (NaN left out): one row per predictor."""
    key = table[table["metric"].isin(KEY_METRICS) & ~table["annotator"].astype(str).str.isdigit()]
    shown = shown_scores(key)
    means = shown.groupby(["predictor", "metric"], sort=False)["value"].mean().unstack("metric")
    units = units_of(shown)
    means = means.reindex(columns=[metric for metric in KEY_METRICS if metric in means])
    return means.rename(columns={metric: with_unit(metric, units.get(metric, "")) for metric in means}).reset_index()


def shown_registry() -> pd.DataFrame:
    """The registry of metrics in the units in which they are read."""
    table = metric_table()
    return table.assign(unit=[shown_unit(unit) for unit in table["unit"]])


def _labelled(study: Study, patient: str, group: str | None, frames: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Frames of several predictors, one below the other, each row saying whose it is."""
    parts = [
        frame.assign(patient=patient, predictor=predictor, family=study.family(predictor), group=group or "")
        for predictor, frame in frames.items()
    ]
    whole = pd.concat(parts, ignore_index=True)
    return whole[
        ["patient", "predictor", "family", "group", *(c for c in parts[0].columns if c in frames[next(iter(frames))])]
    ]
