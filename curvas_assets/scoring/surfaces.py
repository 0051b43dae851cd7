# numba infers the types of its functions:
# pyright: reportMissingParameterType=false
"""Distances between the surfaces of a predicted organ and of each annotator's, on the organ's box.

A surface voxel belongs to the organ and has a face neighbour that does not; beyond the region there is nothing (MONAI
and SciPy do the same). The normalised surface Dice measures areas: a surface element stands at each corner where voxels
of the organ and others meet, with the area that the authors' table gives for its pattern (Nikolov et al. 2021).

A surface voxel's nearest counterpart is usually close, so offsets are tried in the order of their length; the first hit
is exact. A k-d tree finds what is not nearby. No distance map is made.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit, prange

from curvas_assets.parallel import PARALLEL

NEAR = 1000
"""Offsets tried before the k-d tree is asked: a ball of about six voxels."""
MOST_OFFSETS = 10_000
"""Most offsets in a ball of the tolerance; with more, distances are measured instead."""

Points = npt.NDArray[np.int32]


@dataclass(frozen=True)
class SurfaceDistances:
    """Between a predicted organ and one annotator's; NaN if both are empty, infinite (nsd: 0) if one is.

    Args:
        hausdorff: largest distance, mm.
        hd95: larger of the two directed 95th percentiles, mm.
        assd: mean over both surfaces' voxels, mm.
        nsd: share of both surfaces' area that lies within the tolerance of the other.
    """

    hausdorff: float
    hd95: float
    assd: float
    nsd: float


UNDEFINED = SurfaceDistances(np.nan, np.nan, np.nan, np.nan)
ONE_EMPTY = SurfaceDistances(np.inf, np.inf, np.inf, 0.0)


def surface_distances(
    predicted: npt.NDArray[np.uint8],
    drawn: npt.NDArray[np.uint8],
    label: int,
    spacing_mm: Sequence[float],
    tolerance_mm: float,
) -> list[SurfaceDistances]:
    """Distances of a predicted organ to each annotator's.

    Args:
        predicted: label map (Z, Y, X), the organ's box or more.
        drawn: label maps of the annotators (R, Z, Y, X), the same box; R ≤ 63.
        label: of the organ.
        spacing_mm: voxel size along (Z, Y, X).
        tolerance_mm: of the normalised surface Dice.

    References:
        Nikolov et al. 2021, doi:10.2196/26151.
    """
    annotators = len(drawn)
    kind = next(t for t in (np.uint8, np.uint16, np.uint32, np.uint64) if annotators + 1 <= np.iinfo(t).bits)
    depth, height, width = predicted.shape
    inside = np.zeros((depth + 2, height + 2, width + 2), kind)
    edges = np.zeros_like(inside)
    corners = np.zeros((depth + 1, height + 1, width + 1), kind)
    with PARALLEL:
        _mark(np.ascontiguousarray(predicted), np.ascontiguousarray(drawn), label, inside)
        _surfaces(inside, edges, corners)
    points = _points(edges)
    owners = edges[tuple(points.T)]
    spots = _points(corners)
    spot_owners = corners[tuple(spots.T)]
    areas = _areas(inside, spots, annotators + 1, tuple(float(s) for s in spacing_mm))
    sizes = [int(np.count_nonzero(owners & kind(1 << s))) for s in range(annotators + 1)]
    found = []
    nearby = _offsets(tuple(float(s) for s in spacing_mm), NEAR)
    many = 4 / 3 * np.pi * tolerance_mm**3 / float(np.prod(spacing_mm)) > MOST_OFFSETS
    close = None if many else _within(tuple(float(s) for s in spacing_mm), float(tolerance_mm))
    for r in range(1, annotators + 1):
        if sizes[0] == 0 or sizes[r] == 0:
            found.append(UNDEFINED if sizes[0] == sizes[r] else ONE_EMPTY)
            continue
        one = _distances(
            edges, points[owners & kind(1) > 0], points[owners & kind(1 << r) > 0], 1 << r, nearby, spacing_mm
        )
        other = _distances(
            edges, points[owners & kind(1 << r) > 0], points[owners & kind(1) > 0], 1, nearby, spacing_mm
        )
        near_area = total_area = 0.0
        for own, target in ((0, r), (r, 0)):
            mine = (spot_owners >> kind(own)) & kind(1) == 1
            if close is None:
                targets = spots[(spot_owners >> kind(target)) & kind(1) == 1]
                distances = _distances(corners, spots[mine], targets, 1 << target, nearby, spacing_mm)
                hit = distances <= tolerance_mm * (1 + 1e-9)  # the k-d tree rounds
            else:
                with PARALLEL:
                    hit = _any_within(corners, spots[mine], np.uint64(1 << target), close)
            near_area += float(areas[own][mine][hit].sum())
            total_area += float(areas[own][mine].sum())
        found.append(
            SurfaceDistances(
                hausdorff=float(max(one.max(), other.max())),
                hd95=float(max(np.percentile(one, 95), np.percentile(other, 95))),
                assd=float((one.sum() + other.sum()) / (one.size + other.size)),
                nsd=near_area / total_area,
            )
        )
    return found


def _points(marked: npt.NDArray[Any]) -> Points:
    with PARALLEL:
        counts = _row_counts(marked)
        starts = np.concatenate([[0], np.cumsum(counts.ravel())])
        points = np.empty((int(starts[-1]), 3), np.int32)
        _gather(marked, starts, points)
    return points


def _distances(
    edges: npt.NDArray[Any],
    points: Points,
    target_points: Points,
    target: int,
    nearby: tuple[npt.NDArray[np.int32], npt.NDArray[np.float64]],
    spacing_mm: Sequence[float],
) -> npt.NDArray[np.float64]:
    """The distance of each point to the nearest point of the target, mm."""
    offsets, lengths = nearby
    with PARALLEL:
        found = _nearest(edges, points, np.uint64(target), offsets, lengths)
    far = np.flatnonzero(found < 0)
    if far.size:
        from scipy.spatial import cKDTree

        scale = np.asarray(spacing_mm, float)
        found[far] = cKDTree(target_points * scale).query(points[far] * scale, workers=-1)[0]
    return found


@lru_cache(maxsize=16)
def _offsets(spacing_mm: tuple[float, ...], number: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float64]]:
    """The shortest voxel offsets and their lengths in mm, in that order; complete up to the last one's length."""
    reach = 2.0 * (number * 3 / 4 / np.pi * float(np.prod(spacing_mm))) ** (1 / 3)
    offsets, lengths = _within(spacing_mm, max(reach, 2 * max(spacing_mm)), with_lengths=True)
    # Offsets of one length are kept or dropped together.
    keep = lengths < lengths[min(number, len(lengths) - 1)] if len(lengths) > number else np.ones(len(lengths), bool)
    return offsets[keep], lengths[keep]


def _within(spacing_mm: tuple[float, ...], reach_mm: float, *, with_lengths: bool = False) -> Any:
    """All voxel offsets up to a length, the shortest first."""
    spans = [np.arange(-int(reach_mm // s), int(reach_mm // s) + 1) for s in spacing_mm]
    grid = np.stack(np.meshgrid(*spans, indexing="ij"), axis=-1).reshape(-1, 3)
    lengths = np.sqrt(((grid * np.asarray(spacing_mm)) ** 2).sum(axis=1))
    order = np.argsort(lengths, kind="stable")
    order = order[lengths[order] <= reach_mm]
    offsets = grid[order].astype(np.int32)
    return (offsets, lengths[order]) if with_lengths else offsets


@lru_cache(maxsize=16)
def _area_table(spacing_mm: tuple[float, ...]) -> npt.NDArray[np.float64]:
    """mm² of the surface in each of the 256 patterns of 2 × 2 × 2 voxels."""
    from surface_distance.lookup_tables import create_table_neighbour_code_to_surface_area

    return np.asarray(create_table_neighbour_code_to_surface_area(spacing_mm), np.float64)


def _areas(
    inside: npt.NDArray[Any], spots: Points, maps: int, spacing_mm: tuple[float, ...]
) -> list[npt.NDArray[np.float64]]:
    table = _area_table(spacing_mm)
    out = []
    for s in range(maps):
        with PARALLEL:
            out.append(table[_patterns(inside, spots, s)])
    return out


@njit(parallel=True, cache=True, nogil=True)
def _mark(predicted, drawn, label, inside):
    """Bit 0: predicted, bit r: annotator r, in an array with a rim of one voxel."""
    depth, height, width = predicted.shape
    for z in prange(depth):
        for y in range(height):
            for x in range(width):
                bits = np.uint64(predicted[z, y, x] == label)
                for r in range(drawn.shape[0]):
                    bits |= np.uint64(drawn[r, z, y, x] == label) << np.uint64(r + 1)
                inside[z + 1, y + 1, x + 1] = bits


@njit(parallel=True, cache=True, nogil=True)
def _surfaces(inside, edges, corners):
    """Surface voxels, and corners where voxels inside and outside meet, of all label maps at once."""
    depth, height, width = inside.shape
    for z in prange(depth - 1):
        for y in range(height - 1):
            if z > 0 and y > 0:
                for x in range(1, width - 1):
                    own = inside[z, y, x]
                    around = (
                        inside[z - 1, y, x]
                        & inside[z + 1, y, x]
                        & inside[z, y - 1, x]
                        & inside[z, y + 1, x]
                        & inside[z, y, x - 1]
                        & inside[z, y, x + 1]
                    )
                    edges[z, y, x] = own & ~around
            for x in range(width - 1):
                a, b = inside[z, y, x], inside[z, y, x + 1]
                c, d = inside[z, y + 1, x], inside[z, y + 1, x + 1]
                e, f = inside[z + 1, y, x], inside[z + 1, y, x + 1]
                g, h = inside[z + 1, y + 1, x], inside[z + 1, y + 1, x + 1]
                corners[z, y, x] = (a | b | c | d | e | f | g | h) & ~(a & b & c & d & e & f & g & h)


@njit(parallel=True, cache=True, nogil=True)
def _row_counts(marked):
    counts = np.zeros(marked.shape[:2], np.int64)
    for z in prange(marked.shape[0]):
        for y in range(marked.shape[1]):
            number = 0
            for x in range(marked.shape[2]):
                number += marked[z, y, x] != 0
            counts[z, y] = number
    return counts


@njit(parallel=True, cache=True, nogil=True)
def _gather(marked, starts, points):
    for z in prange(marked.shape[0]):
        for y in range(marked.shape[1]):
            i = starts[z * marked.shape[1] + y]
            if starts[z * marked.shape[1] + y + 1] == i:
                continue
            for x in range(marked.shape[2]):
                if marked[z, y, x] != 0:
                    points[i, 0] = z
                    points[i, 1] = y
                    points[i, 2] = x
                    i += 1


@njit(cache=True, nogil=True, inline="always")
def _first_hit(marked, point, target, offsets):
    """The first offset at which the target is; −1 if there is none."""
    for k in range(offsets.shape[0]):
        z, y, x = point[0] + offsets[k, 0], point[1] + offsets[k, 1], point[2] + offsets[k, 2]
        inside = 0 <= z < marked.shape[0] and 0 <= y < marked.shape[1] and 0 <= x < marked.shape[2]
        if inside and np.uint64(marked[z, y, x]) & target != 0:
            return k
    return -1


@njit(parallel=True, cache=True, nogil=True)
def _nearest(marked, points, target, offsets, lengths):
    """Distance of each point to the nearest marked voxel; −1 if that is beyond the offsets."""
    out = np.empty(points.shape[0])
    for i in prange(points.shape[0]):
        k = _first_hit(marked, points[i], target, offsets)
        out[i] = lengths[k] if k >= 0 else -1.0
    return out


@njit(parallel=True, cache=True, nogil=True)
def _any_within(marked, points, target, offsets):
    out = np.empty(points.shape[0], np.bool_)
    for i in prange(points.shape[0]):
        out[i] = _first_hit(marked, points[i], target, offsets) >= 0
    return out


@njit(parallel=True, cache=True, nogil=True)
def _patterns(inside, spots, s):
    """The 2 × 2 × 2 voxels of a label map around each corner as one number, the last voxel in the lowest bit."""
    out = np.empty(spots.shape[0], np.uint8)
    bit = np.uint64(1) << np.uint64(s)
    for i in prange(spots.shape[0]):
        z, y, x = spots[i, 0], spots[i, 1], spots[i, 2]
        pattern = 0
        for k in range(8):
            value = np.uint64(inside[z + (k >> 2), y + ((k >> 1) & 1), x + (k & 1)]) & bit
            pattern = (pattern << 1) | (1 if value != 0 else 0)
        out[i] = pattern
    return out
