"""Tests of families and predictors against each other, non-inferiority, where scores vary, and Dice against entropy."""

import numpy as np
import pandas as pd

from curvas_assets.report.blocks import Absent, Block, Bullets, FigureBlock, Heading, Text
from curvas_assets.report.facts import Facts
from curvas_assets.report.family_tests import comparison_tables, pairs, without_empty_notes
from curvas_assets.report.figures import forest, precision_forecast, variance_shares
from curvas_assets.statistics import projected_precision, with_questions
from curvas_assets.statistics.families import EXPLORATORY, FEWEST
from curvas_assets.statistics.randomisation import smallest_of_signs
from curvas_assets.study import Statistics

SINGLE_EFFECTS = ("patient", "annotator", "seed")


def write(facts: Facts) -> list[Block]:
    """What is tested and for whom, both tests, the margins, the components of variance, and the association."""
    w, settings = facts.words, facts.study.statistics
    primary = ", ".join(
        w("primary_one", question=w.question(q), metric=w.metric(m)) for q, m in settings.primary.items()
    )
    comparisons = facts.comparisons
    return [
        Text(w("statistics_text", draws=settings.draws, fewest=FEWEST)),
        Text(w("primary_text", primary=primary, alpha=facts.alpha, fewest=FEWEST)),
        *_multiplicity(facts),
        facts.claim(),
        *facts.few(),
        *(comparison_tables(facts, comparisons) if len(comparisons) else [Absent(w("no_comparisons"))]),
        *_margins(facts),
        *_variance(facts),
        *_association(facts),
    ]


def _multiplicity(facts: Facts) -> list[Text]:
    """How many tests there are of what kind, and how p is corrected for them."""
    w = facts.words
    if not len(facts.comparisons):
        return []
    told = with_questions(facts.comparisons, facts.study.statistics)
    tested = told[told["p_adjusted"].notna()]
    is_exploratory = tested["question"] == EXPLORATORY
    counts = {"primary": int((~is_exploratory).sum()), "exploratory": int(is_exploratory.sum())}
    texts = [Text(w("multiplicity_text", **counts, alpha=facts.alpha))]
    kinds = set(told["kind"]) if "kind" in told else set()
    texts += [Text(w("made_from_text"))] if "made from" in kinds else []
    return texts + ([Text(w("configured_text"))] if "configured" in kinds else [])


def _margins(facts: Facts) -> list[Block]:
    """Is anything lost? The bound of each pair against the margin: of accuracy first, then of every metric with a margin."""
    w = facts.words
    if not len(facts.margins):
        return [Heading(w("margin_title")), Absent(w("no_margin"))]
    blocks: list[Block] = [Heading(w("margin_title"))]
    for metric, part in facts.margins.groupby("metric", sort=False):
        blocks += _margin(facts, str(metric), part.reset_index(drop=True))
    return blocks


def _margin(facts: Facts, metric: str, table: pd.DataFrame) -> list[Block]:
    w, settings, first = facts.words, facts.study.statistics, table.iloc[0]
    usual = settings.non_inferiority_margin == Statistics().non_inferiority_margin and metric == "dice"
    text = w(
        "margin_text",
        metric=w.metric(metric),
        margin=w.number(float(first["margin"])),
        why=w("margin_why") if usual else w("margin_set"),
        level=w.percent(float(first["level"])),
        alpha=facts.alpha,
        fewest=FEWEST,
    )
    names = pairs(facts, table)
    shown = without_empty_notes(table.assign(pair=names))
    columns = facts.headings("pair", "n_pairs", "mean_difference", "bound", "margin", "not_inferior", "p", "note")
    caption = w("margin_caption", metric=facts.titled(metric))
    blocks: list[Block] = [Text(text)]
    if patients := int(table["n_pairs"].max()):
        floor = smallest_of_signs(patients, settings.draws)
        unseen = 1 - settings.alpha ** (1 / patients)
        blocks.append(Text(w("margin_limits", n=patients, smallest=w.p_value(floor), share=w.percent(unseen))))
    if np.isfinite(table["mean_difference"].to_numpy(float)).any():
        direction = facts.directions.get(metric, "higher")
        blocks.append(FigureBlock(forest(table, names, w, direction=direction, unit=facts.unit(metric))))
    return [*blocks, facts.table(shown, columns, caption=caption, formats={"p": w.p_value})]


def _variance(facts: Facts) -> list[Block]:
    """Between what the models' scores vary, and what more annotators and seeds would bring."""
    w, table = facts.words, facts.variance
    if not len(table):
        return [Heading(w("variance_title")), Absent(w("no_variance"))]
    known = table[table["variance"].notna()]
    lacking = [
        Absent(w("no_variance_of", metric=w.metric(str(metric)), why=w.told(str(part["note"].iloc[0]))))
        for metric, part in table[table["variance"].isna()].groupby("metric", sort=False)
    ]
    if not len(known):
        return [Heading(w("variance_title")), *lacking]
    annotators, seeds = (int(known[f"n_{of}"].max()) for of in ("annotators", "seeds"))
    text = w(
        "variance_text",
        annotators=annotators,
        seeds=seeds,
        of_annotators=annotators - 1,
        of_seeds=seeds - 1,
        patients=int(known["n_patients"].max()),
    )
    shown = without_empty_notes(
        known.assign(
            metric=[w.metric(str(metric)) for metric in known["metric"]],
            component=[w.component(str(component)) for component in known["component"]],
            interval=_intervals(facts, known, "low", "high"),
            share_interval=_intervals(facts, known, "share_low", "share_high"),
        )
    )
    columns = facts.headings(
        *("metric", "component", "degrees_of_freedom", "variance", "interval", "share", "share_interval", "note")
    )
    blocks: list[Block] = [Heading(w("variance_title")), Text(text), *lacking, *_carried(facts, known)]
    drawn = known[(known["n_references"] == 0) & known["share"].notna()]
    if len(drawn):
        blocks.append(FigureBlock(variance_shares(drawn, w)))
    blocks.append(facts.table(shown, columns, caption=w("variance_table"), folded=True))
    return [*blocks, *_precision(facts, known)]


def _carried(facts: Facts, known: pd.DataFrame) -> list[Block]:
    """One sentence per metric: the share of patients, annotators and seeds, and of everything else."""
    w, lines = facts.words, list[str]()
    for metric, part in known[known["share"].notna()].groupby("metric", sort=False):
        own = part.set_index("component")
        single: dict[str, object] = {}
        for effect in SINGLE_EFFECTS:
            low, high = (w.percent(float(own.loc[effect, side])) for side in ("share_low", "share_high"))
            single[effect] = w(
                "share_and_interval", share=w.percent(float(own.loc[effect, "share"])), low=low, high=high
            )
        rest = float(own.loc[~own.index.isin(SINGLE_EFFECTS), "share"].sum())
        lines.append(w("variance_line", metric=w.metric(str(metric)), rest=w.percent(rest), **single))
    return [Bullets(lines)] if lines else []


def _precision(facts: Facts, known: pd.DataFrame) -> list[Block]:
    """The standard error of the mean for other numbers of annotators and seeds."""
    w, settings = facts.words, facts.study.statistics
    precision = projected_precision(known, settings)
    if not len(precision):
        return []
    sizes = {of: sorted({int(n) for n in precision.loc[precision["as_studied"], of]}) for of in ("annotators", "seeds")}
    most = max(10, 2 * max(sizes["seeds"]))
    lines = [_gain(facts, part) for _, part in precision.groupby("metric", sort=False)]
    curves = projected_precision(
        known,
        settings,
        annotators=sorted({1, *sizes["annotators"], *(2 * n for n in sizes["annotators"]), np.inf}),
        seeds=range(1, most + 1),
    )
    shown = precision.assign(
        metric=[facts.titled(str(metric)) for metric in precision["metric"]],
        annotators=[_count(facts, n) for n in precision["annotators"]],
        seeds=[_count(facts, n) for n in precision["seeds"]],
        interval=_intervals(facts, precision, "low", "high"),
        same_interval=_intervals(facts, precision, "same_patients_low", "same_patients_high"),
    )
    columns = facts.headings(
        *("metric", "annotators", "seeds", "standard_error", "interval", "same_patients", "same_interval")
    )
    strong = pd.DataFrame(dict.fromkeys(("annotators", "seeds"), precision["as_studied"].astype(bool)))
    units = {str(metric): facts.unit(str(metric)) for metric in known["metric"].unique()}
    return [
        Heading(w("precision_title")),
        Text(w("precision_text", patients=int(known["n_patients"].max()))),
        Bullets(lines),
        FigureBlock(precision_forecast(curves, w, units)),
        facts.table(shown, columns, caption=w("precision_table"), strong=strong, folded=True),
    ]


def _gain(facts: Facts, part: pd.DataFrame) -> str:
    """What twice as many seeds, twice as many annotators, and any number of both would bring for one metric."""
    w = facts.words
    here = part[part["as_studied"]].iloc[0]
    at = part.set_index(["annotators", "seeds"])
    annotators, seeds = float(here["annotators"]), float(here["seeds"])

    def errors(of_annotators: float, of_seeds: float) -> str:
        row = at.loc[(of_annotators, of_seeds)]
        return w("two_errors", new=w.number(float(row["standard_error"])), same=w.number(float(row["same_patients"])))

    return w(
        "precision_line",
        metric=facts.titled(str(here["metric"])),
        now=errors(annotators, seeds),
        more_seeds=errors(annotators, 2 * seeds),
        more_annotators=errors(2 * annotators, seeds),
        limit=w.number(float(at.loc[(np.inf, np.inf)]["standard_error"])),
    )


def _count(facts: Facts, number: float) -> str:
    return facts.words("without_limit") if np.isinf(number) else f"{number:g}"


def _intervals(facts: Facts, table: pd.DataFrame, low: str, high: str) -> list[str]:
    return [facts.words.interval(one, two) for one, two in zip(table[low], table[high], strict=True)]


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
