"""The whole study as one job: every stage in order, only what is missing or stale, each as runs of its own.

An asset job cannot span different partitions, so this job's ops launch runs of the stage jobs and wait for them. Those
runs are ordinary: they wait in the queue, use the pools, and stand in the UI like any other. A partition that fails
stops nothing but what is made from it; the study then goes on and fails in the end, naming what is left.
"""

import time
from collections.abc import Sequence

import dagster as dg
from dagster._core.remote_origin import RemoteJobOrigin
from dagster._core.run_coordinator import SubmitRunContext
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    PARTITION_NAME_TAG,
    USER_TAG,
)

from curvas_assets.orchestration.batches import ranges, rectangles
from curvas_assets.orchestration.bucket import Bucket
from curvas_assets.orchestration.jobs import STAGES
from curvas_assets.orchestration.partitions import Partitions, current_keys, dimension_tags
from curvas_assets.orchestration.scope import Scope
from curvas_assets.orchestration.sensors import register
from curvas_assets.orchestration.staleness import Staleness
from curvas_assets.study import Study

POLL_SECONDS = 0.5
STUDY_JOB = "study"
LAUNCHED_BY = "curvas/launched_by"


def study_job(study_definition: Study, partitions: Partitions, bucket_resource: Bucket) -> dg.JobDefinition:
    """The job `study`. It occupies one run of the queue while it waits for the others."""

    @dg.op(
        name="run_registration",
        description="Every patient folder in the bucket becomes a partition.",
        tags={"curvas/needs": "cpu"},
    )
    def run_registration(context: dg.OpExecutionContext, bucket: Bucket) -> list[str]:
        register(context, study_definition, partitions, bucket)
        if not current_keys(partitions.patient, context.instance):
            raise dg.Failure(
                f"no patient is in the bucket. Upload patients below {bucket.layout.data}/ first.", allow_retries=False
            )
        return []

    def op_of(stage: str, assets: tuple[str, ...]) -> dg.OpDefinition:
        @dg.op(
            name=f"run_{stage}",
            description=f"What is missing or stale of {', '.join(assets)}.",
            tags={"curvas/needs": "cpu"},
        )
        def run_stage(context: dg.OpExecutionContext, left: list[str]) -> list[str]:
            return left + StageRunner(context, Scope.of_study(study_definition)).run(stage)

        return run_stage

    @dg.op(description="Fails, naming what could not be made.", tags={"curvas/needs": "cpu"})
    def conclude(context: dg.OpExecutionContext, left: list[str]) -> None:
        if left:
            raise dg.Failure(
                f"{len(left)} could not be made: {'; '.join(left)}. The runs launched here tell why; launch the study "
                "again when it is mended.",
                allow_retries=False,
            )

    ops = {stage: op_of(stage, assets) for stage, assets in STAGES.items()}

    @dg.job(
        name=STUDY_JOB,
        # What passes from op to op is a list of names: it stays in this one process.
        resource_defs={"io_manager": dg.mem_io_manager, "bucket": bucket_resource},
        executor_def=dg.in_process_executor,
        description="The whole study: every stage, whatever is missing or stale. Safe to launch again at any time.",
    )
    def study() -> None:
        left = run_registration()
        for stage in STAGES:
            left = ops[stage](left)
        conclude(left)

    return study


class StageRunner:
    """Launches and follows the runs of one stage.

    Args:
        context: of the op that launches.
        scope: which partitions count; all, and stale ones too, if it is not given.
    """

    def __init__(self, context: dg.OpExecutionContext, scope: Scope | None = None):
        self.context = context
        self.scope = scope or Scope()
        self.instance = context.instance
        self.repository = context.repository_def
        self.graph = self.repository.asset_graph

    def run(self, stage: str, assets: Sequence[str] = ()) -> list[str]:
        """Make what is due of a stage, or of some of its assets; what could not be made, by name."""
        keys = [dg.AssetKey(name) for name in assets or STAGES[stage]]
        staleness = Staleness(self.graph, self.instance)
        due = {key: self._due(staleness, key) for key in keys}
        due = {key: partitions for key, partitions in due.items() if partitions}
        if not due:
            self.context.log.info(f"{stage}: up to date")
            return []
        if any(None in partitions for partitions in due.values()):
            # Tables follow one another, and what a report states of cost and cohort is of the moment: all of the stage.
            self._follow(stage, {self._launch(stage, keys, None): len(keys)})
            return self._left(stage, keys)
        ((key, partitions),) = due.items()
        blocked = {p: staleness.missing_parents(key, p) for p in partitions}
        blocked = {p: missing for p, missing in blocked.items() if missing}
        ready = [str(p) for p in partitions if p not in blocked]
        for partition, missing in blocked.items():
            self.context.log.error(f"{stage}: {partition} has to wait for {', '.join(missing)}")
        batches = self._batches(key, ready)
        self._follow(stage, {self._launch(stage, [key], batch): batch[2] for batch in batches})
        return self._left(stage, keys)

    def _due(self, staleness: Staleness, key: dg.AssetKey) -> list[str | None]:
        return self.scope.due(staleness, key)

    def _left(self, stage: str, keys: Sequence[dg.AssetKey]) -> list[str]:
        staleness = Staleness(self.graph, self.instance)
        left = [f"{key.to_user_string()} {p or ''}".strip() for key in keys for p in self._due(staleness, key)]
        if left:
            self.context.log.error(f"{stage}: {len(left)} could not be made: {', '.join(left)}")
        return left

    def _batches(self, key: dg.AssetKey, partitions: Sequence[str]) -> list[tuple[str, str, int]]:
        """Ranges of partitions that one run takes, as the asset's backfill policy allows."""
        definition, policy = self.graph.get(key).partitions_def, self.graph.get(key).backfill_policy
        limit = (policy.max_partitions_per_run if policy else 1) or len(partitions)
        assert definition is not None
        if not isinstance(definition, dg.MultiPartitionsDefinition):
            return ranges(partitions, definition.get_partition_keys(dynamic_partitions_store=self.instance), limit)
        columns, rows = (
            d.partitions_def.get_partition_keys(dynamic_partitions_store=self.instance)
            for d in sorted(definition.partitions_defs, key=lambda d: d.name)
        )
        cells = [(column, row) for column, _, row in (partition.partition("|") for partition in partitions)]
        return [("|".join(a), "|".join(b), count) for a, b, count in rectangles(cells, columns, rows, limit)]

    def _launch(self, stage: str, keys: Sequence[dg.AssetKey], batch: tuple[str, str, int] | None) -> str:
        """Put a run of a stage's job into the queue; its id."""
        own = self.context.run
        job = self.repository.get_job(stage)
        # The UI reads "launched by" from the tag of the user; without it, a run counts as launched by hand.
        tags = {LAUNCHED_BY: own.run_id, USER_TAG: f"{own.job_name} {own.run_id[:8]}"}
        if batch is not None:
            first, last, count = batch
            if count == 1:
                tags |= {PARTITION_NAME_TAG: first, **dimension_tags(self.graph.get(keys[0]).partitions_def, first)}
            else:
                tags |= {ASSET_PARTITION_RANGE_START_TAG: first, ASSET_PARTITION_RANGE_END_TAG: last}
        run = self.instance.create_run_for_job(
            job_def=job,
            asset_selection=set(keys),
            tags=tags,
            remote_job_origin=own.remote_job_origin and RemoteJobOrigin(own.remote_job_origin.repository_origin, stage),
            job_code_origin=own.job_code_origin and own.job_code_origin._replace(job_name=stage),
        )
        self.instance.run_coordinator.submit_run(SubmitRunContext(run, workspace=None))  # type: ignore[arg-type]
        return run.run_id

    def _follow(self, stage: str, runs: dict[str, int]) -> None:
        """Wait for runs, telling of each partition as it is done."""
        total, done, start = sum(runs.values()), 0, time.monotonic()
        cursors: dict[str, str | None] = dict.fromkeys(runs)
        told = dict.fromkeys(runs, 0)
        self.context.log.info(f"{stage}: {total} to make, in {len(runs)} run{'s' if len(runs) > 1 else ''}")
        while cursors:
            time.sleep(POLL_SECONDS)
            for run_id in list(cursors):
                run = self.instance.get_run_by_id(run_id)
                page = self.instance.get_records_for_run(
                    run_id, cursor=cursors[run_id], of_type=dg.DagsterEventType.ASSET_MATERIALIZATION
                )
                cursors[run_id] = page.cursor
                for record in page.records:
                    done += 1
                    told[run_id] += 1
                    name = record.partition_key or (record.asset_key and record.asset_key.to_user_string())
                    self.context.log.info(f"{stage}: {done} of {total}, {name}, elapsed {_clock(start)}")
                if run is not None and not run.is_finished:
                    continue
                del cursors[run_id]
                if run is None or not run.is_success:
                    how = run.status.value.lower() if run else "gone"
                    self.context.log.error(
                        f"{stage}: run {run_id[:8]} {how} with {told[run_id]} of {runs[run_id]} made, elapsed {_clock(start)}"
                    )


def _clock(start: float) -> str:
    minutes, seconds = divmod(int(time.monotonic() - start), 60)
    return f"{minutes}:{seconds:02d}"
