"""Claims proved here, with the real definitions, a real bucket and Dagster's own records.

- The launchpad of each operation holds its settings and nothing around them, each with a description.
- Uploaded patients are registered; a damaged one fails the run by name, after the others are safe.
- An uploaded dataset and model are partitions that are fresh, with their origin; a changed dataset makes the model stale.
- Predictions of nnU-Net become cells of softmax; one that is not of its patient's scan is refused, and the others stay.
- The classes and the reader that nnU-Net put beside predictions count; an uploaded model's voxel order is told.
- `about` tells study, versions, store, counts and what is still to come; `forecast` tells the latter for what one would make.
- Emptying is a dry run by default and then removes nothing; with the name typed it removes one prefix, keeps a record,
  and the assets that stood there are missing again; while another run is going on it removes nothing.
- No removal looks at prefixes that are another study's, and no download, bundle or export takes what stands there for this
  study's.
- A download of what is not there fails, saying so; so does sharing without a report, or to nowhere.
"""

import json
import shutil

import dagster as dg
import nibabel as nib
import numpy as np
import pytest
from dagster._core.definitions.reconstruct import ReconstructableRepository

from curvas_assets.cohort.phantom import write_cohort
from curvas_assets.definitions import build_definitions
from curvas_assets.orchestration.bucket import Bucket
from curvas_assets.orchestration.restarts import GIVEN_UP
from curvas_assets.orchestration.staleness import Staleness
from curvas_assets.stages.prepare import order_of_training_scans
from curvas_assets.storage import tables
from curvas_assets.storage.layout import Layout
from curvas_assets.storage.objects import FolderObjects
from curvas_assets.storage.softmax import open_softmax
from curvas_assets_tests.segmentation.conftest import ANNOTATOR, dataset, scans, tiny_study  # noqa: F401 - fixtures
from curvas_assets_tests.segmentation.test_adoption import stock  # noqa: F401 - a fixture

OPERATIONS = {
    "upload_patients",
    "upload_model",
    "upload_preprocessing",
    "upload_predictions",
    "download",
    "share",
    "export_submission",
    "make_missing",
    "redo",
    "refresh_scores",
    "about",
    "forecast",
    "empty_data",
    "empty_artifacts",
    "remove_orphans",
    "sweep",
}
MODEL = f"{ANNOTATOR}_init112233_foldall"
defs = build_definitions(tiny_study(), executor="in_process")
REPOSITORY = ReconstructableRepository.for_module("curvas_assets_tests.orchestration.operations.test_jobs", "defs")


class Platform:
    def __init__(self, instance, scratch):
        self.instance, self.objects, self.scratch = instance, Bucket().objects(), scratch

    def run(self, job, **settings):
        """Launch a job: whether it succeeded, its failure's words, and the metadata of its output."""
        result = dg.execute_job(
            REPOSITORY.get_reconstructable_job(job),
            instance=self.instance,
            run_config=settings or None,
            raise_on_error=False,
        )
        said = [e.step_failure_data.user_failure_data for e in result.all_events if e.is_step_failure]
        outputs = [e.step_output_data.metadata for e in result.all_events if e.is_successful_output]
        values = {name: entry.value for found in outputs for name, entry in found.items()}
        return result.success, "".join(f.description or "" for f in said if f), values

    def status(self, asset, partition):
        return Staleness(defs.resolve_asset_graph(), self.instance).status(dg.AssetKey(asset), partition).status.value

    def due(self, asset):
        return Staleness(defs.resolve_asset_graph(), self.instance).due(dg.AssetKey(asset))

    def partitions(self, name):
        return sorted(self.instance.get_dynamic_partitions(name))


@pytest.fixture
def platform(bucket_environment, tmp_path, monkeypatch):
    for name, value in bucket_environment.items():
        monkeypatch.setenv(name, value)
    with dg.DagsterInstance.ephemeral() as instance:
        yield Platform(instance, tmp_path)


def test_each_launchpad_holds_settings_that_are_described():
    jobs = {job.name: job for job in defs.resolve_all_job_defs()}
    assert set(jobs) >= OPERATIONS
    for name in OPERATIONS - {"about"}:
        fields = jobs[name].run_config_schema.config_type.fields
        assert "ops" not in fields
        assert fields, name
        assert [field for field, value in fields.items() if not value.description] == [], name
    assert jobs["empty_data"].run_config_schema.config_type.fields["dry_run"].default_value is True


def test_uploaded_patients_are_registered_and_a_damaged_one_is_named(platform, tmp_path):
    write_cohort(
        tmp_path / "cohort", patients=["PHANTOM001", "PHANTOM007"], shape=(12, 40, 40), spacing_mm=(10, 8, 8), seed=3
    )
    broken = tmp_path / "cohort/PHANTOM001/image.nii.gz"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:-20])
    ok, says, _ = platform.run("upload_patients", folder=str(tmp_path / "cohort"))
    assert not ok
    assert "1 patients were refused, 1 uploaded" in says
    assert "PHANTOM001: reading image.nii.gz" in says
    assert platform.partitions("patient") == platform.partitions("test_patient") == ["PHANTOM007"]
    broken.write_bytes(whole)
    ok, _, told = platform.run("upload_patients", folder=str(tmp_path / "cohort"), patients=["all"])
    assert ok
    assert (told["uploaded"], told["unchanged"], told["registered"]) == ("PHANTOM001", "PHANTOM007", "PHANTOM001")
    assert "PHANTOM007: test: predicted and scored" in told["what the study makes of them"]
    assert platform.partitions("patient") == ["PHANTOM001", "PHANTOM007"]
    ok, _, told = platform.run("download", what="dataset", folder=str(tmp_path / "down"), patients=["train"])
    assert ok
    assert told["fetched"] == 1
    assert (tmp_path / "down/dataset/PHANTOM001/image.nii.gz").read_bytes() == whole


def test_what_was_made_elsewhere_becomes_a_fresh_partition(platform, dataset, stock):  # noqa: F811 - fixtures
    ok, says, _ = platform.run("upload_preprocessing", folder=str(dataset), annotator=ANNOTATOR, origin="by hand")
    assert ok, says
    ok, says, _ = platform.run("upload_model", folder=str(stock), model=MODEL, origin="trained in Lyon")
    assert ok, says
    assert platform.status("trained_model", MODEL) == platform.status("preprocessed_dataset", ANNOTATOR) == "FRESH"
    (record,) = platform.instance.fetch_materializations(dg.AssetKey("trained_model"), limit=5).records
    metadata = record.asset_materialization.metadata
    assert metadata["origin"].value == "trained in Lyon"
    assert metadata["trainer"].value == "nnUNetTrainer"
    assert metadata["voxel order"].value == "LPS"
    assert record.partition_key == MODEL
    ok, says, _ = platform.run("download", what="models", folder=str(platform.scratch / "down"), models=[MODEL])
    assert ok, says
    assert (platform.scratch / "down/models" / MODEL / "fold_all/checkpoint_best.pth").is_file()

    replanned = shutil.copytree(dataset, platform.scratch / "replanned")
    plans = json.loads((replanned / "nnUNetPlans.json").read_text())
    (replanned / "nnUNetPlans.json").write_text(json.dumps({**plans, "note": "replanned"}))
    assert platform.run("upload_preprocessing", folder=str(replanned), annotator=ANNOTATOR)[0]
    assert platform.status("trained_model", MODEL) == "STALE"
    assert MODEL not in platform.due("trained_model")  # told, and left alone
    ok, says, _ = platform.run("upload_model", folder=str(stock), model="anno1_init5_foldall")
    assert not ok
    assert "anno1_init5_foldall is not among" in says


def _prediction(folder, patient, shape, affine):
    """What nnU-Net writes for a patient: an organ in one corner, and its label map."""
    logits = np.zeros((4, *shape), np.float32)
    logits[1, :3, :4, :5] = 5
    softmax = np.exp(logits) / np.exp(logits).sum(axis=0)
    np.savez_compressed(folder / f"{patient}.npz", probabilities=softmax)
    labels = softmax.argmax(axis=0).astype(np.uint8)
    nib.save(nib.Nifti1Image(labels.transpose(2, 1, 0), affine), folder / f"{patient}.nii.gz")


def test_predictions_made_elsewhere_become_cells_and_a_stranger_is_refused(platform, tmp_path):
    affine = np.diag([2.0, 3.0, 5.0, 1.0])
    for patient in ("PHANTOM007", "PHANTOM008"):
        platform.instance.add_dynamic_partitions("test_patient", [patient])
        record = {"patient": patient, "shape": [6, 8, 10], "affine": affine.tolist()}
        tables.write_json(platform.objects, f"output/{patient}/test_scan.json", record)
    _prediction(tmp_path, "PHANTOM007", (6, 8, 10), affine)
    _prediction(tmp_path, "8", (5, 8, 10), affine)
    _prediction(tmp_path, "PHANTOM009", (6, 8, 10), affine)
    ok, says, _ = platform.run("upload_predictions", folder=str(tmp_path), model=MODEL, origin="a colleague")
    assert not ok
    assert "2 predictions were refused, 1 stored" in says
    assert "PHANTOM009: importing a prediction failed: its scan has not been taken in" in says
    assert platform.instance.get_materialized_partitions(dg.AssetKey("softmax")) == {f"{MODEL}|PHANTOM007"}
    assert MODEL not in platform.due("trained_model")  # it is elsewhere: nobody trains it for this
    volume = open_softmax(platform.objects, f"output/PHANTOM007/{MODEL}/softmax.zarr")
    assert volume.shape == (4, 6, 8, 10)
    assert volume.provenance["origin"] == "a colleague"
    ok, says, told = platform.run("upload_predictions", folder=str(tmp_path), model=MODEL, patients=["7"])
    assert ok, says
    assert told["stored"] == f"{MODEL}|PHANTOM007"


def test_what_nnunet_put_beside_predictions_counts(platform, tmp_path):
    affine = np.diag([-2.0, -3.0, 5.0, 1.0])
    platform.instance.add_dynamic_partitions("test_patient", ["PHANTOM007"])
    record = {"patient": "PHANTOM007", "shape": [6, 8, 10], "affine": affine.tolist()}
    tables.write_json(platform.objects, "output/PHANTOM007/test_scan.json", record)
    _prediction(tmp_path, "PHANTOM007", (6, 8, 10), affine)
    softmax = np.load(tmp_path / "PHANTOM007.npz")["probabilities"]
    np.savez_compressed(
        tmp_path / "PHANTOM007.npz", probabilities=softmax[:, :, ::-1, ::-1]
    )  # RAS, as that reader has it
    regions = {"background": 0, "abdomen": [1, 2, 3], "kidney": 2, "liver": 3}
    for name, content, says in (
        ("plans.json", {"image_reader_writer": "Tiff3DIO"}, "read the scan by 'Tiff3DIO'"),
        ("plans.json", ["no plans"], "plans.json is not nnU-Net's"),
        ("plans.json", {"image_reader_writer": "SimpleITKIO"}, "is the argmax of its probabilities in only 0 of"),
        ("dataset.json", {"labels": regions}, "regions, whose probabilities overlap"),
    ):
        (tmp_path / name).write_text(json.dumps(content))
        ok, found, _ = platform.run("upload_predictions", folder=str(tmp_path), model=MODEL)
        assert not ok
        assert "PHANTOM007.npz: importing a" in found
        assert says in found
    (tmp_path / "plans.json").write_text(json.dumps({"image_reader_writer": "NibabelIOWithReorient"}))
    (tmp_path / "dataset.json").unlink()
    ok, found, _ = platform.run("upload_predictions", folder=str(tmp_path), model=MODEL)
    assert ok, found
    volume = open_softmax(platform.objects, f"output/PHANTOM007/{MODEL}/softmax.zarr")
    np.testing.assert_array_equal(volume.labels(0, 6), softmax.argmax(axis=0))


def test_the_order_of_the_training_scans_is_known_if_it_is_one(tmp_path):
    objects, layout, study = FolderObjects(tmp_path), Layout(), tiny_study()
    assert order_of_training_scans(objects, layout, study) is None
    for patient, axes in (("PHANTOM001", [2, 3, 5]), ("PHANTOM002", [1, 1, 1]), ("PHANTOM007", [-1, -1, 1])):
        tables.write_json(objects, layout.scan(patient), {"affine": np.diag([*map(float, axes), 1.0]).tolist()})
    assert order_of_training_scans(objects, layout, study) == "RAS"
    tables.write_json(objects, layout.scan("PHANTOM003"), {"affine": np.diag([-1.0, -1.0, 1.0, 1.0]).tolist()})
    assert order_of_training_scans(objects, layout, study) is None


def test_about_tells_study_versions_store_and_counts(platform):
    platform.objects.put("data/PHANTOM001/image.nii.gz", b"12345")
    platform.instance.add_dynamic_partitions("patient", ["PHANTOM001"])
    ok, _, told = platform.run("about")
    assert ok
    assert told["study"]["registered, set train"] == 1
    assert told["study"]["models"] == 9
    assert told["versions"]["dagster"] == dg.__version__
    stored, made = ([dict(record.data) for record in told[table].records] for table in ("store", "assets"))
    assert {"prefix": f"{platform.objects.name}/data", "objects": "1", "bytes": "5"} in stored
    (row,) = (one for one in made if one["asset"] == "trained_model")
    assert (row["partitions"], row["made"], row["missing"], row["elsewhere"]) == ("9", "0", "9", "0")
    assert next(iter(told)) == "still to come"
    assert (
        "for 29 partitions" in told["still to come"]
    )  # a scan, 3 datasets and their cases, 9 models, 13 tables with the report


def test_a_forecast_is_asked_for_before_a_launch(platform):
    platform.objects.put("data/PHANTOM001/image.nii.gz", b"12345")
    platform.objects.put("data/PHANTOM007/image.nii.gz", b"12345")
    platform.instance.add_dynamic_partitions("patient", ["PHANTOM001"])
    ok, _, told = platform.run("forecast")
    assert ok
    assert "In the bucket but not registered yet: 1 (PHANTOM007)." in told["patients not counted"]
    assert "In the study but not in the bucket: " in told["patients not counted"]
    rows = {row["stage"]: row for row in (dict(record.data) for record in told["forecast"].records)}
    assert (rows["trained_model"]["to come"], rows["scan"]["to come"]) == ("9", "1")
    assert rows["trained_model"]["basis"].startswith("prior: ")
    ok, _, told = platform.run("forecast", stages=["train_models"], models=[MODEL])
    assert ok
    rows = {row["stage"]: row for row in (dict(record.data) for record in told["forecast"].records)}
    assert {name: row["to come"] for name, row in rows.items()} == {"trained_model": "1", "total": "1"}
    ok, says, _ = platform.run("forecast", stages=["training"])
    assert not ok
    assert "training is no stage" in says


def _fill(platform):
    for key in ("data/P/f", f"artifacts/models/{MODEL}/manifest.json", "output/P/scan.json"):
        platform.objects.put(key, b"12345")
    for asset, partition in (("trained_model", MODEL), ("scan", "PHANTOM001")):
        platform.instance.report_runless_asset_event(dg.AssetMaterialization(asset, partition=partition))
    platform.instance.add_dynamic_partitions("patient", ["PHANTOM001"])


def test_emptying_is_a_dry_run_unless_the_name_is_typed(platform):
    _fill(platform)
    name = f"{platform.objects.name}/artifacts"
    ok, _, told = platform.run("empty_artifacts", confirm=name)
    assert ok
    assert (told["removed"], told["objects"], told["bytes"], told["prefix"]) == (False, 1, 5, name)
    ok, says, _ = platform.run("empty_artifacts", dry_run=False, confirm="artifacts")
    assert not ok
    assert f"Type {name} exactly" in says
    assert len(list(platform.objects.list(""))) == 3
    assert platform.status("trained_model", MODEL) != "MISSING"


def test_emptying_removes_one_prefix_and_dagster_forgets_what_stood_there(platform):
    _fill(platform)
    ok, says, told = platform.run("empty_artifacts", dry_run=False, confirm=f"{platform.objects.name}/artifacts")
    assert ok, says
    assert told["keys"] == {f"artifacts/models/{MODEL}/manifest.json": 5}
    assert [item.key for item in platform.objects.list("")] == ["data/P/f", "output/P/scan.json"]
    assert platform.status("trained_model", MODEL) == "MISSING"
    assert platform.status("scan", "PHANTOM001") != "MISSING"
    ok, _, told = platform.run("empty_data", dry_run=False, confirm=f"{platform.objects.name}/data")
    assert ok
    assert [item.key for item in platform.objects.list("")] == ["output/P/scan.json"]


def test_nothing_is_removed_while_another_run_goes_on(platform):
    _fill(platform)
    platform.instance.add_run(dg.DagsterRun(job_name="predict", status=dg.DagsterRunStatus.STARTED))
    ok, says, _ = platform.run("empty_data", dry_run=False, confirm=f"{platform.objects.name}/data")
    assert not ok
    assert "1 other runs have not ended (predict" in says
    assert len(list(platform.objects.list("data/"))) == 1


@pytest.mark.parametrize("job", ["empty_data", "empty_artifacts", "sweep"])
def test_nothing_is_removed_while_a_killed_run_is_about_to_be_launched_again(platform, job):
    _fill(platform)
    run = platform.instance.add_run(dg.DagsterRun(job_name="predict", status=dg.DagsterRunStatus.STARTED))
    platform.instance.report_run_failed(run)
    platform.instance.report_engine_event(GIVEN_UP, run)
    prefix = {"empty_data": "data", "empty_artifacts": "artifacts"}.get(job)
    settings = {"confirm": f"{platform.objects.name}/{prefix}"} if prefix else {"young_too": True}
    ok, says, _ = platform.run(job, dry_run=False, **settings)
    assert not ok
    assert f"1 other runs have not ended (predict {run.run_id[:8]}, killed, soon launched again)" in says
    assert len(list(platform.objects.list(""))) == 3
    platform.instance.delete_run(run.run_id)
    ok, says, _ = platform.run(job, dry_run=False, **settings)
    assert ok, says


@pytest.mark.parametrize(
    ("job", "settings"),
    [
        ("sweep", {}),
        ("remove_orphans", {}),
        ("empty_artifacts", {"what": "output"}),
        ("download", {"what": "models", "folder": "down"}),
        ("export_submission", {"predictor": MODEL, "folder": "down"}),
        ("share", {"folder": "down"}),
    ],
)
def test_nothing_of_another_studys_is_removed_or_taken_for_this_ones(platform, tmp_path, monkeypatch, job, settings):
    monkeypatch.chdir(tmp_path)
    tables.write_json(platform.objects, "output/study.json", {"study": "another"})
    done, said, _ = platform.run(job, **settings)
    assert not done
    assert "output: opening the store failed: what stands there was made by the study 'another'" in said
    assert not (tmp_path / "down").exists()


def test_a_download_of_what_is_not_there_says_so(platform, tmp_path):
    ok, says, _ = platform.run("download", what="scores", folder=str(tmp_path / "down"))
    assert not ok
    assert "nothing of scores is in the bucket" in says


def test_sharing_without_a_report_says_what_to_run(platform, tmp_path):
    ok, said, _ = platform.run("share")
    assert not ok
    assert "Set folder or into_bucket" in said
    ok, said, _ = platform.run("share", folder=str(tmp_path))
    assert not ok
    assert "Run write_report first" in said
    (tmp_path / "curvas-bundle.zip").touch()
    ok, said, _ = platform.run("share", folder=str(tmp_path))
    assert not ok
    assert "it is there already" in said
