"""Claims proved here, in headless Chromium (skipped where there is none).

- The page opens offline: no error on the console, no request to anywhere.
- Every figure is drawn, inside its place, and each language's page is.
- No text runs out of the page sideways.
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


@pytest.mark.parametrize("language", ["en", "fr"])
def test_the_report_opens_offline_and_draws_every_figure(chromium, tmp_path, language):
    report = build_report(make_inputs(make_study(language=language)), image_formats=())
    path = tmp_path / "report.html"
    path.write_text(report.html, encoding="utf-8")
    page = chromium.new_page(viewport={"width": 1200, "height": 900})
    errors, requests = [], []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_function(
        "document.querySelectorAll('.js-plotly-plot .main-svg').length >= document.querySelectorAll('figure').length",
        timeout=60_000,
    )
    page.wait_for_timeout(1000)
    figures = page.evaluate(DRAWN)
    assert [figure["name"] for figure in figures] == [f"figure-{name}" for name in report.figures]
    assert [f["name"] for f in figures if f["marks"] == 0 or f["width"] < 300 or f["height"] < 200] == []
    assert errors == []
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []
    overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert overflow <= 0
    picture = page.screenshot(path=os.fspath(tmp_path / "report.png"))
    assert picture.startswith(b"\x89PNG")
    page.close()
