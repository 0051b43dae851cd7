"""Claims proved here, on a tiny study from scans in a real bucket to the report, with real nnU-Net on the CPU.

- Every stage of the real lineage runs; afterwards nothing is missing or stale.
- A damaged patient is refused alone; the cohort table says so, and the study goes on.
- Tables, volumes and maps stand where the layout says; `metrics.csv` has the study's columns.
- A training that was interrupted resumes from the checkpoint in the bucket.
- The report holds its sections; a remade report with equal inputs is due no more.
- A published table that people upload makes the comparison and the report due, and nothing else; it stands in the report.
- A patient without an annotator's file is taken in, and is in no dataset of that annotator; when the file comes, the scan is due.
- An annotation that is changed afterwards makes that patient's scores stale, and no prediction.
- No key of the store is in any event, log or artefact.
"""

import gzip
import io
import json
from collections.abc import Sequence
from pathlib import Path

import dagster as dg
import nibabel as nib
import pandas as pd
import pytest

from curvas_assets.cohort.phantom import write_cohort
from curvas_assets.definitions import build_definitions
from curvas_assets.orchestration.bucket import Bucket, table_digests
from curvas_assets.orchestration.partitions import Partitions
from curvas_assets.orchestration.sensors import registration
from curvas_assets.orchestration.staleness import Staleness
from curvas_assets.scoring import metrics_of
from curvas_assets.stages import write_up
from curvas_assets.stages.patients import uploaded
from curvas_assets.stages.table import STAGES
from curvas_assets.storage import directories, tables
from curvas_assets.storage.softmax import open_softmax
from curvas_assets.study import Study
from curvas_assets_tests.segmentation.conftest import tiny_study

PATIENTS = ["PHANTOM001", "PHANTOM002", "PHANTOM003", "PHANTOM007", "PHANTOM008"]
DAMAGED = "PHANTOM008"
LATE = "PHANTOM002/annotation_2.nii.gz"


class Lineage:
    """The real definitions on a bucket and an instance of their own."""

    late: Path
    """A file that comes last."""

    def __init__(self, study: Study, instance: dg.DagsterInstance):
        self.study, self.instance = study, instance
        self.definitions = build_definitions(study, executor="in_process")
        self.graph = self.definitions.resolve_asset_graph()
        self.bucket = Bucket()

    def register(self) -> None:
        there = uploaded(self.bucket.objects(), self.bucket.layout, self.study)
        tables = table_digests(self.bucket.objects(), self.bucket.layout, self.study)
        found = registration(self.study, Partitions.of(self.study), self.instance, there.digests, None, tables)
        for request in found.dynamic_partitions_requests:
            self.instance.add_dynamic_partitions(request.partitions_def_name, list(request.partition_keys))
        for event in found.asset_events:
            self.instance.report_runless_asset_event(event)

    def due(self, asset: str) -> list[str | None]:
        staleness = Staleness(self.graph, self.instance)
        key = dg.AssetKey(asset)
        return [p for p in staleness.due(key) if staleness.ready(key, p)]

    def run(self, stage: str, assets: Sequence[str] = ()) -> list[dg.ExecuteInProcessResult]:
        """What is due of a stage (or of these of its assets): a range of partitions in one run where they are all of
        them, else one by one."""
        assets = assets or STAGES[stage]
        partitions = self.due(assets[0])
        job = self.definitions.resolve_job_def(stage)
        if partitions and partitions[0] is not None and len(partitions) > 1:
            tags = [
                {
                    "dagster/asset_partition_range_start": partitions[0],
                    "dagster/asset_partition_range_end": partitions[-1],
                }
            ]
        else:
            tags = [self._tags(p) for p in partitions]
        chosen = [dg.AssetKey(asset) for asset in assets]
        return [
            job.execute_in_process(instance=self.instance, tags=t, raise_on_error=False, asset_selection=chosen)
            for t in tags
        ]

    def _tags(self, partition: str | None) -> dict[str, str]:
        return {} if partition is None else {"dagster/partition": partition}


@pytest.fixture(scope="module")
def lineage(tmp_path_factory, s3_server):
    raw = tiny_study(epochs=2).model_dump(mode="json")
    raw["sets"]["test"] = ["007", "008"]
    raw["annotators"], raw["seeds"] = raw["annotators"][:2], [7]
    raw["prediction"] |= {"mirroring": False, "tile_step": 1}  # 18 passes of a network, not 384
    raw["statistics"]["draws"] = 100
    folder = tmp_path_factory.mktemp("cohort")
    write_cohort(folder, patients=PATIENTS, shape=(30, 56, 56), spacing_mm=(8, 6, 6), annotators=2, seed=5)
    broken = folder / DAMAGED / "annotation_2.nii.gz"
    broken.write_bytes(broken.read_bytes()[:-40])
    instance = dg.DagsterInstance.local_temp(str(tmp_path_factory.mktemp("dagster")))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            **s3_server.environment(),
            "CURVAS_SCRATCH": str(tmp_path_factory.mktemp("scratch")),
        }.items():
            patch.setenv(name, value)
        lineage = Lineage(Study.model_validate(raw), instance)
        objects = lineage.bucket.objects()
        for path in sorted(folder.rglob("*.nii.gz")):
            if not path.match(LATE):
                objects.upload(f"data/{path.parent.name}/{path.name}", path)
        lineage.late = folder / LATE
        yield lineage
        objects.delete([item.key for item in objects.list("")])
    instance.dispose()


def _ok(results):
    assert all(result.success for result in results)
    checks = [check for result in results for check in result.get_asset_check_evaluations()]
    assert [c for c in checks if not c.passed and c.severity is dg.AssetCheckSeverity.ERROR] == []
    return results


def test_the_whole_lineage_from_scans_to_report(lineage, s3_server, monkeypatch):
    study, bucket = lineage.study, lineage.bucket
    objects, layout = bucket.objects(), bucket.layout
    lineage.register()

    (taken,) = lineage.run("take_in_scans")
    assert not taken.success
    failure = next(e for e in taken.all_events if e.is_step_failure).step_failure_data.error.to_string()
    assert f"{DAMAGED}: reading annotation_2.nii.gz failed: the file is truncated or damaged" in failure
    assert lineage.instance.get_materialized_partitions(dg.AssetKey("scan")) == set(PATIENTS) - {DAMAGED}

    _ok(lineage.run("select_test_scans"))
    _ok(lineage.run("describe_cohort"))
    cohort = tables.read_table(objects, layout.table("cohort")).set_index("patient")
    assert cohort.loc[DAMAGED, "status"] == "not taken in"
    assert cohort.loc["PHANTOM007", "shape"] == "30 × 56 × 56"
    assert cohort.loc["PHANTOM002", "reason"].startswith("the annotation of anno2 is missing: not annotated")

    _ok(lineage.run("select_training_cases"))
    _ok(lineage.run("prepare_datasets"))
    # An interrupted training: its checkpoint is in the bucket, the next run goes on from it.
    model = str(study.models[0])
    _interrupt_training(lineage, model)
    results = _ok(lineage.run("train_models"))
    resumed = {}
    for name in map(str, study.models):
        (record,) = lineage.instance.fetch_materializations(
            dg.AssetRecordsFilter(dg.AssetKey("trained_model"), asset_partitions=[name]), limit=2
        ).records
        resumed[name] = record.asset_materialization.metadata["resumed at epoch"].value
    assert resumed == {model: 1, str(study.models[1]): 0}
    assert results
    assert not list(objects.list(layout.unfinished_training(model)))
    record = json.loads(directories.read_file(objects, layout.model(model), "training.json"))
    assert record["trained_on"] == study.training_patients()
    record = json.loads(directories.read_file(objects, layout.model(str(study.models[1])), "training.json"))
    assert record["trained_on"] == ["PHANTOM001", "PHANTOM003"]

    for stage in (
        "predict",
        "build_ensembles",
        "fit_calibrators",
        "score_patients",
        "preview_patients",
        "write_report",
    ):
        _ok(lineage.run(stage))
    for stage in STAGES:
        assert [p for asset in STAGES[stage] for p in lineage.due(asset) if p != DAMAGED] == [], stage

    volume = open_softmax(objects, layout.softmax("PHANTOM007", "ensemble_all"))
    assert volume.shape == (4, 30, 56, 56)
    assert volume.provenance["members"] == [str(m) for m in study.models]
    for name in ("entropy", "mutual_information", "labels"):
        content = gzip.decompress(objects.get(layout.ensemble_map("PHANTOM007", "ensemble_all", name)))
        assert nib.Nifti1Image.from_bytes(content).shape == (56, 56, 30)
    scores = tables.read_table(objects, layout.table("study_scores"))
    assert set(scores["predictor"]) == set(study.predictors)
    assert set(scores["metric"]) == set(metrics_of())
    merged = pd.read_csv(io.BytesIO(objects.get(layout.merged_csv())))
    assert list(merged.columns[:2]) == ["Patient_ID", "CT"]
    assert {"DICE_panc", "ECE_mean", "NCC_mean"} <= set(merged.columns)

    page = directories.read_file(objects, layout.report(), "report.md").decode()
    for section in ("Question", "Data", "Protocol", "Results", "Statistics", "Cost", "Reproducibility"):
        assert f"## {section}" in page
    assert DAMAGED in page
    assert "No published table of the study was given" in page
    state = page.split("## State of the study")[1]
    assert f"| ensemble_all | 2 | 1 | {', '.join(map(str, study.models))} |" in state
    assert "Nothing that this report depends on was out of date" in state
    assert "| scan | 5 | 4 | 0 | 1 | 0 |  |" in state

    objects.put(layout.published_table(study.report.published_table), objects.get(layout.merged_csv()))
    lineage.register()
    due = [asset for assets in STAGES.values() for asset in assets if [p for p in lineage.due(asset) if p != DAMAGED]]
    assert due == ["published_comparison"]
    monkeypatch.setattr(write_up, "IMAGE_FORMATS", ("png",))  # all were drawn for the first report
    _ok(lineage.run("write_report", assets=("published_comparison", "figures", "report")))
    beside = tables.read_table(objects, layout.table("published_comparison"))
    dice = beside[beside["metric"] == "dice"]
    assert len(dice) == scores["family"].nunique() == 2  # one seed: an annotator's ensemble would be its model
    page = directories.read_file(objects, layout.report(), "report.md").decode()
    assert "No published table of the study was given" not in page
    pd.testing.assert_series_equal(dice["mean"], dice["published_mean"], check_names=False)
    _no_key_anywhere(lineage, objects, s3_server)
    _a_late_annotation_makes_a_scan_due(lineage, objects, layout)
    _a_changed_annotation_scores_again_and_predicts_nothing(lineage, objects, layout)


def _a_late_annotation_makes_a_scan_due(lineage, objects, layout):
    assert lineage.due("scan") == [DAMAGED]
    objects.upload(layout.data_file(LATE), lineage.late)
    lineage.register()
    assert lineage.due("scan") == ["PHANTOM002", DAMAGED]


def _a_changed_annotation_scores_again_and_predicts_nothing(lineage, objects, layout):
    key = layout.patient_file("PHANTOM007", "annotation_2.nii.gz")
    image = nib.Nifti1Image.from_bytes(gzip.decompress(objects.get(key)))
    labels = image.get_fdata().astype("uint8")
    labels[labels == 3] = 2
    objects.put(key, gzip.compress(nib.Nifti1Image(labels, image.affine).to_bytes()))
    for stage in ("take_in_scans", "select_test_scans"):
        job = lineage.definitions.resolve_job_def(stage)
        assert job.execute_in_process(instance=lineage.instance, tags={"dagster/partition": "PHANTOM007"}).success
    due = {asset: lineage.due(asset) for stage in STAGES.values() for asset in stage}
    assert {asset: found for asset, found in due.items() if DAMAGED not in found and found} == {
        "cohort": [None],
        "scores": ["PHANTOM007"],
        "viewer_preview": ["PHANTOM007"],  # shows the annotations
    }


def _interrupt_training(lineage, model):
    """Train one epoch of a model as the asset does, and stop: what is in the bucket is what a killed run leaves."""
    from tempfile import TemporaryDirectory

    from curvas_assets.segmentation import train_model
    from curvas_assets.stages.train import Checkpoints
    from curvas_assets.study import ModelId

    objects, layout = lineage.bucket.objects(), lineage.bucket.layout

    class Killed(BaseException):
        pass

    def keep(path, epoch):
        Checkpoints(objects, layout.unfinished_training(model), print).keep(path, epoch)
        raise Killed

    with TemporaryDirectory() as folder:
        dataset = directories.read_directory(objects, layout.dataset("anno1"), Path(folder, "dataset"))
        with pytest.raises(Killed):
            train_model(lineage.study, ModelId.parse(model), dataset, Path(folder, "model"), on_checkpoint=keep)


def _no_key_anywhere(lineage, objects, server):
    secret = server.environment()["AWS_SECRET_ACCESS_KEY"].encode()
    for item in objects.list(""):
        assert secret not in objects.get(item.key), item.key
    for run in lineage.instance.get_runs():
        assert secret not in str(run).encode()
        assert secret not in json.dumps(run.run_config).encode()
        assert all(secret not in str(entry).encode() for entry in lineage.instance.all_logs(run.run_id))
    # Step logs and the databases, as they stand on disk.
    files = [path for path in Path(lineage.instance.root_directory).rglob("*") if path.is_file()]
    assert files
    assert all(secret not in path.read_bytes() for path in files)
