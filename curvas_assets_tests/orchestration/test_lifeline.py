"""Claims proved here.

- A step's process ends, with the processes it has started, once its run was failed or cancelled by somebody else.
- It goes on while the run does, and after it has succeeded; a process that was not started for a step is never ended.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import dagster as dg
import psutil
import pytest

from curvas_assets.orchestration import lifeline


@dg.job
def anything(): ...


def step(home: str, run_id: str, told) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
    with dg.DagsterInstance.from_config(home) as instance, lifeline.ends_with_its_run(instance, run_id, every_s=0.1):
        told.put(child.pid)
        time.sleep(1)
    child.kill()


@pytest.mark.parametrize("end", ["failed", "canceled", "success"])
def test_a_step_ends_with_its_run_only(tmp_path, end):
    (tmp_path / "dagster.yaml").write_text("{}")
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        run = instance.create_run_for_job(anything, status=dg.DagsterRunStatus.STARTED)
        context = multiprocessing.get_context("fork")
        told = context.Queue()
        process = context.Process(target=step, args=(str(tmp_path), run.run_id, told))
        process.start()
        grandchild = psutil.Process(told.get(timeout=60))
        if end == "failed":
            instance.report_run_failed(run)
        elif end == "canceled":
            instance.report_run_canceled(run)
        elif end == "success":
            instance.handle_run_event(
                run.run_id, dg.DagsterEvent(dg.DagsterEventType.RUN_SUCCESS.value, job_name=run.job_name)
            )
        process.join(60)
    assert process.exitcode == (-signal.SIGKILL if end in ("failed", "canceled") else 0)
    deadline = time.monotonic() + 10
    while grandchild.is_running() and grandchild.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_console_or_a_test_is_never_ended(monkeypatch):
    ended = []
    monkeypatch.setattr(lifeline, "end_this_process", lambda: ended.append(os.getpid()))
    with dg.DagsterInstance.ephemeral() as instance:
        run = instance.create_run_for_job(anything, status=dg.DagsterRunStatus.STARTED)
        instance.report_run_failed(run)
        for may, expected in ((False, 0), (True, 1)):
            monkeypatch.setattr(lifeline, "_may_end_this_process", lambda may=may: may)
            with lifeline.ends_with_its_run(instance, run.run_id, every_s=0.02):
                time.sleep(0.2)
            assert bool(ended) == bool(expected)
