"""Claims proved here, with a real Postgres server.

- Several runs at once write their runs and events into one Postgres: all end, and none of their events is missing.
- The pool holds across them with no device to lease, and with a limit that nobody has set before they all begin.
- One slot goes to one of many that claim it at once, however slow the database is between two statements.
- A default limit that many set at once, or that was changed in the instance file, breaks no run; one set by hand stays.
- With the Celery profile's instance file, the steps' logs are in the bucket.
- One setting chooses it, for the local deployment too; the instance files differ from the root's in storage and logs only.
- Neither the password nor a key of the store is in a run's record, an event or a step's log.
"""

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import sqlalchemy
import yaml

from curvas_assets.errors import StorageError
from curvas_assets.local.deployment import instance_file
from curvas_assets.storage.connection import S3Settings, connect
from curvas_assets_tests.orchestration import pool_job, services

RUNS = 3
AT_ONCE = 8


needs_postgres = pytest.mark.skipif(
    services.postgres_folder() is None, reason="Postgres is not installed (Debian package postgresql)"
)


@needs_postgres
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
            command = [sys.executable, "-m", pool_job.__name__, str(RUNS)]
            runs = subprocess.Popen(
                command, env=environment, cwd=services.ROOT, stderr=subprocess.DEVNULL, start_new_session=True
            )
            try:
                assert runs.wait(timeout=120) == 0
            finally:
                services.kill_group(runs)
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


@needs_postgres
def test_claims_and_default_limits_of_many_at_once(tmp_path, monkeypatch):
    with services.postgres() as url:
        monkeypatch.setenv("CURVAS_POSTGRES_URL", url)
        given = (services.ROOT / "deploy" / "postgres" / "dagster.yaml").read_text()
        file = tmp_path / "dagster.yaml"
        file.write_text(given)
        with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
            storage = instance.event_log_storage
            assert at_once(lambda _: storage.initialize_concurrency_limit_to_default("gpu")) == [True] * AT_ONCE
            storage.set_concurrency_slots("by hand", 5)

            @sqlalchemy.event.listens_for(storage._engine, "before_cursor_execute")
            def slow(_connection, _cursor, statement, *_) -> None:
                if statement.startswith("UPDATE concurrency_slots"):
                    time.sleep(0.2)  # all others have read by now what this one is about to write

            def claims(pool: str) -> int:
                found = at_once(lambda n: storage.claim_concurrency_slot(pool, f"run-{pool}-{n}", "step"))
                return sum(claim.is_claimed for claim in found)

            assert (claims("gpu"), claims("by hand")) == (1, 5)
        file.write_text(given.replace("default_limit: 1", "default_limit: 3"))
        with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
            storage = instance.event_log_storage
            assert at_once(lambda _: storage.initialize_concurrency_limit_to_default("gpu")) == [True] * AT_ONCE
            storage.initialize_concurrency_limit_to_default("by hand")
            slots = {pool: storage.get_concurrency_info(pool).slot_count for pool in ("gpu", "by hand")}
            assert slots == {"gpu": 3, "by hand": 5}
            limits = {limit.name: (limit.limit, limit.from_default) for limit in storage.get_pool_limits()}
            assert limits == {"gpu": (3, True), "by hand": (5, False)}


@pytest.mark.parametrize("profile", ["postgres", "celery"])
def test_instance_files_differ_from_the_roots_in_storage_and_logs_only(profile, monkeypatch):
    root, other = (
        yaml.safe_load(path.read_text())
        for path in (services.ROOT / "dagster.yaml", services.ROOT / "deploy" / profile / "dagster.yaml")
    )
    for part in ("run_storage", "schedule_storage", "event_log_storage"):
        assert other.pop(part)["config"] == {"postgres_url": {"env": "CURVAS_POSTGRES_URL"}}
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


def at_once(call: Callable[[int], Any]) -> list[Any]:
    """What `call` returns to threads that all begin at the same time."""
    together = threading.Barrier(AT_ONCE)

    def one(number: int) -> Any:
        together.wait()
        return call(number)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(one, range(AT_ONCE)))


def _span(file: Path) -> tuple[float, float]:
    start, end = map(float, file.read_text().split())
    return start, end
