"""Hypothesis strategies: label maps, softmax volumes and images on any grid, edge cases included."""

from itertools import permutations, product

import nibabel as nib
import numpy as np
from hypothesis import strategies as st


@st.composite
def shapes(draw) -> tuple[int, int, int]:
    return draw(st.tuples(st.integers(1, 6), st.integers(1, 9), st.integers(1, 9)))


@st.composite
def softmaxes(
    draw, classes=st.integers(2, 8), shape=shapes(), dtype=st.sampled_from([np.float16, np.float32, np.float64])
):
    """Probabilities (C, Z, Y, X): smooth, certain (exact 0 and 1), nearly certain with long tails, or overconfident."""
    c, voxels = draw(classes), draw(shape)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    sharpness = draw(st.sampled_from([0.5, 4.0, 30.0, 1000.0, None]))
    if sharpness is None:
        return overconfident(rng, c, voxels).astype(draw(dtype))
    logits = rng.standard_normal((c, *voxels)) * sharpness
    p = np.exp(logits - logits.max(axis=0))
    return (p / p.sum(axis=0)).astype(draw(dtype))


def overconfident(rng: np.random.Generator, classes: int, voxels: tuple[int, int, int]) -> np.ndarray:
    """As a network gives them that was trained for long: float64 (C, Z, Y, X).

    What a voxel's winner leaves of 1 is spread evenly over the decades from 1e-2 to 1e-9, and the other classes share it
    over as many decades more; a tenth of the voxels is a soft border.
    """
    winner = np.where(rng.random(voxels) < 0.7, 0, rng.integers(0, classes, voxels))
    rest = 10.0 ** rng.uniform(-9, -2, voxels)
    rest = np.where(rng.random(voxels) < 0.1, rng.uniform(0, 0.6, voxels), rest)
    shares = 10.0 ** rng.uniform(-6, 0, (classes, *voxels))
    np.put_along_axis(shares, winner[None], 0, axis=0)
    p = shares / shares.sum(axis=0) * rest
    np.put_along_axis(p, winner[None], (1 - rest)[None], axis=0)
    return p


@st.composite
def label_maps(draw, classes: int, annotators: int, shape: tuple[int, int, int]):
    """uint8 (R, Z, Y, X); often with an organ that somebody, or everybody, left out."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    drawn = draw(st.sets(st.integers(0, classes - 1), min_size=1))
    first = rng.choice(sorted(drawn), shape)
    maps = [first]
    for _ in range(annotators - 1):
        other = rng.choice(sorted(drawn), shape)
        maps.append(np.where(rng.random(shape) < draw(st.sampled_from([0.0, 0.2, 1.0])), other, first))
    return np.stack(maps).astype(np.uint8)


LETTERS = "LRPASI"
ORDERS = ["".join(order) for axes in permutations(("LR", "PA", "SI")) for order in product(*axes)]
"""All 48 voxel orders, as nibabel writes them."""


@st.composite
def oblique_images(draw, classes: int = 4):
    """Label maps as NIfTI images (X, Y, Z), int16: any voxel order, spacing and place, turned by up to 40° about any axis."""
    order = draw(st.sampled_from(ORDERS))
    x, y, z = draw(st.tuples(*(st.integers(1, 9) for _ in range(3))))
    spacing = draw(st.tuples(*(st.sampled_from([0.5, 0.7324, 1.0, 3.3, 5.0]) for _ in range(3))))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    axis = rng.standard_normal(3)
    angle = np.deg2rad(draw(st.sampled_from([0.0, 0.0, 7.0, 25.0, 40.0])))
    k = np.cross(np.eye(3), axis / np.linalg.norm(axis))
    rotation = np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * k @ k
    plain = np.zeros((3, 3))
    for column, letter in enumerate(order):
        plain["LPSRAI".index(letter) % 3, column] = 1 if letter in "RAS" else -1
    affine = np.eye(4)
    affine[:3, :3] = rotation @ plain @ np.diag(spacing)
    affine[:3, 3] = rng.uniform(-400, 400, 3)
    labels = rng.integers(0, classes, (x, y, z)).astype(np.int16)
    labels[0, 0, 0] = classes - 1  # never a map without foreground
    image = nib.Nifti1Image(labels, affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    return image
