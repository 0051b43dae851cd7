"""Tests of families against each other as tables, of this run and of the published study alike.

Belongs here: which columns each test shows, and what is bold. Does not belong here: the tests (`curvas_assets.statistics`).
"""

from functools import partial

import pandas as pd

from curvas_assets.report.blocks import Block, Heading
from curvas_assets.report.facts import Facts
from curvas_assets.report.tables import MISSING, statistic
from curvas_assets.statistics import with_questions
from curvas_assets.statistics.families import EXPLORATORY, FEWEST

CORRECTED = ("p_bonferroni", "p_randomisation_holm")
"""p values corrected for the pairs: what may be called significant."""
SHOWN = {
    "published_test": (
        *("metric", "pair", "question", "n_first", "n_second", "nan_first", "nan_second", "U", "p", "p_bonferroni"),
    ),
    "within_test": (
        *("metric", "pair", "question", "n_pairs", "unpaired_patients", "win_probability", "p_randomisation"),
        *("p_randomisation_holm", "p_randomisation_two_sided", "mean_difference", "interval", "note"),
    ),
}
"""Test → its columns."""


def comparison_tables(facts: Facts, comparisons: pd.DataFrame, *, folded: bool = False) -> list[Block]:
    """Both tests of every metric and pair of families, significant p values in bold.

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
    formats = dict.fromkeys(("p", "p_randomisation", "p_randomisation_two_sided", *CORRECTED), w.p_value)
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
    return [
        w("versus", first=w(f"short_{first}"), second=w(f"short_{second}"))
        for first, second in zip(table["first"], table["second"], strict=True)
    ]


def without_empty_notes(table: pd.DataFrame) -> pd.DataFrame:
    """A table without its column of notes where none is written."""
    return table if table["note"].astype(bool).any() else table.drop(columns="note")
