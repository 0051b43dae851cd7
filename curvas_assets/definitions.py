"""The one place where things meet: study, assets, jobs, schedules, sensors and resources as one code location."""

import warnings

import dagster as dg

from curvas_assets.assets import (
    calibration,
    cohort,
    comparisons,
    dataset,
    ensembles,
    intervals,
    models,
    predictions,
    report,
    scores,
    viewer,
)
from curvas_assets.orchestration import execution, operations, schedules, sensors
from curvas_assets.orchestration.bucket import Bucket
from curvas_assets.orchestration.environment import deployment
from curvas_assets.orchestration.io_manager import ArtefactIOManager
from curvas_assets.orchestration.jobs import stage_jobs
from curvas_assets.orchestration.partitions import Partitions
from curvas_assets.orchestration.study_run import study_job
from curvas_assets.orchestration.warm_starts import keep_warm
from curvas_assets.study import Study, load_study

# This platform is built on backfill policies and grid mappings; Dagster's beta warnings would fill every log.
warnings.filterwarnings("ignore", category=dg.BetaWarning)
warnings.filterwarnings("ignore", category=dg.PreviewWarning)

GROUPS = (cohort, dataset, models, predictions, ensembles, calibration, scores, viewer, comparisons, intervals)
WIPE = (
    "\n\n*Wipe* in this page's menu forgets **all** partitions of the asset, whichever are selected (a limit of Dagster). To make "
    "some again, launch the job `redo`, or select them and press *Materialize*."
)


def build_definitions(study: Study, *, executor: str = "multiprocess") -> dg.Definitions:
    """Everything Dagster knows of a study.

    Args:
        study: what to build for.
        executor: one of `curvas_assets.orchestration.execution.EXECUTORS`.
    """
    partitions = Partitions.of(study)
    bucket = Bucket()
    executor_def = execution.executor(executor)
    stages = stage_jobs(executor_def)
    others = [study_job(study, partitions, bucket), *operations.build(study, partitions, bucket)]
    jobs = {job.name: job for job in (*stages, *others)}
    assets = [asset for group in GROUPS for asset in group.build(study, partitions)]
    assets += report.build(study, partitions, lambda: whole.resolve_asset_graph())
    whole = dg.Definitions(
        assets=[_warned(asset) if isinstance(asset, dg.AssetsDefinition) else asset for asset in assets],
        jobs=list(jobs.values()),
        schedules=schedules.build(jobs),
        sensors=sensors.build(study, partitions, jobs),
        resources={"bucket": bucket, "io_manager": ArtefactIOManager(bucket=bucket)},
        executor=executor_def,
    )
    return whole


def _warned(asset: dg.AssetsDefinition) -> dg.AssetsDefinition:
    """The asset; if it has partitions, which invite to *Wipe*, its description says what that does."""
    if asset.partitions_def is None:
        return asset
    return asset.map_asset_specs(lambda spec: spec.replace_attributes(description=f"{spec.description}{WIPE}"))


defs = build_definitions(load_study(deployment().study), executor=deployment().executor)
keep_warm(deployment().study)  # a built-in study's name is no file; that file is the package's
