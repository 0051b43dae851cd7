"""What this deployment is, as an operation."""

import dagster as dg

from curvas_assets.orchestration import metadata
from curvas_assets.orchestration.operations import about, leftovers
from curvas_assets.orchestration.operations.operation import NoSettings, Operation, Session
from curvas_assets.orchestration.operations.transfer import human_bytes
from curvas_assets.orchestration.sensors import digests
from curvas_assets.orchestration.state import state_table
from curvas_assets.stages.patients import patient_folders


def _about(session: Session, _: NoSettings) -> dg.Output[None]:
    objects, layout, study = session.objects(), session.layout, session.study
    known, folders = session.known(), digests(study, patient_folders(objects, layout))[0]
    facts = {**about.about_study(study, known), **about.about_patients(study, known, folders)}
    orphans = leftovers.orphan_table(
        leftovers.find_orphans(objects, layout, session.partitions),
        about.about_orphans(session.instance, session.graph),
    )
    stored = about.about_storage(objects, layout)
    state = state_table(session.staleness())
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
            "study": dg.MetadataValue.json(facts),
            "versions": dg.MetadataValue.json(versions),
            "store": metadata.table(stored),
            "assets": metadata.table(state),
            "orphans": metadata.table(orphans),
            "stored": human_bytes(int(stored["bytes"].sum())),
            **metadata.link(session.bucket.report_link()),
        },
    )


OPERATIONS = (
    Operation(
        "about", "Reports study, versions, store and counts in this step's log and metadata.", NoSettings, _about
    ),
)
