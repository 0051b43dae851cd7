"""Claims proved here.

- Every asset that is made has a check, and a check of a partitioned asset is partitioned: each partition has its own verdict,
  with the materialisation that it is about. A verdict holds no number (Dagster would plot it) and says a patient's name once.
- A warning lets its partition pass; a defect fails that partition alone, and its check says so as an error.
- Intake: odd voxels, extents and intensities are told; those of a CT are not.
- Training: a loss that is no number is refused; a Dice below the study's floor, and a training cut short, are told.
- Softmax: implausible volumes are told.
- Tables: who was not taken in or not scored, what was not tested, ranked, recorded or readable is told; what is whole is not.
- Report: a missing section or picture is told, and a figure that lacks a format.
- A real damaged patient in a batch: the others are stored, and its verdict is its own; what was not looked at has none.
"""

from dataclasses import replace

import dagster as dg
import numpy as np
import pandas as pd
import pytest

from curvas_assets.cohort import implausible_intensities
from curvas_assets.cohort.phantom import write_cohort
from curvas_assets.definitions import build_definitions
from curvas_assets.errors import PatientError, SegmentationError
from curvas_assets.orchestration.bucket import Bucket
from curvas_assets.orchestration.cells import told
from curvas_assets.orchestration.checks import evaluation, result
from curvas_assets.orchestration.ledger import materialisation_ledger, not_recorded
from curvas_assets.report import ReportInputs, WrittenReport, build_report
from curvas_assets.segmentation import TrainingOutcome
from curvas_assets.stages.checks import Check, StepChecks
from curvas_assets.stages.cohort import not_taken_in, unusual_geometry
from curvas_assets.stages.compare import not_ranked, not_tested, unusable
from curvas_assets.stages.predict import implausible_volumes
from curvas_assets.stages.score import not_scored
from curvas_assets.stages.train import below_floor, ended_early, require_finite
from curvas_assets.stages.write_up import missing_parts, undrawn
from curvas_assets.statistics import compare_all_families, rank_among_teams
from curvas_assets.study import Training, load_study
from curvas_assets_tests.report.studies import make_scores, make_study

CT = {"spacing_mm": [1, 0.8, 0.8], "extent_mm": [400, 410, 410], "hu_range": [-1024, 1800]}


def test_every_asset_that_is_made_has_a_check_with_its_partitions():
    graph = build_definitions(load_study("phantom")).resolve_asset_graph()
    checked = {key.asset_key for key in graph.asset_check_keys}
    assert checked == set(graph.materializable_asset_keys)
    for key in graph.asset_check_keys:
        assert graph.get(key).partitions_def == graph.get(key.asset_key).partitions_def, key
        assert graph.get(key).description, key


def test_a_verdict_is_of_one_partition_and_a_step_starts_anew():
    declared = Check("odd", "Nothing is odd.")
    checks = StepChecks(declared)
    checks["odd"].look("P1")
    checks["odd"].look("P2", ["green", "square"])
    one, two = (evaluation(checks["odd"], dg.AssetKey("scan"), p, None) for p in ("P1", "P2"))
    assert (one.passed, one.partition, one.description, one.metadata) == (True, "P1", None, {})
    assert (two.passed, two.severity, two.description) == (False, dg.AssetCheckSeverity.WARN, "green; square")
    assert two.metadata["found"].value == "- green\n- square"
    assert StepChecks(declared)["odd"].found == {}
    many = result(declared, "cohort", [f"P{i} is missing" for i in range(9)])
    assert many.description.endswith("P4 is missing; and 4 more")
    assert "P8 is missing" in many.metadata["found"].value


def test_a_defect_is_an_error_for_its_partition_and_says_its_name_once():
    checks = StepChecks(Check("whole", "Whole.", of_defects=True))
    error = checks["whole"].refuse("P1", PatientError("reading", "P1", "half a file", "Upload it again."))
    assert isinstance(error, PatientError)
    verdict = evaluation(checks["whole"], dg.AssetKey("scan"), "P1", None)
    assert (verdict.passed, verdict.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert verdict.description == "reading failed: half a file. Upload it again."


@pytest.mark.parametrize(
    ("key", "error", "line"),
    [
        ("P1", PatientError("reading", "P1", "half", "Mend."), "P1: reading failed: half. Mend."),
        ("m|P1", PatientError("reading", "P1", "half", "Mend."), "m|P1: P1: reading failed: half. Mend."),
        ("m|P1", SegmentationError("predicting", "m of P1", "nan", "Mend."), "m of P1: predicting failed: nan. Mend."),
        ("P1", ValueError("boom"), "P1: boom"),
    ],
)
def test_a_failed_partition_is_named_once(key, error, line):
    assert told(key, error, str(error)) == line


@pytest.mark.parametrize(
    ("facts", "odd"),
    [
        ({}, []),
        ({"spacing_mm": [12, 0.8, 0.8]}, ["voxels of 12 mm"]),
        ({"spacing_mm": [1, 0.01, 0.8]}, ["voxels of 0.01 mm"]),
        ({"extent_mm": [30, 410, 410]}, ["only 30 mm along an axis"]),
    ],
)
def test_odd_geometry_is_told(facts, odd):
    assert unusual_geometry(CT | facts) == odd


@pytest.mark.parametrize(
    ("low", "high", "odd"),
    [(-1024, 3071, 0), (0, 255, 1), (-1000, -20, 1), (-1e6, 40, 1), (0, 1e6, 2)],
)
def test_intensities_that_are_no_hounsfield_units_are_told(low, high, odd):
    assert len(implausible_intensities({"hu_range": [low, high]})) == odd


def test_a_loss_that_is_no_number_is_refused():
    curve = pd.DataFrame({"epoch": [0, 1], "train_loss": [0.5, np.nan], "val_loss": [0.5, 0.4]})
    require_finite(curve.head(1), "anno1_init1_foldall")
    with pytest.raises(SegmentationError, match="the loss of epoch 1"):
        require_finite(curve, "anno1_init1_foldall")


def test_a_worthless_model_and_a_training_cut_short_are_told():
    def outcome(epochs, best):
        return TrainingOutcome(epochs, best, 0.9, "interrupted", None, "", "cpu", 1.0, pd.DataFrame())

    assert below_floor(0.6, 0.5) == []
    assert "0.400, the floor (checks.dice_floor) is 0.5" in below_floor(0.4, 0.5)[0]
    assert below_floor(float("nan"), 0.0)
    training = Training(epochs=100, patience=20)
    assert ended_early(outcome(100, 99), training) == []
    assert ended_early(outcome(50, 29), training) == []
    assert ended_early(outcome(50, 40), training) == ["50 of 100 epochs: interrupted"]
    wanted = training.model_copy(update={"snapshots": 3})
    assert ended_early(outcome(100, 99), wanted) == ["0 of 3 snapshots, from 100 epochs"]
    assert ended_early(replace(outcome(100, 99), snapshots=(60, 75, 90)), wanted) == []


def test_implausible_volumes_are_told():
    limits = load_study("curvas").checks.volume_ml
    volumes = {"background": 30_000.0, "pancreas": 80.0, "kidney": 350.0, "liver": 1600.0}
    assert implausible_volumes(volumes, limits) == []
    assert implausible_volumes(volumes | {"pancreas": 900.0}, limits) == ["pancreas of 900.0 ml (plausible: 15 … 250)"]
    assert len(implausible_volumes({"background": 10.0, "liver": 90.0}, {})) == 1


def test_a_report_without_a_section_or_picture_is_told():
    study = make_study(annotators=2, seeds=1, patients=2)
    scores = make_scores(study)
    report = build_report(ReportInputs(study, scores[scores["metric"] == "ece"]), image_formats=("png",))
    assert len(report.figures) >= 2
    assert missing_parts(report) == []
    cut = WrittenReport(
        report.html.replace('id="statistics"', ""),
        report.markdown,
        {k: v for k, v in report.attachments.items() if not k.endswith(f"{report.figures[0]}.png")},
        report.figures,
        report.references,
    )
    assert missing_parts(cut) == ["section statistics", f"figure {report.figures[0]}"]
    lacking = {f"{report.figures[0]}.{f} was not drawn" for f in ("png", "svg", "pdf")}
    assert lacking <= set(undrawn(cut))


def test_what_tables_lack_is_told_and_what_is_whole_is_not():
    cohort = pd.DataFrame(
        [("P1", "taken in", ""), ("P2", "excluded", "consent"), ("P3", "missing", "no folder of this patient")],
        columns=["patient", "status", "reason"],
    )
    assert not_taken_in(cohort) == ["P3: missing, no folder of this patient"]

    study = make_study(patients=2)
    scores = make_scores(study)
    assert not_scored(study, scores) == []
    gone = (scores["predictor"] == "ensemble_all") & (scores["patient"] == "UKCHLL002")
    assert not_scored(study, scores[~gone]) == ["UKCHLL002 is not scored by ensemble_all"]
    assert not_scored(study, scores[scores["patient"] == "UKCHLL001"]) == ["UKCHLL002 is not scored"]

    tests = compare_all_families(scores, study.statistics)
    families = set(scores["family"])
    settings = study.statistics.model_copy(update={"primary": {"accuracy": "dice", "calibration": "ece"}})
    assert not_tested(tests, families, settings) == []
    scores.loc[scores["metric"] == "ece", "value"] = np.nan
    undefined = not_tested(compare_all_families(scores, settings), families, settings)
    assert len(undefined) == 3
    assert "ece (calibration): no p for general vs individual" in undefined[1]
    without = not_tested(tests[tests["metric"] != "ece"], families, settings)
    assert without == ["ece (calibration) was not scored"]
    assert not_tested(tests[tests["second"] != "annotator"], {"general", "individual"}, settings) == []


def test_what_has_no_rank_cost_or_readable_value_is_told():
    scores = make_scores(make_study(patients=2))
    scores = scores[scores["metric"] != "ece_published"]
    challenges = {"dice_published": "dice", "crps_published": "crps", "confidence": "confidence", "ece": "ece"}
    known = scores[scores["metric"].isin(challenges)]
    assert not_ranked(rank_among_teams(known, region="body")) == []
    assert not_ranked(rank_among_teams(known[known["metric"] != "confidence"], region="body")) == [
        "confidence: no metric of this column of the challenge's was scored"
    ]
    odd = known.assign(unit=known["unit"].where(known["metric"] != "crps_published", "voxel"))
    assert "its unit is 'voxel'" in not_ranked(rank_among_teams(odd, region="body"))[0]
    nothing = known.assign(value=known["value"].where(known["family"] != "general"))
    assert "dice_published of general: no value is defined" in not_ranked(rank_among_teams(nothing, region="body"))

    with dg.DagsterInstance.ephemeral() as instance:
        for partition, used in (("m1", {"seconds": 5.0}), ("m2", {}), ("m3", {})):
            event = dg.AssetMaterialization("trained_model", partition=partition, metadata=used)
            instance.report_runless_asset_event(event)
        (line,) = not_recorded(instance, materialisation_ledger(instance))
    assert line.startswith("trained_model: no work is recorded for m2 and 1 more")

    assert unusable(pd.DataFrame({"reason": []})) == []
    assert unusable(pd.DataFrame({"reason": ["no number", "no number"]})) == ["no number (2 ×)"]


def test_a_damaged_patient_fails_alone_with_a_verdict_of_its_own(bucket_environment, tmp_path, monkeypatch):
    for name, value in bucket_environment.items():
        monkeypatch.setenv(name, value)
    patients = ["PHANTOM007", "PHANTOM008", "PHANTOM009"]
    write_cohort(tmp_path, patients=patients, shape=(12, 40, 40), spacing_mm=(10, 8, 8), seed=3)
    broken = tmp_path / "PHANTOM008/annotation_2.nii.gz"
    broken.write_bytes(broken.read_bytes()[:-40])
    objects = Bucket().objects()
    for path in tmp_path.rglob("*.nii.gz"):
        objects.upload(f"data/{path.parent.name}/{path.name}", path)
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("patient", patients)
        job = build_definitions(load_study("phantom"), executor="in_process").resolve_job_def("take_in_scans")
        tags = {
            "dagster/asset_partition_range_start": patients[0],
            "dagster/asset_partition_range_end": patients[-1],
        }
        done = job.execute_in_process(instance=instance, tags=tags, raise_on_error=False)
        made = instance.get_materialized_partitions(dg.AssetKey("scan"))
        tables = {
            name: {
                info.partition_key: info.latest_execution_status.value
                for info in instance.event_log_storage.get_asset_check_partition_info(
                    [dg.AssetCheckKey(dg.AssetKey("scan"), name)]
                )
            }
            for name in ("files_are_sound", "intensities_are_plausible")
        }
    assert made == {"PHANTOM007", "PHANTOM009"}
    verdicts = {(e.check_name, e.partition): e for e in done.get_asset_check_evaluations()}
    assert len(verdicts) == len(done.get_asset_check_evaluations()) == 4 * 2 + 1
    failed = verdicts["files_are_sound", "PHANTOM008"]
    assert (failed.passed, failed.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert failed.description.startswith("reading annotation_2.nii.gz failed")
    assert failed.target_materialization_data is None
    passed = verdicts["intensities_are_plausible", "PHANTOM009"]
    assert passed.passed
    assert passed.target_materialization_data.run_id == done.run_id
    # As the UI's page of a check reads them; what was not looked at stays planned, and shows as not executed.
    sound = dict.fromkeys(patients, "SUCCEEDED")
    assert tables["files_are_sound"] == sound | {"PHANTOM008": "FAILED"}
    assert tables["intensities_are_plausible"] == sound | {"PHANTOM008": "PLANNED"}
