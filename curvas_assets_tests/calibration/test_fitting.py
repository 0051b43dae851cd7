"""Claims proved here.

- Voxels and answers by code are those that scoring counts, in any region, with any number of annotators; sums over voxels
  are NumPy's.
- Isotonic curves are scikit-learn's, everywhere, for one patient and for several, of which each weighs the same.
- A temperature is within 0.5 % of a minimisation over all voxels, of unsure and of confident networks, and costs no more.
- Of more organs than a key has bytes, sums and temperatures are the same: hashed keys find the cells that plain ones do.
- A joint histogram that is full, and is folded on the way, tells the same.
- Of many voxels, every so many slabs are read, each as it is.
- On held-out patients whose true response is known, the calibration error to the mean response falls by 30 % or more; a
  temperature lowers the log-likelihood's loss and leaves every Dice as it is.
- A curve that makes an organ impossible, or was fitted where the organ's probabilities end far below 1, raises a doubt with
  both numbers; curves of trained networks raise none.
- Where nothing can be learned (an organ that nobody drew, nobody at all, a perfect network) the fit says so.
- What does not fit together is refused, by name.
"""

import io
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from sklearn.isotonic import IsotonicRegression

from benchmarks import phantoms
from curvas_assets.calibration import (
    CalibratedVolume,
    Isotonic,
    Temperature,
    count_responses,
    fit_isotonic,
    fit_temperature,
    responses,
)
from curvas_assets.calibration.responses import BETAS, tables_of
from curvas_assets.errors import CalibrationError
from curvas_assets.scoring import PatientReference
from curvas_assets.scoring.one_pass import Setting, count_all
from curvas_assets.storage.encoding import search_tables
from curvas_assets.storage.objects import FolderObjects
from curvas_assets.storage.softmax import read_softmax, write_softmax
from curvas_assets_tests.calibration.patients import NAMES, ORGANS, SHAPE, SPACING, patient, stored
from curvas_assets_tests.storage.first_format import first_format

WHOLE = tuple(slice(0, n) for n in SHAPE)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> FolderObjects:
    return FolderObjects(tmp_path_factory.mktemp("store"))


def counted(store, one, region=WHOLE, **options):
    return count_responses({"it": stored(store, "it", one.softmax)}, one.annotations, region, **options)["it"]


def logits_of(volume) -> np.ndarray:
    """Ln p (C, voxels), as a temperature takes it: what is 0 counts as half the smallest level, a background as 2⁻²⁴ or more."""
    p = volume.slab(0, volume.shape[1]).astype(np.float64).reshape(volume.shape[0], -1)
    organs = np.maximum(p[1:], volume.levels[1] / 2)
    rest = 1 - p[1:].sum(axis=0)
    return np.log(np.concatenate([np.where(p[1:].sum(axis=0) < 2**-24, 1.0, np.maximum(rest, 2**-24))[None], organs]))


def answers_to(annotations, classes) -> np.ndarray:
    """Share of annotators who gave each class (C, voxels)."""
    return np.stack([(annotations == c).mean(axis=0).ravel() for c in range(classes)])


def cross_entropy(beta, logits, answers) -> float:
    z = beta * logits
    most = z.max(axis=0)
    return float((np.log(np.exp(z - most).sum(axis=0)) + most - (answers * z).sum(axis=0)).mean())


def best_temperature(pairs) -> float:
    """Over all voxels, each patient weighing the same."""

    def loss(log_beta):
        return np.mean([cross_entropy(np.exp(log_beta), logits, answers) for logits, answers in pairs])

    found = minimize_scalar(loss, bounds=(-2.9, 2.9), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(-found.x))


@settings(max_examples=12, deadline=None)
@given(
    st.integers(0, 2**31),
    st.sampled_from([1, 2, 5, 9]),
    st.sampled_from([WHOLE, (slice(3, 17), slice(2, 20), slice(5, 39))]),
)
def test_voxels_and_answers_by_code_are_those_that_scoring_counts(store, seed, annotators, region):
    one = patient(seed, annotators=annotators)
    volume = stored(store, "it", one.softmax)
    found = count_responses({"it": volume}, one.annotations, region)["it"]
    setting = Setting(one.annotations, 4, region, 0.1, 50)
    ranks = count_all({"it": volume}, setting, {}, ["it"]).counts["it"]().ranks
    assert found.voxels == np.prod([span.stop - span.start for span in region])
    assert found.annotators == annotators
    for organ in range(3):
        filled = found.codes[organ] > 0
        np.testing.assert_array_equal(found.codes[organ, filled], ranks[organ].voxels)
        np.testing.assert_array_equal(found.positives[organ, filled], ranks[organ].positives.sum(axis=0))
        assert not found.positives[organ, ~filled].any()


def test_sums_over_voxels_are_numpys(store):
    one = patient(7)
    volume = stored(store, "it", one.softmax)
    found = count_responses({"it": volume}, one.annotations, WHOLE)["it"]
    logits, answers = logits_of(volume), answers_to(one.annotations, 4)
    odds = logits[1:] - logits[0]
    assert found.log_odds == pytest.approx((answers[1:] * odds).sum(), rel=1e-9)
    assert found.partition == pytest.approx(np.log1p(np.exp(odds).sum(axis=0)).sum(), rel=5e-3)
    assert found.cross_entropy == pytest.approx(cross_entropy(1.0, logits, answers), rel=5e-3)
    for at in (5, 20, 30):
        powers = np.exp(BETAS[at] * odds)
        slope = (powers * odds).sum(axis=0) / (1 + powers.sum(axis=0))
        assert found.slopes[0, at] == pytest.approx(slope.sum(), rel=5e-3)
        curvature = (powers * odds**2).sum(axis=0) / (1 + powers.sum(axis=0)) - slope**2
        assert found.slopes[1, at] == pytest.approx(curvature.sum(), rel=2e-2)


def test_hashed_keys_find_the_cells_that_plain_ones_do(store, monkeypatch):
    one = patient(7)
    plain = counted(store, one)
    monkeypatch.setattr(responses, "KEYED_ORGANS", 2)
    hashed = counted(store, one)
    np.testing.assert_array_equal(hashed.codes, plain.codes)
    np.testing.assert_array_equal(hashed.positives, plain.positives)
    np.testing.assert_allclose(hashed.slopes, plain.slopes, rtol=1e-9)
    assert (hashed.log_odds, hashed.partition) == pytest.approx((plain.log_odds, plain.partition), rel=1e-12)


def test_a_temperature_of_twenty_organs_is_that_of_a_minimisation_over_all_voxels():
    classes, shape, rng = 21, (4, 20, 24), np.random.default_rng(5)
    logits = 3.0 * rng.standard_normal((classes, *shape))
    truth = np.exp(logits) / np.exp(logits).sum(axis=0)
    drawn = (rng.random((3, *shape))[:, None] > truth.cumsum(axis=0)[None]).sum(axis=1).clip(0, classes - 1)
    said = np.exp(2 * logits) / np.exp(2 * logits).sum(axis=0)
    file = io.BytesIO()
    write_softmax(file, said.astype(np.float32))
    volume = read_softmax(file)
    region = tuple(slice(0, n) for n in shape)
    fitted = fit_temperature([count_responses({"it": volume}, drawn.astype(np.uint8), region)["it"]])
    best = best_temperature([(logits_of(volume), answers_to(drawn, classes))])
    assert fitted.temperature == pytest.approx(best, rel=5e-3)
    assert 1.5 < best < 2.5


def test_annotators_who_did_not_annotate_are_no_answers(store):
    one = patient(8, annotators=3)
    reference = PatientReference(one.annotations, SPACING, organs=ORGANS, not_annotated=[2])
    volume = stored(store, "it", one.softmax)
    found = count_responses({"it": volume}, reference.annotations, reference.region)["it"]
    without = count_responses({"it": volume}, one.annotations[[0, 2]], WHOLE)["it"]
    assert found.annotators == 2
    np.testing.assert_array_equal(found.positives, without.positives)


def of_patients(store, seed, patients, **made):
    """What is counted of some patients of different sizes, and (p, answers, weight) of all their voxels."""
    found, points = [], []
    for i in range(patients):
        one = patient(seed + i, shape=(4 + 7 * i, 20, 24), **made)
        volume = stored(store, "it", one.softmax)
        region = tuple(slice(0, n) for n in one.softmax.shape[1:])
        found.append(count_responses({"it": volume}, one.annotations, region)["it"])
        p = volume.slab(0, volume.shape[1]).reshape(4, -1).astype(np.float64)
        points.append((p, answers_to(one.annotations, 4), np.full(p.shape[1], 1 / p.shape[1])))
    return found, [np.concatenate(parts, axis=-1) for parts in zip(*points, strict=True)]


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 3), st.sampled_from([0.5, 2.5, 6.0]))
def test_isotonic_curves_are_those_of_scikit_learn_at_every_voxel(store, seed, patients, sharpness):
    found, (p, answers, weight) = of_patients(store, seed, patients, sharpness=sharpness)
    for organ, fitted in enumerate(fit_isotonic(found), 1):
        rank = np.searchsorted(search_tables().levels, p[organ]).astype(
            float
        )  # it takes what is 10⁻¹⁵ apart for the same
        oracle = IsotonicRegression(y_min=0, y_max=1).fit(rank, answers[organ], weight).predict(rank)
        np.testing.assert_allclose(fitted.curve(p[organ]), oracle, atol=1e-9)


def test_they_are_those_of_scikit_learn_between_voxels_and_beyond_them(store):
    found, (p, answers, weight) = of_patients(store, 5, 2, sharpness=0.5, background=1.0)
    at = np.linspace(0, 1, 2001)
    for organ, fitted in enumerate(fit_isotonic(found), 1):
        assert p[organ].min() > 1e-6
        oracle = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(p[organ], answers[organ], weight)
        np.testing.assert_allclose(fitted.curve(at), oracle.predict(at), atol=1e-9)


def test_each_patient_weighs_the_same_however_large_its_scan(store):
    """The large patient's network is right, the small one's is twice too sure: the best of both is between, whatever the sizes."""
    small, large = patient(1, sharpness=2.0, shape=(6, 24, 24)), patient(2, sharpness=1.0, shape=(48, 24, 24))
    found, pairs = [], []
    for one in (small, large):
        volume = stored(store, "it", one.softmax)
        found.append(
            count_responses({"it": volume}, one.annotations, tuple(slice(0, n) for n in one.softmax.shape[1:]))["it"]
        )
        pairs.append((logits_of(volume), answers_to(one.annotations, 4)))
    both = fit_temperature(found).temperature
    assert both == pytest.approx(best_temperature(pairs), rel=5e-3)
    pooled = [tuple(np.concatenate(parts, axis=1) for parts in zip(*pairs, strict=True))]
    assert both - 1 > 2 * (best_temperature(pooled) - 1)


@pytest.mark.parametrize("sharpness", [0.4, 1.0, 2.5, 8.0])
@pytest.mark.parametrize("background", [2.0, 14.0])
def test_a_temperature_is_that_of_a_minimisation_over_all_voxels(store, sharpness, background):
    one = patient(3, sharpness=sharpness, background=background)
    volume = stored(store, "it", one.softmax)
    fitted = fit_temperature([count_responses({"it": volume}, one.annotations, WHOLE)["it"]])
    logits, answers = logits_of(volume), answers_to(one.annotations, 4)
    best = best_temperature([(logits, answers)])
    assert fitted.temperature == pytest.approx(best, rel=5e-3)
    assert fitted.temperature == pytest.approx(sharpness, rel=0.15)
    least = cross_entropy(1 / best, logits, answers)
    assert cross_entropy(1 / fitted.temperature, logits, answers) <= least * (1 + 1e-5)
    assert fitted.before == pytest.approx(cross_entropy(1.0, logits, answers), rel=1e-2)
    assert fitted.after == pytest.approx(least, rel=1e-2)
    assert fitted.doubt == ""


def test_the_temperature_of_a_confident_network_is_too(store):
    """Nearly all voxels have probabilities of 10⁻⁹ to 10⁻⁵, and some sure ones are wrong."""
    shape = (32, 64, 64)
    softmax, annotations = phantoms.softmax(shape, confident=True), phantoms.label_maps(shape)
    volume = stored(store, "confident", softmax)
    assert (volume.slab(0, 32)[0] > 1 - 1e-4).mean() > 0.5
    region = tuple(slice(0, n) for n in shape)
    fitted = fit_temperature([count_responses({"it": volume}, annotations, region)["it"]])
    best = best_temperature([(logits_of(volume), answers_to(annotations, 4))])
    assert best > 1.1
    assert fitted.temperature == pytest.approx(best, rel=5e-3)


def test_probabilities_of_exactly_0_count_as_the_smallest_one(store):
    one = patient(4, sharpness=4.0)
    softmax = np.where(one.softmax < 1e-4, 0, one.softmax)
    softmax /= softmax.sum(axis=0)
    volume = stored(store, "zeros", softmax)
    fitted = fit_temperature([count_responses({"it": volume}, one.annotations, WHOLE)["it"]])
    best = best_temperature([(logits_of(volume), answers_to(one.annotations, 4))])
    assert fitted.temperature == pytest.approx(best, rel=5e-3)


def test_volumes_of_the_first_format_are_fitted_too(store):
    one = patient(5)
    volume = first_format(one.softmax)
    found = count_responses({"it": volume}, one.annotations, WHOLE)["it"]
    best = best_temperature([(logits_of(volume), answers_to(one.annotations, 4))])
    assert fit_temperature([found]).temperature == pytest.approx(best, rel=5e-3)
    assert fit_isotonic([found])[0].after < 0.2 * fit_isotonic([found])[0].before


def test_a_full_joint_histogram_is_folded_and_tells_the_same(store, monkeypatch):
    one = patient(6)
    whole = counted(store, one)
    monkeypatch.setattr(responses, "MOST_CELLS", 500)
    folded = counted(store, one)
    np.testing.assert_allclose(folded.slopes, whole.slopes, rtol=1e-9)
    assert folded.partition == pytest.approx(whole.partition, rel=1e-12)
    assert folded.log_odds == whole.log_odds


def test_bins_hold_the_codes_that_are_nearest_and_rise_with_them():
    tables = tables_of(search_tables().levels)
    assert (np.diff(tables.bins.astype(int)) >= 0).all()
    assert (np.diff(tables.log_odds) > 0).all()
    np.testing.assert_array_equal(tables.bins[: tables.soft], np.arange(tables.soft))
    np.testing.assert_allclose(tables.log_odds[tables.bins], tables.logs, atol=0.07)


def test_of_many_voxels_every_so_many_slabs_are_read_each_as_it_is(store):
    one = patient(9, shape=(70, 12, 16))
    region = (slice(5, 70), slice(0, 12), slice(2, 16))
    told = []
    found = counted(store, one, region, every=2, first=1, progress=lambda *at: told.append(at))
    parts = [counted(store, one, (slice(a, b), *region[1:])) for a, b in ((16, 32), (48, 64))]
    assert found.voxels == sum(part.voxels for part in parts)
    np.testing.assert_array_equal(found.codes, sum(part.codes for part in parts))
    np.testing.assert_array_equal(found.positives, sum(part.positives for part in parts))
    assert told == [(1, 2), (2, 2)]
    phases = [counted(store, one, region, every=2, first=first) for first in (0, 1)]
    np.testing.assert_array_equal(sum(part.codes for part in phases), counted(store, one, region).codes)
    assert counted(store, one, (slice(0, 10), *region[1:]), every=7, first=3).voxels == 10 * 12 * 14  # never none


@pytest.fixture(scope="module")
def held_out(store):
    """Calibrators fitted on three patients, and scores of two others: as predicted, and calibrated."""
    sharpness = (2.5, 3.5, 2.0, 3.0)
    fitting = [counted(store, patient(seed, sharpness=sharpness)) for seed in (11, 12, 13)]
    temperature = Temperature(fit_temperature(fitting).temperature)
    isotonic = Isotonic({organ: one.curve for organ, one in zip(ORGANS, fit_isotonic(fitting), strict=True)})
    found = []
    for seed in (21, 22):
        one = patient(seed, sharpness=sharpness)
        volume = stored(store, f"test{seed}", one.softmax)
        volumes = {"plain": volume, "T": CalibratedVolume(volume, temperature), "I": CalibratedVolume(volume, isotonic)}
        reference = PatientReference(one.annotations, SPACING, organs=ORGANS)
        scores = dict(reference.score_all(volumes))
        found.append(
            {name: each.table.set_index(["metric", "organ", "annotator"])["value"] for name, each in scores.items()}
        )
    return found


@pytest.mark.parametrize("patient", [0, 1])
def test_isotonic_curves_lower_the_calibration_error_of_patients_they_have_not_seen(held_out, patient):
    scores = held_out[patient]
    for organ in ORGANS:
        key = ("ece_mean_response", organ, "")
        assert scores["I"][key] <= 0.7 * scores["plain"][key]
    assert scores["I"][("ece", "", "mean")] < scores["plain"][("ece", "", "mean")]


@pytest.mark.parametrize("patient", [0, 1])
def test_a_temperature_lowers_the_loss_of_patients_it_has_not_seen_and_leaves_every_dice(held_out, patient):
    plain, tempered = held_out[patient]["plain"], held_out[patient]["T"]
    assert tempered[("nll", "", "mean")] < plain[("nll", "", "mean")]
    for metric in ("dice", "recall", "hd95"):
        rows = plain.index.get_level_values("metric") == metric
        assert rows.any()
        np.testing.assert_array_equal(tempered[rows], plain[rows])


def test_an_organ_that_nobody_drew_stays_as_it_is_and_that_is_said(store):
    one = patient(31)
    fitted = fit_isotonic(
        [counted(store, type(one)(one.softmax, np.where(one.annotations == 2, 0, one.annotations), one.truth))]
    )
    assert [bool(each.doubt) for each in fitted] == [False, True, False]
    np.testing.assert_array_equal(fitted[1].curve(np.linspace(0, 1, 11)), np.linspace(0, 1, 11))


def of_organ(softmax, organ, change):
    """The probabilities with one organ's changed; the background takes what is left."""
    changed = softmax.copy()
    changed[organ] = change(changed[organ])
    changed[0] += softmax[organ] - changed[organ]
    return changed


@pytest.mark.parametrize(
    ("change", "doubt"),
    [
        # The network has never found the organ that annotators drew.
        (
            np.zeros_like,
            r"no probability of this organ is mapped above 0\.[0-4]\d?, so it is hardly segmented any more; "
            r"the largest probability on the patients it was fitted on is 0: all above are mapped to 0\.[0-4]\d?",
        ),
        # It finds the organ, but is never sure.
        (
            lambda p: 0.6 * p,
            r"the largest probability on the patients it was fitted on is 0\.6: all above are mapped to (0\.9\d?|1)",
        ),
        (lambda p: p, ""),
    ],
)
def test_a_curve_whose_end_cannot_be_relied_on_raises_a_doubt(store, change, doubt):
    one = patient(34)
    fitted = fit_isotonic([counted(store, type(one)(of_organ(one.softmax, 2, change), one.annotations, one.truth))])
    assert [each.doubt for each in fitted[::2]] == ["", ""]
    assert re.fullmatch(doubt, fitted[1].doubt), fitted[1].doubt


def test_an_organ_that_annotators_seldom_give_where_the_network_is_sure_raises_a_doubt(store):
    one = patient(35)
    rare = np.where((one.annotations == 2) & (np.arange(5) > 0)[:, None, None, None], 0, one.annotations)
    fitted = fit_isotonic([counted(store, type(one)(one.softmax, rare, one.truth))])[1]
    assert fitted.curve.response[-1] < 0.5 < 0.9 < fitted.curve.probability[-1]
    assert re.fullmatch(r"no probability of this organ is mapped above 0\.[0-4]\d?, .+ any more", fitted.doubt)


def test_a_temperature_that_nothing_tells_of_is_1_or_the_end_of_its_range_and_that_is_said(store):
    one = patient(32)
    nobody = fit_temperature([counted(store, type(one)(one.softmax, np.zeros_like(one.annotations), one.truth))])
    assert nobody.temperature == 1.0
    assert "no annotator" in nobody.doubt
    right, wrong = (
        np.broadcast_to(best(one.softmax, axis=0).astype(np.uint8), one.annotations.shape)
        for best in (np.argmax, np.argmin)
    )
    perfect = fit_temperature([counted(store, type(one)(one.softmax, right, one.truth))])
    assert perfect.temperature < 0.2
    assert perfect.after < 0.5 * perfect.before
    worst = fit_temperature([counted(store, type(one)(one.softmax, wrong, one.truth))])
    assert worst.temperature == pytest.approx(20)
    assert "the best is beyond 20" in worst.doubt


def test_what_does_not_fit_together_is_refused_by_name(store):
    one = patient(33)
    volume = stored(store, "it", one.softmax)
    with pytest.raises(CalibrationError, match=r"^model: .* softmax of shape .* against annotations"):
        count_responses({"model": volume}, one.annotations[:, 1:], WHOLE)
    wrong = one.annotations.copy()
    wrong[0, 18, 3, 3] = 4
    with pytest.raises(CalibrationError, match=r"label 4 in the annotations, from slice 16 on"):
        count_responses({"model": volume}, wrong, WHOLE)
    for fit in (fit_isotonic, fit_temperature):
        with pytest.raises(CalibrationError, match="no patient"):
            fit([])
    assert NAMES[0] == "background"
