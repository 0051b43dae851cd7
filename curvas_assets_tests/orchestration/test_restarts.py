"""Claims proved here.

- A retry that Dagster gave up because the code server was away is launched after all, by Dagster's own daemon, and only once.
- A run that failed in a step, that somebody has launched again, or that was given up time after time is left alone; so is one
  whose retry was deleted, and one whose steps have all succeeded, which Dagster cannot retry.
- However many runs failed after it in their steps, it is found; their logs are not read.
- A killed run counts as under way from its failure until its retry exists, whoever launches it, also while its record says that
  Dagster has given it up; not once it is given up for ever, nor while a person has turned the sensor off, whatever the state of a location that is gone says.
- No run is overlooked that passes from one state to the next during the look.
- The sensor fails a run whose process was killed before it had started, and says so.
"""

import shutil
import time

import dagster as dg
import pytest
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.errors import DagsterCodeLocationLoadError
from dagster._core.events import DagsterEvent, DagsterEventType, EngineEventData, StepSuccessData
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteInstigatorOrigin, RemoteRepositoryOrigin
from dagster._core.scheduler.instigation import InstigatorState, InstigatorStatus, SensorInstigatorData
from dagster._core.storage.tags import AUTO_RETRY_RUN_ID_TAG, PARENT_RUN_ID_TAG, RUN_FAILURE_REASON_TAG, WILL_RETRY_TAG
from dagster._daemon.auto_run_reexecution import auto_run_reexecution
from dagster._daemon.auto_run_reexecution.event_log_consumer import EventLogConsumerDaemon

from curvas_assets.local.deployment import RETRIES_CURSOR, ROOT
from curvas_assets.orchestration import under_way
from curvas_assets.orchestration.restarts import GIVEN_UP, MOST_TIMES, WITHIN, keep_going, retry_after_all
from curvas_assets.orchestration.under_way import other_runs, unfinished_runs, waits_for_retry
from curvas_assets_tests.orchestration.test_launcher import HERE, anything, killed_process


@dg.job
def something():
    dg.op(name="step")(lambda context: None)()


@pytest.fixture
def instance(tmp_path):
    shutil.copyfile(ROOT / "dagster.yaml", tmp_path / "dagster.yaml")
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        instance.daemon_cursor_storage.set_cursor_values({RETRIES_CURSOR: "0"})
        yield instance


@pytest.fixture
def daemon(instance, monkeypatch):
    """Dagster's daemon that retries runs, called by hand; while `away` is set, its code server is away."""
    retried: list[str] = []

    class Daemon:
        away = False

        def __init__(self):
            self.instance, self.retried = instance, retried

        def look(self) -> list[str]:
            retried.clear()
            list(EventLogConsumerDaemon().run_iteration(self))
            return list(retried)

    daemon = Daemon()

    def retry(run, context):
        if daemon.away:
            raise DagsterCodeLocationLoadError("the code server does not answer", [])
        retried.append(run.run_id)
        instance.add_run_tags(run.run_id, {AUTO_RETRY_RUN_ID_TAG: "next"})

    monkeypatch.setattr(auto_run_reexecution, "retry_run", retry)
    return daemon


def failed(instance, lines: int = 0, **more) -> str:
    run = instance.create_run_for_job(anything, status=dg.DagsterRunStatus.STARTED, tags=HERE)
    for number in range(lines):
        instance.report_engine_event(f"line {number}", run)
    instance.report_run_failed(run, **more)
    return run.run_id


def test_a_retry_that_was_given_up_is_launched_after_all_and_once(instance, daemon):
    daemon.away = True
    run_id = failed(instance, lines=100)  # more than there are events of all runs that the daemon counts
    assert daemon.look() == []
    assert instance.get_run_by_id(run_id).tags[WILL_RETRY_TAG] == "false"
    daemon.away = False
    assert daemon.look() == []  # Dagster itself never looks again
    other = failed(instance)
    assert daemon.look() == [other]

    assert retry_after_all(instance) == [run_id]
    assert retry_after_all(instance) == []  # the daemon has yet to look
    assert daemon.look() == [run_id]
    assert retry_after_all(instance) == []
    assert daemon.look() == []


def test_while_it_cannot_be_launched_it_is_tried_a_bounded_number_of_times(instance, daemon):
    daemon.away = True
    run_id = failed(instance)
    daemon.look()
    tries = 0
    while retry_after_all(instance):
        assert daemon.look() == []
        tries += 1
        assert tries <= MOST_TIMES
    assert tries == MOST_TIMES
    assert instance.get_run_by_id(run_id).tags[WILL_RETRY_TAG] == "false"


def test_a_run_whose_steps_have_all_succeeded_is_left_alone(instance, daemon):
    """Its process was killed while its step's went on to the end: Dagster finds nothing to retry."""
    daemon.away = True
    run = instance.create_run_for_job(something, status=dg.DagsterRunStatus.STARTED, tags=HERE)
    instance.report_run_failed(run)
    daemon.look()
    assert counts(instance, run.run_id)
    (step,) = instance.get_execution_plan_snapshot(run.execution_plan_snapshot_id).step_keys_to_execute
    event = DagsterEvent(
        DagsterEventType.STEP_SUCCESS.value, run.job_name, step_key=step, event_specific_data=StepSuccessData(1.0)
    )
    instance.report_dagster_event(event, run.run_id)
    assert not counts(instance, run.run_id)
    assert retry_after_all(instance) == []


def test_other_failures_are_left_alone(instance, daemon):
    from dagster._core.events import JobFailureData, RunFailureReason

    step = failed(instance, job_failure_data=JobFailureData(error=None, failure_reason=RunFailureReason.STEP_FAILURE))
    daemon.look()
    assert retry_after_all(instance) == []
    daemon.away = True
    again = failed(instance)
    daemon.look()
    daemon.away = False
    assert GIVEN_UP in [event.message for event in instance.all_logs(again)]
    instance.create_run_for_job(anything, tags={PARENT_RUN_ID_TAG: again})
    old = failed(instance)
    assert daemon.look() == [old]  # its retry was deleted since, and its failure lies behind the daemon
    assert retry_after_all(instance) == []
    assert daemon.look() == []
    assert instance.get_run_by_id(step).tags[WILL_RETRY_TAG] == "false"


def test_ordinary_failures_do_not_hide_a_killed_run_and_cost_little(instance, daemon, monkeypatch):
    daemon.away = True
    run_id = failed(instance)
    daemon.look()
    for _ in range(51):
        tags = {**HERE, RUN_FAILURE_REASON_TAG: "STEP_FAILURE"}
        instance.create_run_for_job(anything, status=dg.DagsterRunStatus.FAILURE, tags=tags)
    read, logs = [], instance.all_logs
    monkeypatch.setattr(instance, "all_logs", lambda of, *more, **named: read.append(of) or logs(of, *more, **named))
    assert run_id in [run.run_id for run in unfinished_runs(instance)]
    assert retry_after_all(instance) == [run_id]
    assert set(read) == {run_id}


def counts(instance, run_id: str) -> bool:
    """Whether a run counts as under way, by each of the questions."""
    found = run_id in [run.run_id for run in unfinished_runs(instance)]
    record = instance.get_run_record_by_id(run_id)
    assert waits_for_retry(instance, record) is found
    other = instance.create_run_for_job(anything)
    assert (run_id in [run.run_id for run in other_runs(instance, other)]) is found
    instance.delete_run(other.run_id)
    return found


def test_a_killed_run_counts_as_under_way_until_its_retry_exists(instance, daemon):
    daemon.away = True
    run_id = failed(instance)
    assert counts(instance, run_id)  # Dagster is about to retry it
    daemon.look()
    assert instance.get_run_by_id(run_id).tags[WILL_RETRY_TAG] == "false"
    assert counts(instance, run_id)  # `keep_going` is about to
    assert retry_after_all(instance) == [run_id]
    assert counts(instance, run_id)  # Dagster is, again
    daemon.away = False
    assert daemon.look() == [run_id]
    assert not counts(instance, run_id)  # its retry does now


def test_a_run_that_failed_in_a_step_does_not_count(instance, daemon):
    from dagster._core.events import JobFailureData, RunFailureReason

    run_id = failed(instance, job_failure_data=JobFailureData(error=None, failure_reason=RunFailureReason.STEP_FAILURE))
    assert not counts(instance, run_id)
    daemon.look()
    assert not counts(instance, run_id)


def test_a_failure_counts_before_dagster_has_written_whether_it_retries(instance, monkeypatch):
    monkeypatch.setattr(instance, "add_run_tags", lambda *_: None)
    run_id = failed(instance)
    monkeypatch.undo()
    assert WILL_RETRY_TAG not in instance.get_run_by_id(run_id).tags
    assert counts(instance, run_id)


def test_a_run_that_is_given_up_for_ever_does_not_count(instance, daemon):
    daemon.away = True
    run_id = failed(instance)
    daemon.look()
    while retry_after_all(instance):
        daemon.look()
    assert not counts(instance, run_id)


def test_while_the_sensor_is_off_a_run_that_was_given_up_does_not_count(instance, daemon):
    daemon.away = True
    run_id = failed(instance)
    daemon.look()
    origin = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("here"), "__repository__")
    states = [
        InstigatorState(RemoteInstigatorOrigin(origin, name), InstigatorType.SENSOR, status)
        for name, status in (("keep_going", InstigatorStatus.DECLARED_IN_CODE), ("others", InstigatorStatus.STOPPED))
    ]
    for state in states:
        instance.add_instigator_state(state)
    assert counts(instance, run_id)
    instance.update_instigator_state(states[0].with_status(InstigatorStatus.STOPPED))
    assert not counts(instance, run_id)
    instance.update_instigator_state(states[0].with_status(InstigatorStatus.RUNNING))
    assert counts(instance, run_id)


@pytest.mark.parametrize(
    "of_a_tick", ["last_tick_timestamp", "last_tick_start_timestamp", "last_sensor_start_timestamp"]
)
def test_a_location_that_is_gone_does_not_turn_the_sensor_on(instance, daemon, of_a_tick):
    daemon.away = True
    run_id = failed(instance)
    daemon.look()

    def state(location, status, **times):
        origin = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin(location), "__repository__")
        return InstigatorState(
            RemoteInstigatorOrigin(origin, "keep_going"),
            InstigatorType.SENSOR,
            status,
            SensorInstigatorData(min_interval=15, **times),
        )

    now, day = time.time(), WITHIN.total_seconds()
    left = {"last_tick_timestamp": now - 2 * day, of_a_tick: now - day - 60}
    instance.add_instigator_state(state("left", InstigatorStatus.DECLARED_IN_CODE, **left))
    assert counts(instance, run_id)  # nobody has turned anything off: the present location's daemon has yet to look
    off = state("here", InstigatorStatus.STOPPED, last_tick_timestamp=now - 3 * day)
    instance.add_instigator_state(off)
    assert not counts(instance, run_id)  # however long ago it was turned off
    instance.update_instigator_state(
        state("left", InstigatorStatus.DECLARED_IN_CODE, **{**left, of_a_tick: now - day + 600})
    )
    assert counts(instance, run_id)  # it is not gone yet
    instance.update_instigator_state(state("left", InstigatorStatus.DECLARED_IN_CODE))
    assert counts(instance, run_id)  # it has never ticked yet


LOOKS = ("_active", "_retried_by_dagster", "launched_again_soon")


@pytest.mark.parametrize("at", range(5))
@pytest.mark.parametrize("change", ["fails", "is given up", "is reported again", "is retried"])
def test_a_run_that_changes_its_state_during_the_look_is_found(instance, daemon, monkeypatch, change, at):
    run = instance.create_run_for_job(anything, status=dg.DagsterRunStatus.STARTED, tags=HERE)
    daemon.away = change != "is retried"

    def retried():
        instance.create_run_for_job(anything, parent_run_id=run.run_id, root_run_id=run.run_id)
        daemon.look()

    def fails():
        instance.report_run_failed(run)

    steps = {
        "fails": (fails,),
        "is given up": (fails, daemon.look),
        "is reported again": (fails, daemon.look, lambda: retry_after_all(instance)),
        "is retried": (fails, retried),
    }
    *before, last = steps[change]
    for step in before:
        step()
    looks = []

    def watched(look):
        def looked(of):
            if len(looks) == at:
                last()
            looks.append(look)
            return look(of)

        return looked

    for name in LOOKS:
        monkeypatch.setattr(under_way, name, watched(getattr(under_way, name)))
    assert unfinished_runs(instance)
    assert len(looks) > at


def test_the_sensor_fails_what_was_killed_before_it_started(instance):
    run = instance.create_run_for_job(anything, status=dg.DagsterRunStatus.STARTING, tags=HERE)
    instance.report_engine_event("Started process for run", run, EngineEventData.in_process(killed_process()))
    with dg.build_sensor_context(instance=instance) as context:
        assert run.run_id in keep_going()(context).skip_message
        assert "nothing" in keep_going()(context).skip_message
    assert instance.get_run_by_id(run.run_id).status is dg.DagsterRunStatus.FAILURE
