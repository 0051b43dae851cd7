"""Claims proved here.

- Numbers keep three significant digits, powers of ten where they are small, a dash where they are missing.
- HTML is escaped, Markdown stays inside its cells, bold is where it was asked for, in both.
"""

from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curvas_assets.report.markup import html_table, markdown_table
from curvas_assets.report.tables import cell, number, p_value, table_of


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.8993, "0.899"),
        (1.0, "1.00"),
        (16.64, "16.6"),
        (19770.0, "19770"),
        (50979.5, "50979.5"),
        (0.00283, "0.00283"),
        (0.000283, "2.83 × 10⁻⁴"),
        (-0.0001, "−1.00 × 10⁻⁴"),
        (0.09996, "0.100"),
        (9.999, "10.0"),
        (0.0, "0"),
        (float("nan"), "–"),
        (float("inf"), "∞"),
        (float("-inf"), "−∞"),
    ],
)
def test_numbers_are_short_and_honest(value, text):
    assert number(value) == text


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=-1e12, max_value=1e12))
def test_a_number_is_within_half_a_percent_of_what_is_shown(value):
    text = number(value).replace("−", "-")
    if "×" in text:
        mantissa, power = text.split(" × 10")
        back = float(mantissa) * 10.0 ** int(power.translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")))
    else:
        back = float(text)
    assert back == pytest.approx(value, rel=0.0051)


def test_p_values_and_cells():
    assert p_value(2.02e-3) == "0.00202"
    assert p_value(4.06e-12, decimal=",") == "4,06 × 10⁻¹²"
    assert p_value(None) == "–"
    assert [cell(v) for v in (True, False, 3, np.int64(4), None, pd.NA, np.float64("nan"), (48, 96, 96), "a\n b")] == [
        "✓", "✗", "3", "4", "–", "–", "–", "48 × 96 × 96", "a b",
    ]  # fmt: skip


class Cells(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        if data.strip():
            self.text.append(data.strip())


def test_html_and_markdown_show_the_same_and_escape():
    frame = pd.DataFrame({"name": ["<script>", "a|b"], "value": [0.5, np.nan]}, index=[7, 3])
    strong = pd.DataFrame({"value": [True]}, index=[7])
    table = table_of(frame, {"name": "Name", "value": "Value", "absent": "?"}, strong=strong)
    parsed = Cells()
    parsed.feed(html_table(table, "A & B"))
    assert "script" not in parsed.tags
    assert parsed.text == ["A & B", "Name", "Value", "<script>", "0.500", "a|b", "–"]
    assert parsed.tags.count("strong") == 1
    lines = markdown_table(table).splitlines()
    assert lines[0] == "| Name | Value |"
    assert lines[1] == "| --- | ---: |"
    assert lines[2] == "| &lt;script> | **0.500** |"
    assert lines[3] == r"| a\|b | – |"


def test_a_power_of_ten_is_not_broken_over_two_lines_of_the_page():
    table = table_of(pd.DataFrame({"value": [2.5e-5], "patch": ["64 × 128"]}), {"value": "Value", "patch": "Patch"})
    assert "2.50\u00a0×\u00a010⁻⁵" in html_table(table)
    assert "64 × 128" in html_table(table)
