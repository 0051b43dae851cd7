"""Adopts what nnU-Net made elsewhere, a trained model or a preprocessed dataset: checks it and converts it to our form.

Nothing is trained or preprocessed here. What does not fit is refused here, not only at the end of a prediction: each
model is tried on a made-up scan. Checkpoints, and the pickles of a dataset, are read without executing code that they
may contain.
"""

import io
import json
import pickle
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from curvas_assets.disk import told_of_disk
from curvas_assets.errors import SegmentationError, StudyError
from curvas_assets.geometry import order_of
from curvas_assets.inputs import as_path, existing_folder, made_folder
from curvas_assets.predictors import KEPT_APART, SNAPSHOT
from curvas_assets.segmentation.dataset import DatasetFacts, dataset_digest, splits_of
from curvas_assets.segmentation.prediction import Predictor
from curvas_assets.segmentation.requirements import Told, recorded_order, require_classes, require_labels, require_plans
from curvas_assets.segmentation.runtime import PLANS_NAME, dataset_name
from curvas_assets.segmentation.training import BEST, SNAPSHOT_FILE, TRAINED_ON
from curvas_assets.study import ModelId, Study, load_study
from curvas_assets.voxel_order import READERS, RECORD, is_order

CHECKPOINTS = (BEST, "checkpoint_final.pth", "checkpoint_latest.pth")
"""The first of these that exists is taken: the best checkpoint, as the platform publishes it, comes first."""
LEFT_OUT = "left_out"
"""In the `training.json` of a model from elsewhere: the cases that its fold did not learn from."""
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
        voxel_order: of the scans that it knows, such as LPS; None if nobody says.
        normalisation: of intensities, nnU-Net's name; of several channels one after the other.
        unseen: in words, how we know that the model learned from none of the patients it predicts for scoring.
        seen: what its folder says about that: patients or cases under `trained_on` or `left_out`; empty if it says
            nothing.
        snapshots: how many earlier weights came with it, as this platform publishes them.
    """

    checkpoint: str
    trainer: str
    epochs: int
    best_ema_dice: float | None
    curve: pd.DataFrame
    voxel_order: str | None
    normalisation: str
    unseen: str
    seen: Mapping[str, list[str]]
    snapshots: int = 0


def adopt_model(
    study: Study | str | Path,
    model: ModelId | str,
    source: str | Path,
    folder: str | Path,
    *,
    voxel_order: str | None = None,
) -> AdoptedModel:
    """Put a stock nnU-Net model (or one of this platform's) into the form that `train_model` publishes.

    Args:
        study: classes and configuration that it must have; the study itself, or its name or path for `load_study`.
        model: what it is to be called; a `ModelId` or its name.
        source: nnU-Net's results folder of one trainer (`plans.json`, `dataset.json`, `fold_<fold>/checkpoint_*.pth`).
        folder: receives `plans.json`, `dataset.json`, `training.json` and `fold_<fold>/checkpoint_best.pth`, without
            optimizer state; and the snapshots that this platform kept of its training, if there are some.
        voxel_order: of the scans that it was trained on, such as LPS, written into `dataset.json`; None takes what is
            there, or the reader's. A model of unknown order predicts LPS scans only.

    Raises:
        SegmentationError: a file is missing or unreadable; classes, channels or configuration are not the study's;
            something in the plans is unknown here (reader, resampling, normalisation …); the weights do not fit the
            network of the plans; or its folder tells that it learned from a patient whom the study scores by it.
    """
    import torch

    study, model = load_study(study), ModelId.of(model)
    told: Any = {"attempted": "taking in the model", "subject": str(model), "error": SegmentationError}
    source, folder = existing_folder(source, **told), as_path(folder, **told)
    ask = Told(told["attempted"], str(model))
    plans = _json(source / "plans.json", str(model))
    dataset = _json(source / "dataset.json", str(model))
    require_classes(study, dataset, ask)
    require_labels(study, model.annotator, dataset, ask)
    order = _voxel_order(plans, dataset, voxel_order, ask)
    path = _checkpoint(source, model, ask)
    state, snapshots = _load(path, model), _snapshots(path)
    _require_configuration(study, state, ask)
    parts = require_plans(plans, study.plans.configuration, ask, channels=len(study.images))
    seen = _seen(model, source, str(dataset.get("file_ending", ".nii.gz")))
    adopted = AdoptedModel(
        checkpoint=path.name,
        trainer=str(state.get("trainer_name", "unknown")),
        **_progress(state),
        curve=_curve(state.get("logging") or {}),
        voxel_order=order,
        normalisation=", ".join(map(str, parts.normalization_schemes)),
        unseen=_require_unseen(study, model, seen, ask),
        seen=seen,
        snapshots=len(snapshots),
    )
    fold = folder / f"fold_{model.fold}"
    _require_free(fold, **told)
    made_folder(fold, **told)
    published = _published(state, model, adopted)
    with told_of_disk(ask.attempted, ask.subject, folder, lambda: 2 * path.stat().st_size):
        torch.save(published, fold / BEST)
        for snapshot in snapshots:
            earlier = _load(snapshot, model)
            _require_configuration(study, earlier, ask)
            torch.save(_published(earlier, model, replace(adopted, **_progress(earlier))), fold / snapshot.name)
        (folder / "plans.json").write_text(json.dumps(plans, indent=1))
        (folder / "dataset.json").write_text(json.dumps({**dataset, **({RECORD: order} if order else {})}, indent=1))
        if (source / "dataset_fingerprint.json").is_file():
            shutil.copyfile(source / "dataset_fingerprint.json", folder / "dataset_fingerprint.json")
    (folder / "training.json").write_text(json.dumps(_record(model, adopted), indent=1))
    _require_usable(study, model, folder, adopted)
    return adopted


def adopt_dataset(study: Study | str | Path, annotator: str, source: str | Path, folder: str | Path) -> DatasetFacts:
    """Put a folder of `nnUNet_preprocessed` into the form that `prepare_dataset` leaves.

    Args:
        study: classes and configuration that it must have, patients that it may have.
        annotator: whose label maps it was made of, or a fusion of several. Those of `random` and `soft`, which nnU-Net itself
            does not know, are taken from this platform alone.
        source: one dataset of `nnUNet_preprocessed`: `dataset.json`, `dataset_fingerprint.json`, one `*Plans.json`,
            `splits_final.json` if there is one, and the cases (`.b2nd`, `_seg.b2nd`, `.pkl`).
        folder: receives them; the plans are renamed to ours, and name our dataset; splits are made if there are none, and
            the voxel order that the cases' own records tell is written into `dataset.json`.

    Raises:
        SegmentationError: a file is missing or damaged; classes, channels or configuration are not the study's; something
            in the plans is unknown here; a case is none of the study's training patients, or holds other labels; the cases
            are in several voxel orders; or a `.pkl` would run code.
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
    ask = Told(told["attempted"], subject)
    plans = _json(plans_files[0], subject)
    dataset, fingerprint = _json(source / "dataset.json", subject), _json(source / "dataset_fingerprint.json", subject)
    require_classes(study, dataset, ask)
    require_labels(study, annotator, dataset, ask, several=True)
    configuration = require_plans(plans, study.plans.configuration, ask, channels=len(study.images)).configuration
    if "data_identifier" not in configuration:
        raise ask.refused("its plans name no folder of cases (data_identifier)", "Give the plans that nnU-Net 2 wrote.")
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
    several = study.fusion(annotator) in KEPT_APART
    for case in cases:
        _require_case(source / configuration["data_identifier"], case, study, ask, several=several)
    orders = {case: _order_of_case(source / configuration["data_identifier"] / f"{case}.pkl", ask) for case in cases}
    order = READERS[plans["image_reader_writer"]] or _one_order(orders, ask) or recorded_order(dataset, ask)
    splits = _splits(study, source, cases, ask)
    intensity, shapes = _facts_of(fingerprint, ask)
    _require_free(folder / configuration["data_identifier"], **told)
    made_folder(folder, **told)
    made = source / configuration["data_identifier"]
    with told_of_disk(ask.attempted, subject, folder, lambda: sum(f.stat().st_size for f in made.iterdir())):
        shutil.copytree(made, folder / configuration["data_identifier"])
    shutil.copyfile(source / "dataset_fingerprint.json", folder / "dataset_fingerprint.json")
    (folder / "splits_final.json").write_text(json.dumps(splits, indent=1))
    (folder / "dataset.json").write_text(json.dumps({**dataset, **({RECORD: order} if order else {})}, indent=1))
    plans |= {"dataset_name": dataset_name(annotator), "plans_name": PLANS_NAME}
    (folder / f"{PLANS_NAME}.json").write_text(json.dumps(plans, indent=1))
    return DatasetFacts(
        cases=len(cases),
        shapes=shapes,
        spacing_mm=list(map(float, configuration["spacing"])),
        patch_size=list(map(int, configuration["patch_size"])),
        batch_size=int(configuration["batch_size"]),
        planner=str(plans.get("experiment_planner_used", "unknown")),
        configuration=study.plans.configuration,
        intensity=intensity,
        seconds=0.0,
        digest=dataset_digest(folder),
        voxel_order=order,
    )


def _require_free(folder: Path, *, attempted: str, subject: str, error: type[SegmentationError]) -> None:
    if folder.exists():
        raise error(attempted, subject, f"{folder} is there already", "Give another folder, or remove what is there.")


def _checkpoint(source: Path, model: ModelId, ask: Told) -> Path:
    """The checkpoint that is taken: the first of `CHECKPOINTS` that is there."""
    fold = source / f"fold_{model.fold}"
    for name in CHECKPOINTS:
        if (fold / name).is_file():
            return fold / name
    raise ask.refused(
        f"none of {', '.join(CHECKPOINTS)} is in {fold}",
        f"Give nnU-Net's results folder of one trainer, with fold_{model.fold}.",
    )


def _snapshots(checkpoint: Path) -> list[Path]:
    """The snapshots beside a checkpoint, numbered from 1 without a gap."""
    found: list[Path] = []
    while (path := checkpoint.with_name(SNAPSHOT_FILE.format(len(found) + 1))).is_file():
        found.append(path)
    return found


def _progress(state: Mapping[str, Any]) -> dict[str, Any]:
    """How far a checkpoint's training was: `epochs`, and the best moving average of the pseudo-Dice."""
    ema = state.get("_best_ema")
    return {"epochs": int(state.get("current_epoch", 0)), "best_ema_dice": None if ema is None else float(ema)}


def _load(path: Path, model: ModelId) -> dict[str, Any]:
    """A checkpoint's content. Pickled objects could run code and are refused, except nnU-Net's NumPy numbers."""
    import numpy as np
    import torch

    numbers: list[Any] = [np.dtype, *(type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8")), np.ndarray]
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


def _require_configuration(study: Study, state: Mapping[str, Any], ask: Told) -> None:
    configuration = state["init_args"].get("configuration")
    if configuration != study.plans.configuration:
        raise ask.refused(
            f"it is of the configuration {configuration}, the study's is {study.plans.configuration}",
            "Give a model of that configuration, or change plans.configuration.",
        )


def _published(state: Mapping[str, Any], model: ModelId, adopted: AdoptedModel) -> dict[str, Any]:
    """A checkpoint's content as it is published: without optimizer state, of nnU-Net's own trainer."""
    return {
        "network_weights": {_plain_name(name): w for name, w in state["network_weights"].items()},
        "trainer_name": "nnUNetTrainer",
        "init_args": {"configuration": state["init_args"]["configuration"], "fold": model.fold},
        "inference_allowed_mirroring_axes": state.get("inference_allowed_mirroring_axes"),
        "current_epoch": adopted.epochs,
        "_best_ema": adopted.best_ema_dice,
    }


def _record(model: ModelId, adopted: AdoptedModel) -> dict[str, Any]:
    """The content of `training.json`."""
    return {
        "model": str(model),
        "annotator": model.annotator,
        "seed": model.seed,
        "fold": model.fold,
        "epochs": adopted.epochs,
        "best_ema_dice": adopted.best_ema_dice,
        "stopped_because": f"made elsewhere by {adopted.trainer}, {adopted.checkpoint}",
        RECORD: adopted.voxel_order,
        **adopted.seen,
        "curve": adopted.curve.to_dict(orient="list"),
    }


def _curve(logging: Mapping[str, Any]) -> pd.DataFrame:
    columns = {ours: [float(value) for value in logging.get(theirs, ())] for ours, theirs in CURVE.items()}
    length = min(len(values) for values in columns.values())
    return pd.DataFrame({"epoch": range(length), **{name: values[:length] for name, values in columns.items()}})


def _plain_name(name: str) -> str:
    """A weight's name without what parallel and compiled training put before it."""
    return name.removeprefix("module.").removeprefix("_orig_mod.")


def _voxel_order(plans: Mapping[str, Any], dataset: Mapping[str, Any], given: str | None, ask: Told) -> str | None:
    """The voxel order a model was trained on: its reader's, the one that is given, or the recorded one."""
    if given is not None and not is_order(given):
        raise ask.refused(f"voxel_order = {given!r:.80}", "Give three letters such as LPS or RAS, or leave it out.")
    forced, recorded = READERS.get(str(plans.get("image_reader_writer"))), recorded_order(dataset, ask)
    for says, order in (("its reader brings every scan into", forced), (f"its dataset.json says {RECORD}", recorded)):
        if given is not None and order is not None and order != given:
            raise ask.refused(f"voxel_order is {given}, but {says} {order}", "Leave voxel_order out.")
    return forced or recorded or given


def _seen(model: ModelId, source: Path, ending: str) -> dict[str, list[str]]:
    """What a model's folder says about whom the model learned from.

    This platform's `training.json` names them; nnU-Net's folder of a numbered fold has predictions of those left out.
    """
    if (source / "training.json").is_file():
        record = _json(source / "training.json", str(model))
        for part in (TRAINED_ON, LEFT_OUT):
            if record.get(part) and isinstance(record[part], list):
                return {part: [str(one) for one in record[part]]}
    predictions = (source / f"fold_{model.fold}" / "validation").glob(f"*{ending}")
    left_out = sorted(path.name.removesuffix(ending) for path in predictions)
    return {LEFT_OUT: left_out} if left_out and model.fold != "all" else {}


def _require_unseen(study: Study, model: ModelId, seen: Mapping[str, list[str]], ask: Told) -> str:
    """How we know that a model learned from nobody whom it is to predict for scoring; a model that did is refused."""
    scored = study.scored_by(model)
    if TRAINED_ON in seen:
        known = _as_patients(study, seen[TRAINED_ON])
        if both := sorted(one for one in known if one in scored or study.patient_set(one) == "test"):
            raise ask.refused(
                f"its training.json says that it learned from {', '.join(both[:5])}, whom the study scores by it",
                "Give a model that did not see them, or change the study's sets.",
            )
        if both := sorted(one for one in known if one in study.fitting_patients):
            raise ask.refused(
                f"its training.json says that it learned from {', '.join(both[:5])} of the validation set, on whom what follows after "
                "training is fitted",
                "Give a model that did not see them; or, if all models learned from them, write `training: {sets: [train, validation]}`.",
            )
        return "its training.json names none of them"
    if LEFT_OUT in seen and study.cross_validated:
        if both := sorted(scored - _as_patients(study, seen[LEFT_OUT])):
            raise ask.refused(
                f"its fold {model.fold} left out {', '.join(seen[LEFT_OUT][:5])} alone; the study also scores "
                f"{', '.join(both[:5])} by it, from whom it may have learned",
                f"Train with the study's folds: fold {model.fold} leaves out {', '.join(sorted(scored))}.",
            )
        return "its fold left out all of them"
    return "not known: its folder does not say whom it learned from"


def _as_patients(study: Study, cases: Iterable[Any]) -> set[str]:
    """Those nnU-Net case names that are patients of the study, in the study's spelling."""
    found: set[str] = set()
    for case in cases:
        with suppress(StudyError):
            found.add(study.patients.normalise(case))
    return found


def _require_usable(study: Study, model: ModelId, folder: Path, adopted: AdoptedModel) -> None:
    """Require that weights fit the network and that a made-up scan passes all steps but the network."""
    try:
        predictor = Predictor(study)
        predictor.load(folder)
        for number in range(1, adopted.snapshots + 1):
            predictor.load(folder, f"{SNAPSHOT}{number}")
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            predictor.rehearse(folder, Path(scratch))
    except SegmentationError:
        raise
    except Exception as error:
        raise SegmentationError(
            "taking in the model",
            str(model),
            f"its weights do not fit the network of its plans, or its plans cannot be followed "
            f"({' '.join(str(error).split())[:200]})",
            f"Give plans.json and checkpoint of one training, by a trainer that builds the network of its plans "
            f"(this one's is {adopted.trainer}).",
        ) from error


# Cases of a dataset ---------------------------------------------------------------------------------------------------


def _require_case(folder: Path, case: str, study: Study, ask: Told, *, several: bool) -> None:
    """Require that a preprocessed case is whole: the study's channels, and labels of the study on the same voxels, of one annotator
    or, if `several`, of each.
    """
    import blosc2
    import numpy as np

    for name in (f"{case}.b2nd", f"{case}_seg.b2nd", f"{case}.pkl"):
        if not (folder / name).is_file():
            raise ask.refused(f"{name} is missing in {folder}", "Give the whole folder that nnU-Net preprocessed.")
    try:
        image, labels = (blosc2.open(str(folder / f"{case}{end}.b2nd"), mode="r") for end in ("", "_seg"))
        shapes, found = (tuple(image.shape), tuple(labels.shape)), np.unique(labels[:])
    except Exception as error:
        raise ask.refused(
            f"{case} cannot be read ({type(error).__name__}: {' '.join(str(error).split())[:120]})",
            "Preprocess it again.",
        ) from error
    wanted = (max(1, shapes[1][0]) if several and len(shapes[1]) == 4 else 1, *shapes[0][1:])
    channels, classes = [channel.name for channel in study.images], len(study.class_names)
    if len(shapes[0]) != 4 or shapes[0][0] != len(channels) or shapes[1] != wanted:
        of = f"{channels[0]} alone" if len(channels) == 1 else ", ".join(channels)
        raise ask.refused(
            f"{case} has an image of {shapes[0]} and labels of {shapes[1]} (channel, z, y, x)",
            f"Give what was preprocessed of the {of}, by nnU-Net 2.6 or newer.",
        )
    strange = [int(label) for label in found if not -1 <= label < classes]
    if strange:
        raise ask.refused(
            f"{case} holds the labels {strange[:5]}, the study's are 0 … {classes - 1}",
            "Preprocess label maps with the study's labels.",
        )


class _NumbersOnly(pickle.Unpickler):
    """Reads what nnU-Net keeps of a case: plain Python and NumPy's arrays and numbers. Nothing else is looked up."""

    ALLOWED = frozenset(
        (f"{module}.{name}" if module else name)
        for module in (
            "numpy",
            "numpy.core.multiarray",
            "numpy._core.multiarray",
            "numpy.core.numeric",
            "numpy._core.numeric",
        )
        for name in ("ndarray", "dtype", "_reconstruct", "scalar", "_frombuffer")
    )

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" in self.ALLOWED:
            return super().find_class(module, name)
        if module == "_codecs" and name == "encode":  # how old protocols write bytes
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _order_of_case(path: Path, ask: Told) -> str | None:
    """The voxel order in which a case was preprocessed, from the geometry that its reader kept; None if it kept none."""
    import numpy as np

    try:
        kept = _NumbersOnly(io.BytesIO(path.read_bytes())).load()
        itk, nibabel = kept.get("sitk_stuff"), kept.get("nibabel_stuff")
        if itk:
            directions = np.diag([-1.0, -1.0, 1.0]) @ np.reshape(np.asarray(itk["direction"], np.float64), (3, 3))
            return order_of(np.pad(directions, ((0, 1), (0, 1))) + np.diag([0.0, 0.0, 0.0, 1.0]))
        if nibabel:
            return order_of(nibabel.get("reoriented_affine", nibabel["original_affine"]))
        return None
    except Exception as error:
        raise ask.refused(
            f"{path.name} is not what nnU-Net writes ({type(error).__name__}: {' '.join(str(error).split())[:120]}); "
            "training would unpickle it",
            "Preprocess it again.",
        ) from error


def _one_order(orders: Mapping[str, str | None], ask: Told) -> str | None:
    if len(set(orders.values())) > 1:
        some = ", ".join(f"{case} {order or 'unknown'}" for case, order in list(orders.items())[:6])
        raise ask.refused(
            f"its cases are in several voxel orders ({some}), so that left and right change places between them",
            "Materialise preprocessed_dataset, which brings all scans into one order; or preprocess with NibabelIOWithReorient.",
        )
    return next(iter(orders.values()))


def _splits(study: Study, source: Path, cases: list[str], ask: Told) -> list[dict[str, list[str]]]:
    """The splits that came with a dataset, if they are of its cases and, in a cross-validation, the study's; else the study's."""
    if not (source / "splits_final.json").is_file():
        return splits_of(cases, study)
    splits: Any = _json(source / "splits_final.json", ask.subject, list)
    for number, split in enumerate(splits):
        parts = [split.get(part) for part in ("train", "val")] if isinstance(split, dict) else [None]
        if not all(isinstance(part, list) and part and set(map(str, part)) <= set(cases) for part in parts):
            raise ask.refused(
                f"split {number} of splits_final.json names no patients, or others than its cases",
                "Remove splits_final.json, or make it of these cases.",
            )
        scored = set(study.held_out(number)) if study.cross_validated and number in study.folds else set()
        if seen := sorted(scored & set(map(str, split["train"]))):
            raise ask.refused(
                f"split {number} of splits_final.json trains on {', '.join(seen[:5])}, whom the study scores by that fold",
                "Remove splits_final.json: the study's own folds are taken then.",
            )
    return splits


def _facts_of(fingerprint: Mapping[str, Any], ask: Told) -> tuple[dict[str, float], list[list[int]]]:
    try:
        return (
            {
                name: float(value)
                for name, value in fingerprint["foreground_intensity_properties_per_channel"]["0"].items()
            },
            [[int(n) for n in shape] for shape in fingerprint["shapes_after_crop"]],
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ask.refused(
            f"dataset_fingerprint.json is not whole ({type(error).__name__}: {error})", "Extract the fingerprint again."
        ) from error


def _json(path: Path, subject: str, kind: type = dict) -> Any:
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, kind):
            raise ValueError(f"no {kind.__name__}")
        return content
    except (OSError, ValueError) as error:
        raise SegmentationError(
            f"reading {path.name}",
            subject,
            f"{path} is missing, or not nnU-Net's JSON ({type(error).__name__})",
            "Give nnU-Net's own folder.",
        ) from error
