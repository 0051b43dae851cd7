"""nnU-Net's dataset of one annotator: fingerprint, plans, preprocessed cases.

nnU-Net gets every scan in one voxel order (`voxel_order.CANONICAL`), which `dataset.json` records and the model inherits.
nnU-Net's per-case functions are called directly: the same bits as its command line, without its pools of processes.
"""

import hashlib
import json
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
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform

from curvas_assets.disk import told_of_disk
from curvas_assets.errors import CurvasError, SegmentationError
from curvas_assets.geometry import Grid, displacement_mm, mm, order_of, same_place
from curvas_assets.inputs import as_path, existing_file, made_folder
from curvas_assets.segmentation.runtime import PLANS_NAME, dataset_name, nnunet_folders, quiet
from curvas_assets.study import FOLDS, SPLIT_SEED, Plans, Study, load_study
from curvas_assets.voxel_order import CANONICAL, DAMAGED, RECORD, itk_reads, open_image, turned_grid, turned_image

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
    on_progress: Callable[[int, int, str], None] | None = None,
) -> DatasetFacts:
    """Fingerprint, plan and preprocess the training patients as one annotator drew them.

    Args:
        study: plans and training settings; the study itself, or its name or path for `load_study`.
        annotator: whose label maps these are.
        scans: patient → (image, annotation), NIfTI files on the same voxels of the world, each in any voxel order.
        folder: receives `dataset.json`, `dataset_fingerprint.json`, `nnUNetPlans.json`, `splits_final.json` and the
            preprocessed cases; a stock nnU-Net can use it as a folder of `nnUNet_preprocessed`.
        all_annotations: patient → every annotator's file; needed for `plans.shared_intensity_statistics`.
        on_progress: told (done, total, patient) after each case.

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
    pairs = {patient: _files(patient, files, 2) for patient, files in scans.items()}
    annotations = {patient: _files(patient, files) for patient, files in (all_annotations or {}).items()}
    folder = as_path(folder, **told)
    made_folder(folder.parent, **told)
    start = time.perf_counter()
    name = dataset_name(annotator)
    attempted, subject = told["attempted"], told["subject"]
    with (
        tempfile.TemporaryDirectory(prefix="nnunet-", dir=folder.parent) as scratch,
        told_of_disk(attempted, subject, folder.parent, lambda: _needed_bytes(pairs)),
    ):
        raw, preprocessed = Path(scratch, "raw"), Path(scratch, "preprocessed")
        with nnunet_folders(raw=raw, preprocessed=preprocessed, results=Path(scratch, "results")):
            dataset, cases = _write_raw(study, pairs, raw / name)
            (preprocessed / name).mkdir(parents=True)
            statistics = (
                _write_unions(study, cases, annotations, Path(scratch, "unions"), annotator)
                if study.plans.shared_intensity_statistics
                else {patient: label for patient, (_, label) in cases.items()}
            )
            fingerprint = _fingerprint(study, annotator, cases, statistics)
            _write_json(preprocessed / name / "dataset_fingerprint.json", fingerprint)
            plans = _plan(study.plans, name, annotator)
            _write_json(preprocessed / name / f"{PLANS_NAME}.json", plans)
            _preprocess(study, annotator, cases, plans, dataset, preprocessed / name, on_progress)
            _write_json(preprocessed / name / "splits_final.json", splits_of(sorted(cases), study))
            _write_json(preprocessed / name / "dataset.json", dataset)
            shutil.copytree(preprocessed / name, folder, dirs_exist_ok=True)
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
        array = np.ascontiguousarray(blosc2.open(str(path), mode="r")[:])
        digest.update(f"{path.name} {array.dtype} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()[:16]


def content_of(path: Path) -> bytes:
    """A file of a dataset for its digest: without the recorded voxel order, because the arrays themselves have it.

    So a dataset of LPS scans has the same digest as before orders were recorded, and makes no model stale.
    """
    content = path.read_bytes()
    if path.name != "dataset.json" or RECORD.encode() not in content:
        return content
    return json.dumps({k: v for k, v in json.loads(content).items() if k != RECORD}, indent=1).encode()


def _needed_bytes(scans: Mapping[str, Sequence[Path]]) -> int:
    """Disk that a dataset takes while it is made, about: images (float32) and labels (int16) twice, and turned copies."""
    voxels = 0
    for image, _ in scans.values():
        try:
            voxels += int(np.prod(nib.Nifti1Image.from_filename(image).shape, dtype=np.int64))
        except DAMAGED:  # reported where it is read
            continue
    return 16 * voxels


def _files(patient: str, files: Any, number: int | None = None) -> list[Path]:
    """A patient's existing files, `number` of them, or any if None; anything else raises a SegmentationError."""
    told: Any = {"attempted": "preparing the dataset", "subject": str(patient), "error": SegmentationError}
    if not isinstance(files, Sequence) or isinstance(files, str) or number not in (None, len(files)):
        wanted = "every annotator's file" if number is None else "the image's and the annotation's path"
        raise SegmentationError(
            told["attempted"], told["subject"], f"{files!r:.120}", f"Give {wanted} of each patient."
        )
    return [existing_file(file, **told) for file in files]


def _write_raw(
    study: Study, scans: Mapping[str, Sequence[Path]], folder: Path
) -> tuple[dict[str, Any], dict[str, tuple[str, str]]]:
    """nnU-Net's raw layout, all in one voxel order: images, and label maps as whole numbers with their image's geometry.

    An image that is in this order already, and that ITK reads as we do, is linked. Others are rewritten with a header
    that has only one reading. The raw `dataset.json` names every file. Without that nnU-Net's planner looks for them in
    a pool of twelve forked processes, and a fork of a process with threads (a Dagster step, a test run) may hang for
    good: seen in CI.

    Returns:
        `dataset.json` as it is published, without paths, and patient → (image, label map).
    """
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    cases: dict[str, tuple[str, str]] = {}
    for patient, (image, annotation) in scans.items():
        attempt = "reading the scan and its annotation"
        handed, label = folder / "imagesTr" / f"{patient}_0000.nii.gz", folder / "labelsTr" / f"{patient}.nii.gz"
        try:
            reference = _hand_over(image, handed, patient)
            labels = _label_map(study, annotation, reference, patient)
        except CurvasError:
            raise
        except DAMAGED as error:
            raise _unusable(attempt, patient, error) from error
        nib.save(nib.Nifti1Image(labels, reference.affine, header=_header(reference, labels)), label)
        cases[patient] = (str(handed), str(label))
    dataset = {
        "channel_names": {"0": "CT"},
        "labels": {name: label for label, name in enumerate(study.class_names)},
        "numTraining": len(cases),
        "file_ending": ".nii.gz",
        RECORD: CANONICAL,
    }
    named = {patient: {"images": [image], "label": label} for patient, (image, label) in cases.items()}
    _write_json(folder / "dataset.json", {**dataset, "dataset": named})
    return dataset, cases


def _hand_over(path: Path, handed: Path, patient: str) -> Any:
    """Put an image, in the canonical order, where nnU-Net reads it; returns the image, which nibabel and ITK now read
    alike.
    """
    told: Any = {"attempted": "reading the scan", "subject": patient, "error": SegmentationError}
    image = open_image(path, **told)
    if order_of(image.affine) == CANONICAL and itk_reads(path, image.affine):
        handed.symlink_to(path.resolve())
        return image
    nib.save(turned_image(image, CANONICAL), handed)
    turned: Any = nib.Nifti1Image.from_filename(handed)
    if not itk_reads(handed, turned.affine):
        raise SegmentationError(
            told["attempted"],
            patient,
            f"ITK, by which nnU-Net reads, takes its grid for another than its affine {np.round(image.affine[:3], 4).tolist()}",
            "Resample the scan and its annotations to a rectangular grid, with one geometry in the header.",
        )
    return turned


def _label_map(study: Study, path: Path, image: Any, patient: str) -> npt.NDArray[np.uint8]:
    """A label map (X, Y, Z) on the voxels of an image in the canonical order, from a file in any order."""
    told: Any = {"attempted": f"comparing {path.name} with its scan", "subject": patient, "error": SegmentationError}
    drawn = open_image(path, **told)
    turned, scan = turned_grid(Grid.of(drawn), CANONICAL), Grid.of(image)
    tolerance = study.intake.origin_tolerance_mm
    if turned.shape != scan.shape or not same_place(turned, scan, tolerance):
        apart = displacement_mm(turned, scan)
        raise SegmentationError(
            told["attempted"],
            patient,
            f"the annotation has {turned.shape} voxels (z, y, x), the scan {scan.shape}; their corners are up to "
            f"{apart:.4g} mm apart (tolerance {tolerance:g})",
            "Give the annotation of this scan, on its voxels.",
        )
    sizes = turned.spacing_mm, scan.spacing_mm
    if np.abs(np.subtract(*sizes)).max() > study.intake.spacing_tolerance_mm:
        theirs, ours = map(mm, sizes)
        raise SegmentationError(
            told["attempted"],
            patient,
            f"the annotation has voxels of {theirs} mm (z × y × x), the scan's are of {ours}",
            "Give the annotation of this scan, on its voxels.",
        )
    values = np.rint(np.asanyarray(drawn.dataobj)).astype(np.uint8)
    turn = ornt_transform(io_orientation(drawn.affine), axcodes2ornt(tuple(CANONICAL)))
    return np.asarray(apply_orientation(values, turn))


def _header(image: Any, labels: npt.NDArray[np.uint8]) -> Any:
    header = image.header.copy()
    header.set_data_dtype(labels.dtype)
    header["scl_slope"], header["scl_inter"] = 1, 0
    return header


def _write_unions(
    study: Study,
    cases: Mapping[str, tuple[str, str]],
    annotations: Mapping[str, Sequence[Path]],
    folder: Path,
    annotator: str,
) -> dict[str, str]:
    """Where any annotator sees an organ, as label maps: the foreground of the intensity statistics of all datasets."""
    missing = sorted(set(cases) - set(annotations))
    if missing:
        raise SegmentationError(
            "preparing the dataset",
            annotator,
            f"plans.shared_intensity_statistics needs every annotation, and those of {', '.join(missing)} are not given",
            "Give all annotations, or switch the setting off.",
        )
    folder.mkdir()
    unions: dict[str, str] = {}
    for patient, (_, label) in cases.items():
        reference = nib.Nifti1Image.from_filename(label)
        union = np.zeros(reference.shape, np.uint8)
        for path in annotations[patient]:
            try:
                union |= (_label_map(study, path, reference, patient) > 0).astype(np.uint8)
            except DAMAGED as error:
                raise _unusable("reading the annotations", patient, error) from error
        unions[patient] = str(folder / f"{patient}.nii.gz")
        nib.save(nib.Nifti1Image(union, reference.affine, header=_header(reference, union)), unions[patient])
    return unions


def _fingerprint(
    study: Study, annotator: str, cases: Mapping[str, tuple[str, str]], statistics: Mapping[str, str]
) -> dict[str, Any]:
    """nnU-Net's dataset fingerprint, from its own analysis of each case."""
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    samples = int(study.plans.intensity_samples // len(cases))
    analysed = []
    for patient, (image, _) in cases.items():
        try:
            with quiet():
                analysed.append(
                    DatasetFingerprintExtractor.analyze_case([image], statistics[patient], SimpleITKIO, samples)
                )
        except Exception as error:
            raise _unusable("analysing the scan", patient, error) from error
    intensities = np.concatenate([case[2][0] for case in analysed])
    if not intensities.size:
        raise SegmentationError(
            "preparing the dataset", annotator, "no voxel of any organ is annotated", "Check the annotations' labels."
        )
    low, median, high = np.percentile(intensities, (0.5, 50.0, 99.5))
    return {
        "spacings": [list(map(float, case[1])) for case in analysed],
        "shapes_after_crop": [list(map(int, case[0])) for case in analysed],
        "foreground_intensity_properties_per_channel": {
            "0": {
                "mean": float(np.mean(intensities)),
                "median": float(median),
                "std": float(np.std(intensities)),
                "min": float(np.min(intensities)),
                "max": float(np.max(intensities)),
                "percentile_99_5": float(high),
                "percentile_00_5": float(low),
            }
        },
        "median_relative_size_after_cropping": float(np.median([case[4] for case in analysed])),
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
    annotator: str,
    cases: Mapping[str, tuple[str, str]],
    plans: dict[str, Any],
    dataset: dict[str, Any],
    folder: Path,
    on_progress: Callable[[int, int, str], None] | None,
) -> None:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    with quiet():
        manager = PlansManager(plans)
        configuration = manager.get_configuration(study.plans.configuration)
        preprocessor = configuration.preprocessor_class(verbose=False)
    target = folder / configuration.data_identifier
    target.mkdir()
    for done, (patient, (image, label)) in enumerate(cases.items(), 1):
        try:
            with quiet():
                preprocessor.run_case_save(str(target / patient), [image], label, manager, configuration, dataset)
        except Exception as error:
            raise _unusable("preprocessing the scan", patient, error) from error
        if on_progress is not None:
            on_progress(done, len(cases), patient)


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


def _unusable(attempt: str, patient: str, error: Exception) -> SegmentationError:
    return SegmentationError(
        attempt,
        patient,
        f"nnU-Net stopped with {type(error).__name__}: {' '.join(str(error).split())[:300]}",
        "If the scan is at fault, name the patient in the study's exclusions; else report it.",
    )


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, default=_json_number))


def _json_number(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no JSON form")
