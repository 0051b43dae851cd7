# The classes that nnU-Net brings have no types:
# pyright: reportUntypedBaseClass=false
"""Labels of several annotators as loaders see them: channels (R, Z, Y, X), of which one is drawn or all are averaged.

Which annotator is drawn, and that it is the same in every run, is decided by the generators that `loading` sets. Imported
only by `several_annotators` and by loader processes, because it loads torch and nnunetv2.
"""

from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import SegOnlyTransform
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2


class OneAnnotator(nnUNetDatasetBlosc2):
    """Cases whose labels are one annotator's, who is drawn each time a case is read for a patch.

    The draw comes from NumPy's global generator, as all of nnU-Net's; `loading.drawing` sets it for each batch.
    """

    def load_case(self, identifier: str) -> tuple[Any, Any, Any, dict[str, Any]]:
        """As nnU-Net does: patches are centred on voxels of organs as that annotator drew them."""
        image, labels, previous, properties = super().load_case(identifier)
        annotator = np.random.randint(labels.shape[0])  # noqa: NPY002
        at = properties["class_locations"]
        properties["class_locations"] = {organ: _of_channel(voxels, annotator) for organ, voxels in at.items()}
        return image, OneChannel(labels, annotator), previous, properties


def _of_channel(voxels: Any, channel: int) -> Any:
    """Those of the sampled voxels (channel, z, y, x) that are of one channel."""
    return voxels[voxels[:, 0] == channel] if len(voxels) else voxels


class OneChannel:
    """One channel of a stored array (R, Z, Y, X), as (1, Z, Y, X). Only what is sliced is read."""

    def __init__(self, whole: Any, channel: int):
        self.whole, self.channel = whole, channel
        self.shape = (1, *whole.shape[1:])

    def __getitem__(self, where: tuple[slice, ...]) -> Any:
        """As NumPy does, with one slice for each axis, of which the first is the whole of it."""
        return self.whole[(slice(self.channel, self.channel + 1), *where[1:])]


class MeanOfAnnotators(SegOnlyTransform):
    """Label maps of annotators (R, …), one for each output of the network → the mean of their one-hot labels, (C, …)."""

    def __init__(self, classes: int):
        super().__init__()
        self.classes = classes

    def _apply_to_segmentation(self, segmentation: Any, **params: Any) -> Any:
        if isinstance(segmentation, list):
            return [self._mean(one) for one in segmentation]
        return self._mean(segmentation)

    def _mean(self, labels: torch.Tensor) -> torch.Tensor:
        counts = torch.stack([(labels == label).sum(0, dtype=torch.float32) for label in range(self.classes)])
        return counts / len(labels)
