"""Claims proved here.

- Only old, finished runs that made nothing are forgotten, with their events; a dry run forgets none.
- What was made stays made, with its history; so does the record of an emptying, a run that others go on for, and a killed one
  that is about to be launched again.
"""

from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest

from curvas_assets.orchestration.operations import forgetting
from curvas_assets.orchestration.restarts import GIVEN_UP


@dg.asset(partitions_def=dg.StaticPartitionsDefinition(["a"]))
def thing(): ...


@dg.job
def looked(): ...


@dg.job(name="empty_data")
def emptied(): ...


@pytest.fixture
def instance(tmp_path):
    (tmp_path / "dagster.yaml").write_text("{}")
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        yield instance


def test_only_old_runs_that_made_nothing_are_forgotten(instance, monkeypatch):
    made = dg.materialize([thing], instance=instance, partition_key="a")
    old = [looked.execute_in_process(instance=instance) for _ in range(3)]
    kept = [emptied.execute_in_process(instance=instance), made]
    going_on = instance.create_run_for_job(looked, status=dg.DagsterRunStatus.STARTED)
    killed = instance.create_run_for_job(looked, status=dg.DagsterRunStatus.STARTED)
    instance.report_run_failed(killed)
    instance.create_run_for_job(
        looked, status=dg.DagsterRunStatus.STARTED, root_run_id=killed.run_id, parent_run_id=killed.run_id
    )
    given_up = instance.create_run_for_job(looked, status=dg.DagsterRunStatus.STARTED)
    instance.report_run_failed(given_up)
    instance.report_engine_event(GIVEN_UP, given_up)
    told: list[str] = []
    monkeypatch.setattr(forgetting, "PAGE", 2)
    assert forgetting.forget(instance, 1, told.append, dry_run=False) == []

    class Later(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(UTC) + timedelta(days=2)

    monkeypatch.setattr(forgetting, "datetime", Later)
    ids = {run.run_id for run in old}
    assert set(forgetting.forget(instance, 1, told.append, dry_run=True)) == ids
    assert all(instance.has_run(run_id) for run_id in ids)
    assert set(forgetting.forget(instance, 1, told.append, dry_run=False)) == ids
    assert len(told) == 2 * len(ids)
    assert {run.run_id for run in instance.get_runs()} >= {
        *(run.run_id for run in kept),
        going_on.run_id,
        killed.run_id,
        given_up.run_id,
    }
    assert not any(instance.has_run(run_id) or instance.all_logs(run_id) for run_id in ids)
    assert instance.get_materialized_partitions(dg.AssetKey("thing")) == {"a"}
