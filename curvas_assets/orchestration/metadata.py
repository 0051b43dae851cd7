"""How values become what people see in the UI: inline images, tables, shapes."""

import base64
from collections.abc import Sequence

import dagster as dg
import pandas as pd

TABLE_ROWS = 60
"""Rows of a table shown in the UI; the artefact holds all."""


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


def link(report: tuple[str, str] | None) -> dict[str, dg.MetadataValue]:
    """Where the report opens with a click, and until when; nothing without a report.

    Args:
        report: address and end, from `Bucket.report_link`.
    """
    if report is None:
        return {}
    address, until = report
    ends = f"{until}, or when the store gets another address; the job `about` gives a new link"
    return {"open the report": dg.MetadataValue.url(address), "the link ends": dg.MetadataValue.text(ends)}


def by(sizes: Sequence[float]) -> str:
    """`48 × 96 × 96`, `5 × 3.5 × 3.5`."""
    return " × ".join(f"{size:g}" for size in sizes)


def device(kind: str, leased: str | None) -> str:
    """`cuda 1`, `cpu`: what torch ran on, and which of the machine's devices that was."""
    return f"{kind} {leased}" if leased is not None and kind.startswith("cuda") else kind
