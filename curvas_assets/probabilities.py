# numba infers the types of its functions:
# pyright: reportMissingParameterType=false
"""What counts as a softmax: the one check of all functions that take probabilities.

Arrays, torch tensors of any type and place, and nested lists come in; float arrays (C, Z, Y, X) go on. Logits, label maps, NaN
and sums that are not 1 are told apart, for each has its own remedy.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit, prange

from curvas_assets.errors import CurvasError
from curvas_assets.inputs import to_array
from curvas_assets.parallel import PARALLEL

SLACK = 0.01
"""How far values may lie below 0 or above 1, and a voxel's sum from 1: a softmax of float16 reaches 0.005."""
DEPTH = 16
"""Slices that are checked at a time; any number would do, whatever the depth of stored volumes (`codes.DEPTH`)."""
FLOATS = (np.float16, np.float32, np.float64)


def as_probabilities(values: Any, *, attempted: str, subject: str, error: type[CurvasError]) -> npt.NDArray[Any]:
    """A softmax as an array, checked.

    Args:
        values: probabilities (C, Z, Y, X), background first: an array, a torch tensor, or nested lists.
        attempted: what they are wanted for, for the message.
        subject: whose they are.
        error: the kind of error to raise.

    Returns:
        The same values: float16, float32 or float64, not copied where they already are such an array.

    Raises:
        CurvasError: of the kind `error`, saying what was found and what to do.
    """

    def refuse(found: str, remedy: str) -> CurvasError:
        return error(attempted, subject, found, remedy)

    array = to_array(values)
    if array is None or array.dtype.kind not in "fiub":
        kind = type(values).__name__ if array is None else f"{type(values).__name__} of {array.dtype}"
        raise refuse(f"a {kind}", "Give an array of probabilities (classes, z, y, x), background first.")
    if array.ndim != 4 or array.shape[0] < 2 or 0 in array.shape:
        raise refuse(
            f"an array of shape {array.shape}", "Give probabilities (classes, z, y, x) with at least two classes."
        )
    if array.dtype.kind != "f":
        raise refuse(
            f"whole numbers ({array.dtype}) from {array.min()} to {array.max()}: a label map?",
            "Give the probabilities, as floats, not the labels or stored codes.",
        )
    if array.dtype.type not in FLOATS:
        array = array.astype(np.float64)
    for z0 in range(0, array.shape[1], DEPTH):
        require_probabilities(array[:, z0 : z0 + DEPTH], attempted=attempted, subject=subject, error=error, z0=z0)
    return array


def require_probabilities(
    slab: npt.NDArray[Any], *, attempted: str, subject: str, error: type[CurvasError], z0: int = 0
) -> None:
    """An error unless every voxel of a slab holds probabilities that sum to 1.

    Args:
        slab: floats (C, dz, Y, X).
        attempted: what they are wanted for, for the message.
        subject: whose they are.
        error: the kind of error to raise.
        z0: of the slab's first slice, for the message.
    """
    values = slab if slab.dtype in (np.float32, np.float64) else slab.astype(np.float32)
    extremes = np.empty((values.shape[1], 4))
    with PARALLEL:
        _extremes(values, extremes)
    low, high = extremes[:, 0].min(), extremes[:, 1].max()
    least, most = extremes[:, 2].min(), extremes[:, 3].max()
    sums_are_one = least >= 1 - SLACK and most <= 1 + SLACK  # NaN fails every comparison
    if low >= -SLACK and high <= 1 + SLACK and sums_are_one:
        return
    where = f"between the slices {z0} and {z0 + slab.shape[1] - 1}"
    if not np.isfinite(slab).all():
        bad = int(np.count_nonzero(~np.isfinite(slab).all(axis=0)))
        found, remedy = f"NaN or infinity in {bad} voxels {where}", "Look at the model and its training; predict again."
    elif low < -SLACK or (high > 1 + SLACK and (sums_are_one or most - least > SLACK)):
        found = f"values from {low:.4g} to {high:.4g} {where}, sums of a voxel from {least:.4g} to {most:.4g}: logits?"
        remedy = "Give probabilities: apply the softmax over the classes first."
    elif most - least <= SLACK:
        found, remedy = f"classes of every voxel sum to {most:.4g} {where}, not to 1", "Divide by that sum."
    else:
        found = f"classes of a voxel sum to {least:.4g} … {most:.4g} {where}, not to 1"
        remedy = "Give a softmax over all classes, the background first."
    raise error(attempted, subject, found, remedy)


def as_members(members: Any, *, attempted: str, subject: str, error: type[CurvasError]) -> list[Any]:
    """The softmax of each member of an ensemble, each not yet checked.

    Args:
        members: a sequence of softmaxes (arrays, tensors or stored volumes), or an array of five axes (M, C, Z, Y, X).
        attempted: what they are wanted for, for the message.
        subject: whose they are.
        error: the kind of error to raise.

    Raises:
        CurvasError: of the kind `error`: one softmax, a mapping, or no sequence.
    """
    remedy = "Give a sequence of softmaxes (classes, z, y, x), one for each member."
    axes = getattr(members, "ndim", None)
    if hasattr(members, "code_slabs") or hasattr(members, "slab") or axes == 4:
        raise error(attempted, subject, "one softmax instead of several", remedy)
    if axes is not None:
        if axes != 5:
            raise error(attempted, subject, f"an array of shape {tuple(members.shape)}", remedy)
    elif isinstance(members, str | bytes | Mapping) or not isinstance(members, Iterable):
        hint = f"{remedy} Of a mapping, give list(members.values())." if isinstance(members, Mapping) else remedy
        raise error(attempted, subject, f"a {type(members).__name__}", hint)
    return list(members)


@njit(parallel=True, cache=True, nogil=True)
def _extremes(p, out):
    """Per slice: smallest and largest value, smallest and largest sum of a voxel; NaN where there is one."""
    for z in prange(p.shape[1]):
        low, high, least, most = np.inf, -np.inf, np.inf, -np.inf
        total = np.empty(p.shape[3])
        unlike = False
        for y in range(p.shape[2]):
            total[:] = 0.0
            for c in range(p.shape[0]):
                line = p[c, z, y]
                for x in range(line.size):
                    value = np.float64(line[x])
                    total[x] += value
                    low = min(low, value)
                    high = max(high, value)
            for x in range(total.size):
                unlike |= total[x] != total[x]
                least = min(least, total[x])
                most = max(most, total[x])
        out[z, 0], out[z, 1], out[z, 2], out[z, 3] = low, high, least, most
        if unlike:
            out[z] = np.nan
