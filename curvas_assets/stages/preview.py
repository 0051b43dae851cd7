"""Previews: a patient's scan, annotations, segmentation and maps of uncertainty on a coarser grid, small enough to be shared.

Belongs here: what is in a preview, read slab by slab from the bucket. Does not belong here: the coarser grid and averaging
(`curvas_assets.sharing.previews`), the bundle that holds previews (`curvas_assets.sharing.bundle`).
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from curvas_assets.calibration import CalibratedVolume
from curvas_assets.cohort import read_annotations
from curvas_assets.errors import PatientError
from curvas_assets.geometry import by, mm
from curvas_assets.nifti import read_slabs
from curvas_assets.predictors import EnsembleId, predictor_of
from curvas_assets.report.style import CT_WINDOW_HU
from curvas_assets.report.verdict import leading_predictor
from curvas_assets.sharing import previews
from curvas_assets.sharing.previews import BlockMeans, Plan
from curvas_assets.stages.checks import Check, StepChecks
from curvas_assets.stages.patients import fetch_files, grid_of, shown_window
from curvas_assets.stages.stored import Artefact, Artefacts, Outcome, Stored, one_by_one
from curvas_assets.stages.toolkit import Toolkit
from curvas_assets.storage import directories
from curvas_assets.storage.encoding import labels_of
from curvas_assets.storage.labels import PackedLabels
from curvas_assets.storage.layout import Cell
from curvas_assets.storage.maps import download_map
from curvas_assets.storage.softmax import SoftmaxVolume
from curvas_assets.study import Channel, Study

RANGE_HU = (-200.0, 300.0)
"""Intensities that a preview tells apart, HU, in steps of 2; `CT_WINDOW_HU` is shown at first."""
RECORD = "preview.json"
MAPS = ("entropy", "mutual_information", "uncertainty", "risk")
"""Maps of a preview. `uncertainty` is 1 − confidence, by which risk–coverage curves rank voxels; `risk` is the share of the
annotators whose label is not the segmentation's, which is their mean risk there."""
CHECKS = (
    Check(
        "previews_are_small",
        "A preview is no larger than what a bundle of 65 patients has room for: 2.2 MB.",
    ),
)
MOST_BYTES = 2_200_000
"""Of a patient's preview. In a page it takes a third more: 65 of them, a viewer and a report stay below 200 MB."""
Volume = SoftmaxVolume | CalibratedVolume


def preview_patients(
    tools: Toolkit,
    patients: Sequence[str],
    checks: StepChecks,
    *,
    softmax: Artefacts,
    ensemble_softmax: Artefacts,
    scan: Artefacts,
) -> Iterator[tuple[str, Outcome]]:
    """Previews of patients with the predictor that the study is about."""

    def make(patient: str) -> Stored:
        predictor = predictor_shown(tools.study, patient)
        cells = ensemble_softmax if tools.study.predicted_by(predictor) == "ensemble" else softmax
        key = tools.layout.preview(patient)
        with tools.scratch(patient) as scratch:
            out = Path(scratch, "preview")
            volume = cells[str(Cell(predictor, patient))].volume()
            record = scan[patient].record()
            for most_voxels in (previews.MOST_VOXELS, previews.MOST_VOXELS * 2 // 3, previews.MOST_VOXELS // 3):
                facts = write_preview(tools, patient, predictor, record, volume, out, scratch, most_voxels=most_voxels)
                size = sum(path.stat().st_size for path in out.iterdir())
                if size <= MOST_BYTES:  # a scan that is noisier than most, or has more annotators, becomes coarser
                    break
            too_large = [f"its preview takes {size / 1e6:.1f} MB"] if size > MOST_BYTES else []
            checks["previews_are_small"].look(patient, too_large)
            stored = directories.write_directory(tools.objects, key, out)
        plan = Plan.of(facts["plan"])
        return Stored(
            key,
            stored.version,
            {
                "patient": patient,
                "predictor": predictor,
                "shape": by(plan.shape),
                "spacing_mm": mm(plan.grid.spacing_mm),
                "scan": by(plan.scan.shape),
                "bytes": stored.size,
            },
        )

    yield from one_by_one(make)(patients)


def predictor_shown(study: Study, patient: str) -> str:
    """Whose segmentation a patient's preview has: the study's leading predictor, as in the report; never a calibrated one."""
    stored = [name for name in study.predictors_of(patient) if study.predicted_by(name) != "calibrated"]
    return leading_predictor(study, stored)


def write_preview(
    tools: Toolkit,
    patient: str,
    predictor: str,
    record: dict[str, Any],
    volume: Volume,
    folder: Path,
    scratch: Path,
    *,
    plan: Plan | None = None,
    most_voxels: int = previews.MOST_VOXELS,
) -> dict[str, Any]:
    """Write a patient's preview into a folder: `preview.json` and NIfTI files on one coarser grid.

    Args:
        tools: the study's.
        patient: who.
        predictor: whose segmentation and maps.
        record: of the scan, as it was taken in.
        volume: the predictor's probabilities, opened.
        folder: that receives the files.
        scratch: a folder to work in.
        plan: the grid of the patient's other preview. Only what depends on the predictor is written then.
        most_voxels: of a new grid.

    Returns:
        What `preview.json` holds.

    Raises:
        PatientError: a file of the patient has changed since it was taken in, or the volume is on other voxels.
    """
    study, grid = tools.study, grid_of(record)
    if tuple(volume.shape[1:]) != grid.shape:
        raise PatientError(
            f"previewing {predictor}",
            patient,
            f"its volume has {by(volume.shape[1:])} voxels, the scan {by(grid.shape)} (Z × Y × X)",
            "Materialise the patient's predictions again.",
        )
    folder.mkdir(parents=True, exist_ok=True)
    image, blank = study.image_files[0], record.get("not_annotated", [])
    wanted = [annotator.file for annotator in study.annotators] + ([image] if plan is None else [])
    files = fetch_files(tools.objects, record, scratch / patient, wanted)
    drawn = [i for i, name in enumerate(study.annotator_names) if name not in blank]
    annotations = read_annotations(files, study, not_annotated=blank).only(drawn)
    segmentation = _packed(volume)
    maps = PackedLabels.stacked([segmentation, annotations])
    is_first = plan is None
    if plan is None:
        box = previews.bounding_box(maps) or [(0, n) for n in grid.shape]
        plan = previews.plan_preview(grid, box, most_voxels=most_voxels)
    writer = _Writer(folder, plan, patient)
    if is_first:
        writer.scan(files[image], study.images[0], shown_window(study, record["facts"]))
    labels, risk = _labels(plan, maps)
    writer.labels("segmentation", predictor, labels[0])
    if is_first:
        for index, own in zip(drawn, labels[1:], strict=True):
            writer.labels("annotation", study.annotator_names[index], own)
    entropy, uncertainty = _uncertainty(plan, volume)
    top = float(np.log(len(study.class_names)))
    writer.map("entropy", entropy, top, "nat")
    if isinstance(predictor_of(predictor), EnsembleId):
        key = tools.layout.ensemble_map(patient, predictor, "mutual_information")
        path = download_map(tools.objects, key, scratch / "map.nii.gz", check=volume.beside.get("mutual_information"))
        information = BlockMeans(plan)
        for z0, slab in _slabs(path, patient):
            information.add(z0, slab)
        writer.map("mutual_information", information.values(), top, "nat", shown=top / 2)
    writer.map("uncertainty", uncertainty, 1.0, "")
    writer.map("risk", risk, 1.0, "")
    facts = {
        "patient": patient,
        "predictor": predictor,
        "class_names": list(study.class_names),
        "plan": plan.record(),
        "spacing_mm": list(plan.grid.spacing_mm),
        "scan_spacing_mm": list(grid.spacing_mm),
        "orientation": grid.orientation,
        "volumes": writer.volumes,
        "most_uncertain_mm": previews.most_uncertain_mm(entropy, plan.grid),
        "centre_mm": previews.centre_mm(np.ones(plan.shape, np.bool_), plan.grid),
        "organs": {
            organ: previews.centre_mm(_drawn(labels == label), plan.grid)
            for label, organ in enumerate(study.class_names)
            if label
        },
        "not_annotated": [name for name in study.annotator_names if name in blank],
    }
    (folder / RECORD).write_text(json.dumps(facts, indent=1, sort_keys=True), encoding="utf-8")
    return facts


class _Writer:
    """Writes the files of one preview, and lists them."""

    def __init__(self, folder: Path, plan: Plan, patient: str):
        self.folder, self.plan, self.patient = folder, plan, patient
        self.volumes: list[dict[str, Any]] = []

    def scan(self, path: Path, channel: Channel, window: tuple[float, float] | None) -> None:
        """The first channel: a CT in steps of 2 HU, any other one between the ends of `window`."""
        means = BlockMeans(self.plan)
        for z0, slab in _slabs(path, self.patient):
            means.add(z0, slab)
        stored, slope, low = previews.scaled(means.values(), *(window or RANGE_HU))
        shown = {"unit": "" if window else "HU", "window": list(window or CT_WINDOW_HU)}
        self._write("scan", "scan", channel.name, stored, slope, low, **shown)

    def labels(self, kind: str, name: str, labels: previews.Labels) -> None:
        number = sum(one["kind"] == kind for one in self.volumes) + 1
        self._write(f"{kind}_{number}" if kind == "annotation" else kind, kind, name, labels, 1.0, 0.0)

    def map(
        self, name: str, values: npt.NDArray[np.float32], top: float, unit: str, *, shown: float | None = None
    ) -> None:
        """Values from 0 to `top`, of which colours tell those up to `shown` apart."""
        stored, slope, _ = previews.scaled(values, 0.0, top)
        self._write(
            name,
            "map",
            name,
            stored,
            slope,
            0.0,
            unit=unit,
            top=top if shown is None else shown,
            largest=round(float(values.max()), 4),
        )

    def _write(
        self, file: str, kind: str, name: str, stored: previews.Labels, slope: float, low: float, **more: Any
    ) -> None:
        content = previews.nifti(
            stored,
            self.plan.grid,
            slope=slope,
            intercept=low,
            description=f"{name}, blocks of {by(self.plan.block)} voxels",
            are_labels=kind in ("segmentation", "annotation"),
        )
        (self.folder / f"{file}.nii.gz").write_bytes(content)
        self.volumes.append({"file": f"{file}.nii.gz", "kind": kind, "name": name, "bytes": len(content), **more})


def _slabs(path: Path, patient: str) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    image = nib.Nifti1Image.from_filename(path)
    return read_slabs(image, attempted=f"previewing {path.name}", subject=patient, error=PatientError)


def _packed(volume: Volume) -> PackedLabels:
    """The label map of a volume, held compressed."""
    z, y, x = volume.shape[1:]
    labels = PackedLabels(1, (z, y, x))
    for z0, _, codes in volume.code_slabs():
        labels.put(0, z0, labels_of(codes, volume.levels))
    return labels


def _labels(plan: Plan, maps: PackedLabels) -> tuple[previews.Labels, npt.NDArray[np.float32]]:
    """The label maps (R, Z, Y, X) of the preview, the segmentation first, and the share of the others that differ from it."""
    labels = np.zeros((maps.shape[0], *plan.shape), np.uint8)
    risk = BlockMeans(plan)
    for own, of_scan in previews.rows_of_blocks(plan):
        slab = maps[(slice(None), of_scan, *plan.crop[1:])]
        for r, whole in enumerate(slab):
            labels[r, own] = previews.block_labels(plan, whole)
        if len(slab) > 1:
            risk.add_part(of_scan.start, (slab[1:] != slab[0]).mean(axis=0, dtype=np.float32))
    return labels, risk.values()


def _uncertainty(plan: Plan, volume: Volume) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Entropy of the probabilities, nats, and 1 − their largest, as means over the blocks."""
    entropy, uncertainty = BlockMeans(plan), BlockMeans(plan)
    levels = np.asarray(volume.levels, np.float32)
    for z0, z1, codes in volume.code_slabs():
        part = entropy.part(z0, z1)
        if part is None:
            continue
        own = codes[(slice(None), *part)]
        somewhere = own.any(axis=0)  # elsewhere the background is certain
        if not somewhere.any():
            continue
        p = levels[own[:, somewhere]]
        p = np.concatenate([np.clip(1 - p.sum(axis=0, keepdims=True), 0, 1), p])
        for means, values in (
            (entropy, -(p * np.log(np.where(p > 0, p, np.float32(1)))).sum(axis=0)),
            (uncertainty, 1 - p.max(axis=0)),
        ):
            whole = np.zeros(somewhere.shape, np.float32)
            whole[somewhere] = values
            means.add_part(z0 + part[0].start, whole)
    return entropy.values(), uncertainty.values()


def _drawn(of_maps: Any) -> Any:
    """Where an organ is, bool (Z, Y, X), of its masks in all label maps (R, Z, Y, X): by the segmentation, or if it has none, by any
    annotator.
    """
    return of_maps[0] if of_maps[0].any() else of_maps.any(axis=0)


def stored_preview(artefact: Artefact, into: Path) -> dict[str, Any]:
    """Fetch a stored preview into a folder; returns its record."""
    return json.loads((artefact.folder(into) / RECORD).read_text(encoding="utf-8"))
