"""Claims proved here, on phantoms whose annotators' disagreement is known, with predictors that are made from the truth.

- The expected entropy of well-specified members goes with the true ambiguity, as closely as the size of their errors allows,
  and more closely than the disagreement of five annotators does.
- That of over-confident members goes with it less, and says that there is less ambiguity than there is.
- Mutual information is of the members' errors: members that err alike have none, however ambiguous the patient is.
- Proper scores, the calibration to the mean response and `ncc` know: of what predicts the truth, members about it, their
  mean and over-confident ones, the truth is best, and over-confidence is worst.
"""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.special import entr, log_softmax, softmax

from curvas_assets.cohort.phantom import ORGANS, Disagreement, make_patient, true_ambiguity, true_response
from curvas_assets.ensembling import average
from curvas_assets.scoring import PatientReference

AT = {"shape": (20, 40, 40), "spacing_mm": (12.0, 8.4, 8.4), "seed": 11}
TOLD = Disagreement(offset_mm=4.0, waver_mm=5.0, length_mm=15.0)
PATIENTS = ["PHANTOM001", "PHANTOM002", "PHANTOM003"]
MEMBERS, ERROR = 6, 0.5
"""Members of an ensemble; standard deviation of the error of a member's logits."""
OVER_CONFIDENT = 4.0
"""Logits are that many times too large."""
LEAST = 1e-6
"""No network says less; logits of the truth would be infinite."""


def _members(truth, rng, sharpened=1.0):
    """Members whose logits are those of the truth, with smooth errors, and perhaps all too large: float32 (M, C, Z, Y, X)."""
    logits = log_softmax(np.log(np.maximum(truth.astype(np.float64), LEAST)), axis=0)
    made = []
    for _ in range(MEMBERS):
        error = np.stack([gaussian_filter(rng.standard_normal(truth.shape[1:]), 1.0, mode="wrap") for _ in logits])
        error *= ERROR / error.std(axis=(1, 2, 3), keepdims=True)
        made.append(softmax(sharpened * (logits + error), axis=0))
    return np.asarray(made, dtype=np.float32)


def _correlation(one, other):
    return float(np.corrcoef(np.ravel(one), np.ravel(other))[0, 1])


@pytest.fixture(scope="module", params=PATIENTS)
def patient(request):
    rng = np.random.default_rng(sum(map(ord, request.param)))
    truth = true_response(request.param, disagreement=TOLD, **AT)
    _, annotations = make_patient(request.param, annotators=5, disagreement=TOLD, **AT)
    return truth, annotations, _members(truth, rng), _members(truth, rng, OVER_CONFIDENT)


def test_expected_entropy_of_well_specified_members_goes_with_the_true_ambiguity(patient):
    truth, annotations, members, _ = patient
    ambiguity = true_ambiguity(truth)
    found = _correlation(average(list(members)).expected_entropy, ambiguity)
    # An error e of the logits changes an entropy H by Σ p (−ln p − H) e to first order, so by the mean square below, which is
    # of one member and a mean of several has less. A map that is off by that much still explains the rest of the variance.
    p = truth.astype(np.float64)
    off = (ERROR**2 * (entr(p) - p * ambiguity) ** 2).sum(axis=0).mean()
    assert found > np.sqrt(1 - off / ambiguity.var()) > 0.9
    shares = np.stack([(annotations == label).mean(axis=0) for label in range(len(truth))])
    assert found > _correlation(entr(shares).sum(axis=0), ambiguity) + 0.05


def test_that_of_over_confident_members_goes_with_it_less_and_says_too_little(patient):
    truth, _, members, sharpened = patient
    ambiguity = true_ambiguity(truth)
    well, over = average(list(members)), average(list(sharpened))
    assert _correlation(over.expected_entropy, ambiguity) < _correlation(well.expected_entropy, ambiguity) - 0.1
    assert over.expected_entropy.mean() < 0.5 * ambiguity.mean()
    assert well.expected_entropy.mean() == pytest.approx(ambiguity.mean(), rel=0.1)


def test_mutual_information_is_of_the_members_errors_whatever_the_ambiguity(patient):
    truth, _, members, _ = patient
    ambiguity = true_ambiguity(truth)
    alike = average([members[0]] * MEMBERS)
    assert alike.mutual_information.max() < 1e-6
    assert _correlation(alike.expected_entropy, ambiguity) > 0.9
    well = average(list(members))
    assert well.mutual_information.mean() < 0.2 * well.expected_entropy.mean()


def test_scores_know_the_truth(patient):
    truth, annotations, members, sharpened = patient
    reference = PatientReference(annotations, AT["spacing_mm"], organs=ORGANS)
    predicted = {
        "truth": truth,
        "mean of members": average(list(members)).mean,
        "member": members[0],
        "over-confident": sharpened[0],
    }
    tables = {name: one.table for name, one in reference.score_all(predicted)}
    found = {name: {metric: _mean(table, metric) for metric in WANTED} for name, table in tables.items()}
    for metric in ("brier", "nll"):
        values = [found[name][metric] for name in predicted]
        assert values == sorted(values), metric
        assert values[-1] > 1.1 * values[0], metric
    assert found["truth"]["ece_mean_response"] < 0.5 * found["over-confident"]["ece_mean_response"]
    assert found["truth"]["ncc"] > found["over-confident"]["ncc"] + 0.05


WANTED = ("brier", "nll", "ece_mean_response", "ncc")


def _mean(table, metric):
    values = table.loc[table["metric"] == metric, "value"]
    assert len(values)
    return float(values.mean())
