# numba infers the types of its functions:
# pyright: reportMissingParameterType=false
"""What a predictor's stored probabilities are worth on a patient: histograms, from which calibrations are fitted.

Voxels are counted once, as they stream past, and never kept or sorted:

- per organ and code, the voxels and how many annotators gave them the organ: what an isotonic curve is fitted to;
- the log-odds of all organs against the background, jointly, in at most 255 bins each: what a temperature is fitted to.
  Below 10⁻³, where a trained network has nearly all its voxels, each code is a bin; up to 10³ a bin is 1/8 nat wide, and
  0.3 beyond. The part that depends on annotators is summed exactly. A volume whose voxels are all different fills the joint histogram; it is then folded into the sums at
  fixed temperatures that are wanted of it in the end, and begins anew.

A probability of 0 counts as half the smallest one that has a code (3e-38), a background below 2⁻²⁴ as 2⁻²⁴: what codes can
tell apart.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from curvas_assets.codes import DEPTH, LEAST_FOREGROUND, Codes, Levels
from curvas_assets.errors import CalibrationError
from curvas_assets.storage.side_by_side import code_slabs_of
from curvas_assets.storage.softmax import SoftmaxVolume

Spans = tuple[slice, slice, slice]
"""Along (Z, Y, X), each with start and stop."""
BETAS = np.geomspace(1 / 20, 20, 40)
"""Inverse temperatures at which the joint histogram is summed."""
MOST_CELLS = 1 << 19
"""Of the joint histogram, before it is folded into sums."""
LEAST_CELLS = 1 << 12
KEYED_ORGANS = 8
"""Whose bins fit into the key of a cell. Of more organs, the key is 64 bits of a hash of the bins, which are kept beside it: among
as many cells as there may be, two of different bins share one with a probability of 1e-8."""
SURE = 1e-3
"""Organs below this leave a background of 1, as far as the bins of the log-odds can tell."""
EMPTY = np.uint64(2**64 - 1)
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
STEP, LAST_STEP = 1 / 8, 0.3
"""Width of bins of log-odds between ln SURE and −ln SURE, and beyond, nats."""
MOST_ODDS = 17.0
"""Nats: no probability beside a background of 2⁻²⁴ has larger log-odds."""


@dataclass(frozen=True)
class PatientResponses:
    """One predictor and patient; C classes (0 is background), L levels, R annotators, B inverse temperatures.

    Args:
        voxels: that were counted.
        annotators: R, those who annotated this patient.
        levels: float64 (L,), the probability of each code, ascending.
        codes: int64 (C − 1, L), voxels by organ and code.
        positives: int64 (C − 1, L), by how many annotators they were given the organ, summed.
        log_odds: Σ over voxels and organs of the share of annotators who gave the organ × ln(p / background).
        partition: Σ over voxels of ln(1 + Σ over organs of p / background).
        slopes: float64 (2, B): first and second derivative by β of Σ ln(1 + Σ (p / background)^β), at `BETAS`.
    """

    voxels: int
    annotators: int
    levels: Levels
    codes: npt.NDArray[np.int64]
    positives: npt.NDArray[np.int64]
    log_odds: float
    partition: float
    slopes: npt.NDArray[np.float64]

    @property
    def cross_entropy(self) -> float:
        """Mean over voxels of −Σ over classes of the share of annotators × ln p, in nats."""
        return (self.partition - self.log_odds) / self.voxels


def count_responses(
    predictors: Mapping[str, SoftmaxVolume],
    annotations: Any,
    region: Spans,
    *,
    every: int = 1,
    first: int = 0,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> dict[str, PatientResponses]:
    """Count a patient's predictors against the annotators' answers, each slab of each volume read once.

    Args:
        predictors: name → stored volume (C, Z, Y, X).
        annotations: label maps uint8 (R, Z, Y, X) of those who annotated, sliceable.
        region: voxels outside do not count: where the patient is scored.
        every: of the slabs of 16 slices that hold the region, every which one is counted.
        first: which of the first `every` slabs is the first one.
        progress: told how many slabs of how many are counted.

    Raises:
        CalibrationError: shapes or labels do not fit together, or no voxel is left.
        CorruptArtefactError, MissingArtefactError: of a stored volume that cannot be read.
    """
    zs, ys, xs = region
    _require_fitting(predictors, annotations)
    counters = {name: _Counter(volume, annotations.shape[0]) for name, volume in predictors.items()}
    with ThreadPoolExecutor(2, thread_name_prefix="curvas-calibrate") as threads:
        for done, of, z0, slabs in _slabs(list(predictors.values()), (zs.start, zs.stop), every, first, threads):
            lo, hi = max(z0, zs.start), min(z0 + slabs.shape[2], zs.stop)
            drawn = np.ascontiguousarray(annotations[:, lo:hi, ys, xs])
            counting = []
            for counter, codes in zip(counters.values(), slabs, strict=True):
                counter.check(drawn, lo)
                counting.append(threads.submit(counter.add, codes, drawn, lo - z0, ys.start, xs.start))
            for one in counting:
                one.result()
            progress(done, of)
    return {name: counter.counts(name) for name, counter in counters.items()}


def _require_fitting(predictors: Mapping[str, SoftmaxVolume], annotations: Any) -> None:
    for name, volume in predictors.items():
        if tuple(volume.shape[1:]) != tuple(annotations.shape[1:]):
            raise CalibrationError(
                "counting a predictor's probabilities",
                name,
                f"softmax of shape {tuple(volume.shape)} against annotations {tuple(annotations.shape)}",
                "Give probabilities and annotations on the same voxels.",
            )


def _slabs(
    volumes: Sequence[SoftmaxVolume], slices: tuple[int, int], every: int, first: int, threads: ThreadPoolExecutor
) -> Iterator[tuple[int, int, int, Codes]]:
    """(how many slabs are done, of how many, z0, codes of each volume) of every so many slabs."""
    depths = range(slices[0] // DEPTH, -(-slices[1] // DEPTH))
    chosen = list(depths[first % min(every, len(depths)) :: every])
    if every == 1:
        for done, (z0, _, codes) in enumerate(code_slabs_of(volumes, threads, slices), 1):
            yield done, len(chosen), z0, codes
        return
    for done, depth in enumerate(chosen, 1):
        for z0, _, codes in code_slabs_of(volumes, threads, (depth * DEPTH, min((depth + 1) * DEPTH, slices[1]))):
            yield done, len(chosen), z0, codes


class _Counter:
    """The counts of one predictor while its slabs stream past."""

    def __init__(self, volume: SoftmaxVolume, annotators: int):
        organs, levels = volume.shape[0] - 1, volume.levels
        self._annotators, self._organs, self._levels = annotators, organs, levels
        self._tables = tables_of(levels)
        self._codes, self._positives = (np.zeros((organs, levels.size), np.int64) for _ in range(2))
        self._keys = keys_of(organs)
        self._cells = np.full((LEAST_CELLS, 2), EMPTY, np.uint64)
        self._bins = np.zeros((LEAST_CELLS, organs if organs > KEYED_ORGANS else 0), np.uint8)
        self._filled, self._voxels = 0, 0
        self._log_odds, self._partition = np.zeros(1), np.zeros(1)
        self._sums = np.zeros((2, BETAS.size))

    def check(self, drawn: npt.NDArray[np.uint8], z0: int) -> None:
        if drawn.size and drawn.max() > self._organs:
            raise CalibrationError(
                "counting a predictor's probabilities",
                "the patient",
                f"label {drawn.max()} in the annotations, from slice {z0} on",
                f"Labels are 0 to {self._organs}.",
            )

    def add(self, codes: Codes, drawn: npt.NDArray[np.uint8], z0: int, y0: int, x0: int) -> None:
        """Count the slices of label maps (R, dz, height, width), which begin at z0, y0, x0 of codes (C − 1, Z, Y, X)."""
        self._voxels += math.prod(drawn.shape[1:])
        for z in range(drawn.shape[1]):
            if self._filled > MOST_CELLS:
                self._fold()
            self._cells, self._bins, self._filled = _count(
                np.array([z0 + z, y0, x0]), codes, drawn[:, z], self._tables, self._keys, self._codes, self._positives,
                self._log_odds, self._cells, self._bins, self._filled,
            )  # fmt: skip

    def _fold(self) -> None:
        """Sum up the joint histogram, and empty it."""
        _fold(self._cells, self._bins, self._organs, self._tables.log_odds, BETAS, self._sums, self._partition)
        self._cells.fill(EMPTY)
        self._filled = 0

    def counts(self, name: str) -> PatientResponses:
        if not self._voxels:
            raise CalibrationError("counting a predictor's probabilities", name, "no voxel", "Give another region.")
        self._fold()
        return PatientResponses(
            self._voxels, self._annotators, self._levels, self._codes, self._positives,
            float(self._log_odds[0]), float(self._partition[0]), self._sums.copy(),
        )  # fmt: skip


class Tables(NamedTuple):
    """What the kernel looks up.

    Args:
        levels: probability of each code.
        logs: its natural logarithm; of 0, that of half the smallest other one.
        bins: bin of each code's logarithm.
        soft: first code whose probability is no longer nearly 0; below, each code is a bin.
        log_odds: of each bin, nats.
    """

    levels: Levels
    logs: npt.NDArray[np.float64]
    bins: npt.NDArray[np.uint8]
    soft: int
    log_odds: npt.NDArray[np.float64]


def keys_of(organs: int) -> npt.NDArray[np.uint64]:
    """What each bin of each organ adds (exclusive or) to the key of a cell, (organs, 256): the bin in a byte of its own, or, of
    more organs than a key has bytes, random bits (Zobrist's hash).
    """
    if organs > KEYED_ORGANS:
        return np.random.default_rng(organs).integers(0, 2**64, (organs, 256), np.uint64)
    return np.arange(256, dtype=np.uint64) << (8 * np.arange(organs, dtype=np.uint64)[:, None])


def logs_of(levels: Levels) -> npt.NDArray[np.float64]:
    """Ln p of each code's probability; 0 counts as half the smallest other one."""
    return np.log(np.maximum(levels, levels[1] / 2))


def tables_of(levels: Levels) -> Tables:
    """The tables of a format's levels."""
    logs, soft = logs_of(levels), int(np.searchsorted(levels, SURE))
    low = -math.log(SURE)
    steps, last = math.ceil(2 * low / STEP), math.ceil((MOST_ODDS - low) / LAST_STEP)
    assert soft + steps + last <= 255, "a bin is a byte, and one key is none"
    middle, above = -low + STEP * (np.arange(steps) + 0.5), low + LAST_STEP * (np.arange(last) + 0.5)
    centres = np.concatenate([logs[:soft], middle, above]).astype(np.float64)
    bins = np.array([_bin(d, logs, soft, centres.size) for d in logs], np.uint8)
    return Tables(levels, logs, bins, soft, centres)


@njit(cache=True, nogil=True, inline="always")
def _bin(d, logs, soft, bins):
    """Bin of log-odds: of the nearest code, or by steps."""
    low = -np.log(SURE)
    if d < -low:
        k = np.searchsorted(logs[:soft], d)
        if k == soft or (k > 0 and d - logs[k - 1] < logs[k] - d):
            k -= 1
        return np.int64(k)
    if d < low:
        return soft + np.int64((d + low) / STEP)
    return min(soft + np.int64(np.ceil(2 * low / STEP)) + np.int64((d - low) / LAST_STEP), bins - 1)


@njit(cache=True, nogil=True)
def _count(begin, codes, drawn, tables, keys, histogram, positives, log_odds, cells, kept, filled):
    """Count one slice: label maps (R, height, width), and codes from `begin` on; returns the joint histogram, which may grow:
    (key, voxels), the bins of each cell (none where the key tells them), and how many cells are filled.
    """
    annotators, height, width = drawn.shape
    organs = codes.shape[0]
    z, y0, x0 = begin
    own = np.empty(width, np.uint64)
    bins = np.empty((width, kept.shape[1]), np.uint8)
    special = np.empty(width, np.bool_)
    odds, given = np.empty(organs), np.empty(organs + 1, np.int64)
    for y in range(height):
        if 2 * (filled + width) > len(cells):
            cells, kept = _grown(cells, kept)
        special[:] = False
        for r in range(annotators):
            labels = drawn[r, y]
            for i in range(width):
                special[i] |= labels[i] != 0
        own[:] = np.uint64(0)
        for c in range(organs):
            line, counts, of_organ = codes[c, z, y0 + y, x0 : x0 + width], histogram[c], keys[c]
            for i in range(width):
                counts[line[i]] += 1
            for i in range(width):
                special[i] |= line[i] >= tables.soft
            for i in range(width):
                own[i] ^= of_organ[tables.bins[line[i]]]
            if kept.shape[1] > 0:
                for i in range(width):
                    bins[i, c] = tables.bins[line[i]]
        for i in range(width):
            if special[i]:
                own[i] = _look(
                    i, z, y0 + y, x0, y, codes, drawn, tables, keys, positives, log_odds, odds, given, bins[i]
                )
        run, before = 0, own[0]
        for i in range(width):
            if own[i] == before:
                run += 1
                continue
            filled += _note(cells, kept, before, run, bins[i - 1])
            run, before = 1, own[i]
        filled += _note(cells, kept, before, run, bins[width - 1])
    return cells, kept, filled


@njit(cache=True, nogil=True)
def _look(i, z, yy, x0, y, codes, drawn, tables, keys, positives, log_odds, odds, given, bins):
    """The cell of a voxel whose background is not surely 1, or that an annotator gave to an organ, whose answers are noted."""
    foreground = 0.0
    for c in range(odds.size):
        foreground += tables.levels[codes[c, z, yy, x0 + i]]
    background = 0.0 if foreground < LEAST_FOREGROUND else np.log(max(1.0 - foreground, LEAST_FOREGROUND))
    key = np.uint64(0)
    for c in range(odds.size):
        odds[c] = tables.logs[codes[c, z, yy, x0 + i]] - background
        b = _bin(odds[c], tables.logs, tables.soft, tables.log_odds.size)
        key ^= keys[c, b]
        if bins.size > 0:
            bins[c] = b
    given[:] = 0
    for r in range(drawn.shape[0]):
        given[drawn[r, y, i]] += 1
    for c in range(odds.size):
        if given[c + 1] > 0:
            positives[c, codes[c, z, yy, x0 + i]] += given[c + 1]
            log_odds[0] += given[c + 1] * odds[c] / drawn.shape[0]
    return key


@njit(cache=True, nogil=True, inline="always")
def _note(cells, kept, key, voxels, bins):
    """Add voxels to a cell of the joint histogram; 1 if it is new."""
    mask = np.uint64(len(cells) - 1)
    at = ((key * GOLDEN) >> np.uint64(32)) & mask
    while cells[at, 0] != key:
        if cells[at, 0] == EMPTY:
            cells[at, 0] = key
            cells[at, 1] = np.uint64(voxels)
            for c in range(kept.shape[1]):
                kept[at, c] = bins[c]
            return 1
        at = (at + np.uint64(1)) & mask
    cells[at, 1] += np.uint64(voxels)
    return 0


@njit(cache=True, nogil=True)
def _grown(cells, kept):
    """The same histogram in a table of twice the size."""
    more, bins = np.empty((2 * len(cells), 2), np.uint64), np.empty((2 * len(cells), kept.shape[1]), np.uint8)
    more[:, 0] = EMPTY
    for i in range(len(cells)):
        if cells[i, 0] != EMPTY:
            _note(more, bins, cells[i, 0], cells[i, 1], kept[i])
    return more, bins


@njit(cache=True, nogil=True, error_model="numpy")
def _fold(cells, kept, organs, log_odds, betas, slopes, partition):
    """Add, over the cells, the derivatives of ln(1 + Σ e^(β d)) by β at the given β, and its value at 1."""
    powers = np.empty((log_odds.size, betas.size))
    for k in range(log_odds.size):
        for b in range(betas.size):
            powers[k, b] = np.exp(betas[b] * log_odds[k])
    total, first, second = np.empty(betas.size), np.empty(betas.size), np.empty(betas.size)
    for i in range(len(cells)):
        if cells[i, 0] == EMPTY:
            continue
        total[:] = 1.0
        first[:] = 0.0
        second[:] = 0.0
        at_one, voxels = 0.0, np.float64(cells[i, 1])
        for c in range(organs):
            k = np.uint64(kept[i, c]) if kept.shape[1] > 0 else (cells[i, 0] >> np.uint64(8 * c)) & np.uint64(255)
            d, own = log_odds[k], powers[k]
            at_one += np.exp(d)
            for b in range(betas.size):
                total[b] += own[b]
                first[b] += own[b] * d
                second[b] += own[b] * d * d
        partition[0] += voxels * np.log1p(at_one)
        for b in range(betas.size):
            mean = first[b] / total[b]
            slopes[0, b] += voxels * mean
            slopes[1, b] += voxels * (second[b] / total[b] - mean * mean)
