"""Facts of this deployment: study, versions, store, patients, orphans. The lineage's state is in `state`."""

from collections import Counter
from collections.abc import Collection
from typing import Any

import dagster as dg
import pandas as pd

from curvas_assets.orchestration.asset_keys import name_of
from curvas_assets.orchestration.dagster_internals import (
    AssetGraph,
)
from curvas_assets.orchestration.operations.leftovers import removed_partitions
from curvas_assets.orchestration.partitions import current_keys
from curvas_assets.orchestration.provenance import git_commit, package_versions
from curvas_assets.storage.layout import Layout
from curvas_assets.storage.objects import ObjectStore
from curvas_assets.study import Study


def about_study(study: Study, known: Collection[str] = ()) -> dict[str, Any]:
    """The study's name, shape and fingerprint. Registered patients that its rule adds to the scored ones count too."""
    return {
        "study": study.name,
        "title": study.title,
        "fingerprint": study.fingerprint(),
        "annotators": ", ".join(study.annotator_names),
        **({"trained on": ", ".join(study.label_names)} if study.training_labels else {}),
        "organs": ", ".join(study.class_names[1:]),
        **({"organs that are scored": ", ".join(study.scored_organs)} if study.evaluation.organs else {}),
        "models": len(study.models),
        "ensembles": ", ".join(map(str, study.ensemble_ids)),
        **{f"{name} set": len(members) for name, members in study.sets.items()},
        **({"everybody else in the bucket": study.rest} if study.rest else {}),
        "scored": f"{len(study.scored_patients(known))} {'by cross-validation' if study.cross_validated else 'of the test set'}",
        "excluded": len(study.exclusions),
    }


def about_code() -> dict[str, str]:
    """Commit and package versions."""
    return {"commit": git_commit(), **package_versions()}


def about_storage(objects: ObjectStore, layout: Layout) -> pd.DataFrame:
    """Columns prefix, objects, bytes: what stands below each prefix of the layout, from one listing each."""
    rows: list[dict[str, Any]] = []
    for prefix in (layout.data, layout.artifacts, layout.output, layout.metrics, layout.reports):
        sizes = [item.size for item in objects.list(f"{prefix}/")]
        rows.append({"prefix": f"{objects.name}/{prefix}", "objects": len(sizes), "bytes": sum(sizes)})
    return pd.DataFrame(rows)


def about_orphans(instance: dg.DagsterInstance, graph: AssetGraph) -> pd.DataFrame:
    """Columns asset, partition: what was made of patients, models or ensembles that do not belong to the study any more.

    Their artefacts stand in the bucket until people remove them (`leftovers`); no table, count or report looks at them.
    """
    rows: list[dict[str, Any]] = []
    for key in graph.toposorted_asset_keys:
        node = graph.get(key)
        if node.is_external or node.partitions_def is None:
            continue
        left = set(instance.get_materialized_partitions(key)) - set(current_keys(node.partitions_def, instance))
        left -= removed_partitions(instance, key) if left else set()
        rows += [{"asset": name_of(key), "partition": partition} for partition in sorted(left)]
    return pd.DataFrame(rows, columns=["asset", "partition"])


def about_patients(study: Study, known: Collection[str], folders: Collection[str]) -> dict[str, Any]:
    """How many registered patients each set has, and who is missing in the bucket or in the sets.

    Args:
        study: whose sets count.
        known: registered patients.
        folders: patients with a folder in the bucket.
    """
    sets = Counter(study.patient_set(patient) or "none" for patient in known)
    named = {one for members in study.sets.values() for one in members} - set(study.exclusions)
    return {
        "registered patients": len(known),
        **{f"registered, set {name}": n for name, n in sorted(sets.items())},
        "in no set, nothing is made of them": ", ".join(sorted(p for p in known if study.patient_set(p) is None))
        or "none",
        "registered, no longer in the bucket": ", ".join(sorted(set(known) - set(folders))) or "none",
        "in a set, not in the bucket": ", ".join(sorted(named - set(folders))) or "none",
    }


def what_a_forecast_leaves_out(study: Study, known: Collection[str], folders: Collection[str]) -> list[str]:
    """Sentences about patients who are not partitions yet, so that no forecast counts them.

    Args:
        study: whose sets count.
        known: registered patients.
        folders: patients with a folder in the bucket.
    """
    named = {one for members in study.sets.values() for one in members} - set(study.exclusions)
    waiting = sorted({one for one in folders if study.patient_set(one) and one not in study.exclusions} - set(known))
    absent = sorted(named - set(folders) - set(known))
    told: list[str] = []
    if waiting:
        told.append(
            f"In the bucket but not registered yet: {len(waiting)} ({_some(waiting)}). The sensor register_patients registers "
            "them within a minute, and so does `study`."
        )
    if absent:
        told.append(f"In the study but not in the bucket: {len(absent)} ({_some(absent)}).")
    return told


def _some(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")
