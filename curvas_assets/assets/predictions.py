"""Predictions: the softmax of one patient by one model."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np

from curvas_assets.assets.cohort import OWNERS, fetch_files
from curvas_assets.assets.dataset import order_of_training_scans
from curvas_assets.errors import DiskError, SegmentationError
from curvas_assets.geometry import voxel_ml
from curvas_assets.orchestration import metadata
from curvas_assets.orchestration.bucket import Bucket
from curvas_assets.orchestration.cells import Outcome, materialise
from curvas_assets.orchestration.checks import Check, Checks, specs
from curvas_assets.orchestration.devices import leased_device
from curvas_assets.orchestration.execution import RETRY, StageNeeds
from curvas_assets.orchestration.io_manager import Artefacts, Stored, artefact
from curvas_assets.orchestration.partitions import Partitions
from curvas_assets.orchestration.provenance import code_facts
from curvas_assets.orchestration.scratch import scratch_space
from curvas_assets.probabilities import require_probabilities
from curvas_assets.report import previews
from curvas_assets.segmentation import Predictor, PreparedScan, trained_on
from curvas_assets.storage import directories
from curvas_assets.storage.layout import Cell
from curvas_assets.storage.softmax import SoftmaxVolume, SoftmaxWriter, open_softmax
from curvas_assets.study import Study

CHECKS = (
    Check("sums_to_one", "The classes of every voxel sum to 1, and none is NaN.", dg.AssetCheckSeverity.ERROR),
    Check("labels_are_not_empty", "The model found at least one voxel of every organ."),
    Check("volumes_are_plausible", "Each organ's volume lies within `checks.volume_ml`, and below half of the scan."),
)


def build(study: Study, partitions: Partitions) -> list[dg.AssetsDefinition]:
    """The predictions of one study."""
    needs = StageNeeds.of(study)

    @dg.asset(
        ins={
            "trained_model": dg.AssetIn(partition_mapping=partitions.same("model")),
            "test_scan": dg.AssetIn(partition_mapping=partitions.same("patient")),
        },
        partitions_def=partitions.patient_by_model,
        backfill_policy=dg.BackfillPolicy.multi_run(90),
        group_name="predictions",
        owners=OWNERS,
        kinds={"nnunet", "zarr"},
        code_version=f"3-{study.fingerprint('prediction')}",
        metadata=artefact("softmax"),
        output_required=False,
        pool=needs.prediction.pool,
        op_tags=needs.prediction.op_tags,
        retry_policy=RETRY,
        check_specs=specs("softmax", CHECKS, partitions.patient_by_model),
    )
    def softmax(context: dg.AssetExecutionContext, bucket: Bucket, trained_model: Artefacts, test_scan: Artefacts):
        """Class probabilities (class, z, y, x) of one patient by one model, as one zarr volume.

        A step takes any rectangle of patients × models: each patient is fetched and preprocessed once, each model loaded
        once, and every volume is stored and reported as soon as it is done. A scan is handed over in the voxel order that
        the model knows; its volume lies on the scan's own voxels.
        """
        objects, layout = (
            bucket.checked_objects(hours=needs.prediction.hours * len(context.partition_keys)),
            bucket.layout,
        )
        checks = Checks(*CHECKS)

        def predict(keys: Sequence[str]) -> Iterator[tuple[str, Outcome]]:
            predictor = Predictor(
                study,
                tell=context.log.info,
                unrecorded_order=cache(lambda: order_of_training_scans(objects, layout, study)),
            )
            code = code_facts("nnunetv2", "torch")
            models_wanted = {Cell.of(key).predictor for key in keys}
            model_bytes = sum(directories.size_of(objects, layout.model(model)) for model in models_wanted)
            with ExitStack() as held:
                try:
                    scratch = held.enter_context(scratch_space("softmax", model_bytes))
                except DiskError as error:
                    yield from ((key, error) for key in keys)
                    return
                leased = held.enter_context(leased_device(context.log.info))
                models: dict[str, tuple[Path, str]] = {}
                for patient, cells in groupby(keys, key=lambda key: Cell.of(key).patient):
                    with tempfile.TemporaryDirectory(dir=scratch) as folder:
                        opened = None
                        for key in cells:
                            try:
                                if opened is None:
                                    record = test_scan[patient].record()
                                    fetch_files(objects, record, Path(folder), [study.image])
                                    opened = predictor.open(Path(folder, study.image), patient)
                                model = Cell.of(key).predictor
                                if model not in models:
                                    into = Path(scratch, "models", model)
                                    models[model] = into, trained_model[model].fetch(into)
                                model_folder, version = models[model]
                                require_unseen(model_folder, model, patient)
                                made_by = {"model_version": version, "code": code}
                                yield key, store(predictor, opened, key, model, model_folder, leased, made_by)
                            except Exception as error:
                                yield key, error

        def store(
            predictor: Predictor,
            opened: PreparedScan,
            cell: str,
            model: str,
            model_folder: Path,
            leased: str | None,
            made_by: dict[str, Any],
        ) -> Stored:
            patient = Cell.of(cell).patient
            prediction = predictor.predict(opened, model_folder)
            key = layout.softmax(patient, model)
            with SoftmaxWriter(
                objects,
                key,
                prediction.shape,
                class_names=study.class_names,
                spacing_mm=prediction.spacing_mm,
                affine=prediction.affine,
                provenance={"patient": patient, "predictor": model, **made_by},
            ) as writer:
                for z0, slab in prediction.slabs:
                    if defect := not_a_distribution(slab, f"{model} of {patient}", z0):
                        raise checks["sums_to_one"].refuse(cell, defect)
                    writer.write(z0, slab)
            voxels = dict(zip(study.class_names, writer.facts.label_voxels, strict=True))
            volumes_ml = {n: count * voxel_ml(prediction.affine) for n, count in voxels.items()}
            checks["sums_to_one"].look(cell)
            checks["labels_are_not_empty"].look(cell, [f"no {n}" for n, count in voxels.items() if not count])
            checks["volumes_are_plausible"].look(cell, implausible_volumes(volumes_ml, study.checks.volume_ml))
            return Stored(
                key,
                writer.facts.version,
                {
                    "patient": patient,
                    "model": model,
                    "shape": metadata.by(prediction.shape),
                    "bytes": writer.facts.size,
                    "device": metadata.device(prediction.device, leased),
                    "memory estimated (GiB)": round(prediction.memory_bytes / 2**30, 2),
                    "voxels by label": dg.MetadataValue.json(voxels),
                    "volumes (ml)": dg.MetadataValue.json({n: round(ml, 2) for n, ml in volumes_ml.items()}),
                    "preview": preview_softmax(open_softmax(objects, key), f"{model} of {patient}"),
                },
            )

        yield from materialise(context, objects, predict, checks)

    return [softmax]


def require_unseen(model_folder: Path, model: str, patient: str) -> None:
    """A SegmentationError if a model has seen the patient: who left the training set is a test patient of new models only."""
    if patient in trained_on(model_folder):
        raise SegmentationError(
            "predicting",
            f"{model} of {patient}",
            "the model was trained on this patient, so that its scores would say nothing",
            "Train the model again (its dataset is out of date), or leave the patient out of the test set and of its rule.",
        )


def not_a_distribution(slab: np.ndarray, subject: str, z0: int) -> SegmentationError | None:
    """What is wrong with a model's probabilities (C, dz, Y, X) that begin at slice z0; None if nothing is."""
    try:
        require_probabilities(slab, attempted="predicting", subject=subject, error=SegmentationError, z0=z0)
    except SegmentationError as defect:
        return defect
    return None


def implausible_volumes(volumes_ml: dict[str, float], limits: Mapping[str, tuple[float, float]]) -> list[str]:
    """Which organs are too small or too large to be true.

    Args:
        volumes_ml: class → volume in ml, background included.
        limits: organ → least and most, ml; an organ that is not named is only compared with the scan.
    """
    whole, odd = sum(volumes_ml.values()), []
    for organ, ml in volumes_ml.items():
        if organ == "background" or not ml:
            continue
        low, high = limits.get(organ, (0.0, whole / 2))
        if not low <= ml <= high:
            odd.append(f"{organ} of {ml:.1f} ml (plausible: {low:g} … {high:g})")
    return odd


def preview_softmax(volume: SoftmaxVolume, title: str) -> dg.MarkdownMetadataValue:
    """The middle slice of what is foreground in a stored volume, as an image for the UI."""
    z = volume.fullest_slice
    png = previews.preview_softmax(
        None,
        volume.slab(z, z + 1)[:, 0],
        spacing_mm=volume.spacing_mm,
        orientation=volume.affine,
        class_names=volume.class_names,
        title=f"{title}, slice {z}",
    )
    return metadata.image(png, f"{title}, slice {z}")
