"""What the study cost."""

from curvas_assets.report.blocks import Absent, Block, Text
from curvas_assets.report.facts import Facts


def write(facts: Facts) -> list[Block]:
    """The cost table, as it was given."""
    w, cost = facts.words, facts.inputs.cost
    if cost is None or not len(cost):
        return [Absent(w("no_cost"))]
    return [Text(w("cost_text")), facts.table(cost, facts.headings(*cost.columns))]
