"""Abdominal label maps and softmax volumes of any size, made slab by slab: what the benchmarks measure on.

Organs are ellipsoids with wavy surfaces, a little different for each annotator and model. Probabilities fall off over
some millimetres. What they are far from an organ depends on the network:

- one that was trained a little gives small, noisy values (1e-6 to 1e-4) inside the body; outside it they vanish;
- one that was trained long is *confident*: nearly all voxels are sure, to degrees that range over seven decades and vary
  smoothly from place to place, in air too, and some sure voxels are wrong. Fitted to a network of the demo's kind that was
  trained for 60 epochs (whole image of 48 × 96 × 96); shares of voxels surer than 1 − 10⁻ᵏ:

      k              2      3      4      5      6      7   exactly 1
      network     0.976  0.953  0.752  0.439  0.205  0.079      0.079
      phantom     0.972  0.958  0.750  0.488  0.222  0.040      0.040   (128 × 256 × 256, in the body)
                  1.000  1.000  0.731  0.393  0.059  0.001      0.001   (in air)

  The network's log₁₀ p changes by 0.1 a millimetre (0.3 to 0.5 a voxel of 5 × 3.5 × 3.5 mm, standard deviation over the image),
  and so does the phantom's, by 0.08 to 0.13 a voxel of 1 × 0.8 × 0.8 mm. Its texture of 0.02 from voxel to voxel in the body is an
  assumption: no network of a clinical grid was at hand.
"""

import gzip
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from numba import njit, prange

from curvas_assets.codes import DEPTH

CLASSES = ("background", "pancreas", "kidney", "liver")
ORGANS = {name: c for c, name in enumerate(CLASSES) if c}
FULL_SIZE = (866, 512, 512)
SPACING_MM = (1.0, 0.8, 0.8)
AFFINE = np.diag([-SPACING_MM[2], -SPACING_MM[1], SPACING_MM[0], 1.0])
HU = np.array([40, 110, 150, 160], np.float32)
"""Of the body and of each organ."""
NOISE_HU = {"body": 20, "air": 8}

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


def write_patient(folder: Path, shape: tuple[int, int, int], image: str, annotations: list[str]) -> None:
    """A patient's files as a scanner's archive has them: a noisy CT in HU, int16, and label maps, uint8; all .nii.gz.

    Noise is what gzip cannot pack: a CT takes half of its bytes, as clinical ones do.
    """
    folder.mkdir(parents=True)
    body, random = in_body(shape), np.random.default_rng(20250515)
    noise = np.where(body, NOISE_HU["body"], NOISE_HU["air"]).astype(np.float32)
    with ExitStack() as held:
        scan, *drawn = (
            held.enter_context(_packed(folder / name, shape, dtype))
            for name, dtype in [(image, np.int16), *((name, np.uint8) for name in annotations)]
        )
        for r, _, labels in label_slabs(shape, len(annotations)):
            drawn[r].write(labels.tobytes())
            if r == 0:
                hu = np.where(body, HU[labels], -1000) + noise * random.standard_normal(labels.shape, np.float32)
                scan.write(np.maximum(hu, -1024).astype("<i2").tobytes())


@contextmanager
def _packed(path: Path, shape: tuple[int, int, int], dtype: Any) -> Iterator[gzip.GzipFile]:
    """A .nii.gz to which voxels are to be written, z slowest."""
    header = nib.Nifti1Header()
    header.set_data_dtype(dtype)
    header.set_data_shape(shape[::-1])
    header.set_sform(AFFINE, code=1)
    header.set_qform(AFFINE, code=1)
    header.set_xyzt_units("mm")
    header["magic"], header["vox_offset"] = b"n+1", 352
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(header.binaryblock + b"\0\0\0\0")
        yield file


def softmax_slabs(
    shape: tuple[int, int, int], model: int = 0, *, confident: bool = False
) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    """(z0, probabilities float32 (C, dz, Y, X)) of one model, from the first slice to the last."""
    for z0 in range(0, shape[0], DEPTH):
        slab = np.empty((len(CLASSES), min(DEPTH, shape[0] - z0), *shape[1:]), np.float32)
        if confident:
            _confident_softmax(z0, shape, model, _waves(model), slab)
        else:
            _softmax(z0, shape, 10.0 + model, slab)
        yield z0, slab


def softmax(shape: tuple[int, int, int], model: int = 0, *, confident: bool = False) -> npt.NDArray[np.float32]:
    """The whole volume at once."""
    return np.concatenate([slab for _, slab in softmax_slabs(shape, model, confident=confident)], axis=1)


def in_body(shape: tuple[int, int, int]) -> npt.NDArray[np.bool_]:
    """Which voxels (Y, X) of every slice lie in the body."""
    h, w = ((np.arange(n) + 0.5) / n - 0.5 for n in shape[1:])
    return (h[:, None] / 0.36) ** 2 + (w[None, :] / 0.46) ** 2 <= 1


WAVES = 4
_LEVEL = np.array([[0.0, -8.4, -7.5, -5.45], [0.0, -6.8, -6.1, -5.1]])
"""Mean log₁₀ p of each class far from its organ, in the body and in air."""
_SPREAD = np.array([[0.0, 1.6, 1.6, 1.6], [0.0, 0.9, 0.8, 1.4]])
_FALL = 1.3
"""Nats that an organ loses a millimetre outside its border, and gains inside."""
_TEXTURE = 0.02


def _waves(model: int) -> npt.NDArray[np.float64]:
    """Per class, waves through space: three wave numbers (1/mm, along z, y, x) and a phase."""
    rng = np.random.default_rng(20250515)  # directions and lengths: the anatomy's, the same for all models
    direction = rng.normal(size=(len(CLASSES), WAVES, 3))
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    length_mm = rng.uniform(50, 110, (len(CLASSES), WAVES, 1))
    phase = rng.uniform(0, 2 * np.pi, (len(CLASSES), WAVES, 1))
    own = np.random.default_rng(model).normal(0, 0.7, phase.shape)
    return np.concatenate([2 * np.pi / length_mm * direction, phase + own], axis=-1)


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


@njit(parallel=True, cache=True)
def _confident_softmax(z0, shape, model, waves, out):
    for z in prange(out.shape[1]):
        inside = np.empty(4)
        for y in range(out.shape[2]):
            for x in range(out.shape[3]):
                _distances(z0 + z, y, x, shape, 10.0 + model, inside)
                h, w = (y + 0.5) / shape[1] - 0.5, (x + 0.5) / shape[2] - 0.5
                air = 1 if (h / 0.36) ** 2 + (w / 0.46) ** 2 > 1 else 0
                # The same anatomy whatever the grid: millimetres of a clinical scan.
                v = (z0 + z + 0.5) / shape[0] * FULL_SIZE[0] * SPACING_MM[0]
                h, w = (h + 0.5) * FULL_SIZE[1] * SPACING_MM[1], (w + 0.5) * FULL_SIZE[2] * SPACING_MM[2]
                total = 1.0
                for c in range(1, 4):
                    field = 0.0
                    for k in range(WAVES):
                        own = waves[c, k]
                        field += np.sin(own[0] * v + own[1] * h + own[2] * w + own[3])
                    field /= np.sqrt(WAVES / 2)
                    key = (
                        np.uint64((z0 + z) * 73856093)
                        ^ np.uint64(y * 19349663)
                        ^ np.uint64(x * 83492791 + c * 7919 + model)
                    )
                    key = (key ^ (key >> np.uint64(13))) * np.uint64(0x9E3779B97F4A7C15)
                    noise = (np.float64(key >> np.uint64(40)) / 2.0**24 - 0.5) * np.sqrt(12.0) * _TEXTURE
                    far = _LEVEL[air, c] + _SPREAD[air, c] * (field - 0.22 * (field * field - 1))
                    far += noise if air == 0 else 0.0
                    # Where a field is at its highest, the network draws the organ millimetres further, or less far, and is sure.
                    border = inside[c] + 9.0 * max(field - 1.2, 0.0) - 9.0 * max(-field - 1.2, 0.0)
                    odds = min(_FALL * border, 15.0 + 2.0 * field)
                    inside[c] = np.exp(odds) + np.exp(far * 2.302585)
                    total += inside[c]
                for c in range(1, 4):
                    out[c, z, y, x] = inside[c] / total
                # As float32 arithmetic has it: the sum of the exponentials is rounded before it divides.
                largest = 1.0
                for c in range(1, 4):
                    largest = max(largest, inside[c])
                rounded = np.float32(total / largest)
                out[0, z, y, x] = np.float32(np.float32(1.0 / largest) / rounded)
                for c in range(1, 4):
                    out[c, z, y, x] = np.float32(np.float32(inside[c] / largest) / rounded)
