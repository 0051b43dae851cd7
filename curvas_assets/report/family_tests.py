"""Tests of families and predictors against each other as tables, of this run and of the published study alike.

Belongs here: which columns each test shows, and what is bold. Does not belong here: the tests (`curvas_assets.statistics`).
"""

from functools import partial
from typing import get_args

import pandas as pd

from curvas_assets.report.blocks import Block, Heading
from curvas_assets.report.facts import Facts
from curvas_assets.report.tables import MISSING, statistic
from curvas_assets.statistics import with_questions
from curvas_assets.statistics.families import EXPLORATORY, FEWEST
from curvas_assets.study import Family

CORRECTED = ("p_bonferroni", "p_adjusted")
"""p values that may be called significant: the published test's own, corrected for the pairs, and the one that is corrected for
every test of a primary metric."""
SHOWN = {
    "published_test": (
        *("metric", "pair", "question", "n_first", "n_second", "nan_first", "nan_second", "U", "p", "p_bonferroni"),
    ),
    "within_test": (
        *("metric", "pair", "question", "n_pairs", "unpaired_patients", "win_probability", "p_randomisation"),
        *("p_smallest", "p_randomisation_holm", "p_adjusted", "p_randomisation_two_sided"),
        *("mean_difference", "interval", "note"),
    ),
}
"""Test → its columns."""


def comparison_tables(facts: Facts, comparisons: pd.DataFrame, *, folded: bool = False) -> list[Block]:
    """Both tests of every metric and pair, significant p values in bold.

    Args:
        facts: of the report.
        comparisons: as from `compare_all_families`, at least one row.
        folded: whether the page shows the tables only on a click.
    """
    w, settings = facts.words, facts.study.statistics
    shown = with_questions(comparisons.reset_index(drop=True), settings)
    # With too few patients, and for metrics that answer no question, neither test calls anything significant.
    judged = (shown["n_pairs"] >= FEWEST) & (shown["question"] != EXPLORATORY)
    strong = pd.DataFrame({name: judged & (shown[name] < settings.alpha) for name in CORRECTED})
    shown = shown.assign(
        interval=[
            w.interval(low, high) or MISSING
            for low, high in zip(shown["interval_low"], shown["interval_high"], strict=True)
        ],
        pair=pairs(facts, shown),
        metric=[facts.titled(str(metric)) for metric in shown["metric"]],
        question=[w.question(question) for question in shown["question"]],
    )
    if (shown["n_pairs"] >= FEWEST).all():
        shown = shown.drop(columns="p_smallest", errors="ignore")  # of more patients it is too small to matter
    own = ("p", "p_randomisation", "p_smallest", "p_randomisation_holm", "p_randomisation_two_sided")
    formats = dict.fromkeys((*own, *CORRECTED), w.p_value)
    formats |= {"U": partial(statistic, decimal=w.decimal)}
    caption = w("significant_note", alpha=facts.alpha, fewest=FEWEST)
    tables: list[Block] = []
    for test, names in SHOWN.items():
        table = facts.table(
            without_empty_notes(shown),
            facts.headings(*names),
            caption=caption,
            formats=formats,
            strong=strong,
            folded=folded,
        )
        tables += [Heading(w(test)), table]
    return tables


def pairs(facts: Facts, table: pd.DataFrame) -> list[str]:
    """`first vs second` of each row."""
    w = facts.words

    def short(side: str) -> str:
        return w(f"short_{side}") if side in get_args(Family) else side

    return [
        w("versus", first=short(first), second=short(second))
        for first, second in zip(table["first"], table["second"], strict=True)
    ]


def without_empty_notes(table: pd.DataFrame) -> pd.DataFrame:
    """A table without its column of notes where none is written."""
    return table if table["note"].astype(bool).any() else table.drop(columns="note")
