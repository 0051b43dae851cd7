"""What tests of several packages share: one real S3 server, a browser, and Hypothesis' settings."""

import os
import shutil
from collections.abc import Iterator
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, settings

from curvas_assets.local.server import EmbeddedS3
from curvas_assets.storage.connection import S3Settings, connect
from curvas_assets.storage.objects import S3Objects

# Processes of tests share the cores with those that they start: threads that wait for work actively, which is OpenMP's
# default, take the time of all others. Two of `test_panel` side by side on two cores: 74 s, 36 s with this.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# A store that stays away fails a test in a minute, not in ten.
os.environ.setdefault("CURVAS_STORE_PATIENCE_SECONDS", "60")

CHROMIUM_FLAGS = (
    *("--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"),
)
"""No connection of its own, and WebGL without a GPU, for the report's 3-D view."""

LONG = (
    *("browser/test_ui.py", "report/test_document.py", "scoring/test_panel.py", "test_study.py"),
    *(
        "test_five_annotators.py",
        "orchestration/test_kills.py",
        "orchestration/test_workers.py",
        "report/test_browser.py",
    ),
    *("sharing/test_bundle.py", "local/test_server.py", "orchestration/test_warm_starts.py", "report/test_answer.py"),
    *("test_wheel.py", "orchestration/test_postgres.py", "orchestration/test_pool.py", "scoring/test_references.py"),
    *("orchestration/test_scale.py", "storage_s3/test_outages.py", "orchestration/test_staleness.py", "test_readme.py"),
    *("orchestration/operations/test_make_missing.py", "segmentation/test_several_annotators.py"),
    *("segmentation/test_loading.py", "submission/test_submission.py", "report/test_figures.py"),
)
"""What takes longest comes first, so that no process is left with it alone in the end."""

settings.register_profile(
    "curvas",
    deadline=None,
    derandomize="CI" in os.environ,  # what is new is found on people's machines; a landing does not hang on chance
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("curvas")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {f"curvas_assets_tests/{name}": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.nodeid.partition("::")[0], len(LONG)))


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory) -> Iterator[EmbeddedS3]:
    """SeaweedFS on loopback, for the tests of one process."""
    with EmbeddedS3(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def bucket_environment(s3_server) -> dict[str, str]:
    """The variables that lead to a bucket of this test's own."""
    environment = {**s3_server.environment(), "S3_BUCKET": f"test-{uuid4().hex[:12]}"}
    connect(S3Settings.from_environment(environment)).client.create_bucket(Bucket=environment["S3_BUCKET"])
    return environment


@pytest.fixture
def s3_store(bucket_environment) -> S3Objects:
    return connect(S3Settings.from_environment(bucket_environment))


@pytest.fixture(scope="module")
def chromium():
    """Headless Chromium by Playwright. Of one module: its event loop would be in the way of other tests."""
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        pytest.skip("no chromium on the PATH: install it (apt-get install chromium) to run the browser tests")
    playwright = pytest.importorskip("playwright.sync_api", reason="the test extra brings playwright")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable, args=list(CHROMIUM_FLAGS))
        yield browser
        browser.close()
