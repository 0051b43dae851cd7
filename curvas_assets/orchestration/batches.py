"""How a set of due partitions becomes few runs: contiguous ranges, and rectangles of a grid. Pure; launches nothing."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Batch(NamedTuple):
    """Partitions that one run makes.

    Args:
        first: key of the first, in the order of the definition.
        last: key of the last.
        size: how many there are.
    """

    first: str
    last: str
    size: int


def ranges(wanted: Iterable[str], order: Sequence[str], limit: int) -> list[Batch]:
    """Contiguous runs of keys, each of at most `limit` keys.

    >>> ranges({"a", "b", "d"}, "abcd", 10)
    [Batch(first='a', last='b', size=2), Batch(first='d', last='d', size=1)]
    """
    chosen = set(wanted)
    found: list[Batch] = []
    before = -2
    for position, key in enumerate(order):
        if key not in chosen:
            continue
        if found and position == before + 1 and found[-1].size < limit:
            found[-1] = Batch(found[-1].first, key, found[-1].size + 1)
        else:
            found.append(Batch(key, key, 1))
        before = position
    return found


def rectangles(
    wanted: Iterable[tuple[str, str]], columns: Sequence[str], rows: Sequence[str], limit: int
) -> list[tuple[tuple[str, str], tuple[str, str], int]]:
    """Rectangles that cover the wanted cells (column, row) and nothing else, as (first cell, last cell, count).

    A row's cells stay together where `limit` allows: a patient (row) is fetched once for all its models (columns).

    >>> rectangles({("m1", "p1"), ("m2", "p1"), ("m1", "p2"), ("m2", "p2"), ("m2", "p3")}, ["m1", "m2"], ["p1", "p2", "p3"], 10)
    [(('m1', 'p1'), ('m2', 'p2'), 4), (('m2', 'p3'), ('m2', 'p3'), 1)]
    """
    by_row: dict[str, set[str]] = {}
    for column, row in wanted:
        by_row.setdefault(row, set()).add(column)
    found: list[tuple[tuple[str, str], tuple[str, str], int]] = []
    open_spans: dict[tuple[str, str], int] = {}
    """Span of columns → index in `found` of the rectangle that the next row may extend."""
    for row in rows:
        spans = ranges(by_row.get(row, ()), columns, limit)
        extended: dict[tuple[str, str], int] = {}
        for first, last, count in spans:
            index = open_spans.get((first, last))
            if index is not None and found[index][2] + count <= limit:
                start, _, area = found[index]
                found[index] = (start, (last, row), area + count)
            else:
                index = len(found)
                found.append(((first, row), (last, row), count))
            extended[first, last] = index
        open_spans = extended
    return found
