"""Claims proved here.

- Outliers are those of Tukey's rule on the metric's worse side, by hand and as matplotlib's box plot finds them.
- Each predictor is judged on its own patients; fewer than eight have none; undefined values do not count, infinite ones do.
- The rule does not change when a metric is turned round or scaled, nor with the order of rows; inputs stay as they are.
- The worst patient is the worst by the metric's better side; ties go to the first name.
- Reductions are shares of the individual models' mean on the same patients; hours that are unknown, none, or of two devices give
  no ratio.
"""

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from matplotlib.cbook import boxplot_stats

from curvas_assets.statistics.efficiency import (
    measure_of_reduction,
    network_hours,
    reduction_per_hour,
    reductions,
)
from curvas_assets.statistics.outliers import find_outliers, worst_of
from curvas_assets.study import Statistics


def table(values, *, predictor: str = "m", family: str = "individual", metric: str = "dice") -> pd.DataFrame:
    return pd.DataFrame(
        {
            "patient": [f"p{index:02d}" for index in range(len(values))],
            "predictor": predictor,
            "family": family,
            "group": "",
            "metric": metric,
            "value": np.asarray(values, float),
        }
    )


def found(values, side: str = "higher") -> list[str]:
    return find_outliers(table(values), ["dice"], {"dice": side})["patient"].tolist()


def test_an_outlier_by_hand():
    # Quartiles 11 and 15, so that the limit is 11 − 1.5 × 4 = 5.
    values = [0, 10, 11, 12, 13, 14, 15, 16, 17]
    table_of = find_outliers(table(values), ["dice"], {"dice": "higher"})
    assert table_of["patient"].tolist() == ["p00"]
    row = table_of.iloc[0]
    assert (row["median"], row["n_patients"]) == (13, 9)
    assert row["fence"] == pytest.approx(11 - 1.5 * (15 - 11))
    assert found(values, "lower") == []
    assert found([-v for v in values], "lower") == ["p00"]


VALUES = st.lists(st.floats(-100, 100).map(lambda x: round(x, 3)), min_size=8, max_size=40)


@given(VALUES, st.booleans())
def test_outliers_are_those_of_a_box_plot(values, is_higher):
    stats = boxplot_stats(np.array(values), whis=1.5)[0]
    low, high = stats["q1"] - 1.5 * stats["iqr"], stats["q3"] + 1.5 * stats["iqr"]
    assume(min(abs(np.array(values) - low).min(), abs(np.array(values) - high).min()) > 1e-9)
    expected = {f"p{i:02d}" for i, v in enumerate(values) if (v < low if is_higher else v > high)}
    assert set(found(values, "higher" if is_higher else "lower")) == expected


@given(VALUES, st.floats(0.5, 8), st.randoms(use_true_random=False))
def test_scale_side_and_order_change_nothing(values, scale, random):
    assume(np.ptp(values) > 1e-3)
    whole = table(values)
    before = whole.copy()
    outliers = find_outliers(whole, ["dice"], {"dice": "higher"})
    expected = set(outliers["patient"])
    pd.testing.assert_frame_equal(whole, before)
    order = list(range(len(values)))
    random.shuffle(order)
    assert set(find_outliers(whole.iloc[order], ["dice"], {"dice": "higher"})["patient"]) == expected
    turned = whole.assign(value=-scale * whole["value"])
    near = whole["value"] - outliers["fence"].max()
    assume(not (near.abs() < 1e-6).any())
    assert set(find_outliers(turned, ["dice"], {"dice": "lower"})["patient"]) == expected


def test_few_undefined_and_infinite_values():
    assert found([0, *range(10, 16)]) == []  # seven patients
    assert found([0, *range(10, 16), np.nan]) == []  # seven defined ones
    assert found([-np.inf, *range(10, 18)]) == ["p00"]
    assert found([np.inf, *range(10, 18)], "lower") == ["p00"]
    assert found([np.nan] * 9) == []
    assert found([0.5] * 9) == []
    assert find_outliers(table(range(9)), ["dice"], {"dice": ""}).empty


def test_each_predictor_is_judged_on_its_own_patients():
    bad = table([0.1] * 9, predictor="bad everywhere")
    fair = table([0.1, *np.linspace(0.8, 0.9, 8)], predictor="fails once")
    outliers = find_outliers(pd.concat([bad, fair]), ["dice"], {"dice": "higher"})
    assert list(zip(outliers["patient"], outliers["predictor"], strict=True)) == [("p00", "fails once")]


def test_the_worst_patient():
    scores = table([0.5, 0.9, 0.5, np.nan])
    low, high = worst_of(scores, "m", "dice", "higher"), worst_of(scores, "m", "dice", "lower")
    assert low is not None
    assert high is not None
    assert (low["patient"], low["value"], low["median"], low["n_patients"]) == ("p00", 0.5, 0.5, 3)
    assert high["patient"] == "p01"
    assert worst_of(scores, "other", "dice", "higher") is None
    assert worst_of(scores, "m", "dice", "") is None
    assert worst_of(table([np.nan]), "m", "dice", "higher") is None


def test_reductions_are_shares_on_the_same_patients():
    one = table([0.4, 0.2, np.nan], predictor="a", metric="ece")
    two = table([0.2, np.nan, 0.8], predictor="b", metric="ece")
    mean = table([0.1, 0.1, np.inf], predictor="ensemble_all", family="general", metric="ece")
    found = reductions(pd.concat([one, two, mean]), "ece").set_index("predictor")
    # The models' means are 0.3 and 0.2 on the two patients on whom the ensemble has a finite value.
    assert found.loc["ensemble_all", "n_patients"] == 2
    assert found.loc["ensemble_all", "reduction"] == pytest.approx(1 - 0.1 / 0.25)
    assert found.loc["a", "reduction"] == pytest.approx(1 - 0.3 / 0.25)
    assert np.isnan(reductions(mean, "ece")["reduction"]).all()
    zero = pd.concat([table([0.0], predictor="a", metric="ece"), mean.head(1)])
    assert np.isnan(reductions(zero, "ece")["reduction"]).all()


def test_an_hour_is_of_one_device_and_known():
    names = ["gpu", "cpu", "both", "unknown", "nothing"]
    hours = {
        "training_gpu_hours": [8, 0, 1, 8, 0],
        "training_cpu_hours": [0, 1, 0, 0, 0],
        "inference_gpu_hours": [2, 0, 0, 2, 0],
        "inference_cpu_hours": [0, 1, 1, 0, 0],
        "unrecorded": [0, 0, 0, 1, 0],
    }
    table_of = network_hours(pd.DataFrame({"predictor": names, **hours}))
    assert table_of["hours"].isna().tolist() == [False, False, True, True, True]
    assert table_of.loc[["gpu", "cpu"], "hours"].tolist() == [10, 2]
    assert table_of.loc[["gpu", "cpu", "both"], "device"].tolist() == ["GPU", "CPU", ""]
    reduced = pd.DataFrame({"predictor": [*names, "not costed"], "reduction": 0.5})
    per_hour = reduction_per_hour(reduced, table_of)["per_hour"]
    assert per_hour.tolist()[:2] == [0.05, 0.25]
    assert per_hour.isna().tolist() == [False, False, True, True, True, True]


def test_the_measure_is_that_of_calibration_or_the_first_of_which_less_is_better():
    sides = {"dice": "higher", "ece": "lower", "ncc": "higher", "aurc": "lower", "hd95": "lower"}
    assert measure_of_reduction(Statistics(), sides) == "ece"
    other = {"accuracy": "hd95", "calibration": "ncc", "failure": "aurc"}
    assert measure_of_reduction(Statistics(primary=other), sides) == "aurc"
    assert measure_of_reduction(Statistics(primary={"accuracy": "hd95"}), sides) is None
