"""Claims proved here.

- A predictor's value is the mean over annotators, then over organs; rows that stand for all are taken as they are.
- Undefined values are left out and counted, infinite ones stay infinite.
- Summaries are NumPy's, and the best mean is found on the metric's better side, infinities last.
- What stands there twice is refused.
"""

import numpy as np
import pandas as pd
import pytest

from curvas_assets.errors import StatisticsError
from curvas_assets.statistics import best_predictors, reduce_scores, summarise

COLUMNS = ["patient", "predictor", "family", "group", "metric", "organ", "annotator", "value", "unit"]


def rows(*parts: tuple[str, str, float], metric: str = "hd95") -> pd.DataFrame:
    return pd.DataFrame(
        [
            ("p1", "ensemble_all", "general", "A", metric, organ, annotator, value, "mm")
            for organ, annotator, value in parts
        ],
        columns=COLUMNS,
    )


@pytest.mark.parametrize(
    ("parts", "value", "n_values", "n_nan"),
    [
        ([("", "", 0.5)], 0.5, 1, 0),
        ([("a", "", 0.25), ("b", "", 0.75)], 0.5, 2, 0),
        ([("", "1", 1.0), ("", "2", 2.0), ("", "mean", 7.0)], 7.0, 1, 0),
        # Organ a: mean of 1 and 3; organ b: its own mean row. Then their mean.
        ([("a", "1", 1.0), ("a", "2", 3.0), ("b", "1", 1.0), ("b", "mean", 6.0)], 4.0, 3, 0),
        # Annotators first: organ a is 1 from one annotator, organ b 4 from two.
        ([("a", "1", 1.0), ("a", "2", np.nan), ("b", "1", 3.0), ("b", "2", 5.0)], 2.5, 3, 1),
        ([("a", "", 0.2), ("mean", "", 0.9)], 0.9, 1, 0),
        ([("a", "", np.nan), ("b", "", np.nan)], np.nan, 0, 2),
        ([("a", "1", np.inf), ("a", "2", 1.0), ("b", "1", 2.0), ("b", "2", 1.0)], np.inf, 4, 0),
    ],
)
def test_one_value_by_hand(parts, value, n_values, n_nan):
    reduced = reduce_scores(rows(*parts))
    assert len(reduced) == 1
    np.testing.assert_equal(reduced["value"][0], value)
    assert (reduced["n_values"][0], reduced["n_nan"][0]) == (n_values, n_nan)
    assert reduced.loc[0, ["family", "group", "unit"]].tolist() == ["general", "A", "mm"]


def test_missing_organ_and_annotator_mean_the_whole():
    table = rows(("", "", 0.5)).drop(columns=["organ", "annotator", "group", "unit"])
    assert reduce_scores(table)["value"].tolist() == [0.5]
    assert reduce_scores(rows((None, None, 0.5)))["value"].tolist() == [0.5]


def test_the_input_is_not_changed():
    table = rows(("a", "1", 1.0), ("b", "1", np.nan))
    before = table.copy()
    reduce_scores(table)
    pd.testing.assert_frame_equal(table, before)


def test_what_stands_there_twice_is_refused_by_name():
    with pytest.raises(StatisticsError, match="p1, ensemble_all"):
        reduce_scores(rows(("a", "1", 1.0), ("a", "1", 2.0)))


def test_summaries_are_numpys_with_the_gaps_counted():
    values = np.array([1.0, 4.0, 2.0, np.nan, 8.0])
    table = pd.DataFrame(
        {"patient": [f"p{i}" for i in range(5)], "predictor": "m", "family": "general", "metric": "x", "value": values}
    )
    row = summarise(table).iloc[0]
    defined = values[~np.isnan(values)]
    assert (row["n"], row["n_nan"], row["n_infinite"], row["n_patients"]) == (4, 1, 0, 4)
    assert row["mean"] == defined.mean()
    assert row["sd"] == defined.std(ddof=1)
    np.testing.assert_array_equal(row[["q1", "median", "q3"]].astype(float), np.quantile(defined, [0.25, 0.5, 0.75]))


def test_infinite_values_leave_the_mean_but_not_the_median():
    table = pd.DataFrame(
        {"patient": list("abcd"), "predictor": "m", "metric": "hd95", "value": [1.0, 3.0, np.inf, np.inf]}
    )
    row = summarise(table).iloc[0]
    assert (row["mean"], row["n_infinite"], row["median"], row["maximum"]) == (2.0, 2, np.inf, np.inf)


def test_a_metric_that_is_all_undefined_has_a_row_of_gaps():
    row = summarise(pd.DataFrame({"patient": ["a", "b"], "predictor": "m", "metric": "x", "value": np.nan})).iloc[0]
    assert (row["n"], row["n_nan"]) == (0, 2)
    assert np.isnan(row["mean"])


def test_the_best_is_on_the_better_side_with_infinities_last_and_ties_shared():
    table = pd.DataFrame(
        [
            ("p", predictor, metric, value)
            for metric, values in {"dice": [0.9, 0.9, 0.8], "hd95": [2.0, 3.0, 1.0], "entropy": [1, 2, 3]}.items()
            for predictor, value in zip("abc", values, strict=True)
        ]
        + [("q", "c", "hd95", np.inf), ("q", "a", "hd95", 2.0), ("q", "b", "hd95", 3.0)],
        columns=["patient", "predictor", "metric", "value"],
    )
    best = best_predictors(summarise(table), {"dice": "higher", "hd95": "lower"})
    chosen = best[best["best"]]
    assert set(zip(chosen["metric"], chosen["predictor"], strict=True)) == {("dice", "a"), ("dice", "b"), ("hd95", "a")}
