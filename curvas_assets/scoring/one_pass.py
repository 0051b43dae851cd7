"""All predictors of a patient counted in one pass: each stored volume is read once, and the annotations once for all.

Predictors that are derived from a stored volume, such as calibrated ones, are made of its slab once it is decoded. The
predictors of a slab are counted side by side, each by one thread, and then the ensembles take their members' entropies and
label maps from memory. A predictor's slices are divided among threads where there are more of these.
"""

import queue
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeGuard

import numba
import numpy as np
import numpy.typing as npt

from curvas_assets.codes import DEPTH, Codes
from curvas_assets.errors import ScoringError
from curvas_assets.scoring.counting import (
    MOST_VOXELS,
    RUN,
    Counts,
    Maps,
    Pass,
    Scratch,
    Slices,
    Spans,
    Tables,
    scratch,
    tables,
)
from curvas_assets.scoring.members import EnsemblePass, MemberCounts, describe, overlaps
from curvas_assets.scoring.references import Further, FurtherPass, Wanted
from curvas_assets.storage.side_by_side import code_slabs_of
from curvas_assets.storage.softmax import SoftmaxVolume

STEP = 4
"""Slices that are counted before ensembles look at their members: entropies of all predictors are held for so many."""
NO_CODES = np.zeros((0, 1, 1, 1), np.uint16)
NO_PROBABILITIES = np.zeros((0, 1, 1, 1), np.float32)


@dataclass(frozen=True)
class Setting:
    """What all predictors of a patient are counted against.

    Args:
        annotations: uint8 (R, Z, Y, X), sliceable.
        classes: C, background included.
        region: voxels outside do not count.
        threshold: nats, above which an uncertainty counts as high.
        bins: B, of each class's probability.
        wanted: what is counted beside.
    """

    annotations: Any
    classes: int
    region: Spans
    threshold: float
    bins: int
    wanted: Wanted = field(default_factory=Wanted)


@dataclass(frozen=True)
class Found:
    """What a pass found.

    Args:
        counts: of each predictor that was counted: gives its counts, once; all at once would take memory.
        members: of each ensemble.
        further: of each predictor that was counted: gives what was counted beside; of none if nothing is.
    """

    counts: dict[str, Callable[[], Counts]]
    members: dict[str, MemberCounts]
    further: dict[str, Callable[[], Further]]


def workers() -> int:
    """Threads to count with: those of numba's kernels."""
    return numba.get_num_threads()


def count_all(
    predictors: Mapping[str, Any],
    setting: Setting,
    ensembles: Mapping[str, Sequence[str]],
    counted: Collection[str],
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Found:
    """Count predictors against the annotations, and what ensembles' members tell.

    Args:
        predictors: name → probabilities (C, Z, Y, X), or a stored volume.
        setting: what they are counted against.
        ensembles: predictor → the predictors whose mean it is.
        counted: predictors whose counts are wanted; of others, only what ensembles need is taken.
        progress: told how many slices of how many are counted.

    Raises:
        ScoringError: the region holds more voxels than are counted exactly; an annotation holds a label that is no class; an
            ensemble is not the mean of its members.
        CorruptArtefactError, MissingArtefactError: of a stored volume that cannot be read.
    """
    zs = setting.region[0]
    with ThreadPoolExecutor(workers(), thread_name_prefix="curvas-score") as threads:
        one = _OnePass(
            list(predictors), setting, ensembles, counted, [_levels(v) for v in predictors.values()], threads
        )
        for z0, z1, slabs in _slabs(list(predictors.values()), (zs.start, zs.stop), threads):
            one.add(z0, z1, slabs)
            progress(min(z1, zs.stop) - zs.start, zs.stop - zs.start)
        return one.found()


class _OnePass:
    """The state of such a pass."""

    def __init__(
        self,
        names: Sequence[str],
        setting: Setting,
        ensembles: Mapping[str, Sequence[str]],
        counted: Collection[str],
        levels: Sequence[npt.NDArray[np.float64] | None],
        threads: Executor,
    ):
        zs, ys, xs = setting.region
        shape = (zs.stop - zs.start, ys.stop - ys.start, xs.stop - xs.start)
        if np.prod(shape, dtype=float) > MOST_VOXELS:
            raise ScoringError("scoring", "the patient", f"a region of {shape} voxels", "Score parts of it.")
        self._setting, self._threads = setting, threads
        annotators, classes = setting.annotations.shape[0], setting.classes
        place = {name: v for v, name in enumerate(names)}
        wanted = [place[name] for name in counted]
        self._parts = -(-workers() // len(wanted))
        self._step = min(DEPTH, max(STEP, self._parts))
        self._passes = {
            v: Pass(annotators, classes, shape, setting.threshold, setting.bins, levels[v], self._parts) for v in wanted
        }
        beside, bins = setting.wanted, setting.bins
        self._further = {
            v: FurtherPass(beside, annotators, classes, shape, bins, levels[v])
            for v in (wanted if beside.anything else ())
        }
        self._names = names
        self._ensembles = [
            EnsemblePass(name, place[name], [place[m] for m in members], classes, shape, setting.threshold)
            for name, members in ensembles.items()
        ]
        self._members = list(dict.fromkeys(m for ensemble in self._ensembles for m in ensemble.members))
        self._tables: list[Tables] = [
            self._passes[v].tables if v in self._passes else tables(classes, annotators, 1.0, levels[v])
            for v in range(len(names))
        ]
        size = (self._step, *shape[1:])
        runs = -(-shape[2] // RUN)
        described = self._step if ensembles else 0
        self._entropies = np.empty((len(names), described, *shape[1:]))
        self._unsure = np.empty((len(names), described, shape[1], runs), np.uint8)
        self._labels = np.empty((len(names), *size), np.uint8)
        self._overlap = np.zeros((len(self._members) + annotators,) * 2 + (classes,), np.int64)
        divided = self._passes if self._parts > 1 else ()
        self._divided = {v: (np.empty(size, np.float32), np.empty(size, np.int32)) for v in divided}
        self._scratch: queue.SimpleQueue[tuple[Scratch, npt.NDArray[np.float32], npt.NDArray[np.int32]]]
        self._scratch = queue.SimpleQueue()
        for _ in range(workers()):
            own = scratch(classes, annotators, *size)
            self._scratch.put((own, np.empty(size, np.float32), np.empty(size, np.int32)))

    def add(self, z0: int, z1: int, slabs: Sequence[tuple[npt.NDArray[np.float32], Codes]]) -> None:
        """Count the next slab of every predictor."""
        zs, ys, xs = self._setting.region
        lo, hi = max(z0, zs.start), min(z1, zs.stop)
        drawn = np.ascontiguousarray(self._setting.annotations[:, lo:hi, ys, xs])
        if drawn.max() >= self._setting.classes:
            raise ScoringError(
                "scoring",
                "the patient",
                f"label {drawn.max()} in the annotations, between slices {lo} and {hi}",
                f"Labels are 0 to {self._setting.classes - 1}.",
            )
        reference = self._setting.wanted.labels(drawn, lo, self._setting.region)
        for z in range(lo, hi, self._step):
            here = slice(z - lo, min(z + self._step, hi) - lo)
            part = np.ascontiguousarray(drawn[:, here])
            slices = [Slices(p, codes, part, z - z0, ys.start, xs.start, z - zs.start) for p, codes in slabs]
            self._add_slices(slices, reference[here])

    def _add_slices(self, slices: Sequence[Slices], reference: npt.NDArray[np.uint8]) -> None:
        """Count the next slices, as many as the maps hold, of every predictor."""
        depth, drawn = slices[0].drawn.shape[1], slices[0].drawn
        if self._parts > 1:
            self._divide(slices)
        self._each(lambda v: self._count(v, slices[v]), [v for v in range(len(slices)) if v not in self._divided])
        self._each(lambda v: self._further[v].add(slices[v], self._labels[v, :depth], reference), self._further)
        if not self._ensembles:
            return
        levels = [each.levels for each in self._tables]

        def take(ensemble: EnsemblePass) -> None:
            ensemble.require_mean(slices, levels, self._unsure[:, :depth])
            ensemble.take(self._entropies[:, :depth])

        def overlap(z: int) -> npt.NDArray[np.int64]:
            together = np.concatenate([self._labels[self._members, z : z + 1], drawn[:, z : z + 1]])
            return overlaps(together, self._setting.classes)

        found = [self._threads.submit(overlap, z) for z in range(depth)]
        self._each(take, self._ensembles)
        for one in found:
            self._overlap += one.result()

    def _count(self, v: int, slices: Slices) -> None:
        """Count some slices of a predictor, or describe them if its counts are not wanted."""
        with self._lent() as (own, confidence, nats):
            maps = self._maps(v, slices, confidence, nats)
            if v in self._passes:
                self._passes[v].count(slices, maps, own, 0, 0, len(maps.labels))
                self._passes[v].take(slices, maps)
            else:
                describe(slices, self._tables[v], maps, own)

    def _divide(self, slices: Sequence[Slices]) -> None:
        """Count some slices of each predictor in parts."""
        limits = np.linspace(0, slices[0].drawn.shape[1], self._parts + 1).round().astype(int)
        maps = {v: self._maps(v, slices[v], *each) for v, each in self._divided.items()}

        def count(job: tuple[int, int]) -> None:
            v, part = job
            with self._lent() as (own, _, _):
                self._passes[v].count(slices[v], maps[v], own, part, int(limits[part]), int(limits[part + 1]))

        self._each(count, [(v, part) for v in maps for part in range(self._parts) if limits[part] < limits[part + 1]])
        self._each(lambda v: self._passes[v].take(slices[v], maps[v]), maps)

    def _maps(self, v: int, slices: Slices, confidence: npt.NDArray[np.float32], nats: npt.NDArray[np.int32]) -> Maps:
        d = slices.drawn.shape[1]
        entropies, unsure = self._entropies[v, :d], self._unsure[v, :d]
        return Maps(self._labels[v, :d], confidence[:d], nats[:d], entropies, unsure)

    @contextmanager
    def _lent(self) -> Generator[tuple[Scratch, npt.NDArray[np.float32], npt.NDArray[np.int32]]]:
        """Working arrays, and maps of confidence and entropy, for one thread."""
        lent = self._scratch.get()
        try:
            yield lent
        finally:
            self._scratch.put(lent)

    def _each(self, work: Callable[[Any], None], jobs: Iterable[Any]) -> None:
        """Do work for each of several jobs, and wait for all; the first error is raised."""
        done = [self._threads.submit(work, job) for job in jobs]
        wait(done)
        for one in done:
            one.result()

    def found(self) -> Found:
        """What was found; nothing can be added after it."""
        counts = {self._names[v]: each.counts for v, each in self._passes.items()}
        both = self._overlap + np.triu(self._overlap.transpose(2, 0, 1), 1).transpose(2, 1, 0)
        places = {m: place for place, m in enumerate(self._members)}
        further = {self._names[v]: each.counts for v, each in self._further.items()}
        return Found(counts, {e.name: e.counts(both, places) for e in self._ensembles}, further)


def _levels(volume: Any) -> npt.NDArray[np.float64] | None:
    return getattr(volume, "levels", None)


class Derived(Protocol):
    """A volume whose codes are made of a stored one's while these are read, such as a calibrated predictor."""

    @property
    def source(self) -> SoftmaxVolume:
        """The stored volume."""
        ...

    def recode(self, codes: Codes) -> Codes:
        """Its codes, from those of the stored volume (C − 1, dz, Y, X)."""
        ...


def _slabs(
    volumes: Sequence[Any], slices: tuple[int, int], threads: Executor
) -> Iterator[tuple[int, int, list[tuple[npt.NDArray[np.float32], Codes]]]]:
    """Slabs of predictors side by side, 16 slices at a time: of each one, its probabilities or its codes.

    A stored volume is decoded once, also for the volumes that are derived from it.
    """
    sources = [v if isinstance(v, SoftmaxVolume) else v.source if _is_derived(v) else None for v in volumes]
    stored = list({id(v): v for v in sources if v is not None}.values())
    places = {id(v): i for i, v in enumerate(stored)}
    others = {i: _cut(v.code_slabs()) for i, v in enumerate(volumes) if _has_codes(v) and sources[i] is None}
    depth = volumes[0].shape[1]
    bounds = ((z, min(z + DEPTH, depth), NO_CODES) for z in range(slices[0] // DEPTH * DEPTH, slices[1], DEPTH))
    for z0, z1, codes in code_slabs_of(stored, threads, slices) if stored else bounds:
        recoded = {
            i: threads.submit(volume.recode, codes[places[id(source)]])
            for i, (volume, source) in enumerate(zip(volumes, sources, strict=True))
            if source is not None and volume is not source
        }
        wait(recoded.values())
        found: list[tuple[npt.NDArray[np.float32], Codes]] = []
        for i, volume in enumerate(volumes):
            if i in recoded:
                found.append((NO_PROBABILITIES, recoded[i].result()))
            elif sources[i] is not None:
                found.append((NO_PROBABILITIES, codes[places[id(volume)]]))
            elif i in others:
                found.append((NO_PROBABILITIES, next(part for first, part in others[i] if first == z0)))
            else:
                found.append((np.ascontiguousarray(volume[:, z0:z1], np.float32), NO_CODES))
        yield z0, z1, found


def _is_derived(volume: Any) -> TypeGuard[Derived]:
    return hasattr(volume, "recode") and isinstance(volume.source, SoftmaxVolume)


def _has_codes(volume: Any) -> bool:
    return hasattr(volume, "code_slabs")


def _cut(slabs: Iterator[tuple[int, int, Codes]]) -> Iterator[tuple[int, Codes]]:
    """Slabs of any depth as slabs of 16 slices; the last one may have fewer."""
    held, begin = None, 0
    for _, _, codes in slabs:
        held = codes if held is None else np.concatenate([held, codes], axis=1)
        while held.shape[1] >= DEPTH:
            yield begin, np.ascontiguousarray(held[:, :DEPTH])
            held, begin = held[:, DEPTH:], begin + DEPTH
    if held is not None and held.shape[1]:
        yield begin, np.ascontiguousarray(held)
