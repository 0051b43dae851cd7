"""Claims proved here.

- By hand: a vessel of four pixels, a voxel that is three times as wide as high, a tumour that lies inside the vessel.
- Involvements are those written out with NumPy, and those of the published code those written out with SciPy, on random volumes.
- Laws: finer voxels, flips, turned axes, other units of length and a place elsewhere change nothing; more tumour involves no less;
  no involvement is below 0° or above 360°; inputs are not changed.
- The distance of two sets of degrees is SciPy's Wasserstein distance, and that of the published code its rules, one by one.
- A prediction that is certain and right is best; one without any tumour is as far off as the annotators' involvements.
- Edges: no tumour, one annotator without, a vessel that most did not draw, a tumour at the border of the scan, a region.
- The published code's flaws, each re-implemented: a mirrored scan, other voxels and contacts counted twice change its degrees; certain
  laws are not compared; what is nowhere scores 1; its box of the calibration error empties at the border of the scan.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import wasserstein_distance
from torchmetrics.functional.classification import multiclass_calibration_error

from curvas_assets.scoring import METRICS, check_scores, metrics_of, score
from curvas_assets.scoring.vascular import distance_published, involvement, wasserstein
from curvas_assets_tests.scoring import oracles
from curvas_assets_tests.scoring.tables import value_of

ORGANS = {"pdac": 1, "porta": 2, "sma": 3}
NAMED = {"organs": ORGANS, "tumour": "pdac", "vessels": ["porta", "sma"]}
SPACING = (3.0, 0.8, 1.3)
SHAPE = (6, 9, 8)


@st.composite
def anatomies(draw):
    """A vessel (Z, Y, X) and how many of three nested tumours hold each voxel."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    vessel = np.zeros(SHAPE, bool)
    z, y, x = (rng.integers(0, n - 2) for n in SHAPE)
    vessel[z:, y : y + 3, x : x + 3] = rng.random((SHAPE[0] - z, *vessel[0, y : y + 3, x : x + 3].shape)) < 0.8
    share = draw(st.sampled_from([0.0, 0.02, 0.3, 0.9]))
    exceeded = np.where(rng.random(SHAPE) < share, rng.integers(0, 4, SHAPE), 0).astype(np.uint8)
    return vessel, exceeded


def of_tumour(vessel, tumour, spacing_mm=SPACING):
    """Degrees by plane of one tumour."""
    return involvement(vessel, np.asarray(tumour).astype(np.uint8), 1, spacing_mm)[0, 0]


def empty(*shape):
    return np.zeros(shape, bool)


def test_a_vessel_of_four_pixels_by_hand():
    vessel, tumour = empty(3, 6, 6), empty(3, 6, 6)
    vessel[1, 2:4, 2:4] = True
    tumour[1, 2:4, 4] = True  # along one of its four sides
    assert of_tumour(vessel, tumour, (1, 1, 1))[0] == pytest.approx(90)
    # Across y (rows of z and x) a slice has two of its pixels, with six edges, one of which is touched; across x, where the
    # tumour lies in another slice than the vessel, nothing is.
    assert of_tumour(vessel, tumour, (1, 1, 1))[1:] == pytest.approx([60, 0])
    tumour[1, 1, 2] = True
    assert of_tumour(vessel, tumour, (1, 1, 1))[0] == pytest.approx(135)


def test_edges_are_as_long_as_the_voxel_is_there():
    vessel, tumour = empty(1, 3, 3), empty(1, 3, 3)
    vessel[0, 1, 1] = tumour[0, 1, 2] = True
    assert of_tumour(vessel, tumour, (1, 1, 3))[0] == pytest.approx(360 * 1 / 8)  # 1 of 1 + 1 + 3 + 3 mm
    assert of_tumour(vessel, tumour, (1, 3, 1))[0] == pytest.approx(360 * 3 / 8)
    published = involvement(vessel, tumour.astype(np.uint8), 1, (1, 1, 3))[1, 0, 0]
    assert published == 360  # one pixel of one


def test_a_tumour_in_the_vessel_touches_the_outline_of_its_own_pixels():
    vessel, tumour = empty(1, 5, 5), empty(1, 5, 5)
    vessel[0, 1:4, 1:4] = True
    tumour[0, 2, 2] = True  # in its middle
    assert of_tumour(vessel, tumour, (1, 1, 1))[0] == 0
    tumour[0, 1, 1] = True  # at a corner, two of its twelve edges
    assert of_tumour(vessel, tumour, (1, 1, 1))[0] == pytest.approx(60)
    assert of_tumour(vessel, vessel, (1, 1, 1))[0] == 360
    assert of_tumour(vessel, ~vessel, (1, 1, 1))[0] == 360


def test_the_border_is_no_outline():
    vessel, tumour = empty(2, 4, 4), empty(2, 4, 4)
    vessel[:, :2, :2], tumour[:, :2, 2:] = True, True
    assert of_tumour(vessel, tumour, (1, 1, 1))[0] == pytest.approx(
        180
    )  # two edges touched, two free, four at the border
    assert np.isnan(of_tumour(np.ones((2, 3, 3), bool), np.ones((2, 3, 3), bool))).all()


@given(anatomies())
def test_involvements_are_those_written_out(case):
    vessel, exceeded = case
    copies = vessel.copy(), exceeded.copy()
    found = involvement(vessel, exceeded, 3, SPACING)
    for k in range(3):
        ours = [oracles.degrees(vessel, exceeded > k, axis, SPACING) for axis in range(3)]
        published = [oracles.degrees_published(vessel, exceeded > k, axis) for axis in range(3)]
        np.testing.assert_allclose(found[0, k], ours, atol=1e-9)
        np.testing.assert_allclose(found[1, k], published, atol=1e-9)
    if vessel.any():
        assert (found[0] >= 0).all()
        assert (found[0] <= 360 + 1e-9).all()
        assert (np.diff(found[0], axis=0) <= 1e-9).all()  # a tumour inside another involves no more
    np.testing.assert_array_equal(vessel, copies[0])
    np.testing.assert_array_equal(exceeded, copies[1])


@given(anatomies(), st.integers(0, 2), st.integers(2, 3))
def test_finer_voxels_and_another_unit_of_length_change_nothing(case, axis, times):
    vessel, exceeded = case
    assume(vessel.any())
    finer = tuple(s / (times if a == axis else 1) for a, s in enumerate(SPACING))
    repeated = (np.repeat(array, times, axis) for array in case)
    coarse = involvement(vessel, exceeded, 3, SPACING)[0]
    np.testing.assert_allclose(involvement(*repeated, 3, finer)[0], coarse, atol=1e-9)
    np.testing.assert_allclose(involvement(vessel, exceeded, 3, np.array(SPACING) / 10)[0], coarse, atol=1e-9)


@given(anatomies(), st.tuples(*[st.integers(1, 4)] * 3), st.tuples(*[st.integers(1, 4)] * 3))
def test_a_place_elsewhere_in_a_larger_scan_changes_nothing(case, before, other):
    vessel, exceeded = case
    assume(vessel.any())
    moved = []
    for first in (before, other):
        pad = [(a, 6 - a) for a in first]
        moved.append(involvement(np.pad(vessel, pad), np.pad(exceeded, pad), 3, SPACING))
    np.testing.assert_allclose(moved[0], moved[1], atol=1e-9)


@given(anatomies(), st.permutations([0, 1, 2]), st.sets(st.integers(0, 2)))
def test_turned_and_mirrored_volumes_have_the_same_planes(case, order, flips):
    vessel, exceeded = case
    turned = [np.flip(array.transpose(order), list(flips)) for array in case]
    one = involvement(vessel, exceeded, 3, SPACING)[0]
    other = involvement(*turned, 3, [SPACING[axis] for axis in order])[0]
    np.testing.assert_allclose(other, one[:, order], atol=1e-9)


@given(st.lists(st.floats(0, 360), min_size=1, max_size=6), st.lists(st.floats(0, 360), min_size=1, max_size=6))
def test_the_distance_is_scipys(one, other):
    found = wasserstein(np.array(one), np.array(other))
    assert found == pytest.approx(wasserstein_distance(one, other), abs=1e-9)
    assert found == pytest.approx(wasserstein(np.array(other), np.array(one)), abs=1e-9)
    assert wasserstein(np.array(one), np.array(one)) == 0


degrees = st.one_of(st.just(0.0), st.just(360.0), st.just(97.3), st.floats(0, 400))
sets_of_degrees = st.one_of(
    st.builds(lambda value, n: [value] * n, degrees, st.integers(1, 6)), st.lists(degrees, min_size=2, max_size=6)
)


@given(sets_of_degrees, sets_of_degrees)
def test_the_published_distance_follows_its_rules(drawn, predicted):
    found = distance_published(np.array(drawn), np.array(predicted))
    assert found == pytest.approx(oracles.distance_published(drawn, predicted), abs=1e-6)


@pytest.mark.parametrize(
    ("drawn", "predicted", "published", "ours"),
    [
        ([90.1] * 5, [290.4] * 6, 0, 200.3),  # all are certain, and 200° apart
        ([90.1] * 5, [0.0] * 6, 0, 90.1),  # what all annotators see is missed
        ([0.0] * 5, [290.4] * 6, 0, 290.4),  # an involvement is invented
        ([90.1] * 5, [90.1] * 5 + [90.5], 360, 0.4 / 6),  # nearly equal, but one of them certain
        ([80.0, 90, 100, 110, 120], [85.0] * 6, 360, 17),
    ],
)
def test_the_published_distance_does_not_compare_who_is_certain(drawn, predicted, published, ours):
    assert distance_published(np.array(drawn), np.array(predicted)) == pytest.approx(published, abs=1e-3)
    assert wasserstein(np.array(drawn), np.array(predicted)) == pytest.approx(ours, abs=1e-6)


def test_published_degrees_change_with_a_mirror_and_with_voxels_and_exceed_the_full_circle():
    vessel, tumour = empty(1, 9, 9), empty(1, 9, 9)
    vessel[0, 3:6, 3:6] = tumour[0, 4, 7] = True  # one pixel between the two, which the dilation fills
    found = [involvement(*(a[..., ::step] for a in (vessel, tumour.astype("u1"))), 1, (1, 1, 1)) for step in (1, -1)]
    assert found[0][1, 0, 0] > found[1][1, 0, 0]
    assert found[0][0, 0, 0] == found[1][0, 0, 0] == 0
    finer = [
        involvement(*(np.repeat(a, n, 2) for a in (vessel, tumour.astype("u1"))), 1, (1, 1, 1 / n))[1, 0, 0]
        for n in (1, 2)
    ]
    assert finer[0] != pytest.approx(finer[1], rel=0.05)
    pixel = empty(1, 4, 4)
    pixel[0, 0, 0] = True
    beside = empty(1, 4, 4)
    beside[0, 0, 2] = beside[0, 2, 0] = beside[0, 1, 2] = True
    assert involvement(pixel, beside.astype(np.uint8), 1, (1, 1, 1))[1, 0, 0] == 4 * 360  # four contacts of one pixel


def patient(annotators=5):
    """Annotators who agree: a tumour beside a vessel, and a second vessel far away; with the certain softmax of it."""
    one = np.zeros((12, 30, 32), np.uint8)
    one[2:9, 8:16, 6:14] = ORGANS["pdac"]
    one[:, 10:14, 14:18] = ORGANS["porta"]
    one[:, 24:26, 24:26] = ORGANS["sma"]
    return np.stack([one] * annotators), certain(one)


def certain(labels):
    return np.stack([labels == c for c in range(len(ORGANS) + 1)]).astype(np.float32)


@pytest.mark.parametrize("reference", ["consensus", "majority", "staple", "thresholds"])
def test_a_certain_and_right_prediction_is_best(reference):
    annotations, softmax = patient()
    table = score(softmax, annotations, SPACING, reference=reference, **NAMED)
    assert check_scores(table, metrics=metrics_of(reference, vessels=True)) == []
    for name, metric in metrics_of(reference, vessels=True).items():
        values = table[(table["metric"] == name) & (table["annotator"] != "mean")]["value"]
        if metric.only and metric.direction:
            assert np.allclose(values, metric.high if metric.direction == "higher" else metric.low, atol=1e-6), name
    assert value_of(table, "involvement", "porta", 1) == value_of(table, "involvement_predicted", "porta") > 30
    assert value_of(table, "involvement", "sma", "mean") == value_of(table, "involvement_predicted", "sma") == 0


def test_without_a_predicted_tumour_the_distance_is_the_annotators_mean_involvement():
    annotations, _ = patient()
    annotations[3, :, :, 12:14] = np.where(annotations[3, :, :, 12:14] == 1, 0, annotations[3, :, :, 12:14])  # a gap
    softmax = certain(np.where(annotations[0] == 1, 0, annotations[0]))
    table = score(softmax, annotations, SPACING, reference="thresholds", **NAMED)
    assert value_of(table, "involvement_predicted", "porta") == 0
    assert value_of(table, "involvement", "porta", 4) == 0 < value_of(table, "involvement", "porta", 1)
    drawn = value_of(table, "involvement", "porta", "mean")
    assert value_of(table, "involvement_distance", "porta") == pytest.approx(drawn)
    assert [value_of(table, f"dice_cut{k}", "pdac") for k in range(1, 7)] == [0] * 6
    assert value_of(table, "dice_cuts_published", "pdac") == 0


def test_a_patient_without_any_tumour_has_no_involvement_and_no_error_around_it():
    annotations, _ = patient()
    annotations[annotations == 1] = 0
    table = score(certain(annotations[0]), annotations, SPACING, reference="thresholds", **NAMED)
    assert check_scores(table, metrics=metrics_of("thresholds", vessels=True)) == []
    assert value_of(table, "involvement_distance", "porta") == value_of(table, "involvement", "porta", 1) == 0
    assert math.isnan(value_of(table, "tumour_ece", "pdac", "mean"))
    assert math.isnan(value_of(table, "dice", "pdac"))
    assert value_of(table, "dice_cuts_published", "pdac") == 1  # of nothing
    found = table[table["metric"] == "dice_cuts_published"]["note"]
    assert list(found) == ["nothing at 6 of 6 cuts, which count 1"]


def test_a_vessel_that_most_did_not_draw_has_no_involvement_and_in_the_published_code_a_perfect_one():
    annotations, softmax = patient()
    annotations[:3][annotations[:3] == ORGANS["sma"]] = 0
    table = score(softmax, annotations, SPACING, **NAMED)
    assert check_scores(table, metrics=metrics_of(vessels=True)) == []
    for metric in ("involvement_predicted", "involvement_distance"):
        assert math.isnan(value_of(table, metric, "sma"))
    assert value_of(table, "involvement_published", "sma") == 0
    assert value_of(table, "involvement_distance", "porta") == 0


def test_a_region_is_scored_as_if_it_were_the_scan():
    rng = np.random.default_rng(3)
    annotations, softmax = patient()
    annotations[rng.random(annotations.shape) < 0.05] = 1
    softmax = 0.7 * softmax + 0.3 * rng.dirichlet(np.ones(4), softmax.shape[1:]).transpose(3, 0, 1, 2)
    region = (slice(3, 11), slice(9, 30), slice(2, 17))
    within = score(softmax, annotations, SPACING, region=region, reference="thresholds", **NAMED)
    alone = score(softmax[:, *region], annotations[:, *region], SPACING, reference="thresholds", **NAMED)
    np.testing.assert_allclose(within["value"], alone["value"], atol=1e-12)


def ece_of_box(softmax, annotation, box):
    """The top-label error of the tumour in a box, by torchmetrics."""
    p = np.minimum(softmax[1][box].astype(np.float64), 1 - 1e-6).ravel()
    flat, target = torch.from_numpy(np.stack([1 - p, p], axis=1)), torch.from_numpy((annotation[box] == 1).ravel())
    return float(multiclass_calibration_error(flat, target.long(), num_classes=2, n_bins=50))


def published_box(masks):
    """From the least index less 20 to the largest plus 20, as Python slices it: not cut off at the border of the scan."""
    places = np.argwhere(masks.any(axis=0))
    low, high = (places.min(axis=0), places.max(axis=0)) if len(places) else ([math.inf] * 3, [-math.inf] * 3)
    return tuple(slice(int(a) - 20, int(b) + 20) for a, b in zip(low, high, strict=True))


def test_the_error_around_the_tumour_is_that_of_its_box_and_defined_at_the_border_of_the_scan():
    rng = np.random.default_rng(5)
    shape = (60, 70, 64)
    softmax = rng.dirichlet([6, 1, 1, 1], shape).transpose(3, 0, 1, 2).astype(np.float32)
    annotations = np.zeros((3, *shape), np.uint8)
    annotations[:, :, 40:42, 40:42] = 2
    for corner in ((22, 25, 23), (2, 25, 23)):  # the second one is two slices from the border
        z, y, x = corner
        drawn = annotations.copy()
        drawn[:2, z : z + 4, y : y + 6, x : x + 5] = 1
        drawn[2, z + 1 : z + 6, y : y + 6, x + 1 : x + 6] = 1
        table = score(softmax, drawn, SPACING, **NAMED)
        ends = (z + 6, y + 6, x + 6)
        box = tuple(slice(max(low - 20, 0), high + 20) for low, high in zip(corner, ends, strict=True))
        for r in range(3):
            assert value_of(table, "tumour_ece", "pdac", r + 1) == pytest.approx(
                ece_of_box(softmax, drawn[r], box), abs=2e-5
            )
        held = drawn[0][published_box(drawn == 1)]
        if z >= 20:
            assert held.shape == tuple(n - 1 for n in drawn[0][box].shape)  # a voxel early on one side
        else:
            assert held.size == 0  # from slice −18, which is 42, to slice 27
    with pytest.raises(OverflowError):
        published_box(annotations == 1)  # nobody drew it


def test_only_studies_with_vessels_have_these_metrics():
    annotations, softmax = patient(2)
    table = score(softmax, annotations, SPACING, organs=ORGANS)
    assert not {name for name, metric in METRICS.items() if metric.only} & set(table["metric"])
    problems = check_scores(table, metrics=metrics_of(vessels=True))
    assert "no value at all of dice_cuts_published, involvement" in problems[0]
