"""The report: tables, figures, previews, and the document that holds them.

Importing this package is cheap; matplotlib, plotly, pandas and jinja2 load when the first figure or report is made.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from curvas_assets.report.document import WrittenReport, build_report
    from curvas_assets.report.inputs import Provenance, ReportInputs
    from curvas_assets.report.pictures import OrganView, SliceView, most_disputed_slice
    from curvas_assets.report.previews import (
        preview_scan,
        preview_softmax,
        preview_uncertainty,
        reliability_diagram,
        training_curve,
    )

_HOMES = {
    "OrganView": "pictures",
    "Provenance": "inputs",
    "ReportInputs": "inputs",
    "SliceView": "pictures",
    "WrittenReport": "document",
    "build_report": "document",
    "most_disputed_slice": "pictures",
    "preview_scan": "previews",
    "preview_softmax": "previews",
    "preview_uncertainty": "previews",
    "reliability_diagram": "previews",
    "training_curve": "previews",
}
__all__ = [
    "OrganView",
    "Provenance",
    "ReportInputs",
    "SliceView",
    "WrittenReport",
    "build_report",
    "most_disputed_slice",
    "preview_scan",
    "preview_softmax",
    "preview_uncertainty",
    "reliability_diagram",
    "training_curve",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
