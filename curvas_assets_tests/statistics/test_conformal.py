"""Claims proved here.

- A margin is the ⌈(n + 1) · level⌉-th smallest error, ties included, as `numpy.quantile(method="higher")` has it after the
  correction; of several errors a patient it is that of the definition, written out with fractions.
- A level counts as it is written: nine patients give 0.9, and 0.07 of a hundred is the seventh.
- Laws: a margin grows with the level, does not depend on the order of patients or of their annotators, and scales with volumes.
- n patients give n / (n + 1) at most: an interval is bounded, and claims no more, whatever was asked.
- By simulation: with enough patients 90 % of new patients are covered, ± 3 points, of both targets; the coverage of one set
  of validation patients follows its beta law, and the number of covered patients the beta-binomial one.
- Test patients never enter a margin: other volumes of theirs change no width; a patient on both sides is refused.
- Empty organs, predicted or drawn, have intervals like others; no interval goes below zero, and none is lost by that.
- Groups of another distribution are covered less often, and the probability of that says so; exchangeable ones are not accused.
- The interval of an observed share is that of statsmodels.
- A predictor that was calibrated on the validation patients claims nothing, and says why.
"""

import math
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import betabinom, kstest
from statsmodels.stats.proportion import proportion_confint

from curvas_assets.errors import StatisticsError
from curvas_assets.statistics.conformal import (
    IN_SAMPLE,
    attainable_level,
    chance_of_so_few,
    conformal_margin,
    expected_coverage,
    in_cm3,
    observed_coverage,
    volume_intervals,
)

errors = st.lists(st.floats(0, 1e6), min_size=1, max_size=40)
many_errors = st.lists(st.lists(st.floats(0, 1e6), min_size=1, max_size=5), min_size=1, max_size=12)
levels = st.fractions(Fraction(1, 100), Fraction(99, 100), max_denominator=100)


def scored(
    drawn: np.ndarray, predicted: np.ndarray, *, first: int = 0, group: str = "A", organ: str = "liver", by: str = "m"
) -> pd.DataFrame:
    """Long scores of volumes (patients,) that are predicted, and (patients, annotators) that are drawn; NaN is not drawn."""
    n, columns = len(predicted), [("", predicted), *((str(r), own) for r, own in enumerate(drawn.T, 1))]
    columns.append(("mean", drawn.mean(axis=1)))
    return pd.DataFrame(
        {
            "value": np.concatenate([values for _, values in columns]),
            "metric": ["volume"] * n + ["volume_annotator"] * n * (len(columns) - 1),
            "annotator": [annotator for annotator, _ in columns for _ in range(n)],
            "patient": [f"P{first + patient:05d}" for patient in range(n)] * len(columns),
        }
    ).assign(group=group, organ=organ, predictor=by)


def cohort(rng: np.random.Generator, patients: int, *, shift: float = 1.0, **more) -> pd.DataFrame:
    """Three annotators who disagree, and a biased prediction that is worse for larger organs; one in ten has no organ."""
    truth = rng.gamma(4, 20_000, patients) * (rng.random(patients) > 0.1)
    drawn = truth[:, None] * rng.lognormal(0, 0.1, (patients, 3)) * (1 + 0.05 * np.arange(3))
    predicted = np.maximum(0, truth * rng.lognormal(-0.1 * shift, 0.2 * shift, patients) + rng.normal(0, 500, patients))
    return scored(drawn, predicted, **more)


# Margins -------------------------------------------------------------------------------------------------------------


def alone(values: list[float]) -> list[list[float]]:
    return [[value] for value in values]


@given(errors, levels)
def test_a_margin_is_numpys_quantile_after_the_correction(values, level):
    n = len(values)
    corrected = level * (n + 1) / n
    margin = conformal_margin(alone(values), level)
    if corrected > 1:
        assert margin == math.inf
        return
    assert margin == sorted(values)[math.ceil(level * (n + 1)) - 1]
    # NumPy takes the element at ⌈q (n − 1)⌉; the (level · (n + 1))-th of n is at that place less one.
    place = float(max(Fraction(0), level * (n + 1) - 1) / max(n - 1, 1))
    assume(abs(place * (n - 1) - round(place * (n - 1))) > 1e-9 or float(place * (n - 1)).is_integer())
    assert margin == np.quantile(values, place, method="higher")


@given(many_errors, levels)
def test_a_margin_of_several_errors_is_that_of_the_definition(values, level):
    def reached(q: float) -> Fraction:
        return sum((Fraction(sum(e <= q for e in own), len(own)) for own in values), Fraction(0)) / (len(values) + 1)

    possible = [q for q in sorted({e for own in values for e in own}) if reached(q) >= level]
    assert conformal_margin(values, level) == (possible[0] if possible else math.inf)


@pytest.mark.parametrize(
    ("patients", "level", "rank"),
    [(9, 0.9, 9), (99, 0.07, 7), (99, 0.9, 90), (19, 0.95, 19), (4, 0.8, 4), (3, 0.5, 2), (9, 0.3, 3), (99, 0.29, 29)],
)
def test_a_level_counts_as_it_is_written(patients, level, rank):
    assert conformal_margin(alone([float(i) for i in range(1, patients + 1)]), level) == rank


def test_ties_and_empty_errors_by_hand():
    assert conformal_margin(alone([2.0, 2.0, 2.0, 7.0]), 0.6) == 2
    assert conformal_margin(alone([0.0] * 5), Fraction(5, 6)) == 0
    assert conformal_margin([[0.0, 10.0], [1.0]], 0.5) == 1  # ½ + 1 of 3: reaches one half
    assert conformal_margin([], 0.5) == math.inf


@pytest.mark.parametrize(
    ("values", "level", "found"),
    [
        ([[1.0], []], 0.5, "a patient has none"),
        ([[-1.0]], 0.5, "negative"),
        ([[math.nan]], 0.5, "undefined"),
        ([[1.0]], 0.0, "it is 0.0"),
        ([[1.0]], 1.0, "it is 1.0"),
        ([[1.0]], math.nan, "it is nan"),
    ],
)
def test_what_is_no_error_and_no_level_is_refused(values, level, found):
    with pytest.raises(StatisticsError, match=found):
        conformal_margin(values, level)


@given(many_errors, levels, levels)
def test_a_margin_grows_with_the_level(values, one, other):
    assert conformal_margin(values, min(one, other)) <= conformal_margin(values, max(one, other))


@given(many_errors, levels, st.randoms(use_true_random=False))
def test_a_margin_does_not_depend_on_any_order(values, level, random):
    shuffled = [random.sample(own, len(own)) for own in random.sample(values, len(values))]
    assert conformal_margin(shuffled, level) == conformal_margin(values, level)


@given(many_errors, levels, st.sampled_from([0.125, 2.0, 1024.0]))
def test_a_margin_scales_with_its_errors(values, level, factor):
    scaled = conformal_margin([[factor * e for e in own] for own in values], level)
    assert scaled == factor * conformal_margin(values, level)


@given(errors, st.integers(1, 5), levels)
def test_annotators_who_agree_count_as_one(values, annotators, level):
    assert conformal_margin([[v] * annotators for v in values], level) == conformal_margin(alone(values), level)


# Coverage ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("patients", [5, 9, 39])
def test_the_coverage_of_one_set_of_validation_patients_follows_its_beta_law(patients):
    """Errors are uniform, so that a margin is its own coverage."""
    rng = np.random.default_rng(20261127)
    level = min(Fraction(9, 10), Fraction(patients, patients + 1))
    rank = math.ceil(level * (patients + 1))
    found = np.array([conformal_margin(alone(list(rng.random(patients))), level) for _ in range(2000)])
    assert kstest(found, "beta", (rank, patients + 1 - rank)).pvalue > 0.01
    assert found.mean() == pytest.approx(rank / (patients + 1), abs=0.01)
    low, high = expected_coverage(patients, level)
    assert ((found >= low) & (found <= high)).mean() == pytest.approx(0.9, abs=0.03)


def test_the_number_of_covered_patients_follows_the_beta_binomial_law():
    rng = np.random.default_rng(1)
    fitted, new, level = 9, 20, 0.9
    margins = [conformal_margin(alone(list(rng.random(fitted))), level) for _ in range(4000)]
    covered = (rng.random((4000, new)) <= np.array(margins)[:, None]).sum(axis=1)
    for few in (5, 12, 16, 18, 19):
        told = chance_of_so_few(few, new, fitted, level)
        assert told == pytest.approx(betabinom(new, 9, 1).cdf(few))
        assert told == pytest.approx((covered <= few).mean(), abs=0.02)


def test_five_patients_at_five_sixths_by_hand():
    low, high = expected_coverage(5, Fraction(5, 6))
    assert (low, high) == pytest.approx((0.05**0.2, 0.95**0.2))  # the largest of five uniform numbers
    assert attainable_level(5) == 5 / 6
    with pytest.raises(StatisticsError, match=r"5 patients: .* the level 0\.9 is above"):
        expected_coverage(5, 0.9)


def test_with_enough_patients_nine_of_ten_are_covered_by_either_target():
    rng = np.random.default_rng(20261127)
    found = []
    for _ in range(60):
        intervals = volume_intervals(cohort(rng, 99), cohort(rng, 100, first=1000), ["m"], 0.9)
        found.append(intervals.groupby("target")["covered"].mean())
    mean = pd.concat(found, axis=1).mean(axis=1)
    assert mean["mean"] == pytest.approx(0.9, abs=0.03)
    assert mean["annotator"] == pytest.approx(0.9, abs=0.03)


def test_few_patients_claim_what_they_can_and_keep_it():
    rng = np.random.default_rng(2)
    found = []
    for _ in range(150):
        intervals = volume_intervals(cohort(rng, 5), cohort(rng, 40, first=1000), ["m"], 0.9)
        assert np.isfinite(intervals[["lower", "upper"]]).all(axis=None)
        assert set(intervals["claimed"]) == set(intervals["attainable"]) == {5 / 6}
        assert set(intervals["level"]) == {0.9}
        found.append(intervals[intervals["target"] == "mean"]["covered"].mean())
    assert np.mean(found) == pytest.approx(5 / 6, abs=0.03)


@pytest.mark.parametrize(("inside", "patients"), [(0, 3), (3, 3), (47, 65), (58, 65)])
def test_the_interval_of_an_observed_share_is_that_of_statsmodels(inside, patients):
    fitted = scored(np.full((9, 2), 100.0), 100.0 + np.arange(9.0))
    predicted = np.where(np.arange(patients) < inside, 100.0, 1000.0)
    new = scored(np.full((patients, 2), 100.0), predicted, first=100)
    table = observed_coverage(volume_intervals(fitted, new, ["m"], 0.9))
    row = table[(table["target"] == "mean") & (table["group"] == "")].iloc[0]
    expected = proportion_confint(inside, patients, alpha=0.05, method="beta")
    assert (row["observed"], row["n_patients"], row["n_fitted"]) == (inside / patients, patients, 9)
    assert (row["observed_low"], row["observed_high"]) == pytest.approx(expected)
    of_one = table[table["target"] == "annotator"].iloc[0]
    assert of_one[["observed_low", "observed_high", "expected_low", "p"]].isna().all()


def test_groups_of_another_distribution_are_told_and_exchangeable_ones_are_not():
    rng = np.random.default_rng(3)
    told = {"A": 0, "B": 0}
    for _ in range(60):
        fitted, own = cohort(rng, 30), cohort(rng, 40, first=1000)
        other = cohort(rng, 40, first=2000, group="B", shift=4)
        table = observed_coverage(volume_intervals(fitted, pd.concat([own, other]), ["m"], 0.9))
        of_mean = table[table["target"] == "mean"].set_index("group")
        assert list(of_mean.index) == ["", "A", "B"]
        assert of_mean.loc["B", "observed"] < of_mean.loc["A", "observed"]
        assert of_mean.loc["", "observed"] == pytest.approx(of_mean.loc[["A", "B"], "observed"].mean())
        for group in told:
            told[group] += of_mean.loc[group, "p"] < 0.05
    assert told["B"] >= 55
    assert told["A"] <= 8


# Tables --------------------------------------------------------------------------------------------------------------


def test_test_patients_never_enter_a_width():
    rng = np.random.default_rng(4)
    fitted, new = cohort(rng, 12), cohort(rng, 8, first=1000)
    before = volume_intervals(fitted, new, ["m"], 0.9)
    other = new.assign(value=new["value"] * rng.uniform(2, 50, len(new)) + 1e6)
    after = volume_intervals(fitted, other, ["m"], 0.9)
    np.testing.assert_array_equal(before["margin"], after["margin"])
    np.testing.assert_allclose((after["upper"] - after["lower"]), 2 * after["margin"])  # none is cut at zero
    assert (before["volume"] != after["volume"]).all()
    drawn = new["metric"] == "volume_annotator"
    same = volume_intervals(fitted, new.assign(value=new["value"].where(~drawn, 0.0)), ["m"], 0.9)
    pd.testing.assert_frame_equal(same[["lower", "upper"]], before[["lower", "upper"]])
    fewer = volume_intervals(fitted, new[new["patient"] == "P01003"], ["m"], 0.9)
    expected = before[before["patient"] == "P01003"].reset_index(drop=True)
    pd.testing.assert_frame_equal(fewer, expected)


def test_a_patient_on_both_sides_is_refused():
    rng = np.random.default_rng(5)
    with pytest.raises(StatisticsError, match="P00004: finding intervals for volumes failed: their errors"):
        volume_intervals(cohort(rng, 5), cohort(rng, 3, first=4), ["m"], 0.9)


def test_a_volume_that_stands_there_twice_is_refused():
    fitted = cohort(np.random.default_rng(6), 3)
    with pytest.raises(StatisticsError, match="stands there twice"):
        volume_intervals(pd.concat([fitted, fitted]), cohort(np.random.default_rng(6), 3, first=9), ["m"], 0.9)


def test_an_interval_by_hand():
    """Errors of the mean: 10, 0, 30; the second of four ranks is 10. Of one annotator: 5, 15; 0; 30: ½ · 4 of 3 patients."""
    drawn = np.array([[95.0, 85.0], [0.0, 0.0], [70.0, np.nan]])
    fitted = scored(drawn, np.array([100.0, 0.0, 100.0]))
    new = scored(np.array([[0.0, 12.0], [50.0, 71.0]]), np.array([4.0, 60.0]), first=10)
    found = volume_intervals(fitted, new, ["m"], 0.5).set_index(["patient", "target"])
    assert found["margin"].groupby("target").first().to_dict() == {"mean": 10.0, "annotator": 15.0}
    empty, other = found.loc["P00010"], found.loc["P00011"]
    assert empty.loc["mean", ["volume", "lower", "upper", "drawn_mean", "covered"]].tolist() == [4, 0, 14, 6, 1]
    assert empty.loc["annotator", ["lower", "upper", "covered"]].tolist() == [0, 19, 1]
    assert other.loc["mean", ["lower", "upper", "drawn_mean", "covered"]].tolist() == [50, 70, 60.5, 1]
    assert other.loc["annotator", ["lower", "upper", "covered"]].tolist() == [45, 75, 1]
    assert (found["n_fitted"] == 3).all()
    assert (found["claimed"] == 0.5).all()
    assert in_cm3(found)["upper"].iloc[0] == pytest.approx(0.014)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=8), st.floats(0, 1e6), st.sampled_from([0.5, 4.0]))
def test_intervals_scale_with_volumes_and_never_go_below_zero(drawn, predicted, factor):
    rng = np.random.default_rng(7)
    fitted, new = cohort(rng, 6), scored(np.array([drawn]), np.array([predicted]), first=100)
    one = volume_intervals(fitted, new, ["m"], 0.8)
    scaled = [table.assign(value=factor * table["value"]) for table in (fitted, new)]
    other = volume_intervals(*scaled, ["m"], 0.8)
    np.testing.assert_allclose(
        other[["lower", "upper", "margin"]], factor * one[["lower", "upper", "margin"]], rtol=1e-9
    )
    assert (one["lower"] >= 0).all()
    of_one = one.set_index("target").loc["annotator"]
    errors = np.abs(np.array(drawn) - predicted)
    assume((np.abs(errors - of_one["margin"]) > 1e-6).all())  # there, a rounding decides
    inside = (np.array(drawn) >= of_one["lower"]) & (np.array(drawn) <= of_one["upper"])
    assert of_one["covered"] == pytest.approx(inside.mean())


def test_each_organ_and_predictor_has_its_own_margin_and_who_has_none_no_interval():
    rng = np.random.default_rng(8)
    kidney = cohort(rng, 6, organ="kidney")
    fitted = pd.concat([cohort(rng, 4), kidney.assign(value=kidney["value"] / 100), cohort(rng, 3, by="k")])
    new = pd.concat([cohort(rng, 2, first=100, organ=o, by=b) for o in ("liver", "kidney") for b in ("m", "k", "x")])
    found = volume_intervals(fitted, new, ["m", "k", "x"], 0.9)
    sizes = found.groupby(["predictor", "organ"])["n_fitted"].first().to_dict()
    assert sizes == {("m", "liver"): 4, ("m", "kidney"): 6, ("k", "liver"): 3}
    margins = found[found["target"] == "mean"].groupby(["predictor", "organ"])["margin"].first()
    assert margins["m", "kidney"] < margins["m", "liver"] / 10
    assert volume_intervals(fitted.iloc[:0], new, ["m"], 0.9).empty
    assert observed_coverage(volume_intervals(fitted.iloc[:0], new, ["m"], 0.9)).empty


def test_a_calibration_on_the_validation_patients_claims_nothing():
    rng = np.random.default_rng(9)
    fitted, new = cohort(rng, 20), cohort(rng, 10, first=100)
    found = volume_intervals(fitted, new, ["m"], 0.9, in_sample=["m"])
    assert found["claimed"].isna().all()
    assert set(found["note"]) == {IN_SAMPLE}
    coverage = observed_coverage(found)
    assert coverage[["claimed", "expected_low", "p"]].isna().all(axis=None)
    assert coverage[coverage["target"] == "mean"]["observed_low"].notna().all()
