# numba infers the types of its functions:
# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportUnknownVariableType=false
"""nnU-Net's preprocessing of a scan: crop, normalisation, resampling, and the sample of each organ's voxels.

`preprocess` gives what nnU-Net's `DefaultPreprocessor.run_case_npy` gives, to the bit, for CTs, MR and several channels with
the settings that its planners choose; other settings go to nnU-Net itself. It takes voxels as they are stored (int16),
works on them slice by slice, and holds no more than them and its results; of a channel whose normalisation looks at the
whole scan, also a copy in float32. Files are read elsewhere.

Channels are a sequence of volumes (Z, Y, X), each of its own type, or an array (C, Z, Y, X).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from curvas_assets.segmentation.resampling import resample_image, resample_image_slices, resample_labels

Box = list[list[int]]
Channels = Sequence[npt.NDArray[Any]] | npt.NDArray[Any]
RESAMPLER = "resample_data_or_seg_to_shape"
OF_VOXELS = ("CTNormalization", "NoNormalization")
"""nnU-Net's normalisations whose value at a voxel is decided by that voxel alone."""
OF_SCANS = ("ZScoreNormalization", "RescaleTo01Normalization")
"""Those that look at the whole scan, in nnU-Net's frame."""
NORMALISING_BYTES = 17
"""Of each voxel in a normalisation that looks at the whole scan, on top of the scan as it is stored: a float32 copy of the scan, and while
its mean and deviation are taken inside a mask, up to three more."""
SEED = 1234
"""Of nnU-Net's sample of intensities."""
LARGEST_INT8 = 127
SLICES_IN_FLIGHT = 80
"""Slices of float64 that resampling holds of a clinical scan."""
SAMPLED_BYTES = 83
"""Of each organ voxel in `sample_organs`: 82.6 measured if all are of one organ, 80.3 if of three."""
FEW = 16
"""Slices that are looked at side by side; any number would do."""


def preprocess(
    channels: Channels,
    labels: npt.NDArray[np.uint8] | None,
    properties: dict[str, Any],
    plans: Any,
    configuration: Any,
    dataset: dict[str, Any],
    *,
    threads: int = 1,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[Any] | None, dict[str, Any]]:
    """What nnU-Net trains on or predicts from, of one scan in the voxel order that the network knows.

    Args:
        channels: of any type of number, C × (Z, Y, X); with NaN or infinity, nnU-Net itself is asked.
        labels: uint8 (Z, Y, X); None for a scan to be predicted.
        properties: at least `spacing`, mm along (Z, Y, X); nnU-Net's remarks on the crop and on organs are added.
        plans: nnU-Net's PlansManager.
        configuration: its ConfigurationManager.
        dataset: the content of `dataset.json`.
        threads: that share the work; they change no result.

    Returns:
        The image float32 (C, Z, Y, X); the label map int8 (1, Z, Y, X), int16 if labels exceed 127, −1 outside the body
        of a scan that is 0 there in all channels, None without labels; and the properties.
    """
    if not is_known(configuration) or not all(np.isfinite(slab).all() for one in channels for _, slab in _slabs(one)):
        preprocessor = configuration.preprocessor_class(verbose=False)
        stacked = channels[0][None] if len(channels) == 1 else np.stack([one.astype(np.float32) for one in channels])
        if labels is None:
            alone = _ImageAlone(configuration)
            image, _, properties = preprocessor.run_case_npy(stacked, None, properties, plans, alone, dataset)
            return image, None, properties
        drawn = labels[None].astype(np.float32)
        return preprocessor.run_case_npy(stacked, drawn, properties, plans, configuration, dataset)
    frame = Frame.of(channels, properties, plans, configuration)
    image = preprocess_image(frame, channels, plans, configuration, labels=labels, threads=threads)
    if labels is None:
        return image, None, properties
    seg = preprocess_labels(frame, channels, labels, configuration, threads=threads)
    properties["class_locations"] = sample_organs(seg, plans, dataset)
    return image, seg, properties


class _ImageAlone:
    """A configuration whose preprocessing leaves the label map as it is: without one, nnU-Net resamples a mask of the
    image that nobody reads.
    """

    def __init__(self, configuration: Any):
        self._configuration = configuration

    def __getattr__(self, name: str) -> Any:
        return getattr(self._configuration, name)

    @property
    def resampling_fn_seg(self) -> Callable[..., Any]:
        return lambda label_map, *_: label_map


def is_known(configuration: Any) -> bool:
    """Whether a configuration is one whose preprocessing is done here; nnU-Net does the others."""
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor

    settings = configuration.configuration
    image, labels = settings["resampling_fn_data_kwargs"], settings["resampling_fn_seg_kwargs"]
    return (
        configuration.preprocessor_class is DefaultPreprocessor
        and set(configuration.normalization_schemes) <= {*OF_VOXELS, *OF_SCANS}
        and settings["resampling_fn_data"] == settings["resampling_fn_seg"] == RESAMPLER
        and set(image) == set(labels) == {"is_seg", "order", "order_z", "force_separate_z"}
        and (image["is_seg"], image["order"], image["order_z"]) == (False, 3, 0)
        and (labels["is_seg"], labels["order"], labels["order_z"]) == (True, 1, 0)
    )


def preprocess_image(
    frame: "Frame",
    channels: Channels,
    plans: Any,
    configuration: Any,
    *,
    labels: npt.NDArray[np.uint8] | None = None,
    threads: int = 1,
) -> npt.NDArray[np.float32]:
    """The image alone, of a configuration that `is_known`; arguments and result as `preprocess`.

    Labels matter only to a normalisation inside the body (`use_mask_for_norm`): nnU-Net counts a voxel that is drawn as
    inside. Without them, as in a prediction, the body is what is not 0.
    """
    masked = any(configuration.use_mask_for_norm)
    inside = _inside(frame, channels, labels) if masked else None
    axis = frame.thick(configuration.configuration["resampling_fn_data_kwargs"])
    image: npt.NDArray[np.float32] | None = None
    for number, voxels in enumerate(channels):
        plane = _normalised(frame, voxels, number, plans, configuration, inside, axis or 0)
        one = _resampled(plane, frame, axis, threads)
        if len(channels) == 1:
            return np.ascontiguousarray(np.moveaxis(one, 0, axis or 0))[None]
        image = np.empty((len(channels), *frame.wanted), np.float32) if image is None else image
        image[number] = np.moveaxis(one, 0, axis or 0)
    assert image is not None, "a scan has channels"
    return image


def _inside(frame: "Frame", channels: Channels, labels: npt.NDArray[np.uint8] | None) -> npt.NDArray[np.int8] | None:
    """0 where a masked normalisation looks, −1 elsewhere, in the frame; None if it looks everywhere."""
    outside = outside_body([frame.crop(one) for one in channels])
    if outside is None:
        return None
    if labels is not None:
        drawn = frame.crop(labels)
        for z in range(len(outside)):
            outside[z] &= drawn[z] == 0
    return np.negative(outside.view(np.int8), out=outside.view(np.int8))


def _resampled(
    plane: Callable[[int], npt.NDArray[np.float32]], frame: "Frame", axis: int | None, threads: int
) -> npt.NDArray[np.float32]:
    """A channel at the target spacing, along `axis` first."""
    shape, wanted = _with_first(frame.shape, axis or 0), _with_first(frame.wanted, axis or 0)
    if frame.shape == frame.wanted:
        image = np.empty(shape, np.float32)
        for z in range(len(image)):
            image[z] = plane(z)
        return image
    if axis is None:
        return resample_image(plane, shape, wanted, threads=threads)
    return resample_image_slices(plane, shape, wanted, threads=threads)


def preprocess_labels(
    frame: "Frame", channels: Channels, labels: npt.NDArray[np.uint8], configuration: Any, *, threads: int = 1
) -> npt.NDArray[Any]:
    """The label map alone, of a configuration that `is_known`; arguments and result as `preprocess`."""
    seg = frame.crop(labels).astype(np.int16 if labels.max() > LARGEST_INT8 else np.int8)
    outside = outside_body([frame.crop(one) for one in channels])
    if outside is not None:
        for z in range(len(seg)):
            seg[z][(seg[z] == 0) & outside[z]] = -1
        del outside
    if frame.shape != frame.wanted:
        axis = frame.thick(configuration.configuration["resampling_fn_seg_kwargs"])
        moved = np.ascontiguousarray(np.moveaxis(seg, axis or 0, 0))
        wanted = _with_first(frame.wanted, axis or 0)
        moved = resample_labels(moved, wanted, slices=axis is not None, threads=threads)
        seg = np.ascontiguousarray(np.moveaxis(moved, 0, axis or 0))
    return seg.astype(np.int16 if seg.max() > LARGEST_INT8 else np.int8, copy=False)[None]


def sample_organs(seg: npt.NDArray[Any], plans: Any, dataset: dict[str, Any]) -> dict[Any, Any]:
    """nnU-Net's sample of each organ's voxels, from which training draws patches."""
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor

    manager = plans.get_label_manager(dataset)
    organs = list(manager.foreground_regions if manager.has_regions else manager.foreground_labels)
    if manager.has_ignore_label:
        organs.append([-1, *manager.all_labels])
    return DefaultPreprocessor._sample_foreground_locations(seg, organs)


def estimate_memory(
    frame: "Frame", itemsize: int, drawn: int, *, channels: int = 1, images: int = 1, whole: bool = False
) -> int:
    """Memory that preprocessing one scan takes beside the process itself, and storing the result, bytes.

    The scan as it is stored, and either its label map in several forms or the results, as they are and as they are
    stored; and the slices in flight. Measured at 866 × 512 × 512, int16, from 1.0 to 1.1 mm: see `benchmarks.intake`.
    Where organs fill much of the scan, the sample of their voxels takes more than that.

    Args:
        frame: of the scan.
        itemsize: bytes of a voxel as it is stored, of all images together.
        drawn: voxels of the scan that are in an organ, at most, of any annotator.
        channels: label maps that are kept; several are made one after the other, and gathered as int16.
        images: of the scan, that a network sees together; several are made one after the other, and gathered.
        whole: whether the normalisation of one of them looks at the whole scan.
    """
    voxels, wanted = math.prod(frame.shape), math.prod(frame.wanted)
    slices = SLICES_IN_FLIGHT * 8 * math.prod(frame.shape[1:])
    resampling = (
        (1 if frame.axes == [0, 1, 2] else 2) * itemsize * voxels + max(3 * voxels + wanted, 9 * wanted) + slices
    )
    resampling += (NORMALISING_BYTES * voxels if whole else 0) + (4 * images * wanted if images > 1 else 0)
    sampling = itemsize * voxels + 2 * wanted + SAMPLED_BYTES * min(wanted, drawn * wanted // voxels)
    return max(resampling, sampling) + (2 * channels * wanted if channels > 1 else 0)


def looks_at_scans(configuration: Any) -> bool:
    """Whether the normalisation of a channel looks at the whole scan, which takes a copy of it."""
    return any(scheme in OF_SCANS for scheme in configuration.normalization_schemes)


# Where a scan lies, before and after ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Frame:
    """The box of a scan in nnU-Net's order of axes, and its shape at the target spacing."""

    axes: list[int]
    box: Box
    wanted: tuple[int, int, int]
    spacing_mm: list[float]
    target_mm: list[float]

    @classmethod
    def of(
        cls,
        channels: Channels,
        properties: dict[str, Any],
        plans: Any,
        configuration: Any,
        box: Box | None = None,
    ) -> "Frame":
        """The frame of a scan, which is written into nnU-Net's properties.

        Args:
            channels: as `preprocess`, like what follows.
            properties: of the scan.
            plans: of nnU-Net.
            configuration: of nnU-Net.
            box: `nonzero_box` of the channels, if it is known.
        """
        from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape

        axes = [int(axis) for axis in plans.transpose_forward]
        found = nonzero_box(channels) if box is None else box
        found = [list(found[axis]) for axis in axes]
        shape = tuple(stop - start for start, stop in found)
        properties["shape_before_cropping"] = tuple(channels[0].shape[axis] for axis in axes)
        properties["bbox_used_for_cropping"] = found
        properties["shape_after_cropping_and_before_resampling"] = shape
        spacing = [properties["spacing"][axis] for axis in axes]
        target = list(configuration.spacing)
        target = [spacing[0], *target] if len(target) < len(shape) else target
        wanted = tuple(int(n) for n in compute_new_shape(shape, spacing, target))
        return cls(axes, found, wanted, spacing, target)  # type: ignore[arg-type]

    @property
    def shape(self) -> tuple[int, int, int]:
        z, y, x = (stop - start for start, stop in self.box)
        return z, y, x

    def view(self, volume: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """A volume in this frame, as a view."""
        return volume.transpose(self.axes)[tuple(slice(*span) for span in self.box)]

    def crop(self, volume: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """A volume in this frame; contiguous slices, because they are asked for several times."""
        part = self.view(volume)
        return part if self.axes == [0, 1, 2] else np.ascontiguousarray(part)

    def thick(self, options: dict[str, Any]) -> int | None:
        """The axis along which slices are so thick that nnU-Net resamples each by itself; None if there is none."""
        from nnunetv2.preprocessing.resampling.default_resampling import determine_do_sep_z_and_axis

        separate, axis = determine_do_sep_z_and_axis(options["force_separate_z"], self.spacing_mm, self.target_mm)
        return int(axis) if separate and axis is not None else None


def _with_first(shape: Sequence[int], axis: int) -> tuple[int, int, int]:
    """A shape whose axis has become the first."""
    a, b, c = (shape[axis], *(n for i, n in enumerate(shape) if i != axis))
    return a, b, c


def _normalised(
    frame: "Frame",
    voxels: npt.NDArray[Any],
    number: int,
    plans: Any,
    configuration: Any,
    inside: npt.NDArray[np.int8] | None,
    first: int,
) -> Callable[[int], npt.NDArray[np.float32]]:
    """Slices of a channel, normalised by nnU-Net's own, along the axis of the frame that is taken first.

    Args:
        frame: of the scan.
        voxels: of the channel, (Z, Y, X).
        number: of the channel.
        plans: of nnU-Net.
        configuration: of nnU-Net.
        inside: 0 where a masked normalisation looks, −1 elsewhere; None if everywhere.
        first: axis.
    """
    from nnunetv2.preprocessing.normalization import default_normalization_schemes as schemes

    scheme, masked = configuration.normalization_schemes[number], configuration.use_mask_for_norm[number]
    statistics = plans.foreground_intensity_properties_per_channel.get(str(number), {})
    run = getattr(schemes, scheme)(masked, statistics).run
    if scheme in OF_VOXELS:
        cropped = np.moveaxis(frame.crop(voxels), first, 0)
        return lambda z: run(cropped[z].astype(np.float32))
    # NumPy's sums depend on how an array lies in memory: nnU-Net's is a crop of the whole, with its axes turned.
    whole = frame.view(np.array(voxels, np.float32, order="C"))
    everywhere = inside is None and masked
    moved = np.moveaxis(run(whole, np.zeros(whole.shape, np.int8) if everywhere else inside), first, 0)
    return lambda z: np.ascontiguousarray(moved[z])


def nonzero_box(channels: Channels) -> Box:
    """[start, stop] along (Z, Y, X) of the voxels that are not 0 in a channel; all of it if there is none.

    nnU-Net first fills holes, which does not change the box: a hole has voxels around it.
    """
    shape = channels[0].shape
    seen = [np.zeros(n, bool) for n in shape]
    for voxels in channels:
        for z0, slab in _slabs(voxels):
            occupied = slab != 0
            in_plane = occupied.any(axis=0)
            seen[0][z0 : z0 + len(slab)] |= occupied.any(axis=(1, 2))
            seen[1] |= in_plane.any(axis=1)
            seen[2] |= in_plane.any(axis=0)
    spans = [np.flatnonzero(axis) for axis in seen]
    return [[int(at[0]), int(at[-1]) + 1] if at.size else [0, n] for at, n in zip(spans, shape, strict=True)]


def outside_body(channels: Channels) -> npt.NDArray[np.bool_] | None:
    """Where a scan is 0 in all channels from its border inwards, (Z, Y, X); None if nowhere. A CT in HU is −1000 there, not 0."""
    ends = [(axis, end) for axis in range(3) for end in (0, -1)]
    if all(_nonzero([np.take(one, end, axis) for one in channels]).all() for axis, end in ends):
        return None
    state = np.empty(channels[0].shape, np.uint8)
    for z0 in range(0, len(state), FEW):
        state[z0 : z0 + FEW] = ~_nonzero([one[z0 : z0 + FEW] for one in channels])
    while _reach(state):
        pass
    return np.equal(state, 2, out=state.view(np.bool_))


def _nonzero(channels: Sequence[npt.NDArray[Any]]) -> npt.NDArray[np.bool_]:
    """Where any channel is not 0, as float32 if it is fractions, as nnU-Net takes them: tiny ones are 0 then."""
    found = np.zeros(channels[0].shape, np.bool_)
    for one in channels:
        found |= _as_nnunet(one) != 0
    return found


def _as_nnunet(voxels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return voxels.astype(np.float32, copy=False) if voxels.dtype.kind == "f" else voxels


def _slabs(voxels: npt.NDArray[Any]) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """(z0, some slices) as float32 if they are fractions, as nnU-Net takes them: tiny ones are 0 then."""
    for z0 in range(0, len(voxels), FEW):
        yield z0, _as_nnunet(voxels[z0 : z0 + FEW])


@njit(nogil=True, cache=True)
def _reach(state):
    """Once forth and back: a 1 at the border or beside a 2 becomes 2. Returns whether any did."""
    depth, height, width = state.shape
    changed = False
    for direction in (1, -1):
        for i in range(depth):
            z = i if direction == 1 else depth - 1 - i
            for j in range(height):
                y = j if direction == 1 else height - 1 - j
                for k in range(width):
                    x = k if direction == 1 else width - 1 - k
                    if state[z, y, x] != 1:
                        continue
                    border = z in (0, depth - 1) or y in (0, height - 1) or x in (0, width - 1)
                    if (
                        border
                        or state[z - direction, y, x] == 2
                        or state[z, y - direction, x] == 2
                        or state[z, y, x - direction] == 2
                    ):
                        state[z, y, x] = 2
                        changed = True
    return changed


# Intensities ---------------------------------------------------------------------------------------------------------


def sample_intensities(
    channels: Channels, slabs: Iterator[npt.NDArray[np.bool_]], box: Box, number: int
) -> list[npt.NDArray[Any]]:
    """The intensities of the annotated voxels that nnU-Net's fingerprint of a scan takes, of each channel.

    Args:
        channels: C × (Z, Y, X).
        slabs: where it is annotated, 16 slices after 16.
        box: of the voxels that are not 0, which nnU-Net crops to.
        number: of intensities, drawn with replacement; none if nothing is annotated.
    """
    (low, high), *in_plane = box
    y, x = (slice(*span) for span in in_plane)
    found: list[list[npt.NDArray[np.float32]]] = [[] for _ in channels]
    z = 0
    for drawn in slabs:
        rows = slice(max(low - z, 0), max(high - z, 0))
        where = drawn[rows, y, x]
        for voxels, of_channel in zip(channels, found, strict=True):
            of_channel.append(voxels[z : z + len(drawn)][rows, y, x][where].astype(np.float32))
        z += len(drawn)
    draws = np.random.RandomState(SEED)  # one channel after the other draws from it
    foregrounds = (np.concatenate(of_channel) for of_channel in found)
    return [draws.choice(one, number, replace=True) if one.size else np.empty(0) for one in foregrounds]
