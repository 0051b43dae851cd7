"""Emptying one prefix of the bucket: first a list of what would go, then, with the prefix's full name typed, the removal.

No object outside the prefix is ever named to the store. What is removed is recorded in the run, and Dagster forgets the
assets that stood there, so that their partitions are missing again.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import pandas as pd

from curvas_assets.errors import StorageError
from curvas_assets.orchestration.operations.transfer import human_bytes
from curvas_assets.stages import table
from curvas_assets.storage.layout import Cell, Layout
from curvas_assets.storage.objects import ObjectInfo, ObjectStore


@dataclass(frozen=True)
class Contents:
    """What stands below a prefix.

    Args:
        name: of the prefix as people know it, e.g. `s3://curvas/artifacts`; to be typed as confirmation.
        objects: all of them.
    """

    name: str
    objects: tuple[ObjectInfo, ...]

    @property
    def size(self) -> int:
        return sum(item.size for item in self.objects)

    def by_folder(self, prefix: str) -> pd.DataFrame:
        """Columns folder, objects, bytes: one row for each folder two levels below the prefix."""
        rows = [("/".join(o.key.removeprefix(f"{prefix}/").split("/")[:-1][:2]) or ".", o.size) for o in self.objects]
        sums = pd.DataFrame(rows, columns=["folder", "bytes"]).groupby("folder")["bytes"].agg(["count", "sum"])
        return sums.rename(columns={"count": "objects", "sum": "bytes"}).reset_index()

    def __str__(self) -> str:
        return f"{self.name}: {len(self.objects)} objects, {human_bytes(self.size)}"


def contents(objects: ObjectStore, prefix: str) -> Contents:
    """What stands below a prefix of the layout."""
    return Contents(f"{objects.name}/{prefix}", tuple(objects.list(f"{prefix}/")))


def assets_below(layout: Layout, prefix: str, assets: Iterable[str]) -> list[str]:
    """Those assets whose artefacts stand below a prefix."""
    anyone = str(Cell("predictor", "patient"))
    uploaded = {
        table.PATIENT_FILES: layout.patient_file("patient", "file"),
        table.PUBLISHED_TABLE: layout.published_table("file"),
        table.OTHER_STUDIES: "below prefixes of their own",
    }
    keys = {name: uploaded.get(name) or table.asset(name).place(layout, anyone) for name in assets}
    return sorted(asset for asset, key in keys.items() if key.startswith(f"{prefix}/"))


def empty(objects: ObjectStore, prefix: str, typed: str, tell: Callable[[str], None], *, every: int = 200) -> Contents:
    """Remove everything below a prefix.

    Args:
        objects: the bucket.
        prefix: of the layout; what stands beside it stays.
        typed: the prefix's full name, as `Contents.name` gives it.
        tell: told of the keys that go.
        every: how many keys are told, and removed, at a time.

    Raises:
        StorageError: something else was typed, or objects are left; nothing is removed in the first case.
    """
    found = contents(objects, prefix)
    if typed != found.name:
        raise StorageError(
            "emptying the prefix",
            found.name,
            f"{typed!r} was typed as confirmation",
            f"Type {found.name} exactly, to remove {len(found.objects)} objects, {human_bytes(found.size)}.",
        )
    for start in range(0, len(found.objects), every):
        batch = found.objects[start : start + every]
        tell(_removal(start, batch, len(found.objects)))
        objects.delete(item.key for item in batch)
    left = contents(objects, prefix)
    if left.objects:
        raise StorageError(
            "emptying the prefix",
            found.name,
            f"{len(left.objects)} objects are still there, e.g. {left.objects[0].key}",
            "Something is still writing there: stop all runs, and launch again.",
        )
    return found


def _removal(start: int, batch: Sequence[ObjectInfo], total: int) -> str:
    keys = "\n".join(f"{item.key} ({item.size} bytes)" for item in batch)
    return f"removing {start + 1} to {start + len(batch)} of {total}:\n{keys}"
