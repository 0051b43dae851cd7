"""The report: its sections, put together as one offline HTML page and as Markdown, with every figure as a file.

Belongs here: the one function that writes a report. Does not belong here: what it says (`sections`), markup (`markup`),
drawing (`screen`, `paper`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from curvas_assets.errors import ReportError
from curvas_assets.report import markup, paper
from curvas_assets.report.blocks import Section
from curvas_assets.report.chart import Chart
from curvas_assets.report.citations import bibtex
from curvas_assets.report.facts import gather
from curvas_assets.report.inputs import ReportInputs
from curvas_assets.report.sections import SECTIONS
from curvas_assets.report.style import ImageFormat


@dataclass(frozen=True)
class WrittenReport:
    """A finished report.

    Args:
        html: one self-contained page.
        markdown: the same, with figures as links to `figures/<name>.png`.
        attachments: relative path → bytes: each figure as `figures/<name>.png`, `.svg` and `.pdf`.
        figures: names of the figures, in order.
        references: BibTeX of what the study used.
    """

    html: str
    markdown: str
    attachments: Mapping[str, bytes]
    figures: tuple[str, ...]
    references: str


def build_report(
    inputs: ReportInputs, *, image_formats: Sequence[ImageFormat] = ("png", "svg", "pdf"), page: bool = True
) -> WrittenReport:
    """Write the report.

    Args:
        inputs: everything it is made of.
        image_formats: of the figures beside the page.
        page: write the HTML too; without it, the Markdown alone takes a tenth of the time.

    Returns:
        The page, the Markdown and the figures as files. The same inputs give the same bytes.

    Raises:
        ReportError: a table lacks a column that it must have, or a patient's slice is given twice.
    """
    facts = gather(inputs)
    sections = [Section(name, write(facts)) for name, write in SECTIONS.items()]
    charts = markup.charts_of(sections)
    _refuse_namesakes(charts, inputs.study.name)
    said = (inputs.study.title, sections, facts.words, inputs.provenance.generated_at)
    return WrittenReport(
        html=markup.page(*said) if page else "",
        markdown=markup.markdown(*said),
        attachments={
            f"figures/{chart.name}.{image_format}": content
            for chart in charts
            for image_format, content in paper.images(chart, image_formats).items()
        },
        figures=tuple(chart.name for chart in charts),
        references=bibtex(inputs.study, inputs.provenance.packages),
    )


def _refuse_namesakes(charts: Sequence[Chart], study: str) -> None:
    names = [chart.name for chart in charts]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ReportError(
            "writing the report", study, f"two figures are called {twice}", "Give each patient's slice once."
        )
