"""Claims proved here, on held-out phantoms whose annotators' true response is known.

- An over-confident predictor that is calibrated by isotonic curves to the annotators of other patients comes nearer to the
  true response, not only to these annotators: the mean absolute error to the truth falls by 30 % or more where anybody is
  unsure, for every held-out patient; so does the calibration error to the mean response of ever more annotators.
- A temperature also brings it nearer to the truth.
- A predictor that says the truth is left as it is, up to what a few annotators can tell.
"""

import numpy as np
import pytest

from curvas_assets.calibration import (
    CalibratedVolume,
    Isotonic,
    Temperature,
    count_responses,
    fit_isotonic,
    fit_temperature,
)
from curvas_assets.cohort.phantom import ORGANS, make_patient, true_ambiguity, true_response
from curvas_assets.geometry import Grid
from curvas_assets.storage.objects import FolderObjects
from curvas_assets.storage.softmax import SoftmaxWriter, open_softmax
from curvas_assets_tests.test_known_truth import AT, OVER_CONFIDENT, TOLD, _members

FITTED_ON, HELD_OUT = [f"PHANTOM{n:03d}" for n in range(11, 16)], [f"PHANTOM{n:03d}" for n in range(21, 24)]
WHOLE = tuple(slice(0, n) for n in AT["shape"])
LEAST_FALL = 0.3
"""What the issue asks of the calibration error on test patients."""


class Cohort:
    """Patients with their truth, three annotators, and what a predictor says, stored."""

    def __init__(self, folder, *, over_confident: bool):
        store = FolderObjects(folder)
        self.truth, self.drawn, self.said = {}, {}, {}
        for number, name in enumerate([*FITTED_ON, *HELD_OUT]):
            truth = true_response(name, disagreement=TOLD, **AT)
            _, self.drawn[name] = make_patient(name, annotators=3, disagreement=TOLD, **AT)
            rng = np.random.default_rng(number)
            said = _members(truth, rng, OVER_CONFIDENT)[0] if over_confident else truth
            grid = Grid.with_voxels(AT["shape"], AT["spacing_mm"])
            with SoftmaxWriter(store, name, grid, class_names=["background", *ORGANS]) as writer:
                writer.write(0, said)
            self.truth[name], self.said[name] = truth, open_softmax(store, name)
        self.counted = [count_responses({"it": self.said[name]}, self.drawn[name], WHOLE)["it"] for name in FITTED_ON]

    def isotonic(self) -> Isotonic:
        return Isotonic({organ: one.curve for organ, one in zip(ORGANS, fit_isotonic(self.counted), strict=True)})

    def error(self, name: str, volume) -> float:
        """Mean absolute error to the true response where an annotator may be unsure."""
        unsure = true_ambiguity(self.truth[name]) > 0.05
        assert unsure.sum() > 500
        return float(np.abs(volume.slab(0, AT["shape"][0]) - self.truth[name])[:, unsure].mean())


@pytest.fixture(scope="module", params=[True, False], ids=["over-confident", "the truth"])
def cohort(request, tmp_path_factory):
    return Cohort(tmp_path_factory.mktemp("store"), over_confident=request.param), request.param


@pytest.mark.parametrize("name", HELD_OUT)
def test_isotonic_calibration_brings_an_over_confident_predictor_nearer_to_the_truth(cohort, name):
    patients, over_confident = cohort
    before = patients.error(name, patients.said[name])
    after = patients.error(name, CalibratedVolume(patients.said[name], patients.isotonic()))
    if over_confident:
        assert after < (1 - LEAST_FALL) * before
    else:
        assert before < 1e-3
        assert after < 0.02  # five patients with three annotators: the curve itself is estimated


@pytest.mark.parametrize("name", HELD_OUT)
def test_a_temperature_brings_an_over_confident_predictor_nearer_to_the_truth(cohort, name):
    patients, over_confident = cohort
    fitted = Temperature(fit_temperature(patients.counted).temperature)
    before = patients.error(name, patients.said[name])
    after = patients.error(name, CalibratedVolume(patients.said[name], fitted))
    if over_confident:
        assert fitted.temperature > 1.5
        assert after < (1 - LEAST_FALL) * before
    else:
        assert fitted.temperature == pytest.approx(1, abs=0.15)
        assert after < 0.02


@pytest.mark.parametrize("name", HELD_OUT)
def test_the_calibration_error_to_ever_more_annotators_falls(cohort, name):
    """To the true response itself, over 50 bins, which is what `ece_mean_response` tends to with the number of annotators."""
    patients, over_confident = cohort
    after = CalibratedVolume(patients.said[name], patients.isotonic())
    was, now = (
        _calibration_error(v.slab(0, AT["shape"][0]), patients.truth[name]) for v in (patients.said[name], after)
    )
    if over_confident:
        assert now < (1 - LEAST_FALL) * was


def _calibration_error(said, truth, bins=50):
    errors = []
    for p, response in zip(said[1:], truth[1:], strict=True):
        of = np.minimum((p.ravel() * bins).astype(int), bins - 1)
        gap = np.bincount(of, p.ravel() - response.ravel().astype(np.float64), bins)
        errors.append(np.abs(gap).sum() / p.size)
    return float(np.mean(errors))
