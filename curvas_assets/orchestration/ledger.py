"""The cost ledger: what every materialisation of this instance recorded, and the study's table 4 made from it."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import dagster as dg
import pandas as pd

from curvas_assets.orchestration.asset_keys import asset_key, key_of, name_of
from curvas_assets.orchestration.dagster_internals import CODE_VERSION_TAG
from curvas_assets.stages.table import ASSETS, COST_ROWS, Asset
from curvas_assets.study import Prices

PAGE = 500
STUDY_COSTS = pd.DataFrame(
    {
        "stage": ["training", "inference", "ensembling", "evaluation"],
        "study_count": [9, 576, 64, 64],
        "study_hours": [216.0, 576.0, 128.0, 64.0],
        "study_gb_down": [54.0, 864.0, 1152.0, 224.0],
        "study_gb_up": [9.0, 2304.0, 1024.0, 0.0],
    }
)
"""What the study itself used (its report, table 4)."""


def materialisation_ledger(instance: dg.DagsterInstance, assets: Iterable[Asset] = ASSETS) -> pd.DataFrame:
    """One row per materialisation, the newest of an asset first: asset, partition, run, seconds, bytes down and up, peak
    memory, device, bytes stored; of a training also its epochs, and at which it went on (`resumed`).

    Args:
        instance: whose.
        assets: of which; all, if not given.
    """
    columns = ["asset", "partition", "run", "seconds", "bytes_down", "bytes_up", "peak_memory_mib", "device", "bytes"]
    rows = [row for asset in assets for row in _rows(instance, key_of(asset))]
    return pd.DataFrame(rows, columns=[*columns, "epochs", "resumed"])


def newest_rows(
    instance: dg.DagsterInstance, of: dg.AssetKey | dg.AssetRecordsFilter, most: int
) -> list[dict[str, Any]]:
    """The rows of an asset's newest materialisations, the newest first; more facts than the ledger has.

    These are `made` (when, s since 1970), `shape` and `epochs` as the artefact's metadata have them, `resumed` (epochs
    that an earlier attempt of a training had made), and `code` (the code version).

    Args:
        instance: whose.
        of: the asset, or some of its partitions.
        most: rows.
    """
    return list(islice(_rows(instance, of, page=min(most, PAGE)), most))


def _rows(
    instance: dg.DagsterInstance, of: dg.AssetKey | dg.AssetRecordsFilter, page: int | None = None
) -> Iterator[dict[str, Any]]:
    asset = name_of(of.asset_key if isinstance(of, dg.AssetRecordsFilter) else of)
    cursor = None
    while True:
        found = instance.fetch_materializations(of, limit=page or PAGE, cursor=cursor)
        for record in found.records:
            event = record.asset_materialization
            value = {name: entry.value for name, entry in event.metadata.items()} if event else {}
            if "seconds" in value:
                yield {
                    "asset": asset,
                    "partition": record.partition_key or "",
                    "run": record.run_id,
                    **{
                        name: value.get(name)
                        for name in ("seconds", "bytes_down", "bytes_up", "peak_memory_mib", "bytes")
                    },
                    "device": value.get("device", "cpu"),
                    "made": record.timestamp,
                    "shape": value.get("shape"),
                    "epochs": value.get("epochs"),
                    "resumed": value.get("resumed at epoch"),
                    "code": (event.tags or {}).get(CODE_VERSION_TAG) if event else None,
                }
        if not found.has_more:
            return
        cursor = found.cursor


def cost_table(ledger: pd.DataFrame, prices: Prices) -> pd.DataFrame:
    """The study's table 4, one row per stage: our count, hours, GB, peak memory and euros, and the study's own figures.

    If a partition was materialised several times, each time counts, because each was paid for. Stored bytes count once.

    Args:
        ledger: as `materialisation_ledger` gives it.
        prices: of an hour, a GB stored for a month and a GB down.
    """
    rows: list[dict[str, Any]] = []
    for stage, assets in COST_ROWS.items():
        own = ledger[ledger["asset"].isin(assets)]
        used = own[["seconds", "bytes_down", "bytes_up", "peak_memory_mib", "bytes"]].astype(float)
        latest = ~own.duplicated(["asset", "partition"], keep="first")  # the newest rows of the ledger come first
        gpu = own["device"].astype(str).str.startswith("cuda")
        stored = used.loc[latest, "bytes"].sum() / 1e9
        down, up = used["bytes_down"].sum() / 1e9, used["bytes_up"].sum() / 1e9
        compute = (
            used.loc[gpu, "seconds"].sum() * prices.gpu_hour_eur + used.loc[~gpu, "seconds"].sum() * prices.cpu_hour_eur
        ) / 3600
        rows.append(
            {
                "stage": stage,
                "count": len(own),
                "hours": used["seconds"].sum() / 3600,
                "gb_down": down,
                "gb_up": up,
                "gb_stored": stored,
                "peak_memory_gib": used["peak_memory_mib"].max() / 1024,
                "euros": compute
                + stored * prices.storage_gb_month_eur * prices.storage_days / 30
                + down * prices.egress_gb_eur,
            }
        )
    table = pd.DataFrame(rows).merge(STUDY_COSTS, on="stage", how="left")
    total = {"stage": "total", **table.drop(columns=["stage", "peak_memory_gib"]).sum().to_dict()}
    total["peak_memory_gib"] = table["peak_memory_gib"].max()
    whole = pd.concat([table, pd.DataFrame([total])], ignore_index=True)
    return whole.astype({"count": "Int64", "study_count": "Int64"})


def not_recorded(instance: dg.DagsterInstance, ledger: pd.DataFrame) -> list[str]:
    """One sentence per asset with partitions that exist without a record of work, so that no row has their cost."""
    recorded = ledger.groupby("asset")["partition"].agg(set).to_dict()
    lacking = []
    for asset in (row.name for row in ASSETS):
        absent = sorted(instance.get_materialized_partitions(asset_key(asset)) - recorded.get(asset, set()))
        if absent:
            more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
            lacking.append(f"{asset}: no work is recorded for {absent[0]}{more} (made elsewhere?); not in the cost")
    return lacking
