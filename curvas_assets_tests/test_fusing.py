"""Claims proved here.

- The majority is SciPy's mode, and the arg max of the mean of the one-hot labels, so that ties go to the lowest label.
- STAPLE is Warfield's algorithm: a textbook implementation in NumPy agrees; and SimpleITK's filter, called on a whole scan of
  the same size, agrees to the bit.
- Both rules give the map on which all agree, and that of a single annotator; the order of annotators changes nothing; no voxel
  gets a label that nobody gave it; an organ that nobody drew does not occur.
- Where all voxels are in the organ, or nobody or only one of several drew it, STAPLE gives numbers.
- How much scan is around the organs changes nothing, but it would without the margin: the more background, the more voxels
  are in STAPLE's organ, because it believes fewer annotators.
- Of three annotators of a phantom, the estimate is the majority; of five it is not.
- Compressed label maps give what arrays give, and their inputs are left as they were.
"""

from itertools import permutations

import numpy as np
import pytest
import scipy.stats
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st

from curvas_assets.cohort.phantom import make_patient
from curvas_assets.fusing import EVEN, MARGIN, fuse, majority, staple_probability
from curvas_assets.storage.labels import PackedLabels
from curvas_assets_tests.strategies import label_maps, shapes

ORGANS = 3
RULES = ("majority", "staple")


@st.composite
def drawn_by_several(draw, at_least: int = 1) -> np.ndarray:
    return draw(label_maps(ORGANS + 1, draw(st.integers(at_least, 5)), draw(shapes())))


def one_hot(labels: np.ndarray) -> np.ndarray:
    return np.stack([labels == label for label in range(ORGANS + 1)]).astype(float)


def rated(truth: np.ndarray, sensitivity: list[float], specificity: list[float], seed: int = 0) -> np.ndarray:
    """Masks of annotators who err independently of each other, with known rates."""
    rng = np.random.default_rng(seed)
    rates = zip(sensitivity, specificity, strict=True)
    return np.stack([np.where(truth, rng.random(truth.shape) < p, rng.random(truth.shape) > q) for p, q in rates])


def warfield(masks: np.ndarray, rounds: int = 10_000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """STAPLE as in Warfield et al. 2004, equations 14 to 19, with one prior for the whole image."""
    flat = masks.reshape(len(masks), -1).astype(float)
    prior = flat.mean()
    p, q = np.full(len(flat), 0.99999), np.full(len(flat), 0.99999)
    for _ in range(rounds):
        a = prior * np.prod(np.where(flat == 1, p[:, None], 1 - p[:, None]), axis=0)
        b = (1 - prior) * np.prod(np.where(flat == 1, 1 - q[:, None], q[:, None]), axis=0)
        w = a / (a + b)
        before, p, q = (p, q), flat @ w / w.sum(), (1 - flat) @ (1 - w) / (1 - w).sum()
        if np.abs([*(p - before[0]), *(q - before[1])]).max() < 1e-9:
            break
    return w.reshape(masks.shape[1:]), p, q


@given(drawn_by_several())
def test_the_majority_is_the_mode_and_the_arg_max_of_the_mean(drawn):
    fused = fuse(drawn, "majority", ORGANS)
    np.testing.assert_array_equal(fused, scipy.stats.mode(drawn, axis=0).mode)
    np.testing.assert_array_equal(fused, np.mean([one_hot(one) for one in drawn], axis=0).argmax(axis=0))


def test_a_tie_goes_to_the_lowest_label_and_so_to_background():
    drawn = np.array([[0, 2, 3, 1, 1], [1, 1, 3, 2, 1], [0, 3, 0, 2, 2], [1, 0, 0, 1, 2]], np.uint8)
    np.testing.assert_array_equal(majority(drawn), [0, 0, 0, 1, 1])
    np.testing.assert_array_equal(majority(drawn[:2]), [0, 1, 3, 1, 1])


def test_staple_is_warfields_algorithm_and_finds_who_errs_how():
    truth = np.zeros((12, 20, 20), bool)
    truth[3:9, 5:15, 5:15] = True
    sensitivity, specificity = [0.95, 0.9, 0.75, 0.98, 0.85], [0.97, 0.9, 0.99, 0.95, 0.92]
    masks = rated(truth, sensitivity, specificity)
    expected, p, q = warfield(masks)
    np.testing.assert_allclose(p, sensitivity, atol=0.04)
    np.testing.assert_allclose(q, specificity, atol=0.02)
    found = staple_probability(masks)
    np.testing.assert_allclose(found, np.where(masks.any(axis=0), expected, 0), atol=1e-5)
    assert np.mean((found > EVEN) == truth) > max(np.mean(mask == truth) for mask in masks)


@pytest.mark.parametrize("annotators", [2, 3, 5])
def test_fused_organs_are_those_of_an_independent_call_of_simpleitk(annotators):
    """On a scan of which the margin is all there is around the organs, each organ in a part of its own."""
    rng = np.random.default_rng(annotators)
    side = 9
    drawn = np.zeros((annotators, side + 2 * MARGIN, side + 2 * MARGIN, 3 * (side + 2 * MARGIN)), np.uint8)
    expected = np.zeros(drawn.shape[1:], np.uint8)
    for organ in range(1, ORGANS + 1):
        part = slice((organ - 1) * (side + 2 * MARGIN), organ * (side + 2 * MARGIN))
        inside = (slice(MARGIN, -MARGIN),) * 3
        masks = np.zeros((annotators, *(side + 2 * MARGIN,) * 3), np.uint8)
        truth = rng.random((side, side, side)) < 0.4
        for mask in masks:
            mask[inside] = truth ^ (rng.random(truth.shape) < rng.uniform(0.05, 0.2))
            mask[inside][0, 0, 0] = mask[inside][-1, -1, -1] = 1  # so that the box is the same for all
        drawn[..., part] = masks * organ
        images = [sitk.GetImageFromArray(mask) for mask in masks]
        probability = sitk.GetArrayFromImage(sitk.STAPLE(images, 1.0))
        expected[..., part] = (probability > 0.5 + 1e-6) * organ
    np.testing.assert_array_equal(fuse(drawn, "staple", ORGANS), expected)
    assert set(np.unique(expected)) == {0, 1, 2, 3}


@pytest.mark.parametrize("rule", RULES)
@given(st.data())
def test_what_all_agree_on_and_what_one_drew_is_the_result(rule, data):
    one = data.draw(label_maps(ORGANS + 1, 1, data.draw(shapes())))
    for annotators in (1, 2, 5):
        np.testing.assert_array_equal(fuse(np.repeat(one, annotators, axis=0), rule, ORGANS), one[0])


@pytest.mark.parametrize("rule", RULES)
@given(drawn_by_several(at_least=2), st.randoms())
def test_the_order_of_annotators_changes_nothing_and_no_label_is_invented(rule, drawn, rng):
    before = drawn.copy()
    fused = fuse(drawn, rule, ORGANS)
    order = list(range(len(drawn)))
    rng.shuffle(order)
    np.testing.assert_array_equal(fuse(drawn[order], rule, ORGANS), fused)
    assert np.any(drawn == fused, axis=0)[fused > 0].all()
    np.testing.assert_array_equal(drawn, before)


def test_staples_probabilities_do_not_depend_on_the_order_to_the_bit():
    truth = np.zeros((6, 8, 8), bool)
    truth[2:5, 2:6, 2:6] = True
    masks = rated(truth, [0.9, 0.8, 0.95], [0.97, 0.99, 0.9])
    first = staple_probability(masks)
    for order in permutations(range(3)):
        np.testing.assert_array_equal(staple_probability(masks[list(order)]), first)


def _drawn(*boxes: slice | None) -> np.ndarray:
    masks = np.zeros((len(boxes), 6, 6, 6), bool)
    for mask, box in zip(masks, boxes, strict=True):
        if box is not None:
            mask[box, box, box] = True
    return masks


WHOLE, LARGE, SMALL = slice(0, 6), slice(1, 4), slice(1, 3)


@pytest.mark.parametrize(
    "masks",
    [
        _drawn(None, None, None),
        _drawn(WHOLE, WHOLE, WHOLE),
        _drawn(WHOLE, WHOLE, LARGE),
        _drawn(WHOLE, LARGE, LARGE),
        _drawn(LARGE, None, None),
        _drawn(LARGE, None, None, None, None),
        _drawn(slice(0, 1), slice(5, 6)),
    ],
    ids=["nobody", "everywhere", "two everywhere", "one everywhere", "one of three", "one of five", "apart"],
)
def test_staple_gives_numbers_where_itk_alone_might_not(masks):
    framed = np.pad(masks, ((0, 0), *[(MARGIN, MARGIN)] * 3))
    probability = staple_probability(framed)
    assert np.isfinite(probability).all()
    assert (probability[~framed.any(axis=0)] == 0).all()
    fused = fuse(masks.astype(np.uint8), "staple", 1)
    assert fused.shape == masks.shape[1:]
    if (masks == masks[0]).all():
        np.testing.assert_array_equal(fused, masks[0])


def test_an_organ_that_one_of_three_drew_is_not_in_the_estimate_and_one_of_two_of_three_is():
    assert not fuse(_drawn(LARGE, None, None).astype(np.uint8), "staple", 1).any()
    assert not fuse(_drawn(LARGE, None, None).astype(np.uint8), "majority", 1).any()
    np.testing.assert_array_equal(fuse(_drawn(LARGE, LARGE, None).astype(np.uint8), "staple", 1), _drawn(LARGE)[0])


def test_the_scan_around_the_organs_changes_nothing_but_would_without_the_margin():
    _, drawn = make_patient("P2", shape=(40, 80, 80), spacing_mm=(6, 4, 4), annotators=5, seed=2)
    wide = np.pad(drawn, ((0, 0), (30, 3), (5, 40), (11, 40)))
    near = fuse(drawn, "staple", ORGANS)
    np.testing.assert_array_equal(fuse(wide, "staple", ORGANS)[30:-3, 5:-40, 11:-40], near)
    voxels = []
    masks = (drawn == 2)[:, np.any(drawn == 2, axis=(0, 2, 3))]
    masks = masks[:, :, np.any(masks, axis=(0, 1, 3))][..., np.any(masks, axis=(0, 1, 2))]
    for background in (0, MARGIN, 6 * MARGIN):
        framed = np.pad(masks, ((0, 0), *[(background, background)] * 3))
        voxels.append(int(np.count_nonzero(staple_probability(framed) > EVEN)))
    assert voxels == sorted(voxels)
    assert voxels[0] < voxels[1] == np.count_nonzero(near == 2)


def test_the_estimate_of_three_annotators_of_a_phantom_is_the_majority_and_of_five_it_is_not():
    _, drawn = make_patient("P1", shape=(40, 80, 80), spacing_mm=(6, 4, 4), annotators=5, seed=1)
    np.testing.assert_array_equal(fuse(drawn[:3], "staple", ORGANS), fuse(drawn[:3], "majority", ORGANS))
    assert (fuse(drawn, "staple", ORGANS) != fuse(drawn, "majority", ORGANS)).any()


@pytest.mark.parametrize("rule", RULES)
def test_compressed_label_maps_give_what_arrays_give(rule):
    rng = np.random.default_rng(5)
    drawn = np.zeros((3, 37, 20, 18), np.uint8)
    first = rng.integers(0, ORGANS + 1, (30, 12, 10))
    for one in drawn:
        one[4:34, 3:15, 2:12] = np.where(rng.random(first.shape) < 0.3, rng.integers(0, ORGANS + 1, first.shape), first)
    each = [PackedLabels(1, drawn.shape[1:]) for _ in drawn]
    for packed, one in zip(each, drawn, strict=True):
        for z0 in range(0, drawn.shape[1], 16):
            packed.put(0, z0, one[z0 : z0 + 16])
    stacked = PackedLabels.stacked(each)
    np.testing.assert_array_equal(stacked[...], drawn)
    np.testing.assert_array_equal(fuse(stacked, rule, ORGANS), fuse(drawn, rule, ORGANS))
