"""How often each of many values occurs, in memory for the distinct values alone."""

import threading

import numpy as np
import numpy.typing as npt

FOLD = 1 << 18
"""Notes that are kept at least before they are counted: a megabyte, of each of some fifty that a patient needs."""

Values = npt.NDArray[np.int32]
Times = npt.NDArray[np.uint32]


class Occurrences:
    """Notes of values, counted whenever there are more of them than distinct values so far. Threads may note side by side."""

    def __init__(self) -> None:
        self._counted: tuple[Values, Times] = np.zeros(0, np.int32), np.zeros(0, np.uint32)
        self._notes: list[Values] = []
        self._pending = 0
        self._lock = threading.Lock()

    def add(self, values: Values) -> None:
        """Note values int32 (N,), which are copied."""
        if not values.size:
            return
        with self._lock:
            self._notes.append(values.copy())
            self._pending += values.size
            if self._pending > max(FOLD, self._counted[0].size):
                self._fold()

    def counted(self) -> tuple[Values, npt.NDArray[np.int64]]:
        """The distinct values, ascending, and how often each was noted."""
        with self._lock:
            self._fold()
            values, times = self._counted
            return values, times.astype(np.int64)

    def _fold(self) -> None:
        if not self._notes:
            return
        values, counts = np.unique(np.concatenate(self._notes), return_counts=True)
        times = counts.astype(np.uint32)  # a region has no more voxels than that
        self._notes, self._pending = [], 0
        known, before = self._counted
        if known.size:
            merged = np.union1d(known, values)
            total = np.zeros(merged.size, np.uint32)
            total[np.searchsorted(merged, known)] = before
            total[np.searchsorted(merged, values)] += times
            values, times = merged, total
        self._counted = values, times
