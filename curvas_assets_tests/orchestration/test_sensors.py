"""Claims proved here.

- A new folder becomes a patient, and a test patient if the sets say so; excluded ones do not.
- Ids with and without prefix are one patient; folders of other names are told and left alone.
- What has not changed is skipped; a changed file is an observation of that patient only.
- Who was excluded, moved to another set or dropped from all sets is no partition any more, and comes back when the study says so.
- A folder that is gone from the bucket is told, at every look.
- A published table that people upload, replace or take away is told to Dagster.
- What the study makes of each new patient is told: training, test, nobody's and what to do.
- Who lacks an annotator's file is told; the file, when it comes, is a change. As long as a file may still be on its way, be it the
  first label map or the image, nobody follows the patient.
- With the rule `rest: test` whoever is in no set is a test patient; trained ones and excluded ones never are.
"""

from dataclasses import replace
from datetime import UTC, datetime

import dagster as dg
import pytest

from curvas_assets.file_paths import FilePaths
from curvas_assets.orchestration.partitions import Partitions
from curvas_assets.orchestration.sensors import ARRIVING, OF_OTHERS, registration, still_arriving
from curvas_assets.stages.patients import Uploaded
from curvas_assets.stages.table import OTHER_STUDIES, PUBLISHED_TABLE
from curvas_assets.storage.objects import ObjectInfo
from curvas_assets.study import PatientIds, Study, load_study


@pytest.fixture
def study():
    raw = load_study("phantom").model_dump(mode="json")
    raw["exclusions"] = {"PHANTOM009": "header lost"}
    return Study.model_validate(raw)


@pytest.fixture
def instance():
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def _look(study, partitions, instance, there, cursor, tables=None):
    return registration(study, partitions, instance, there.digests, cursor, tables, there.lacking, there.strange)


def _there(study, folders, *files):
    """A bucket with these folders: name → tag of the files in it, which are all the study's unless some are given."""
    found = {f"{folder}/{file}": tag for folder, tag in folders.items() for file in files or study.files}
    objects = {path: ObjectInfo(f"data/{path}", 1, tag) for path, tag in found.items()}
    return Uploaded(study, FilePaths(study.files, study.patients).sort(objects), objects)


def _apply(instance, result):
    for request in result.dynamic_partitions_requests:
        if isinstance(request, dg.DeleteDynamicPartitionsRequest):
            for key in request.partition_keys:
                instance.delete_dynamic_partition(request.partitions_def_name, key)
            continue
        instance.add_dynamic_partitions(request.partitions_def_name, list(request.partition_keys))


def test_new_folders_become_patients_and_test_patients(study, instance):
    partitions = Partitions.of(study)
    folders = {"PHANTOM001": "a", "7": "b", "PHANTOM009": "c", "thumbs": "d"}
    result = _look(study, partitions, instance, _there(study, folders), None)
    requests = {r.partitions_def_name: list(r.partition_keys) for r in result.dynamic_partitions_requests}
    assert requests == {"patient": ["PHANTOM001", "PHANTOM007"], "test_patient": ["PHANTOM007"]}
    seen = {e.partition: e.tags["dagster/data_version"] for e in result.asset_events}
    assert seen.keys() == {"PHANTOM001", "PHANTOM007"}
    assert seen == {patient: _there(study, folders).digests[patient] for patient in seen}
    _apply(instance, result)

    again = _look(study, partitions, instance, _there(study, folders), result.cursor)
    assert isinstance(again, dg.SkipReason)
    assert "thumbs" in again.skip_message

    changed = _look(study, partitions, instance, _there(study, {**folders, "7": "new"}), result.cursor)
    assert [e.partition for e in changed.asset_events] == ["PHANTOM007"]
    assert not changed.dynamic_partitions_requests


def _edited(study, **changes):
    return Study.model_validate({**study.model_dump(mode="json"), **changes})


def _registered(instance):
    return {name: set(instance.get_dynamic_partitions(name)) for name in ("patient", "test_patient")}


def test_the_study_file_decides_at_every_look_who_is_a_partition(study, instance):
    folders = dict.fromkeys(["PHANTOM001", "PHANTOM007", "PHANTOM008"], "a")
    first = _look(study, Partitions.of(study), instance, _there(study, folders), None)
    _apply(instance, first)
    everybody = {"patient": set(folders), "test_patient": {"PHANTOM007", "PHANTOM008"}}
    assert _registered(instance) == everybody
    sets = {name: list(members) for name, members in study.sets.items()}
    moved = {**sets, "train": [*sets["train"], "PHANTOM008"], "test": ["PHANTOM007", "PHANTOM009"]}
    for changes, patients in (
        ({"exclusions": {"PHANTOM008": "consent withdrawn"}}, {"PHANTOM001", "PHANTOM007"}),
        ({"sets": moved}, set(folders)),
        ({"sets": {**sets, "test": ["PHANTOM007", "PHANTOM009"]}}, set(folders)),
    ):
        later = _edited(study, **changes)
        # Before anything is removed, the definitions leave them out already.
        assert Partitions.of(later).test_patient.get_partition_keys(dynamic_partitions_store=instance) == ["PHANTOM007"]
        result = _look(later, Partitions.of(later), instance, _there(later, folders), first.cursor)
        assert "no test patient of the study any more (what was made of them is kept): PHANTOM008" in (
            result.skip_reason.skip_message
        )
        _apply(instance, result)
        assert _registered(instance) == {"patient": patients, "test_patient": {"PHANTOM007"}}
        _apply(instance, _look(study, Partitions.of(study), instance, _there(study, folders), first.cursor))
        assert _registered(instance) == everybody


def test_a_folder_that_is_gone_is_told_at_every_look(study, instance):
    partitions, folders = Partitions.of(study), {"PHANTOM001": "a", "PHANTOM007": "b"}
    first = _look(study, partitions, instance, _there(study, folders), None)
    _apply(instance, first)
    for _ in range(2):
        again = _look(study, partitions, instance, _there(study, {"PHANTOM001": "a"}), first.cursor)
        assert (
            "no longer in the bucket (upload them again, or exclude them in the study file): PHANTOM007"
            in again.skip_message
        )
    assert "PHANTOM007" in _registered(instance)["test_patient"]


def test_an_empty_bucket_is_skipped(study, instance):
    assert isinstance(_look(study, Partitions.of(study), instance, _there(study, {}), None), dg.SkipReason)


def test_a_published_table_is_told_when_it_changes(study, instance):
    partitions = Partitions.of(study)
    result = _look(study, partitions, instance, _there(study, {"7": "b"}), None)
    _apply(instance, result)
    uploaded = _look(study, partitions, instance, _there(study, {"7": "b"}), result.cursor, {PUBLISHED_TABLE: "first"})
    assert [(e.asset_key.to_user_string(), e.tags) for e in uploaded.asset_events] == [
        ("published_table", {"dagster/data_version": "first"})
    ]
    assert isinstance(
        _look(study, partitions, instance, _there(study, {"7": "b"}), uploaded.cursor, {PUBLISHED_TABLE: "first"}),
        dg.SkipReason,
    )
    replaced = _look(
        study, partitions, instance, _there(study, {"7": "b"}), uploaded.cursor, {PUBLISHED_TABLE: "second"}
    )
    assert len(replaced.asset_events) == 1
    gone = _look(study, partitions, instance, _there(study, {"7": "b"}), replaced.cursor, None)
    assert [e.tags for e in gone.asset_events] == [{"dagster/data_version": "none"}]
    assert isinstance(_look(study, partitions, instance, _there(study, {"7": "b"}), gone.cursor, None), dg.SkipReason)
    other = _look(study, partitions, instance, _there(study, {"7": "b"}), gone.cursor, {OTHER_STUDIES: "first"})
    assert [e.asset_key.to_user_string() for e in other.asset_events] == ["other_studies"]


def test_no_patient_is_called_as_what_the_sensor_remembers_beside_patients():
    assert [one for one in OF_OTHERS if PatientIds().has(one)] == []


def test_what_the_study_makes_of_a_new_patient_is_told(study, instance):
    folders = dict.fromkeys(["PHANTOM001", "PHANTOM006", "PHANTOM007", "PHANTOM120"], "a")
    told = _look(study, Partitions.of(study), instance, _there(study, folders), None).skip_reason.skip_message
    assert "PHANTOM001: in the set train: models learn from it" in told
    assert (
        "PHANTOM006: validation: predicted; what is calibrated is fitted on it, and it is not in the study's scores"
        in told
    )
    assert "PHANTOM007: test: predicted and scored" in told
    assert (
        "PHANTOM120: in no set, so nothing is made of it; name it in sets of the study file, or write `rest: test`"
        in told
    )


def test_the_rest_become_test_patients_by_rule_and_the_trained_never_do(study, instance):
    ruled = _edited(study, rest="test")
    folders = dict.fromkeys(["PHANTOM001", "PHANTOM006", "PHANTOM007", "PHANTOM009", "120"], "a")
    partitions = Partitions.of(ruled)
    found = _look(ruled, partitions, instance, _there(ruled, folders), None)
    _apply(instance, found)
    assert _registered(instance)["test_patient"] == {"PHANTOM006", "PHANTOM007", "PHANTOM120"}
    assert "PHANTOM007, PHANTOM120: test: predicted and scored" in found.skip_reason.skip_message
    trains = {**ruled.sets, "train": [*ruled.sets["train"], "PHANTOM120"]}
    later = _edited(ruled, sets=trains)
    assert Partitions.of(later).test_patient.get_partition_keys(dynamic_partitions_store=instance) == [
        "PHANTOM006",
        "PHANTOM007",
    ]


def test_an_annotators_file_that_is_missing_is_told_and_is_a_change_when_it_comes(study, instance):
    partitions, present = Partitions.of(study), study.files[:-1]
    result = _look(study, partitions, instance, _there(study, {"1": "a"}, *present), None)
    assert "without the file of an annotator: PHANTOM001 (anno3)" in result.skip_reason.skip_message
    _apply(instance, result)
    same = _look(study, partitions, instance, _there(study, {"1": "a"}, *present), result.cursor)
    assert isinstance(same, dg.SkipReason)
    whole = _look(study, partitions, instance, _there(study, {"1": "a"}), result.cursor)
    assert [event.partition for event in whole.asset_events] == ["PHANTOM001"]
    assert "without the file" not in whole.skip_reason.skip_message


@pytest.mark.parametrize("arrived", [slice(2), slice(1), slice(1, None)], ids=["some", "image alone", "no image"])
def test_a_patient_whose_files_may_still_be_on_their_way_is_not_followed(study, arrived):
    now = datetime(2026, 11, 27, 12, 0, tzinfo=UTC)
    there = _there(study, {"1": "a", "2": "b"}, *study.files[arrived])
    old = now - ARRIVING
    ages = {path: old if path.startswith("1/") else now - ARRIVING / 2 for path in there.objects}
    dated = Uploaded(study, there.found, {p: replace(info, modified=ages[p]) for p, info in there.objects.items()})
    assert still_arriving(dated, now) == ["PHANTOM002"]
    assert still_arriving(dated, None) == still_arriving(there, now) == []
    whole = _there(study, {"1": "a"})
    young = {path: replace(info, modified=now) for path, info in whole.objects.items()}
    assert still_arriving(Uploaded(study, whole.found, young), now) == []
