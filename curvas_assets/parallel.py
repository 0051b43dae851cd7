"""What threads of this process share: a lock for numba's parallel kernels, and the machine's cores.

Two Python threads in parallel kernels at once crash the process (workqueue layer).
"""

import threading

PARALLEL = threading.Lock()
"""Held while a `@njit(parallel=True)` kernel runs."""


def usable_cores() -> int:
    """Cores that this process may use, by its affinity and its container's share of time."""
    from joblib import cpu_count  # of scikit-learn; os.cpu_count knows the machine alone

    return int(cpu_count())
