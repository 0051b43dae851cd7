"""Claims proved here.

- Every metric agrees with an independent implementation (scikit-learn, SciPy, torchmetrics, or the definition written out
  in float64) on random and on edge-case volumes.
- By hand: two voxels.
- Laws: values lie in their range; flips and relabelled organs change nothing; a perfect prediction is best; inputs are
  not changed; NaN never comes without a note.
- A background of −1e-7 does not fall out of the bins; voxels outside the region do not count.
- A perfect ranking has no excess area, by the rule that every ranking is integrated by. ValUES, by its rule, differs where
  confidences are tied, and else by one voxel.
- Annotators have the names that they are given, or numbers; who did not annotate counts nowhere, and the others keep their names.
- A stored volume scores as the array that is read from it; one of the first format is said to rank approximately.
"""

import io
import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from monai.metrics import CalibrationErrorMetric
from scipy.integrate import quad
from scipy.stats import entropy, norm, pearsonr
from sklearn.metrics import f1_score, log_loss, recall_score, roc_auc_score
from torchmetrics.functional.classification import multiclass_calibration_error

from curvas_assets.errors import ScoringError
from curvas_assets.scoring import (
    METRICS,
    PatientReference,
    check_scores,
    metric_table,
    metrics_of,
    score,
    study_columns,
)
from curvas_assets.scoring.accuracy import crps
from curvas_assets.scoring.failure import risk_areas
from curvas_assets.storage.softmax import read_softmax, write_softmax
from curvas_assets_tests.scoring.tables import value_of
from curvas_assets_tests.storage.first_format import first_format
from curvas_assets_tests.strategies import label_maps, softmaxes

SHAPE = (3, 9, 11)
ORGANS = {"pancreas": 1, "kidney": 2, "liver": 3}
SPACING = (5.0, 3.0, 2.0)
NEARLY_ONE = 1 - 1e-6  # torchmetrics computes in float32, where 1e-9 less is 1


@st.composite
def cases(draw, classes=st.integers(2, 6), annotators=st.sampled_from([1, 2, 3, 5])):
    """A softmax in float32, as a network gives it, and annotations."""
    c, r = draw(classes), draw(annotators)
    return draw(softmaxes(st.just(c), st.just(SHAPE), st.just(np.float32))), draw(label_maps(c, r, SHAPE))


def _organs(softmax):
    return {f"organ{c}": c for c in range(1, softmax.shape[0])}


def _same(found, expected, tolerance=1e-9):
    if math.isnan(expected):
        assert math.isnan(found)
    else:
        assert found == pytest.approx(expected, abs=tolerance)


def _overlap_metrics_agree_with_scikit_learn(table, softmax, annotations):
    labels = softmax.argmax(axis=0)
    for organ, label in _organs(softmax).items():
        inside, outside = (annotations == label).all(axis=0), (annotations != label).all(axis=0)
        valid = inside | outside
        p, g = (labels == label)[valid], inside[valid]
        if g.any() or p.any():
            _same(value_of(table, "dice", organ), f1_score(g, p, zero_division=0) if g.any() else 0.0)
        else:
            _same(value_of(table, "dice", organ), math.nan)
        both = [
            softmax[label][where].astype(np.float64).mean() if where.any() else math.nan for where in (inside, outside)
        ]
        _same(value_of(table, "confidence", organ), (both[0] + 1 - both[1]) / 2, 1e-6)
        for r, annotation in enumerate(annotations, 1):
            own, drawn = (labels == label).ravel(), (annotation == label).ravel()
            expected = f1_score(drawn, own, zero_division=0) if (own.any() or drawn.any()) else math.nan
            _same(value_of(table, "dice_annotator", organ, str(r)), expected)
            found = recall_score(drawn, own) if drawn.any() else math.nan
            _same(value_of(table, "recall", organ, str(r)), found)


def _calibration_agrees_with_torchmetrics_and_scikit_learn(table, softmax, annotations):
    classes = softmax.shape[0]
    flat = softmax.reshape(classes, -1).T.astype(np.float64)
    for r, annotation in enumerate(annotations, 1):
        target = annotation.ravel().astype(int)
        expected = multiclass_calibration_error(
            torch.from_numpy(np.minimum(flat, NEARLY_ONE)), torch.from_numpy(target), num_classes=classes, n_bins=50
        )
        _same(value_of(table, "ece", "", str(r)), float(expected), 2e-5)
        truth = np.eye(classes)[target]
        _same(value_of(table, "brier", "", str(r)), float(((flat - truth) ** 2).sum(axis=1).mean()), 1e-6)
        clipped = np.maximum(flat, 1e-7)[np.arange(len(target)), target]
        _same(value_of(table, "nll", "", str(r)), float(-np.log(clipped).mean()), 1e-5)
        _same(value_of(table, "ace", "", str(r)), _ace(flat.max(axis=1), flat.argmax(axis=1) == target), 1e-5)


@given(cases())
def test_class_wise_calibration_agrees_with_monai(case):
    softmax, annotations = case
    nearest = (
        np.clip(np.rint(softmax * 50.0), 1, 49) / 50
    )  # of the edges between bins; MONAI's lie elsewhere, see below
    assume((np.abs(softmax - nearest) > 1e-6).all())
    classes = softmax.shape[0]
    table = score(softmax, annotations, SPACING, organs=_organs(softmax))
    metric = CalibrationErrorMetric(num_bins=50, calibration_reduction="expected", metric_reduction="none")
    for r, annotation in enumerate(annotations, 1):
        truth = torch.from_numpy(np.moveaxis(np.eye(classes, dtype=np.float32)[annotation], -1, 0))
        metric.reset()
        metric(torch.from_numpy(softmax)[None], truth[None])
        (theirs,) = metric.aggregate()
        for organ, label in _organs(softmax).items():
            _same(value_of(table, "classwise_ece", organ, str(r)), float(theirs[label]), 1e-5)


def test_monai_shifts_its_edges_by_a_rounding_of_float32():
    """Its last edge lies above 1, so all the others lie a little higher: exactly one half falls into the bin below."""
    softmax, annotations = np.full((2, 1, 1, 2), 0.5, np.float32), np.array([[[[1, 1]]]], np.uint8)
    softmax[:, 0, 0, 1] = 0.49, 0.51
    truth = torch.tensor([[0.0, 0.0], [1.0, 1.0]]).reshape(1, 2, 1, 1, 2)
    metric = CalibrationErrorMetric(num_bins=2, calibration_reduction="average", metric_reduction="none")
    metric(torch.from_numpy(softmax)[None], truth)
    assert float(metric.aggregate()[0, 1]) == pytest.approx(
        (0.5 + 0.49) / 2, abs=1e-6
    )  # two bins; ours has them in one
    table = score(softmax, annotations, SPACING, organs={"a": 1}, ece_bins=2, ace_bins=2)
    assert value_of(table, "classwise_ece", "a", "1") == pytest.approx((0.5 + 0.49) / 2, abs=1e-6)


def test_torchmetrics_gives_certainty_a_bin_of_its_own():
    """It bins [lower, upper), so that a confidence of exactly 1 lands in a 51st bin; ours closes the last one."""
    flat, target = np.array([[0.01, 0.99], [0.0, 1.0]]), np.array([1, 0])
    theirs = multiclass_calibration_error(torch.from_numpy(flat), torch.from_numpy(target), num_classes=2, n_bins=50)
    softmax, annotations = flat.T.reshape(2, 1, 1, 2), target.astype(np.uint8).reshape(1, 1, 1, 2)
    ours = value_of(score(softmax, annotations, SPACING, organs={"a": 1}), "ece", "", "1")
    assert ours == pytest.approx(0.495, abs=1e-4)
    assert float(theirs) == pytest.approx(0.505, abs=1e-4)


def _ace(confidence, correct, bins=20):
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    filled = [place == b for b in range(bins) if (place == b).any()]
    return float(np.mean([abs(correct[b].mean() - confidence[b].mean()) for b in filled]))


def test_log_loss_is_that_of_scikit_learn():
    softmax = np.array([0.7, 0.2, 0.1, 0.3, 0.3, 0.4]).reshape(2, 3).T.reshape(3, 1, 1, 2)
    annotations = np.array([[[[0, 2]]]], np.uint8)
    table = score(softmax, annotations, SPACING, organs={"a": 1, "b": 2})
    expected = log_loss([0, 2], softmax.reshape(3, 2).T, labels=[0, 1, 2])
    assert value_of(table, "nll", "", "1") == pytest.approx(expected, abs=1e-4)


def _ranking_agrees_with_scikit_learn_and_the_definition(table, softmax, annotations):
    confidence, labels = softmax.max(axis=0).ravel(), softmax.argmax(axis=0).ravel()
    for r, annotation in enumerate(annotations, 1):
        target = annotation.ravel()
        for organ, label in _organs(softmax).items():
            positive = target == label
            mixed = 0 < positive.sum() < positive.size
            expected = roc_auc_score(positive, softmax[label].ravel()) if mixed else math.nan
            _same(value_of(table, "auroc", organ, str(r)), expected)
        wrong = labels != target
        mixed = 0 < wrong.sum() < wrong.size
        expected = roc_auc_score(wrong, -confidence) if mixed else math.nan
        _same(value_of(table, "auroc_error", "", str(r)), expected)
        area, generalised, best = _risk_areas(confidence, wrong)
        _same(value_of(table, "aurc", "", str(r)), area)
        _same(value_of(table, "augrc", "", str(r)), generalised)
        _same(value_of(table, "eaurc", "", str(r)), area - best)
        assert value_of(table, "eaurc", "", str(r)) >= 0


def _risk_areas(confidence, wrong):
    """The definition, point by point; the perfect ranking has the right voxels as one group, then error after error."""
    n, points = len(wrong), []
    for t in sorted(set(confidence), reverse=True):
        kept = confidence >= t
        points.append((kept.sum() / n, wrong[kept].mean(), (wrong & kept).sum() / n))
    coverage, risk, generalised = zip(*[(0, points[0][1], 0), *points], strict=True)
    perfect = np.where(wrong, -np.cumsum(wrong), 1)
    best = 0.0 if np.array_equal(perfect, confidence) else _risk_areas(perfect, wrong)[0]
    return np.trapezoid(risk, coverage), np.trapezoid(generalised, coverage), best


@given(st.lists(st.booleans(), min_size=1, max_size=30))
def test_a_perfect_ranking_has_no_excess(wrong):
    wrong = np.array(wrong)
    confidence = np.where(wrong, -np.cumsum(wrong), 1)
    _, place = np.unique(confidence, return_inverse=True)
    errors, voxels = np.bincount(place, wrong).astype(np.int64), np.bincount(place)
    area, _, best = risk_areas(errors, voxels - errors)
    assert area - best == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("right", "wrong"), [(7, 3), (10_000, 137), (3, 10_000), (0, 5), (5, 0)])
def test_the_area_of_a_perfect_ranking_is_its_trapezoids(right, wrong):
    n = right + wrong
    kept = np.arange(max(right, 1), n + 1)
    risk = (kept - right) / kept
    steps = np.diff(kept / n, prepend=0)
    area = steps @ (risk + np.concatenate([risk[:1], risk[:-1]])) / 2
    errors, rest = np.zeros(2, np.int64), np.zeros(2, np.int64)
    errors[0], rest[1] = wrong, right
    assert risk_areas(errors, rest)[2] == pytest.approx(area, abs=1e-12)


def _area_by_values(wrong, confidence):
    """ValUES' area (Kahl et al. 2024, arXiv:2401.08501; evaluation/metrics/aurc.py), from its rule.

    Voxels go one by one, the least confident first, those of a tie as they come. A point stands before the first goes,
    and wherever the first of a tie has gone, but never where no voxel is left. Trapezoids join the points; beyond the
    last one the risk stays, down to a single voxel.
    """
    order = np.argsort(confidence, kind="stable")
    wrong, confidence = wrong[order], confidence[order]
    n = len(wrong)
    gone = np.append(0, 1 + np.flatnonzero(np.diff(confidence[:-1], prepend=-np.inf)))
    risk = np.array([wrong[k:].mean() for k in gone])
    return np.trapezoid(risk, gone / n) + risk[-1] * (n - 1 - gone[-1]) / n


def _area(wrong, confidence):
    _, place = np.unique(confidence, return_inverse=True)
    errors, voxels = np.bincount(place, wrong).astype(np.int64), np.bincount(place)
    return risk_areas(errors, voxels - errors)[0]


@given(st.lists(st.booleans(), min_size=2, max_size=30), st.randoms(use_true_random=False))
def test_without_ties_values_leaves_out_the_step_of_the_most_confident_voxel(wrong, random):
    wrong, confidence = np.array(wrong), np.array(random.sample(range(len(wrong)), len(wrong)))
    last = wrong[confidence.argmax()] / len(wrong)
    assert _area(wrong, confidence) == pytest.approx(_area_by_values(wrong, confidence) + last, abs=1e-12)


def test_values_adds_its_point_at_the_first_element_of_a_tie_and_therefore_differs():
    """Its area depends on the order within a tie; ours has one point per tie."""
    confidence = np.array([0.5, 0.5, 0.9])
    wrong_first, right_first = np.array([True, False, False]), np.array([False, True, False])
    assert _area_by_values(wrong_first, confidence) == pytest.approx(1 / 18)
    assert _area_by_values(right_first, confidence) == pytest.approx(11 / 36)
    assert _area(wrong_first, confidence) == _area(right_first, confidence) == pytest.approx(1 / 9)


def _uncertainty_agrees_with_scipy(table, softmax, annotations):
    predicted = entropy(softmax.astype(np.float64), axis=0).ravel()
    _same(value_of(table, "predictive_entropy"), float(predicted.mean()), 1e-6)
    votes = np.stack([(annotations == c).mean(axis=0) for c in range(softmax.shape[0])])
    disagreement = entropy(votes, axis=0).ravel()
    if np.ptp(disagreement) < 1e-12:
        _same(value_of(table, "ncc"), math.nan)
    elif np.ptp(predicted) > 1e-3:  # between the two, rounding decides
        _same(value_of(table, "ncc"), float(pearsonr(disagreement, predicted)[0]), 1e-5)


@given(st.floats(0, 100), st.lists(st.floats(1, 50), min_size=2, max_size=5))
def test_crps_is_the_integral_of_its_definition(volume, volumes):
    deviation = np.std(volumes)
    assume(deviation >= 0.1)
    law = norm(np.mean(volumes), deviation)
    low, high = law.mean() - 12 * deviation, law.mean() + 12 * deviation
    below = quad(lambda v: law.cdf(v) ** 2, min(low, volume), volume, points=[law.mean()], limit=200)[0]
    above = quad(lambda v: (law.cdf(v) - 1) ** 2, volume, max(high, volume), points=[law.mean()], limit=200)[0]
    assert crps(volume, volumes) == pytest.approx(below + above, rel=1e-5, abs=1e-5)


def test_crps_of_agreeing_annotators_is_the_distance_of_the_volume():
    annotations = np.zeros((3, 1, 1, 4), np.uint8)
    annotations[..., :2] = 1
    softmax = np.stack([1 - np.full((1, 1, 4), 0.25), np.full((1, 1, 4), 0.25)])
    table = score(softmax, annotations, (2, 3, 4), organs={"a": 1})
    assert value_of(table, "crps", "a") == pytest.approx(24 * abs(4 * 0.25 - 2), rel=1e-4)
    assert list(table[table.metric == "crps"]["note"]) == ["the annotators' volumes are equal: |V − μ|"]


def test_two_voxels_by_hand():
    softmax = np.array([[0.2, 0.6], [0.8, 0.4]]).reshape(2, 1, 1, 2)
    annotations = np.array([[[[1, 1]]], [[[1, 0]]]], np.uint8)
    table = score(softmax, annotations, (1, 1, 1), organs={"a": 1})
    assert value_of(table, "dice", "a") == 1.0  # the second voxel is dissensus
    assert value_of(table, "dice_annotator", "a", "1") == pytest.approx(2 / 3)
    assert value_of(table, "dice_annotator", "a", "2") == 1.0
    assert math.isnan(value_of(table, "confidence", "a"))  # no voxel that nobody gave the organ
    assert value_of(table, "ece", "", "1") == pytest.approx((0.2 + 0.6) / 2, abs=1e-4)
    assert value_of(table, "brier", "", "2") == pytest.approx((2 * 0.2**2 + 2 * 0.4**2) / 2, abs=1e-4)
    assert value_of(table, "auroc", "a", "2") == 1.0


@given(cases(), st.permutations([0, 1, 2]))
def test_flips_change_nothing_and_inputs_are_not_changed(case, axes):
    softmax, annotations = case
    copies = softmax.copy(), annotations.copy()
    flips = tuple(axes[:2])
    one = score(softmax, annotations, SPACING, organs=_organs(softmax))
    other = score(
        np.flip(softmax, [1 + a for a in flips]),
        np.flip(annotations, [1 + a for a in flips]),
        SPACING,
        organs=_organs(softmax),
    )
    # The challenge's Dice leaves out the first row, and the last row is another one; its sums depend on the order.
    defined_by_voxels = ~one["metric"].isin(["dice_published", "ece_published"])
    np.testing.assert_allclose(one["value"][defined_by_voxels], other["value"][defined_by_voxels], atol=1e-12)
    np.testing.assert_array_equal(softmax, copies[0])
    np.testing.assert_array_equal(annotations, copies[1])


@given(cases(classes=st.just(4)))
def test_relabelled_organs_keep_their_scores(case):
    softmax, annotations = case
    # A near-tie goes to the lowest class, so voxels with equal largest probabilities would change sides.
    ordered = np.sort(softmax, axis=0)
    assume((ordered[-1] > ordered[-2]).all())
    order = [0, 3, 1, 2]
    renamed = np.array(order).argsort().astype(np.uint8)[annotations]
    one = score(softmax, annotations, SPACING, organs=ORGANS)
    other = score(softmax[order], renamed, SPACING, organs={"liver": 1, "pancreas": 2, "kidney": 3})
    keys = ["metric", "organ", "annotator"]
    merged = one.merge(other, on=keys)
    assert len(merged) == len(one)
    np.testing.assert_allclose(merged["value_x"], merged["value_y"], atol=1e-12)


@given(cases())
def test_values_agree_with_independent_implementations_lie_in_their_range_and_every_nan_has_a_note(case):
    softmax, annotations = case
    table = score(softmax, annotations, SPACING, organs=_organs(softmax))
    _overlap_metrics_agree_with_scikit_learn(table, softmax, annotations)
    _calibration_agrees_with_torchmetrics_and_scikit_learn(table, softmax, annotations)
    _ranking_agrees_with_scikit_learn_and_the_definition(table, softmax, annotations)
    _uncertainty_agrees_with_scipy(table, softmax, annotations)
    assert check_scores(table) == []
    assert list(table.columns) == ["metric", "organ", "annotator", "value", "unit", "note"]


PERFECT = {
    "dice": 1, "dice_published": 1, "dice_annotator": 1, "recall": 1, "hausdorff": 0, "hd95": 0, "assd": 0, "nsd": 1, "crps": 0,
    "ece": 0, "ece_published": 0, "ace": 0, "adaptive_ece": 0, "classwise_ece": 0, "ece_mean_response": 0, "brier": 0, "nll": 0,
    "confidence": 1, "auroc": 1, "auroc_error": None, "aurc": 0, "eaurc": 0, "augrc": 0, "predictive_entropy": 0,
    "predictive_entropy_patch": 0,
}  # fmt: skip
"""What a certain and right prediction of annotators who agree scores; None where that is not defined."""
NOT_OF_THE_PREDICTION = {"agreement", "agreement_kappa", "ncc_annotators"}
SIZES = {"volume", "volume_annotator"}
UNDEFINED_WHEN_PERFECT = {"crps_published", "ncc", "predictive_entropy_above"}


@given(label_maps(4, 1, SHAPE))
def test_a_perfect_prediction_is_best(annotation):
    softmax = np.eye(4)[annotation[0]].transpose(3, 0, 1, 2)
    annotations = np.repeat(annotation, 3, axis=0)
    table = score(softmax, annotations, SPACING, organs=ORGANS)
    drawn = [organ for organ, label in ORGANS.items() if 0 < (annotation == label).sum() < annotation.size]
    for metric, best in PERFECT.items():
        rows = table[
            (table.metric == metric) & table.organ.isin(["", *drawn]) & (table.note != "no row with consensus")
        ]
        if METRICS[metric].per in ("annotator", "image"):
            assert len(rows) == (4 if METRICS[metric].per == "annotator" else 1)  # three annotators and their mean
        elif metric != "dice_published":  # whose first row does not count
            assert set(rows["organ"]) >= set(drawn)
        np.testing.assert_allclose(rows["value"], math.nan if best is None else best, atol=1e-9)
    for metric in UNDEFINED_WHEN_PERFECT:
        rows = table[table.metric == metric]
        assert len(rows) > 0
        assert rows["value"].isna().all()
    for organ, label in ORGANS.items():
        drawn_mm3 = math.prod(SPACING) * (annotation == label).sum()
        sizes = table[table.metric.isin(SIZES) & (table.organ == organ)]
        assert len(sizes) == 1 + 4  # the prediction, three annotators and their mean
        np.testing.assert_allclose(sizes["value"], drawn_mm3, rtol=1e-12)


def test_every_registered_metric_says_what_a_perfect_prediction_scores():
    single = {metric.name for metric in metrics_of().values() if not metric.of_ensembles}
    assert set(PERFECT) | NOT_OF_THE_PREDICTION | SIZES | UNDEFINED_WHEN_PERFECT == single
    assert all(METRICS[name].direction == "" for name in NOT_OF_THE_PREDICTION | SIZES)
    for name, best in PERFECT.items():
        known = METRICS[name]
        if best is not None and known.direction:
            assert best == (known.high if known.direction == "higher" else max(known.low, 0))


@given(cases(), st.integers(0, 2**32 - 1))
def test_a_proper_score_is_best_at_the_annotators_frequencies(case, seed):
    softmax, annotations = case
    frequencies = np.stack([(annotations == c).mean(axis=0) for c in range(len(softmax))])
    mixed = 0.7 * frequencies + 0.3 * np.random.default_rng(seed).permutation(softmax)
    tables = [score(p, annotations, SPACING, organs=_organs(softmax)) for p in (frequencies, softmax, mixed)]
    for metric in ("brier", "nll"):
        best, *others = (value_of(table, metric, "", "mean") for table in tables)
        assert all(best <= other + 1e-4 for other in others)


def test_a_background_just_below_zero_does_not_fall_out_of_the_bins():
    softmax = np.zeros((4, 1, 4, 4))
    softmax[3] = 1
    softmax[0] = -1e-7
    annotations = np.full((1, 1, 4, 4), 3, np.uint8)
    assert value_of(score(softmax, annotations, SPACING, organs=ORGANS), "ece", "", "1") == 0


def test_voxels_outside_the_region_do_not_count():
    rng = np.random.default_rng(0)
    p = rng.random((4, 20, 9, 11))
    softmax, annotations = p / p.sum(axis=0), rng.integers(0, 4, (3, 20, 9, 11)).astype(np.uint8)
    region = (slice(2, 19), slice(1, 7), slice(4, 10))
    within = score(softmax, annotations, SPACING, organs=ORGANS, region=region)
    alone = score(softmax[:, *region], annotations[:, *region], SPACING, organs=ORGANS)
    np.testing.assert_allclose(within["value"], alone["value"], atol=1e-12)


def _stored(softmax):
    file = io.BytesIO()
    write_softmax(file, softmax)
    return read_softmax(file)


@given(cases())
def test_a_stored_volume_scores_as_the_array_that_is_read_from_it(case):
    softmax, annotations = case
    volume = _stored(softmax)
    stored = score(volume, annotations, SPACING, organs=_organs(softmax))
    read = score(volume.slab(0, SHAPE[0]), annotations, SPACING, organs=_organs(softmax))
    np.testing.assert_allclose(stored["value"], read["value"], rtol=1e-9, atol=1e-9)


def test_a_volume_of_the_first_format_is_scored_and_said_to_be_approximate():
    rng = np.random.default_rng(0)
    p = rng.random((4, 20, 9, 11))
    annotations = rng.integers(0, 4, (2, 20, 9, 11)).astype(np.uint8)
    old = first_format(p / p.sum(axis=0))
    table = score(old, annotations, SPACING, organs=ORGANS)
    said = table.groupby("metric")["note"].agg(lambda notes: notes.str.startswith("approximate").all())
    assert set(said[said].index) == {"auroc", "auroc_error", "aurc", "eaurc", "augrc", "nll"}
    assert value_of(table, "ece", "", "1") == pytest.approx(
        value_of(score(p / p.sum(axis=0), annotations, SPACING, organs=ORGANS), "ece", "", "1"), abs=1e-3
    )
    as_members = score(_stored(old.slab(0, 20)), annotations, SPACING, organs=ORGANS, members=[old, old])
    assert as_members[as_members.metric == "aurc"]["note"].str.startswith("approximate").all()


def test_reliability_bins_give_the_ece_back_and_curves_end_at_full_coverage():
    rng = np.random.default_rng(0)
    p = rng.random((4, 16, 20, 21))
    reference = PatientReference(rng.integers(0, 4, (2, 16, 20, 21)).astype(np.uint8), SPACING, organs=ORGANS)
    scores = reference.score(p / p.sum(axis=0))
    for annotator in ("1", "2"):
        bins = scores.reliability[scores.reliability.annotator == annotator]
        gap = (bins["count"] * (bins.accuracy - bins.confidence).abs()).sum() / bins["count"].sum()
        assert gap == pytest.approx(value_of(scores.table, "ece", "", annotator))
        curve = scores.risk_coverage[scores.risk_coverage.annotator == annotator]
        assert curve.coverage.iloc[-1] == 1
        assert curve.coverage.is_monotonic_increasing


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"annotations": np.zeros((2, 3, 4), np.uint8)}, "label maps uint8"),
        ({"annotations": np.full((1, *SHAPE), 0.5)}, "not whole numbers from 0 to 255"),
        ({"annotations": np.zeros((1, 2, 9, 11), np.uint8)}, "against annotations"),
        ({"organs": {"a": 1}}, "2 classes"),
        ({"spacing_mm": (1, 0, 1)}, "spacing"),
        ({"region": (slice(0, 0), slice(None), slice(None))}, "holds no voxel"),
        ({"region": np.ones(SHAPE, bool)}, "the region failed: a mask"),
    ],
)
def test_what_does_not_fit_together_is_refused(change, message):
    given_values = {
        "softmax": np.full((4, *SHAPE), 0.25),
        "annotations": np.zeros((1, *SHAPE), np.uint8),
        "spacing_mm": SPACING,
        "organs": ORGANS,
        **change,
    }
    with pytest.raises(ScoringError, match=message):
        score(**given_values)


def test_the_registry_says_everything_about_every_metric():
    table = metric_table()
    assert list(table["metric"]) == list(metrics_of())
    for column in ("family", "range", "per", "when_empty", "definition", "oracle", "reference"):
        assert (table[column] != "").all()


def test_checks_find_what_is_wrong():
    table = score(np.full((4, *SHAPE), 0.25), np.zeros((1, *SHAPE), np.uint8), SPACING, organs=ORGANS)
    table = table.assign(predictor="m")
    assert check_scores(table, ["m"]) == []
    assert check_scores(table, ["m", "n"]) == ["no scores of n"]
    spoilt = table.assign(value=table.value.where(table.metric != "ece", 1.5), note="")
    problems = " | ".join(check_scores(spoilt))
    assert "ece: 2 values outside 0 … 1" in problems
    assert "undefined values without a reason" in problems
    assert "no value at all of ece" in " ".join(check_scores(table[table.metric != "ece"]))


def test_the_wide_table_has_the_studys_columns():
    rng = np.random.default_rng(0)
    p = rng.random((4, *SHAPE))
    table = score(p / p.sum(axis=0), rng.integers(0, 4, (3, *SHAPE)).astype(np.uint8), SPACING, organs=ORGANS)
    wide = study_columns(table.assign(patient="UKCHLL003", predictor="ensemble_all"))
    (row,) = wide.to_dict("records")
    assert list(wide.columns[:2]) == ["Patient_ID", "CT"]
    assert row["DICE_panc"] == value_of(table, "dice", "pancreas")
    assert row["ECE_mean"] == value_of(table, "ece", "", "mean")
    assert row["AUROC_livr"] == value_of(table, "auroc", "liver", "mean")
    assert {"DICE_kidn", "CONF_livr", "ECE_1", "CRPS_panc", "AURC_mean", "ENTROPY_mean", "NCC_mean"} <= set(
        wide.columns
    )


@pytest.mark.parametrize("left_out", [[2], [1, 3], [1]])
def test_who_did_not_annotate_counts_nowhere_and_the_others_keep_their_numbers(left_out):
    rng = np.random.default_rng(7)
    annotations = rng.integers(0, 4, (3, *SHAPE)).astype(np.uint8)
    annotations[[n - 1 for n in left_out]] = 0
    drawn = [n for n in (1, 2, 3) if n not in left_out]
    softmax = rng.dirichlet(np.ones(4), SHAPE).transpose(3, 0, 1, 2).astype(np.float32)
    whole = PatientReference(annotations, SPACING, organs=ORGANS, not_annotated=left_out).score(softmax)
    alone = PatientReference(annotations[[n - 1 for n in drawn]], SPACING, organs=ORGANS).score(softmax)
    assert check_scores(whole.table) == []
    named = {str(place): str(n) for place, n in enumerate(drawn, 1)}
    named |= {f"{a}/{b}": f"{named[str(a)]}/{named[str(b)]}" for a, b in [(1, 2)] if len(drawn) == 2}
    for row in alone.table.itertuples():
        assert _same_value(
            value_of(whole.table, row.metric, row.organ, named.get(row.annotator, row.annotator)), row.value
        )
    missing = whole.table[whole.table["annotator"].isin(map(str, left_out))]
    assert len(missing) == len(left_out) * len(alone.table[alone.table["annotator"] == "1"])
    assert missing["value"].isna().all()
    assert missing["note"].str.startswith("not annotated").all()
    for frame in (whole.reliability, whole.risk_coverage):
        assert set(frame["annotator"]) == set(map(str, drawn))


def test_annotators_have_the_studys_names_whatever_these_are():
    rng = np.random.default_rng(8)
    annotations = rng.integers(0, 4, (3, *SHAPE)).astype(np.uint8)
    softmax = rng.dirichlet(np.ones(4), SHAPE).transpose(3, 0, 1, 2).astype(np.float32)
    names = ["zoe-anna", "1", "boris"]  # one is the number of another, and pairs of names hold dashes
    chosen: dict = {"organs": ORGANS}
    named = PatientReference(annotations, SPACING, annotators=names, **chosen).score(softmax)
    numbered = PatientReference(annotations, SPACING, **chosen).score(softmax)
    places = {str(number): name for number, name in enumerate(names, 1)} | {"": "", "mean": "mean"}
    places |= {f"{a}/{b}": f"{places[a]}/{places[b]}" for a, b in [("1", "2"), ("1", "3"), ("2", "3")]}
    for one, other in ((named.table, numbered.table), (named.reliability, numbered.reliability)):
        pd.testing.assert_frame_equal(one, other.assign(annotator=other["annotator"].map(places)))
    assert set(named.risk_coverage["annotator"]) == set(names)
    absent = (
        PatientReference(annotations, SPACING, annotators=names, not_annotated=["1"], **chosen).score(softmax).table
    )
    undefined = absent[absent["note"].str.startswith("not annotated")]
    assert set(undefined["annotator"]) == {"1"}
    assert _same_value(value_of(absent, "ece", "", "boris"), value_of(named.table, "ece", "", "boris"))
    assert set(absent.loc[absent["metric"] == "ncc_annotators", "annotator"]) == {"zoe-anna/boris", "mean"}


@pytest.mark.parametrize(
    "names", [["a", "b"], ["a", "b", "a"], ["a", "b", "mean"], ["a", "b", "b/c"], ["a", "b", ""], "abc"]
)
def test_names_that_are_not_one_for_each_label_map_are_refused(names):
    with pytest.raises(ScoringError, match="Give 3 different names"):
        PatientReference(np.zeros((3, *SHAPE), np.uint8), SPACING, organs=ORGANS, annotators=names)


def _same_value(found, expected):
    return found == expected or (math.isnan(found) and math.isnan(expected))


def test_somebody_has_to_have_annotated():
    annotations = np.zeros((2, *SHAPE), np.uint8)
    for numbers in ([1, 2], [3], [0]):
        with pytest.raises(ScoringError, match="not_annotated"):
            PatientReference(annotations, SPACING, organs=ORGANS, not_annotated=numbers)
