"""What a piece of work used: seconds, bytes from and to the store, peak memory. The ledger's raw entries.

`ru_maxrss` is the peak of a process since it began, so a small partition after a large one would show the memory of the
large one. Linux can reset the peak (`VmHWM`); where this is not possible, memory is sampled.
"""

import threading
import time
from functools import cache
from pathlib import Path
from typing import Any

from curvas_assets.storage.metering import MeteredObjects

SAMPLE_SECONDS = 0.05
STATUS = Path("/proc/self/status")
RESET = Path("/proc/self/clear_refs")
MARK_BACK = "5"
"""Writing this to `clear_refs` resets the peak to the memory held now (proc(5)), and changes nothing else."""


class Usage:
    """Seconds, bytes and memory of this process since the last lap. Its child processes do not count.

    Args:
        objects: the store whose bytes are counted; None counts none.
    """

    def __init__(self, objects: MeteredObjects | None = None):
        self.objects = objects
        self.memory = PeakMemory()
        self.begin = time.monotonic()
        self.restart()

    @property
    def elapsed(self) -> float:
        """Seconds since this was made."""
        return time.monotonic() - self.begin

    def restart(self) -> None:
        """Count from here."""
        self.last = time.monotonic()
        self.down, self.up = self._bytes()
        self.memory.restart()

    def lap(self) -> dict[str, Any]:
        """Return the metadata of what was made since the last lap, and start the next lap."""
        down, up = self._bytes()
        lap = {
            "seconds": round(time.monotonic() - self.last, 3),
            "bytes_down": down - self.down,
            "bytes_up": up - self.up,
            "peak_memory_mib": round(self.memory.peak() / 2**20, 1),
        }
        self.restart()
        return lap

    def _bytes(self) -> tuple[int, int]:
        return (self.objects.bytes_down, self.objects.bytes_up) if self.objects else (0, 0)


class PeakMemory:
    """The most memory this process held since the last `restart` of any of these, bytes (resident set)."""

    def __init__(self) -> None:
        self._sampler: _Sampler | None = None
        self.restart()

    def restart(self) -> None:
        if self._sampler is None:
            try:
                RESET.write_text(MARK_BACK)
                return
            except OSError:  # macOS; or a container that mounts /proc read-only
                self._sampler = _sampler()
        self._sampler.restart()

    def peak(self) -> int:
        if self._sampler is not None:
            return self._sampler.peak()
        mark = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(mark.split()[1]) * 1024


@cache
def _sampler() -> "_Sampler":
    return _Sampler()


class _Sampler:
    """The resident set, looked at twenty times a second by a thread that ends with the process."""

    def __init__(self) -> None:
        import psutil

        self._process = psutil.Process()
        self._highest = 0
        threading.Thread(target=self._watch, name="curvas-memory", daemon=True).start()

    def restart(self) -> None:
        self._highest = 0

    def peak(self) -> int:
        self._look()
        return self._highest

    def _look(self) -> None:
        self._highest = max(self._highest, self._process.memory_info().rss)

    def _watch(self) -> None:
        while True:
            self._look()
            time.sleep(SAMPLE_SECONDS)
