"""Forgets old runs that nothing reads any more, so that Dagster's own storage does not grow for ever.

A run that made or observed something of an asset is kept: staleness, the partitions' history and the cost ledger read
its events. A run that emptied a prefix is kept too, because its log records what was removed, and so is a run that an
unfinished run continues or is about to continue. Evaluations of sensors, launches, downloads and failures are removed,
with their step logs.
"""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import dagster as dg

from curvas_assets.orchestration.under_way import unfinished_runs

ASSET_EVENTS = {
    dg.DagsterEventType.ASSET_MATERIALIZATION,
    dg.DagsterEventType.ASSET_OBSERVATION,
    dg.DagsterEventType.ASSET_CHECK_EVALUATION,
}
FINISHED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
KEPT_JOBS = ("empty_data", "empty_artifacts")
PAGE = 200


def forgettable_runs(instance: dg.DagsterInstance, before: datetime) -> Iterator[dg.DagsterRun]:
    """Finished runs that were launched before a time and hold nothing that is read later."""
    ended = dg.RunsFilter(statuses=FINISHED, created_before=before)
    going_on = {run.root_run_id or run.run_id for run in unfinished_runs(instance)}
    cursor = None
    while page := instance.get_runs(ended, cursor=cursor, limit=PAGE):
        cursor = page[-1].run_id
        for run in page:
            if run.job_name in KEPT_JOBS or (run.root_run_id or run.run_id) in going_on:
                continue
            if not instance.get_records_for_run(run.run_id, of_type=ASSET_EVENTS, limit=1).records:
                yield run


def forget(instance: dg.DagsterInstance, days: float, tell: Callable[[str], None], *, dry_run: bool) -> list[str]:
    """Forget runs that are older than some days, and return their ids.

    Args:
        instance: whose.
        days: how old, at least.
        tell: told of the runs that go.
        dry_run: tell only.
    """
    found = list(forgettable_runs(instance, datetime.now(UTC) - timedelta(days=days)))
    for run in found:
        tell(f"{'would forget' if dry_run else 'forgets'} {run.job_name} {run.run_id} ({run.status.value.lower()})")
        if not dry_run:
            instance.delete_run(run.run_id)
            instance.compute_log_manager.delete_logs(prefix=[run.run_id])
    return [run.run_id for run in found]
