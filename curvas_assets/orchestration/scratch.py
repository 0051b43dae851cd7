"""Disk space for steps: limited, reserved before the work begins, and always released.

Each step holds a folder of its own below `CURVAS_SCRATCH`, and a lock on it that the kernel takes back when the process
ends. The next step removes the folders of dead steps. Space that was promised to live steps counts as used, so two
steps are never promised the same free space. How much a step needs is known from the store, before anything is fetched.
"""

import fcntl
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from curvas_assets.errors import DiskError
from curvas_assets.orchestration.environment import deployment, variable

PREFIX = "curvas-step-"
RESERVE_BYTES = 1 << 30
"""Kept free beside what a step needs: small files of every step, and the machine's own."""


@contextmanager
def scratch_space(subject: str, needed_bytes: int = 0) -> Generator[Path]:
    """A folder to work in. It is removed when the block ends, or by the next step if this process is killed.

    Args:
        subject: the patient, model or dataset it is for, as the error names it.
        needed_bytes: what the work will put there.

    Raises:
        DiskError: there is no room; nothing has been done yet.
    """
    root = deployment().scratch_folder() or Path(tempfile.gettempdir())
    with (root / f"{PREFIX}admission").open("a") as admission:
        fcntl.flock(admission, fcntl.LOCK_EX)
        promised = _sweep(root)
        _make_sure_of_room(root, subject, needed_bytes, promised)
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=root))
        lock = _lock_of(folder).open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write(str(needed_bytes))
        lock.flush()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _lock_of(folder).unlink(missing_ok=True)
        lock.close()


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def _sweep(root: Path) -> int:
    """Remove what dead steps left; return the bytes that live steps were promised and have not used yet."""
    promised = 0
    for folder in root.glob(f"{PREFIX}*"):
        if not folder.is_dir():
            continue
        try:
            with _lock_of(folder).open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
                _lock_of(folder).unlink(missing_ok=True)
        except BlockingIOError:
            promised += max(0, int(_lock_of(folder).read_text() or 0) - _used(folder))
        except FileNotFoundError:  # the step has just ended by itself
            continue
    return promised


def _make_sure_of_room(root: Path, subject: str, needed: int, promised: int) -> None:
    used = sum(_used(folder) for folder in root.glob(f"{PREFIX}*") if folder.is_dir())
    free = shutil.disk_usage(root).free - RESERVE_BYTES - promised
    most_gib = deployment().scratch_gib
    allowed = most_gib * 2**30 - used - promised
    if needed <= min(free, allowed):
        return
    what = "free" if free <= allowed else f"left of {variable('scratch_gib')}={most_gib:g}"
    raise DiskError(
        f"making room in {root}",
        subject,
        f"{needed / 2**30:.1f} GiB are needed, {max(0, min(free, allowed)) / 2**30:.1f} GiB are {what} "
        f"({RESERVE_BYTES / 2**30:g} GiB is kept in reserve)",
        f"Free space, point {variable('scratch')} to a larger disk, or raise {variable('scratch_gib')}.",
        may_retry=bool(used or promised),  # other steps release space when they end
    )


def _used(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_size
        except FileNotFoundError:  # removed meanwhile
            continue
    return total
