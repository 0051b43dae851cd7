"""Taking in what nnU-Net made elsewhere: a trained model, a preprocessed dataset; checked, and put into our form.

Nothing is trained or preprocessed here. A checkpoint is read without executing what a pickle may hold.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from curvas_assets.errors import SegmentationError
from curvas_assets.inputs import as_path, existing_folder, made_folder
from curvas_assets.segmentation.dataset import DatasetFacts, dataset_digest
from curvas_assets.segmentation.prediction import Predictor
from curvas_assets.segmentation.runtime import PLANS_NAME, dataset_name
from curvas_assets.segmentation.training import BEST
from curvas_assets.study import ModelId, Study, load_study

CHECKPOINTS = (BEST, "checkpoint_final.pth", "checkpoint_latest.pth")
"""Taken in this order: the best one, as the platform publishes it."""
CURVE = {
    "train_loss": "train_losses",
    "val_loss": "val_losses",
    "pseudo_dice": "mean_fg_dice",
    "ema_dice": "ema_fg_dice",
    "learning_rate": "lrs",
}


@dataclass(frozen=True)
class AdoptedModel:
    """What was found in a model made elsewhere.

    Args:
        checkpoint: the file's name.
        trainer: the class that trained it, as the checkpoint says.
        epochs: that the checkpoint has seen.
        best_ema_dice: its exponential moving average of the pseudo-Dice; None if the checkpoint does not say.
        curve: per epoch, as `train_model` gives it; without rows if the checkpoint holds none.
    """

    checkpoint: str
    trainer: str
    epochs: int
    best_ema_dice: float | None
    curve: pd.DataFrame


def adopt_model(
    study: Study | str | Path, model: ModelId | str, source: str | Path, folder: str | Path
) -> AdoptedModel:
    """Put a stock nnU-Net model (or one of this platform's) into the form that `train_model` publishes.

    Args:
        study: classes and configuration that it must have; the study itself, or its name or path for `load_study`.
        model: what it is to be called; a `ModelId` or its name.
        source: nnU-Net's results folder of one trainer (`plans.json`, `dataset.json`, `fold_<fold>/checkpoint_*.pth`).
        folder: receives `plans.json`, `dataset.json`, `training.json` and `fold_<fold>/checkpoint_best.pth`, without
            optimizer state.

    Raises:
        SegmentationError: a file is missing or unreadable, classes or configuration are not the study's, or the weights
            do not fit the network of the plans.
    """
    import torch

    study, model = load_study(study), ModelId.of(model)
    told: Any = {"attempted": "taking in the model", "subject": str(model), "error": SegmentationError}
    source, folder = existing_folder(source, **told), as_path(folder, **told)
    plans = _json(source / "plans.json", str(model))
    dataset = _json(source / "dataset.json", str(model))
    fold = source / f"fold_{model.fold}"
    path = next((fold / name for name in CHECKPOINTS if (fold / name).is_file()), None)
    if path is None:
        raise SegmentationError(
            "taking in the model",
            str(model),
            f"none of {', '.join(CHECKPOINTS)} is in {fold}",
            f"Give nnU-Net's results folder of one trainer, with fold_{model.fold}.",
        )
    state = _load(path, model)
    configuration = state["init_args"].get("configuration")
    if configuration != study.plans.configuration:
        raise SegmentationError(
            "taking in the model",
            str(model),
            f"it is of the configuration {configuration}, the study's is {study.plans.configuration}",
            "Give a model of that configuration, or change plans.configuration.",
        )
    adopted = AdoptedModel(
        checkpoint=path.name,
        trainer=str(state.get("trainer_name", "unknown")),
        epochs=int(state.get("current_epoch", 0)),
        best_ema_dice=None if state.get("_best_ema") is None else float(state["_best_ema"]),
        curve=_curve(state.get("logging") or {}),
    )
    _require_free(folder / fold.name, **told)
    made_folder(folder / fold.name, **told)
    published = {
        "network_weights": {name.removeprefix("module."): w for name, w in state["network_weights"].items()},
        "trainer_name": "nnUNetTrainer",
        "init_args": {"configuration": configuration, "fold": model.fold},
        "inference_allowed_mirroring_axes": state.get("inference_allowed_mirroring_axes"),
        "current_epoch": adopted.epochs,
        "_best_ema": adopted.best_ema_dice,
    }
    torch.save(published, folder / fold.name / BEST)
    (folder / "plans.json").write_text(json.dumps(plans, indent=1))
    (folder / "dataset.json").write_text(json.dumps(dataset, indent=1))
    if (source / "dataset_fingerprint.json").is_file():
        shutil.copyfile(source / "dataset_fingerprint.json", folder / "dataset_fingerprint.json")
    record = {
        "model": str(model),
        "annotator": model.annotator,
        "seed": model.seed,
        "fold": model.fold,
        "epochs": adopted.epochs,
        "best_ema_dice": adopted.best_ema_dice,
        "stopped_because": f"made elsewhere by {adopted.trainer}, {adopted.checkpoint}",
        "curve": adopted.curve.to_dict(orient="list"),
    }
    (folder / "training.json").write_text(json.dumps(record, indent=1))
    _require_loadable(study, model, folder)
    return adopted


def adopt_dataset(study: Study | str | Path, annotator: str, source: str | Path, folder: str | Path) -> DatasetFacts:
    """Put a folder of `nnUNet_preprocessed` into the form that `prepare_dataset` leaves.

    Args:
        study: classes and configuration that it must have, patients that it may have.
        annotator: whose label maps it was made of.
        source: one dataset of `nnUNet_preprocessed`: `dataset.json`, `dataset_fingerprint.json`, one `*Plans.json`,
            `splits_final.json` if there is one, and the cases.
        folder: receives them; the plans are renamed to ours, and name our dataset.

    Raises:
        SegmentationError: a file is missing, classes or configuration are not the study's, or a case is none of the
            study's training patients.
    """
    study, subject = load_study(study), f"dataset of {annotator}"
    told: Any = {"attempted": "taking in the preprocessing", "subject": subject, "error": SegmentationError}
    source, folder = existing_folder(source, **told), as_path(folder, **told)
    plans_files = sorted(source.glob("*Plans.json"))
    if len(plans_files) != 1:
        raise SegmentationError(
            "taking in the preprocessing",
            subject,
            f"{len(plans_files)} files *Plans.json are in {source}",
            "Give the folder of one dataset in nnUNet_preprocessed, with one plans file.",
        )
    plans = _json(plans_files[0], subject)
    dataset, fingerprint = _json(source / "dataset.json", subject), _json(source / "dataset_fingerprint.json", subject)
    _require_classes(study, dataset, subject)
    configuration = plans.get("configurations", {}).get(study.plans.configuration)
    if configuration is None or "data_identifier" not in configuration:
        raise SegmentationError(
            "taking in the preprocessing",
            subject,
            f"its plans have {', '.join(plans.get('configurations', {})) or 'no configuration'}",
            f"Plan {study.plans.configuration}, or change plans.configuration.",
        )
    cases = {path.name.removesuffix(".b2nd") for path in (source / configuration["data_identifier"]).glob("*.b2nd")}
    cases = sorted(case for case in cases if not case.endswith("_seg"))
    strange = sorted(set(cases) - set(study.training_patients()))
    if not cases or strange:
        raise SegmentationError(
            "taking in the preprocessing",
            subject,
            f"cases {', '.join(strange[:5])} are no training patients" if strange else "it holds no case (*.b2nd)",
            f"Name the cases like {', '.join(study.training_patients()[:2])}; preprocess with nnU-Net 2.6 or newer.",
        )
    _require_free(folder / configuration["data_identifier"], **told)
    made_folder(folder, **told)
    shutil.copytree(source / configuration["data_identifier"], folder / configuration["data_identifier"])
    for name in ("dataset.json", "dataset_fingerprint.json", "splits_final.json"):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    plans |= {"dataset_name": dataset_name(annotator), "plans_name": PLANS_NAME}
    (folder / f"{PLANS_NAME}.json").write_text(json.dumps(plans, indent=1))
    return DatasetFacts(
        cases=len(cases),
        shapes=[list(map(int, shape)) for shape in fingerprint["shapes_after_crop"]],
        spacing_mm=list(map(float, configuration["spacing"])),
        patch_size=list(map(int, configuration["patch_size"])),
        batch_size=int(configuration["batch_size"]),
        planner=str(plans.get("experiment_planner_used", "unknown")),
        configuration=study.plans.configuration,
        intensity=fingerprint["foreground_intensity_properties_per_channel"]["0"],
        seconds=0.0,
        digest=dataset_digest(folder),
    )


def _require_free(folder: Path, *, attempted: str, subject: str, error: type[SegmentationError]) -> None:
    if folder.exists():
        raise error(attempted, subject, f"{folder} is there already", "Give another folder, or remove what is there.")


def _load(path: Path, model: ModelId) -> dict[str, Any]:
    """A checkpoint's content; what a pickle could run is refused, but for the NumPy numbers in nnU-Net's log."""
    import numpy as np
    import torch

    numbers = [np.dtype, *(type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8")), np.ndarray]
    numbers += [np.float64, np.float32, *_scalar_constructors()]
    try:
        with torch.serialization.safe_globals(numbers):
            state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or not {"network_weights", "init_args"} <= set(state):
            raise ValueError("it lacks network_weights or init_args")
    except Exception as error:
        raise SegmentationError(
            f"reading {path.name}",
            str(model),
            f"it is no checkpoint of nnU-Net, or damaged ({type(error).__name__}: {' '.join(str(error).split())[:200]})",
            "Give a checkpoint that nnU-Net 2 wrote.",
        ) from error
    return state


def _scalar_constructors() -> list[Any]:
    """How pickles make NumPy numbers, under the names of NumPy 1 and 2."""
    from numpy._core import multiarray

    return [multiarray.scalar, (multiarray.scalar, "numpy.core.multiarray.scalar")]


def _curve(logging: Mapping[str, Any]) -> pd.DataFrame:
    columns = {ours: [float(value) for value in logging.get(theirs, ())] for ours, theirs in CURVE.items()}
    length = min(len(values) for values in columns.values())
    return pd.DataFrame({"epoch": range(length), **{name: values[:length] for name, values in columns.items()}})


def _require_loadable(study: Study, model: ModelId, folder: Path) -> None:
    try:
        Predictor(study).load(folder)
    except SegmentationError:
        raise
    except Exception as error:
        raise SegmentationError(
            "taking in the model",
            str(model),
            f"its weights do not fit the network of its plans ({' '.join(str(error).split())[:200]})",
            "Give plans.json and checkpoint of one training.",
        ) from error


def _require_classes(study: Study, dataset: dict[str, Any], subject: str) -> None:
    labels = dataset.get("labels", {})
    classes = sorted(labels, key=labels.__getitem__)
    if classes != study.class_names:
        raise SegmentationError(
            "taking in the preprocessing",
            subject,
            f"its classes are {classes}, the study's {study.class_names}",
            "Give a dataset with the study's organs and labels.",
        )


def _json(path: Path, subject: str) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise SegmentationError(
            f"reading {path.name}",
            subject,
            f"{path} is missing or no JSON ({type(error).__name__})",
            "Give nnU-Net's own folder.",
        ) from error
