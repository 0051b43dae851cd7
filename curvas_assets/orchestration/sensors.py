"""Sensors: patients that appear in the bucket become partitions; a failed run is told."""

import json
import urllib.request
from typing import Any

import dagster as dg

from curvas_assets.errors import CurvasError, StorageError
from curvas_assets.orchestration.bucket import Bucket, patient_folders, published_digest
from curvas_assets.orchestration.environment import environment
from curvas_assets.orchestration.following import FOLLOWED, due_for_patients
from curvas_assets.orchestration.partitions import Partitions
from curvas_assets.orchestration.staleness import Staleness
from curvas_assets.study import Study

WEBHOOK = "CURVAS_WEBHOOK_URL"
DATA_VERSION = "dagster/data_version"
PUBLISHED = "published_table"


def build(study: Study, partitions: Partitions, jobs: dict[str, Any]) -> list[dg.SensorDefinition]:
    """The sensors of one study, over the stage jobs by name."""

    @dg.sensor(
        name="register_patients",
        minimum_interval_seconds=60,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="A new folder below the data prefix becomes a patient, and a test patient if the study's sets say so.",
    )
    def register_patients(context: dg.SensorEvaluationContext, bucket: Bucket) -> dg.SensorResult | dg.SkipReason:
        try:
            objects, layout = bucket.checked_objects(), bucket.layout
            folders = patient_folders(objects, layout)
            published = published_digest(objects, layout, study.report.published_table)
        except StorageError as error:
            return dg.SkipReason(str(error))
        return registration(study, partitions, context.instance, folders, context.cursor, published)

    @dg.sensor(
        name="follow_new_patients",
        minimum_interval_seconds=60,
        jobs=[jobs[name] for name in FOLLOWED],
        default_status=dg.DefaultSensorStatus.STOPPED,
        description="Test patients whose partitions are missing are taken in, predicted, ensembled and scored, by all models there are.",
    )
    def follow_new_patients(context: dg.SensorEvaluationContext, bucket: Bucket):
        try:
            folders = patient_folders(bucket.checked_objects(), bucket.layout)
        except StorageError as error:
            yield dg.SkipReason(str(error))
            return
        assert context.repository_def is not None
        staleness = Staleness(context.repository_def.asset_graph, context.instance)
        known = partitions.test_patient.get_partition_keys(dynamic_partitions_store=context.instance)
        requests = list(due_for_patients(study, staleness, list(known), digests(study, folders)[0]))
        yield from requests
        if not requests:
            yield dg.SkipReason(f"{len(known)} test patients, nothing missing that could be made now")

    @dg.run_failure_sensor(
        name="report_failures",
        description=f"Logs each failed run, and posts it to {WEBHOOK} if that is set.",
        default_status=dg.DefaultSensorStatus.STOPPED,
    )
    def report_failures(context: dg.RunFailureSensorContext) -> None:
        run = context.dagster_run
        message = f"{run.job_name} {run.run_id[:8]} failed: {context.failure_event.message}"
        context.log.error(message)
        if url := environment().get(WEBHOOK, "").strip():
            body = json.dumps({"text": message, "run_id": run.run_id, "tags": dict(run.tags)}).encode()
            request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=10):
                pass

    return [register_patients, follow_new_patients, report_failures]


def registration(
    study: Study,
    partitions: Partitions,
    instance: dg.DagsterInstance,
    folders: dict[str, str],
    cursor: str | None,
    published: str | None = None,
) -> dg.SensorResult | dg.SkipReason:
    """What a look at the bucket changes: partitions to add, and an observation of each patient whose files changed.

    Args:
        study: whose id pattern and sets decide.
        partitions: the study's.
        instance: which partitions there are.
        folders: folder below the data prefix → digest of its files.
        cursor: what was seen last time, JSON patient → digest.
        published: digest of the published table, if there is one.
    """
    seen: dict[str, str] = json.loads(cursor) if cursor else {}
    found, strange = digests(study, folders)
    patients = sorted(p for p in found if p not in study.exclusions)
    new = sorted(set(patients) - set(partitions.patient.get_partition_keys(dynamic_partitions_store=instance)))
    tests = [p for p in patients if study.is_test_patient(p)]
    new_tests = sorted(set(tests) - set(partitions.test_patient.get_partition_keys(dynamic_partitions_store=instance)))
    changed = [p for p in patients if seen.get(p) != found[p]]
    ignored = f"; not named like a patient of this study: {', '.join(strange[:5])}" if strange else ""
    observed: list[dg.AssetObservation | dg.AssetMaterialization] = [
        dg.AssetObservation("patient_files", partition=p, tags={DATA_VERSION: found[p]}) for p in changed
    ]
    if published is not None:
        found[PUBLISHED] = published
        if seen.get(PUBLISHED) != published:
            # Of an external asset without partitions, Dagster's staleness reads materialisations only.
            observed.append(dg.AssetMaterialization(PUBLISHED, tags={DATA_VERSION: published}))
    if not (new or new_tests or observed):
        return dg.SkipReason(f"{len(patients)} patients in the bucket, none new or changed{ignored}")
    return dg.SensorResult(
        dynamic_partitions_requests=[
            *([partitions.patient.build_add_request(new)] if new else []),
            *([partitions.test_patient.build_add_request(new_tests)] if new_tests else []),
        ],
        asset_events=observed,
        cursor=json.dumps(found, sort_keys=True),
    )


def digests(study: Study, folders: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """Patient → digest of the files, and the folders that are not named like a patient of the study."""
    found: dict[str, str] = {}
    strange: list[str] = []
    for folder, digest in folders.items():
        try:
            found[study.patients.normalise(folder)] = digest
        except CurvasError:
            strange.append(folder)
    return found, strange


def register(context: dg.OpExecutionContext, study: Study, partitions: Partitions, bucket: Bucket) -> list[str]:
    """From within a run: what the sensor would do at its next look. The patients that were added."""
    objects, layout = bucket.checked_objects(), bucket.layout
    published = published_digest(objects, layout, study.report.published_table)
    found = registration(study, partitions, context.instance, patient_folders(objects, layout), None, published)
    if isinstance(found, dg.SkipReason):
        return []
    added: list[str] = []
    for request in found.dynamic_partitions_requests or ():
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
