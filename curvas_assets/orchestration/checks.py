"""Asset checks: one verdict a check and partition, also where one step takes many partitions.

A *warning* informs: the partition is stored and used. A *defect* is an error of its partition alone: the work raises it,
the partition is not stored, so nothing downstream of it can be made, and the others of the batch go on. Dagster's own
blocking checks would fail the whole batch; no check here is blocking.

Dagster takes one result of a check and step. A check of a partitioned asset is therefore partitioned itself, and
`orchestration/cells.py` logs the verdict of each partition.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import dagster as dg
from dagster._core.definitions.asset_checks.asset_check_evaluation import AssetCheckEvaluationTargetMaterializationData

from curvas_assets.errors import CurvasError

LISTED = 5
"""Problems in a verdict's sentence; its metadata lists all."""


@dataclass
class Check:
    """One check, while a step works.

    Args:
        name: of the check.
        description: what passes.
        severity: ERROR for defects, WARN for what only informs.
    """

    name: str
    description: str
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.WARN
    found: dict[str, list[str]] = field(default_factory=dict)
    """Partition that was looked at → what is odd about it."""

    def spec(self, asset: str, partitions_def: dg.PartitionsDefinition | None = None) -> dg.AssetCheckSpec:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", category=dg.PreviewWarning)  # partitioned checks; pinned, and tested
            return dg.AssetCheckSpec(
                self.name, asset=asset, description=self.description, partitions_def=partitions_def
            )

    def look(self, partition: str, problems: Iterable[str] = ()) -> None:
        """Note that a partition was looked at, and what is odd about it."""
        self.found[partition] = list(problems)

    def refuse(self, partition: str, error: CurvasError) -> CurvasError:
        """Note a defect; the error, for the caller to raise."""
        self.look(partition, [error.after(partition)])
        return error

    def evaluation(
        self, asset: dg.AssetKey, partition: str, stored: dg.EventLogRecord | None
    ) -> dg.AssetCheckEvaluation:
        """The verdict on a partition that was looked at.

        Args:
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
            check_name=self.name,
            severity=self.severity,
            blocking=False,
            partition=partition,
            target_materialization_data=target,
            **_verdict(self.found[partition]),
        )

    def result(self, asset: str | dg.AssetKey, problems: Iterable[str] | None = None) -> dg.AssetCheckResult:
        """The verdict on an asset without partitions: on these problems, or on whatever was looked at."""
        found = [one for each in self.found.values() for one in each] if problems is None else list(problems)
        return dg.AssetCheckResult(
            asset_key=dg.AssetKey.from_coercible(asset),
            check_name=self.name,
            severity=self.severity,
            **_verdict(found),
        )


def _verdict(problems: list[str]) -> dict[str, Any]:
    """Whether a check passes, in a sentence and in full. No number is in it: Dagster would plot it."""
    more = f"; and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
    return {
        "passed": not problems,
        "description": "; ".join(problems[:LISTED]) + more or None,
        "metadata": {"found": dg.MetadataValue.md("\n".join(f"- {p}" for p in problems))} if problems else {},
    }


class Checks(Mapping[str, Check]):
    """The checks of one step, by name: made anew for each run, from the descriptions that stand at the asset."""

    def __init__(self, *checks: Check):
        self._checks = {check.name: Check(check.name, check.description, check.severity) for check in checks}

    def __getitem__(self, name: str) -> Check:
        return self._checks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._checks)

    def __len__(self) -> int:
        return len(self._checks)


def specs(
    asset: str, checks: Iterable[Check], partitions_def: dg.PartitionsDefinition | None = None
) -> list[dg.AssetCheckSpec]:
    """What an asset's checks are, for its definition; with the asset's own partitions, if it has any."""
    return [check.spec(asset, partitions_def) for check in checks]
