"""Uncertainty, accuracy and failure detection: distributions, curves and means."""

import dataclasses
from functools import partial

import numpy as np
import pandas as pd

from curvas_assets.report.blocks import Absent, Block, FigureBlock, Heading, TableBlock, Text
from curvas_assets.report.facts import Facts
from curvas_assets.report.figures import (
    dice_against_entropy_chart,
    distribution_by_family,
    reliability,
    risk_coverage,
)
from curvas_assets.report.tables import MISSING, table_of
from curvas_assets.statistics import (
    best_predictors,
    is_a_size,
    judges_annotators,
    paired_scores,
    reduce_scores,
    summarise,
)
from curvas_assets.statistics.reduction import WHOLE

UNCERTAINTY = ("ece", "confidence", "predictive_entropy")
ACCURACY = ("dice", "crps", "hd95")
FAILURE = ("aurc", "eaurc")
WHOLE_FIRST = ("dice", "ece")
"""Metrics drawn over all organs or annotators before they are drawn by each."""
FACETS = {
    "dice": ("organ",),
    "hd95": ("annotator", "organ"),
    "hausdorff": ("annotator", "organ"),
    "aurc": ("organ", "annotator"),
    "eaurc": ("organ", "annotator"),
}
"""Metric → possible columns for its panels; the first with several values in the scores and something to draw is used."""
WIDTH = 8
"""Metrics side by side in a table of means."""


def write(facts: Facts) -> list[Block]:
    """Every distribution and curve, failure detection over patients, agreement of the annotators, and all means."""
    w, inputs = facts.words, facts.inputs
    bins, curves = inputs.reliability, inputs.risk_coverage
    return [
        Heading(w("uncertainty_heading")),
        *_distributions(facts, UNCERTAINTY),
        Absent(w("no_reliability")) if bins is None or not len(bins) else FigureBlock(reliability(bins, w)),
        Heading(w("accuracy_heading")),
        *_distributions(facts, ACCURACY),
        Heading(w("failure_heading")),
        *_distributions(facts, FAILURE),
        Absent(w("no_risk")) if curves is None or not len(curves) else FigureBlock(risk_coverage(curves, w)),
        _accuracy_against_uncertainty(facts),
        *_over_patients(facts),
        *_agreement(facts),
        *(_means(facts) if len(facts.reduced) else []),
    ]


def _distributions(facts: Facts, metrics: tuple[str, ...]) -> list[Block]:
    return [block for metric in metrics for block in _distribution(facts, metric)]


def _distribution(facts: Facts, metric: str) -> list[Block]:
    """A metric's distribution: over all, and by organ or annotator where the study has several."""
    w = facts.words
    of_metric = facts.of_metric(metric)
    if of_metric.empty:
        # CRPS, HD95 and the like are optional in a study; one sentence says that they are not there.
        return [Absent(w("not_scored", metric=w.metric(metric)))]
    if not of_metric["value"].notna().any():
        return [Absent(w("all_nan", metric=w.metric(metric), n=len(of_metric)))]
    draw = partial(
        distribution_by_family,
        metric=metric,
        words=w,
        unit=facts.unit(metric),
        direction=facts.directions.get(metric, ""),
    )
    table, facet = _panels(facts, metric)
    if not np.isfinite(table["value"]).any():
        left_out = {"nan": int(table["value"].isna().sum()), "infinite": int(np.isinf(table["value"]).sum())}
        return [Absent(w("none_finite", metric=w.metric(metric), **left_out))]
    whole = facet is None or metric in WHOLE_FIRST
    charts = [draw(facts.reduced)] if whole else []
    order = facts.study.annotator_names if facet == "annotator" else facts.study.class_names
    charts += [draw(table, facet=facet, order=order)] if facet else []
    return [FigureBlock(chart) for chart in charts]


def _panels(facts: Facts, metric: str) -> tuple[pd.DataFrame, str | None]:
    """The scores to draw, one per patient, predictor and panel, and the column that names the panels."""
    of_metric = facts.of_metric(metric)
    for facet in FACETS.get(metric, ()):
        single = of_metric[~of_metric[facet].isin(WHOLE)]
        if single[facet].nunique() > 1:
            parts = [reduce_scores(part).assign(**{facet: name}) for name, part in single.groupby(facet, sort=False)]
            whole = pd.concat(parts, ignore_index=True)
            if np.isfinite(whole["value"]).any():  # an organ that is always missed makes each mean over organs infinite
                return whole, facet
    return facts.reduced[facts.reduced["metric"] == metric], None


def _accuracy_against_uncertainty(facts: Facts) -> Block:
    if not {"dice", "predictive_entropy"} <= set(facts.scores["metric"]):
        return Absent(facts.words("no_scatter"))
    pairs = paired_scores(facts.reduced, "predictive_entropy", "dice")
    unit = facts.unit("predictive_entropy") or "nats"
    return FigureBlock(dice_against_entropy_chart(pairs, facts.words, entropy_unit=unit))


def _over_patients(facts: Facts) -> list[Block]:
    """Failure and out-of-distribution detection with the patient as the unit."""
    w, failure, ood = facts.words, facts.inputs.failure, facts.inputs.out_of_distribution
    blocks: list[Block] = [Heading(w("patients_title"))]
    if failure is None or not len(failure):
        blocks.append(Absent(w("no_patients")))
    else:
        columns = facts.headings("predictor", "n", "n_nan", "aurc", "eaurc", "augrc")
        blocks.append(facts.table(failure, columns, caption=w("patients_caption")))
    blocks.append(Heading(w("ood_title")))
    if ood is None or not ood["auroc"].notna().any():
        return [*blocks, Absent(w("no_ood"))]
    columns = facts.headings("predictor", "against", "n_in", "n_out", "n_nan", "auroc", "note")
    caption = w("ood_caption", group=facts.study.in_distribution_group or MISSING)
    return [*blocks, facts.table(ood, columns, caption=caption, folded=len(ood) > 15)]


def _agreement(facts: Facts) -> list[Block]:
    w, agreement = facts.words, facts.inputs.agreement
    if agreement is None or not len(agreement):
        return [Heading(w("agreement_title")), Absent(w("no_agreement"))]
    columns = facts.headings("metric", "organ", "n", "n_nan", "mean", "sd", "median")
    table = facts.table(facts.named(agreement), columns, caption=w("agreement_caption"))
    return [Heading(w("agreement_title")), table]


def _means(facts: Facts) -> list[Block]:
    """Means per predictor with the best in bold, and per family with spread."""
    w = facts.words
    marked = best_predictors(summarise(facts.reduced), facts.directions)
    return [
        Heading(w("means_title")),
        Text(w("means_caption")),
        *(_means_by_predictor(facts, marked, name, metrics) for name, metrics in _metric_groups(facts).items()),
        Heading(w("families_title")),
        _means_by_family(facts),
    ]


def _means_by_predictor(facts: Facts, marked: pd.DataFrame, name: str, metrics: list[str]) -> TableBlock:
    predictors = list(dict.fromkeys(facts.reduced["predictor"]))
    shown, strong = (pd.DataFrame(index=range(len(predictors))) for _ in range(2))
    shown["predictor"] = predictors
    for metric in metrics:
        rows = marked[marked["metric"] == metric].set_index("predictor").reindex(predictors)
        shown[metric] = [facts.mean(row) for row in rows.to_dict("records")]
        strong[metric] = rows["best"].astype("boolean").fillna(False).to_list()
    headings = facts.headings("predictor") | {metric: facts.titled(metric) for metric in metrics}
    table = table_of(shown, headings, strong=strong)
    return TableBlock(dataclasses.replace(table, numeric=frozenset(range(1, len(headings)))), name)


def _means_by_family(facts: Facts) -> TableBlock:
    w = facts.words
    rows = facts.by_family[facts.by_family["metric"].map(_judges_predictors)].copy()
    mean, sd, median, q1, q3 = ([w.number(x) for x in rows[c]] for c in ("mean", "sd", "median", "q1", "q3"))
    infinite = [f" ({count} ∞)" if count else "" for count in rows["n_infinite"].astype(int)]
    rows["mean_sd"] = [
        f"{m}{more}" if m == MISSING else f"{m} ± {s}{more}" for m, s, more in zip(mean, sd, infinite, strict=True)
    ]
    rows["quartiles"] = [f"{m} [{low}; {high}]" for m, low, high in zip(median, q1, q3, strict=True)]
    rows["family"] = [w.family(str(family)) for family in rows["family"]]
    rows["metric"] = [facts.titled(str(metric)) for metric in rows["metric"]]
    columns = facts.headings("metric", "family", "n", "n_nan", "mean_sd", "quartiles")
    return facts.table(rows, columns, caption=w("families_caption"), folded=len(rows) > 30)


def _judges_predictors(metric: str) -> bool:
    """Whether means of a metric belong among those of predictors."""
    return not judges_annotators(metric) and not is_a_size(metric)


def _metric_groups(facts: Facts) -> dict[str, list[str]]:
    """The scored metrics by family of the registry, at most eight to a table."""
    metrics = [m for m in dict.fromkeys(map(str, facts.reduced["metric"])) if _judges_predictors(m)]
    registry = facts.inputs.metrics
    known = (
        dict(zip(registry["metric"].astype(str), registry["family"].astype(str), strict=True))
        if registry is not None and {"metric", "family"} <= set(registry.columns)
        else {}
    )
    groups: dict[str, list[str]] = {}
    for metric in metrics:
        groups.setdefault(known.get(metric, facts.words("other_metrics")), []).append(metric)
    named = {facts.words.told(name): members for name, members in groups.items()}
    return {
        name[:1].upper() + name[1:] + (f" ({1 + start // WIDTH})" if start else ""): members[start : start + WIDTH]
        for name, members in named.items()
        for start in range(0, len(members), WIDTH)
    }
