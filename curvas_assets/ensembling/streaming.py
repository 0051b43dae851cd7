"""All ensembles of one patient in one pass over the stored members: memory for a few slabs, whatever the volume."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
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
    tables = [_entropy_table(int(count) * FULL) for count in counts]
    begins = np.cumsum([0, *(len(table) for table in tables)])[:-1]
    entropy_of_mean = np.concatenate(tables)
    classes = next(iter(members.values())).shape[0]
    streams = [members[name].code_slabs() for name in names]
    held: npt.NDArray[np.uint16] | None = None
    for z0, z1, first in streams[0]:
        others = [next(stream)[2] for stream in streams[1:]]
        slab = _empty_slab((len(ensembles),), classes, first.shape[1:])
        if held is None or held.shape[2:] != first.shape[1:]:
            held = np.empty((len(names), *first.shape), np.uint16)
        codes = np.stack([first, *others], out=held)
        del others, first  # two slabs of nine members are a quarter of what is held
        with PARALLEL:
            _combine(
                codes,
                groups,
                counts,
                ENTROPY,
                entropy_of_mean,
                begins,
                slab.mean,
                slab.predictive_entropy,
                slab.expected_entropy,
                slab.mutual_information,
                slab.labels,
            )
        found = {
            name: EnsembleSlab(*(part[e] for part in (getattr(slab, field.name) for field in fields(slab))))
            for e, name in enumerate(ensembles)
        }
        del slab
        yield z0, z1, found
        del found


def _empty_slab(ensembles: tuple[int, ...], classes: int, voxels: tuple[int, ...]) -> EnsembleSlab:
    predictive, expected, mutual = (np.empty((*ensembles, *voxels), np.float32) for _ in range(3))
    return EnsembleSlab(
        np.empty((*ensembles, classes, *voxels), np.float32),
        predictive,
        expected,
        mutual,
        np.empty((*ensembles, *voxels), np.uint8),
    )


def _entropy_table(full: int) -> npt.NDArray[np.float64]:
    """−p ln p of every p = sum / full."""
    p = np.arange(full + 1) / full
    return -p * np.log(np.where(p > 0, p, 1))


ENTROPY = _entropy_table(FULL)


@njit(parallel=True, cache=True, nogil=True)
def _combine(codes, groups, counts, table, table_of_mean, begins, mean, predictive, expected, mutual, labels):
    """All ensembles of a slab, row by row of voxels, so that sums never leave the processor's cache.

    `codes` are (member, foreground class, z, y, x), `groups` (ensemble, member) says who is in which, `counts` how many
    that are. `table` has −p ln p of each code, `table_of_mean` of each sum of codes, one ensemble after the other, which
    begin at `begins`.
    """
    members, foreground, depth, height, width = codes.shape
    for row in prange(depth * height):
        z, y = row // height, row % height
        sums = np.zeros((groups.shape[0], foreground, width), np.int32)  # exact up to 32,767 members
        entropies = np.zeros((groups.shape[0], width))
        rest = np.empty(width, np.int32)
        entropy = np.empty(width)
        for m in range(members):
            rest[:] = FULL
            for c in range(foreground):
                line = codes[m, c, z, y]
                for x in range(width):
                    rest[x] -= line[x]
            some = False
            for x in range(width):
                some |= rest[x] != FULL
            if not some:
                continue
            for x in range(width):
                entropy[x] = table[rest[x]]
            for c in range(foreground):
                line = codes[m, c, z, y]
                for x in range(width):
                    entropy[x] += table[line[x]]
            for e in range(groups.shape[0]):
                if groups[e, m]:
                    for c in range(foreground):
                        line, total = codes[m, c, z, y], sums[e, c]
                        for x in range(width):
                            total[x] += line[x]
                    of_members = entropies[e]
                    for x in range(width):
                        of_members[x] += entropy[x]
        for e in range(groups.shape[0]):
            full = counts[e] * FULL
            scale = 1.0 / full
            terms = table_of_mean[begins[e] : begins[e] + full + 1]
            for x in range(width):
                left = full
                for c in range(foreground):
                    left -= sums[e, c, x]
                mean[e, 0, z, y, x] = left * scale
                if left == full:
                    for c in range(foreground):
                        mean[e, c + 1, z, y, x] = 0.0
                    predictive[e, z, y, x] = expected[e, z, y, x] = mutual[e, z, y, x] = 0.0
                    labels[e, z, y, x] = 0
                    continue
                best, most = 0, left
                whole = terms[left]
                for c in range(foreground):
                    code = sums[e, c, x]
                    mean[e, c + 1, z, y, x] = code * scale
                    whole += terms[code]
                    if code > most:
                        best, most = c + 1, code
                inner = min(entropies[e, x] / counts[e], whole)
                predictive[e, z, y, x] = whole
                expected[e, z, y, x] = inner
                mutual[e, z, y, x] = whole - inner
                labels[e, z, y, x] = best


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
