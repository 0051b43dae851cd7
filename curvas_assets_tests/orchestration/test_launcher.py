"""Claims proved here.

- A run whose process lives is left alone; one whose process was killed is told, whether its number is free, a zombie's or
  somebody else's by now.
- A start whose process is gone is failed, and one that a killed daemon had begun by the next one.
- A run that was launched twice lives as long as one of its processes does.
- A run on another machine is failed only if its own code server says that it knows nothing of it.
- The three instance files free a killed run's slots, retry it a bounded number of times, and fail one that never started.
- Dagster's own run monitoring, with these files, fails a run that was killed, frees its slot and has it go on as another.
"""

import os
import shutil
import subprocess
import sys
import time

import dagster as dg
import psutil
import pytest
import yaml
from dagster._core.errors import DagsterLaunchFailedError
from dagster._core.events import EngineEventData
from dagster._core.launcher import DefaultRunLauncher, LaunchRunContext, WorkerStatus
from dagster._core.storage.tags import (
    GRPC_INFO_TAG,
    MAX_RETRIES_TAG,
    RETRY_NUMBER_TAG,
    RUN_FAILURE_REASON_TAG,
    WILL_RETRY_TAG,
)
from dagster._daemon.monitoring.concurrency import execute_concurrency_slots_iteration
from dagster._daemon.monitoring.run_monitoring import execute_run_monitoring_iteration

from curvas_assets.local.deployment import ROOT
from curvas_assets.orchestration import launcher
from curvas_assets.orchestration.launcher import WatchedRunLauncher, asked_of_server, is_alive

HERE = {GRPC_INFO_TAG: '{"host": "localhost", "socket": "/nowhere"}'}
ELSEWHERE = {GRPC_INFO_TAG: '{"host": "gpu7.example.org", "port": 4000}'}


@dg.job
def anything(): ...


@pytest.fixture
def instance(tmp_path):
    shutil.copyfile(ROOT / "dagster.yaml", tmp_path / "dagster.yaml")
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        yield instance


def started(instance, pid, tags=HERE):
    run = instance.create_run_for_job(anything, status=dg.DagsterRunStatus.STARTED, tags=tags)
    instance.report_engine_event("Started process for run", run, EngineEventData.in_process(pid))
    return run


def killed_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process.kill()
    process.wait()
    process.stdin.close()
    return process.pid


def health(instance, run) -> WorkerStatus:
    return instance.run_launcher.check_run_worker_health(run).status


def test_a_run_is_judged_by_its_process(instance):
    assert isinstance(instance.run_launcher, WatchedRunLauncher)
    assert health(instance, started(instance, os.getpid())) is WorkerStatus.RUNNING
    assert health(instance, started(instance, killed_process())) is WorkerStatus.NOT_FOUND
    silent = instance.create_run_for_job(anything, status=dg.DagsterRunStatus.STARTED, tags=HERE)
    assert health(instance, silent) is WorkerStatus.RUNNING


def test_where_a_launch_was_repeated_any_of_its_processes_is_the_runs(instance):
    """The first launch came through though the code server did not answer; the second process saw that and left, or stayed."""
    for pids in ([killed_process(), os.getpid()], [os.getpid(), killed_process()]):
        run = started(instance, pids[0])
        instance.report_engine_event("Started process for run", run, EngineEventData.in_process(pids[1]))
        assert health(instance, run) is WorkerStatus.RUNNING
    run = instance.create_run_for_job(anything, status=dg.DagsterRunStatus.STARTING, tags=HERE)
    instance.report_engine_event("Started process for run", run, EngineEventData.in_process(killed_process()))
    event = dg.DagsterEvent(dg.DagsterEventType.RUN_STARTING.value, job_name=run.job_name)
    instance.report_dagster_event(event, run.run_id)
    assert instance.run_launcher.fail_dead_starts() == []  # launched again a moment ago: its process has not told yet


def test_a_number_that_came_back_and_a_zombie_are_no_life(monkeypatch):
    assert is_alive(os.getpid(), time.time())
    assert not is_alive(os.getpid(), psutil.Process().create_time() - 60)  # after a reboot it is another's
    monkeypatch.setattr(launcher, "BOOTED", launcher.BOOTED - 60)  # the clock was set by a minute since
    assert is_alive(os.getpid(), psutil.Process().create_time() - 60)
    process = subprocess.Popen([sys.executable, "-c", ""])
    deadline = time.monotonic() + 30
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not is_alive(process.pid, time.time())
    process.wait()


def test_a_run_that_ended_between_two_looks_is_not_failed(instance):
    run = started(instance, killed_process())
    instance.report_run_failed(run)
    assert health(instance, run) is WorkerStatus.SUCCESS


def test_of_a_run_elsewhere_its_code_server_decides(instance, monkeypatch):
    run = started(instance, killed_process(), ELSEWHERE)
    monkeypatch.setattr("curvas_assets.orchestration.launcher.has_run_under_way", lambda client, run_id: None)
    assert health(instance, run) is WorkerStatus.RUNNING  # nobody answers: it may be a network's fault
    assert asked_of_server("r", lambda _: True).status is WorkerStatus.RUNNING
    assert asked_of_server("r", lambda _: False).status is WorkerStatus.NOT_FOUND


@pytest.mark.parametrize("profile", ["dagster.yaml", "deploy/postgres/dagster.yaml", "deploy/celery/dagster.yaml"])
def test_every_instance_file_goes_on_after_a_crash(profile):
    settings = yaml.safe_load((ROOT / profile).read_text())
    monitoring = settings["run_monitoring"]
    assert monitoring["start_timeout_seconds"] <= 120
    assert monitoring["poll_interval_seconds"] + monitoring["free_slots_after_run_end_seconds"] <= 30
    assert settings["run_launcher"]["class"] == WatchedRunLauncher.__name__
    assert 0 < settings["run_retries"]["max_retries"] < 100
    assert settings["run_retries"]["retry_on_asset_or_op_failure"] is False
    launchers = [limit["limit"] for limit in settings["concurrency"]["runs"]["tag_concurrency_limits"]]
    assert sum(launchers) < settings["concurrency"]["runs"]["max_concurrent_runs"]


def test_a_start_whose_process_or_daemon_was_killed_is_failed_and_any_other_is_not(instance, monkeypatch):
    alive = started(instance, os.getpid())
    starting = [instance.create_run_for_job(anything, status=dg.DagsterRunStatus.STARTING, tags=HERE) for _ in range(3)]
    for run in starting:
        event = dg.DagsterEvent(dg.DagsterEventType.RUN_STARTING.value, job_name=run.job_name)
        instance.report_dagster_event(event, run.run_id)
    instance.report_engine_event("Started process for run", starting[1], EngineEventData.in_process(os.getpid()))

    def statuses():
        assert health(instance, alive) is WorkerStatus.RUNNING
        return [instance.get_run_by_id(run.run_id).status.value for run in starting]

    assert statuses() == ["STARTING"] * 3  # this process has begun before
    instance.report_engine_event("Started process for run", starting[2], EngineEventData.in_process(killed_process()))
    assert instance.run_launcher.fail_dead_starts() == [starting[2].run_id]
    assert statuses() == ["STARTING", "STARTING", "FAILURE"]
    monkeypatch.setattr("curvas_assets.orchestration.launcher.SINCE", time.time() + 1)
    assert statuses() == ["FAILURE", "STARTING", "FAILURE"]


@pytest.mark.parametrize(("reason", "tried"), [("RUN_EXCEPTION", 3), ("", 9)])
def test_a_run_that_fails_by_itself_is_not_tried_as_often_as_one_that_is_killed(instance, monkeypatch, reason, tried):
    launched, parent = [], None
    monkeypatch.setattr(DefaultRunLauncher, "launch_run", lambda self, context: launched.append(context))
    for number in range(9):
        tags = {MAX_RETRIES_TAG: "100"} | ({RETRY_NUMBER_TAG: str(number)} if number else {})
        run = instance.create_run_for_job(anything, tags=tags, parent_run_id=parent, root_run_id=parent)
        refused = ""
        try:
            instance.run_launcher.launch_run(LaunchRunContext(run, workspace=None))
        except DagsterLaunchFailedError as error:
            refused = str(error)
        instance.add_run_tags(run.run_id, {RUN_FAILURE_REASON_TAG: reason} if reason else {})
        instance.report_run_failed(run)
        assert (instance.get_run_by_id(run.run_id).tags[WILL_RETRY_TAG] == "false") is bool(refused)
        if refused:
            assert "Remove its cause, then launch again" in refused
            break
        parent = run.run_id
    assert len(launched) == tried


class Workspace:
    """What run monitoring asks of the daemon's context."""

    def __init__(self, instance):
        self.instance = instance

    def create_request_context(self):
        return None


def test_monitoring_fails_a_killed_run_frees_its_slot_and_marks_it_for_a_retry(instance, monkeypatch):
    storage = instance.event_log_storage
    storage.set_concurrency_slots("gpu", 1)
    alive, dead = started(instance, os.getpid()), started(instance, killed_process())
    assert storage.claim_concurrency_slot("gpu", dead.run_id, "trained_model").is_claimed
    logger = dg.get_dagster_logger()
    assert list(execute_run_monitoring_iteration(Workspace(instance), logger)) == [None, None]
    assert instance.get_run_by_id(alive.run_id).status is dg.DagsterRunStatus.STARTED
    failed = instance.get_run_by_id(dead.run_id)
    assert failed.status is dg.DagsterRunStatus.FAILURE
    assert failed.tags[WILL_RETRY_TAG] == "true"
    (told,) = [e.message for e in instance.all_logs(dead.run_id) if "process" in e.message and "gone" in e.message]
    assert "Marking run" in told
    seconds = instance.run_monitoring_settings["free_slots_after_run_end_seconds"]
    later = dg._time.get_current_datetime  # what the daemon reads
    from datetime import timedelta

    monkeypatch.setattr(
        "dagster._daemon.monitoring.concurrency.get_current_datetime", lambda: later() + timedelta(seconds=seconds + 1)
    )
    list(execute_concurrency_slots_iteration(Workspace(instance), logger))
    assert storage.get_concurrency_info("gpu").active_slot_count == 0
