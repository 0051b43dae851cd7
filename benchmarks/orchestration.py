"""What Dagster itself costs a cell: instant dummy computations, run alone and in batches, through the real queue.

Each run and each step has a process of its own, as the product's has. Alone: every cell a run of its own, one after the
other, as a person launches them who looks at each; first as Dagster starts runs, then from a warm process (`warm_starts`).
In batches: one run a model × all patients (the UI's backfill), and `make_missing` over the whole grid, 65 patients × 9
models. Targets: 1.5 s for a cell alone, 0.5 s for one in a batch.
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import dagster as dg
from dagster_graphql import DagsterGraphQLClient

from curvas_assets.local.deployment import ROOT
from curvas_assets_tests.browser.serving import served
from curvas_assets_tests.orchestration.lineage import DummyLineage

LOCATION = "curvas_assets_tests.orchestration.dummy_location"
ALONE = 12
TOGETHER = 6
ALONE_TARGET_SECONDS = 1.5
BATCH_TARGET_SECONDS = 0.5

Launch = tuple[str, dict, dict]
"""Job, run configuration, tags."""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        shutil.copyfile(ROOT / "dagster.yaml", home / "dagster.yaml")
        instance = dg.DagsterInstance.from_config(str(home))
        lineage = DummyLineage(instance=instance)
        tests = lineage.run_up_to_models()
        models = [str(m) for m in lineage.study.models]
        cells = [
            (
                "predict",
                {},
                {
                    "dagster/partition": f"{models[0]}|{p}",
                    "dagster/partition/model": models[0],
                    "dagster/partition/patient": p,
                },
            )
            for p in tests
        ]
        with _launcher(instance, home, warm=False) as seconds:
            cold = [seconds([cell]) for cell in cells[: ALONE // 2]]
        with _launcher(instance, home, warm=True) as seconds:
            first = seconds(cells[ALONE // 2 : ALONE // 2 + 1])
            warm = [seconds([cell]) for cell in cells[ALONE // 2 + 1 : ALONE + 1]]
            queued = seconds(cells[ALONE + 1 : ALONE + 1 + TOGETHER])
            batch = {
                "dagster/asset_partition_range_start": f"{models[1]}|{tests[0]}",
                "dagster/asset_partition_range_end": f"{models[1]}|{tests[-1]}",
            }
            one_model = seconds([("predict", {}, batch)])
            rest = len(models) * len(tests) - (ALONE + 1 + TOGETHER) - len(tests)
            make = seconds([("make_missing", {"stages": ["softmax"]}, {})])
        made = instance.get_materialized_partitions(dg.AssetKey("softmax"))
        assert len(made) == len(models) * len(tests), len(made)
        instance.dispose()
    rows = [
        ("alone, as Dagster starts runs: median", 1, median(cold)),
        ("alone, from a warm process: the first", 1, first),
        ("alone, from a warm process: median", 1, median(warm)),
        ("alone, from a warm process: slowest", 1, max(warm)),
        ("one run a cell, queued together", TOGETHER, queued),
        ("one run: a model × all patients", len(tests), one_model),
        ("make_missing: the rest of the grid", rest, make),
    ]
    print(f"{'how':40} {'cells':>6} {'s':>8} {'s a cell':>9}")
    for how, count, wall in rows:
        print(f"{how:40} {count:6d} {wall:8.1f} {wall / count:9.3f}")
    for what, found, target in (
        ("alone", median(warm), ALONE_TARGET_SECONDS),
        ("batches", max(one_model / len(tests), make / rest), BATCH_TARGET_SECONDS),
    ):
        print(f"{what}: {found:.3f} s a cell, target {target}: {'met' if found <= target else 'NOT met'}")


@contextmanager
def _launcher(instance: dg.DagsterInstance, home: Path, *, warm: bool) -> Iterator[Callable[[Sequence[Launch]], float]]:
    """Launches runs together, and tells the wall time from the first submission to the end of the last."""
    environment = {
        "DAGSTER_HOME": str(home),
        "CURVAS_TEST_EXECUTOR": "local",
        "CURVAS_TEST_COLD": "" if warm else "1",
    }
    with served(LOCATION, environment, home) as url:
        client = DagsterGraphQLClient("127.0.0.1", port_number=int(url.rpartition(":")[2]))

        def seconds(launches: Sequence[Launch]) -> float:
            start = time.monotonic()
            ids = [
                client.submit_job_execution(job, repository_location_name=LOCATION, run_config=config, tags=tags)
                for job, config, tags in launches
            ]
            _wait(instance, ids)
            return time.monotonic() - start

        yield seconds


def _wait(instance: dg.DagsterInstance, run_ids: list[str]) -> None:
    while True:
        runs = [instance.get_run_by_id(run_id) for run_id in run_ids]
        if all(run is not None and run.is_finished for run in runs):
            assert all(run is not None and run.is_success for run in runs)
            return
        time.sleep(0.05)


if __name__ == "__main__":
    main()
