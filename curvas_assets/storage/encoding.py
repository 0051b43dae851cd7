# numba infers the types of its functions:
# pyright: reportMissingParameterType=false
"""Probabilities as codes and back: the arithmetic of the softmax format, on slabs in memory.

A code names one of some thousand probabilities, the `levels`. They are dense and logarithmic near 0 and near 1, where a
trained network has nearly all its voxels and their order decides AUROC and AURC, and equally spaced between. The
foreground is coded class by class; the background is the rest to 1, so that near 1 it is as finely resolved as the
foreground near 0. A value is rounded to the level whose cell holds it. A level is the mean of its cell under a density
of 1/p, so sums and entropies of many voxels are preserved. The label map (argmax, the lowest class wins a tie) is
exactly that of the probabilities.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit, prange

from curvas_assets.codes import (
    LEAST_FOREGROUND,
    MOST_FOREGROUND,
    STEPS,
    Codes,
    Levels,
    background_of,
    leads,
    levels_of,
    tail,
    winner,
)
from curvas_assets.parallel import PARALLEL

SAFELY_BACKGROUND = 0.1
"""A foreground below this loses to the background, however it is rounded."""
MOST_OFF = 2e-4
"""How far the codes' sum may be from the foreground's, which the background takes up. Half a step of each organ adds up to it with
more than a dozen organs; then some are rounded the other way."""
UNIFORM = 1e-5
"""A sum this far from 1 is more than float32 rounding: such voxels are scaled."""


class EncodedSlab(NamedTuple):
    """A slab's codes and what was counted on the way.

    Args:
        codes: of the foreground, uint16 (C − 1, Z, Y, X).
        label_voxels: voxels of each class in the label map, background first.
        soft_voxels: sum of each foreground class's stored probability.
        foreground: voxels of any organ, by slice.
    """

    codes: Codes
    label_voxels: npt.NDArray[np.int64]
    soft_voxels: npt.NDArray[np.float64]
    foreground: npt.NDArray[np.int64]


def encode(softmax: npt.NDArray[np.floating]) -> EncodedSlab:
    """Codes of a slab's foreground, with its label map kept.

    Args:
        softmax: probabilities (C, Z, Y, X), background first; float16, float32 or float64. Negative values count as 0,
            and voxels whose sum is no rounding of 1 are scaled.
    """
    values = np.ascontiguousarray(softmax if softmax.dtype in (np.float32, np.float64) else softmax.astype(np.float32))
    classes, depth, height, width = values.shape
    codes = np.zeros((classes - 1, depth, height, width), np.uint16)
    label_voxels = np.zeros((depth, classes), np.int64)
    soft = np.zeros((depth, classes - 1))
    with PARALLEL:
        _encode(values, search_tables(), codes, label_voxels, soft)
    return EncodedSlab(codes, label_voxels.sum(axis=0), soft.sum(axis=0), label_voxels[:, 1:].sum(axis=1))


def settle(values: npt.NDArray[np.float32], labels: npt.NDArray[np.integer]) -> Codes:
    """Codes of single voxels, as `encode` gives them: for an encoder that rounds whole volumes and leaves these.

    Args:
        values: probabilities (C, n).
        labels: the most probable class of each, the lowest where two are equal.

    Returns:
        uint16 (C − 1, n).
    """
    codes = np.empty((len(values) - 1, values.shape[1]), np.uint16)
    _settle_each(np.ascontiguousarray(values.T), labels.astype(np.int64), search_tables(), codes)
    return codes


def decode(codes: Codes, levels: Levels) -> npt.NDArray[np.float32]:
    """Probabilities float32 (C, Z, Y, X) of foreground codes; the background is what is left, never below 0."""
    softmax = np.empty((codes.shape[0] + 1, *codes.shape[1:]), np.float32)
    decode_into(softmax, 0, codes, levels)
    return softmax


def decode_into(softmax: npt.NDArray[np.float32], z0: int, codes: Codes, levels: Levels) -> None:
    """The same into a larger volume (C, Z, Y, X), from slice z0 on."""
    with PARALLEL:
        _decode(np.ascontiguousarray(codes), levels, softmax, z0)


def labels_of(codes: Codes, levels: Levels) -> npt.NDArray[np.uint8]:
    """The label map (Z, Y, X) of foreground codes: the most probable class, the lowest wins a tie."""
    labels = np.empty(codes.shape[1:], np.uint8)
    with PARALLEL:
        _labels(np.ascontiguousarray(codes), levels, labels)
    return labels


def steps_of(codes: Codes) -> Codes:
    """Differences of neighbours along x modulo 2¹⁶, which compress better than codes. A rise by d becomes 2 d, a fall
    by d becomes 2 d − 1, so that small differences stay small.
    """
    steps = np.empty_like(codes)
    with PARALLEL:
        _steps(codes, steps)
    return steps


def codes_of(steps: Codes) -> Codes:
    """Codes from such differences, computed in place."""
    with PARALLEL:
        _codes(steps)
    return steps


def place_steps(steps: Codes, codes: Codes, row: int, column: int) -> None:
    """Codes of a tile of such differences, at its place; the tiles to the left of it must be there.

    Args:
        steps: (C − 1, z, y, x) of the tile; what lies beyond the codes' ends is left out.
        codes: (C − 1, Z, Y, X).
        row: of the tile's first row.
        column: of its first column.
    """
    _place_steps(steps, codes, row, column)


def _limits(levels: Levels) -> npt.NDArray[np.float64]:
    """Where the levels' cells end: at the logarithmic mean of two neighbouring levels (near 1, of their 1 − p).

    Every level is then nearly the mean of its cell under a density of 1/p. Between equal steps, cells end in the
    middle.
    """
    low, high = levels[:-1], levels[1:]

    def between(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        ratio = b / np.where(a > 0, a, b)
        return np.where(a > 0, (b - a) / np.log(np.where(ratio > 1, ratio, np.e)), b / 2)

    limits = np.where(high <= 0.5, between(low, high), 1 - between(1 - high, 1 - low))
    steps = np.isclose(high - low, 1 / STEPS)
    return np.where(steps, (low + high) / 2, limits)


class Search(NamedTuple):
    """Tables that find the code of a probability p: the levels; the limits of their cells; where the search starts, by
    the leading bits of p and of 1 − p; and the first of the equally spaced levels, with its code.
    """

    levels: Levels
    limits: npt.NDArray[np.float64]
    starts: npt.NDArray[np.int32]
    starts_near_one: npt.NDArray[np.int32]
    first_step: float
    first_code: int


@cache
def search_tables() -> Search:
    """The tables of this format, made once."""
    levels = levels_of(tail(), STEPS)
    limits = np.append(_limits(levels), np.inf)
    buckets = (np.arange((0x3F800000 >> 16) + 2, dtype=np.int64) << 16).astype(np.int32).view(np.float32).astype(float)

    def starts(values: npt.NDArray[np.float64]) -> npt.NDArray[np.int32]:
        return np.searchsorted(limits, values, side="right").astype(np.int32)

    near_one = np.maximum(starts(1 - np.append(buckets[1:], 1.0)) - 1, 0)
    first_step = tail()[-1]
    return Search(levels, limits, starts(buckets), near_one, first_step, int(np.searchsorted(levels, first_step)))


@njit(cache=True, nogil=True, inline="always")
def _bucket(x):
    """Leading bits of a float: sign, exponent and seven bits of mantissa. In the tail, no bucket has two limits."""
    return np.float32(x).view(np.int32) >> 16


@njit(cache=True, nogil=True, inline="always")
def _code(x, search):
    """The code whose cell holds x: how many limits x has reached."""
    if x < search.first_step:
        k = search.starts[_bucket(x)]
        return np.int64(k) + (search.limits[k] <= x)
    if x <= 1.0 - search.first_step:
        return search.first_code + np.int64((x - search.first_step) * STEPS + 0.5)
    k = np.int64(search.starts_near_one[_bucket(1.0 - min(x, 1.0))])
    while search.limits[k] <= x:
        k += 1
    return k


@njit(parallel=True, cache=True, nogil=True)
def _encode(p, search, codes, label_voxels, soft):
    """Row by row: the nearest levels of all voxels at once, then the few that need more, one by one."""
    classes, depth, height, width = p.shape
    for z in prange(depth):
        labels = np.empty(width, np.int32)
        foreground, coded = np.empty(width), np.empty(width)
        voxels = np.zeros(classes, np.int64)
        sums = np.zeros(classes - 1)
        x, code = np.empty(classes), np.empty(classes - 1, np.int64)
        for row in range(height):
            _winners(p, z, row, labels, foreground)
            _nearest(p, z, row, search, codes, coded)
            background = p[0, z, row]
            for i in range(width):
                voxels[labels[i]] += 1
                if _needs_more(background[i], labels[i], foreground[i], coded[i]):
                    for c in range(classes):
                        x[c] = max(np.float64(p[c, z, row, i]), 0.0)
                    _settle(x, labels[i], search, code)
                    for c in range(classes - 1):
                        codes[c, z, row, i] = code[c]
            for c in range(classes - 1):
                written, total = codes[c, z, row], 0.0
                for i in range(width):
                    total += search.levels[written[i]]
                sums[c] += total
        label_voxels[z] = voxels
        soft[z] = sums


@njit(cache=True, nogil=True)
def _winners(p, z, row, labels, foreground):
    """Of each voxel of a row: the most probable class, the lowest wins a tie, and the sum of its foreground."""
    most = p[0, z, row].copy()
    labels[:] = 0
    foreground[:] = 0.0
    for c in range(1, p.shape[0]):
        values = p[c, z, row]
        for i in range(values.size):
            value = values[i]
            foreground[i] += max(np.float64(value), 0.0)
            labels[i] = c if leads(value, most[i]) else labels[i]
            most[i] = max(most[i], value)


@njit(cache=True, nogil=True)
def _nearest(p, z, row, search, codes, coded):
    """For each voxel of a row: the codes of its foreground, each rounded by itself, and the sum of their levels."""
    coded[:] = 0.0
    for c in range(codes.shape[0]):
        values, out = p[c + 1, z, row], codes[c, z, row]
        for i in range(values.size):
            code = _code(max(np.float64(values[i]), 0.0), search)
            out[i] = code
            coded[i] += search.levels[code]


@njit(cache=True, nogil=True, inline="always")
def _needs_more(background, label, foreground, coded):
    """Whether codes rounded one by one may break a promise: on the sum, the winner, or a background of exactly 1."""
    certain = background >= np.float32(1.0)
    return (
        (label > 0)
        | (foreground > SAFELY_BACKGROUND)
        | (certain != (foreground < LEAST_FOREGROUND))
        | (certain != (coded < LEAST_FOREGROUND))
        | (abs(max(background, 0.0) + foreground - 1.0) > UNIFORM)
        | (abs(coded - foreground) > MOST_OFF)
    )


@njit(cache=True, nogil=True)
def _settle(x, label, search, code):
    """Codes of one voxel that keep the promises; `x` is scaled in its place if its sum is no rounding of 1."""
    total = x.sum()
    if abs(total - 1.0) > UNIFORM:
        x /= total
    foreground = x[1:].sum()
    # In a float32 softmax many backgrounds are exactly 1, and tied in every ranking: exactly these stay 1.
    certain = np.float32(x[0]) >= np.float32(1.0)
    scale = 1.0
    if label == 0 and foreground > 0.0 and certain != (foreground < LEAST_FOREGROUND):
        scale = (0.95 if certain else 1.0) * LEAST_FOREGROUND / foreground
    coded = 0.0
    for c in range(code.size):
        code[c] = _code(x[c + 1] * scale, search)
        coded += search.levels[code[c]]
    if label == 0 and foreground > 0.0 and certain != (coded < LEAST_FOREGROUND):
        _step_over(code, certain, search.levels)
    if abs(coded - scale * foreground) > MOST_OFF:
        _balance(code, x, search.levels)
    if label > 0 or foreground > SAFELY_BACKGROUND:
        _repair(code, label, search.levels)


@njit(cache=True, nogil=True)
def _settle_each(values, labels, search, codes):
    x, code = np.empty(values.shape[1]), np.empty(values.shape[1] - 1, np.int64)
    for i in range(values.shape[0]):
        for c in range(x.size):
            x[c] = max(np.float64(values[i, c]), 0.0)
        _settle(x, labels[i], search, code)
        for c in range(code.size):
            codes[c, i] = code[c]


@njit(cache=True, nogil=True)
def _repair(code, wanted, levels):
    """Move codes, a level at a time, until the wanted class wins and the foreground is no more than 1."""
    found, foreground = winner(code, levels)
    while found != wanted or foreground > MOST_FOREGROUND:
        if foreground > MOST_FOREGROUND:
            _lower(code, wanted, levels)
        elif found > 0:
            code[found - 1] -= 1
        else:
            code[wanted - 1] += 1
        found, foreground = winner(code, levels)


@njit(cache=True, nogil=True)
def _step_over(code, certain, levels):
    """Move codes, a level at a time, until the background is exactly 1 if it is `certain`, and less if not."""
    _, foreground = winner(code, levels)
    while certain != (foreground < LEAST_FOREGROUND):
        code[code.argmax()] += -1 if certain else 1
        _, foreground = winner(code, levels)


@njit(cache=True, nogil=True)
def _balance(code, x, levels):
    """Round organs the other way, those first that are farthest from their probability, until the sum is near enough."""
    off = 0.0
    for c in range(code.size):
        off += levels[code[c]] - x[c + 1]
    while abs(off) > MOST_OFF:
        way = 1 if off > 0 else -1
        farthest = 0
        for c in range(code.size):
            if way * (levels[code[c]] - x[c + 1]) > way * (levels[code[farthest]] - x[farthest + 1]):
                farthest = c
        before = levels[code[farthest]]
        code[farthest] -= way
        off += levels[code[farthest]] - before


@njit(cache=True, nogil=True)
def _lower(code, wanted, levels):
    """Lower the code of the largest losing class by one, or the winner's if all losing classes are small."""
    largest = -1
    for c in range(code.size):
        if c + 1 != wanted and (largest < 0 or code[c] > code[largest]):
            largest = c
    if wanted > 0 and (largest < 0 or levels[code[largest]] < 1e-3):
        largest = wanted - 1
    code[largest] -= 1


@njit(parallel=True, cache=True, nogil=True)
def _decode(codes, levels, softmax, z0):
    height, width = codes.shape[2], codes.shape[3]
    small = levels.astype(np.float32)  # exact, and half the cache
    for row in prange(codes.shape[1] * height):
        z, y = row // height, row % height
        foreground = np.zeros(width)
        for c in range(codes.shape[0]):
            line, out = codes[c, z, y], softmax[c + 1, z0 + z, y]
            for x in range(width):
                level = small[line[x]]
                out[x] = level
                foreground[x] += np.float64(level)
        background = softmax[0, z0 + z, y]
        for x in range(width):
            background[x] = background_of(foreground[x])


@njit(parallel=True, cache=True, nogil=True)
def _labels(codes, levels, labels):
    for z in prange(codes.shape[1]):
        code = np.empty(codes.shape[0], np.int64)
        for y in range(codes.shape[2]):
            for x in range(codes.shape[3]):
                for c in range(code.size):
                    code[c] = codes[c, z, y, x]
                labels[z, y, x] = winner(code, levels)[0]


@njit(parallel=True, cache=True, nogil=True)
def _steps(codes, steps):
    height = codes.shape[2]
    for row in prange(codes.shape[1] * height):
        z, y = row // height, row % height
        for c in range(codes.shape[0]):
            line, out = codes[c, z, y], steps[c, z, y]
            before = np.uint16(0)
            for x in range(line.size):
                rise = np.int16(
                    np.uint16(line[x] - before)
                )  # modulo 2¹⁶: from near 0 to near 1 is more than int16 holds
                out[x] = np.uint16((rise << 1) ^ (rise >> 15))
                before = line[x]


@njit(parallel=True, cache=True, nogil=True)
def _codes(steps):
    height = steps.shape[2]
    for row in prange(steps.shape[1] * height):
        z, y = row // height, row % height
        for c in range(steps.shape[0]):
            line = steps[c, z, y]
            for x in range(line.size):  # in 16 bits, modulo 2¹⁶: many at a time
                line[x] = (line[x] >> np.uint16(1)) ^ (np.uint16(0) - (line[x] & np.uint16(1)))
            code = np.uint16(0)
            for x in range(line.size):
                code = np.uint16(code + line[x])
                line[x] = code


@njit(cache=True, nogil=True)
def _place_steps(steps, codes, row, column):
    width = min(steps.shape[3], codes.shape[3] - column)
    for c in range(codes.shape[0]):
        for z in range(codes.shape[1]):
            for y in range(min(steps.shape[2], codes.shape[2] - row)):
                line, out = steps[c, z, y], codes[c, z, row + y, column : column + width]
                for x in range(width):  # in 16 bits, modulo 2¹⁶: many at a time
                    out[x] = (line[x] >> np.uint16(1)) ^ (np.uint16(0) - (line[x] & np.uint16(1)))
                code = codes[c, z, row + y, column - 1] if column else np.uint16(0)
                for x in range(width):
                    code = np.uint16(code + out[x])
                    out[x] = code
