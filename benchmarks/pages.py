"""How soon Dagster's pages of partitions open in a browser, on 65 patients × 9 models and on 1,000 × 45.

Run `python -m benchmarks.pages` (Chromium on the PATH; `--grids 65x9` for one of them). Every cell but those of the last
patient is materialised, by its event alone, which takes about six minutes for the larger grid. Told are the seconds from
the address to the counts of cells on the page, the first time after the server's start and then the median of three
openings, each in a fresh browser context. Target: 2 s.
"""

import argparse
import shutil
import tempfile
import time
import warnings
from pathlib import Path
from statistics import median

import dagster as dg
import yaml
from playwright.sync_api import Browser, sync_playwright

from curvas_assets.local.deployment import ROOT
from curvas_assets.study import Study, load_study
from curvas_assets_tests.browser.serving import served
from curvas_assets_tests.conftest import CHROMIUM_FLAGS
from curvas_assets_tests.orchestration.lineage import DummyLineage

warnings.filterwarnings("ignore", category=dg.BetaWarning)
LOCATION = "curvas_assets_tests.orchestration.dummy_location"
PAGES = ("softmax", "scores", "trained_model")
TARGET_SECONDS = 2.0
OPENINGS = 3


def grid_study(patients: int, models: int) -> Study:
    """The published study with other numbers of test patients and of models (a multiple of its annotators)."""
    raw = load_study("curvas").model_dump(mode="json")
    seeds, rest = divmod(models, len(raw["annotators"]))
    if rest:
        raise ValueError(f"{models} models are no multiple of {len(raw['annotators'])} annotators")
    digits = max(raw["patients"]["digits"], len(str(patients + 100)))
    raw["patients"]["digits"] = digits
    raw["sets"] = {"train": [f"{n:0{digits}d}" for n in range(1, 21)]}
    raw["sets"]["test"] = [f"{n:0{digits}d}" for n in range(101, 101 + patients)]
    raw |= {"name": f"grid-{patients}x{models}", "seeds": list(range(1, seeds + 1)), "groups": {}}
    raw["in_distribution_group"] = None
    return Study.model_validate(raw)


def seconds_to_open(browser: Browser, address: str, shown: str) -> float:
    """From the address to the text that tells how many cells there are, in a browser that has nothing cached."""
    with browser.new_context(viewport={"width": 1440, "height": 810}) as context:
        page = context.new_page()
        page.set_default_timeout(120_000)
        start = time.monotonic()
        page.goto(address)
        page.get_by_text(shown, exact=True).first.wait_for()
        return time.monotonic() - start


def measure(patients: int, models: int) -> list[tuple[str, int, float, float]]:
    """Page, its partitions, seconds of the first opening, median seconds of the next."""
    study = grid_study(patients, models)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        home = Path(folder)
        shutil.copyfile(ROOT / "dagster.yaml", home / "dagster.yaml")
        (home / "study.yaml").write_text(yaml.safe_dump(study.model_dump(mode="json")))
        instance = dg.DagsterInstance.from_config(folder)
        lineage = DummyLineage(instance=instance, study=study)
        tests = sorted(study.sets["test"])
        lineage.register(*tests)
        lineage.record_all(only=PAGES, but=tests[-1])
        made = {page: len(instance.get_materialized_partitions(dg.AssetKey(page))) for page in PAGES}
        instance.dispose()
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=list(CHROMIUM_FLAGS))
        environment = {"DAGSTER_HOME": folder, "CURVAS_TEST_STUDY": str(home / "study.yaml")}
        rows = []
        with served(LOCATION, environment, home) as url:
            for page, count in made.items():
                address, shown = f"{url}/assets/{page}?view=partitions", f"Materialized ({count})"
                first = seconds_to_open(browser, address, shown)
                again = median(seconds_to_open(browser, address, shown) for _ in range(OPENINGS))
                rows.append((page, count, first, again))
        browser.close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--grids", nargs="+", default=["65x9", "1000x45"], help="patients x models")
    print(f"{'grid':>9} {'page':14} {'made':>6} {'first, s':>9} {'then, s':>8}")
    slowest = 0.0
    for grid in parser.parse_args().grids:
        patients, models = map(int, grid.split("x"))
        for page, count, first, again in measure(patients, models):
            print(f"{grid:>9} {page:14} {count:6d} {first:9.2f} {again:8.2f}", flush=True)
            slowest = max(slowest, again)
    print(f"slowest {slowest:.2f} s, target {TARGET_SECONDS}: {'met' if slowest <= TARGET_SECONDS else 'NOT met'}")


if __name__ == "__main__":
    main()
