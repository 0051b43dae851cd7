"""Calibrated predictors of a patient: stored volumes and the calibrators that stages.calibrate has fitted, put together."""

from collections.abc import Iterable, Mapping

from curvas_assets.calibration import CalibratedVolume, Calibrator, calibrator_of
from curvas_assets.errors import MissingArtefactError
from curvas_assets.predictors import CalibratedId
from curvas_assets.stages.stored import Artefact
from curvas_assets.storage.softmax import SoftmaxVolume
from curvas_assets.study import Study


def calibrators_of(calibrators: Artefact, wanted: Iterable[str]) -> dict[str, Calibrator]:
    """Calibrators by the names of the predictors that they make; nothing is read if none is wanted.

    Args:
        calibrators: the artefact.
        wanted: names of calibrated predictors.

    Raises:
        MissingArtefactError: they have not been fitted, or not all of them.
        CorruptArtefactError: the record is damaged.
    """
    names = list(wanted)
    if not names:
        return {}
    held = calibrators.record().get("calibrators", {})
    if absent := [name for name in names if name not in held]:
        raise MissingArtefactError(
            "reading its input",
            calibrators.subject,
            f"it holds no calibrator of {', '.join(absent)}",
            "Materialise calibrators again: the job fit_calibrators does, and `study`.",
        )
    return {name: calibrator_of(held[name], f"{calibrators.objects.name}/{calibrators.key}, {name}") for name in names}


def with_calibrated(
    study: Study, patient: str, volumes: Mapping[str, SoftmaxVolume], calibrators: Artefact
) -> dict[str, SoftmaxVolume | CalibratedVolume]:
    """A patient's opened volumes and, of those that the study calibrates, the calibrated ones, which share them.

    Raises:
        MissingArtefactError, CorruptArtefactError: as `calibrators_of`.
    """
    wanted = [name for name in study.predictors_of(patient) if study.predicted_by(name) == "calibrated"]
    found = calibrators_of(calibrators, wanted)
    return {**volumes, **{name: CalibratedVolume(volumes[base_of(name)], one) for name, one in found.items()}}


def base_of(name: str) -> str:
    """The predictor that a calibrated one is made of."""
    return str(CalibratedId.parse(name).base)
