"""Claims proved here: what the cost of a cell grows with, and what it takes where nothing was measured.

- By hand, for each asset, with every channel that is read; a patient who was not taken in counts as the median of those who were, else as full size.
- Under cross-validation a patient has the members of the fold that held it out, and no others.
- Every asset that a study makes has a prior with an origin, on a GPU and without.
- Priors follow the study's settings: epochs, iterations, patch, network, seeds.
- Disk: the raw files that a dataset is made from, the models that a prediction fetches, the maps of a patient's ensembles.
"""

import pytest

from curvas_assets.stages import sizes, table
from curvas_assets.stages.sizes import FULL_SIZE, StudySizes, batch_voxels, prior, voxels_in
from curvas_assets.statistics.forecast import Sizes
from curvas_assets.study import Study, load_study

PHANTOM = load_study("phantom")
TRAINING = PHANTOM.training_patients()
MODEL = str(PHANTOM.models[0])


def changed(**parts) -> Study:
    return Study.model_validate({**PHANTOM.model_dump(mode="json"), **parts})


def test_what_costs_grow_with():
    known = StudySizes(PHANTOM, {"PHANTOM007": 100, "PHANTOM008": 300, "PHANTOM001": 50}, {})
    assert known.of(table.SCAN, "PHANTOM008").work == 4 * 300
    assert known.of(table.SCAN, "PHANTOM009").work == 4 * 100  # the median
    assert known.of(table.PREPROCESSED_DATASET, "anno1").work == 50 + 4 * 100
    assert known.of(table.TRAINED_MODEL, MODEL).work == 7 * (20 + 3) * 2 * 24 * 40 * 40
    assert known.of(table.TRAINED_MODEL, MODEL, epochs=1).work == 23 * 2 * 24 * 40 * 40
    cell = known.of(table.ENSEMBLE_SOFTMAX, "ensemble_all|PHANTOM008")
    assert (cell.work, cell.read, cell.stored) == (9 * 300, 9 * 300, 300)
    assert known.of(table.SCORES, "PHANTOM007").work == 100 * (9 + 4)
    assert known.of(table.SOFTMAX, f"{MODEL}|PHANTOM008").work == 300
    assert StudySizes(PHANTOM, {}, {}).voxels_of("PHANTOM007") == FULL_SIZE


def test_every_channel_is_a_file_that_is_read():
    channels = [{"name": name, "file": f"{name}.nii.gz"} for name in ("T1", "T2", "FLAIR")]
    raw = {name: of for name, of in PHANTOM.model_dump(mode="json").items() if name != "image"}
    evaluation = {**raw["evaluation"], "region": "image"}
    study = Study.model_validate({**raw, "synthetic": False, "channels": channels, "evaluation": evaluation})
    known = StudySizes(study, {"PHANTOM008": 300}, {})
    assert known.of(table.SCAN, "PHANTOM008").work == (3 + 3) * 300
    assert known.file_bytes("PHANTOM008") == pytest.approx((3 + 3) * 300 * sizes.FILE_BYTES)
    dataset = known.of(table.PREPROCESSED_DATASET, "anno1")
    assert (dataset.work, dataset.stored) == (3 * 5 * 300, 3 * 5 * 300)
    assert known.of(table.TRAINED_MODEL, MODEL).read == 3 * 5 * 300
    assert known.of(table.SOFTMAX, f"{MODEL}|PHANTOM008") == Sizes(300, 3 * 300, 300)


def test_under_cross_validation_only_the_models_that_did_not_see_a_patient_count():
    study = changed(
        sets={"train": [*PHANTOM.sets["train"]]}, folds=[0, 1, 2, 3, 4], groups={}, in_distribution_group=None
    )
    assert study.cross_validated
    found = StudySizes(study, dict.fromkeys(TRAINING, 10), {})
    assert found.of(table.ENSEMBLE_SOFTMAX, f"ensemble_all|{TRAINING[0]}").work == 9 * 10
    assert found.of(table.SCORES, TRAINING[0]).work == 10 * (9 + 4)


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("row", table.ASSETS, ids=str)
def test_every_asset_has_a_prior(row, gpu):
    found = prior(PHANTOM, row, gpu=gpu)
    assert found.seconds > 0
    assert found.origin


def test_priors_follow_the_studys_settings():
    twice = changed(training={**PHANTOM.training.model_dump(), "epochs": 14})
    one, two = (StudySizes(study, {}, {}).of(table.TRAINED_MODEL, MODEL).work for study in (PHANTOM, twice))
    assert two == 2 * one
    wide = changed(plans={**PHANTOM.plans.model_dump(), "features_per_stage": [16, 32, 64, 128]})
    assert (
        prior(wide, table.TRAINED_MODEL, gpu=False).seconds
        == 4 * prior(PHANTOM, table.TRAINED_MODEL, gpu=False).seconds
    )
    assert batch_voxels(load_study("curvas")) == sizes.FULL_BATCH
    alone = changed(seeds=[1])
    assert prior(alone, table.SOFTMAX, gpu=True).seconds > prior(PHANTOM, table.SOFTMAX, gpu=True).seconds


def test_disk_that_runs_keep():
    known = StudySizes(PHANTOM, {"PHANTOM007": 100, "PHANTOM008": 300}, dict.fromkeys(TRAINING, 1e6))
    cells = [f"{model}|PHANTOM007" for model in PHANTOM.models[:3]]
    assert known.scratch_bytes(table.PREPROCESSED_DATASET, ["anno1"], 0, 0) == 7 * 5e6
    assert known.scratch_bytes(table.TRAINED_MODEL, [MODEL], 5.0, 2.0) == 9
    assert known.scratch_bytes(table.SOFTMAX, cells, 5.0, 2.0) == 3 * 2 + 2 * known.file_bytes("PHANTOM007")
    of_an_ensemble = 300 * (6 + 2 * sizes.VOLUME_BYTES)
    found = known.scratch_bytes(table.ENSEMBLE_SOFTMAX, ["ensemble_all|PHANTOM008"], 0, 0)
    assert found == pytest.approx(4 * of_an_ensemble)
    assert known.scratch_bytes(table.COHORT, [""], 0, 0) == known.scratch_bytes(table.SCAN, [], 0, 0) == 0


CHEAP = changed(
    training={**PHANTOM.training.model_dump(), "mirroring": True, "snapshots": 3},
    prediction={"mirroring": True},
    cheap_ensembles={"flips": [MODEL], "snapshots": [MODEL, str(PHANTOM.models[1])]},
)


def test_variants_of_models_count_with_their_own_work_weights_and_volumes():
    known = StudySizes(CHEAP, {"PHANTOM007": 100}, {"PHANTOM007": 10.0})
    flip, snapshot = f"{MODEL}_flip3|PHANTOM007", f"{MODEL}_snapshot1|PHANTOM007"
    assert known.of(table.VARIANT_SOFTMAX, flip) == sizes.Sizes(100, 100, 100)
    assert known.of(table.VARIANT_SOFTMAX, snapshot) == sizes.Sizes(800, 100, 100)  # with nnU-Net's eight
    assert known.of(table.ENSEMBLE_SOFTMAX, "ensemble_flips-anno1-112233|PHANTOM007").work == 8 * 100
    assert known.of(table.ENSEMBLE_SOFTMAX, "ensemble_snapshots-anno1-112233|PHANTOM007").work == 4 * 100
    assert known.of(table.SCORES, "PHANTOM007").work == 100 * (9 + 4 + 3 + 8 + 3 + 3)
    stored = prior(CHEAP, table.TRAINED_MODEL, gpu=True).bytes_stored
    assert stored == 4 * prior(PHANTOM, table.TRAINED_MODEL, gpu=True).bytes_stored
    of_cpu = [prior(CHEAP, row, gpu=False).seconds for row in (table.SOFTMAX, table.VARIANT_SOFTMAX)]
    assert of_cpu[0] > 7 * of_cpu[1]
    whole = [f"{ensemble}|PHANTOM007" for ensemble in CHEAP.ensemble_ids]
    of_an_ensemble = 100 * (6 + 2 * sizes.VOLUME_BYTES)
    found = known.scratch_bytes(table.ENSEMBLE_SOFTMAX, whole, 0, 0)
    assert found == pytest.approx(4 * of_an_ensemble)  # of models; those of variants come one by one
    # A stored model is its weights and three snapshots: models and flips fetch the former alone.
    assert known.scratch_bytes(table.SOFTMAX, [f"{MODEL}|PHANTOM007"], 0, 400) == 100 + 2 * 10
    assert known.scratch_bytes(table.VARIANT_SOFTMAX, [flip, flip.replace("3|", "4|")], 0, 400) == 100 + 2 * 10
    assert known.scratch_bytes(table.VARIANT_SOFTMAX, [flip, snapshot], 0, 400) == 400 + 2 * 10


def test_shapes_are_read_as_metadata_show_them():
    assert voxels_in("48 × 96 × 96") == 48 * 96 * 96
    assert voxels_in("4 × 48 × 96 × 96") is voxels_in(None) is voxels_in("?") is None
