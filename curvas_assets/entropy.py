# numba infers the types of its functions:
# pyright: reportMissingParameterType=false
"""Entropies for numba's kernels: the term that each one sums, and the split of an ensemble's entropy.

H(mean p) = [H(mean p) − mean H(p)] + mean H(p): predictive entropy = mutual information (epistemic) + expected entropy
(aleatoric), in nats per voxel, over the members of an ensemble (Kendall & Gal 2017; Depeweg et al. 2018).
"""

import numpy as np
import numpy.typing as npt
from numba import njit

NEAR_ONE = 0.99
LEAST = 1e-13
"""Smaller probabilities have the term 0 (it would be below 3e-12 nats)."""


@njit(cache=True, nogil=True, inline="always")
def logarithm(p):
    """Natural logarithm of p with a relative error of 1e-8, for p from 1e-37 to 1. It is computed from exponent and
    mantissa by the series of 2 artanh, so that loops over it are vectorised.
    """
    exponent = (np.float32(p).view(np.int32) - np.int32(0x3F3504F3)) >> np.int32(23)
    m = p * np.float64(np.int32((np.int32(127) - exponent) << np.int32(23)).view(np.float32))  # p / 2ᵉ, from √½ to √2
    s = (m - 1.0) / (m + 1.0)
    q = s * s
    return (
        2.0 * s * (1.0 + q * (1 / 3 + q * (1 / 5 + q * (1 / 7 + q * (1 / 9 + q / 11))))) + exponent * 0.6931471805599453
    )


@njit(cache=True, nogil=True, inline="always")
def entropy_term(p):
    """−p ln p in nats, relative error 1e-7; 0 at p = 0 and from p = 1 on. Near 1 by a series in 1 − p: exact and
    fast.
    """
    if p >= NEAR_ONE:
        return entropy_near_one(p)
    return entropy_of_small(p)


@njit(cache=True, nogil=True, inline="always")
def entropy_near_one(p):
    """The same from 0.99 on."""
    s = max(1.0 - p, 0.0)
    return s * (1.0 - s * (1 / 2 + s * (1 / 6 + s * (1 / 12 + s * (1 / 20 + s / 30)))))


@njit(cache=True, nogil=True, inline="always")
def entropy_of_small(p):
    """The same below 0.99."""
    term = -p * logarithm(p)
    return term if p > LEAST else 0.0


@njit(cache=True, nogil=True)
def entropy_terms(p: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """−p ln p of each p."""
    out = np.empty_like(p)
    for i in range(p.size):
        out[i] = entropy_term(p[i])
    return out


@njit(cache=True, nogil=True, inline="always")
def divided(predictive, expected):
    """Expected entropy and mutual information (nats) of a voxel's predictive entropy and its members' mean entropy.

    Rounding can put the mean above the predictive entropy, its upper limit; it is then set to that, and the rest to 0.
    """
    own = min(expected, predictive)
    return own, predictive - own
