"""Claims proved here.

- A batch reports each partition by itself; one that fails takes no other along, and the failure names it.
- A partition made in a batch and one made alone have the same standing: neither is stale afterwards.
- An error that only a person can mend is not retried; a passing one is.
- A full scratch disk is told as that, whichever step and library meets it.
- A batch goes patient by patient.
"""

import errno

import dagster as dg
import pytest

from curvas_assets.errors import PatientError, StorageError
from curvas_assets_tests.orchestration.lineage import DummyLineage

TESTS = ("UKCHLL003", "UKCHLL005")


@pytest.fixture
def lineage():
    lineage = DummyLineage()
    lineage.register(*TESTS)
    return lineage


def _failure(result):
    (event,) = [event for event in result.all_events if event.is_step_failure]
    return event.step_failure_data


def _grid(lineage) -> tuple[str, str]:
    models = [str(m) for m in lineage.study.models]
    return f"{models[0]}|{TESTS[0]}", f"{models[-1]}|{TESTS[1]}"


def test_a_failed_cell_leaves_the_other_seventeen_materialised_and_is_named(lineage):
    bad = f"anno2_init112233_foldall|{TESTS[1]}"
    lineage.broken[bad] = PatientError("predicting", TESTS[1], "not enough memory", "Set prediction.tile_step.")
    result = lineage.run("softmax", *_grid(lineage))
    assert not result.success
    message = _failure(result).error.message
    assert "1 of 18 partitions failed" in message
    assert bad in message
    assert "Set prediction.tile_step." in message
    assert lineage.due()["softmax"] == [bad]
    made = lineage.instance.get_materialized_partitions(dg.AssetKey("softmax"))
    assert len(made) == 17
    assert bad not in made


def test_a_full_disk_is_told_as_that(lineage):
    bad = _grid(lineage)[0]
    lineage.broken[bad] = OSError(errno.ENOSPC, "No space left on device")
    result = lineage.run("softmax", bad, bad)
    assert not result.success
    assert "is full, or a quota on it is used up" in str(_failure(result).error)
    assert lineage.due()["softmax"][0] == bad


def test_each_cell_of_a_batch_has_its_own_metadata_and_data_version(lineage):
    first, last = _grid(lineage)
    lineage.run("softmax", first, last)
    for key in (first, last):
        event = lineage.instance.fetch_materializations(
            dg.AssetRecordsFilter(dg.AssetKey("softmax"), asset_partitions=[key]), limit=5
        ).records
        assert len(event) == 1
        assert event[0].asset_materialization.metadata["key"].value == key
        assert event[0].asset_materialization.tags["dagster/data_version"] == key
        assert {"seconds", "bytes_down", "bytes_up", "peak_memory_mib"} <= set(event[0].asset_materialization.metadata)


def test_nothing_is_stale_after_a_run_of_everything_in_batches(lineage):
    lineage.run_all()
    assert lineage.due() == {}


def test_a_partition_remade_alone_with_the_same_content_makes_nothing_stale(lineage):
    lineage.run_all()
    assert lineage.run("test_scan", TESTS[0]).success
    assert lineage.run("softmax", _grid(lineage)[0]).success
    assert lineage.due() == {}


def test_a_batch_goes_patient_by_patient(lineage):
    lineage.run("softmax", *_grid(lineage))
    patients = [key.split("|")[1] for _, key in lineage.made]
    assert patients == sorted(patients)


@pytest.mark.parametrize(
    ("error", "retried"),
    [
        (PatientError("reading", "UKCHLL003", "a truncated file", "Upload it again."), False),
        (StorageError("reading", "s3://x", "the store answered 503", "Try again.", may_retry=True), True),
    ],
)
def test_only_passing_errors_are_retried(lineage, error, retried):
    lineage.broken[TESTS[0]] = error
    result = lineage.run("test_scan", TESTS[0])
    assert not result.success
    assert any(event.is_step_up_for_retry for event in result.all_events) is retried
    assert str(error) in str(_failure(result).error)


def test_a_retry_of_a_batch_makes_only_what_is_left(lineage):
    first, last = _grid(lineage)
    lineage.broken[last] = StorageError("writing", "s3://x", "the store answered 503", "Try again.", may_retry=True)
    assert not lineage.run("softmax", first, last).success
    assert len(lineage.made) == 17  # none of them again in the retry
    assert lineage.due()["softmax"] == [last]
