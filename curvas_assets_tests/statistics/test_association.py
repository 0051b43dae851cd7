"""Claims proved here.

- Pearson, Spearman, R² and mutual information are SciPy's and scikit-learn's, on the patients' means.
- A patient counts once: with strong patient effects and no association, 5 % of studies find one at the 5 % level.
- Below six patients there is no p; a perfect order has the p of its rarity, not 0.
- R² is that of a fit: between 0 and 1.
- Constant, undefined and too few values give a note, never a crash.
- Agreement of annotators counts each patient once, however many predictors repeat it.
"""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.feature_selection import mutual_info_regression
from sklearn.linear_model import LinearRegression

from curvas_assets.errors import StatisticsError
from curvas_assets.statistics import annotator_agreement, dice_against_entropy, paired_scores
from curvas_assets_tests.statistics.tables import predictors, random_scores


def two_metrics(patients: int = 10) -> pd.DataFrame:
    return random_scores(patients, ("dice", "predictive_entropy"))


def test_the_figures_are_scipys_and_scikit_learns():
    scores = two_metrics()
    table = dice_against_entropy(scores, seed=5).set_index("family")
    assert list(table.index) == ["all", "general", "annotator", "individual"]
    assert list(table["n"]) == [10, 10, 10, 10]
    for family in table.index:
        pairs = paired_scores(scores, "predictive_entropy", "dice")
        pairs = pairs if family == "all" else pairs[pairs["family"] == family]
        means = pairs.groupby("patient")[["x", "y"]].mean()
        x, y = means["x"].to_numpy(), means["y"].to_numpy()
        row = table.loc[family]
        assert row["pearson"] == pytest.approx(stats.pearsonr(x, y).statistic)
        assert row["p_spearman"] == pytest.approx(max(stats.spearmanr(x, y).pvalue, 2 / math.factorial(10)))
        assert row["r2"] == pytest.approx(LinearRegression().fit(x[:, None], y).score(x[:, None], y))
        assert 0 <= row["r2"] <= 1
        assert row["mutual_information"] == pytest.approx(mutual_info_regression(x[:, None], y, random_state=5)[0])


def test_a_patient_counts_once_so_that_nothing_is_found_where_nothing_is():
    """20 patients × 13 predictors; both metrics vary between patients ten times as much as within, independently."""
    rng = np.random.default_rng(0)
    studies, patients, names = 2000, 20, predictors()
    keys = [(f"p{i:02d}", name, family) for i in range(patients) for name, family in names.items()]
    reduced = pd.DataFrame(keys * 2, columns=["patient", "predictor", "family"])
    reduced = reduced.assign(metric=np.repeat(["dice", "predictive_entropy"], len(keys)), n_values=1, n_nan=0)
    effects = rng.normal(size=(2, studies, patients, 1))
    values = effects + 0.1 * rng.normal(size=(2, studies, patients, len(names)))
    p = stats.pearsonr(*values.mean(axis=-1), axis=-1).pvalue
    for study in range(5):  # the table's own p is this one; it takes longer for its mutual information
        table = dice_against_entropy(reduced.assign(value=values[:, study].ravel()))
        assert table["p_pearson"][0] == pytest.approx(p[study])
        assert table["n"].tolist() == [patients] * 4
    found = np.mean(p <= 0.05)
    naive = np.mean(stats.pearsonr(*values.reshape(2, studies, -1), axis=-1).pvalue <= 0.05)
    print(f"found without being there: {found:.3f} of the studies; with 260 independent predictors: {naive:.3f}")
    assert 0.03 <= found <= 0.07
    assert naive > 0.4


def test_an_undefined_value_leaves_out_its_predictor_not_its_patient():
    scores = two_metrics(5)
    gone = (scores["patient"] == "UKCHLL002") & (scores["predictor"] == "ensemble_all") & (scores["metric"] == "dice")
    table = dice_against_entropy(scores.assign(value=scores["value"].where(~gone))).set_index("family")
    assert table.loc["all", ["n", "n_nan"]].tolist() == [5, 1]
    assert table.loc["general", ["n", "n_nan"]].tolist() == [4, 1]


def test_a_line_is_perfectly_associated():
    scores = two_metrics()
    entropy = scores["metric"] == "predictive_entropy"
    scores.loc[entropy, "value"] = 1 - 2 * scores.loc[~entropy, "value"].to_numpy()
    row = dice_against_entropy(scores).iloc[0]
    assert (row["pearson"], row["spearman"]) == (pytest.approx(-1), pytest.approx(-1))
    assert (row["slope"], row["intercept"]) == (pytest.approx(-0.5), pytest.approx(0.5))


def test_few_patients_have_no_p_and_a_perfect_order_none_of_zero():
    scores = random_scores(8, ("dice", "predictive_entropy"))
    entropy = scores["metric"] == "predictive_entropy"
    scores.loc[entropy, "value"] = -scores.loc[~entropy, "value"].to_numpy()
    whole = dice_against_entropy(scores).iloc[0]
    assert (whole["spearman"], whole["note"]) == (pytest.approx(-1), "")
    assert whole["p_spearman"] == 2 / math.factorial(8)  # of all orders, as many are as extreme
    for patients, note in (
        (5, "fewer than 6 patients: no p"),
        (3, "fewer than 6 patients: no p, no mutual information"),
    ):
        few = dice_against_entropy(scores[scores["patient"] <= f"UKCHLL{patients:03d}"])
        assert (few["note"] == note).all()
        assert few[["p_pearson", "p_spearman"]].isna().all(axis=None)
        assert few[["pearson", "spearman", "r2"]].notna().all(axis=None)
        assert few["mutual_information"].notna().all() == (patients == 5)


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
