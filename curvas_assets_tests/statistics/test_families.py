"""Claims proved here.

- U, p and both corrections are SciPy's and statsmodels' own, called directly.
- For the study's published U values and group sizes, p is the published one, to the digits printed.
- Win probabilities are the definition's, pair by pair; p is that of small cases by hand; the interval is SciPy's BCa.
- Undefined values are left out and counted; nothing undefined becomes a number.
- Equal members, constant metrics, infinite distances, few patients, missing families: figures or a note, never a crash.
- Non-inferiority compares the one-sided bound with the margin, on either side; one metric answers each question.
- All metrics of the whole study take less than a minute.
- The result does not depend on the order of rows, and does not change the input.
"""

import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests

from curvas_assets.errors import StatisticsError
from curvas_assets.scoring.registry import METRICS
from curvas_assets.statistics import compare_all_families, compare_families, directions
from curvas_assets.statistics.challenge import TEAMS
from curvas_assets.statistics.families import alternatives_of, corrected, non_inferiority, with_questions
from curvas_assets.study import Statistics
from curvas_assets_tests.statistics.tables import random_scores, with_u

FEW = Statistics(draws=100)


def values_of(scores: pd.DataFrame, family: str) -> np.ndarray:
    return scores.loc[scores["family"] == family, "value"].to_numpy()


@pytest.mark.parametrize("alternative", ["greater", "less"])
def test_u_and_p_are_scipys(alternative):
    scores = random_scores(12, ("dice",))
    table = compare_families(scores, "dice", alternative, draws=200)
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


def wins_by_hand(scores: pd.DataFrame, first: str, second: str, alternative: str) -> list[float]:
    """The definition of a patient's win probability, pair of predictors by pair."""
    sign = 1 if alternative == "greater" else -1
    found = []
    for _, own in scores.groupby("patient"):
        one, two = (own.loc[own["family"] == family, "value"].dropna() for family in (first, second))
        points = [np.sign(sign * (x - y)) / 2 + 0.5 if x != y else 0.5 for x in one for y in two]
        found += [float(np.mean(points))] if points else []
    return found


@pytest.mark.parametrize("alternative", ["greater", "less"])
def test_the_columns_are_those_of_the_contract_and_the_figures_those_of_the_definition(alternative):
    scores = random_scores(20, ("dice",), seed=3)
    table = compare_families(scores, "dice", alternative, draws=999)
    assert list(table.columns) == [
        *("metric", "alternative", "pair", "first", "second", "kind"),
        *("n_first", "n_second", "nan_first", "nan_second"),
        *("U", "p", "p_bonferroni", "n_pairs", "unpaired_patients", "win_probability", "p_randomisation"),
        *(
            "p_randomisation_two_sided",
            "p_randomisation_holm",
            "p_smallest",
            "mean_difference",
            "interval_low",
            "interval_high",
            "note",
        ),
    ]
    means = scores.pivot_table(index="patient", columns="family", values="value", aggfunc="mean")
    for row in table.itertuples():
        wins = wins_by_hand(scores, row.first, row.second, alternative)
        assert row.win_probability == pytest.approx(np.mean(wins))
        assert row.mean_difference == pytest.approx((means[row.first] - means[row.second]).mean())
        assert row.n_pairs == 20
    np.testing.assert_allclose(table["p_randomisation_holm"], multipletests(table["p_randomisation"], method="holm")[1])


def test_the_win_probability_agrees_with_scipys_u():
    scores = random_scores(1, ("ece",), seed=4)
    table = compare_families(scores, "ece", "less", draws=100)
    for row in table.itertuples():
        u = stats.mannwhitneyu(values_of(scores, row.first), values_of(scores, row.second)).statistic
        assert row.win_probability == pytest.approx(1 - u / (row.n_first * row.n_second))


def test_the_interval_is_scipys_bca():
    scores = random_scores(25, ("ece",), seed=9)
    scores["value"] = np.exp(20 * scores["value"])  # skewed, so that BCa is not the percentile interval
    table = compare_families(scores, "ece", "less", draws=4000, confidence_level=0.9)
    means = scores.pivot_table(index="patient", columns="family", values="value", aggfunc="mean")
    for row in table.itertuples():
        difference = (means[row.first] - means[row.second]).to_numpy()
        expected, percentile = (
            stats.bootstrap(
                (difference,),
                np.mean,
                n_resamples=4000,
                confidence_level=0.9,
                method=method,
                rng=np.random.default_rng(1),
            ).confidence_interval
            for method in ("BCa", "percentile")
        )
        width = expected.high - expected.low
        found = np.array([row.interval_low, row.interval_high])
        np.testing.assert_allclose(found, expected, atol=0.06 * width)
        assert np.abs(found - expected).sum() < np.abs(found - percentile).sum()


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
    table = compare_families(with_u(u, first, n_first, second, n_second), "dice", alternative, draws=100)
    row = table[(table["first"] == first) & (table["second"] == second)].iloc[0]
    assert row["U"] == u
    assert f"{row['p']:.2e}" == p


def two_families(general: list[float], individual: list[float]) -> pd.DataFrame:
    rows = [(f"p{i}", "ensemble_all", "general", "dice", v) for i, v in enumerate(general)]
    rows += [(f"p{i}", "anno1_init1_foldall", "individual", "dice", v) for i, v in enumerate(individual)]
    return pd.DataFrame(rows, columns=["patient", "predictor", "family", "metric", "value"])


def test_three_patients_by_hand():
    # The first wins in patients 1 and 3: a share of 2/3. With one predictor on each side a draw swaps or keeps: of the 8
    # equally likely patterns, 1 wins thrice and 3 win twice, so p is 4/8; all 8 are as far from 1/2 as 2/3.
    table = compare_families(two_families([4, 1, 5], [1, 2, 3]), "dice", "greater", draws=20000)
    row = table.iloc[1]
    assert row["win_probability"] == pytest.approx(2 / 3)
    assert row["p_randomisation"] == pytest.approx(4 / 8, abs=0.02)
    assert row["p_randomisation_two_sided"] == 1
    assert row["mean_difference"] == pytest.approx((3 - 1 + 2) / 3)
    # U: 4 beats 1, 2, 3; 1 ties 1; 5 beats all.
    assert row["U"] == 6.5
    # Only one pair was possible: no correction.
    assert row["p_randomisation_holm"] == row["p_randomisation"]
    assert row["p_bonferroni"] == row["p"]


@pytest.mark.parametrize(("alternative", "wins"), [("greater", 0.0), ("less", 1.0)])
def test_the_win_probability_is_that_of_the_better_side_and_the_difference_keeps_its_sign(alternative, wins):
    row = compare_families(two_families([1.0, 2.0, 3.0], [2.0, 4.0, 6.0]), "dice", alternative, draws=100).iloc[1]
    assert (row["win_probability"], row["mean_difference"]) == (wins, -2)


def test_draws_repeat_with_their_seed_and_the_interval_brackets_the_mean():
    scores = random_scores(30, ("dice",))
    one, two = (compare_families(scores, "dice", "greater", draws=500, seed=7) for _ in range(2))
    pd.testing.assert_frame_equal(one, two)
    other = compare_families(scores, "dice", "greater", draws=500, seed=8)
    assert not np.array_equal(one["interval_low"], other["interval_low"])
    assert (one["interval_low"] <= one["mean_difference"]).all()
    assert (one["mean_difference"] <= one["interval_high"]).all()


@pytest.mark.parametrize(("patients", "there"), [(1, False), (5, False), (6, True)])
def test_below_six_patients_there_is_no_interval_and_the_note_says_so(patients, there):
    table = compare_families(random_scores(patients, ("dice",)), "dice", "greater", draws=200)
    assert table["mean_difference"].notna().all()
    assert table["win_probability"].notna().all()
    assert table[["interval_low", "interval_high"]].notna().all(axis=None) == there
    assert (table["note"] == ("" if there else "fewer than 6 patients: no interval")).all()


def test_undefined_values_are_left_out_and_counted():
    scores = random_scores(6, ("dice",))
    clean = compare_families(scores[scores["patient"] != "UKCHLL002"], "dice", "greater", draws=100)
    scores.loc[scores["patient"] == "UKCHLL002", "value"] = np.nan
    holed = compare_families(scores, "dice", "greater", draws=100)
    assert list(holed["nan_first"]) == [1, 1, 3]
    assert list(holed["nan_second"]) == [3, 9, 9]
    assert list(holed["n_pairs"]) == [5, 5, 5]
    assert list(holed["unpaired_patients"]) == [1, 1, 1]
    columns = ["n_first", "n_second", "U", "p", "p_bonferroni", "win_probability", "p_randomisation", "mean_difference"]
    pd.testing.assert_frame_equal(holed[columns], clean[columns])


def test_a_metric_that_is_all_undefined_has_no_figures_but_a_note():
    scores = random_scores(4, ("crps",)).assign(value=np.nan)
    table = compare_families(scores, "crps", "less")
    assert (table["n_first"] == 0).all()
    figures = table.columns[table.columns.get_loc("win_probability") : table.columns.get_loc("note")]
    assert table[["U", "p", "p_bonferroni", *figures]].isna().all(axis=None)
    assert (table["n_pairs"] == 0).all()
    assert (table["unpaired_patients"] == 4).all()
    assert table["note"].str.contains("no defined value").all()


def test_families_of_different_patients_have_no_difference():
    scores = random_scores(14, ("dice",))
    early = scores["patient"] < "UKCHLL008"
    table = compare_families(scores[early == (scores["family"] == "general")], "dice", "greater", draws=100)
    apart = table[table["first"] == "general"]
    assert (apart["n_pairs"] == 0).all()
    assert (apart["unpaired_patients"] == 14).all()
    assert apart["U"].notna().all()
    assert apart[["win_probability", "p_randomisation", "mean_difference", "interval_low"]].isna().all(axis=None)
    assert (apart["note"] == "no patient with both families").all()


def test_a_patient_without_ensembles_counts_for_the_models_and_is_named_as_unpaired():
    scores = random_scores(5, ("dice",))
    scores = scores[(scores["patient"] != "UKCHLL003") | (scores["family"] == "individual")]
    table = compare_families(scores, "dice", "greater", draws=100)
    assert list(table["n_first"]) == [4, 4, 12]
    assert list(table["n_second"]) == [12, 45, 45]
    assert list(table["unpaired_patients"]) == [0, 1, 1]


def test_equal_members_give_no_evidence_although_means_of_nine_are_rounded():
    scores = random_scores(8, ("dice",))
    scores["value"] = scores.groupby("patient")["value"].transform("first")
    assert len(set(scores.groupby(["patient", "family"])["value"].mean())) > 8  # rounding does tell the means apart
    table = compare_families(scores, "dice", "greater", draws=100)
    assert (table["p_randomisation"] == 1).all()
    assert (table["p_randomisation_two_sided"] == 1).all()
    assert (table["win_probability"] == 0.5).all()
    assert (table[["mean_difference", "interval_low", "interval_high"]] == 0).all(axis=None)
    assert table["note"].str.contains("all differences are zero").all()


@pytest.mark.parametrize(("off", "wins"), [(3e-8, 0.5), (3e-6, 1.0)])
def test_values_that_differ_by_rounding_are_ties(off, wins):
    scores = two_families([0.97 * (1 + off)] * 7, [0.97] * 7)
    row = compare_families(scores, "dice", "greater", draws=200).iloc[1]
    assert row["win_probability"] == wins
    assert (row["mean_difference"] == 0) == (wins == 0.5)


def test_a_constant_metric_has_p_one():
    table = compare_families(random_scores(5, ("dice",)).assign(value=1.0), "dice", "less", draws=100)
    assert (table["p"] == 1).all()
    assert (table["p_randomisation_holm"] == 1).all()


def test_an_infinite_distance_is_the_worst_not_a_gap():
    scores = two_families([1, 2, 3, 4, 5, 6, 7, np.inf], [2, 3, 4, 5, 6, 7, np.inf, np.inf])
    row = compare_families(scores, "dice", "less", draws=200).iloc[1]
    assert (row["n_first"], row["nan_first"], row["n_pairs"]) == (8, 0, 8)
    assert row["win_probability"] == (7 + 0.5) / 8
    assert row["mean_difference"] == -1
    assert "2 patients with an infinite mean, left out of the mean difference" in row["note"]
    row = compare_families(scores.assign(value=np.inf), "dice", "less", draws=200).iloc[1]
    assert (row["win_probability"], row["p_randomisation"]) == (0.5, 1)
    assert np.isnan(row["mean_difference"])


def test_a_family_that_always_wins_is_found_with_a_p_that_the_draws_allow():
    scores = random_scores(12, ("dice",))
    scores.loc[scores["family"] == "general", "value"] += 1
    row = compare_families(scores, "dice", "greater", draws=999).iloc[1]
    assert (row["win_probability"], row["p_randomisation"], row["p_randomisation_two_sided"]) == (1, 1e-3, 1e-3)
    row = compare_families(scores, "dice", "less", draws=999).iloc[1]
    assert (row["win_probability"], row["p_randomisation"], row["p_randomisation_two_sided"]) == (0, 1, 1e-3)


def test_not_inferior_is_the_bound_against_the_margin():
    scores = random_scores(20, ("dice", "ece"), seed=2)
    means = scores[scores["metric"] == "dice"].pivot_table(index="patient", columns="family", values="value")
    table = non_inferiority(scores, Statistics(draws=2000))
    assert (table["metric"] == "dice").all()
    assert set(table["margin"]) == {0.01}
    for row in table.itertuples():
        difference = (means[row.first] - means[row.second]).to_numpy()
        expected = stats.bootstrap(
            (difference,), np.mean, n_resamples=2000, alternative="greater", method="BCa", rng=np.random.default_rng(0)
        ).confidence_interval.low
        assert row.bound == pytest.approx(expected, abs=1e-3)
        assert row.not_inferior == (row.bound > -0.01)
    shifted = scores.copy()
    shifted.loc[shifted["family"] == "general", "value"] -= 0.06
    assert not non_inferiority(shifted, FEW)["not_inferior"][:2].any()
    # Lower is better: the same scores of an error, with the sign turned.
    turned = scores.assign(value=-scores["value"], metric=scores["metric"].replace({"dice": "ece", "ece": "x"}))
    mirrored = non_inferiority(turned, Statistics(draws=2000), metric="ece")
    np.testing.assert_allclose(mirrored["bound"], -table["bound"], atol=1e-3)
    assert list(mirrored["not_inferior"]) == list(table["not_inferior"])


@pytest.mark.parametrize(("metric", "loss"), [("dice", -0.25), ("hd95", 0.25)])
def test_a_loss_of_just_the_margin_is_too_much(metric, loss):
    """Every patient loses the same, so that the bound is the loss."""
    scores = random_scores(8, (metric,)).assign(value=0.5)
    for margin, holds in ((0.25, False), (0.3, True)):
        settings = Statistics(draws=100, non_inferiority_margin=margin)
        lower = scores.assign(value=scores["value"].mask(scores["family"] == "general", 0.5 + loss))
        table = non_inferiority(lower, settings, metric=metric)
        assert list(table["bound"]) == [loss, loss, 0]
        assert list(table["not_inferior"]) == [holds, holds, True]


def test_non_inferiority_is_not_told_without_enough_patients_or_the_metric():
    few = non_inferiority(random_scores(5, ("dice",)), FEW)
    assert few["not_inferior"].isna().all()
    assert few["note"].str.contains("fewer than 6").all()
    assert non_inferiority(random_scores(8, ("ece",)), FEW).empty
    with pytest.raises(StatisticsError, match="better side"):
        non_inferiority(random_scores(8, ("predictive_entropy",)), FEW, metric="predictive_entropy")


def test_a_patient_with_an_infinite_mean_forbids_the_claim_instead_of_leaving_it():
    scores = random_scores(20, ("hd95",))
    worst = (scores["patient"] == "UKCHLL004") & (scores["family"] == "general")
    assert non_inferiority(scores, FEW, metric="hd95", alternative="less")["not_inferior"].notna().all()
    table = non_inferiority(scores.assign(value=scores["value"].mask(worst, np.inf)), FEW, metric="hd95")
    assert list(table["not_inferior"].isna()) == [True, True, False]
    assert list(table["bound"].isna()) == [True, True, False]
    assert list(table["note"]) == [
        "1 patients with an infinite mean, left out of the mean difference: no bound"
    ] * 2 + [""]


def test_the_margin_is_what_lies_between_neighbours_in_the_challenges_table():
    dice = np.sort([result.dice for result in TEAMS.values()])
    assert np.median(np.diff(dice)) == pytest.approx(0.0105, abs=5e-5)
    assert Statistics().non_inferiority_margin == 0.01


def test_one_metric_answers_each_question_and_the_rest_is_exploratory():
    table = with_questions(compare_all_families(random_scores(6, ("dice", "ece", "nsd")), FEW), FEW)
    assert dict(zip(table["metric"], table["question"], strict=True)) == {
        "dice": "accuracy",
        "ece": "calibration",
        "nsd": "exploratory",
    }
    assert set(Statistics().primary.values()) <= set(alternatives_of(directions()))


def test_sixty_five_patients_by_thirteen_predictors_on_every_metric_take_less_than_a_minute():
    metrics = tuple(METRICS)
    scores = random_scores(65, metrics)
    start = time.process_time()
    table = compare_all_families(scores)
    assert time.process_time() - start < 60
    assert (table["n_pairs"] == 65).all()
    assert len(table) == 3 * sum(metric.direction != "" for metric in METRICS.values())


def test_long_scores_are_averaged_over_organs_before_they_are_compared():
    scores = random_scores(6, ("dice",))
    long = pd.concat(
        [scores.assign(organ=organ, annotator="", value=scores["value"] + d) for organ, d in (("a", -0.1), ("b", 0.1))]
    )
    one = compare_families(scores, "dice", "greater", draws=100)
    two = compare_families(long, "dice", "greater", draws=100)
    pd.testing.assert_frame_equal(one, two, check_exact=False)


def test_all_metrics_at_once_is_each_metric_alone():
    scores = random_scores(6, ("dice", "ece", "count"))
    table = compare_all_families(scores, FEW, alternatives={"dice": "greater", "ece": "less"})
    assert list(table["metric"].unique()) == ["dice", "ece"]
    alone = compare_families(scores, "ece", "less", draws=100)
    pd.testing.assert_frame_equal(table[table["metric"] == "ece"].reset_index(drop=True), alone)
    by_direction = compare_all_families(scores, FEW)
    pd.testing.assert_frame_equal(by_direction, table)


def test_directions_are_the_registrys():
    assert directions() == {name: metric.direction for name, metric in METRICS.items()}
    assert set(alternatives_of(directions()).values()) == {"greater", "less"}
    assert not {"predictive_entropy", "member_dice"} & set(alternatives_of(directions()))


@settings(deadline=None, max_examples=15)
@given(st.lists(st.floats(0, 1) | st.just(np.nan), max_size=8), st.sampled_from(["holm", "bonferroni"]))
@example([], "holm")
@example([np.nan, np.nan], "bonferroni")
@example([0.01, np.nan, 0.01, 0.04, 1.0, 0.0], "holm")
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
    one = compare_families(scores, "dice", "greater", draws=100)
    two = compare_families(shuffled, "dice", "greater", draws=100)
    pd.testing.assert_frame_equal(one, two, check_exact=False, rtol=1e-12)
    pd.testing.assert_frame_equal(scores, before)


@settings(max_examples=5, deadline=None)
@given(st.integers(1, 1000), st.floats(0.1, 10))
def test_swapping_the_sign_swaps_the_alternative(seed, factor):
    scores = random_scores(5, ("dice",), seed=seed)
    up = compare_families(scores, "dice", "greater", draws=100)
    down = compare_families(scores.assign(value=-factor * scores["value"]), "dice", "less", draws=100)
    np.testing.assert_allclose(up["p"], down["p"])
    np.testing.assert_allclose(up["p_randomisation"], down["p_randomisation"])
    np.testing.assert_allclose(up["win_probability"], down["win_probability"])
    np.testing.assert_allclose(up["mean_difference"], -down["mean_difference"] / factor)


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
