"""What files beside the volumes say: names of labels and channels, groups and sets of patients.

Read: nnU-Net's `dataset.json`, ITK-SNAP's label descriptions, tables and mappings of labels, and tables of patients.
"""

import io
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from curvas_assets.cohort.discovery.layout import SETS, SetOf, most_groups
from curvas_assets.predictors import KEY

LARGEST = 5 << 20
"""Bytes of a file beside the volumes that is read."""
READ = (".json", ".csv", ".tsv", ".txt", ".xlsx")
GROUPS = (
    "group",
    "centre",
    "center",
    "site",
    "hospital",
    "institution",
    "scanner",
    "vendor",
    "manufacturer",
    "phase",
    "cohort",
)
"""Names of columns that tell of a group, the most telling first."""
SET_COLUMNS = ("set", "split", "subset", "partition", "fold")
SNAP_LINE = re.compile(r'\s*(\d+)(?:\s+\d+){3}\s+[\d.]+\s+\d+\s+\d+\s+"([^"]*)"')
"""Index, red, green, blue, alpha, visible, mesh, "name"."""


@dataclass(frozen=True)
class Told:
    """What files beside the volumes say.

    Args:
        labels: value → name.
        labels_from: the file that says so.
        channels: names of the channels, in order.
        groups: patient → group.
        groups_from: the file and column that say so.
        sets: patient → set.
        sets_from: the file and column that say so.
    """

    labels: Mapping[int, str] = field(default_factory=dict)
    labels_from: str = ""
    channels: Sequence[str] = ()
    groups: Mapping[str, str] = field(default_factory=dict)
    groups_from: str = ""
    sets: Mapping[str, SetOf] = field(default_factory=dict)
    sets_from: str = ""


def read_told(files: Mapping[str, bytes], patients: Sequence[str]) -> Told:
    """What files say; those of another kind say nothing.

    Args:
        files: path → content, of files whose names end as `READ` says.
        patients: whom tables are about.
    """
    labels, labels_from, channels = dict[int, str](), "", tuple[str, ...]()
    groups: tuple[dict[str, str], str] = ({}, "")
    sets: tuple[dict[str, SetOf], str] = ({}, "")
    for path, content in sorted(files.items(), key=lambda item: (item[0].count("/"), item[0])):
        if path.lower().endswith(".json"):
            given = _json(content)
            if isinstance(given, dict):
                found = _labels_of(given.get("labels", given if "label" in path.lower() and _is_mapping(given) else {}))
                channels = channels or _channels_of(given)
            else:
                found = {}
        else:
            found = _snap_labels(content) if path.lower().endswith(".txt") else {}
        table = None if found else _table(path, content)
        if table is not None:
            found = _labels_in(table, path)
            told = None if found else _about(table, patients)
            if told is not None:
                groups = groups if groups[0] else (told[0][0], f"column {told[0][1]!r} of {path}")
                sets = sets if sets[0] else (told[1][0], f"column {told[1][1]!r} of {path}")
        if found and not labels:
            labels, labels_from = found, path
    return Told(
        labels,
        labels_from,
        channels,
        groups[0],
        groups[1] if groups[0] else "",
        sets[0],
        sets[1] if sets[0] else "",
    )


def plain_name(text: str, taken: Iterable[str] = (), *, of: str = "organ") -> str:
    """A name as organs, annotators and studies may have it, unlike those that are taken; empty where nothing is left of it.

    Args:
        text: as people write it.
        taken: names.
        of: what is named, before a number alone.

    >>> plain_name("Left Kidney (L)")
    'left-kidney-l'
    >>> plain_name("2024", of="study")
    'study-2024'
    """
    name = re.sub("[^a-z0-9]+", "-", text.lower()).strip("-")[:55].strip("-")
    if not KEY.fullmatch(name) or name in ("all", "mean", "background"):
        return ""
    if name.isdigit():
        name = f"{of}-{name}"
    used = set(taken)
    return next(one for one in (name, *(f"{name}-{n}" for n in range(2, 99))) if one not in used)


# Labels --------------------------------------------------------------------------------------------------------------


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _labels_of(given: Any) -> dict[int, str]:
    """Value → name, from nnU-Net's labels of both versions and from plain mappings; regions of several values are left out."""
    found: dict[int, str] = {}
    for key, value in given.items() if isinstance(given, dict) else ():
        if value is None or isinstance(value, bool | list | dict):
            continue
        name, number = (value, key) if str(key).isdigit() else (key, value)
        if str(number).isdigit() and int(number) > 0 and plain_name(str(name)):
            found.setdefault(int(number), str(name))
    return found


def _is_mapping(given: Mapping[str, Any]) -> bool:
    """Whether a file is nothing but numbers and names: the headers that converters write beside scans have numbers, too."""
    return all(
        str(key).isdigit() or str(value).isdigit() or value is None or isinstance(value, list)
        for key, value in given.items()
    )


def _channels_of(given: Mapping[str, Any]) -> tuple[str, ...]:
    named = given.get("channel_names", given.get("modality"))
    if not isinstance(named, dict):
        return ()
    return tuple(str(name) for _, name in sorted(named.items(), key=lambda item: str(item[0]).zfill(4)))


def _snap_labels(content: bytes) -> dict[int, str]:
    lines = [SNAP_LINE.match(line) for line in content.decode("utf-8", "replace").splitlines()]
    return {int(m[1]): m[2] for m in lines if m and int(m[1]) > 0 and plain_name(m[2])}


# Tables --------------------------------------------------------------------------------------------------------------


def _table(path: str, content: bytes) -> Any:
    """A table as pandas reads it, all of it text; None if it is none."""
    import pandas as pd

    plain: Any = {"dtype": str, "keep_default_na": False}
    try:
        if path.lower().endswith(".json"):
            given = _json(content)
            rows = (
                given if isinstance(given, list) else [{"id": k, **v} for k, v in given.items() if isinstance(v, dict)]
            )
            return pd.DataFrame(rows).astype(str) if rows and all(isinstance(row, dict) for row in rows) else None
        if path.lower().endswith(".xlsx"):
            return pd.read_excel(io.BytesIO(content), **plain)
        if path.lower().endswith(".txt"):
            return None
        separator = "\t" if path.lower().endswith(".tsv") else None
        text = content.decode("utf-8-sig", "replace")
        return pd.read_csv(io.StringIO(text), sep=separator, engine="python", **plain)
    except Exception:  # pandas raises what its readers do; a table that cannot be read tells nothing
        return None


def _labels_in(table: Any, path: str) -> dict[int, str]:
    """Value → name of a table with a column of whole numbers and one of names, whose file or columns tell of labels."""
    columns = {str(name).strip().lower(): name for name in table.columns}
    values = next((columns[one] for one in ("label", "value", "index", "id", "label_value") if one in columns), None)
    names = next(
        (columns[one] for one in ("name", "organ", "structure", "label_name", "class") if one in columns), None
    )
    if values is None or names is None or not ("label" in path.lower() or "organ" in columns or "structure" in columns):
        return {}
    pairs = zip(table[values], table[names], strict=True)
    return {int(v): str(n) for v, n in pairs if str(v).isdigit() and int(v) > 0 and plain_name(str(n))}


def _about(
    table: Any, patients: Sequence[str]
) -> tuple[tuple[dict[str, str], str], tuple[dict[str, SetOf], str]] | None:
    """Groups and sets of patients, each with its column; None if no column holds ids of half of the patients."""
    rows: dict[str, int] = {}
    whose = _whose(patients)
    for column in table.columns:
        found = {one: at for at, text in enumerate(table[column]) if (one := whose(str(text))) is not None}
        rows = found if len(found) > len(rows) else rows
    if len(rows) < 0.5 * len(patients) or not rows:
        return None
    columns = {str(name).strip().lower(): name for name in table.columns}
    sets: tuple[dict[str, SetOf], str] = ({}, "")
    groups: tuple[dict[str, str], str] = ({}, "")
    for word in SET_COLUMNS:
        if word in columns and not sets[0]:
            values = {one: str(table[columns[word]].iloc[at]).strip().lower() for one, at in rows.items()}
            named: dict[str, SetOf] = {one: SETS[value] for one, value in values.items() if value in SETS}
            if len(named) >= 0.5 * len(rows):
                sets = named, str(columns[word])
    telling = [name for word in GROUPS for column, name in columns.items() if word in re.findall("[a-z]+", column)]
    for column in telling:
        values = {one: str(table[column].iloc[at]).strip() for one, at in rows.items()}
        values = {one: value for one, value in values.items() if value}
        if not groups[0] and 2 <= len(set(values.values())) <= most_groups(len(rows)):
            groups = values, str(column)
    return groups, sets


def _whose(patients: Sequence[str]) -> Callable[[str], str | None]:
    """What finds the patient that a cell names: by the id, or by its last number where no other id ends in that."""
    ids, numbers = set(patients), dict[int, list[str]]()
    for one in patients:
        if last := re.search("([0-9]+)$", one):
            numbers.setdefault(int(last[1]), []).append(one)

    def whose(text: str) -> str | None:
        text = re.sub(r"\.nii(\.gz)?$", "", text.strip())
        if text in ids:
            return text
        named = numbers.get(int(text), []) if re.fullmatch("[0-9]{1,12}", text) else []
        return named[0] if len(named) == 1 else None

    return whose
