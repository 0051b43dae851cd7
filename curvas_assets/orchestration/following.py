"""Automation from a new patient to its scores: which runs are due for new patients, and nothing else.

A patient advances stage by stage: once its earlier runs have ended, partitions that are missing and ready are
requested. The same cells are requested again only when one of their inputs is made again, the patient's files change,
or the asset is emptied, so that a broken scan does not fill the night with runs.
"""

import hashlib
from collections.abc import Collection, Iterator

import dagster as dg

from curvas_assets.orchestration.asset_keys import key_of, name_of
from curvas_assets.orchestration.batches import ranges
from curvas_assets.orchestration.launches import batch_tags
from curvas_assets.orchestration.staleness import Staleness
from curvas_assets.orchestration.under_way import unfinished_runs
from curvas_assets.stages.table import CALIBRATORS, ENSEMBLE_SOFTMAX, FOLLOWED, SCAN, SOFTMAX, VARIANT_SOFTMAX
from curvas_assets.storage.layout import Cell, patient_of
from curvas_assets.study import Study

NEW_PATIENT = "curvas/new_patient"


def due_for_patients(
    study: Study,
    staleness: Staleness,
    patients: list[str],
    files: dict[str, str],
) -> Iterator[dg.RunRequest]:
    """For each patient without an active run: one run per stage for what is missing and ready; and calibrators, if there are none.

    Args:
        study: its models and ensembles.
        staleness: what there is.
        patients: test patients that this automation follows.
        files: patient → digest of the files. It is part of a run's key, so that changed files are tried again. The
            latest event of the cells' inputs is part of the key too, so that a state that comes back gets a new key.
    """
    busy = _patients_with_runs(staleness.instance)
    if patients:
        yield from _fit(staleness, busy)
    emptied = {row: last_emptied(staleness.instance, key_of(row)) for row in FOLLOWED}
    for patient in (p for p in patients if p not in busy):
        columns = {
            SOFTMAX: [str(m) for m in study.models_of(patient)],
            VARIANT_SOFTMAX: [str(v) for v in study.variants_of(patient)],
            ENSEMBLE_SOFTMAX: [str(e) for e in study.ensembles_of(patient)],
        }
        for row in FOLLOWED:
            (job, *_), key = row.jobs, key_of(row)
            cells = [str(Cell(c, patient)) for c in columns[row]] if row in columns else [patient]
            missing = [cell for cell in cells if not staleness.made(key, cell)]
            ready = [cell for cell in missing if staleness.ready(key, cell)]
            for batch in ranges(ready, cells, len(cells)):
                tags = batch_tags(staleness.graph.get(key).partitions_def, batch)
                chosen = cells[cells.index(batch.first) : cells.index(batch.last) + 1]
                made_from = staleness.newest_input(key, chosen)
                what = f"{job} {batch.first} {batch.last} {files.get(patient, '')} {emptied[row]} {made_from}"
                yield dg.RunRequest(
                    job_name=job,
                    run_key=f"{patient} {job} {hashlib.sha256(what.encode()).hexdigest()[:12]}",
                    tags={**tags, NEW_PATIENT: patient},
                )


def _fit(staleness: Staleness, busy: set[str]) -> Iterator[dg.RunRequest]:
    """A run that fits calibrators, without which nobody is scored, if there are none and they wait for nothing.

    Args:
        staleness: what there is.
        busy: patients with a run that goes on.
    """
    key = key_of(CALIBRATORS)
    if staleness.made(key, None) or calibrators_wait_for(staleness, busy):
        return
    (job,) = CALIBRATORS.jobs
    made_from = f"{last_emptied(staleness.instance, key)} {staleness.newest_input(key, [None])}"
    yield dg.RunRequest(job_name=job, run_key=f"{job} {made_from}")


def calibrators_wait_for(staleness: Staleness, busy: Collection[str] = ()) -> list[str]:
    """What is still to come before calibrators are fitted, such as `softmax of anno1_init1_foldall|PHANTOM006`; empty if nothing is.

    A validation patient who was not taken in, because nobody uploaded the patient or intake refused the files, is not
    waited for, unless a run of the patient goes on: calibrators are fitted on the others, and say who was left out.

    Args:
        staleness: what there is.
        busy: patients with a run that goes on.
    """
    key, scan = key_of(CALIBRATORS), key_of(SCAN)
    named = [
        (parent, str(one))
        for parent in staleness.graph.get(key).parent_keys
        for one in staleness.inputs(key, None, parent)
    ]
    there = {patient_of(one) for parent, one in named if parent == scan and (staleness.made(scan, one) or one in busy)}
    awaited = [(parent, one) for parent, one in named if patient_of(one) in there or not there]
    return sorted(f"{name_of(parent)} of {one}" for parent, one in awaited if not staleness.made(parent, one))


def last_emptied(instance: dg.DagsterInstance, key: dg.AssetKey) -> int:
    """The event by which an asset was last wiped; 0 if it never was."""
    wiped = dg.EventRecordsFilter(event_type=dg.DagsterEventType.ASSET_WIPED, asset_key=key)
    records = instance.event_log_storage.get_event_records(wiped, limit=1)
    return records[0].storage_id if records else 0


def _patients_with_runs(instance: dg.DagsterInstance) -> set[str]:
    return {run.tags[NEW_PATIENT] for run in unfinished_runs(instance) if NEW_PATIENT in run.tags}
