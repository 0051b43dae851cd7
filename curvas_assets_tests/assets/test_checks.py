"""Claims proved here.

- A warning names its partition and lets it pass; a defect fails that partition alone, and its check says so as an error.
- Intake: odd voxels, extents and intensities are told; those of a CT are not.
- Training: a loss that is no number is refused; a Dice below the study's floor, and a training cut short, are told.
- Softmax: classes that do not sum to 1, and NaN, are refused; implausible volumes are told.
- Report: a missing section or picture is told.
- A real damaged patient in a batch: the others are stored, and the checks of the batch name the one.
"""

import dagster as dg
import numpy as np
import pandas as pd
import pytest

from curvas_assets.assets.cohort import implausible_intensities, unusual_geometry
from curvas_assets.assets.models import below_floor, ended_early, require_finite
from curvas_assets.assets.predictions import implausible_volumes, not_a_distribution
from curvas_assets.assets.report import SECTIONS, missing_parts
from curvas_assets.cohort.phantom import write_cohort
from curvas_assets.definitions import build_definitions
from curvas_assets.errors import PatientError, SegmentationError
from curvas_assets.orchestration.bucket import Bucket
from curvas_assets.orchestration.checks import Check, Checks
from curvas_assets.report import Report, build_report
from curvas_assets.segmentation import TrainingOutcome
from curvas_assets.study import Training, load_study
from curvas_assets_tests.report.studies import make_inputs, make_study

CT = {"spacing_mm": [1, 0.8, 0.8], "extent_mm": [400, 410, 410], "hu_range": [-1024, 1800]}


def test_a_check_names_partitions_and_keeps_its_runs_apart():
    declared = Check("odd", "Nothing is odd.")
    checks = Checks(declared)
    checks["odd"].look("P1")
    checks["odd"].look("P2", ["green", "square"])
    result = checks["odd"].result(dg.AssetKey("scan"))
    assert not result.passed
    assert result.severity is dg.AssetCheckSeverity.WARN
    assert result.description == "P2: green, square"
    assert result.metadata["looked at"].value == 2
    assert result.metadata["partitions"].value == "P2"
    assert Checks(declared)["odd"].result(dg.AssetKey("scan")).passed


def test_a_defect_is_an_error_for_its_partition():
    checks = Checks(Check("whole", "Whole.", dg.AssetCheckSeverity.ERROR))
    error = checks["whole"].refuse("P1", PatientError("reading", "P1", "half a file", "Upload it again."))
    assert isinstance(error, PatientError)
    result = checks["whole"].result(dg.AssetKey("scan"))
    assert (result.passed, result.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert "half a file" in result.description


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


def test_probabilities_that_do_not_sum_to_one_are_refused():
    slab = np.full((4, 2, 3, 3), 0.25, np.float32)
    assert not_a_distribution(slab, "m of P", 0) is None
    assert not_a_distribution(slab.astype(np.float16), "m of P", 0) is None
    slab[0, 1, 2, 2] = 0.3
    defect = str(not_a_distribution(slab, "m of P", 16))
    assert defect.startswith(
        "m of P: predicting failed: classes of a voxel sum to 1 … 1.05 between the slices 16 and 17"
    )
    slab[0, 1, 2, 2] = np.nan
    assert "NaN or infinity in 1 voxels between the slices 0 and 1" in str(not_a_distribution(slab, "m of P", 0))
    assert isinstance(not_a_distribution(np.full((4, 1, 3, 3), -3.0, np.float32), "m of P", 0), SegmentationError)


def test_implausible_volumes_are_told():
    limits = load_study("curvas").checks.volume_ml
    volumes = {"background": 30_000.0, "pancreas": 80.0, "kidney": 350.0, "liver": 1600.0}
    assert implausible_volumes(volumes, limits) == []
    assert implausible_volumes(volumes | {"pancreas": 900.0}, limits) == ["pancreas of 900.0 ml (plausible: 15 … 250)"]
    assert len(implausible_volumes({"background": 10.0, "liver": 90.0}, {})) == 1


def test_a_report_without_a_section_or_picture_is_told():
    report = build_report(make_inputs(make_study()), image_formats=("png",))
    assert missing_parts(report) == []
    cut = Report(
        report.html.replace('id="statistics"', ""),
        report.markdown,
        {k: v for k, v in report.attachments.items() if not k.endswith(f"{report.figures[0]}.png")},
        report.figures,
    )
    assert missing_parts(cut) == ["section statistics", f"figure {report.figures[0]}"]
    assert len(SECTIONS) == 10


def test_a_damaged_patient_fails_alone_and_the_checks_name_it(bucket_environment, tmp_path, monkeypatch):
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
    assert made == {"PHANTOM007", "PHANTOM009"}
    results = {e.check_name: e for e in done.get_asset_check_evaluations()}
    assert set(results) == {"files_are_sound", "geometry_is_usual", "labels_are_complete", "intensities_are_plausible"}
    assert (results["files_are_sound"].passed, results["files_are_sound"].severity) == (
        False,
        dg.AssetCheckSeverity.ERROR,
    )
    assert results["files_are_sound"].metadata["partitions"].value == "PHANTOM008"
    assert results["intensities_are_plausible"].passed
    assert results["intensities_are_plausible"].metadata["looked at"].value == 2
