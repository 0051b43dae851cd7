"""Which partitions of an asset are missing or stale, by Dagster's own records of code and data versions.

A partition is *missing* if it was never materialised, *stale* if its code version changed or the data version of
something it was made from did. It is *ready* when everything it is made from exists. Only partitions that belong to the
study as its file stands now count (`partitions.current_keys`).

What people uploaded was made *elsewhere*: it is reported when it is out of date, but is not due until a person says so.
The same holds for a missing artefact of which only the products were uploaded: a model whose predictions were uploaded,
and a dataset whose models were all uploaded; and for what such a model would make of patients on whom things are only
fitted, unless calibrators are fitted to it.

The rules are those of Dagster's `CachingStaleStatusResolver`, without its limits: the resolver ignores inputs of 100 or
more partitions, and queries the database twice for each cell and input. Here a whole asset is read at once.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import NamedTuple

import dagster as dg

from curvas_assets.orchestration.asset_keys import key_of, name_of
from curvas_assets.orchestration.dagster_internals import (
    DEFAULT_DATA_VERSION,
    NULL_DATA_VERSION,
    AssetGraph,
    DataProvenance,
    StaleStatus,
    extract_data_provenance_from_entry,
    extract_data_version_from_entry,
    partition_loading_context,
)
from curvas_assets.orchestration.partitions import StudyGrid, by_dimension, current_keys
from curvas_assets.stages.stored import AVERAGED
from curvas_assets.stages.table import (
    ASSETS,
    CALIBRATORS,
    ENSEMBLE_SOFTMAX,
    PREDICTED,
    PREPROCESSED_DATASET,
    SCORES,
    SOFTMAX,
    TRAINED_MODEL,
    TRAINING_CASES,
    VIEWER_PREVIEW,
)
from curvas_assets.storage.layout import Cell, patient_of

DATA_VERSION = "dagster/data_version"
REMOVED = "removed"
"""Code and data version of the event that records a removal: a partition that comes back counts as missing."""
OF_CELL = "dagster/partition"
AT_ONCE = 500
"""Events of one query."""
MADE, ELSEWHERE = "made", "elsewhere, and uploaded"
"""Metadata of what people uploaded."""
NEW_CODE, NEW_INPUT, REMOVED_INPUT = "has a new code version", "has a new dependency on", "removed dependency on"
"""Reasons why a partition is out of date, or how they begin, in Dagster's words."""
BRIDGE_NAMES = {row.name for row in ASSETS if row.bridge}
UPLOADABLE = (PREPROCESSED_DATASET, TRAINED_MODEL, SOFTMAX)
UPLOADABLE_NAMES = {row.name for row in UPLOADABLE}
OF_MODELS = (*PREDICTED, ENSEMBLE_SOFTMAX, SCORES, VIEWER_PREVIEW)
"""What is made of models for each patient, in order."""
NOT_NEEDED_NAMES = UPLOADABLE_NAMES | {row.name for row in (TRAINING_CASES, *OF_MODELS)}


@dataclass(frozen=True)
class PartitionStatus:
    """One partition (None for an unpartitioned asset) and why it should be made, unless it was made elsewhere."""

    partition: str | None
    status: StaleStatus
    reasons: tuple[str, ...] = ()
    elsewhere: bool = False

    @property
    def due(self) -> bool:
        return self.status is not StaleStatus.FRESH and not self.elsewhere


class Staleness:
    """A snapshot of what is due. Make a new one after runs have ended.

    Args:
        graph: the assets.
        instance: whose records count.
    """

    def __init__(self, graph: AssetGraph, instance: dg.DagsterInstance):
        self.graph = graph
        self.instance = instance
        self._partitions: dict[dg.AssetKey, list[str | None]] = {}
        self._records: dict[dg.AssetKey, _Records] = {}
        self._mapped: dict[tuple[dg.AssetKey, dg.AssetKey], Callable[[str], list[str]]] = {}
        self._fresh: dict[tuple[dg.AssetKey, str | None], bool] = {}
        """Of partitions that exist, as far as it was asked: `about` asks twice of each."""

    def partitions(self, key: dg.AssetKey) -> list[str | None]:
        """All partition keys of an asset that belong to the study; `[None]` if it has none."""
        if key not in self._partitions:
            definition = self.graph.get(key).partitions_def
            self._partitions[key] = [None] if definition is None else [*current_keys(definition, self.instance)]
        return self._partitions[key]

    def status(self, key: dg.AssetKey, partition: str | None) -> PartitionStatus:
        """Whether a partition is missing or stale, and why; and whether it was made elsewhere."""
        records, elsewhere = self._of(key), self.elsewhere(key, partition)
        if not records.has(partition):
            return PartitionStatus(partition, StaleStatus.MISSING, elsewhere=elsewhere)
        reasons = () if self.graph.get(key).is_external else tuple(self._stale_reasons(key, partition))
        self._fresh[key, partition] = not reasons
        return PartitionStatus(partition, StaleStatus.STALE if reasons else StaleStatus.FRESH, reasons, elsewhere)

    def elsewhere(self, key: dg.AssetKey, partition: str | None) -> bool:
        """Whether it was made elsewhere: uploaded, or not needed here because what would be made of it was uploaded."""
        if partition is None or name_of(key) not in NOT_NEEDED_NAMES:
            return False
        if self._of(key).has(partition):
            return name_of(key) in UPLOADABLE_NAMES and self._of(key).uploaded(partition)
        return partition in self._not_needed.get(key, ())

    @cached_property
    def _not_needed(self) -> dict[dg.AssetKey, set[str]]:
        """Missing models whose predictions were uploaded, and datasets whose models were all made elsewhere, with the training
        cases of these and of uploaded datasets; and what these models would make of patients on whom things are only fitted.
        """
        dataset_key, model_key, softmax_key = map(key_of, UPLOADABLE)
        if not all(self.graph.has(key) for key in (dataset_key, model_key, softmax_key)):
            return {}
        models = {
            model
            for cell in self.partitions(softmax_key)
            if self._of(softmax_key).has(cell) and self._of(softmax_key).uploaded(str(cell))
            for model in self._parent_partitions(softmax_key, cell, model_key)
        }
        made_of: dict[str, list[bool]] = {}
        for model in self.partitions(model_key):
            there = self._of(model_key).has(model)
            elsewhere = self._of(model_key).uploaded(str(model)) if there else model in models
            for dataset in self._parent_partitions(model_key, model, dataset_key):
                made_of.setdefault(str(dataset), []).append(elsewhere)
        datasets = {dataset for dataset, elsewhere in made_of.items() if all(elsewhere)}
        theirs = {str(one) for one in self.partitions(dataset_key) if self._of(dataset_key).uploaded(str(one))}
        missing = {dataset for dataset in datasets if not self._of(dataset_key).has(dataset)}
        return {
            model_key: {str(model) for model in models},
            dataset_key: datasets,
            key_of(TRAINING_CASES): theirs | missing,
            **self._not_predicted({str(model) for model in models if not self._of(model_key).has(model)}),
        }

    def _not_predicted(self, models: set[str]) -> dict[dg.AssetKey, set[str]]:
        """What is missing of patients on whom things are only fitted, because these models are not here: their predictions,
        what is made of these, scores and previews. What calibrators are fitted to is needed all the same.
        """
        grid = self.graph.get(key_of(SOFTMAX)).partitions_def
        patients = grid.fitting if isinstance(grid, StudyGrid) else frozenset()
        if not models or not patients:
            return {}
        needed = self._fitted_to()
        absent = {key_of(TRAINED_MODEL): models}
        for key in (key_of(row) for row in OF_MODELS if self.graph.has(key_of(row))):
            above = [(parent, absent[parent]) for parent in self.graph.get(key).parent_keys if parent in absent]
            absent[key] = {
                cell
                for cell in map(str, self.partitions(key))
                if patient_of(cell) in patients
                and not self._of(key).has(cell)
                and (key, cell) not in needed
                and any(not gone.isdisjoint(map(str, self.inputs(key, cell, parent))) for parent, gone in above)
            }
        return {key: cells for key, cells in absent.items() if key != key_of(TRAINED_MODEL)}

    def _fitted_to(self) -> set[tuple[dg.AssetKey, str]]:
        """The volumes that calibrators are fitted to, and those of which these are made."""
        calibrators, volumes = key_of(CALIBRATORS), {key_of(row) for row in OF_MODELS}
        if not self.graph.has(calibrators):
            return set()
        found: set[tuple[dg.AssetKey, str]] = set()
        asked: list[tuple[dg.AssetKey, str | None]] = [(calibrators, None)]
        while asked:
            key, partition = asked.pop()
            for parent in volumes & set(self.graph.get(key).parent_keys):
                new = {(parent, str(one)) for one in self.inputs(key, partition, parent)} - found
                found |= new
                asked += new
        return found

    def due(
        self,
        key: dg.AssetKey,
        wanted: Callable[[str | None], bool] | None = None,
        *,
        stale: bool = True,
        elsewhere: bool = False,
    ) -> list[str | None]:
        """Partitions that are missing or (with `stale`) out of date, among the wanted ones; by default all are wanted.

        Those that were made elsewhere are left alone, unless `elsewhere` says otherwise.
        """
        partitions = [p for p in self.partitions(key) if wanted is None or wanted(p)]
        if not elsewhere:
            partitions = [p for p in partitions if not self.elsewhere(key, p)]
        if stale:
            return [p for p in partitions if self._is_due(key, p)]
        return [p for p in partitions if not self._of(key).has(p)]

    def not_since(
        self, key: dg.AssetKey, since: int, wanted: Callable[[str | None], bool] | None = None
    ) -> list[str | None]:
        """The wanted partitions that have not been made after the event `since`, whatever their state."""
        partitions = [p for p in self.partitions(key) if wanted is None or wanted(p)]
        return [p for p in partitions if self._of(key).latest(p) <= since]

    def inputs(self, key: dg.AssetKey, partition: str | None, parent: dg.AssetKey) -> list[str | None]:
        """The partitions of a parent that a partition is made from, whether they exist or not."""
        return self._parent_partitions(key, partition, parent)

    def made(self, key: dg.AssetKey, partition: str | None) -> bool:
        """Whether a partition exists."""
        return self._of(key).has(partition)

    def newest(self, key: dg.AssetKey, partition: str | None) -> int:
        """The latest event of a partition, by its storage id; 0 if there is none."""
        return self._of(key).latest(partition)

    def newest_input(
        self, key: dg.AssetKey, partitions: Iterable[str | None], beside: Collection[dg.AssetKey] = ()
    ) -> int:
        """The storage id of the latest event of all inputs of these partitions, without the assets in `beside`."""
        return max(
            (
                self.newest(parent, one)
                for parent in set(self.graph.get(key).parent_keys) - set(beside)
                for partition in partitions
                for one in self._parent_partitions(key, partition, parent)
            ),
            default=0,
        )

    def ready(self, key: dg.AssetKey, partition: str | None) -> bool:
        """Whether everything a partition is made from has been materialised."""
        return not self.missing_parents(key, partition)

    def missing_parents(self, key: dg.AssetKey, partition: str | None) -> list[str]:
        """The inputs of a partition that do not exist yet.

        A table over all patients, or over those that it names, is made from the partitions that exist: its parent is missing
        only if none exists. What names no partition misses none.
        """
        missing: list[str] = []
        for parent in sorted(self.graph.get(key).parent_keys):
            if self.graph.get(parent).is_external:
                continue
            wanted = self._parent_partitions(key, partition, parent)
            absent = [one for one in wanted if not self._of(parent).has(one)]
            if partition is None and len(absent) < len(wanted):
                continue
            if partition is None and not wanted and self._chosen(key, parent) is None:
                missing.append(name_of(parent))
            missing += [
                name_of(parent) + (f" of {one}" if one else "") + self._how_to_get(parent, one) for one in absent
            ]
        return missing

    def _how_to_get(self, key: dg.AssetKey, partition: str | None) -> str:
        if not self.elsewhere(key, partition):
            return ""
        return (
            " (made elsewhere, and only what was made of it was uploaded: upload this as well, or make it here, by "
            "make_missing with elsewhere: true)"
        )

    def _is_due(self, key: dg.AssetKey, partition: str | None) -> bool:
        if not self._of(key).has(partition):
            return True
        if (key, partition) not in self._fresh:
            external = self.graph.get(key).is_external
            self._fresh[key, partition] = external or next(self._stale_reasons(key, partition), None) is None
        return not self._fresh[key, partition]

    def _of(self, key: dg.AssetKey) -> "_Records":
        if key not in self._records:
            node = self.graph.get(key)
            partitioned = node.partitions_def is not None
            self._records[key] = _Records(self.instance, key, partitioned=partitioned, external=node.is_external)
        return self._records[key]

    def _stale_reasons(self, key: dg.AssetKey, partition: str | None) -> Iterator[str]:
        """Why a partition that exists is out of date, the cheapest reasons first."""
        node, records = self.graph.get(key), self._of(key)
        provenance = records.provenance(partition)
        if provenance and node.code_version and node.code_version != provenance.code_version:
            yield NEW_CODE
        if partition is not None and (members := records.averaged(partition)) is not None:
            yield from self._other_members(key, partition, members)
        parents = sorted(node.parent_keys)
        if provenance:
            for removed in sorted(set(provenance.input_data_versions) - set(parents)):
                yield f"{REMOVED_INPUT} {name_of(removed)}"
        for parent in parents:
            name, of_parent = name_of(parent), self._of(parent)
            if provenance and not provenance.has_input_asset(parent):
                if self._parent_partitions(key, partition, parent):  # else it takes nothing from it, as before
                    yield f"{NEW_INPUT} {name}"
                continue
            for one in self._parent_partitions(key, partition, parent):
                if self._has_changed(provenance, records.latest(partition), of_parent, one):
                    yield f"{name}{f' of {one}' if one else ''} has a new data version"
                elif name in BRIDGE_NAMES and not of_parent.has(one):
                    yield from self._behind(parent, one, records.latest(partition))

    def _behind(self, bridge: dg.AssetKey, partition: str | None, made: int) -> Iterator[str]:
        """What has changed behind a bridge that is not there, since event `made`: of a dataset that was uploaded, or whose
        training cases were wiped, nothing else would tell.
        """
        for parent in sorted(self.graph.get(bridge).parent_keys):
            behind = self._of(parent)
            for one in map(str, self._parent_partitions(bridge, partition, parent)):
                if behind.latest(one) > made and behind.version(one) != behind.version_as_of(made, one):
                    yield f"{name_of(parent)} of {one} has a new data version"

    def _other_members(self, key: dg.AssetKey, partition: str, averaged: Collection[str]) -> Iterator[str]:
        """Whether an ensemble is the mean of others than its members now. A code version with the members of all ensembles
        would make each of them stale as soon as one has another member.
        """
        volumes = {key_of(row) for row in PREDICTED} & set(self.graph.get(key).parent_keys)
        members = {Cell.of(str(one)).predictor for above in volumes for one in self.inputs(key, partition, above)}
        if joined := sorted(members - set(averaged)):
            yield f"has new members: {', '.join(joined)}"
        if left := sorted(set(averaged) - members):
            yield f"has lost members: {', '.join(left)}"

    @staticmethod
    def _has_changed(provenance: DataProvenance | None, made: int, parent: "_Records", one: str | None) -> bool:
        """Whether one input of a partition has changed since the partition was made, which is event `made`."""
        if provenance is None:  # reported by hand: by the order of events
            return (not parent.external and parent.latest(one) > made) or not parent.has(one)
        if one is None:
            before, now = provenance.input_data_versions[parent.key], parent.version(None)
            # An external asset nobody has observed, seen from elsewhere (Dagster's own exception).
            return before != now and not (before == DEFAULT_DATA_VERSION and now == NULL_DATA_VERSION)
        seen = provenance.input_storage_ids[parent.key] or 0
        return parent.latest(one) > seen and parent.version(one) != parent.version_as_of(seen, one)

    def _parent_partitions(self, key: dg.AssetKey, partition: str | None, parent: dg.AssetKey) -> list[str | None]:
        if self.graph.get(parent).partitions_def is None:
            return self.partitions(parent)
        if partition is None:
            chosen = self._chosen(key, parent)
            return self.partitions(parent) if chosen is None else [*chosen]
        if (key, parent) not in self._mapped:
            self._mapped[key, parent] = self._mapping(key, parent)
        return [*self._mapped[key, parent](partition)]

    def _chosen(self, key: dg.AssetKey, parent: dg.AssetKey) -> list[str] | None:
        """The partitions of a parent that a table names, registered or not, such as validation patients; None if it takes all."""
        mapping = self.graph.get_partition_mapping(key, parent)
        return list(mapping.partition_keys) if isinstance(mapping, dg.SpecificPartitionsPartitionMapping) else None

    def _mapping(self, key: dg.AssetKey, parent: dg.AssetKey) -> Callable[[str], list[str]]:
        """Partition → the parent's partitions it is made from, registered or not: a training patient without a folder is missing.

        Common mappings are looked up; Dagster answers for others.
        """
        known = dict.fromkeys(str(one) for one in self.partitions(parent))
        mapping = self.graph.get_partition_mapping(key, parent)
        below, above = self.graph.get(key).partitions_def, self.graph.get(parent).partitions_def
        if isinstance(mapping, dg.IdentityPartitionMapping):
            return lambda partition: [partition]
        if isinstance(mapping, dg.MultiToSingleDimensionPartitionMapping):
            if isinstance(below, dg.MultiPartitionsDefinition):
                position = _dimensions(below).index(mapping.partition_dimension_name or "")
                return lambda partition: [Cell.of(partition)[position]]
            assert isinstance(above, dg.MultiPartitionsDefinition)
            position = _dimensions(above).index(mapping.partition_dimension_name or "")
            cells: dict[str, list[str]] = {}
            for one in known:
                cells.setdefault(Cell.of(one)[position], []).append(one)
            return lambda partition: cells.get(partition, [])
        if isinstance(mapping, dg.MultiPartitionMapping):
            assert isinstance(below, dg.MultiPartitionsDefinition)
            assert isinstance(above, dg.MultiPartitionsDefinition)
            return self._grid_mapping(mapping, below, above, known)
        answers: dict[str, list[str]] = {}

        def ask(partition: str) -> list[str]:
            if partition not in answers:
                with partition_loading_context(dynamic_partitions_store=self.instance):
                    found = self.graph.get_parent_partition_keys_for_child(partition, parent, key)
                    answers[partition] = list(found.partitions_subset.get_partition_keys())
            return answers[partition]

        return ask

    def _grid_mapping(
        self,
        mapping: dg.MultiPartitionMapping,
        below: dg.MultiPartitionsDefinition,
        above: dg.MultiPartitionsDefinition,
        known: Mapping[str, None],
    ) -> Callable[[str], list[str]]:
        """Between two grids: each dimension of the parent by its own mapping."""
        sources = {d.name: d.partitions_def for d in below.partitions_defs}
        targets = {d.name: d.partitions_def for d in above.partitions_defs}
        of_dimension: dict[tuple[str, str], list[str]] = {}

        def along(dimension: str, key: str) -> list[str]:
            one = mapping.downstream_mappings_by_upstream_dimension[dimension]
            if isinstance(one.partition_mapping, dg.IdentityPartitionMapping):
                return [key]
            if (dimension, key) not in of_dimension:
                source = sources[one.dimension_name]
                with partition_loading_context(dynamic_partitions_store=self.instance):
                    found = one.partition_mapping.get_upstream_mapped_partitions_result_for_partitions(
                        source.subset_with_partition_keys([key]), source, targets[dimension]
                    )
                    of_dimension[dimension, key] = list(found.partitions_subset.get_partition_keys())
            return of_dimension[dimension, key]

        def parents(partition: str) -> list[str]:
            key = by_dimension(below, partition)
            sides = [
                along(dimension, key[mapping.downstream_mappings_by_upstream_dimension[dimension].dimension_name])
                for dimension in _dimensions(above)
            ]
            return [cell for cell in (str(Cell(*parts)) for parts in product(*sides)) if cell in known]

        return parents


class _Records:
    """What the instance knows of one asset's partitions: for each its latest event, read for all of them at once."""

    def __init__(self, instance: dg.DagsterInstance, key: dg.AssetKey, *, partitioned: bool, external: bool):
        self.instance, self.key, self.partitioned, self.external = instance, key, partitioned, external
        observed = external and partitioned
        self._kind = dg.DagsterEventType.ASSET_OBSERVATION if observed else dg.DagsterEventType.ASSET_MATERIALIZATION
        self._as_of: dict[int, Mapping[str, str]] = {}

    def has(self, partition: str | None) -> bool:
        """Whether it exists, and was not removed since; an external asset always does."""
        return self.external or (self.latest(partition) > 0 and self.version(partition) != REMOVED)

    def latest(self, partition: str | None) -> int:
        """The storage id of the latest event; 0 if there is none."""
        if not self.partitioned:
            return self._only.storage_id if self._only else 0
        return self._latest.get(str(partition), 0)

    def version(self, partition: str | None) -> object:
        """The data version now."""
        if self.partitioned:
            return self._versions.get(str(partition))
        if self._only is None:
            return DEFAULT_DATA_VERSION if self.external else NULL_DATA_VERSION
        return extract_data_version_from_entry(self._only.event_log_entry) or DEFAULT_DATA_VERSION

    def version_as_of(self, storage_id: int, partition: str) -> object:
        """The data version when that event was the instance's latest; None before the first."""
        if storage_id not in self._as_of:
            self._as_of[storage_id] = self._tags(before=storage_id + 1) if storage_id else {}
        return self._as_of[storage_id].get(partition)

    def provenance(self, partition: str | None) -> DataProvenance | None:
        """What it was made from; None if that was not recorded."""
        if not self.partitioned:
            return extract_data_provenance_from_entry(self._only.event_log_entry) if self._only else None
        return self._read.get(str(partition), _UNKNOWN).provenance

    def uploaded(self, partition: str) -> bool:
        """Whether people uploaded what stands there."""
        return self._read.get(partition, _UNKNOWN).uploaded

    def averaged(self, partition: str) -> Sequence[str] | None:
        """The members that an ensemble is the mean of; None of anything else."""
        return self._read.get(partition, _UNKNOWN).averaged

    @cached_property
    def _only(self) -> dg.EventLogRecord | None:
        return self.instance.get_latest_data_version_record(self.key)

    @cached_property
    def _latest(self) -> Mapping[str, int]:
        return self.instance.event_log_storage.get_latest_storage_id_by_partition(self.key, self._kind)

    @cached_property
    def _versions(self) -> Mapping[str, str]:
        return self._tags()

    def _tags(self, before: int | None = None) -> dict[str, str]:
        found = self.instance.event_log_storage.get_latest_tags_by_partition(
            self.key, self._kind, [DATA_VERSION], before_cursor=before
        )
        return {partition: tags[DATA_VERSION] for partition, tags in found.items() if DATA_VERSION in tags}

    @cached_property
    def _read(self) -> dict[str, "_Made"]:
        """Partition → what its latest event says of how it was made."""
        ids = sorted(self._latest.values())
        found: dict[str, _Made] = {}
        parsed: dict[tuple[tuple[str, str], ...], DataProvenance | None] = {}
        """Cells of one run share what they were made from."""
        for start in range(0, len(ids), AT_ONCE):
            chosen = dg.AssetRecordsFilter(asset_key=self.key, storage_ids=ids[start : start + AT_ONCE])
            for record in self.instance.fetch_materializations(chosen, limit=AT_ONCE).records:
                tags = record.event_log_entry.tags or {}
                shared = tuple((k, v) for k, v in tags.items() if k != DATA_VERSION and not k.startswith(OF_CELL))
                if shared not in parsed:
                    parsed[shared] = DataProvenance.from_tags(tags)
                told = record.asset_materialization.metadata if record.asset_materialization else {}
                made, averaged = told.get(MADE), told.get(AVERAGED)
                found[str(record.partition_key)] = _Made(
                    parsed[shared],
                    uploaded=made is not None and made.value == ELSEWHERE,
                    averaged=averaged.value if isinstance(averaged, dg.JsonMetadataValue) else None,  # type: ignore[arg-type]
                )
        return found


class _Made(NamedTuple):
    """How a partition was made, as far as its event says.

    Args:
        provenance: what it was made from.
        uploaded: whether people uploaded it.
        averaged: of an ensemble, its members.
    """

    provenance: DataProvenance | None = None
    uploaded: bool = False
    averaged: Sequence[str] | None = None


_UNKNOWN = _Made()


def _dimensions(definition: dg.MultiPartitionsDefinition) -> list[str]:
    """The names of a grid's dimensions, in the order of a cell's key."""
    return sorted(definition.partition_dimension_names)
