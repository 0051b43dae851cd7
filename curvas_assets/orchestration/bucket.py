"""The study's bucket as a Dagster resource, with the deployment's settings, read when a client is made.

Where each artefact stands and how it is encoded belongs to `curvas_assets.storage`.
"""

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import cache

import dagster as dg
from pydantic import PrivateAttr

from curvas_assets.errors import CorruptArtefactError, MissingArtefactError
from curvas_assets.orchestration.environment import deployment, environment
from curvas_assets.stages.kept_reports import PAGE, kept_reports
from curvas_assets.stages.table import OTHER_STUDIES, PUBLISHED_TABLE
from curvas_assets.storage import directories
from curvas_assets.storage.connection import S3Settings, check, connect, expiry_warning, link_ends, signed_link
from curvas_assets.storage.layout import Layout
from curvas_assets.storage.metering import MeteredObjects
from curvas_assets.storage.objects import ObjectStore, S3Objects
from curvas_assets.storage.patience import Patience
from curvas_assets.study import Study

SENSOR_READ_SECONDS = 10
"""Outside of runs, requests do not wait for a store that is away: sensors and schedules skip, and try again next
time."""
SENSOR_ATTEMPTS = 2
MOST_LINKED = 11
"""Reports that are linked to in the UI: the newest and ten before it."""


class Bucket(dg.ConfigurableResource["Bucket"]):
    """The study's bucket on any S3-compatible store.

    Endpoint, keys, bucket and prefixes are the deployment's (`S3_ENDPOINT`, `S3_BUCKET`, `AWS_…`; see `docs/store.md`). They
    are read when a client is made and never become resource configuration, so that no key reaches a run's record.
    Within a run, requests wait for a store that is away (`CURVAS_STORE_PATIENCE_SECONDS`).
    """

    _in_run: bool = PrivateAttr(default=False)

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        self._in_run = context.run is not None

    def settings(self) -> S3Settings:
        return S3Settings.from_environment(environment())

    def objects(self) -> MeteredObjects:
        """The store, counting the bytes that go down and up: one for all who use it in this process."""
        return _store(self.settings(), deployment().store_patience_seconds if self._in_run else 0.0)

    def checked_objects(self, hours: float = 0) -> MeteredObjects:
        """The store, after a check of endpoint, keys and bucket, so that a wrong setting fails before any work.

        Args:
            hours: how long the work may take, h; if the session token expires sooner, the run's log says so.
        """
        warning = expiry_warning(self.settings(), datetime.now(UTC), timedelta(hours=hours))
        if warning:
            dg.get_dagster_logger().warning(warning)
        objects = self.objects()
        store = objects.objects
        if isinstance(store, S3Objects):
            hurried = S3Objects(store.client, store.bucket)
            store.patience.hold(f"trying {store.name}", lambda: check(hurried))
        return objects

    def report_link(self) -> tuple[str, str] | None:
        """The link that opens the newest report in a browser, and when it expires; None if there is no report.

        Until it expires it shows the report that is the newest when it is opened.
        """
        objects, layout = self.objects(), self.layout
        if not directories.exists(objects, layout.report()):
            return None
        page = layout.latest_report()
        if objects.head(page) is None:  # a report of a version that kept none
            page = directories.key_of_file(objects, layout.report(), PAGE)
        return self._links([page])[0]

    def kept_report_links(self) -> list[tuple[str, str]]:
        """When each of the newest reports that are kept was written, and a link that opens it, the newest first.

        One that is damaged, or being removed, is left out: nobody can open it, and the others can be.
        """
        objects, layout = self.objects(), self.layout
        pages: list[tuple[str, str]] = []
        for one in kept_reports(objects, layout)[:MOST_LINKED]:
            with suppress(MissingArtefactError, CorruptArtefactError):
                pages.append((one.when, directories.key_of_file(objects, layout.kept_report(one.name), PAGE)))
        links = self._links([page for _, page in pages])
        return [(when, address) for (when, _), (address, _) in zip(pages, links, strict=True)]

    def _links(self, pages: Sequence[str]) -> list[tuple[str, str]]:
        settings, now = self.settings(), datetime.now(UTC)
        until = link_ends(settings, now)
        ends = f"{until:%Y-%m-%d %H:%M} UTC"
        return [(signed_link(settings, page, until, now, "text/html; charset=utf-8"), ends) for page in pages]

    @property
    def layout(self) -> Layout:
        return layout_of(self.settings())


def layout_of(settings: S3Settings) -> Layout:
    """Where artefacts stand, by the prefixes of the settings."""
    return Layout(
        data=settings.data_dir,
        artifacts=settings.artifacts_dir,
        output=settings.output_dir,
        metrics=settings.metrics_dir,
        reports=settings.reports_dir,
    )


@cache
def _store(settings: S3Settings, patience_s: float) -> MeteredObjects:
    """Return the same store to all callers in this process. Dagster makes a new resource for each step and its IO
    manager; this way both share connections, and a step's record counts what either has read.
    """
    if patience_s:
        return MeteredObjects(connect(settings, patience=Patience(patience_s, dg.get_dagster_logger().warning)))
    return MeteredObjects(connect(settings, read_timeout_s=SENSOR_READ_SECONDS, attempts=SENSOR_ATTEMPTS))


def table_digests(objects: ObjectStore, layout: Layout, study: Study) -> dict[str, str]:
    """External asset → digest of the tables of others that the study is compared with; one that is not there is left out."""
    published = [layout.published_table(study.report.published_table)]
    others = [layout.scores_of_other(metrics) for metrics in study.compare_with.values()]
    found = {PUBLISHED_TABLE: _digest(objects, published), OTHER_STUDIES: _digest(objects, others)}
    return {name: digest for name, digest in found.items() if digest is not None}


def _digest(objects: ObjectStore, keys: Sequence[str]) -> str | None:
    there = [(key, info.size, info.tag) for key in keys if (info := objects.head(key)) is not None]
    told = " ".join(f"{size} {tag}" for _, size, tag in there)
    return hashlib.sha256(told.encode()).hexdigest()[:16] if there else None
