"""Calibration: what a predictor's probabilities are worth, fitted on some patients and applied while others are read."""

from curvas_assets.calibration.calibrators import Calibrator, Isotonic, Temperature, calibrator_of
from curvas_assets.calibration.isotonic import Curve, FittedCurve, fit_isotonic
from curvas_assets.calibration.responses import PatientResponses, count_responses
from curvas_assets.calibration.temperature import FittedTemperature, fit_temperature
from curvas_assets.calibration.volume import CalibratedVolume

__all__ = [
    "CalibratedVolume",
    "Calibrator",
    "Curve",
    "FittedCurve",
    "FittedTemperature",
    "Isotonic",
    "PatientResponses",
    "Temperature",
    "calibrator_of",
    "count_responses",
    "fit_isotonic",
    "fit_temperature",
]
