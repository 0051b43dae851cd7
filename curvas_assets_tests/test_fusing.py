"""Claims proved here.

- The majority is SimpleITK's label voting where that is decided, and the lowest of the tied labels elsewhere.
- STAPLE over combinations of answers is SimpleITK's over voxels: sensitivities, specificities, and the fused map.
- Slab by slab and whole, packed and as an array, fused maps are the same; the order of annotators does not matter.
- One annotator, and annotators who agree, are what they drew; what nobody drew is nowhere, what all drew everywhere is everywhere.
"""

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st

from curvas_assets.fusing import Staple, fusion, majority
from curvas_assets.storage.labels import PackedLabels
from curvas_assets_tests.strategies import label_maps

ORGANS = {"pancreas": 1, "liver": 2}
SHAPE = (35, 6, 9)
UNDECIDED = 255


@st.composite
def annotations(draw):
    """A truth with two organs, and annotators who each miss it at a rate of their own."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    truth = np.zeros(SHAPE, np.uint8)
    truth[4:30, 1:5, 1:5] = 1
    truth[4:30, 1:5, 5:8] = 2
    rates = draw(st.lists(st.sampled_from([0.0, 0.02, 0.2, 0.5]), min_size=1, max_size=6))
    maps = [np.where(rng.random(SHAPE) < rate, rng.integers(0, 3, SHAPE), truth) for rate in rates]
    return np.stack(maps).astype(np.uint8)


def images(masks):
    return [sitk.GetImageFromArray(np.asarray(mask).astype(np.uint8)) for mask in masks]


@given(label_maps(4, 5, (3, 4, 5)))
def test_majority_is_that_of_simpleitk_and_ties_go_to_the_lowest_label(drawn):
    theirs = sitk.GetArrayFromImage(sitk.LabelVoting(images(drawn), UNDECIDED))
    ours = majority(drawn)
    decided = theirs != UNDECIDED
    np.testing.assert_array_equal(ours[decided], theirs[decided])
    votes = np.stack([(drawn == label).sum(axis=0) for label in range(4)])
    np.testing.assert_array_equal(ours, votes.argmax(axis=0))
    assert ((votes == votes.max(axis=0)).sum(axis=0) > 1)[~decided].all()


@given(annotations())
def test_staple_over_combinations_is_simpleitks_over_voxels(drawn):
    fused = Staple.of(drawn, ORGANS)
    probabilities = []
    for label, estimate in fused.estimates.items():
        theirs = sitk.STAPLEImageFilter()
        theirs.SetForegroundValue(1)
        probabilities.append(sitk.GetArrayFromImage(theirs.Execute(images(drawn == label))))
        np.testing.assert_allclose(estimate.sensitivity, theirs.GetSensitivity(), atol=1e-9)
        np.testing.assert_allclose(estimate.specificity, theirs.GetSpecificity(), atol=1e-9)
    p = np.stack(probabilities)
    near = (np.abs(p - 0.5) < 1e-9).any(axis=0) | (np.abs(p[0] - p[1]) < 1e-9) & (p.max(axis=0) > 0.4)
    expected = np.where(p.max(axis=0) > 0.5, p.argmax(axis=0) + 1, 0)
    np.testing.assert_array_equal(fused(drawn)[~near], expected[~near])


@given(annotations(), st.sampled_from(["majority", "staple"]))
def test_slabs_packing_and_order_change_nothing(drawn, how):
    packed = PackedLabels(len(drawn), SHAPE)
    for r, one in enumerate(drawn):
        for z in range(0, SHAPE[0], 16):
            packed.put(r, z, one[z : z + 16])
    whole = fusion(drawn, how, ORGANS)(drawn)
    rule = fusion(packed, how, ORGANS)
    np.testing.assert_array_equal(np.concatenate([rule(packed[:, z : z + 7]) for z in range(0, SHAPE[0], 7)]), whole)
    np.testing.assert_array_equal(fusion(drawn[::-1], how, ORGANS)(drawn[::-1]), whole)


@pytest.mark.parametrize("how", ["majority", "staple"])
@pytest.mark.parametrize("annotators", [1, 2, 5])
def test_who_agree_are_what_they_drew(how, annotators):
    one = np.zeros(SHAPE, np.uint8)
    one[2:9, 2:4, 3:6] = 2  # the pancreas is drawn by nobody
    for drawn in (np.stack([one] * annotators), np.full((annotators, *SHAPE), 1, np.uint8)):
        np.testing.assert_array_equal(fusion(drawn, how, ORGANS)(drawn), drawn[0])


def test_staple_trusts_the_annotator_who_agrees_with_the_others_more():
    """Two careful annotators outweigh three careless ones, who are the majority."""
    rng = np.random.default_rng(4)
    truth = np.zeros(SHAPE, np.uint8)
    truth[5:25, 1:5, 2:7] = 1
    rates = (0.01, 0.01, 0.4, 0.4, 0.4)
    drawn = np.stack([np.where(rng.random(SHAPE) < rate, 1 - truth, truth) for rate in rates]).astype(np.uint8)
    wrong = {how: (fusion(drawn, how, {"a": 1})(drawn) != truth).mean() for how in ("majority", "staple")}
    assert wrong["staple"] < wrong["majority"] / 3
