"""Exporting a predictor into a folder from which the image of a submission is built."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curvas_assets.calibration import Calibrator
from curvas_assets.errors import StudyError
from curvas_assets.orchestration.operations.transfer import human_bytes
from curvas_assets.predictors import SNAPSHOT, CalibratedId, ModelId, predictor_of
from curvas_assets.stages.calibrated import calibrators_of
from curvas_assets.stages.prepare import order_of_training_scans
from curvas_assets.stages.stored import Artefact
from curvas_assets.storage.layout import Layout
from curvas_assets.storage.objects import ObjectStore
from curvas_assets.study import Study
from curvas_assets.submission.record import (
    MODELS,
    RECORD_FILE,
    Sockets,
    Submission,
    begin_submission,
    is_submission,
    members_of,
    without_people,
    write_submission,
)
from curvas_assets.voxel_order import READERS, RECORD

Tell = Callable[[str], None]
OF_DATASETS = ("channel_names", "modality", "labels", "numTraining", "file_ending", "regions_class_order", RECORD)
"""What goes along of a `dataset.json`: a fused one also names the patients."""


@dataclass(frozen=True)
class Exported:
    """What stands in the folder now.

    Args:
        submission: as its record has it.
        size: bytes of all files.
    """

    submission: Submission
    size: int


def export_submission(
    objects: ObjectStore,
    layout: Layout,
    study: Study,
    predictor: str,
    folder: Path,
    tell: Tell,
    *,
    sockets: Sockets = Sockets(),  # noqa: B008 - frozen
    code: Mapping[str, str] | None = None,
) -> Exported:
    """Put a predictor into a folder, whole: its record, and of each model the plans and the weights that predict.

    Args:
        objects: the bucket.
        layout: where things stand in it.
        study: whose predictor it is.
        predictor: a model, a variant of one, an ensemble, or one of these calibrated.
        folder: made if it is not there; an earlier export in it is replaced.
        tell: told of each model.
        sockets: folders of what comes in and goes out.
        code: versions of what exports it, for the record.

    Raises:
        StudyError: the study has no such predictor, or several channels, or the folder holds something else, or two of the
            sockets' folders are one.
        MissingArtefactError: a model has not been trained, or the calibrator has not been fitted.
    """
    if len(study.images) > 1:
        found = f"it sees {len(study.images)} channels ({', '.join(one.name for one in study.images)})"
        raise StudyError(
            "exporting a submission",
            predictor,
            found,
            "Export a predictor of one channel: a submission reads one image.",
        )
    sockets.written(study.class_names[1:])
    members, calibrator = members_of(study, predictor), _calibrator(objects, layout, predictor)
    folder = _emptied(Path(folder).expanduser(), predictor)
    wanted: dict[str, set[str]] = {}
    for member in map(ModelId.parse, members):
        files = wanted.setdefault(str(member.trained), {"plans.json", "dataset.json"})
        files.add(f"checkpoint_{member.variant}.pth" if member.variant.startswith(SNAPSHOT) else "checkpoint_best.pth")
        files.add("checkpoint_best.pth")  # a snapshot's model is found by it
    versions: dict[str, str] = {}
    for count, (model, files) in enumerate(wanted.items(), 1):
        artefact = Artefact(objects, layout.model(model), "folder", f"trained_model of {model}")
        into = folder / MODELS / model
        versions[model] = artefact.fetch(into, lambda name, files=files: Path(name).name in files)
        _leave_people_behind(into / "dataset.json")
        tell(f"{count} of {len(wanted)}, {model}: version {versions[model]}")
    unsaid = any(_says_no_order(folder / MODELS / model) for model in wanted)
    submission = Submission(
        predictor=predictor,
        study=without_people(study),
        members=members,
        label_values={organ: values[0] for organ, values in study.label_values.organs.items()},
        calibrator=calibrator,
        voxel_order=order_of_training_scans(objects, layout, study) if unsaid else None,
        sockets=sockets,
        made_of={"models": versions, **(code or {})},
    )
    write_submission(submission, folder)
    paths = [folder, *folder.rglob("*")]
    for path in paths:
        path.chmod(0o755 if path.is_dir() else 0o644)  # the container's user is another one
    size = sum(path.stat().st_size for path in paths if path.is_file())
    tell(f"{predictor}: {len(members)} members, {human_bytes(size)}")
    return Exported(submission, size)


def _emptied(folder: Path, predictor: str) -> Path:
    """The folder, without an earlier export; a StudyError if it holds anything else, which would end up in the image."""
    folder.mkdir(parents=True, exist_ok=True)
    held = sorted(path.name for path in folder.iterdir())
    others = [name for name in held if name not in (RECORD_FILE, MODELS)]
    if others or (held and not is_submission(folder)):
        found = f"{folder} holds {', '.join((others or held)[:5])}, which is no earlier export"
        raise StudyError("exporting a submission", predictor, found, "Give a new or an empty folder.")
    begin_submission(folder)
    if (folder / MODELS).exists():
        shutil.rmtree(folder / MODELS)
    return folder


def _calibrator(objects: ObjectStore, layout: Layout, predictor: str) -> Calibrator | None:
    if not isinstance(predictor_of(predictor), CalibratedId):
        return None
    record = Artefact(objects, layout.calibrators(), "record", "calibrators")
    return calibrators_of(record, [predictor])[predictor]


def _leave_people_behind(path: Path) -> None:
    dataset: dict[str, Any] = json.loads(path.read_text())
    kept = {name: dataset[name] for name in OF_DATASETS if name in dataset}
    path.write_text(json.dumps(kept, indent=1))


def _says_no_order(model: Path) -> bool:
    dataset, plans = (json.loads((model / name).read_text()) for name in ("dataset.json", "plans.json"))
    return dataset.get(RECORD) is None and READERS.get(plans.get("image_reader_writer")) is None
