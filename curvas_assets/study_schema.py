"""The JSON schema of a study file, for editors: they complete fields, show what they mean, and mark what is not allowed.

It describes each field by itself (draft 7, which editors know). What depends on several fields at once, such as the
patients of a set, only `curvas_assets.study.load_study` checks.
"""

import json
from collections.abc import Mapping
from typing import Any

from curvas_assets.study import Study

DRAFT = "http://json-schema.org/draft-07/schema#"
IDS = ("sets", "groups")
"""Fields with patients' ids, which may be written as numbers."""
FILES = ("image", "file")
LEFT_OUT = ("$defs", "title", "propertyNames")
LIMITS = {"gt": "exclusiveMinimum", "ge": "minimum", "lt": "exclusiveMaximum", "le": "maximum"}
"""Pydantic's words for limits that stand behind a validator → those of JSON schema."""


def study_schema() -> dict[str, Any]:
    """The schema as a mapping."""
    whole = Study.model_json_schema()
    schema = _plain(whole, whole.get("$defs", {}))
    for name in IDS:
        field = schema["properties"][name]
        for members in (*field.get("properties", {}).values(), field["additionalProperties"]):
            if members:
                members["items"] = {**members["items"], "type": ["string", "integer"]}
    return {
        "$schema": DRAFT,
        "title": "Study file of curvas_assets",
        "description": "A whole study: what is annotated, by whom, which models are trained, how they are judged.",
        **{key: value for key, value in schema.items() if key not in ("description", "title")},
    }


def schema_text() -> str:
    """The schema as the text of a file."""
    return json.dumps(study_schema(), indent=1, ensure_ascii=False, sort_keys=False) + "\n"


def _plain(given: Any, parts: Mapping[str, Any], field: str = "") -> Any:
    """A schema without references and names of classes, in words of draft 7."""
    if isinstance(given, list):
        return [_plain(one, parts, field) for one in given]
    if not isinstance(given, dict):
        return given
    if "$ref" in given:
        target = parts[given["$ref"].rpartition("/")[2]]
        given = {**target, **{key: value for key, value in given.items() if key != "$ref"}}
    found: dict[str, Any] = {}
    for key, value in given.items():
        if key == "properties":
            found[key] = {name: _plain(one, parts, name) for name, one in value.items()}
        elif key == "prefixItems":
            found["items"] = [_plain(one, parts) for one in value]
        elif key == "default":
            if value is not None and value != {} and not isinstance(value, dict):
                found[key] = value
        elif key == "additionalProperties" and "enum" in given.get("propertyNames", {}):
            found["properties"] = {name: _plain(value, parts) for name in given["propertyNames"]["enum"]}
            found[key] = False
        elif key not in LEFT_OUT:
            found[LIMITS.get(key, key)] = _plain(value, parts, field if key == "anyOf" else "")
    if "description" in found and isinstance(found["description"], str):
        found["description"] = " ".join(found["description"].split())
    if field in FILES and found.get("type") == "string":
        found["pattern"] = r"\.nii(\.gz)?$"
    return found
