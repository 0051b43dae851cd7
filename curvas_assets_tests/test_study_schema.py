"""Claims proved here.

- The published JSON schema accepts every built-in study, and what it refuses of a field's form, loading refuses too.
- Every field has its description and its default; no reference, class name or word of another draft is in it.
- A study file's mistakes are told all at once, each with its line.
"""

import json
import re
from importlib import resources

import jsonschema
import pytest
import yaml

from curvas_assets.study import Study, built_in_studies, load_study, problems_in
from curvas_assets.study_file import StudyFile, read_study_file
from curvas_assets.study_schema import schema_text, study_schema

SCHEMA = study_schema()
CHECK = jsonschema.Draft7Validator(SCHEMA)
GIVEN = load_study("phantom").model_dump(mode="json", exclude_unset=True)


@pytest.mark.parametrize("name", built_in_studies())
def test_the_schema_accepts_the_built_in_studies(name):
    CHECK.check_schema(SCHEMA)
    fields = yaml.safe_load((resources.files("curvas_assets.studies") / f"{name}.yaml").read_text(encoding="utf-8"))
    assert [error.message for error in CHECK.iter_errors(fields)] == []


REFUSED = {
    "unknown field": {"anotators": []},
    "missing organs": {"organs": None},
    "empty annotators": {"annotators": []},
    "annotator without a file": {"annotators": [{"name": "a"}]},
    "annotator with more": {"annotators": [{"name": "a", "file": "a.nii", "age": 3}]},
    "no NIfTI": {"image": "image.dcm"},
    "name": {"name": "My Study"},
    "unknown set": {"sets": {"training": ["001"]}},
    "sets are lists": {"sets": {"train": "001"}},
    "label 0": {"organs": {"a": 0}},
    "organ as text": {"organs": {"a": "one"}},
    "negative seed": {"seeds": [-1]},
    "seed with a fraction": {"seeds": [1.5]},
    "fold": {"folds": [7]},
    "planner": {"plans": {"planner": "Mine"}},
    "two spacings": {"plans": {"spacing_mm": [1, 1]}},
    "spacing of 0": {"plans": {"spacing_mm": [0, 1, 1]}},
    "epochs": {"training": {"epochs": 0}},
    "truth as text": {"training": {"mirroring": "perhaps"}},
    "beyond a limit": {"prediction": {"tile_step": 2}},
    "language": {"report": {"language": "de"}},
    "rest": {"rest": "train"},
    "title": {"title": ""},
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_the_schema_refuses_loading_refuses_too(what):
    fields = {name: value for name, value in {**GIVEN, **REFUSED[what]}.items() if value is not None}
    assert list(CHECK.iter_errors(fields))
    assert problems_in(StudyFile(json.loads(json.dumps(fields)), {}))


def test_ids_may_be_numbers_and_loader_workers_auto_for_both():
    fields = {**GIVEN, "sets": {"train": [1, "002"], "test": [3]}, "training": {"loader_workers": "auto"}, "groups": {}}
    fields = {name: value for name, value in fields.items() if name not in ("in_distribution_group", "exclusions")}
    assert list(CHECK.iter_errors(fields)) == []
    assert Study.model_validate(fields).sets["train"] == ("PHANTOM001", "PHANTOM002")


def _properties(schema):
    for name, field in schema.get("properties", {}).items():
        yield name, field
        yield from _properties(field)
        yield from _properties(field.get("items", {}) if isinstance(field.get("items"), dict) else {})


def test_every_field_is_described_and_nothing_internal_shows():
    fields = [(name, field) for name, field in _properties(SCHEMA) if name not in ("train", "validation", "test")]
    assert len(fields) > 60
    assert [name for name, field in fields if not field.get("description")] == []
    assert SCHEMA["properties"]["training"]["properties"]["epochs"]["default"] == 300
    assert SCHEMA["required"] == [name for name, field in Study.model_fields.items() if field.is_required()]
    for word in ("$ref", "$defs", "prefixItems", '"gt"', '"le"', "anyOf_", "PatientIds", "Annotator"):
        assert word not in schema_text()
    assert re.findall(r'"title": "([^"]+)"', schema_text()) == ["Study file of curvas_assets"]


def test_all_mistakes_are_told_with_their_lines(tmp_path):
    path = tmp_path / "study.yaml"
    text = "name: Wrong Name\ntitle: t\npatients: {prefix: P}\nannotators:\n  - {name: a, file: a.nii}\n  - name: b\norgans: {x: 0}\nsets:\n  train: [1]\nseeds: [1]\ntrainin: {}\n"
    path.write_text(text)
    told = problems_in(read_study_file(path, "study", ""))
    assert [line for line, _ in told] == [1, 6, 7, 11]
    assert [what.partition(" ")[0].rstrip(":") for _, what in told] == [
        "name",
        "annotators.1.file",
        "organs.x",
        "trainin",
    ]
    assert problems_in(StudyFile(GIVEN, {})) == []
