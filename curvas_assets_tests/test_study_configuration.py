"""Claims proved here.

- The built-in studies load; `curvas` is the study as published, with patient 041.
- `curvas-medig` has its patients and the winner's training, `curvas-pdacvi` five annotators; what the one on real scans asks
  for has its small counterpart on phantoms, and `phantom-full` has predictors of every family.
- Names of models, ensembles and patients are made and parsed in one way.
- Two or five annotators, one organ, other seeds and folds are configuration.
- A wrong file fails with the line, the field, the value and what is allowed; all problems at once.
- What YAML would read otherwise than people write it is refused: doubled keys, octal numbers, truth for a number, Latin-1.
- No ensemble is another one, or a single model, under another name: no patient counts twice.
- With `rest: test` everybody else is a test patient, by one rule, written strictly; without it the file is as it was.
- Without a test set, the patients that nnU-Net's folds hold out are scored, each by the models that did not see it.
- Several channels, or one that is no CT, stand in place of the image; what is left out follows from them, and a study of one CT
  keeps its fingerprints.
- A tumour and its vessels are organs; studies that name none keep their fingerprints.
- Organs have any values of the label files, or several; a value belongs to one organ. Studies of values 1 … n are as before.
- Which organs are scored changes scores, and neither intake, datasets, models, predictions nor calibrations.
- Every field says what it means: the reference of the study file is made from these sentences.
"""

import hashlib
import json
from pathlib import Path
from typing import get_args

import pytest
import yaml
from pydantic import BaseModel

from curvas_assets.errors import StudyError
from curvas_assets.predictors import CALIBRATIONS, FUSIONS
from curvas_assets.stages.table import ASSETS
from curvas_assets.study import EnsembleId, Family, ModelId, Study, built_in_studies, load_study


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


def test_the_built_in_studies_load_and_say_which_patients_are_made_up():
    synthetic = {name: load_study(name).synthetic for name in built_in_studies()}
    assert synthetic == {
        "curvas": False,
        "curvas-medig": False,
        "curvas-pdacvi": False,
        "demo": True,
        "phantom": True,
        "phantom-full": True,
        "phantom-pdacvi": True,
    }
    assert all(load_study(name).name == name for name in synthetic)


def test_the_winners_study_is_the_published_one_but_for_its_networks():
    winner, published = load_study("curvas-medig"), load_study("curvas")
    changed = {"name", "title", "plans", "training", "prediction"}
    assert winner.model_dump(exclude=changed) == published.model_dump(exclude=changed)
    assert (winner.plans.planner, winner.plans.gpu_memory_gb) == ("nnUNetPlannerResEncM", 24)
    assert winner.plans.patch_size == (256, 160, 160)
    assert winner.training.epochs == winner.training.patience == 500
    assert not winner.training.mirroring
    assert not winner.prediction.mirroring


@pytest.mark.parametrize("name", ["curvas-pdacvi", "phantom-pdacvi"])
def test_five_annotators_draw_a_tumour_and_five_vessels(name):
    study = load_study(name)
    assert [annotator.file for annotator in study.annotators] == [f"annotation_{k}.nii.gz" for k in range(1, 6)]
    assert study.class_names == ["background", "pdac", "porta", "smv", "aorta", "celiac", "sma"]
    assert study.evaluation.reference == "thresholds"
    assert study.has_test_set
    assert len(study.members("ensemble_all")) == len(study.models) == 5 * len(study.seeds)
    assert "isotonic_ensemble_all" in study.predictors


def test_the_full_phantom_study_has_every_family_and_enough_patients_to_fit_on():
    study = load_study("phantom-full")
    assert set(study.families) == set(get_args(Family))
    assert set(FUSIONS) <= set(study.label_names)
    assert {one.method for one in study.calibrated_ids} == set(CALIBRATIONS)
    count = len(study.fitting_patients)
    assert count >= 5
    assert count / (count + 1) >= study.conformal.level  # else every interval would be without end
    assert {study.patient_group(one) for one in study.scored_patients()} == {"A", "B", "C"}


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


NO_GROUPS = {"groups": {}, "in_distribution_group": None}


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


@pytest.mark.parametrize("name", ["CASE_0001", "a.b-c_d", 12, "0012", "X"])
def test_without_prefix_and_pattern_an_id_is_what_is_written(tmp_path, name):
    study = _load(tmp_path, _raw(patients={}, sets={"train": [name, "A", "B"], "test": ["C"]}, **NO_GROUPS))
    assert study.sets["train"][0] == str(name)
    assert study.patients.has(str(name))
    assert Study.model_validate(study.model_dump(mode="json")) == study


def test_ids_of_a_pattern_are_exactly_those(tmp_path):
    patients, sets = {"pattern": "CASE_[0-9]{4}"}, {"train": ["CASE_0001", "CASE_0002"], "test": ["CASE_0003"]}
    study = _load(tmp_path, _raw(patients=patients, sets=sets, **NO_GROUPS))
    assert study.training_patients() == ["CASE_0001", "CASE_0002"]
    for strange in ("case_0001", "CASE_001", "0001", 1, "CASE_0001\n", "xCASE_0001"):
        with pytest.raises(StudyError, match=r"it is not of the pattern CASE_|it is not an id of up to 80 letters"):
            study.patients.normalise(strange)


@pytest.mark.parametrize(
    ("patients", "ids", "told"),
    [
        ({}, ["a|b"], "it is not an id of up to 80 letters"),
        ({}, ["../x"], "it is not an id of up to 80 letters"),
        ({}, ["a..b"], "it is not an id of up to 80 letters"),
        ({}, ["Test"], "it is a word with another meaning here"),
        ({}, ["a_seg"], "no id ends with _seg"),
        ({}, [1.5], "sets.train: 1.5"),
        ({}, ["x1", "X1"], r"\['X1', 'x1'\] differ only in upper and lower case"),
        ({"pattern": "^A[0-9]$"}, ["A1"], "leave out \\^ and \\$"),
        ({"pattern": "A("}, ["A1"], "it is no regular expression"),
        ({"pattern": "(A|B)1"}, ["A1"], "it has a capturing group"),
        ({"pattern": "A", "prefix": "A"}, ["A"], "give one or the other"),
        ({"digits": 4}, ["0001"], "digits = 4 takes a prefix: add it"),
        ({"digits": 4, "pattern": "[0-9]+"}, ["0001"], "digits = 4 takes a prefix: leave it out beside a pattern"),
    ],
)
def test_ids_that_nothing_could_be_named_by_are_refused(tmp_path, patients, ids, told):
    with pytest.raises(StudyError, match=told):
        _load(tmp_path, _raw(patients=patients, sets={"train": [*ids, "A2", "A3"], "test": ["A4"]}, **NO_GROUPS))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"image": "images/{id}.nii.gz"}, "'{id}' stands for nothing: the one placeholder is {patient}"),
        ({"image": "**/{patient}.nii.gz"}, "stands for any text without a slash"),
        ({"image": "../{patient}.nii.gz"}, "neither absolute"),
        ({"image": "{patient}/annotation_1.nii.gz"}, r"annotators.file: \['{patient}/annotation_1.nii.gz'\] may appear only once"),
        ({"image": "{patient}_*.nii.gz", "patients": {}}, "only the form of ids tells"),
        ({"intake__missing_annotation": "ignored"}, "intake.missing_annotation = 'ignored'"),
    ],
)  # fmt: skip
def test_places_of_files_that_lead_nowhere_are_refused(tmp_path, change, told):
    with pytest.raises(StudyError, match=told):
        _load(tmp_path, _raw(**change))


def test_a_study_that_says_nothing_new_keeps_its_fingerprints(tmp_path):
    parts = ("image", "annotators", "organs", "patients", "intake")
    said = _raw(
        patients={"prefix": "PHANTOM", "digits": 3, "pattern": None}, intake__missing_annotation="not_annotated"
    )
    assert _load(tmp_path, said).fingerprint(*parts) == load_study("phantom").fingerprint(*parts) == "32676a42a8f4"
    assert _load(tmp_path, _raw(intake__missing_annotation="refused")).fingerprint(*parts) != "32676a42a8f4"


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
        ({"seeds": [1, 1]}, r"seeds: \[1\] may appear only once"),
        ({"seeds": [-1]}, r"seeds.0 = -1: .*greater than or equal to 0"),
        ({"training__epochs": 0}, r"training.epochs = 0: .*greater than or equal to 1"),
        ({"training__epochs": 3, "training__snapshots": 3}, r"training.snapshots = 3: it takes more epochs than that"),
        ({"training__device": "tpu"}, r"training.device = 'tpu': .*'auto', 'cuda', 'mps' or 'cpu'"),
        ({"training__epoch": 3}, r"training.epoch = 3 is not a field \(allowed: .*epochs"),
        ({"plans__planner": "Big"}, r"plans.planner = 'Big': .*nnUNetPlannerResEncM"),
        ({"plans__features_per_stage": [8, 16]}, r"plans.features_per_stage"),
        ({"organs": {"liver": 0}}, r"organs.liver = 0: allowed is a label value, 1 to 65535, or a list"),
        ({"organs": {"liver": [1, 65536]}}, r"organs.liver = \[1, 65536\]: allowed is a label value"),
        ({"organs": {"liver": []}}, r"organs.liver = \[\]: allowed is a label value"),
        ({"organs": {"liver": True}}, r"organs.liver = True: allowed is a label value"),
        ({"organs": {"liver": "2"}}, r"organs.liver = '2': allowed is a label value"),
        ({"organs": {"liver": [2, 2]}}, r"organs.liver: \[2\] may appear only once"),
        ({"organs": {"liver": 2, "spleen": [3, 2]}}, r"organs.spleen: the value 2 is that of liver already"),
        ({"organs": {f"o{n}": n for n in range(1, 66)}}, "organs: 65 organs, allowed are up to 64"),
        ({"ignored_labels": [2]}, r"ignored_labels: the value 2 is that of kidney"),
        ({"ignored_labels": [7, 7]}, r"ignored_labels: \[7\] may appear only once"),
        ({"ignored_labels": "others"}, r"ignored_labels = 'others': allowed is a list of label values, .* or rest"),
        ({"evaluation__organs": ["spleen"]}, r"evaluation.organs: \['spleen'\], allowed are"),
        ({"evaluation__organs": ["liver", "liver"]}, r"evaluation.organs: \['liver'\] may appear only once"),
        ({"sets__test": ["PHANTOM001"]}, r"sets: \['PHANTOM001'\] may appear only once"),
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
            r"folds: \[3, 4\], allowed are all and 0 … 2: 3 training patients allow 3 folds",
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


WRONG = {
    "spacing_mm: [-8, 8, 8]": r"plans.spacing_mm.0 = -8: .*greater than 0",
    "patch_size: [-24, 32, 32]": r"plans.patch_size.0 = -24",
    "features_per_stage: [0, 8, 8]": r"plans.features_per_stage.0 = 0",
    "configuration: 2d": r"plans: patch_size \[24, 40, 40\] is a 3-D patch",
    "batch_size: true": r"plans.batch_size = True: allowed is a whole number",
    "gpu_memory_gb: .inf": r"plans.gpu_memory_gb = inf: allowed is a finite number",
}


@pytest.mark.parametrize(("line", "told"), WRONG.items())
def test_every_number_has_bounds_and_its_line_is_told(tmp_path, line, told):
    field = line.partition(":")[0]
    text = Path("curvas_assets/studies/phantom.yaml").read_text()
    lines = [one for one in text.splitlines() if not one.startswith(f"  {field}:")]
    lines.insert(lines.index("plans:") + 1, f"  {line}")
    (tmp_path / "study.yaml").write_text("\n".join(lines))
    with pytest.raises(
        StudyError, match=rf"line {lines.index('plans:') + (1 if field == 'configuration' else 2)}: {told}"
    ):
        load_study(tmp_path / "study.yaml")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"training__learning_rate": float("nan")}, "training.learning_rate = nan: allowed is a finite number"),
        ({"image": "ct.dcm"}, "image = 'ct.dcm': allowed is a NIfTI file"),
        (
            {"annotators": [{"name": "a", "file": "../a.nii.gz"}]},
            r"annotators.0.file = '../a.nii.gz': .* neither absolute",
        ),
        ({"image": "/data/ct.nii.gz"}, "neither absolute"),
        ({"report__published_table": "a/../../x.csv"}, "neither absolute"),
        ({"report__published_table": "metrics.csv"}, "which the platform writes itself"),
        (
            {"sets": {"train": [1, 2, 3]}, "groups": {}, "in_distribution_group": None},
            r"cross-validate \(folds: \[0, 1, 2\]\)",
        ),
        ({"sets": {"test": [7]}, "groups": {}, "in_distribution_group": None}, "no patient to train on"),
        ({"exclusions": {7: "x", 8: "y", 9: "z"}}, "every patient of the test set is excluded"),
        ({"sets": {"train": [1, 2, 3], "test": [7]}, "folds": [0, 4]}, r"folds: \[4\], allowed are all and 0 … 2"),
        ({"folds": [True]}, "folds.0 = True"),
        ({"groups__A": [1, 77]}, r"groups.A: \['PHANTOM077'\] are in none of the sets"),
        ({"exclusions": {77: "x"}}, r"exclusions: \['PHANTOM077'\] are in none of the sets"),
        ({"exclusions": {"7": "x", "007": "y"}}, r"exclusions: \['PHANTOM007'\] may appear only once"),
        ({"exclusions": {7: " "}}, "exclusions.PHANTOM007 = ' '"),
        ({"organs": {"background": 1}}, "'background' is not a valid organ name"),
        ({"organs": {"mean": 1}}, "'mean' is not a valid organ name"),
        ({"organs": {"Liver": 1, "liver": 2}}, "organs: \\['liver'\\] may appear only once"),
        (
            {"checks__volume_ml": {"liver": [100, 10]}},
            r"checks.volume_ml.liver: \[100, 10\]: give the smallest volume first",
        ),
        ({"ensembles": {"x": ["anno1", "anno1"]}}, r"ensembles.x: \['anno1'\] may appear only once"),
        ({"ensembles": {"x": ["anno1", "anno2"], "y": ["anno2", "anno1"]}}, "ensembles.y: its members are those of x"),
        ({"ensembles": {"all": ["anno1", "anno2"]}}, "the ensemble called all has every annotator"),
        ({"training__sets": ["train", "validation"], "sets__validation": []}, "sets.validation names no patient"),
        ({"statistics__primary": {"accuracy": "dicee"}}, "statistics.primary.accuracy: 'dicee' is not a metric"),
        ({"sets__train": [1.5]}, "sets.train: 1.5"),
    ],
)
def test_what_contradicts_itself_is_refused(tmp_path, change, told):
    with pytest.raises(StudyError, match=told):
        _load(tmp_path, _raw(**change))


def test_all_problems_are_told_at_once(tmp_path):
    with pytest.raises(StudyError) as refused:
        _load(tmp_path, _raw(seeds=[1, 1], organs={"mean": 1}, folds=[0, 0]))
    assert all(field in refused.value.found for field in ("seeds: [1]", "organs.mean", "folds: [0]"))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("seeds: [1]\nseeds: [2]\n", r"line 2, column 1: 'seeds' is already defined on line 1"),
        ("sets:\n  test: [010]\n", r"line 2, column 10: YAML reads the bare 010 as 8: quote it"),
        ("seeds: [1:30]\n", r"YAML reads the bare 1:30 as 90"),
        ("title: 2025-02-30\n", "day is out of range"),
        ("a: &x [1]\nb: *x\n", r"aliases"),
        ("? [1]\n: 2\n", "a field's name is plain text"),
        ("title: Zw\xf6lf\n".encode("latin-1"), r"line 1: byte 0xf6 is not UTF-8 .*Save it as UTF-8"),
        ("a: " + "[" * 3000, "cannot|can be read|RecursionError"),
        ("", "it holds NoneType"),
    ],
)
def test_what_yaml_reads_otherwise_than_it_is_written_is_refused(tmp_path, text, told):
    (tmp_path / "study.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(StudyError, match=told):
        load_study(tmp_path / "study.yaml")


def test_a_byte_order_mark_is_no_part_of_a_study(tmp_path):
    text = "\ufeff" + yaml.safe_dump(_raw(title="Zwölf"), allow_unicode=True)
    (tmp_path / "study.yaml").write_bytes(text.encode("utf-8"))
    assert load_study(tmp_path / "study.yaml").title == "Zwölf"


@pytest.mark.parametrize(
    ("annotators", "seeds", "ensembles"),
    [
        (1, 1, ["ensemble_all"]),
        (1, 3, ["ensemble_all"]),
        (2, 1, ["ensemble_all"]),
        (2, 2, ["ensemble_anno1", "ensemble_anno2", "ensemble_all"]),
    ],
)
def test_no_ensemble_is_another_or_a_model_under_another_name(annotators, seeds, ensembles):
    raw = _raw(seeds=list(range(seeds)))
    raw["annotators"] = raw["annotators"][:annotators]
    study = Study.model_validate(raw)
    assert [str(e) for e in study.ensemble_ids] == ensembles
    assert [study.family(str(e)) for e in study.ensemble_ids].count("general") == 1
    members = [tuple(study.members(e)) for e in study.ensemble_ids]
    assert len(set(members)) == len(members)


def cross_validated(patients=7, **changes):
    raw = _raw(folds=[0, 1, 2, 3, 4], groups={}, in_distribution_group=None, **changes)
    raw["sets"] = {"train": list(range(1, patients + 1))}
    return Study.model_validate(raw)


@pytest.mark.parametrize("patients", [3, 4, 5, 7, 23])
def test_the_folds_are_those_of_nnunet(patients):
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    study = cross_validated(patients) if patients > 4 else None
    if study is None:
        raw = _raw(folds=list(range(patients)), groups={}, in_distribution_group=None)
        raw["sets"] = {"train": list(range(1, patients + 1))}
        study = Study.model_validate(raw)
    of_nnunet = generate_crossval_split(study.training_patients(), seed=12345, n_splits=min(5, patients))
    assert [study.held_out(fold) for fold in study.folds] == [sorted(map(str, split["val"])) for split in of_nnunet]


def test_without_a_test_set_each_patient_is_scored_by_the_models_that_did_not_see_it():
    study = cross_validated()
    assert study.cross_validated
    assert study.scored_patients() == study.training_patients()
    for patient in study.scored_patients():
        models = study.models_of(patient)
        assert len(models) == 9
        assert {patient in study.held_out(model.fold) for model in models} == {True}
        assert study.members("ensemble_anno1", patient) == [m for m in models if m.annotator == "anno1"]
    assert [str(e) for e in cross_validated(seeds=[1]).ensemble_ids] == ["ensemble_all"]


def test_an_excluded_patient_is_in_no_fold_and_a_test_set_ends_cross_validation():
    assert "PHANTOM003" not in cross_validated(exclusions={3: "header lost"}).scored_patients()
    tested = Study.model_validate(_raw(folds=[0, 1]))
    assert not tested.cross_validated
    assert tested.scored_patients() == list(tested.sets["test"])
    assert tested.models_of("PHANTOM007") == tested.models


def test_a_missing_field_an_absent_file_and_what_is_no_yaml_are_told(tmp_path):
    raw = _raw()
    del raw["title"]
    with pytest.raises(StudyError, match="title is missing"):
        _load(tmp_path, raw)
    with pytest.raises(StudyError, match=r"one of \['curvas', .*'phantom', "):
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


def test_a_rule_makes_everybody_else_a_test_patient(tmp_path):
    raw = _raw(sets={"train": [1, 2, 3], "validation": [6]}, groups={"B": [8]}, in_distribution_group=None)
    raw |= {"rest": "test", "exclusions": {"9": "consent withdrawn"}}
    study = _load(tmp_path, raw)
    known = ["PHANTOM001", "PHANTOM006", "PHANTOM008", "PHANTOM009", "PHANTOM120", "thumbs"]
    assert study.scored_patients(known) == ["PHANTOM008", "PHANTOM120"]
    assert study.scored_patients() == []
    assert [study.patient_set(p) for p in known] == ["train", "validation", "test", "test", "test", None]
    assert not any(study.is_scored(p) for p in ("PHANTOM001", "PHANTOM006", "PHANTOM009", "120", "PHANTOM0120"))
    assert study.has_test_set
    assert not study.cross_validated
    assert study.role("PHANTOM009") == "excluded (consent withdrawn)"
    without = Study.model_validate({**raw, "rest": None, "sets": {**raw["sets"], "test": [8]}})
    assert without.fingerprint("sets") != study.fingerprint("sets")
    assert "write `rest: test`" in without.role("PHANTOM120")


def test_a_file_without_the_rule_has_the_fingerprint_it_had():
    """`cohort` and `study_scores` are versioned by it: they would be made anew everywhere."""
    study = load_study("phantom")
    sets = {name: list(members) for name, members in study.sets.items()}
    digest = hashlib.sha256(json.dumps({"sets": sets}, sort_keys=True).encode()).hexdigest()[:12]
    assert study.fingerprint("sets") == digest


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rest": "train"}, "rest = 'train': Input should be 'test'"),
        ({"rest": ["test"]}, "rest"),
        ({"rest": True}, "rest = True"),
        ({"sets__rest": "test"}, "the rule stands beside sets, as `rest: test`"),
    ],
)
def test_the_rule_is_read_strictly(tmp_path, changes, says):
    with pytest.raises(StudyError) as failed:
        _load(tmp_path, _raw(**changes))
    assert says in str(failed.value)


def test_every_field_says_what_it_means():
    models, asked = [Study], set()
    while models:
        model = models.pop()
        asked.add(model)
        models += [
            part for field in model.model_fields.values() if (part := _part(field.annotation)) not in {None, *asked}
        ]
    assert len(asked) > 10
    assert [f"{m.__name__}.{n}" for m in asked for n, field in m.model_fields.items() if not field.description] == []


def _part(annotation):
    """The model that a field holds, alone or in a tuple."""
    kinds = [annotation, *get_args(annotation)]
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


T1, T2 = {"name": "T1", "file": "t1.nii.gz"}, {"name": "T2", "file": "mr/t2.nii", "normalisation": "rescale_to_0_1"}


def _channels(*channels, **changes):
    raw = _raw(channels=list(channels), **changes)
    if "image" not in changes:
        del raw["image"]
    if "evaluation__region" not in changes:
        del raw["evaluation"]["region"]
    return raw


def test_channels_stand_in_place_of_the_image(tmp_path):
    study = _load(tmp_path, _channels(T1, T2))
    assert [(one.name, one.normalisation) for one in study.images] == [("T1", "zscore"), ("T2", "rescale_to_0_1")]
    assert (study.image, study.image_files, study.evaluation.region) == (None, ["t1.nii.gz", "mr/t2.nii"], "image")
    assert Study.model_validate(study.model_dump(mode="json")) == study
    assert Study.model_validate(study.model_dump()) == study
    with_ct = _load(tmp_path, _channels(T1, {"name": "Ct", "file": "ct.nii.gz"}, evaluation__region="body"))
    assert [one.is_ct for one in with_ct.images] == [False, True]
    assert _load(tmp_path, _channels({"name": "a", "file": "a.nii", "normalisation": "ct"})).evaluation.region == "body"


def test_a_study_of_one_ct_is_as_it_was():
    study = load_study("phantom")
    (ct,) = study.images
    assert (ct.name, ct.file, ct.normalisation) == ("CT", study.image, "ct")
    whole = study.model_dump(mode="json")
    assert (whole.pop("channels"), whole["image"], whole["evaluation"]["region"]) == ([], "image.nii.gz", "body")
    assert study.fingerprint("image", "channels") == study.fingerprint("image")


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (_channels(T1, image="image.nii.gz"), r"line \d+: image = 'image.nii.gz': .* leave out one of the two"),
        (_raw(image=None), r"line \d+: image: it is missing"),
        (_channels(T1, evaluation__region="body"), r"line \d+: evaluation.region = 'body': .* no channel is a CT"),
        (_channels(T1, {**T2, "name": "t1"}), r"line \d+: channels: \['t1'\] may appear only once"),
        (_channels(T1, {**T2, "file": "T1.nii.gz"}), r"\['{patient}/t1.nii.gz'\] may appear only once"),
        (
            _channels(T1, {**T2, "normalisation": "log"}),
            r"line \d+: channels.1.normalisation = 'log': .*'rescale_to_0_1'",
        ),
        (
            _channels(T1, {**T2, "norm": "ct"}),
            r"channels.1.norm = 'ct' is not a field .allowed: file, name, normalisation",
        ),
        (_channels({**T1, "name": "T 1"}), r"channels.0.name = 'T 1': a channel's name is letters"),
        (_channels({**T1, "file": "../t1.nii"}), r"channels.0.file = '../t1.nii': allowed is the name of a file"),
    ],
)
def test_channels_that_cannot_be_are_refused_with_their_line(tmp_path, raw, told):
    with pytest.raises(StudyError, match=told):
        _load(tmp_path, raw)


@pytest.mark.parametrize(
    ("vascular", "told"),
    [
        ({"tumour": "pancreas"}, "evaluation.vascular.vessels: it is missing"),
        ({"vessels": ["liver"]}, "evaluation.vascular.tumour: it is missing"),
        (
            {"tumour": "spleen", "vessels": ["liver"]},
            r"evaluation.vascular.tumour: 'spleen', allowed is one of \['kidney'",
        ),
        ({"tumour": "pancreas", "vessels": ["aorta"]}, r"evaluation.vascular.vessels: \['aorta'\], allowed are"),
        ({"tumour": "pancreas", "vessels": ["pancreas"]}, "'pancreas' is the tumour: a vessel is another organ"),
        ({"tumour": "pancreas", "vessels": ["liver", "liver"]}, r"\['liver'\] may appear only once"),
        ({"tumor": "pancreas"}, "evaluation.vascular.tumor = 'pancreas' is not a field .allowed: tumour, vessels"),
    ],
)
def test_a_tumour_and_its_vessels_are_organs(tmp_path, vascular, told):
    with pytest.raises(StudyError, match=told):
        _load(tmp_path, _raw(evaluation__vascular=vascular))


def test_studies_without_another_reference_or_vessels_keep_their_fingerprints(tmp_path):
    raw = load_study("phantom").model_dump(mode="json")
    before = {
        field: value for field, value in raw["evaluation"].items() if field not in ("reference", "vascular", "organs")
    }
    study = load_study("phantom")
    content = json.dumps({"evaluation": before}, sort_keys=True).encode()
    assert study.fingerprint("evaluation") == hashlib.sha256(content).hexdigest()[:12]
    changes = ({"vascular": {"tumour": "pancreas", "vessels": ["liver"]}}, {"reference": "staple"})
    found = {
        _load(tmp_path, raw | {"evaluation": {**before, **change}}).fingerprint("evaluation") for change in changes
    }
    assert len(found | {study.fingerprint("evaluation")}) == 3


def test_a_metric_that_the_study_does_not_have_answers_no_question(tmp_path):
    primary = {"accuracy": "involvement_distance"}
    with pytest.raises(StudyError, match="'involvement_distance' is not a metric with a better side"):
        _load(tmp_path, _raw(statistics__primary=primary))
    vascular = {"tumour": "pancreas", "vessels": ["liver"]}
    assert (
        _load(tmp_path, _raw(statistics__primary=primary, evaluation__vascular=vascular)).statistics.primary == primary
    )


def test_values_of_label_files_become_classes_in_the_order_of_their_smallest(tmp_path):
    raw = _raw(checks__volume_ml={}, organs={"pancreas": 9, "kidney": [8, 3], "liver": [7]}, ignored_labels=[255])
    study = _load(tmp_path, raw)
    assert study.organs == {"pancreas": 9, "kidney": (8, 3), "liver": 7}
    assert study.labels == {"pancreas": 3, "kidney": 1, "liver": 2}
    assert list(study.labels) == list(study.organs)
    assert study.class_names == ["background", "kidney", "liver", "pancreas"]
    assert study.label_values.organs == {"kidney": (8, 3), "liver": (7,), "pancreas": (9,)}
    assert not study.label_values.is_plain
    assert Study.model_validate(study.model_dump(mode="json")) == study
    assert all(load_study(name).label_values.is_plain for name in built_in_studies())
    assert all(load_study(name).labels == load_study(name).organs for name in built_in_studies())
    many = _load(tmp_path, _raw(checks__volume_ml={}, organs={f"o{n}": 1000 - n for n in range(64)}))
    assert len(many.class_names) == 65
    assert many.class_names[1] == "o63"


def test_a_wrong_value_is_told_with_its_line(tmp_path):
    path = tmp_path / "study.yaml"
    lines = yaml.safe_dump(_raw(organs={"liver": 2, "spleen": 2}, checks__volume_ml={}), sort_keys=False).splitlines()
    path.write_text("\n".join(lines))
    with pytest.raises(StudyError, match=rf"line {lines.index('  spleen: 2') + 1}: organs.spleen: the value 2"):
        load_study(path)


def test_which_organs_are_scored_changes_scores_alone(tmp_path):
    raw = load_study("phantom-full").model_dump(mode="json")
    whole = Study.model_validate(raw)
    some = Study.model_validate(raw | {"evaluation": {**raw["evaluation"], "organs": ["liver", "pancreas"]}})
    assert some.calibrated_ids
    assert (whole.scored_organs, some.scored_organs) == (whole.class_names[1:], ["pancreas", "liver"])
    changed = {row.name for row in ASSETS if row.version(whole) != row.version(some)}
    assert changed == {"scores", "leaderboard", "figures", "report"}


@pytest.mark.parametrize("change", [{"ignored_labels": "rest"}, {"ignored_labels": [9]}, {"organs": {"liver": 4}}])
def test_other_values_of_label_files_are_taken_in_again_and_only_organs_change_classes(change):
    raw = load_study("phantom").model_dump(mode="json")
    changed = Study.model_validate(raw | {"checks": {}} | change)
    study = Study.model_validate(raw | {"checks": {}})
    rows = {row.name for row in ASSETS if row.version(study) != row.version(changed)}
    if "organs" in change:
        assert {"scan", "preprocessed_dataset", "scores", "ensemble_softmax"} <= rows
    else:
        assert rows == {"scan", "figures", "report"}  # these two of any change
