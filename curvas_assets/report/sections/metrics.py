"""What each metric means."""

from curvas_assets.report.blocks import Absent, Block, Text
from curvas_assets.report.facts import Facts
from curvas_assets.statistics import shown_unit


def write(facts: Facts) -> list[Block]:
    """The registry of metrics, in the units that are shown."""
    w, table = facts.words, facts.inputs.metrics
    if table is None or not len(table):
        return [Absent(w("no_metrics"))]
    columns = facts.headings(*table.columns)
    if "family" in table:
        columns["family"] = w.column("metric_family")
        table = table.assign(family=[w.told(str(family)) for family in table["family"]])
    if "unit" in table:
        table = table.assign(unit=[shown_unit(str(unit)) for unit in table["unit"].fillna("")])
    shown = facts.table(table, columns, caption=w("metrics"), folded=len(table) > 12)
    return [Text(w("metrics_text")), shown]
