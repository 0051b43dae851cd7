"""Dataset: nnU-Net's fingerprint, plans and preprocessed training patients, one dataset an annotator."""

import tempfile
from contextlib import ExitStack
from pathlib import Path

import dagster as dg

from curvas_assets.assets.cohort import OWNERS, fetch_files
from curvas_assets.errors import MissingArtefactError, SegmentationError
from curvas_assets.geometry import order_of
from curvas_assets.orchestration.bucket import Bucket
from curvas_assets.orchestration.cells import materialise, one_by_one
from curvas_assets.orchestration.checks import Check, Checks, specs
from curvas_assets.orchestration.execution import RETRY, StageNeeds
from curvas_assets.orchestration.io_manager import Artefacts, Stored, artefact
from curvas_assets.orchestration.partitions import Partitions
from curvas_assets.orchestration.scratch import scratch_space
from curvas_assets.segmentation import prepare_dataset
from curvas_assets.storage import directories, tables
from curvas_assets.storage.layout import Layout
from curvas_assets.storage.objects import ObjectStore
from curvas_assets.study import Study

PREPROCESSING_GROWTH = 7
"""Scratch of one dataset, as a multiple of the files it is made from: 3.7 measured on phantoms, CTs are noisier, and scans
that are not in nnU-Net's voxel order are copied."""

CHECKS = (
    Check(
        "training_patients_are_complete",
        "Every training patient is in it; tells whom its annotator did not draw.",
    ),
)


def build(study: Study, partitions: Partitions) -> list[dg.AssetsDefinition]:
    """The datasets of one study."""
    needs = StageNeeds.of(study)

    @dg.asset(
        ins={"scan": dg.AssetIn(partition_mapping=partitions.training_patients)},
        partitions_def=partitions.annotator,
        backfill_policy=dg.BackfillPolicy.multi_run(5),
        group_name="dataset",
        owners=OWNERS,
        kinds={"nnunet", "blosc2"},
        code_version=f"2-{study.fingerprint('plans', 'organs', 'training_patients')}",
        metadata=artefact("folder"),
        output_required=False,
        check_specs=specs("preprocessed_dataset", CHECKS, partitions.annotator),
        op_tags=needs.dataset.op_tags,
        retry_policy=RETRY,
    )
    def preprocessed_dataset(context: dg.AssetExecutionContext, bucket: Bucket, scan: Artefacts):
        """The training patients as one annotator drew them, fingerprinted, planned and preprocessed by nnU-Net.

        All in one voxel order (LPS), whatever their files are in; models inherit it, and predictions come back on each
        scan's own voxels.
        """
        objects, layout = bucket.checked_objects(hours=needs.dataset.hours * len(context.partition_keys)), bucket.layout
        checks = Checks(*CHECKS)
        label_files = {annotator.name: annotator.file for annotator in study.annotators}

        patients: dict[str, Path] = {}
        # Annotator → patients whom they did not annotate, as the intake's ledger tells.
        left_out: dict[str, list[str]] = {}

        with ExitStack() as held:

            def fetched() -> dict[str, Path]:
                """Image and annotations of every training patient, fetched once for all annotators of the step."""
                if not patients:
                    records = {patient: scan[patient].record() for patient in sorted(scan)}
                    size = sum(file["size"] for record in records.values() for file in record["files"])
                    scratch = held.enter_context(scratch_space("preprocessed_dataset", PREPROCESSING_GROWTH * size))
                    for patient, record in records.items():
                        fetch_files(objects, record, scratch / patient, [study.image, *label_files.values()])
                        for annotator in record.get("not_annotated", []):
                            left_out.setdefault(annotator, []).append(patient)
                    patients.update({patient: scratch / patient for patient in records})
                return patients

            def prepare(annotator: str) -> Stored:
                scratch = next(iter(fetched().values())).parent
                omitted = left_out.get(annotator, [])
                drawn = {patient: at for patient, at in fetched().items() if patient not in omitted}
                checks["training_patients_are_complete"].look(annotator, [f"did not annotate {p}" for p in omitted])
                if omitted:
                    context.log.warning(f"{annotator} did not annotate {', '.join(omitted)}: not in this dataset")
                    require_enough(study, annotator, list(drawn), omitted)
                with tempfile.TemporaryDirectory(dir=scratch) as folder:
                    facts = prepare_dataset(
                        study,
                        annotator,
                        {p: (at / study.image, at / label_files[annotator]) for p, at in drawn.items()},
                        Path(folder),
                        all_annotations={p: [at / f for f in label_files.values()] for p, at in drawn.items()},
                        on_progress=lambda done, total, patient: context.log.info(
                            f"{annotator}: {patient} preprocessed, {done} of {total}"
                        ),
                    )
                    key = layout.dataset(annotator)
                    stored = directories.write_directory(objects, key, Path(folder))
                described = facts.as_dict()
                return Stored(
                    key,
                    facts.digest,
                    {
                        "annotator": annotator,
                        "cases": described["cases"],
                        "not annotated": ", ".join(omitted) or "none",
                        "voxel order": facts.voxel_order or "unknown",
                        "patch size": str(described["patch_size"]),
                        "target spacing (mm)": str(described["spacing_mm"]),
                        "bytes": stored.size,
                        "facts": dg.MetadataValue.json(described),
                    },
                )

            yield from materialise(context, objects, one_by_one(prepare), checks)

    return [preprocessed_dataset]


def require_enough(study: Study, annotator: str, drawn: list[str], omitted: list[str]) -> None:
    """A SegmentationError if those whom an annotator did annotate are too few to train on, or for the study's folds.

    nnU-Net makes a random split, without a word, of a fold that the splits do not have.
    """
    needed = max(1 if fold == "all" else max(2, int(fold) + 1) for fold in study.folds)
    if len(drawn) < needed:
        raise SegmentationError(
            "preparing the dataset",
            f"dataset of {annotator}",
            f"{len(drawn)} training patients are left, {needed} are needed (folds {', '.join(map(str, study.folds))}): "
            f"the label maps of {', '.join(omitted)} are blank, which means not annotated",
            "Upload these annotations, use fewer folds, or set intake.blank_annotation to absent if there is no organ.",
        )


def order_of_training_scans(objects: ObjectStore, layout: Layout, study: Study) -> str | None:
    """The voxel order of the study's training scans that were taken in; None if they differ, or there are none.

    It is the order that a model knows whose `dataset.json` does not say it: nnU-Net left scans as they were.
    """
    orders: set[str] = set()
    for patient in study.training_patients():
        try:
            orders.add(order_of(tables.read_json(objects, layout.scan(patient))["affine"]))
        except MissingArtefactError:
            continue
    return orders.pop() if len(orders) == 1 else None
