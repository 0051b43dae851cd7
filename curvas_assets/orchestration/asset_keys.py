"""Keys by which Dagster knows the assets of the table."""

import dagster as dg

from curvas_assets.stages.table import STAGES, Asset


def key_of(row: Asset) -> dg.AssetKey:
    """The key of an asset."""
    return dg.AssetKey(row.name)


def keys_of(stage: str) -> list[dg.AssetKey]:
    """The keys of what a stage job makes."""
    return [dg.AssetKey(name) for name in STAGES[stage]]
