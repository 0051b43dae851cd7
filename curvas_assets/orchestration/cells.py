"""One step, many partitions: each is stored and reported as soon as it is done, and no failure affects another partition.

A batch that dies at its fifth partition leaves four materialised. An error of one partition is logged and the batch goes
on; in the end the step fails and names what is missing. A retry of the step, a run that continues a killed one,
and a re-launch make only what is left.

Dagster's own event of a step covers all its partitions with one data version and one set of metadata, so a batch writes
its own events (with the tags that Dagster's staleness reads) and yields no output; a single partition takes the usual
way. The assets that use this are therefore `output_required=False`.
"""

import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from curvas_assets import disk
from curvas_assets.errors import CurvasError
from curvas_assets.orchestration import checks as verdicts
from curvas_assets.orchestration import metadata as ui
from curvas_assets.orchestration.asset_keys import name_of
from curvas_assets.orchestration.dagster_internals import (
    CODE_VERSION_TAG,
    DATA_VERSION_IS_USER_PROVIDED_TAG,
    DATA_VERSION_TAG,
    DEFAULT_DATA_VERSION,
    extract_data_version_from_entry,
    get_input_data_version_tag,
    get_input_event_pointer_tag,
)
from curvas_assets.orchestration.environment import deployment
from curvas_assets.orchestration.lifeline import ends_with_its_run
from curvas_assets.orchestration.partitions import dimension_tags
from curvas_assets.orchestration.under_way import leave_to_others
from curvas_assets.orchestration.usage import Usage
from curvas_assets.stages.checks import Check
from curvas_assets.stages.stored import Outcome, Stored, Work
from curvas_assets.storage.layout import SEPARATOR, patient_by_patient
from curvas_assets.storage.metering import MeteredObjects


def materialise(
    context: dg.AssetExecutionContext, objects: MeteredObjects, work: Work, checks: Mapping[str, Check] | None = None
) -> Iterator[Any]:
    """Run a step's partitions through `work` and report each.

    Args:
        context: of the asset's step; its partition keys say what to make.
        objects: the store the work uses, whose byte counts go to each partition's metadata.
        work: makes artefacts for the keys it is given, in its own order, and yields each with its outcome.
        checks: what the work checks on the way. The verdict on each partition is logged at once, even if the partition
            fails; a partition that fails before it is checked has none.

    Yields:
        Dagster's outputs: one for the partition if the step has a single one, and one for each check.

    Raises:
        dagster.Failure: some partitions failed; names each with its reason. Retried only if a retry can help.
    """
    keys = patient_by_patient(str(key) for key in context.partition_keys)
    asset = name_of(context.asset_key)
    left = leave_to_others(
        lambda: context.repository_def.asset_graph, context.instance, context.run, context.asset_key, keys
    )
    pending = [key for key in keys if key not in left]
    for reason in dict.fromkeys(left.values()):
        context.log.info(f"{asset}: {_named([key for key in left if left[key] == reason])} left out: {reason}")
    tags = provenance_tags(context.instance, context.assets_def, context.run.run_id) if len(keys) > 1 else {}
    failures: dict[str, Exception] = {}
    usage = Usage(objects)
    done = len(keys) - len(pending)
    for key, outcome in _while_the_run_goes_on(context, work, pending):
        done += 1
        if isinstance(outcome, Exception):
            outcome = _told_of_disk(asset, key, outcome)
            failures[key] = outcome
            context.log.error(f"{asset} {done} of {len(keys)}: {told(key, outcome, _reason(outcome))}")
            _tell_verdicts(context, checks, key, stored=False)
            usage.lap()
            continue
        metadata = {
            ui.URI: f"{objects.name}/{outcome.key}",
            "device": "cpu",
            **ui.shown(outcome.metadata),
            **usage.lap(),
        }
        context.log.info(
            f"{asset} {done} of {len(keys)}: {key} stored in {metadata['seconds']:.1f} s, elapsed {usage.elapsed:.0f} s"
        )
        if len(keys) == 1:
            yield dg.Output(outcome, metadata=metadata, data_version=dg.DataVersion(outcome.data_version))
        else:
            context.log_event(cell_event(context.assets_def, key, outcome, metadata, tags))
        outcome.afterwards()
        _tell_verdicts(context, checks, key, stored=True)
    for name in checks or {}:
        check = dg.AssetCheckKey(context.asset_key, name)
        if check in context.selected_asset_check_keys:
            yield dg.Output(None, output_name=context.assets_def.get_output_name_for_asset_check_key(check))
    if failures:
        raise _failure(asset, failures, len(keys))


def _tell_verdicts(
    context: dg.AssetExecutionContext, checks: Mapping[str, Check] | None, key: str, *, stored: bool
) -> None:
    """An event of each check that has looked at a partition."""
    looked = [check for check in (checks or {}).values() if key in check.found]
    if not looked:
        return
    event = None
    if stored:
        wanted = dg.AssetRecordsFilter(context.asset_key, asset_partitions=[key])
        event = next(iter(context.instance.fetch_materializations(wanted, limit=1).records), None)
    for check in looked:
        context.log_event(verdicts.evaluation(check, context.asset_key, key, event))  # type: ignore[arg-type] - its stub lacks it


def told(key: str, error: Exception, reason: str) -> str:
    """Why a partition failed, with the partition's name in front unless the error already names it."""
    named = isinstance(error, CurvasError) and all(part in error.subject for part in key.split(SEPARATOR))
    return reason if named else f"{key}: {reason}"


def _told_of_disk(asset: str, key: str, error: Exception) -> Exception:
    """The error of a partition; a full scratch disk becomes a DiskError, whichever library reported it."""
    folder = deployment().scratch_folder() or Path(tempfile.gettempdir())
    if isinstance(error, CurvasError) or not disk.is_full(error, folder):
        return error
    told = disk.full(f"materialising {asset}", key, folder, error)
    told.__cause__ = error
    return told


def _reason(error: Exception) -> str:
    if isinstance(error, CurvasError):
        return str(error)
    return "".join(traceback.format_exception(error)).rstrip()


def _failure(asset: str, failures: Mapping[str, Exception], total: int) -> Exception:
    retry = all(getattr(error, "may_retry", not isinstance(error, CurvasError)) for error in failures.values())
    if total == 1:
        (error,) = failures.values()
        if not isinstance(error, CurvasError):
            return error
        return dg.Failure(str(error), allow_retries=retry)
    reasons = {key: str(error) or type(error).__name__ for key, error in failures.items()}
    listed = "\n".join(f"- {told(key, failures[key], reason)}" for key, reason in reasons.items())
    return dg.Failure(
        f"{asset}: {len(failures)} of {total} partitions failed, the others are stored:\n{listed}",
        metadata={"failed": dg.MetadataValue.json(reasons)},
        allow_retries=retry,
    )


def _while_the_run_goes_on(
    context: dg.AssetExecutionContext, work: Work, keys: Sequence[str]
) -> Iterator[tuple[str, Outcome]]:
    with ends_with_its_run(context.instance, context.run.run_id):
        if keys:
            yield from work(keys)


def _named(keys: Sequence[str]) -> str:
    return keys[0] if len(keys) == 1 else f"{len(keys)} partitions ({', '.join(keys[:5])}{' …' if keys[5:] else ''})"


def cell_event(
    asset: dg.AssetsDefinition, key: str, stored: Stored, metadata: Mapping[str, Any], tags: Mapping[str, str]
) -> dg.AssetMaterialization:
    """The event of one partition, as Dagster's staleness reads it."""
    versions = {DATA_VERSION_TAG: stored.data_version, **dimension_tags(asset.partitions_def, key)}
    return dg.AssetMaterialization(asset.key, metadata=metadata, partition=key, tags={**tags, **versions})


def _version_seen(latest: dg.EventLogRecord | None) -> str:
    """The data version that an input had; of one with partitions, each has its own."""
    if latest is not None and latest.partition_key is not None:
        return "by-partition"
    found = extract_data_version_from_entry(latest.event_log_entry) if latest else None
    return (found or DEFAULT_DATA_VERSION).value


def provenance_tags(instance: dg.DagsterInstance, asset: dg.AssetsDefinition, run_id: str) -> dict[str, str]:
    """What Dagster writes beside its own events: code version, and per input the latest event that was seen.

    Of an input without partitions, also its data version, by which `Staleness` tells whether it has changed.
    """
    tags = {
        CODE_VERSION_TAG: asset.code_versions_by_key.get(asset.key) or run_id,
        DATA_VERSION_IS_USER_PROVIDED_TAG: "true",
    }
    for parent in asset.asset_deps.get(asset.key, ()):
        latest = instance.get_latest_data_version_record(parent)
        tags[get_input_event_pointer_tag(parent)] = str(latest.storage_id) if latest else "NULL"
        tags[get_input_data_version_tag(parent)] = _version_seen(latest)
    return tags
