"""Connecting to an S3-compatible store: settings as deployments spell them, a client, and a first try of both.

Pure of the process's environment: settings are read from a mapping that the caller gives.
"""

import base64
import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from curvas_assets.errors import StorageError, StoreAwayError
from curvas_assets.storage.objects import ObjectStore, S3Objects
from curvas_assets.storage.patience import Patience
from curvas_assets.storage.refusals import CHECKSUMS

ENDPOINTS = ("S3_ENDPOINT", "AWS_S3_ENDPOINT", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
"""Variables that may name the endpoint, the first that is set wins. None set: Amazon's own."""
CHECKSUM_CHOICES = ("when_required", "when_supported")
"""Values of `AWS_REQUEST_CHECKSUM_CALCULATION`. boto3 defaults to the second, but older stores (Ceph, MinIO, OVH,
Backblaze) refuse its trailers: writing fails, reading works. Artefacts carry their own digests; a bucket with object
lock requires the second."""
BUCKET_NAME = re.compile(r"[A-Za-z0-9._-]{1,255}|arn:aws[\w-]*:s3[\w-]*:.+")
LONGEST_LINK = timedelta(days=7)
"""What a signature of version 4 may last."""
CHECK_SECONDS = 8.0
"""How long `check` waits. Without this limit, a firewall that drops packets, or a port that accepts them and stays
silent, would hold boto3 for minutes: five attempts of 5 s to connect and 120 s to read."""


@dataclass(frozen=True)
class S3Settings:
    """Where the study's bucket is, how to get in, and its prefixes. Secrets do not show in its `repr`."""

    bucket: str
    endpoint: str | None = None
    access_key: str | None = None
    secret_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    region: str = "us-east-1"
    data_dir: str = "data"
    artifacts_dir: str = "artifacts"
    output_dir: str = "output"
    metrics_dir: str = "metrics"
    reports_dir: str = "reports"
    checksums: str = CHECKSUM_CHOICES[0]
    ca_bundle: str | None = None

    @classmethod
    def from_environment(cls, variables: Mapping[str, str]) -> "S3Settings":
        """Settings from environment variables, of which empty ones count as absent.

        Args:
            variables: `S3_BUCKET`; `S3_ENDPOINT` (with or without scheme) or one of `ENDPOINTS`; `S3_STUDY_DIR`, the
                folder of what is made (not of the data), below which the other prefixes stand unless they are set; `S3_DATA_DIR`,
                `S3_ARTIFACTS_DIR`, `S3_OUTPUT_DIR`, `S3_METRICS_DIR`, `S3_REPORTS_DIR`; `AWS_ACCESS_KEY_ID`,
                `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`, `AWS_DEFAULT_REGION` or `AWS_REGION`,
                `AWS_REQUEST_CHECKSUM_CALCULATION`, `AWS_CA_BUNDLE`.

        Raises:
            StorageError: the bucket's name is missing or invalid; a key comes without its secret (or the other way
                round); the endpoint is not an address; two prefixes are equal or nested; or the choice of checksums is
                unknown.
        """
        given = {name: value.strip() for name, value in variables.items() if value.strip()}
        if "S3_BUCKET" not in given:
            raise StorageError(
                "connecting to S3", "S3_BUCKET", "no bucket is named", "Set S3_BUCKET, in the environment or in .env."
            )
        _require_bucket_name(given["S3_BUCKET"])
        checksums = given.get(CHECKSUMS, CHECKSUM_CHOICES[0]).lower()
        if checksums not in CHECKSUM_CHOICES:
            raise StorageError(
                "connecting to S3", CHECKSUMS, f"it is {checksums!r}", f"Set it to {' or '.join(CHECKSUM_CHOICES)}."
            )
        if ("AWS_ACCESS_KEY_ID" in given) != ("AWS_SECRET_ACCESS_KEY" in given):
            there, absent = sorted(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), key=lambda name: name not in given)
            raise StorageError("connecting to S3", absent, f"{there} is set, this is not", f"Set {absent} as well.")
        endpoint = next((given[name] for name in ENDPOINTS if name in given), None)
        folder = given.get("S3_STUDY_DIR", "").strip("/")
        own = f"{folder}/" if folder else ""
        prefixes = {
            name: given.get(f"S3_{name.upper()}", default).strip("/")
            for name, default in (
                ("data_dir", "data"),
                ("artifacts_dir", f"{own}artifacts"),
                ("output_dir", f"{own}output"),
                ("metrics_dir", f"{own}metrics"),
                ("reports_dir", f"{own}reports"),
            )
        }
        if not all(prefixes.values()) or any(
            f"{inner}/".startswith(f"{outer}/")
            for outer_name, outer in prefixes.items()
            for inner_name, inner in prefixes.items()
            if inner_name != outer_name
        ):
            raise StorageError(
                "connecting to S3",
                "the prefixes",
                f"they are {prefixes}: one is empty, or two are the same, or one is inside another",
                "Give S3_DATA_DIR, S3_ARTIFACTS_DIR, S3_OUTPUT_DIR, S3_METRICS_DIR and S3_REPORTS_DIR names apart.",
            )
        return cls(
            bucket=given["S3_BUCKET"],
            endpoint=_with_scheme(endpoint) if endpoint else None,
            access_key=given.get("AWS_ACCESS_KEY_ID"),
            secret_key=given.get("AWS_SECRET_ACCESS_KEY"),
            session_token=given.get("AWS_SESSION_TOKEN"),
            region=given.get("AWS_DEFAULT_REGION") or given.get("AWS_REGION") or "us-east-1",
            **prefixes,
            checksums=checksums,
            ca_bundle=given.get("AWS_CA_BUNDLE"),
        )


def connect(
    settings: S3Settings, *, read_timeout_s: float = 120, attempts: int = 5, patience: Patience | None = None
) -> S3Objects:
    """The store's objects. Nothing is sent yet: `check` tries endpoint, keys and bucket.

    Buckets are addressed by path, which MinIO, Ceph and SeaweedFS need and Amazon accepts.

    Args:
        settings: endpoint, keys, bucket.
        read_timeout_s: silence of the store after which a request has failed, s.
        attempts: how often a request is sent in total before its failure is reported.
        patience: how long requests wait for a store that is away, and who is told; `attempts` is then ignored, because
            each failure is seen at once.
    """
    import boto3
    from botocore.config import Config

    client: Any = boto3.session.Session().client(
        "s3",
        endpoint_url=settings.endpoint,
        region_name=settings.region,
        aws_access_key_id=settings.access_key,
        aws_secret_access_key=settings.secret_key,
        aws_session_token=settings.session_token,
        verify=settings.ca_bundle,
        config=Config(
            s3={"addressing_style": "path"},
            connect_timeout=5,
            read_timeout=read_timeout_s,
            retries={"total_max_attempts": 1 if patience else attempts, "mode": "standard"},
            max_pool_connections=16,
            request_checksum_calculation=settings.checksums,
            response_checksum_validation="when_required",
        ),
    )
    client.meta.events.register("before-call.s3.HeadBucket", _follow_no_redirect)
    return S3Objects(client, settings.bucket, patience)


def signed_link(settings: S3Settings, key: str, until: datetime, now: datetime, content_type: str) -> str:
    """An address at which a browser opens one object, without keys, until a time.

    Args:
        settings: endpoint, keys, bucket.
        key: of the object.
        until: when it ends; a signature lasts `LONGEST_LINK` at most, and no longer than a session token.
        now: with its time zone.
        content_type: the content type that the store reports for it.
    """
    import boto3
    from botocore.config import Config

    client: Any = boto3.session.Session().client(
        "s3",
        endpoint_url=settings.endpoint,
        region_name=settings.region,
        aws_access_key_id=settings.access_key,
        aws_secret_access_key=settings.secret_key,
        aws_session_token=settings.session_token,
        # The older signature, boto3's default for links, is refused by newer stores.
        config=Config(s3={"addressing_style": "path"}, signature_version="s3v4"),
    )
    return client.generate_presigned_url(
        "get_object",
        Params={"Bucket": settings.bucket, "Key": key, "ResponseContentType": content_type},
        ExpiresIn=max(1, int((until - now).total_seconds())),
    )


def link_ends(settings: S3Settings, now: datetime) -> datetime:
    """Until when a link that is signed now can last."""
    token_ends = token_expiry(settings.session_token) if settings.session_token else None
    return min(now + LONGEST_LINK, token_ends or now + LONGEST_LINK)


def check(store: ObjectStore, *, seconds: float = CHECK_SECONDS) -> None:
    """Try the store with one small request, before any work is lost.

    Args:
        store: the store to try.
        seconds: how long to wait for its answer.

    Raises:
        StorageError: it cannot be reached, does not answer in time, refuses the key, has no such bucket, or there is no
            key to try; one line, with what to do.
    """
    failures: list[BaseException] = []

    def attempt() -> None:
        try:
            next(iter(store.list(".curvas-check/")), None)
        except BaseException as error:  # the caller reports it, below
            failures.append(error)

    # A daemon: an attempt that boto3 still retries does not keep the process from ending.
    thread = threading.Thread(target=attempt, name="curvas-s3-check", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise StoreAwayError(
            "trying the store",
            store.name,
            f"no answer in {seconds:g} s",
            "Check S3_ENDPOINT (address, port, http or https) and that no firewall is in between.",
            may_retry=True,
        )
    if failures:
        raise failures[0]


def token_expiry(token: str) -> datetime | None:
    """When a session token ends, as it says itself; None if it does not (MinIO's do, Amazon's are opaque).

    Args:
        token: a JSON web token; its signature is the store's to check.
    """
    try:
        payload = token.split(".")[1]
        said = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["exp"]
        return datetime.fromtimestamp(float(said), UTC)
    except (IndexError, KeyError, TypeError, ValueError, OverflowError):
        return None


def expiry_warning(settings: S3Settings, now: datetime, needed: timedelta) -> str | None:
    """The warning, before work begins, that the session token may end before the work does.

    Args:
        settings: with the token, if there is one.
        now: with its time zone.
        needed: how long the work may take.

    Returns:
        One line; None if the token outlives the work, does not say when it ends, or there is none.

    Raises:
        StorageError: it has ended already.
    """
    ends = token_expiry(settings.session_token) if settings.session_token else None
    if ends is None or ends - now > needed:
        return None
    if ends <= now:
        raise StorageError(
            "opening the store",
            "AWS_SESSION_TOKEN",
            f"it ended {ends:%Y-%m-%d %H:%M} UTC, {_span(now - ends)} ago",
            "Set keys of a service account, which do not end, or fetch a new session's and start again.",
        )
    return (
        f"AWS_SESSION_TOKEN ends {ends:%Y-%m-%d %H:%M} UTC, in {_span(ends - now)}; this work may take {_span(needed)}. "
        "What is stored by then stays. Keys of a service account do not end."
    )


def _span(length: timedelta) -> str:
    hours = length.total_seconds() / 3600
    return f"{hours / 24:.1f} days" if hours >= 48 else f"{hours:.1f} h"


def _follow_no_redirect(context: dict[str, Any], **_: object) -> None:
    """Without this, botocore asks an endpoint that redirects everything by HEAD for a bucket's region, for ever."""
    context.setdefault("s3_redirect", {})["redirected"] = True


def _require_bucket_name(name: str) -> None:
    if BUCKET_NAME.fullmatch(name):
        return
    bare, _, folder = name.removeprefix("s3://").strip("/").partition("/")
    remedy = "Set S3_BUCKET to the bucket's name alone."
    if BUCKET_NAME.fullmatch(bare):
        remedy = f"Set S3_BUCKET={bare}"
        if folder:
            remedy += (
                f" and the prefixes below the folder: S3_DATA_DIR={folder}/data, S3_ARTIFACTS_DIR={folder}/artifacts …"
            )
        remedy = f"{remedy.removesuffix('.')}."
    raise StorageError("connecting to S3", "S3_BUCKET", f"{name!r} is no name of a bucket", remedy)


def _with_scheme(endpoint: str) -> str:
    """An endpoint as a URL: https unless it says otherwise or is on this machine."""
    bare = endpoint if "//" in endpoint else f"//{endpoint}"
    parts = urlsplit(bare)
    try:
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or parts.scheme not in ("", "http", "https"):
        raise StorageError(
            "connecting to S3", "S3_ENDPOINT", f"{endpoint!r} is no address", "Give host:port or https://host[:port]."
        )
    scheme = parts.scheme or ("http" if _is_loopback(host) else "https")
    return f"{scheme}://{parts.netloc}{parts.path.rstrip('/')}"


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
