"""Ensembles: the mean softmax of several models of one patient, or variants of one, and where and why they are unsure."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path

import numpy as np

from curvas_assets.ensembling import EnsembleSlab, stream_ensembles
from curvas_assets.geometry import by
from curvas_assets.report import previews
from curvas_assets.stages.checks import Check, StepChecks
from curvas_assets.stages.stored import AVERAGED, Artefacts, Outcome, Picture, Stored
from curvas_assets.stages.toolkit import Toolkit
from curvas_assets.storage.layout import Cell
from curvas_assets.storage.maps import MapWriter
from curvas_assets.storage.softmax import SoftmaxVolume, SoftmaxWriter
from curvas_assets.study import ModelId

MAPS = ("entropy", "mutual_information", "labels")
MAP_BYTES = 2 + 2 + 2
"""Bytes per voxel of entropy, mutual information and label: the most that an ensemble's maps can take in scratch."""
OF_A_MEMBER = 2
"""Sizes of its largest member that an ensemble's volume is given room for in scratch: its own is about one."""
CHECKS = (
    Check(
        "members_are_complete",
        "Every model that belongs to the ensemble is in its mean; one that is missing is an error of that ensemble.",
        of_defects=True,
    ),
)


def build_ensembles(
    tools: Toolkit, cells: Sequence[str], checks: StepChecks, *, softmax: Artefacts, variant_softmax: Artefacts
) -> Iterator[tuple[str, Outcome]]:
    """Ensembles of cells of patients × ensembles: those of a patient's models from one pass over the members, then each one
    with variants as members from a pass of its own, so that memory grows with the members of one pass.
    """
    for patient, of_patient in groupby(cells, key=lambda key: Cell.of(key).patient):
        wanted = {Cell.of(key).predictor: key for key in of_patient}
        members = {name: tools.study.members(name, patient) for name in wanted}
        alone = [name for name, models in members.items() if any(model.variant for model in models)]
        together = [name for name in wanted if name not in alone]
        for names in ([together] if together else []) + [[name] for name in alone]:
            yield from _of_one_pass(
                tools,
                patient,
                {name: wanted[name] for name in names},
                {name: members[name] for name in names},
                checks,
                softmax,
                variant_softmax,
            )


def _of_one_pass(
    tools: Toolkit,
    patient: str,
    wanted: Mapping[str, str],
    members: Mapping[str, Collection[ModelId]],
    checks: StepChecks,
    softmax: Artefacts,
    variant_softmax: Artefacts,
) -> Iterator[tuple[str, Outcome]]:
    """Ensembles of one patient whose members are read once; ensemble → cell, ensemble → members."""
    volumes: dict[str, SoftmaxVolume] = {}
    refused: dict[str, Exception] = {}
    for model in dict.fromkeys(model for models in members.values() for model in models):
        try:
            of = variant_softmax if model.variant else softmax
            volumes[str(model)] = of[str(Cell(str(model), patient))].volume()
        except Exception as error:
            refused[str(model)] = error
    complete: dict[str, list[str]] = {}
    for name, models in members.items():
        absent = [str(model) for model in models if str(model) in refused]
        if absent:
            checks["members_are_complete"].look(wanted[name], [str(refused[model]) for model in absent])
            yield wanted[name], refused[absent[0]]
        else:
            complete[name] = [str(model) for model in models]
    if not complete:
        return
    try:
        stored = _store_ensembles(tools, patient, volumes, complete)
    except Exception as error:
        yield from ((wanted[name], error) for name in complete)
        return
    for name in complete:
        checks["members_are_complete"].look(wanted[name])
        yield wanted[name], stored[name]


def _store_ensembles(
    tools: Toolkit, patient: str, volumes: Mapping[str, SoftmaxVolume], ensembles: Mapping[str, Sequence[str]]
) -> dict[str, Stored]:
    """Stream a patient's members once; store each ensemble's volume and its three maps."""
    voxels = int(np.prod(next(iter(volumes.values())).shape[1:]))
    scratch_bytes = MAP_BYTES * voxels + OF_A_MEMBER * max(volume.size for volume in volumes.values())
    with ExitStack() as stack:
        scratch = stack.enter_context(tools.scratch(patient, len(ensembles) * scratch_bytes))
        made = {name: _Ensemble(tools, patient, name, members, volumes, scratch) for name, members in ensembles.items()}
        for ensemble in made.values():
            stack.enter_context(ensemble.volume)
        for ensemble in made.values():  # the maps are stored, and named in the volume, before the volume is announced
            stack.callback(ensemble.pair)
        for ensemble in made.values():
            ensemble.open_maps(stack, scratch)
        compressing = stack.enter_context(ThreadPoolExecutor(2, thread_name_prefix="curvas-maps"))
        for z0, _, slabs in stream_ensembles(volumes, ensembles):
            pending = [one for name, slab in slabs.items() for one in made[name].write_maps(compressing, z0, slab)]
            for name, slab in slabs.items():
                made[name].write(z0, slab)
            for one in pending:
                one.result()
            del slabs  # not held while the next ones are made
    return {name: ensemble.stored() for name, ensemble in made.items()}


class _Ensemble:
    """One ensemble of a patient while it is stored: its volume, its maps, and what the UI shows of it.

    Args:
        tools: the study's.
        patient: whose it is.
        name: of the ensemble.
        members: models that it is the mean of.
        volumes: model → its softmax of the patient.
        scratch: a folder to work in.
    """

    def __init__(
        self,
        tools: Toolkit,
        patient: str,
        name: str,
        members: Sequence[str],
        volumes: Mapping[str, SoftmaxVolume],
        scratch: Path,
    ):
        self.tools, self.patient, self.name, self.members = tools, patient, name, members
        self.first = next(iter(volumes.values()))
        self.key = tools.layout.softmax(patient, name)
        self.volume = SoftmaxWriter(
            tools.objects,
            self.key,
            self.first.grid,
            class_names=self.first.class_names,
            provenance={
                "patient": patient,
                "predictor": name,
                "members": list(members),
                "member_versions": {member: volumes[member].version for member in members},
                "code": tools.code("numba"),
            },
            scratch=scratch,
        )
        self.maps: dict[str, MapWriter] = {}
        self._sums = {"entropy": 0.0, "expected entropy": 0.0, "mutual information": 0.0}
        self._most_foreground, self._fullest = -1, 0
        self._slices: tuple[np.ndarray, ...] = ()

    def open_maps(self, stack: ExitStack, scratch: Path) -> None:
        """Begin the maps, which are stored when the stack ends."""
        for kind in MAPS:
            writer = MapWriter(
                self.tools.objects,
                self.tools.layout.ensemble_map(self.patient, self.name, kind),
                self.first.grid,
                kind="labels" if kind == "labels" else "entropy",
                scratch=scratch,
                values=self.tools.study.label_values,
            )
            self.maps[kind] = stack.enter_context(writer)

    def write_maps(self, compressing: Executor, z0: int, slab: EnsembleSlab) -> list[Future[None]]:
        """Begin to write a slab's maps; to be waited for before the next slab."""
        values = (slab.predictive_entropy, slab.mutual_information, slab.labels)
        return [compressing.submit(self.maps[kind].write, z0, part) for kind, part in zip(MAPS, values, strict=True)]

    def write(self, z0: int, slab: EnsembleSlab) -> None:
        """Write a slab's mean, and keep what is shown: sums, and the slice with most foreground."""
        self.volume.write(z0, slab.mean)
        self._sums["entropy"] += float(slab.predictive_entropy.sum(dtype="f8"))
        self._sums["expected entropy"] += float(slab.expected_entropy.sum(dtype="f8"))
        self._sums["mutual information"] += float(slab.mutual_information.sum(dtype="f8"))
        foreground = (slab.labels > 0).sum(axis=(1, 2))
        z = int(foreground.argmax())
        if foreground[z] > self._most_foreground:
            self._most_foreground, self._fullest = int(foreground[z]), z0 + z
            self._slices = tuple(
                part[z].copy() for part in (slab.predictive_entropy, slab.mutual_information, slab.labels)
            )

    def pair(self) -> None:
        """Record in the volume which maps belong to it, once they are stored."""
        pair(self.volume, self.maps)

    def stored(self) -> Stored:
        """What was stored, once both volume and maps are."""
        title = f"{self.name} of {self.patient}, slice {self._fullest}"
        preview = previews.preview_uncertainty(
            *self._slices,
            spacing_mm=self.first.grid.spacing_mm,
            orientation=self.first.grid.orientation,
            class_names=self.first.class_names,
            title=title,
        )
        voxels = int(np.prod(self.first.shape[1:]))
        facts = self.volume.facts
        return Stored(
            self.key,
            facts.version,
            {
                "patient": self.patient,
                "ensemble": self.name,
                "members": len(self.members),
                AVERAGED: list(self.members),
                "shape": by(self.first.shape),
                "bytes": facts.size + sum(one.facts.size for one in self.maps.values() if one.facts),
                **{f"mean {what} (nats)": total / voxels for what, total in self._sums.items()},
                "preview": Picture(preview, f"uncertainty of {self.name}, {self.patient}"),
            },
        )


def pair(volume: SoftmaxWriter, maps: Mapping[str, MapWriter]) -> None:
    """Record in a volume which maps belong to it: one writer's volume may end up beside another writer's maps.

    Args:
        volume: its writer, not yet ended.
        maps: kind of map → its writer, ended.
    """
    for kind, written in maps.items():
        if written.facts is not None:
            volume.beside[kind] = written.facts.check
