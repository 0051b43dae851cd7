"""Intake: patients read from files, validated and described. `phantom` makes synthetic ones."""

from curvas_assets.cohort.intake import (
    PERCENTILES,
    Patient,
    body_region,
    bring_onto_scan,
    implausible_intensities,
    read_annotations,
    read_patient,
)
from curvas_assets.errors import PatientError

__all__ = [
    "PERCENTILES",
    "Patient",
    "PatientError",
    "body_region",
    "bring_onto_scan",
    "implausible_intensities",
    "read_annotations",
    "read_patient",
]
