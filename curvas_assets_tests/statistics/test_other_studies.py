"""Claims proved here.

- Two studies are paired by patient: what only one of them scored is left out and counted, and the difference is that of the means
  shown beside it, whatever the order of the rows.
- The p of two single predictors is that of SciPy's sign-flip test on the patients' differences, and its correction statsmodels'.
- Means over organs are of the organs that both score, so that a study with further organs is not judged by them.
- A study beside itself differs by nothing; studies that share no patient give no row.
"""

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests

from curvas_assets.errors import StatisticsError
from curvas_assets.statistics import compare_studies
from curvas_assets.study import Statistics

SETTINGS = Statistics(draws=9999)
FAMILIES = ("general", "individual")


def scores(patients: list[str], *, gain: float = 0.0, seed: int = 0, models: int = 2) -> pd.DataFrame:
    """Dice and ECE of an ensemble and of models, per patient."""
    rng = np.random.default_rng(seed)
    rows = []
    for patient in patients:
        for predictor in ["ensemble_all", *(f"anno1_init{m}_foldall" for m in range(models))]:
            family = "general" if predictor == "ensemble_all" else "individual"
            for metric, unit in (("dice", ""), ("ece", ""), ("hd95", "mm")):
                rows.append((patient, predictor, family, metric, "", "", 0.5 + gain + 0.05 * rng.normal(), unit))
    columns = ["patient", "predictor", "family", "metric", "organ", "annotator", "value", "unit"]
    return pd.DataFrame(rows, columns=columns)


def compared(own: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    return compare_studies(own, other, SETTINGS, names=("here", "there"), families=FAMILIES)


def named(patients: range) -> list[str]:
    return [f"P{p:03d}" for p in patients]


def test_patients_are_paired():
    own, other = scores(named(range(10)), gain=0.1), scores(named(range(2, 14)), seed=1)
    found = compared(own, other)
    assert set(found["metric"]) == {"dice", "ece"}, "primary metrics alone"
    assert set(found["n_pairs"]) == {8}
    assert set(zip(found["level"], found["first"], strict=True)) == {
        ("family", "general"),
        ("family", "individual"),
        ("predictor", "ensemble_all"),
        ("predictor", "anno1_init0_foldall"),
        ("predictor", "anno1_init1_foldall"),
    }
    for row in found.itertuples():
        column = "family" if row.level == "family" else "predictor"
        sides = [
            table[(table[column] == row.first) & (table["metric"] == row.metric)].groupby("patient")["value"].mean()
            for table in (own, other)
        ]
        difference = (sides[0] - sides[1]).dropna()
        assert row.mean_difference == pytest.approx(difference.mean())
        assert row.mean_first - row.mean_second == pytest.approx(row.mean_difference)
    shuffled = compared(own.sample(frac=1, random_state=3), other.sample(frac=1, random_state=4))
    keys = ["metric", "level", "first"]
    pd.testing.assert_frame_equal(
        found.sort_values(keys).reset_index(drop=True), shuffled.sort_values(keys).reset_index(drop=True)
    )


def test_p_is_that_of_sign_flips_and_corrected_over_a_level():
    own, other = scores(named(range(9)), gain=0.04, models=0), scores(named(range(9)), seed=1, models=0)
    found = compared(own, other)
    only = found[found["level"] == "predictor"]
    for row in only.itertuples():
        sides = [t[(t["metric"] == row.metric)].set_index("patient")["value"] for t in (own, other)]
        # The statistic is the share of patients won, so that SciPy's test is on the signs.
        signs = np.sign((sides[0] - sides[1]).to_numpy()) * (1 if row.metric == "dice" else -1)
        expected = scipy.stats.binomtest(int((signs > 0).sum()), 9).pvalue
        assert row.p == pytest.approx(expected, abs=0.02)
    assert only["p_adjusted"].to_numpy() == pytest.approx(multipletests(only["p"], method="holm")[1])


def test_values_that_one_study_lacks_leave_their_patients_unpaired():
    own, other = scores(named(range(8))), scores(named(range(8)), seed=1)
    own.loc[(own["patient"] == "P003") & (own["metric"] == "dice"), "value"] = np.nan
    found = compared(own, other)
    assert set(found.loc[found["metric"] == "dice", "n_pairs"]) == {7}
    assert set(found.loc[found["metric"] == "dice", "unpaired_patients"]) == {1}
    assert set(found.loc[found["metric"] == "ece", "n_pairs"]) == {8}
    assert (found["mean_first"] - found["mean_second"]).to_numpy() == pytest.approx(found["mean_difference"].to_numpy())


def test_means_over_organs_are_of_those_that_both_score():
    own, other = scores(named(range(7))), scores(named(range(7)), seed=1)
    of_organ = own["metric"] == "dice"
    liver, further = own.assign(organ=np.where(of_organ, "liver", "")), own[of_organ].assign(organ="tumour", value=0.1)
    theirs = other.assign(organ=np.where(other["metric"] == "dice", "liver", ""))
    pd.testing.assert_frame_equal(compared(pd.concat([liver, further]), theirs), compared(liver, theirs))
    assert "dice" not in set(compared(further, theirs)["metric"])


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 2**31))
def test_a_study_beside_itself_differs_by_nothing(seed: int):
    own = scores(named(range(7)), seed=seed)
    found = compared(own, own)
    assert (found["mean_difference"] == 0).all()
    assert (found["p"] == 1).all()


def test_studies_without_common_patients_or_metrics_give_no_row():
    own = scores(named(range(3)))
    assert compared(own, scores(named(range(5, 8)))).empty
    assert compared(own, own[own["metric"] == "hd95"]).empty
    assert compared(own.iloc[:0], own).empty
    assert list(compared(own.iloc[:0], own).columns)[:3] == ["other", "metric", "question"]


def test_a_table_without_predictors_is_refused():
    with pytest.raises(StatisticsError, match="predictor"):
        compared(scores(named(range(3))), scores(named(range(3))).drop(columns="predictor"))
