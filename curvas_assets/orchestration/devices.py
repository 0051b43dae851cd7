"""One GPU, one step: devices are leased by lock files, below Dagster's pool.

The pool `gpu` queues steps and shows them in the UI. With SQLite it is not exclusive: Dagster reads a free slot and then
claims it, and two runs that do so within a millisecond both get it. A lease is an exclusive `flock`, which the kernel
gives to one process and takes back when that process ends, however it ends. It also says which device a step may see.
"""

import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from curvas_assets.orchestration.environment import deployment

VISIBLE = "CUDA_VISIBLE_DEVICES"
POLL_SECONDS = 0.2
TELL_EVERY_SECONDS = 60

_seen_by_this_process: str | None = None
"""CUDA keeps the devices it found at its first call, so a process stays with the one it was given first."""


@contextmanager
def leased_device(
    tell: Callable[[str], None], devices: Sequence[str] | None = None, folder: Path | None = None
) -> Generator[str | None]:
    """Wait for a device, hold it alone until the block ends, and let this process see no other.

    Args:
        tell: told when the wait begins, and each minute.
        devices: names to choose from, as `CUDA_VISIBLE_DEVICES` takes them; those of the deployment if not given.
        folder: where the lock files are; the deployment's scratch if not given. All users of a device must share it.

    Yields:
        The device's name; None on a machine without any, where nothing is locked.
    """
    global _seen_by_this_process
    names = deployment().device_names() if devices is None else devices
    if not names:
        yield None
        return
    locks = (folder or deployment().scratch_folder() or Path(tempfile.gettempdir())) / "curvas-devices"
    locks.mkdir(parents=True, exist_ok=True)
    candidates = [_seen_by_this_process] if _seen_by_this_process in names else names
    with ExitStack() as held:
        name = _first_free(held, [str(name) for name in candidates], locks, tell)
        before = os.environ.get(VISIBLE)
        os.environ[VISIBLE] = _seen_by_this_process = name
        try:
            yield name
        finally:
            if before is None:
                os.environ.pop(VISIBLE, None)
            else:
                os.environ[VISIBLE] = before


def _first_free(held: ExitStack, names: Sequence[str], locks: Path, tell: Callable[[str], None]) -> str:
    start = told = None
    while True:
        for name in names:
            lock = (locks / f"{name}.lock").open("a")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.close()
            else:
                held.enter_context(lock)
                return name
        now = time.monotonic()
        start = start or now
        if told is None or now - told > TELL_EVERY_SECONDS:
            tell(f"waiting for a device, all of {', '.join(names)} are in use ({now - start:.0f} s so far)")
            told = now
        time.sleep(POLL_SECONDS)
