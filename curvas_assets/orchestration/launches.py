"""What one run makes: groups due partitions into few batches, names a batch by run tags, and reads these tags back."""

from collections.abc import Mapping, Sequence

import dagster as dg

from curvas_assets.orchestration.batches import Batch, ranges, rectangles
from curvas_assets.orchestration.dagster_internals import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    PARTITION_NAME_TAG,
    partition_loading_context,
)
from curvas_assets.orchestration.partitions import dimension_tags
from curvas_assets.storage.layout import Cell


def batches(
    definition: dg.PartitionsDefinition, partitions: Sequence[str], limit: int, instance: dg.DagsterInstance
) -> list[Batch]:
    """Ranges of partitions, or rectangles of a grid, that hold these partitions and no others.

    Args:
        definition: of the asset.
        partitions: that are due.
        limit: partitions that one run takes; 0 for any number.
        instance: where patients are registered.
    """
    most = limit or len(partitions)
    if not isinstance(definition, dg.MultiPartitionsDefinition):
        return ranges(partitions, definition.get_partition_keys(dynamic_partitions_store=instance), most)
    columns, rows = (
        dimension.partitions_def.get_partition_keys(dynamic_partitions_store=instance)
        for dimension in sorted(definition.partitions_defs, key=lambda d: d.name)
    )
    cells = [Cell.of(partition) for partition in partitions]
    return [
        Batch(str(Cell(*first)), str(Cell(*last)), count)
        for first, last, count in rectangles(cells, columns, rows, most)
    ]


def batch_tags(definition: dg.PartitionsDefinition | None, batch: Batch) -> dict[str, str]:
    """The tags of a run that makes a batch."""
    if batch.size == 1:
        return {PARTITION_NAME_TAG: batch.first, **dimension_tags(definition, batch.first)}
    return {ASSET_PARTITION_RANGE_START_TAG: batch.first, ASSET_PARTITION_RANGE_END_TAG: batch.last}


def tagged_partitions(
    definition: dg.PartitionsDefinition, tags: Mapping[str, str], instance: dg.DagsterInstance
) -> list[str]:
    """The partitions that a run's tags name.

    Raises:
        Exception: one of several Dagster errors, if the first or the last key of a range is no longer a partition.
    """
    if PARTITION_NAME_TAG in tags:
        return [tags[PARTITION_NAME_TAG]]
    if ASSET_PARTITION_RANGE_START_TAG not in tags:
        return []
    whole = dg.PartitionKeyRange(tags[ASSET_PARTITION_RANGE_START_TAG], tags[ASSET_PARTITION_RANGE_END_TAG])
    with partition_loading_context(dynamic_partitions_store=instance):
        if isinstance(definition, dg.MultiPartitionsDefinition):
            return [str(one) for one in definition.get_partition_keys_in_range(whole, instance)]
        return [str(one) for one in definition.get_partition_keys_in_range(whole)]
