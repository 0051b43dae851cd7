"""One label map of several annotators': the label of most of them, or their STAPLE estimate.

Pure: label maps in, label map out. Who annotated a patient, and what is trained on the result, is said elsewhere.
"""

import hashlib
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

FEW = 16
"""Slices that are looked at side by side; any number would do."""
MARGIN = 5
"""Voxels without the organ around those where anybody drew it, in which STAPLE estimates."""
EVEN = 0.5 + 1e-6
"""Probability above which a voxel is in an organ: ITK iterates until probabilities are right to about seven digits, so that
exactly one half may come out on either side."""


class LabelMaps(Protocol):
    """Label maps uint8 (R, Z, Y, X), sliced as a NumPy array is: an array, or `storage.labels.PackedLabels`."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, where: Any, /) -> Any: ...


def fuse(drawn: LabelMaps, rule: Literal["majority", "staple"], organs: int) -> npt.NDArray[np.uint8]:
    """One label map of several. Neither the order of the maps nor the size of the scan around the organs matters, and no voxel
    gets a label that nobody gave it. A single map is the result itself.

    Args:
        drawn: one map of each annotator, uint8 (R, Z, Y, X), labels 0 … organs.
        rule: `majority` or `staple`.
        organs: number of organs; their labels are 1 … organs.

    Returns:
        uint8 (Z, Y, X).
    """
    if rule == "staple" and drawn.shape[0] > 1:
        return _staple(drawn, organs)
    fused = np.empty(drawn.shape[1:], np.uint8)
    for z0 in range(0, len(fused), FEW):
        fused[z0 : z0 + FEW] = majority(drawn[:, z0 : z0 + FEW])
    return fused


def majority(drawn: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The label that most maps have, of each voxel. Where several labels have equally many, the lowest of them wins, so that
    background comes first: it is the arg max of the mean of the one-hot labels.

    Args:
        drawn: uint8 (R, …).

    Returns:
        uint8 of the shape of one map.
    """
    fused = np.array(drawn[0], np.uint8)
    disputed = np.any([one != drawn[0] for one in drawn[1:]], axis=0) if len(drawn) > 1 else np.zeros(fused.shape, bool)
    votes = drawn[:, disputed]
    if votes.size:
        leading, most = np.zeros(votes.shape[1:], np.uint8), np.zeros(votes.shape[1:], np.int64)
        for label in np.unique(votes):  # ascending, and one at a time: 64 organs would take as many arrays
            count = np.count_nonzero(votes == label, axis=0)
            leading[count > most] = label
            most = np.maximum(most, count)
        fused[disputed] = leading
    return fused


def staple_probability(drawn: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """STAPLE's probability that a voxel is in an organ (Warfield, Zou and Wells 2004), by SimpleITK.

    STAPLE's prior is the share of voxels in the organ, and each annotator's specificity counts the voxels outside, so the
    estimate depends on how much background there is: the more, the fewer annotators it takes to be believed. The maps
    should therefore be cut to the organ (`MARGIN`).

    Args:
        drawn: where each annotator drew the organ, bool (R, Z, Y, X).

    Returns:
        Probabilities float64 (Z, Y, X); 0 where nobody drew it. The order of the annotators does not matter, to the bit.
    """
    first = drawn[0]
    if len(drawn) == 1 or all(np.array_equal(one, first) for one in drawn[1:]):
        return first.astype(np.float64)  # also of an empty organ, for which ITK's prior is 0 and its result NaN
    import SimpleITK as sitk

    masks = [np.ascontiguousarray(one, np.uint8) for one in drawn]
    masks.sort(key=lambda mask: (int(mask.sum()), hashlib.sha256(mask.data).digest()))
    estimate = sitk.STAPLEImageFilter()
    estimate.SetForegroundValue(1)
    result = estimate.Execute([sitk.GetImageFromArray(mask) for mask in masks])
    return np.where(drawn.any(axis=0), sitk.GetArrayViewFromImage(result), 0.0)


def _staple(drawn: LabelMaps, organs: int) -> npt.NDArray[np.uint8]:
    """STAPLE of each organ against everything else, within a margin around it; the organ of the largest probability above one
    half, else background.
    """
    fused, boxes = np.zeros(drawn.shape[1:], np.uint8), _boxes(drawn, organs)
    if not boxes:
        return fused
    corner = [min(box[axis].start for box in boxes.values()) for axis in range(3)]
    end = [max(box[axis].stop for box in boxes.values()) for axis in range(3)]
    largest = np.zeros([stop - start for start, stop in zip(corner, end, strict=True)], np.float32)
    for organ, box in boxes.items():
        inside = np.stack([drawn[(r, *box)] == organ for r in range(drawn.shape[0])])
        framed = np.pad(inside, ((0, 0), *[(MARGIN, MARGIN)] * 3))
        probability = staple_probability(framed)[(slice(MARGIN, -MARGIN),) * 3]
        before = largest[tuple(slice(at.start - low, at.stop - low) for at, low in zip(box, corner, strict=True))]
        believed = (probability > EVEN) & (probability > before)
        before[believed] = probability[believed]
        fused[box][believed] = organ
    return fused


def _boxes(drawn: LabelMaps, organs: int) -> dict[int, tuple[slice, slice, slice]]:
    """Organ → the box (Z, Y, X) of the voxels where anybody drew it; organs that nobody drew are left out."""
    depth, height, width = drawn.shape[1:]
    seen = {organ: [np.zeros(n, bool) for n in (depth, height, width)] for organ in range(1, organs + 1)}
    for z0 in range(0, depth, FEW):
        slab = drawn[:, z0 : z0 + FEW]
        if not slab.any():
            continue
        for organ in map(int, np.unique(slab[slab > 0])):
            if organ not in seen:
                continue
            z, y, x = seen[organ]
            anywhere = np.any(slab == organ, axis=0)
            in_plane = anywhere.any(axis=0)
            z[z0 : z0 + FEW] = anywhere.any(axis=(1, 2))
            y |= in_plane.any(axis=1)
            x |= in_plane.any(axis=0)
    found = {organ: [np.flatnonzero(axis) for axis in axes] for organ, axes in seen.items()}
    return {
        organ: (slice(z[0], z[-1] + 1), slice(y[0], y[-1] + 1), slice(x[0], x[-1] + 1))
        for organ, (z, y, x) in found.items()
        if z.size
    }
