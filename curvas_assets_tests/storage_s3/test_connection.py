"""Claims proved here.

- Endpoints are understood with and without scheme, by all their names; empty values count as absent.
- Prefixes are configurable and must differ; the bucket must be named.
- Secrets do not show in the settings' repr.
"""

import pytest

from curvas_assets.errors import StorageError
from curvas_assets.storage.connection import S3Settings

BASE = {"S3_BUCKET": "b", "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "topsecret"}


@pytest.mark.parametrize(
    ("given", "endpoint"),
    [
        ("minio.example.org", "https://minio.example.org"),
        ("minio.example.org:9000", "https://minio.example.org:9000"),
        ("http://minio.example.org/", "http://minio.example.org"),
        ("127.0.0.1:8333", "http://127.0.0.1:8333"),
        ("localhost:8333", "http://localhost:8333"),
        ("[::1]:8333", "http://[::1]:8333"),
        ("", None),
    ],
)
@pytest.mark.parametrize("name", ["S3_ENDPOINT", "AWS_S3_ENDPOINT", "AWS_ENDPOINT_URL"])
def test_endpoints_are_understood_with_and_without_scheme(given, endpoint, name):
    assert S3Settings.from_environment({**BASE, name: given}).endpoint == endpoint


def test_an_empty_session_token_counts_as_absent():
    settings = S3Settings.from_environment({**BASE, "AWS_SESSION_TOKEN": " "})
    assert settings.session_token is None
    assert S3Settings.from_environment({**BASE, "AWS_SESSION_TOKEN": "t"}).session_token == "t"


def test_prefixes_are_configurable_and_must_differ():
    settings = S3Settings.from_environment(
        {**BASE, "S3_DATA_DIR": "in/", "S3_ARTIFACTS_DIR": "a", "S3_OUTPUT_DIR": "o", "S3_METRICS_DIR": "m"}
    )
    assert (settings.data_dir, settings.artifacts_dir, settings.output_dir, settings.metrics_dir) == (
        "in",
        "a",
        "o",
        "m",
    )
    with pytest.raises(StorageError, match="two are the same"):
        S3Settings.from_environment({**BASE, "S3_OUTPUT_DIR": "data"})


@pytest.mark.parametrize("wrong", [{"S3_BUCKET": ""}, {"S3_ENDPOINT": "ftp://x"}, {"S3_ENDPOINT": "host:port"}])
def test_what_cannot_be_used_is_told(wrong):
    with pytest.raises(StorageError):
        S3Settings.from_environment({**BASE, **wrong})


def test_secrets_do_not_show():
    shown = repr(S3Settings.from_environment({**BASE, "AWS_SESSION_TOKEN": "alsosecret"}))
    assert "topsecret" not in shown
    assert "alsosecret" not in shown
