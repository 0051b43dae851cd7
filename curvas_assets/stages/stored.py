"""What stages read and make: handles of stored artefacts, and artefacts that stand in the bucket, with plain facts about them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from curvas_assets.errors import MissingArtefactError
from curvas_assets.stages.table import Kind
from curvas_assets.storage import directories, tables
from curvas_assets.storage.objects import ObjectStore
from curvas_assets.storage.schemas import TableSchema
from curvas_assets.storage.softmax import SoftmaxVolume, open_softmax

AVERAGED = "averaged"
"""Metadata of an ensemble of a patient: the names of the members that it is the mean of."""


@dataclass(frozen=True)
class Picture:
    """A PNG that people see beside an artefact, with what is on it."""

    png: bytes
    title: str


class Markdown(str):
    """Text that people see formatted."""


@dataclass(frozen=True)
class Stored:
    """An artefact that stands in the bucket, finished.

    Args:
        key: where it stands.
        data_version: changes exactly when its content does.
        metadata: what people look for in the UI: text, numbers, dictionaries, tables (DataFrame), Pictures, Markdown.
        afterwards: called once the artefact is reported; removes what another attempt would need if the process were
            killed before.
    """

    key: str
    data_version: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    afterwards: Callable[[], None] = field(default=lambda: None, compare=False)


Outcome = Stored | Exception
"""Of one partition: stored, or why it is not."""
Work = Callable[[Sequence[str]], Iterator[tuple[str, Outcome]]]
"""Makes the partitions it is given, in its own order."""


def one_by_one(produce: Callable[[str], Stored]) -> Work:
    """Work that makes its partitions one after the other; an error is its partition's alone."""

    def work(keys: Sequence[str]) -> Iterator[tuple[str, Outcome]]:
        for key in keys:
            try:
                yield key, produce(key)
            except Exception as error:
                yield key, error

    return work


@dataclass(frozen=True)
class Artefact:
    """A stored artefact that nobody has read yet.

    Args:
        objects: where it stands.
        key: of the object, or below which its files stand.
        kind: what it is.
        subject: whose it is, for messages: the asset, and its partition if it has any.
        schemas: columns of its tables, as its row in `curvas_assets.stages.table` has them.
    """

    objects: ObjectStore
    key: str
    kind: Kind
    subject: str
    schemas: Mapping[str, TableSchema] = field(default_factory=dict, hash=False)

    def record(self) -> dict[str, Any]:
        """The record of a JSON object; a MissingArtefactError if it has not been materialised."""
        return self._saying_what_to_materialise(lambda: tables.read_json(self.objects, self.key))

    def table(self, name: str | None = None) -> pd.DataFrame:
        """The table; of an artefact that holds several, the one of this name.

        Raises:
            MissingArtefactError: it has not been materialised.
            CorruptArtefactError: it is damaged, or was made by a version with other columns.
        """
        if name is None:
            schema = self.schemas.get(self.subject)
            return self._saying_what_to_materialise(lambda: tables.read_table(self.objects, self.key, schema))
        file, schema = f"{name}.parquet", self.schemas.get(name)
        return self._saying_what_to_materialise(
            lambda: directories.read_directory_table(self.objects, self.key, file, schema)
        )

    def folder(self, into: Path) -> Path:
        """The files, below `into`."""
        self.fetch(into)
        return into

    def fetch(self, into: Path, wanted: Callable[[str], bool] = lambda name: True) -> str:
        """The version of the files that are now below `into`: all, or those whose names are wanted."""
        return self._saying_what_to_materialise(
            lambda: directories.fetch_directory(self.objects, self.key, into, wanted)
        )

    def volume(self) -> SoftmaxVolume:
        """The softmax volume, opened; a MissingArtefactError if it has not been materialised."""
        return self._saying_what_to_materialise(lambda: open_softmax(self.objects, self.key))

    def _saying_what_to_materialise(self, read: Callable[[], Any]) -> Any:
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


def device_name(kind: str, leased: str | None) -> str:
    """What torch ran on, and which of the machine's devices that was: `cuda 1`, `cpu`."""
    return f"{kind} {leased}" if leased is not None and kind.startswith("cuda") else kind
