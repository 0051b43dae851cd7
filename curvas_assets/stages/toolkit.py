"""What a stage works with: the study, its bucket, and what the machine lends."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from curvas_assets.storage.layout import Layout
from curvas_assets.storage.metering import MeteredObjects
from curvas_assets.study import Study


class Scratch(Protocol):
    """Lends folders on the local disk."""

    def __call__(self, subject: str, needed_bytes: int = 0) -> AbstractContextManager[Path]:
        """A folder to work in, for as long as the block lasts.

        Raises:
            DiskError: there is no room for so many bytes.
        """
        ...


@dataclass(frozen=True)
class Toolkit:
    """Handed to every stage.

    Args:
        study: what is made.
        objects: the bucket, counting what goes down and up.
        layout: where everything stands in it.
        tell: given a line of progress.
        warn: given a line that people should see.
        scratch: lends disk.
        device: lends the machine's GPU, by name; None on a machine without one.
        code: names of packages → commit and versions, for an artefact's provenance.
    """

    study: Study
    objects: MeteredObjects
    layout: Layout
    tell: Callable[[str], None]
    warn: Callable[[str], None]
    scratch: Scratch
    device: Callable[[], AbstractContextManager[str | None]]
    code: Callable[..., dict[str, str]]
