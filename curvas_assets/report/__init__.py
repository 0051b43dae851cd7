"""The report: tables, figures, previews, and the document that holds them.

Importing this package is cheap; matplotlib, plotly, pandas and jinja2 load when the first figure or report is made.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from curvas_assets.report.document import Provenance, Report, ReportInputs, build_report
    from curvas_assets.report.figures import Chart
    from curvas_assets.report.pictures import OrganView, SliceView, most_disputed_slice
    from curvas_assets.report.previews import (
        preview_scan,
        preview_softmax,
        preview_uncertainty,
        reliability_diagram,
        training_curve,
    )
    from curvas_assets.report.tables import Table, table_of

_HOMES = {
    "Chart": "figures",
    "OrganView": "pictures",
    "Provenance": "document",
    "Report": "document",
    "ReportInputs": "document",
    "SliceView": "pictures",
    "Table": "tables",
    "build_report": "document",
    "most_disputed_slice": "pictures",
    "preview_scan": "previews",
    "preview_softmax": "previews",
    "preview_uncertainty": "previews",
    "reliability_diagram": "previews",
    "table_of": "tables",
    "training_curve": "previews",
}
__all__ = [
    "Chart",
    "OrganView",
    "Provenance",
    "Report",
    "ReportInputs",
    "SliceView",
    "Table",
    "build_report",
    "most_disputed_slice",
    "preview_scan",
    "preview_softmax",
    "preview_uncertainty",
    "reliability_diagram",
    "table_of",
    "training_curve",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
