"""Predictions: the softmax of one patient by one model."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from curvas_assets.errors import DiskError, SegmentationError
from curvas_assets.probabilities import require_probabilities
from curvas_assets.report import previews
from curvas_assets.segmentation import Predictor, PreparedScan, trained_on
from curvas_assets.stages.checks import Check, StepChecks
from curvas_assets.stages.patients import fetch_files
from curvas_assets.stages.prepare import order_of_training_scans
from curvas_assets.stages.stored import Artefacts, Outcome, Picture, Stored, by, device_name
from curvas_assets.stages.toolkit import Toolkit
from curvas_assets.storage import directories
from curvas_assets.storage.layout import Cell
from curvas_assets.storage.softmax import SoftmaxVolume, SoftmaxWriter, open_softmax

CHECKS = (
    Check("sums_to_one", "The classes of every voxel sum to 1, and none is NaN.", of_defects=True),
    Check("labels_are_not_empty", "The model found at least one voxel of every organ."),
    Check("volumes_are_plausible", "Each organ's volume lies within `checks.volume_ml`, and below half of the scan."),
)


def predict(
    tools: Toolkit, cells: Sequence[str], checks: StepChecks, *, trained_model: Artefacts, test_scan: Artefacts
) -> Iterator[tuple[str, Outcome]]:
    """Volumes of cells of patients × models, patient by patient.

    Each patient is fetched and preprocessed once, each model fetched once; every volume is yielded as soon as it is stored.
    """
    study, objects, layout = tools.study, tools.objects, tools.layout
    predictor = Predictor(
        study, tell=tools.tell, unrecorded_order=cache(lambda: order_of_training_scans(objects, layout, study))
    )
    code = tools.code("nnunetv2", "torch")
    model_bytes = sum(directories.size_of(objects, layout.model(m)) for m in {Cell.of(key).predictor for key in cells})
    with ExitStack() as held:
        try:
            scratch = held.enter_context(tools.scratch("softmax", model_bytes))
        except DiskError as error:
            yield from ((key, error) for key in cells)
            return
        leased = held.enter_context(tools.device())
        models: dict[str, tuple[Path, str]] = {}
        for patient, of_patient in groupby(cells, key=lambda key: Cell.of(key).patient):
            with tempfile.TemporaryDirectory(dir=scratch) as folder:
                opened = None
                for key in of_patient:
                    try:
                        if opened is None:
                            fetch_files(objects, test_scan[patient].record(), Path(folder), [study.image])
                            opened = predictor.open(Path(folder, study.image), patient)
                        model = Cell.of(key).predictor
                        if model not in models:
                            into = Path(scratch, "models", model)
                            models[model] = into, trained_model[model].fetch(into)
                        model_folder, version = models[model]
                        require_unseen(model_folder, model, patient)
                        made_by = {"model_version": version, "code": code}
                        yield key, _store(tools, predictor, opened, key, model_folder, leased, made_by, checks)
                    except Exception as error:
                        yield key, error


def _store(
    tools: Toolkit,
    predictor: Predictor,
    opened: PreparedScan,
    cell: str,
    model_folder: Path,
    leased: str | None,
    made_by: dict[str, Any],
    checks: StepChecks,
) -> Stored:
    """Predict one cell and store it slab by slab."""
    (model, patient), names = Cell.of(cell), tools.study.class_names
    prediction = predictor.predict(opened, model_folder)
    key = tools.layout.softmax(patient, model)
    with SoftmaxWriter(
        tools.objects,
        key,
        prediction.grid,
        class_names=names,
        provenance={"patient": patient, "predictor": model, **made_by},
    ) as writer:
        for z0, slab in prediction.slabs:
            if defect := not_a_distribution(slab, f"{model} of {patient}", z0):
                raise checks["sums_to_one"].refuse(cell, defect)
            writer.write(z0, slab)
    voxels = dict(zip(names, writer.facts.label_voxels, strict=True))
    volumes_ml = {n: count * prediction.grid.voxel_ml for n, count in voxels.items()}
    checks["sums_to_one"].look(cell)
    checks["labels_are_not_empty"].look(cell, [f"no {n}" for n, count in voxels.items() if not count])
    checks["volumes_are_plausible"].look(cell, implausible_volumes(volumes_ml, tools.study.checks.volume_ml))
    return Stored(
        key,
        writer.facts.version,
        {
            "patient": patient,
            "model": model,
            "shape": by(prediction.shape),
            "bytes": writer.facts.size,
            "device": device_name(prediction.device, leased),
            "memory estimated (GiB)": round(prediction.memory_bytes / 2**30, 2),
            "voxels by label": voxels,
            "volumes (ml)": {n: round(ml, 2) for n, ml in volumes_ml.items()},
            "preview": preview_softmax(open_softmax(tools.objects, key), f"{model} of {patient}"),
        },
    )


def require_unseen(model_folder: Path, model: str, patient: str) -> None:
    """Raise a SegmentationError if a model has seen the patient; only new models predict former training patients."""
    if patient in trained_on(model_folder):
        raise SegmentationError(
            "predicting",
            f"{model} of {patient}",
            "the model was trained on this patient, so that its scores would say nothing",
            "Train the model again (its dataset is out of date), or leave the patient out of the test set and of its rule.",
        )


def not_a_distribution(slab: np.ndarray, subject: str, z0: int) -> SegmentationError | None:
    """What is wrong with a model's probabilities (C, dz, Y, X) that begin at slice z0; None if nothing is."""
    try:
        require_probabilities(slab, attempted="predicting", subject=subject, error=SegmentationError, z0=z0)
    except SegmentationError as defect:
        return defect
    return None


def implausible_volumes(volumes_ml: dict[str, float], limits: Mapping[str, tuple[float, float]]) -> list[str]:
    """Which organs are implausibly small or large.

    Args:
        volumes_ml: class → volume in ml, background included.
        limits: organ → least and most, ml; an organ that is not named is only compared with the scan.
    """
    whole, odd = sum(volumes_ml.values()), []
    for organ, ml in volumes_ml.items():
        if organ == "background" or not ml:
            continue
        low, high = limits.get(organ, (0.0, whole / 2))
        if not low <= ml <= high:
            odd.append(f"{organ} of {ml:.1f} ml (plausible: {low:g} … {high:g})")
    return odd


def preview_softmax(volume: SoftmaxVolume, title: str) -> Picture:
    """The middle slice of what is foreground in a stored volume, as an image for the UI."""
    z = volume.fullest_slice
    png = previews.preview_softmax(
        None,
        volume.slab(z, z + 1)[:, 0],
        spacing_mm=volume.grid.spacing_mm,
        orientation=volume.grid.orientation,
        class_names=volume.class_names,
        title=f"{title}, slice {z}",
    )
    return Picture(png, f"{title}, slice {z}")
