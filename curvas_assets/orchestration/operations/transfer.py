"""Moving files between a folder and the store: what is there already with the same content is not sent again."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from curvas_assets.storage.objects import PART_BYTES, ObjectInfo, part_bytes

PART = PART_BYTES
"""Above this size a file goes up in parts."""


def same_content(info: ObjectInfo | None, path: Path) -> bool:
    """Whether a stored object holds a file's bytes, by size and the store's own checksum, without fetching it.

    An S3 tag is the MD5 of the content, or, for an upload in parts, the MD5 of the parts' MD5s. A tag of another kind
    (server-side encryption, other part sizes) counts as different: the file is sent again, which costs time but is
    always correct.
    """
    if info is None or info.size != path.stat().st_size:
        return False
    return info.tag == (_md5(path) if "-" not in info.tag else _md5_of_parts(path))


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _md5_of_parts(path: Path) -> str:
    step = part_bytes(path.stat().st_size)
    digests = [hashlib.md5(part, usedforsecurity=False).digest() for part in _parts(path, step)]
    return f"{hashlib.md5(b''.join(digests), usedforsecurity=False).hexdigest()}-{len(digests)}"


def _parts(path: Path, step: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        while part := file.read(step):
            yield part


def total(sizes: Iterable[int]) -> str:
    """`3 files, 1.2 GB`."""
    listed = list(sizes)
    return f"{len(listed)} file{'' if len(listed) == 1 else 's'}, {human_bytes(sum(listed))}"


def human_bytes(count: float) -> str:
    """`0 B`, `12.3 MB`: powers of 1000, as stores bill them.

    >>> human_bytes(12_345_678)
    '12.3 MB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
