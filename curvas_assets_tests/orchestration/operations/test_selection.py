"""Claims proved here.

- `all`, sets and ids in any spelling give patients in order, each once; several may stand in one entry.
- Excluded patients are in no set; an unknown id is refused with what there is.
- Models and ensembles are given by name or `all`, in the study's order; a wrong name is refused.
- A chosen model brings its annotator and every ensemble it belongs to, and no other.
- A calibrated predictor brings what its model or ensemble brings, to make what is missing and to make it again.
"""

import dagster as dg
import pytest

from curvas_assets.errors import StudyError
from curvas_assets.orchestration.operations.selection import (
    choose_annotator,
    choose_models,
    choose_patients,
    choose_predictors,
)
from curvas_assets.orchestration.partitions import Partitions
from curvas_assets.orchestration.scope import Scope, columns_of, named_columns
from curvas_assets.study import Study, load_study

STUDY = load_study("phantom")
EVERYONE = [f"PHANTOM{n:03d}" for n in range(1, 10)]


@pytest.mark.parametrize(
    ("asked", "numbers"),
    [
        (["all"], range(1, 10)),
        (["test"], [7, 8, 9]),
        (["validation", "train"], [1, 2, 3, 4, 5, 6]),
        (["9", "phantom007", "007"], [7, 9]),
        (["8, 7  PHANTOM001"], [1, 7, 8]),
        (["test", "1"], [1, 7, 8, 9]),
    ],
)
def test_patients_are_given_by_set_or_id_in_any_spelling(asked, numbers):
    assert choose_patients(STUDY, asked, EVERYONE) == [f"PHANTOM{n:03d}" for n in numbers]


def test_a_set_stands_for_its_members_that_there_are():
    assert choose_patients(STUDY, ["test"], ["PHANTOM008", "PHANTOM001"]) == ["PHANTOM008"]


def test_excluded_patients_are_in_no_set():
    study = Study.model_validate({**STUDY.model_dump(mode="json"), "exclusions": {"008": "header lost"}})
    assert choose_patients(study, ["test"], EVERYONE) == ["PHANTOM007", "PHANTOM009"]
    assert "PHANTOM008" not in choose_patients(study, ["all"], EVERYONE)


@pytest.mark.parametrize(("asked", "says"), [(["11"], "PHANTOM011"), ([], "none are named"), (["liver"], "liver")])
def test_what_cannot_be_chosen_is_refused_by_name(asked, says):
    with pytest.raises(StudyError, match=says):
        choose_patients(STUDY, asked, EVERYONE)


def test_models_and_ensembles_are_given_by_name_in_the_studys_order():
    models = [str(m) for m in STUDY.models]
    assert choose_models(STUDY, ["all"]) == models
    assert choose_models(STUDY, [models[4], models[1]]) == [models[1], models[4]]
    assert choose_predictors(STUDY, [f"ensemble_all {models[0]}"]) == [models[0], "ensemble_all"]
    assert choose_annotator(STUDY, " anno2 ") == "anno2"
    with pytest.raises(StudyError, match="ensemble_all is not among"):
        choose_models(STUDY, ["ensemble_all"])
    with pytest.raises(StudyError, match="anno9"):
        choose_annotator(STUDY, "anno9")


def test_a_scope_is_a_rectangle_and_its_shadow_on_other_assets():
    partitions, model = Partitions.of(STUDY), str(STUDY.models[3])
    scope = Scope(frozenset({"PHANTOM007"}), columns_of(STUDY, [model]))
    assert STUDY.models[3].annotator == "anno2"
    for definition, partition, included in (
        (partitions.patient_by_model, f"{model}|PHANTOM007", True),
        (partitions.patient_by_model, f"{model}|PHANTOM008", False),
        (partitions.patient_by_model, f"{STUDY.models[0]}|PHANTOM007", False),
        (partitions.patient_by_ensemble, "ensemble_anno2|PHANTOM007", True),
        (partitions.patient_by_ensemble, "ensemble_all|PHANTOM007", True),
        (partitions.patient_by_ensemble, "ensemble_anno1|PHANTOM007", False),
        (partitions.patient, "PHANTOM007", True),
        (partitions.test_patient, "PHANTOM008", False),
        (partitions.annotator, "anno2", True),
        (partitions.annotator, "anno1", False),
        (partitions.model, model, True),
        (None, None, True),
    ):
        assert scope.includes(definition, partition) is included, partition
        assert Scope().includes(definition, partition)
    assert isinstance(partitions.patient, dg.DynamicPartitionsDefinition)


def test_a_calibrated_predictor_brings_what_its_model_or_ensemble_brings():
    model, raw = str(STUDY.models[0]), STUDY.model_dump(mode="json")
    cheap = {"training": raw["training"] | {"mirroring": True}, "cheap_ensembles": {"flips": [model]}}
    flips = next(str(e) for e in Study.model_validate(raw | cheap).ensemble_ids if str(e).startswith("ensemble_flips"))
    calibrated = {"isotonic": ["ensemble_all", flips, model], "temperature": ["ensemble_all"]}
    study = Study.model_validate(raw | cheap | {"calibrated": calibrated})
    for base in ("ensemble_all", flips, model):
        for columns in (columns_of, named_columns):
            assert columns(study, [f"isotonic_{base}"]) == columns(study, [base]) >= {base}
    assert columns_of(study, ["temperature_ensemble_all", "isotonic_ensemble_all"]) == {"ensemble_all"}
    assert columns_of(study, [f"isotonic_{model}"]) > {model, "anno1", "ensemble_all", "ensemble_anno1", flips}
    scope = Scope(frozenset({"PHANTOM007"}), columns_of(study, ["isotonic_ensemble_all"]))
    assert scope.includes(Partitions.of(study).patient_by_ensemble, "ensemble_all|PHANTOM007")
