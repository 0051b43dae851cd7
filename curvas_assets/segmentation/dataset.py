"""nnU-Net's dataset of one training label, an annotator or a fusion of several: fingerprint, plans, preprocessed cases.

nnU-Net gets every scan in one voxel order (`voxel_order.CANONICAL`), which `dataset.json` records and the model inherits.
Planning is nnU-Net's; its analysis and preprocessing of each case are done here, to the bit, without its pools of processes
and its copies (`preprocessing`). Scans are read by `scans`.

For `majority` and `staple`, annotators are fused on the scan's own voxels, and the dataset is like any other. For `random`
and `soft` it keeps a channel of labels for each annotator of a patient, as `several_annotators` trains on them.
"""

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from curvas_assets.codes import DEPTH
from curvas_assets.disk import told_of_disk
from curvas_assets.errors import CurvasError, SegmentationError
from curvas_assets.geometry import by
from curvas_assets.inputs import as_path, existing_file, made_folder
from curvas_assets.machine import available_memory
from curvas_assets.predictors import KEPT_APART, Fusion
from curvas_assets.segmentation.requirements import FUSED, channel_names
from curvas_assets.segmentation.runtime import PLANS_NAME, dataset_name, nnunet_folders, preprocessing_threads, quiet
from curvas_assets.segmentation.scans import Images, TrainingScan, TrainingScans, unusable
from curvas_assets.storage.labels import PackedLabels
from curvas_assets.study import FOLDS, SPLIT_SEED, Plans, Study, load_study
from curvas_assets.voxel_order import CANONICAL, DAMAGED, RECORD

ANISOTROPIC = 1.3
"""Where voxels are this much longer along an axis, the first stage does not convolve along it (1×3×3)."""


@dataclass(frozen=True)
class DatasetFacts:
    """What was prepared, for people and for the ledger.

    `digest` changes when plans, fingerprint or a preprocessed voxel does; the files' bytes vary from run to run (blosc2).
    """

    cases: int
    shapes: list[list[int]]
    spacing_mm: list[float]
    patch_size: list[int]
    batch_size: int
    planner: str
    configuration: str
    intensity: dict[str, float]
    """Of the annotated voxels of the first channel; the fingerprint has all channels."""
    seconds: float
    digest: str
    voxel_order: str | None = None
    """Of the scans as nnU-Net was given them, such as LPS; None: unknown, of a dataset made elsewhere."""

    def as_dict(self) -> dict[str, Any]:
        """The facts as JSON and metadata hold them: field → value."""
        return asdict(self)


def prepare_dataset(
    study: Study | str | Path,
    annotator: str,
    scans: Mapping[str, Sequence[str | Path]],
    folder: str | Path,
    *,
    all_annotations: Mapping[str, Sequence[str | Path]] | None = None,
    drawn_by: Mapping[str, Sequence[str]] | None = None,
    on_progress: Callable[[int, int, str], None] | None = None,
    read: TrainingScans | None = None,
) -> DatasetFacts:
    """Fingerprint, plan and preprocess the training patients as one annotator drew them, or as several did.

    Of several, intensities are sampled where any of them sees an organ, as with `plans.shared_intensity_statistics`.

    Args:
        study: plans and training settings; the study itself, or its name or path for `load_study`.
        annotator: whose label maps these are, or a fusion of several (`Study.fusion`).
        scans: patient → (image, annotation), NIfTI files on the same voxels of the world, each in any voxel order; of a study
            with several channels an image of each, in their order. For a fusion: (image, annotation of each who annotated
            this patient).
        folder: receives `dataset.json`, `dataset_fingerprint.json`, `nnUNetPlans.json`, `splits_final.json` and the
            preprocessed cases; a stock nnU-Net can use it as a folder of `nnUNet_preprocessed`.
        all_annotations: patient → every annotator's file; needed for `plans.shared_intensity_statistics`.
        drawn_by: patient → the names of those annotators; needed for a fusion, and recorded in `dataset.json`.
        on_progress: told (done, total, patient) after each case.
        read: scans that are read once for the datasets of several annotators; if None, for this one alone.

    Raises:
        SegmentationError: there is no patient, a file is not there, nnU-Net cannot read one, an annotation lies elsewhere
            than its image, plans do not fit the study's settings, or the folder cannot be made.
        DiskError: the disk is full; says how much is needed.
        StudyError: there is no such study.
    """
    study = load_study(study)
    told: Any = {"attempted": "preparing the dataset", "subject": f"dataset of {annotator}", "error": SegmentationError}
    if not isinstance(annotator, str) or not annotator:
        remedy = "Give the annotator's name in the study."
        raise SegmentationError(told["attempted"], told["subject"], f"annotator {annotator!r:.80}", remedy)
    if not isinstance(scans, Mapping) or not isinstance(all_annotations, Mapping | None):
        remedy = "Give mappings: patient → (image, annotation), and patient → every annotation."
        raise SegmentationError(told["attempted"], told["subject"], f"a {type(scans).__name__}", remedy)
    if not scans:
        raise SegmentationError(
            "preparing the dataset", annotator, "no training patient", "Name patients in the study's training sets."
        )
    fusion, channels = study.fusion(annotator), len(study.images)
    files = {p: _split(_files(p, of, None if fusion else channels + 1), channels) for p, of in scans.items()}
    names = {patient: list((drawn_by or {}).get(patient, ())) for patient in files} if fusion else {}
    _require_names(told, files, names)
    annotations = {patient: _files(patient, files) for patient, files in (all_annotations or {}).items()}
    folder = as_path(folder, **told)
    made_folder(folder.parent, **told)
    start = time.perf_counter()
    name = dataset_name(annotator)
    attempted, subject = told["attempted"], told["subject"]
    with (
        tempfile.TemporaryDirectory(prefix="nnunet-", dir=folder.parent) as scratch,
        told_of_disk(attempted, subject, folder.parent, lambda: _needed_bytes(files, kept_apart=fusion in KEPT_APART)),
    ):
        raw, preprocessed = Path(scratch, "raw"), Path(scratch, "preprocessed")
        scans_read = TrainingScans(study, Path(scratch, "scans")) if read is None else read
        with nnunet_folders(raw=raw, preprocessed=preprocessed, results=Path(scratch, "results")):
            cases = [
                _Case(p, images, drawn, fusion, annotations.get(p), scans_read) for p, (images, drawn) in files.items()
            ]
            made = preprocessed / name
            made.mkdir(parents=True)
            fingerprint = _fingerprint(study, annotator, cases)
            _write_json(made / "dataset_fingerprint.json", fingerprint)
            dataset = _write_raw(study, cases, raw / name)
            plans = _plan(study.plans, name, annotator)
            _write_json(made / f"{PLANS_NAME}.json", plans)
            digests = _preprocess(study, cases, plans, dataset, made, on_progress)
            if fusion:
                of = {p: {"annotators": names[p], "labels": digests[p]} for p in sorted(names)}
                dataset[FUSED] = {"rule": fusion, "patients": of}
            _write_json(made / "splits_final.json", splits_of(sorted(files), study))
            _write_json(made / "dataset.json", dataset)
            _move(made, folder)
    configuration = plans["configurations"][study.plans.configuration]
    return DatasetFacts(
        cases=len(cases),
        shapes=[list(map(int, shape)) for shape in fingerprint["shapes_after_crop"]],
        spacing_mm=list(map(float, configuration["spacing"])),
        patch_size=list(map(int, configuration["patch_size"])),
        batch_size=int(configuration["batch_size"]),
        planner=study.plans.planner,
        configuration=study.plans.configuration,
        intensity=fingerprint["foreground_intensity_properties_per_channel"]["0"],
        seconds=round(time.perf_counter() - start, 3),
        digest=dataset_digest(folder),
        voxel_order=CANONICAL,
    )


def dataset_digest(folder: Path) -> str:
    """A digest of plans, fingerprint, labels and every preprocessed array."""
    import blosc2

    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.json")):
        digest.update(path.name.encode() + content_of(path))
    for path in sorted(folder.rglob("*.b2nd")):
        array: Any = blosc2.open(str(path), mode="r")
        digest.update(f"{path.name} {array.dtype} {array.shape}".encode())
        depth = int(array.chunks[1])
        for channel in range(array.shape[0]):
            for z in range(0, array.shape[1], depth):
                slab: Any = np.ascontiguousarray(array[channel, z : z + depth])
                digest.update(slab)
    return digest.hexdigest()[:16]


def content_of(path: Path) -> bytes:
    """A file of a dataset for its digest: without the recorded voxel order, because the arrays themselves have it.

    So a dataset of LPS scans has the same digest as before orders were recorded, and makes no model stale.
    """
    content = path.read_bytes()
    if path.name != "dataset.json" or RECORD.encode() not in content:
        return content
    return json.dumps({k: v for k, v in json.loads(content).items() if k != RECORD}, indent=1).encode()


Files = tuple[Images, list[Path]]
"""Images of a patient, and label maps."""


def _split(files: list[Path], channels: int) -> Files:
    return tuple(files[:channels]), files[channels:]


def _require_names(told: dict[str, Any], files: Mapping[str, Files], names: Mapping[str, list[str]]) -> None:
    """Require of a fusion, whose names these are, one name for each annotation, and at least one."""
    for patient, annotators in names.items():
        _, drawn = files[patient]
        if len(set(annotators)) != len(drawn) or not annotators:
            raise SegmentationError(
                told["attempted"],
                told["subject"],
                f"{len(drawn)} annotations of {patient}, by {annotators or 'nobody'}",
                "Name the annotator of each annotation in drawn_by.",
            )


def _needed_bytes(files: Mapping[str, Files], *, kept_apart: bool = False) -> int:
    """Disk that a dataset takes while it is made, about: images (float32), labels (int16) and scans as stored (float32 at most).

    Args:
        files: of each patient.
        kept_apart: whether each annotation is kept.
    """
    needed = 0
    for images, drawn in files.values():
        try:
            voxels = int(np.prod(nib.Nifti1Image.from_filename(images[0]).shape, dtype=np.int64))
        except DAMAGED:  # reported where it is read
            continue
        needed += (8 * len(images) + 2 * (len(drawn) if kept_apart else 1)) * voxels
    return needed


def _files(patient: str, files: Any, number: int | None = None) -> list[Path]:
    """A patient's existing files, `number` of them, or any if None; anything else raises a SegmentationError."""
    told: Any = {"attempted": "preparing the dataset", "subject": str(patient), "error": SegmentationError}
    if not isinstance(files, Sequence) or isinstance(files, str) or number not in (None, len(files)):
        wanted = "every annotator's file"
        if number is not None:
            wanted = (
                "the image's and the annotation's path" if number == 2 else f"{number - 1} images and the annotation"
            )
        raise SegmentationError(
            told["attempted"], told["subject"], f"{files!r:.120}", f"Give {wanted} of each patient."
        )
    return [existing_file(file, **told) for file in files]


@dataclass(frozen=True)
class _Case:
    """A training patient: files, and what is read of them when it is needed."""

    patient: str
    images: Images
    annotations: Sequence[Path]
    fusion: Fusion | None
    everybodys: Sequence[Path] | None
    read: TrainingScans

    def scan(self) -> TrainingScan:
        return self.read.scan(self.patient, self.images)

    def labels(self) -> PackedLabels:
        """The label map that is learned, (1, Z, Y, X); of `random` and `soft` that of each annotator, (R, Z, Y, X)."""
        if self.fusion == "majority" or self.fusion == "staple":
            return self.read.fused(self.patient, self.images, self.annotations, self.fusion)
        drawn = [self.read.labels(self.patient, self.images, annotation) for annotation in self.annotations]
        return drawn[0] if self.fusion is None else PackedLabels.stacked(drawn)

    def forget(self) -> None:
        for annotation in self.annotations:
            self.read.forget(self.patient, self.images, annotation)

    def foreground(self, study: Study) -> PackedLabels:
        """Where intensities are sampled: in the annotator's organs, or in anybody's if several are fused, or if the
        statistics are shared.
        """
        if study.plans.shared_intensity_statistics:
            return self.read.unions(self.patient, self.images, self.everybodys or ())
        return self.labels() if self.fusion is None else self.read.unions(self.patient, self.images, self.annotations)


def _write_raw(study: Study, cases: Sequence[_Case], folder: Path) -> dict[str, Any]:
    """`dataset.json` of nnU-Net's raw layout, which its planner reads; returns it as it is published, without paths.

    It names every file, and the reader. Without that the planner looks for files in a pool of twelve forked processes,
    and a fork of a process with threads (a Dagster step, a test run) may hang for good: seen in CI. And it would read a
    whole scan to find out that it can.
    """
    folder.mkdir(parents=True)
    dataset = {
        "channel_names": channel_names(study),
        "labels": {name: label for label, name in enumerate(study.class_names)},
        "numTraining": len(cases),
        "file_ending": ".nii.gz",
        RECORD: CANONICAL,
    }
    named = {
        case.patient: {"images": [str(image) for image in case.images], "label": str(case.annotations[0])}
        for case in cases
    }
    reader = {"overwrite_image_reader_writer": "SimpleITKIO"}
    _write_json(folder / "dataset.json", {**dataset, **reader, "dataset": named})
    return dataset


def _fingerprint(study: Study, annotator: str, cases: Sequence[_Case]) -> dict[str, Any]:
    """nnU-Net's dataset fingerprint: what its extractor finds in each case."""
    from curvas_assets.segmentation.preprocessing import sample_intensities  # with numba: only when it is asked for

    missing = sorted(case.patient for case in cases if case.everybodys is None)
    if missing and study.plans.shared_intensity_statistics:
        raise SegmentationError(
            "preparing the dataset",
            annotator,
            f"plans.shared_intensity_statistics needs every annotation, and those of {', '.join(missing)} are not given",
            "Give all annotations, or switch the setting off.",
        )
    number = int(study.plans.intensity_samples // len(cases))
    samples: list[list[npt.NDArray[Any]]] = []
    shapes: list[list[int]] = []
    for case in cases:
        scan, drawn = case.scan(), case.foreground(study)
        case.labels()  # refused now rather than after planning, if it does not fit
        slabs = (drawn[0, z : z + DEPTH] > 0 for z in range(0, drawn.shape[1], DEPTH))
        samples.append(sample_intensities(scan.channels(), slabs, scan.box, number))
        shapes.append([stop - start for start, stop in scan.box])
    intensities = [np.concatenate(of_channel) for of_channel in zip(*samples, strict=True)]
    if not intensities[0].size:
        raise SegmentationError(
            "preparing the dataset", annotator, "no voxel of any organ is annotated", "Check the annotations' labels."
        )
    return {
        "spacings": [list(map(float, case.scan().facts["spacing"])) for case in cases],
        "shapes_after_crop": shapes,
        "foreground_intensity_properties_per_channel": {
            str(number): _statistics(of_channel) for number, of_channel in enumerate(intensities)
        },
        "median_relative_size_after_cropping": float(
            np.median([np.prod(s) / np.prod(case.scan().grid.shape) for s, case in zip(shapes, cases, strict=True)])
        ),
    }


def _statistics(intensities: npt.NDArray[Any]) -> dict[str, float]:
    low, median, high = np.percentile(intensities, (0.5, 50.0, 99.5))
    return {
        "mean": float(np.mean(intensities)),
        "median": float(median),
        "std": float(np.std(intensities)),
        "min": float(np.min(intensities)),
        "max": float(np.max(intensities)),
        "percentile_99_5": float(high),
        "percentile_00_5": float(low),
    }


def _plan(settings: Plans, name: str, annotator: str) -> dict[str, Any]:
    """nnU-Net's plans, with the study's overrides."""
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
    from nnunetv2.experiment_planning.experiment_planners.residual_unets import residual_encoder_unet_planners

    planner_class = (
        ExperimentPlanner
        if settings.planner == "ExperimentPlanner"
        else getattr(residual_encoder_unet_planners, settings.planner)
    )
    options: dict[str, Any] = {"plans_name": PLANS_NAME}
    if settings.gpu_memory_gb is not None:
        options["gpu_memory_target_in_gb"] = settings.gpu_memory_gb
    if settings.spacing_mm is not None:
        options["overwrite_target_spacing"] = [float(s) for s in settings.spacing_mm]
    with quiet():
        plans = planner_class(name, **options).plan_experiment()
    plans = json.loads(json.dumps(plans, default=_json_number))
    if settings.configuration not in plans["configurations"]:
        raise SegmentationError(
            "planning",
            annotator,
            f"nnU-Net planned {', '.join(plans['configurations'])} for these scans, not {settings.configuration}",
            "Choose one of them as plans.configuration.",
        )
    _override(plans["configurations"][settings.configuration], settings, annotator)
    return plans


def _override(configuration: dict[str, Any], settings: Plans, annotator: str) -> None:
    """The study's patch size, batch size and network in place of the planner's."""
    if settings.patch_size is not None:
        configuration["patch_size"] = list(settings.patch_size)
    if settings.batch_size is not None:
        configuration["batch_size"] = settings.batch_size
    network = configuration["architecture"]["arch_kwargs"]
    depth_key = "n_conv_per_stage" if "n_conv_per_stage" in network else "n_blocks_per_stage"
    if settings.features_per_stage is not None:
        stages = len(settings.features_per_stage)
        network["n_stages"] = stages
        network["features_per_stage"] = list(settings.features_per_stage)
        network["strides"], network["kernel_sizes"] = _pyramid(
            configuration["patch_size"], configuration["spacing"], stages
        )
        network[depth_key] = (network[depth_key] + [network[depth_key][-1]] * stages)[:stages]
        decoder = network["n_conv_per_stage_decoder"] or [1]
        network["n_conv_per_stage_decoder"] = (decoder + [decoder[-1]] * stages)[: stages - 1]
    if settings.convolutions_per_stage is not None:
        stages = network["n_stages"]
        network[depth_key] = [settings.convolutions_per_stage] * stages
        network["n_conv_per_stage_decoder"] = [settings.convolutions_per_stage] * (stages - 1)
    total = np.prod(network["strides"], axis=0)
    if any(size % stride for size, stride in zip(configuration["patch_size"], total, strict=True)):
        raise SegmentationError(
            "planning",
            annotator,
            f"plans.patch_size {configuration['patch_size']} is no multiple of the network's strides {total.tolist()}",
            "Give a multiple of them, or leave patch_size to the planner.",
        )


def _pyramid(patch: Sequence[int], spacing_mm: Sequence[float], stages: int) -> tuple[list[list[int]], list[list[int]]]:
    """Strides and kernels of a U-Net. Each stage halves the axes that stay whole and at least 3 wide; at first, no
    kernel extends along a coarse axis.
    """
    size = list(patch)
    strides = [[1] * len(size)]
    for _ in range(stages - 1):
        strides.append([2 if n % 2 == 0 and n >= 6 else 1 for n in size])
        size = [n // stride for n, stride in zip(size, strides[-1], strict=True)]
    first = [1 if length > ANISOTROPIC * min(spacing_mm) else 3 for length in spacing_mm]
    return strides, [first] + [[3] * len(size) for _ in range(stages - 1)]


def _preprocess(
    study: Study,
    cases: Sequence[_Case],
    plans: dict[str, Any],
    dataset: dict[str, Any],
    folder: Path,
    on_progress: Callable[[int, int, str], None] | None,
) -> dict[str, str]:
    """All cases, into the configuration's folder; returns a digest of each patient's labels, if several annotators are fused."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    with quiet():
        manager = PlansManager(plans)
        configuration = manager.get_configuration(study.plans.configuration)
    target = folder / configuration.data_identifier
    target.mkdir()
    digests: dict[str, str] = {}
    for done, case in enumerate(cases, 1):
        try:
            with quiet():
                shared = study.plans.shared_intensity_statistics
                seg: Any = _preprocess_case(case, target / case.patient, manager, configuration, dataset, shared)
                if case.fusion is not None:
                    seg = np.ascontiguousarray(seg, np.int16)
                    digests[case.patient] = hashlib.sha256(seg).hexdigest()[:16]
                del seg
                if not shared:  # else the next annotator's intensities are of everybody's label maps
                    case.forget()
        except CurvasError:
            raise
        except Exception as error:
            raise unusable("preprocessing the scan", case.patient, error) from error
        if on_progress is not None:
            on_progress(done, len(cases), case.patient)
    return digests


def _preprocess_case(
    case: _Case, target: Path, plans: Any, configuration: Any, dataset: dict[str, Any], shared: bool
) -> npt.NDArray[Any]:
    """One case, as files named like `target`; returns its labels. A shared image is made once for the datasets of all
    annotators.
    """
    from curvas_assets.segmentation.preprocessing import (
        Frame,
        estimate_memory,
        is_known,
        looks_at_scans,
        preprocess,
        preprocess_image,
        preprocess_labels,
        sample_organs,
    )

    scan, threads, drawn = case.scan(), preprocessing_threads(), case.labels()
    images, properties, channels = scan.channels(), scan.properties(), range(drawn.shape[0])
    if not is_known(configuration):
        each = [preprocess(images, drawn[r], scan.properties(), plans, configuration, dataset) for r in channels]
        image, _, properties = each[0]
        seg = np.concatenate([labels for _, labels, _ in each if labels is not None])
        if len(each) > 1:
            properties["class_locations"] = _by_channel([facts["class_locations"] for _, _, facts in each])
        save_case(target, image, seg, properties, configuration)
        return seg
    frame = Frame.of(images, properties, plans, configuration, scan.box)
    most = max(int(np.count_nonzero(drawn[r])) for r in channels)
    needed = estimate_memory(
        frame,
        sum(one.itemsize for one in images),
        most,
        channels=len(channels),
        images=len(images),
        whole=looks_at_scans(configuration),
    )
    _require_memory(case.patient, frame.shape, frame.wanted, needed)
    if len(channels) == 1:
        seg = preprocess_labels(frame, images, drawn[0], configuration, threads=threads)
        properties["class_locations"] = sample_organs(seg, plans, dataset)
    else:
        seg, sampled = np.empty((len(channels), *frame.wanted), np.int16), []
        for r in channels:
            seg[r] = preprocess_labels(frame, images, drawn[r], configuration, threads=threads)[0]
            sampled.append(sample_organs(seg[r : r + 1], plans, dataset))
        properties["class_locations"] = _by_channel(sampled)
    settings = [plans.foreground_intensity_properties_per_channel, plans.transpose_forward, configuration.configuration]
    depends_on = json.dumps([list(map(str, scan.files)), *settings], sort_keys=True, default=str)
    made = case.read.images.get(depends_on)
    own = None if shared or len(channels) > 1 else drawn[0]  # an image of several annotators depends on none of them
    image = None if made else preprocess_image(frame, images, plans, configuration, labels=own, threads=threads)
    save_case(target, image, seg, properties, configuration)
    stored = target.with_name(f"{target.name}.b2nd")
    if made:
        stored.unlink()
        _link(made, stored)
    elif shared:
        kept = case.read.folder / f"image{len(case.read.images)}.b2nd"
        _link(stored, kept)
        case.read.images[depends_on] = kept
    return seg


def _by_channel(sampled: Sequence[Mapping[Any, Any]]) -> dict[Any, Any]:
    """nnU-Net's samples of organs' voxels, (channel, z, y, x), of label maps that became channels of one array."""
    found: dict[Any, Any] = {}
    for organ in sampled[0]:
        at = [np.array(one[organ], np.int64).reshape(-1, 4) for one in sampled]
        for channel, voxels in enumerate(at):
            voxels[:, 0] = channel
        found[organ] = np.concatenate(at)
    return found


def _require_memory(patient: str, shape: Sequence[int], wanted: Sequence[int], needed: int) -> None:
    """An error if less memory is free than a case needs, which says so before the process is killed for it."""
    available = available_memory()
    if needed > available:
        raise SegmentationError(
            "preprocessing the scan",
            patient,
            f"about {needed / 2**30:.1f} GiB of memory are needed for {by(shape)} voxels, {by(wanted)} at the plans' spacing, "
            f"and {available / 2**30:.1f} GiB are free",
            "Give the step more memory, or choose a coarser plans.spacing_mm.",
            may_retry=True,  # other steps give memory back
        )


def save_case(
    target: Path, image: npt.NDArray[Any] | None, seg: Any, properties: dict[str, Any], configuration: Any
) -> None:
    """As nnU-Net's preprocessor saves a case; without an image, a file that stands for it."""
    from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2

    image = np.zeros((1, 1, 1, 1), np.float32) if image is None else image.astype(np.float32, copy=False)
    seg = seg.astype(np.int16, copy=False)
    patch = tuple(configuration.patch_size)
    (blocks, chunks), (blocks_seg, chunks_seg) = (comp_blosc2_params(a.shape, patch, a.itemsize) for a in (image, seg))
    layout: dict[str, Any] = {"chunks": chunks, "blocks": blocks, "chunks_seg": chunks_seg, "blocks_seg": blocks_seg}
    nnUNetDatasetBlosc2.save_case(image, seg, properties, str(target), **layout)


def _link(source: Path, target: Path) -> None:
    """The same file by another name; a copy where the disk knows no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _move(source: Path, target: Path) -> None:
    """Move all files of a folder into another one, over what is there; it may be a mounted disk of its own."""
    for path in sorted(source.rglob("*")):
        if path.is_file():
            to = target / path.relative_to(source)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(str(path), str(to))


def splits_of(patients: list[str], study: Study | None = None) -> list[dict[str, list[str]]]:
    """nnU-Net's cross-validation, with as many folds as there are patients when they are fewer than five.

    For a study's training patients these are the study's own folds: a patient whom a fold holds out is held out for
    every annotator, even if some annotated fewer patients.
    """
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    if len(patients) < 2:
        return []
    if study is not None and set(patients) <= set(study.training_patients()):
        held_out = [set(study.held_out(fold)) for fold in range(study.splits)]
        return [
            {"train": [p for p in patients if p not in fold], "val": [p for p in patients if p in fold]}
            for fold in held_out
        ]
    return [
        {part: [str(p) for p in members] for part, members in split.items()}
        for split in generate_crossval_split(patients, seed=SPLIT_SEED, n_splits=min(FOLDS, len(patients)))
    ]


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, default=_json_number))


def _json_number(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no JSON form")
