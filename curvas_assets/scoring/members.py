# numba infers the types of its functions:
# pyright: reportMissingParameterType=false
"""What needs the members of an ensemble: expected entropy, mutual information, overlaps of their label maps."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit, prange

from curvas_assets.codes import leads
from curvas_assets.entropy import entropy_term
from curvas_assets.errors import ScoringError
from curvas_assets.parallel import PARALLEL
from curvas_assets.scoring.counting import RUN, PredictedSlab, nothing_in
from curvas_assets.scoring.uncertainty_maps import MapSummary

NOT_THE_MEAN = 2e-3
"""Distance from its members' mean beyond what storing (3e-4 for the mean, 3e-4 for its members) or float16 can
cause."""


@dataclass(frozen=True)
class MemberCounts:
    """What one pass over an ensemble and its M members found, with R annotators and C classes.

    Args:
        expected_entropy: mean over members of their entropy.
        mutual_information: the ensemble's entropy less that.
        overlap: int64 (M + R, M + R, C): voxels to which both label maps give the class; members first.
    """

    expected_entropy: MapSummary
    mutual_information: MapSummary
    overlap: npt.NDArray[np.int64]


def count_members(
    ensemble: Iterator[PredictedSlab],
    members: Sequence[Iterator[PredictedSlab]],
    annotations: Any,
    classes: int,
    region: tuple[slice, slice, slice],
    threshold: float,
) -> MemberCounts:
    """Count an ensemble's members, slab by slab, all side by side.

    Args:
        ensemble: slabs from the first slice to the last.
        members: slabs of each member, at the same slices.
        annotations: uint8 (R, Z, Y, X), sliceable.
        classes: C, background included.
        region: slices along (Z, Y, X) with start and stop.
        threshold: nats, above which a voxel's uncertainty counts as high.

    Raises:
        ScoringError: the ensemble is not the mean of these members.
    """
    zs, ys, xs = region
    shape = (zs.stop - zs.start, ys.stop - ys.start, xs.stop - xs.start)
    expected_map, mutual_map = (MapSummary(shape, classes, threshold) for _ in range(2))
    maps = len(members) + annotations.shape[0]
    overlap = np.zeros((maps, maps, classes), np.int64)
    for slabs in zip(ensemble, *members, strict=True):
        z0, z1, mean, _ = slabs[0]
        lo, hi = max(z0, zs.start), min(z1, zs.stop)
        if lo >= hi:
            continue
        drawn = np.ascontiguousarray(annotations[:, lo:hi, ys, xs])
        labels = np.empty((len(members) + len(drawn), *drawn.shape[1:]), np.uint8)
        labels[len(members) :] = drawn
        expected = np.zeros(drawn.shape[1:])
        total = np.zeros(drawn.shape[1:])
        unused = np.empty(drawn.shape[1:], np.uint8)
        sums = np.zeros((classes, *drawn.shape[1:]), np.float32)
        own = np.zeros_like(sums)
        partial = np.zeros((hi - lo, *overlap.shape), np.int64)
        with PARALLEL:
            for m, (_, _, softmax, _) in enumerate(slabs[1:]):
                part = np.ascontiguousarray(softmax[:, lo - z0 : hi - z0])
                _add_member(part, ys.start, xs.start, expected, labels[m], sums)
            part = np.ascontiguousarray(mean[:, lo - z0 : hi - z0])
            _add_member(part, ys.start, xs.start, total, unused, own)
            _overlaps(labels, partial)
        sums /= len(members)
        sums -= own
        apart = max(float(sums.max()), -float(sums.min()))
        if apart > NOT_THE_MEAN:
            raise ScoringError(
                "scoring an ensemble",
                "the predictor",
                f"it is up to {apart:.2g} away from the mean of the {len(members)} members given",
                "Give the members it was made of, or make it again from these.",
            )
        expected /= len(members)
        expected_map.add(_fixed(expected, expected_map.units))
        mutual_map.add(_fixed(total - expected, mutual_map.units))
        overlap += partial.sum(axis=0)
    both = overlap + np.triu(overlap.transpose(2, 0, 1), 1).transpose(2, 1, 0)
    return MemberCounts(expected_map, mutual_map, both)


def _fixed(nats: npt.NDArray[np.float64], units: float) -> npt.NDArray[np.int32]:
    return np.rint(nats * units).astype(np.int32)


NOBODY = np.zeros((0, 1, 1, 1), np.uint8)


@njit(parallel=True, cache=True, nogil=True)
def _add_member(p, y0, x0, entropy, labels, sums):
    """Add a softmax and its entropy to sums, and write its label map."""
    classes, depth, height, width = sums.shape
    for z in prange(depth):
        for y in range(height):
            for x in range(0, width, RUN):
                stop = min(x + RUN, width)
                if nothing_in(p, NOBODY, z, y, x, stop, y0, x0):
                    labels[z, y, x:stop] = 0
                    for i in range(x, stop):
                        sums[0, z, y, i] += np.float32(1.0)
                    continue
                for i in range(x, stop):
                    u = 0.0
                    best, most = 0, np.float32(-1.0)
                    for c in range(classes):
                        own = p[c, z, y0 + y, x0 + i]
                        sums[c, z, y, i] += own
                        u += entropy_term(np.float64(own))
                        if leads(own, most):
                            best, most = c, own
                    labels[z, y, i] = best
                    entropy[z, y, i] += u


@njit(parallel=True, cache=True, nogil=True)
def _overlaps(labels, overlap):
    """Per slice: voxels to which two label maps give the same class (upper triangle, the diagonal included)."""
    maps, depth, height, width = labels.shape
    for z in prange(depth):
        agreed = np.zeros(overlap.shape[3], np.int64)
        for y in range(height):
            for x in range(0, width, RUN):
                stop = min(x + RUN, width)
                differ = False
                for s in range(1, maps):
                    for i in range(x, stop):
                        differ |= labels[s, z, y, i] != labels[0, z, y, i]
                for i in range(x, stop):
                    first = labels[0, z, y, i]
                    same = True
                    if differ:
                        for s in range(1, maps):
                            same &= labels[s, z, y, i] == first
                    if same:
                        agreed[first] += 1
                        continue
                    for s in range(maps):
                        label = labels[s, z, y, i]
                        for other in range(s, maps):
                            if labels[other, z, y, i] == label:
                                overlap[z, s, other, label] += 1
        for s in range(maps):
            for other in range(s, maps):
                for c in range(agreed.size):
                    overlap[z, s, other, c] += agreed[c]
