"""Claims proved here, in headless Chromium on Dagster's own UI (skipped where there is no Chromium).

- The graph shows every asset of the lineage.
- One missing cell of `softmax`, chosen in the partition dialog, is launched, turns green, and is told in its run's log.
- Its preview is an image that the browser draws.
- A backfill of what is missing is launched from the same dialog, and makes those cells and no other.
- The report's metadata says where it is, and its check has passed.
- An operation's launchpad opens with its settings, and launches.

`CURVAS_SCREENSHOTS` names a folder for the pictures that the README shows.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest

from curvas_assets.local.deployment import ROOT
from curvas_assets.storage.connection import S3Settings, connect
from curvas_assets_tests.browser.serving import served

MODELS = [f"anno{n}_init1_foldall" for n in (1, 2, 3)]
CELL = (MODELS[1], "PHANTOM008")
ASSETS = (
    *(
        "patient_files",
        "scan",
        "test_scan",
        "cohort",
        "training_cases",
        "preprocessed_dataset",
        "trained_model",
        "softmax",
    ),
    *("ensemble_softmax", "scores", "study_scores", "family_comparisons", "leaderboard", "cost", "figures", "report"),
    *("published_table", "published_comparison", "variance_components", "volume_intervals", "predictor_cost"),
    *("variant_softmax", "calibrators", "viewer_preview", "study_comparison", "other_studies"),
)
RUN_MS = 240_000
"""How long a launched run may take until the UI shows it: a process starts and loads the definitions, on loaded cores."""


@pytest.fixture(scope="module")
def url(chromium, s3_server, tmp_path_factory):
    """The UI on a state where one test patient is done and two are taken in."""
    home = tmp_path_factory.mktemp("dagster")
    shutil.copyfile(ROOT / "dagster.yaml", home / "dagster.yaml")
    environment = {
        **s3_server.environment(),
        "S3_BUCKET": f"test-{uuid4().hex[:12]}",
        "DAGSTER_HOME": str(home),
        "CURVAS_SCRATCH": str(tmp_path_factory.mktemp("scratch")),
    }
    connect(S3Settings.from_environment(environment)).client.create_bucket(Bucket=environment["S3_BUCKET"])
    done = subprocess.run(
        [sys.executable, "-m", "curvas_assets_tests.browser.location", str(home / "cohort")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    with served("curvas_assets_tests.browser.location", environment, home) as url:
        yield url


@pytest.fixture
def page(chromium, url):
    page = chromium.new_page(viewport={"width": 1440, "height": 810})
    page.set_default_timeout(20_000)
    yield page
    page.close()


def picture(page, name: str) -> None:
    if folder := os.environ.get("CURVAS_SCREENSHOTS"):
        page.wait_for_timeout(20_000)  # a busy machine takes its time to colour what it shows
        page.screenshot(path=Path(folder, f"{name}.png"))


def count(page, state: str) -> int:
    """How many cells of the open partitions page are in a state."""
    text = page.get_by_text(re.compile(rf"^{state} \(\d+\)$")).first.inner_text()
    return int(re.search(r"\d+", text)[0])


def open_dialog(page):
    page.get_by_role("button", name="Materialize…").click()
    dialog = page.get_by_role("dialog").filter(has_text="Partition selection")
    dialog.wait_for()
    return dialog


def test_the_graph_shows_every_asset(page, url):
    page.set_viewport_size({"width": 1440, "height": 1000})
    page.goto(f"{url}/asset-groups/")
    page.get_by_text("predictions").first.wait_for()
    page.get_by_text("Hide navigation").click()
    page.keyboard.press("Alt+e")  # all groups open
    for asset in ASSETS:
        page.get_by_text(
            re.compile(f"^({asset}|{asset[:5]}.+{asset[-5:]})$")
        ).first.wait_for()  # long names are cut in the middle
    page.wait_for_timeout(2000)  # the camera moves
    picture(page, "graph")


def test_one_missing_cell_is_launched_turns_green_and_shows_its_preview(page, url):
    page.goto(f"{url}/assets/softmax?view=partitions")
    before = count(page, "Materialized")
    dialog = open_dialog(page)
    for name in CELL:
        dialog.get_by_text("Select a partition or create one").first.click()
        page.get_by_role("menuitem").filter(has_text=name).click()
        page.keyboard.press("Escape")
    dialog.get_by_text("1 partition", exact=True).wait_for()
    dialog.get_by_role("button", name="Launch 1 run").click()
    dialog.wait_for(state="hidden")
    page.get_by_text(f"Materialized ({before + 1})", exact=True).wait_for(timeout=RUN_MS)

    page.goto(f"{url}/assets/softmax?view=partitions&partition={'|'.join(CELL)}")
    page.get_by_text("voxels by label").wait_for()
    picture(page, "partitions")
    page.get_by_text("Show Markdown").first.click()
    image = page.locator("img[src^='data:image/png']")
    image.wait_for()
    assert image.evaluate("drawn => drawn.complete && drawn.naturalWidth > 300")
    picture(page, "preview")
    page.get_by_role("button", name="Close").click()

    page.locator("a[href*='/runs/']").first.click()
    page.get_by_text(re.compile(rf"softmax 1 of 1: {re.escape('|'.join(CELL))} stored in")).first.wait_for()
    page.get_by_text("Success").first.wait_for()
    picture(page, "run")


def test_a_backfill_makes_the_missing_cells_and_no_other(page, url):
    page.goto(f"{url}/assets/softmax?view=partitions")
    missing, whole = count(page, "Missing"), len(MODELS) * 3
    assert 0 < missing < whole
    dialog = open_dialog(page)
    for index in (0, 1):
        dialog.get_by_role("button", name="All", exact=True).nth(index).click()
    dialog.get_by_text("Backfill only failed and missing partitions within selection").click()
    picture(page, "backfill")
    dialog.get_by_role("button", name=re.compile("Launch")).click()
    dialog.wait_for(state="hidden")
    page.get_by_text(f"Materialized ({whole})", exact=True).wait_for(timeout=RUN_MS)
    page.goto(f"{url}/runs")
    page.get_by_text(re.compile(f"^{missing} partitions$")).first.wait_for()


def test_the_reports_metadata_and_check_are_shown(page, url):
    page.goto(f"{url}/assets/report?view=overview")
    page.get_by_text(re.compile(r"reports/report/\w+/report\.html")).first.wait_for()
    picture(page, "report")
    page.goto(f"{url}/assets/report?view=checks")
    page.get_by_text("sections_are_complete").first.wait_for()
    page.get_by_text("Passed").first.wait_for()


def test_an_operation_launches_from_its_launchpad(page, url):
    page.goto(f"{url}/locations/curvas_assets_tests.browser.location/jobs/empty_artifacts/playground")
    page.get_by_text("dry_run").first.wait_for()
    picture(page, "launchpad")
    page.get_by_role("button", name="Launch Run").click()
    page.get_by_text(re.compile(r"would remove \d+ files")).first.wait_for(timeout=RUN_MS)
