"""Jobs: one for each stage, to launch or backfill any of its partitions from the UI, a schedule or the command line."""

from typing import Any

import dagster as dg

from curvas_assets.orchestration.asset_keys import keys_of
from curvas_assets.stages.table import STAGES


def stage_jobs(executor: dg.ExecutorDefinition) -> list[Any]:
    """A job for each stage of the study."""
    return [
        dg.define_asset_job(
            name,
            selection=dg.AssetSelection.assets(*keys_of(name)),
            description=f"Materialise {', '.join(assets)}: choose partitions, or launch from `study`.",
            executor_def=executor,
        )
        for name, assets in STAGES.items()
    ]
