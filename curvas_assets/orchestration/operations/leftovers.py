"""Objects in the bucket that nobody needs: artefacts that left the study (orphans), and what writers left behind.

Orphans are removed only when a person has read the list and typed its name. What writers left (older versions, remains
of killed writers, unfinished uploads, checkpoints of trainings that have ended since) is removed by its age on the
store's clock. Objects outside the places of the layout belong to somebody else and are never touched; nor is the input.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import dagster as dg
import pandas as pd

from curvas_assets.errors import CorruptArtefactError, MissingArtefactError, StorageError, StudyError
from curvas_assets.orchestration.asset_keys import asset_key, name_of
from curvas_assets.orchestration.dagster_internals import (
    CODE_VERSION_TAG,
    DATA_VERSION_TAG,
    AssetGraph,
)
from curvas_assets.orchestration.launches import tagged_partitions
from curvas_assets.orchestration.operations.transfer import human_bytes
from curvas_assets.orchestration.partitions import Partitions, belongs, dimension_tags
from curvas_assets.orchestration.staleness import REMOVED
from curvas_assets.orchestration.under_way import short_name
from curvas_assets.stages.places import partition_of, root_of
from curvas_assets.storage import directories, softmax, versions
from curvas_assets.storage.layout import SEPARATOR, Layout
from curvas_assets.storage.objects import ObjectInfo, ObjectStore, UnfinishedUpload
from curvas_assets.study import ModelId

CLOCK_RESOLUTION = timedelta(seconds=1)
"""Stores give times in whole seconds: an object dated to the very second of the clock's reading may be younger than
that reading."""
NO_MEMORY = pd.DataFrame(columns=["asset", "partition"])
MARKERS = (directories.MANIFEST, softmax.GROUP)


# Orphans -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Orphan:
    """A partition that is no longer in the study, and its objects in the bucket.

    Args:
        asset: of the lineage.
        partition: its key.
        objects: all that would go with it.
    """

    asset: str
    partition: str
    objects: tuple[ObjectInfo, ...]

    @property
    def size(self) -> int:
        return sum(item.size for item in self.objects)


def find_orphans(objects: ObjectStore, layout: Layout, partitions: Partitions) -> list[Orphan]:
    """Artefacts of annotators, seeds, models, ensembles and patients that do not belong to the study any more, from one
    listing of each prefix. A checkpoint belongs to its model.
    """
    found: dict[tuple[str, str], list[ObjectInfo]] = {}
    for prefix in (layout.artifacts, layout.output, layout.metrics):
        for item in objects.list(f"{prefix}/"):
            owner = partition_of(layout, item.key)
            if owner is None:
                continue
            row, partition = owner
            if row.axis is not None and not belongs(getattr(partitions, row.axis), partition):
                found.setdefault((row.name, partition), []).append(item)
    return [Orphan(asset, partition, tuple(items)) for (asset, partition), items in sorted(found.items())]


def orphan_table(orphans: Sequence[Orphan], remembered: pd.DataFrame) -> pd.DataFrame:
    """Columns asset, partition, objects, bytes.

    Args:
        orphans: what stands in the bucket.
        remembered: asset and partition of those that Dagster knows; the bucket may hold nothing of them.
    """
    rows = [(o.asset, o.partition, len(o.objects), o.size) for o in orphans]
    there = {row[:2] for row in rows}
    rows += [(a, p, 0, 0) for a, p in remembered.itertuples(index=False) if (a, p) not in there]
    return pd.DataFrame(sorted(rows), columns=["asset", "partition", "objects", "bytes"])


def chosen(orphans: Sequence[Orphan], only: Iterable[str]) -> list[Orphan]:
    """The orphans that one of the names selects (an asset, a partition, or a patient, model or annotator in it), or all."""
    names = {name for entry in only for name in str(entry).replace(",", " ").split()}
    if names == {"all"}:
        return list(orphans)
    unknown = names - {name for o in orphans for name in (o.asset, *_names(o.partition))}
    if unknown or not names:
        raise StudyError(
            "choosing orphans",
            ", ".join(sorted(unknown)) or "nothing",
            "it names no orphan",
            "Give all, or names as the dry run lists them: assets, patients, models, annotators.",
        )
    return [o for o in orphans if names & {o.asset, *_names(o.partition)}]


def _names(partition: str) -> set[str]:
    """A partition's key and what it is made of: patient, model, variant of one or ensemble, annotator."""
    names = {partition, *partition.split(SEPARATOR)}
    for name in tuple(names):
        try:
            model = ModelId.parse(name)
        except StudyError:
            continue
        names |= {str(model.trained), model.annotator}
    return names


def at_work(
    orphans: Sequence[Orphan], runs: Sequence[dg.DagsterRun], graph: AssetGraph, instance: dg.DagsterInstance
) -> list[str]:
    """Runs that may still write or read one of these orphans, because they began when the study had it.

    Args:
        orphans: that are to go.
        runs: that have not ended.
        graph: the lineage.
        instance: where patients are registered.
    """
    busy: list[str] = []
    for run in runs:
        selected = set(run.asset_selection or ())
        upstream = {a for key in selected if graph.has(key) for a in graph.get_ancestor_asset_keys(key)} - selected
        keys = _keys_of(run, graph, instance)
        made, read = set(map(name_of, selected)), set(map(name_of, upstream))
        for orphan in orphans:
            if (orphan.asset in made and (keys is None or orphan.partition in keys)) or (
                orphan.asset in read
                and (keys is None or set(orphan.partition.split(SEPARATOR)) & {n for k in keys for n in _names(k)})
            ):
                busy.append(short_name(run))
                break
    return busy


def _keys_of(run: dg.DagsterRun, graph: AssetGraph, instance: dg.DagsterInstance) -> Collection[str] | None:
    """The partitions of a run; None if they cannot be told, as of a range that has left the study."""
    found: set[str] = set()
    for key in run.asset_selection or ():
        definition = graph.get(key).partitions_def if graph.has(key) else None
        if definition is None:
            continue
        try:
            found |= set(tagged_partitions(definition, run.tags, instance))
        except Exception:  # Dagster raises different errors if an end of the range is no partition any more
            return None
    return found


def remove_orphan(objects: ObjectStore, orphan: Orphan) -> None:
    """Remove the objects of an orphan, markers first, so that no marker names a missing object."""
    objects.delete(_markers_first(orphan.objects))


def removal_event(graph: AssetGraph, orphan: Orphan) -> dg.AssetMaterialization:
    """A removal event: Dagster cannot wipe one partition; with this version, it counts as missing if it returns."""
    key = asset_key(orphan.asset)
    dimensions = dimension_tags(graph.get(key).partitions_def, orphan.partition)
    return dg.AssetMaterialization(
        key,
        partition=orphan.partition,
        description="removed by remove_orphans: it had left the study",
        metadata={"removed objects": len(orphan.objects), "removed bytes": orphan.size},
        tags={CODE_VERSION_TAG: REMOVED, DATA_VERSION_TAG: REMOVED, **dimensions},
    )


def removed_partitions(instance: dg.DagsterInstance, key: dg.AssetKey) -> set[str]:
    """Partitions whose last event tells of their removal."""
    latest = instance.event_log_storage.get_latest_tags_by_partition(
        key, dg.DagsterEventType.ASSET_MATERIALIZATION, [DATA_VERSION_TAG]
    )
    return {partition for partition, tags in latest.items() if tags.get(DATA_VERSION_TAG) == REMOVED}


# What writings left --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Leftover:
    """Something that can be removed without loss.

    Args:
        what: kind, in words.
        key: where it stands.
        objects: that would go.
        age: since somebody last added to it.
        upload: to give up, if it is one that was not completed.
    """

    what: str
    key: str
    objects: tuple[ObjectInfo, ...]
    age: timedelta
    upload: UnfinishedUpload | None = None

    @property
    def size(self) -> int:
        return sum(item.size for item in self.objects)


def find_leftovers(
    objects: ObjectStore, layout: Layout, tell: Callable[[str], None], before: datetime | None = None
) -> list[Leftover]:
    """Older versions and remains of killed writers, finished trainings' checkpoints, and uploads that were not completed.

    Only objects with names that the platform itself gives can count as one of these.

    Args:
        objects: the bucket.
        layout: where things stand in it.
        tell: told of what could not be judged.
        before: find everything that is untouched since this time on the store's clock, however young. None leaves what
            is younger than `versions.UNTOUCHED`. Unfinished uploads always stay that long: anybody may own them.
    """
    now = objects.clock() if before is None else before
    least = versions.UNTOUCHED if before is None else CLOCK_RESOLUTION
    if now is None:
        tell("the store does not say what time it is, so nothing counts as old")
        return []
    found: list[Leftover] = []
    for prefix in (layout.artifacts, layout.output, layout.metrics, layout.reports):
        by_root: dict[str, list[ObjectInfo]] = {}
        for item in objects.list(f"{prefix}/"):
            root = root_of(layout, item.key)
            if root is not None:
                by_root.setdefault(root, []).append(item)
        for root, items in by_root.items():
            try:
                found += _of_artefact(objects, layout, root, items, now, least)
            except StorageError as error:
                tell(f"{root} is left as it is: {error}")
    for prefix in (layout.artifacts, layout.output, layout.metrics, layout.reports):
        try:
            for upload in objects.unfinished_uploads(f"{prefix}/"):
                if now - upload.started >= versions.UNTOUCHED and root_of(layout, upload.key) is not None:
                    found.append(Leftover("upload not completed", upload.key, (), now - upload.started, upload))
        except StorageError as error:
            tell(f"unfinished uploads below {prefix} could not be listed: {error}")
    return found


def _of_artefact(
    objects: ObjectStore, layout: Layout, root: str, items: Sequence[ObjectInfo], now: datetime, least: timedelta
) -> Iterator[Leftover]:
    is_volume = root.endswith("/softmax.zarr")
    marker = f"{root}/{softmax.GROUP if is_volume else directories.MANIFEST}"
    training = f"{layout.artifacts}/training/"
    if root.startswith(training):
        published = objects.head(f"{layout.model(root.removeprefix(training))}/{directories.MANIFEST}")
        age = versions.age(items, now)
        newest = max((item.modified for item in items if item.modified), default=None)
        if published and published.modified and newest and published.modified > newest and age >= least:
            yield Leftover("checkpoint of a training that has ended", root, tuple(items), age)
            return
    current: set[str] = set()
    if any(item.key == marker for item in items):
        try:
            current = set((softmax.place_of(objects, root),) if is_volume else directories.places_of(objects, root))
        except MissingArtefactError:
            return  # it is just being removed
        if not current:
            raise CorruptArtefactError("reading a manifest", root, "it is damaged", "Materialise it again.")
    elif root.startswith(training) and any(item.key.count("/") == root.count("/") + 1 for item in items):
        return  # stored before there was a manifest; a training may still resume from it
    places: dict[str, list[ObjectInfo]] = {}
    for item in items:
        place = item.key.removeprefix(f"{root}/").partition("/")[0]
        if item.key != marker and versions.is_place(place):
            places.setdefault(place, []).append(item)
    for place, held in places.items():
        if place not in current and versions.age(held, now) >= least:
            what = "older version, or remains of a killed writer"
            yield Leftover(what, f"{root}/{place}", tuple(held), versions.age(held, now))


def leftover_table(leftovers: Sequence[Leftover]) -> pd.DataFrame:
    """Columns what, key, objects, bytes, hours."""
    rows = [(one.what, one.key, len(one.objects), one.size, one.age // timedelta(hours=1)) for one in leftovers]
    return pd.DataFrame(rows, columns=["what", "key", "objects", "bytes", "hours"])


def summary(leftovers: Sequence[Leftover]) -> Mapping[str, str]:
    """Kind → how many and how much."""
    kinds = dict.fromkeys(one.what for one in leftovers)
    return {
        kind: f"{sum(one.what == kind for one in leftovers)}, "
        f"{human_bytes(sum(one.size for one in leftovers if one.what == kind))}"
        for kind in kinds
    }


def remove_leftover(objects: ObjectStore, leftover: Leftover) -> None:
    """Remove it, a marker first."""
    if leftover.upload is not None:
        objects.give_up(leftover.upload)
    objects.delete(_markers_first(leftover.objects))


def _markers_first(items: Iterable[ObjectInfo]) -> list[str]:
    """Keys in the order in which they are removed: a marker never names an object that is gone."""
    keys = [item.key for item in items]
    return sorted(keys, key=lambda key: (key.rpartition("/")[2] not in MARKERS, key.count("/"), key))
