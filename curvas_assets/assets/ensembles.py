"""Ensembles: the mean softmax of several models of one patient, and where and why they are unsure."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import groupby

import dagster as dg

from curvas_assets.assets.cohort import OWNERS
from curvas_assets.ensembling import EnsembleSlab, stream_ensembles
from curvas_assets.orchestration import metadata
from curvas_assets.orchestration.bucket import Bucket
from curvas_assets.orchestration.cells import Outcome, materialise
from curvas_assets.orchestration.checks import Check, Checks, specs
from curvas_assets.orchestration.execution import RETRY, StageNeeds
from curvas_assets.orchestration.io_manager import Artefacts, Stored, artefact
from curvas_assets.orchestration.partitions import Partitions
from curvas_assets.orchestration.provenance import code_facts
from curvas_assets.orchestration.scratch import scratch_space
from curvas_assets.report import previews
from curvas_assets.storage.layout import Cell, Layout
from curvas_assets.storage.maps import MapWriter
from curvas_assets.storage.objects import ObjectStore
from curvas_assets.storage.softmax import SoftmaxVolume, SoftmaxWriter
from curvas_assets.study import Study

MAP_BYTES = 2 + 2 + 1
"""Of one voxel's entropy, mutual information and label: what an ensemble's maps can take in scratch at most."""
CHECKS = (
    Check(
        "members_are_complete",
        "Every model that belongs to the ensemble is in its mean; one that is missing is an error of that ensemble.",
        dg.AssetCheckSeverity.ERROR,
    ),
)


def build(study: Study, partitions: Partitions) -> list[dg.AssetsDefinition]:
    """The ensembles of one study."""
    needs = StageNeeds.of(study)

    @dg.asset(
        ins={"softmax": dg.AssetIn(partition_mapping=partitions.members_of_ensemble)},
        partitions_def=partitions.patient_by_ensemble,
        backfill_policy=dg.BackfillPolicy.multi_run(40),
        group_name="ensembles",
        owners=OWNERS,
        kinds={"numba", "zarr", "nifti"},
        code_version=f"3-{study.fingerprint('members', 'held_out')}",
        metadata=artefact("softmax"),
        output_required=False,
        check_specs=specs("ensemble_softmax", CHECKS, partitions.patient_by_ensemble),
        op_tags=needs.ensembling.op_tags,
        retry_policy=RETRY,
    )
    def ensemble_softmax(context: dg.AssetExecutionContext, bucket: Bucket, softmax: Artefacts):
        """Mean probability of an ensemble's members, and maps of its uncertainty as NIfTI beside it.

        Predictive entropy = expected entropy (aleatoric) + mutual information (epistemic), in nats per voxel. All
        ensembles of a patient come from one pass over the members. A missing member is an error, never a smaller
        ensemble.
        """
        objects, layout = (
            bucket.checked_objects(hours=needs.ensembling.hours * len(context.partition_keys)),
            bucket.layout,
        )
        checks = Checks(*CHECKS)

        def combine(keys: Sequence[str]) -> Iterator[tuple[str, Outcome]]:
            for patient, cells in groupby(keys, key=lambda key: Cell.of(key).patient):
                wanted = {Cell.of(key).predictor: key for key in cells}
                members = {name: [str(m) for m in study.members(name, patient)] for name in wanted}
                volumes: dict[str, SoftmaxVolume] = {}
                refused: dict[str, Exception] = {}
                for model in dict.fromkeys(model for names in members.values() for model in names):
                    try:
                        volumes[model] = softmax[str(Cell(model, patient))].volume()
                    except Exception as error:
                        refused[model] = error
                complete = {}
                for name, models in members.items():
                    absent = [model for model in models if model in refused]
                    if absent:
                        checks["members_are_complete"].look(wanted[name], [str(refused[model]) for model in absent])
                        yield wanted[name], refused[absent[0]]
                    else:
                        complete[name] = models
                if not complete:
                    continue
                try:
                    stored = store_ensembles(objects, layout, patient, volumes, complete)
                except Exception as error:
                    yield from ((wanted[name], error) for name in complete)
                    continue
                for name in complete:
                    checks["members_are_complete"].look(wanted[name])
                    yield wanted[name], stored[name]

        yield from materialise(context, objects, combine, checks)

    return [ensemble_softmax]


def store_ensembles(
    objects: ObjectStore,
    layout: Layout,
    patient: str,
    volumes: dict[str, SoftmaxVolume],
    ensembles: dict[str, list[str]],
) -> dict[str, Stored]:
    """Stream a patient's members once; store each ensemble's volume and its three maps."""
    first, code = next(iter(volumes.values())), code_facts("numba")
    names = ("entropy", "mutual_information", "labels")
    sums = {name: {"entropy": 0.0, "expected entropy": 0.0, "mutual information": 0.0} for name in ensembles}
    fullest: dict[str, tuple[float, int]] = dict.fromkeys(ensembles, (-1.0, 0))
    slices = {}
    voxels = first.shape[1] * first.shape[2] * first.shape[3]
    with ExitStack() as stack:
        scratch = stack.enter_context(scratch_space(patient, voxels * MAP_BYTES * len(ensembles)))
        writers = {
            name: stack.enter_context(
                SoftmaxWriter(
                    objects,
                    layout.softmax(patient, name),
                    first.shape,
                    class_names=first.class_names,
                    spacing_mm=first.spacing_mm,
                    affine=first.affine,
                    provenance={
                        "patient": patient,
                        "predictor": name,
                        "members": members,
                        "member_versions": {member: volumes[member].version for member in members},
                        "code": code,
                    },
                )
            )
            for name, members in ensembles.items()
        }
        maps: dict[tuple[str, str], MapWriter] = {}
        stack.callback(pair, writers, maps)  # once the maps are stored, before the volumes are announced
        maps |= {
            (name, kind): stack.enter_context(
                MapWriter(
                    objects,
                    layout.ensemble_map(patient, name, kind),
                    first.shape[1:],
                    kind="labels" if kind == "labels" else "entropy",
                    spacing_mm=first.spacing_mm,
                    affine=first.affine,
                    scratch=scratch,
                )
            )
            for name in ensembles
            for kind in names
        }
        compressing = stack.enter_context(ThreadPoolExecutor(2, thread_name_prefix="curvas-maps"))

        def write(z0: int, slabs: dict[str, EnsembleSlab]) -> None:
            written = [
                compressing.submit(maps[name, kind].write, z0, values)
                for name, slab in slabs.items()
                for kind, values in zip(
                    names, (slab.predictive_entropy, slab.mutual_information, slab.labels), strict=True
                )
            ]
            for name, slab in slabs.items():
                writers[name].write(z0, slab.mean)
                sums[name]["entropy"] += float(slab.predictive_entropy.sum(dtype="f8"))
                sums[name]["expected entropy"] += float(slab.expected_entropy.sum(dtype="f8"))
                sums[name]["mutual information"] += float(slab.mutual_information.sum(dtype="f8"))
                foreground = (slab.labels > 0).sum(axis=(1, 2))
                z = int(foreground.argmax())
                if foreground[z] > fullest[name][0]:
                    fullest[name] = (float(foreground[z]), z0 + z)
                    slices[name] = tuple(
                        part[z].copy() for part in (slab.predictive_entropy, slab.mutual_information, slab.labels)
                    )
            for one in written:
                one.result()

        for z0, _, slabs in stream_ensembles(volumes, ensembles):
            write(z0, slabs)
            del slabs  # not held while the next ones are made
    stored = {}
    for name, members in ensembles.items():
        facts = writers[name].facts
        preview = previews.preview_uncertainty(
            *slices[name],
            spacing_mm=first.spacing_mm,
            orientation=first.affine,
            class_names=first.class_names,
            title=f"{name} of {patient}, slice {fullest[name][1]}",
        )
        stored[name] = Stored(
            layout.softmax(patient, name),
            facts.version,
            {
                "patient": patient,
                "ensemble": name,
                "members": len(members),
                "shape": metadata.by(first.shape),
                "bytes": facts.size + sum(written.size for kind in names if (written := maps[name, kind].facts)),
                **{f"mean {what} (nats)": total / voxels for what, total in sums[name].items()},
                "preview": metadata.image(preview, f"uncertainty of {name}, {patient}"),
            },
        )
    return stored


def pair(volumes: Mapping[str, SoftmaxWriter], maps: Mapping[tuple[str, str], MapWriter]) -> None:
    """Say in each volume which maps are its own: of two writers at once, one's volume may come to stand beside the other's maps.

    Args:
        volumes: ensemble → its writer, not yet ended.
        maps: (ensemble, kind of map) → its writer, ended.
    """
    for (name, kind), written in maps.items():
        if written.facts is not None:
            volumes[name].beside[kind] = written.facts.check
