"""Tables for reading: numbers as text.

Belongs here: formatting. Does not belong here: averages, tests, sentences, markup (`markup`). A `Table` is text already, so
that HTML and Markdown show the same.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

MISSING = "–"
BREAK = "\u2028"
"""Breaks a line within a cell on the page; Markdown has a space there."""
SHORT = 30
"""Characters up to which a column's cells are kept on one line."""
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
Format = Callable[[object], str]


@dataclass(frozen=True)
class Table:
    """A table as it is shown.

    Args:
        header: one text per column.
        rows: texts, as many per row as columns.
        numeric: positions of the columns aligned right.
        strong: (row, column) positions in bold.
        unbroken: positions of the columns whose cells are kept on one line whatever their length; a line break in a cell
            stays one on the page.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: frozenset[int] = frozenset()
    strong: frozenset[tuple[int, int]] = field(default_factory=frozenset)
    unbroken: frozenset[int] = frozenset()

    @property
    def short(self) -> frozenset[int]:
        """Positions of the columns whose cells are all kept on one line."""
        within = (j for j in range(len(self.header)) if all(len(row[j]) <= SHORT for row in self.rows))
        return self.unbroken | frozenset(within)


def table_of(
    frame: pd.DataFrame,
    columns: Mapping[str, str],
    *,
    formats: Mapping[str, Format] | None = None,
    strong: pd.DataFrame | None = None,
    decimal: str = ".",
) -> Table:
    """A DataFrame as a `Table`.

    Args:
        frame: the numbers.
        columns: column of the frame → its heading, in the order shown; columns the frame lacks are left out.
        formats: column → its own formatting; numbers otherwise get three significant digits, the rest is written as it is.
        strong: booleans by the frame's index and (some of) its columns: what is bold.
        decimal: `.` or `,`.
    """
    shown = [column for column in columns if column in frame]
    own = formats or {}
    numeric = frozenset(
        j
        for j, column in enumerate(shown)
        if pd.api.types.is_numeric_dtype(frame[column]) and not pd.api.types.is_bool_dtype(frame[column])
    )
    write = {column: own.get(column, lambda value: cell(value, decimal=decimal)) for column in shown}
    rows = tuple(
        tuple(write[column](value) for column, value in zip(shown, values, strict=True))
        for values in frame[shown].itertuples(index=False, name=None)
    )
    bold = frozenset(
        (i, j)
        for j, column in enumerate(shown)
        if strong is not None and column in strong
        for i, is_strong in enumerate(strong[column].reindex(frame.index).fillna(False).tolist())
        if is_strong
    )
    return Table(tuple(columns[column] for column in shown), rows, numeric, bold)


def cell(value: object, *, decimal: str = ".") -> str:
    """Anything as text: numbers by `number`, what is missing as a dash."""
    if isinstance(value, bool):
        return "✓" if value else "✗"
    if isinstance(value, int):
        return str(value)
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return MISSING
    if isinstance(value, float):
        return number(value, decimal=decimal)
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        return cell(value.item(), decimal=decimal)  # type: ignore[attr-defined]
    if isinstance(value, list | tuple):
        return " × ".join(cell(one, decimal=decimal) for one in value)
    lines = str(value).split(BREAK)
    return BREAK.join(re.sub(r"[ \t\r\n]+", " ", line).strip(" ") for line in lines)  # a non-breaking space stays


def number(value: float, *, digits: int = 3, decimal: str = ".") -> str:
    """A number with so many significant digits; very small and large ones as a power of ten.

    >>> number(0.89931), number(0.00283), number(0.000000785), number(50979.5), number(float("nan")), number(16640.0)
    ('0.899', '0.00283', '7.85 × 10⁻⁷', '50979.5', '–', '16640')
    """
    if math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    exponent = int(f"{value:.{digits - 1}e}".split("e")[1])  # of the rounded number: 0.09996 is 0.100
    if exponent < -3 or exponent >= 7:
        mantissa, power = f"{value:.{digits - 1}e}".split("e")
        text = f"{mantissa} × 10{str(int(power)).translate(_SUPERSCRIPTS)}"
    elif exponent >= digits:
        text = f"{value:.1f}".removesuffix(".0")
    else:
        text = f"{float(f'{value:.{digits}g}'):.{max(0, digits - 1 - exponent)}f}"
    return text.replace("-", "−").replace(".", decimal)


def statistic(value: object, *, decimal: str = ".") -> str:
    """A rank sum: whole, or with its half.

    >>> statistic(5701.0), statistic(50979.5), statistic(float("nan"))
    ('5701', '50979.5', '–')
    """
    if not isinstance(value, float) or math.isnan(value):
        return MISSING
    return f"{value:.1f}".removesuffix(".0").replace(".", decimal)


def p_value(value: object, *, decimal: str = ".") -> str:
    """A p value: three significant digits, powers of ten below 0.001.

    >>> p_value(0.2594), p_value(7.85e-7), p_value(1.0), p_value(0.0)
    ('0.259', '7.85 × 10⁻⁷', '1.00', '< 10⁻³⁰⁰')
    """
    if not isinstance(value, float) or math.isnan(value):
        return MISSING
    if value < 1e-300:
        return "< 10⁻³⁰⁰"
    if value < 1e-3:
        mantissa, power = f"{value:.2e}".split("e")
        return f"{mantissa} × 10{str(int(power)).translate(_SUPERSCRIPTS)}".replace(".", decimal)
    return number(value, decimal=decimal)


def counted(values: Sequence[str]) -> str:
    """Names joined with commas, the many cut short with their count."""
    return ", ".join(values) if len(values) <= 12 else ", ".join(values[:10]) + f", … ({len(values)})"
