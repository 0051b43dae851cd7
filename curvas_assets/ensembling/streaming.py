"""All ensembles of one patient in one pass over the stored members: memory for a few slabs, whatever the volume."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from numba import njit, prange

from curvas_assets.errors import EnsembleError
from curvas_assets.parallel import PARALLEL

FULL = 65535
Map = npt.NDArray[np.float32]


class Member(Protocol):
    """What is needed of a stored softmax volume."""

    shape: tuple[int, ...]
    class_names: tuple[str, ...]
    spacing_mm: tuple[float, ...]
    provenance: dict[str, Any]

    def code_slabs(self) -> Iterator[tuple[int, int, npt.NDArray[np.uint16]]]: ...


@dataclass(frozen=True)
class EnsembleSlab:
    """Some slices of an ensemble: mean (C, dz, Y, X); entropies in nats (dz, Y, X); labels, the mean's argmax."""

    mean: npt.NDArray[np.float32]
    predictive_entropy: Map
    expected_entropy: Map
    mutual_information: Map
    labels: npt.NDArray[np.uint8]


def stream_ensembles(
    members: Mapping[str, Member], ensembles: Mapping[str, Sequence[str]]
) -> Iterator[tuple[int, int, dict[str, EnsembleSlab]]]:
    """Every ensemble of a patient, slab by slab; each member is read once.

    Args:
        members: model → its stored softmax of the patient.
        ensembles: ensemble → the models whose mean it is.

    Yields:
        (z0, z1, ensemble → slab) from the first slice to the last.

    Raises:
        EnsembleError: an ensemble's member is missing, or members differ in shape, spacing, classes or patient; names
            which, before anything is read.
    """
    _require_complete(members, ensembles)
    _require_agreement(members)
    names = list(members)
    groups = np.array([[name in chosen for name in names] for chosen in ensembles.values()], np.bool_)
    counts = groups.sum(axis=1)
    classes = next(iter(members.values())).shape[0]
    streams = [members[name].code_slabs() for name in names]
    for slabs in zip(*streams, strict=True):
        z0, z1, first = slabs[0]
        voxels = first.shape[1:]
        sums = np.zeros((len(ensembles), classes, *voxels), np.int32)  # exact up to 32,767 members
        entropies = np.zeros((len(ensembles), *voxels), np.float64)
        found = {name: _empty_slab(classes, voxels) for name in ensembles}
        with PARALLEL:
            for m, (_, _, codes) in enumerate(slabs):
                _add_codes(np.ascontiguousarray(codes), groups[:, m].copy(), sums, entropies, ENTROPY)
            for e, slab in enumerate(found.values()):
                _finish_codes(
                    sums[e],
                    entropies[e],
                    int(counts[e]),
                    slab.mean,
                    slab.predictive_entropy,
                    slab.expected_entropy,
                    slab.mutual_information,
                    slab.labels,
                )
        yield z0, z1, found


def _empty_slab(classes: int, voxels: tuple[int, ...]) -> EnsembleSlab:
    predictive, expected, mutual = (np.empty(voxels, np.float32) for _ in range(3))
    return EnsembleSlab(
        np.empty((classes, *voxels), np.float32), predictive, expected, mutual, np.empty(voxels, np.uint8)
    )


def _entropy_table() -> npt.NDArray[np.float64]:
    """−p ln p of every code."""
    p = np.arange(FULL + 1) / FULL
    return -p * np.log(np.where(p > 0, p, 1))


ENTROPY = _entropy_table()


@njit(parallel=True, cache=True, nogil=True)
def _add_codes(codes, chosen, sums, entropies, table):
    """Add a member's codes and entropy to the sums of the ensembles it belongs to."""
    for z in prange(codes.shape[1]):
        for y in range(codes.shape[2]):
            for x in range(codes.shape[3]):
                rest = FULL
                for c in range(codes.shape[0]):
                    rest -= np.int64(codes[c, z, y, x])
                if rest == FULL:
                    for e in range(chosen.shape[0]):
                        if chosen[e]:
                            sums[e, 0, z, y, x] += FULL
                    continue
                entropy = table[rest]
                for c in range(codes.shape[0]):
                    entropy += table[codes[c, z, y, x]]
                for e in range(chosen.shape[0]):
                    if chosen[e]:
                        sums[e, 0, z, y, x] += rest
                        for c in range(codes.shape[0]):
                            sums[e, c + 1, z, y, x] += np.int64(codes[c, z, y, x])
                        entropies[e, z, y, x] += entropy


@njit(parallel=True, cache=True, nogil=True)
def _finish_codes(sums, entropies, count, mean, predictive, expected, mutual, labels):
    full = np.float64(count) * FULL
    for z in prange(sums.shape[1]):
        for y in range(sums.shape[2]):
            for x in range(sums.shape[3]):
                best = 0
                for c in range(1, sums.shape[0]):
                    if sums[c, z, y, x] > sums[best, z, y, x]:
                        best = c
                labels[z, y, x] = best
                entropy = 0.0
                for c in range(sums.shape[0]):
                    p = sums[c, z, y, x] / full
                    mean[c, z, y, x] = p
                    if p > 0.0 and p < 1.0:
                        entropy -= p * np.log(p)
                inner = min(entropies[z, y, x] / count, entropy)
                predictive[z, y, x] = entropy
                expected[z, y, x] = inner
                mutual[z, y, x] = entropy - inner


def _require_complete(members: Mapping[str, Member], ensembles: Mapping[str, Sequence[str]]) -> None:
    for ensemble, chosen in ensembles.items():
        missing = [name for name in chosen if name not in members]
        if missing or not chosen:
            raise EnsembleError(
                "averaging",
                ensemble,
                f"no softmax of {', '.join(missing) or 'any member'}",
                "Materialise softmax of every member for this patient first.",
            )


def _require_agreement(members: Mapping[str, Member]) -> None:
    (first_name, first), *others = members.items()
    for name, member in others:
        for what, ours, theirs in (
            ("shape", first.shape, member.shape),
            ("classes", first.class_names, member.class_names),
            ("patient", first.provenance.get("patient"), member.provenance.get("patient")),
        ):
            if ours != theirs:
                raise _disagreement(first_name, name, what, ours, theirs)
        if not np.allclose(first.spacing_mm, member.spacing_mm, rtol=0, atol=1e-6):
            raise _disagreement(first_name, name, "spacing", first.spacing_mm, member.spacing_mm)


def _disagreement(one: str, other: str, what: str, ours: object, theirs: object) -> EnsembleError:
    return EnsembleError(
        "averaging",
        other,
        f"its {what} is {theirs}, that of {one} is {ours}",
        "Materialise softmax of this patient by both models again.",
    )
