"""Sections as one offline HTML page and as Markdown, by the templates beside this file.

Belongs here: filling in the templates. Does not belong here: what is said (`sections`), how figures look (`screen`).
"""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup, escape

from curvas_assets.report import screen
from curvas_assets.report.blocks import FigureBlock, Section
from curvas_assets.report.chart import Chart
from curvas_assets.report.tables import BREAK, SHORT, Table
from curvas_assets.report.words import Words

_LONG_NAME = re.compile(rf"[\w-]{{{SHORT},}}")
_POWER = re.compile(" × 10(?=[⁻⁰¹²³⁴⁵⁶⁷⁸⁹])")


def charts_of(sections: Sequence[Section]) -> list[Chart]:
    """Every figure, in the order of reading."""
    return [block.chart for section in sections for block in section.blocks if isinstance(block, FigureBlock)]


def page(title: str, sections: Sequence[Section], words: Words, generated_at: str) -> str:
    """One self-contained HTML page, with plotly.js inside where there is a figure; what comes from outside is escaped.

    Args:
        title: of the report.
        sections: what it says.
        words: the language.
        generated_at: date and time as shown; empty for none.
    """
    charts = charts_of(sections)
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            **_said(title, sections, words, generated_at),
            drawn={chart.name: _interactive(chart) for chart in charts},
            numbers={chart.name: number for number, chart in enumerate(charts, start=1)},
            plotly_js=_plotly_js() if charts else "",
        )
    )


def markdown(title: str, sections: Sequence[Section], words: Words, generated_at: str) -> str:
    """The same as GitHub-flavoured Markdown, figures as links to `figures/<name>.png`; arguments as for `page`."""
    template = _environment().get_template("report.md.j2")
    return template.render(**_said(title, sections, words, generated_at)).rstrip() + "\n"


def html_table(table: Table, caption: str = "") -> str:
    """A table as HTML."""
    return _macros("blocks.html.j2").table(table, caption)


def markdown_table(table: Table) -> str:
    """A table as Markdown."""
    return _macros("blocks.md.j2").table(table)


def _said(title: str, sections: Sequence[Section], words: Words, generated_at: str) -> Mapping[str, Any]:
    return {"title": title, "sections": sections, "words": words, "generated_at": generated_at}


def _interactive(chart: Chart) -> str:
    """The interactive figure without plotly.js, under a fixed id so that equal reports are equal."""
    return screen.draw(chart).to_html(
        full_html=False,
        include_plotlyjs=False,
        div_id=f"plot-{chart.name}",
        config={
            "displaylogo": False,
            "responsive": True,
            "toImageButtonOptions": {"format": "svg", "filename": chart.name},
            "modeBarButtonsToRemove": ["select2d", "lasso2d", "sendDataToCloud"],
        },
    )


@cache
def _plotly_js() -> str:
    from plotly.offline import get_plotlyjs

    # A literal closing tag inside the script would end it; plotly has none today, and this keeps it so.
    return get_plotlyjs().replace("</script", "<\\/script")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("curvas_assets.report"),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["in_cell"] = _in_cell
    environment.filters["broken"] = _broken
    return environment


def _macros(template: str) -> Any:
    return _environment().get_template(template).module


def _broken(text: str) -> Markup:
    """Text of a cell with its line breaks; a power of ten stays on one line, and a long name may break after `_`."""
    whole = escape(_POWER.sub("\u00a0×\u00a010", text.replace(BREAK, "\n")))
    return Markup(_LONG_NAME.sub(lambda name: name[0].replace("_", "_<wbr>"), whole))


def _in_cell(text: str) -> str:
    """Text that stays inside its Markdown cell."""
    return (
        text.replace("\\", "\\\\")
        .replace("|", "\\|")
        .replace("<", "&lt;")
        .replace("*", "\\*")
        .replace("\n", " ")
        .replace(BREAK, " ")
    )
