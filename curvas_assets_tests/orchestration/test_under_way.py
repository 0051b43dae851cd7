"""Claims proved here, on the published study's shape with instant dummy computations.

- Partitions of runs that wait, go on, are being cancelled, or were killed and are about to go on count as under way, by a single
  partition, a range or a rectangle; so do those that a backfill has not launched yet. What has ended does not.
- `make_missing` waits for what others make and never launches it, and then makes what they have left; of two that launch the same
  at the same moment, the younger leaves it to the older; a retry is as old as the run that was killed.
- `make_missing` waits for a killed run whose retry Dagster has given up, another's or its own, because `keep_going` launches it; a
  younger run leaves it its partitions.
- A run that goes on for one that was killed makes only what that one has left; a person's run makes its partitions always, and so
  does one that a person executes again.
"""

import time
from types import SimpleNamespace

import dagster as dg
import pytest
from dagster._core.definitions.asset_key import AssetKey
from dagster._core.definitions.assets.graph.asset_graph_subset import AssetGraphSubset
from dagster._core.execution.api import execute_run
from dagster._core.execution.asset_backfill import AssetBackfillData
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill
from dagster._core.storage.dagster_run import DagsterRunStatus
from dagster._core.storage.tags import AUTO_RETRY_RUN_ID_TAG, RETRY_NUMBER_TAG, WILL_RETRY_TAG
from dagster._time import get_current_timestamp

from curvas_assets.errors import SegmentationError
from curvas_assets.orchestration import study_run
from curvas_assets.orchestration.restarts import GIVEN_UP
from curvas_assets.orchestration.under_way import LAUNCHED_BY, UnderWay
from curvas_assets_tests.orchestration.dummy_location import LINEAGE, job
from curvas_assets_tests.orchestration.operations.test_make_missing import (
    MODELS,
    TESTS,
    lineage,
    made,
    make_missing,
    up_to_models,
)

__all__ = ["lineage"]
SOFTMAX = AssetKey("softmax")
GRAPH = LINEAGE.definitions.resolve_asset_graph()


def rectangle(first: str, last: str) -> dict[str, str]:
    return {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}


def submitted(lineage, tags, status=DagsterRunStatus.NOT_STARTED, **more) -> dg.DagsterRun:
    """A run of `predict` that somebody has launched and nobody executes yet."""
    return lineage.instance.create_run_for_job(
        job("predict").get_definition(), asset_selection={SOFTMAX}, tags=tags, status=status, **more
    )


def execute(lineage, run: dg.DagsterRun) -> None:
    execute_run(job("predict").get_subset(asset_selection={SOFTMAX}), run, lineage.instance, raise_on_error=False)


@pytest.mark.parametrize("status", ["NOT_STARTED", "STARTING", "STARTED", "CANCELING"])
def test_what_waits_goes_on_or_is_being_cancelled_is_under_way(lineage, status):
    lineage.register(*TESTS[:3])
    run = submitted(lineage, rectangle(f"{MODELS[1]}|{TESTS[0]}", f"{MODELS[2]}|{TESTS[1]}"), DagsterRunStatus[status])
    found = UnderWay(GRAPH, lineage.instance)
    cells = {f"{m}|{p}" for m in MODELS for p in TESTS[:3] if found.makers(SOFTMAX, f"{m}|{p}")}
    assert cells == {f"{m}|{p}" for m in MODELS[1:3] for p in TESTS[:2]}
    assert [maker.id for maker in found.makers(SOFTMAX, f"{MODELS[1]}|{TESTS[0]}")] == [run.run_id]
    assert not found.makers(AssetKey("scores"), TESTS[0])


def test_what_has_ended_is_not_unless_it_is_about_to_go_on(lineage):
    lineage.register(TESTS[0])
    cell = f"{MODELS[0]}|{TESTS[0]}"
    killed = submitted(lineage, {"dagster/partition": cell}, DagsterRunStatus.STARTED)
    lineage.instance.report_run_failed(killed)
    assert not UnderWay(GRAPH, lineage.instance).makers(SOFTMAX, cell)
    lineage.instance.add_run_tags(killed.run_id, {WILL_RETRY_TAG: "true"})
    assert [m.id for m in UnderWay(GRAPH, lineage.instance).makers(SOFTMAX, cell)] == [killed.run_id]
    lineage.instance.add_run_tags(killed.run_id, {"dagster/auto_retry_run_id": "another"})
    assert not UnderWay(GRAPH, lineage.instance).makers(SOFTMAX, cell)


def test_cells_that_a_backfill_is_yet_to_launch_are_under_way(lineage):
    lineage.register(*TESTS[:2])
    definition = GRAPH.get(SOFTMAX).partitions_def
    cells = [f"{m}|{TESTS[1]}" for m in MODELS[:3]]

    def subset(keys):
        return AssetGraphSubset({SOFTMAX: definition.subset_with_partition_keys(keys)} if keys else {})

    data = AssetBackfillData.empty(subset(cells), get_current_timestamp(), lineage.instance)
    data = data.replace_requested_subset(subset(cells[:1]))
    backfill = PartitionBackfill(
        backfill_id="manual",
        status=BulkActionStatus.REQUESTED,
        from_failure=False,
        tags={},
        backfill_timestamp=get_current_timestamp(),
        asset_selection=[SOFTMAX],
        asset_backfill_data=data,
    )
    lineage.instance.add_backfill(backfill)
    found = UnderWay(GRAPH, lineage.instance)
    assert [bool(found.makers(SOFTMAX, cell)) for cell in cells] == [False, True, True]
    assert not found.makers(SOFTMAX, f"{MODELS[0]}|{TESTS[0]}")
    lineage.instance.update_backfill(backfill.with_status(BulkActionStatus.CANCELED))
    assert not UnderWay(GRAPH, lineage.instance).makers(SOFTMAX, cells[1])


def test_make_missing_waits_for_what_another_run_makes_and_makes_the_rest(lineage, monkeypatch):
    up_to_models(lineage, *TESTS[:2])
    others = rectangle(f"{MODELS[0]}|{TESTS[0]}", f"{MODELS[1]}|{TESTS[1]}")
    run, waits = submitted(lineage, others), []
    broken = f"{MODELS[1]}|{TESTS[1]}"
    lineage.broken[broken] = SegmentationError("predicting", broken, "it is broken", "Mend it.")

    def while_waiting(_):
        waits.append(1)
        if len(waits) == 3:
            execute(lineage, run)
            lineage.broken.clear()

    sleeps(monkeypatch, while_waiting)
    assert make_missing(lineage, stages=["softmax"]) == (True, "")
    assert len(waits) >= 3
    counts = {key: [k for _, k in lineage.made].count(key) for _, key in lineage.made}
    assert counts == {f"{m}|{p}": 1 for m in MODELS for p in TESTS[:2]}  # the broken one by us, once they had left it
    assert lineage.instance.get_run_by_id(run.run_id).status is DagsterRunStatus.FAILURE


def sleeps(monkeypatch, instead) -> None:
    """Have the planner do something in place of sleeping; threads that earlier tests have left sleep as ever."""
    monkeypatch.setattr(study_run, "time", SimpleNamespace(sleep=instead, monotonic=time.monotonic))


def give_up(lineage, run: dg.DagsterRun) -> None:
    """Kill a run, and let its retry find no code server."""
    lineage.instance.report_run_failed(run)
    lineage.instance.report_engine_event(GIVEN_UP, run)


def retry(lineage, killed: dg.DagsterRun) -> None:
    """What Dagster does once `keep_going` has reported the failure again."""
    line = {"root_run_id": killed.run_id, "parent_run_id": killed.run_id}
    related = {f"dagster/{name}": run_id for name, run_id in line.items()}
    run = submitted(lineage, {**killed.tags, **related, RETRY_NUMBER_TAG: "1"}, **line)
    lineage.instance.add_run_tags(killed.run_id, {AUTO_RETRY_RUN_ID_TAG: run.run_id})
    execute(lineage, run)


@pytest.mark.parametrize("whose", ["another's", "its own"])
def test_a_killed_run_whose_retry_was_given_up_is_waited_for(lineage, monkeypatch, whose):
    up_to_models(lineage, TESTS[0])
    coordinator, killed, waits = lineage.instance.run_coordinator, [], []
    if whose == "another's":
        tags = rectangle(f"{MODELS[0]}|{TESTS[0]}", f"{MODELS[1]}|{TESTS[0]}") | {LAUNCHED_BY: "study"}
        killed.append(submitted(lineage, tags, DagsterRunStatus.STARTED))
        give_up(lineage, killed[0])
    else:

        def submit(context):
            coordinator.launched.append(context.dagster_run)
            killed.append(context.dagster_run)
            give_up(lineage, context.dagster_run)

        monkeypatch.setattr(coordinator, "submit_run", submit)

    def while_waiting(_):
        waits.append(1)
        if len(waits) == 3:
            retry(lineage, killed[0])

    sleeps(monkeypatch, while_waiting)
    assert make_missing(lineage, stages=["softmax"]) == (True, "")
    assert len(waits) >= 3
    assert sorted(key for _, key in lineage.made) == sorted(f"{m}|{TESTS[0]}" for m in MODELS)
    (ours,) = coordinator.launched
    planner = lineage.instance.get_runs(dg.RunsFilter(job_name="make_missing"), limit=1)[0]
    said = [entry.user_message for entry in lineage.instance.all_logs(planner.run_id)]
    assert any(f"run {killed[0].run_id[:8]} was killed; run" in one for one in said)
    assert not any("failure with" in one for one in said)
    first = MODELS[2 if whose == "another's" else 0]
    assert ours.tags["dagster/asset_partition_range_start"] == f"{first}|{TESTS[0]}"


def test_a_younger_run_leaves_its_partitions_to_a_killed_one_whose_retry_was_given_up(lineage):
    lineage.register(TESTS[0])
    cell = {"dagster/partition": f"{MODELS[0]}|{TESTS[0]}", LAUNCHED_BY: "study"}
    killed, younger = submitted(lineage, cell, DagsterRunStatus.STARTED), submitted(lineage, cell)
    give_up(lineage, killed)
    lineage.made.clear()
    execute(lineage, younger)
    assert lineage.made == []


def test_of_two_that_launched_the_same_at_once_the_younger_leaves_it_to_the_older(lineage):
    lineage.register(*TESTS[:2])
    cells = rectangle(f"{MODELS[0]}|{TESTS[0]}", f"{MODELS[0]}|{TESTS[1]}")
    older = submitted(lineage, cells | {LAUNCHED_BY: "one"})
    younger = submitted(lineage, rectangle(f"{MODELS[0]}|{TESTS[0]}", f"{MODELS[1]}|{TESTS[0]}") | {LAUNCHED_BY: "two"})
    lineage.made.clear()
    execute(lineage, younger)
    assert made(lineage, "softmax") == {f"{MODELS[1]}|{TESTS[0]}"}
    execute(lineage, older)
    assert sorted(key for _, key in lineage.made) == [
        f"{MODELS[0]}|{TESTS[0]}",
        f"{MODELS[0]}|{TESTS[1]}",
        f"{MODELS[1]}|{TESTS[0]}",
    ]


def test_what_was_made_since_a_run_was_launched_is_not_made_again_unless_a_person_launched_it(lineage):
    lineage.register(TESTS[0])
    cell = {"dagster/partition": f"{MODELS[0]}|{TESTS[0]}"}
    waiting, by_hand = submitted(lineage, cell | {LAUNCHED_BY: "study"}), submitted(lineage, cell)
    assert lineage.run("softmax", cell["dagster/partition"]).success
    lineage.made.clear()
    execute(lineage, waiting)
    assert lineage.instance.get_run_by_id(waiting.run_id).is_success
    assert lineage.made == []
    execute(lineage, by_hand)
    assert lineage.made == [("softmax", cell["dagster/partition"])]
    # One that is out of date again since is made.
    later = submitted(lineage, cell | {LAUNCHED_BY: "study"})
    assert lineage.run("softmax", cell["dagster/partition"]).success
    lineage.versions[MODELS[0]] = "retrained"
    assert lineage.run("trained_model", MODELS[0]).success
    lineage.made.clear()
    execute(lineage, later)
    assert lineage.made == [("softmax", cell["dagster/partition"])]


@pytest.mark.parametrize("by", ["a person", "the study"])
def test_a_run_that_goes_on_for_a_killed_one_makes_what_that_one_has_left(lineage, by):
    lineage.register(*TESTS[:2])
    tags = {LAUNCHED_BY: "study"} if by == "the study" else {}
    tags |= rectangle(f"{MODELS[0]}|{TESTS[0]}", f"{MODELS[1]}|{TESTS[1]}")
    bad = f"{MODELS[1]}|{TESTS[0]}"
    lineage.broken[bad] = SegmentationError("predicting", bad, "it is broken", "Mend it.")
    killed = submitted(lineage, tags)
    execute(lineage, killed)
    lineage.broken.clear()
    lineage.made.clear()
    line = {"root_run_id": killed.run_id, "parent_run_id": killed.run_id}
    related = {"dagster/root_run_id": killed.run_id, "dagster/parent_run_id": killed.run_id}
    execute(lineage, submitted(lineage, tags | related | {RETRY_NUMBER_TAG: "1"}, **line))
    assert lineage.made == [("softmax", bad)]
    lineage.made.clear()
    execute(lineage, submitted(lineage, tags | related, **line))  # executed again by a person
    assert len(lineage.made) == 4


def test_a_retry_is_as_old_as_the_run_that_was_killed(lineage):
    """Else a run that began between the two would leave its cells to the killed one, and the retry the same to it."""
    lineage.register(*TESTS[:2])
    tags = rectangle(f"{MODELS[0]}|{TESTS[0]}", f"{MODELS[0]}|{TESTS[1]}") | {LAUNCHED_BY: "study"}
    killed = submitted(lineage, tags, status=DagsterRunStatus.STARTED)
    between = submitted(lineage, tags)
    lineage.instance.report_run_failed(killed)
    related = {"dagster/root_run_id": killed.run_id, "dagster/parent_run_id": killed.run_id, RETRY_NUMBER_TAG: "1"}
    retry = submitted(lineage, tags | related, root_run_id=killed.run_id, parent_run_id=killed.run_id)
    lineage.made.clear()
    execute(lineage, between)
    assert lineage.made == []
    execute(lineage, retry)
    assert len(lineage.made) == 2
