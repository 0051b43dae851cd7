"""The whole study as one job: every stage in order, only what is missing or stale, each as runs of its own.

An asset job cannot span different partitions, so this job's ops launch runs of the stage jobs and wait for them. Those
runs are ordinary: they wait in the queue, use the pools, and stand in the UI like any other. A partition that fails
stops nothing but what is made from it; the study then goes on and fails in the end, naming what is left.

The job waits for work that is already under way, whoever launched it, and does not launch it again. The instance files
let one `study` run at a time: a second one waits in the queue, takes no slot, and then finds what the first has made. A
killed run continues as a new one, and the job follows that one instead; a killed `study` continues in the same way.
"""

import time
from collections import Counter
from collections.abc import Iterator, Sequence

import dagster as dg

from curvas_assets.orchestration.asset_keys import asset_key, keys_of, name_of
from curvas_assets.orchestration.batches import Batch
from curvas_assets.orchestration.bucket import Bucket
from curvas_assets.orchestration.dagster_internals import (
    AUTO_RETRY_RUN_ID_TAG,
    MAX_RETRIES_TAG,
    RETRY_STRATEGY_TAG,
    USER_TAG,
    RemoteJobOrigin,
    SubmitRunContext,
)
from curvas_assets.orchestration.launches import batch_tags, batches
from curvas_assets.orchestration.lifeline import ends_with_its_run
from curvas_assets.orchestration.partitions import Partitions, current_keys
from curvas_assets.orchestration.scope import Scope
from curvas_assets.orchestration.sensors import register
from curvas_assets.orchestration.staleness import Staleness
from curvas_assets.orchestration.under_way import (
    LAUNCHED_BY,
    AssetPartition,
    Maker,
    UnderWay,
    asset_partitions_of,
    short_name,
    waits_for_retry,
)
from curvas_assets.stages.table import REPORT, STAGES
from curvas_assets.study import Study

POLL_SECONDS = 0.5
LOOK_AGAIN_SECONDS = 5
"""Wait between two looks at backfills that have not launched their runs yet."""
MOST_LAUNCHES = 2
KILLED = ("ChildProcessCrashException", "WorkerLost")
"""Errors of steps whose process was killed: on this machine, and on a Celery worker."""
STUDY_JOB = "study"


def launcher_tags(job: str) -> dict[str, str]:
    """Tags of a job whose run launches others and waits for them.

    The instance files limit such runs by the first tag, so that the runs they wait for have room in the queue. A killed
    run starts from the beginning. It first looks at what exists, so restarting it often is harmless.
    """
    return {"curvas/launches": job, MAX_RETRIES_TAG: "100", RETRY_STRATEGY_TAG: "ALL_STEPS"}


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
            description=f"Makes what is missing or stale of {', '.join(assets)}.",
            tags={"curvas/needs": "cpu"},
        )
        def run_stage(context: dg.OpExecutionContext, left: list[str]) -> list[str]:
            runner = StageRunner(context, Scope.of_study(study_definition))
            if stage == REPORT and not runner.is_ready(REPORT):
                context.log.info("there are no scores yet, so there is no report")
                return left
            return left + runner.run(stage)

        return run_stage

    @dg.op(description="Fails, naming what could not be made.", tags={"curvas/needs": "cpu"})
    def conclude(context: dg.OpExecutionContext, left: list[str]) -> None:
        if left:
            raise dg.Failure(
                f"{len(left)} could not be made: {'; '.join(left)}. The runs launched here say why. Remove the causes, and launch the study "
                "again.",
                allow_retries=False,
            )

    ops = {stage: op_of(stage, assets) for stage, assets in STAGES.items()}

    @dg.job(
        name=STUDY_JOB,
        # What passes from op to op is a list of names: it stays in this one process.
        resource_defs={"io_manager": dg.mem_io_manager, "bucket": bucket_resource},
        executor_def=dg.in_process_executor,
        tags=launcher_tags(STUDY_JOB),
        description="The whole study: every stage, whatever is missing or stale. Safe to launch again at any time. The job "
        "`forecast` tells beforehand what that will take.",
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

    def is_ready(self, stage: str) -> bool:
        """Whether what a stage of tables is made from exists."""
        return Staleness(self.graph, self.instance).ready(keys_of(stage)[0], None)

    def run(self, stage: str, assets: Sequence[str] = ()) -> list[str]:
        """Make what is due of a stage, or of some of its assets, and return the names of what could not be made.

        Partitions that are under way are waited for first, because their run may succeed. Each partition is launched
        once, and once more if its run gave no verdict on it: the run was killed too often, or left the partition to
        another run.
        """
        with ends_with_its_run(self.instance, self.context.run.run_id):
            return self._run_stage(stage, [asset_key(name) for name in assets] or keys_of(stage))

    def _run_stage(self, stage: str, keys: Sequence[dg.AssetKey]) -> list[str]:
        tried: Counter[AssetPartition] = Counter()
        waited = False
        while True:
            ours, theirs = self._plan(stage, keys, tried)
            if not ours and not theirs:
                break
            waited = True
            judged = self._follow(stage, {run_id: len(cells) for run_id, cells in ours.items()}, theirs)
            tried.update({cell: MOST_LAUNCHES for run_id, cells in ours.items() if run_id in judged for cell in cells})
        if not waited and not self._all_due(keys):
            self.context.log.info(f"{stage}: up to date")
            return []
        return self._left(stage, keys)

    def _plan(
        self, stage: str, keys: Sequence[dg.AssetKey], tried: Counter[AssetPartition]
    ) -> tuple[dict[str, list[AssetPartition]], dict[Maker, int]]:
        """Launch what is due and not under way; return our runs with their partitions, and counts of other makers."""
        under_way = UnderWay(self.graph, self.instance)
        staleness = Staleness(self.graph, self.instance)  # read after the runs, so that what a run has just made counts
        due = {key: self._due(staleness, key) for key in keys}
        theirs: dict[Maker, int] = {}
        free: dict[dg.AssetKey, list[str | None]] = {}
        for key, partitions in due.items():
            for partition in partitions:
                if makers := under_way.makers(key, partition):
                    theirs[makers[0]] = theirs.get(makers[0], 0) + 1
                elif tried[key, partition] < MOST_LAUNCHES:
                    free.setdefault(key, []).append(partition)
        if not free:
            return {}, theirs
        if any(None in partitions for partitions in free.values()):
            if theirs:  # tables depend on one another: wait for those that are being made
                return {}, theirs
            cells: list[AssetPartition] = [(key, None) for key in keys]
            if missing := staleness.missing_parents(keys[0], None):
                self.context.log.error(f"{stage} has to wait for {', '.join(missing)}")
                tried.update(dict.fromkeys(cells, MOST_LAUNCHES))
                return {}, {}
            tried.update(cells)
            # Tables depend on each other, and a report states cost and cohort of one moment: the whole stage is made.
            return {self._launch(stage, keys, None): cells}, {}
        runs: list[str] = []
        for key, partitions in free.items():
            ready: list[str] = []
            for partition in partitions:
                missing = staleness.missing_parents(key, partition)
                if not missing:
                    tried[key, partition] += 1
                    ready.append(str(partition))
                elif not runs and not theirs:  # otherwise a run of this stage may be making it now
                    self.context.log.error(f"{stage}: {partition} has to wait for {', '.join(missing)}")
                    tried[key, partition] += MOST_LAUNCHES
            runs += [self._launch(stage, [key], batch) for batch in self._batches(key, ready)]
        return {one: asset_partitions_of(self.graph, self.instance, self._run(one)) for one in runs}, theirs

    def _run(self, run_id: str) -> dg.DagsterRun:
        run = self.instance.get_run_by_id(run_id)
        assert run is not None
        return run

    def _all_due(self, keys: Sequence[dg.AssetKey]) -> list[AssetPartition]:
        staleness = Staleness(self.graph, self.instance)
        return [(key, one) for key in keys for one in self._due(staleness, key)]

    def _due(self, staleness: Staleness, key: dg.AssetKey) -> list[str | None]:
        return self.scope.due(staleness, key)

    def _left(self, stage: str, keys: Sequence[dg.AssetKey]) -> list[str]:
        left = [f"{name_of(key)} {one or ''}".strip() for key, one in self._all_due(keys)]
        if left:
            self.context.log.error(f"{stage}: {len(left)} could not be made: {', '.join(left)}")
        return left

    def _batches(self, key: dg.AssetKey, partitions: Sequence[str]) -> list[Batch]:
        """What one run each takes, as the asset's backfill policy allows."""
        definition, policy = self.graph.get(key).partitions_def, self.graph.get(key).backfill_policy
        assert definition is not None
        return batches(definition, partitions, (policy.max_partitions_per_run or 0) if policy else 1, self.instance)

    def _launch(self, stage: str, keys: Sequence[dg.AssetKey], batch: Batch | None) -> str:
        """Put a run of a stage's job into the queue; returns its id."""
        own = self.context.run
        job = self.repository.get_job(stage)
        # The UI reads "launched by" from the tag of the user; without it, a run counts as launched by hand.
        tags = {LAUNCHED_BY: own.run_id, USER_TAG: short_name(own)}
        if batch is not None:
            tags |= batch_tags(self.graph.get(keys[0]).partitions_def, batch)
        run = self.instance.create_run_for_job(
            job_def=job,
            asset_selection=set(keys),
            tags=tags,
            remote_job_origin=own.remote_job_origin and RemoteJobOrigin(own.remote_job_origin.repository_origin, stage),
            job_code_origin=own.job_code_origin and own.job_code_origin._replace(job_name=stage),
        )
        self.instance.run_coordinator.submit_run(SubmitRunContext(run, workspace=None))  # type: ignore[arg-type]
        return run.run_id

    def _follow(self, stage: str, ours: dict[str, int], theirs: dict[Maker, int]) -> set[str]:
        """Wait for runs and backfills, telling of each partition as it is done.

        Returns the runs that gave a verdict on what they did not make: neither killed nor left to others. Returns early
        when a backfill may have launched more runs.
        """
        judged: set[str] = set()
        counts = {**ours, **{maker.id: count for maker, count in theirs.items() if maker.order is not None}}
        total, done, start = sum(counts.values()), 0, time.monotonic()
        backfills = {maker: count for maker, count in theirs.items() if maker.order is None}
        if ours:
            self.context.log.info(f"{stage}: {sum(ours.values())} to make, in {_runs(len(ours))}")
        for maker, count in theirs.items():
            self.context.log.info(f"{stage}: {count} are being made already: waiting for {maker}")
        following = {run_id: _Followed(run_id, count) for run_id, count in counts.items()}
        while following:
            time.sleep(POLL_SECONDS)
            for first, one in list(following.items()):
                record = self.instance.get_run_record_by_id(one.run_id)
                for name in one.made(self.instance):
                    done += 1
                    self.context.log.info(f"{stage}: {done} of {total}, {name}, elapsed {_clock(start)}")
                if record is not None and not record.dagster_run.is_finished:
                    continue
                if record is not None and waits_for_retry(self.instance, record):
                    continue
                run = record.dagster_run if record else None
                if run is not None and (again := run.tags.get(AUTO_RETRY_RUN_ID_TAG)):
                    self.context.log.warning(f"{stage}: run {one.run_id[:8]} was killed; run {again[:8]} continues it")
                    one.go_on_as(again)
                    continue
                del following[first]
                if run is None or not run.is_success:
                    how = run.status.value.lower() if run else "gone"
                    self.context.log.error(
                        f"{stage}: run {one.run_id[:8]} {how} with {one.told} of {one.count} made, elapsed {_clock(start)}"
                    )
                    if run is None or not _was_killed(self.instance, run):
                        judged.add(first)
        if backfills and not counts:
            time.sleep(LOOK_AGAIN_SECONDS)
        return judged


def _was_killed(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Whether a run failed without an error of its own steps: the run, or the processes of its steps, were killed."""
    if run.status is not dg.DagsterRunStatus.FAILURE:
        return False
    entries = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE)
    failures = [entry.dagster_event.step_failure_data for entry in entries if entry.dagster_event]
    return all(failure.error is not None and failure.error.cls_name in KILLED for failure in failures)


class _Followed:
    """A run that is waited for, or the run that continues it."""

    def __init__(self, run_id: str, count: int):
        self.run_id, self.count, self.told = run_id, count, 0
        self._cursor: str | None = None

    def go_on_as(self, run_id: str) -> None:
        self.run_id, self._cursor = run_id, None

    def made(self, instance: dg.DagsterInstance) -> Iterator[str]:
        """Names of what was made since the last look."""
        page = instance.get_records_for_run(
            self.run_id, cursor=self._cursor, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION
        )
        self._cursor = page.cursor
        for record in page.records:
            self.told += 1
            yield record.partition_key or (name_of(record.asset_key) if record.asset_key else "")


def _runs(count: int) -> str:
    return f"{count} run{'s' if count > 1 else ''}"


def _clock(start: float) -> str:
    minutes, seconds = divmod(int(time.monotonic() - start), 60)
    return f"{minutes}:{seconds:02d}"
