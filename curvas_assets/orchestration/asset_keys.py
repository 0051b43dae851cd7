"""Keys by which Dagster knows the assets of the table, below the deployment's prefix if it has one.

Two studies on one Dagster instance are two code locations, each with a prefix of its own (`CURVAS_KEY_PREFIX`): their assets and
their patients are then kept apart. In the lineage, in messages and in the bucket an asset keeps its plain name.
"""

import dagster as dg

from curvas_assets.orchestration.environment import deployment
from curvas_assets.stages.table import STAGES, Asset


def asset_key(name: str) -> dg.AssetKey:
    """The key of an asset, by its name in the table."""
    prefix = deployment().key_prefix
    return dg.AssetKey([prefix, name] if prefix else [name])


def key_of(row: Asset) -> dg.AssetKey:
    """The key of an asset."""
    return asset_key(row.name)


def keys_of(stage: str) -> list[dg.AssetKey]:
    """The keys of what a stage job makes."""
    return [asset_key(name) for name in STAGES[stage]]


def name_of(key: dg.AssetKey) -> str:
    """The name of an asset in the table, by its key."""
    return key.path[-1]


def patients_name(axis: str) -> str:
    """The name under which an instance keeps the patients of an axis."""
    prefix = deployment().key_prefix
    return f"{prefix}_{axis}" if prefix else axis
