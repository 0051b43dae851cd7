"""Claims proved here, in headless Chromium (skipped where there is none).

- The page opens offline: no error on the console, no request to anywhere.
- Every figure is drawn, inside its place, and each language's page is.
- No text runs out of the page sideways, also on a page of 420 pixels, where figures scroll in their own places.
- On paper every closed table is open and no figure is wider than the page; afterwards all is as it was.
"""

import os

import pytest

from curvas_assets.report import build_report
from curvas_assets_tests.report.studies import make_inputs, make_study

DRAWN = """() => {
  const figures = Array.from(document.querySelectorAll('figure'));
  return figures.map(figure => {
    const plot = figure.querySelector('.js-plotly-plot');
    const box = plot ? plot.getBoundingClientRect() : {width: 0, height: 0};
    const marks = figure.querySelectorAll(
      '.violinlayer path, .barlayer path, .scatterlayer path, .imagelayer image, canvas').length;
    return {name: figure.id, width: box.width, height: box.height, marks: marks};
  });
}"""


PAPER_PX = 700
"""What A4 has between its margins."""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The report in each language, as a file and with the names of its figures; made when it is first asked for."""
    made = {}

    def page(language: str):
        if language not in made:
            report = build_report(make_inputs(make_study(language=language)), image_formats=())
            path = tmp_path_factory.mktemp("page") / "report.html"
            path.write_text(report.html, encoding="utf-8")
            made[language] = path, report.figures
        return made[language]

    return page


def opened(chromium, path, width: int = 1200):
    """A page on which every figure is drawn."""
    page = chromium.new_page(viewport={"width": width, "height": 900})
    page.set_default_timeout(120_000)  # a loaded machine takes its time
    page.errors, page.requests = [], []
    page.on("console", lambda message: page.errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.on("request", lambda request: page.requests.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_function(
        "document.querySelectorAll('.js-plotly-plot .main-svg').length >= document.querySelectorAll('figure').length",
    )
    page.wait_for_function(f"({DRAWN})().every(figure => figure.marks > 0)")
    return page


def overflow(page) -> int:
    return page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


@pytest.fixture(scope="module")
def english(chromium, pages):
    """The English page, opened once; the last test that uses it leaves it without what is folded."""
    page = opened(chromium, pages("en")[0])
    yield page
    page.close()


@pytest.mark.parametrize("language", ["en", "fr"])
def test_the_report_opens_offline_and_draws_every_figure(chromium, pages, english, language):
    path, names = pages(language)
    page = english if language == "en" else opened(chromium, path)
    figures = page.evaluate(DRAWN)
    assert [figure["name"] for figure in figures] == [f"figure-{name}" for name in names]
    assert [f["name"] for f in figures if f["marks"] == 0 or f["width"] < 300 or f["height"] < 200] == []
    assert page.errors == []
    assert [url for url in page.requests if not url.startswith(("file:", "data:", "blob:"))] == []
    assert overflow(page) <= 0
    if folder := os.environ.get("CURVAS_SCREENSHOTS"):
        page.screenshot(path=os.path.join(folder, f"report_{language}.png"), full_page=True)
    if page is not english:
        page.close()


def test_a_narrow_page_does_not_scroll_sideways(chromium, pages):
    page = opened(chromium, pages("en")[0], width=420)
    assert overflow(page) <= 0
    assert page.errors == []
    held = page.evaluate(
        "Array.from(document.querySelectorAll('figure')).every("
        "one => one.getBoundingClientRect().right <= 420 && one.scrollWidth >= one.querySelector('.js-plotly-plot').clientWidth)"
    )
    assert held
    if folder := os.environ.get("CURVAS_SCREENSHOTS"):
        page.screenshot(path=os.path.join(folder, "report_420.png"), full_page=True)
    page.close()


def printed_pages(page) -> int:
    pdf = page.pdf(format="A4")
    assert pdf.startswith(b"%PDF")
    if folder := os.environ.get("CURVAS_SCREENSHOTS"):
        with open(os.path.join(folder, "report.pdf"), "wb") as file:
            file.write(pdf)
    return pdf.count(b"/Type /Page\n")


def test_on_paper_closed_tables_are_open_and_figures_fit(english):
    page = english
    closed = page.evaluate("document.querySelectorAll('details:not([open])').length")
    assert closed >= 2

    # As the page lays itself out for paper, with its script and without it.
    page.emulate_media(media="print")
    heights = "Array.from(document.querySelectorAll('details table')).map(t => t.getBoundingClientRect().height)"
    visible = "Array.from(document.querySelectorAll('details table')).filter(t => t.checkVisibility()).length"
    folded = "document.querySelectorAll('details').length - document.querySelectorAll('details pre').length"
    assert page.evaluate(visible) == page.evaluate(folded)
    assert page.evaluate("document.querySelector('details pre').checkVisibility()")
    assert min(page.evaluate(heights)) > 20
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    widths = page.evaluate("Array.from(document.querySelectorAll('.js-plotly-plot')).map(p => p._fullLayout.width)")
    assert max(widths) <= PAPER_PX
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    page.emulate_media(media="screen")
    assert page.evaluate("document.querySelectorAll('details:not([open])').length") == closed
    assert (
        max(page.evaluate("Array.from(document.querySelectorAll('.js-plotly-plot')).map(p => p._fullLayout.width)"))
        > 900
    )

    pages_printed = printed_pages(page)
    assert page.evaluate("document.querySelectorAll('details:not([open])').length") == closed
    page.evaluate("document.querySelectorAll('details').forEach(one => one.remove())")
    assert printed_pages(page) < pages_printed
