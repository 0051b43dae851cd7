"""Claims proved here, with a real Postgres server.

- Several runs at once write their runs and events into one Postgres: all end, and none of their events is missing.
- The pool holds across them with no device to lease: what SQLite cannot promise, Postgres does.
- With the Celery profile's instance file, the steps' logs are in the bucket.
- One setting chooses it, for the local deployment too; the instance files differ from the root's in storage and logs only.
- Neither the password nor a key of the store is in a run's record, an event or a step's log.
"""

import os
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy
import yaml

from curvas_assets.errors import StorageError
from curvas_assets.local.deployment import instance_file
from curvas_assets.storage.connection import S3Settings, connect
from curvas_assets_tests.orchestration import pool_job, services

RUNS = 3


@pytest.mark.skipif(services.postgres_folder() is None, reason="Postgres is not installed (Debian package postgresql)")
def test_concurrent_runs_share_one_postgres_and_its_pool(tmp_path, monkeypatch, bucket_environment):
    home, notes = tmp_path / "home", tmp_path / "notes"
    home.mkdir()
    notes.mkdir()
    with services.postgres() as url:
        given = bucket_environment | {"AWS_ENDPOINT_URL": bucket_environment["S3_ENDPOINT"], "CURVAS_POSTGRES_URL": url}
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        shutil.copyfile(services.ROOT / "deploy" / "celery" / "dagster.yaml", home / "dagster.yaml")
        environment = {**os.environ, "DAGSTER_HOME": str(home), "POOL_NOTES": str(notes), "POOL_IN_PROCESS": "1"}
        environment |= {"CURVAS_DEVICES": ""}
        environment.pop("CUDA_VISIBLE_DEVICES", None)
        with dg.DagsterInstance.from_config(str(home)) as instance:
            instance.event_log_storage.set_concurrency_slots("gpu", 1)
            command = [sys.executable, "-m", pool_job.__name__]
            runs = [
                subprocess.Popen(command, env=environment, cwd=services.ROOT, stderr=subprocess.DEVNULL)
                for _ in range(RUNS)
            ]
            try:
                assert [run.wait(timeout=120) for run in runs] == [0] * RUNS
            finally:
                for run in runs:
                    run.kill()
            found = instance.get_runs()
            assert [run.status for run in found] == [dg.DagsterRunStatus.SUCCESS] * RUNS
            told = []
            for run in found:
                events = [entry.dagster_event for entry in instance.all_logs(run.run_id) if entry.dagster_event]
                assert sum(event.is_step_success for event in events) == 3
                told += [str(run), *map(str, events)]
        with sqlalchemy.create_engine(url).connect() as connection:
            assert connection.execute(sqlalchemy.text("select count(*) from runs")).scalar() == RUNS
        spans = sorted(_span(file) for file in notes.glob("gpu-None-*.span"))
        assert len(spans) == 2 * RUNS
        assert all(end <= start for (_, end), (start, _) in pairwise(spans))
        objects = connect(S3Settings.from_environment(bucket_environment))
        logs = [item.key for item in objects.list("dagster-logs/")]
        assert len({key.split("/")[2] for key in logs}) == RUNS
        told += [objects.get(key).decode() for key in logs]
        password = url.partition("@")[0].rpartition(":")[2]
        for secret in (password, bucket_environment["AWS_SECRET_ACCESS_KEY"]):
            assert secret not in "".join(told)


@pytest.mark.parametrize("profile", ["postgres", "celery"])
def test_instance_files_differ_from_the_roots_in_storage_and_logs_only(profile, monkeypatch):
    root, other = (
        yaml.safe_load(path.read_text())
        for path in (services.ROOT / "dagster.yaml", services.ROOT / "deploy" / profile / "dagster.yaml")
    )
    assert other.pop("storage") == {"postgres": {"postgres_url": {"env": "CURVAS_POSTGRES_URL"}}}
    other.pop("compute_logs", None)
    assert other == root
    monkeypatch.delenv("CURVAS_POSTGRES_URL", raising=False)
    assert instance_file() == (services.ROOT / "dagster.yaml").resolve()
    monkeypatch.setenv("CURVAS_POSTGRES_URL", "postgresql+psycopg2://db.example.org/dagster")
    assert instance_file() == (services.ROOT / "deploy" / "postgres" / "dagster.yaml").resolve()
    monkeypatch.setenv("CURVAS_POSTGRES_URL", "postgresql://somebody:something@db.example.org/dagster")
    with pytest.raises(StorageError, match=r"Begin it with postgresql\+psycopg2://") as refused:
        instance_file()
    assert "something" not in str(refused.value)


def _span(file: Path) -> tuple[float, float]:
    start, end = map(float, file.read_text().split())
    return start, end
