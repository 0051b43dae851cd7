"""Claims proved here.

- Orphans are the artefacts of annotators, seeds, ensembles and patients that the study has no more, each with all its
  objects; what belongs to the study, what is no artefact, and the input never count.
- They go only with the dry run's own line typed, not while a run that may use them goes on, and beside runs that cannot;
  a removal that was cut off is finished by launching it again. `about` lists them until then.
- A partition that was removed and comes back to the study is stale, so that it is made again.
- The sweep takes what nobody touched for a day: older versions, remains of killed writers with or without a manifest,
  uploads that were not completed, checkpoints of trainings that have ended; it leaves what is young, what is current, and
  unfinished trainings however old.
"""

import os
import time
from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest

from curvas_assets.definitions import build_definitions
from curvas_assets.errors import StudyError
from curvas_assets.orchestration.operations import leftovers
from curvas_assets.orchestration.operations.about import about_orphans
from curvas_assets.orchestration.partitions import Partitions
from curvas_assets.orchestration.staleness import Staleness
from curvas_assets.stages.train import Checkpoints
from curvas_assets.storage import directories, tables
from curvas_assets.storage.layout import Layout
from curvas_assets.storage.metering import MeteredObjects
from curvas_assets.storage.objects import FolderObjects, UnfinishedUpload
from curvas_assets.study import Study, load_study
from curvas_assets_tests.orchestration.operations.test_jobs import MODEL, defs, platform  # noqa: F401 - a fixture
from curvas_assets_tests.orchestration.test_staleness import Events
from curvas_assets_tests.storage.test_softmax import KEY as VOLUME
from curvas_assets_tests.storage.test_softmax import _grow_old, _realistic
from curvas_assets_tests.storage.test_softmax import _write as write_volume

LAYOUT = Layout()
PHANTOM = load_study("phantom")
TEST = PHANTOM.sets["test"][0]
OURS = [
    f"data/{TEST}/image.nii.gz",
    "data/PHANTOM999/image.nii.gz",
    "artifacts/training_cases/anno1.json",
    "artifacts/preprocessing/anno1/manifest.json",
    f"artifacts/models/{PHANTOM.models[0]}/manifest.json",
    f"artifacts/training/{PHANTOM.models[0]}/manifest.json",
    f"output/{TEST}/scan.json",
    f"output/{TEST}/test_scan.json",
    "output/PHANTOM001/scan.json",
    f"output/{TEST}/{PHANTOM.models[0]}/softmax.zarr/zarr.json",
    f"output/{TEST}/ensemble_all/entropy.nii.gz",
    f"metrics/{TEST}/scores/manifest.json",
    "metrics/cohort.parquet",
    "metrics/metrics.csv",
    "reports/report/manifest.json",
    "output/notes.txt",
    "artifacts/notes/of/somebody",
    f"output/{TEST}/scratchpad/x",
]
ORPHANS = {
    ("preprocessed_dataset", "anno9"): [
        "artifacts/preprocessing/anno9/manifest.json",
        "artifacts/preprocessing/anno9/v/x",
    ],
    ("training_cases", "anno9"): ["artifacts/training_cases/anno9.json"],
    ("trained_model", "anno1_init5_foldall"): [
        "artifacts/models/anno1_init5_foldall/manifest.json",
        "artifacts/training/anno1_init5_foldall/manifest.json",
    ],
    ("scan", "STRANGER1"): ["output/STRANGER1/scan.json"],
    ("test_scan", "PHANTOM001"): ["output/PHANTOM001/test_scan.json"],
    ("softmax", f"anno1_init5_foldall|{TEST}"): [f"output/{TEST}/anno1_init5_foldall/softmax.zarr/zarr.json"],
    ("softmax", f"{PHANTOM.models[0]}|PHANTOM001"): [f"output/PHANTOM001/{PHANTOM.models[0]}/softmax.zarr/zarr.json"],
    ("ensemble_softmax", f"ensemble_anno9|{TEST}"): [
        f"output/{TEST}/ensemble_anno9/entropy.nii.gz",
        f"output/{TEST}/ensemble_anno9/softmax.zarr/zarr.json",
    ],
    ("scores", "PHANTOM001"): ["metrics/PHANTOM001/scores/manifest.json"],
}


@pytest.fixture
def objects(tmp_path):
    store = FolderObjects(tmp_path / "bucket")
    for key in (*OURS, *(key for keys in ORPHANS.values() for key in keys)):
        store.put(key, b"12345")
    return store


def test_orphans_are_what_the_study_has_no_more_and_nothing_else(objects):
    found = leftovers.find_orphans(objects, LAYOUT, Partitions.of(PHANTOM))
    assert {(o.asset, o.partition): sorted(i.key for i in o.objects) for o in found} == {
        cell: sorted(keys) for cell, keys in ORPHANS.items()
    }
    whole = next(o for o in found if o.asset == "ensemble_softmax")
    with pytest.raises(KeyboardInterrupt):  # cut off in the middle: what is left is an orphan still
        leftovers.remove_orphan(Interrupted(objects), whole)
    again = leftovers.find_orphans(objects, LAYOUT, Partitions.of(PHANTOM))
    assert [len(o.objects) for o in again if o.asset == "ensemble_softmax"] == [1]
    assert objects.head(f"output/{TEST}/ensemble_anno9/softmax.zarr/zarr.json") is None  # the marker went first
    for orphan in again:
        leftovers.remove_orphan(objects, orphan)
    assert sorted(i.key for i in objects.list("")) == sorted(OURS)


class Interrupted(MeteredObjects):
    """A store that removes one object."""

    def delete(self, keys):
        super().delete(list(keys)[:1])
        raise KeyboardInterrupt


def test_each_edit_of_the_study_leaves_its_orphans(tmp_path):
    raw = PHANTOM.model_dump(mode="json")
    store = FolderObjects(tmp_path)
    for model in map(str, PHANTOM.models):
        store.put(f"artifacts/models/{model}/manifest.json", b"1")
        store.put(f"output/{TEST}/{model}/softmax.zarr/zarr.json", b"1")
    for ensemble in map(str, PHANTOM.ensemble_ids):
        store.put(f"output/{TEST}/{ensemble}/softmax.zarr/zarr.json", b"1")
    store.put(f"output/{TEST}/scan.json", b"1")

    def orphans(**changes) -> set[tuple[str, str]]:
        study = Study.model_validate({**raw, **changes})
        return {(o.asset, o.partition) for o in leftovers.find_orphans(store, LAYOUT, Partitions.of(study))}

    assert orphans() == set()
    seed = raw["seeds"][-1]
    gone = {str(m) for m in PHANTOM.models if m.seed == seed}
    assert orphans(seeds=raw["seeds"][:-1]) == {("trained_model", m) for m in gone} | {
        ("softmax", f"{m}|{TEST}") for m in gone
    }
    excluded = orphans(exclusions={TEST: "consent withdrawn"})
    assert ("scan", TEST) in excluded
    assert {asset for asset, _ in excluded} == {"scan", "softmax", "ensemble_softmax"}
    annotator = raw["annotators"][-1]["name"]
    names = {p.split("|")[0] for _, p in orphans(annotators=raw["annotators"][:-1])}
    assert f"ensemble_{annotator}" in names
    assert all(annotator in name for name in names)


def test_orphans_are_chosen_by_what_they_are_of(objects):
    found = leftovers.find_orphans(objects, LAYOUT, Partitions.of(PHANTOM))

    def cells(*only):
        return {(o.asset, o.partition) for o in leftovers.chosen(found, only)}

    assert cells("all") == set(ORPHANS)
    assert cells("anno9") == {("preprocessed_dataset", "anno9"), ("training_cases", "anno9")}
    assert cells("PHANTOM001", "scan") == {c for c in ORPHANS if "PHANTOM001" in c[1] or c[0] == "scan"}
    for wrong in (["nobody"], [], ["anno2"]):
        with pytest.raises(StudyError, match="names no orphan"):
            leftovers.chosen(found, wrong)


PLACE = "0123456789abcdef_0123456789ab"
GONE = "anno1_init5_foldall"


def _fill(platform):  # noqa: F811
    for key in (
        f"artifacts/models/{GONE}/manifest.json",
        f"artifacts/models/{GONE}/v/a",
        f"artifacts/models/{MODEL}/manifest.json",
    ):
        platform.objects.put(key, b"12345")
    for model in (GONE, MODEL):
        platform.instance.report_runless_asset_event(dg.AssetMaterialization("trained_model", partition=model))


def _keys(platform):  # noqa: F811
    return [item.key for item in platform.objects.list("")]


def test_orphans_go_only_with_the_line_of_the_dry_run_and_about_tells_them_till_then(platform):  # noqa: F811
    _fill(platform)
    graph = defs.resolve_asset_graph()
    ok, says, told = platform.run("about")
    assert ok, says
    begin = f"1 orphans of {told['study']['study']} in {platform.objects.name}, list "
    assert [(r.data["asset"], r.data["partition"], r.data["objects"]) for r in told["orphans"].records] == [
        ("trained_model", GONE, "2")
    ]
    ok, says, told = platform.run("remove_orphans")
    assert ok, says
    phrase = told["confirm"]
    assert phrase.startswith(begin)
    assert (told["removed"], told["objects"], told["bytes"]) == (False, 2, 10)
    for typed in ("", "all", platform.objects.name, begin, phrase.replace("1", "2", 1), f"{begin}000000"):
        ok, says, _ = platform.run("remove_orphans", dry_run=False, confirm=typed)
        assert not ok
        assert f"then type {phrase}" in says
    assert len(_keys(platform)) == 3
    ok, says, told = platform.run("remove_orphans", dry_run=False, confirm=phrase, only=["anno1"])
    assert ok, says
    assert sorted(told["keys"]) == [f"artifacts/models/{GONE}/manifest.json", f"artifacts/models/{GONE}/v/a"]
    assert _keys(platform) == [f"artifacts/models/{MODEL}/manifest.json"]
    assert len(about_orphans(platform.instance, graph)) == 0
    ok, _, told = platform.run("remove_orphans", dry_run=False, confirm="")  # nothing is left to confirm
    assert ok
    assert told["removed"] is False


@pytest.mark.parametrize(
    ("assets", "tags", "busy"),
    [
        (["trained_model"], {"dagster/partition": GONE}, True),
        (["softmax"], {"dagster/partition": f"{GONE}|PHANTOM007"}, True),  # reads it
        (
            ["trained_model"],
            {"dagster/asset_partition_range_start": GONE, "dagster/asset_partition_range_end": MODEL},
            True,
        ),
        (["trained_model"], {"dagster/partition": MODEL}, False),
        (["softmax"], {"dagster/partition": f"{MODEL}|PHANTOM007"}, False),
        (["preprocessed_dataset"], {"dagster/partition": "anno1"}, False),
        (["report", "figures"], {}, False),
    ],
)
def test_runs_that_began_when_the_study_had_an_orphan_may_use_it_and_others_not(assets, tags, busy):
    run = dg.DagsterRun(
        job_name="some_work",
        status=dg.DagsterRunStatus.STARTED,
        asset_selection=frozenset(dg.AssetKey(asset) for asset in assets),
        tags=tags,
    )
    orphan = leftovers.Orphan("trained_model", GONE, ())
    with dg.DagsterInstance.ephemeral() as instance:
        found = leftovers.at_work([orphan], [run], defs.resolve_asset_graph(), instance)
    assert found == ([f"some_work {run.run_id[:8]}"] if busy else [])


def test_orphans_stay_while_a_run_may_use_them(platform):  # noqa: F811
    _fill(platform)
    _, _, told = platform.run("remove_orphans")
    selection = frozenset([dg.AssetKey("trained_model")])
    tags = {"dagster/partition": GONE}
    started = dg.DagsterRunStatus.STARTED
    run = dg.DagsterRun(job_name="train_models", status=started, asset_selection=selection, tags=tags)
    platform.instance.add_run(run)
    ok, says, _ = platform.run("remove_orphans", dry_run=False, confirm=told["confirm"])
    assert not ok
    assert "1 runs that have not ended may use them (train_models" in says
    assert len(_keys(platform)) == 3


def test_what_comes_back_to_the_study_is_made_again():
    graph, tests = build_definitions(PHANTOM, executor="in_process").resolve_asset_graph(), list(PHANTOM.sets["test"])
    with dg.DagsterInstance.ephemeral() as instance:
        events = Events(PHANTOM, instance)
        instance.add_dynamic_partitions("test_patient", tests)
        instance.add_dynamic_partitions("patient", tests)
        events.tell("test_scan", *tests)
        assert TEST not in events.due("test_scan")
        for asset, partition in (("test_scan", TEST), ("softmax", f"{PHANTOM.models[0]}|{TEST}")):
            instance.report_runless_asset_event(leftovers.removal_event(graph, leftovers.Orphan(asset, partition, ())))
        assert leftovers.removed_partitions(instance, dg.AssetKey("test_scan")) == {TEST}
        status = Staleness(graph, instance).status(dg.AssetKey("test_scan"), TEST)
        assert status.status.value == "MISSING"
        staleness = Staleness(graph, instance)
        assert TEST in staleness.due(dg.AssetKey("test_scan"), stale=False)
        assert f"test_scan of {TEST}" in staleness.missing_parents(
            dg.AssetKey("softmax"), f"{PHANTOM.models[0]}|{TEST}"
        )


# The sweep -----------------------------------------------------------------------------------------------------------


class WithUploads(FolderObjects):
    """A bucket in a folder that has unfinished uploads."""

    uploads: list[UnfinishedUpload]

    def unfinished_uploads(self, prefix):
        return (upload for upload in list(self.uploads) if upload.key.startswith(prefix))

    def give_up(self, upload):
        self.uploads.remove(upload)


def test_the_sweep_takes_what_nobody_touched_for_a_day_and_nothing_else(tmp_path):
    store, now = WithUploads(tmp_path / "bucket"), datetime.now(UTC)
    old, young = now - timedelta(hours=25), now - timedelta(hours=23)
    store.uploads = [
        UnfinishedUpload("artifacts/models/m/x/checkpoint.pth", "1", old),
        UnfinishedUpload("artifacts/models/m/y/checkpoint.pth", "2", young),
        UnfinishedUpload("elsewhere/x", "3", old),
        UnfinishedUpload("data/P1/image.nii.gz", "4", old),  # somebody's input, which takes its time
        UnfinishedUpload("output/somebody.zip", "5", old),
    ]
    folder = tmp_path / "folder"
    folder.mkdir()
    for content in "ab":  # a replaced model
        (folder / "plans.json").write_text(content)
        directories.write_directory(store, "artifacts/models/m", folder)
    write_volume(store, _realistic(seed=1))
    write_volume(store, _realistic(seed=2))
    first_time_killed = [
        f"artifacts/preprocessing/anno1/{PLACE}/case.b2nd",
        f"output/P1/other/softmax.zarr/{PLACE}/c/0/0/0/0",
        f"reports/kept/2026-11-27T12-00-0123abcd/{PLACE}/report.html",
        f"reports/bundle/{PLACE}/curvas-bundle.zip",
    ]
    for key in (*first_time_killed, f"reports/report/{PLACE}/report.html", f"metrics/P1/scores/{PLACE}/scores.parquet"):
        store.put(key, b"12")
    peoples = [
        "artifacts/models/backup/fold_0/c.pth",
        "reports/figures/for_paper/fig1.png",
        "artifacts/models/m/notes.txt",
    ]
    for key in peoples:
        store.put(key, b"12")
    path = tmp_path / "checkpoint_latest.pth"
    for model, name in (("finished", "finished"), ("unfinished", "none")):
        for epoch in range(3):
            path.write_bytes(f"{model}{epoch}".encode())
            Checkpoints(store, f"artifacts/training/{model}", print).keep(path, epoch)
        directories.write_directory(store, f"artifacts/models/{name}", folder)
    store.put("artifacts/training/before/checkpoint_latest.pth", b"weights")
    store.put("output/somebody.txt", b"12")
    store.put("data/P1/image.nii.gz", b"12")
    tables.write_json(store, "output/P1/scan.json", {})
    before = {item.key for item in store.list("")}
    told = []
    assert [one.what for one in leftovers.find_leftovers(store, LAYOUT, told.append)] == ["upload not completed"]
    _grow_old(tmp_path / "bucket", 25)
    os.utime(tmp_path / "bucket" / "artifacts/models/finished/manifest.json")  # published after its last checkpoint
    young_place = PLACE.replace("0", "1")
    store.put(f"artifacts/models/m/{young_place}/plans.json", b"12")
    found = leftovers.find_leftovers(store, LAYOUT, told.append)
    assert told == []
    for one in found:
        leftovers.remove_leftover(store, one)
    gone = before - {item.key for item in store.list("")}
    assert set(first_time_killed) < gone
    assert {key.split("/")[0] for key in gone} == {"artifacts", "output", "reports", "metrics"}
    assert {key for key in gone if key.startswith("artifacts/training/")} == {
        key for key in before if key.startswith("artifacts/training/finished/")
    }
    assert sum(key.startswith("artifacts/models/m/") for key in gone) == 1
    assert sum(key.startswith(VOLUME) for key in gone) == 2
    assert store.head(f"artifacts/models/m/{young_place}/plans.json") is not None
    assert not gone & set(peoples)
    assert [upload.id for upload in store.uploads] == ["2", "3", "4", "5"]
    assert directories.read_file(store, "artifacts/models/m", "plans.json") == b"b"
    assert Checkpoints(store, "artifacts/training/unfinished", print).fetch(tmp_path / "back") is not None
    assert Checkpoints(store, "artifacts/training/before", print).fetch(tmp_path / "back") is not None
    assert leftovers.find_leftovers(store, LAYOUT, told.append) == []


def test_an_artefact_whose_manifest_is_damaged_is_left_alone_and_told(tmp_path):
    store = FolderObjects(tmp_path)
    store.put("artifacts/models/m/manifest.json", b"damaged")
    store.put(f"artifacts/models/m/{PLACE}/plans.json", b"{}")
    _grow_old(tmp_path, 100)
    told = []
    assert leftovers.find_leftovers(store, LAYOUT, told.append) == []
    assert "artifacts/models/m is left as it is" in told[0]


def test_the_sweep_lists_first_and_takes_young_ones_only_while_nothing_else_runs(platform):  # noqa: F811
    store = platform.objects
    store.put(f"artifacts/models/m/{PLACE}/plans.json", b"12345")
    time.sleep(2 * leftovers.CLOCK_RESOLUTION.total_seconds())
    ok, says, told = platform.run("sweep", dry_run=False)
    assert ok, says
    assert told["bytes"] == 0  # all of it is young
    ok, _, told = platform.run("sweep", young_too=True)
    assert (told["removed"], told["bytes"]) == (False, 5)
    assert len(_keys(platform)) == 1
    running = dg.DagsterRun(job_name="predict", status=dg.DagsterRunStatus.STARTED)
    platform.instance.add_run(running)
    ok, says, _ = platform.run("sweep", young_too=True, dry_run=False)
    assert not ok
    assert "1 other runs have not ended (predict" in says
    platform.instance.delete_run(running.run_id)
    ok, says, told = platform.run("sweep", young_too=True, dry_run=False)
    assert ok, says
    assert _keys(platform) == []


def test_what_comes_after_the_look_at_the_runs_is_left_even_if_young_ones_go(s3_store):
    """A run that begins while the bucket is listed sends, and then announces, what no list may call a leftover."""
    place, other = PLACE, PLACE.replace("0", "1")
    s3_store.put(f"artifacts/models/m/{place}/plans.json", b"{}")
    time.sleep(2 * leftovers.CLOCK_RESOLUTION.total_seconds())
    before = s3_store.clock()
    s3_store.put(f"artifacts/models/m/{other}/plans.json", b"{}")
    found = leftovers.find_leftovers(s3_store, LAYOUT, print, before)
    assert [one.key for one in found] == [f"artifacts/models/m/{place}"]
