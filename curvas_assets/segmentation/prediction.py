"""Prediction of one patient by many models: what models share is done once, volumes leave in slabs.

nnU-Net's own preprocessing and sliding window are unchanged. nnU-Net gets the scan in the voxel order that the model
was trained on (`voxel_order`), whatever the scan's own. nnU-Net's export, which holds several whole volumes in float64, is
replaced by the same resampling done slab by slab (linear; nearest across coarse slices), followed by softmax and the
reversal of crop, transposition and voxel order.
"""

import json
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from curvas_assets.errors import SegmentationError
from curvas_assets.geometry import Grid
from curvas_assets.inputs import as_path
from curvas_assets.segmentation.requirements import (
    Told,
    recorded_order,
    require_classes,
    require_linear,
    require_plans,
)
from curvas_assets.segmentation.runtime import choose_device, nnunet_folders, pinned_threads, quiet
from curvas_assets.segmentation.training import BEST
from curvas_assets.study import Study, load_study
from curvas_assets.voxel_order import CANONICAL, DAMAGED, READERS, RECORD, Turn, open_image, read_voxels

if TYPE_CHECKING:
    import torch

SLAB = 16
"""Slices produced together: the depth of the store's chunks."""
MODELS_KEPT = 12
"""Networks kept between patients; more are loaded again."""
CGROUP = Path("/sys/fs/cgroup")
"""Folder in which Linux states how much memory this container may use."""
SoftmaxSlab = tuple[int, npt.NDArray[np.float32]]
"""z0, and probabilities (C, dz, Y, X) from slice z0 on."""


@dataclass
class PreparedScan:
    """One patient's scan, and what models with equal preprocessing share of it."""

    image: Path
    patient: str
    grid: Grid
    preprocessed: dict[str, tuple[Any, dict[str, Any]]] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Prediction:
    """A softmax volume that is computed as it is read, once.

    Args:
        classes: C, background included.
        grid: of the original scan.
        device: `cuda …`, `mps` or `cpu`.
        memory_bytes: host memory that was estimated before the start.
        slabs: (z0, probabilities float32 (C, dz, Y, X)) from the first slice to the last.
    """

    classes: int
    grid: Grid
    device: str
    memory_bytes: int
    slabs: Iterator[SoftmaxSlab] = field(repr=False)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(C, Z, Y, X)."""
        return self.classes, *self.grid.shape


@dataclass(frozen=True)
class _Model:
    """A network ready for nnU-Net's predictor, and the voxel order of the scans it knows (None: it does not say)."""

    name: str
    predictor: Any
    plans: Any
    configuration: Any
    dataset: dict[str, Any]
    order: str | None
    sharing: str


class Predictor:
    """Applies models to patients, one after the other, keeping what they share.

    Args:
        study: prediction settings and class names; the study itself, or its name or path for `load_study`.
        memory_bytes: what may be used; None asks the machine, and the container this runs in.
        tell: told before each prediction how much memory it is estimated to take.
        unrecorded_order: voxel order of the scans that models were trained on whose `dataset.json` does not say it: those
            made elsewhere, or by this platform before it reordered scans. Called when such a model is loaded; if it
            returns None, the model predicts LPS scans only.
    """

    def __init__(
        self,
        study: Study | str | Path,
        *,
        memory_bytes: int | None = None,
        tell: Callable[[str], None] = lambda message: None,
        unrecorded_order: Callable[[], str | None] = lambda: None,
    ):
        self.study = load_study(study)
        self.unrecorded_order = unrecorded_order
        self.memory_bytes = memory_bytes
        self.tell = tell
        self._models: OrderedDict[Path, _Model] = OrderedDict()

    def open(self, image: str | Path, patient: str) -> PreparedScan:
        """A patient's scan; nothing is decoded before the first model needs it.

        Raises:
            SegmentationError: there is no such file, it is no 3-D NIfTI, or its grid is sheared.
        """
        told: Any = {"attempted": "opening the scan", "subject": str(patient), "error": SegmentationError}
        opened = open_image(image, **told)
        return PreparedScan(Path(opened.get_filename()), str(patient), Grid.of(opened))

    def predict(self, scan: PreparedScan, model_folder: str | Path) -> Prediction:
        """Predict a patient by one model.

        Args:
            scan: from `open`.
            model_folder: as `train_model` filled it, or a stock nnU-Net model with one fold.

        Raises:
            SegmentationError: it is no opened scan; the model cannot be loaded, is not the study's, or does not say which
                voxel order it knows while the scan's is not the usual one; memory is too small or runs out; the error
                names the setting to change.
        """
        if not isinstance(scan, PreparedScan):
            found = f"a {type(scan).__name__} instead of an opened scan"
            raise SegmentationError("predicting", str(scan)[:80], found, "Give what Predictor.open returns.")
        model = self.load(model_folder)
        turn = self._turn(scan, model)
        needed = self._require_memory(scan, model)
        try:
            data, properties = self._preprocess(scan, model)
            logits = self._logits(model, data)
        except (MemoryError, RuntimeError) as error:
            raise _out_of_memory(scan, model, error) or error from error
        slabs = _explaining_memory(
            scan, model, _export(logits, model.plans, model.configuration, properties, scan.grid.shape, turn)
        )
        return Prediction(len(self.study.class_names), scan.grid, self._device_name(), needed, slabs)

    def rehearse(self, model_folder: str | Path, scratch: Path) -> None:
        """Take a made-up scan through all of a prediction except the network, to find plans that cannot be followed.

        Args:
            model_folder: as for `predict`.
            scratch: a folder for the scan's file.

        Raises:
            SegmentationError: as for `predict`; whatever nnU-Net raises, as it is.
        """
        import nibabel as nib
        import torch

        model = self.load(model_folder)
        voxels = np.linspace(-200, 200, 7 * 6 * 5, dtype=np.float32).reshape(7, 6, 5)
        length = 0.8 * max(model.configuration.spacing)
        nib.save(nib.Nifti1Image(voxels, np.diag([-length, -length, length, 1.0])), scratch / "rehearsal.nii.gz")
        scan = self.open(scratch / "rehearsal.nii.gz", "a rehearsal")
        turn = self._turn(scan, model)
        data, properties = self._preprocess(scan, model)
        logits = torch.zeros((len(self.study.class_names), *data.shape[1:]))
        for _, slab in _export(logits, model.plans, model.configuration, properties, scan.grid.shape, turn):
            assert slab.shape[1:] == scan.grid.shape, slab.shape

    def load(self, folder: str | Path) -> _Model:
        """The network of a model folder, ready.

        Raises:
            SegmentationError: files are missing, classes are not the study's, or something in its plans is unknown here.
        """
        folder = as_path(folder, attempted="loading the model", subject="the model", error=SegmentationError)
        import torch
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
        from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
        from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        if folder in self._models:
            self._models.move_to_end(folder)
            return self._models[folder]
        told = Told("loading the model", folder.name)
        try:
            (checkpoint_file,) = sorted(folder.glob(f"fold_*/{BEST}"))
            plans_json = json.loads((folder / "plans.json").read_text())
            dataset = json.loads((folder / "dataset.json").read_text())
            checkpoint = torch.load(checkpoint_file, map_location="cpu", weights_only=True)
            name = checkpoint["init_args"]["configuration"]
        except (OSError, ValueError, RuntimeError, LookupError, TypeError) as error:
            raise told.refused(
                f"{folder} lacks plans.json, dataset.json or exactly one fold_*/{BEST} ({type(error).__name__})",
                "Materialise trained_model again.",
            ) from error
        require_classes(self.study, dataset, told)
        require_plans(plans_json, name, told)
        reader = plans_json["image_reader_writer"]
        order = READERS[reader] or recorded_order(dataset, told) or self.unrecorded_order()
        device = choose_device(self.study.prediction.device)
        with nnunet_folders(), quiet():
            plans = PlansManager(plans_json)
            configuration = plans.get_configuration(name)
            network = nnUNetTrainer.build_network_architecture(
                plans,
                configuration,
                determine_num_input_channels(plans, configuration, dataset),
                plans.get_label_manager(dataset).num_segmentation_heads,
                enable_deep_supervision=False,
            )
            network.load_state_dict(checkpoint["network_weights"])
            predictor = nnUNetPredictor(
                tile_step_size=self.study.prediction.tile_step,
                use_gaussian=True,
                use_mirroring=self.study.prediction.mirroring,
                perform_everything_on_device=device.type == "cuda",
                device=device,
                allow_tqdm=False,
            )
            predictor.manual_initialization(
                network,
                plans,
                configuration,
                [checkpoint["network_weights"]],
                dataset,
                "nnUNetTrainer",
                checkpoint["inference_allowed_mirroring_axes"],
            )
        sharing = json.dumps(
            [
                configuration.configuration["spacing"],
                configuration.configuration["normalization_schemes"],
                configuration.configuration["resampling_fn_data_kwargs"],
                configuration.configuration["resampling_fn_data"],
                configuration.configuration["preprocessor_name"],
                configuration.configuration["use_mask_for_norm"],
                plans.foreground_intensity_properties_per_channel,
                plans_json["transpose_forward"],
                order,
            ],
            sort_keys=True,
        )
        self._models[folder] = _Model(folder.name, predictor, plans, configuration, dataset, order, sharing)
        while len(self._models) > MODELS_KEPT:
            self._models.popitem(last=False)
        return self._models[folder]

    def _turn(self, scan: PreparedScan, model: _Model) -> Turn:
        """From the scan's voxel order to the one that the model knows."""
        if model.order is None and scan.grid.orientation != CANONICAL:
            raise SegmentationError(
                "predicting",
                f"{scan.patient} by {model.name}",
                f"the scan's voxel order is {scan.grid.orientation}, and the model does not say on which order it was trained",
                f"Upload the model again with voxel_order ({RECORD} in its dataset.json), the order of its training scans "
                "such as LPS; or train it again: preprocessed_dataset, then trained_model.",
            )
        return Turn.to(model.order, scan.grid.affine)

    def _preprocess(self, scan: PreparedScan, model: _Model) -> tuple[Any, dict[str, Any]]:
        """nnU-Net's preprocessing, once per patient and distinct setting."""
        import torch

        if model.sharing not in scan.preprocessed:
            told: Any = {"attempted": "reading the scan", "subject": scan.patient, "error": SegmentationError}
            try:
                voxels, spacing = read_voxels(open_image(scan.image, **told), model.order)
            except DAMAGED as error:
                found = f"{scan.image.name} is damaged or cut short ({' '.join(str(error).split())[:200]})"
                raise SegmentationError("reading the scan", scan.patient, found, "Upload it again.") from error
            with nnunet_folders(), quiet():
                preprocessor = model.configuration.preprocessor_class(verbose=False)
                data, _, properties = preprocessor.run_case_npy(
                    voxels, None, {"spacing": spacing}, model.plans, model.configuration, model.dataset
                )
            scan.preprocessed[model.sharing] = (torch.from_numpy(np.ascontiguousarray(data, np.float32)), properties)
        return scan.preprocessed[model.sharing]

    def _logits(self, model: _Model, data: Any) -> "torch.Tensor":
        with pinned_threads(self.study.training.threads, model.predictor.device), nnunet_folders(), quiet():
            return model.predictor.predict_logits_from_preprocessed_data(data)

    def _require_memory(self, scan: PreparedScan, model: _Model) -> int:
        """The estimated memory, bytes; an error if less is free."""
        target_spacing_mm = model.configuration.configuration["spacing"]
        needed = estimate_memory(scan.grid, target_spacing_mm, classes=len(self.study.class_names))
        available = available_memory() if self.memory_bytes is None else self.memory_bytes
        found = (
            f"about {needed / 2**30:.1f} GiB of memory are needed for {' × '.join(map(str, scan.grid.shape))} voxels, "
            f"{available / 2**30:.1f} GiB are free"
        )
        subject = f"{scan.patient} by {model.name}"
        if needed > available:
            raise SegmentationError(
                "predicting",
                subject,
                found,
                "Give the step more memory, predict fewer patients side by side, or train with a coarser plans.spacing_mm.",
            )
        self.tell(f"{subject}: {found}")
        return needed

    def _device_name(self) -> str:
        import torch

        device = choose_device(self.study.prediction.device)
        return f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type


def estimate_memory(grid: Grid, target_spacing_mm: Sequence[float], classes: int) -> int:
    """Host memory that predicting one scan takes at most, beside torch and nnU-Net themselves, bytes.

    Preprocessing takes most: the scan as it is read, cropped and normalised, and nnU-Net's cubic resampling, which works
    on float64 copies. Measured at 866 × 512 × 512 from 1.0 to 1.1 mm: 9.0 GiB (10.0 with the process), 9.3 by this
    estimate. Then come the sliding window's logits with their weights (half precision, twice), and the slabs in flight.
    """
    voxels, spacing_mm = float(np.prod(grid.shape, dtype=float)), grid.spacing_mm
    target = [*([spacing_mm[0]] if len(target_spacing_mm) == 2 else []), *target_spacing_mm]
    network_voxels = voxels * float(np.prod(spacing_mm) / np.prod(target))
    slab_voxels = SLAB * float(np.prod(grid.shape[1:], dtype=float))
    preprocessing = 26 * voxels + 20 * network_voxels
    window = 4 * network_voxels + 2 * (2 * classes + 2) * network_voxels
    return int(max(preprocessing, window + 6 * 4 * classes * slab_voxels))


# Export --------------------------------------------------------------------------------------------------------------


def _export(
    logits: "torch.Tensor",
    plans: Any,
    configuration: Any,
    properties: Mapping[str, Any],
    shape: tuple[int, int, int],
    turn: Turn,
) -> Iterator[SoftmaxSlab]:
    """Logits on the network's grid to probabilities on the scan's, slab by slab along the scan's Z.

    The frame of the logits is the scan's, turned to the model's voxel order, with its axes permuted by `transpose_forward`
    and cropped to `bbox`.
    """
    import torch

    forward = list(plans.transpose_forward)
    box = [tuple(int(v) for v in span) for span in properties["bbox_used_for_cropping"]]
    cropped = [int(n) for n in properties["shape_after_cropping_and_before_resampling"]]
    modes = _resampling_modes(configuration, properties, forward)
    own = [forward.index(axis) for axis in turn.axes]  # the network's axis along each of the scan's
    back = [0, *(axis + 1 for axis in own)]
    slab_axis, depth = own[0], shape[0]
    start, stop = box[slab_axis]
    classes = logits.shape[0]
    order = [slab_axis, *(axis for axis in range(3) if axis != slab_axis)]
    with torch.inference_mode():
        for z0 in range(0, depth, SLAB):
            z1 = min(z0 + SLAB, depth)
            first, last = (depth - z1, depth - z0) if turn.flipped[0] else (z0, z1)
            slab = np.zeros((classes, z1 - z0, *shape[1:]), np.float32)
            slab[0] = 1
            lo, hi = max(first, start), min(last, stop)
            if lo < hi:
                part = logits
                for axis in order:
                    wanted = range(lo - start, hi - start) if axis == slab_axis else range(cropped[axis])
                    part = _resample_axis(part, axis + 1, wanted, cropped[axis], modes[axis])
                inside = torch.softmax(part.float(), 0).permute(back).numpy()
                where = [slice(lo - first, hi - first), *(slice(*box[axis]) for axis in own[1:])]
                slab[:, where[0], where[1], where[2]] = inside
            flips = tuple(slice(None, None, -1 if flipped else 1) for flipped in turn.flipped)
            yield z0, np.ascontiguousarray(slab[(slice(None), *flips)])


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


def _resample_axis(volume: "torch.Tensor", dim: int, wanted: range, size: int, mode: str) -> "torch.Tensor":
    """Some positions of one axis resampled from its present length to `size`: voxel centres aligned, edges repeated."""
    import torch

    length = volume.shape[dim]
    if length == size:
        return volume.narrow(dim, wanted.start, len(wanted)).float()
    position = (torch.arange(wanted.start, wanted.stop, dtype=torch.float64) + 0.5) * (length / size) - 0.5
    position = position.clamp(0, length - 1)
    if mode == "nearest":
        return volume.index_select(dim, torch.floor(position + 0.5).long().clamp(max=length - 1)).float()
    below = position.floor().long()
    above = (below + 1).clamp(max=length - 1)
    weight = (position - below).float().reshape([-1 if axis == dim else 1 for axis in range(volume.ndim)])
    low = volume.index_select(dim, below).float()
    return low + weight * (volume.index_select(dim, above).float() - low)


def available_memory(cgroup: Path = CGROUP) -> int:
    """Memory that may still be taken, bytes: what the machine has free, or what the container's limit leaves if that is less."""
    import psutil

    free = int(psutil.virtual_memory().available)
    try:
        limit, held = ((cgroup / name).read_text().strip() for name in ("memory.max", "memory.current"))
        pages = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    except OSError:
        return free
    # Pages of files are given back when memory runs short.
    return free if limit == "max" else min(free, int(limit) - int(held) + int(pages.get("inactive_file", 0)))


def _explaining_memory(scan: PreparedScan, model: _Model, slabs: Iterator[SoftmaxSlab]) -> Iterator[SoftmaxSlab]:
    """The same slabs; an error that says what to do if memory runs out while they are made."""
    try:
        yield from slabs
    except (MemoryError, RuntimeError) as error:
        raise _out_of_memory(scan, model, error) or error from error


def _out_of_memory(scan: PreparedScan, model: _Model, error: BaseException) -> SegmentationError | None:
    text = str(error).lower()
    if not isinstance(error, MemoryError) and "out of memory" not in text and "can't allocate memory" not in text:
        return None
    if model.predictor.device.type == "cuda":
        import torch

        torch.cuda.empty_cache()  # free it for the next cells
    return SegmentationError(
        "predicting",
        f"{scan.patient} by {model.name}",
        f"memory did not suffice ({type(error).__name__})",
        "Give the step more memory (host or GPU), or set prediction.device: cpu for this patient.",
    )
