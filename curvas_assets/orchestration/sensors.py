"""Sensors: new patients in the bucket become partitions, patients who left the study lose theirs, failed runs are reported."""

import hashlib
import json
import urllib.request
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import dagster as dg

from curvas_assets.errors import StorageError
from curvas_assets.orchestration.asset_keys import asset_key, key_of, keys_of, name_of
from curvas_assets.orchestration.bucket import Bucket, table_digests
from curvas_assets.orchestration.environment import deployment, variable
from curvas_assets.orchestration.failures import told
from curvas_assets.orchestration.following import calibrators_wait_for, due_for_patients, last_emptied
from curvas_assets.orchestration.partitions import Partitions, StudyPatients, current_keys
from curvas_assets.orchestration.restarts import keep_going
from curvas_assets.orchestration.schedules import due_report
from curvas_assets.orchestration.staleness import Staleness
from curvas_assets.orchestration.under_way import unfinished_runs
from curvas_assets.stages.patients import Uploaded, uploaded
from curvas_assets.stages.table import (
    CALIBRATORS,
    FOLLOWED,
    OTHER_STUDIES,
    PATIENT_FILES,
    PUBLISHED_TABLE,
    REPORT,
    SCORES,
)
from curvas_assets.study import Study

DATA_VERSION = "dagster/data_version"
NO_TABLE = "none"
OF_OTHERS = (PUBLISHED_TABLE, OTHER_STUDIES)
"""External assets that are tables of others in the bucket."""
ARRIVING = timedelta(minutes=15)
"""A patient who lacks a file of the study is followed only when no file has come for this long."""
LAUNCHERS = {"study", "refresh_scores"}
"""Jobs that make scores stage by stage, in several runs: between two of these runs, only some scores are new."""


def build(study: Study, partitions: Partitions, jobs: dict[str, Any]) -> list[dg.SensorDefinition]:
    """The sensors of one study, over the stage jobs by name."""

    @dg.sensor(
        name="register_patients",
        minimum_interval_seconds=60,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Turns new files below the data prefix into a patient, and, if the study's sets say so, into one that is predicted. "
        "Removes the partition of a patient who was excluded or moved to another set.",
    )
    def register_patients(context: dg.SensorEvaluationContext, bucket: Bucket) -> dg.SensorResult | dg.SkipReason:
        try:
            objects, layout = bucket.checked_objects(), bucket.layout
            there = uploaded(objects, layout, study)
            tables = table_digests(objects, layout, study)
        except StorageError as error:
            return dg.SkipReason(str(error))
        return registration(
            study, partitions, context.instance, there.digests, context.cursor, tables, there.lacking, there.strange
        )

    @dg.sensor(
        name="follow_new_patients",
        minimum_interval_seconds=60,
        jobs=[jobs[name] for row in (*FOLLOWED, CALIBRATORS) for name in row.jobs],
        default_status=dg.DefaultSensorStatus.STOPPED,
        description="Takes in, predicts, ensembles and scores patients whose partitions are missing, with all models "
        "there are; validation patients, too, if the study's models do not learn from them. Fits calibrators once the "
        "validation patients that were taken in are predicted. What is out of date is left to `nightly_scores`.",
    )
    def follow_new_patients(context: dg.SensorEvaluationContext, bucket: Bucket):
        try:
            objects = bucket.checked_objects()
            there = uploaded(objects, bucket.layout, study)
            arriving = still_arriving(there, objects.clock())
        except StorageError as error:
            yield dg.SkipReason(str(error))
            return
        assert context.repository_def is not None
        staleness = Staleness(context.repository_def.asset_graph, context.instance)
        known = current_keys(partitions.test_patient, context.instance)
        ready = [patient for patient in known if patient not in arriving]
        requests = list(due_for_patients(study, staleness, ready, there.digests))
        yield from requests
        if not requests:
            wait = _named("; these lack a file, which may still be on its way", arriving)
            yield dg.SkipReason(
                f"{len(known)} patients, nothing missing that could be made now{_told_of_fits(staleness)}{wait}"
            )

    @dg.sensor(
        name="report_after_scores",
        minimum_interval_seconds=300,
        job=jobs[REPORT],
        default_status=dg.DefaultSensorStatus.STOPPED,
        description="Makes the report again when scores, or anything else it depends on, have changed and no scoring is running.",
    )
    def report_after_scores(context: dg.SensorEvaluationContext):
        assert context.repository_def is not None
        busy, awaited = unfinished_runs(context.instance), {key_of(SCORES), *keys_of(REPORT)}
        if any(run.job_name in LAUNCHERS or awaited & set(run.asset_selection or ()) for run in busy):
            yield dg.SkipReason("scores or report are being made")
            return
        staleness = Staleness(context.repository_def.asset_graph, context.instance)
        for answer in due_report(staleness):
            if isinstance(answer, dg.RunRequest):
                yield dg.RunRequest(run_key=report_key(study, staleness), tags=answer.tags)
            else:
                yield answer

    @dg.run_failure_sensor(
        name="report_failures",
        description=f"Logs each failed run, and posts it to {variable('webhook_url')} if that is set.",
        default_status=dg.DefaultSensorStatus.STOPPED,
    )
    def report_failures(context: dg.RunFailureSensorContext) -> None:
        run = context.dagster_run
        message = told(run, context.failure_event, context.get_step_failure_events())
        context.log.error(message)
        if url := deployment().webhook_url:
            body = json.dumps({"text": message, "run_id": run.run_id, "tags": dict(run.tags)}).encode()
            request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=10):
                pass

    return [register_patients, follow_new_patients, report_after_scores, report_failures, keep_going()]


def _told_of_fits(staleness: Staleness, most: int = 5) -> str:
    """What calibrators wait for, if there are none and a patient is to be scored."""
    key = key_of(CALIBRATORS)
    if staleness.made(key, None) or not staleness.partitions(key_of(SCORES)):
        return ""
    awaited = calibrators_wait_for(staleness)
    more = f" and {len(awaited) - most} more" if len(awaited) > most else ""
    wait = f"{', '.join(awaited[:most])}{more}"
    return f"; nobody is scored before the calibrators are fitted, and these wait for {wait}" if awaited else ""


def report_key(study: Study, staleness: Staleness) -> str:
    """The run key of a report: the same for the same code, study and inputs.

    A failed report is therefore not tried again every five minutes.

    The key contains the latest event, not the content, of each input from outside the stage, and the last wipe of what
    the stage makes: a report is requested again when an earlier state comes back or the report was emptied.
    """
    keys = keys_of(REPORT)
    seen = {
        "study": study.fingerprint(),
        "code": {name_of(key): staleness.graph.get(key).code_version for key in keys},
        "inputs": {name_of(key): staleness.newest_input(key, [None], beside=keys) for key in keys},
        "emptied": max(last_emptied(staleness.instance, key) for key in keys),
    }
    return hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()[:16]


def registration(
    study: Study,
    partitions: Partitions,
    instance: dg.DagsterInstance,
    digests: Mapping[str, str],
    cursor: str | None,
    tables: Mapping[str, str] | None = None,
    lacking: Mapping[str, Sequence[str]] | None = None,
    strange: Sequence[str] = (),
) -> dg.SensorResult | dg.SkipReason:
    """What changes after a look at the bucket: partitions to add and remove, and one observation per changed patient.

    A partition that no longer belongs to the study is removed; its artefacts stay in the bucket. A patient whose files
    are gone is reported and stays registered: only the study file decides who belongs.

    Args:
        study: whose id pattern and sets decide.
        partitions: the study's.
        instance: which partitions there are.
        digests: patient → digest of the files that there are.
        cursor: what was seen last time, JSON patient → digest.
        tables: external asset → digest of the tables of others that there are.
        lacking: patient → annotators whose file is not there.
        strange: what stands in the place of an id, and is no patient of this study.
    """
    seen: dict[str, str] = json.loads(cursor) if cursor else {}
    found = dict(digests)
    patients = sorted(p for p in found if p not in study.exclusions)
    known = current_keys(partitions.patient, instance)
    added = {
        partitions.patient: sorted(set(patients) - set(known)),
        partitions.test_patient: sorted(
            {p for p in patients if partitions.test_patient.belongs(p)}
            - set(current_keys(partitions.test_patient, instance))
        ),
    }
    removed = {part: part.orphans(instance) for part in (partitions.patient, partitions.test_patient)}
    changed = [p for p in patients if seen.get(p) != found[p]]
    incomplete = [f"{p} ({', '.join(lacking[p])})" for p in patients if p in lacking] if lacking else []
    told = _remarks(strange, removed, sorted(set(known) - set(patients)), incomplete)
    told += "".join(f"; {role}" for role in roles_of(study, added[partitions.patient]))
    observed: list[dg.AssetObservation | dg.AssetMaterialization] = [
        dg.AssetObservation(asset_key(PATIENT_FILES), partition=p, tags={DATA_VERSION: found[p]}) for p in changed
    ]
    for external in OF_OTHERS:
        if external not in (tables or {}) and external not in seen:
            continue
        found[external] = (tables or {}).get(external, NO_TABLE)  # its removal by people is reported too
        if seen.get(external) != found[external]:
            # For an external asset without partitions, Dagster's staleness reads only materialisations.
            observed.append(dg.AssetMaterialization(asset_key(external), tags={DATA_VERSION: found[external]}))
    if not (any(added.values()) or any(removed.values()) or observed):
        return dg.SkipReason(f"{len(patients)} patients in the bucket, none new or changed{told}")
    return dg.SensorResult(
        skip_reason=f"{len(patients)} patients in the bucket{told}",
        dynamic_partitions_requests=[
            *(part.build_add_request(keys) for part, keys in added.items() if keys),
            *(part.build_delete_request(keys) for part, keys in removed.items() if keys),
        ],
        asset_events=observed,
        cursor=json.dumps(found, sort_keys=True),
    )


def _remarks(
    strange: Sequence[str], removed: Mapping[StudyPatients, list[str]], gone: list[str], lacking: list[str]
) -> str:
    """What people should know beside the counts: names of at most five each."""
    parts = [("not named like a patient of this study, or without a file of it", strange)]
    parts += [
        (f"no {str(part.name).replace('_', ' ')} of the study any more (what was made of them is kept)", keys)
        for part, keys in removed.items()
    ]
    parts.append(("no longer in the bucket (upload them again, or exclude them in the study file)", gone))
    parts.append(("without the file of an annotator", lacking))
    return "".join(_named(f"; {what}", names) for what, names in parts)


def _named(what: str, names: Sequence[str], most: int = 5) -> str:
    """What people should know of some names, at most five of them; nothing if there is none."""
    return f"{what}: {', '.join(names[:most])}{' …' if names[most:] else ''}" if names else ""


def still_arriving(there: Uploaded, now: datetime | None) -> list[str]:
    """Patients who lack a file of the study and whose newest file is so young that an upload may still be going on.

    Args:
        there: what is below the data prefix.
        now: on the store's clock. Where the store does not say what time it is, nobody is waited for.
    """
    files = there.found.files
    lacking = [patient for patient in there.found.patients if len(files.get(patient, ())) < len(there.study.files)]
    newest = {patient: there.newest(patient) for patient in lacking}
    return [patient for patient, at in newest.items() if at is not None and now is not None and now - at < ARRIVING]


def roles_of(study: Study, patients: Collection[str], most: int = 5) -> list[str]:
    """One sentence for each role of the patients: up to `most` names, what the study does with them, what to do."""
    of_role: dict[str, list[str]] = {}
    for patient in patients:
        of_role.setdefault(study.role(patient), []).append(patient)
    return [f"{', '.join(names[:most])}{' …' if names[most:] else ''}: {role}" for role, names in of_role.items()]


def register(context: dg.OpExecutionContext, study: Study, partitions: Partitions, bucket: Bucket) -> list[str]:
    """Do within a run what the sensor would do at its next look, and return the patients that were added."""
    objects, layout = bucket.checked_objects(), bucket.layout
    before = {one: context.instance.get_latest_data_version_record(asset_key(one)) for one in OF_OTHERS}
    cursor = json.dumps({one: _version(record.asset_materialization) for one, record in before.items() if record})
    tables = table_digests(objects, layout, study)
    there = uploaded(objects, layout, study)
    found = registration(
        study, partitions, context.instance, there.digests, cursor, tables, there.lacking, there.strange
    )
    if isinstance(found, dg.SkipReason):
        context.log.info(found.skip_message)
        return []
    context.log.info(found.skip_reason.skip_message if found.skip_reason else "")
    added: list[str] = []
    for request in found.dynamic_partitions_requests or ():
        if isinstance(request, dg.DeleteDynamicPartitionsRequest):
            for key in request.partition_keys:
                context.instance.delete_dynamic_partition(request.partitions_def_name, key)
            context.log.info(f"{request.partitions_def_name}: {', '.join(request.partition_keys)} removed")
            continue
        context.instance.add_dynamic_partitions(request.partitions_def_name, list(request.partition_keys))
        context.log.info(f"{request.partitions_def_name}: {', '.join(request.partition_keys)} registered")
        added += [key for key in request.partition_keys if key not in added]
    for event in found.asset_events:
        assert isinstance(event, dg.AssetObservation | dg.AssetMaterialization)
        latest = context.instance.get_latest_data_version_record(event.asset_key, partition_key=event.partition)
        known = latest and (latest.asset_observation or latest.asset_materialization)
        if _version(known) != _version(event):
            context.log_event(event)
    return added


def _version(event: dg.AssetObservation | dg.AssetMaterialization | None) -> str | None:
    return (event.tags or {}).get(DATA_VERSION) if event else None
