# numba infers the types of its functions:
# pyright: reportMissingParameterType=false
"""What the codes of a stored softmax mean: the contract between those who write volumes and all who read them.

A voxel stores a 16-bit code for each foreground class; the background is not stored, it is what the foreground leaves of 1.
A code is an index into an ascending table of probabilities, the `levels`: code 0 is the probability 0. Where two classes are
equally probable, the lower one is the voxel's label. Turning probabilities into codes is the business of `storage.encoding`.
"""

from functools import cache

import numpy as np
import numpy.typing as npt
from numba import njit

from curvas_assets.entropy import entropy_terms

Codes = npt.NDArray[np.uint16]
Levels = npt.NDArray[np.float64]
NOTHING = 0
"""The code of the probability 0."""
DEPTH = 16
"""Slices of a chunk of a stored volume: a part of its format. Whatever streams beside volumes comes in slabs of as many."""
STEPS = 1 << 15
"""Between the logarithmic ends, neighbouring levels differ by 1 / STEPS."""
LEAST_FOREGROUND = 2.0**-24
"""If the foreground sums to less than this, the background is exactly 1, as in a float32 softmax."""
FIRST_DECADE = -30
DECADES = (*(1,) * 30, 8, 8, 16, 28)
"""Levels per decade of p / 2⁻²⁴, starting at the smallest p that float32 holds. They are few where the background is 1
anyway and only an organ's own rank is kept, then enough to keep the areas under a trained network's risk–coverage
curves within half a percent. The last ratio continues until the gap between levels is a step."""
MOST_FOREGROUND = 1.0 + 2.0**-22
"""Largest sum of a foreground, as in a float32 softmax: an organ of exactly 1 stays 1 beside organs of 1e-8."""


@cache
def tail() -> tuple[float, ...]:
    """The logarithmic levels near 0, ascending to a whole number of steps; near 1 they are mirrored (1 − level)."""
    values = [
        LEAST_FOREGROUND * 10.0 ** (decade + i / count)
        for decade, count in enumerate(DECADES, FIRST_DECADE)
        for i in range(count)
    ]
    ratio = 10.0 ** (1 / DECADES[-1])
    while values[-1] * (ratio - 1) < 1 / STEPS:
        values.append(values[-1] * ratio)
    last = np.ceil(values[-1] * STEPS) / STEPS
    return (*(float(np.float32(v)) for v in values[:-1]), float(last))


def levels_of(ends: npt.ArrayLike, steps: int) -> Levels:
    """All levels, ascending from 0 to 1, from the two attributes that define a format's levels: `tail` and `steps`."""
    small = np.asarray(ends, np.float64)
    first = round(small[-1] * steps)
    middle = np.arange(first + 1, steps - first) / steps
    return np.unique(np.concatenate([[0.0], small, middle, 1 - small, [1.0]]).astype(np.float32)).astype(np.float64)


def linear_levels(codes: int = 65536) -> Levels:
    """The levels of the first format: p = code / 65535."""
    return np.arange(codes) / (codes - 1)


def entropy_of_codes(levels: Levels) -> npt.NDArray[np.float64]:
    """−p ln p in nats of each code's probability p, so that kernels look an entropy up instead of computing it."""
    return entropy_terms(levels)


@njit(cache=True, nogil=True, inline="always")
def background_of(foreground):
    """The part of 1 that a voxel's foreground leaves; `encoding` and its readers share this rule."""
    if foreground < LEAST_FOREGROUND:
        return 1.0
    return max(1.0 - foreground, 0.0)


@njit(cache=True, nogil=True, inline="always")
def leads(p, most):
    """Whether a class of probability p beats every lower class; `most` is their largest probability."""
    return p > most


@njit(cache=True, nogil=True, inline="always")
def winner(code, levels):
    """Most probable class of one voxel, in float32 as it is decoded, and the sum of the foreground."""
    foreground = 0.0
    for c in range(code.size):
        foreground += levels[code[c]]
    best, most = 0, np.float32(background_of(foreground))
    for c in range(code.size):
        value = np.float32(levels[code[c]])
        if leads(value, most):
            best, most = c + 1, value
    return best, foreground
