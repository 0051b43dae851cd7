"""What the study cost: by step, and by predictor."""

import pandas as pd

from curvas_assets.report.blocks import Absent, Block, Heading, Text
from curvas_assets.report.facts import Facts
from curvas_assets.statistics.efficiency import ACCURACY, network_hours, reduction_per_hour, reductions

ENTROPY = "predictive_entropy"
"""Total uncertainty as a predictor itself states it: less of it is no merit unless the rest bears it out."""


def write(facts: Facts) -> list[Block]:
    """The cost table as it was given, what each predictor needs, and what an hour of it brings in each measure."""
    w, cost = facts.words, facts.inputs.cost
    if cost is None or not len(cost):
        blocks: list[Block] = [Absent(w("no_cost"))]
    else:
        blocks = [Text(w("cost_text")), facts.table(cost, facts.headings(*cost.columns))]
    needed = facts.inputs.predictor_cost
    if needed is None or not len(needed):
        return [*blocks, Absent(w("no_predictor_cost"))]
    shown = needed.assign(family=[w.family(str(family)) for family in needed["family"]])
    table = facts.table(shown, facts.headings(*needed.columns), caption=w("needs_caption"), folded=len(needed) > 15)
    return [*blocks, Heading(w("needs_title")), table, *_per_hour(facts, needed)]


def _per_hour(facts: Facts, needed: pd.DataFrame) -> list[Block]:
    """By what share each measure of which less is better is lower than with the individual models, and for each hour."""
    w = facts.words
    asked = {question: metric for question, metric in facts.study.statistics.primary.items() if question != ACCURACY}
    metrics = [m for m in dict.fromkeys([*asked.values(), ENTROPY]) if m in set(facts.reduced["metric"])]
    metrics = [m for m in metrics if facts.directions.get(m) == "lower" or m == ENTROPY]
    if not metrics or "individual" not in facts.families:
        return []
    hours = network_hours(needed)
    names = facts.named_predictors
    table = pd.DataFrame({"predictor": names})
    headings = facts.headings("predictor")
    for metric in metrics:
        own = reduction_per_hour(reductions(facts.reduced, metric), hours).set_index("predictor").reindex(names)
        name = w.short_metric(metric)
        table[f"{metric} reduction"] = 100 * own["reduction"].to_numpy(float)
        table[f"{metric} per hour"] = 100 * own["per_hour"].to_numpy(float)
        headings[f"{metric} reduction"] = w("reduction_percent", metric=name)
        headings[f"{metric} per hour"] = w("per_hour_percent", metric=name)
    return [
        Heading(w("per_hour_title")),
        Text(w("per_hour_text", entropy=w.metric(ENTROPY))),
        facts.table(table, headings, caption=w("per_hour_title"), folded=len(table) > 15),
    ]
