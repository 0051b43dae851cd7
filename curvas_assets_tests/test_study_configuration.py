"""Claims proved here.

- The built-in studies load; `curvas` is the study as published, with patient 041.
- Names of models, ensembles and patients are made and parsed in one way.
- Two or five annotators, one organ, other seeds and folds are configuration.
- A wrong file fails with the field, the value and what is allowed.
"""

import pytest
import yaml

from curvas_assets.errors import StudyError
from curvas_assets.study import EnsembleId, ModelId, Study, built_in_studies, load_study


def _raw(**changes):
    raw = load_study("phantom").model_dump(mode="json")
    for path, value in changes.items():
        part = raw
        *parents, last = path.split("__")
        for name in parents:
            part = part[name]
        part[last] = value
    return raw


def _load(tmp_path, raw):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    return load_study(path)


def test_the_published_study_is_built_in_with_patient_041():
    study = load_study("curvas")
    assert {name: len(members) for name, members in study.sets.items()} == {"train": 20, "validation": 5, "test": 65}
    assert study.patient_set("UKCHLL041") == "train"
    assert len(study.models) == 9
    assert study.predictors[-1] == "ensemble_all"
    assert len(study.predictors) == 13
    assert str(study.models[0]) == "anno1_init112233_foldall"
    assert study.class_names == ["background", "pancreas", "kidney", "liver"]
    assert set(built_in_studies()) == {"curvas", "phantom"}


def test_names_are_made_and_parsed_in_one_way():
    for name in ("anno1_init112233_foldall", "anno-b_init7_fold3"):
        assert str(ModelId.parse(name)) == name
    assert ModelId.parse("anno1_init7_fold3").fold == 3
    assert str(EnsembleId.parse("ensemble_anno1")) == "ensemble_anno1"
    for wrong in ("anno1_init_foldall", "anno1_init1_fold9", "a|b_init1_foldall"):
        with pytest.raises(StudyError):
            ModelId.parse(wrong)
    with pytest.raises(StudyError):
        EnsembleId.parse("anno1")


def test_members_and_families():
    study = load_study("curvas")
    assert [m.seed for m in study.members("ensemble_anno2")] == [112233, 445566, 778899]
    assert len(study.members("ensemble_all")) == 9
    families = [study.family(p) for p in study.predictors]
    assert families == ["individual"] * 9 + ["annotator"] * 3 + ["general"]


@pytest.mark.parametrize("name", [77, "77", "077", "UKCHLL077", "ukchll77"])
def test_ids_with_and_without_prefix_are_one_patient(name):
    assert load_study("curvas").patients.normalise(name) == "UKCHLL077"


@pytest.mark.parametrize(
    "name",
    [
        *("UKCHLL٠٧٧", "UKCHLL077\n", "\n077", " 077", "077 ", "UKCHLL０７７", "U\u212aCHLL077", "0077"),
        *("0" * 300 + "1", "UKCHLL" + "0" * 300 + "77", "1000", "-1", "+1", "1.0", "1_0", "", "UKCHLL", "UKCHLL77a"),
        *(True, None, 1.0, -1),
    ],
)
def test_what_only_looks_like_a_patients_id_is_none(name):
    with pytest.raises(StudyError, match="it is not UKCHLL with up to 3 digits"):
        load_study("curvas").patients.normalise(name)


@pytest.mark.parametrize(
    "name", ["anno1_init١_fold0", "anno1_init01_fold0", "anno1_init1_foldall\n", "anno1_init-1_fold0"]
)
def test_what_only_looks_like_a_models_name_is_none(name):
    with pytest.raises(StudyError, match="it is not <annotator>_init<seed>_fold"):
        ModelId.parse(name)


def test_annotators_organs_seeds_and_folds_are_configuration(tmp_path):
    study = _load(
        tmp_path,
        _raw(
            annotators=[{"name": f"r{i}", "file": f"r{i}.nii.gz"} for i in range(5)],
            organs={"spleen": 1},
            seeds=[1, 2],
            folds=[0, 1],
            ensembles={"pair": ["r0", "r1"], "all": [f"r{i}" for i in range(5)]},
        ),
    )
    assert len(study.models) == 20
    assert [str(e) for e in study.ensemble_ids] == ["ensemble_pair", "ensemble_all"]
    assert study.family("ensemble_pair") == "annotator"
    assert len(study.members("ensemble_pair")) == 8


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"seeds": [1, 1]}, r"seeds: \[1\] stand there more than once"),
        ({"seeds": [-1]}, r"seeds.0 = -1: .*greater than or equal to 0"),
        ({"training__epochs": 0}, r"training.epochs = 0: .*greater than or equal to 1"),
        ({"training__device": "tpu"}, r"training.device = 'tpu': .*'auto', 'cuda', 'mps' or 'cpu'"),
        ({"training__epoch": 3}, r"training.epoch = 3 is not a field \(allowed: .*epochs"),
        ({"plans__planner": "Big"}, r"plans.planner = 'Big': .*nnUNetPlannerResEncM"),
        ({"plans__features_per_stage": [8, 16]}, r"plans.features_per_stage"),
        ({"organs": {"liver": 2}}, r"organs: labels are \[2\], allowed is 1"),
        ({"sets__test": ["PHANTOM001"]}, r"sets: \['PHANTOM001'\] stand there more than once"),
        ({"sets__test": ["X1"]}, r"sets.test: 'X1' it is not PHANTOM with up to 3 digits"),
        ({"sets__test": "all"}, r"sets.test = 'all': allowed is a list"),
        ({"in_distribution_group": "Z"}, r"in_distribution_group: 'Z', allowed is one of"),
        ({"ensembles": {"x": ["anno9"]}}, r"ensembles.x: \['anno9'\], allowed are"),
        ({"folds": ["some"]}, r"folds.0"),
        (
            {
                "folds": ["all", 3, 4],
                "sets": {"train": ["001", "002", "003"], "test": ["007"]},
                "groups": {},
                "in_distribution_group": None,
            },
            r"folds: \[3, 4\], allowed are all and 0 … 2: 3 training patients make 3 splits",
        ),
        (
            {"folds": [0], "sets": {"train": ["001"], "test": ["007"]}, "groups": {}, "in_distribution_group": None},
            r"folds: \[0\], allowed are all: 1 training patients",
        ),
        ({"folds": [4], "exclusions": {"002": "torn"}}, r"folds: \[4\], allowed are all and 0 … 3"),
        ({"annotators": [{"name": "a|b", "file": "x"}]}, r"annotators.0.name = 'a\|b': .*letters, digits and dashes"),
    ],
)
def test_a_wrong_file_fails_with_field_value_and_what_is_allowed(tmp_path, change, told):
    with pytest.raises(StudyError, match=told):
        _load(tmp_path, _raw(**change))


def test_a_missing_field_an_absent_file_and_what_is_no_yaml_are_told(tmp_path):
    raw = _raw()
    del raw["title"]
    with pytest.raises(StudyError, match="title is missing"):
        _load(tmp_path, raw)
    with pytest.raises(StudyError, match="one of \\['curvas', 'phantom'\\]"):
        load_study("nothing")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(StudyError, match="it is not YAML"):
        load_study(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("[1]")
    with pytest.raises(StudyError, match="not fields"):
        load_study(tmp_path / "list.yaml")


def test_a_fingerprint_changes_with_the_named_parts_only():
    study = load_study("phantom")
    other = Study.model_validate(_raw(training__epochs=8))
    assert study.fingerprint("plans") == other.fingerprint("plans")
    assert study.fingerprint("training") != other.fingerprint("training")
