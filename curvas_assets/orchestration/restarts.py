"""Repairs what Dagster leaves undone when something is killed at the wrong moment.

Two gaps, both found by killing: a run whose process dies before the run has started waits for the start's timeout; and a
retry that cannot be launched, because the code server is just starting again, is given up for ever.
"""

from datetime import UTC, datetime, timedelta

import dagster as dg

from curvas_assets.orchestration.dagster_internals import (
    AUTO_RETRY_RUN_ID_TAG,
    PARENT_RUN_ID_TAG,
    RUN_FAILURE_REASON_TAG,
    InstigatorStatus,
    RunRecord,
)
from curvas_assets.orchestration.launcher import WatchedRunLauncher

GIVEN_UP = "Failed to retry run"
"""What Dagster writes into a run's log when its retry could not be launched."""
MOST_TIMES = 20
WITHIN = timedelta(days=1)
"""Failures older than this are left alone, because nobody expects these runs to continue."""
IN_A_STEP = "STEP_FAILURE"
"""Failure reason of runs that Dagster never retries; steps have retries of their own."""
NAME = "keep_going"
TIMES = ("last_tick_timestamp", "last_tick_start_timestamp", "last_sensor_start_timestamp")
"""Of a sensor's state: when it was last looked at, or turned on before its first tick."""


def keep_going() -> dg.SensorDefinition:
    """A sensor that repairs both."""

    @dg.sensor(
        name=NAME,
        minimum_interval_seconds=15,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Marks runs as failed whose process was killed before they started, and launches retries that "
        "Dagster gave up because its code server was away.",
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        launcher = context.instance.run_launcher
        failed = launcher.fail_dead_starts() if isinstance(launcher, WatchedRunLauncher) else []
        again = retry_after_all(context.instance)
        told = [f"{run_id}: its process was killed before it had started: marked as failed" for run_id in failed]
        told += [f"{run_id}: its retry is launched after all" for run_id in again]
        for one in told:
            context.log.info(one)
        return dg.SkipReason("; ".join(told) or "nothing was killed at the wrong moment")

    return sensor


def retry_after_all(instance: dg.DagsterInstance) -> list[str]:
    """Report again the failure of runs whose retry could not be launched, for the daemon to retry; return their ids."""
    found = [record.dagster_run for record in given_up(instance)]
    for run in found:
        instance.report_run_failed(run, "its retry found no code server; it is retried once more")
    return [run.run_id for run in found]


def launched_again_soon(instance: dg.DagsterInstance) -> list[RunRecord]:
    """Killed runs that `keep_going` will launch again; none if it is turned off."""
    return [] if _is_off(instance) else given_up(instance)


def _is_off(instance: dg.DagsterInstance) -> bool:
    if instance.schedule_storage is None:  # an instance that keeps no sensors' states
        return False
    states = [one for one in instance.all_instigator_state() if one.instigator_name == NAME]
    on = [one for one in states if one.status is not InstigatorStatus.STOPPED]
    # Each study on the instance has such a sensor; one is enough. Where none has ticked yet, one soon will.
    return len(on) < len(states) and all(_is_left(one.instigator_data) for one in on)


def _is_left(ticks: object) -> bool:
    """Whether a sensor that is on has not ticked for so long that its code location must be gone.

    A retry that counts here was given up within that time by the daemon, which would have called the sensor, too. A
    state that holds no time yet is new.
    """
    times = [time for name in TIMES if (time := getattr(ticks, name, None))]
    return bool(times) and max(times) < (datetime.now(UTC) - WITHIN).timestamp()


def given_up(instance: dg.DagsterInstance) -> list[RunRecord]:
    """Killed runs whose retry could not be launched, and which nobody has launched again.

    Each failed attempt adds a line to the run's log; the number of these lines limits the attempts.
    """
    failed = dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE], updated_after=datetime.now(UTC) - WITHIN)
    return [
        record
        for record in instance.get_run_records(failed)
        if AUTO_RETRY_RUN_ID_TAG not in (run := record.dagster_run).tags
        and run.tags.get(RUN_FAILURE_REASON_TAG) != IN_A_STEP  # before its log is read, which takes 20 times as long
        and 0 < _times_given_up(instance, run.run_id) <= MOST_TIMES
        and not instance.get_runs(dg.RunsFilter(tags={PARENT_RUN_ID_TAG: run.run_id}), limit=1)
        and not _is_done(instance, run)
    ]


def _is_done(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Whether every step of a run has succeeded: its own process was killed, and they went on. Dagster cannot retry it."""
    if run.execution_plan_snapshot_id is None:
        return False
    planned = instance.get_execution_plan_snapshot(run.execution_plan_snapshot_id).step_keys_to_execute
    succeeded = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_SUCCESS)
    return bool(planned) and set(planned) <= {entry.step_key for entry in succeeded}


def _times_given_up(instance: dg.DagsterInstance, run_id: str) -> int:
    """How often a run's retry could not be launched; 0 if the daemon has not yet handled the last report."""
    kinds = {dg.DagsterEventType.ENGINE_EVENT, dg.DagsterEventType.RUN_FAILURE}
    events = [
        entry.message == GIVEN_UP
        for entry in instance.all_logs(run_id, of_type=kinds)
        if entry.message == GIVEN_UP or (entry.dagster_event and entry.dagster_event.is_run_failure)
    ]
    return sum(events) if events and events[-1] else 0
