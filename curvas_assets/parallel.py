"""One lock around numba's parallel kernels: two Python threads in one at once would end the process (workqueue layer)."""

import threading

PARALLEL = threading.Lock()
"""Held while a `@njit(parallel=True)` kernel runs."""
