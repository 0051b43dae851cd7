"""Which partitions of an asset are missing or stale, by Dagster's own bookkeeping of code and data versions.

A partition is *missing* if it was never materialised, *stale* if its code version changed or the data version of
something it was made from did. It is *ready* when everything it is made from exists.
"""

from collections.abc import Callable
from dataclasses import dataclass

import dagster as dg
from dagster._core.definitions.assets.graph.base_asset_graph import BaseAssetGraph
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.definitions.partitions.context import partition_loading_context
from dagster._core.loader import LoadingContextForTest


@dataclass(frozen=True)
class PartitionStatus:
    """One partition (None for an unpartitioned asset) and why it should be made."""

    partition: str | None
    status: StaleStatus
    reasons: tuple[str, ...] = ()

    @property
    def due(self) -> bool:
        return self.status is not StaleStatus.FRESH


class Staleness:
    """A snapshot of what is due. Make a new one after runs have ended.

    Args:
        graph: the assets.
        instance: whose records count.
    """

    def __init__(self, graph: BaseAssetGraph, instance: dg.DagsterInstance):
        self.graph = graph
        self.instance = instance
        self._resolver = CachingStaleStatusResolver(instance, graph, LoadingContextForTest(instance))

    def partitions(self, key: dg.AssetKey) -> list[str | None]:
        """All partition keys of an asset; `[None]` if it has none."""
        definition = self.graph.get(key).partitions_def
        if definition is None:
            return [None]
        return list(definition.get_partition_keys(dynamic_partitions_store=self.instance))

    def status(self, key: dg.AssetKey, partition: str | None) -> PartitionStatus:
        status = self._resolver.get_status(key, partition)
        causes = () if status is StaleStatus.FRESH else self._resolver.get_stale_causes(key, partition)
        return PartitionStatus(partition, status, tuple(f"{c.asset_key.to_user_string()} {c.reason}" for c in causes))

    def due(
        self, key: dg.AssetKey, wanted: Callable[[str | None], bool] | None = None, *, stale: bool = True
    ) -> list[str | None]:
        """Partitions that are missing or, if `stale`, stale: among those that are wanted, or all."""
        partitions = [p for p in self.partitions(key) if wanted is None or wanted(p)]
        if stale:
            return [p for p in partitions if self.status(key, p).due]
        if self.graph.get(key).partitions_def is None:
            return [p for p in partitions if self._resolver.get_status(key, p) is StaleStatus.MISSING]
        made = self.instance.get_materialized_partitions(key)  # one query, whatever the size of the grid
        return [p for p in partitions if p not in made]

    def ready(self, key: dg.AssetKey, partition: str | None) -> bool:
        """Whether everything a partition is made from has been materialised."""
        return not self.missing_parents(key, partition)

    def missing_parents(self, key: dg.AssetKey, partition: str | None) -> list[str]:
        """What a partition is made from and does not exist yet.

        A table over all patients is made of those there are: it misses its parent only if none of them exists.
        """
        missing: list[str] = []
        for parent in sorted(self.graph.get(key).parent_keys):
            if self.graph.get(parent).is_external:
                continue
            wanted = self._parent_partitions(key, partition, parent)
            absent = [one for one in wanted if self._resolver.get_status(parent, one) is StaleStatus.MISSING]
            if partition is None and len(absent) < len(wanted):
                continue
            if partition is None and not wanted:
                missing.append(parent.to_user_string())
            missing += [parent.to_user_string() + (f" of {one}" if one else "") for one in absent]
        return missing

    def _parent_partitions(self, key: dg.AssetKey, partition: str | None, parent: dg.AssetKey) -> list[str | None]:
        if partition is None or self.graph.get(parent).partitions_def is None:
            return self.partitions(parent)
        with partition_loading_context(dynamic_partitions_store=self.instance):
            parents = self.graph.get_parent_partition_keys_for_child(partition, parent, key)
            return list(parents.partitions_subset.get_partition_keys())
