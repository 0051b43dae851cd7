"""Hypothesis strategies: label maps and softmax volumes, edge cases included."""

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
