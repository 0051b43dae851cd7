"""The study's bucket as a Dagster resource, with the deployment's settings, read when a client is made.

Where each artefact stands and how it is encoded belongs to `curvas_assets.storage`.
"""

import hashlib
from datetime import UTC, datetime, timedelta
from functools import cache

import dagster as dg
from pydantic import PrivateAttr

from curvas_assets.orchestration.environment import deployment, environment
from curvas_assets.storage import directories
from curvas_assets.storage.connection import S3Settings, check, connect, expiry_warning, link_ends, signed_link
from curvas_assets.storage.layout import Layout
from curvas_assets.storage.metering import MeteredObjects
from curvas_assets.storage.objects import ObjectStore, S3Objects
from curvas_assets.storage.patience import Patience

SENSOR_READ_SECONDS = 10
"""Outside of runs, requests do not wait for a store that is away: sensors and schedules skip, and try again next
time."""
SENSOR_ATTEMPTS = 2


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
        """The link that opens the current report in a browser, and when it expires; None if there is no report."""
        objects, key = self.objects(), self.layout.report()
        if not directories.exists(objects, key):
            return None
        settings, now = self.settings(), datetime.now(UTC)
        until = link_ends(settings, now)
        page = directories.key_of_file(objects, key, "report.html")
        return signed_link(settings, page, until, now, "text/html; charset=utf-8"), f"{until:%Y-%m-%d %H:%M} UTC"

    @property
    def layout(self) -> Layout:
        settings = self.settings()
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


def published_digest(objects: ObjectStore, layout: Layout, name: str) -> str | None:
    """A digest of the published table; None if nobody has uploaded one."""
    found = objects.head(layout.published_table(name))
    return None if found is None else hashlib.sha256(f"{found.size} {found.tag}".encode()).hexdigest()[:16]
