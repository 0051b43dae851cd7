"""An object store: named byte strings, on S3 or in a folder.

The formats beside this module talk to `ObjectStore` only, so that they know neither boto3 nor paths. What an object
means (volume, table, directory) does not belong here.
"""

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from boto3.exceptions import S3UploadFailedError
from botocore.exceptions import BotoCoreError, ClientError

from curvas_assets.errors import MissingArtefactError, StorageError

Bytes = bytes | bytearray | memoryview


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


class FolderObjects:
    """Objects as files below a folder, for tests and for taking artefacts out of a bucket."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)

    @property
    def name(self) -> str:
        return str(self.folder)

    def put(self, key: str, content: Bytes, *, only_if_absent: bool = False) -> bool:
        with _staged(self._path(key)) as staged:
            staged.write_bytes(content)
            if only_if_absent:
                try:
                    os.link(staged, self._path(key))
                except FileExistsError:
                    return False
                return True
            staged.replace(self._path(key))
        return True

    def upload(self, key: str, path: Path) -> None:
        with _staged(self._path(key)) as staged, Path(path).open("rb") as source, staged.open("wb") as target:
            while block := source.read(1 << 22):
                target.write(block)
            target.flush()
            staged.replace(self._path(key))

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
        return self.folder / key


class S3Objects:
    """Objects in a bucket of any S3-compatible store, through a boto3 client.

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
                    **condition,
                )
            except ClientError as error:
                if only_if_absent and _status(error) in (409, 412):
                    return False
                raise
        return True

    def upload(self, key: str, path: Path) -> None:
        with self._told("uploading", key):
            try:
                self.client.upload_file(str(path), self.bucket, key)
            except S3UploadFailedError as error:  # boto3's cover over the store's own answer
                raise error.__context__ or error from error

    def get(self, key: str) -> bytes:
        with self._told("reading", key):
            return self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read()

    def get_range(self, key: str, start: int, length: int) -> bytes:
        if length <= 0:
            return b""
        with self._told("reading", key):
            return self.client.get_object(Bucket=self.bucket, Key=key, Range=f"bytes={start}-{start + length - 1}")[
                "Body"
            ].read()

    def download(self, key: str, path: Path) -> None:
        with self._told("downloading", key), _staged(Path(path)) as staged:
            self.client.download_file(self.bucket, key, str(staged))
            staged.replace(path)

    def head(self, key: str) -> ObjectInfo | None:
        try:
            with self._told("looking for", key):
                answer = self.client.head_object(Bucket=self.bucket, Key=key)
        except MissingArtefactError:
            return None
        return ObjectInfo(key, answer["ContentLength"], answer["ETag"].strip('"'))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        with self._told("listing", prefix):
            for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix):
                for item in page.get("Contents", []):
                    yield ObjectInfo(item["Key"], item["Size"], item["ETag"].strip('"'))

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            with self._told("deleting", key):
                self.client.delete_object(Bucket=self.bucket, Key=key)

    @contextmanager
    def _told(self, action: str, key: str) -> Iterator[None]:
        """Failures of the store as one clear line each."""
        try:
            yield
        except ClientError as error:
            code, status = str(error.response.get("Error", {}).get("Code", "")), _status(error)
            subject = f"{self.name}/{key}"
            if code == "NoSuchBucket":
                raise StorageError(
                    action,
                    subject,
                    f"there is no bucket {self.bucket!r}",
                    "Create it, or set S3_BUCKET to the right one.",
                ) from error
            if status == 404:
                raise _missing(self.name, key) from error
            if status in (400, 401, 403):
                raise StorageError(
                    action,
                    subject,
                    f"the store refused the key ({code or status})",
                    "Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN (expired?) and the bucket's policy.",
                ) from error
            raise StorageError(
                action,
                subject,
                f"the store answered {code or status}",
                "Try again; if it goes on, look at the store's log.",
                may_retry=True,
            ) from error
        except BotoCoreError as error:
            raise StorageError(
                action,
                f"{self.name}/{key}",
                " ".join(str(error).split()),
                "Check S3_ENDPOINT and that the store runs and can be reached.",
                may_retry=True,
            ) from error


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _missing(store: str, key: str) -> MissingArtefactError:
    return MissingArtefactError(
        "reading", f"{store}/{key}", "there is no such object", "Materialise the asset and partition it belongs to."
    )


@contextmanager
def _staged(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, removed unless it was renamed to it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)
