"""The download as an operation: artefacts into a folder of the machine of the run."""

from pathlib import Path

import dagster as dg
from pydantic import Field

from curvas_assets.orchestration.operations import selection
from curvas_assets.orchestration.operations.download import What, download
from curvas_assets.orchestration.operations.operation import FOLDER, Operation, Session


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
        session.objects(),
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


OPERATIONS = (Operation("download", "Fetches artefacts into a local folder.", Download, _download),)
