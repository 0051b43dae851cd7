"""How well a finished study would have been forecast on its way: from its first cells, what did the others take?

Run `python -m benchmarks.forecast` with the DAGSTER_HOME of a study that was made once, in one go (that of `make demo`).
For each moment its records up to then are copied into an instance of their own, the study is forecast from them, and the
forecast's hours of work stand beside those of the cells that were made later. Runs that were under way at that moment count
as not begun. Nothing fails: it measures. Target: within 25 %.
"""

import argparse
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager

import dagster as dg
import pandas as pd

from curvas_assets.orchestration.asset_keys import asset_key, key_of
from curvas_assets.orchestration.environment import deployment
from curvas_assets.orchestration.forecasting import TABLES, Machine, forecast_study
from curvas_assets.orchestration.ledger import materialisation_ledger, newest_rows
from curvas_assets.orchestration.partitions import Partitions
from curvas_assets.orchestration.scope import Scope
from curvas_assets.orchestration.staleness import Staleness
from curvas_assets.stages.table import ASSETS, PATIENT_FILES
from curvas_assets.statistics.forecast import TOTAL
from curvas_assets.study import load_study

SHARES = (0.1, 1 / 3, 0.5)
NEAR = 0.25
MOST = 100_000


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--stages", action="store_true", help="a line for each stage, too")
    stages = parser.parse_args().stages
    from curvas_assets.definitions import defs

    graph = defs.resolve_asset_graph()
    study = load_study(deployment().study)
    with dg.DagsterInstance.get() as instance:
        cells = _cells(instance)
        moments = {share: _moment(cells, share) for share in SHARES}
        print(f"{len(cells)} cells, {cells['seconds'].sum():.0f} s of work")
        print(
            f"{'after':>6} {'stage':20} {'made':>5} {'to come':>7} {'forecast s':>10} {'range':>13} {'took s':>7} {'ratio':>6}"
        )
        for share, moment in moments.items():
            with _until(instance, moment, Partitions.of(study)) as then:
                machine = Machine.of(instance, deployment())
                start = time.perf_counter()
                table = forecast_study(study, Staleness(graph, then), Scope(), machine).set_index("stage")
                wall = time.perf_counter() - start
            later = cells[cells["made"] > moment].groupby("stage")["seconds"].sum()
            later[TOTAL] = later.sum()
            shown = table[table["to_come"] > 0] if stages else table.loc[[TOTAL]]
            for stage, row in shown.iterrows():
                foretold, low, high = (3600 * row[name] for name in ("hours", "hours_low", "hours_high"))
                print(
                    f"{share:6.0%} {stage:20} {row['done']:5d} {row['to_come']:7d} {foretold:10.0f} "
                    f"{low:6.0f}–{high:<6.0f} {later[stage]:7.0f} {foretold / later[stage]:6.2f}"
                )
            near = abs(3600 * table.loc[TOTAL, "hours"] / later[TOTAL] - 1) <= NEAR
            print(f"{share:6.0%} within {NEAR:.0%}: {'yes' if near else 'NO'}; the forecast took {wall:.1f} s")


def _cells(instance: dg.DagsterInstance) -> pd.DataFrame:
    """Every cell's newest record: stage, seconds, made."""
    rows = [
        {"stage": row.name if row.axis else TABLES, **one}
        for row in ASSETS
        for one in newest_rows(instance, key_of(row), MOST)
    ]
    cells = pd.DataFrame(rows).drop_duplicates(["asset", "partition"])
    repeated = len(materialisation_ledger(instance)) - len(cells)
    if repeated:
        print(f"{repeated} cells were made more than once; only their newest counts")
    return cells.sort_values("made")


def _moment(cells: pd.DataFrame, share: float) -> float:
    """When this share of the work was done."""
    done = cells["seconds"].cumsum() / cells["seconds"].sum()
    return float(cells["made"][done >= share].iloc[0])


@contextmanager
def _until(instance: dg.DagsterInstance, moment: float, partitions: Partitions) -> Generator[dg.DagsterInstance]:
    """An instance that knows what this one knew at a moment."""
    with tempfile.TemporaryDirectory() as folder, dg.DagsterInstance.local_temp(folder) as then:
        for name in filter(None, (partitions.patient.name, partitions.test_patient.name)):
            then.add_dynamic_partitions(name, list(instance.get_dynamic_partitions(name)))
        for key in [*map(key_of, ASSETS), asset_key(PATIENT_FILES)]:
            made = instance.fetch_materializations(key, limit=MOST).records
            seen = instance.fetch_observations(key, limit=MOST).records
            for record in sorted([*made, *seen], key=lambda one: one.storage_id):
                if record.timestamp <= moment:
                    then.event_log_storage.store_event(record.event_log_entry)
        yield then


if __name__ == "__main__":
    main()
