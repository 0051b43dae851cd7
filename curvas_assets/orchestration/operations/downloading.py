"""Downloads as operations: artefacts, or a predictor for a challenge, into a folder of the machine of the run."""

import shlex
from pathlib import Path

import dagster as dg
from pydantic import Field

from curvas_assets.errors import StudyError
from curvas_assets.orchestration.operations import selection
from curvas_assets.orchestration.operations.download import What, download
from curvas_assets.orchestration.operations.export_submission import export_submission
from curvas_assets.orchestration.operations.operation import FOLDER, Operation, Session
from curvas_assets.orchestration.provenance import code_facts
from curvas_assets.submission.record import Sockets


class Download(dg.Config):
    what: What = Field(
        description="dataset: the patients' files as uploaded; preprocessing: of the models' annotators; predictions and "
        "ensembles: zarr volumes, label maps and an ensemble's maps as NIfTI; scores: per patient, the whole table as CSV, and "
        "metrics.csv."
    )
    folder: str = Field(
        description=f"{FOLDER} Made if it is not there; files that are there already are not fetched again."
    )
    patients: list[str] = Field(default=["all"], description=f"Patients to download. {selection.PATIENTS}")
    models: list[str] = Field(default=["all"], description=f"Models and ensembles to download. {selection.PREDICTORS}")
    probabilities: bool = Field(
        default=False,
        description="For predictions and ensembles: also write one NIfTI of probabilities per organ (at clinical size about 1 GB each "
        "before compression).",
    )


def _download(session: Session, settings: Download) -> dg.Output[None]:
    done = download(
        session.own_objects(claim=False),
        session.layout,
        session.study,
        settings.what,
        session.patients(settings.patients),
        selection.choose_predictors(session.study, settings.models),
        Path(settings.folder),
        session.tell,
        probabilities=settings.probabilities,
    )
    if done.refused:
        raise dg.Failure(
            f"{len(done.refused)} artefacts were refused, {done.fetched} fetched:\n"
            + "\n".join(f"- {reason}" for reason in done.refused.values()),
            metadata={"refused": dg.MetadataValue.json(done.refused)},
            allow_retries=False,
        )
    if not done.fetched:
        raise dg.Failure(f"nothing of {settings.what} is in the bucket for what was asked", allow_retries=False)
    if done.missing:
        session.context.log.warning(f"not in the bucket: {', '.join(done.missing)}")
    return dg.Output(
        None,
        metadata={
            "folder": dg.MetadataValue.path(settings.folder),
            "fetched": done.fetched,
            "bytes": done.size,
            "not in the bucket": ", ".join(done.missing) or "none",
            "not predicted in this study": ", ".join(done.unscored) or "none",
        },
    )


class ExportSubmission(dg.Config):
    predictor: str = Field(
        description="One model, ensemble or calibrated predictor, such as anno1_init112233_foldall, ensemble_all or "
        "isotonic_ensemble_all."
    )
    folder: str = Field(description=f"{FOLDER} New or empty, or with an earlier export, which is replaced.")
    image: str = Field(default=Sockets.image, description="Folder below images/ in which the challenge puts the scan.")
    labels: str = Field(default=Sockets.labels, description="Folder below images/ for the label map.")
    confidence: str = Field(
        default=Sockets.confidence,
        description="Folder below images/ for an organ's confidence, with {organ} in its name.",
    )


def _export_submission(session: Session, settings: ExportSubmission) -> dg.Output[None]:
    chosen = selection.choose_predictors(session.study, [settings.predictor])
    if len(chosen) != 1:
        found = f"{settings.predictor} names {len(chosen)} predictors"
        raise StudyError("exporting a submission", session.study.name, found, "Give the name of one.")
    done = export_submission(
        session.own_objects(claim=False),
        session.layout,
        session.study,
        chosen[0],
        Path(settings.folder),
        session.tell,
        sockets=Sockets(settings.image, settings.labels, settings.confidence),
        code=code_facts("nnunetv2", "torch"),
    )
    return dg.Output(
        None,
        metadata={
            "folder": dg.MetadataValue.path(settings.folder),
            "members": len(done.submission.members),
            "bytes": done.size,
            "build": "docker build -f deploy/Dockerfile --target submission --build-context "
            f"{shlex.quote(f'exported={settings.folder}')} -t {chosen[0].lower()} .",
        },
    )


OPERATIONS = (
    Operation("download", "Fetches artefacts into a local folder.", Download, _download),
    Operation(
        "export_submission",
        "Puts a predictor into a folder from which a challenge's container is built.",
        ExportSubmission,
        _export_submission,
    ),
)
