"""Claims proved here.

- Endpoints are understood with and without scheme, by all their names; empty values count as absent.
- Prefixes are configurable and must differ; the bucket must be named.
- Secrets do not show in the settings' repr.
- When a session token ends is read from the token; that is told before work that may outlive it, and an ended one is
  refused before anything is sent.
"""

import base64
import json
from datetime import UTC, datetime, timedelta

import pytest

from curvas_assets.errors import StorageError
from curvas_assets.storage.connection import S3Settings, expiry_warning, token_expiry

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


def test_the_stores_own_authority_is_taken_from_settings_as_well():
    """boto3 reads the process's environment alone, not `.env`."""
    assert S3Settings.from_environment({**BASE, "AWS_CA_BUNDLE": "/etc/ca.pem"}).ca_bundle == "/etc/ca.pem"
    assert S3Settings.from_environment({**BASE, "AWS_CA_BUNDLE": ""}).ca_bundle is None


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


def _token(expires: object) -> str:
    """A session token as MinIO's security token service makes them, signed with nothing."""
    parts = ({"alg": "HS512", "typ": "JWT"}, {"accessKey": "ABC", "exp": expires, "parent": "user"})
    return ".".join(
        [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts] + ["x"]
    )


@pytest.mark.parametrize("token", ["", "opaque", "a.b.c", _token("soon"), _token(None), _token(1e30), "a.e30.c"])
def test_a_token_that_does_not_say_when_it_ends_is_not_guessed_at(token):
    assert token_expiry(token) is None


def test_a_session_that_ends_during_the_work_is_told_before_it():
    now = datetime(2026, 1, 1, 12, tzinfo=UTC)
    ends = now + timedelta(days=7)
    assert token_expiry(_token(ends.timestamp())) == ends
    settings = S3Settings("study", session_token=_token(ends.timestamp()))
    assert expiry_warning(settings, now, timedelta(hours=24)) is None
    told = expiry_warning(settings, now, timedelta(days=41))
    assert told is not None
    assert told.startswith("AWS_SESSION_TOKEN ends 2026-01-08 12:00 UTC, in 7.0 days; this work may take 41.0 days.")
    assert "service account" in told
    with pytest.raises(StorageError, match=r"ended 2026-01-08 12:00 UTC, 1\.5 h ago") as ended:
        expiry_warning(settings, ends + timedelta(hours=1.5), timedelta(0))
    assert not ended.value.may_retry
    assert expiry_warning(S3Settings("study"), now, timedelta(days=365)) is None
    assert settings.session_token not in told + repr(settings)
