"""Reports that are kept: the newest one under a key that never changes, and those before it, each with its time.

Belongs here: what is kept of a report, how long, and the list. Does not belong here: writing a report (`write_up`), showing
them to people (`curvas_assets.orchestration.report_server`).
"""

import re
from pathlib import Path
from typing import NamedTuple

from curvas_assets.errors import MissingArtefactError
from curvas_assets.storage import directories
from curvas_assets.storage.directories import MANIFEST
from curvas_assets.storage.layout import Layout
from curvas_assets.storage.objects import ObjectStore

MOST = 20
"""Reports that are kept. One of 65 patients takes about 10 MB."""
PAGE = "report.html"
NAME = re.compile(r"(\d{4}-\d{2}-\d{2})T(\d{2})-(\d{2})-[0-9a-f]{8}")


class KeptReport(NamedTuple):
    """A report that is kept.

    Attributes:
        name: its own, which sorts by time.
        when: it was written, as shown.
        is_current: whether it is the study's newest.
    """

    name: str
    when: str
    is_current: bool


def keep(objects: ObjectStore, layout: Layout, page: Path, version: str, generated_at: str) -> None:
    """Keep a report beside the earlier ones, make its page the latest, and remove the oldest beyond `MOST`.

    Args:
        objects: the bucket.
        layout: where reports stand in it.
        page: the folder of the report.
        version: of the report as it was stored.
        generated_at: when it was written, `2026-11-27 12:00 UTC`; a report without a time is not kept, but is the latest.
    """
    if found := re.match(r"(\d{4}-\d{2}-\d{2}) (\d{2}):(\d{2})", generated_at):
        name = f"{found[1]}T{found[2]}-{found[3]}-{version[:8]}"
        directories.write_directory(objects, layout.kept_report(name), page)
    objects.put(layout.latest_report(), (page / PAGE).read_bytes())
    for old in _names(objects, layout)[MOST:]:
        objects.delete([item.key for item in objects.list(f"{layout.kept_report(old)}/")])


def kept_reports(objects: ObjectStore, layout: Layout) -> list[KeptReport]:
    """All reports that are kept, the newest first."""
    try:
        current = directories.version_of(objects, layout.report())[:8]
    except MissingArtefactError:
        current = ""
    found: list[KeptReport] = []
    for name in _names(objects, layout):
        date, hours, minutes = NAME.fullmatch(name).groups()  # type: ignore[union-attr] - `_names` gives no others
        found.append(KeptReport(name, f"{date} {hours}:{minutes} UTC", bool(current) and name.endswith(current)))
    return found


def _names(objects: ObjectStore, layout: Layout) -> list[str]:
    """Names of whole reports, the newest first; what a killed writer left has no manifest and is passed over."""
    prefix = f"{layout.kept_reports()}/"
    keys = (item.key.removeprefix(prefix) for item in objects.list(prefix))
    names = {key.removesuffix(f"/{MANIFEST}") for key in keys if key.endswith(f"/{MANIFEST}")}
    return sorted((name for name in names if NAME.fullmatch(name)), reverse=True)
