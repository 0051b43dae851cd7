"""The operations as jobs: what people fill in at the launchpad, and thin ops around the functions beside this module.

A folder is one of the machine that the run executes on. Each job runs in one process and can be launched again.
"""

from pathlib import Path
from typing import Any, Literal

import dagster as dg
import pandas as pd
from dagster._core.definitions.data_version import StaleStatus
from dagster._core.storage.tags import MAX_RETRIES_TAG
from pydantic import Field

from curvas_assets.errors import CurvasError
from curvas_assets.orchestration import metadata, nightly
from curvas_assets.orchestration.bucket import Bucket
from curvas_assets.orchestration.cells import cell_event, provenance_tags
from curvas_assets.orchestration.operations import (
    about,
    cleaning,
    download,
    emptying,
    forgetting,
    leftovers,
    selection,
    upload_artefacts,
)
from curvas_assets.orchestration.operations.transfer import human_bytes, total
from curvas_assets.orchestration.operations.upload_patients import refusals_table
from curvas_assets.orchestration.operations.upload_patients import upload_patients as send_patients
from curvas_assets.orchestration.operations.upload_predictions import upload_predictions as send_predictions
from curvas_assets.orchestration.partitions import Partitions, current_keys
from curvas_assets.orchestration.scope import Scope, columns_of
from curvas_assets.orchestration.sensors import digests, register, roles_of
from curvas_assets.orchestration.staleness import Staleness
from curvas_assets.orchestration.state import state_table
from curvas_assets.orchestration.study_run import StageRunner, launcher_tags
from curvas_assets.orchestration.under_way import other_runs, short_name
from curvas_assets.stages.patients import patient_folders
from curvas_assets.stages.stored import Stored
from curvas_assets.stages.table import STAGES
from curvas_assets.study import ModelId, Study

OP = "_op"
"""Suffix of an op's name: Dagster wants it other than its job's."""
TAGS = {"curvas/needs": "cpu"}
NEVER_AGAIN = {MAX_RETRIES_TAG: "0"}
"""What is removed is removed because a person says so now, not because a run was killed before."""
TAGS_OF = {
    **{name: launcher_tags(name) for name in ("make_missing", "refresh_scores")},
    "redo": launcher_tags("redo") | NEVER_AGAIN,  # begun anew, it would make what it has made already
    **dict.fromkeys(("empty_data", "empty_artifacts", "remove_orphans", "sweep"), NEVER_AGAIN),
}
"""Operation → what the queue and the daemon read of its runs."""
FOLDER = "A folder on the machine where this run executes."
ORIGIN = "Where it comes from, in your own words: who made it, when, with what. Shown with the partition."


class UploadPatients(dg.Config):
    folder: str = Field(description=f"{FOLDER} It contains one folder per patient, named with or without the prefix.")
    patients: list[str] = Field(default=["all"], description=f"Patients to upload. {selection.PATIENTS}")


class UploadModel(dg.Config):
    folder: str = Field(
        description=f"{FOLDER} nnU-Net's results of one trainer: plans.json, dataset.json, fold_…/checkpoint_best.pth."
    )
    model: str = Field(description="The model of the study that it becomes, such as anno1_init112233_foldall.")
    origin: str = Field(default="", description=ORIGIN)
    voxel_order: str = Field(
        default="",
        description="Voxel order of the scans it was trained on, such as LPS or RAS. Empty: the order that its dataset.json or its "
        "reader says, else that of the study's training scans.",
    )


class UploadPreprocessing(dg.Config):
    folder: str = Field(description=f"{FOLDER} One dataset of nnUNet_preprocessed.")
    annotator: str = Field(description="The annotator from whose label maps it was made, such as anno1.")
    origin: str = Field(default="", description=ORIGIN)


class UploadPredictions(dg.Config):
    folder: str = Field(
        description=f"{FOLDER} What nnUNetv2_predict --save_probabilities wrote: <patient>.npz and <patient>.nii.gz, "
        "with its dataset.json and plans.json."
    )
    model: str = Field(description="The model of the study that made them, such as anno1_init112233_foldall.")
    patients: list[str] = Field(default=["all"], description=f"Patients to upload. {selection.PATIENTS}")
    origin: str = Field(default="", description=ORIGIN)


class Download(dg.Config):
    what: Literal["dataset", "preprocessing", "models", "predictions", "ensembles", "scores", "report"] = Field(
        description="dataset: the patients' files as uploaded; preprocessing: of the models' annotators; predictions and "
        "ensembles: zarr volumes, label maps and an ensemble's maps as NIfTI; scores: per patient, the whole table as CSV, and "
        "metrics.csv."
    )
    folder: str = Field(
        description=f"{FOLDER} Made if it is not there; files that are there already are not fetched again."
    )
    patients: list[str] = Field(default=["all"], description=f"Patients to download. {selection.PATIENTS}")
    models: list[str] = Field(default=["all"], description=f"Models and ensembles to download. {selection.PREDICTORS}")
    probabilities: bool = Field(
        default=False,
        description="For predictions and ensembles: also write one NIfTI of probabilities per organ (at clinical size about 1 GB each "
        "before compression).",
    )


class MakeMissing(dg.Config):
    stages: list[str] = Field(
        default=["all"],
        description=f"Stages to make, in the order of the study: all, or assets such as softmax and scores, or jobs: {', '.join(STAGES)}.",
    )
    patients: list[str] = Field(default=["all"], description=f"Patients to make them for. {selection.PATIENTS}")
    models: list[str] = Field(
        default=["all"],
        description=f"Models and ensembles. {selection.PREDICTORS} A model includes the ensembles it belongs to.",
    )
    stale: bool = Field(
        default=False, description="Also make what exists but is out of date; otherwise only what is missing."
    )
    elsewhere: bool = Field(
        default=False,
        description="Also make what people uploaded, and train models of which only predictions were uploaded. Otherwise "
        "uploads are left alone, as `study` leaves them.",
    )


class Redo(dg.Config):
    stages: list[str] = Field(
        description="Stages to make again: assets such as softmax and scores, or jobs such as predict. `figures` and `report` are made together.",
    )
    patients: list[str] = Field(description=f"Patients; without effect on models and tables. {selection.PATIENTS}")
    models: list[str] = Field(
        description=f"Models and ensembles; without effect on scans, scores and tables. {selection.PREDICTORS} Datasets are "
        "those of the models' annotators.",
    )
    dry_run: bool = Field(default=True, description="Only list what would be made again.")


class RefreshScores(dg.Config):
    patients: list[str] = Field(
        default=["all"],
        description=f"Patients to look at; only those of whom something changed are scored again. {selection.PATIENTS}",
    )
    predict: bool = Field(
        default=False,
        description="Also predict what is out of date, which uses GPUs; otherwise the run names these patients.",
    )


class ForgetOldRuns(dg.Config):
    days: int = Field(default=90, description="Only runs that were launched more than this many days ago.", ge=1)
    dry_run: bool = Field(default=True, description="Only list them.")


class EmptyData(dg.Config):
    dry_run: bool = Field(default=True, description="Only list what would be removed, with its size.")
    confirm: str = Field(
        default="", description="To remove: type the full name of the prefix, exactly as the dry run prints it."
    )


class EmptyArtifacts(EmptyData):
    what: Literal["artifacts", "output", "metrics", "reports"] = Field(
        default="artifacts",
        description="artifacts: preprocessing and models; output: scans' records, predictions, ensembles; metrics: all tables, the published one too if people uploaded it; reports.",
    )


def build(study: Study, partitions: Partitions, bucket_resource: Bucket) -> list[dg.JobDefinition]:
    """The jobs of one study."""

    @dg.op(
        name=f"upload_patients{OP}",
        description="Validates each patient, uploads the files that are not in the bucket yet, and registers new patients.",
        tags=TAGS,
    )
    def upload_patients(context: dg.OpExecutionContext, config: UploadPatients, bucket: Bucket) -> dg.Output[None]:
        done = _told(
            lambda: send_patients(
                bucket.checked_objects(), bucket.layout, study, Path(config.folder), config.patients, context.log.info
            )
        )
        added = register(context, study, partitions, bucket)
        roles = roles_of(study, [*done.uploaded, *done.unchanged], most=50)
        for role in roles:
            context.log.info(role)
        if done.refused:
            reasons = "\n".join(f"- {reason}" for reason in done.refused.values())
            table = dg.MetadataValue.md(refusals_table(done.refused))
            raise dg.Failure(
                f"{len(done.refused)} patients were refused, {len(done.uploaded)} uploaded, {len(done.unchanged)} "
                f"unchanged:\n{reasons}",
                metadata={"refused": dg.MetadataValue.json(done.refused), "table": table},
                allow_retries=False,
            )
        return dg.Output(
            None,
            metadata={
                "uploaded": ", ".join(done.uploaded) or "none",
                "unchanged": ", ".join(done.unchanged) or "none",
                "registered": ", ".join(added) or "none",
                "what the study makes of them": dg.MetadataValue.md("\n".join(f"- {role}" for role in roles) or "none"),
                "bytes": done.size,
            },
        )

    @dg.op(
        name=f"upload_model{OP}",
        description="Checks a trained model and makes it the partition of trained_model.",
        tags=TAGS,
    )
    def upload_model(context: dg.OpExecutionContext, config: UploadModel, bucket: Bucket) -> dg.Output[None]:
        stored = _told(
            lambda: upload_artefacts.upload_model(
                bucket.checked_objects(),
                bucket.layout,
                study,
                config.model,
                Path(config.folder),
                config.origin,
                config.voxel_order.strip().upper() or None,
            )
        )
        return _materialised(context, bucket, "trained_model", config.model.strip(), stored)

    @dg.op(
        name=f"upload_preprocessing{OP}",
        description="Checks a preprocessed dataset and makes it the partition of preprocessed_dataset.",
        tags=TAGS,
    )
    def upload_preprocessing(
        context: dg.OpExecutionContext, config: UploadPreprocessing, bucket: Bucket
    ) -> dg.Output[None]:
        stored = _told(
            lambda: upload_artefacts.upload_preprocessing(
                bucket.checked_objects(), bucket.layout, study, config.annotator, Path(config.folder), config.origin
            )
        )
        return _materialised(context, bucket, "preprocessed_dataset", config.annotator.strip(), stored)

    @dg.op(
        name=f"upload_predictions{OP}",
        description="Checks predictions of nnU-Net against their patients and makes them partitions of softmax.",
        tags=TAGS,
    )
    def upload_predictions(
        context: dg.OpExecutionContext, config: UploadPredictions, bucket: Bucket
    ) -> dg.Output[None]:
        def send() -> tuple[list[str], dict[str, str]]:
            stored: list[str] = []
            refused: dict[str, str] = {}
            for cell, outcome in send_predictions(
                bucket.checked_objects(),
                bucket.layout,
                study,
                config.model,
                Path(config.folder),
                config.patients,
                config.origin,
                context.log.info,
            ):
                if isinstance(outcome, CurvasError):
                    refused[cell] = str(outcome)
                else:
                    _materialised(context, bucket, "softmax", cell, outcome)
                    stored.append(cell)
            return stored, refused

        stored, refused = _told(send)
        if refused:
            reasons = "\n".join(f"- {reason}" for reason in refused.values())
            raise dg.Failure(
                f"{len(refused)} predictions were refused, {len(stored)} stored:\n{reasons}",
                metadata={"refused": dg.MetadataValue.json(refused)},
                allow_retries=False,
            )
        return dg.Output(None, metadata={"stored": ", ".join(stored)})

    @dg.op(name=f"download{OP}", description="Fetches artefacts into a local folder.", tags=TAGS)
    def fetch(context: dg.OpExecutionContext, config: Download, bucket: Bucket) -> dg.Output[None]:
        done = _told(
            lambda: download.download(
                bucket.checked_objects(),
                bucket.layout,
                study,
                config.what,
                selection.choose_patients(study, config.patients, _known(context, partitions)),
                selection.choose_predictors(study, config.models),
                Path(config.folder),
                context.log.info,
                probabilities=config.probabilities,
            )
        )
        if done.refused:
            raise dg.Failure(
                f"{len(done.refused)} artefacts were refused, {done.fetched} fetched:\n"
                + "\n".join(f"- {reason}" for reason in done.refused.values()),
                metadata={"refused": dg.MetadataValue.json(done.refused)},
                allow_retries=False,
            )
        if not done.fetched:
            raise dg.Failure(f"nothing of {config.what} is in the bucket for what was asked", allow_retries=False)
        if done.missing:
            context.log.warning(f"not in the bucket: {', '.join(done.missing)}")
        return dg.Output(
            None,
            metadata={
                "folder": dg.MetadataValue.path(config.folder),
                "fetched": done.fetched,
                "bytes": done.size,
                "not in the bucket": ", ".join(done.missing) or "none",
                "not predicted in this study": ", ".join(done.unscored) or "none",
            },
        )

    @dg.op(
        name=f"make_missing{OP}",
        description="Launches runs for what is missing (or stale) and follows them.",
        tags=TAGS,
    )
    def make(context: dg.OpExecutionContext, config: MakeMissing) -> None:
        stages = _told(lambda: chosen_stages(study, config.stages))
        everyone, everything = config.patients == [selection.ALL], config.models == [selection.ALL]
        scope = _told(
            lambda: Scope(
                None
                if everyone
                else frozenset(selection.choose_patients(study, config.patients, _known(context, partitions))),
                None if everything else columns_of(study, selection.choose_predictors(study, config.models)),
                stale=config.stale,
                elsewhere=config.elsewhere,
            )
        )
        left = [name for stage in stages for name in StageRunner(context, scope).run(stage)]
        if left:
            raise dg.Failure(
                f"{len(left)} could not be made: {'; '.join(left)}. The runs launched here say why. Remove the causes, and launch "
                "this again: finished work is kept.",
                allow_retries=False,
            )

    @dg.op(
        name=f"redo{OP}",
        description="Makes exactly the named partitions again, whether they are stale or not. Lists them unless dry_run is off.",
        tags=TAGS,
    )
    def redo(context: dg.OpExecutionContext, config: Redo) -> dg.Output[None]:
        stages = _told(lambda: chosen_assets(study, config.stages))
        scope = _told(
            lambda: Scope(
                frozenset(selection.choose_patients(study, config.patients, _known(context, partitions))),
                named_columns(study, selection.choose_predictors(study, config.models)),
                since=context.instance.event_log_storage.get_maximum_record_id() or 0,
            )
        )
        staleness = Staleness(context.repository_def.asset_graph, context.instance)
        named = redo_table(staleness, scope, [asset for assets in stages.values() for asset in assets])
        facts = {"partitions": int(named["partitions"].sum()), "named": metadata.table(named)}
        context.log.info(named.to_string(index=False))
        if not facts["partitions"]:
            raise dg.Failure("the study has no such partition: nothing to make again", allow_retries=False)
        if config.dry_run:
            context.log.info("nothing was made: this is only a list. To make these again: dry_run: false")
            return dg.Output(None, metadata={"made again": False, **facts})
        runner = StageRunner(context, scope)
        left = [name for stage, assets in stages.items() for name in runner.run(stage, assets)]
        if left:
            raise dg.Failure(
                f"{len(left)} could not be made again: {'; '.join(left)}. The old artefacts are kept. The runs launched here "
                "say why.",
                allow_retries=False,
            )
        return dg.Output(None, metadata={"made again": True, **facts})

    @dg.op(
        name=f"refresh_scores{OP}",
        description="Takes in, ensembles and scores again the patients of whom something changed, and nobody else.",
        tags=TAGS,
    )
    def refresh_scores(context: dg.OpExecutionContext, config: RefreshScores, bucket: Bucket) -> dg.Output[None]:
        register(context, study, partitions, bucket)
        graph = context.repository_def.asset_graph
        asked = set(_told(lambda: selection.choose_patients(study, config.patients, _known(context, partitions))))
        staleness = Staleness(graph, context.instance)
        patients = [p for p in nightly.concerned(staleness, predict=config.predict) if p in asked]
        context.log.info(f"something changed of {len(patients)} patients: {', '.join(patients) or 'none'}")
        left = nightly.work(
            lambda: Staleness(graph, context.instance),
            lambda stage, scope: StageRunner(context, scope).run(stage),
            patients,
            context.log.error,
            predict=config.predict,
        )
        if left:
            raise dg.Failure(
                f"{len(left)} could not be made: {'; '.join(left)}. The old scores are kept.", allow_retries=False
            )
        return dg.Output(None, metadata={"patients": ", ".join(patients) or "none"})

    @dg.op(
        name=f"about{OP}",
        description="Reports study, versions, store and counts in this step's log and metadata.",
        tags=TAGS,
    )
    def tell_about(context: dg.OpExecutionContext, bucket: Bucket) -> dg.Output[None]:
        objects = bucket.checked_objects()
        known, folders = _known(context, partitions), digests(study, patient_folders(objects, bucket.layout))[0]
        facts = {**about.about_study(study, known), **about.about_patients(study, known, folders)}
        orphans = leftovers.orphan_table(
            leftovers.find_orphans(objects, bucket.layout, partitions),
            about.about_orphans(context.instance, context.repository_def.asset_graph),
        )
        stored = about.about_storage(objects, bucket.layout)
        state = state_table(Staleness(context.repository_def.asset_graph, context.instance))
        versions = about.about_code()
        for title, text in (
            ("study", "\n".join(f"{name}: {value}" for name, value in facts.items())),
            ("versions", "\n".join(f"{name} {value}" for name, value in versions.items())),
            ("store", stored.to_string(index=False)),
            ("assets", state.to_string(index=False)),
            (
                "orphans: artefacts that no longer belong to the study (job remove_orphans)",
                orphans.to_string(index=False) if len(orphans) else "none",
            ),
        ):
            context.log.info(f"{title}\n{text}")
        return dg.Output(
            None,
            metadata={
                "study": dg.MetadataValue.json(facts),
                "versions": dg.MetadataValue.json(versions),
                "store": metadata.table(stored),
                "assets": metadata.table(state),
                "orphans": metadata.table(orphans),
                "stored": human_bytes(int(stored["bytes"].sum())),
                **metadata.link(bucket.report_link()),
            },
        )

    def emptied(context: dg.OpExecutionContext, bucket: Bucket, prefix: str, config: EmptyData) -> dg.Output[None]:
        objects, layout = bucket.checked_objects(), bucket.layout
        graph = context.repository_def.asset_graph
        names = [key.to_user_string() for key in graph.get_all_asset_keys()]
        assets = emptying.assets_below(layout, prefix, names)
        found = emptying.contents(objects, prefix)
        facts = {
            "prefix": found.name,
            "objects": len(found.objects),
            "bytes": found.size,
            "folders": metadata.table(found.by_folder(prefix)),
            "assets": ", ".join(assets),
        }
        if config.dry_run:
            context.log.info(
                f"would remove {total(o.size for o in found.objects)} below {found.name}/, and forget {', '.join(assets)}.\n"
                f"{found.by_folder(prefix).to_string(index=False)}\n"
                f"To remove it: dry_run: false, confirm: {found.name}"
            )
            return dg.Output(None, metadata={"removed": False, **facts})
        if busy := _other_runs(context):
            raise dg.Failure(
                f"{len(busy)} other runs have not ended ({', '.join(busy[:5])}): nothing was removed. Wait for them, or end them.",
                allow_retries=False,
            )
        removed = _told(lambda: emptying.empty(objects, prefix, config.confirm.strip(), context.log.info))
        context.instance.wipe_assets([dg.AssetKey(asset) for asset in assets])
        context.log.info(f"removed {removed}; forgotten: {', '.join(assets)}")
        return dg.Output(
            None,
            metadata={
                "removed": True,
                **facts,
                "keys": dg.MetadataValue.json({item.key: item.size for item in removed.objects}),
            },
        )

    @dg.op(name=f"empty_data{OP}", description="Lists, or removes, all patients' files; nothing else.", tags=TAGS)
    def remove_data(context: dg.OpExecutionContext, config: EmptyData, bucket: Bucket) -> dg.Output[None]:
        return emptied(context, bucket, bucket.layout.data, config)

    @dg.op(name=f"empty_artifacts{OP}", description="Lists, or removes, all that was made below one prefix.", tags=TAGS)
    def remove_artifacts(context: dg.OpExecutionContext, config: EmptyArtifacts, bucket: Bucket) -> dg.Output[None]:
        return emptied(context, bucket, getattr(bucket.layout, config.what), config)

    @dg.op(
        name=f"forget_old_runs{OP}",
        description="Lists, or forgets, old runs that made nothing, with their logs: launches, evaluations, failures.",
        tags=TAGS,
    )
    def forget_runs(context: dg.OpExecutionContext, config: ForgetOldRuns) -> dg.Output[None]:
        gone = forgetting.forget(context.instance, config.days, context.log.info, dry_run=config.dry_run)
        return dg.Output(None, metadata={"forgotten": not config.dry_run, "runs": len(gone)})

    return [
        _job(op, settings, bucket_resource)
        for op, settings in (
            (upload_patients, UploadPatients),
            (upload_model, UploadModel),
            (upload_preprocessing, UploadPreprocessing),
            (upload_predictions, UploadPredictions),
            (fetch, Download),
            (make, MakeMissing),
            (redo, Redo),
            (refresh_scores, RefreshScores),
            (tell_about, None),
            (remove_data, EmptyData),
            (remove_artifacts, EmptyArtifacts),
            (forget_runs, ForgetOldRuns),
            *cleaning.build(study, partitions, OP),
        )
    ]


def chosen_stages(study: Study, asked: list[str]) -> list[str]:
    """Stage jobs in the order of the study, from a list of their names, of assets, or `all`."""
    return list(chosen_assets(study, asked))


def chosen_assets(study: Study, asked: list[str]) -> dict[str, list[str]]:
    """Stage job → those of its assets that a list names: by their own names, by the job's, or by `all`.

    An asset belongs to the first job that makes it; figures and report come from one step.
    """
    words = set(asked)
    known = {selection.ALL, *STAGES, *(asset for assets in STAGES.values() for asset in assets)}
    if not words or words - known:
        raise CurvasError(
            "choosing stages",
            study.name,
            f"{', '.join(sorted(words - known)) or 'nothing'} is no stage",
            f"Use all, or some of {', '.join(sorted(known))}.",
        )
    if words & {"figures", "report"}:
        words |= {"figures", "report"}
    chosen: dict[str, list[str]] = {}
    for stage, assets in STAGES.items():
        before = {asset for earlier in chosen.values() for asset in earlier}
        whole = bool(words & {stage, selection.ALL})
        if made := [asset for asset in assets if whole or (asset in words and asset not in before)]:
            chosen[stage] = made
    return chosen


def named_columns(study: Study, predictors: list[str]) -> frozenset[str]:
    """Models and ensembles themselves, and the annotators of the models, whose datasets these are."""
    models = [ModelId.parse(p) for p in predictors if study.family(p) == "individual"]
    return frozenset({*predictors, *(model.annotator for model in models)})


def redo_table(staleness: Staleness, scope: Scope, assets: list[str]) -> pd.DataFrame:
    """Columns asset, partitions, of which fresh and of which uploaded, which: what `redo` would make again."""
    rows: list[dict[str, Any]] = []
    for asset in assets:
        key = dg.AssetKey(asset)
        named = scope.due(staleness, key)
        found = [staleness.status(key, partition) for partition in named]
        keys = ", ".join(str(p) for p in named if p is not None)
        rows.append(
            {
                "asset": asset,
                "partitions": len(named),
                "fresh": sum(one.status is StaleStatus.FRESH and not one.elsewhere for one in found),
                "uploaded": sum(one.elsewhere and one.status is not StaleStatus.MISSING for one in found),
                "which": keys if len(keys) < 2000 else f"{keys[:2000]} …",
            }
        )
    return pd.DataFrame(rows)


def _job(op: dg.OpDefinition, settings: type[dg.Config] | None, bucket: Bucket) -> dg.JobDefinition:
    """A job of one op, whose launchpad holds the op's settings and nothing around them."""
    name = op.name.removesuffix(OP)

    @dg.graph(name=name, description=op.description)
    def operation() -> None:
        op()

    return operation.to_job(
        config=None if settings is None else _mapping(op.name, settings),
        resource_defs={"bucket": bucket, "io_manager": dg.mem_io_manager},
        executor_def=dg.in_process_executor,
        tags={"curvas/operation": name, **TAGS_OF.get(name, {})},
    )


def _mapping(op: str, settings: type[dg.Config]) -> dg.ConfigMapping:
    def to_op(given: dg.Config) -> dg.RunConfig:
        return dg.RunConfig(ops={op: given})

    to_op.__annotations__["given"] = settings  # what Dagster reads the launchpad's fields from
    return dg.config_mapping(to_op)


def _told(work):
    """What work returns; an error that a person must mend fails the step with its message, once."""
    try:
        return work()
    except CurvasError as error:
        raise dg.Failure(str(error), allow_retries=error.may_retry) from error


def _materialised(
    context: dg.OpExecutionContext, bucket: Bucket, asset: str, partition: str, stored: Stored
) -> dg.Output[None]:
    """Report a partition that was stored by hand: fresh until what it is made from changes."""
    definition = context.repository_def.assets_defs_by_key[dg.AssetKey(asset)]
    facts = {**metadata.shown(stored.metadata), "uri": f"{bucket.objects().name}/{stored.key}"}
    tags = provenance_tags(context.instance, definition, context.run.run_id)
    context.log_event(cell_event(definition, partition, stored, facts, tags))
    return dg.Output(None, metadata={"partition": f"{asset} {partition}", "uri": facts["uri"]})


def _known(context: dg.OpExecutionContext, partitions: Partitions) -> list[str]:
    return current_keys(partitions.patient, context.instance)


def _other_runs(context: dg.OpExecutionContext) -> list[str]:
    return [short_name(run) for run in other_runs(context.instance, context.run)]
