"""Claims proved here.

- The cost of every kind of predictor is that of a hand-worked example: models, ensembles, flips, folds, calibrated.
- An artefact that several members share counts once in a predictor, and whole in each predictor that needs it.
- Of an artefact made several times the newest counts; a training that went on from a checkpoint counts all its epochs.
- Hours of GPUs and of CPUs stand apart. What has no record of work is counted, and its hours are not made up.
- Under cross-validation a model is charged with the patients of its own fold alone.
- Validation patients are charged to calibrated predictors, and to no other.
- Patients whom nobody uploaded are charged to nobody, whatever set names them; one who was scored here is, and what was
  predicted elsewhere stays unrecorded.
"""

import math

import pandas as pd
import pytest

from curvas_assets.stages import needs
from curvas_assets.stages.needs import predictor_cost, without_record
from curvas_assets.stages.table import Asset
from curvas_assets.study import Study

TRAINING, PREDICTION, MEAN = 36_000.0, 360.0, 36.0
"""Seconds: ten hours, a tenth of one, a hundredth of one."""


def study_of(**changes) -> Study:
    """Two annotators, one seed; a test set of two patients, and a validation patient."""
    return Study.model_validate(
        {
            "name": "costs",
            "title": "Costs",
            "annotators": [{"name": f"anno{a}", "file": f"annotation_{a}.nii.gz"} for a in (1, 2)],
            "organs": {"liver": 1},
            "patients": {"prefix": "P", "digits": 1},
            "sets": {"train": ["5", "6", "7"], "validation": ["4"], "test": ["1", "2"]},
            "seeds": [3],
            **changes,
        }
    )


def row(asset: str, partition: str, seconds: float, device: str = "cuda 0", **more) -> dict[str, object]:
    return {"asset": asset, "partition": partition, "seconds": seconds, "device": device} | {
        "epochs": None,
        "resumed": None,
        **more,
    }


def made(study: Study) -> list[dict[str, object]]:
    """Everything that a study has, each training ten hours, each prediction a tenth of one, each mean a hundredth."""
    patients = [*study.scored_patients(), *study.fitting_patients]
    rows = [row("trained_model", str(model), TRAINING, epochs=50, resumed=0) for model in study.models]
    for patient in patients:
        rows += [row("softmax", f"{model}|{patient}", PREDICTION) for model in study.models_of(patient)]
        rows += [row("variants", f"{model}|{patient}", PREDICTION / 4) for model in study.variants_of(patient)]
        rows += [row("ensemble_softmax", f"{one}|{patient}", MEAN, "cpu") for one in study.ensembles_of(patient)]
    return rows


def costs(study: Study, rows: list[dict[str, object]]) -> pd.DataFrame:
    return predictor_cost(study, pd.DataFrame(rows)).set_index("predictor")


@pytest.fixture
def with_variants(monkeypatch):
    """An asset of variants and one of fits, as other parts of the platform have them."""
    variants = Asset("variants", "softmax", "g", (), "prediction", "inference", str, axis="patient_by_variant")
    fits = Asset("fits", "record", "g", (), "table", "evaluation", str, fits=True)
    monkeypatch.setattr(needs, "PREDICTED", (*needs.PREDICTED, variants))
    monkeypatch.setattr(needs, "FITTED", (fits,))
    monkeypatch.setattr(needs, "NEEDED", (*needs.NEEDED, variants, fits))


def test_each_predictor_costs_what_it_needs_by_hand(with_variants):
    study = study_of(
        cheap_ensembles={"flips": ["anno1_init3_foldall"]},
        calibrated={"temperature": ["ensemble_all"], "isotonic": ["anno1_init3_foldall"]},
    )
    rows = made(study)
    rows += [
        row("fits", "temperature_ensemble_all", 72.0, "cpu"),
        row("fits", "isotonic_anno1_init3_foldall", 36.0, "cpu"),
    ]
    table = costs(study, rows)
    hours = table[["trainings", "predictions", "training_gpu_hours", "inference_gpu_hours", "combining_hours"]]
    expected = {
        # A training, and two test patients.
        "anno1_init3_foldall": (1, 2, 10.0, 0.2, 0.0),
        # Both trainings, 2 × 2 predictions, two means.
        "ensemble_all": (2, 4, 20.0, 0.4, 0.02),
        # One training, 8 flips × 2 patients at a quarter of a prediction, two means; the model's own predictions are not needed.
        "ensemble_flips-anno1-3": (1, 16, 10.0, 0.4, 0.02),
        # As the ensemble, and of the validation patient two more predictions and a mean; the fit took 72 s.
        "temperature_ensemble_all": (2, 6, 20.0, 0.6, 0.03 + 0.02),
        "isotonic_anno1_init3_foldall": (1, 3, 10.0, 0.3, 0.01),
    }
    for predictor, wanted in expected.items():
        assert tuple(hours.loc[predictor]) == pytest.approx(wanted), predictor
    assert list(table.index) == study.predictors
    assert table["patients"].unique().tolist() == [2]
    assert table[["training_cpu_hours", "inference_cpu_hours", "unrecorded", "estimated"]].to_numpy().sum() == 0
    assert without_record(table.reset_index()) == []


def test_what_is_fitted_at_once_counts_whole_in_each(with_variants):
    study = study_of(calibrated={"temperature": ["ensemble_all"], "isotonic": ["ensemble_all"]})
    table = costs(study, [*made(study), row("fits", "", 360.0, "cpu")])
    calibrated = table.loc[["temperature_ensemble_all", "isotonic_ensemble_all"]]
    assert calibrated["combining_hours"].tolist() == pytest.approx([0.13, 0.13])
    assert calibrated["unrecorded"].tolist() == [0, 0]


def test_an_ensemble_of_folds_takes_all_its_trainings():
    study = study_of(folds=[0, 1], cheap_ensembles={"folds": True})
    table = costs(study, made(study))
    assert table.loc["ensemble_folds-anno1-3", ["trainings", "predictions"]].tolist() == [2, 4]
    assert table.loc["ensemble_folds-anno1-3", "training_gpu_hours"] == pytest.approx(20)
    assert table.loc["ensemble_all", "training_gpu_hours"] == pytest.approx(40)


def test_the_newest_time_counts_and_a_resumed_training_counts_whole():
    study = study_of()
    rows = made(study)
    model = str(study.models[0])
    again = [row("trained_model", model, 3600.0, epochs=50, resumed=40), row("softmax", f"{model}|P1", 720.0)]
    table = costs(study, [*again, *rows])  # the newest rows come first
    # Ten of fifty epochs took an hour, so that all take five.
    assert table.loc[model, "training_gpu_hours"] == pytest.approx(5)
    assert table.loc[model, "inference_gpu_hours"] == pytest.approx(0.3)
    assert table["estimated"].tolist() == [1, 0, 1]
    assert table.loc["ensemble_all", "training_gpu_hours"] == pytest.approx(15)


def test_devices_stand_apart_and_what_is_not_recorded_is_counted():
    study = study_of()
    first, second = map(str, study.models)
    rows = [
        one | {"device": "cpu" if first in str(one["partition"]) else one["device"]}
        for one in made(study)
        if one["partition"] not in (second, f"{second}|P2")
    ]
    table = costs(study, rows)
    assert table.loc[first, ["training_cpu_hours", "inference_cpu_hours"]].tolist() == pytest.approx([10, 0.2])
    assert table.loc[first, ["training_gpu_hours", "inference_gpu_hours"]].tolist() == [0, 0]
    assert table["unrecorded"].tolist() == [0, 2, 2]
    assert table.loc["ensemble_all", "inference_gpu_hours"] == pytest.approx(0.1)
    assert [one.split(":")[0] for one in without_record(table.reset_index())] == [second, "ensemble_all"]


def test_a_model_is_charged_with_the_patients_of_its_fold():
    study = study_of(sets={"train": ["1", "2", "3", "4", "5"]}, folds=[0, 1])
    table = costs(study, made(study))
    held_out = {fold: study.held_out(fold) for fold in (0, 1)}
    for model in study.models:
        assert table.loc[str(model), "predictions"] == len(held_out[model.fold])
    assert table.loc["ensemble_all", "trainings"] == 4
    assert table.loc["ensemble_all", "predictions"] == 2 * sum(map(len, held_out.values()))
    assert table["unrecorded"].sum() == 0


def test_a_named_patient_of_whom_there_is_nothing_changes_no_cost(with_variants):
    there = {"calibrated": {"temperature": ["ensemble_all"]}}
    fits = row("fits", "", 72.0, "cpu")
    full = study_of(**there)
    expected = costs(full, [*made(full), fits])
    assert (expected["unrecorded"] == 0).all()
    absent = study_of(**there, sets={"train": ["5", "6", "7"], "validation": ["4", "8"], "test": ["1", "2", "3"]})
    pd.testing.assert_frame_equal(costs(absent, [*made(full), fits]), expected)


def test_who_was_predicted_elsewhere_and_scored_here_stays_unrecorded():
    study = study_of()
    kept = [one for one in made(study) if not str(one["partition"]).endswith("|P2")]
    first, second = map(str, study.models)
    assert (costs(study, kept)["unrecorded"] == 0).all()
    table = costs(study, [*kept, row("scores", "P2", 9.0, "cpu")])
    assert table.loc[[first, second, "ensemble_all"], "unrecorded"].tolist() == [1, 1, 3]
    assert table["patients"].unique().tolist() == [2]


def test_without_any_record_nothing_is_made_up():
    study = study_of(cheap_ensembles={"flips": ["all"]}, calibrated={"temperature": ["ensemble_all"]})
    table = costs(study, [row("scan", "P1", 1.0)])
    assert table.filter(like="hours").to_numpy().sum() == 0
    assert (table["unrecorded"] > 0).all()
    assert not any(math.isnan(value) for value in table.filter(like="hours").to_numpy().ravel())
