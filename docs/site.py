"""Pages of the documentation that are made from the project, so that nothing is written twice.

MkDocs calls the functions named `on_…`. They add the project's own Markdown files, the references of the study file, the assets and
the metrics, and one page a package; links to other files of the repository lead to copies of these files in the site.
"""

import json
import pkgutil
import posixpath
import re
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from curvas_assets.scoring import METRICS
from curvas_assets.scoring.registry import INF, Metric
from curvas_assets.stages.table import ASSETS, Asset
from curvas_assets.study import Study
from curvas_assets.study_schema import schema_text

ROOT = Path(__file__).resolve().parents[1]
INCLUDED = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "deploy/OPERATING.md": "on-duty.md",
    "curvas_assets/decisions.md": "decisions.md",
    "curvas_assets/scoring/definitions.md": "reference/definitions.md",
}
"""Markdown file of the repository → page of the site."""
SCHEMA = "reference/study.schema.json"
"""Where the site has the JSON schema of the study file."""
PACKAGES = (
    "cohort",
    "dicom",
    "segmentation",
    "ensembling",
    "calibration",
    "scoring",
    "statistics",
    "report",
    "sharing",
    "storage",
    "submission",
    "stages",
    "orchestration",
    "local",
)
LINK = re.compile(r"(\]\()(?!https?:|mailto:|#)([^)#\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add every page that is made here, and the files that pages link to."""
    pages = {
        **{page: (ROOT / source).read_text(encoding="utf-8") for source, page in INCLUDED.items()},
        "reference/study-file.md": study_file_page(),
        "reference/assets.md": assets_page(),
        "reference/metrics.md": metrics_page(),
        "reference/curvas_assets.md": modules_page("curvas_assets", "What all packages share."),
        "reference/assets-package.md": modules_page("curvas_assets.assets", "Assets as Dagster sees them."),
        **{f"reference/{name}.md": package_page(f"curvas_assets.{name}") for name in PACKAGES},
    }
    for uri, content in {**pages, SCHEMA: schema_text()}.items():
        files.append(File.generated(config, uri, content=content))
    linked = {
        target for page in [*files.documentation_pages()] for target in _linked_files(page.src_uri, page.content_string)
    }
    for target in sorted(linked):
        files.append(File.generated(config, f"files/{target}", content=(ROOT / target).read_bytes()))
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """Links to files of the repository become links to pages or to copies of the files."""
    here = page.file.src_uri

    def led(match: re.Match[str]) -> str:
        target = _in_repository(here, match[2])
        uri = _page_of(target) or (f"files/{target}" if (ROOT / target).is_file() else None)
        return match[0] if uri is None else match[1] + posixpath.relpath(uri, posixpath.dirname(here) or ".")

    return LINK.sub(led, markdown)


def _source_of(uri: str) -> str:
    """Where a page stands in the repository."""
    return next((source for source, page in INCLUDED.items() if page == uri), f"docs/{uri}")


def _page_of(source: str) -> str | None:
    """The page that a file of the repository is."""
    if source in INCLUDED:
        return INCLUDED[source]
    return source.removeprefix("docs/") if source.startswith("docs/") and source.endswith(".md") else None


def _in_repository(uri: str, target: str) -> str:
    """The file of the repository that a link of a page leads to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(_source_of(uri)), target))


def _linked_files(uri: str, markdown: str) -> Iterator[str]:
    for match in LINK.finditer(markdown):
        target = _in_repository(uri, match[2])
        if _page_of(target) is None and (ROOT / target).is_file():
            yield target


# The study file ------------------------------------------------------------------------------------------------------


def study_file_page() -> str:
    """Every field of the study file, from the model."""
    head = (
        "# The study file\n\n"
        "One YAML file describes a study. `load_study` checks the whole file when the code location loads, and reports all mistakes "
        "together, each with its line. Complete examples are [curvas.yaml](../../curvas_assets/studies/curvas.yaml), the published "
        "study, and [demo.yaml](../../curvas_assets/studies/demo.yaml), the demo. This page is made from "
        "`curvas_assets.study.Study`, as is [the JSON schema](study.schema.json), by which editors complete and check the "
        "file: `curvas-init` writes it beside a study file, and the file's first line names it "
        "(`# yaml-language-server: $schema=study.schema.json`).\n"
    )
    parts = [head, _fields(Study)]
    for name, field in Study.model_fields.items():
        if part := _model_of(field.annotation):
            parts.append(f"## `{name}` {{ #{name} }}\n\n{' '.join((part.__doc__ or '').split())}\n\n{_fields(part)}")
    return "\n\n".join(parts) + "\n"


def _model_of(annotation: Any) -> type[BaseModel] | None:
    """The model that a field holds, alone or in a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_of, get_args(annotation))), None)


def _fields(model: type[BaseModel]) -> str:
    rows = []
    for name, field in model.model_fields.items():
        if part := _model_of(field.annotation):
            allowed = f"[fields](#{name})" if part is field.annotation else f"list of [fields](#{name})"
        else:
            allowed = _allowed(field.annotation, field.metadata)
        rows.append((f"`{name}`", allowed, _default(field), " ".join((field.description or "").split())))
    return _table(("field", "allowed", "if left out", "meaning"), rows)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    default = field.get_default(call_default_factory=True, validated_data={})
    if isinstance(default, BaseModel):
        return "their defaults"
    if default is None or default == {}:
        return "–"
    return f"`{json.dumps(default, ensure_ascii=False)}`"


def _allowed(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """What a value may be, in words."""
    kind, arguments = get_origin(annotation), get_args(annotation)
    if kind is Annotated:
        return _allowed(arguments[0], [*arguments[1:], *metadata])
    if kind is Literal:
        return ", ".join(f"`{json.dumps(one) if isinstance(one, bool) else one}`" for one in arguments)
    if kind in (Union, UnionType):
        return " or ".join(_allowed(one, metadata) for one in arguments if one is not NoneType)
    if kind is tuple and arguments[-1] is not Ellipsis:
        return f"list of {len(arguments)}: {_allowed(arguments[0])}"
    if kind is tuple:
        return f"list: {_allowed(arguments[0])}"
    if kind is dict:
        return f"{_allowed(arguments[0])} → {_allowed(arguments[1])}"
    word = {str: "text", int: "whole number", float: "number", bool: "`true`, `false`"}[annotation]
    return ", ".join([word, *_limits(metadata)])


def _limits(metadata: Sequence[Any]) -> Iterator[str]:
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    for limit in metadata:
        yield from _limits(getattr(limit, "metadata", ()))
        yield from (f"{sign} {getattr(limit, name)}" for name, sign in signs.items() if hasattr(limit, name))


# Assets and metrics --------------------------------------------------------------------------------------------------


def assets_page() -> str:
    """Every asset, from the table of stages."""
    rows = [
        (
            f"`{row.name}`",
            (row.axis or "").replace("_", " "),
            row.kind,
            _names(row.inputs),
            _names(row.after),
            _names(row.jobs),
        )
        for row in ASSETS
    ]
    head = ("asset", "partitioned along", "an artefact is a", "reads", "also follows", "made by the jobs")
    return f"# Assets\n\nMade from `curvas_assets.stages.table`.\n\n{_table(head, rows)}\n"


def _names(assets: tuple[Asset | str, ...]) -> str:
    return ", ".join(f"`{one}`" for one in assets)


def metrics_page() -> str:
    """Every registered metric, by what it judges."""
    parts = [
        "# Metrics",
        "Made from `curvas_assets.scoring.METRICS`. Formulae and conventions are in "
        "[the definitions](../../curvas_assets/scoring/definitions.md). The tests hold each metric against the independent "
        "implementation that its row names.",
    ]
    for family in dict.fromkeys(metric.family for metric in METRICS.values()):
        rows = [_metric(metric) for metric in METRICS.values() if metric.family == family]
        head = (
            "metric",
            "definition",
            "range",
            "better",
            "one value per",
            "where there is nothing",
            "independently by",
            "reference",
        )
        parts += [f"## {family.capitalize()}", _table(head, rows)]
    return "\n\n".join(parts) + "\n"


def _metric(metric: Metric) -> tuple[str, ...]:
    high = "∞" if metric.high == INF else f"{metric.high:g}"
    spread = f"{metric.low:g} … {high} {metric.unit}".strip()
    only = {"": "", "thresholds": "; with `reference: thresholds`", "vessels": "; with `evaluation.vascular`"}[
        metric.only
    ]
    definition = metric.definition + ("; of ensembles only" if metric.of_ensembles else "") + only
    better = metric.direction or "neither"
    return (
        f"`{metric.name}`",
        definition,
        spread,
        better,
        metric.per,
        metric.when_empty,
        metric.oracle,
        metric.reference,
    )


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


# Packages ------------------------------------------------------------------------------------------------------------


def package_page(name: str) -> str:
    """The doors of a package: the names it exports, or all its modules where it exports none."""
    package = import_module(name)
    doors = getattr(package, "__all__", None)
    if doors is None:
        return modules_page(name, package.__doc__ or "")
    return "\n\n".join([f"# {name}", package.__doc__ or "", *(f"::: {name}.{door}" for door in doors)]) + "\n"


def modules_page(name: str, introduction: str) -> str:
    """The public names of every module of a package."""
    folder = ROOT.joinpath(*name.split("."))
    modules = [
        one.name for one in pkgutil.iter_modules([str(folder)]) if not one.ispkg and not one.name.startswith("_")
    ]
    return "\n\n".join([f"# {name}", introduction, *(f"::: {name}.{module}" for module in modules)]) + "\n"
