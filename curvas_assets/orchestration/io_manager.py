"""The IO manager of every asset: finished artefacts to their events, and lazy handles to whoever reads them.

What an asset holds and where it stands is read from `curvas_assets.stages.table`. `handle_output` stores what is small (tables,
records) and proves that what the stage stored itself (`Stored`) is there. `load_input` returns an `Artefact` (of an
unpartitioned asset) or `Artefacts` (partition → artefact): nothing is read until it is asked for, and a missing
partition is an error of the one who asks, never of the whole step.
"""

from typing import Any

import dagster as dg
import pandas as pd
from pydantic import PrivateAttr

from curvas_assets.errors import StorageError
from curvas_assets.orchestration.bucket import Bucket
from curvas_assets.orchestration.usage import Usage
from curvas_assets.stages import table
from curvas_assets.stages.stored import Artefact, Artefacts, Stored
from curvas_assets.storage import tables


class ArtefactIOManager(dg.ConfigurableIOManager):
    """Artefacts of the study in its bucket."""

    bucket: dg.ResourceDependency[Bucket]
    _usage: Usage = PrivateAttr(default_factory=Usage)
    """Of the step that runs; from the start of the process or the run for one without inputs."""
    _reading: str = PrivateAttr(default="")

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        self._usage = Usage()

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        if obj is None:
            return
        self._store(context, obj)
        if "seconds" not in context.output_metadata:  # `materialise` says it of what it makes
            context.add_output_metadata({**self._usage.lap(), "device": "cpu"})

    def _store(self, context: dg.OutputContext, obj: Any) -> None:
        objects, layout = self.bucket.objects(), self.bucket.layout
        if isinstance(obj, Stored):
            # Directories and volumes are marked by an object below their key; what only begins like it is another's.
            if objects.head(obj.key) is None and next(iter(objects.list(f"{obj.key}/")), None) is None:
                raise StorageError(
                    "checking what was stored", obj.key, "nothing is there", "Materialise again.", may_retry=True
                )
            return
        partition = context.partition_key if context.has_partition_key else ""
        asset = table.asset(context.asset_key.path[-1])
        key = asset.place(layout, partition)
        if isinstance(obj, pd.DataFrame):
            tables.write_table(objects, key, obj, asset.schemas.get(asset.name))
            context.add_output_metadata(
                {
                    "dagster/row_count": len(obj),
                    "columns": ", ".join(map(str, obj.columns)),
                    "uri": f"{objects.name}/{key}",
                }
            )
        elif isinstance(obj, dict):
            tables.write_json(objects, key, obj)
            context.add_output_metadata({"uri": f"{objects.name}/{key}"})
        else:
            raise TypeError(f"{context.asset_key.to_user_string()}: {type(obj).__name__} is no artefact")

    def load_input(self, context: dg.InputContext) -> Artefact | Artefacts:
        objects, layout = self.bucket.objects(), self.bucket.layout
        asset = table.asset(context.asset_key.path[-1])
        if self._reading != context.op_def.name:  # the first input of a step: what it uses counts from here
            self._reading, self._usage = context.op_def.name, Usage(objects)
        if not context.has_asset_partitions:
            return Artefact(objects, asset.place(layout), asset.kind, asset.name, asset.schemas)
        return Artefacts(
            {
                str(key): Artefact(
                    objects, asset.place(layout, str(key)), asset.kind, f"{asset} of {key}", asset.schemas
                )
                for key in context.asset_partition_keys
            }
        )
