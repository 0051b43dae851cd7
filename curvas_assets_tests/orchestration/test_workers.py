"""Claims proved here, with a real Redis, real Celery workers and the embedded S3 server.

- A lineage runs on workers of two queues: every GPU step on a GPU worker, every other on the CPU worker.
- A worker that is killed -9 in mid-step is noticed; the step is retried on the other worker of its queue, and makes only
  what was not stored before.
- So is a step of which only the process is killed, as by the kernel when memory runs out.
- While it is dead nothing half-written is visible, and afterwards a sweep leaves nothing of it.
- No key is in a broker's message, a worker's log, an event, a run's record or an artefact.
"""

import base64
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest

from curvas_assets.storage import directories
from curvas_assets.storage.connection import S3Settings, connect
from curvas_assets_tests.orchestration import services
from curvas_assets_tests.orchestration.worker_lineage import FILES, HALF_WRITTEN, PARTITIONS, STAGES, artefact_key

pytestmark = pytest.mark.skipif(
    services.redis_program() is None, reason="redis-server is not installed (Debian package redis-server)"
)
GPU_WORKERS = {"gpu-one", "gpu-two"}


def test_steps_go_to_their_queue_and_a_killed_worker_loses_nothing(tmp_path, bucket_environment):
    home, notes = tmp_path / "home", tmp_path / "notes"
    home.mkdir()
    notes.mkdir()
    shutil.copyfile(services.ROOT / "dagster.yaml", home / "dagster.yaml")
    objects = connect(S3Settings.from_environment(bucket_environment))
    with ExitStack() as running:
        broker = running.enter_context(services.redis(tmp_path))
        environment = {
            **os.environ,
            **bucket_environment,
            "DAGSTER_HOME": str(home),
            "CURVAS_BROKER": broker,
            "CURVAS_LOST_AFTER_SECONDS": "4",
            "CURVAS_STUDY": "phantom",
            "WORKER_NOTES": str(notes),
            "PYTHONPATH": str(services.ROOT),
        }
        queues = {"cpu-one": "cpu", "gpu-one": "gpu", "gpu-two": "gpu"}
        workers = running.enter_context(services.celery_workers(queues, tmp_path, environment))
        with (tmp_path / "run.log").open("wb") as log:
            command = [sys.executable, "-m", "curvas_assets_tests.orchestration.worker_lineage"]
            run = subprocess.Popen(command, cwd=services.ROOT, env=environment, stdout=log, stderr=log)
        running.callback(run.kill)
        _wait_for(notes / "waits", run)
        with dg.DagsterInstance.from_config(str(home)) as instance:
            (held,) = _attempts(instance)["trained"]
            services.kill_group(workers[held])
            assert [i.key for i in objects.list(artefact_key("trained", "b"))]  # something is left behind, and
            assert not directories.exists(objects, artefact_key("trained", "b"))  # nobody takes it for an artefact
            assert run.wait(90) == 0, (tmp_path / "run.log").read_text()[-4000:]

            attempts = _attempts(instance)
            (other,) = GPU_WORKERS - {held}
            assert attempts["trained"] == [held, other]
            assert attempts["predicted"] == [other, other]  # it has a new process
            assert (attempts["taken_in"], attempts["scored"]) == (["cpu-one"], ["cpu-one"])
            made = [e.event_specific_data.materialization for e in _events(instance, "ASSET_MATERIALIZATION")]
            assert sorted((m.asset_key.path[-1], m.partition) for m in made) == sorted(
                (asset, partition) for asset in STAGES for partition in PARTITIONS
            )
            gone, killed = [e.step_retry_data.error.message for e in _events(instance, "STEP_UP_FOR_RETRY")]
            assert f"trained: worker {held}@here is gone" in gone
            assert "predicted: its process on worker" in killed
            assert "was killed" in killed
            told = "".join(str(entry) for r in instance.get_runs() for entry in instance.all_logs(r.run_id))
            told += "".join(str(r) for r in instance.get_runs())
        for asset in STAGES:
            for partition in PARTITIONS:
                key = artefact_key(asset, partition)
                folder = directories.read_directory(objects, key, tmp_path / "read" / key)
                assert len(list(folder.iterdir())) == FILES
                directories.sweep(objects, key, timedelta(0))
        assert not [i.key for i in objects.list("") if HALF_WRITTEN in i.key]
        secret = bucket_environment["AWS_SECRET_ACCESS_KEY"]
        sent = _sent_through_broker(tmp_path)
        assert all(
            f'"step_keys_to_execute": ["{asset}"]' in sent for asset in STAGES
        )  # it is searched where it would be
        told += sent + "".join(log.read_text() for log in tmp_path.glob("*.log"))
        told += "".join(objects.get(item.key).decode(errors="replace") for item in objects.list(""))
        told += "".join(path.read_bytes().decode(errors="replace") for path in home.rglob("*") if path.is_file())
        assert secret not in told


def _wait_for(marker: Path, run: subprocess.Popen) -> None:
    deadline = time.monotonic() + 90
    while not marker.exists():
        assert run.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _events(instance: dg.DagsterInstance, kind: str) -> list:
    kinds = {dg.DagsterEventType[kind]}
    runs = sorted(instance.get_run_records(), key=lambda record: record.storage_id)
    logs = [instance.all_logs(record.dagster_run.run_id, of_type=kinds) for record in runs]
    return [entry.dagster_event for log in logs for entry in log]


def _attempts(instance: dg.DagsterInstance) -> dict[str, list[str]]:
    """Step → workers that began it, in order."""
    began: dict[str, list[str]] = {}
    for event in _events(instance, "ENGINE_EVENT"):
        metadata = event.engine_event_data.metadata
        if "Celery worker" in metadata:
            began.setdefault(event.step_key, []).append(metadata["Celery worker"].value.partition("@")[0])
    return began


def _sent_through_broker(folder: Path) -> str:
    """All that Redis was asked to do, with the bodies of messages, which are in base64, as text beside it."""
    commands = (folder / "redis-commands.log").read_text(errors="replace")
    bodies = re.findall(r"[A-Za-z0-9+/]{40,}={0,2}", commands)
    return commands + "".join(base64.b64decode(body + "==").decode(errors="replace") for body in bodies)
