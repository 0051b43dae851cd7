"""Claims proved here.

- A study without further predictors compares the three families, in their order; each further predictor is compared with what
  it is made from, fused labels with annotators', folds with models; what the study file names replaces all of this.
- A pair of predictors gives SciPy's sign test; its figures do not depend on the other pairs or on their order.
- A predictor on both sides is never compared with itself; where nothing is left, the note says so and no number is made up.
- Corrections over pairs count pairs of one kind, so that a further predictor leaves the three families' numbers as they are.
- `p_smallest` is the p that the best possible scores would have, ties included; it is 2⁻ⁿ for two predictors and n patients.
- Primary metrics are corrected together by Holm and exploratory ones by their false discovery rate, as statsmodels does;
  what could not be tested is not counted.
- Every metric with a margin is tested for every pair, in its own unit, the metric of accuracy first; a margin of a metric
  without a better side, or a second one of accuracy, is refused; studies without margins keep their fingerprint.
- A temperature, which leaves every Dice as it is, does no harm; without six patients nothing is said.
- Without an effect, any primary metric is called significant in at most alpha of the studies.
- Non-inferiority holds in at most alpha of the studies that lose just the margin, on symmetric differences, ties among them,
  whatever the number of patients; with three it is never claimed. A loss that strikes few patients can go unseen: pinned.
"""

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests

from curvas_assets.errors import StudyError
from curvas_assets.statistics import compare_all_families, compare_families, non_inferiority, with_questions
from curvas_assets.statistics.families import against_margin
from curvas_assets.statistics.pairs import PAIRS, Pair, pairs_of
from curvas_assets.statistics.randomisation import flip_signs, randomise
from curvas_assets.study import Statistics, Study, load_study
from curvas_assets_tests.report.studies import make_study
from curvas_assets_tests.statistics.tables import random_scores

FEW = Statistics(draws=200)


def changed(**changes) -> Study:
    raw = make_study().model_dump(mode="json")
    raw["sets"]["validation"] = ["901", "902", "903"]
    return Study.model_validate({**raw, **changes})


def names(study: Study) -> list[tuple[str, str, str]]:
    return [tuple(pair) for pair in pairs_of(study)]


def test_a_study_without_further_predictors_compares_its_three_families():
    for study in (load_study("curvas"), load_study("phantom"), make_study(annotators=1), make_study(seeds=1)):
        assert pairs_of(study) == PAIRS
    assert [str(pair) for pair in PAIRS] == [
        "general vs annotator",
        "general vs individual",
        "annotator vs individual",
    ]


def test_each_further_predictor_is_compared_with_what_it_is_made_from():
    study = changed(
        training_labels=["anno1", "anno2", "anno3", "majority", "soft"],
        training={"snapshots": 2},
        cheap_ensembles={"flips": ["anno1_init112233_foldall"], "snapshots": ["anno2_init445566_foldall"]},
        calibrated={"temperature": ["ensemble_all"], "isotonic": ["anno3_init112233_foldall", "ensemble_anno1"]},
    )
    assert names(study)[3:] == [
        ("ensemble_majority", "annotator", "made from"),
        ("ensemble_soft", "annotator", "made from"),
        ("ensemble_flips-anno1-112233", "anno1_init112233_foldall", "made from"),
        ("ensemble_snapshots-anno2-445566", "anno2_init445566_foldall", "made from"),
        ("temperature_ensemble_all", "ensemble_all", "made from"),
        ("isotonic_anno3_init112233_foldall", "anno3_init112233_foldall", "made from"),
        ("isotonic_ensemble_anno1", "ensemble_anno1", "made from"),
        ("fused", "individual", "made from"),
    ]
    folds = changed(sets={**study.sets, "train": ["900", "901", "902"], "validation": []}, folds=["all", 0, 1])
    folds = Study.model_validate({**folds.model_dump(mode="json"), "cheap_ensembles": {"folds": True}})
    assert names(folds)[3:] == [("folds", "individual", "made from")]
    alone = changed(training_labels=["majority"], seeds=[1])
    assert names(alone)[3:] == []  # nothing of the annotators' there to compare it with
    fused = changed(training_labels=["majority", "soft"])
    assert names(fused)[3:] == [("fused ensemble", "fused", "made from")]


def test_what_the_study_file_names_is_compared_and_nothing_else():
    asked = [["general", "anno1_init112233_foldall"], ["ensemble_anno1", "ensemble_anno2"]]
    study = changed(statistics={"comparisons": asked})
    assert names(study) == [(*pair, "configured") for pair in asked]
    scores = random_scores(8, ("dice",))
    table = compare_all_families(scores, FEW, pairs=pairs_of(study))
    assert list(table["first"]) == ["general", "ensemble_anno1"]
    assert list(table["n_first"]) == list(table["n_second"]) == [8, 8]


def test_two_predictors_are_compared_by_the_sign_test():
    scores = random_scores(9, ("dice",), seed=1)
    pair = Pair("ensemble_anno1", "ensemble_anno2", "configured")
    row = compare_families(scores, "dice", "greater", pairs=[pair], draws=20000).iloc[0]
    one, two = (scores[scores["predictor"] == side].set_index("patient")["value"] for side in pair[:2])
    wins = int((one > two).sum())
    assert row["win_probability"] == wins / 9
    exact = stats.binomtest(wins, 9, alternative="greater").pvalue
    assert row["p_randomisation"] == pytest.approx(exact, abs=0.012)
    assert row["mean_difference"] == pytest.approx((one - two).mean())
    assert row["p_smallest"] == 2.0**-9


def test_a_pairs_figures_do_not_depend_on_the_others():
    scores = random_scores(8, ("dice", "ece"))
    alone = Pair("ensemble_anno1", "individual", "configured")
    more = [
        Pair("general", "ensemble_anno3", "configured"),
        alone,
        Pair("ensemble_anno2", "ensemble_anno1", "configured"),
    ]
    free = ["p_bonferroni", "p_randomisation_holm"]
    one, two = (compare_all_families(scores, FEW, pairs=pairs) for pairs in ([alone], more))
    two = two[two["first"] == "ensemble_anno1"].reset_index(drop=True)
    pd.testing.assert_frame_equal(one.drop(columns=free), two.drop(columns=free))
    bounds = [non_inferiority(scores, FEW, pairs=pairs).set_index("pair").loc[str(alone)] for pairs in ([alone], more)]
    pd.testing.assert_series_equal(*bounds)


def test_further_pairs_leave_the_numbers_of_the_three_families_as_they_are():
    scores = random_scores(8, ("dice",))
    further = (
        Pair("ensemble_anno1", "anno1_init112233_foldall", "made from"),
        Pair("ensemble_anno2", "individual", "made from"),
    )
    alone, beside = (
        compare_families(scores, "dice", "greater", pairs=pairs, draws=200) for pairs in (PAIRS, PAIRS + further)
    )
    pd.testing.assert_frame_equal(alone, beside[:3])
    np.testing.assert_allclose(
        beside["p_randomisation_holm"][3:], multipletests(beside["p_randomisation"][3:], method="holm")[1]
    )
    np.testing.assert_allclose(beside["p_bonferroni"][3:], np.minimum(1, 2 * beside["p"][3:]))


def test_a_predictor_on_both_sides_counts_on_one():
    scores = random_scores(7, ("dice",))
    model = "anno1_init112233_foldall"
    for pair, nine in ((Pair(model, "individual"), "n_second"), (Pair("individual", model), "n_first")):
        row = compare_families(scores, "dice", "greater", pairs=[pair], draws=100).iloc[0]
        assert row[nine] == 8 * 7
        assert row["note"] == f"{model} is on both sides: left out of individual"
    others = scores[scores["predictor"] != model]
    by_hand = pd.concat([others, scores[scores["predictor"] == model].assign(family="one")])
    same = compare_families(by_hand, "dice", "greater", pairs=[Pair("one", "individual")], draws=100).iloc[0]
    row = compare_families(scores, "dice", "greater", pairs=[Pair(model, "individual")], draws=100).iloc[0]
    assert (row["U"], row["win_probability"], row["mean_difference"]) == (
        same["U"],
        same["win_probability"],
        same["mean_difference"],
    )
    empty = compare_families(scores, "dice", "greater", pairs=[Pair("general", "ensemble_all")], draws=100).iloc[0]
    assert empty["note"] == (
        "ensemble_all is on both sides: left out of general; no defined value of general; no patient with both families"
    )
    assert np.isnan(empty["p_randomisation"])
    assert np.isnan(empty["p_smallest"])
    bound = non_inferiority(scores, FEW, pairs=[Pair("general", "ensemble_all")]).iloc[0]
    assert bound["not_inferior"] is pd.NA
    assert np.isnan(bound["p"])


def test_what_was_not_scored_gives_no_number():
    scores = random_scores(7, ("dice",))
    pairs = [Pair("isotonic_ensemble_all", "ensemble_all", "made from")]
    row = compare_families(scores, "dice", "greater", pairs=pairs, draws=100).iloc[0]
    assert row["n_first"] == 0
    assert row[["p", "p_randomisation", "p_smallest", "mean_difference"]].isna().all()
    assert row["note"].startswith("no defined value of isotonic_ensemble_all")


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.booleans(), st.integers(0, 10**6))
def test_the_smallest_p_is_that_of_the_best_possible_scores(first, second, patients, tied, seed):
    rng = np.random.default_rng(seed)
    values = (
        rng.integers(0, 3, (patients, first + second)).astype(float)
        if tied
        else rng.normal(size=(patients, first + second))
    )
    best = np.sort(values, axis=1)[:, ::-1]
    found = randomise(values[:, :first], values[:, first:], "greater", draws=100_000, seed=rng)
    ideal = randomise(best[:, :first], best[:, first:], "greater", draws=100_000, seed=rng)
    assert found.smallest == ideal.smallest
    assert ideal.p == pytest.approx(ideal.smallest, abs=6 * np.sqrt(ideal.smallest / 100_000) + 2e-5)
    assert found.p >= found.smallest * 0.8 - 1e-3


def test_primary_metrics_are_corrected_together_and_exploratory_ones_apart():
    scores = random_scores(8, ("dice", "ece", "nsd", "hd95", "aurc"), seed=5)
    scores.loc[(scores["metric"] == "aurc") & (scores["family"] == "annotator"), "value"] = np.nan
    table = with_questions(compare_all_families(scores, FEW), FEW)
    primary = table["metric"].isin(["dice", "ece", "aurc"])
    tested = table["p_randomisation"].notna()
    assert tested[primary].sum() == 7  # of aurc one pair of three
    np.testing.assert_allclose(
        table["p_adjusted"][primary & tested],
        multipletests(table["p_randomisation"][primary & tested], method="holm")[1],
    )
    np.testing.assert_allclose(
        table["p_adjusted"][~primary], multipletests(table["p_randomisation"][~primary], method="fdr_bh")[1]
    )
    assert set(table["adjustment"][primary & tested]) == {"Holm over 7 tests"}
    assert set(table["adjustment"][~primary]) == {"false discovery rate over 6 tests"}
    assert table["p_adjusted"][~tested].isna().all()
    assert (table["adjustment"][~tested] == "").all()
    assert (table["p_adjusted"][tested] >= table["p_randomisation"][tested]).all()
    pd.testing.assert_frame_equal(with_questions(table, FEW), table)
    assert list(with_questions(table.iloc[:0], FEW)["p_adjusted"]) == []


def test_every_metric_with_a_margin_is_tested_for_every_pair():
    scores = pd.concat([random_scores(20, ("dice",)), random_scores(20, ("ece", "hd95"), seed=1)])
    settings = Statistics(draws=200, margins={"hd95": 0.5, "ece": 1e-4, "nsd": 0.1})
    pairs = (*PAIRS, Pair("ensemble_anno1", "ensemble_anno2", "made from"))
    table = non_inferiority(scores, settings, pairs=pairs)
    assert list(table["metric"]) == ["dice"] * 4 + ["hd95"] * 4 + ["ece"] * 4
    assert table.groupby("metric")["margin"].first().to_dict() == {"dice": 0.01, "hd95": 0.5, "ece": 1e-4}
    assert list(table["pair"][:4]) == [str(pair) for pair in pairs]
    assert table["not_inferior"][4:8].all()  # half a millimetre is far beyond what these scores differ by
    pd.testing.assert_frame_equal(table[:4], non_inferiority(scores, FEW, pairs=pairs))


def test_margins_of_a_study_file_are_checked(tmp_path):
    raw = load_study("phantom").model_dump(mode="json")
    path = tmp_path / "study.yaml"

    def load(**margins: float) -> Study:
        path.write_text(yaml.safe_dump({**raw, "statistics": {**raw["statistics"], "margins": margins}}))
        return load_study(path)

    assert load(ece=0.001).statistics.margins == {"ece": 0.001}
    assert load(ece=0.001).fingerprint("statistics") != load_study("phantom").fingerprint("statistics")
    assert load().fingerprint() == load_study("phantom").fingerprint()
    for margins, told in (
        ({"predictive_entropy": 0.1}, "not a metric with a better side"),
        ({"dice": 0.1}, "its margin is statistics.non_inferiority_margin"),
        ({"ece": 0.0}, "statistics.margins.ece"),
    ):
        with pytest.raises(StudyError, match=told):
            load(**margins)


def calibrated(patients: int) -> pd.DataFrame:
    """Scores with an ensemble whose calibration leaves every value as it is."""
    scores = random_scores(patients, ("dice",))
    same = scores[scores["predictor"] == "ensemble_all"].assign(
        predictor="temperature_ensemble_all", family="calibrated"
    )
    return pd.concat([scores, same], ignore_index=True)


@pytest.mark.parametrize(("patients", "told"), [(3, pd.NA), (5, pd.NA), (6, True), (65, True)])
def test_a_calibration_that_changes_no_label_does_no_harm(patients, told):
    pair = [Pair("temperature_ensemble_all", "ensemble_all", "made from")]
    row = non_inferiority(calibrated(patients), FEW, pairs=pair).iloc[0]
    assert row["mean_difference"] == 0
    assert (row["not_inferior"] is told) if told is pd.NA else row["not_inferior"]
    assert row["p_smallest"] == max(2.0**-patients, 1 / 201 if patients > 14 else 0)
    assert row["p"] == row["p_smallest"]
    test = compare_families(calibrated(patients), "dice", "greater", pairs=pair, draws=200).iloc[0]
    assert (test["win_probability"], test["p_randomisation"], test["p_smallest"]) == (0.5, 1, 1)


def test_flipped_signs_agree_with_scipys_permutation_test():
    for size in (4, 8, 20):
        values = np.random.default_rng(size).normal(0.3, 1, size)
        expected = stats.permutation_test(
            (values,),
            np.mean,
            permutation_type="samples",
            alternative="greater",
            n_resamples=20000,
            rng=np.random.default_rng(0),
        ).pvalue
        found, smallest = flip_signs(values, draws=20000)
        assert found == pytest.approx(expected, abs=1e-12 if size < 14 else 0.01)
        assert smallest == max(2.0**-size, 1 / 20001 if size > 14 else 0)
    assert flip_signs([0.0, 0.0]) == (1, 1)
    assert flip_signs([]) == (1, 1)
    assert flip_signs([-1.0, 0.0, 2.0]) == (0.5, 0.25)


def test_flipped_signs_are_drawn_in_blocks(monkeypatch):
    values = np.random.default_rng(0).normal(0.1, 1, 30)
    whole = flip_signs(values, draws=999)
    monkeypatch.setattr("curvas_assets.statistics.randomisation.BLOCK", 31)
    assert flip_signs(values, draws=999)[0] == pytest.approx(whole[0], abs=0.1)


# By simulation ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("patients", [3, 6, 20])
def test_without_an_effect_two_predictors_that_often_tie_differ_as_often_as_alpha(patients):
    rng = np.random.default_rng(patients)
    p = np.empty(1500)
    for study in range(len(p)):
        one, two = np.round(rng.normal(0.9, 0.01, (2, patients, 1)), 2)  # a third of the patients tie
        p[study] = randomise(one, two, "greater", draws=199, seed=rng).p
    print(f"{patients} patients: {(p <= 0.05).mean():.3f}")
    assert (p <= 0.05).mean() <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / len(p))
    assert patients > 3 or p.min() > 0.05  # a p of three patients is an eighth at least


def test_without_an_effect_some_primary_metric_is_significant_in_at_most_alpha_of_the_studies():
    rng = np.random.default_rng(11)
    shared = np.array([1.0, 0.6, 0.8, 0.0])  # how much of the first metric's values is in each: metrics go together
    metrics, found = ("dice", "ece", "ncc", "aurc"), []
    slices = {"general": slice(0, 1), "annotator": slice(1, 4), "individual": slice(4, 13)}
    for _ in range(300):
        own, common = rng.normal(size=(8, 13, 4)), rng.normal(size=(8, 13, 1))
        values = shared * common + np.sqrt(1 - shared**2) * own
        p = [
            randomise(
                values[:, slices[pair.first], at], values[:, slices[pair.second], at], "greater", draws=99, seed=rng
            ).p
            for at in range(4)
            for pair in PAIRS
        ]
        table = pd.DataFrame({"metric": np.repeat(metrics, 3), "p_randomisation": p})
        found.append(bool((with_questions(table, FEW)["p_adjusted"] <= 0.25).any()))
    print(f"any of 12 tests at 25 %: {np.mean(found):.3f}")
    assert np.mean(found) <= 0.25 + 3 * np.sqrt(0.25 * 0.75 / len(found))
    assert np.mean(found) >= 0.05  # it can reject


def just_the_margin(shape: str, rng: np.random.Generator, patients: int) -> np.ndarray:
    """Differences of Dice whose mean is −0.01."""
    if shape == "normal":
        return -0.01 + 0.02 * rng.normal(size=patients)
    if shape == "half lose just the margin":
        return -0.01 + np.where(rng.random(patients) < 0.5, 0, 0.02 * rng.standard_t(3, patients))
    return rng.choice([0.0, -0.02], patients)  # "half are equal to the digit", the others lose twice the margin


def claimed(differences: np.ndarray) -> bool:
    return bool(against_margin(differences, "greater", 0.01, draws=199).holds)


@pytest.mark.parametrize("patients", [3, 6, 20])
@pytest.mark.parametrize("shape", ["normal", "half lose just the margin", "half are equal to the digit"])
def test_a_loss_of_just_the_margin_is_called_harmless_in_at_most_alpha_of_the_studies(shape, patients):
    rng = np.random.default_rng(7)
    found = [claimed(just_the_margin(shape, rng, patients)) for _ in range(400)]
    print(f"{shape}, {patients} patients: {np.mean(found):.3f}")
    assert np.mean(found) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / len(found))
    assert patients > 3 or not any(found)


def test_the_bound_alone_would_not_keep_the_level_with_six_patients():
    rng = np.random.default_rng(1)
    drawn = [just_the_margin("half lose just the margin", rng, 6) for _ in range(400)]
    bounds = np.array([against_margin(one, "greater", 0.01, draws=199).bound for one in drawn])
    print(f"bound alone: {np.mean(bounds > -0.01):.3f}")
    assert np.mean(bounds > -0.01) > 0.1


@pytest.mark.parametrize("side", ["greater", "less"])
def test_both_sides_of_better_are_the_same_test(side):
    differences = np.random.default_rng(0).normal(-0.004, 0.01, 12)
    one, two = (
        against_margin(differences, "greater", 0.01, draws=4999),
        against_margin(-differences, "less", 0.01, draws=4999),
    )
    assert (one.p, one.smallest, one.holds) == (two.p, two.smallest, two.holds)
    assert one.bound == pytest.approx(-two.bound, abs=5e-4)
    infinite = against_margin(np.append(differences, np.inf), side, 0.01, draws=199)
    assert infinite.holds is None
    assert np.isnan([infinite.bound, infinite.p]).all()


def test_a_loss_that_strikes_few_patients_can_go_unseen():
    """A tenth of the patients loses ten margins. Six patients show none of it in half of the studies: the report says so."""
    rng = np.random.default_rng(3)
    found = [claimed(np.where(rng.random(6) < 0.1, -0.1, 0.0)) for _ in range(300)]
    assert 0.4 < np.mean(found) < 0.66  # 0.9⁶ = 0.53
