"""Abdominal label maps and softmax volumes of any size, made slab by slab: what the benchmarks measure on.

Organs are ellipsoids with wavy surfaces, a little different for each annotator and model. Probabilities fall off over
some millimetres, and far from an organ they are the small, noisy values that networks give (1e-6 to 1e-4), inside the
body; outside it they vanish.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from numba import njit, prange

CLASSES = ("background", "pancreas", "kidney", "liver")
ORGANS = {name: c for c, name in enumerate(CLASSES) if c}
FULL_SIZE = (866, 512, 512)
SPACING_MM = (1.0, 0.8, 0.8)
DEPTH = 16

# class, centre and half-axes, as shares of the field of view (z, y, x)
_ELLIPSOIDS = np.array(
    [
        [1, 0.50, 0.45, 0.52, 0.020, 0.045, 0.16],
        [2, 0.45, 0.62, 0.30, 0.07, 0.07, 0.06],
        [2, 0.45, 0.62, 0.70, 0.07, 0.07, 0.06],
        [3, 0.58, 0.42, 0.30, 0.12, 0.20, 0.18],
    ]
)


def label_slabs(shape: tuple[int, int, int], annotators: int = 3) -> Iterator[tuple[int, int, npt.NDArray[np.uint8]]]:
    """(annotator, z0, labels uint8 (dz, Y, X)), one annotator a little different from the next."""
    for r in range(annotators):
        for z0 in range(0, shape[0], DEPTH):
            slab = np.empty((min(DEPTH, shape[0] - z0), *shape[1:]), np.uint8)
            _labels(z0, shape, float(r), slab)
            yield r, z0, slab


def label_maps(shape: tuple[int, int, int], annotators: int = 3) -> npt.NDArray[np.uint8]:
    """Label maps uint8 (R, Z, Y, X), all at once."""
    out = np.empty((annotators, *shape), np.uint8)
    for r, z0, slab in label_slabs(shape, annotators):
        out[r, z0 : z0 + len(slab)] = slab
    return out


def softmax_slabs(shape: tuple[int, int, int], model: int = 0) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    """(z0, probabilities float32 (C, dz, Y, X)) of one model, from the first slice to the last."""
    for z0 in range(0, shape[0], DEPTH):
        slab = np.empty((len(CLASSES), min(DEPTH, shape[0] - z0), *shape[1:]), np.float32)
        _softmax(z0, shape, 10.0 + model, slab)
        yield z0, slab


def softmax(shape: tuple[int, int, int], model: int = 0) -> npt.NDArray[np.float32]:
    """The whole volume at once."""
    return np.concatenate([slab for _, slab in softmax_slabs(shape, model)], axis=1)


@njit(cache=True, inline="always")
def _distances(z, y, x, shape, phase, out):
    """How far inside each class's organ a voxel lies, in units of about a millimetre; negative outside."""
    v, h, w = (z + 0.5) / shape[0], (y + 0.5) / shape[1], (x + 0.5) / shape[2]
    out[:] = -1e9
    for e in range(_ELLIPSOIDS.shape[0]):
        dz = (v - _ELLIPSOIDS[e, 1]) / _ELLIPSOIDS[e, 4]
        dy = (h - _ELLIPSOIDS[e, 2]) / _ELLIPSOIDS[e, 5]
        dx = (w - _ELLIPSOIDS[e, 3]) / _ELLIPSOIDS[e, 6]
        radius = np.sqrt(dz * dz + dy * dy + dx * dx)
        wave = 1.2 * np.sin(3 * dy + 2 * dz + phase) + 0.8 * np.sin(5 * dx - 3 * dz + 1.7 * phase)
        inside = (1 - radius) * _ELLIPSOIDS[e, 5] * shape[1] * 0.8 + wave
        c = int(_ELLIPSOIDS[e, 0])
        out[c] = max(out[c], inside)


@njit(parallel=True, cache=True)
def _labels(z0, shape, phase, out):
    for z in prange(out.shape[0]):
        inside = np.empty(4)
        for y in range(out.shape[1]):
            for x in range(out.shape[2]):
                _distances(z0 + z, y, x, shape, phase, inside)
                label = 0
                for c in range(1, 4):
                    if inside[c] > 0 and (label == 0 or inside[c] > inside[label]):
                        label = c
                out[z, y, x] = label


@njit(parallel=True, cache=True)
def _softmax(z0, shape, phase, out):
    for z in prange(out.shape[1]):
        inside = np.empty(4)
        for y in range(out.shape[2]):
            for x in range(out.shape[3]):
                _distances(z0 + z, y, x, shape, phase, inside)
                h, w = (y + 0.5) / shape[1] - 0.5, (x + 0.5) / shape[2] - 0.5
                if (h / 0.36) ** 2 + (w / 0.46) ** 2 > 1:  # outside the body
                    for c in range(4):
                        out[c, z, y, x] = 1.0 if c == 0 else 0.0
                    continue
                total = 1.0
                for c in range(1, 4):
                    key = np.uint64((z0 + z) * 73856093) ^ np.uint64(y * 19349663) ^ np.uint64(x * 83492791 + c * 7919)
                    key = (key ^ (key >> np.uint64(13))) * np.uint64(0x9E3779B97F4A7C15)
                    noise = np.float64(key >> np.uint64(40)) / 2.0**24
                    floor = -11.5 + 1.5 * np.sin(20 * h + c) * np.cos(17 * w + phase) + 2.0 * noise
                    inside[c] = np.exp(min(max(inside[c] / 1.5, floor), 25.0))
                    total += inside[c]
                out[0, z, y, x] = 1 / total
                for c in range(1, 4):
                    out[c, z, y, x] = inside[c] / total
