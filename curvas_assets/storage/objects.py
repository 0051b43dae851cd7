"""An object store: named byte strings, on S3 or in a folder.

The formats beside this module talk to `ObjectStore` only, so that they know neither boto3 nor paths. What an object
means (volume, table, directory) does not belong here.
"""

import os
import re
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from boto3.exceptions import Boto3Error, RetriesExceededError, S3UploadFailedError
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError
from s3transfer.exceptions import RetriesExceededError as TransferRetriesExceededError
from s3transfer.exceptions import S3DownloadFailedError, S3ValidationError
from urllib3.exceptions import HTTPError

from curvas_assets.disk import told_of_disk
from curvas_assets.errors import CorruptArtefactError, MissingArtefactError, StorageError, UnsafeNameError
from curvas_assets.storage.digests import READINGS, read_soundly, sha256_of, sha256_of_bytes
from curvas_assets.storage.refusals import Asked, Refusal, explain, explain_failure, status_of

Bytes = bytes | bytearray | memoryview
DIGEST = "sha256"
"""Name of the metadata that holds an object's digest."""
PAUSE_SECONDS = 0.2
"""Before an object is read again whose transfer broke off; then twice as long."""
_OF_A_LISTING = {"Name", "IsTruncated", "KeyCount", "MaxKeys", "Contents"}
"""A web page may be XML too; a listing says one of these."""
_FAILURES = (
    *(BotoCoreError, Boto3Error, ResponseParserError, HTTPError, RecursionError),
    *(S3DownloadFailedError, S3ValidationError, TransferRetriesExceededError),
)
"""What boto3, and what it is made of, raise where there was no answer, or none that fits."""
_READING = ("reading", "downloading", "looking for")


@dataclass(frozen=True)
class ObjectInfo:
    """A stored object: its key, its size in bytes, and a tag that changes when its content does."""

    key: str
    size: int
    tag: str


class ObjectStore(Protocol):
    """What the formats need of a store. A write of one object is atomic: readers see all of it or none."""

    @property
    def name(self) -> str:
        """The store as people know it, e.g. `s3://bucket`."""
        ...

    def put(self, key: str, content: Bytes, *, only_if_absent: bool = False) -> bool:
        """Store one object in one request. False if `only_if_absent` and it is there already (nothing is changed)."""
        ...

    def upload(self, key: str, path: Path) -> None:
        """Store a file, streamed, in several parts if it is large."""
        ...

    def get(self, key: str) -> bytes:
        """The whole content; a MissingArtefactError if there is none."""
        ...

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """`length` bytes from `start` on (fewer at the end); a MissingArtefactError if there is no such object."""
        ...

    def download(self, key: str, path: Path) -> None:
        """The content into a file, streamed, under its name only once complete."""
        ...

    def head(self, key: str) -> ObjectInfo | None:
        """Size and tag of an object; None if there is none."""
        ...

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """All objects whose key starts with the prefix, in the order of their keys."""
        ...

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects; those that are not there are no error."""
        ...


def is_safe_name(name: str) -> bool:
    """Whether a name, as stores and manifests write names (parts with slashes between them), stays below a folder:
    it is not absolute, has no drive, no parts like `..`, and no sign that a system reads otherwise.
    """
    parts = name.split("/")
    return not (
        any(part in ("", ".", "..") for part in parts)
        or any(sign in name for sign in ("\\", "\0"))
        or re.match("[A-Za-z]:", name)
    )


def within(folder: Path, name: str) -> Path:
    """The path of a name below a folder.

    Raises:
        UnsafeNameError: the name leads out of the folder, or a link on its way does.
    """
    path = Path(folder, name)
    if is_safe_name(name) and path.parent.resolve().is_relative_to(Path(folder).resolve()):
        return path
    raise UnsafeNameError(
        "placing a file",
        str(folder),
        f"{name[:120]!r} leads out of the folder",
        "It was not written. Rename or remove that object, or the link that leads elsewhere.",
    )


class FolderObjects:
    """Objects as files below a folder, for tests and for taking artefacts out of a bucket."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)

    @property
    def name(self) -> str:
        return str(self.folder)

    def put(self, key: str, content: Bytes, *, only_if_absent: bool = False) -> bool:
        with staged(self._path(key)) as part:
            part.write_bytes(content)
            if only_if_absent:
                try:
                    os.link(part, self._path(key))
                except FileExistsError:
                    return False
                return True
            part.replace(self._path(key))
        return True

    def upload(self, key: str, path: Path) -> None:
        with staged(self._path(key)) as part, Path(path).open("rb") as source, part.open("wb") as target:
            while block := source.read(1 << 22):
                target.write(block)
            target.flush()
            part.replace(self._path(key))

    def get(self, key: str) -> bytes:
        try:
            return self._path(key).read_bytes()
        except FileNotFoundError as error:
            raise _missing(self.name, key) from error

    def get_range(self, key: str, start: int, length: int) -> bytes:
        try:
            with self._path(key).open("rb") as file:
                file.seek(start)
                return file.read(length)
        except FileNotFoundError as error:
            raise _missing(self.name, key) from error

    def download(self, key: str, path: Path) -> None:
        source = self._path(key)
        if not source.is_file():
            raise _missing(self.name, key)
        FolderObjects(Path(path).parent).upload(Path(path).name, source)

    def head(self, key: str) -> ObjectInfo | None:
        path = self._path(key)
        if not path.is_file():
            return None
        stat = path.stat()
        return ObjectInfo(key, stat.st_size, f"{stat.st_mtime_ns:x}-{stat.st_size:x}")

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        keys = sorted(p.relative_to(self.folder).as_posix() for p in self.folder.rglob("*") if p.is_file())
        for key in keys:
            if key.startswith(prefix) and (info := self.head(key)) is not None:
                yield info

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._path(key).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return within(self.folder, key)


class S3Objects:
    """Objects in a bucket of any S3-compatible store, through a boto3 client.

    What is written carries its SHA-256 as metadata of the object. Reading all of it compares, and reads again what does
    not fit: the store need not know checksums of its own.

    Args:
        client: a boto3 S3 client.
        bucket: the bucket's name.
    """

    def __init__(self, client: Any, bucket: str):
        self.client = client
        self.bucket = bucket

    @property
    def name(self) -> str:
        return f"s3://{self.bucket}"

    def put(self, key: str, content: Bytes, *, only_if_absent: bool = False) -> bool:
        condition = {"IfNoneMatch": "*"} if only_if_absent else {}
        with self._told("writing", key):
            try:
                self.client.put_object(
                    Bucket=self.bucket,
                    Key=key,
                    Body=bytes(content) if isinstance(content, memoryview) else content,
                    Metadata={DIGEST: sha256_of_bytes(content)},
                    **condition,
                )
            except ClientError as error:
                if only_if_absent and status_of(error) in (409, 412):
                    return False
                raise
        return True

    def upload(self, key: str, path: Path) -> None:
        with self._told("uploading", key):
            try:
                self.client.upload_file(
                    str(path), self.bucket, key, ExtraArgs={"Metadata": {DIGEST: sha256_of(Path(path))}}
                )
            except S3UploadFailedError as error:  # boto3's cover over the store's own answer
                raise error.__context__ or error from error

    def get(self, key: str) -> bytes:
        subject = f"{self.name}/{key}"

        def verified(answer: tuple[bytes, str | None]) -> bytes:
            content, digest = answer
            _require_digest(subject, sha256_of_bytes(content), digest)
            return content

        with self._told("reading", key):
            return read_soundly(lambda: self._body(key), verified, lambda answer: sha256_of_bytes(answer[0]), subject)

    def get_range(self, key: str, start: int, length: int) -> bytes:
        if length <= 0:
            return b""
        with self._told("reading", key):
            try:
                return self._body(key, Range=f"bytes={start}-{start + length - 1}")[0]
            except ClientError as error:
                if status_of(error) == 416:  # it ends before `start`
                    return b""
                raise

    def download(self, key: str, path: Path) -> None:
        subject = f"{self.name}/{key}"

        def fetch() -> str | None:
            digest = _digest_of(self._head(key))
            try:
                self.client.download_file(self.bucket, key, str(part))
            except RetriesExceededError as error:  # boto3's cover over what broke off every time
                raise error.last_exception from error
            return digest

        with (
            told_of_disk("downloading", subject, Path(path).parent),
            self._told("downloading", key),
            staged(Path(path)) as part,
        ):
            read_soundly(
                fetch,
                lambda digest: digest and _require_digest(subject, sha256_of(part), digest),
                lambda _: sha256_of(part),
                subject,
            )
            part.replace(path)

    def head(self, key: str) -> ObjectInfo | None:
        try:
            with self._told("looking for", key):
                answer = self._head(key)
        except MissingArtefactError:
            return None
        return ObjectInfo(key, answer["ContentLength"], answer.get("ETag", "").strip('"'))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Markers of folders (no bytes, a key that ends with a slash), as consoles make them, are no objects."""
        with self._told("listing", prefix):
            for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix):
                if not page.keys() & _OF_A_LISTING:
                    raise ResponseParserError("no listing of a bucket")
                for item in page.get("Contents", []):
                    if item["Size"] or not item["Key"].endswith("/"):
                        yield ObjectInfo(item["Key"], item["Size"], item.get("ETag", "").strip('"'))

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            with self._told("deleting", key):
                self.client.delete_object(Bucket=self.bucket, Key=key)

    def _body(self, key: str, **asked: str) -> tuple[bytes, str | None]:
        """The content of an answer, and the digest that was written with the object. boto3 sends again what got no
        answer, not what broke off in the middle of one: that is done here.
        """
        for attempt in range(READINGS):
            answer = self.client.get_object(Bucket=self.bucket, Key=key, **asked)
            try:
                return answer["Body"].read(), _digest_of(answer)
            except (BotoCoreError, HTTPError):
                if attempt == READINGS - 1:
                    raise
                time.sleep(PAUSE_SECONDS * 2**attempt)
        raise AssertionError("not reached")

    def _head(self, key: str) -> dict[str, Any]:
        """The head of an object. A refused HEAD has no body, so that a small GET asks why."""
        try:
            return self.client.head_object(Bucket=self.bucket, Key=key)
        except ClientError as error:
            if 400 <= status_of(error) < 500 and status_of(error) != 404:
                self.client.get_object(Bucket=self.bucket, Key=key, Range="bytes=0-0")["Body"].close()
            raise

    @contextmanager
    def _told(self, action: str, key: str) -> Iterator[None]:
        """Failures of the store as one clear line each."""
        try:
            yield
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code")
            if status_of(error) == 404 and (code == "NoSuchKey" or (code != "NoSuchBucket" and action in _READING)):
                raise _missing(self.name, key) from error
            raise self._error(action, key, explain(error, self._asked())) from error
        except _FAILURES as error:
            raise self._error(action, key, explain_failure(error, self._asked())) from error

    def _error(self, action: str, key: str, refusal: Refusal) -> StorageError:
        return StorageError(action, f"{self.name}/{key}", refusal.found, refusal.remedy, may_retry=refusal.may_retry)

    def _asked(self) -> Asked:
        meta = self.client.meta
        return Asked(
            bucket=self.bucket,
            endpoint=str(meta.endpoint_url or ""),
            region=str(meta.region_name or ""),
            checksums=str(getattr(meta.config, "request_checksum_calculation", "") or ""),
        )


def _digest_of(answer: dict[str, Any]) -> str | None:
    """The digest that was written with an object; None if another program wrote it, or this one before it did so."""
    return next((value for name, value in answer.get("Metadata", {}).items() if name.lower() == DIGEST), None)


def _require_digest(subject: str, found: str, promised: str | None) -> None:
    if promised is not None and found != promised:
        raise CorruptArtefactError(
            "reading",
            subject,
            f"its SHA-256 is {found[:12]}…, not {promised[:12]}… as it was written",
            "Materialise it again; if it is input, upload it again.",
        )


def _missing(store: str, key: str) -> MissingArtefactError:
    return MissingArtefactError(
        "reading", f"{store}/{key}", "there is no such object", "Materialise the asset and partition it belongs to."
    )


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, removed unless it was renamed to it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)
