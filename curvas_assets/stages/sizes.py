"""What the cost of a cell grows with, and what it takes where nothing was measured yet. For forecasts; makes nothing.

Each figure says where it was measured. Most stem from one scan of full size, 866 × 512 × 512 voxels.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from statistics import median

from curvas_assets.predictors import KEPT_APART, SNAPSHOT, ModelId
from curvas_assets.stages.calibrate import MOST_VOXELS
from curvas_assets.stages.ensemble import MAP_BYTES, OF_A_MEMBER
from curvas_assets.stages.prepare import PREPROCESSING_GROWTH
from curvas_assets.stages.table import (
    CALIBRATORS,
    ENSEMBLE_SOFTMAX,
    FAMILY_COMPARISONS,
    FIGURES,
    PREDICTED,
    PREPROCESSED_DATASET,
    SCAN,
    SCORES,
    SOFTMAX,
    TRAINED_MODEL,
    TRAINING_CASES,
    VARIANT_SOFTMAX,
    VIEWER_PREVIEW,
    Asset,
)
from curvas_assets.statistics.forecast import Prior, Sizes
from curvas_assets.storage.layout import Cell, patient_of
from curvas_assets.study import FLIPS, Study

FULL_SIZE = 866 * 512 * 512
"""Voxels of a scan of full size: what a patient counts for while no scan has been taken in."""
FULL_BATCH = 2 * 128**3
"""Voxels of a training batch where nnU-Net plans it."""
FILE_BYTES = 0.29
"""Of an image or label map, per voxel, compressed: the demo's patients, 0.51 MB in four files of 48 × 96 × 96."""
DATASET_BYTES = 0.76
"""Of a preprocessed dataset, per voxel of its scans: the demo's, 1.67 MB of five scans of 48 × 96 × 96."""
VOLUME_BYTES = 106e6 / FULL_SIZE
"""Of a stored volume, per voxel: 106 MB at full size, `benchmarks.volumes`."""
MAPS_BYTES = 15e6 / FULL_SIZE
"""Of an ensemble's maps, per voxel: 15 MB at full size (D080)."""
FUSED_WORK, FUSED_BYTES = 0.13, 0.07
"""What each annotator beyond the first adds to a dataset that fuses several, as a share of one annotator's: 3.4 CPU s for a
scan of 200 × 256 × 256 voxels, 4.0 with STAPLE of three annotators, 4.3 where each annotator's labels are kept; 15.1 MB, and
17.3 with three kept."""
MODEL_BYTES = 1e9
"""Of a trained model: the study's own, 9 GB for 9 models (its table 4)."""
TABLE_SECONDS = {FAMILY_COMPARISONS.name: 1.3, FIGURES.name: 10.0}
"""Of a demo's tables that took more than a second, on two cores that nothing else used; the figures' step makes the
report, too."""
SMALL_TABLE_SECONDS = 0.1
COUNTING_SECONDS = 35e-9
"""CPU seconds per voxel of a validation patient and predictor that is calibrated (`benchmarks.calibration`)."""
FULL_WIDTH = (32 / 8) ** 2 * 2
"""Work per voxel of nnU-Net's usual network (32 features, two convolutions a stage), as a multiple of the demo's."""
STARTS = {
    SCAN.name: 0.3,
    PREPROCESSED_DATASET.name: 2.6,
    SOFTMAX.name: 3.5,
    VARIANT_SOFTMAX.name: 3.5,
    ENSEMBLE_SOFTMAX.name: 0.6,
    SCORES.name: 0.9,
    VIEWER_PREVIEW.name: 0.6,
}
"""What a run's first cell takes longer, s: libraries are loaded. From a demo on two cores at load 1 to 2."""
COMPILING = {PREPROCESSED_DATASET.name: 2.0, SOFTMAX.name: 9.0, ENSEMBLE_SOFTMAX.name: 6.0, SCORES.name: 14.0}
"""What the first cell on a machine takes longer still, s: numba compiles, and keeps that on the disk. From the same demo
without compiled code."""


@dataclass(frozen=True)
class StudySizes:
    """The sizes of a study's cells.

    Args:
        study: whose.
        voxels: patient → voxels of the scan, as far as scans were taken in. Others count as the median of these.
        files: patient → bytes of all files, as far as they are known.
        epochs: that a training is expected to take; the study's largest number if not given.
    """

    study: Study
    voxels: Mapping[str, int]
    files: Mapping[str, float]
    epochs: float | None = None

    def of(self, row: Asset, partition: str, *, epochs: float | None = None) -> Sizes:
        """What the costs of a partition grow with.

        Args:
            row: of its asset.
            partition: its key; empty for a table.
            epochs: that a training took, if it is over.
        """
        study, images = self.study, len(self.study.images)
        if row is SCAN:
            read = self.voxels_of(partition) * (images + len(study.annotators))
            return Sizes(read, read, 1)
        if row is TRAINING_CASES:
            patients = len(study.training_patients())  # whose records it reads
            return Sizes(patients, patients, patients)
        if row is PREPROCESSED_DATASET:
            voxels, fusion, others = self.training_voxels, study.fusion(partition), len(study.annotators) - 1
            work = images + (FUSED_WORK * others if fusion else 0.0)
            stored = images + (FUSED_BYTES * others if fusion in KEPT_APART else 0.0)
            return Sizes(work * voxels, voxels, stored * voxels)
        if row is TRAINED_MODEL:
            expected = study.training.epochs if self.epochs is None else self.epochs
            return Sizes((expected if epochs is None else epochs) * self._epoch, images * self.training_voxels, 1)
        if row is SOFTMAX:
            voxels = self.voxels_of(patient_of(partition))
            return Sizes(voxels, images * voxels, voxels)
        if row is VARIANT_SOFTMAX:
            cell = Cell.of(partition)
            voxels = self.voxels_of(cell.patient)
            return Sizes(_passes(study, cell.predictor) * voxels, images * voxels, voxels)
        if row is ENSEMBLE_SOFTMAX:
            cell = Cell.of(partition)
            voxels = self.voxels_of(cell.patient)
            members = self._members(cell.predictor, cell.patient)
            return Sizes(members * voxels, members * voxels, voxels)
        if row is SCORES:
            read = self.voxels_of(partition) * self._volumes_read(partition)
            return Sizes(read, read, 1)
        if row is VIEWER_PREVIEW:
            voxels = self.voxels_of(partition)
            return Sizes(voxels, voxels, 1)
        if row is CALIBRATORS:
            return Sizes(SMALL_TABLE_SECONDS + COUNTING_SECONDS * self._counted_voxels, 1, 1)
        if row.axis is None:
            return Sizes(TABLE_SECONDS.get(row.name, SMALL_TABLE_SECONDS), 1, 1)
        return Sizes()

    @cached_property
    def _counted_voxels(self) -> float:
        """Voxels of validation patients that calibrators are fitted on, of all predictors together."""
        return len(self.study.fitted_predictors) * min(
            MOST_VOXELS, sum(map(self.voxels_of, self.study.fitting_patients))
        )

    def voxels_of(self, patient: str) -> float:
        """Of a scan; the median of those known, if this one was not taken in yet."""
        return self.voxels.get(patient, self._usual_voxels)

    @cached_property
    def training_voxels(self) -> float:
        """Of all scans that models learn from."""
        return float(sum(map(self.voxels_of, self.study.training_patients())))

    @cached_property
    def _usual_voxels(self) -> float:
        return float(median(self.voxels.values())) if self.voxels else float(FULL_SIZE)

    @property
    def _epoch(self) -> float:
        """Voxels that pass the network in an epoch; those of validation, which learn nothing, count as much."""
        training = self.study.training
        return (training.iterations_per_epoch + training.validation_iterations_per_epoch) * batch_voxels(self.study)

    def _members(self, ensemble: str, patient: str) -> int:
        """How many models the mean is of; only under cross-validation does it depend on the patient."""
        if self.study.cross_validated:
            return len(self.study.members(ensemble, patient))
        return self._members_of[ensemble]

    @cached_property
    def _members_of(self) -> dict[str, int]:
        return {str(one): len(self.study.members(one)) for one in self.study.ensemble_ids}

    def _volumes_read(self, patient: str) -> int:
        """Volumes that scoring reads, each once: of each model, each variant of one, and each ensemble."""
        study = self.study
        if study.cross_validated:
            return len(study.models_of(patient)) + len(study.variants_of(patient)) + len(study.ensemble_ids)
        return len(study.models) + self._variants + len(study.ensemble_ids)

    @cached_property
    def _ensembles_at_once(self) -> int:
        """Ensembles of a patient that one pass makes: all without variants of models, or one with them."""
        members = [self.study.members(one) for one in self.study.ensemble_ids]
        return max(1, sum(not any(model.variant for model in models) for models in members))

    @cached_property
    def _variants(self) -> int:
        return len(self.study.variants)

    # Disk ------------------------------------------------------------------------------------------------------------

    def scratch_bytes(self, row: Asset, partitions: Collection[str], dataset_bytes: float, model_bytes: float) -> float:
        """Disk that one run of an asset keeps at a time, at most; its largest patient decides.

        Args:
            row: of the asset.
            partitions: that are to come.
            dataset_bytes: of one preprocessed dataset.
            model_bytes: of one trained model.
        """
        if row.bridge or row.axis is None or not partitions:
            return 0.0
        if row is PREPROCESSED_DATASET:
            return PREPROCESSING_GROWTH * sum(map(self.file_bytes, self.study.training_patients()))
        if row is TRAINED_MODEL:
            return dataset_bytes + 2 * model_bytes  # with its snapshots
        patients = {patient_of(one) for one in partitions}
        if row is ENSEMBLE_SOFTMAX:
            voxel = MAP_BYTES + OF_A_MEMBER * VOLUME_BYTES
            return self._ensembles_at_once * voxel * max(map(self.voxels_of, patients))
        files = max(map(self.file_bytes, patients))
        if row in PREDICTED:
            # the next patient's files come while models see the last one
            return weights_fetched(self.study, (Cell.of(one).predictor for one in partitions)) * model_bytes + 2 * files
        return files

    def file_bytes(self, patient: str) -> float:
        """Of a patient's files in the bucket."""
        count = len(self.study.images) + len(self.study.annotators)
        return self.files.get(patient, FILE_BYTES * count * self.voxels_of(patient))


def weights_fetched(study: Study, predictors: Iterable[str]) -> float:
    """Of how many stored models a step fetches the bytes that predicts by these models, or variants of them: their own weights, and
    all snapshots of a model of which one is wanted.
    """
    parsed = {ModelId.parse(one) for one in predictors}
    stored = 1 + study.training.snapshots
    whole = {one.trained for one in parsed if one.variant.startswith(SNAPSHOT)}
    return len(whole) + len({one.trained for one in parsed} - whole) / stored


def _passes(study: Study, variant: str) -> int:
    """How often a variant's network sees each patch: a flip once, a snapshot as often as its model."""
    mirrored = study.prediction.mirroring and study.training.mirroring
    return FLIPS[study.plans.configuration] if mirrored and ModelId.parse(variant).variant.startswith(SNAPSHOT) else 1


def batch_voxels(study: Study) -> float:
    """Voxels of a training batch, as far as the study file says; else nnU-Net's usual 2 × 128³."""
    plans = study.plans
    patch = prod(plans.patch_size) if plans.patch_size else FULL_BATCH / 2
    return patch * (plans.batch_size or 2)


def prior(study: Study, row: Asset, *, gpu: bool) -> Prior:
    """What a cell takes per unit of its sizes, before any was measured.

    Args:
        study: whose settings count.
        row: of the asset.
        gpu: whether it runs on one.
    """
    if row is SCAN:
        seconds = 6 / (4 * FULL_SIZE)
        origin = "6 CPU s for image and three annotations at full size"
        return Prior(seconds, FILE_BYTES, 2300, origin, each=0.2, **_starts(row))
    if row is PREPROCESSED_DATASET:
        origin = "27 CPU s per patient and annotator at full size"
        return Prior(27 / FULL_SIZE, 0, DATASET_BYTES, origin, **_starts(row))  # a run fetches the scans once
    if row is TRAINED_MODEL:
        seconds, origin = _training_seconds(study, gpu=gpu)
        return Prior(seconds, DATASET_BYTES, (1 + study.training.snapshots) * MODEL_BYTES, origin)
    if row in PREDICTED:
        seconds, origin = _prediction_seconds(study, gpu=gpu, mirrored=row is SOFTMAX and study.prediction.mirroring)
        return Prior(seconds, FILE_BYTES, VOLUME_BYTES, origin, **_starts(row))
    if row is ENSEMBLE_SOFTMAX:
        origin = "47 s for four ensembles of 18 members at full size"
        seconds, stored = 47 / (18 * FULL_SIZE), VOLUME_BYTES + MAPS_BYTES
        return Prior(seconds, VOLUME_BYTES, stored, origin, each=0.3, **_starts(row))
    if row is SCORES:
        origin = "75 s for the 13 volumes of a patient of full size, on two cores"
        return Prior(75 / (13 * FULL_SIZE), VOLUME_BYTES, 1e6, origin, each=1.5, **_starts(row))
    if row is VIEWER_PREVIEW:
        origin = "a patient of full size with three annotators, on two loaded cores"
        return Prior(40 / FULL_SIZE, VOLUME_BYTES + FILE_BYTES, 2e6, origin, each=0.3, **_starts(row))
    if row.axis is None:
        return Prior(1.0, 1e6, 1e6, "the demo's tables and report; more patients take longer")
    return Prior(0.15, 2300, 570, "0.15 s on two loaded cores")


def _starts(row: Asset) -> dict[str, float]:
    return {"start": STARTS[row.name], "once": COMPILING.get(row.name, 0.0)}


def _training_seconds(study: Study, *, gpu: bool) -> tuple[float, str]:
    """Seconds per voxel of a batch, and their origin."""
    if gpu:
        origin = (
            "a step of 2 × 64 × 112 × 112 takes 24 ms on an H200, assumed twice that with its loader (not measured)"
        )
        return 2 * 0.024 / (2 * 64 * 112 * 112), origin
    origin = "a demo's training takes 13.7 CPU s, scaled by voxels, features and convolutions"
    return 13.7 / (7 * 23 * 2 * 24 * 40 * 40) * _width(study), origin


def _prediction_seconds(study: Study, *, gpu: bool, mirrored: bool) -> tuple[float, str]:
    """Seconds per voxel of a scan, and their origin."""
    around = (20 / max(1, len(study.seeds)) + 20) / FULL_SIZE
    if gpu:
        origin = "0.3 s for 96 × 224 × 224 on an H200, scaled by voxels; preprocessing 20 s, export 20 s at full size"
        return 0.3 / (96 * 224 * 224) + around, origin
    windows = study.prediction.tile_step**-3 * (8 if mirrored else 1)
    origin = "a tile of 128³ takes 10 s on two cores, scaled by windows, features and convolutions"
    return 10 / 128**3 * windows * _width(study) / FULL_WIDTH + around, origin


def _width(study: Study) -> float:
    """Work per voxel of the study's network, as a multiple of the demo's: features squared, times convolutions."""
    plans = study.plans
    first = plans.features_per_stage[0] if plans.features_per_stage else 32
    return (first / 8) ** 2 * (plans.convolutions_per_stage or 2)


def voxels_in(shape: object) -> int | None:
    """Voxels of a shape as metadata show it, `48 × 96 × 96`; None if it is none."""
    try:
        parts: Sequence[int] = [int(part) for part in str(shape).split("×")]
    except ValueError:
        return None
    return prod(parts) if len(parts) == 3 else None
