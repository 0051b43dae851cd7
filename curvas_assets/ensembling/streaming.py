# numba infers the types of its functions:
# pyright: reportMissingParameterType=false
"""All ensembles of one patient in one pass over the stored members: memory for a few slabs, whatever the volume."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields

import numba
import numpy as np
import numpy.typing as npt
from numba import njit, prange

from curvas_assets.codes import NOTHING, Levels, background_of, entropy_of_codes, leads
from curvas_assets.entropy import divided, entropy_term
from curvas_assets.errors import EnsembleError
from curvas_assets.parallel import PARALLEL
from curvas_assets.storage.side_by_side import code_slabs_of
from curvas_assets.storage.softmax import SoftmaxVolume

Map = npt.NDArray[np.float32]


@dataclass(frozen=True)
class EnsembleSlab:
    """Some slices of an ensemble: mean (C, dz, Y, X); entropies in nats (dz, Y, X); labels, the mean's argmax."""

    mean: npt.NDArray[np.float32]
    predictive_entropy: Map
    expected_entropy: Map
    mutual_information: Map
    labels: npt.NDArray[np.uint8]


def stream_ensembles(
    members: Mapping[str, SoftmaxVolume], ensembles: Mapping[str, Sequence[str]]
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
    levels, level_of = _tables([member.levels for member in members.values()])
    entropies = np.stack([entropy_of_codes(table) for table in levels])
    classes = next(iter(members.values())).shape[0]
    with ThreadPoolExecutor(numba.get_num_threads(), thread_name_prefix="curvas-decode") as decoding:
        for z0, z1, codes in code_slabs_of(list(members.values()), decoding):
            slab = _empty_slab((len(ensembles),), classes, codes.shape[2:])
            with PARALLEL:
                _combine(
                    codes,
                    groups,
                    counts,
                    levels,
                    entropies,
                    level_of,
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


def _tables(levels: Sequence[Levels]) -> tuple[Levels, npt.NDArray[np.int64]]:
    """The distinct tables of levels, padded to one length (no code exceeds its own table), and each member's table."""
    different: list[Levels] = []
    for table in levels:
        if not any(np.array_equal(table, known) for known in different):
            different.append(table)
    out = np.zeros((len(different), max(map(len, different))))
    for row, table in zip(out, different, strict=True):
        row[: len(table)] = table
    return out, np.array([next(i for i, d in enumerate(different) if np.array_equal(d, table)) for table in levels])


@njit(parallel=True, cache=True, nogil=True)
def _combine(codes, groups, counts, levels, entropies, level_of, mean, predictive, expected, mutual, labels):
    """All ensembles of a slab, row by row of voxels, so that sums never leave the processor's cache.

    `codes` are (member, foreground class, z, y, x), `groups` (ensemble, member) marks an ensemble's members, `counts`
    their number. `levels` and `entropies` are p and −p ln p of each code; `level_of` is each member's table.
    """
    members, foreground, depth, height, width = codes.shape
    for row in prange(depth * height):
        z, y = row // height, row % height
        sums = np.zeros((groups.shape[0], foreground + 1, width))
        inner = np.zeros((groups.shape[0], width))
        rest = np.empty(width)
        entropy = np.empty(width)
        anything = np.uint16(0)
        for m in range(members):
            some = np.uint16(0)
            for c in range(foreground):
                line = codes[m, c, z, y]
                for x in range(width):
                    some |= line[x]
            anything |= some
            if some == NOTHING:
                for e in range(groups.shape[0]):
                    if groups[e, m]:
                        sums[e, 0] += 1.0
                continue
            p_of, entropy_of = levels[level_of[m]], entropies[level_of[m]]
            rest[:] = 0.0
            entropy[:] = 0.0
            for c in range(foreground):
                line = codes[m, c, z, y]
                for x in range(width):
                    rest[x] += p_of[line[x]]
                    entropy[x] += entropy_of[line[x]]
            for x in range(width):
                rest[x] = background_of(rest[x])
                entropy[x] += entropy_term(rest[x])
            for e in range(groups.shape[0]):
                if groups[e, m]:
                    for c in range(foreground):
                        line, total = codes[m, c, z, y], sums[e, c + 1]
                        for x in range(width):
                            total[x] += p_of[line[x]]
                    total, of_members = sums[e, 0], inner[e]
                    for x in range(width):
                        total[x] += rest[x]
                        of_members[x] += entropy[x]
        if anything == NOTHING:
            for e in range(groups.shape[0]):
                mean[e, 0, z, y] = 1.0
                mean[e, 1:, z, y] = 0.0
                predictive[e, z, y] = expected[e, z, y] = mutual[e, z, y] = 0.0
                labels[e, z, y] = 0
            continue
        for e in range(groups.shape[0]):
            scale = 1.0 / counts[e]
            for x in range(width):
                best, most, whole = 0, np.float32(0.0), 0.0
                for c in range(foreground + 1):
                    p = sums[e, c, x] * scale
                    whole += entropy_term(p)
                    mean[e, c, z, y, x] = p
                    if c == 0 or leads(mean[e, c, z, y, x], most):
                        best, most = c, mean[e, c, z, y, x]
                predictive[e, z, y, x] = whole
                expected[e, z, y, x], mutual[e, z, y, x] = divided(whole, inner[e, x] * scale)
                labels[e, z, y, x] = best


def _require_complete(members: Mapping[str, SoftmaxVolume], ensembles: Mapping[str, Sequence[str]]) -> None:
    for ensemble, chosen in ensembles.items():
        missing = [name for name in chosen if name not in members]
        if missing or not chosen:
            raise EnsembleError(
                "averaging",
                ensemble,
                f"no softmax of {', '.join(missing) or 'any member'}",
                "Materialise softmax of every member for this patient first.",
            )


def _require_agreement(members: Mapping[str, SoftmaxVolume]) -> None:
    (first_name, first), *others = members.items()
    for name, member in others:
        for what, ours, theirs in (
            ("shape", first.shape, member.shape),
            ("classes", first.class_names, member.class_names),
            ("patient", first.provenance.get("patient"), member.provenance.get("patient")),
        ):
            if ours != theirs:
                raise _disagreement(first_name, name, what, ours, theirs)
        ours, theirs = first.grid.spacing_mm, member.grid.spacing_mm
        if not np.allclose(ours, theirs, rtol=0, atol=1e-6):
            raise _disagreement(first_name, name, "spacing", ours, theirs)


def _disagreement(one: str, other: str, what: str, ours: object, theirs: object) -> EnsembleError:
    return EnsembleError(
        "averaging",
        other,
        f"its {what} is {theirs}, that of {one} is {ours}",
        "Materialise softmax of this patient by both models again.",
    )
