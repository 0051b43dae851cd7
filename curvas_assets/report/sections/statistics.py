"""Tests of families against each other, non-inferiority in accuracy, and the association of Dice and entropy."""

from curvas_assets.report.blocks import Absent, Block, Heading, Text
from curvas_assets.report.facts import Facts
from curvas_assets.report.family_tests import comparison_tables, pairs, without_empty_notes
from curvas_assets.statistics.families import FEWEST
from curvas_assets.study import Statistics


def write(facts: Facts) -> list[Block]:
    """What is tested and for whom, both tests, the margin, and the association."""
    w, settings = facts.words, facts.study.statistics
    primary = ", ".join(
        w("primary_one", question=w.question(q), metric=w.metric(m)) for q, m in settings.primary.items()
    )
    comparisons = facts.comparisons
    return [
        Text(w("statistics_text", draws=settings.draws, fewest=FEWEST)),
        Text(w("primary_text", primary=primary, alpha=facts.alpha, fewest=FEWEST)),
        facts.claim(),
        *facts.few(),
        *(comparison_tables(facts, comparisons) if len(comparisons) else [Absent(w("no_comparisons"))]),
        *_margin(facts),
        *_association(facts),
    ]


def _margin(facts: Facts) -> list[Block]:
    """Is anything of accuracy lost? The bound of each pair against the margin."""
    w, table = facts.words, facts.margins
    if not len(table):
        return [Heading(w("margin_title")), Absent(w("no_margin"))]
    settings, first = facts.study.statistics, table.iloc[0]
    usual = settings.non_inferiority_margin == Statistics().non_inferiority_margin and first["metric"] == "dice"
    text = w(
        "margin_text",
        metric=w.metric(str(first["metric"])),
        margin=w.number(float(first["margin"])),
        why=w("margin_why") if usual else w("margin_set"),
        level=w.percent(float(first["level"])),
        fewest=FEWEST,
    )
    shown = without_empty_notes(table.assign(pair=pairs(facts, table)))
    columns = facts.headings("pair", "n_pairs", "mean_difference", "bound", "margin", "not_inferior", "note")
    return [Heading(w("margin_title")), Text(text), facts.table(shown, columns, caption=w("margin_title"))]


def _association(facts: Facts) -> list[Block]:
    """Dice against entropy over patients, by family."""
    w, association = facts.words, facts.inputs.association
    if association is None or not len(association):
        return []
    shown = without_empty_notes(association.assign(family=[w.family(str(f)) for f in association["family"]]))
    columns = facts.headings(
        *("family", "n", "n_nan", "pearson", "p_pearson", "spearman", "p_spearman", "mutual_information", "r2", "note")
    )
    formats = {"p_pearson": w.p_value, "p_spearman": w.p_value}
    caption = w("association_caption", fewest=FEWEST)
    return [Heading(w("association_title")), facts.table(shown, columns, caption=caption, formats=formats)]
