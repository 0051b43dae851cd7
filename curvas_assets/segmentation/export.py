"""From a network's logits to what is stored, slab by slab and on the device it is told: probabilities on the scan's voxels, and their codes.

nnU-Net's export, which holds several whole volumes in float64, is replaced by the same resampling done slab by slab
(linear; nearest across coarse slices), followed by softmax and the reversal of crop, transposition and voxel order. On a
GPU only one slab is held beside the network; the logits wait in host memory. The codes are those of
`storage.encoding.encode`, which encodes on the CPU; here whole tensors are encoded, and the few voxels whose codes need
more than rounding are settled by the same function on the CPU.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from curvas_assets.codes import DEPTH, LEAST_FOREGROUND, MOST_FOREGROUND
from curvas_assets.errors import SoftmaxError
from curvas_assets.probabilities import SLACK, require_probabilities
from curvas_assets.segmentation.requirements import Told, require_linear
from curvas_assets.storage.encoding import MOST_OFF, UNIFORM, EncodedSlab, encode, search_tables, settle
from curvas_assets.voxel_order import Turn

if TYPE_CHECKING:
    import torch

SoftmaxSlab = tuple[int, npt.NDArray[np.float32]]
"""z0, and probabilities (C, dz, Y, X) from slice z0 on."""


class Export:
    """The way of one volume from the network's grid to the scan's.

    Args:
        logits: (C, z, y, x) in the network's frame: the scan's, turned to the model's voxel order, with its axes permuted
            by `transpose_forward` and cropped. In host memory.
        plans: nnU-Net's.
        configuration: nnU-Net's.
        properties: of nnU-Net's preprocessing.
        shape: (Z, Y, X) of the scan.
        turn: from the scan's voxel order to the model's.
        subject: whose softmax it is, for errors.
    """

    def __init__(
        self,
        logits: "torch.Tensor",
        plans: Any,
        configuration: Any,
        properties: Mapping[str, Any],
        shape: tuple[int, int, int],
        turn: Turn,
        subject: str = "the model",
    ):
        forward = list(plans.transpose_forward)
        self.logits, self.shape, self.flipped, self.subject = logits, shape, turn.flipped, subject
        self.box = [tuple(int(v) for v in span) for span in properties["bbox_used_for_cropping"]]
        self.cropped = [int(n) for n in properties["shape_after_cropping_and_before_resampling"]]
        self.modes = _resampling_modes(configuration, properties, forward)
        self.own = [forward.index(axis) for axis in turn.axes]
        """The network's axis along each of the scan's."""

    def slabs(self) -> Iterator[SoftmaxSlab]:
        """Probabilities float32 (C, dz, Y, X), from the scan's first slice to its last."""
        for z0 in range(0, self.shape[0], DEPTH):
            yield z0, self._probabilities(z0, "cpu").numpy()

    def encoded(self, device: str | None) -> Iterator[tuple[int, EncodedSlab]]:
        """The same as codes.

        Args:
            device: torch's name of the device that resamples and encodes; None resamples on the CPU and encodes there
                with `storage.encoding.encode`.

        Raises:
            SoftmaxError: the network's output is no distribution over the classes.
        """
        import torch

        beside_the_network = _own_stream(device)
        slab = None
        for z0 in range(0, self.shape[0], DEPTH):
            encoded = None
            if device is not None:
                try:
                    with beside_the_network():
                        slab = self._probabilities(z0, device)
                        self._require_distribution(slab, z0)
                        encoded = encode_tensor(slab)
                except torch.OutOfMemoryError:  # the network has it: the rest is done on the CPU
                    device = None
                slab = None  # free it for the network
            if encoded is None:
                values = self._probabilities(z0, "cpu").numpy()
                self._require(values, z0)
                encoded = encode(values)
            yield z0, encoded

    def _require(self, slab: npt.NDArray[np.float32], z0: int) -> None:
        require_probabilities(slab, attempted="predicting", subject=self.subject, error=SoftmaxError, z0=z0)

    def _require_distribution(self, slab: "torch.Tensor", z0: int) -> None:
        """The check of `require_probabilities` where the slab is; only a slab that fails it is fetched."""
        import torch

        (low, high), (least, most) = torch.aminmax(slab), torch.aminmax(slab.sum(0))
        if not bool((low >= -SLACK) & (high <= 1 + SLACK) & (least >= 1 - SLACK) & (most <= 1 + SLACK)):
            self._require(slab.cpu().numpy(), z0)

    def _probabilities(self, z0: int, device: str) -> "torch.Tensor":
        """A slab from slice z0 on, contiguous (C, dz, Y, X)."""
        import torch

        with torch.inference_mode():
            depth, z1 = self.shape[0], min(z0 + DEPTH, self.shape[0])
            first, last = (depth - z1, depth - z0) if self.flipped[0] else (z0, z1)
            slab = torch.zeros((len(self.logits), z1 - z0, *self.shape[1:]), dtype=torch.float32, device=device)
            slab[0] = 1
            across = self.own[0]
            start, stop = self.box[across]
            lo, hi = max(first, start), min(last, stop)
            if lo < hi:
                part = self.logits
                for axis in (across, *(axis for axis in range(3) if axis != across)):
                    wanted = range(lo - start, hi - start) if axis == across else range(self.cropped[axis])
                    part = _resample_axis(part, axis + 1, wanted, self.cropped[axis], self.modes[axis], device)
                inside = torch.softmax(part.float(), 0).permute([0, *(axis + 1 for axis in self.own)])
                where = [slice(lo - first, hi - first), *(slice(*self.box[axis]) for axis in self.own[1:])]
                slab[:, where[0], where[1], where[2]] = inside
            flips = [axis + 1 for axis, flipped in enumerate(self.flipped) if flipped]
            return slab.flip(flips) if flips else slab


def _own_stream(device: str | None) -> Callable[[], AbstractContextManager[Any]]:
    """On CUDA a stream of its own, so that a slab does not queue up behind the tiles of the next volume."""
    import torch

    if device is None or torch.device(device).type != "cuda":
        return nullcontext
    stream = torch.cuda.Stream(device)
    return lambda: torch.cuda.stream(stream)


def _resampling_modes(configuration: Any, properties: Mapping[str, Any], forward: Sequence[int]) -> list[str]:
    """`linear` or `nearest` for each axis of the network's frame, as nnU-Net's export decides it."""
    from nnunetv2.preprocessing.resampling.default_resampling import determine_do_sep_z_and_axis

    options = configuration.configuration["resampling_fn_probabilities_kwargs"]
    threshold = require_linear(
        configuration.configuration["resampling_fn_probabilities"],
        options,
        Told("exporting the prediction", "the model"),
    )
    original = [float(properties["spacing"][axis]) for axis in forward]
    current = list(configuration.spacing)
    if len(current) == 2:
        current = [original[0], *current]
    separate, axis = determine_do_sep_z_and_axis(options.get("force_separate_z"), current, original, threshold)
    return ["nearest" if separate and i == axis else "linear" for i in range(3)]


def _resample_axis(
    volume: "torch.Tensor", dim: int, wanted: range, size: int, mode: str, device: str
) -> "torch.Tensor":
    """Some positions of one axis resampled from its present length to `size`: voxel centres aligned, edges repeated.

    Only what these positions need of the volume is taken to the device.
    """
    import torch

    length = volume.shape[dim]
    if length == size:
        return volume.narrow(dim, wanted.start, len(wanted)).to(device).float()
    position = (torch.arange(wanted.start, wanted.stop, dtype=torch.float64) + 0.5) * (length / size) - 0.5
    position = position.clamp(0, length - 1)
    below = position.floor().long()
    above = (below + 1).clamp(max=length - 1)
    first = int(below[0])
    near = volume.narrow(dim, first, int(above[-1]) + 1 - first).to(device)
    if mode == "nearest":
        return near.index_select(dim, (torch.floor(position + 0.5).long() - first).to(device)).float()
    weight = (position - below).float().reshape([-1 if axis == dim else 1 for axis in range(volume.ndim)]).to(device)
    low = near.index_select(dim, (below - first).to(device)).float()
    return low + weight * (near.index_select(dim, (above - first).to(device)).float() - low)


# Codes on a device ---------------------------------------------------------------------------------------------------


class _Tables(NamedTuple):
    """The format's tables on one device: where the cells of the levels end, and the levels."""

    limits: "torch.Tensor"
    levels: "torch.Tensor"


@cache
def _tables(device: str) -> _Tables:
    """For a float32 x and a limit in float64, limit ≤ x exactly if the smallest float32 that is not below the limit is."""
    import torch

    search = search_tables()
    limits = search.limits[np.isfinite(search.limits)]
    rounded = limits.astype(np.float32)
    up = np.where(rounded.astype(np.float64) < limits, np.nextafter(rounded, np.float32(2)), rounded)
    return _Tables(torch.from_numpy(up).to(device), torch.from_numpy(search.levels).to(device))


def encode_tensor(softmax: "torch.Tensor") -> EncodedSlab:
    """Codes of a slab's foreground on the device it is on: those that `storage.encoding.encode` gives.

    Args:
        softmax: probabilities float32 (C, Z, Y, X), background first.
    """
    import torch

    with torch.inference_mode():
        tables = _tables(str(softmax.device))
        codes = torch.bucketize(softmax[1:].clamp(min=0), tables.limits, out_int32=True, right=True)
        labels = _winners(softmax[0], softmax[1:])
        unsettled = _unsettled(softmax, labels, codes, tables).nonzero(as_tuple=True)
        if len(unsettled[0]):
            settled = settle(softmax[:, *unsettled].cpu().numpy(), labels[unsettled].cpu().numpy())
            codes[:, *unsettled] = torch.from_numpy(settled.astype(np.int32)).to(codes.device)
        return EncodedSlab(
            codes.cpu().numpy().astype(np.uint16),
            np.array([int((labels == c).sum()) for c in range(len(softmax))], np.int64),
            np.array([float(tables.levels[line].sum()) for line in codes]),
            (labels > 0).sum(dim=(1, 2)).cpu().numpy(),
        )


def _winners(background: "torch.Tensor", foreground: "Iterable[torch.Tensor]") -> "torch.Tensor":
    """Of each voxel the most probable class, the lowest where two are equal."""
    import torch

    most = background
    labels = torch.zeros(background.shape, dtype=torch.uint8, device=background.device)
    for c, values in enumerate(foreground, 1):
        labels = torch.where(values > most, c, labels)
        most = torch.maximum(most, values)
    return labels


def _sum_of(parts: "Iterable[torch.Tensor]") -> "torch.Tensor":
    """In float64, class by class, as `encode` adds."""
    total: Any = 0.0
    for part in parts:
        total = total + part.double()
    return total


def _unsettled(
    softmax: "torch.Tensor", labels: "torch.Tensor", codes: "torch.Tensor", tables: _Tables
) -> "torch.Tensor":
    """The voxels whose codes, rounded one by one, may break a promise of the format: on the sum, the label, or a
    background of exactly 1. `encode` looks at more voxels, and changes none of the others.
    """
    import torch

    small = tables.levels.float()  # exact
    background = softmax[0]
    foreground, coded = _sum_of(softmax[1:].clamp(min=0)), _sum_of(small[line] for line in codes)
    left = torch.where(coded < LEAST_FOREGROUND, 1.0, (1 - coded).clamp(min=0)).float()
    kept = _winners(left, (small[line] for line in codes))
    certain = background >= 1
    whole = (background.double().clamp(min=0) + foreground - 1).abs() <= UNIFORM * (1 - 1e-6)
    exact = (certain == (foreground < LEAST_FOREGROUND)) & (certain == (coded < LEAST_FOREGROUND))
    balanced = (coded - foreground).abs() <= MOST_OFF
    return ~(whole & balanced & (exact | (labels > 0)) & (kept == labels) & (coded <= MOST_FOREGROUND))
