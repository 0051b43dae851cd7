"""Uploads what was made elsewhere: checks it, converts it to the platform's form, stores it at the asset's place."""

import tempfile
from pathlib import Path

from curvas_assets.orchestration.environment import deployment
from curvas_assets.orchestration.operations.selection import choose_annotator, choose_models
from curvas_assets.orchestration.staleness import ELSEWHERE, MADE
from curvas_assets.segmentation import adopt_dataset, adopt_model
from curvas_assets.stages.stored import Stored
from curvas_assets.stages.train import curve_picture
from curvas_assets.storage import directories
from curvas_assets.storage.layout import Layout
from curvas_assets.storage.objects import ObjectStore
from curvas_assets.study import ModelId, Study


def upload_model(
    objects: ObjectStore,
    layout: Layout,
    study: Study,
    name: str,
    folder: Path,
    origin: str,
    voxel_order: str | None = None,
) -> Stored:
    """Store a trained nnU-Net model as the model of this name.

    Args:
        objects: the bucket.
        layout: where models stand in it.
        study: its models, classes and configuration.
        name: one of the study's models.
        folder: nnU-Net's results folder of one trainer, or a model of this platform that was downloaded.
        origin: where it comes from, in words; shown with the partition.
        voxel_order: of the scans it was trained on, such as LPS; None: as its dataset.json or its reader says, else that of
            the study's training scans.

    Raises:
        StudyError: the study has no such model.
        SegmentationError: it is no model of this study; says why.
    """
    (name,) = choose_models(study, [name])
    model = ModelId.parse(name)
    with tempfile.TemporaryDirectory(dir=deployment().scratch_folder()) as scratch:
        adopted = adopt_model(study, model, folder, Path(scratch, "model"), voxel_order=voxel_order)
        stored = directories.write_directory(objects, layout.model(name), Path(scratch, "model"))
    curve = adopted.curve
    return Stored(
        layout.model(name),
        stored.version,
        {
            **_provenance(folder, origin),
            **_labels(study, model.annotator),
            "seed": model.seed,
            "fold": str(model.fold),
            "checkpoint": adopted.checkpoint,
            "trainer": adopted.trainer,
            "voxel order": adopted.voxel_order or "not told: that of the study's training scans",
            "normalisation": adopted.normalisation,
            "learned from none it predicts": adopted.unseen,
            "epochs": adopted.epochs,
            "best EMA pseudo-Dice": "unknown" if adopted.best_ema_dice is None else round(adopted.best_ema_dice, 4),
            "bytes": stored.size,
            **({"training curve": curve_picture(curve, name)} if len(curve) else {}),
        },
    )


def upload_preprocessing(
    objects: ObjectStore, layout: Layout, study: Study, annotator: str, folder: Path, origin: str
) -> Stored:
    """Store a dataset of `nnUNet_preprocessed` as the dataset of an annotator, or of a fusion of several.

    Raises:
        StudyError: the study has no such annotator.
        SegmentationError: it is no dataset of this study; says why.
    """
    annotator = choose_annotator(study, annotator)
    with tempfile.TemporaryDirectory(dir=deployment().scratch_folder()) as scratch:
        facts = adopt_dataset(study, annotator, folder, Path(scratch, "dataset"))
        stored = directories.write_directory(objects, layout.dataset(annotator), Path(scratch, "dataset"))
    return Stored(
        layout.dataset(annotator),
        facts.digest,
        {
            **_provenance(folder, origin),
            **_labels(study, annotator),
            "cases": facts.cases,
            "voxel order": facts.voxel_order or "unknown",
            "training patients": len(study.training_patients()),
            "bytes": stored.size,
            "facts": facts.as_dict(),
        },
    )


def _provenance(folder: Path, origin: str) -> dict[str, str]:
    return {MADE: ELSEWHERE, "origin": origin or "not told", "uploaded from": str(folder)}


def _labels(study: Study, annotator: str) -> dict[str, str]:
    """Whose labels it was trained on."""
    fusion = study.fusion(annotator)
    return {"annotator": annotator, **({"labels": f"fused of several annotators: {fusion}"} if fusion else {})}
