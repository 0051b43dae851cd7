"""Claims proved here.

- Ranges and rectangles cover exactly the wanted partitions, each once, none larger than the limit.
- A full grid is one rectangle; one missing cell is one rectangle of one.
"""

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from curvas_assets.orchestration.batches import ranges, rectangles

COLUMNS = [f"m{i}" for i in range(5)]
ROWS = [f"p{i}" for i in range(6)]
CELLS = list(product(COLUMNS, ROWS))


def _cells(rectangle):
    (first_column, first_row), (last_column, last_row), _ = rectangle
    columns = COLUMNS[COLUMNS.index(first_column) : COLUMNS.index(last_column) + 1]
    rows = ROWS[ROWS.index(first_row) : ROWS.index(last_row) + 1]
    return list(product(columns, rows))


@given(st.sets(st.sampled_from(CELLS)), st.integers(1, 40))
def test_rectangles_cover_exactly_the_wanted_cells_once(wanted, limit):
    found = rectangles(wanted, COLUMNS, ROWS, limit)
    covered = [cell for rectangle in found for cell in _cells(rectangle)]
    assert sorted(covered) == sorted(wanted)
    assert all(len(_cells(rectangle)) == rectangle[2] <= limit for rectangle in found)


@given(st.sets(st.sampled_from(ROWS)), st.integers(1, 6))
def test_ranges_cover_exactly_the_wanted_keys_once(wanted, limit):
    found = ranges(wanted, ROWS, limit)
    covered = [row for first, last, _ in found for row in ROWS[ROWS.index(first) : ROWS.index(last) + 1]]
    assert covered == sorted(wanted)
    assert all(count <= limit for _, _, count in found)


def test_a_full_grid_is_one_rectangle():
    assert rectangles(CELLS, COLUMNS, ROWS, 100) == [(("m0", "p0"), ("m4", "p5"), 30)]


def test_one_missing_cell_is_one_rectangle_of_one():
    assert rectangles([("m2", "p3")], COLUMNS, ROWS, 100) == [(("m2", "p3"), ("m2", "p3"), 1)]
