"""Claims proved here, with Dagster's own processes.

- Runs and their steps are forked from one process that has loaded the code location; a run is a process of its own, which
  can be terminated, and whose death is seen.
- After a change of the study file a run is no longer forked, and loads what is there now.
- When the warm process is killed, its runs end with it, also those without a process for their step; the next run has another.
- A failed fork, and a client that goes away, cost one launch at most.
- A run outlives the code server that started it.
"""

import os
import shutil
import signal
import socket
import sys
import time

import dagster as dg
import psutil
import pytest
from dagster_graphql import DagsterGraphQLClient

from curvas_assets.local.deployment import ROOT
from curvas_assets.orchestration import warm_starts
from curvas_assets_tests.browser.serving import served

LOCATION = "curvas_assets_tests.orchestration.warm_location"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere runs begin as Dagster starts them")


class Launched:
    """Runs of the job `telling` of a served location."""

    def __init__(self, url, home, instance):
        self.client = DagsterGraphQLClient("127.0.0.1", port_number=int(url.rpartition(":")[2]))
        self.home, self.instance = home, instance

    def start(self, name, wait_for="", job="telling"):
        """Launch a run; its id, and what its step told: the process that loaded the location, the step's, its parent."""
        config = {"ops": {"tell": {"config": {"file": str(self.home / name), "wait_for": wait_for}}}}
        run_id = self.client.submit_job_execution(
            job, repository_location_name=LOCATION, run_config=config, tags={"dagster/max_retries": "0"}
        )
        until(lambda: (self.home / name).exists() or self.status(run_id) is dg.DagsterRunStatus.FAILURE)
        return run_id, tuple(map(int, (self.home / name).read_text().split()))

    def end(self, run_id):
        until(lambda: self.instance.get_run_by_id(run_id).is_finished)
        return self.status(run_id)

    def status(self, run_id):
        return self.instance.get_run_by_id(run_id).status

    def process(self, run_id):
        """The number of a run's own process."""
        events = [entry.dagster_event for entry in self.instance.all_logs(run_id) if entry.dagster_event]
        data = [
            e.engine_event_data.metadata for e in events if e.event_type_value == "ENGINE_EVENT" and e.step_key is None
        ]
        return next(int(one["pid"].value) for one in data if "pid" in one)


def until(holds, seconds=90):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    home = tmp_path_factory.mktemp("warm")
    shutil.copyfile(ROOT / "dagster.yaml", home / "dagster.yaml")
    instance = dg.DagsterInstance.from_config(str(home))  # before two processes make its files at once
    (home / "study.yaml").touch()
    environment = {"DAGSTER_HOME": str(home), "CURVAS_TEST_STUDY": str(home / "study.yaml")}
    with served(LOCATION, environment, home) as url:
        yield Launched(url, home, instance)


def test_runs_and_steps_are_forked_from_one_process_that_has_loaded_the_location(launched):
    told = []
    for name in ("first", "second"):
        run_id, ids = launched.start(name)
        assert launched.end(run_id) is dg.DagsterRunStatus.SUCCESS
        told.append((*ids, launched.process(run_id)))
    (loaded_in, step, parent, run), (loaded_in_2, step_2, parent_2, run_2) = told
    assert len({loaded_in, step, step_2, run, run_2}) == 5
    if sys.version_info < (3, 14):  # from then on, each run has its own fork server for its steps
        assert loaded_in == loaded_in_2 == parent == parent_2


def test_a_run_lives_as_its_own_process_which_the_code_server_ends(launched):
    go = launched.home / "never"
    run_id, (warm, step, _) = launched.start("terminated", str(go))
    assert psutil.Process(launched.process(run_id)).ppid() == warm
    launched.client.terminate_run(run_id)
    assert launched.end(run_id) is dg.DagsterRunStatus.CANCELED
    until(lambda: not psutil.pid_exists(step))


def test_a_killed_run_is_seen_and_marked_as_failed(launched):
    run_id, (_, step, _) = launched.start("killed", str(launched.home / "never"))
    os.kill(launched.process(run_id), signal.SIGKILL)
    assert launched.end(run_id) is dg.DagsterRunStatus.FAILURE
    os.kill(step, signal.SIGKILL)  # what is no asset has no lifeline


@pytest.mark.parametrize("job", ["telling", "telling_within"])
def test_when_the_warm_process_is_killed_its_runs_end_and_the_next_run_has_another(launched, job):
    waiting, (_, step, _) = launched.start(f"orphaned {job}", str(launched.home / "never"), job)
    run = psutil.Process(launched.process(waiting))
    warm = run.parent()
    warm.kill()
    run.wait(timeout=90)
    assert launched.end(waiting) is dg.DagsterRunStatus.FAILURE
    if job == "telling":
        os.kill(step, signal.SIGKILL)  # what is no asset has no lifeline
    after, (loaded_in, _, _) = launched.start(f"after {job}")
    assert launched.end(after) is dg.DagsterRunStatus.SUCCESS
    assert loaded_in != warm.pid


def test_a_fork_that_fails_is_tried_again(monkeypatch):
    answers = iter((None, None, 7))

    def fork():
        if (answer := next(answers)) is None:
            raise BlockingIOError("no process number is free")
        return answer

    monkeypatch.setattr(os, "fork", fork)
    monkeypatch.setattr(warm_starts, "AGAIN_SECONDS", 0)
    assert warm_starts._fork() == 7


def test_a_client_that_goes_away_leaves_the_warm_process_alive(launched):
    waiting, (warm, _, _) = launched.start("undisturbed", str(launched.home / "go on"))
    (listener,) = (one.laddr for one in psutil.Process(warm).net_connections("unix") if "listener" in one.laddr)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(listener.replace("@", "\0", 1))
    after, _ = launched.start("after the client")
    assert launched.end(after) is dg.DagsterRunStatus.SUCCESS
    (launched.home / "go on").touch()
    assert launched.end(waiting) is dg.DagsterRunStatus.SUCCESS


def test_once_the_study_file_has_changed_a_run_loads_what_is_there_now(launched):
    _, (warm, _, _) = launched.start("before the change")
    study = launched.home / "study.yaml"
    changed = study.stat().st_mtime_ns
    study.write_text("changed")
    run_id, (loaded_in, _, _) = launched.start("after the change")
    assert launched.end(run_id) is dg.DagsterRunStatus.SUCCESS
    assert psutil.Process(warm).is_running()
    assert loaded_in != warm
    os.utime(study, ns=(changed, changed))
    run_id, (loaded_in, _, _) = launched.start("as it was")
    assert launched.end(run_id) is dg.DagsterRunStatus.SUCCESS
    assert loaded_in == warm


def test_a_run_outlives_the_code_server_that_started_it(launched):
    """The last test: this daemon does not start another code server."""
    go = launched.home / "go at last"
    run_id, (_, _, _) = launched.start("outliving", str(go))
    server = psutil.Process(launched.process(run_id)).parent().parent()
    assert "grpc" in server.cmdline()
    server.kill()
    go.touch()
    assert launched.end(run_id) is dg.DagsterRunStatus.SUCCESS
