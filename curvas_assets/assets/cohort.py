"""Cohort: what people put into the bucket, validated patient by patient."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd

from curvas_assets import cohort as intake
from curvas_assets.cohort import implausible_intensities
from curvas_assets.errors import CorruptArtefactError, PatientError, StudyError
from curvas_assets.orchestration import metadata
from curvas_assets.orchestration.bucket import Bucket, patient_folders
from curvas_assets.orchestration.cells import materialise, one_by_one
from curvas_assets.orchestration.checks import Check, Checks, specs
from curvas_assets.orchestration.execution import RETRY, StageNeeds
from curvas_assets.orchestration.io_manager import Artefacts, Stored, artefact, table_version
from curvas_assets.orchestration.partitions import Partitions
from curvas_assets.orchestration.scratch import bytes_below, scratch_space
from curvas_assets.report import previews
from curvas_assets.storage import directories, tables
from curvas_assets.storage.layout import Layout
from curvas_assets.storage.objects import ObjectStore
from curvas_assets.study import Study

GROUP = "cohort"
OWNERS = ["team:imaging"]
ERROR = dg.AssetCheckSeverity.ERROR
SCAN_CHECKS = (
    Check("files_are_sound", "Every file is whole, on one geometry, with the study's labels only, no NaN.", ERROR),
    Check("geometry_is_usual", "Voxels are 0.2 to 10 mm wide, and the scan is at least 100 mm long along each axis."),
    Check("labels_are_complete", "Every annotator drew every organ, in whole numbers and the scan's voxel order."),
    Check(
        "intensities_are_plausible",
        "HU as of a CT: air below -500, some soft tissue, something above 0, nothing beyond ±32768.",
    ),
)
GONE = "its folder is gone from the bucket since it was taken in"
COHORT_CHECK = Check(
    "patients_are_taken_in", "Every patient of the study's sets is taken in or excluded; tells who is missing, and why."
)
TEST_SCAN_CHECKS = (Check("region_is_not_empty", "The region in which predictors are scored holds voxels.", ERROR),)


def build(study: Study, partitions: Partitions) -> list[dg.AssetsDefinition | dg.AssetSpec]:
    """The cohort's assets for one study."""
    needs = StageNeeds.of(study)
    patient_files = dg.AssetSpec(
        "patient_files",
        group_name=GROUP,
        partitions_def=partitions.patient,
        owners=OWNERS,
        kinds={"s3", "nifti"},
        description=(
            f"`{study.image}` and {len(study.annotators)} annotations of each patient, as people put them into the "
            "bucket. Never changed by the pipeline; observed by the sensor that registers patients."
        ),
    )

    @dg.asset(
        deps=["patient_files"],
        partitions_def=partitions.patient,
        backfill_policy=dg.BackfillPolicy.multi_run(50),
        group_name=GROUP,
        owners=OWNERS,
        kinds={"nifti", "json"},
        code_version=f"2-{study.fingerprint('image', 'annotators', 'organs', 'patients', 'intake')}",
        metadata=artefact("record"),
        output_required=False,
        check_specs=specs("scan", SCAN_CHECKS, partitions.patient),
        op_tags=needs.intake.op_tags,
        retry_policy=RETRY,
    )
    def scan(context: dg.AssetExecutionContext, bucket: Bucket):
        """One patient's CT and annotations, read to the last byte and validated; geometry and intensity facts.

        A patient with a defect is refused here, with what was found and what to do, and stops nobody else. What is odd (a
        blank map, an organ absent for one annotator, intensities that may be no HU) goes to the exclusion ledger.
        """
        objects, layout = bucket.checked_objects(), bucket.layout
        folders = folders_of_patients(study, patient_folders(objects, layout))
        checks = Checks(*SCAN_CHECKS)

        def take_in(patient: str) -> Stored:
            named = folder_of(patient, folders)
            with scratch_space(patient, bytes_below(objects, layout.patient_file(named, ""))) as scratch:
                try:
                    folder, files = fetch_patient(objects, layout, study, named, scratch)
                    found = intake.read_patient(folder, study)
                except PatientError as error:
                    raise checks["files_are_sound"].refuse(patient, error) from error
            checks["files_are_sound"].look(patient)
            checks["geometry_is_usual"].look(patient, unusual_geometry(found.facts))
            doubts = implausible_intensities(found.facts)
            checks["labels_are_complete"].look(patient, [w for w in found.warnings if w not in doubts])
            checks["intensities_are_plausible"].look(patient, doubts)
            record = {
                "patient": patient,
                "set": study.patient_set(patient),
                "group": study.patient_group(patient),
                "files": files,
                "affine": found.affine.tolist(),
                "facts": found.facts,
                "warnings": list(found.warnings),
                "exclusions": [dict(row) for row in found.exclusions],
                "not_annotated": list(found.not_annotated),
                "doubts": doubts,
            }
            key = layout.scan(patient)
            return Stored(
                key, tables.write_json(objects, key, record), {**_facts(record), "preview": _preview(study, found)}
            )

        yield from materialise(context, objects, one_by_one(take_in), checks)

    @dg.asset(
        ins={"scan": dg.AssetIn(partition_mapping=dg.IdentityPartitionMapping())},
        partitions_def=partitions.test_patient,
        backfill_policy=dg.BackfillPolicy.multi_run(100),
        group_name=GROUP,
        owners=OWNERS,
        kinds={"json"},
        code_version="2",
        metadata=artefact("record"),
        output_required=False,
        check_specs=specs("test_scan", TEST_SCAN_CHECKS, partitions.test_patient),
        op_tags=needs.table.op_tags,
        retry_policy=RETRY,
    )
    def test_scan(context: dg.AssetExecutionContext, bucket: Bucket, scan: Artefacts):
        """The image of a patient that is predicted: the bridge from the cohort to the patient × model grid.

        Nothing of the annotations is in it, so that a changed annotation re-scores the patient and predicts nothing anew.
        """
        objects, layout = bucket.checked_objects(), bucket.layout
        checks = Checks(*TEST_SCAN_CHECKS)

        def bridge(patient: str) -> Stored:
            record = scan[patient].record()
            facts = record["facts"]
            shape, region = facts["shape"], region_of(study, record)
            if any(stop <= start for start, stop in region):
                raise checks["region_is_not_empty"].refuse(
                    patient,
                    PatientError(
                        "finding the region of evaluation",
                        patient,
                        f"it is empty: {region} of {shape} voxels (no voxel above 0 HU?)",
                        "Look at the CT's intensities, or set evaluation.region to image.",
                    ),
                )
            checks["region_is_not_empty"].look(patient)
            bridged = {
                "patient": patient,
                "files": [file for file in record["files"] if file["name"] == study.image],
                "shape": shape,
                "spacing_mm": facts["spacing_mm"],
                "affine": record["affine"],
            }
            key = layout.test_scan(patient)
            version = tables.write_json(objects, key, bridged)
            return Stored(key, version, {"patient": patient, "shape": metadata.by(shape), "region": str(region)})

        yield from materialise(context, objects, one_by_one(bridge), checks)

    @dg.asset(
        ins={"scan": dg.AssetIn(partition_mapping=dg.AllPartitionMapping())},
        group_name=GROUP,
        owners=OWNERS,
        kinds={"parquet"},
        code_version=f"2-{study.fingerprint('sets', 'groups', 'exclusions')}",
        metadata=artefact("table"),
        check_specs=[COHORT_CHECK.spec("cohort")],
        op_tags=needs.table.op_tags,
        retry_policy=RETRY,
    )
    def cohort(context: dg.AssetExecutionContext, bucket: Bucket, scan: Artefacts):
        """Table of all patients: set, group, shape, spacing, warnings; who is excluded or missing, and why."""
        objects = bucket.checked_objects()
        table = pd.DataFrame(cohort_rows(study, objects, bucket.layout, scan))
        included = table[table["status"] == "taken in"]
        return dg.MaterializeResult(
            value=table,
            check_results=[COHORT_CHECK.result("cohort", not_taken_in(table))],
            data_version=dg.DataVersion(table_version(table)),
            metadata={
                "patients": len(table),
                "taken in": len(included),
                **{f"{name} set": int((included["set"] == name).sum()) for name in ("train", "validation", "test")},
                "intensities in doubt": ", ".join(table.loc[table["doubts"] != "", "patient"]) or "none",
                "table": metadata.table(table.drop(columns=["exclusions"])),
            },
        )

    return [patient_files, scan, test_scan, cohort]


def fetch_patient(
    objects: ObjectStore, layout: Layout, study: Study, folder_name: str, scratch: Path, *, image: bool = True
) -> tuple[Path, list[dict[str, Any]]]:
    """A patient's files from the bucket into a folder below `scratch`, and which bytes they were.

    What is not in the bucket is not in the folder: `read_patient` says so with all that is missing.
    """
    folder = scratch / folder_name
    folder.mkdir(parents=True, exist_ok=True)
    files: list[dict[str, Any]] = []
    for name in ([study.image] if image else []) + [annotator.file for annotator in study.annotators]:
        key = layout.patient_file(folder_name, name)
        info = objects.head(key)
        if info is None:
            continue
        objects.download(key, folder / name)
        files.append({"name": name, "key": key, "size": info.size, "sha256": directories.sha256_of(folder / name)})
    return folder, files


def region_of(study: Study, record: dict[str, Any]) -> list[list[int]]:
    """Where a patient is scored, [start, stop] along (Z, Y, X), from the record of its scan."""
    facts = record["facts"]
    return facts["body_region"] if study.evaluation.region == "body" else [[0, n] for n in facts["shape"]]


def fetch_files(objects: ObjectStore, record: dict[str, Any], folder: Path, names: list[str]) -> None:
    """The files of a validated patient on the scan's voxels, whatever order an annotation is stored in.

    Every reader of annotations after the intake takes them from here.

    Raises:
        PatientError: a file is no longer what was validated.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for file in record["files"]:
        if file["name"] not in names:
            continue
        try:
            directories.download_verified(objects, file["key"], folder / file["name"], file["sha256"])
        except CorruptArtefactError as error:
            raise PatientError(
                f"fetching {file['name']}",
                record["patient"],
                "the file has changed since it was taken in",
                "Materialise scan (and test_scan) of this patient again, then repeat.",
            ) from error
        if "facts" in record:
            intake.bring_onto_scan(folder / file["name"], record["facts"]["shape"], record["affine"])


def folders_of_patients(study: Study, folders: Iterable[str]) -> dict[str, list[str]]:
    """Patient → the folders named like it, with or without the prefix; other folders are left aside."""
    found: dict[str, list[str]] = {}
    for folder in folders:
        try:
            found.setdefault(study.patients.normalise(folder), []).append(folder)
        except StudyError:
            continue
    return found


def folder_of(patient: str, folders: dict[str, list[str]]) -> str:
    """The one folder of a patient; a PatientError if there are two."""
    named = folders.get(patient, [patient])
    if len(named) > 1:
        raise PatientError(
            "looking for the folder",
            patient,
            f"{' and '.join(named)} are both this patient's",
            "Keep one of them.",
        )
    return named[0]


def unusual_geometry(facts: dict[str, Any]) -> list[str]:
    """What is odd about a scan's voxels and extent, though it can be used."""
    odd = [f"voxels of {mm:g} mm" for mm in facts["spacing_mm"] if not 0.2 <= mm <= 10]
    return odd + [f"only {mm:g} mm along an axis" for mm in facts["extent_mm"] if mm < 100]


def not_taken_in(table: pd.DataFrame) -> list[str]:
    """The patients whom the study names and does not have, each with the reason."""
    lost = table[~table["status"].isin(["taken in", "excluded"])]
    return [f"{row.patient}: {row.status}, {row.reason}" for row in lost.itertuples()]


def cohort_rows(study: Study, objects: ObjectStore, layout: Layout, scans: Artefacts) -> Iterator[dict[str, Any]]:
    """One row for each patient whom the study names, or who was taken in."""
    named = {patient for members in study.sets.values() for patient in members}
    present = folders_of_patients(study, patient_folders(objects, layout))
    for patient in sorted({*named, *scans}):
        row: dict[str, Any] = {
            "patient": patient,
            "set": study.patient_set(patient) or "",
            "group": study.patient_group(patient) or "",
            "status": "taken in",
            "reason": "",
            "exclusions": "[]",
            "doubts": "",
        }
        if patient in study.exclusions:
            yield {**row, "status": "excluded", "reason": study.exclusions[patient]}
            continue
        if patient not in scans:
            yield {**row, "status": "missing", "reason": "no folder of this patient in the bucket"}
            continue
        if objects.head(layout.scan(patient)) is None:
            yield {**row, "status": "not taken in", "reason": "scan was refused or not materialised: see its last run"}
            continue
        record = scans[patient].record()
        facts = record["facts"]
        yield {
            **row,
            "reason": "; ".join([*record["warnings"], *([] if patient in present else [GONE])]),
            "slices": facts["shape"][0],
            "shape": metadata.by(facts["shape"]),
            "spacing_mm": metadata.by(facts["spacing_mm"]),
            "exclusions": pd.Series([record["exclusions"]]).to_json(orient="values")[1:-1],
            "doubts": "; ".join(record.get("doubts", [])),
        }


def _facts(record: dict[str, Any]) -> dict[str, Any]:
    facts = record["facts"]
    return {
        "patient": record["patient"],
        "set": record["set"] or "none",
        "shape": metadata.by(facts["shape"]),
        "spacing_mm": metadata.by(facts["spacing_mm"]),
        "warnings": dg.MetadataValue.md("\n".join(f"- {w}" for w in record["warnings"]) or "none"),
        "facts": dg.MetadataValue.json(facts),
    }


def _preview(study: Study, patient: intake.Patient) -> dg.MarkdownMetadataValue:
    """The slice with most foreground, with every annotator's contours."""
    z = int((patient.annotations > 0).sum(axis=(0, 2, 3)).argmax())
    png = previews.preview_scan(
        patient.scan[z],
        list(patient.annotations[:, z]),
        patient.spacing_mm,
        orientation=patient.affine,
        annotators=study.annotator_names,
        title=f"{patient.id}, slice {z}",
    )
    return metadata.image(png, f"{patient.id}, slice {z}")
