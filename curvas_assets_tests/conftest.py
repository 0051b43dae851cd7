"""What tests of several packages share: one real S3 server, and Hypothesis' settings."""

import os
from collections.abc import Iterator
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, settings

from curvas_assets.local.server import EmbeddedS3
from curvas_assets.storage.connection import S3Settings, connect
from curvas_assets.storage.objects import S3Objects

settings.register_profile(
    "curvas",
    deadline=None,
    derandomize="CI" in os.environ,  # what is new is found on people's machines; a landing does not hang on chance
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("curvas")


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
