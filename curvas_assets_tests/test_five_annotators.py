"""Claims proved here, on phantoms with a pancreatic tumour, five vessels and five annotators, with real nnU-Net on the CPU.

- The study `phantom-pdacvi` goes from scans in a bucket to the report, with networks that are smaller still.
- Every annotator has a dataset and a model; the ensemble is the mean of all five; six organs are scored.
- The validation patient is predicted and scored, and is not in the study's scores.
- Five annotators' scores stand beside each other; they disagree on the tumour and agree on the vessels.
"""

import dagster as dg
import numpy as np
import pytest

from curvas_assets.cohort.phantom import write_cohort
from curvas_assets.local.demo import cohort_of
from curvas_assets.stages import write_up
from curvas_assets.stages.table import STAGES
from curvas_assets.storage import directories, tables
from curvas_assets.storage.softmax import open_softmax
from curvas_assets.study import Study, load_study
from curvas_assets_tests.test_study import Lineage, _ok

SHAPE, SPACING_MM = (30, 56, 56), (8.0, 6.0, 6.0)
TEST, FITTING = "TUMOUR008", "TUMOUR006"


def small_study() -> Study:
    """The built-in study with one test patient, and networks that learn next to nothing."""
    raw = load_study("phantom-pdacvi").model_dump(mode="json")
    raw["sets"] = {"train": ["001", "002"], "validation": [FITTING], "test": [TEST]}
    raw["plans"] |= {"spacing_mm": [8, 6, 6], "patch_size": [16, 24, 24], "features_per_stage": [4, 8, 16]}
    raw["training"] |= {"epochs": 1, "iterations_per_epoch": 4, "validation_iterations_per_epoch": 1}
    raw["prediction"] |= {"mirroring": False, "tile_step": 1}  # 18 passes of a network, not 384
    raw["statistics"]["draws"] = 100
    return Study.model_validate(raw)


@pytest.fixture(scope="module")
def lineage(tmp_path_factory, s3_server):
    study, folder = small_study(), tmp_path_factory.mktemp("cohort")
    patients = [*study.training_patients(), FITTING, TEST]
    write_cohort(folder, patients=patients, **cohort_of(study) | {"shape": SHAPE, "spacing_mm": SPACING_MM})
    instance = dg.DagsterInstance.local_temp(str(tmp_path_factory.mktemp("dagster")))
    with pytest.MonkeyPatch.context() as patch:
        variables = {**s3_server.environment(), "CURVAS_SCRATCH": str(tmp_path_factory.mktemp("scratch"))}
        for name, value in variables.items():
            patch.setenv(name, value)
        patch.setattr(write_up, "IMAGE_FORMATS", ("png",))
        lineage = Lineage(study, instance)
        objects = lineage.bucket.objects()
        for path in sorted(folder.rglob("*.nii.gz")):
            objects.upload(f"data/{path.parent.name}/{path.name}", path)
        lineage.register()
        yield lineage
        objects.delete([item.key for item in objects.list("")])
    instance.dispose()


def test_five_annotators_go_from_scans_to_the_report(lineage):
    study, objects, layout = lineage.study, lineage.bucket.objects(), lineage.bucket.layout
    for stage in STAGES:
        _ok(lineage.run(stage))
    assert {asset: due for assets in STAGES.values() for asset in assets if (due := lineage.due(asset))} == {}

    assert len(study.models) == 5
    members = [open_softmax(objects, layout.softmax(TEST, str(model))) for model in study.models]
    mean = open_softmax(objects, layout.softmax(TEST, "ensemble_all"))
    assert mean.shape == (7, *SHAPE)
    assert mean.provenance["members"] == [str(model) for model in study.models]
    expected = np.mean([one.slab(10, 20) for one in members], axis=0)
    np.testing.assert_allclose(mean.slab(10, 20), expected, atol=2 * 6 * 2**-16)
    assert max(np.abs(one.slab(10, 20) - expected).max() for one in members) > 0.01  # five models, not one

    scores = tables.read_table(objects, layout.table("study_scores"))
    assert set(scores["patient"]) == {TEST}
    assert set(scores["predictor"]) == set(study.predictors)
    assert set(study.organs) <= set(scores["organ"])
    by_annotator = scores[scores["metric"] == "dice_annotator"]
    assert len(set(by_annotator["annotator"]) - {"mean"}) == 5
    agreement = scores[scores["metric"] == "agreement"].groupby("organ")["value"].mean()
    assert (agreement.drop("pdac") == 1).all()
    assert 0.2 < agreement["pdac"] < 0.95
    assert directories.read_file(objects, layout.scores(FITTING), "scores.parquet")
    page = directories.read_file(objects, layout.report(), "report.md").decode()
    for organ in study.organs:
        assert organ in page
    assert TEST in page
