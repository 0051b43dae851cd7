"""Cleaning the bucket as jobs: what people fill in at the launchpad, and thin ops around `leftovers`."""

import hashlib

import dagster as dg
from pydantic import Field

from curvas_assets.errors import CurvasError, StorageError
from curvas_assets.orchestration import metadata
from curvas_assets.orchestration.bucket import Bucket
from curvas_assets.orchestration.operations import leftovers
from curvas_assets.orchestration.operations.transfer import human_bytes, total
from curvas_assets.orchestration.partitions import Partitions
from curvas_assets.orchestration.under_way import other_runs, short_name
from curvas_assets.study import Study

TAGS = {"curvas/needs": "cpu"}


class RemoveOrphans(dg.Config):
    only: list[str] = Field(
        default=["all"],
        description="Which orphans: all, or names as the dry run lists them (assets, patients, models, ensembles, annotators).",
    )
    dry_run: bool = Field(default=True, description="Only list what would be removed, with its size.")
    confirm: str = Field(default="", description="To remove: type exactly the line that the dry run prints.")


class Sweep(dg.Config):
    dry_run: bool = Field(default=True, description="Only list what would be removed, with its size.")
    young_too: bool = Field(
        default=False,
        description="Also remove what was written within the last day, except unfinished uploads. Refused while other runs are active, because they may have written it.",
    )


def build(study: Study, partitions: Partitions, op_suffix: str) -> list[tuple[dg.OpDefinition, type[dg.Config]]]:
    """The ops of one study, each with its settings."""

    @dg.op(
        name=f"remove_orphans{op_suffix}",
        description="Lists, or removes, artefacts of patients, annotators, seeds and ensembles that the study has no more.",
        tags=TAGS,
    )
    def remove_orphans(context: dg.OpExecutionContext, config: RemoveOrphans, bucket: Bucket) -> dg.Output[None]:
        objects, graph = bucket.checked_objects(), context.repository_def.asset_graph
        try:
            orphans = leftovers.find_orphans(objects, bucket.layout, partitions)
            orphans = leftovers.chosen(orphans, config.only) if orphans else []
        except CurvasError as error:
            raise dg.Failure(str(error), allow_retries=error.may_retry) from error
        sizes = [item.size for orphan in orphans for item in orphan.objects]
        table = leftovers.orphan_table(orphans, leftovers.NO_MEMORY)
        facts = {"orphans": metadata.table(table), "objects": len(sizes), "bytes": sum(sizes)}
        digest = hashlib.sha256(table.to_csv(index=False).encode()).hexdigest()[:6]
        phrase = f"{len(orphans)} orphans of {study.name} in {objects.name}, list {digest}"
        if config.dry_run or not orphans:
            context.log.info(
                f"{phrase}, {total(sizes)}\n{table.to_string(index=False) if orphans else 'none'}"
                + (f"\nTo remove them: dry_run: false, confirm: {phrase}" if orphans else "")
            )
            return dg.Output(None, metadata={"removed": False, "confirm": phrase, **facts})
        if config.confirm.strip() != phrase:
            raise dg.Failure(
                f"{config.confirm!r} was typed as confirmation: nothing was removed. Read the list, then type {phrase}",
                metadata=facts,
                allow_retries=False,
            )
        if busy := leftovers.at_work(orphans, other_runs(context.instance, context.run), graph, context.instance):
            raise dg.Failure(
                f"{len(busy)} runs that have not ended may use them ({', '.join(busy[:5])}): nothing was removed. Wait or end "
                "them, or name others in `only`.",
                allow_retries=False,
            )
        for number, orphan in enumerate(orphans, 1):
            keys = "\n".join(f"{item.key} ({item.size} bytes)" for item in orphan.objects)
            context.log.info(f"removing {number} of {len(orphans)}, {orphan.asset} {orphan.partition}:\n{keys}")
            leftovers.remove_orphan(objects, orphan)
            context.log_event(leftovers.removal_event(graph, orphan))
        context.log.info(f"removed {phrase}, {total(sizes)}")
        keys = {item.key: item.size for orphan in orphans for item in orphan.objects}
        return dg.Output(None, metadata={"removed": True, **facts, "keys": dg.MetadataValue.json(keys)})

    @dg.op(
        name=f"sweep{op_suffix}",
        description="Lists, or removes, what writings left: older versions, remains of killed writers, unfinished uploads, "
        "checkpoints of trainings that have ended.",
        tags=TAGS,
    )
    def sweep(context: dg.OpExecutionContext, config: Sweep, bucket: Bucket) -> dg.Output[None]:
        objects = bucket.checked_objects()
        # Whatever comes after this belongs to runs that begin after the look at them.
        before = objects.clock() if config.young_too else None
        others = other_runs(context.instance, context.run)
        if config.young_too and others:
            names = ", ".join(map(short_name, others[:5]))
            raise dg.Failure(
                f"{len(others)} other runs have not ended ({names}), which may have written it: nothing was removed. Wait, or leave "
                "young_too off.",
                allow_retries=False,
            )
        found = leftovers.find_leftovers(objects, bucket.layout, context.log.warning, before)
        table, kinds = leftovers.leftover_table(found), leftovers.summary(found)
        listed = "\n".join(f"{kind}: {what}" for kind, what in kinds.items()) or "nothing"
        facts = {
            "leftovers": metadata.table(table),
            "bytes": sum(one.size for one in found),
            **dict(kinds),
        }
        if config.dry_run:
            context.log.info(f"would remove\n{listed}\n{table.to_string(index=False) if found else ''}")
            return dg.Output(None, metadata={"removed": False, **facts})
        refused: list[str] = []
        for one in found:
            try:
                leftovers.remove_leftover(objects, one)
                context.log.info(f"removed {one.key}: {one.what}, {human_bytes(one.size)}")
            except StorageError as error:
                refused.append(one.key)
                context.log.error(str(error))
        if refused:
            raise dg.Failure(f"{len(refused)} of {len(found)} could not be removed; the log says why", metadata=facts)
        context.log.info(f"removed\n{listed}")
        return dg.Output(None, metadata={"removed": True, **facts})

    return [(remove_orphans, RemoveOrphans), (sweep, Sweep)]
