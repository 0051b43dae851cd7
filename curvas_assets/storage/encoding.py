"""Probabilities as 16-bit codes and back: the arithmetic of the softmax format, on slabs in memory.

A code is p × 65535. The codes of all classes of a voxel sum to 65535, so the background need not be stored. The label map
(argmax, the lowest class wins a tie) is exactly that of the probabilities. In a block of voxels, the values of a class
below `tail` are replaced by few equal ones that keep the block's mass and, where 16 bits allow, its entropy: noise that
would cost most of the space, and that plain rounding would turn into zeros.
"""

import numpy as np
import numpy.typing as npt
from numba import njit, prange

from curvas_assets.parallel import PARALLEL

FULL = 65535
"""The code of p = 1."""
BLOCK = 32
"""In-plane side of the blocks in which a tail's mass is kept; they are as deep as the slab."""
Codes = npt.NDArray[np.uint16]


def encode(softmax: npt.NDArray[np.floating], tail: float) -> tuple[Codes, npt.NDArray[np.uint8]]:
    """Codes of a slab's foreground, and its label map.

    Args:
        softmax: probabilities (C, Z, Y, X), background first; float16, float32 or float64. Negative values count as 0,
            and voxels are scaled to sum to 1.
        tail: probabilities below it are pooled; 0 pools nothing (every code is then within one of p × 65535). With more
            than three foreground classes it is lowered, so that no probability is off by more than 3 × tail.

    Returns:
        Codes uint16 (C − 1, Z, Y, X), and labels uint8 (Z, Y, X).
    """
    values = np.ascontiguousarray(softmax if softmax.dtype in (np.float32, np.float64) else softmax.astype(np.float32))
    codes = np.zeros((values.shape[0] - 1, *values.shape[1:]), np.uint16)
    labels = np.zeros(values.shape[1:], np.uint8)
    with PARALLEL:
        _encode(values, float(tail) * min(1.0, 3 / codes.shape[0]), codes, labels)
    return codes, labels


def decode(codes: Codes) -> npt.NDArray[np.float32]:
    """Probabilities float32 (C, Z, Y, X) of foreground codes; the background is what is left, never below 0."""
    softmax = np.empty((codes.shape[0] + 1, *codes.shape[1:]), np.float32)
    with PARALLEL:
        _decode(np.ascontiguousarray(codes), softmax)
    return softmax


def labels_of(codes: Codes) -> npt.NDArray[np.uint8]:
    """The label map (Z, Y, X) of foreground codes: the largest code, the lowest class wins a tie."""
    labels = np.empty(codes.shape[1:], np.uint8)
    with PARALLEL:
        _labels(np.ascontiguousarray(codes), labels)
    return labels


@njit(cache=True, nogil=True, inline="always")
def _winner(codes, z, y, x):
    """Class with the largest code, and that code."""
    rest = FULL
    for c in range(codes.shape[0]):
        rest -= np.int64(codes[c, z, y, x])
    best, value = 0, np.int64(rest)
    for c in range(codes.shape[0]):
        code = np.int64(codes[c, z, y, x])
        if code > value:
            best, value = c + 1, code
    return best, value, rest


@njit(parallel=True, cache=True, nogil=True)
def _encode(p, tail, codes, labels):
    classes, depth, height, width = p.shape
    rows, columns = (height + BLOCK - 1) // BLOCK, (width + BLOCK - 1) // BLOCK
    for block in prange(rows * columns):
        y0, x0 = (block // columns) * BLOCK, (block % columns) * BLOCK
        y1, x1 = min(y0 + BLOCK, height), min(x0 + BLOCK, width)
        mass = np.zeros(classes)
        entropy = np.zeros(classes)
        share = np.zeros(classes)
        floor = np.zeros(classes, np.int64)
        empty = True
        for z in range(depth):
            for y in range(y0, y1):
                for x in range(x0, x1):
                    total, best = 0.0, 0
                    for c in range(classes):
                        value = np.float64(p[c, z, y, x])
                        if value > 0:
                            total += value
                        if p[c, z, y, x] > p[best, z, y, x]:
                            best = c
                    labels[z, y, x] = best
                    foreground = False
                    for c in range(1, classes):
                        foreground |= p[c, z, y, x] > 0
                    if not foreground or total <= 0:
                        continue
                    empty = False
                    # Largest remainder: every code within one of its value, all together exactly 65535.
                    left = FULL
                    for c in range(classes):
                        scaled = max(np.float64(p[c, z, y, x]), 0.0) / total * FULL
                        floor[c] = np.int64(scaled)
                        share[c] = scaled - floor[c]
                        left -= floor[c]
                    while left > 0:
                        most = 0
                        for c in range(1, classes):
                            if share[c] > share[most]:
                                most = c
                        floor[most] += 1
                        share[most] = -1.0
                        left -= 1
                    for c in range(1, classes):
                        value = max(np.float64(p[c, z, y, x]), 0.0) / total
                        if value < tail:
                            mass[c] += value
                            if value > 0:
                                entropy[c] -= value * np.log(value)
                            codes[c - 1, z, y, x] = 0
                        else:
                            codes[c - 1, z, y, x] = floor[c]
        if empty:
            continue
        given = np.zeros((depth, y1 - y0, x1 - x0), np.int64)
        for c in range(1, classes):
            if mass[c] > 0:
                _pool(codes, p, given, c, mass[c], entropy[c], tail, y0, y1, x0, x1)
        for z in range(depth):
            for y in range(y0, y1):
                for x in range(x0, x1):
                    wanted = np.int64(labels[z, y, x])
                    best, _, rest = _winner(codes, z, y, x)
                    while best != wanted:
                        if best > 0:
                            codes[best - 1, z, y, x] -= 1
                        if wanted > 0 and (best > 0 or rest > 0):
                            codes[wanted - 1, z, y, x] += 1
                        best, _, rest = _winner(codes, z, y, x)


@njit(cache=True, nogil=True)
def _pool(codes, p, given, c, mass, entropy, tail, y0, y1, x0, x1):
    """Give a block's tail mass of a class back as codes of two neighbouring levels that also keep its entropy.

    `given` is what each voxel of the block has been given for all classes: no voxel gets more than twice the tail.
    """
    most = 2 * tail * FULL
    units = np.int64(np.rint(mass * FULL))
    if units == 0:
        return
    low = max(np.int64(FULL * np.exp(-entropy / mass)), 1)
    low = min(low, max(np.int64(tail * FULL), 1))
    high = low + 1
    h_low = -(low / FULL) * np.log(low / FULL)
    h_high = -(high / FULL) * np.log(high / FULL)
    target = entropy * (units / FULL) / mass
    denominator = h_high - h_low * high / low
    n_high = np.int64(np.rint((target - units * h_low / low) / denominator))
    n_high = min(max(n_high, 0), units // high)
    n_low = (units - n_high * high) // low
    rest = units - n_high * high - n_low * low
    for z in range(codes.shape[1]):
        for y in range(y0, y1):
            for x in range(x0, x1):
                if n_high + n_low == 0 and rest == 0:
                    return
                if codes[c - 1, z, y, x] != 0:
                    continue
                total = 0.0
                for k in range(p.shape[0]):
                    total += max(np.float64(p[k, z, y, x]), 0.0)
                value = max(np.float64(p[c, z, y, x]), 0.0)
                if total <= 0 or value / total >= tail or value <= 0:
                    continue
                level = high if n_high > 0 else (low if n_low > 0 else rest)
                if given[z, y - y0, x - x0] + level > most:
                    continue
                taken = np.int64(0)
                for k in range(codes.shape[0]):
                    taken += np.int64(codes[k, z, y, x])
                if taken + level > FULL:
                    continue
                codes[c - 1, z, y, x] = level
                given[z, y - y0, x - x0] += level
                if n_high > 0:
                    n_high -= 1
                elif n_low > 0:
                    n_low -= 1
                else:
                    rest = 0


@njit(parallel=True, cache=True, nogil=True)
def _decode(codes, softmax):
    scale = np.float32(1.0 / FULL)
    for z in prange(codes.shape[1]):
        for y in range(codes.shape[2]):
            for x in range(codes.shape[3]):
                rest = FULL
                for c in range(codes.shape[0]):
                    code = np.int64(codes[c, z, y, x])
                    rest -= code
                    softmax[c + 1, z, y, x] = np.float32(code) * scale
                softmax[0, z, y, x] = np.float32(rest) * scale


@njit(parallel=True, cache=True, nogil=True)
def _labels(codes, labels):
    for z in prange(codes.shape[1]):
        for y in range(codes.shape[2]):
            for x in range(codes.shape[3]):
                labels[z, y, x] = _winner(codes, z, y, x)[0]
