"""How well a finished study would have been forecast on its way: from its first cells, what did the others take?

Run `python -m benchmarks.forecast` with the DAGSTER_HOME of a study that was made once, in one go (that of `make demo`).
Known are the cells that were made in the first tenth, third and half of the work, so that later stages rest on their priors;
and then the first tenth, third and half of each stage's cells. The records of these are copied into an instance of their
own, the study is forecast from them, and the forecast's hours of work stand beside those that the cells to come took. No
run is under way then: all count as not begun. Cells that are known, but would be made again because an input is to come,
count as well. Nothing fails: it measures. Target: within 25 %.
"""

import argparse
import math
import os
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import pandas as pd

from curvas_assets.orchestration.asset_keys import asset_key, key_of
from curvas_assets.orchestration.environment import deployment
from curvas_assets.orchestration.forecasting import TABLES, Capacity, forecast_study, to_come
from curvas_assets.orchestration.ledger import newest_rows
from curvas_assets.orchestration.partitions import Partitions
from curvas_assets.orchestration.scope import Scope
from curvas_assets.orchestration.staleness import Staleness
from curvas_assets.stages.table import ASSETS, PATIENT_FILES
from curvas_assets.statistics.forecast import TOTAL
from curvas_assets.study import load_study

SHARES = {"tenth": 1 / 10, "third": 1 / 3, "half": 1 / 2}
NEAR = 0.25
MOST = 10_000
"""Records of an asset: no more are read at once by Dagster."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--stages", action="store_true", help="a line for each stage, too")
    every_stage = parser.parse_args().stages
    home = os.environ.get("DAGSTER_HOME")
    if not (home and Path(home, "dagster.yaml").is_file()):
        print("DAGSTER_HOME names no instance: nothing is measured; `make demo` makes one, in .state/dagster")
        return
    from curvas_assets.definitions import defs

    graph = defs.resolve_asset_graph()
    study = load_study(deployment().study)
    with dg.DagsterInstance.get() as instance:
        cells = _cells(instance)
        print(f"{len(cells)} cells, {cells['seconds'].sum():.0f} s of work")
        print(
            f"{'known':22} {'stage':20} {'made':>5} {'to come':>7} {'forecast s':>10} {'range':>13} {'took s':>7} {'ratio':>6}"
        )
        for known, chosen in _choices(cells):
            with _known(instance, cells[chosen], Partitions.of(study)) as then:
                capacity = Capacity.of(instance, deployment())
                start = time.perf_counter()
                staleness = Staleness(graph, then)
                table = forecast_study(study, staleness, Scope(), capacity).set_index("stage")
                wall = time.perf_counter() - start
                coming = to_come(study, staleness, Scope(), ASSETS)
            awaited = [
                one in coming.get(asset, ()) for asset, one in zip(cells["asset"], cells["partition"], strict=True)
            ]
            took_by_stage = cells[awaited].groupby("stage")["seconds"].sum()
            took_by_stage[TOTAL] = took_by_stage.sum()
            shown = table[table["to_come"] > 0] if every_stage else table.loc[[TOTAL]]
            for stage, row in shown.iterrows():
                foretold, low, high = (3600 * row[name] for name in ("hours", "hours_low", "hours_high"))
                took = took_by_stage.get(stage, math.nan)
                print(
                    f"{known:22} {stage:20} {row['done']:5d} {row['to_come']:7d} {foretold:10.0f} "
                    f"{low:6.0f}–{high:<6.0f} {took:7.0f} {foretold / took:6.2f}"
                )
            near = abs(3600 * table.loc[TOTAL, "hours"] / took_by_stage[TOTAL] - 1) <= NEAR
            print(f"{known:22} within {NEAR:.0%}: {'yes' if near else 'NO'}; the forecast itself took {wall:.1f} s")


def _cells(instance: dg.DagsterInstance) -> pd.DataFrame:
    """Every cell's newest record, in the order of their making: stage, asset, partition, seconds, made."""
    rows = [
        {"stage": row.name if row.axis else TABLES, **one}
        for row in ASSETS
        for one in newest_rows(instance, key_of(row), MOST)
    ]
    cells = pd.DataFrame(rows).drop_duplicates(["asset", "partition"])
    if len(cells) < len(rows):
        print(f"{len(rows) - len(cells)} cells were made more than once; only the newest counts")
    return cells.sort_values("made", ignore_index=True)


def _choices(cells: pd.DataFrame) -> Generator[tuple[str, pd.Series]]:
    """Names of sets of cells, and which belong to them."""
    done = cells["seconds"].cumsum() / cells["seconds"].sum()
    for name, share in SHARES.items():
        yield f"first {name} of the work", done <= share
    place, size = cells.groupby("stage").cumcount(), cells.groupby("stage")["made"].transform("size")
    for name, share in SHARES.items():
        yield f"… {name} of each stage", place < (share * size).clip(lower=1)


@contextmanager
def _known(instance: dg.DagsterInstance, cells: pd.DataFrame, partitions: Partitions) -> Generator[dg.DagsterInstance]:
    """An instance that knows of these cells alone, and of all patients' files."""
    known = set(zip(cells["asset"], cells["partition"], cells["made"], strict=True))
    with tempfile.TemporaryDirectory() as folder, dg.DagsterInstance.local_temp(folder) as then:
        for name in filter(None, (partitions.patient.name, partitions.test_patient.name)):
            then.add_dynamic_partitions(name, list(instance.get_dynamic_partitions(name)))
        records = list(instance.fetch_observations(asset_key(PATIENT_FILES), limit=MOST).records)
        for row in ASSETS:
            found = instance.fetch_materializations(key_of(row), limit=MOST).records
            records += [one for one in found if (row.name, one.partition_key or "", one.timestamp) in known]
        for record in sorted(records, key=lambda one: one.storage_id):
            then.event_log_storage.store_event(record.event_log_entry)
        yield then


if __name__ == "__main__":
    main()
