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


def table(frame: pd.DataFrame) -> dg.MarkdownMetadataValue:
    """The first rows of a table, as Markdown."""
    shown = frame.head(TABLE_ROWS).map(lambda cell: f"{cell:.5g}" if isinstance(cell, float) else str(cell))
    lines = [" | ".join(map(str, frame.columns)), " | ".join("---" for _ in frame.columns)]
    lines += [" | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) for row in shown.to_numpy()]
    more = f"\n\n… {len(frame) - TABLE_ROWS} more rows" if len(frame) > TABLE_ROWS else ""
    return dg.MetadataValue.md("\n".join(f"| {line} |" for line in lines) + more)


def by(sizes: Sequence[float]) -> str:
    """`48 × 96 × 96`, `5 × 3.5 × 3.5`."""
    return " × ".join(f"{size:g}" for size in sizes)


def device(kind: str, leased: str | None) -> str:
    """`cuda 1`, `cpu`: what torch ran on, and which of the machine's devices that was."""
    return f"{kind} {leased}" if leased is not None and kind.startswith("cuda") else kind
