"""Calibrators: fitted on the validation patients' predictions and annotations, and read by whoever scores or exports."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from curvas_assets.calibration import (
    Calibrator,
    Isotonic,
    PatientResponses,
    Temperature,
    count_responses,
    fit_isotonic,
    fit_temperature,
)
from curvas_assets.calibration.isotonic import answers_of
from curvas_assets.errors import CalibrationError, MissingArtefactError, ScoringError
from curvas_assets.predictors import CalibratedId
from curvas_assets.report import previews
from curvas_assets.stages.checks import Check
from curvas_assets.stages.patients import scored_region
from curvas_assets.stages.score import Telling, reference_of, require_members
from curvas_assets.stages.stored import Artefacts, Picture
from curvas_assets.stages.toolkit import Toolkit
from curvas_assets.storage import tables
from curvas_assets.storage.layout import Cell
from curvas_assets.storage.softmax import SoftmaxVolume
from curvas_assets.study import Study

CALIBRATORS_CHECK = Check(
    "calibrators_are_complete",
    "Each calibrator was fitted on every validation patient, each organ was annotated there, and no temperature is at the "
    "end of its range; tells where this is not so.",
)
MOST_VOXELS = 6 * 866 * 512 * 512
"""Of each predictor that are counted: six scans of full size. Of more, every second, third … slab is read."""
PICTURES = 8
"""Calibrated predictors whose curves are drawn."""
CURVE_BINS = 20


@dataclass
class _Found:
    """What the validation patients tell of the predictors that are calibrated.

    Args:
        responses: predictor → patient → what was counted.
        missing: predictor → patient → why nothing was.
        every: of the slabs, every which one was read.
    """

    responses: dict[str, dict[str, PatientResponses]]
    missing: dict[str, dict[str, str]] = field(default_factory=dict)
    every: int = 1


def fit_calibrators(
    tools: Toolkit, *, softmax: Artefacts, ensemble_softmax: Artefacts, scan: Artefacts
) -> tuple[dict[str, Any], str, dict[str, Any], list[str]]:
    """All calibrators of a study, fitted on its validation patients alone.

    Args:
        tools: of the stage.
        softmax: of models, of validation patients.
        ensemble_softmax: of ensembles, likewise.
        scan: records of validation patients.

    Returns:
        The record to store, its version, what people see of it, and what is odd about it.

    Raises:
        MissingArtefactError: no validation patient is predicted by a predictor that the study calibrates.
        CorruptArtefactError: a volume is damaged.
        ScoringError: an ensemble is the mean of others than its members now.
    """
    study = tools.study
    if not study.calibrated_ids:
        record: dict[str, Any] = {"calibrators": {}}
        return record, tables.record_version(record), {"calibrators": "none: the study calibrates nothing"}, []
    found = _count(tools, softmax, ensemble_softmax, scan)
    for base, missing in found.missing.items():
        told = "; ".join(f"{patient} ({why})" for patient, why in missing.items())
        used = list(found.responses[base])
        if not used:
            raise MissingArtefactError(
                "fitting calibrators",
                base,
                f"none of the {len(missing)} validation patients can be used: {told}",
                "Upload the patients of sets.validation, and launch `study`, which takes them in and predicts them; or leave "
                "this predictor out of `calibrated` in the study file.",
            )
        tools.warn(f"{base} is calibrated on {len(used)} of {len(study.fitting_patients)} validation patients: {told}")
    fits = {str(one): _fit(study, one, found) for one in study.calibrated_ids}
    record = {"calibrators": {name: fit.record for name, fit in fits.items()}}
    table = pd.DataFrame([row for fit in fits.values() for row in fit.rows])
    facts: dict[str, Any] = {
        "calibrators": len(fits),
        "validation patients": ", ".join(sorted({p for of in found.responses.values() for p in of})),
        "left out": "; ".join(f"{b}: {', '.join(m)}" for b, m in found.missing.items()) or "none",
        "slabs read": "all" if found.every == 1 else f"one of {found.every}",
        "fitted": table,
    }
    for name, fit in list(fits.items())[:PICTURES]:
        facts[f"curves of {name}"] = Picture(fit.png, f"{name}: mean response before and after")
    problems = [problem for fit in fits.values() for problem in fit.problems]
    problems += [f"{base} lacks {p} ({why})" for base, missing in found.missing.items() for p, why in missing.items()]
    return record, tables.record_version(record), facts, problems


# Counting ------------------------------------------------------------------------------------------------------------


def _count(tools: Toolkit, softmax: Artefacts, ensemble_softmax: Artefacts, scan: Artefacts) -> _Found:
    """Count each validation patient's predictors that are to be calibrated."""
    study = tools.study
    bases = study.fitted_predictors
    found = _Found({base: {} for base in bases})
    records: dict[str, dict[str, Any]] = {}
    for patient in study.fitting_patients:
        try:
            records[patient] = scan[patient].record()
        except (KeyError, MissingArtefactError):
            for base in bases:
                found.missing.setdefault(base, {})[patient] = "its scan was not taken in"
    sizes = {p: math.prod(stop - start for start, stop in scored_region(study, one)) for p, one in records.items()}
    found.every = max(1, math.ceil(sum(sizes.values()) / MOST_VOXELS))
    for number, (patient, record) in enumerate(records.items(), 1):
        volumes: dict[str, SoftmaxVolume] = {}
        for base in bases:
            try:
                volumes[base] = _volume(study, base, patient, softmax, ensemble_softmax)
            except MissingArtefactError:
                found.missing.setdefault(base, {})[patient] = "it is not predicted"
        if not volumes:
            continue
        with tools.scratch(patient) as scratch:
            try:
                reference = reference_of(tools, patient, record, scratch)
            except ScoringError as error:
                for base in volumes:
                    found.missing.setdefault(base, {})[patient] = f"{error.found}"
                continue
            counted = count_responses(
                volumes, reference.annotations, reference.region, every=found.every, first=number - 1,
                progress=Telling(tools.tell, patient, "slabs"),
            )  # fmt: skip
        for base, one in counted.items():
            found.responses[base][patient] = one
        tools.tell(
            f"{patient}: {len(volumes)} predictors counted against {len(reference.annotators)} annotators, "
            f"{number} of {len(records)} validation patients"
        )
    return found


def _volume(study: Study, base: str, patient: str, softmax: Artefacts, ensemble_softmax: Artefacts) -> SoftmaxVolume:
    """The volume of a predictor of a patient; a MissingArtefactError if there is none."""
    cell = str(Cell(base, patient))
    held = softmax if study.predicted_by(base) == "model" else ensemble_softmax
    if cell not in held:
        raise MissingArtefactError(
            "reading its input", cell, "it has not been materialised", f"Materialise {cell} first."
        )
    volume = held[cell].volume()
    if held is ensemble_softmax:
        require_members(volume.provenance.get("members"), [str(one) for one in study.members(base, patient)], cell)
    return volume


# Fitting -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Fit:
    """One calibrator: what is stored, and what is told of it."""

    record: dict[str, Any]
    rows: list[dict[str, Any]]
    problems: list[str]
    png: bytes


def _fit(study: Study, one: CalibratedId, found: _Found) -> _Fit:
    """Fit one calibrator."""
    name, of_patient = str(one), found.responses[str(one.base)]
    patients, organs = list(of_patient.values()), study.class_names[1:]
    if any(len(each.codes) != len(organs) for each in patients):
        raise CalibrationError(
            "fitting calibrators",
            str(one.base),
            f"volumes without the organs {organs}",
            "Predict these patients again.",
        )
    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    if one.method == "temperature":
        fitted = fit_temperature(patients)
        calibrator: Calibrator = Temperature(fitted.temperature)
        rows.append(_row(name, "", "cross-entropy, nats", fitted.before, fitted.after, f"T = {fitted.temperature:.4g}"))
        problems += [f"{name}: {fitted.doubt}"] if fitted.doubt else []
    else:
        curves = dict(zip(organs, fit_isotonic(patients), strict=True))
        calibrator = Isotonic({organ: each.curve for organ, each in curves.items()})
        for organ, each in curves.items():
            knots = f"{len(each.curve.probability)} knots"
            rows.append(_row(name, organ, "calibration error", each.before, each.after, knots))
            problems += [f"{name}, {organ}: {each.doubt}"] if each.doubt else []
    record = {
        **calibrator.record(),
        "of": str(one.base),
        "patients": list(of_patient),
        "voxels": sum(each.voxels for each in patients),
        "slabs_read": f"1 of {found.every}",
    }
    return _Fit(record, rows, problems, _picture(name, organs, patients, calibrator))


def _row(name: str, organ: str, measure: str, before: float, after: float, fitted: str) -> dict[str, Any]:
    row = {"predictor": name, "organ": organ, "measure": measure, "before": before, "after": after, "fitted": fitted}
    return {**row, "on": "the patients it was fitted on"}


def _picture(name: str, organs: list[str], patients: list[PatientResponses], calibrator: Calibrator) -> bytes:
    """Mean response by probability of each organ, and the curve that the calibrator makes of the probability."""
    measured: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    curves: dict[str, np.ndarray] = {}
    grid = np.linspace(0, 1, 201)
    for number, organ in enumerate(organs):
        p, response, weight = answers_of(patients, number)
        places = np.minimum((p * CURVE_BINS).astype(int), CURVE_BINS - 1)
        total = np.bincount(places, weight, CURVE_BINS)
        filled = total > 0
        mean_p, mean_response = (
            np.bincount(places, weight * values, CURVE_BINS)[filled] / total[filled] for values in (p, response)
        )
        measured[organ] = (mean_p, mean_response)
        if isinstance(calibrator, Isotonic):
            curves[organ] = calibrator.of(organ)(grid)
    if isinstance(calibrator, Temperature):
        beta = 1 / calibrator.temperature
        with np.errstate(divide="ignore"):
            curves["of two classes"] = 1 / (1 + np.exp(-beta * (np.log(grid) - np.log1p(-grid))))
    return previews.calibration_curves(measured, grid, curves, title=name)
