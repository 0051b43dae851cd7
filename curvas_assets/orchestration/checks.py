"""Verdicts of stages as asset checks: one per check and partition, also if one step makes many partitions.

A *warning* informs: the partition is stored and used. A *defect* is an error of its partition alone: the work raises it,
the partition is not stored, so nothing downstream of it can be made, and the others of the batch go on. Dagster's own
blocking checks would fail the whole batch; no check here is blocking.

Dagster takes one result per check and step. A check of a partitioned asset is therefore partitioned itself, and
`orchestration/cells.py` logs the verdict of each partition.
"""

import warnings
from collections.abc import Iterable
from typing import Any

import dagster as dg

from curvas_assets.orchestration.asset_keys import asset_key
from curvas_assets.orchestration.dagster_internals import (
    AssetCheckEvaluationTargetMaterializationData,
)
from curvas_assets.stages.checks import Check

LISTED = 5
"""Problems in a verdict's sentence; its metadata lists all."""


def specs(
    asset: str, checks: Iterable[Check], partitions_def: dg.PartitionsDefinition | None = None
) -> list[dg.AssetCheckSpec]:
    """What an asset's checks are, for its definition; with the asset's own partitions, if it has any."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=dg.PreviewWarning)  # partitioned checks; pinned, and tested
        return [
            dg.AssetCheckSpec(
                check.name, asset=asset_key(asset), description=check.description, partitions_def=partitions_def
            )
            for check in checks
        ]


def evaluation(
    check: Check, asset: dg.AssetKey, partition: str, stored: dg.EventLogRecord | None
) -> dg.AssetCheckEvaluation:
    """The verdict on a partition that was looked at.

    Args:
        check: that looked.
        asset: whose partition it is.
        partition: its key.
        stored: the event of what was looked at; None if it was refused.
    """
    target = None
    if stored is not None:
        target = AssetCheckEvaluationTargetMaterializationData(
            storage_id=stored.storage_id, run_id=stored.run_id, timestamp=stored.timestamp
        )
    return dg.AssetCheckEvaluation(
        asset_key=asset,
        check_name=check.name,
        severity=_severity(check),
        blocking=False,
        partition=partition,
        target_materialization_data=target,
        **_verdict(check.found[partition]),
    )


def result(check: Check, asset: str, problems: Iterable[str]) -> dg.AssetCheckResult:
    """The verdict on an asset without partitions."""
    return dg.AssetCheckResult(
        asset_key=asset_key(asset), check_name=check.name, severity=_severity(check), **_verdict(list(problems))
    )


def _severity(check: Check) -> dg.AssetCheckSeverity:
    return dg.AssetCheckSeverity.ERROR if check.of_defects else dg.AssetCheckSeverity.WARN


def _verdict(problems: list[str]) -> dict[str, Any]:
    """A check's result, with a sentence and all details. It contains no number, because Dagster would plot it."""
    more = f"; and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
    return {
        "passed": not problems,
        "description": "; ".join(problems[:LISTED]) + more or None,
        "metadata": {"found": dg.MetadataValue.md("\n".join(f"- {p}" for p in problems))} if problems else {},
    }
