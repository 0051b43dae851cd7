"""Claims proved here.

- Every name of a predictor is parsed back to what it was made of, and no name belongs to two kinds of predictor.
- One line of the study file each makes fused labels, flips, snapshots, folds and calibrated predictors; each has its kind,
  its family, its members and what it is made from.
- What cannot be is refused with its field: flips of a training that was not mirrored, snapshots that nobody keeps, folds
  without folds, a fit without validation patients, a comparison with itself.
- A study that says nothing of all this keeps the fingerprints that it had.
- Anything is fitted on validation patients alone, and never on a patient whom a model learned from or who is scored.
- Under cross-validation, a patient has only the ensembles and variants of the models that did not see it, and no ensemble of
  several folds is calibrated: it would be fitted to other members than it has in the scores.
- No default ensemble has the members of another, and with fused labels none is a single model again.
"""

import hashlib
import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from curvas_assets.errors import StudyError
from curvas_assets.predictors import CALIBRATIONS, FUSIONS, CalibratedId, EnsembleId, ModelId, predictor_of
from curvas_assets.study import Study, load_study
from curvas_assets_tests.test_study_configuration import _raw

MODEL = "anno1_init112233_foldall"
keys = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9-]{0,12}", fullmatch=True)
numbers = st.integers(0, 2**32 - 1)
models = st.builds(
    ModelId,
    keys,
    numbers,
    st.sampled_from(["all", 0, 1, 2, 3, 4]),
    st.sampled_from(["", "flip0", "flip7", "snapshot1", "snapshot20"]),
)
ensembles = st.builds(EnsembleId, keys)
calibrated = st.builds(CalibratedId, st.sampled_from(CALIBRATIONS), st.one_of(models, ensembles))


def study(**changes):
    return Study.model_validate(_raw(**changes))


@given(st.one_of(models, ensembles, calibrated))
def test_a_name_is_parsed_back_to_what_it_was_made_of(predictor):
    assert predictor_of(str(predictor)) == predictor


@given(keys, numbers)
def test_an_annotator_called_like_a_calibration_is_an_annotator(name, seed):
    for called in (*CALIBRATIONS, name):
        model = ModelId(called, seed, "all")
        assert predictor_of(str(model)) == model


@pytest.mark.parametrize(
    "name",
    [
        "isotonic_temperature_ensemble_all",
        "isotonic_",
        "isotonic",
        "ensemble_",
        f"{MODEL}_flip",
        f"{MODEL}_flip100",
        "x",
    ],
)
def test_what_is_no_predictor_is_refused(name):
    with pytest.raises(StudyError):
        predictor_of(name)


def test_one_line_trains_on_fused_annotators_beside_them_or_alone():
    beside = study(training_labels=["anno1", "anno2", "anno3", *FUSIONS])
    assert len(beside.models) == 7 * 3
    assert beside.family("majority_init112233_foldall") == "fused"
    assert beside.family("ensemble_soft") == "fused ensemble"
    assert {m.annotator for m in beside.members("ensemble_all")} == {"anno1", "anno2", "anno3"}
    alone = study(training_labels=["staple"])
    assert {m.annotator for m in alone.models} == {"staple"}
    assert alone.families == ("fused ensemble", "fused")
    assert alone.annotator_names == ["anno1", "anno2", "anno3"]


@pytest.mark.parametrize(
    ("labels", "seeds", "ensembles"),
    [
        (["majority"], [1, 2, 3], ["ensemble_majority"]),
        (["majority"], [1], []),
        (["anno1", "majority"], [1, 2], ["ensemble_anno1", "ensemble_majority"]),
        (["anno1", "majority"], [1], []),
        (["anno1", "anno2", "soft"], [1], ["ensemble_all"]),
        (
            ["anno1", "anno2", "soft"],
            [1, 2],
            ["ensemble_anno1", "ensemble_anno2", "ensemble_soft", "ensemble_all"],
        ),
        ([], [1], ["ensemble_all"]),
        ([], [1, 2], ["ensemble_anno1", "ensemble_anno2", "ensemble_anno3", "ensemble_all"]),
    ],
)
def test_no_default_ensemble_of_training_labels_is_another_or_a_model_under_another_name(labels, seeds, ensembles):
    one = study(training_labels=labels, seeds=seeds)
    assert [str(e) for e in one.ensemble_ids] == ensembles
    members = [frozenset(one.members(e)) for e in one.ensemble_ids]
    assert len(set(members)) == len(members)
    assert all(len(of_one) > 1 for of_one in members)
    if ensembles:  # what defaults give may be written out
        labels_of = {e.name: list(dict.fromkeys(m.annotator for m in one.members(e))) for e in one.ensemble_ids}
        labels_of = {name: of for name, of in labels_of.items() if name != "all" or len(of) == 3}
        study(training_labels=labels, seeds=seeds, ensembles=labels_of)


def test_cheap_ensembles_have_variants_or_folds_as_members_and_no_row_of_their_own_for_variants():
    cheap = study(
        training__mirroring=True,
        training__snapshots=2,
        cheap_ensembles={"flips": [MODEL], "snapshots": ["all"], "folds": False},
    )
    flips = cheap.members("ensemble_flips-anno1-112233")
    assert [m.variant for m in flips] == [f"flip{n}" for n in range(8)]
    assert {str(m.trained) for m in flips} == {MODEL}
    assert [m.variant for m in cheap.members("ensemble_snapshots-anno2-445566")] == ["", "snapshot1", "snapshot2"]
    assert len(cheap.variants) == 8 + 9 * 2
    assert not [p for p in cheap.predictors if cheap.predicted_by(p) == "variant"]
    assert cheap.made_from("ensemble_flips-anno1-112233") == MODEL
    assert cheap.family("ensemble_snapshots-anno2-445566") == "snapshots"
    assert cheap.made_from("ensemble_all") is None


def test_no_two_cheap_ensembles_share_a_name():
    raw = load_study("phantom").model_dump(mode="json")
    raw |= {"annotators": [{"name": "a", "file": "a.nii.gz"}, {"name": "a-1", "file": "b.nii.gz"}], "seeds": [0, 1]}
    raw |= {"folds": ["all", 0], "cheap_ensembles": {"flips": ["all"]}}
    raw["training"]["mirroring"] = True
    named = Study.model_validate(raw)
    flips = [name for name in named.predictors if named.family(name) == "flips"]
    assert len(flips) == len(named.models) == 8
    assert len(set(map(str, named.variants))) == len(named.variants) == 64


@pytest.mark.parametrize("name", ["ensemble", "isotonic", "Temperature"])
def test_no_annotator_is_called_like_the_beginning_of_another_name(name):
    raw = load_study("phantom").model_dump(mode="json")
    raw["annotators"][0]["name"] = name
    with pytest.raises(ValidationError, match="not one of"):
        Study.model_validate(raw)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("training_labels: majority", r"training_labels = 'majority': allowed is a list, such as \[majority\]"),
        ("calibrated: {isotonic: ensemble_all}", r"calibrated.isotonic = 'ensemble_all': allowed is a list"),
    ],
)
def test_a_name_in_place_of_a_list_is_told_as_yaml_has_it(tmp_path, line, says):
    path = tmp_path / "study.yaml"
    raw = load_study("phantom").model_dump(mode="json")
    del raw["training_labels"], raw["calibrated"]
    path.write_text(yaml.safe_dump(raw) + line + "\n")
    with pytest.raises(StudyError, match=says):
        load_study(path)


def test_the_folds_of_a_seed_are_an_ensemble_where_there_is_a_test_set():
    folded = study(folds=[0, 1, 2], cheap_ensembles={"folds": True})
    assert [m.fold for m in folded.members("ensemble_folds-anno1-112233")] == [0, 1, 2]
    assert folded.family("ensemble_folds-anno1-112233") == "folds"


def test_what_is_calibrated_stands_after_what_it_is_made_from():
    fitted = study(calibrated={"temperature": ["ensemble_all", MODEL], "isotonic": ["ensemble_all"]})
    assert fitted.predictors[-3:] == ["temperature_ensemble_all", f"temperature_{MODEL}", "isotonic_ensemble_all"]
    assert fitted.predicted_by("isotonic_ensemble_all") == "calibrated"
    assert fitted.made_from(f"temperature_{MODEL}") == MODEL
    assert fitted.fitted_predictors == ["ensemble_all", MODEL]
    assert study(conformal={"of": ["ensemble_anno1"]}).fitted_predictors == []


def test_fits_rest_on_validation_patients_alone():
    one = load_study("phantom")
    assert one.fitting_patients == ["PHANTOM006"]
    assert one.is_predicted("PHANTOM006")
    assert not one.is_scored("PHANTOM006")
    assert one.predicted_patients() == ["PHANTOM006", *one.scored_patients()]
    assert not set(one.fitting_patients) & {*one.training_patients(), *one.scored_patients()}
    learned = study(training__sets=["train", "validation"])
    assert learned.fitting_patients == []
    assert not learned.is_predicted("PHANTOM006")
    assert study(exclusions={"PHANTOM006": "moved"}).fitting_patients == []


def test_under_cross_validation_a_patient_has_the_variants_of_the_models_that_did_not_see_it():
    raw = load_study("phantom").model_dump(mode="json")
    raw |= {"folds": [0, 1, 2, 3, 4], "groups": {}, "in_distribution_group": None}
    raw |= {"sets": {"train": list(range(1, 8)), "validation": [8]}, "seeds": [1]}
    raw["training"]["mirroring"] = True
    raw["cheap_ensembles"]["flips"] = ["anno1_init1_fold0"]
    crossed = Study.model_validate(raw)
    for patient in crossed.scored_patients():
        held = patient in crossed.held_out(0)
        assert len(crossed.variants_of(patient)) == (8 if held else 0)
        assert ("ensemble_flips-anno1-1-fold0" in crossed.predictors_of(patient)) == held
    assert crossed.models_of("PHANTOM008") == crossed.models


def _crossed(**changes):
    raw = load_study("phantom").model_dump(mode="json")
    raw |= {"folds": [0, 1, 2, 3, 4], "groups": {}, "in_distribution_group": None}
    raw |= {"sets": {"train": list(range(1, 8)), "validation": [8]}}
    raw["training"] |= {"snapshots": 2}
    return Study.model_validate(raw | changes)


def test_an_ensemble_of_several_folds_is_not_calibrated_and_what_has_the_same_members_everywhere_is():
    model, snapshots = "anno1_init112233_fold0", "ensemble_snapshots-anno1-112233-fold0"
    assert len(_crossed().members("ensemble_all")) == 5 * 9
    assert len(_crossed().members("ensemble_all", "PHANTOM001")) == 9
    for method in CALIBRATIONS:
        for mixed in ("ensemble_all", "ensemble_anno1"):
            with pytest.raises(
                ValidationError, match=rf"calibrated.{method}: \['{mixed}'\] would be fitted to models of all folds"
            ):
                _crossed(calibrated={method: [model, mixed]})
        cheap = {"snapshots": [model]}
        assert f"{method}_{model}" in _crossed(calibrated={method: [model]}).predictors
        allowed = _crossed(cheap_ensembles=cheap, calibrated={method: [snapshots]})
        assert f"{method}_{snapshots}" in allowed.predictors
        single = _crossed(folds=[0], calibrated={method: ["ensemble_all"]})  # one fold: the same members everywhere
        assert {tuple(single.members("ensemble_all", one)) for one in single.predicted_patients()} == {
            tuple(single.models)
        }
    assert "isotonic_ensemble_all" in study(calibrated={"isotonic": ["ensemble_all"]}).predictors


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"training_labels": ["anno1", "anno1"]}, "training_labels: .*only once"),
        ({"training_labels": ["anno9"]}, "training_labels: .*anno9"),
        ({"cheap_ensembles": {"flips": [MODEL]}}, "cheap_ensembles.flips: .*training.mirroring"),
        ({"cheap_ensembles": {"snapshots": ["all"]}}, "cheap_ensembles.snapshots: .*training.snapshots"),
        ({"cheap_ensembles": {"folds": True}}, "cheap_ensembles.folds: it takes two or more"),
        ({"training__mirroring": True, "cheap_ensembles": {"flips": ["nobody"]}}, "allowed are all and"),
        ({"calibrated": {"isotonic": ["isotonic_ensemble_all"]}}, "calibrated.isotonic: .*allowed are"),
        (
            {"calibrated": {"isotonic": ["ensemble_all"]}, "training__sets": ["train", "validation"]},
            "learn from the set",
        ),
        ({"calibrated": {"isotonic": ["ensemble_all"]}, "exclusions": {"6": "moved"}}, "it is empty"),
        ({"conformal": {"of": ["ensemble_none"]}}, "conformal.of"),
        ({"statistics__comparisons": [["general", "general"]]}, "compares one with itself"),
        ({"statistics__comparisons": [["general", "calibrated"]]}, "statistics.comparisons: 'calibrated'"),
    ],
)
def test_what_cannot_be_is_refused_with_its_field(changes, says):
    with pytest.raises(ValidationError, match=says):
        study(**changes)


def test_a_study_that_says_nothing_of_it_keeps_its_fingerprints():
    """Models, predictions and scores of every study would be made again otherwise."""
    one = load_study("phantom")
    training = one.training.model_dump(mode="json")
    del training["loader_workers"], training["snapshots"]
    digest = hashlib.sha256(json.dumps({"training": training}, sort_keys=True).encode()).hexdigest()[:12]
    assert one.fingerprint("training") == digest
    evaluation = one.evaluation.model_dump(mode="json")
    del evaluation["reference"], evaluation["vascular"], evaluation["organs"]
    digest = hashlib.sha256(json.dumps({"evaluation": evaluation}, sort_keys=True).encode()).hexdigest()[:12]
    assert one.fingerprint("evaluation", "calibrated") == digest
    other = study(calibrated={"isotonic": ["ensemble_all"]})
    assert other.fingerprint("calibrated") != one.fingerprint("calibrated")
    assert other.fingerprint("training", "evaluation", "members") == one.fingerprint(
        "training", "evaluation", "members"
    )
