"""nnU-Net's trainer with what the study added: seeds, a held-out part, early stopping, a checkpoint that resumes.

Imported only by `training`, because it loads torch and nnunetv2. The class is instantiated directly; nnU-Net never looks
it up by name, and what it publishes says `nnUNetTrainer`.
"""

import math
import os
import random
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from time import time
from typing import Any

import numpy as np
import torch
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.collate_outputs import collate_outputs

from curvas_assets.machine import available_memory, usable_cores
from curvas_assets.segmentation.loading import (
    Batches,
    BatchStream,
    Loading,
    Order,
    bytes_of,
    free_shared_memory,
    plan_loading,
)
from curvas_assets.segmentation.runtime import has_compiler
from curvas_assets.segmentation.snapshots import chosen_epochs, kept_epochs

SETTINGS = "curvas_training"
"""Where the settings stand in the plans: nnU-Net's trainers take no further arguments."""
HELD_OUT_SEED = 12345
LATEST = "checkpoint_latest.pth"
CPU = torch.device("cpu")


class NotFiniteError(ArithmeticError):
    """The loss became NaN or infinite."""


class StudyTrainer(nnUNetTrainer):
    """One model of a study. The arguments are nnU-Net's own, which it looks up by name."""

    def __init__(self, plans: dict, configuration: str, fold: Any, dataset_json: dict, device: torch.device = CPU):
        self.settings: dict[str, Any] = plans.pop(SETTINGS)
        self.log_lines: list[str] = []
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.initial_lr = self.settings["learning_rate"]
        self.num_epochs = self.settings["epochs"]
        self.num_iterations_per_epoch = self.settings["iterations_per_epoch"]
        self.num_val_iterations_per_epoch = self.settings["validation_iterations_per_epoch"]
        self.on_epoch: Callable[[dict[str, Any]], None] | None = None
        self.on_checkpoint: Callable[[Path, int], None] | None = None
        self.tell: Callable[[str], None] = lambda _: None
        self.batches: BatchStream | None = None
        self._writing: Future[None] | None = None
        self.best_weights: dict[str, torch.Tensor] = {}
        self.best_epoch = -1
        self.kept_weights: dict[int, dict[str, torch.Tensor]] = {}
        """Epoch, counted from 1 → weights after it: what snapshots are chosen from."""
        self.held_out: list[str] = []

    # Seeds -----------------------------------------------------------------------------------------------------------

    def initialize(self) -> None:
        """As nnU-Net does, with weights that the seed determines."""
        self._seed(-1)
        super().initialize()

    def on_epoch_start(self) -> None:
        """As nnU-Net does, with generators that the seed and the epoch determine."""
        super().on_epoch_start()
        self._seed(self.current_epoch)

    def _seed(self, epoch: int) -> None:
        """Every generator that the network may draw from, from (seed, epoch): a resumed epoch draws what it would have.
        Batches have generators of their own (`loading`).
        """
        mixed = np.random.SeedSequence([self.settings["seed"], epoch + 1]).generate_state(3)
        random.seed(int(mixed[0]))
        np.random.seed(int(mixed[1]))  # noqa: NPY002 - nnU-Net's loaders draw from the global generator
        torch.manual_seed(int(mixed[2]))

    # Data ------------------------------------------------------------------------------------------------------------

    def do_split(self) -> tuple[list[str], list[str]]:
        """With fold `all`, a part of the patients is held out to decide when to stop; the report says which.

        The same holds under cross-validation: those whom the fold holds out are scored, so nothing may be chosen on
        them.
        """
        if self.fold == "all":
            everybody = sorted(self.dataset_class.get_identifiers(self.preprocessed_dataset_folder))
        else:
            train, validation = super().do_split()
            if not self.settings.get("cross_validated"):
                self.held_out = sorted(map(str, validation))
                return train, validation
            everybody = sorted(map(str, train))
        count = round(self.settings["held_out_fraction"] * len(everybody))
        if self.settings["held_out_fraction"] > 0 and len(everybody) > 2:
            count = max(1, count)
        if count == 0:
            return everybody, everybody
        order = np.random.RandomState(HELD_OUT_SEED).permutation(len(everybody))
        self.held_out = sorted(everybody[i] for i in order[:count])
        return [p for p in everybody if p not in self.held_out], self.held_out

    def get_dataloaders(self):
        """The batches of nnU-Net's loaders from the present epoch on, as `loading` draws and loads them."""
        before = os.environ.get("nnUNet_n_proc_DA")
        os.environ["nnUNet_n_proc_DA"] = "0"
        try:
            train, validation = super().get_dataloaders()
        finally:
            os.environ["nnUNet_n_proc_DA"] = before or "1"
        assert isinstance(train, SingleThreadedAugmenter)
        order = Order(
            self.current_epoch,
            self.num_epochs,
            {"train": self.num_iterations_per_epoch, "validation": self.num_val_iterations_per_epoch},
        )
        sources = {"train": train.data_loader, "validation": validation.data_loader}
        loading = self._planned_loading(next(validation))
        self.tell(loading.why)
        for transform in _transforms_of(
            train.data_loader.transforms
        ):  # else 25 MiB for each process, at a patch of 128³
            getattr(transform, "_grid_cache", {}).clear()
        self.batches = BatchStream(
            Batches(self.settings["seed"], sources, loading.through),
            order,
            loading,
            pin=self.device.type == "cuda",
            tell=self.tell,
        )
        return self.batches.of("train"), self.batches.of("validation")

    def _planned_loading(self, batch: dict[str, Any]) -> Loading:
        return plan_loading(
            self.settings["loader_workers"],
            self.device.type,
            bytes_of(batch),
            cores=usable_cores(),
            memory_bytes=available_memory(),
            shared_bytes=free_shared_memory(),
        )

    @staticmethod
    def get_training_transforms(*args: Any, **kwargs: Any):
        """nnU-Net's, without the blur's timing, which would choose the algorithm by the load of the machine."""
        transforms = nnUNetTrainer.get_training_transforms(*args, **kwargs)
        for transform in _transforms_of(transforms):
            if isinstance(transform, GaussianBlurTransform):
                transform.benchmark = False
        return transforms

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self):
        """As nnU-Net does, without mirroring if the settings say so, in training and prediction alike."""
        rotation, dummy_2d, patch_size, mirror_axes = (
            super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        )
        if not self.settings["mirroring"]:
            mirror_axes = self.inference_allowed_mirroring_axes = None
        return rotation, dummy_2d, patch_size, mirror_axes

    def _do_i_compile(self) -> bool:
        """As nnU-Net does (on CUDA, unless `nnUNet_compile` says no), if this machine has the compiler that it takes."""
        wanted = super()._do_i_compile()
        if wanted and not has_compiler():
            self.tell(
                "the network is not compiled, which makes it slower: this machine has no C compiler (gcc or clang)"
            )
        return wanted and has_compiler()

    def configure_optimizers(self):
        """nnU-Net's SGD, or AdamW with the same schedule of the learning rate."""
        if self.settings["optimizer"] == "sgd":
            return super().configure_optimizers()
        optimizer = torch.optim.AdamW(self.network.parameters(), self.initial_lr, weight_decay=self.weight_decay)
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)

    # Epochs ----------------------------------------------------------------------------------------------------------

    @property
    def ema_history(self) -> list[float]:
        """The exponential moving average of the pseudo-Dice after each epoch."""
        return [float(v) for v in self.logger.get_value("ema_fg_dice", step=None)]

    @property
    def epochs_without_gain(self) -> int:
        """Epochs since the best EMA pseudo-Dice, from the history that every checkpoint carries."""
        history = self.ema_history
        return len(history) - 1 - int(np.argmax(history)) if history else 0

    @property
    def finished(self) -> bool:
        """Whether the last epoch is done, or the EMA pseudo-Dice has not improved for `patience` epochs."""
        return self.current_epoch >= self.num_epochs or self.epochs_without_gain >= self.settings["patience"]

    def run_training(self) -> None:
        """nnU-Net's loop, ended by patience, and not entered again once it has ended."""
        try:
            with ThreadPoolExecutor(
                1, "checkpoint"
            ) as self._writer:  # waits for the last checkpoint, also after a failure
                self.on_train_start()
                self._run_epochs()
        finally:
            if self.batches is not None:
                self.batches.close()

    def _run_epochs(self) -> None:
        while not self.finished:
            self.on_epoch_start()
            self.on_train_epoch_start()
            self.on_train_epoch_end(
                [self.train_step(next(self.dataloader_train)) for _ in range(self.num_iterations_per_epoch)]
            )
            with torch.no_grad():
                self.on_validation_epoch_start()
                self.on_validation_epoch_end(
                    [self.validation_step(next(self.dataloader_val)) for _ in range(self.num_val_iterations_per_epoch)]
                )
            self.on_epoch_end()

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        """nnU-Net's, but an epoch whose patches held no organ at all counts 0 instead of turning the EMA into NaN."""
        outputs = collate_outputs(val_outputs)
        tp, fp, fn = (np.sum(outputs[name], 0).astype(float) for name in ("tp_hard", "fp_hard", "fn_hard"))
        denominator = 2 * tp + fp + fn
        dice = np.divide(2 * tp, denominator, out=np.full_like(tp, np.nan), where=denominator > 0)
        mean = float(np.nanmean(dice)) if np.isfinite(dice).any() else 0.0
        self.logger.log("mean_fg_dice", mean, self.current_epoch)
        self.logger.log("dice_per_class_or_region", [float(d) for d in dice], self.current_epoch)
        self.logger.log("val_losses", float(np.mean(outputs["loss"])), self.current_epoch)

    def on_epoch_end(self) -> None:
        """Remember the best weights, then write the checkpoint, so that it always holds both."""
        epoch = self.current_epoch
        self.logger.log("epoch_end_timestamps", time(), epoch)
        loss = float(self.logger.get_value("train_losses", step=-1))
        if not math.isfinite(loss):
            raise NotFiniteError(f"the training loss is {loss} in epoch {epoch}")
        if self.epochs_without_gain == 0:
            self._best_ema = self.ema_history[-1]
            self.best_epoch = epoch
            self.best_weights = _copied(self._module.state_dict())
        self.current_epoch += 1
        self._keep_weights()
        if self.on_epoch is not None:
            self.on_epoch(self.curve()[-1])
        if self.current_epoch % self.settings["checkpoint_every"] == 0 or self.finished:
            self._checkpoint_written()
            state, path = self._state(), Path(self.output_folder, LATEST)
            self._writing = self._writer.submit(self._write_checkpoint, state, path, epoch)
        if self.finished:
            self._checkpoint_written()

    def _keep_weights(self) -> None:
        """Keep what snapshots may be chosen from, if the study wants any; the best weights are not copied again."""
        held, self.kept_weights = self.kept_weights, {}
        for epoch in kept_epochs(self.current_epoch, self.settings["snapshots"]):
            if epoch in held:
                self.kept_weights[epoch] = held[epoch]
            elif epoch == self.current_epoch:
                best = self.best_epoch == epoch - 1
                self.kept_weights[epoch] = self.best_weights if best else _copied(self._module.state_dict())

    def chosen_snapshots(self) -> list[int]:
        """The epochs, counted from 1, whose weights are published as snapshots, in order."""
        return chosen_epochs(self.kept_weights, self.current_epoch, self.best_epoch + 1, self.settings["snapshots"])

    def _write_checkpoint(self, state: dict[str, Any], path: Path, epoch: int) -> None:
        """In a thread, while the next epoch trains: write a checkpoint, and have it copied away."""
        _save(state, str(path))
        if self.on_checkpoint is not None:
            self.on_checkpoint(path, epoch)

    def _checkpoint_written(self) -> None:
        """Wait for the checkpoint that is being written, and raise what it raised."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def curve(self) -> list[dict[str, Any]]:
        """One row per finished epoch."""
        value = self.logger.get_value
        names = {
            "train_loss": "train_losses",
            "val_loss": "val_losses",
            "pseudo_dice": "mean_fg_dice",
            "ema_dice": "ema_fg_dice",
            "learning_rate": "lrs",
        }
        rows = [
            {"epoch": epoch, **{ours: float(value(theirs, step=epoch)) for ours, theirs in names.items()}}
            for epoch in range(len(self.ema_history))
        ]
        for epoch, row in enumerate(rows):
            row["seconds"] = float(
                value("epoch_end_timestamps", step=epoch) - value("epoch_start_timestamps", step=epoch)
            )
        return rows

    # Checkpoints -----------------------------------------------------------------------------------------------------

    @property
    def _module(self) -> torch.nn.Module:
        """The network beneath torch.compile."""
        return getattr(self.network, "_orig_mod", self.network)

    def save_checkpoint(self, filename: str) -> None:
        """Everything that a resumed training needs, in one file without a path in it, under its name once complete."""
        _save(self._state(), filename)

    def _state(self) -> dict[str, Any]:
        """What a checkpoint holds, as it is now: training goes on while it is written."""
        return {
            "network_weights": _copied(self._module.state_dict()),
            "optimizer_state": _copied(self.optimizer.state_dict()),
            "grad_scaler_state": self.grad_scaler.state_dict() if self.grad_scaler is not None else None,
            "logging": _plain(self.logger.get_checkpoint()),
            "best_weights": self.best_weights,
            "best_epoch": self.best_epoch,
            "best_ema": float(self._best_ema),
            "kept_weights": self.kept_weights,
            "current_epoch": self.current_epoch,
            "identity": self.settings["identity"],
        }

    def load_checkpoint(self, filename_or_checkpoint: Any) -> None:
        """Continue from what `save_checkpoint` wrote, on any machine."""
        if not self.was_initialized:
            self.initialize()
        state = filename_or_checkpoint
        if not isinstance(state, dict):
            state = torch.load(state, map_location="cpu", weights_only=True)  # kept weights need no GPU
        self._module.load_state_dict(state["network_weights"])
        self.optimizer.load_state_dict(state["optimizer_state"])
        if self.grad_scaler is not None and state["grad_scaler_state"] is not None:
            self.grad_scaler.load_state_dict(state["grad_scaler_state"])
        self.logger.load_checkpoint(state["logging"])
        self.best_weights = state["best_weights"]
        self.best_epoch, self._best_ema = state["best_epoch"], state["best_ema"]
        self.kept_weights = state.get("kept_weights", {})  # checkpoints of earlier versions have none
        self.current_epoch = state["current_epoch"]

    def published(self) -> dict[str, Any]:
        """The best weights as a stock nnU-Net loads them: no optimizer, no path, no class of ours."""
        return self._published(self.best_weights, self.best_epoch + 1, float(self._best_ema))

    def published_snapshot(self, epoch: int) -> dict[str, Any]:
        """The weights after an epoch of `chosen_snapshots`, in the same form."""
        return self._published(self.kept_weights[epoch], epoch, self.ema_history[epoch - 1])

    def _published(self, weights: dict[str, torch.Tensor], epoch: int, ema: float) -> dict[str, Any]:
        return {
            "network_weights": weights,
            "trainer_name": "nnUNetTrainer",
            "init_args": {"configuration": self.configuration_name, "fold": self.fold},
            "inference_allowed_mirroring_axes": self.inference_allowed_mirroring_axes,
            "current_epoch": epoch,
            "_best_ema": ema,
        }

    # What nnU-Net writes beside ---------------------------------------------------------------------------------------

    def print_to_log_file(self, *args: Any, also_print_to_console: bool = True, add_timestamp: bool = True) -> None:
        """Kept in memory; the caller reports progress and stores the curve."""
        self.log_lines.append(" ".join(map(str, args)))

    def plot_network_architecture(self) -> None:
        """Not drawn."""

    def _save_debug_information(self) -> None:
        """Not written: it names the host."""


def _save(state: dict[str, Any], filename: str) -> None:
    temporary = f"{filename}.part"
    torch.save(state, temporary)
    os.replace(temporary, filename)


def _copied(value: Any) -> Any:
    """The same with tensors of its own, in host memory."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(inner) for key, inner in value.items()}
    return [_copied(inner) for inner in value] if isinstance(value, list) else value


def _transforms_of(composed: Any) -> list[Any]:
    """nnU-Net's transforms, out of what applies some of them only at times."""
    return [getattr(transform, "transform", transform) for transform in composed.transforms]


def _plain(value: Any) -> Any:
    """NumPy numbers as Python's own, so that checkpoints load without unpickling code."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    return value.item() if isinstance(value, np.generic) else value
