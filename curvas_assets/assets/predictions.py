"""Predictions: the softmax of one patient by one model."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path
from typing import Any

import dagster as dg

from curvas_assets.assets.cohort import OWNERS, fetch_files
from curvas_assets.errors import DiskError
from curvas_assets.orchestration import metadata
from curvas_assets.orchestration.bucket import Bucket
from curvas_assets.orchestration.cells import Outcome, materialise
from curvas_assets.orchestration.devices import leased_device
from curvas_assets.orchestration.execution import RETRY, StageNeeds
from curvas_assets.orchestration.io_manager import Artefacts, Stored, artefact
from curvas_assets.orchestration.partitions import Partitions, grid_key
from curvas_assets.orchestration.provenance import code_facts
from curvas_assets.orchestration.scratch import bytes_below, scratch_space
from curvas_assets.report import previews
from curvas_assets.segmentation import Predictor, PreparedScan
from curvas_assets.storage import directories
from curvas_assets.storage.softmax import SoftmaxVolume, SoftmaxWriter, open_softmax
from curvas_assets.study import Study


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
        code_version=f"1-{study.fingerprint('prediction')}",
        metadata=artefact("softmax"),
        output_required=False,
        pool=needs.prediction.pool,
        op_tags=needs.prediction.op_tags,
        retry_policy=RETRY,
        check_specs=[
            dg.AssetCheckSpec(
                "labels_are_not_empty",
                asset="softmax",
                description="Each model found at least one voxel of every organ in each patient of the run.",
            )
        ],
    )
    def softmax(context: dg.AssetExecutionContext, bucket: Bucket, trained_model: Artefacts, test_scan: Artefacts):
        """Class probabilities (class, z, y, x) of one patient by one model, at 16 bits, as one zarr volume.

        A step takes any rectangle of patients × models: each patient is fetched and preprocessed once, each model loaded
        once, and every volume is stored and reported as soon as it is done.
        """
        objects, layout = (
            bucket.checked_objects(hours=needs.prediction.hours * len(context.partition_keys)),
            bucket.layout,
        )
        empty: list[str] = []

        def predict(keys: Sequence[str]) -> Iterator[tuple[str, Outcome]]:
            predictor = Predictor(study, tell=context.log.info)
            code = code_facts("nnunetv2", "torch")
            models_wanted = {grid_key(context, key)["model"] for key in keys}
            model_bytes = sum(bytes_below(objects, f"{layout.model(model)}/") for model in models_wanted)
            with ExitStack() as held:
                try:
                    scratch = held.enter_context(scratch_space("softmax", model_bytes))
                except DiskError as error:
                    yield from ((key, error) for key in keys)
                    return
                leased = held.enter_context(leased_device(context.log.info))
                models: dict[str, Path] = {}
                for patient, cells in groupby(keys, key=lambda key: grid_key(context, key)["patient"]):
                    with tempfile.TemporaryDirectory(dir=scratch) as folder:
                        opened = None
                        for key in cells:
                            try:
                                if opened is None:
                                    record = test_scan[patient].record()
                                    fetch_files(objects, record, Path(folder), [study.image])
                                    opened = predictor.open(Path(folder, study.image), patient)
                                model = grid_key(context, key)["model"]
                                if model not in models:
                                    models[model] = trained_model[model].folder(Path(scratch, "models", model))
                                made_by = {
                                    "model_version": directories.version_of(objects, layout.model(model)),
                                    "code": code,
                                }
                                yield key, store(predictor, opened, patient, model, models[model], leased, made_by)
                            except Exception as error:
                                yield key, error

        def store(
            predictor: Predictor,
            opened: PreparedScan,
            patient: str,
            model: str,
            model_folder: Path,
            leased: str | None,
            made_by: dict[str, Any],
        ) -> Stored:
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
                tail=study.prediction.tail,
            ) as writer:
                for z0, slab in prediction.slabs:
                    writer.write(z0, slab)
            voxels = dict(zip(study.class_names, writer.facts.label_voxels, strict=True))
            if not all(voxels.values()):
                empty.append(f"{model} of {patient}: no {', '.join(n for n, count in voxels.items() if not count)}")
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
                    "preview": preview_softmax(open_softmax(objects, key), f"{model} of {patient}"),
                },
            )

        yield from materialise(context, objects, predict)
        yield dg.AssetCheckResult(
            passed=not empty,
            check_name="labels_are_not_empty",
            severity=dg.AssetCheckSeverity.WARN,
            metadata={"empty": dg.MetadataValue.json(empty)},
        )

    return [softmax]


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
