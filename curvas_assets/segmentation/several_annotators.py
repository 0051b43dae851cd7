"""Trainings on several annotators at once: one annotator drawn for each patch, or the mean of all.

Both read datasets with a channel of labels for each annotator of a patient (`predictors.KEPT_APART`), and leave the rest to
nnU-Net: its loaders, augmentation, losses and steps. What loader processes need of it is in `label_channels`. Imported only
by `training`, because it loads torch and nnunetv2.
"""

from contextlib import nullcontext
from typing import Any

import torch
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import get_tp_fp_fn_tn
from torch import nn

from curvas_assets.predictors import Fusion
from curvas_assets.segmentation.label_channels import MeanOfAnnotators, OneAnnotator
from curvas_assets.segmentation.trainer import StudyTrainer


def trainer_of(fusion: Fusion | None) -> type[StudyTrainer]:
    """The trainer of a training label; where annotators were fused before, it is that of one annotator."""
    if fusion == "random":
        return RandomAnnotatorTrainer
    return SoftLabelTrainer if fusion == "soft" else StudyTrainer


# One annotator drawn for each patch -----------------------------------------------------------------------------------


class RandomAnnotatorTrainer(StudyTrainer):
    """Each patch, of training and of validation, has the labels of one of the patient's annotators, drawn with equal chances."""

    def initialize(self) -> None:
        """As one annotator's, with another reader of cases."""
        super().initialize()
        self.dataset_class = OneAnnotator


# The mean of all annotators -------------------------------------------------------------------------------------------


class SoftLabelTrainer(StudyTrainer):
    """The target of each voxel is the mean of the annotators' one-hot labels, float32 (B, C, Z, Y, X).

    Augmentation moves each annotator's label map by nnU-Net's own interpolation of labels; the mean comes after it, at each
    scale of the outputs. nnU-Net samples coarser targets at the nearest voxel, so that they are the mean there.
    """

    def get_training_transforms(self, *args: Any, **kwargs: Any) -> Any:
        """As for one annotator, and the mean at the end."""
        return self._averaged(StudyTrainer.get_training_transforms(*args, **kwargs))

    def get_validation_transforms(self, *args: Any, **kwargs: Any) -> Any:
        """As for one annotator, and the mean at the end."""
        return self._averaged(StudyTrainer.get_validation_transforms(*args, **kwargs))

    def _averaged(self, composed: Any) -> Any:
        composed.transforms.append(MeanOfAnnotators(self.label_manager.num_segmentation_heads))
        return composed

    def _build_loss(self) -> Any:
        """nnU-Net's own, with probabilities as target."""
        loss = super()._build_loss()
        if isinstance(loss, DeepSupervisionWrapper):
            loss.loss = SoftTargetLoss(loss.loss)
            return loss
        return SoftTargetLoss(loss)

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """As nnU-Net's: the loss is that of the mean, and the pseudo-Dice compares with the mean's arg max."""
        data = batch["data"].to(self.device, non_blocking=True)
        given = batch["target"] if self.enable_deep_supervision else [batch["target"]]
        targets = [target.to(self.device, non_blocking=True) for target in given]
        with torch.autocast("cuda") if self.device.type == "cuda" else nullcontext():
            output = self.network(data)
            loss = self.loss(output, targets if self.enable_deep_supervision else targets[0])
        finest = output[0] if self.enable_deep_supervision else output
        segmented = torch.zeros(finest.shape, device=finest.device, dtype=torch.float16)
        segmented.scatter_(1, finest.argmax(1, keepdim=True), 1)
        axes = [0, *range(2, finest.ndim)]
        counts = get_tp_fp_fn_tn(segmented, targets[0].argmax(1, keepdim=True), axes=axes)[:3]
        tp, fp, fn = (count.detach().cpu().numpy()[1:] for count in counts)  # without background
        return {"loss": loss.detach().cpu().numpy(), "tp_hard": tp, "fp_hard": fp, "fn_hard": fn}


class SoftTargetLoss(nn.Module):
    """nnU-Net's loss of Dice and cross-entropy, taken with a target of probabilities.

    Its soft Dice takes such a target as it is. Its cross-entropy would round the target to labels, so PyTorch's, from which
    it is derived, is asked. For a target of zeros and ones, the loss is nnU-Net's own.

    Args:
        stock: nnU-Net's loss, without an ignored label.
    """

    def __init__(self, stock: DC_and_CE_loss):
        super().__init__()
        self.stock = stock

    def forward(self, net_output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The loss of logits (B, C, …) and probabilities of the same shape."""
        dice = self.stock.dc(net_output, target)
        entropy = nn.CrossEntropyLoss.forward(self.stock.ce, net_output, target)
        return self.stock.weight_ce * entropy + self.stock.weight_dice * dice
