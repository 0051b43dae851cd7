"""Asset checks of steps that take many partitions: one result a check and step, naming the partitions it is about.

A *warning* informs: the partition is stored and used. A *defect* is an error of its partition alone: the work raises it,
the partition is not stored, so nothing downstream of it can be made, and the others of the batch go on. Dagster's own
blocking checks would fail the whole batch; no check here is blocking.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import dagster as dg

from curvas_assets.errors import CurvasError


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
    looked_at: list[str] = field(default_factory=list)

    def spec(self, asset: str) -> dg.AssetCheckSpec:
        return dg.AssetCheckSpec(self.name, asset=asset, description=self.description)

    def look(self, partition: str, problems: Iterable[str] = ()) -> None:
        """Note that a partition was looked at, and what is odd about it."""
        self.looked_at.append(partition)
        if listed := list(problems):
            self.found[partition] = listed

    def refuse(self, partition: str, error: CurvasError) -> CurvasError:
        """Note a defect; the error, for the caller to raise."""
        self.look(partition, [str(error)])
        return error

    def result(self, asset: dg.AssetKey) -> dg.AssetCheckResult:
        return dg.AssetCheckResult(
            asset_key=asset,
            check_name=self.name,
            passed=not self.found,
            severity=self.severity,
            description="; ".join(f"{p}: {', '.join(found)}" for p, found in list(self.found.items())[:5]) or None,
            metadata={
                "looked at": len(self.looked_at),
                "partitions": ", ".join(self.found) or "none",
                "found": dg.MetadataValue.json(self.found),
            },
        )


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


def specs(asset: str, checks: Iterable[Check]) -> list[dg.AssetCheckSpec]:
    return [check.spec(asset) for check in checks]
