"""Probabilities as 16-bit codes and back: the arithmetic of the softmax format, on slabs in memory.

A code is p × 65535. The codes of all classes of a voxel sum to 65535, so the background need not be stored. The label map
(argmax, the lowest class wins a tie) is exactly that of the probabilities. In a block of voxels, the values of a class
below `tail` are replaced by few equal ones that keep the block's mass and, where 16 bits allow, its entropy: noise that
would cost most of the space, and that plain rounding would turn into zeros.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit, prange

from curvas_assets.parallel import PARALLEL

FULL = 65535
"""The code of p = 1."""
BLOCK = 32
"""In-plane side of the blocks in which a tail's mass is kept; they are as deep as the slab."""
WHOLE = 2.7
"""A voxel's whole foreground is pooled when it sums to less than this many tails: with what pooling gives back and the
rounding of the other codes, no probability is then off by more than 3 tails."""
NOTHING, FAR, NEAR, BORDER, INSIDE = range(5)
"""Kinds of voxels: nothing but background; background whose whole foreground is pooled; background above `SURE`;
other background; an organ's. In the last three, single classes below the tail are pooled."""
SURE = 0.99
"""Mass is moved freely among voxels whose background is likelier than this: they lie in one bin of a calibration."""
LN = np.array([0.9971879, -0.4697758, 0.2231100, -0.0574347], np.float32)
"""ln(1 + m) ≈ m (LN₀ + m (LN₁ + m (LN₂ + m LN₃))) for m from 0 to 1."""
Codes = npt.NDArray[np.uint16]


class EncodedSlab(NamedTuple):
    """A slab's codes and what was counted on the way.

    Args:
        codes: of the foreground, uint16 (C − 1, Z, Y, X).
        label_voxels: voxels of each class in the label map, background first.
        code_sums: sum of each foreground class's codes.
        foreground: voxels of any organ, by slice.
    """

    codes: Codes
    label_voxels: npt.NDArray[np.int64]
    code_sums: npt.NDArray[np.int64]
    foreground: npt.NDArray[np.int64]


def encode(softmax: npt.NDArray[np.floating], tail: float) -> EncodedSlab:
    """Codes of a slab's foreground, with its label map kept.

    Args:
        softmax: probabilities (C, Z, Y, X), background first; float16, float32 or float64. Negative values count as 0,
            and voxels are scaled to sum to 1.
        tail: probabilities below it are pooled, and a voxel's whole foreground if it sums to less than 2.7 × tail; no
            probability is then off by more than 3 × tail. 0 pools nothing: every code is within one of p × 65535.
    """
    values = np.ascontiguousarray(softmax if softmax.dtype in (np.float32, np.float64) else softmax.astype(np.float32))
    classes, depth, height, width = values.shape
    codes = np.zeros((classes - 1, depth, height, width), np.uint16)
    blocks = (-(-height // BLOCK)) * (-(-width // BLOCK))
    label_voxels = np.zeros((blocks, classes), np.int64)
    code_sums = np.zeros((blocks, classes - 1), np.int64)
    foreground = np.zeros((blocks, depth), np.int64)
    with PARALLEL:
        _encode(values, tail if WHOLE * tail * FULL >= 1 else 0.0, codes, label_voxels, code_sums, foreground)
    return EncodedSlab(codes, label_voxels.sum(axis=0), code_sums.sum(axis=0), foreground.sum(axis=0))


def decode(codes: Codes) -> npt.NDArray[np.float32]:
    """Probabilities float32 (C, Z, Y, X) of foreground codes; the background is what is left, never below 0."""
    softmax = np.empty((codes.shape[0] + 1, *codes.shape[1:]), np.float32)
    decode_into(softmax, 0, codes)
    return softmax


def decode_into(softmax: npt.NDArray[np.float32], z0: int, codes: Codes) -> None:
    """The same into a larger volume (C, Z, Y, X), from slice z0 on."""
    with PARALLEL:
        _decode(np.ascontiguousarray(codes), softmax, z0)


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
def _encode(p, tail, codes, label_voxels, code_sums, foreground):
    classes, depth, height, width = p.shape
    columns = (width + BLOCK - 1) // BLOCK
    whole = WHOLE * tail
    single = tail * min(1.0, 3.0 / (classes - 1))
    for block in prange(label_voxels.shape[0]):
        y0, x0 = (block // columns) * BLOCK, (block % columns) * BLOCK
        y1, x1 = min(y0 + BLOCK, height), min(x0 + BLOCK, width)
        rows, n = y1 - y0, x1 - x0
        # A row of voxels is worked on at once, one lane a voxel: sums stay in lanes, so that their order is fixed.
        organs, total = np.empty(n), np.empty(n)
        value = np.empty(n, np.float32)
        bits = value.view(np.int32)
        masses, entropies = np.zeros((classes, n)), np.zeros((classes, n))
        near_masses, near_entropies = np.zeros((5, classes)), np.zeros((5, classes))
        share = np.zeros(classes)
        floor = np.zeros(classes, np.int64)
        # Mass stays among voxels of its kind: what the background's confidence loses elsewhere, its calibration shows.
        kind = np.zeros((depth, rows, n), np.uint8)
        labels = np.zeros((depth, rows, n), np.uint8)
        for z in range(depth):
            for row in range(rows):
                y = y0 + row
                kinds = kind[z, row]
                organs[:] = 0.0
                for c in range(1, classes):
                    line = p[c, z, y, x0:x1]
                    for x in range(n):
                        v = np.float64(line[x])
                        organs[x] += v if v > 0.0 else 0.0
                some = False
                for x in range(n):
                    some |= organs[x] > 0.0
                if not some:
                    continue
                line = p[0, z, y, x0:x1]
                coarse = False
                for x in range(n):
                    total[x] = organs[x] + max(np.float64(line[x]), 0.0)
                    pooled = organs[x] < whole * total[x]
                    kinds[x] = NOTHING if organs[x] == 0.0 else (FAR if pooled else BORDER)
                    coarse |= not pooled
                    total[x] = 1.0 / total[x] if total[x] > 0.0 else 0.0
                for c in range(1, classes):
                    line = p[c, z, y, x0:x1]
                    mass, entropy = masses[c], entropies[c]
                    for x in range(n):
                        v = np.float64(line[x]) * total[x]
                        v = v if v > 0.0 else 0.0
                        value[x] = v if kinds[x] == FAR else 0.0
                    for x in range(n):
                        # ln by exponent and a polynomial of the mantissa, off by 1e-4 at most: a fifth of log's time.
                        m = np.float32(bits[x] & 0x7FFFFF) * np.float32(2.0**-23)
                        ln = np.float32(0.6931472) * np.float32((bits[x] >> 23) - 127) + m * (
                            LN[0] + m * (LN[1] + m * (LN[2] + m * LN[3]))
                        )
                        mass[x] += np.float64(value[x])
                        entropy[x] -= np.float64(value[x] * ln)
                if not coarse:
                    continue
                for x in range(n):
                    if kinds[x] != BORDER:
                        continue
                    best = 0
                    # Largest remainder: every code within one of its value, all together exactly 65535.
                    left = FULL
                    for c in range(classes):
                        if p[c, z, y, x0 + x] > p[best, z, y, x0 + x]:
                            best = c
                        scaled = max(np.float64(p[c, z, y, x0 + x]), 0.0) * total[x] * FULL
                        floor[c] = np.int64(scaled)
                        share[c] = scaled - floor[c]
                        left -= floor[c]
                    labels[z, row, x] = best
                    kinds[x] = INSIDE if best > 0 else (NEAR if organs[x] * total[x] < 1.0 - SURE else BORDER)
                    while left > 0:
                        largest = 0
                        for c in range(1, classes):
                            if share[c] > share[largest]:
                                largest = c
                        floor[largest] += 1
                        share[largest] = -1.0
                        left -= 1
                    for c in range(1, classes):
                        v = max(np.float64(p[c, z, y, x0 + x]), 0.0) * total[x]
                        if v >= single:
                            codes[c - 1, z, y, x0 + x] = floor[c]
                        elif v > 0.0:
                            near_masses[kinds[x], c] += v
                            near_entropies[kinds[x], c] -= v * np.log(v)
        given = np.zeros((depth, rows, n), np.int64)
        for c in range(1, classes):
            mass, entropy = near_masses[BORDER, c], near_entropies[BORDER, c]
            left = _spread(codes, p, kind, given, c, mass, entropy, tail, single, y0, x0)
            mass, entropy = near_masses[INSIDE, c], near_entropies[INSIDE, c]
            left += _pool(codes, p, kind, given, True, c, mass, entropy, tail, single, y0, x0)
            mass = masses[c].sum() + near_masses[NEAR, c]
            entropy = entropies[c].sum() + near_entropies[NEAR, c]
            if mass > 0:
                whole_mass = max(mass + left, 0.0)
                _pool(codes, p, kind, given, False, c, whole_mass, entropy * whole_mass / mass, tail, single, y0, x0)
        for z in range(depth):
            for row in range(rows):
                y = y0 + row
                for x in range(n):
                    if kind[z, row, x] == NOTHING or kind[z, row, x] == FAR:
                        continue
                    wanted = np.int64(labels[z, row, x])
                    best, _, rest = _winner(codes, z, y, x0 + x)
                    while best != wanted:
                        if best > 0:
                            codes[best - 1, z, y, x0 + x] -= 1
                        if wanted > 0 and (best > 0 or rest > 0):
                            codes[wanted - 1, z, y, x0 + x] += 1
                        best, _, rest = _winner(codes, z, y, x0 + x)
                    if wanted > 0:
                        label_voxels[block, wanted] += 1
                        foreground[block, z] += 1
                for c in range(classes - 1):
                    written = codes[c, z, y, x0:x1]
                    codes_of_row = np.int64(0)
                    for x in range(n):
                        codes_of_row += np.int64(written[x])
                    code_sums[block, c] += codes_of_row
        label_voxels[block, 0] = depth * rows * n - label_voxels[block, 1:].sum()


@njit(cache=True, nogil=True)
def _levels(mass, entropy, tail):
    """Two neighbouring codes that share a mass, how often each is given, and what is left over.

    Both levels together have the mass's entropy, where 16 bits allow it.
    """
    most = np.int64(WHOLE * tail * FULL)
    units = np.int64(np.rint(mass * FULL))
    if units <= 0:
        return np.int64(1), np.int64(0), np.int64(0), np.int64(0)
    low = max(min(np.int64(FULL * np.exp(-entropy / mass)), most - 1), 1)
    high = low + 1
    h_low = -(low / FULL) * np.log(low / FULL)
    h_high = -(high / FULL) * np.log(high / FULL)
    target = entropy * (units / FULL) / mass
    n_high = np.int64(np.rint((target - units * h_low / low) / (h_high - h_low * high / low)))
    n_high = min(max(n_high, 0), units // high) if high <= most else np.int64(0)
    n_low = (units - n_high * high) // low
    return low, n_low, n_high, units - n_high * high - n_low * low


@njit(cache=True, nogil=True)
def _room(codes, p, c, z, y, x, single):
    """The value of a class in a border or organ voxel, and what its background can give; −1 if it is no tail."""
    total = 0.0
    rest = np.int64(FULL)
    for k in range(p.shape[0]):
        total += max(np.float64(p[k, z, y, x]), 0.0)
        if k > 0:
            rest -= np.int64(codes[k - 1, z, y, x])
    value = np.float64(p[c, z, y, x]) / total
    return (value if value < single else -1.0), rest


@njit(cache=True, nogil=True)
def _pool(codes, p, kind, given, inside, c, mass, entropy, tail, single, y0, x0):
    """Give the mass of a class back to the block's first voxels, where it costs no space; what is left over.

    Mass from voxels of an organ (`inside`) goes to such voxels, that from the background to the sure background.

    `given` is what each voxel has been given for all classes, never more than `WHOLE` × tail.
    """
    most = np.int64(WHOLE * tail * FULL)
    low, n_low, n_high, rest = _levels(mass, entropy, tail)
    for z in range(kind.shape[0]):
        for y in range(kind.shape[1]):
            for x in range(kind.shape[2]):
                if n_high + n_low == 0 and rest == 0:
                    return mass - np.rint(mass * FULL) / FULL
                level = low + 1 if n_high > 0 else (low if n_low > 0 else rest)
                here = kind[z, y, x]
                if here != INSIDE if inside else (here != FAR and here != NEAR):
                    continue
                if p[c, z, y0 + y, x0 + x] <= 0 or given[z, y, x] + level > most:
                    continue
                if here != FAR:
                    value, room = _room(codes, p, c, z, y0 + y, x0 + x, single)
                    if value < 0 or room < level:
                        continue
                codes[c - 1, z, y0 + y, x0 + x] = level
                given[z, y, x] += level
                if n_high > 0:
                    n_high -= 1
                elif n_low > 0:
                    n_low -= 1
                else:
                    rest = 0
    return (n_high * (low + 1) + n_low * low + rest) / FULL


@njit(cache=True, nogil=True)
def _spread(codes, p, kind, given, c, mass, entropy, tail, single, y0, x0):
    """Give the mass of a class in the background's border voxels back about where it was; what is left over.

    Confidences differ from voxel to voxel there: mass that is moved far changes the calibration.
    """
    most = np.int64(WHOLE * tail * FULL)
    low, _, n_high, _ = _levels(mass, entropy, tail)
    owed = 0.0
    if mass <= 0.0:
        return owed
    for z in range(kind.shape[0]):
        for y in range(kind.shape[1]):
            for x in range(kind.shape[2]):
                if kind[z, y, x] != BORDER or p[c, z, y0 + y, x0 + x] <= 0:
                    continue
                value, room = _room(codes, p, c, z, y0 + y, x0 + x, single)
                if value < 0:
                    continue
                owed += value * FULL
                level = low + 1 if n_high > 0 else low
                if 2 * owed < level or given[z, y, x] + level > most or room < level:
                    continue
                codes[c - 1, z, y0 + y, x0 + x] = level
                given[z, y, x] += level
                owed -= level
                n_high -= 1
    return owed / FULL


@njit(parallel=True, cache=True, nogil=True)
def _decode(codes, softmax, z0):
    # Row by row, one class after the other: the plain loop over voxels is as fast when numba has just compiled it, and
    # ten times slower when it comes from numba's cache (0.68, measured).
    scale = np.float32(1.0 / FULL)
    height = codes.shape[2]
    for row in prange(codes.shape[1] * height):
        z, y = row // height, row % height
        background = softmax[0, z0 + z, y]
        background[:] = np.float32(FULL)
        for c in range(codes.shape[0]):
            line, out = codes[c, z, y], softmax[c + 1, z0 + z, y]
            for x in range(line.shape[0]):
                code = np.float32(line[x])
                background[x] -= code
                out[x] = code * scale
        for x in range(background.shape[0]):
            background[x] *= scale


@njit(parallel=True, cache=True, nogil=True)
def _labels(codes, labels):
    for z in prange(codes.shape[1]):
        for y in range(codes.shape[2]):
            for x in range(codes.shape[3]):
                labels[z, y, x] = _winner(codes, z, y, x)[0]
