"""Operations that remove patients' files, artefacts, orphans, leftovers of writers and old runs. Each first lists, and
removes only what a person has read and confirmed.
"""

import hashlib
from collections.abc import Sequence
from typing import Literal

import dagster as dg
from pydantic import Field

from curvas_assets.errors import StorageError
from curvas_assets.orchestration import metadata
from curvas_assets.orchestration.asset_keys import asset_key, name_of
from curvas_assets.orchestration.dagster_internals import MAX_RETRIES_TAG
from curvas_assets.orchestration.operations import emptying, forgetting, leftovers
from curvas_assets.orchestration.operations.operation import Operation, Session
from curvas_assets.orchestration.operations.transfer import human_bytes, total
from curvas_assets.orchestration.under_way import short_name

NEVER_AGAIN = {MAX_RETRIES_TAG: "0"}
"""A removal happens because a person asks for it now, never because an earlier run was killed."""


class ForgetOldRuns(dg.Config):
    days: int = Field(default=90, description="Only runs that were launched more than this many days ago.", ge=1)
    dry_run: bool = Field(default=True, description="Only list them.")


class EmptyData(dg.Config):
    dry_run: bool = Field(default=True, description="Only list what would be removed, with its size.")
    confirm: str = Field(
        default="", description="To remove: type the full name of the prefix, exactly as the dry run prints it."
    )


class EmptyArtifacts(EmptyData):
    what: Literal["artifacts", "output", "metrics", "reports"] = Field(
        default="artifacts",
        description="artifacts: preprocessing and models; output: scans' records, predictions, ensembles; metrics: all tables, the published one too if people uploaded it; reports.",
    )


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


def _empty_data(session: Session, settings: EmptyData) -> dg.Output[None]:
    return _empty(session, settings, session.layout.data)


def _empty_artifacts(session: Session, settings: EmptyArtifacts) -> dg.Output[None]:
    return _empty(session, settings, getattr(session.layout, settings.what))


def _empty(session: Session, settings: EmptyData, prefix: str) -> dg.Output[None]:
    # Studies may share their data; what was made below another prefix is one study's.
    objects = session.objects() if prefix == session.layout.data else session.own_objects(claim=False)
    names = [name_of(key) for key in session.graph.get_all_asset_keys()]
    assets = emptying.assets_below(session.layout, prefix, names)
    found = emptying.contents(objects, prefix)
    facts = {
        "prefix": found.name,
        "objects": len(found.objects),
        "bytes": found.size,
        "folders": metadata.table(found.by_folder(prefix)),
        "assets": ", ".join(assets),
    }
    if settings.dry_run:
        session.tell(
            f"would remove {total(o.size for o in found.objects)} below {found.name}/, and forget {', '.join(assets)}.\n"
            f"{found.by_folder(prefix).to_string(index=False)}\n"
            f"To remove it: dry_run: false, confirm: {found.name}"
        )
        return dg.Output(None, metadata={"removed": False, **facts})
    if others := session.other_runs():
        raise dg.Failure(
            f"{_not_ended(others)}: nothing was removed. Wait for them, or end them.",
            allow_retries=False,
        )
    removed = emptying.empty(objects, prefix, settings.confirm.strip(), session.tell)
    session.instance.wipe_assets([asset_key(asset) for asset in assets])
    session.tell(f"removed {removed}; forgotten: {', '.join(assets)}")
    return dg.Output(
        None,
        metadata={
            "removed": True,
            **facts,
            "keys": dg.MetadataValue.json({item.key: item.size for item in removed.objects}),
        },
    )


def _not_ended(others: Sequence[dg.DagsterRun]) -> str:
    names = [short_name(run) + (", killed, soon launched again" if run.is_finished else "") for run in others[:5]]
    return f"{len(others)} other runs have not ended ({'; '.join(names)})"


def _remove_orphans(session: Session, settings: RemoveOrphans) -> dg.Output[None]:
    objects = session.own_objects(claim=False)
    orphans = leftovers.find_orphans(objects, session.layout, session.partitions)
    orphans = leftovers.chosen(orphans, settings.only) if orphans else []
    sizes = [item.size for orphan in orphans for item in orphan.objects]
    table = leftovers.orphan_table(orphans, leftovers.NO_MEMORY)
    facts = {"orphans": metadata.table(table), "objects": len(sizes), "bytes": sum(sizes)}
    digest = hashlib.sha256(table.to_csv(index=False).encode()).hexdigest()[:6]
    phrase = f"{len(orphans)} orphans of {session.study.name} in {objects.name}, list {digest}"
    if settings.dry_run or not orphans:
        session.tell(
            f"{phrase}, {total(sizes)}\n{table.to_string(index=False) if orphans else 'none'}"
            + (f"\nTo remove them: dry_run: false, confirm: {phrase}" if orphans else "")
        )
        return dg.Output(None, metadata={"removed": False, "confirm": phrase, **facts})
    if settings.confirm.strip() != phrase:
        raise dg.Failure(
            f"{settings.confirm!r} was typed as confirmation: nothing was removed. Read the list, then type {phrase}",
            metadata=facts,
            allow_retries=False,
        )
    if busy := leftovers.at_work(orphans, session.other_runs(), session.graph, session.instance):
        raise dg.Failure(
            f"{len(busy)} runs that have not ended may use them ({', '.join(busy[:5])}): nothing was removed. Wait or end "
            "them, or name others in `only`.",
            allow_retries=False,
        )
    for number, orphan in enumerate(orphans, 1):
        keys = "\n".join(f"{item.key} ({item.size} bytes)" for item in orphan.objects)
        session.tell(f"removing {number} of {len(orphans)}, {orphan.asset} {orphan.partition}:\n{keys}")
        leftovers.remove_orphan(objects, orphan)
        session.context.log_event(leftovers.removal_event(session.graph, orphan))
    session.tell(f"removed {phrase}, {total(sizes)}")
    keys = {item.key: item.size for orphan in orphans for item in orphan.objects}
    return dg.Output(None, metadata={"removed": True, **facts, "keys": dg.MetadataValue.json(keys)})


def _sweep(session: Session, settings: Sweep) -> dg.Output[None]:
    objects = session.own_objects(claim=False)
    # Objects written after this time belong to runs that began after the check for other runs.
    before = objects.clock() if settings.young_too else None
    others = session.other_runs()
    if settings.young_too and others:
        raise dg.Failure(
            f"{_not_ended(others)}, which may have written it: nothing was removed. Wait, or leave young_too off.",
            allow_retries=False,
        )
    found = leftovers.find_leftovers(objects, session.layout, session.context.log.warning, before)
    table, kinds = leftovers.leftover_table(found), leftovers.summary(found)
    listed = "\n".join(f"{kind}: {what}" for kind, what in kinds.items()) or "nothing"
    facts = {
        "leftovers": metadata.table(table),
        "bytes": sum(one.size for one in found),
        **dict(kinds),
    }
    if settings.dry_run:
        session.tell(f"would remove\n{listed}\n{table.to_string(index=False) if found else ''}")
        return dg.Output(None, metadata={"removed": False, **facts})
    refused: list[str] = []
    for one in found:
        try:
            leftovers.remove_leftover(objects, one)
            session.tell(f"removed {one.key}: {one.what}, {human_bytes(one.size)}")
        except StorageError as error:
            refused.append(one.key)
            session.context.log.error(str(error))
    if refused:
        raise dg.Failure(f"{len(refused)} of {len(found)} could not be removed; the log says why", metadata=facts)
    session.tell(f"removed\n{listed}")
    return dg.Output(None, metadata={"removed": True, **facts})


def _forget_old_runs(session: Session, settings: ForgetOldRuns) -> dg.Output[None]:
    gone = forgetting.forget(session.instance, settings.days, session.tell, dry_run=settings.dry_run)
    return dg.Output(None, metadata={"forgotten": not settings.dry_run, "runs": len(gone)})


OPERATIONS = (
    Operation(
        "empty_data", "Lists, or removes, all patients' files; nothing else.", EmptyData, _empty_data, NEVER_AGAIN
    ),
    Operation(
        "empty_artifacts",
        "Lists, or removes, all that was made below one prefix.",
        EmptyArtifacts,
        _empty_artifacts,
        NEVER_AGAIN,
    ),
    Operation(
        "forget_old_runs",
        "Lists, or forgets, old runs that made nothing, with their logs: launches, evaluations, failures.",
        ForgetOldRuns,
        _forget_old_runs,
    ),
    Operation(
        "remove_orphans",
        "Lists, or removes, artefacts of patients, annotators, seeds and ensembles that are no longer in the study.",
        RemoveOrphans,
        _remove_orphans,
        NEVER_AGAIN,
    ),
    Operation(
        "sweep",
        "Lists, or removes, what writings left: older versions, remains of killed writers, unfinished uploads, "
        "checkpoints of trainings that have ended.",
        Sweep,
        _sweep,
        NEVER_AGAIN,
    ),
)
