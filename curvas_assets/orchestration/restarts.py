"""What Dagster leaves undone when something is killed at the wrong moment, and whose repair needs no hands.

Two gaps, both found by killing: a run whose process dies before the run has started waits for the start's timeout; and a
retry that cannot be launched, because the code server is just starting again, is given up for ever.
"""

from datetime import UTC, datetime, timedelta

import dagster as dg
from dagster._core.storage.tags import AUTO_RETRY_RUN_ID_TAG, PARENT_RUN_ID_TAG, WILL_RETRY_TAG

from curvas_assets.orchestration.launcher import WatchedRunLauncher

RETRIES_CURSOR = f"EVENT_LOG_CONSUMER_CURSOR-{dg.DagsterEventType.RUN_FAILURE.value}"
"""Where Dagster's daemon keeps how far it has looked for runs to retry."""
GIVEN_UP = "Failed to retry run"
"""What Dagster writes into a run's log when its retry could not be launched."""
MOST_TIMES = 20
WITHIN = timedelta(days=1)
"""Older failures are left alone: nobody expects them to go on."""
MOST_RUNS = 50


def keep_going() -> dg.SensorDefinition:
    """A sensor that repairs both."""

    @dg.sensor(
        name="keep_going",
        minimum_interval_seconds=15,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Runs whose process was killed before they had started are failed, and retries that Dagster has given up "
        "because its code server was away are launched after all.",
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        launcher = context.instance.run_launcher
        failed = launcher.fail_dead_starts() if isinstance(launcher, WatchedRunLauncher) else []
        again = retry_after_all(context.instance)
        told = [f"{run_id}: its process was killed before it had started; failed" for run_id in failed]
        told += [f"{run_id}: its retry is launched after all" for run_id in again]
        for one in told:
            context.log.info(one)
        return dg.SkipReason("; ".join(told) or "nothing was killed at the wrong moment")

    return sensor


def retry_after_all(instance: dg.DagsterInstance) -> list[str]:
    """Have the daemon look once more at failed runs whose retry it could not launch; their ids.

    Looking twice is harmless: a run that has its retry gets no second one.
    """
    found = []
    failed = dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE], updated_after=datetime.now(UTC) - WITHIN)
    for run in instance.get_runs(failed, limit=MOST_RUNS):
        if AUTO_RETRY_RUN_ID_TAG in run.tags or not 0 < _times_given_up(instance, run.run_id) <= MOST_TIMES:
            continue
        failures = instance.get_records_for_run(run.run_id, of_type=dg.DagsterEventType.RUN_FAILURE).records
        if failures and not _has_child(instance, run.run_id):
            instance.add_run_tags(run.run_id, {WILL_RETRY_TAG: "true"})
            look_again(instance, failures[-1].storage_id - 1)
            found.append(run.run_id)
    return found


def look_again(instance: dg.DagsterInstance, after: int) -> None:
    """Set back, or make, the daemon's place in the events, so that it looks for runs to retry from there."""
    now = instance.daemon_cursor_storage.get_cursor_values({RETRIES_CURSOR}).get(RETRIES_CURSOR)
    if now is None or int(now) > after:
        instance.daemon_cursor_storage.set_cursor_values({RETRIES_CURSOR: str(after)})


def _times_given_up(instance: dg.DagsterInstance, run_id: str) -> int:
    records = instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.ENGINE_EVENT).records
    return sum(record.event_log_entry.message == GIVEN_UP for record in records)


def _has_child(instance: dg.DagsterInstance, run_id: str) -> bool:
    """Whether anybody has launched it again."""
    return bool(instance.get_runs(dg.RunsFilter(tags={PARENT_RUN_ID_TAG: run_id}), limit=1))
