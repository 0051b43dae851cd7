"""What each predictor needs: trainings, predictions, ensembling and fits, with the hours that these took.

Belongs here: which artefacts a predictor is made of, and the sum of what they used. Does not belong here: reading what was
used (`curvas_assets.orchestration.ledger`), money and bytes of stages (`cost_table` there), what is gained for an hour
(`curvas_assets.statistics.efficiency`).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pandas as pd

from curvas_assets.predictors import CalibratedId, EnsembleId, PredictorId, predictor_of
from curvas_assets.stages import schemas
from curvas_assets.stages.table import ASSETS, ENSEMBLE_SOFTMAX, PREDICTED, SCORES, TRAINED_MODEL, Asset
from curvas_assets.storage.layout import Cell, patient_of
from curvas_assets.study import Study

FITTED = tuple(row for row in ASSETS if row.fits and row in SCORES.inputs)
"""Assets that are fitted on validation patients, and that predictors are scored with."""
NEEDED = (TRAINED_MODEL, *PREDICTED, ENSEMBLE_SOFTMAX, *FITTED)
"""Assets that a predictor can be made of; without a network's hours: the datasets, which all models share."""
RECORDS = (*NEEDED, SCORES)
"""Assets whose records tell what was used, and for whom."""
GPUS = ("cuda", "mps")
"""How the names of devices begin that are GPUs."""


class Used(NamedTuple):
    """What making one artefact took, the newest time that it was made.

    Attributes:
        hours: of the step; of a training that went on from a checkpoint, the hours of all its epochs at the pace of those
            that the last attempt trained.
        gpu: whether they were a GPU's.
        estimated: whether earlier attempts are estimated.
    """

    hours: float
    gpu: bool
    estimated: bool


@dataclass
class Needs:
    """Artefacts that one predictor needs: partitions of trainings, cells, and what combines or fits them."""

    trainings: set[str] = field(default_factory=set)
    predictions: set[str] = field(default_factory=set)
    ensembles: set[str] = field(default_factory=set)
    fits: set[str] = field(default_factory=set)


def predictor_cost(study: Study, ledger: pd.DataFrame) -> pd.DataFrame:
    """What each predictor of a study needs, as the newest materialisations recorded it.

    A model takes its training, and its predictions of the patients who are scored. An ensemble takes the trainings and
    predictions of all its members, each once, and its own mean; the ensemble of a model's flips takes one training, and a
    prediction for each flip. A calibrated predictor takes what its base takes, the base's predictions of the validation
    patients, and the fit (that of all calibrated predictors, if they are fitted at once). What several predictors share counts whole in each: it is what this predictor alone would take.

    Args:
        study: whose predictors.
        ledger: as `materialisation_ledger` gives it for `RECORDS`: `asset`, `partition`, `seconds`, `device`, `epochs`,
            `resumed`, the newest row of an artefact first. A patient of whom nothing was predicted, averaged or scored here
            (whom nobody uploaded, say) is charged to nobody.

    Returns:
        One row per predictor, in the study's order: `predictor`, `family`, `trainings` and `predictions` (how many),
        `patients` (predicted to be scored), hours by what computed, `training_gpu_hours`, `training_cpu_hours`,
        `inference_gpu_hours`, `inference_cpu_hours`, `combining_hours` (means and fits, on CPUs), `unrecorded` (artefacts
        it needs without a record of work: made elsewhere, or not yet), and `estimated` (trainings whose earlier attempts
        are estimated). Hours are sums of what was recorded, hence too small where something is unrecorded.
    """
    used = _newest(ledger)
    known = _patients(ledger)
    # Before the first record, all that is to come is needed.
    patients = [one for one in study.scored_patients(known) if one in known] or study.scored_patients()
    fitting = [one for one in study.fitting_patients if one in known] or study.fitting_patients
    rows = [_row(study, predictor, patients, fitting, used) for predictor in study.predictors]
    return pd.DataFrame(rows, columns=schemas.PREDICTOR_COST.columns.names)


def without_record(table: pd.DataFrame) -> list[str]:
    """One sentence per predictor whose cost is not all known."""
    lacking = table[table["unrecorded"] > 0]
    return [
        f"{row.predictor}: no work is recorded for {row.unrecorded} of the artefacts it needs (made elsewhere, or not yet)"
        for row in lacking.itertuples()
    ]


def needs_of(study: Study, predictor: PredictorId, patients: Iterable[str], fitting: Iterable[str]) -> Needs:
    """The artefacts that a predictor needs to predict these patients; none for those whom it does not predict.

    Args:
        study: whose predictor.
        predictor: which.
        patients: who are predicted.
        fitting: validation patients, on whom a calibrated predictor is fitted.
    """
    needs = Needs()
    if isinstance(predictor, CalibratedId):
        needs = needs_of(study, predictor.base, {*patients, *fitting}, ())
        needs.fits.add(str(predictor))
        return needs
    for patient in patients:
        if isinstance(predictor, EnsembleId):
            members = study.members(predictor, patient)
            if members:
                needs.ensembles.add(str(Cell(str(predictor), patient)))
        else:
            members = [predictor] if predictor in study.models_of(patient) else []
        needs.trainings |= {str(member.trained) for member in members}
        needs.predictions |= {str(Cell(str(member), patient)) for member in members}
    return needs


def _row(
    study: Study, name: str, patients: Iterable[str], fitting: Iterable[str], used: dict[tuple[str, str], Used]
) -> dict[str, str | int | float]:
    needs = needs_of(study, predictor_of(name), patients, fitting)
    trainings = [used.get((TRAINED_MODEL.name, key)) for key in sorted(needs.trainings)]
    predictions = [_first(used, PREDICTED, key) for key in sorted(needs.predictions)]
    combined = [used.get((ENSEMBLE_SOFTMAX.name, key)) for key in sorted(needs.ensembles)]
    combined += [_first(used, FITTED, key) or _first(used, FITTED, "") for key in sorted(needs.fits)]
    whole = [*trainings, *predictions, *combined]
    return {
        "predictor": name,
        "family": study.family(name),
        "trainings": len(trainings),
        "predictions": len(predictions),
        "patients": len({Cell.of(key).patient for key in needs.predictions} - set(study.fitting_patients)),
        "training_gpu_hours": _hours(trainings, gpu=True),
        "training_cpu_hours": _hours(trainings, gpu=False),
        "inference_gpu_hours": _hours(predictions, gpu=True),
        "inference_cpu_hours": _hours(predictions, gpu=False),
        "combining_hours": _hours(combined, gpu=True) + _hours(combined, gpu=False),
        "unrecorded": sum(one is None for one in whole),
        "estimated": sum(one is not None and one.estimated for one in whole),
    }


def _first(used: dict[tuple[str, str], Used], assets: Iterable[Asset], key: str) -> Used | None:
    """What a partition of one of several assets took."""
    return next((used[row.name, key] for row in assets if (row.name, key) in used), None)


def _hours(parts: Iterable[Used | None], *, gpu: bool) -> float:
    return float(sum(one.hours for one in parts if one is not None and one.gpu is gpu))


def _patients(ledger: pd.DataFrame) -> set[str]:
    """Patients of whom something was predicted, averaged or scored here."""
    of_patients = {row.name for row in (*PREDICTED, ENSEMBLE_SOFTMAX, SCORES)}
    partitions = ledger.loc[ledger["asset"].isin(of_patients), "partition"].astype(str)
    return {patient_of(partition) for partition in partitions}


def _newest(ledger: pd.DataFrame) -> dict[tuple[str, str], Used]:
    """Asset and partition → what making it took the last time."""
    own = ledger[ledger["asset"].isin([row.name for row in NEEDED])].drop_duplicates(["asset", "partition"])
    found: dict[tuple[str, str], Used] = {}
    for row in own.itertuples():
        hours, estimated = float(row.seconds) / 3600, False  # type: ignore[arg-type]
        epochs, resumed = _count(row.epochs), _count(row.resumed)
        if resumed > 0 and epochs > resumed:
            hours, estimated = hours * epochs / (epochs - resumed), True
        gpu = str(row.device).startswith(GPUS)
        found[str(row.asset), str(row.partition)] = Used(hours, gpu, estimated)
    return found


def _count(value: object) -> int:
    return int(value) if isinstance(value, int | float | np.number) and np.isfinite(float(value)) else 0
