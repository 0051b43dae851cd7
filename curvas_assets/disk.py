"""Reports a full disk as such: the libraries that write for us use their own words, some without an error number.

This module knows how nnU-Net's libraries (torch, blosc2, SimpleITK, nibabel) fail when they cannot write. If the
message says nothing (blosc2: "Error while creating the NDArray"), it tries to write a small file.
"""

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from curvas_assets.errors import CurvasError, DiskError, SegmentationError

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""No space, a quota, a limit on the size of files."""
WORDS = (
    "no space left on device",
    "disk quota exceeded",
    "file too large",
    "unexpected pos",  # torch.save: [enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0
    "pytorchstreamwriter failed writing",
    "iostream error",
    "file write failed",
)
TRIED_BYTES = 1 << 20
"""If this much cannot be written, an unexplained failure is blamed on the disk. Free space does not show quotas."""


def is_full(error: BaseException, folder: Path) -> bool:
    """Whether an error, or one of its causes, means that nothing more can be written below a folder."""
    for link in _chain(error):
        if isinstance(link, OSError) and link.errno in FULL:
            return True
        if any(words in str(link).lower() for words in WORDS):
            return True
    if isinstance(error, CurvasError) and error.__cause__ is None:  # our own finding, not a library's failure
        return False
    return not _takes_more(folder)


def full(
    attempted: str, subject: str, folder: Path, error: BaseException, needed_bytes: int | None = None
) -> DiskError:
    """The error that tells of a full disk.

    Args:
        attempted: what was being done.
        subject: for whom.
        folder: where.
        error: what was raised.
        needed_bytes: what the work needs there in all, about.
    """
    free, origin = _free_bytes(folder), _chain(error)[-1]
    need = "" if needed_bytes is None else f"the work needs about {_size(needed_bytes)} there, "
    left = "how much is free is unknown" if free is None else f"{_size(free)} are free"
    return DiskError(
        attempted,
        subject,
        f"the disk of {folder} is full, or a quota on it is used up: {need}{left} "
        f"({type(origin).__name__}: {' '.join(str(origin).split())[:120]})",
        "Free space there or point CURVAS_SCRATCH to a larger disk, then launch again; what is stored already is kept.",
    )


@contextmanager
def told_of_disk(
    attempted: str, subject: str, folder: Path, needed_bytes: Callable[[], int | None] = lambda: None
) -> Generator[None]:
    """Raise a block's failures that come from a full disk as the error of `full`; other failures pass.

    Args:
        attempted: what is being done.
        subject: for whom.
        folder: where it writes.
        needed_bytes: asked when the disk is full: what the work needs there in all, about; None if it cannot tell.

    Raises:
        DiskError: the disk is full.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, CurvasError) and not isinstance(error, SegmentationError):
            raise  # an error of a store, or already a report of a full disk
        if not is_full(error, folder):
            raise
        raise full(attempted, subject, folder, error, needed_bytes()) from error


def _chain(error: BaseException) -> list[BaseException]:
    """An error and what it came from, the origin last."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    return chain


def _takes_more(folder: Path) -> bool:
    """Whether a small file can still be written below a folder."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\1" * TRIED_BYTES)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno not in FULL
    return True


def _free_bytes(folder: Path) -> int | None:
    """Free bytes on the disk of a folder, or of its nearest existing parent."""
    for place in (folder, *folder.absolute().parents):
        try:
            return shutil.disk_usage(place).free
        except OSError:
            continue
    return None


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
