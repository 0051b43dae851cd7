"""Claims proved here.

- Areas over patients are those of `scoring/definitions.md`, by hand, and agree with the voxel count of `scoring` on 0/1 risks.
- E-AURC is the area above that of the perfect ranking by the same rule: never negative, 0 for a perfect ranking, tied or not.
- A perfect ranking is best and a reversed one worst; ties share their point, so their order does not matter.
- Failure and out-of-distribution detection leave out what is undefined, count it, and say why a figure is missing.
- The AUROC is scikit-learn's.
"""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from curvas_assets.scoring.failure import risk_areas
from curvas_assets.statistics import failure_over_patients, out_of_distribution
from curvas_assets.statistics.patients import risk_coverage_areas
from curvas_assets_tests.statistics.tables import random_scores


def test_three_patients_by_hand():
    # Kept in the order 0, 0.3, 0.6: selective risks 0, 0.15, 0.3 at coverages 1/3, 2/3, 1; generalised 0, 0.1, 0.3.
    area, excess, generalised = risk_coverage_areas(np.array([0.3, 0.6, 0.0]), np.array([2.0, 1.0, 3.0]))
    assert area == pytest.approx((0 + 0.075 + 0.225) / 3)
    assert excess == 0  # the ranking is perfect
    assert generalised == pytest.approx((0 + 0.05 + 0.2) / 3)
    # Kept in the order 0.3, 0.6, 0: selective risks 0.3, 0.45, 0.3, flat down to coverage 0.
    area, excess, _ = risk_coverage_areas(np.array([0.3, 0.6, 0.0]), np.array([3.0, 2.0, 1.0]))
    assert area == pytest.approx((0.3 + 0.375 + 0.375) / 3)
    assert excess == pytest.approx(area - (0 + 0.075 + 0.225) / 3)


def perfect_area(risk: np.ndarray) -> float:
    """The perfect ranking's area by the rule, patient by patient, written out."""
    means = [float(np.mean(np.sort(risk)[:k])) for k in range(1, risk.size + 1)]
    return sum((one + two) / 2 for one, two in zip([means[0], *means[:-1]], means, strict=True)) / risk.size


RISKS = st.floats(0, 1) | st.sampled_from([0.0, 0.1, 0.5, 1.0])


@given(st.lists(st.tuples(RISKS, st.integers(0, 6) | st.floats(0, 9)), min_size=1, max_size=40))
def test_the_excess_is_never_negative_and_is_the_area_above_the_perfect_one(patients):
    risk, confidence = (np.array(side, float) for side in zip(*patients, strict=True))
    area, excess, _ = risk_coverage_areas(risk, confidence)
    assert excess >= 0
    assert excess == pytest.approx(max(area - perfect_area(risk), 0), abs=1e-11)


@given(st.lists(RISKS, min_size=1, max_size=65), st.booleans())
def test_the_excess_of_a_perfect_ranking_is_zero_tied_or_not(risks, tied):
    risk = np.array(risks)
    confidence = -risk if tied else -np.argsort(np.argsort(risk, kind="stable")).astype(float)
    assert risk_coverage_areas(risk, confidence)[1] == 0


def test_a_ranking_without_information_has_an_excess():
    risk = np.array([0.0, 0.1, 0.4, 0.5])
    assert risk_coverage_areas(risk, np.zeros(4))[1] == pytest.approx(0.25 - perfect_area(risk))
    assert risk_coverage_areas(risk, risk)[1] > risk_coverage_areas(risk, np.zeros(4))[1]


def test_tied_failures_at_the_end_are_a_perfect_ranking_although_their_chord_lies_lower():
    risk, tied = np.array([0.0, 1.0, 1.0]), np.array([2.0, 1.0, 1.0])
    area, excess, _ = risk_coverage_areas(risk, tied)
    assert area < perfect_area(risk)
    assert excess == 0


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=40))
def test_zero_one_risks_agree_with_the_count_over_voxels(voxels):
    codes, wrong = (np.array(side) for side in zip(*voxels, strict=True))
    counted = [np.bincount(codes[wrong == w], minlength=6).astype(np.int64) for w in (True, False)]
    area, generalised, perfect = risk_areas(*counted)
    found = risk_coverage_areas(wrong.astype(float), codes.astype(float))
    np.testing.assert_allclose(found, (area, max(area - perfect, 0), generalised), atol=1e-12)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=30), st.randoms(use_true_random=False))
def test_no_ranking_beats_the_perfect_one_and_ties_have_no_order(risks, random):
    risk = np.array(risks)
    shuffled = list(range(risk.size))
    random.shuffle(shuffled)
    best, worst = risk_coverage_areas(risk, -risk)[2], risk_coverage_areas(risk, risk)[2]
    assert best - 1e-12 <= risk_coverage_areas(risk, np.array(shuffled, float))[2] <= worst + 1e-12
    tied = np.zeros(risk.size)
    np.testing.assert_allclose(risk_coverage_areas(risk, tied), risk_coverage_areas(risk[shuffled], tied))


def test_failure_is_told_per_predictor_with_its_gaps():
    scores = random_scores(6, ("dice", "predictive_entropy"))
    gone = (scores["patient"] == "UKCHLL004") & (scores["metric"] == "dice") & (scores["predictor"] == "ensemble_all")
    scores.loc[gone, "value"] = np.nan
    table = failure_over_patients(scores).set_index("predictor")
    assert len(table) == 13
    assert table.loc["ensemble_all", ["n", "n_nan"]].tolist() == [5, 1]
    wide = scores[scores["predictor"] == "ensemble_anno1"].pivot(index="patient", columns="metric", values="value")
    expected = risk_coverage_areas(1 - wide["dice"].to_numpy(), -wide["predictive_entropy"].to_numpy())
    np.testing.assert_allclose(table.loc["ensemble_anno1", ["aurc", "eaurc", "augrc"]].astype(float), expected)
    nothing = failure_over_patients(scores.assign(value=np.nan))
    assert nothing["aurc"].isna().all()
    assert (nothing["note"] == "no patient with both").all()


def grouped() -> pd.DataFrame:
    scores = random_scores(9, ("predictive_entropy",))
    groups = {f"UKCHLL{p:03d}": "ABC"[(p - 1) // 3] for p in range(1, 10)}
    return scores.assign(group=scores["patient"].map(groups))


def test_out_of_distribution_is_scikit_learns_auroc_per_group_and_for_all():
    scores = grouped()
    table = out_of_distribution(scores, "A")
    one = table[table["predictor"] == "ensemble_all"].set_index("against")
    assert list(one.index) == ["B", "C", "all others"]
    own = scores[scores["predictor"] == "ensemble_all"]
    for against, groups in {"B": "AB", "C": "AC", "all others": "ABC"}.items():
        part = own[own["group"].isin(list(groups))]
        assert one.loc[against, "auroc"] == roc_auc_score(part["group"] != "A", part["value"])
    assert one["n_in"].tolist() == [3, 3, 3]
    assert one["n_out"].tolist() == [3, 3, 6]


def test_without_groups_there_is_no_figure_and_without_a_side_a_note():
    assert out_of_distribution(grouped().drop(columns="group"), "A").empty
    assert out_of_distribution(grouped().assign(group=""), "A").empty
    alone = out_of_distribution(grouped(), None)
    assert alone["auroc"].isna().all()
    assert (alone["note"] == "no patient on one side").all()
