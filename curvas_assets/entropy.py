"""The one term that every entropy here is a sum of, for numba's kernels."""

import numpy as np
import numpy.typing as npt
from numba import njit

NEAR_ONE = 0.99


@njit(cache=True, nogil=True, inline="always")
def entropy_term(p):
    """−p ln p in nats; 0 at 0 and from 1 on. Near 1 by its series in 1 − p, which is exact to 1e-13 and a fifth of log's time."""
    if p >= NEAR_ONE:
        s = max(1.0 - p, 0.0)
        return s * (1.0 - s * (1 / 2 + s * (1 / 6 + s * (1 / 12 + s * (1 / 20 + s / 30)))))
    return -p * np.log(p) if p > 0.0 else 0.0


@njit(cache=True, nogil=True)
def entropy_terms(p: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """−p ln p of each p."""
    out = np.empty_like(p)
    for i in range(p.size):
        out[i] = entropy_term(p[i])
    return out
