"""Uploads as operations: patients, models, preprocessed datasets and predictions from a folder of the machine of the run."""

from pathlib import Path

import dagster as dg
from pydantic import Field

from curvas_assets.errors import CurvasError
from curvas_assets.orchestration.operations import selection, upload_artefacts
from curvas_assets.orchestration.operations.operation import FOLDER, Operation, Session
from curvas_assets.orchestration.operations.upload_patients import refusals_table, upload_patients
from curvas_assets.orchestration.operations.upload_predictions import upload_predictions
from curvas_assets.orchestration.sensors import register, roles_of
from curvas_assets.stages import table

ORIGIN = "Where it comes from, in your own words: who made it, when, with what. Shown with the partition."
MOST_NAMED = 50


class UploadPatients(dg.Config):
    folder: str = Field(
        description=f"{FOLDER} It contains one folder per patient, named with or without the prefix; or the study's files at the places "
        "that the study file gives them, such as the challenge's archive."
    )
    patients: list[str] = Field(default=["all"], description=f"Patients to upload. {selection.PATIENTS}")


class UploadModel(dg.Config):
    folder: str = Field(
        description=f"{FOLDER} nnU-Net's results of one trainer: plans.json, dataset.json, fold_…/checkpoint_best.pth."
    )
    model: str = Field(description="The model of the study that it becomes, such as anno1_init112233_foldall.")
    origin: str = Field(default="", description=ORIGIN)
    voxel_order: str = Field(
        default="",
        description="Voxel order of the scans it was trained on, such as LPS or RAS. Empty: the order that its dataset.json or its "
        "reader says, else that of the study's training scans.",
    )


class UploadPreprocessing(dg.Config):
    folder: str = Field(description=f"{FOLDER} One dataset of nnUNet_preprocessed.")
    annotator: str = Field(
        description="The annotator from whose label maps it was made, such as anno1, or the fusion of several, such as majority."
    )
    origin: str = Field(default="", description=ORIGIN)


class UploadPredictions(dg.Config):
    folder: str = Field(
        description=f"{FOLDER} What nnUNetv2_predict --save_probabilities wrote: <patient>.npz and <patient>.nii.gz, "
        "with its dataset.json and plans.json."
    )
    model: str = Field(description="The model of the study that made them, such as anno1_init112233_foldall.")
    patients: list[str] = Field(default=["all"], description=f"Patients to upload. {selection.PATIENTS}")
    origin: str = Field(default="", description=ORIGIN)


def _upload_patients(session: Session, settings: UploadPatients) -> dg.Output[None]:
    study, bucket = session.study, session.bucket
    done = upload_patients(
        session.objects(), session.layout, study, Path(settings.folder), settings.patients, session.tell
    )
    added = register(session.context, study, session.partitions, bucket)
    roles = roles_of(study, [*done.uploaded, *done.unchanged], most=MOST_NAMED)
    for role in roles:
        session.tell(role)
    if done.refused:
        raise dg.Failure(
            f"{len(done.refused)} patients were refused, {len(done.uploaded)} uploaded, {len(done.unchanged)} "
            f"unchanged:\n{_listed(done.refused)}",
            metadata={
                "refused": dg.MetadataValue.json(done.refused),
                "table": dg.MetadataValue.md(refusals_table(done.refused)),
            },
            allow_retries=False,
        )
    return dg.Output(
        None,
        metadata={
            "uploaded": ", ".join(done.uploaded) or "none",
            "unchanged": ", ".join(done.unchanged) or "none",
            "without a label map": "; ".join(f"{p}: {', '.join(names)}" for p, names in done.lacking.items()) or "none",
            "registered": ", ".join(added) or "none",
            "what the study makes of them": dg.MetadataValue.md("\n".join(f"- {role}" for role in roles) or "none"),
            "bytes": done.size,
        },
    )


def _upload_model(session: Session, settings: UploadModel) -> dg.Output[None]:
    stored = upload_artefacts.upload_model(
        session.own_objects(),
        session.layout,
        session.study,
        settings.model,
        Path(settings.folder),
        settings.origin,
        settings.voxel_order.strip().upper() or None,
    )
    return session.report(table.TRAINED_MODEL, settings.model.strip(), stored)


def _upload_preprocessing(session: Session, settings: UploadPreprocessing) -> dg.Output[None]:
    stored = upload_artefacts.upload_preprocessing(
        session.own_objects(), session.layout, session.study, settings.annotator, Path(settings.folder), settings.origin
    )
    return session.report(table.PREPROCESSED_DATASET, settings.annotator.strip(), stored)


def _upload_predictions(session: Session, settings: UploadPredictions) -> dg.Output[None]:
    stored: list[str] = []
    refused: dict[str, str] = {}
    for cell, outcome in upload_predictions(
        session.own_objects(),
        session.layout,
        session.study,
        settings.model,
        Path(settings.folder),
        settings.patients,
        settings.origin,
        session.tell,
    ):
        if isinstance(outcome, CurvasError):
            refused[cell] = str(outcome)
        else:
            session.report(table.SOFTMAX, cell, outcome)
            stored.append(cell)
    if refused:
        raise dg.Failure(
            f"{len(refused)} predictions were refused, {len(stored)} stored:\n{_listed(refused)}",
            metadata={"refused": dg.MetadataValue.json(refused)},
            allow_retries=False,
        )
    return dg.Output(None, metadata={"stored": ", ".join(stored)})


def _listed(refused: dict[str, str]) -> str:
    return "\n".join(f"- {reason}" for reason in refused.values())


OPERATIONS = (
    Operation(
        "upload_patients",
        "Validates each patient, uploads the files that are not in the bucket yet, and registers new patients.",
        UploadPatients,
        _upload_patients,
    ),
    Operation(
        "upload_model",
        "Checks a trained model and makes it the partition of trained_model.",
        UploadModel,
        _upload_model,
    ),
    Operation(
        "upload_preprocessing",
        "Checks a preprocessed dataset and makes it the partition of preprocessed_dataset.",
        UploadPreprocessing,
        _upload_preprocessing,
    ),
    Operation(
        "upload_predictions",
        "Checks predictions of nnU-Net against their patients and makes them partitions of softmax.",
        UploadPredictions,
        _upload_predictions,
    ),
)
