"""How facts become what people see in the UI: inline images, tables, links."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg
import pandas as pd

from curvas_assets.stages.stored import Markdown, Picture

URI, COLUMNS, ROWS = "dagster/uri", "dagster/column_schema", "dagster/row_count"
"""Names by which Dagster's catalogue knows where an artefact stands, and the columns and rows of a table."""
TABLE_ROWS = 60
"""Rows of a table shown in the UI; the artefact holds all."""


def shown(facts: Mapping[str, Any]) -> dict[str, Any]:
    """A stage's facts as Dagster's metadata: tables, pictures and formatted text as such, the rest as Dagster takes it."""
    return {name: _shown(fact) for name, fact in facts.items()}


def _shown(fact: Any) -> Any:
    match fact:
        case pd.DataFrame():
            return table(fact)
        case Picture():
            return image(fact.png, fact.title)
        case Markdown():
            return dg.MetadataValue.md(fact)
        case dict() | list():
            return dg.MetadataValue.json(fact)
        case _:
            return fact


def image(png: bytes, title: str) -> dg.MarkdownMetadataValue:
    """A PNG that the UI shows behind the metadata's link."""
    return dg.MetadataValue.md(f"![{title}](data:image/png;base64,{base64.b64encode(png).decode()})")


def table(frame: pd.DataFrame) -> dg.TableMetadataValue:
    """The first rows of a table. Numbers are shown as text: a NaN would break the page's JSON."""
    shown = frame.head(TABLE_ROWS).map(lambda cell: f"{cell:.5g}" if isinstance(cell, float) else str(cell))
    names = [str(column) for column in frame.columns]
    records = [dg.TableRecord(dict(zip(names, row, strict=True))) for row in shown.to_numpy().tolist()]
    if len(frame) > TABLE_ROWS:
        more = dict.fromkeys(names, "…") | {names[0]: f"… {len(frame) - TABLE_ROWS} more rows"}
        records.append(dg.TableRecord(more))
    return dg.MetadataValue.table(records, schema=dg.TableSchema([dg.TableColumn(name) for name in names]))


def catalogued(frame: pd.DataFrame) -> dict[str, Any]:
    """Columns and rows of a table that was stored, as Dagster's catalogue shows them."""
    columns = [dg.TableColumn(str(name), str(kind)) for name, kind in frame.dtypes.items()]
    return {ROWS: len(frame), COLUMNS: dg.TableSchema(columns)}


OPENS = "open the report"


def link(report: tuple[str, str] | None, served: str = "") -> dict[str, dg.MetadataValue]:
    """Where the newest report opens with a click, and until when; nothing without a report.

    Args:
        report: address and end, from `Bucket.report_link`.
        served: address of the server that shows reports, if there is one. It never ends.
    """
    if report is None:
        return {}
    if served:
        return {OPENS: dg.MetadataValue.url(served)}
    address, until = report
    ends = f"{until}, or when the store gets another address; the job `about` gives a new link"
    return {OPENS: dg.MetadataValue.url(address), "the link ends": dg.MetadataValue.text(ends)}


def earlier(reports: Sequence[tuple[str, str]], most: int = 10) -> dict[str, dg.MetadataValue]:
    """The reports before the newest one, each with a link; nothing if there are none.

    Args:
        reports: time and address, from `Bucket.kept_report_links`.
        most: that are shown.
    """
    lines = [f"- [{when}]({address})" for when, address in reports[1 : most + 1]]
    return {"earlier reports": dg.MetadataValue.md("\n".join(lines))} if lines else {}
