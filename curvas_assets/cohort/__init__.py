"""Intake: patients read from files, validated and described. `phantom` makes synthetic ones."""

from curvas_assets.cohort.files import LocalPatients, PatientFiles, find_patients
from curvas_assets.cohort.intake import (
    PERCENTILES,
    Patient,
    body_region,
    bring_onto_scan,
    implausible_intensities,
    read_annotations,
    read_patient,
    require_files,
)
from curvas_assets.errors import PatientError

__all__ = [
    "PERCENTILES",
    "LocalPatients",
    "Patient",
    "PatientError",
    "PatientFiles",
    "body_region",
    "bring_onto_scan",
    "find_patients",
    "implausible_intensities",
    "read_annotations",
    "read_patient",
    "require_files",
]
