"""Claims proved here.

- U, p and both corrections are SciPy's and statsmodels' own, called directly.
- For the study's published U values and group sizes, p is the published one, to the digits printed.
- The paired figures agree with hand-computed small cases and with SciPy.
- Undefined values are left out and counted; nothing undefined becomes a number.
- Equal members, constant metrics, infinite distances, one patient, missing families: figures or a note, never a crash.
- The result does not depend on the order of rows, and does not change the input.
"""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests

from curvas_assets.errors import StatisticsError
from curvas_assets.scoring.registry import METRICS
from curvas_assets.statistics import compare_all_families, compare_families, directions
from curvas_assets.statistics.directions import KNOWN
from curvas_assets.statistics.families import alternatives_of, corrected
from curvas_assets.study import Statistics
from curvas_assets_tests.statistics.tables import random_scores, with_u

FEW = Statistics(bootstrap_samples=100)


def values_of(scores: pd.DataFrame, family: str) -> np.ndarray:
    return scores.loc[scores["family"] == family, "value"].to_numpy()


@pytest.mark.parametrize("alternative", ["greater", "less"])
def test_u_and_p_are_scipys(alternative):
    scores = random_scores(12, ("dice",))
    table = compare_families(scores, "dice", alternative, bootstrap_samples=200)
    assert list(table["pair"]) == ["general vs annotator", "general vs individual", "annotator vs individual"]
    assert list(table["n_first"]) == [12, 12, 36]
    assert list(table["n_second"]) == [36, 108, 108]
    expected = [
        stats.mannwhitneyu(
            values_of(scores, row.first), values_of(scores, row.second), alternative=alternative, method="asymptotic"
        )
        for row in table.itertuples()
    ]
    np.testing.assert_array_equal(table["U"], [test.statistic for test in expected])
    np.testing.assert_array_equal(table["p"], [test.pvalue for test in expected])
    np.testing.assert_allclose(table["p_bonferroni"], np.minimum(1, 3 * table["p"]))


@pytest.mark.parametrize("alternative", ["greater", "less"])
def test_the_paired_test_is_scipys_on_family_means_with_holm(alternative):
    scores = random_scores(20, ("dice",), seed=3)
    table = compare_families(scores, "dice", alternative, bootstrap_samples=200)
    means = scores.pivot_table(index="patient", columns="family", values="value", aggfunc="mean")
    for row in table.itertuples():
        difference = means[row.first] - means[row.second]
        test = stats.wilcoxon(difference, alternative=alternative)
        assert row.wilcoxon == pytest.approx(test.statistic)
        assert row.p_wilcoxon == pytest.approx(test.pvalue)
        assert row.median_difference == pytest.approx(difference.median())
        assert row.n_pairs == 20
    np.testing.assert_allclose(table["p_holm"], multipletests(table["p_wilcoxon"], method="holm")[1])


@pytest.mark.parametrize(
    ("u", "first", "n_first", "second", "n_second", "alternative", "p"),
    [
        (5701.0, "general", 60, "annotator", 180, "greater", "2.59e-01"),
        (17790.0, "general", 60, "individual", 549, "greater", "1.54e-01"),
        (50979.5, "annotator", 180, "individual", 549, "greater", "2.61e-01"),
        (3163.0, "general", 60, "annotator", 180, "less", "7.85e-07"),
        (7623.0, "general", 60, "individual", 549, "less", "4.06e-12"),
        (42360.0, "annotator", 180, "individual", 549, "less", "2.02e-03"),
        (2222.0, "general", 52, "annotator", 156, "less", "5.36e-07"),
        (5215.0, "general", 52, "individual", 477, "less", "3.30e-12"),
        (31561.0, "annotator", 156, "individual", 477, "less", "2.21e-03"),
    ],
)
def test_the_published_u_gives_the_published_p(u, first, n_first, second, n_second, alternative, p):
    """789 rows are 61 patients of which one has no ensembles: 60, 180 and 549 values (Study report, tables 1 and 2)."""
    table = compare_families(with_u(u, first, n_first, second, n_second), "dice", alternative, bootstrap_samples=100)
    row = table[(table["first"] == first) & (table["second"] == second)].iloc[0]
    assert row["U"] == u
    assert f"{row['p']:.2e}" == p


def two_families(general: list[float], individual: list[float]) -> pd.DataFrame:
    rows = [(f"p{i}", "ensemble_all", "general", "dice", v) for i, v in enumerate(general)]
    rows += [(f"p{i}", "anno1_init1_foldall", "individual", "dice", v) for i, v in enumerate(individual)]
    return pd.DataFrame(rows, columns=["patient", "predictor", "family", "metric", "value"])


def test_three_patients_by_hand():
    # Differences 3, −1, 2: ranks of |d| are 3, 1, 2; positive ones sum to 5 of 6.
    table = compare_families(two_families([4, 1, 5], [1, 2, 3]), "dice", "greater", bootstrap_samples=100)
    row = table.iloc[1]
    assert row["wilcoxon"] == 5
    assert row["rank_biserial"] == pytest.approx(5 / 6 - 1 / 6)
    # Of the 8 sign patterns, {3,2,1} and {3,2} reach 5: p = 2/8. U: 4 beats 1,2,3; 1 ties 1; 5 beats all.
    assert row["p_wilcoxon"] == pytest.approx(2 / 8)
    assert row["median_difference"] == 2
    assert row["U"] == 6.5
    # Only one pair was possible: no correction.
    assert row["p_holm"] == row["p_wilcoxon"]
    assert row["p_bonferroni"] == row["p"]


def test_the_rank_biserial_is_negative_when_the_first_is_lower_whatever_the_alternative():
    scores = two_families([1.0, 2.0, 3.0], [2.0, 4.0, 6.0])
    for alternative in ("greater", "less"):
        assert compare_families(scores, "dice", alternative, bootstrap_samples=100)["rank_biserial"][1] == -1


def test_the_bootstrap_interval_repeats_with_its_seed_and_brackets_the_median():
    scores = random_scores(30, ("dice",))
    one, two = (compare_families(scores, "dice", "greater", bootstrap_samples=500, bootstrap_seed=7) for _ in range(2))
    pd.testing.assert_frame_equal(one, two)
    other = compare_families(scores, "dice", "greater", bootstrap_samples=500, bootstrap_seed=8)
    assert not np.array_equal(one["ci_low"], other["ci_low"])
    assert (one["ci_low"] <= one["median_difference"]).all()
    assert (one["median_difference"] <= one["ci_high"]).all()


def test_the_bootstrap_interval_of_two_patients_by_hand():
    # Differences 0 and 2: a resample's median is 0, 1 or 2 with probabilities 1/4, 1/2, 1/4.
    table = compare_families(two_families([1, 3], [1, 1]), "dice", "greater", bootstrap_samples=2000)
    assert (table["ci_low"][1], table["ci_high"][1]) == (0, 2)
    half = compare_families(
        two_families([1, 3], [1, 1]), "dice", "greater", bootstrap_samples=2000, confidence_level=0.4
    )
    assert (half["ci_low"][1], half["ci_high"][1]) == (1, 1)


def test_undefined_values_are_left_out_and_counted():
    scores = random_scores(6, ("dice",))
    clean = compare_families(scores[scores["patient"] != "UKCHLL002"], "dice", "greater", bootstrap_samples=100)
    scores.loc[scores["patient"] == "UKCHLL002", "value"] = np.nan
    holed = compare_families(scores, "dice", "greater", bootstrap_samples=100)
    assert list(holed["nan_first"]) == [1, 1, 3]
    assert list(holed["nan_second"]) == [3, 9, 9]
    assert list(holed["n_pairs"]) == [5, 5, 5]
    columns = ["n_first", "n_second", "U", "p", "p_bonferroni", "wilcoxon", "p_holm", "median_difference", "ci_low"]
    pd.testing.assert_frame_equal(holed[columns], clean[columns])


def test_a_metric_that_is_all_undefined_has_no_figures_but_a_note():
    scores = random_scores(4, ("crps",)).assign(value=np.nan)
    table = compare_families(scores, "crps", "less")
    assert (table["n_first"] == 0).all()
    assert table[["U", "p", "p_bonferroni", "p_wilcoxon", "p_holm", "rank_biserial", "ci_low"]].isna().all(axis=None)
    assert table["note"].str.contains("no defined value").all()


def test_a_patient_without_ensembles_counts_for_the_models_and_is_named_as_unpaired():
    scores = random_scores(5, ("dice",))
    scores = scores[(scores["patient"] != "UKCHLL003") | (scores["family"] == "individual")]
    table = compare_families(scores, "dice", "greater", bootstrap_samples=100)
    assert list(table["n_first"]) == [4, 4, 12]
    assert list(table["n_second"]) == [12, 45, 45]
    assert list(table["unpaired_patients"]) == [0, 1, 1]


def test_equal_members_give_no_evidence_although_means_of_nine_are_rounded():
    scores = random_scores(8, ("dice",))
    scores["value"] = scores.groupby("patient")["value"].transform("first")
    assert len(set(scores.groupby(["patient", "family"])["value"].mean())) > 8  # rounding does tell the means apart
    table = compare_families(scores, "dice", "greater", bootstrap_samples=100)
    assert (table["p_wilcoxon"] == 1).all()
    assert (table["median_difference"] == 0).all()
    assert (table["rank_biserial"] == 0).all()
    assert table["note"].str.contains("all differences are zero").all()


def test_a_constant_metric_has_p_one():
    table = compare_families(random_scores(5, ("dice",)).assign(value=1.0), "dice", "less", bootstrap_samples=100)
    assert (table["p"] == 1).all()
    assert (table["p_holm"] == 1).all()


def test_an_infinite_distance_is_the_worst_rank_not_a_gap():
    scores = two_families([1, 2, 3, np.inf], [2, 3, 4, np.inf])
    row = compare_families(scores, "dice", "less", bootstrap_samples=100).iloc[1]
    assert (row["n_first"], row["nan_first"], row["n_pairs"]) == (4, 0, 4)
    assert row["median_difference"] == -1
    assert np.isfinite(row["ci_low"])
    scores = two_families([1, 2, 3, 4], [2, 3, 4, np.inf])
    row = compare_families(scores, "dice", "less", bootstrap_samples=100).iloc[1]
    assert row["p_wilcoxon"] == pytest.approx(1 / 16)


def test_one_patient_has_a_difference_but_no_interval():
    table = compare_families(random_scores(1, ("dice",)), "dice", "greater")
    assert (table["n_pairs"] == 1).all()
    assert table["median_difference"].notna().all()
    assert table["ci_low"].isna().all()
    assert table["note"].str.contains("one patient").all()


def test_long_scores_are_averaged_over_organs_before_they_are_compared():
    scores = random_scores(6, ("dice",))
    long = pd.concat(
        [scores.assign(organ=organ, annotator="", value=scores["value"] + d) for organ, d in (("a", -0.1), ("b", 0.1))]
    )
    one = compare_families(scores, "dice", "greater", bootstrap_samples=100)
    two = compare_families(long, "dice", "greater", bootstrap_samples=100)
    pd.testing.assert_frame_equal(one, two, check_exact=False)


def test_all_metrics_at_once_is_each_metric_alone():
    scores = random_scores(6, ("dice", "ece", "count"))
    table = compare_all_families(scores, FEW, alternatives={"dice": "greater", "ece": "less"})
    assert list(table["metric"].unique()) == ["dice", "ece"]
    alone = compare_families(scores, "ece", "less", bootstrap_samples=100)
    pd.testing.assert_frame_equal(table[table["metric"] == "ece"].reset_index(drop=True), alone)
    by_direction = compare_all_families(scores, FEW)
    pd.testing.assert_frame_equal(by_direction, table)


def test_the_registry_and_what_else_is_known_never_contradict():
    registered = {name: metric.direction for name, metric in METRICS.items()}
    assert {name: d for name, d in registered.items() if name in KNOWN and KNOWN[name] != d} == {}
    assert directions() == {**KNOWN, **registered}
    assert set(alternatives_of(directions()).values()) == {"greater", "less"}
    assert "predictive_entropy" not in alternatives_of(directions())


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(0, 1) | st.just(np.nan), max_size=8), st.sampled_from(["holm", "bonferroni"]))
def test_corrections_are_statsmodels_on_the_tests_that_were_possible(p, method):
    values = np.array(p, float)
    found = corrected(pd.Series(values, dtype=float), method)
    tested = ~np.isnan(values)
    np.testing.assert_array_equal(np.isnan(found), ~tested)
    if tested.any():
        np.testing.assert_allclose(found[tested], multipletests(values[tested], method=method)[1], rtol=1e-12)


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_order_of_rows_is_irrelevant_and_the_input_stays(seed):
    scores = random_scores(5, ("dice",), seed=seed % 1000)
    before = scores.copy()
    shuffled = scores.sample(frac=1, random_state=seed)
    one = compare_families(scores, "dice", "greater", bootstrap_samples=100)
    two = compare_families(shuffled, "dice", "greater", bootstrap_samples=100)
    pd.testing.assert_frame_equal(one, two, check_exact=False, rtol=1e-12)
    pd.testing.assert_frame_equal(scores, before)


@settings(max_examples=5, deadline=None)
@given(st.integers(1, 1000), st.floats(0.1, 10))
def test_swapping_the_sign_swaps_the_alternative(seed, factor):
    scores = random_scores(5, ("dice",), seed=seed)
    up = compare_families(scores, "dice", "greater", bootstrap_samples=100)
    down = compare_families(scores.assign(value=-factor * scores["value"]), "dice", "less", bootstrap_samples=100)
    np.testing.assert_allclose(up["p"], down["p"])
    np.testing.assert_allclose(up["p_holm"], down["p_holm"])
    np.testing.assert_allclose(up["rank_biserial"], -down["rank_biserial"])


@pytest.mark.parametrize(
    ("change", "arguments", "told"),
    [
        (lambda s: s.drop(columns="family"), ("dice", "greater"), "family"),
        (lambda s: s, ("nonsense", "greater"), r"\['dice'\]"),
        (lambda s: s, ("dice", "more"), "'more'"),
        (lambda s: pd.concat([s, s.iloc[:1]]), ("dice", "greater"), "more than once"),
    ],
)
def test_what_cannot_be_compared_is_refused_with_what_was_found(change, arguments, told):
    with pytest.raises(StatisticsError, match=told):
        compare_families(change(random_scores(3, ("dice",))), *arguments)
