"""Isotonic calibration: of each organ, a rising curve from its probability to the annotators' mean response.

Zadrozny and Elkan 2002, doi:10.1145/775047.775151. The response of a voxel is the share of annotators who gave it the organ,
so that a voxel that half of them gave is worth a half.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from curvas_assets.calibration.responses import PatientResponses
from curvas_assets.errors import CalibrationError

BINS = 50
"""Of probability, over which a curve's calibration error is told: as many as `ece_mean_response` has."""
LIKELY = 0.5
"""Response that some probability should reach: below it, an organ is hardly the most probable class anywhere."""
SURE = 0.9
"""Probability that the fitting patients should reach: a trained network is surer than this inside its organs."""


@dataclass(frozen=True)
class Curve:
    """A rising curve: straight between its knots, level beyond the first and the last.

    Args:
        probability: of each knot, ascending.
        response: the calibrated probability there, ascending.
    """

    probability: tuple[float, ...]
    response: tuple[float, ...]

    def __call__(self, p: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Calibrated probabilities."""
        return np.clip(np.interp(np.asarray(p, np.float64), self.probability, self.response), 0.0, 1.0)


UNCHANGED = Curve((0.0, 1.0), (0.0, 1.0))


@dataclass(frozen=True)
class FittedCurve:
    """The curve of one organ and what it gains.

    Args:
        curve: it.
        before: calibration error of the fitting patients' voxels to the mean response, over 50 bins.
        after: the same of the calibrated probabilities.
        doubt: why the curve should not be relied on; empty if it can be.
    """

    curve: Curve
    before: float
    after: float
    doubt: str = ""


def fit_isotonic(patients: Sequence[PatientResponses]) -> list[FittedCurve]:
    """The curves of least squares between the organs' probabilities and the annotators' mean response, of each organ.

    Every patient has the same weight, however many voxels its scan has: a voxel counts 1 / (voxels of its patient), as scores
    are means over patients. Pool-adjacent-violators on the mean responses of all codes, weighted; both ends of each level
    piece are knots, which loses nothing.

    Args:
        patients: of one predictor.

    Returns:
        One curve per organ, in the order of labels. It changes nothing, with a doubt, where no annotator gave a voxel to
        the organ. A doubt also says that no probability is mapped to 1/2 or more, so that the organ is hardly segmented
        any more, or that the largest probability seen is below 0.9, beyond which the curve is level.

    Raises:
        CalibrationError: there is no patient.
    """
    if not patients:
        raise CalibrationError("fitting isotonic curves", "the predictor", "no patient", "Give one or more.")
    return [_fit_organ(*answers_of(patients, organ)) for organ in range(len(patients[0].codes))]


def answers_of(
    patients: Sequence[PatientResponses], organ: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """What there is to fit a curve to: distinct probabilities, ascending, their mean responses, and their weights.

    Args:
        patients: of one predictor.
        organ: its label less 1.

    Returns:
        Three arrays of one length; the weights sum to the number of patients.
    """
    parts: list[npt.NDArray[np.float64]] = []
    for one in patients:
        seen = np.flatnonzero(one.codes[organ])
        share = 1 / one.voxels
        weight = one.codes[organ, seen] * share
        parts.append(np.stack([one.levels[seen], weight, one.positives[organ, seen] * share / one.annotators]))
    p, weight, response = np.concatenate(parts, axis=1)
    values, place = np.unique(p, return_inverse=True)
    total, answers = (np.asarray(np.bincount(place, each), np.float64) for each in (weight, response))
    return values, answers / total, total


def _fit_organ(
    p: npt.NDArray[np.float64], response: npt.NDArray[np.float64], weight: npt.NDArray[np.float64]
) -> FittedCurve:
    from scipy.optimize import isotonic_regression

    before = _error(p, response, weight)
    if not response.any():
        return FittedCurve(UNCHANGED, before, before, "no annotator gave it any voxel: its probabilities stay")
    fitted = np.clip(np.maximum.accumulate(isotonic_regression(response, weights=weight).x), 0.0, 1.0)
    inner = np.zeros(p.size, bool)
    inner[1:-1] = (fitted[1:-1] == fitted[:-2]) & (fitted[1:-1] == fitted[2:])
    curve = Curve(tuple(p[~inner].tolist()), tuple(fitted[~inner].tolist()))
    return FittedCurve(curve, before, _error(fitted, response, weight), _doubt(curve))


def _doubt(curve: Curve) -> str:
    """Why the upper end of a curve should not be relied on; empty if it can be."""
    seen, most = curve.probability[-1], curve.response[-1]
    doubts = []
    if most < LIKELY:
        doubts.append(f"no probability of this organ is mapped above {most:.2g}, so it is hardly segmented any more")
    if seen < SURE:
        doubts.append(
            f"the largest probability on the patients it was fitted on is {seen:.2g}: all above are mapped to {most:.2g}"
        )
    return "; ".join(doubts)


def _error(p: npt.NDArray[np.float64], response: npt.NDArray[np.float64], weight: npt.NDArray[np.float64]) -> float:
    """Σ over bins of their share of the weight × |mean response − mean probability|."""
    places = np.minimum((p * BINS).astype(np.int64), BINS - 1)
    return float(np.abs(np.bincount(places, weight * (response - p))).sum() / weight.sum())
