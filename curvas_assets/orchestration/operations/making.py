"""Operations that make partitions by runs of the stage jobs: what is missing, what people name, what changed."""

from typing import Any

import dagster as dg
import pandas as pd
from pydantic import Field

from curvas_assets.errors import CurvasError
from curvas_assets.orchestration import metadata, nightly
from curvas_assets.orchestration.asset_keys import asset_key
from curvas_assets.orchestration.dagster_internals import StaleStatus
from curvas_assets.orchestration.operations import selection
from curvas_assets.orchestration.operations.operation import Operation, Session
from curvas_assets.orchestration.operations.removing import NEVER_AGAIN
from curvas_assets.orchestration.scope import Scope, columns_of, named_columns
from curvas_assets.orchestration.sensors import register
from curvas_assets.orchestration.staleness import Staleness
from curvas_assets.orchestration.study_run import StageRunner, launcher_tags
from curvas_assets.stages.table import FIGURES, REPORT_PAGE, STAGES
from curvas_assets.study import Study

TOGETHER = {FIGURES.name, REPORT_PAGE.name}
"""Assets of one step: whoever names one of them means both."""


class MakeMissing(dg.Config):
    stages: list[str] = Field(
        default=["all"],
        description=f"Stages to make, in the order of the study: all, or assets such as softmax and scores, or jobs: {', '.join(STAGES)}.",
    )
    patients: list[str] = Field(default=["all"], description=f"Patients to make them for. {selection.PATIENTS}")
    models: list[str] = Field(
        default=["all"],
        description=f"Models and ensembles. {selection.PREDICTORS} A model includes the ensembles it belongs to; "
        "a calibrated predictor stands for what it is made from.",
    )
    stale: bool = Field(
        default=False, description="Also make what exists but is out of date; otherwise only what is missing."
    )
    elsewhere: bool = Field(
        default=False,
        description="Also make what people uploaded, and train models of which only predictions were uploaded. Otherwise "
        "uploads are left alone, as `study` leaves them.",
    )


class Redo(dg.Config):
    stages: list[str] = Field(
        description="Stages to make again: assets such as softmax and scores, or jobs such as predict. `figures` and `report` are made together.",
    )
    patients: list[str] = Field(description=f"Patients; without effect on models and tables. {selection.PATIENTS}")
    models: list[str] = Field(
        description=f"Models and ensembles; without effect on scans, scores and tables. {selection.PREDICTORS} Datasets are "
        "those of the models' annotators; a calibrated predictor stands for what it is made from.",
    )
    dry_run: bool = Field(default=True, description="Only list what would be made again.")


class RefreshScores(dg.Config):
    patients: list[str] = Field(
        default=["all"],
        description=f"Patients to look at; only those with a change are scored again. {selection.PATIENTS}",
    )
    predict: bool = Field(
        default=False,
        description="Also predict what is out of date, which uses GPUs; otherwise the run names these patients.",
    )


def _make_missing(session: Session, settings: MakeMissing) -> None:
    study = session.study
    everyone, everything = settings.patients == [selection.ALL], settings.models == [selection.ALL]
    scope = Scope(
        None if everyone else frozenset(session.patients(settings.patients)),
        None if everything else columns_of(study, selection.choose_predictors(study, settings.models)),
        stale=settings.stale,
        elsewhere=settings.elsewhere,
    )
    runner = StageRunner(session.context, scope)
    left = [name for stage in chosen_stages(study, settings.stages) for name in runner.run(stage)]
    if left:
        raise dg.Failure(
            f"{len(left)} could not be made: {'; '.join(left)}. The runs launched here say why. Remove the causes, and launch "
            "this again: finished work is kept.",
            allow_retries=False,
        )


def _redo(session: Session, settings: Redo) -> dg.Output[None]:
    study = session.study
    stages = chosen_assets(study, settings.stages)
    scope = Scope(
        frozenset(session.patients(settings.patients)),
        named_columns(study, selection.choose_predictors(study, settings.models)),
        since=session.instance.event_log_storage.get_maximum_record_id() or 0,
    )
    named = redo_table(session.staleness(), scope, [asset for assets in stages.values() for asset in assets])
    facts = {"partitions": int(named["partitions"].sum()), "named": metadata.table(named)}
    session.tell(named.to_string(index=False))
    if not facts["partitions"]:
        raise dg.Failure("the study has no such partition: nothing to make again", allow_retries=False)
    if settings.dry_run:
        session.tell("nothing was made: this is only a list. To make these again: dry_run: false")
        return dg.Output(None, metadata={"made again": False, **facts})
    runner = StageRunner(session.context, scope)
    left = [name for stage, assets in stages.items() for name in runner.run(stage, assets)]
    if left:
        raise dg.Failure(
            f"{len(left)} could not be made again: {'; '.join(left)}. The old artefacts are kept. The runs launched here "
            "say why.",
            allow_retries=False,
        )
    return dg.Output(None, metadata={"made again": True, **facts})


def _refresh_scores(session: Session, settings: RefreshScores) -> dg.Output[None]:
    register(session.context, session.study, session.partitions, session.bucket)
    asked = set(session.patients(settings.patients))
    staleness = session.staleness()
    patients = [p for p in nightly.concerned(staleness, predict=settings.predict) if p in asked]
    fits = "; calibrators are to be fitted" if nightly.fit_is_due(staleness) else ""
    session.tell(f"something changed for {len(patients)} patients: {', '.join(patients) or 'none'}{fits}")
    left = nightly.work(
        session.staleness,
        lambda stage, scope: StageRunner(session.context, scope).run(stage),
        patients,
        session.context.log.error,
        predict=settings.predict,
    )
    if left:
        raise dg.Failure(
            f"{len(left)} could not be made: {'; '.join(left)}. The old scores are kept.", allow_retries=False
        )
    return dg.Output(None, metadata={"patients": ", ".join(patients) or "none"})


def chosen_stages(study: Study, asked: list[str]) -> list[str]:
    """Stage jobs in the order of the study, from a list of their names, of assets, or `all`."""
    return list(chosen_assets(study, asked))


def chosen_assets(study: Study, asked: list[str]) -> dict[str, list[str]]:
    """Stage job → those of its assets that a list names: by their own names, by the job's, or by `all`.

    An asset belongs to the first job that makes it; figures and report come from one step.
    """
    words = set(asked)
    known = {selection.ALL, *STAGES, *(asset for assets in STAGES.values() for asset in assets)}
    if not words or words - known:
        raise CurvasError(
            "choosing stages",
            study.name,
            f"{', '.join(sorted(words - known)) or 'nothing'} is no stage",
            f"Use all, or some of {', '.join(sorted(known))}.",
        )
    if words & TOGETHER:
        words |= TOGETHER
    chosen: dict[str, list[str]] = {}
    for stage, assets in STAGES.items():
        before = {asset for earlier in chosen.values() for asset in earlier}
        whole = bool(words & {stage, selection.ALL})
        if made := [asset for asset in assets if whole or (asset in words and asset not in before)]:
            chosen[stage] = made
    return chosen


def redo_table(staleness: Staleness, scope: Scope, assets: list[str]) -> pd.DataFrame:
    """What `redo` would make again: columns asset, partitions, fresh and uploaded (counts among these), which."""
    rows: list[dict[str, Any]] = []
    for asset in assets:
        key = asset_key(asset)
        named = scope.due(staleness, key)
        found = [staleness.status(key, partition) for partition in named]
        keys = ", ".join(str(p) for p in named if p is not None)
        rows.append(
            {
                "asset": asset,
                "partitions": len(named),
                "fresh": sum(one.status is StaleStatus.FRESH and not one.elsewhere for one in found),
                "uploaded": sum(one.elsewhere and one.status is not StaleStatus.MISSING for one in found),
                "which": keys if len(keys) < 2000 else f"{keys[:2000]} …",
            }
        )
    return pd.DataFrame(rows)


OPERATIONS = (
    Operation(
        "make_missing",
        "Launches runs for what is missing (or stale) and follows them.",
        MakeMissing,
        _make_missing,
        launcher_tags("make_missing"),
    ),
    Operation(
        "redo",
        "Makes exactly the named partitions again, whether they are stale or not. Lists them unless dry_run is off.",
        Redo,
        _redo,
        launcher_tags("redo") | NEVER_AGAIN,  # a restart would make again what it has just made
    ),
    Operation(
        "refresh_scores",
        "Takes in, ensembles and scores again only the patients for whom something changed; fits calibrators that are out of date.",
        RefreshScores,
        _refresh_scores,
        launcher_tags("refresh_scores"),
    ),
)
