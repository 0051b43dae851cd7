"""Claims proved here.

- Pearson, Spearman, R² and mutual information are SciPy's and scikit-learn's.
- R² is that of a fit: between 0 and 1.
- Constant, undefined and too few values give a note, never a crash.
- Agreement of annotators counts each patient once, however many predictors repeat it.
"""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.feature_selection import mutual_info_regression
from sklearn.linear_model import LinearRegression

from curvas_assets.errors import StatisticsError
from curvas_assets.statistics import annotator_agreement, dice_against_entropy, paired_scores
from curvas_assets_tests.statistics.tables import random_scores


def two_metrics(patients: int = 10) -> pd.DataFrame:
    return random_scores(patients, ("dice", "predictive_entropy"))


def test_the_figures_are_scipys_and_scikit_learns():
    scores = two_metrics()
    table = dice_against_entropy(scores, seed=5).set_index("family")
    assert list(table.index) == ["all", "general", "annotator", "individual"]
    assert list(table["n"]) == [130, 10, 30, 90]
    for family in table.index:
        pairs = paired_scores(scores, "predictive_entropy", "dice")
        pairs = pairs if family == "all" else pairs[pairs["family"] == family]
        x, y = pairs["x"].to_numpy(), pairs["y"].to_numpy()
        row = table.loc[family]
        assert row["pearson"] == pytest.approx(stats.pearsonr(x, y).statistic)
        assert row["p_spearman"] == pytest.approx(stats.spearmanr(x, y).pvalue)
        assert row["r2"] == pytest.approx(LinearRegression().fit(x[:, None], y).score(x[:, None], y))
        assert 0 <= row["r2"] <= 1
        assert row["mutual_information"] == pytest.approx(mutual_info_regression(x[:, None], y, random_state=5)[0])


def test_a_line_is_perfectly_associated():
    scores = two_metrics()
    entropy = scores["metric"] == "predictive_entropy"
    scores.loc[entropy, "value"] = 1 - 2 * scores.loc[~entropy, "value"].to_numpy()
    row = dice_against_entropy(scores).iloc[0]
    assert (row["pearson"], row["spearman"]) == (pytest.approx(-1), pytest.approx(-1))
    assert (row["slope"], row["intercept"]) == (pytest.approx(-0.5), pytest.approx(0.5))


@pytest.mark.parametrize(("change", "note"), [("constant", "constant"), ("undefined", "fewer than three")])
def test_what_has_no_association_has_a_note(change, note):
    scores = two_metrics(3)
    scores.loc[scores["metric"] == "dice", "value"] = 0.9 if change == "constant" else np.nan
    table = dice_against_entropy(scores)
    assert table["note"].str.contains(note).all()
    assert table[["pearson", "r2", "mutual_information"]].isna().all(axis=None)


def test_a_missing_metric_is_named():
    with pytest.raises(StatisticsError, match="predictive_entropy"):
        dice_against_entropy(random_scores(2, ("dice",)))


def test_agreement_counts_each_patient_once():
    scores = random_scores(4, ("agreement_dice",)).assign(organ="liver", annotator="", unit="")
    values = {"UKCHLL001": 0.9, "UKCHLL002": 0.8, "UKCHLL003": 0.7, "UKCHLL004": np.nan}
    scores["value"] = scores["patient"].map(values)
    table = annotator_agreement(pd.concat([scores, scores.assign(organ="kidney", value=1.0)]))
    liver = table[table["organ"] == "liver"].iloc[0]
    assert (liver["n"], liver["n_nan"], liver["mean"]) == (3, 1, pytest.approx(0.8))
    assert table.loc[table["organ"] == "kidney", "mean"].tolist() == [1.0]
    assert annotator_agreement(random_scores(2, ("dice",))).empty
