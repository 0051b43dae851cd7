"""Reads a study file as YAML, strictly: its fields, and the line of each.

Belongs here: encoding, syntax, and values that YAML 1.1 silently reads differently from what people mean. Does not
belong here: what the fields mean (`curvas_assets.study`).
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from curvas_assets.errors import StudyError

LARGEST = 1 << 20
"""Bytes; the largest built-in study has 3 KB."""
DISGUISED = re.compile(r"[-+]?(?:0[0-7_]+|0[bBxX][0-9a-fA-F_]+|[0-9][0-9_]*(?::[0-5]?[0-9])+|[0-9]+_[0-9_]*)")
"""What YAML 1.1 reads as another number than it looks like: 010 (8), 0x10 (16), 1:30 (90), 1_0 (10)."""
INTEGER = "tag:yaml.org,2002:int"


@dataclass(frozen=True)
class StudyFile:
    """The content of a study file.

    Args:
        fields: its content.
        lines: path of a field, e.g. ("training", "epochs") → its line, counted from 1.
    """

    fields: dict[Any, Any]
    lines: dict[tuple[str, ...], int]

    def line(self, where: Iterable[Any]) -> int | None:
        """The line of a field, or of the part that contains it; None if neither is in the file."""
        path = tuple(map(str, where))
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines[path] if path else None


class _Loader(yaml.SafeLoader):
    """A loader that refuses what YAML silently loses or changes: duplicate keys, disguised numbers, aliases."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.constructor.ConstructorError(
                None, None, "aliases (*name) are not allowed in a study file", event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a field's name is plain text", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key.value!r} is already defined on line {seen[key.value]}", key.start_mark
                )
            seen[key.value] = key.start_mark.line + 1
        return super().construct_mapping(node, deep)

    def construct_scalar(self, node: Any) -> Any:
        if node.tag == INTEGER and DISGUISED.fullmatch(node.value):
            read = self.construct_yaml_int(yaml.ScalarNode("", node.value))
            raise yaml.constructor.ConstructorError(
                None,
                None,
                f"YAML reads the bare {node.value} as {read}: quote it, '{node.value}', or write {read}",
                node.start_mark,
            )
        return super().construct_scalar(node)


def read_study_file(path: Path, source: str, remedy: str) -> StudyFile:
    """A study's YAML.

    Args:
        path: of the file, UTF-8 with or without a byte order mark.
        source: as people named it, for errors.
        remedy: what to do where there is no such file.

    Raises:
        StudyError: there is no such file, or it is not UTF-8, or not unambiguous YAML.
    """

    def refused(found: str, what_to_do: str) -> StudyError:
        return StudyError("loading the study", source, found, what_to_do)

    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise refused("there is neither a file nor a built-in study of that name", remedy) from error
    except (OSError, ValueError) as error:
        raise refused(f"it cannot be read ({type(error).__name__})", remedy) from error
    if len(content) > LARGEST:
        raise refused(f"it has {len(content)} bytes; a study file has at most {LARGEST}", remedy)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise refused(
            f"line {line}: byte {content[error.start]:#04x} is not UTF-8 (a file saved as Latin-1 or UTF-16?)",
            "Save it as UTF-8.",
        ) from error
    lines: dict[tuple[str, ...], int] = {}
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        fields = None if node is None else loader.construct_document(node)
        _note_lines(node, (), lines)
    except yaml.YAMLError as error:
        raise refused(f"it is not YAML: {_where(error)}", "Correct the file at the place named.") from error
    except (ValueError, OverflowError, RecursionError, TypeError, AttributeError, LookupError) as error:
        raise refused(
            f"it is not YAML that can be read: {type(error).__name__}: {error}",
            "Start from curvas_assets/studies/phantom.yaml; quote text that looks like a date or a number.",
        ) from error
    finally:
        if loader is not None:
            loader.dispose()
    if not isinstance(fields, dict):
        raise refused(
            f"it holds {type(fields).__name__}, not fields with values",
            "Start from curvas_assets/studies/phantom.yaml.",
        )
    return StudyFile(fields, lines)


def _where(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None)
    if mark is None or problem is None:
        return " ".join(str(error).split())
    context = getattr(error, "context", None)
    return f"line {mark.line + 1}, column {mark.column + 1}: {f'{context}, ' if context else ''}{problem}"


def _note_lines(node: yaml.Node | None, path: tuple[str, ...], lines: dict[tuple[str, ...], int]) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            lines[*path, str(key.value)] = key.start_mark.line + 1
            _note_lines(value, (*path, str(key.value)), lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines[*path, str(index)] = value.start_mark.line + 1
            _note_lines(value, (*path, str(index)), lines)
