"""This run beside the challenge's teams and beside the published study."""

import dataclasses
from typing import Any

import pandas as pd

from curvas_assets.report.blocks import Absent, Block, Heading, TableBlock, Text
from curvas_assets.report.facts import Facts
from curvas_assets.report.family_tests import comparison_tables
from curvas_assets.report.tables import MISSING, counted, table_of
from curvas_assets.statistics import (
    PublishedScores,
    leaderboard_wide,
    published_comparability,
    published_tests,
    reduce_scores,
    scored_in_mm3,
    shown_differences,
    summarise,
    with_unit,
)

PRINTED = {"dice": (100, 2), "confidence": (100, 2), "ece": (1000, 2), "crps": (1, 2), "overall": (1, 2)}
"""Column of the challenge's table → factor and decimals in which it prints it."""
OTHERS_SHOWN = (
    *("metric", "pair", "n_pairs", "mean_first", "mean_second", "mean_difference", "interval"),
    *("win_probability", "p_adjusted", "note"),
)
"""Columns that are shown of another study's comparison."""
PRINTED_UNITS = {"dice": "%", "confidence": "%", "ece": "×10⁻³", "crps": "cm³"}


def write(facts: Facts) -> list[Block]:
    """The leaderboard, then the published study; a sentence stands for either that is missing."""
    w, board, published = facts.words, facts.inputs.leaderboard, facts.inputs.published
    return [
        Heading(w("leaderboard_title")),
        *([Absent(w("no_leaderboard"))] if board is None or not len(board) else _leaderboard(facts, board)),
        Heading(w("published_title")),
        *([Absent(w("no_published"))] if published is None else _published(facts, published)),
        *_others(facts),
    ]


def _others(facts: Facts) -> list[Block]:
    """This study beside each other one that its file names, paired by patient; nothing if it names none."""
    w, study, found = facts.words, facts.study, facts.inputs.others
    blocks: list[Block] = []
    for other in study.compare_with:
        blocks.append(Heading(w("others_title", study=study.name, other=other)))
        rows = None if found is None else found[found["other"] == other]
        if rows is None or rows.empty:
            blocks.append(Absent(w("no_others", other=other)))
            continue
        blocks.append(Text(w("others_text", study=study.name, other=other, n=int(rows["n_pairs"].max()))))
        for level, own in rows.groupby("level", sort=False):
            families = level == "family"
            shown = shown_differences(own, scored_in_mm3(facts.scores)).assign(
                pair=[w.family(str(one)) if families else str(one) for one in own["first"]],
                metric=[with_unit(w.metric(str(metric)), facts.unit(str(metric))) for metric in own["metric"]],
                interval=[
                    w.interval(low, high) for low, high in zip(own["interval_low"], own["interval_high"], strict=True)
                ],
            )
            headings = facts.headings(*OTHERS_SHOWN) | {
                "pair": w.column("family" if families else "predictor"),
                "mean_first": study.name,
                "mean_second": other,
                "p_adjusted": w("corrected_p_two_sided"),
            }
            caption = w("others_families" if families else "others_predictors")
            blocks.append(facts.table(shown, headings, caption=caption, folded=not families))
    return blocks


def _leaderboard(facts: Facts, board: pd.DataFrame) -> list[Block]:
    w = facts.words
    ranked = set(board.loc[board["kind"] == "team", "metric"])
    left_out = board[~board["metric"].isin(ranked)].drop_duplicates("metric")
    return [
        Text(w("leaderboard_text")),
        Text(w("synthetic_cohort") if facts.study.synthetic else w("other_cohort", n=facts.patients)),
        *_barred(facts, board),
        *(
            Text(w("left_out_metric", metric=w.metric(str(metric)), why=w.told(str(why))))
            for metric, why in zip(left_out["metric"], left_out["comparability"], strict=True)
        ),
        _standings(facts, board, [str(metric) for metric in board["metric"].unique() if metric in ranked]),
        _comparability(facts, board),
    ]


def _barred(facts: Facts, board: pd.DataFrame) -> list[Block]:
    """One sentence if no metric of this run may be compared, all for the same reason."""
    ours = board[board["kind"] == "this run"]
    reasons = {facts.words.told(str(why)) for why in ours["comparability"]}
    if facts.study.synthetic or ours["comparable"].any() or len(reasons) != 1:
        return []
    [why] = reasons
    return [Text(f"{why[0].upper()}{why[1:]}.")]


def _standings(facts: Facts, board: pd.DataFrame, metrics: list[str]) -> TableBlock:
    """Teams and families with their values and ranks; this run in bold."""
    w, wide = facts.words, leaderboard_wide(board)
    columns = board.drop_duplicates("metric").set_index("metric")["column"]
    shown = pd.DataFrame({"entry": _entries(facts, wide)})
    for metric in metrics:
        shown[metric] = [
            _ranked(facts, columns[metric], value, rank)
            for value, rank in zip(wide[metric], wide[f"{metric}_rank"], strict=True)
        ]
    headings = facts.headings("entry") | {metric: _heading(facts, board, metric, columns[metric]) for metric in metrics}
    table = table_of(shown, headings, strong=pd.DataFrame({"entry": wide["kind"] == "this run"}))
    source = board.loc[board["kind"] == "team", "comparability"]
    caption = w.told(str(source.iloc[0])) if len(source) else ""
    return TableBlock(dataclasses.replace(table, numeric=frozenset(range(1, len(headings)))), caption)


def _heading(facts: Facts, board: pd.DataFrame, metric: str, column: str) -> str:
    """The metric in the challenge's unit, marked † where this run's may not be compared."""
    w = facts.words
    if metric == "overall":
        return w.column("overall")
    ours = board[(board["kind"] == "this run") & (board["metric"] == metric)]
    mark = " †" if len(ours) and not ours["comparable"].iloc[0] else ""
    return with_unit(w.metric(metric), PRINTED_UNITS[column]) + mark


def _ranked(facts: Facts, column: str, value: float, rank: Any) -> str:
    """A value as the challenge prints it, its rank in brackets."""
    if pd.isna(value):
        return MISSING
    factor, decimals = PRINTED[column]
    text = f"{factor * value:.{decimals}f}".replace(".", facts.words.decimal) if abs(value) < float("inf") else "∞"
    return text if pd.isna(rank) else f"{text} ({int(rank)})"


def _entries(facts: Facts, board: pd.DataFrame) -> list[str]:
    """Each row's name: a team's own, or the run and the family."""
    w = facts.words
    runs = {"this run": w.column("this_run")}
    return [
        str(entry) if kind == "team" else f"{runs.get(kind, w.column('published'))} – {w.family(str(entry))}"
        for kind, entry in zip(board["kind"], board["entry"], strict=True)
    ]


def _comparability(facts: Facts, board: pd.DataFrame) -> TableBlock:
    """How each metric is defined on both sides, and whether they may be compared."""
    w = facts.words
    about = board[(board["kind"] != "team") & (board["metric"] != "overall")]
    about = about.drop_duplicates(["metric", "kind", "comparability", "n_patients"])
    about = about.assign(metric=[w.metric(str(m)) for m in about["metric"]], entry=_entries(facts, about))
    columns = facts.headings(
        *("metric", "entry", "definition", "region", "n_patients", "n_nan", "comparable", "comparability")
    )
    return facts.table(about, columns, caption=w("comparability_title"), folded=True)


def _published(facts: Facts, published: PublishedScores) -> list[Block]:
    w = facts.words
    blocks: list[Block] = [_published_means(facts, published)]
    tests = published_tests(published, facts.study.statistics)
    if len(tests):
        blocks += [Heading(w("published_statistics")), *comparison_tables(facts, tests, folded=True)]
    if len(published.unusable):
        blocks += [Text(w("published_unusable", n=len(published.unusable))), _unusable(facts, published.unusable)]
    return blocks


def _published_means(facts: Facts, published: PublishedScores) -> TableBlock:
    """Means per metric and family of the published table beside this run's."""
    w, ours = facts.words, facts.by_family
    means = summarise(reduce_scores(published.scores), by=("family",))
    rows = []
    for _, row in means.iterrows():
        metric, family = str(row["metric"]), str(row["family"])
        same = ours[(ours["metric"] == metric) & (ours["family"] == family)] if len(ours) else ours
        rows.append(
            {
                "metric": w.metric(metric),
                "family": w.family(family),
                "this_run": facts.mean(same.iloc[0], facts.unit(metric)) if len(same) else MISSING,
                "published": facts.mean(row, str(row["unit"] or "")),
                "n": int(row["n"]),
                "difference_note": published_comparability(metric, facts.study.evaluation.reference),
            }
        )
    columns = facts.headings("metric", "family", "this_run", "published", "n", "difference_note")
    return facts.table(pd.DataFrame(rows), columns, caption=w("published_caption"), folded=len(rows) > 30)


def _unusable(facts: Facts, unusable: pd.DataFrame) -> TableBlock:
    """Flaws of the published table, by reason."""
    reasons = (
        unusable.groupby("reason", sort=False)
        .agg(
            values=("reason", "size"),
            patients=("patient", lambda names: counted([name for name in dict.fromkeys(names) if name])),
        )
        .reset_index()
    )
    columns = facts.headings("reason", "values", "patients")
    return facts.table(reasons, columns, caption=facts.words("ledger"), folded=len(reasons) > 15)
