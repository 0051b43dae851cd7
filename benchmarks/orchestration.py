"""What Dagster itself costs a cell: instant dummy computations, run alone and in batches, through the real queue.

Before: every cell a run of its own, as a person who launches them one by one would do. After: one run a model × all
patients (the UI's backfill), and `make_missing` over the whole grid, 65 patients × 9 models. Target: below 0.5 s a cell.
"""

import shutil
import tempfile
import time
from pathlib import Path

import dagster as dg
from dagster_graphql import DagsterGraphQLClient

from curvas_assets.local.deployment import ROOT
from curvas_assets_tests.browser.serving import served
from curvas_assets_tests.orchestration.lineage import DummyLineage

LOCATION = "curvas_assets_tests.orchestration.dummy_location"
ALONE = 6
TARGET_SECONDS = 0.5


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        shutil.copyfile(ROOT / "dagster.yaml", home / "dagster.yaml")
        instance = dg.DagsterInstance.from_config(str(home))
        lineage = DummyLineage(instance=instance)
        tests = lineage.run_up_to_models()
        models = [str(m) for m in lineage.study.models]
        with served(LOCATION, {"DAGSTER_HOME": folder}, home) as url:
            client = DagsterGraphQLClient("127.0.0.1", port_number=int(url.rpartition(":")[2]))

            def seconds(launches: list[tuple[str, dict, dict]], *, together: bool) -> float:
                """Wall time of some runs, from the first submission to the end of the last."""
                start = time.monotonic()
                ids = []
                for job, config, tags in launches:
                    ids.append(
                        client.submit_job_execution(
                            job, repository_location_name=LOCATION, run_config=config, tags=tags
                        )
                    )
                    if not together:
                        _wait(instance, ids[-1:])
                _wait(instance, ids)
                return time.monotonic() - start

            cells = [
                {
                    "dagster/partition": f"{models[0]}|{p}",
                    "dagster/partition/model": models[0],
                    "dagster/partition/patient": p,
                }
                for p in tests
            ]
            rows = []
            alone = seconds([("predict", {}, tags) for tags in cells[:ALONE]], together=False)
            rows.append(("one run a cell, one after the other", ALONE, alone))
            queued = seconds([("predict", {}, tags) for tags in cells[ALONE : 2 * ALONE]], together=True)
            rows.append(("one run a cell, queued together", ALONE, queued))
            batch = {
                "dagster/asset_partition_range_start": f"{models[1]}|{tests[0]}",
                "dagster/asset_partition_range_end": f"{models[1]}|{tests[-1]}",
            }
            rows.append(
                ("one run: a model × all patients", len(tests), seconds([("predict", {}, batch)], together=False))
            )
            rest = len(models) * len(tests) - 2 * ALONE - len(tests)
            make = seconds([("make_missing", {"stages": ["softmax"]}, {})], together=False)
            rows.append(("make_missing: the rest of the grid", rest, make))
        made = instance.get_materialized_partitions(dg.AssetKey("softmax"))
        assert len(made) == len(models) * len(tests), len(made)
        instance.dispose()
    print(f"{'how':40} {'cells':>6} {'s':>8} {'s a cell':>9}")
    for how, count, wall in rows:
        print(f"{how:40} {count:6d} {wall:8.1f} {wall / count:9.3f}")
    worst = max(wall / count for how, count, wall in rows[2:])
    print(f"batches: {worst:.3f} s a cell, target {TARGET_SECONDS}: {'met' if worst < TARGET_SECONDS else 'NOT met'}")


def _wait(instance: dg.DagsterInstance, run_ids: list[str]) -> None:
    while True:
        runs = [instance.get_run_by_id(run_id) for run_id in run_ids]
        if all(run is not None and run.is_finished for run in runs):
            assert all(run is not None and run.is_success for run in runs)
            return
        time.sleep(0.1)


if __name__ == "__main__":
    main()
