"""Prediction of one patient by many models: what models share is done once, volumes leave in slabs.

nnU-Net's sliding window does it (`sliding_window`), and `preprocessing` gives it what nnU-Net's would, to the bit. nnU-Net
gets the scan in the voxel order that the model was trained on (`voxel_order`), whatever the scan's own. What happens to the
logits is the business of `export`. Preprocessing, sliding window and export of different volumes may run side by side, each
in one thread.

A variant of a model is one of the mirrored predictions that nnU-Net averages (`flip0` …, see `axes_of`), or a prediction by
earlier weights of its training (`snapshot1` …).
"""

import json
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from curvas_assets.codes import DEPTH
from curvas_assets.errors import SegmentationError
from curvas_assets.geometry import Grid, by
from curvas_assets.inputs import as_path
from curvas_assets.machine import available_memory
from curvas_assets.predictors import FLIP, SNAPSHOT
from curvas_assets.segmentation.export import Export, SoftmaxSlab
from curvas_assets.segmentation.preprocessing import (
    NORMALISING_BYTES,
    SLICES_IN_FLIGHT,
    is_known,
    looks_at_scans,
    preprocess,
)
from curvas_assets.segmentation.requirements import Told, recorded_order, require_classes, require_plans
from curvas_assets.segmentation.runtime import (
    choose_device,
    nnunet_folders,
    pinned_threads,
    preprocessing_threads,
    quiet,
)
from curvas_assets.segmentation.scans import require_one_grid
from curvas_assets.segmentation.training import BEST, SNAPSHOT_FILE
from curvas_assets.storage.encoding import EncodedSlab
from curvas_assets.study import Study, load_study
from curvas_assets.voxel_order import CANONICAL, DAMAGED, READERS, RECORD, Turn, open_image, read_channels

if TYPE_CHECKING:
    import torch

WEIGHTS_SHARE = 0.2
"""Part of the memory in which weights are kept from patient to patient; those of further models are read again."""
Slab = TypeVar("Slab")


@dataclass
class PreparedScan:
    """One patient's scan, and what models with equal preprocessing share of it.

    Args:
        images: the file of each channel.
        patient: whose it is.
        grid: of the first file.
        preprocessed: `Predictor.sharing` of a model → the network's input and nnU-Net's properties. Whoever needs an
            entry no longer may remove it; it is made again if it is asked for.
    """

    images: tuple[Path, ...]
    patient: str
    grid: Grid
    preprocessed: dict[str, tuple[Any, dict[str, Any]]] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class StepMemory:
    """Host memory that the steps of one prediction take at most, beside torch, nnU-Net and the weights; bytes.

    Args:
        preparing: while the scan is preprocessed.
        prepared: the network's input, from then on until the last model has seen it.
        window: the sliding window, beside its input.
        export: from the logits to the stored volume.
        slabs: those of the volume that are in flight, a part of `export`.
    """

    preparing: int
    prepared: int
    window: int
    export: int
    slabs: int

    @property
    def after_preparing(self) -> int:
        """What one volume by itself still takes when the network's input is there."""
        return self.window + self.slabs

    @property
    def alone(self) -> int:
        """What one volume takes if nothing else is under way."""
        return max(self.preparing, self.prepared + self.after_preparing)


@dataclass(frozen=True)
class Prediction:
    """A softmax volume that is computed as it is read, once: either `slabs` or `encoded`.

    Args:
        classes: C, background included.
        grid: of the original scan.
        device: `cuda …`, `mps` or `cpu`.
        memory_bytes: host memory that was estimated before the start.
        slabs: (z0, probabilities float32 (C, dz, Y, X)) from the first slice to the last.
        encoded: (z0, codes of 16 slices) for `SoftmaxWriter.write_encoded`, resampled and encoded on the GPU if the
            network runs on one. A SoftmaxError if the network's output is no distribution over the classes.
    """

    classes: int
    grid: Grid
    device: str
    memory_bytes: int
    slabs: Iterator[SoftmaxSlab] = field(repr=False)
    encoded: Iterator[tuple[int, EncodedSlab]] = field(repr=False)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(C, Z, Y, X)."""
        return self.classes, *self.grid.shape


@dataclass(frozen=True)
class _Model:
    """A model without its weights: nnU-Net's predictor with a network that models of equal architecture share, and the
    voxel order of the scans it knows (None: it does not say). Of a flip, the axes along which patches are mirrored.
    """

    name: str
    predictor: Any
    plans: Any
    configuration: Any
    dataset: dict[str, Any]
    order: str | None
    sharing: str
    checkpoint: Path = Path()
    flipped: tuple[int, ...] | None = None


class Predictor:
    """Applies models to patients, keeping what they share.

    `load` and `prepare` may run in another thread than `predict`, and the slabs of a prediction may be read in a third.

    Args:
        study: prediction settings and class names; the study itself, or its name or path for `load_study`.
        memory_bytes: what may be used; None asks the machine, and the container this runs in.
        tell: told before each prediction how much memory it is estimated to take.
        unrecorded_order: voxel order of the scans that models were trained on whose `dataset.json` does not say it: those
            made elsewhere, or by this platform before it reordered scans. Called when such a model is loaded; if it
            returns None, the model predicts LPS scans only.
        export_device: torch's name of the device that resamples and encodes volumes; None takes the network's GPU, and
            without one the CPU.
    """

    def __init__(
        self,
        study: Study | str | Path,
        *,
        memory_bytes: int | None = None,
        tell: Callable[[str], None] = lambda message: None,
        unrecorded_order: Callable[[], str | None] = lambda: None,
        export_device: str | None = None,
    ):
        self.study = load_study(study)
        self.unrecorded_order = unrecorded_order
        self.memory_bytes = memory_bytes
        self.tell = tell
        self.export_device = export_device
        self._models: dict[tuple[Path, str], _Model] = {}
        self._networks: dict[str, Any] = {}
        self._weights: dict[Path, Mapping[str, torch.Tensor]] = {}
        self._room_for_weights: float | None = None
        self._loading = threading.Lock()

    def open(self, image: str | Path | Sequence[str | Path], patient: str) -> PreparedScan:
        """A patient's scan; nothing is decoded before the first model needs it.

        Args:
            image: the file, or of a study with several channels one for each, in their order.
            patient: whose it is.

        Raises:
            SegmentationError: there is no such file, it is no 3-D NIfTI, its grid is sheared, or channels are missing or lie on
                other voxels than the first.
        """
        told: Any = {"attempted": "opening the scan", "subject": str(patient), "error": SegmentationError}
        files = list(image) if isinstance(image, list | tuple) else [image]
        wanted = [channel.name for channel in self.study.images]
        if len(files) != len(wanted):
            found = f"{len(files)} images, and the study has {len(wanted)}: {', '.join(wanted)}"
            raise SegmentationError(told["attempted"], told["subject"], found, "Give one file of each, in this order.")
        opened = [open_image(file, **told) for file in files]
        paths, grids = [Path(one.get_filename()) for one in opened], [Grid.of(one) for one in opened]
        for path, grid in zip(paths[1:], grids[1:], strict=True):
            require_one_grid(self.study, grids[0], grid, (paths[0].name, path.name), str(patient))
        return PreparedScan(tuple(paths), str(patient), grids[0])

    def prepare(
        self, scan: PreparedScan, model_folder: str | Path, *, variant: str = "", checked: bool = False
    ) -> None:
        """Preprocess a patient for a model, unless that was done for one with equal preprocessing.

        Args:
            scan: from `open`.
            model_folder: as for `predict`.
            variant: as for `predict`.
            checked: whether the caller has made sure that memory suffices.

        Raises:
            SegmentationError: as for `predict`.
        """
        model = self.load(model_folder, variant)
        self._turn(scan, model)
        if model.sharing not in scan.preprocessed:
            self._require_memory(scan, model, checked, prepared=False)
            with _explaining_memory(scan, model):
                self._preprocess(scan, model)

    def predict(
        self,
        scan: PreparedScan,
        model_folder: str | Path,
        *,
        variant: str = "",
        checked: bool = False,
        proceed: Callable[[], None] = lambda: None,
    ) -> Prediction:
        """Predict a patient by one model.

        Args:
            scan: from `open`.
            model_folder: as `train_model` filled it, or a stock nnU-Net model with one fold.
            variant: `flip3` for this mirrored prediction alone, whatever `prediction.mirroring` says; `snapshot1` for these
                earlier weights. Without it, the model as the study predicts with it.
            checked: whether the caller has made sure that memory suffices.
            proceed: called before each tile; what it raises ends the prediction.

        Raises:
            SegmentationError: it is no opened scan; the model cannot be loaded, is not the study's, has no such variant, or
                does not say which voxel order it knows while the scan's is not the usual one; memory is too small or runs
                out; the error names the setting to change.
        """
        if not isinstance(scan, PreparedScan):
            found = f"a {type(scan).__name__} instead of an opened scan"
            raise SegmentationError("predicting", str(scan)[:80], found, "Give what Predictor.open returns.")
        model = self.load(model_folder, variant)
        turn = self._turn(scan, model)
        prepared = scan.preprocessed.get(model.sharing)  # held from here on, whoever removes the entry
        needed = self._require_memory(scan, model, checked, prepared=prepared is not None)
        with _explaining_memory(scan, model):
            data, properties = prepared or self._preprocess(scan, model)
            logits = self._logits(model, data, proceed)
        subject = f"{model.name} of {scan.patient}"
        export = Export(logits, model.plans, model.configuration, properties, scan.grid.shape, turn, subject)
        device = self.export_device or self._gpu()
        return Prediction(
            len(self.study.class_names),
            scan.grid,
            self._device_name(),
            needed,
            _with_memory_explained(scan, model, export.slabs()),
            _with_memory_explained(scan, model, export.encoded(device)),
        )

    def sharing(self, model_folder: str | Path, variant: str = "") -> str:
        """What models have in common whose preprocessing gives equal inputs: the key in `PreparedScan.preprocessed`."""
        return self.load(model_folder, variant).sharing

    def memory(self, scan: PreparedScan, model_folder: str | Path, variant: str = "") -> StepMemory:
        """What a prediction is estimated to take, step by step."""
        return self._memory(scan, self.load(model_folder, variant))

    def _memory(self, scan: PreparedScan, model: _Model) -> StepMemory:
        spacing_mm, ours = model.configuration.configuration["spacing"], is_known(model.configuration)
        return estimate_steps(
            scan.grid,
            spacing_mm,
            len(self.study.class_names),
            preprocessing_is_ours=ours,
            channels=len(scan.images),
            whole=looks_at_scans(model.configuration),
        )

    def pinned(self) -> AbstractContextManager[int]:
        """The number of torch's threads, fixed for a block in which threads of this process predict.

        A thread takes the process's number at its first call of torch and then sets it again for all, which would change
        the sums of a network that has just pinned another.
        """
        return pinned_threads(self.study.training.threads, choose_device(self.study.prediction.device))

    @property
    def runs_on_gpu(self) -> bool:
        """Whether the network leaves the CPU to others."""
        return choose_device(self.study.prediction.device).type != "cpu"

    def available_bytes(self) -> int:
        """Memory that may be taken: what was given, or what is free now."""
        return available_memory() if self.memory_bytes is None else self.memory_bytes

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
        files = [scratch / f"rehearsal_{number}.nii.gz" for number in range(len(self.study.images))]
        for file in files:
            nib.save(nib.Nifti1Image(voxels, np.diag([-length, -length, length, 1.0])), file)
        scan = self.open(files, "a rehearsal")
        turn = self._turn(scan, model)
        data, properties = self._preprocess(scan, model)
        logits = torch.zeros((len(self.study.class_names), *data.shape[1:]))
        for _, slab in Export(logits, model.plans, model.configuration, properties, scan.grid.shape, turn).slabs():
            assert slab.shape[1:] == scan.grid.shape, slab.shape

    def load(self, folder: str | Path, variant: str = "") -> _Model:
        """The network of a model folder, ready, and its weights at hand as far as there is room for them.

        Args:
            folder: as for `predict`.
            variant: as for `predict`. A flip has the weights of its model, a snapshot its own.

        Raises:
            SegmentationError: files are missing, classes are not the study's, something in its plans is unknown here, or
                the model has no such variant.
            RuntimeError: the weights do not fit the network.
        """
        folder = as_path(folder, attempted="loading the model", subject="the model", error=SegmentationError)
        if variant.startswith(FLIP):
            model = self.load(folder)
            return replace(model, name=f"{model.name}_{variant}", flipped=_flipped(model, variant))
        known = self._models.get((folder, variant))
        if known is not None:
            return known
        with self._loading:
            if (folder, variant) not in self._models:
                self._models[folder, variant] = self._read(folder, variant)
            return self._models[folder, variant]

    def _read(self, folder: Path, snapshot: str) -> _Model:
        import torch
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        from curvas_assets.segmentation.sliding_window import StudyPredictor

        told = Told("loading the model", folder.name)
        try:
            (checkpoint_file,) = sorted(folder.glob(f"fold_*/{BEST}"))
            checkpoint_file = _snapshot(folder, checkpoint_file, snapshot) if snapshot else checkpoint_file
            plans_json = json.loads((folder / "plans.json").read_text())
            dataset = json.loads((folder / "dataset.json").read_text())
            checkpoint = torch.load(checkpoint_file, map_location="cpu", weights_only=True)
            name = checkpoint["init_args"]["configuration"]
        except (OSError, ValueError, RuntimeError, LookupError, TypeError, EOFError, UnpicklingError) as error:
            raise told.refused(
                f"{folder} lacks plans.json, dataset.json or exactly one fold_*/{BEST} ({type(error).__name__})",
                "Materialise trained_model again.",
            ) from error
        require_classes(self.study, dataset, told)
        require_plans(plans_json, name, told, channels=len(self.study.images))
        reader = plans_json["image_reader_writer"]
        order = READERS[reader] or recorded_order(dataset, told) or self.unrecorded_order()
        device = choose_device(self.study.prediction.device)
        with nnunet_folders(), quiet():
            plans = PlansManager(plans_json)
            configuration = plans.get_configuration(name)
            predictor = StudyPredictor(
                tile_step_size=self.study.prediction.tile_step,
                use_gaussian=True,
                use_mirroring=self.study.prediction.mirroring,
                perform_everything_on_device=device.type == "cuda",
                device=device,
                allow_tqdm=False,
            )
            key, network = self._network(plans, configuration, dataset)
            predictor.manual_initialization(
                network,
                plans,
                configuration,
                [],
                dataset,
                "nnUNetTrainer",
                checkpoint["inference_allowed_mirroring_axes"],
            )
            self._networks[key] = predictor.network
        _require_fitting(predictor.network, checkpoint["network_weights"])
        self._keep(checkpoint_file, checkpoint["network_weights"])
        sharing = _sharing(plans_json, plans, configuration, order)
        name = f"{folder.name}_{snapshot}" if snapshot else folder.name
        return _Model(name, predictor, plans, configuration, dataset, order, sharing, checkpoint_file)

    def _network(self, plans: Any, configuration: Any, dataset: Mapping[str, Any]) -> tuple[str, Any]:
        """The network of an architecture, built once, and the architecture's key. Its weights are those of the last user."""
        from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
        from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels

        channels = determine_num_input_channels(plans, configuration, dataset)
        heads = plans.get_label_manager(dataset).num_segmentation_heads
        names = ("network_arch_class_name", "network_arch_init_kwargs", "network_arch_init_kwargs_req_import")
        key = json.dumps([*(getattr(configuration, name) for name in names), channels, heads], sort_keys=True)
        if key not in self._networks:
            self._networks[key] = nnUNetTrainer.build_network_architecture(
                plans, configuration, channels, heads, enable_deep_supervision=False
            )
        return key, self._networks[key]

    def _keep(self, checkpoint: Path, weights: Mapping[str, "torch.Tensor"]) -> None:
        """Keep weights for the next patient if there is room. Models come in the same order for each patient, so the first
        ones are kept: to forget the oldest would be to read each of them again each time.
        """
        if self._room_for_weights is None:
            self._room_for_weights = WEIGHTS_SHARE * self.available_bytes()
        size = sum(one.numel() * one.element_size() for one in weights.values())
        if size <= self._room_for_weights:
            self._weights[checkpoint] = weights
            self._room_for_weights -= size

    def _weights_of(self, model: _Model) -> Mapping[str, "torch.Tensor"]:
        import torch

        if model.checkpoint in self._weights:
            return self._weights[model.checkpoint]
        return torch.load(model.checkpoint, map_location="cpu", weights_only=True)["network_weights"]

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

        found = scan.preprocessed.get(model.sharing)
        if found is None:
            told: Any = {"attempted": "reading the scan", "subject": scan.patient, "error": SegmentationError}
            try:
                channels, spacing = read_channels([open_image(image, **told) for image in scan.images], model.order)
            except DAMAGED as error:
                named = " or ".join(image.name for image in scan.images)
                damage = f"{named} is damaged or cut short ({' '.join(str(error).split())[:200]})"
                raise SegmentationError("reading the scan", scan.patient, damage, "Upload it again.") from error
            with nnunet_folders(), quiet():
                data, _, properties = preprocess(
                    channels,
                    None,
                    {"spacing": spacing},
                    model.plans,
                    model.configuration,
                    model.dataset,
                    threads=preprocessing_threads(),
                )
            found = torch.from_numpy(np.ascontiguousarray(data, np.float32)), properties
            scan.preprocessed[model.sharing] = found
        return found  # another thread may have removed the entry

    def _logits(self, model: _Model, data: Any, proceed: Callable[[], None]) -> "torch.Tensor":
        predictor = model.predictor
        predictor.list_of_parameters, predictor.flipped = [self._weights_of(model)], model.flipped
        before_each_tile = predictor.network.register_forward_pre_hook(lambda *_: proceed())
        try:
            with pinned_threads(self.study.training.threads, predictor.device), nnunet_folders(), quiet():
                return predictor.predict_logits_from_preprocessed_data(data)
        finally:
            before_each_tile.remove()
            predictor.list_of_parameters, predictor.flipped = [], None

    def _require_memory(self, scan: PreparedScan, model: _Model, checked: bool, *, prepared: bool) -> int:
        """The estimated memory of all steps, bytes; an error if less is free than those to come take, unless the caller has
        looked at it.
        """
        memory = self._memory(scan, model)
        needed, available = memory.after_preparing if prepared else memory.alone, self.available_bytes()
        found = (
            f"about {needed / 2**30:.1f} GiB of memory are needed for {by(scan.grid.shape)} voxels"
            f"{' that are preprocessed' if prepared else ''}, {available / 2**30:.1f} GiB are free"
        )
        subject = f"{scan.patient} by {model.name}"
        if needed > available and not checked:
            raise SegmentationError(
                "predicting",
                subject,
                found,
                "Give the step more memory, predict fewer patients side by side, or train with a coarser plans.spacing_mm.",
            )
        self.tell(f"{subject}: {found}")
        return memory.alone

    def _gpu(self) -> str | None:
        device = choose_device(self.study.prediction.device)
        return str(device) if device.type == "cuda" else None

    def _device_name(self) -> str:
        import torch

        device = choose_device(self.study.prediction.device)
        return f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type


def _sharing(plans_json: Mapping[str, Any], plans: Any, configuration: Any, order: str | None) -> str:
    """Everything on which the input of a network depends beside the scan."""
    names = (
        *("spacing", "normalization_schemes", "resampling_fn_data_kwargs", "resampling_fn_data"),
        *("preprocessor_name", "use_mask_for_norm"),
    )
    statistics = plans.foreground_intensity_properties_per_channel
    parts = [configuration.configuration[name] for name in names]
    return json.dumps([*parts, statistics, plans_json["transpose_forward"], order], sort_keys=True)


def axes_of(flip: int) -> tuple[int, ...]:
    """The axes of the network's patch that a flip mirrors: axis i if bit i of its number is set. Axis 0 is the first spatial axis
    of the network's input (z, unless the plans transpose axes; of a 2-D network y). Flip 0 mirrors none.

    >>> [axes_of(flip) for flip in range(8)]
    [(), (0,), (1,), (0, 1), (2,), (0, 2), (1, 2), (0, 1, 2)]
    """
    return tuple(axis for axis in range(flip.bit_length()) if flip >> axis & 1)


def _flipped(model: _Model, variant: str) -> tuple[int, ...]:
    """The axes of a flip; a SegmentationError if the model was not trained with patches that are mirrored along them."""
    axes = axes_of(int(variant.removeprefix(FLIP)))
    trained = tuple(model.predictor.allowed_mirroring_axes or ())
    if not set(axes) <= set(trained):
        raise SegmentationError(
            "predicting",
            f"{model.name}_{variant}",
            f"it mirrors patches along the axes {list(axes)}, and the model was trained with patches mirrored along "
            f"{list(trained) or 'none'}",
            "Train it with training.mirroring: true, or leave the model out of cheap_ensembles.flips.",
        )
    return axes


def _snapshot(folder: Path, best: Path, snapshot: str) -> Path:
    """The checkpoint of a snapshot; a SegmentationError if the model did not keep it."""
    wanted = best.with_name(SNAPSHOT_FILE.format(int(snapshot.removeprefix(SNAPSHOT))))
    if wanted.is_file():
        return wanted
    kept = len(list(best.parent.glob(SNAPSHOT_FILE.format("*"))))
    raise SegmentationError(
        "loading the snapshot",
        f"{folder.name}_{snapshot}",
        f"the model keeps {kept or 'no'} snapshots: it was made elsewhere, or its training ended after too few epochs",
        "Train it here with training.snapshots, for more epochs or with more patience; or leave the model out of "
        "cheap_ensembles.snapshots.",
    )


def _require_fitting(network: Any, weights: Mapping[str, Any]) -> None:
    """A RuntimeError unless the network can load these weights; it is not touched, because it may be at work."""
    own = getattr(network, "_orig_mod", network).state_dict()
    if strange := sorted(set(own) ^ set(weights)):
        raise RuntimeError(f"weights and network differ in {', '.join(strange[:5])}")
    for name, part in own.items():
        if part.shape != weights[name].shape:
            raise RuntimeError(f"{name} has the shape {tuple(weights[name].shape)}, not {tuple(part.shape)}")


def estimate_memory(
    grid: Grid,
    target_spacing_mm: Sequence[float],
    classes: int,
    *,
    preprocessing_is_ours: bool = True,
    channels: int = 1,
    whole: bool = False,
) -> int:
    """Host memory that predicting one scan takes at most, beside torch and nnU-Net themselves, bytes.

    The sliding window takes most: the logits with their weights (half precision, twice) beside the network's input; then
    come the slabs in flight. Only a preprocessing that nnU-Net does itself (`preprocessing.is_known`) takes more.

    Args:
        grid: of the scan.
        target_spacing_mm: of the network's input.
        classes: C, background included.
        preprocessing_is_ours: whether `preprocessing` does it without nnU-Net.
        channels: images that the network sees together.
        whole: whether the normalisation of one of them looks at the whole scan.
    """
    return estimate_steps(
        grid, target_spacing_mm, classes, preprocessing_is_ours=preprocessing_is_ours, channels=channels, whole=whole
    ).alone


def estimate_steps(
    grid: Grid,
    target_spacing_mm: Sequence[float],
    classes: int,
    *,
    preprocessing_is_ours: bool = True,
    channels: int = 1,
    whole: bool = False,
) -> StepMemory:
    """The same, step by step, as far as steps of different volumes run side by side.

    Preprocessing holds the scan as it is read, at most in float64 twice (nibabel scales it, then shifts it), then in
    float32, perhaps with its axes changed, beside the result and the slices in flight (`benchmarks.intake` measures it).
    Channels are read one after the other and kept in float32.
    nnU-Net's own resamples float64 copies: 9.0 GiB measured at 866 × 512 × 512 from 1.0 to 1.1 mm, 9.3 by this estimate.
    A stored volume takes less than a byte a voxel; it is in memory twice when it is sent.
    """
    voxels, spacing_mm = float(np.prod(grid.shape, dtype=float)), grid.spacing_mm
    target = [*([spacing_mm[0]] if len(target_spacing_mm) == 2 else []), *target_spacing_mm]
    network_voxels = voxels * float(np.prod(spacing_mm) / np.prod(target))
    slices = SLICES_IN_FLIGHT * 8 * float(np.prod(grid.shape[1:], dtype=float))
    in_flight = 6 * 4 * classes * DEPTH * int(np.prod(grid.shape[1:], dtype=np.int64))
    others, result = 4 * (channels - 1) * voxels, 4 * (channels + (channels > 1)) * network_voxels
    ours = max(16 * voxels + others, (8 + NORMALISING_BYTES * whole) * voxels + others + result + slices)
    return StepMemory(
        preparing=int(ours if preprocessing_is_ours else channels * (26 * voxels + 20 * network_voxels)),
        prepared=int(4 * channels * network_voxels),
        window=int(2 * (2 * classes + 2) * network_voxels),
        export=int(2 * classes * network_voxels + 2 * voxels) + in_flight,
        slabs=in_flight,
    )


@contextmanager
def _explaining_memory(scan: PreparedScan, model: _Model) -> Generator[None]:
    """An error that says what to do if memory runs out in a block."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        raise _out_of_memory(scan, model, error) or error from error


def _with_memory_explained(scan: PreparedScan, model: _Model, slabs: Iterator[Slab]) -> Iterator[Slab]:
    """The same slabs; an error that says what to do if memory runs out while they are made."""
    with _explaining_memory(scan, model):
        yield from slabs


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
