"""Models: one nnU-Net for each training label × seed, trained so that it can be killed and go on."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from curvas_assets.errors import CorruptArtefactError, SegmentationError
from curvas_assets.report import previews
from curvas_assets.segmentation import EpochReport, TrainingOutcome, train_model
from curvas_assets.stages.checks import Check, StepChecks
from curvas_assets.stages.prepare import described_fusion
from curvas_assets.stages.stored import Artefacts, Outcome, Picture, Stored, device_name, one_by_one
from curvas_assets.stages.toolkit import Toolkit
from curvas_assets.storage import directories
from curvas_assets.storage.objects import ObjectStore
from curvas_assets.study import ModelId, Training

CHECKS = (
    Check("training_is_sound", "It trained, and the loss of every epoch is a number.", of_defects=True),
    Check("dice_is_above_the_floor", "The best EMA pseudo-Dice is above `checks.dice_floor` of the study."),
    Check(
        "training_ended_by_itself",
        "It ran every epoch, or stopped because nothing got better; says which. It keeps the snapshots that the study wants.",
    ),
)


def train_models(
    tools: Toolkit, models: Sequence[str], checks: StepChecks, *, preprocessed_dataset: Artefacts
) -> Iterator[tuple[str, Outcome]]:
    """Models from their annotators' datasets, each from its unfinished training where there is one."""
    yield from one_by_one(lambda name: _train(tools, name, preprocessed_dataset, checks))(models)


def _train(tools: Toolkit, name: str, preprocessed_dataset: Artefacts, checks: StepChecks) -> Stored:
    study, objects, layout = tools.study, tools.objects, tools.layout
    model = ModelId.parse(name)
    with tools.scratch(name, directories.size_of(objects, layout.dataset(model.annotator))) as scratch:
        dataset = preprocessed_dataset[model.annotator].folder(Path(scratch, "dataset"))
        unfinished = Checkpoints(objects, layout.unfinished_training(name), tools.warn)
        resume_from = unfinished.fetch(Path(scratch, "unfinished"))
        if resume_from:
            tools.tell(f"{name}: an unfinished training is in the bucket, resuming from it")
        with tools.device() as leased:
            try:
                outcome = train_model(
                    study,
                    model,
                    dataset,
                    Path(scratch, "model"),
                    resume_from=resume_from,
                    on_epoch=lambda epoch: tools.tell(_progress(name, epoch)),
                    on_checkpoint=unfinished.keep,
                    tell=lambda line: tools.tell(f"{name}: {line}"),
                )
                require_finite(outcome.curve, name)
            except SegmentationError as error:
                if error.may_retry:  # a loader process was killed, which says nothing about the model
                    raise
                raise checks["training_is_sound"].refuse(name, error) from error
        key = layout.model(name)
        stored = directories.write_directory(objects, key, Path(scratch, "model"))
    checks["training_is_sound"].look(name)
    checks["dice_is_above_the_floor"].look(name, below_floor(outcome.best_ema_dice, study.checks.dice_floor))
    checks["training_ended_by_itself"].look(name, ended_early(outcome, study.training))
    return Stored(
        key,
        stored.version,
        {
            "annotator": model.annotator,
            **({"labels": described_fusion(study, fusion)} if (fusion := study.fusion(model.annotator)) else {}),
            "seed": model.seed,
            "fold": str(model.fold),
            "epochs": outcome.epochs,
            "best epoch": outcome.best_epoch,
            "best EMA pseudo-Dice": round(float(outcome.best_ema_dice), 4),
            "stopped because": outcome.stopped_because,
            **({"snapshots (epochs)": ", ".join(map(str, outcome.snapshots))} if study.training.snapshots else {}),
            "resumed at epoch": outcome.resumed_at_epoch or 0,
            "device": device_name(outcome.device, leased),
            "loading": outcome.loading,
            "bytes": stored.size,
            "training curve": curve_picture(outcome.curve, name),
        },
        # Only now: if the step were killed in between, it would train again from the first epoch.
        afterwards=unfinished.remove,
    )


def require_finite(curve: pd.DataFrame, name: str) -> None:
    """A SegmentationError if a loss is no number: such a model is not published."""
    losses = curve[["train_loss", "val_loss"]]
    bad = curve.loc[~np.isfinite(losses).all(axis=1), "epoch"]
    if len(bad):
        raise SegmentationError(
            "training",
            name,
            f"the loss of epoch {int(bad.iloc[0])} is {losses.loc[bad.index[0]].tolist()}",
            "Lower training.learning_rate, or look for damaged scans.",
        )


def below_floor(dice: float, floor: float) -> list[str]:
    """Why a model may be worthless, though it trained to the end."""
    return [] if dice > floor else [f"best EMA pseudo-Dice {dice:.3f}, the floor (checks.dice_floor) is {floor:g}"]


def ended_early(outcome: TrainingOutcome, training: Training) -> list[str]:
    """Why a training may be unfinished: fewer epochs than asked for, and not for want of progress."""
    without_gain = outcome.epochs - 1 - outcome.best_epoch
    found = []
    if outcome.epochs < training.epochs and without_gain < training.patience:
        found.append(f"{outcome.epochs} of {training.epochs} epochs: {outcome.stopped_because}")
    if len(outcome.snapshots) < training.snapshots:
        found.append(f"{len(outcome.snapshots)} of {training.snapshots} snapshots, from {outcome.epochs} epochs")
    return found


class Checkpoints:
    """The latest checkpoint of an unfinished training, in the bucket: one manifest names it, so that it is always whole
    and verified.

    A training of hundreds of epochs keeps two checkpoints: the last and the one before, in case the manifest is late. A
    checkpoint that another training of the same model has sent but not yet announced is left alone.

    Args:
        objects: the bucket.
        key: where it stands.
        warn: told of one that is damaged.
    """

    FILE = "checkpoint_latest.pth"
    REMEMBERED = 3

    def __init__(self, objects: ObjectStore, key: str, warn: Callable[[str], None]):
        self.objects, self.key, self.warn = objects, key, warn
        self._mine: list[str] = []

    def fetch(self, folder: Path) -> Path | None:
        """The checkpoint as a file; None if there is no sound one; training then begins anew."""
        path = folder / self.FILE
        try:
            if directories.exists(self.objects, self.key):
                self._mine = directories.places_of(self.objects, self.key)
                directories.read_directory(self.objects, self.key, folder)
                return path
            if self.objects.head(f"{self.key}/{self.FILE}") is not None:  # stored before there was a manifest
                folder.mkdir(parents=True, exist_ok=True)
                self.objects.download(f"{self.key}/{self.FILE}", path)
                return path
        except CorruptArtefactError as error:
            self.warn(f"the unfinished training in the bucket is damaged, training begins anew: {error}")
        return None

    def keep(self, path: Path, epoch: int) -> None:
        """Store a checkpoint; the one before it stays, older ones go."""
        stored = directories.write_files(self.objects, self.key, {self.FILE: path}, remember=self.REMEMBERED)
        self._mine = list(dict.fromkeys([*self._mine, *directories.places_of(self.objects, self.key), stored.place]))
        while len(self._mine) > 2:
            directories.remove_place(self.objects, self.key, self._mine.pop(0))

    def remove(self) -> None:
        """Remove all, the manifest first, so that it names no missing file; keep what a running training stored."""
        named = directories.places_of(self.objects, self.key)
        others = named[-1:] if named and named[-1] not in self._mine else []
        if not others:
            self.objects.delete([f"{self.key}/{directories.MANIFEST}"])
        for place in {*self._mine, *named} - {*others}:
            directories.remove_place(self.objects, self.key, place)
        self.objects.delete([f"{self.key}/{self.FILE}"])
        self._mine = []


def _progress(name: str, epoch: EpochReport) -> str:
    return (
        f"{name}: epoch {epoch.epoch + 1} of at most {epoch.of}, loss {epoch.train_loss:.3f}, "
        f"pseudo-Dice {epoch.pseudo_dice:.3f} (EMA {epoch.ema_dice:.3f}), {epoch.seconds:.1f} s"
    )


def curve_picture(curve: pd.DataFrame, name: str) -> Picture:
    """A training curve as people see it beside the model."""
    return Picture(previews.training_curve(curve, title=name), f"training of {name}")
