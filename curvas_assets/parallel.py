"""One lock for numba's parallel kernels: two Python threads in kernels at once crash the process (workqueue layer)."""

import threading

PARALLEL = threading.Lock()
"""Held while a `@njit(parallel=True)` kernel runs."""
