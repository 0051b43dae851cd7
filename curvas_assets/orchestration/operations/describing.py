"""What this deployment is, and what the study will still take on it, as operations."""

from collections.abc import Collection
from dataclasses import replace

import dagster as dg
from pydantic import Field

from curvas_assets.orchestration import metadata
from curvas_assets.orchestration.environment import deployment
from curvas_assets.orchestration.forecasting import (
    Capacity,
    coming_of_study,
    forecast_study,
    told_of_trainings,
)
from curvas_assets.orchestration.operations import about, leftovers, selection
from curvas_assets.orchestration.operations.making import chosen_assets
from curvas_assets.orchestration.operations.operation import NoSettings, Operation, Session
from curvas_assets.orchestration.operations.transfer import human_bytes
from curvas_assets.orchestration.scope import Scope, columns_of
from curvas_assets.orchestration.staleness import Staleness
from curvas_assets.orchestration.state import state_table
from curvas_assets.stages.patients import uploaded
from curvas_assets.statistics.forecast import as_shown, in_words


class Forecast(dg.Config):
    stages: list[str] = Field(
        default=["all"],
        description="Stages that would be made: all, as `study` makes them, or assets such as softmax and scores, or jobs "
        "such as predict.",
    )
    patients: list[str] = Field(default=["all"], description=f"Patients to make them for. {selection.PATIENTS}")
    models: list[str] = Field(
        default=["all"],
        description=f"Models and ensembles. {selection.PREDICTORS} A model includes the ensembles it belongs to; "
        "a calibrated predictor stands for what it is made from.",
    )


def _forecast(session: Session, settings: Forecast) -> dg.Output[None]:
    study = session.study
    assets = {name for names in chosen_assets(study, settings.stages).values() for name in names}
    scope = Scope.of_study(study)
    if settings.patients != [selection.ALL]:
        scope = replace(scope, patients=frozenset(session.patients(settings.patients)))
    if settings.models != [selection.ALL]:
        scope = replace(scope, columns=columns_of(study, selection.choose_predictors(study, settings.models)))
    folders = uploaded(session.objects(), session.layout, study).digests
    return dg.Output(None, metadata=_what_is_to_come(session, session.staleness(), scope, folders, assets))


def _what_is_to_come(
    session: Session,
    staleness: Staleness,
    scope: Scope,
    folders: Collection[str],
    assets: Collection[str] | None = None,
) -> dict[str, dg.MetadataValue]:
    """A forecast as metadata, the sentence first, without stages of which nothing is to come; the log tells these too."""
    capacity = Capacity.of(session.instance, deployment())
    found = forecast_study(session.study, staleness, scope, capacity, assets)
    shown, sentence = as_shown(found), in_words(found)
    known = set(session.known())
    notes = about.what_a_forecast_leaves_out(session.study, known, folders)
    again = told_of_trainings(staleness, coming_of_study(session.study, staleness, scope, assets))
    session.tell("\n".join([sentence, *again, str(capacity), *notes, shown.to_string(index=False)]))
    coming = shown[shown["to come"] > 0]
    return {
        "still to come": dg.MetadataValue.text(sentence),
        **({"trained again": dg.MetadataValue.text(" ".join(again))} if again else {}),
        **({"forecast": metadata.table(coming)} if len(coming) else {}),
        "capacity": dg.MetadataValue.text(str(capacity)),
        **({"patients not counted": dg.MetadataValue.text(" ".join(notes))} if notes else {}),
    }


def _about(session: Session, _: NoSettings) -> dg.Output[None]:
    objects, layout, study = session.objects(), session.layout, session.study
    known, folders = session.known(), uploaded(objects, layout, study).digests
    facts = {**about.about_study(study, known), **about.about_patients(study, known, folders)}
    orphans = leftovers.orphan_table(
        leftovers.find_orphans(objects, layout, session.partitions),
        about.about_orphans(session.instance, session.graph),
    )
    stored = about.about_storage(objects, layout)
    staleness = session.staleness()
    state = state_table(staleness)
    coming = _what_is_to_come(session, staleness, Scope.of_study(study), folders)
    versions = about.about_code()
    for title, text in (
        ("study", "\n".join(f"{name}: {value}" for name, value in facts.items())),
        ("versions", "\n".join(f"{name} {value}" for name, value in versions.items())),
        ("store", stored.to_string(index=False)),
        ("assets", state.to_string(index=False)),
        (
            "orphans: artefacts that no longer belong to the study (job remove_orphans)",
            orphans.to_string(index=False) if len(orphans) else "none",
        ),
    ):
        session.tell(f"{title}\n{text}")
    return dg.Output(
        None,
        metadata={
            **coming,
            "study": dg.MetadataValue.json(facts),
            "versions": dg.MetadataValue.json(versions),
            "store": metadata.table(stored),
            "assets": metadata.table(state),
            "orphans": metadata.table(orphans),
            "stored": human_bytes(int(stored["bytes"].sum())),
            **metadata.link(session.bucket.report_link(), deployment().report_url),
            **metadata.earlier(session.bucket.kept_report_links()),
        },
    )


OPERATIONS = (
    Operation(
        "about",
        "Reports study, versions, store, counts and what is still to come, in this step's log and metadata.",
        NoSettings,
        _about,
    ),
    Operation(
        "forecast",
        "Before a launch: hours, GPU hours, bytes, disk and euros that `study` would still take, per stage and with ranges. "
        "Makes nothing. Once the first cells are made, their measured costs count; see this step's metadata.",
        Forecast,
        _forecast,
    ),
)
