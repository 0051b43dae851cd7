"""The sections of the report, in the order of reading.

Belongs here: one module per section, each with one public function, `write`. Does not belong here: what several
sections need (`facts`), markup.
"""

from collections.abc import Callable, Mapping

from curvas_assets.report.blocks import Block
from curvas_assets.report.facts import Facts
from curvas_assets.report.sections import (
    comparison,
    cost,
    data,
    maps,
    methods,
    metrics,
    patients,
    protocol,
    question,
    reproducibility,
    results,
    state,
    statistics,
    volumes,
)

SECTIONS: Mapping[str, Callable[[Facts], list[Block]]] = {
    "question": question.write,
    "patients": patients.write,
    "maps": maps.write,
    "data": data.write,
    "protocol": protocol.write,
    "results": results.write,
    "statistics": statistics.write,
    "volumes": volumes.write,
    "comparison": comparison.write,
    "cost": cost.write,
    "metrics": metrics.write,
    "methods": methods.write,
    "reproducibility": reproducibility.write,
    "state": state.write,
}
"""A section's name, which is its anchor on the page and the key of its title, and who writes it."""
