"""What a stage checks while it works, and what it finds: the verdicts behind the asset checks, without Dagster."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from curvas_assets.errors import CurvasError


@dataclass
class Check:
    """One check, while a stage works.

    Args:
        name: of the check.
        description: what passes.
        of_defects: whether what it finds is an error of the partition, which is then not stored; otherwise it only
            informs.
    """

    name: str
    description: str
    of_defects: bool = False
    found: dict[str, list[str]] = field(default_factory=dict)
    """Partition that was looked at → what is odd about it."""

    def look(self, partition: str, problems: Iterable[str] = ()) -> None:
        """Note that a partition was looked at, and what is odd about it."""
        self.found[partition] = list(problems)

    def refuse(self, partition: str, error: CurvasError) -> CurvasError:
        """Note a defect; the error, for the caller to raise."""
        self.look(partition, [error.after(partition)])
        return error


class StepChecks(Mapping[str, Check]):
    """The checks of one step, by name: made anew for each run, from the descriptions in the stage's module."""

    def __init__(self, *checks: Check):
        self._checks = {check.name: Check(check.name, check.description, check.of_defects) for check in checks}

    def __getitem__(self, name: str) -> Check:
        return self._checks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._checks)

    def __len__(self) -> int:
        return len(self._checks)
