# numba infers the types of its functions:
# pyright: reportMissingParameterType=false
"""What needs the members of an ensemble: expected entropy, mutual information, overlaps of their label maps.

Each softmax's entropies and label map are made once, however many ensembles it belongs to.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import njit

from curvas_assets.codes import leads
from curvas_assets.entropy import entropy_term
from curvas_assets.errors import ScoringError
from curvas_assets.scoring.counting import (
    RUN,
    SOMETHING,
    UNSURE,
    Maps,
    Scratch,
    Slices,
    Tables,
    kind_of_run,
    kinds_in,
    load_row,
)
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


class EnsemblePass:
    """One ensemble in a pass over its region's slices, in order.

    Args:
        name: of the ensemble, for messages.
        own: its place among the predictors of the pass.
        members: those of its members, M of them.
        classes: C, background included.
        shape: of the region (Z, Y, X).
        threshold: nats, above which a voxel's uncertainty counts as high.
    """

    def __init__(
        self,
        name: str,
        own: int,
        members: Sequence[int],
        classes: int,
        shape: tuple[int, int, int],
        threshold: float,
    ):
        self.name, self.own, self.members, self._classes = name, own, list(members), classes
        self._expected, self._mutual = (MapSummary(shape, classes, threshold) for _ in range(2))

    def take(self, entropies: npt.NDArray[np.float64]) -> None:
        """Take over the entropies of the next slices.

        Args:
            entropies: nats (predictor, dz, height, width).
        """
        expected, mutual = (np.empty(entropies.shape[1:], np.int32) for _ in range(2))
        _divide(entropies, np.array(self.members), self.own, self._expected.units, expected, mutual)
        self._expected.add(expected)
        self._mutual.add(mutual)

    def require_mean(
        self, slices: Sequence[Slices], levels: Sequence[npt.NDArray[np.float32]], unsure: npt.NDArray[np.uint8]
    ) -> None:
        """Raise a ScoringError if the ensemble is not the mean of its members.

        Args:
            slices: of every predictor.
            levels: of every predictor: the probability of each of its codes.
            unsure: (predictor, dz, height, runs); where it is 0 for all, no two can differ by more than the limit.
        """
        together = [*self.members, self.own]
        where = unsure[together].max(axis=0)
        if not where.any():
            return
        height, width = slices[0].drawn.shape[2:]
        sums = np.zeros((self._classes, len(where), height, width), np.float32)
        rows, foreground = np.empty((self._classes, width), np.float32), np.empty(width)
        for m in self.members:
            _add_unsure(slices[m], levels[m], where, np.float32(1), rows, foreground, sums)
        sums /= len(self.members)
        _add_unsure(slices[self.own], levels[self.own], where, np.float32(-1), rows, foreground, sums)
        apart = max(float(sums.max()), -float(sums.min()))
        if apart > NOT_THE_MEAN:
            raise ScoringError(
                "scoring an ensemble",
                self.name,
                f"it is up to {apart:.2g} away from the mean of the {len(self.members)} members given",
                "Give the members it was made of, or make it again from these.",
            )

    def counts(self, overlap: npt.NDArray[np.int64], places: Mapping[int, int]) -> MemberCounts:
        """What was found.

        Args:
            overlap: (label map, label map, class) of the members of all ensembles, then of the annotators.
            places: of each member in it.
        """
        annotators = range(len(places), len(overlap))
        chosen = [*(places[m] for m in self.members), *annotators]
        return MemberCounts(self._expected, self._mutual, overlap[np.ix_(chosen, chosen)])


def describe(slices: Slices, tables: Tables, maps: Maps, own: Scratch) -> None:
    """Write the label map and the entropies of a member that has no scores of its own."""
    _describe(slices, tables, maps, own.rows, own.foreground, own.kinds)


def overlaps(labels: npt.NDArray[np.uint8], classes: int) -> npt.NDArray[np.int64]:
    """How many voxels each two of several label maps (N, dz, Y, X) give to a class: (N, N, C), the upper triangle."""
    found = np.zeros((len(labels), len(labels), classes), np.int64)
    _overlaps(labels, found)
    return found


@njit(cache=True, nogil=True)
def _describe(slices, tables, maps, rows, foreground, kinds):
    classes, width = rows.shape
    for z in range(maps.labels.shape[0]):
        for y in range(maps.labels.shape[1]):
            load_row(z, y, slices, tables.levels, rows, foreground)
            kinds_in(rows, 1, kinds)
            for x in range(0, width, RUN):
                stop = min(x + RUN, width)
                kind = kind_of_run(kinds, x)
                maps.unsure[z, y, x // RUN] = kind & UNSURE != 0
                if kind & SOMETHING == 0:
                    maps.labels[z, y, x:stop] = 0
                    maps.entropies[z, y, x:stop] = 0.0
                    continue
                for i in range(x, stop):
                    u = 0.0
                    best, most = 0, np.float32(-1.0)
                    for c in range(classes):
                        u += entropy_term(np.float64(rows[c, i]))
                        if leads(rows[c, i], most):
                            best, most = c, rows[c, i]
                    maps.labels[z, y, i] = best
                    maps.entropies[z, y, i] = u


@njit(cache=True, nogil=True)
def _divide(entropies, members, own, units, expected, mutual):
    """An ensemble's expected entropy and mutual information, in units, from its members' entropies and its own in nats."""
    width = entropies.shape[3]
    total = np.empty(width)
    for z in range(entropies.shape[1]):
        for y in range(entropies.shape[2]):
            total[:] = 0.0
            for m in members:
                row = entropies[m, z, y]
                for x in range(width):
                    total[x] += row[x]
            whole = entropies[own, z, y]
            for x in range(width):
                mean = total[x] / members.size
                expected[z, y, x] = np.int32(np.rint(mean * units))
                mutual[z, y, x] = np.int32(np.rint((whole[x] - mean) * units))


@njit(cache=True, nogil=True)
def _add_unsure(slices, levels, where, sign, rows, foreground, sums):
    """Add a softmax to sums (C, dz, height, width), or take it from them, in the runs that are marked."""
    classes, depth, height, width = sums.shape
    for z in range(depth):
        for y in range(height):
            marked = where[z, y]
            if not marked.any():
                continue
            load_row(z, y, slices, levels, rows, foreground)
            for run in range(marked.size):
                if marked[run]:
                    for c in range(classes):
                        for x in range(run * RUN, min(run * RUN + RUN, width)):
                            sums[c, z, y, x] += sign * rows[c, x]


@njit(cache=True, nogil=True)
def _overlaps(labels, overlap):
    """Voxels to which two label maps give the same class (upper triangle, the diagonal included)."""
    maps, depth, height, width = labels.shape
    agreed = np.zeros(overlap.shape[2], np.int64)
    for z in range(depth):
        for y in range(height):
            for x in range(0, width, RUN):
                stop = min(x + RUN, width)
                differ = something = False
                first = labels[0, z, y]
                for i in range(x, stop):
                    something |= first[i] != 0
                for s in range(1, maps):
                    other = labels[s, z, y]
                    for i in range(x, stop):
                        differ |= other[i] != first[i]
                if not (differ or something):
                    agreed[0] += stop - x
                    continue
                for i in range(x, stop):
                    label = first[i]
                    same = True
                    if differ:
                        for s in range(1, maps):
                            same &= labels[s, z, y, i] == label
                    if same:
                        agreed[label] += 1
                        continue
                    for s in range(maps):
                        label = labels[s, z, y, i]
                        for other in range(s, maps):
                            if labels[other, z, y, i] == label:
                                overlap[s, other, label] += 1
    for s in range(maps):
        for other in range(s, maps):
            for c in range(agreed.size):
                overlap[s, other, c] += agreed[c]
