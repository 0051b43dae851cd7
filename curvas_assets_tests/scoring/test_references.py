"""Claims proved here.

- Against the majority, STAPLE and cuts of the mean response, `dice` and `confidence` are scikit-learn's and NumPy's on whole arrays.
- The reference changes these two metrics and no other; their rows say what they compare with, those of the consensus do not.
- A share or a probability equals a cut exactly or not at all: on every code of both formats, and next to each cut in float32.
- With one annotator, or annotators who agree, all references ask for the same voxels; an organ that is nowhere is undefined.
- A perfect prediction is best against every reference; who did not annotate counts in none.
- Against the majority, relabelled organs keep their scores where no annotators are tied; flips change nothing.
- The registry's table says what a study compares with, and has its metrics alone.
- A reference, a tumour or vessels that do not exist are refused with what is allowed.
"""

import io
import math
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from curvas_assets.codes import levels_of, linear_levels, tail
from curvas_assets.errors import ScoringError
from curvas_assets.fusing import fuse
from curvas_assets.scoring import METRICS, PatientReference, check_scores, metric_table, metrics_of, score
from curvas_assets.scoring.references import FurtherPass, Wanted
from curvas_assets.scoring.registry import CUTS, OF, REFERENCES
from curvas_assets.storage.softmax import read_softmax, write_softmax
from curvas_assets_tests.scoring.tables import value_of
from curvas_assets_tests.strategies import label_maps, softmaxes

SHAPE, SPACING = (3, 9, 11), (5.0, 3.0, 2.0)
ORGANS = {"pancreas": 1, "kidney": 2, "liver": 3}
HEIGHTS = [Fraction(n, OF) for n in CUTS]
OTHERS = sorted(REFERENCES)


@st.composite
def cases(draw):
    """A softmax of four classes in float32, and annotations."""
    annotations = draw(label_maps(4, draw(st.sampled_from([1, 2, 3, 5, 6])), SHAPE))
    return draw(softmaxes(st.just(4), st.just(SHAPE), st.just(np.float32))), annotations


def dice_of(drawn, predicted):
    return f1_score(drawn.ravel(), predicted.ravel()) if drawn.any() or predicted.any() else math.nan


def confidence_of(inside, p):
    if not inside.any() or inside.all():
        return math.nan
    return (p[inside].mean() + 1 - p[~inside].mean()) / 2


def mean_defined(values):
    defined = [value for value in values if not math.isnan(value)]
    return float(np.mean(defined)) if defined else math.nan


def exceeds(numbers, of, height):
    """numbers / of > height, in whole numbers."""
    return np.asarray(numbers) * height.denominator > height.numerator * of


def expected(reference, softmax, annotations, label):
    """Dice and confidence of an organ by their definitions, over whole arrays."""
    p = softmax[label].astype(np.float64)
    if reference == "thresholds":
        drawn = [exceeds((annotations == label).sum(axis=0), len(annotations), height) for height in HEIGHTS]
        found = [dice_of(d, exceeds(p, 1, height)) for d, height in zip(drawn, HEIGHTS, strict=True)]
        return mean_defined(found), mean_defined([confidence_of(d, p) for d in drawn])
    inside = fuse(annotations, reference, 3) == label
    return dice_of(inside, softmax.argmax(axis=0) == label), confidence_of(inside, p)


@given(cases(), st.sampled_from(OTHERS))
def test_dice_and_confidence_are_those_of_the_definition(case, reference):
    softmax, annotations = case
    table = score(softmax, annotations, SPACING, organs=ORGANS, reference=reference)
    assert check_scores(table, metrics=metrics_of(reference)) == []
    for organ, label in ORGANS.items():
        dice, confidence = expected(reference, softmax, annotations, label)
        assert value_of(table, "dice", organ) == pytest.approx(dice, abs=1e-12, nan_ok=True)
        assert value_of(table, "confidence", organ) == pytest.approx(confidence, abs=1e-6, nan_ok=True)


@given(cases())
def test_each_cut_has_its_dice(case):
    softmax, annotations = case
    table = score(softmax, annotations, SPACING, organs=ORGANS, reference="thresholds")
    for organ, label in ORGANS.items():
        given_by = (annotations == label).sum(axis=0)
        for k, height in enumerate(HEIGHTS, 1):
            drawn = exceeds(given_by, len(annotations), height)
            found = dice_of(drawn, exceeds(softmax[label].astype(np.float64), 1, height))
            assert value_of(table, f"dice_cut{k}", organ) == pytest.approx(found, abs=1e-12, nan_ok=True)


@given(cases(), st.sampled_from(OTHERS))
def test_the_reference_changes_two_metrics_and_no_other(case, reference):
    softmax, annotations = case
    tables = [score(softmax, annotations, SPACING, organs=ORGANS, reference=name) for name in ("consensus", reference)]
    by_consensus, other = (t.set_index(["metric", "organ", "annotator"]) for t in tables)
    added = {name for name, metric in METRICS.items() if metric.only == "thresholds"}
    rest = other[~other.index.get_level_values("metric").isin([*added, "dice", "confidence"])]
    pd.testing.assert_frame_equal(rest, by_consensus.loc[rest.index], check_exact=True)
    assert len(rest) + 6 == len(by_consensus)
    for metric in ("dice", "confidence"):
        assert other.loc[metric]["note"].str.startswith(REFERENCES[reference].note).all()
        assert not by_consensus.loc[metric]["note"].str.contains("compared").any()
    assert added <= set(metrics_of("thresholds"))
    assert not added & set(metrics_of("majority"))


@pytest.mark.parametrize("levels", [levels_of(tail(), 1 << 15), linear_levels()], ids=["present", "first"])
def test_a_code_exceeds_a_cut_if_its_probability_does(levels):
    counted = FurtherPass(Wanted("thresholds"), 1, 2, (1, 1, 1), 50, levels)
    values = levels.astype(np.float32).astype(np.float64)
    for first, height in zip(counted._codes, HEIGHTS, strict=True):
        above = [Fraction(v) > height for v in values[first - 2 : first + 2]]
        assert above == [False, False, True, True]
        np.testing.assert_array_equal(np.arange(levels.size) >= first, values > float(height))


@pytest.mark.parametrize("height", HEIGHTS)
def test_next_to_a_cut_every_float_is_on_its_side(height):
    near = np.float32(float(height))
    values = [np.nextafter(near, np.float32(0)), near, np.nextafter(near, np.float32(1))]
    for value in values:
        softmax = np.array([1 - value, value], np.float32).reshape(2, 1, 1, 1)
        table = score(softmax, np.ones((1, 1, 1, 1), np.uint8), SPACING, organs={"a": 1}, reference="thresholds")
        found = value_of(table, f"dice_cut{HEIGHTS.index(height) + 1}", "a")
        assert found == (Fraction(float(value)) > height)


def test_four_of_five_annotators_do_not_exceed_the_cut_of_four_fifths_as_they_do_in_float32():
    annotations = np.ones((5, 1, 1, 2), np.uint8)
    annotations[4, ..., 0] = 0  # the first voxel: four of five
    table = score(np.full((2, 1, 1, 2), 0.5), annotations, SPACING, organs={"a": 1}, reference="thresholds")
    assert "cut at 0.8" in set(table["note"])
    softmax = np.stack([np.zeros((1, 1, 2)), np.ones((1, 1, 2))])
    table = score(softmax, annotations, SPACING, organs={"a": 1}, reference="thresholds")
    assert value_of(table, "dice_cut6", "a") == pytest.approx(2 / 3)  # one voxel of two
    shares = {kind: annotations.astype(kind).mean(axis=0) > np.linspace(0.1, 0.8, 6)[-1] for kind in ("f4", "f8")}
    assert [int(shares[kind].sum()) for kind in ("f4", "f8")] == [2, 1]  # the published code's, by its type


@given(label_maps(4, 1, SHAPE), st.sampled_from([1, 2, 5]), st.sampled_from(OTHERS))
def test_a_perfect_prediction_of_annotators_who_agree_is_best(annotation, annotators, reference):
    softmax = np.eye(4)[annotation[0]].transpose(3, 0, 1, 2)
    drawn = np.repeat(annotation, annotators, axis=0)
    table = score(softmax, drawn, SPACING, organs=ORGANS, reference=reference)
    for organ, label in ORGANS.items():
        there = 0 < (annotation == label).sum() < annotation.size
        for metric in ("dice", "confidence"):
            found = value_of(table, metric, organ)
            assert found == 1 if there else math.isnan(found) or (annotation == label).all()


@given(cases(), st.sampled_from(OTHERS), st.permutations([1, 2, 3]))
def test_flips_and_the_order_of_annotators_change_nothing(case, reference, axes):
    softmax, annotations = case
    one = score(softmax, annotations, SPACING, organs=ORGANS, reference=reference)
    flipped = (np.flip(array, axes[:2]) for array in (softmax, annotations[::-1]))
    other = score(*flipped, SPACING, organs=ORGANS, reference=reference)
    for organ in ORGANS:
        for metric in ("dice", "confidence"):
            assert value_of(one, metric, organ) == pytest.approx(value_of(other, metric, organ), abs=1e-12, nan_ok=True)


@given(cases(), st.sampled_from(OTHERS))
def test_a_stored_volume_scores_as_the_array_that_is_read_from_it(case, reference):
    softmax, annotations = case
    file = io.BytesIO()
    write_softmax(file, softmax)
    volume = read_softmax(file)
    chosen = {"organs": ORGANS, "reference": reference, "tumour": "pancreas", "vessels": ["liver", "kidney"]}
    stored = score(volume, annotations, SPACING, **chosen)
    read = score(volume.slab(0, SHAPE[0]), annotations, SPACING, **chosen)
    np.testing.assert_allclose(stored["value"], read["value"], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("reference", OTHERS)
def test_who_did_not_annotate_counts_in_no_reference(reference):
    rng = np.random.default_rng(7)
    annotations = rng.integers(0, 4, (5, *SHAPE)).astype(np.uint8)
    annotations[1] = 0
    softmax = rng.dirichlet(np.ones(4), SHAPE).transpose(3, 0, 1, 2).astype(np.float32)
    chosen = {"organs": ORGANS, "reference": reference, "tumour": "pancreas", "vessels": ["kidney"]}
    whole = PatientReference(annotations, SPACING, not_annotated=[2], **chosen).score(softmax).table
    alone = PatientReference(annotations[[0, 2, 3, 4]], SPACING, **chosen).score(softmax).table
    assert check_scores(whole, metrics=metrics_of(reference, vessels=True)) == []
    whole = whole[whole["annotator"] != "2"]
    both = whole[~whole["annotator"].str.contains("-")].reset_index(drop=True)
    alone = alone[~alone["annotator"].str.contains("-")].reset_index(drop=True)
    of_mean = both["annotator"] == "mean"  # their notes say that one is missing
    np.testing.assert_array_equal(both["value"], alone["value"])
    assert list(both[~of_mean]["note"]) == list(alone[~of_mean]["note"])


def test_five_annotators_are_counted_in_two_groups():
    """Their answers share a histogram four by four; a prediction that four draw and the fifth does not tells whether all count."""
    annotations = np.zeros((5, 1, 2, 4), np.uint8)
    annotations[:4, ..., :2] = 1
    annotations[4, ..., 2:] = 1
    organ = np.zeros((1, 2, 4))
    organ[..., :2] = 1
    softmax = np.stack([1 - organ, organ])
    file = io.BytesIO()
    write_softmax(file, softmax)
    for one in (softmax, read_softmax(file)):
        table = score(one, annotations, SPACING, organs={"a": 1}, reference="majority")
        assert [value_of(table, "auroc", "a", r) for r in range(1, 6)] == [1, 1, 1, 1, 0]
        assert value_of(table, "dice", "a") == 1


def test_the_table_of_metrics_is_that_of_the_study():
    default = metric_table()
    assert "consensus" not in " ".join(metric_table("majority").query("metric in ['dice', 'confidence']")["definition"])
    for reference in OTHERS:
        table = metric_table(reference).set_index("metric")
        assert table.loc["dice", "definition"] == REFERENCES[reference].dice
        assert table.loc["confidence", "when_empty"] == REFERENCES[reference].confidence_empty
        kept = table.drop(index=["dice", "confidence"])
        kept = kept[~kept.index.str.startswith("dice_cut")]
        pd.testing.assert_frame_equal(kept, default.set_index("metric").drop(index=["dice", "confidence"]))
    assert set(metric_table(vessels=True)["metric"]) - set(default["metric"]) == {
        name for name, metric in METRICS.items() if metric.only == "vessels"
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reference": "mean"}, "Give one of consensus, majority, staple, thresholds"),
        ({"reference": None}, "Give one of consensus"),
        ({"tumour": "pancreas"}, "one tumour and one or more other organs"),
        ({"vessels": ["liver"]}, "one tumour and one or more other organs"),
        ({"tumour": "spleen", "vessels": ["liver"]}, "each of pancreas, kidney, liver"),
        ({"tumour": "liver", "vessels": ["liver"]}, "one tumour"),
        ({"tumour": "liver", "vessels": ["kidney", "kidney"]}, "one tumour"),
        ({"tumour": "liver", "vessels": [["kidney"]]}, "one tumour"),
        ({"tumour": 1, "vessels": [2]}, "one tumour"),
    ],
)
def test_what_does_not_exist_is_refused(change, message):
    with pytest.raises(ScoringError, match=message):
        score(np.full((4, *SHAPE), 0.25), np.zeros((1, *SHAPE), np.uint8), SPACING, organs=ORGANS, **change)
