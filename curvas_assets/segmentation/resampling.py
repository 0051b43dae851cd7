# numba infers the types of its functions:
# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportUnknownVariableType=false
"""nnU-Net's resampling of CTs and label maps, to the bit, in a fraction of its time and memory.

nnU-Net resamples by scikit-image's `resize`, which is SciPy's `ndimage.zoom` (edges repeated, voxel centres aligned): a
cubic spline for a CT, and for a label map a linear interpolation of each label's mask, of which the largest wins
(batchgenerators' `resize_segmentation`). These take float64 copies of whole volumes, padded and once per label. Here
slices stream from the last to the first: SciPy's operations in SciPy's order, so that each float32 is the same, but a
few slices of float64 at a time. SciPy's wheels for x86-64 round each product and sum, as numba does; where a compiler
fuses them (other processors), values may differ in the last bit of a float64, of which a float32 keeps less than half.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

Plane = npt.NDArray[np.float64]
Shape = tuple[int, int, int]
POLE = -0.267949192431122706472553658494127633
"""Of the cubic B-spline: √3 − 2, as SciPy has it."""
GAIN = (1.0 - POLE) * (1.0 - 1.0 / POLE)
PADDING = 12
"""Slices by which SciPy extends a volume on each side before it filters."""
KEPT = 32
"""A running state is kept every so many slices; what lies between is computed again on the way back."""
NOTHING = 2.0**-56
"""Whoever adds less than this share of a float64 to it does not change it."""
CUBIC = 4
"""Neighbours along an axis that a cubic spline weighs."""


@dataclass(frozen=True)
class Axis:
    """Where the positions of a resampled axis lie on the present one.

    Args:
        start: the first of the neighbours of each position.
        weight: (positions, neighbours).
    """

    start: npt.NDArray[np.int64]
    weight: npt.NDArray[np.float64]


def positions(length: int, wanted: int) -> npt.NDArray[np.float64]:
    """Where the voxels of an axis that is to have `wanted` of them lie on one that has `length`."""
    return (np.arange(wanted) + 0.5) * (np.float64(length) / np.float64(wanted)) - 0.5


def cubic_axis(length: int, wanted: int) -> Axis:
    """Four neighbours of each position, on the axis that is padded by 12 voxels at each end."""
    at = positions(length, wanted) + float(PADDING)
    below = np.floor(at)
    y = at - below
    z = 1.0 - y
    w0, w1, w2 = z * z * z / 6.0, (y * y * (y - 2.0) * 3.0 + 4.0) / 6.0, (z * z * (z - 2.0) * 3.0 + 4.0) / 6.0
    return Axis(below.astype(np.int64) - 1, np.stack([w0, w1, w2, 1.0 - w0 - w1 - w2], axis=1))


def linear_axis(length: int, wanted: int) -> Axis:
    """Two neighbours of each position; the first may be −1, the second `length`, which stand for the edge."""
    at = positions(length, wanted)
    below = np.floor(at)
    w0 = 1.0 - (at - below)
    return Axis(below.astype(np.int64), np.stack([w0, 1.0 - w0], axis=1))


def nearest_voxels(length: int, wanted: int) -> npt.NDArray[np.int64]:
    """The voxel that is nearest to each position."""
    return np.clip(np.floor(positions(length, wanted) + 0.5).astype(np.int64), 0, length - 1)


# CTs -----------------------------------------------------------------------------------------------------------------


def resample_image(
    plane: Callable[[int], npt.NDArray[np.float32]], shape: Shape, wanted: Shape, *, threads: int = 1
) -> npt.NDArray[np.float32]:
    """A CT by cubic spline in three dimensions.

    Args:
        plane: z → float32 (Y, X), finite; asked for three times each.
        shape: voxels along (Z, Y, X) now.
        wanted: voxels along (Z, Y, X) then.
        threads: that share each slice.

    Returns:
        float32 (Z, Y, X).
    """
    out = np.empty(wanted, np.float32)
    z_axis, y_axis, x_axis = (cubic_axis(n, m) for n, m in zip(shape, wanted, strict=True))
    y, x = (y_axis.start, y_axis.weight), (x_axis.start, np.ascontiguousarray(x_axis.weight.T))
    first = z_axis.start  # ascending
    needed = {int(start) + k for start in first for k in range(CUBIC)}
    ring: dict[int, Plane] = {}
    position = len(first) - 1
    with ThreadPoolExecutor(threads) as pool:
        share = _Shares(pool, threads)
        coefficients = _Coefficients(plane, shape, share)
        low, high = coefficients.low, coefficients.high
        for z, along_z in coefficients.descending():
            if z in needed:
                ring[z] = _filter_in_plane(along_z, share)
            ring.pop(z + CUBIC, None)
            while position >= 0 and first[position] == z:
                four, weight, target = tuple(ring[z + k] for k in range(CUBIC)), z_axis.weight[position], out[position]
                share(wanted[1], lambda a, b, f=four, w=weight, t=target: _interpolate(f, w, y, *x, low, high, t, a, b))
                position -= 1
    return out


def resample_image_slices(
    plane: Callable[[int], npt.NDArray[np.float32]], shape: Shape, wanted: Shape, *, threads: int = 1
) -> npt.NDArray[np.float32]:
    """A CT with thick slices: each slice by cubic spline, then along Z the nearest slice. Arguments as `resample_image`."""
    out = np.empty(wanted, np.float32)
    _, y_axis, x_axis = (cubic_axis(n, m) for n, m in zip(shape, wanted, strict=True))
    y, x = (y_axis.start, y_axis.weight), (x_axis.start, np.ascontiguousarray(x_axis.weight.T))
    alone, before = np.ones(1), -1
    with ThreadPoolExecutor(threads) as pool:
        share = _Shares(pool, threads)
        for z, source in _nearest_slices(shape[0], wanted[0]):
            if source == before:
                out[z] = out[z - 1]
                continue
            before, voxels = source, plane(source)
            if shape[1:] == wanted[1:]:
                out[z] = voxels
                continue
            low, high = float(voxels.min()), float(voxels.max())
            filtered = (_filter_in_plane(voxels.astype(np.float64), share),)
            share(
                wanted[1], lambda a, b, f=filtered, e=(low, high), t=out[z]: _interpolate(f, alone, y, *x, *e, t, a, b)
            )
    return out


def _nearest_slices(length: int, wanted: int) -> Iterator[tuple[int, int]]:
    return enumerate(range(length) if length == wanted else map(int, nearest_voxels(length, wanted)))


class _Shares:
    """Runs a function on shares of a range, side by side."""

    def __init__(self, pool: ThreadPoolExecutor, number: int):
        self.pool, self.number = pool, number

    def __call__(self, n: int, work: Callable[[int, int], Any]) -> None:
        if self.number == 1:
            work(0, n)
            return
        number = min(self.number, n)
        edges = [n * k // number for k in range(number + 1)]
        for done in [self.pool.submit(work, a, b) for a, b in itertools.pairwise(edges)]:
            done.result()


class _Coefficients:
    """The spline's coefficients along Z alone, slice by slice, of a volume that is extended by its edges along Z.

    SciPy filters each line forth and back. Lines along Z run through all slices, so forth the running state is kept at
    some slices only, and on the way back what lies between is computed again.
    """

    def __init__(self, plane: Callable[[int], npt.NDArray[np.float32]], shape: tuple[int, int, int], share: _Shares):
        self.plane, self.shape, self.share = plane, shape, share
        extremes = [(float(voxels.min()), float(voxels.max())) for voxels in map(plane, range(shape[0]))]
        self.low, self.high = min(low for low, _ in extremes), max(high for _, high in extremes)

    def _padded(self, z: int) -> npt.NDArray[np.float32]:
        return self.plane(min(max(z - PADDING, 0), self.shape[0] - 1))

    def descending(self) -> Iterator[tuple[int, Plane]]:
        """(z of the padded volume, coefficients (Y, X)) from the last slice to the first; one array, used again."""
        n, rows = self.shape[0] + 2 * PADDING, self.shape[1]
        state = self._first(n)
        kept = {0: state.copy()}
        for z in range(1, n):
            voxels = self._padded(z)
            self.share(rows, lambda a, b, v=voxels: _forth(v[a:b], state[a:b]))
            if z % KEPT == 0:
                kept[z] = state.copy()
        back, between = state, np.empty((KEPT, *self.shape[1:]))
        back *= POLE / (POLE - 1)
        for z0 in sorted(kept, reverse=True):
            between[0] = kept.pop(z0)
            last = min(z0 + KEPT, n) - 1
            for z in range(z0 + 1, last + 1):
                voxels, after = self._padded(z), between[z - z0]
                after[:] = between[z - z0 - 1]
                self.share(rows, lambda a, b, v=voxels, c=after: _forth(v[a:b], c[a:b]))
            for z in range(last, z0 - 1, -1):
                if z < n - 1:
                    self.share(rows, lambda a, b, c=between[z - z0]: _back(c[a:b], back[a:b]))
                yield z, back

    def _first(self, n: int) -> Plane:
        """The first slice's state: a sum over all slices, whose terms are soon too small to change it."""
        power, far = POLE, math.pow(POLE, n)
        largest = 2 * GAIN * max(-self.low, self.high)
        first = self._padded(0).astype(np.float64) * GAIN
        total = first + far * (self._padded(n - 1).astype(np.float64) * GAIN)
        for z in range(1, n):
            _add(self._padded(z), self._padded(n - 1 - z), power, far, total)
            power *= POLE
            if z % 8 == 0 and abs(power) * largest < np.abs(total).min() * NOTHING:
                break
        return first + total * POLE / (1 - far * far)


@njit(nogil=True, cache=True)
def _add(voxels, others, power, far, total):
    for y in range(voxels.shape[0]):
        for x in range(voxels.shape[1]):
            total[y, x] += power * (np.float64(voxels[y, x]) * GAIN + far * (np.float64(others[y, x]) * GAIN))


@njit(nogil=True, cache=True)
def _forth(voxels, state):
    for y in range(voxels.shape[0]):
        for x in range(voxels.shape[1]):
            state[y, x] = np.float64(voxels[y, x]) * GAIN + POLE * state[y, x]


@njit(nogil=True, cache=True)
def _back(forth, back):
    for y in range(forth.shape[0]):
        for x in range(forth.shape[1]):
            back[y, x] = POLE * (back[y, x] - forth[y, x])


def _filter_in_plane(plane: Plane, share: _Shares) -> Plane:
    """A slice's coefficients along Y and X, extended by its edges: (Y + 24, X + 24)."""
    rows, columns = plane.shape
    along_y = np.empty((rows + 2 * PADDING, columns))
    share(columns, lambda a, b: _filter_columns(plane, math.pow(POLE, len(along_y)), along_y, a, b))
    turned = np.ascontiguousarray(along_y.T)
    along_x = np.empty((columns + 2 * PADDING, len(along_y)))
    share(len(along_y), lambda a, b: _filter_columns(turned, math.pow(POLE, len(along_x)), along_x, a, b))
    return np.ascontiguousarray(along_x.T)


@njit(nogil=True, cache=True)
def _filter_columns(lines, far, c, first, end):
    """SciPy's filter of columns first … end, extended by their edges, into `c`; side by side, so that processors' vectors are used."""
    n, largest = c.shape[0], 0.0
    for i in range(n):
        source = min(max(i - PADDING, 0), lines.shape[0] - 1)
        for x in range(first, end):
            value = lines[source, x] * GAIN
            c[i, x] = value
            largest = max(largest, abs(value))
    total = np.empty(end - first)
    for x in range(first, end):
        total[x - first] = c[0, x] + far * c[n - 1, x]
    power = POLE
    for i in range(1, n):
        for x in range(first, end):
            total[x - first] += power * (c[i, x] + far * c[n - 1 - i, x])
        power *= POLE
        if i % 8 == 0 and abs(power) * 2 * largest < np.abs(total).min() * NOTHING:
            break
    for x in range(first, end):
        c[0, x] += total[x - first] * POLE / (1 - far * far)
    for i in range(1, n):
        for x in range(first, end):
            c[i, x] += POLE * c[i - 1, x]
    for x in range(first, end):
        c[n - 1, x] *= POLE / (POLE - 1)
    for i in range(n - 2, -1, -1):
        for x in range(first, end):
            c[i, x] = POLE * (c[i + 1, x] - c[i, x])


@njit(nogil=True, cache=True)
def _interpolate(four, z_weight, y_axis, x_start, x_weight, low, high, out, first, end):
    """Rows first … end of a slice, from four slices of coefficients, or one; the sum's 64 terms, or 16, in SciPy's order."""
    y_start, y_weight = y_axis
    weighted = np.empty(four[0].shape[1])
    total = np.empty(out.shape[1])
    for y in range(first, end):
        total[:] = 0.0
        for h in range(len(four)):
            for k in range(CUBIC):
                row, along_z, along_y = four[h][y_start[y] + k], z_weight[h], y_weight[y, k]
                for x in range(weighted.size):
                    weighted[x] = row[x] * along_z * along_y
                for x in range(total.size):
                    at, t = x_start[x], total[x]
                    t += weighted[at] * x_weight[0, x]
                    t += weighted[at + 1] * x_weight[1, x]
                    t += weighted[at + 2] * x_weight[2, x]
                    t += weighted[at + 3] * x_weight[3, x]
                    total[x] = t
        for x in range(total.size):
            out[y, x] = min(max(total[x], low), high)


# Label maps ----------------------------------------------------------------------------------------------------------


def resample_labels(
    labels: npt.NDArray[Any], wanted: Shape, *, slices: bool = False, threads: int = 1
) -> npt.NDArray[Any]:
    """A label map: of each position's eight neighbours, the label with the largest sum of weights.

    On a tie it is the label of the nearest voxel, if that is one of the tied; else the smallest.

    Args:
        labels: whole numbers (Z, Y, X).
        wanted: voxels along (Z, Y, X) then.
        slices: of thick slices: each slice by itself, then along Z the nearest slice.
        threads: that share each slice.

    Returns:
        (Z, Y, X) of the same type.
    """
    out = np.empty(wanted, labels.dtype)
    shape = labels.shape
    neighbours = [_clamped(linear_axis(n, m), n) for n, m in zip(shape, wanted, strict=True)]
    near = [nearest_voxels(n, m) for n, m in zip(shape, wanted, strict=True)]
    (z_below, z_above, z_weight), y_axis, x_axis = neighbours
    in_plane = (*y_axis, near[1]), (*x_axis, near[2])
    alone = np.ones(1)
    with ThreadPoolExecutor(threads) as pool:
        share = _Shares(pool, threads)
        for z, source in _nearest_slices(shape[0], wanted[0]) if slices else enumerate(map(int, near[0])):
            if slices:
                planes, weight = (labels[source],), alone
            else:
                planes, weight = (labels[z_below[z]], labels[z_above[z]]), z_weight[z]
            share(
                wanted[1],
                lambda a, b, p=planes, w=weight, n=labels[source], t=out[z]: _vote(p, w, n, *in_plane, t, a, b),
            )
    return out


def _clamped(axis: Axis, length: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Both neighbours of each position, edges repeated, and their weights."""
    return np.clip(axis.start, 0, length - 1), np.clip(axis.start + 1, 0, length - 1), axis.weight


@njit(nogil=True, cache=True)
def _vote(planes, z_weight, nearest, y_axis, x_axis, out, first, end):
    """Rows first … end of a slice of labels, from two slices, or one."""
    y_below, y_above, y_weight, y_near = y_axis
    x_below, x_above, x_weight, x_near = x_axis
    number = 4 * len(planes)
    label, share = np.empty(number, np.int64), np.empty(number)
    for y in range(first, end):
        low, high = y_below[y], y_above[y]
        for x in range(out.shape[1]):
            left, right = x_below[x], x_above[x]
            common = planes[0][low, left]
            alike = True
            for plane in planes:
                alike &= (
                    (plane[low, left] == common)
                    & (plane[low, right] == common)
                    & (plane[high, left] == common)
                    & (plane[high, right] == common)
                )
            if alike:
                out[y, x] = common
                continue
            for h in range(len(planes)):
                plane = planes[h]
                for k in range(2):
                    row, along = (high if k else low), z_weight[h] * y_weight[y, k]
                    i = 4 * h + 2 * k
                    label[i], share[i] = plane[row, left], along * x_weight[x, 0]
                    label[i + 1], share[i + 1] = plane[row, right], along * x_weight[x, 1]
            winner, most = label[0], -1.0
            for i in range(number):
                votes = _votes(label, share, label[i])
                if votes > most or (votes == most and label[i] < winner):
                    winner, most = label[i], votes
            close = np.int64(nearest[y_near[y], x_near[x]])
            out[y, x] = close if _votes(label, share, close) == most else winner


@njit(nogil=True, cache=True)
def _votes(label, share, of):
    total = 0.0
    for i in range(label.size):
        if label[i] == of:
            total += share[i]
    return min(total, 1.0)
