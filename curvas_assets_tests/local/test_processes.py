"""Claims proved here, with a stand-in for `dagster dev` that starts parts of the same names.

- A state folder has one owner; another one is told who it is and where, and one that comes while it ends waits for it.
- INT, TERM and HUP end the owner within seconds, with all that it has started, runs and their steps too.
- A daemon, code server or webserver that is killed is started again, and runs go on meanwhile.
- What an owner that was killed -9 has left is ended by the next, and nothing else that lives.
- A start that ends again and again is given up; a program that is not there is told.
- The port is the one that was asked for, or an error says that it is taken.
- Runs that were under way when the machine went down are failed, and marked for Dagster to go on with.
- The demo follows its study over a kill, also where the retry found no code server and comes later.
- The demo is the phantom study on its own store, whatever is in the environment.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import dagster as dg
import psutil
import pytest
from dagster._core.storage.tags import AUTO_RETRY_RUN_ID_TAG, WILL_RETRY_TAG

from curvas_assets.errors import StorageError
from curvas_assets.local import demo, processes
from curvas_assets.local.demo import Progress, chosen_executor, follow, study_under_way
from curvas_assets.local.deployment import ROOT, LocalDeployment, require_port
from curvas_assets.local.processes import VITAL, DagsterDev, InUseError, end_leftovers, owner
from curvas_assets.orchestration.restarts import GIVEN_UP
from curvas_assets.storage.connection import S3Settings

STAND_IN = """
import signal, subprocess, sys, time
sleep = "import time; time.sleep(300)"
server = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1], 'api' + ' grpc']); "
server += sleep  # as Dagster's, it goes on without its child
parts = [subprocess.Popen([sys.executable, "-c", sleep, name]) for name in ("dagster_webserver", "dagster._daemon", "a-run")]
parts.append(subprocess.Popen([sys.executable, "-c", server, sleep, "code-server"]))
signal.signal(signal.SIGINT, lambda *_: None)  # one that does not end by itself
time.sleep(300)
"""
OWNER = """
import sys
from pathlib import Path
from curvas_assets.local import processes
from curvas_assets.local.processes import DagsterDev, end_cleanly_when_told, owner
processes.STOP_SECONDS = 0.5
state = Path(sys.argv[1])
end_cleanly_when_told(state)
environment = {"DAGSTER_HOME": str(state), "PATH": ""}
try:
    with owner(state, "make ui", "http://127.0.0.1:3000"):
        with DagsterDev([sys.executable, "-c", sys.argv[2]], environment, state, state / "log", state / "sessions.json", before_start=lambda: None) as dev:
            dev.wait()
except KeyboardInterrupt:
    (state / "ended").touch()
"""


def ours(state: Path) -> dict[str, psutil.Process]:
    """Living processes of a state, by the last word of their command line; one that ends at this moment has none."""
    found = {}
    for process in psutil.process_iter():
        try:
            is_ours = process.environ().get("DAGSTER_HOME") == str(state) and process.status() != psutil.STATUS_ZOMBIE
            if is_ours and (words := process.cmdline()):
                found[words[-1].split("\n")[-1] or "dev"] = process
        except psutil.Error:
            continue
    return found


def until(condition, seconds: float = 20):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


@pytest.fixture
def start(tmp_path):
    started = []

    def begin() -> subprocess.Popen:
        command = [sys.executable, "-c", OWNER, str(tmp_path), STAND_IN]
        started.append(subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.wait()
    end_leftovers(tmp_path / "sessions.json", str(tmp_path))


def whole(state: Path):
    found = ours(state)
    return found if {*VITAL, "a-run"} <= found.keys() else None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_owner_and_all_it_has_started(tmp_path, start, number):
    process = start()
    until(lambda: whole(tmp_path))
    begun = time.monotonic()
    process.send_signal(number)
    process.send_signal(signal.SIGTERM)  # impatience changes nothing
    assert process.wait(20) == 0
    assert time.monotonic() - begun < 5
    assert (tmp_path / "ended").exists()
    assert ours(tmp_path) == {}


@pytest.mark.parametrize("part", VITAL)
def test_a_killed_part_is_started_again_and_runs_go_on(tmp_path, start, part):
    start()
    before = until(lambda: whole(tmp_path))
    time.sleep(2 * processes.LOOK_SECONDS)  # the parts were seen
    before[part].kill()
    after = until(lambda: (now := whole(tmp_path)) and now[part].pid != before[part].pid and now)
    assert after["dagster_webserver"].pid != before["dagster_webserver"].pid
    assert before["a-run"].is_running()


def test_what_a_killed_owner_has_left_is_ended_by_the_next_and_nothing_else(tmp_path, start):
    process = start()
    left = until(lambda: whole(tmp_path))
    process.kill()
    process.wait()
    other = subprocess.Popen(
        [sys.executable, "-c", "input()"], env={"DAGSTER_HOME": str(tmp_path)}, stdin=subprocess.PIPE
    )
    try:
        start()
        until(lambda: not left["a-run"].is_running() and whole(tmp_path))
        assert other.poll() is None  # a console of the same deployment
    finally:
        other.communicate(b"\n")
    # Numbers that a reboot has given to others are not touched.
    mine = json.loads((tmp_path / "sessions.json").read_text())["sessions"]
    (tmp_path / "another.json").write_text(json.dumps({"sessions": [*mine, os.getsid(0)]}))
    end_leftovers(tmp_path / "another.json", "/somewhere/else")
    assert whole(tmp_path)


def test_one_owner_and_the_next_is_told_or_waits_for_its_end(tmp_path):
    with owner(tmp_path, "make ui", "http://127.0.0.1:3000"):
        code = (
            "import sys; from pathlib import Path; from curvas_assets.local.processes import *\n"
            f"with owner(Path({str(tmp_path)!r}), 'make demo', 'x'): print('owned')"
        )
        run = [sys.executable, "-c", code]
        refused = subprocess.run(run, cwd=ROOT, capture_output=True, text=True)
        assert InUseError.__name__ in refused.stderr
        assert (
            f"`make ui` is using it, as process {os.getpid()}, with its UI at http://127.0.0.1:3000" in refused.stderr
        )
        processes.is_ending(tmp_path)
        waiting = subprocess.Popen(run, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        time.sleep(1)
        assert waiting.poll() is None
    assert waiting.communicate(timeout=20)[0] == "owned\n"


def test_a_start_that_ends_at_once_is_given_up(tmp_path):
    dev = DagsterDev(
        [sys.executable, "-c", "raise SystemExit('no such file')"],
        {"DAGSTER_HOME": str(tmp_path)},
        tmp_path,
        tmp_path / "log",
        tmp_path / "sessions.json",
        before_start=lambda: None,
    )
    with dev:
        until(lambda: dev.has_ended)
    assert (tmp_path / "log").read_text().count("no such file") == processes.VAIN_STARTS


def test_a_program_that_cannot_be_started_is_told(tmp_path):
    dev = DagsterDev(
        [str(tmp_path / "no-such-program")],
        {"DAGSTER_HOME": str(tmp_path)},
        tmp_path,
        tmp_path / "log",
        tmp_path / "sessions.json",
        before_start=lambda: None,
    )
    with pytest.raises(FileNotFoundError, match="no-such-program"), dev:
        pass


def test_a_port_that_is_taken_is_told():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(StorageError, match=f"port {port}: .* another program listens there.* PORT="):
            require_port(port)
    require_port(port)


def test_runs_that_went_down_with_the_machine_are_failed_and_go_on(tmp_path):
    @dg.job
    def anything(): ...

    deployment = LocalDeployment(tmp_path, "phantom")
    with dg.DagsterInstance.from_config(str(deployment.home)) as instance:
        statuses = ("NOT_STARTED", "STARTING", "STARTED", "CANCELING", "SUCCESS")
        runs = {s: instance.create_run_for_job(anything, status=dg.DagsterRunStatus[s]) for s in statuses}
        deployment.fail_dead_runs()
        now = {s: instance.get_run_by_id(run.run_id) for s, run in runs.items()}
        assert {s: run.status.value for s, run in now.items()} == {
            "NOT_STARTED": "NOT_STARTED",  # run monitoring has it launched
            "STARTING": "FAILURE",
            "STARTED": "FAILURE",
            "CANCELING": "CANCELED",
            "SUCCESS": "SUCCESS",
        }
        assert now["STARTED"].tags[WILL_RETRY_TAG] == now["STARTING"].tags[WILL_RETRY_TAG] == "true"
        # The daemon, which has never looked, will find them.
        from dagster._daemon.auto_run_reexecution.event_log_consumer import _fetch_persisted_cursors

        kind = dg.DagsterEventType.RUN_FAILURE
        cursor = _fetch_persisted_cursors(instance, [kind], dg.get_dagster_logger())[kind]
        events = instance.event_log_storage.get_logs_for_all_runs_by_log_id(cursor, kind)
        assert {event.run_id for event in events.values()} == {runs["STARTED"].run_id, runs["STARTING"].run_id}


def test_the_demo_follows_a_study_whose_retry_comes_late(monkeypatch):
    told: list[str] = []
    with dg.DagsterInstance.ephemeral() as instance:
        killed = instance.add_run(dg.DagsterRun("study", status=dg.DagsterRunStatus.STARTED))
        instance.report_run_failed(killed)
        assert study_under_way(instance, told.append) is None
        instance.report_engine_event(GIVEN_UP, killed)
        assert study_under_way(instance, told.append) == killed.run_id

        def while_waiting(_):
            retry = instance.add_run(dg.DagsterRun("study", status=dg.DagsterRunStatus.SUCCESS))
            instance.add_run_tags(killed.run_id, {AUTO_RETRY_RUN_ID_TAG: retry.run_id})

        monkeypatch.setattr(demo, "time", SimpleNamespace(sleep=while_waiting, monotonic=time.monotonic))
        assert follow(instance, killed.run_id, told.append)
    assert told[-1] == "the study's run was killed; a new run continues it"


def test_the_demo_is_alone_with_its_study_and_store(tmp_path, monkeypatch):
    real = {
        "CURVAS_STUDY": "curvas",
        "CURVAS_BROKER": "redis://real",
        "CURVAS_POSTGRES_URL": "postgresql+psycopg2://real/dagster",
        "CURVAS_WEBHOOK_URL": "https://real",
        "S3_BUCKET": "real",
        "S3_ENDPOINT": "https://real",
        "S3_DATA_DIR": "patients",
        "AWS_ACCESS_KEY_ID": "real",
        "AWS_SECRET_ACCESS_KEY": "real",
        "AWS_PROFILE": "real",
        "AWS_ENDPOINT_URL_S3": "https://real",
    }
    monkeypatch.chdir(tmp_path)
    Path(".env").write_text("".join(f"{name}={value}\n" for name, value in real.items() if name != "AWS_PROFILE"))
    for where in ("exported", "in .env"):
        for name, value in real.items():
            monkeypatch.setenv(name, value) if where == "exported" else monkeypatch.delenv(name)
        deployment = LocalDeployment(tmp_path / "state", "phantom", alone=True)
        assert (deployment.home / "dagster.yaml").read_text() == (ROOT / "dagster.yaml").read_text()
        with monkeypatch.context() as patch:
            for name in real:
                patch.delenv(name, raising=False)
            for name, value in deployment.environment().items():
                patch.setenv(name, value)
            from curvas_assets.orchestration import environment

            seen = environment.environment()
            assert environment.deployment().study == "phantom"
            assert environment.deployment().postgres_url is None
            settings = S3Settings.from_environment(seen)
            told = {**seen, **vars(settings)}
        assert "AWS_PROFILE" not in seen
        given = {name: told.get(name, "") for name in real if not name.startswith("AWS_ENDPOINT")}
        assert "real" not in "".join(map(str, given.values())), given
        assert (settings.bucket, settings.data_dir) == ("curvas", "data")
        assert settings.endpoint.startswith("http://127.0.0.1:")
    assert chosen_executor("celery", Progress()) == chosen_executor("", Progress()) == "in_process"
    assert chosen_executor("multiprocess", Progress()) == "multiprocess"
