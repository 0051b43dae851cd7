"""An object store: named byte strings, on S3 or in a folder.

The formats beside this module talk to `ObjectStore` only, so that they know neither boto3 nor paths. What an object
means (volume, table, directory) does not belong here.
"""

import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from itertools import count
from pathlib import Path
from typing import Any, Protocol, TypeVar

from boto3.exceptions import Boto3Error
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError
from s3transfer.exceptions import S3ValidationError
from urllib3.exceptions import HTTPError

from curvas_assets.disk import told_of_disk
from curvas_assets.errors import (
    CorruptArtefactError,
    MissingArtefactError,
    StorageError,
    StoreAwayError,
    UnsafeNameError,
)
from curvas_assets.storage.digests import READINGS, read_soundly, sha256_of, sha256_of_bytes
from curvas_assets.storage.patience import Patience
from curvas_assets.storage.refusals import Asked, Refusal, explain, explain_failure, status_of

Bytes = bytes | bytearray | memoryview
Answer = TypeVar("Answer")
PART_BYTES = 8 << 20
"""Larger files are sent and fetched in parts of this size, as boto3 does; it doubles until 10,000 parts suffice."""
MOST_PARTS = 10_000
PARTS_AT_ONCE = 4
DIGEST = "sha256"
"""Name of the metadata that holds an object's digest."""
PAUSE_SECONDS = 0.2
"""Wait before an object is read again after its transfer broke off; it doubles each time."""
_OF_A_LISTING = {"Name", "IsTruncated", "KeyCount", "MaxKeys", "Contents", "Uploads", "MaxUploads"}
"""A listing contains one of these; without them, XML may be a web page."""
_FAILURES = (BotoCoreError, Boto3Error, ResponseParserError, HTTPError, RecursionError, S3ValidationError)
"""Errors that boto3 and its dependencies raise when there is no answer, or no usable one."""
_READING = ("reading", "downloading", "looking for")


@dataclass(frozen=True)
class ObjectInfo:
    """A stored object.

    Args:
        key: its name.
        size: in bytes.
        tag: changes when its content does.
        modified: when it was written, by the store's clock; None if the store does not say.
    """

    key: str
    size: int
    tag: str
    modified: datetime | None = None


@dataclass(frozen=True)
class UnfinishedUpload:
    """An upload in parts that was begun and neither completed nor given up. No listing of objects shows it.

    Args:
        key: of the object that it was to become.
        id: the store's name of the upload.
        started: by the store's clock.
    """

    key: str
    id: str
    started: datetime


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

    def clock(self) -> datetime | None:
        """What time it is for the store, to be compared with `ObjectInfo.modified`; None if it does not say."""
        ...

    def unfinished_uploads(self, prefix: str) -> Iterator[UnfinishedUpload]:
        """Uploads in parts below a prefix that were not completed."""
        ...

    def give_up(self, upload: UnfinishedUpload) -> None:
        """Remove the parts of an upload; one that has ended meanwhile is no error."""
        ...


def is_safe_name(name: str) -> bool:
    """Whether a name, as stores and manifests write names (parts with slashes between them), stays below a folder:
    it is not absolute, has no drive, no parts like `..`, and no character that an operating system interprets.
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
        modified = datetime.fromtimestamp(stat.st_mtime, UTC)
        return ObjectInfo(key, stat.st_size, f"{stat.st_mtime_ns:x}-{stat.st_size:x}", modified)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        keys = sorted(p.relative_to(self.folder).as_posix() for p in self.folder.rglob("*") if p.is_file())
        for key in keys:
            if key.startswith(prefix) and (info := self.head(key)) is not None:
                yield info

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._path(key).unlink(missing_ok=True)

    def clock(self) -> datetime:
        with staged(self.folder / "clock") as part:
            return datetime.fromtimestamp(part.stat().st_mtime, UTC)

    def unfinished_uploads(self, prefix: str) -> Iterator[UnfinishedUpload]:
        return iter(())

    def give_up(self, upload: UnfinishedUpload) -> None:
        pass

    def _path(self, key: str) -> Path:
        return within(self.folder, key)


class S3Objects:
    """Objects in a bucket of any S3-compatible store, through a boto3 client.

    What is written carries its SHA-256 as metadata of the object. Reading all of it compares, and reads again what does
    not fit: the store need not know checksums of its own. Each request waits on its own for a store that is away, so a
    long upload, download or listing repeats nothing.

    Args:
        client: a boto3 S3 client.
        bucket: the bucket's name.
        patience: how long requests wait for a store that is away; None does not wait.
    """

    def __init__(self, client: Any, bucket: str, patience: Patience | None = None):
        self.client = client
        self.bucket = bucket
        self.patience = patience or Patience()

    @property
    def name(self) -> str:
        return f"s3://{self.bucket}"

    def put(self, key: str, content: Bytes, *, only_if_absent: bool = False) -> bool:
        condition = {"IfNoneMatch": "*"} if only_if_absent else {}
        digest, attempts = sha256_of_bytes(content), count(1)

        def send() -> bool:
            attempt = next(attempts)
            try:
                self.client.put_object(
                    Bucket=self.bucket,
                    Key=key,
                    Body=bytes(content) if isinstance(content, memoryview) else content,
                    Metadata={DIGEST: digest},
                    **condition,
                )
            except ClientError as error:
                if only_if_absent and status_of(error) in (409, 412):
                    return attempt > 1 and self._is_stored(key, digest)  # by the attempt whose answer was lost
                raise
            return True

        return self._ask("writing", key, send)

    def upload(self, key: str, path: Path) -> None:
        path = Path(path)
        size, digest = path.stat().st_size, sha256_of(path)
        if size > PART_BYTES:
            self._upload_in_parts(key, path, size, digest)
            return

        def send() -> None:
            with path.open("rb") as file:
                self.client.put_object(Bucket=self.bucket, Key=key, Body=file, Metadata={DIGEST: digest})

        self._ask("uploading", key, send)

    def get(self, key: str) -> bytes:
        subject = f"{self.name}/{key}"

        def verified(answer: tuple[bytes, dict[str, Any]]) -> bytes:
            content, head = answer
            _require_digest(subject, sha256_of_bytes(content), _digest_of(head))
            return content

        return read_soundly(
            lambda: self._ask("reading", key, lambda: self._body(key)),
            verified,
            lambda answer: sha256_of_bytes(answer[0]),
            subject,
        )

    def get_range(self, key: str, start: int, length: int) -> bytes:
        if length <= 0:
            return b""

        def read() -> bytes:
            try:
                return self._body(key, Range=f"bytes={start}-{start + length - 1}")[0]
            except ClientError as error:
                if status_of(error) == 416:  # it ends before `start`
                    return b""
                raise

        return self._ask("reading", key, read)

    def download(self, key: str, path: Path) -> None:
        subject = f"{self.name}/{key}"
        with told_of_disk("downloading", subject, Path(path).parent), staged(Path(path)) as part:
            read_soundly(
                lambda: self._download_once(key, part),
                lambda digest: digest and _require_digest(subject, sha256_of(part), digest),
                lambda _: sha256_of(part),
                subject,
            )
            part.replace(path)

    def head(self, key: str) -> ObjectInfo | None:
        try:
            answer = self._ask("looking for", key, lambda: self._head(key))
        except MissingArtefactError:
            return None
        return ObjectInfo(key, answer["ContentLength"], _tag_of(answer), answer.get("LastModified"))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Markers of folders (no bytes, a key that ends with a slash), as consoles make them, are no objects."""
        for page in self._pages("list_objects_v2", "listing", prefix, {"ContinuationToken": "NextContinuationToken"}):
            for item in page.get("Contents", []):
                if item["Size"] or not item["Key"].endswith("/"):
                    yield ObjectInfo(item["Key"], item["Size"], _tag_of(item), item.get("LastModified"))

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._ask("deleting", key, lambda key=key: self.client.delete_object(Bucket=self.bucket, Key=key))

    def clock(self) -> datetime | None:
        answer = self._ask(
            "asking for the time",
            "",
            lambda: self.client.list_objects_v2(Bucket=self.bucket, Prefix=".curvas-clock/", MaxKeys=1),
        )
        try:
            said = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
        except (KeyError, ValueError):
            return None
        return said if said.tzinfo else said.replace(tzinfo=UTC)

    def unfinished_uploads(self, prefix: str) -> Iterator[UnfinishedUpload]:
        follow = {"KeyMarker": "NextKeyMarker", "UploadIdMarker": "NextUploadIdMarker"}
        for page in self._pages("list_multipart_uploads", "listing unfinished uploads", prefix, follow):
            for item in page.get("Uploads", []):
                if item["Key"].startswith(prefix):  # not every store sorts them out
                    yield UnfinishedUpload(item["Key"], item["UploadId"], item["Initiated"])

    def give_up(self, upload: UnfinishedUpload) -> None:
        def give_up() -> None:
            try:
                self.client.abort_multipart_upload(Bucket=self.bucket, Key=upload.key, UploadId=upload.id)
            except ClientError as error:
                if status_of(error) != 404:
                    raise

        self._ask("giving up the upload of", upload.key, give_up)

    def _pages(self, operation: str, action: str, prefix: str, follow: dict[str, str]) -> Iterator[dict[str, Any]]:
        """Pages of a listing, each requested by itself. `follow`: argument of the next request → field of the last
        answer.
        """

        def page(after: dict[str, str]) -> dict[str, Any]:
            answer = getattr(self.client, operation)(Bucket=self.bucket, Prefix=prefix, **after)
            following = {name: answer[value] for name, value in follow.items() if answer.get(value)}
            if not answer.keys() & _OF_A_LISTING or (
                answer.get("IsTruncated") and (not following or following == after)
            ):
                raise ResponseParserError("no listing of a bucket")
            return answer

        after: dict[str, str] = {}
        while True:
            answer = self._ask(action, prefix, lambda after=after: page(after))
            yield answer
            if not answer.get("IsTruncated"):
                return
            after = {name: answer[value] for name, value in follow.items() if answer.get(value)}

    def _upload_in_parts(self, key: str, path: Path, size: int, digest: str) -> None:
        """Upload in parts. Parts that arrived are kept: after an outage, only missing ones are sent again."""
        try:
            self._send_parts(key, path, size, digest)
        except _UploadGoneError:  # the store has forgotten it, or somebody gave it up
            self._send_parts(key, path, size, digest)

    def _send_parts(self, key: str, path: Path, size: int, digest: str) -> None:
        target: dict[str, Any] = {"Bucket": self.bucket, "Key": key}
        begun = self._ask(
            "uploading", key, lambda: self.client.create_multipart_upload(**target, Metadata={DIGEST: digest})
        )
        upload, step, stop = begun["UploadId"], part_bytes(size), threading.Event()

        def send(number: int) -> dict[str, Any]:
            def part() -> dict[str, Any]:
                with path.open("rb") as file:
                    file.seek((number - 1) * step)
                    content = file.read(step)
                answer = self._of_upload(
                    key,
                    lambda: self.client.upload_part(**target, UploadId=upload, PartNumber=number, Body=content),
                )
                checksums = {name: value for name, value in answer.items() if name.startswith("Checksum")}
                checksums.pop("ChecksumType", None)
                return {"PartNumber": number, "ETag": answer["ETag"], **checksums}

            return self._ask("uploading", key, part, stop)

        attempts = count(1)

        def complete() -> None:
            attempt = next(attempts)
            try:
                self._of_upload(
                    key,
                    lambda: self.client.complete_multipart_upload(
                        **target, UploadId=upload, MultipartUpload={"Parts": parts}
                    ),
                )
            except _UploadGoneError:
                if attempt == 1 or not self._is_stored(key, digest):  # not by the attempt whose answer was lost
                    raise

        try:
            parts = in_parallel(send, range(1, -(-size // step) + 1), stop)
            self._ask("uploading", key, complete)
        except BaseException:
            with suppress(Exception):  # if this fails, the job `sweep` removes the upload later
                self.client.abort_multipart_upload(**target, UploadId=upload)
            raise

    def _of_upload(self, key: str, ask: Callable[[], Answer]) -> Answer:
        """An answer about an upload in parts; an _UploadGoneError if the store knows none of that name."""
        try:
            return ask()
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") == "NoSuchUpload":
                refusal = explain(error, self._settings())
                raise _UploadGoneError(
                    "uploading", f"{self.name}/{key}", refusal.found, refusal.remedy, may_retry=True
                ) from error
            raise

    def _download_once(self, key: str, path: Path) -> str | None:
        """The content into a file, in parts if it is large; the digest that was written with it."""
        for _ in range(READINGS):
            head = self._ask("downloading", key, lambda: self._head(key))
            if self._fill(key, path, head):
                return _digest_of(head)
        raise StorageError(
            "downloading",
            f"{self.name}/{key}",
            f"it was replaced {READINGS} times while it was read",
            "Try again.",
            may_retry=True,
        )

    def _fill(self, key: str, path: Path, head: dict[str, Any]) -> bool:
        """Whether all parts were of the object that `head` describes, and not of one that took its place."""
        size, step, stop = int(head["ContentLength"]), part_bytes(int(head["ContentLength"])), threading.Event()
        with path.open("wb") as file:
            file.truncate(size)

            def fetch(start: int) -> bool:
                length = min(step, size - start)
                asked = {} if length == size else {"Range": f"bytes={start}-{start + length - 1}"}
                content, answer = self._ask("downloading", key, lambda: self._body(key, **asked), stop)
                if _tag_of(answer) != _tag_of(head):
                    return False
                if len(content) != length:
                    raise StorageError(
                        "downloading",
                        f"{self.name}/{key}",
                        f"{len(content)} bytes were sent, {length} asked for",
                        "Try again; if it goes on, look for a proxy that changes what passes.",
                        may_retry=True,
                    )
                rest = memoryview(content)
                while rest:  # a disk that is nearly full takes a part
                    rest = rest[os.pwrite(file.fileno(), rest, start + length - len(rest)) :]
                return True

            return all(in_parallel(fetch, range(0, max(size, 1), step), stop))

    def _is_stored(self, key: str, digest: str) -> bool:
        """Whether an object with this digest is stored; asked when the answer to a request was lost."""
        try:
            return _digest_of(self.client.head_object(Bucket=self.bucket, Key=key)) == digest
        except ClientError as error:
            if status_of(error) == 404:
                return False
            raise

    def _body(self, key: str, **asked: str) -> tuple[bytes, dict[str, Any]]:
        """The content of an answer, and the answer. boto3 repeats a request without an answer, but not one whose answer
        broke off: this function does.
        """
        for attempt in range(READINGS):
            answer = self.client.get_object(Bucket=self.bucket, Key=key, **asked)
            try:
                return answer["Body"].read(), answer
            except (BotoCoreError, HTTPError):
                if attempt == READINGS - 1:
                    raise
                time.sleep(PAUSE_SECONDS * 2**attempt)
        raise AssertionError("not reached")

    def _head(self, key: str) -> dict[str, Any]:
        """The head of an object. A refused HEAD has no body, so a small GET then asks for the reason."""
        try:
            return self.client.head_object(Bucket=self.bucket, Key=key)
        except ClientError as error:
            if 400 <= status_of(error) < 500 and status_of(error) != 404:
                self.client.get_object(Bucket=self.bucket, Key=key, Range="bytes=0-0")["Body"].close()
                return self.client.head_object(
                    Bucket=self.bucket, Key=key
                )  # the cause has passed, or the GET is refused too
            raise

    def _ask(self, action: str, key: str, ask: Callable[[], Answer], stop: threading.Event | None = None) -> Answer:
        """What a request returns, after waiting for a store that is away; its failure is raised as one clear line."""

        def explained() -> Answer:
            with self._explained(action, key):
                return ask()

        return self.patience.hold(f"{action} {self.name}/{key}", explained, stop)

    @contextmanager
    def _explained(self, action: str, key: str) -> Generator[None]:
        """Turn any failure of the store into an error of ours, in one clear line."""
        try:
            yield
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code")
            if status_of(error) == 404 and (code == "NoSuchKey" or (code != "NoSuchBucket" and action in _READING)):
                raise _missing(self.name, key) from error
            raise self._error(action, key, explain(error, self._settings())) from error
        except _FAILURES as error:
            raise self._error(action, key, explain_failure(error, self._settings())) from error

    def _error(self, action: str, key: str, refusal: Refusal) -> StorageError:
        kind = StoreAwayError if refusal.away else StorageError
        return kind(action, f"{self.name}/{key}", refusal.found, refusal.remedy, may_retry=refusal.may_retry)

    def _settings(self) -> Asked:
        meta = self.client.meta
        return Asked(
            bucket=self.bucket,
            endpoint=str(meta.endpoint_url or ""),
            region=str(meta.region_name or ""),
            checksums=str(getattr(meta.config, "request_checksum_calculation", "") or ""),
        )


class _UploadGoneError(StorageError):
    """The store does not know the upload in parts any more."""


def bytes_below(objects: ObjectStore, prefix: str) -> int:
    """Bytes of all objects below a prefix."""
    return sum(item.size for item in objects.list(prefix))


def part_bytes(size: int) -> int:
    """The size of the parts in which a file of `size` bytes goes to the store."""
    step = PART_BYTES
    while size > step * MOST_PARTS:
        step *= 2
    return step


def in_parallel(work: Callable[[int], Answer], of: Iterable[int], stop: threading.Event) -> list[Answer]:
    """What `work` returns, in order, a few at a time; `stop` is set at the first failure, so that none goes on waiting."""
    numbers = list(of)
    if len(numbers) == 1:
        return [work(numbers[0])]
    with ThreadPoolExecutor(PARTS_AT_ONCE, thread_name_prefix="curvas-parts") as pool:
        try:
            return list(pool.map(work, numbers))
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _tag_of(answer: dict[str, Any]) -> str:
    return answer.get("ETag", "").strip('"')


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
def staged(path: Path) -> Generator[Path]:
    """A temporary file beside `path`, removed unless it was renamed to it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)
