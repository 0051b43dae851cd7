"""Cohort: what people put into the bucket, validated patient by patient."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from curvas_assets import cohort as intake
from curvas_assets.cohort import implausible_intensities
from curvas_assets.errors import PatientError
from curvas_assets.geometry import by
from curvas_assets.report import previews
from curvas_assets.stages.checks import Check, StepChecks
from curvas_assets.stages.patients import fetch_patient, scored_region, shown_window, uploaded
from curvas_assets.stages.stored import Artefacts, Markdown, Outcome, Picture, Stored, one_by_one
from curvas_assets.stages.toolkit import Toolkit
from curvas_assets.storage import tables
from curvas_assets.storage.layout import Layout
from curvas_assets.storage.objects import ObjectStore
from curvas_assets.study import Study

SCAN_CHECKS = (
    Check(
        "files_are_sound",
        "Every file is whole, on one geometry, with the study's labels only, no NaN.",
        of_defects=True,
    ),
    Check("geometry_is_usual", "Voxels are 0.2 to 10 mm wide, and the scan is at least 100 mm long along each axis."),
    Check("labels_are_complete", "Every annotator drew every organ, in whole numbers and the scan's voxel order."),
    Check(
        "intensities_are_plausible",
        "Of a CT, HU: air below -500, some soft tissue, something above 0, nothing beyond ±32768. Of another channel, not one value alone.",
    ),
)
GONE = "its files are gone from the bucket since it was taken in"
COHORT_CHECK = Check(
    "patients_are_taken_in", "Every patient of the study's sets is taken in or excluded; tells who is missing, and why."
)
TEST_SCAN_CHECKS = (
    Check("region_is_not_empty", "The region in which predictors are scored holds voxels.", of_defects=True),
)


def take_in(tools: Toolkit, patients: Sequence[str], checks: StepChecks) -> Iterator[tuple[str, Outcome]]:
    """Read patients to the last byte and validate them: a record of facts and doubts of each."""
    study, objects, layout = tools.study, tools.objects, tools.layout
    there = uploaded(objects, layout, study)

    def read(patient: str) -> Stored:
        with tools.scratch(patient, there.size_of(patient)) as scratch:
            try:
                fetched, files = fetch_patient(objects, layout, there, patient, scratch)
                found = intake.read_patient(fetched, study)
            except PatientError as error:
                if error.may_retry:  # too little memory just now, which says nothing about the files
                    raise
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
            "affine": found.grid.affine.tolist(),
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

    yield from one_by_one(read)(patients)


def select_test_scans(
    tools: Toolkit, patients: Sequence[str], checks: StepChecks, *, scan: Artefacts
) -> Iterator[tuple[str, Outcome]]:
    """What a prediction needs to know of patients: their image alone, nothing of annotations."""
    study, objects, layout = tools.study, tools.objects, tools.layout

    def bridge(patient: str) -> Stored:
        record = scan[patient].record()
        facts = record["facts"]
        shape, region = facts["shape"], scored_region(study, record)
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
            "files": [file for file in record["files"] if file["name"] in study.image_files],
            "shape": shape,
            "spacing_mm": facts["spacing_mm"],
            "affine": record["affine"],
        }
        key = layout.test_scan(patient)
        version = tables.write_json(objects, key, bridged)
        return Stored(key, version, {"patient": patient, "shape": by(shape), "region": str(region)})

    yield from one_by_one(bridge)(patients)


def describe_cohort(tools: Toolkit, scans: Artefacts) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The table of all patients, and what people look for in it."""
    table = pd.DataFrame(cohort_rows(tools.study, tools.objects, tools.layout, scans))
    included = table[table["status"] == "taken in"]
    return table, {
        "patients": len(table),
        "taken in": len(included),
        **{f"{name} set": int((included["set"] == name).sum()) for name in ("train", "validation", "test")},
        "intensities in doubt": ", ".join(table.loc[table["doubts"] != "", "patient"]) or "none",
        "table": table.drop(columns=["exclusions"]),
    }


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
    present = uploaded(objects, layout, study).digests
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
            yield {**row, "status": "missing", "reason": "no file of this patient in the bucket"}
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
            "shape": by(facts["shape"]),
            "spacing_mm": by(facts["spacing_mm"]),
            "exclusions": pd.Series([record["exclusions"]]).to_json(orient="values")[1:-1],
            "doubts": "; ".join(record.get("doubts", [])),
        }


def _facts(record: dict[str, Any]) -> dict[str, Any]:
    facts = record["facts"]
    return {
        "patient": record["patient"],
        "set": record["set"] or "none",
        "shape": by(facts["shape"]),
        "spacing_mm": by(facts["spacing_mm"]),
        "warnings": Markdown("\n".join(f"- {w}" for w in record["warnings"]) or "none"),
        "facts": facts,
    }


def _preview(study: Study, patient: intake.Patient) -> Picture:
    """The slice with most foreground, with the contours of everyone who annotated the patient."""
    drawn = [int(np.count_nonzero(patient.annotations[:, z])) for z in range(patient.annotations.shape[1])]
    z = int(np.argmax(drawn))
    there = [(r, name) for r, name in enumerate(study.annotator_names) if name not in patient.not_annotated]
    png = previews.preview_scan(
        patient.scan[z],
        [patient.annotations[r, z] for r, _ in there],
        patient.grid.spacing_mm,
        window=shown_window(study, patient.facts),
        orientation=patient.grid.orientation,
        annotators=[name for _, name in there],
        title=f"{patient.id}, slice {z}",
    )
    return Picture(png, f"{patient.id}, slice {z}")
