"""The IO manager of every asset: finished artefacts to their events, and lazy handles to whoever reads them.

Each asset says in its definition metadata (`ARTEFACT`) what it holds. `handle_output` stores what is small (tables,
records) and proves that what the asset streamed itself (`Stored`) is there. `load_input` returns an `Artefact` (of an
unpartitioned asset) or `Artefacts` (partition → artefact): nothing is read until it is asked for, and a missing
partition is an error of the one who asks, never of the whole step.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import dagster as dg
import pandas as pd
from pydantic import PrivateAttr

from curvas_assets.errors import MissingArtefactError, StorageError
from curvas_assets.orchestration.bucket import Bucket
from curvas_assets.orchestration.usage import Usage
from curvas_assets.storage import directories, tables
from curvas_assets.storage.layout import Cell, Layout
from curvas_assets.storage.objects import ObjectStore
from curvas_assets.storage.softmax import SoftmaxVolume, open_softmax

ARTEFACT = "curvas/artefact"
Kind = Literal["record", "table", "folder", "softmax"]


def artefact(kind: Kind, **metadata: Any) -> dict[str, Any]:
    """Definition metadata of an asset that holds this kind of artefact."""
    return {ARTEFACT: kind, **metadata}


KEYS: dict[str, Callable[[Layout, str], str]] = {
    "scan": Layout.scan,
    "test_scan": Layout.test_scan,
    "preprocessed_dataset": Layout.dataset,
    "trained_model": Layout.model,
    "softmax": lambda layout, key: layout.softmax(Cell.of(key).patient, Cell.of(key).predictor),
    "ensemble_softmax": lambda layout, key: layout.softmax(Cell.of(key).patient, Cell.of(key).predictor),
    "scores": Layout.scores,
    "figures": lambda layout, _: layout.figures(),
    "report": lambda layout, _: layout.report(),
}
"""Asset → where it stands (grid keys are `<model or ensemble>|<patient>`). What is not here is a table of its own name."""


def artefact_key(layout: Layout, asset: str, partition: str = "") -> str:
    """The key of an asset's artefact, or the prefix below which it stands."""
    return KEYS[asset](layout, partition) if asset in KEYS else layout.table(asset)


@dataclass(frozen=True)
class Stored:
    """An artefact that stands in the bucket, finished.

    Args:
        key: where it stands.
        data_version: changes exactly when its content does.
        metadata: what people look for in the UI.
        afterwards: called once it is reported: removes what a repetition would need, were the process killed before that.
    """

    key: str
    data_version: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    afterwards: Callable[[], None] = field(default=lambda: None, compare=False)


@dataclass(frozen=True)
class Artefact:
    """A stored artefact that nobody has read yet."""

    objects: ObjectStore
    key: str
    kind: Kind
    subject: str

    def record(self) -> dict[str, Any]:
        return self._told(lambda: tables.read_json(self.objects, self.key))

    def table(self, name: str | None = None) -> pd.DataFrame:
        """The table; of an artefact that holds several, the one of this name."""
        if name is None:
            return self._told(lambda: tables.read_table(self.objects, self.key))
        return self._told(lambda: directories.read_directory_table(self.objects, self.key, f"{name}.parquet"))

    def folder(self, into: Path) -> Path:
        """The files, below `into`."""
        self.fetch(into)
        return into

    def fetch(self, into: Path) -> str:
        """The version of the files that are now below `into`."""
        return self._told(lambda: directories.fetch_directory(self.objects, self.key, into))

    def volume(self) -> SoftmaxVolume:
        return self._told(lambda: open_softmax(self.objects, self.key))

    def _told(self, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except MissingArtefactError as error:
            raise MissingArtefactError(
                "reading its input", self.subject, "it has not been materialised", f"Materialise {self.subject} first."
            ) from error


class Artefacts(Mapping[str, Artefact]):
    """The artefacts of several partitions of one asset, by partition key."""

    def __init__(self, members: Mapping[str, Artefact]):
        self._members = dict(members)

    def __getitem__(self, key: str) -> Artefact:
        return self._members[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)


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
        key = artefact_key(layout, context.asset_key.path[-1], partition)
        if isinstance(obj, pd.DataFrame):
            tables.write_table(objects, key, obj)
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
        asset = context.asset_key.path[-1]
        upstream = context.upstream_output
        if self._reading != context.op_def.name:  # the first input of a step: what it uses counts from here
            self._reading, self._usage = context.op_def.name, Usage(objects)
        kind: Kind = (upstream.definition_metadata if upstream else {}).get(ARTEFACT, "table")
        if not context.has_asset_partitions:
            return Artefact(objects, artefact_key(layout, asset), kind, asset)
        return Artefacts(
            {
                str(key): Artefact(objects, artefact_key(layout, asset, str(key)), kind, f"{asset} of {key}")
                for key in context.asset_partition_keys
            }
        )


def table_version(table: pd.DataFrame) -> str:
    """A digest of a table's content, column names and order of rows included."""
    digest = hashlib.sha256(repr(list(table.columns)).encode())
    digest.update(pd.util.hash_pandas_object(table, index=False).to_numpy().tobytes())
    return digest.hexdigest()[:16]
