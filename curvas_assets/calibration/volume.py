# numba infers the types of its functions:
# pyright: reportMissingParameterType=false
"""A calibrated predictor as a volume: read from the stored one that it is made of and changed on the way, never stored."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from curvas_assets.calibration.calibrators import Calibrator, Isotonic, Temperature
from curvas_assets.calibration.responses import logs_of
from curvas_assets.codes import DEPTH, LEAST_FOREGROUND, MOST_FOREGROUND, Codes, Levels, background_of, leads
from curvas_assets.storage.encoding import decode, encode, labels_of, search_tables, settle
from curvas_assets.storage.softmax import SoftmaxVolume

SMALL, TERMS = 0.02, 10
"""Foregrounds up to this have their background's power by so many terms of its series, to 1e-11 at T = 1/20."""


class CalibratedVolume:
    """A stored volume with other probabilities, read as the stored one is; two threads may read from it.

    What comes out is codes of the present format, as if the calibrated probabilities had been stored, so that ranks are counted
    and not sorted. A temperature changes no label: where rounding would let a lower class draw level with a voxel's most
    probable one, this one gets the next number above. Isotonic curves may change labels.

    Args:
        source: an opened volume (C, Z, Y, X).
        calibrator: fitted to this predictor.

    Attributes:
        source: the stored volume.
        shape: (C, Z, Y, X), background included.
        grid: of the scan.
        class_names: background first.
        provenance: of the source, with the calibrator's method.
        fullest_slice: the source's.
        levels: the probability of each code that comes out.
        keeps_ranking: whether the source's codes kept the order of the network's probabilities.
        beside: empty: no maps are stored with it.
    """

    def __init__(self, source: SoftmaxVolume, calibrator: Calibrator):
        self.source, self.calibrator = source, calibrator
        self.shape, self.grid, self.class_names = source.shape, source.grid, source.class_names
        self.provenance: dict[str, Any] = {**source.provenance, "calibration": type(calibrator).__name__.lower()}
        self.fullest_slice, self.keeps_ranking = source.fullest_slice, source.keeps_ranking
        self.beside: dict[str, str] = {}
        self.levels: Levels = search_tables().levels
        self._recoding = (
            _Tempering(source.levels, calibrator)
            if isinstance(calibrator, Temperature)
            else _Mapping(source.levels, calibrator, source.class_names)
        )

    def recode(self, codes: Codes) -> Codes:
        """Codes of the calibrated probabilities, from codes of the source (C − 1, dz, Y, X)."""
        return self._recoding(np.ascontiguousarray(codes))

    def code_slabs(self) -> Iterator[tuple[int, int, Codes]]:
        """(z0, z1, codes) from the first slice to the last, 16 slices at a time."""
        for z0, z1, codes in self.source.code_slabs():
            yield z0, z1, self.recode(codes)

    def codes(self, z0: int, z1: int) -> Codes:
        """Foreground codes (C − 1, z1 − z0, Y, X)."""
        return self.recode(self.source.codes(z0, z1))

    def slab(self, z0: int, z1: int) -> npt.NDArray[np.float32]:
        """Probabilities (C, z1 − z0, Y, X), background first; they sum to 1."""
        out = np.empty((self.shape[0], z1 - z0, *self.shape[2:]), np.float32)
        for begin in range(z0, z1, DEPTH):
            end = min(begin + DEPTH, z1)
            out[:, begin - z0 : end - z0] = decode(self.codes(begin, end), self.levels)
        return out

    def labels(self, z0: int, z1: int) -> npt.NDArray[np.uint8]:
        """The label map (z1 − z0, Y, X)."""
        return labels_of(self.codes(z0, z1), self.levels)


class _Tempering:
    """Recodes by a temperature."""

    def __init__(self, levels: Levels, calibrator: Temperature):
        self._levels, self._beta = levels, 1 / calibrator.temperature
        self._powers = np.exp(self._beta * logs_of(levels))
        self._series = np.ones(TERMS)
        for k in range(1, TERMS):  # of (1 − f)^β in powers of f
            self._series[k] = self._series[k - 1] * (k - 1 - self._beta) / k

    def __call__(self, codes: Codes) -> Codes:
        softmax = np.empty((len(codes) + 1, *codes.shape[1:]), np.float32)
        _temper(codes, self._levels, self._powers, self._beta, self._series, softmax)
        return encode(softmax).codes


class _Mapping:
    """Recodes by isotonic curves: a table for each organ, and the few voxels whose organs then sum to more than 1."""

    def __init__(self, levels: Levels, calibrator: Isotonic, class_names: tuple[str, ...]):
        search = search_tables()
        self._calibrated = np.stack([calibrator.of(organ)(levels) for organ in class_names[1:]])
        self._codes = np.searchsorted(search.limits[:-1], self._calibrated, side="right").astype(np.uint16)
        self._sums = search.levels[self._codes]

    def __call__(self, codes: Codes) -> Codes:
        out, beyond = np.empty_like(codes), np.zeros(codes.shape[1:], np.bool_)
        if _map(codes, self._codes, self._sums, out, beyond):
            where = np.nonzero(beyond)
            organs = np.stack([p[code[where]] for p, code in zip(self._calibrated, codes, strict=True)])
            values = np.concatenate([np.zeros((1, organs.shape[1])), organs / organs.sum(axis=0)]).astype(np.float32)
            found = settle(values, values.argmax(axis=0))
            for line, code in zip(out, found, strict=True):
                line[where] = code
        return out


@njit(cache=True, nogil=True)
def _map(codes, table, sums, out, beyond):
    """Look each code up in the table of its organ, and mark the voxels whose organs sum to more than 1; how many there are."""
    organs, depth, height, width = codes.shape
    found = 0
    foreground = np.empty(width)
    for z in range(depth):
        for y in range(height):
            foreground[:] = 0.0
            for c in range(organs):
                line, to, own, other = codes[c, z, y], out[c, z, y], table[c], sums[c]
                for x in range(width):
                    to[x] = own[line[x]]
                    foreground[x] += other[line[x]]
            for x in range(width):
                if foreground[x] > MOST_FOREGROUND:
                    beyond[z, y, x] = True
                    found += 1
    return found


@njit(cache=True, nogil=True, error_model="numpy")
def _temper(codes, levels, powers, beta, series, softmax):
    """softmax(β ln p), float32 (C, dz, Y, X), with the label of p."""
    organs, depth, height, width = codes.shape
    foreground, total, own = np.empty(width), np.empty(width), np.empty(width)
    decoded = levels.astype(np.float32)
    for z in range(depth):
        for y in range(height):
            foreground[:] = 0.0
            total[:] = 0.0
            for c in range(organs):
                line = codes[c, z, y]
                for x in range(width):
                    foreground[x] += np.float64(decoded[line[x]])
                for x in range(width):
                    total[x] += powers[line[x]]
            for x in range(width):  # (1 − f)^β by its series, of all voxels at once
                f, power = foreground[x], 0.0
                for k in range(series.size - 1, -1, -1):
                    power = power * f + series[k]
                own[x] = power
            for x in range(width):
                if foreground[x] < LEAST_FOREGROUND:
                    own[x] = 1.0
                elif foreground[x] > SMALL:
                    own[x] = np.exp(beta * np.log(max(1.0 - foreground[x], LEAST_FOREGROUND)))
            rest = softmax[0, z, y]
            for x in range(width):
                total[x] = 1.0 / (total[x] + own[x])
            for x in range(width):
                rest[x] = np.float32(own[x] * total[x])
            for c in range(organs):
                line, out = codes[c, z, y], softmax[c + 1, z, y]
                for x in range(width):
                    out[x] = np.float32(powers[line[x]] * total[x])
            for x in range(width):
                if foreground[x] > 0.1:  # below, the background is far ahead, however it is rounded
                    _keep_label(z, y, x, codes, decoded, foreground[x], softmax)


@njit(cache=True, nogil=True, inline="always")
def _keep_label(z, y, x, codes, decoded, foreground, softmax):
    """Let the most probable class stay ahead of lower ones, and level with no less than the higher ones."""
    best, most = 0, np.float32(background_of(foreground))
    for c in range(codes.shape[0]):
        p = decoded[codes[c, z, y, x]]
        if leads(p, most):
            best, most = c + 1, p
    own = softmax[best, z, y, x]
    for c in range(softmax.shape[0]):
        other = softmax[c, z, y, x]
        if c < best and not leads(own, other):
            own = np.int32(np.float32(other).view(np.int32) + 1).view(np.float32)  # the next number above
        elif c > best:
            own = max(own, other)
    softmax[best, z, y, x] = own
