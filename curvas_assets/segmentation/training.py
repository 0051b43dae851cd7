"""Training one model: from a preprocessed dataset to an artefact that a stock nnU-Net loads."""

import hashlib
import json
import pickle
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from curvas_assets.disk import told_of_disk
from curvas_assets.errors import SegmentationError
from curvas_assets.inputs import as_path, existing_folder, made_folder
from curvas_assets.predictors import SNAPSHOT
from curvas_assets.segmentation.dataset import content_of
from curvas_assets.segmentation.requirements import FUSED, Told, require_labels
from curvas_assets.segmentation.runtime import (
    PLANS_NAME,
    choose_device,
    cudnn_as_stock,
    dataset_name,
    nnunet_folders,
    numerics,
    pinned_threads,
    quiet,
)
from curvas_assets.segmentation.snapshots import most_kept
from curvas_assets.study import ModelId, Study, load_study

if TYPE_CHECKING:
    import torch

    from curvas_assets.segmentation.trainer import StudyTrainer

BEST = "checkpoint_best.pth"
SNAPSHOT_FILE = f"checkpoint_{SNAPSHOT}{{}}.pth"
"""Of earlier weights, beside the best ones."""
TRAINED_ON = "trained_on"
"""In a model's record: the patients it has seen."""
NOT_AS_STOCK = (
    "each batch is drawn from (seed, epoch, phase, number), so that batches do not depend on the loader processes",
    "blurring always uses the same algorithm; stock nnU-Net takes the one that is faster at the moment",
    "torch uses one thread on the CPU, unless training.threads says more",
)
"""Where reproducibility is preferred to what stock nnU-Net does; everything else (mixed precision, compilation, cuDNN's
choice of algorithms, TF32) is as it sets it, also where that makes results on a GPU differ in the last digits."""
FUSED_NOT_AS_STOCK = {
    "random": "each patch has the labels of one annotator, drawn with the patch",
    "soft": "targets are the mean of the annotators' one-hot labels: nnU-Net's soft Dice and cross-entropy take probabilities",
}


@dataclass(frozen=True)
class EpochReport:
    """One finished epoch; `epoch` counts from 0, `of` is the most there can be."""

    epoch: int
    of: int
    train_loss: float
    val_loss: float
    pseudo_dice: float
    ema_dice: float
    learning_rate: float
    seconds: float


@dataclass(frozen=True)
class TrainingOutcome:
    """How a training ended.

    Args:
        epochs: finished.
        best_epoch: whose weights are published, from 0.
        best_ema_dice: its exponential moving average of the pseudo-Dice.
        stopped_because: in words, and on which patients that was decided.
        resumed_at_epoch: where a checkpoint was taken up; None for a fresh start.
        refused_checkpoint: why a checkpoint that was offered was not taken up; empty otherwise.
        device: `cuda`, `mps` or `cpu`.
        seconds: of this process, without what was done before a resume.
        curve: per epoch: epoch, train_loss, val_loss, pseudo_dice, ema_dice, learning_rate, seconds.
        loading: in words, how many processes loaded batches, and why.
        snapshots: the epochs, counted from 1, whose weights are kept beside the published ones (`snapshots`).
    """

    epochs: int
    best_epoch: int
    best_ema_dice: float
    stopped_because: str
    resumed_at_epoch: int | None
    refused_checkpoint: str
    device: str
    seconds: float
    curve: pd.DataFrame
    loading: str = ""
    snapshots: tuple[int, ...] = ()


def train_model(
    study: Study | str | Path,
    model: ModelId | str,
    dataset_folder: str | Path,
    model_folder: str | Path,
    *,
    resume_from: str | Path | None = None,
    on_epoch: Callable[[EpochReport], None] | None = None,
    on_checkpoint: Callable[[Path, int], None] | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> TrainingOutcome:
    """Train a model, or go on training it.

    Loader processes, if the study wants any, end with the training, however it ends. Only the server that forked them
    stays, idle, until this process ends.

    Args:
        study: training settings; the study itself, or its name or path for `load_study`.
        model: annotator, seed and fold, or its name.
        dataset_folder: as `prepare_dataset` filled it.
        model_folder: receives `plans.json`, `dataset.json`, `dataset_fingerprint.json`, `training.json` and
            `fold_<fold>/checkpoint_best.pth`, which a stock nnU-Net loads; beside it `checkpoint_snapshot1.pth` … if the
            study wants snapshots.
        resume_from: a checkpoint that `on_checkpoint` was given, of this model with these settings and data; another one
            is refused, and training starts over.
        on_epoch: told after each epoch.
        on_checkpoint: given the path of a whole checkpoint and its epoch; to be copied away before it returns. Called in a
            thread, one at a time, while the next epoch trains; what it raises ends the training.
        tell: told in words how batches are loaded, and what the machine lacks.

    Returns:
        How it ended. On the CPU with the same number of threads the published weights depend on study, model and data
        alone, not on the number of loader processes, nor on how often it was killed and resumed.

    Raises:
        SegmentationError: there is no dataset, the folder cannot be made, or the dataset has no such fold; the loss is no
            number, memory does not suffice, or a loader process ended; says what to do.
        DiskError: the disk is full; says how much is needed.
        StudyError: there is no such study, or it is no model's name.
    """
    study, model = load_study(study), ModelId.of(model)
    told: Any = {"attempted": "training", "subject": str(model), "error": SegmentationError}
    dataset_folder = existing_folder(dataset_folder, **told)
    resume_from = None if resume_from is None else as_path(resume_from, **told)
    model_folder = as_path(model_folder, **told)
    from curvas_assets.segmentation.several_annotators import trainer_of
    from curvas_assets.segmentation.trainer import SETTINGS

    start = time.perf_counter()
    plans = _read_json(dataset_folder / f"{PLANS_NAME}.json")
    dataset = _read_json(dataset_folder / "dataset.json")
    require_labels(study, model.annotator, dataset, Told(told["attempted"], told["subject"]), several=True)
    _require_fold(study, model, dataset_folder, plans)
    made_folder(model_folder.parent, **told)
    device = choose_device(study.training.device)
    settings = _settings(study, model, dataset_folder)
    trainer: StudyTrainer | None = None
    with (
        tempfile.TemporaryDirectory(prefix="training-", dir=model_folder.parent) as scratch,
        told_of_disk("training", str(model), model_folder.parent, lambda: _disk_bytes(trainer)),
        _folders_for_nnunet(Path(scratch), model, dataset_folder),
        pinned_threads(study.training.threads or _threads(device), device),
        cudnn_as_stock(),
        quiet(),
    ):
        trainer = trainer_of(study.fusion(model.annotator))(
            {**plans, SETTINGS: settings, "continue_training": False},
            study.plans.configuration,
            model.fold,
            dataset,
            device,
        )
        trainer.tell = tell
        trainer.initialize()
        resumed_at, refused = _resume(trainer, resume_from, settings["identity"])
        if on_epoch is not None:
            trainer.on_epoch = lambda row: on_epoch(EpochReport(of=trainer.num_epochs, **row))
        trainer.on_checkpoint = on_checkpoint
        _run(trainer, model)
        outcome = _outcome(trainer, device, start, resumed_at, refused)
        _publish(trainer, dataset_folder, model_folder, plans, model, outcome)
    return outcome


def _threads(device: "torch.device") -> int | None:
    """Threads of torch where the study does not say: one on a GPU, as nnU-Net has it, and on the CPU; else torch's choice."""
    return 1 if device.type in ("cuda", "cpu") else None


def _settings(study: Study, model: ModelId, dataset_folder: Path) -> dict[str, Any]:
    """What the trainer takes beside nnU-Net's own arguments."""
    return {
        **study.training.model_dump(mode="json"),
        "seed": model.seed,
        "cross_validated": study.cross_validated,
        "identity": _identity(study, model, dataset_folder),
        **({FUSED: fusion} if (fusion := study.fusion(model.annotator)) else {}),
    }


@contextmanager
def _folders_for_nnunet(scratch: Path, model: ModelId, dataset_folder: Path) -> Generator[None]:
    """nnU-Net's folders below a scratch folder for the length of a block; the dataset is linked into them."""
    preprocessed = scratch / "preprocessed"
    preprocessed.mkdir()
    (preprocessed / dataset_name(model.annotator)).symlink_to(dataset_folder.resolve())
    with nnunet_folders(preprocessed=preprocessed, results=scratch / "results"):
        yield


def _require_fold(study: Study, model: ModelId, dataset_folder: Path, plans: dict[str, Any]) -> None:
    """Require the model's fold, of the dataset's own cases and without patients whom the study scores by that fold.

    For any other fold number, nnU-Net would silently make a random split.
    """
    if model.fold == "all":
        return
    told = Told("training", str(model))
    try:
        splits: Any = json.loads((dataset_folder / "splits_final.json").read_text())
        split = splits[model.fold] if model.fold < len(splits) else None
        trained_on = set() if split is None else set(map(str, split["train"]))
        members = None if split is None else trained_on | set(map(str, split["val"]))
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise told.refused(
            f"the dataset's splits_final.json is missing or not nnU-Net's ({type(error).__name__})",
            "Materialise preprocessed_dataset again, or upload it with its splits.",
        ) from error
    if members is None:
        raise told.refused(
            f"the dataset is split into {len(splits)} folds, counted from 0, and fold {model.fold} is none of them",
            "Take another fold, or all, in the study's folds; nnU-Net would make a random split.",
        )
    try:
        cases = dataset_folder / plans["configurations"][study.plans.configuration]["data_identifier"]
    except (LookupError, TypeError):  # plans that inherit; nnU-Net reports what is missing
        return
    if missing := sorted(one for one in members if not (cases / f"{one}.b2nd").is_file()):
        raise told.refused(
            f"fold {model.fold} names {', '.join(missing[:5])}, of whom the dataset holds nothing",
            "Materialise preprocessed_dataset again.",
        )
    if seen := study.scored_by(model) & trained_on:
        raise told.refused(
            f"fold {model.fold} of the dataset's splits_final.json trains on {', '.join(sorted(seen)[:5])}, whom the study "
            "scores by this model",
            "Materialise preprocessed_dataset again, or upload it with the study's folds or without splits_final.json.",
        )


def _disk_bytes(trainer: "StudyTrainer | None") -> int | None:
    """Disk that a training takes beside its dataset: two checkpoints while one replaces the other, and the model."""
    if trainer is None or not trainer.was_initialized:
        return None
    weights = sum(p.numel() * p.element_size() for p in trainer._module.parameters())  # pyright: ignore[reportPrivateUsage] - of our own trainer
    moments = 2 if trainer.settings["optimizer"] == "adamw" else 1
    snapshots = trainer.settings["snapshots"]
    return (2 * (2 + moments + most_kept(snapshots)) + 1 + snapshots) * weights


def _resume(trainer: "StudyTrainer", checkpoint: Path | None, identity: str) -> tuple[int | None, str]:
    """Resume from a checkpoint if it is whole and of this training; returns its epoch, or why it was refused."""
    import torch

    if checkpoint is None:
        return None, ""
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)  # a GPU need not hold the kept weights
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, ValueError) as error:
        return None, f"the checkpoint cannot be read ({type(error).__name__})"
    if not isinstance(state, dict) or state.get("identity") != identity:
        return None, "the checkpoint is of another model, dataset or setting"
    trainer.load_checkpoint(state)
    return trainer.current_epoch, ""


def _run(trainer: "StudyTrainer", model: ModelId) -> None:
    """Train to the end; failures whose cause is known are told with what to change."""
    from curvas_assets.segmentation.loading import LoaderEndedError
    from curvas_assets.segmentation.trainer import NotFiniteError

    try:
        trainer.run_training()
    except LoaderEndedError as error:
        raise SegmentationError(
            "training",
            str(model),
            str(error),
            "If it was killed, memory probably did not suffice: give the step more, or lower training.loader_workers. "
            "Launch again; training continues from its last checkpoint.",
            may_retry=True,
        ) from error
    except NotFiniteError as error:
        raise SegmentationError(
            "training", str(model), str(error), "Lower training.learning_rate, or look for damaged scans."
        ) from error
    except (MemoryError, RuntimeError) as error:
        raise _out_of_memory(model, error) or error from error


def _outcome(
    trainer: "StudyTrainer", device: Any, start: float, resumed_at: int | None, refused: str
) -> TrainingOutcome:
    """How a training ended that began at `start`, in seconds of `time.perf_counter`."""
    curve = pd.DataFrame(trainer.curve())
    return TrainingOutcome(
        epochs=len(curve),
        best_epoch=trainer.best_epoch,
        best_ema_dice=float(trainer._best_ema),  # pyright: ignore[reportPrivateUsage] - nnU-Net has no other
        stopped_because=_why_stopped(trainer),
        resumed_at_epoch=resumed_at,
        refused_checkpoint=refused,
        device=_device_name(device),
        seconds=round(time.perf_counter() - start, 3),
        curve=curve,
        loading=trainer.batches.loading.why if trainer.batches is not None else "",
        snapshots=tuple(trainer.chosen_snapshots()),
    )


def _identity(study: Study, model: ModelId, dataset_folder: Path) -> str:
    """What must be equal for a checkpoint to be taken up: model, settings, plans, fingerprint, cases, and the rule by
    which batches are drawn. The number of loader processes is no part of it.
    """
    from curvas_assets.segmentation.loading import SEQUENCE

    held_out = f" {study.fingerprint('held_out')}" if study.cross_validated else ""
    digest = hashlib.sha256(f"{SEQUENCE} {model} {study.fingerprint('training', 'plans')}{held_out}".encode())
    for name in (f"{PLANS_NAME}.json", "dataset_fingerprint.json", "dataset.json"):
        digest.update(content_of(dataset_folder / name))
    digest.update(repr(sorted(p.name for p in dataset_folder.rglob("*.b2nd"))).encode())
    return digest.hexdigest()


def _why_stopped(trainer: "StudyTrainer") -> str:
    where = (
        f"held-out patients {', '.join(trainer.held_out)}"
        if trainer.held_out
        else "the training patients themselves (training.held_out_fraction 0)"
    )
    if trainer.epochs_without_gain >= trainer.settings["patience"]:
        return f"no better EMA pseudo-Dice for {trainer.settings['patience']} epochs, measured on {where}"
    return f"all {trainer.num_epochs} epochs done; pseudo-Dice measured on {where}"


def _publish(
    trainer: "StudyTrainer",
    dataset_folder: Path,
    model_folder: Path,
    plans: dict[str, Any],
    model: ModelId,
    outcome: TrainingOutcome,
) -> None:
    import torch

    fold = model_folder / f"fold_{model.fold}"
    fold.mkdir(parents=True, exist_ok=True)
    torch.save(trainer.published(), fold / BEST)
    for number, epoch in enumerate(outcome.snapshots, 1):
        torch.save(trainer.published_snapshot(epoch), fold / SNAPSHOT_FILE.format(number))
    (model_folder / "plans.json").write_text(json.dumps(plans, indent=1))
    for name in ("dataset.json", "dataset_fingerprint.json"):
        shutil.copyfile(dataset_folder / name, model_folder / name)
    record = {
        "model": str(model),
        "annotator": model.annotator,
        "seed": model.seed,
        "fold": model.fold,
        "epochs": outcome.epochs,
        "best_epoch": outcome.best_epoch,
        "best_ema_dice": outcome.best_ema_dice,
        "stopped_because": outcome.stopped_because,
        "held_out": trainer.held_out,
        TRAINED_ON: sorted({str(patient) for part in trainer.do_split() for patient in part}),
        "device": outcome.device,
        **_how_it_ran(trainer),
        **({"snapshots": list(outcome.snapshots)} if trainer.settings["snapshots"] else {}),
        "settings": {k: v for k, v in trainer.settings.items() if k not in ("identity", "loader_workers")},
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "nnunetv2", "numpy", "batchgeneratorsv2")},
        },
        "curve": outcome.curve.drop(columns="seconds").to_dict(orient="list"),
    }
    (model_folder / "training.json").write_text(json.dumps(record, indent=1))


def _how_it_ran(trainer: "StudyTrainer") -> dict[str, Any]:
    """For the record: what the machine, nnU-Net's defaults and our choices made of the training.

    Not by how many processes batches were loaded, which changes no weight: models would differ whose weights are equal.
    """
    from torch._dynamo import OptimizedModule

    computed = numerics()
    on_cuda = trainer.device.type == "cuda"
    stock = {
        "threads": computed.pop("threads"),
        "mixed_precision": trainer.grad_scaler is not None,
        "compiled": isinstance(trainer.network, OptimizedModule),
        "pinned_memory": on_cuda and trainer.batches is not None and not trainer.batches.through_pipe,
        **(computed if on_cuda else {}),
    }
    several = FUSED_NOT_AS_STOCK.get(trainer.settings.get(FUSED, ""))
    return {**stock, "not_as_stock": [*NOT_AS_STOCK, *([several] if several else [])]}


def trained_on(model_folder: Path) -> frozenset[str]:
    """The patients whom a model has seen, to learn from or to decide when to stop; none if it does not say (it was made
    elsewhere, or before models said it).
    """
    try:
        record = json.loads((model_folder / "training.json").read_text())
        return frozenset(map(str, record.get(TRAINED_ON) or ()))
    except (OSError, ValueError, AttributeError, TypeError):
        return frozenset()


def _device_name(device: Any) -> str:
    import torch

    return f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type


def _out_of_memory(model: ModelId, error: BaseException) -> SegmentationError | None:
    text = str(error).lower()
    if not isinstance(error, MemoryError) and "out of memory" not in text and "can't allocate memory" not in text:
        return None
    return SegmentationError(
        "training",
        str(model),
        f"memory did not suffice ({type(error).__name__})",
        "Lower plans.batch_size, plans.patch_size or plans.gpu_memory_gb, or use a larger device.",
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise SegmentationError(
            f"reading {path.name}", "the dataset", f"{type(error).__name__}", "Materialise preprocessed_dataset again."
        ) from error
