"""What is under way: partitions that some run or backfill will make, whoever launched it. Launches nothing.

Planners (`study_run`, for `study` and `make_missing`) wait for these partitions and launch the others. Each step looks
once more when it starts (`leave_to_others`): two planners may have looked at the same moment.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import dagster as dg

from curvas_assets.orchestration.asset_keys import asset_key
from curvas_assets.orchestration.dagster_internals import (
    AUTO_RETRY_RUN_ID_TAG,
    BACKFILL_ID_TAG,
    RETRY_NUMBER_TAG,
    SCHEDULE_NAME_TAG,
    SENSOR_NAME_TAG,
    WILL_RETRY_TAG,
    AssetGraph,
    BulkActionsFilter,
    BulkActionStatus,
    DagsterInvalidInvocationError,
    RunRecord,
    partition_loading_context,
)
from curvas_assets.orchestration.launches import tagged_partitions
from curvas_assets.orchestration.restarts import launched_again_soon
from curvas_assets.orchestration.staleness import Staleness
from curvas_assets.stages.table import STAGES

UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
"""Statuses of runs that wait or execute."""
LAUNCHED_BY = "curvas/launched_by"
BY_MACHINE = (LAUNCHED_BY, BACKFILL_ID_TAG, SCHEDULE_NAME_TAG, SENSOR_NAME_TAG)
"""Tags of runs that automation launched after it had looked for what is missing. A run without these tags is a
person's."""
RETRY_WITHIN_SECONDS = 120
"""How long a killed run may wait for the run that continues it."""

AssetPartition = tuple[dg.AssetKey, str | None]


@dataclass(frozen=True)
class Maker:
    """A run, or a backfill that has not launched all its runs yet.

    Args:
        id: of the run or backfill.
        order: lower for the older of two runs. A retry has the order of the killed run; a backfill has none, because
            its runs do not exist yet.
    """

    id: str
    order: int | None = None

    def __str__(self) -> str:
        return f"{'backfill' if self.order is None else 'run'} {self.id[:8]}"


class UnderWay:
    """A snapshot of who makes what. Make a new one after a while.

    Args:
        graph: the assets.
        instance: whose runs and backfills count.
        but: runs to ignore.
        backfills: whether partitions that backfills have not launched yet count.
    """

    def __init__(
        self, graph: AssetGraph, instance: dg.DagsterInstance, *, but: Iterable[str] = (), backfills: bool = True
    ):
        self._graph, self._instance = graph, instance
        self._makers: dict[AssetPartition, list[Maker]] = {}
        left_out = set(but)
        for record in unfinished_records(instance):
            run = record.dagster_run
            if run.run_id not in left_out:
                maker = Maker(run.run_id, _order(instance, record))
                for cell in asset_partitions_of(graph, instance, run):
                    self._makers.setdefault(cell, []).append(maker)
        for backfill_id, cells in self._backfills() if backfills else ():
            for cell in cells:
                self._makers.setdefault(cell, []).append(Maker(backfill_id))

    def makers(self, key: dg.AssetKey, partition: str | None) -> Sequence[Maker]:
        """Who makes a partition now or soon: runs before backfills, the oldest first."""
        return sorted(self._makers.get((key, partition), ()), key=lambda maker: (maker.order is None, maker.order or 0))

    def _backfills(self) -> Iterator[tuple[str, list[AssetPartition]]]:
        asked = BulkActionsFilter(statuses=[BulkActionStatus.REQUESTED])
        for backfill in self._instance.get_backfills(filters=asked):
            if not backfill.is_asset_backfill:
                continue
            with partition_loading_context(dynamic_partitions_store=self._instance):
                data = backfill.get_asset_backfill_data(self._graph)
                # Requested partitions are found in its runs; those not yet requested are recorded only here.
                left = data.target_subset - (data.requested_subset | data.failed_and_downstream_subset)
                cells: list[AssetPartition] = [(key, None) for key in left.non_partitioned_asset_keys]
                for key, subset in left.partitions_subsets_by_asset_key.items():
                    cells += [(key, str(one)) for one in subset.get_partition_keys()]
            yield backfill.backfill_id, cells


def unfinished_records(instance: dg.DagsterInstance) -> list[RunRecord]:
    """Runs that wait or execute, and killed runs that a new run is about to continue."""
    # Looked at in this order, a run that passes from one state to the next meanwhile is found in one of them.
    looks = (_active, _retried_by_dagster, launched_again_soon, _retried_by_dagster, _active)
    return list({record.dagster_run.run_id: record for look in looks for record in look(instance)}.values())


def unfinished_runs(instance: dg.DagsterInstance) -> list[dg.DagsterRun]:
    """The runs of `unfinished_records`."""
    return [record.dagster_run for record in unfinished_records(instance)]


def other_runs(instance: dg.DagsterInstance, run: dg.DagsterRun) -> list[dg.DagsterRun]:
    """All unfinished runs (`unfinished_records`) except this one."""
    return [other for other in unfinished_runs(instance) if other.run_id != run.run_id]


def _active(instance: dg.DagsterInstance) -> list[RunRecord]:
    return list(instance.get_run_records(dg.RunsFilter(statuses=UNFINISHED)))


def _retried_by_dagster(instance: dg.DagsterInstance) -> list[RunRecord]:
    since = datetime.now(UTC) - timedelta(seconds=RETRY_WITHIN_SECONDS)
    failed = dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE], updated_after=since)
    return [record for record in instance.get_run_records(failed) if _dagster_retries(instance, record)]


def short_name(run: dg.DagsterRun) -> str:
    """A run as people are told of it: `train_models 1a2b3c4d`."""
    return f"{run.job_name} {run.run_id[:8]}"


def waits_for_retry(instance: dg.DagsterInstance, record: RunRecord) -> bool:
    """Whether a failed run is about to be launched again, by Dagster or, where its code server was away, by `keep_going`."""
    run = record.dagster_run
    if run.status is not dg.DagsterRunStatus.FAILURE or AUTO_RETRY_RUN_ID_TAG in run.tags:
        return False
    if _dagster_retries(instance, record):
        return True
    killed = [*launched_again_soon(instance), *_retried_by_dagster(instance)]
    return run.run_id in {one.dagster_run.run_id for one in killed}


def _dagster_retries(instance: dg.DagsterInstance, record: RunRecord) -> bool:
    run, ended = record.dagster_run, record.end_time or 0
    told = run.tags.get(WILL_RETRY_TAG)
    return (
        run.status is dg.DagsterRunStatus.FAILURE
        # Dagster tells it a moment after the failure.
        and (told == "true" or (told is None and instance.run_retries_enabled))
        and AUTO_RETRY_RUN_ID_TAG not in run.tags
        and time.time() - ended < RETRY_WITHIN_SECONDS
    )


def asset_partitions_of(graph: AssetGraph, instance: dg.DagsterInstance, run: dg.DagsterRun) -> list[AssetPartition]:
    """The partitions that a run makes, of every asset of it."""
    keys = run.asset_selection or {asset_key(asset) for asset in STAGES.get(run.job_name, ())}
    return [(key, one) for key in keys if graph.has(key) for one in _partitions_of(graph, instance, key, run.tags)]


def _partitions_of(
    graph: AssetGraph, instance: dg.DagsterInstance, key: dg.AssetKey, tags: Mapping[str, str]
) -> Sequence[str | None]:
    definition = graph.get(key).partitions_def
    if definition is None:
        return [None]
    try:
        return tagged_partitions(definition, tags, instance)
    except DagsterInvalidInvocationError:  # its first or last partition has left the study: it will make nothing
        return []


def is_by_machine(run: dg.DagsterRun) -> bool:
    """Whether automation launched a run to make what is missing. A person's run always makes its partitions, even if
    they exist already; so does a run that a person executes again.
    """
    return run.root_run_id is None and any(tag in run.tags for tag in BY_MACHINE)


def leave_to_others(
    graph: Callable[[], AssetGraph],
    instance: dg.DagsterInstance,
    run: dg.DagsterRun,
    key: dg.AssetKey,
    partitions: Sequence[str],
) -> dict[str, str]:
    """Partitions that a step need not make any more, each with the reason.

    These are partitions that this run, or a killed run that it continues, has made. If no person asked for the run,
    they are also those that another run made since its launch and that are up to date, or that an older run is making.
    """
    line = _killed_before(instance, run)
    first = instance.get_run_record_by_id(line[-1].run_id)
    if first is None:
        return {}
    group, since = {one.run_id for one in line}, first.create_timestamp.timestamp()
    asked = dg.AssetRecordsFilter(asset_key=key, asset_partitions=list(partitions), after_timestamp=since)
    records = instance.fetch_materializations(asked, limit=len(partitions) * 10).records
    reasons = {str(r.partition_key): "it was made before this retry" for r in records if r.run_id in group}
    if not is_by_machine(line[-1]):
        return reasons
    elsewhere = {str(r.partition_key): r.run_id for r in reversed(records) if str(r.partition_key) not in reasons}
    if elsewhere:
        due = set(Staleness(graph(), instance).due(key, lambda one: one in elsewhere))
        reasons |= {
            one: f"run {by[:8]} made it since this one was launched" for one, by in elsewhere.items() if one not in due
        }
    under_way = UnderWay(graph(), instance, but=group, backfills=False)
    for one in partitions:
        older = [m for m in under_way.makers(key, one) if m.order is not None and m.order < first.storage_id]
        if one not in reasons and older:
            reasons[one] = f"{older[0]}, which is older, is making it"
    return reasons


def _order(instance: dg.DagsterInstance, record: RunRecord) -> int:
    line = _killed_before(instance, record.dagster_run)
    first = instance.get_run_record_by_id(line[-1].run_id) if len(line) > 1 else record
    return (first or record).storage_id


def _killed_before(instance: dg.DagsterInstance, run: dg.DagsterRun) -> list[dg.DagsterRun]:
    """The run, and the killed runs that it continues, the latest first."""
    line = [run]
    while RETRY_NUMBER_TAG in line[-1].tags and line[-1].parent_run_id:
        parent = instance.get_run_by_id(line[-1].parent_run_id)
        if parent is None:
            break
        line.append(parent)
    return line
