"""The IO manager of every asset: records finished artefacts in their events, and gives lazy handles to their readers.

What an asset holds and where it stands is read from `curvas_assets.stages.table`. `handle_output` stores what is small
(tables, records) and checks that what the stage stored itself (`Stored`) is there. `load_input` returns an `Artefact`
(of an unpartitioned asset) or `Artefacts` (partition → artefact): nothing is read until it is asked for, and a missing
partition is an error of the partition that reads it, never of the whole step.
"""

from typing import Any

import dagster as dg
import pandas as pd
from pydantic import PrivateAttr

from curvas_assets.errors import StorageError
from curvas_assets.orchestration import metadata
from curvas_assets.orchestration.asset_keys import name_of
from curvas_assets.orchestration.bucket import Bucket
from curvas_assets.orchestration.usage import Usage
from curvas_assets.stages import table
from curvas_assets.stages.stored import Artefact, Artefacts, Stored
from curvas_assets.storage import tables


class ArtefactIOManager(dg.ConfigurableIOManager):
    """Artefacts of the study in its bucket."""

    bucket: dg.ResourceDependency[Bucket]
    _usage: Usage = PrivateAttr(default_factory=Usage)
    """Usage since the last output of this process, or since it began; used for a step that reads nothing."""
    _of_reader: dict[str, Usage] = PrivateAttr(default_factory=dict)
    """Step → what it uses, from its first input on."""

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        self._usage, self._of_reader = Usage(), {}

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        if obj is None:
            return
        self._store(context, obj)
        if "seconds" not in context.output_metadata:  # `materialise` has added it to what it makes
            usage = self._of_reader.get(context.step_key, self._usage)
            context.add_output_metadata({**usage.lap(), "device": "cpu"})
            self._usage.restart()

    def _store(self, context: dg.OutputContext, obj: Any) -> None:
        objects, layout = self.bucket.objects(), self.bucket.layout
        if isinstance(obj, Stored):
            # A directory or volume has an object below its key; a key that only begins the same is another artefact.
            if objects.head(obj.key) is None and next(iter(objects.list(f"{obj.key}/")), None) is None:
                raise StorageError(
                    "checking what was stored", obj.key, "nothing is there", "Materialise again.", may_retry=True
                )
            return
        partition = context.partition_key if context.has_partition_key else ""
        asset = table.asset(name_of(context.asset_key))
        key = asset.place(layout, partition)
        if isinstance(obj, pd.DataFrame):
            tables.write_table(objects, key, obj, asset.schemas.get(asset.name))
            context.add_output_metadata({**metadata.catalogued(obj), metadata.URI: f"{objects.name}/{key}"})
        elif isinstance(obj, dict):
            tables.write_json(objects, key, obj)
            context.add_output_metadata({metadata.URI: f"{objects.name}/{key}"})
        else:
            raise TypeError(f"{name_of(context.asset_key)}: {type(obj).__name__} is no artefact")

    def load_input(self, context: dg.InputContext) -> Artefact | Artefacts:
        objects, layout = self.bucket.objects(), self.bucket.layout
        asset = table.asset(name_of(context.asset_key))
        if (
            context.op_def.name not in self._of_reader
        ):  # a step is named like its op: no asset is made by a graph of ops
            self._of_reader[context.op_def.name] = Usage(objects)
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
