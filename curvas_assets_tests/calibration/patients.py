"""Patients whose true response is known: probabilities, annotators drawn from them, and a network that is too sure of itself."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from curvas_assets.geometry import Grid
from curvas_assets.storage.softmax import SoftmaxVolume, SoftmaxWriter, open_softmax

SHAPE = (20, 28, 40)
SPACING = (3.0, 1.0, 2.0)
ORGANS = {"pancreas": 1, "kidney": 2, "liver": 3}
NAMES = ["background", *ORGANS]


@dataclass(frozen=True)
class Patient:
    """Of one patient: what a network says, what annotators drew, and from which probabilities these were drawn."""

    softmax: np.ndarray
    annotations: np.ndarray
    truth: np.ndarray


def softmax_of(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=0))
    return powers / powers.sum(axis=0)


def patient(
    seed: int,
    *,
    sharpness: float | Sequence[float] = 2.5,
    annotators: int = 5,
    shape: tuple[int, int, int] = SHAPE,
    background: float = 5.0,
) -> Patient:
    """A patient whose annotators draw each voxel from the truth, and whose network says the truth, sharpened.

    Args:
        seed: of the anatomy and the annotators.
        sharpness: by which the network multiplies the true logits; one for each class makes it wrong in another way for each.
        annotators: how many.
        shape: of the scan.
        background: logit by which the background leads where there is no organ.
    """
    rng = np.random.default_rng(seed)
    logits = np.stack([gaussian_filter(rng.normal(size=shape), 3.0) for _ in NAMES])
    logits *= 4.0 / logits.std()
    logits[0] += background
    truth = softmax_of(logits)
    drawn = (rng.random((annotators, *shape))[:, None] > truth.cumsum(axis=0)[None]).sum(axis=1).clip(0, len(NAMES) - 1)
    said = softmax_of(logits * np.reshape(np.broadcast_to(sharpness, len(NAMES)), (-1, 1, 1, 1)))
    return Patient(said.astype(np.float32), drawn.astype(np.uint8), truth)


def stored(store, key: str, softmax: np.ndarray) -> SoftmaxVolume:
    """The volume as it is stored and opened again."""
    grid = Grid.with_voxels(softmax.shape[1:], SPACING)
    with SoftmaxWriter(store, key, grid, class_names=NAMES[: len(softmax)]) as writer:
        writer.write(0, softmax)
    return open_softmax(store, key)
