"""Ensures that what is read is what was written: artefacts contain digests, and are read again if these do not match.

A store need not keep checksums, and a connection may damage what passes. So records and tables contain their own
SHA-256, in a place that other readers of JSON and Parquet skip. Older artefacts have none and are read without a check.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from curvas_assets.errors import CorruptArtefactError, StorageError

Content = TypeVar("Content")
Value = TypeVar("Value")

READINGS = 3
"""How often an object is read before its damage is reported."""
RECORD_DIGEST = "record_sha256"
TABLE_DIGEST = b"curvas table sha256:"
"""Stands before the digest of a table, between its last page and its footer, where no reader of Parquet looks."""
DIGEST_BYTES = 32


def read_soundly(
    read: Callable[[], Content], verify: Callable[[Content], Value], fingerprint: Callable[[Content], str], subject: str
) -> Value:
    """The result of `verify` on what `read` returns; damaged content is read again.

    Args:
        read: fetches the content once.
        verify: raises a CorruptArtefactError if the content is not what was written.
        fingerprint: distinguishes two contents.
        subject: of the error.

    Raises:
        CorruptArtefactError: every reading gave the same damaged content, so that is what is stored.
        StorageError: the readings differ, so it is the transfer that damages them; may be tried again.
    """
    seen: set[str] = set()
    failure: CorruptArtefactError | None = None
    for _ in range(READINGS):
        content = read()
        try:
            return verify(content)
        except CorruptArtefactError as error:
            failure = error
            seen.add(fingerprint(content))
    assert failure is not None
    if len(seen) == 1:
        raise failure
    raise StorageError(
        "reading",
        subject,
        f"{READINGS} readings gave {len(seen)} different contents, none as it was written",
        "The way to the store damages what passes. Try again; if it goes on, look at proxies and network.",
        may_retry=True,
    ) from failure


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, read in blocks."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_bytes(content: bytes | bytearray | memoryview) -> str:
    """SHA-256 of bytes."""
    return hashlib.sha256(content).hexdigest()


# Records -------------------------------------------------------------------------------------------------------------


def record_text(record: dict[str, Any]) -> bytes:
    """A record of plain values as JSON with sorted keys: the bytes that its digest covers."""
    return json.dumps(record, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False).encode()


def seal_record(record: dict[str, Any], place: str | None = None) -> bytes:
    """A record as JSON that holds its own digest.

    Args:
        record: plain values; they do not change.
        place: the key of the inner record that takes the digest; None takes the record itself.

    Returns:
        JSON that ends with a line break, which tells `open_record` to expect a digest.
    """
    digest = {RECORD_DIGEST: sha256_of_bytes(record_text(record))}
    if place is None:
        return record_text({**record, **digest}) + b"\n"
    return record_text({**record, place: {**record[place], **digest}}) + b"\n"


def open_record(content: bytes, place: str | None = None) -> dict[str, Any]:
    """The record in JSON that `seal_record` made, without its digest; older JSON is returned as it is.

    Raises:
        ValueError: it is no JSON, holds something else, or is not what was written.
    """
    try:
        record = json.loads(content)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    if not isinstance(record, dict):
        raise ValueError(f"it holds a {type(record).__name__}")
    holder = record if place is None else record.get(place)
    digest = holder.pop(RECORD_DIGEST, None) if isinstance(holder, dict) else None
    if digest is None and content.endswith(b"}"):
        return record
    if digest != sha256_of_bytes(record_text(record)):
        raise ValueError("it is not what its SHA-256 says")
    return record


# Tables --------------------------------------------------------------------------------------------------------------


def seal_table(content: bytes) -> bytes:
    """A Parquet file with its own digest between its last page and its footer. Offsets in it count from its beginning."""
    begin = _footer(content)
    digest = hashlib.sha256(content).digest()
    return b"".join((content[:begin], TABLE_DIGEST, digest, content[begin:]))


def opened_table(content: bytes) -> bytes:
    """The Parquet file that was sealed; an older, unsealed one as it is.

    Raises:
        ValueError: it is not what was written.
    """
    at = content.rfind(TABLE_DIGEST)
    if at < 0:
        return content
    after = at + len(TABLE_DIGEST) + DIGEST_BYTES
    plain = content[:at] + content[after:]
    if hashlib.sha256(plain).digest() != content[after - DIGEST_BYTES : after]:
        raise ValueError("it is not what its SHA-256 says")
    return plain


def _footer(content: bytes) -> int:
    """Where a Parquet file's footer begins: its length stands before the last four bytes."""
    return len(content) - 8 - int.from_bytes(content[-8:-4], "little")
