"""Uploading predictions that nnU-Net wrote elsewhere (`--save_probabilities`): each becomes a cell of softmax."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from curvas_assets.errors import CurvasError, MissingArtefactError, PatientError, StorageError, StudyError
from curvas_assets.geometry import by
from curvas_assets.orchestration.environment import deployment
from curvas_assets.orchestration.operations.selection import choose_models, choose_patients
from curvas_assets.orchestration.staleness import ELSEWHERE, MADE
from curvas_assets.stages.predict import preview_softmax
from curvas_assets.stages.stored import Stored
from curvas_assets.storage import tables
from curvas_assets.storage.layout import Cell, Layout
from curvas_assets.storage.nnunet_exchange import import_nnunet_prediction
from curvas_assets.storage.objects import ObjectStore
from curvas_assets.storage.softmax import open_softmax
from curvas_assets.study import Study


def upload_predictions(
    objects: ObjectStore,
    layout: Layout,
    study: Study,
    model: str,
    folder: Path,
    asked: Sequence[str],
    origin: str,
    tell: Callable[[str], None],
) -> Iterator[tuple[str, Stored | CurvasError]]:
    """Store a model's predictions of several patients, each checked against its patient's scan.

    Args:
        objects: the bucket.
        layout: where volumes stand in it.
        study: classes, models and ids.
        model: one of the study's models.
        folder: holds `<patient>.npz` and `<patient>.nii.gz`, named with or without the prefix, and the `dataset.json` and
            `plans.json` that nnU-Net puts beside them: classes and reader of the model. Without these, both are judged by
            the label maps.
        asked: as `choose_patients` reads it, of the patients in the folder.
        origin: where they come from, in words.
        tell: told of each patient.

    Yields:
        Each cell of softmax (`<model>|<patient>`) and what was stored, or why it was refused.

    Raises:
        StudyError: the study has no such model, or a patient that was asked for is not in the folder.
        PatientError: there is no prediction in the folder.
    """
    (model,) = choose_models(study, [model])
    found = dict(_predictions(study, Path(folder).expanduser()))
    if not found:
        raise PatientError(
            "looking for predictions",
            str(folder),
            "no file is named <patient>.npz",
            "Give the folder that nnUNetv2_predict --save_probabilities filled.",
        )
    chosen = choose_patients(study, asked, found)
    for count, patient in enumerate(chosen, 1):
        try:
            stored = _store(objects, layout, study, model, patient, found[patient], origin)
            tell(f"{count} of {len(chosen)}, {patient}: stored, {stored.metadata['bytes']} bytes")
            yield str(Cell(model, patient)), stored
        except CurvasError as error:
            tell(f"{count} of {len(chosen)}, {patient}: refused: {error.after(patient)}")
            yield str(Cell(model, patient)), error


def _predictions(study: Study, folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.glob("*.npz")):
        try:
            yield study.patients.normalise(path.stem), path
        except StudyError:
            continue


def _beside(npz: Path, name: str) -> dict[str, Any]:
    """What nnU-Net put beside its predictions; nothing if it is not there."""
    path = npz.with_name(name)
    try:
        content = json.loads(path.read_text()) if path.is_file() else {}
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}")
        return content
    except (OSError, ValueError) as error:
        raise StorageError(
            "importing a prediction",
            npz.name,
            f"{path} is not nnU-Net's ({error})",
            "Upload the folder as nnU-Net left it.",
        ) from error


def _store(
    objects: ObjectStore, layout: Layout, study: Study, model: str, patient: str, npz: Path, origin: str
) -> Stored:
    try:
        record = tables.read_json(objects, layout.test_scan(patient))
    except MissingArtefactError as error:
        raise PatientError(
            "importing a prediction",
            patient,
            "its scan has not been taken in, so there is nothing to check it against",
            "Upload the patient and materialise scan and test_scan first.",
        ) from error
    key = layout.softmax(patient, model)
    dataset, plans = (_beside(npz, name) for name in ("dataset.json", "plans.json"))
    facts = import_nnunet_prediction(
        npz,
        npz.with_suffix(".nii.gz"),
        objects,
        key,
        class_names=study.class_names,
        shape=record["shape"],
        affine=record["affine"],
        labels=dataset.get("labels"),
        reader=plans.get("image_reader_writer"),
        provenance={"patient": patient, "predictor": model, "origin": origin or "not told"},
        scratch=deployment().scratch_folder(),
    )
    return Stored(
        key,
        facts.version,
        {
            MADE: ELSEWHERE,
            "origin": origin or "not told",
            "uploaded from": str(npz),
            "patient": patient,
            "model": model,
            "shape": by((len(study.class_names), *record["shape"])),
            "bytes": facts.size,
            "voxels by label": dict(zip(study.class_names, facts.label_voxels, strict=True)),
            "preview": preview_softmax(open_softmax(objects, key), f"{model} of {patient}"),
        },
    )
