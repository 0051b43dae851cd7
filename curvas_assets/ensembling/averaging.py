# numba infers the types of its functions:
# pyright: reportMissingParameterType=false
"""The mean of several softmax arrays and its entropies (`curvas_assets.entropy`): arrays in memory, no files."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit, prange

from curvas_assets.entropy import divided, entropy_term
from curvas_assets.errors import EnsembleError
from curvas_assets.parallel import PARALLEL
from curvas_assets.probabilities import as_members, as_probabilities


@dataclass(frozen=True)
class Ensemble:
    """An ensemble's prediction.

    Args:
        mean: probabilities float32 (C, Z, Y, X).
        predictive_entropy: of the mean, nats, float32 (Z, Y, X).
        expected_entropy: mean of the members' entropies.
        mutual_information: their difference, never below 0.
    """

    mean: npt.NDArray[np.float32]
    predictive_entropy: npt.NDArray[np.float32]
    expected_entropy: npt.NDArray[np.float32]
    mutual_information: npt.NDArray[np.float32]


def average(members: Any) -> Ensemble:
    """The mean of softmax volumes, and its uncertainty.

    Args:
        members: arrays or tensors (C, Z, Y, X) of probabilities, or stored volumes with `shape` and `slab(z0, z1)`, all of
            one shape; a sequence of them, or an array of five axes.

    Raises:
        EnsembleError: no member, a member that holds no probabilities, or shapes differ.
    """
    given = as_members(members, attempted="averaging", subject="the ensemble", error=EnsembleError)
    arrays = [_array(member, f"member {i}") for i, member in enumerate(given, 1)]
    if not arrays:
        raise EnsembleError("averaging", "the ensemble", "no member", "Give at least one softmax volume.")
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1:
        raise EnsembleError(
            "averaging",
            "the ensemble",
            f"members of shapes {sorted(shapes)}",
            "Give softmax volumes (classes, z, y, x) of one patient.",
        )
    count = len(arrays)
    total = np.zeros(arrays[0].shape, np.float64)
    entropies = np.zeros(arrays[0].shape[1:], np.float64)
    for array in arrays:
        with PARALLEL:
            _add(array, total, entropies)
    return finish(total, entropies, count)


def finish(total: npt.NDArray[np.float64], entropies: npt.NDArray[np.float64], count: int) -> Ensemble:
    """An ensemble from the sums of its members' probabilities and entropies."""
    mean = np.empty(total.shape, np.float32)
    predictive, expected, mutual = (np.empty(total.shape[1:], np.float32) for _ in range(3))
    with PARALLEL:
        _finish(total, entropies, count, mean, predictive, expected, mutual)
    return Ensemble(mean, predictive, expected, mutual)


def _array(member: Any, name: str) -> npt.NDArray[Any]:
    if hasattr(member, "slab"):
        return member.slab(0, member.shape[1])
    array = as_probabilities(member, attempted="averaging", subject=name, error=EnsembleError)
    return np.ascontiguousarray(array if array.dtype in (np.float32, np.float64) else array.astype(np.float32))


@njit(parallel=True, cache=True, nogil=True)
def _add(softmax, total, entropies):
    """Add a member's probabilities and entropy to the sums."""
    for z in prange(softmax.shape[1]):
        for y in range(softmax.shape[2]):
            for x in range(softmax.shape[3]):
                entropy = 0.0
                for c in range(softmax.shape[0]):
                    p = np.float64(softmax[c, z, y, x])
                    total[c, z, y, x] += p
                    entropy += entropy_term(p)
                entropies[z, y, x] += entropy


@njit(parallel=True, cache=True, nogil=True)
def _finish(total, entropies, count, mean, predictive, expected, mutual):
    for z in prange(total.shape[1]):
        for y in range(total.shape[2]):
            for x in range(total.shape[3]):
                entropy = 0.0
                for c in range(total.shape[0]):
                    p = total[c, z, y, x] / count
                    mean[c, z, y, x] = p
                    entropy += entropy_term(p)
                predictive[z, y, x] = entropy
                expected[z, y, x], mutual[z, y, x] = divided(entropy, entropies[z, y, x] / count)
