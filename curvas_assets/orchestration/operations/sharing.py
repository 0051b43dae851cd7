"""The bundle as an operation: a folder of the machine of the run, a zip file in it, or one in the bucket."""

from contextlib import nullcontext
from pathlib import Path
from shutil import copyfile, copytree

import dagster as dg
from pydantic import Field

from curvas_assets.errors import ReportError
from curvas_assets.orchestration.operations import selection
from curvas_assets.orchestration.operations.operation import FOLDER, Operation, Session
from curvas_assets.orchestration.operations.share import share
from curvas_assets.orchestration.operations.transfer import human_bytes
from curvas_assets.orchestration.provenance import code_facts
from curvas_assets.orchestration.scratch import scratch_space
from curvas_assets.sharing import write_zip
from curvas_assets.stages.toolkit import Toolkit
from curvas_assets.storage import directories

NAME = "curvas-bundle"


class Share(dg.Config):
    folder: str = Field(
        default="",
        description=f"{FOLDER} It receives {NAME}, or {NAME}.zip, neither of which may be there. Empty: the bundle goes to the "
        "bucket alone.",
    )
    zip: bool = Field(
        default=True, description="One zip file in place of a folder; unpack it before opening index.html."
    )
    into_bucket: bool = Field(
        default=False, description="Also store the zip file in the bucket, below the reports; it replaces the last one."
    )
    patients: list[str] = Field(
        default=["all"],
        description=f"Patients to show; those who are scored are, the worst first. {selection.PATIENTS}",
    )
    predictors: list[str] = Field(
        default=[],
        description="Models or ensembles whose segmentations and maps to show beside those of the study's leading predictor.",
    )
    full_maps: list[str] = Field(
        default=[],
        description="Patients whose label map, entropy and mutual information are added on the scan's own voxels.",
    )
    probabilities: list[str] = Field(
        default=[],
        description="Cells such as ensemble_all|UKCHLL001, whose probabilities are added: a NIfTI for each organ on the scan's own "
        "voxels, float32.",
    )
    limit_mb: float = Field(
        default=200,
        gt=0,
        description="Size of the bundle without full maps and probabilities, MB; the best patients are left out first.",
    )


def _share(session: Session, settings: Share) -> dg.Output[None]:
    if not settings.folder and not settings.into_bucket:
        raise ReportError(
            "sharing", session.study.name, "neither a folder nor the bucket is named", "Set folder or into_bucket."
        )
    study, predictors = session.study, settings.predictors
    tools = _tools(session, into_bucket=settings.into_bucket)
    target = _free_place(settings) if settings.folder else None
    chosen = session.patients(settings.patients)
    full = session.patients(settings.full_maps) if settings.full_maps else []
    further = [name for name in study.predictors if name in predictors]
    if unknown := sorted(set(predictors) - set(further)):
        raise ReportError(
            "sharing",
            ", ".join(unknown),
            "it is no predictor of the study",
            f"Give names among {', '.join(study.predictors)}.",
        )
    with scratch_space("bundle") as scratch:
        folder, packed = scratch / NAME, scratch / f"{NAME}.zip"
        done = share(
            tools,
            folder,
            patients=chosen,
            predictors=further,
            full_maps=full,
            probabilities=settings.probabilities,
            limit_mb=settings.limit_mb,
            forbidden=_forbidden(session, scratch),
        )
        zipped = write_zip(folder, packed) if settings.zip or settings.into_bucket else 0
        if target is not None:
            target.parent.mkdir(parents=True, exist_ok=True)
            if settings.zip:
                copyfile(packed, target)
            else:
                copytree(folder, target)
        if settings.into_bucket:
            (scratch / "bucket").mkdir()
            packed.rename(scratch / "bucket" / packed.name)
            directories.write_directory(tools.objects, session.layout.bundle(), scratch / "bucket")
    if not done.patients:
        session.context.log.warning("no patient is in the viewer: run preview_patients first")
    as_zip = f", as a zip {human_bytes(zipped)}" if zipped else ""
    session.tell(f"{len(done.patients)} patients, {human_bytes(done.size)}{as_zip}")
    places: dict[str, dg.MetadataValue] = {"bundle": dg.MetadataValue.path(str(target))} if target is not None else {}
    if settings.into_bucket:
        places["in the bucket"] = dg.MetadataValue.text(f"{tools.objects.name}/{session.layout.bundle()}")
    return dg.Output(
        None,
        metadata={
            **places,
            "patients": len(done.patients),
            "bytes": done.size,
            "bytes as a zip": zipped,
            "bytes of full maps and probabilities": done.beside,
            "no room for": ", ".join([*done.omitted, *done.no_room]) or "none",
            "not in the bucket": ", ".join(done.missing) or "none",
        },
    )


def _free_place(settings: Share) -> Path:
    """Where the bundle goes; refused if something stands there."""
    target = Path(settings.folder).expanduser() / (f"{NAME}.zip" if settings.zip else NAME)
    if target.exists():
        raise ReportError("sharing", str(target), "it is there already", "Remove it, or give another folder.")
    return target


def _forbidden(session: Session, scratch: Path) -> list[str]:
    """Text that tells the store, a key of it, or a folder of this machine."""
    settings = session.bucket.settings()
    host = (settings.endpoint or "").rpartition("://")[2].strip("/")
    secrets = (settings.access_key, settings.secret_key, settings.session_token, host)
    return [
        *(text for text in secrets if text),
        f"s3://{settings.bucket}",
        str(scratch.parent),
        session.instance.root_directory,
    ]


def _tools(session: Session, *, into_bucket: bool) -> Toolkit:
    return Toolkit(
        study=session.study,
        objects=session.own_objects(claim=into_bucket),
        layout=session.layout,
        tell=session.tell,
        warn=session.context.log.warning,
        scratch=scratch_space,
        device=lambda: nullcontext(None),
        code=code_facts,
    )


OPERATIONS = (
    Operation(
        "share",
        "Writes report, tables and a viewer of the patients, as a folder or a zip that opens in a browser without keys.",
        Share,
        _share,
    ),
)
