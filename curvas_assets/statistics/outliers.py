"""Patients who stand out: outliers of a predictor among its patients, and the worst of them.

Belongs here: which values stand out, by a rule that is the same for each metric. Does not belong here: why (the report reads
reasons from scores and annotations), tests.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from curvas_assets.statistics.reduction import reduced_scores

FEWEST_FOR_OUTLIERS = 8
"""Patients below whom quartiles say too little for anybody to be called an outlier."""
WHISKER = 1.5
"""Tukey's: quartile ranges beyond the nearer quartile."""
COLUMNS = ("patient", "predictor", "family", "group", "metric", "value", "median", "fence", "n_patients")


def find_outliers(scores: pd.DataFrame, metrics: Sequence[str], directions: Mapping[str, str]) -> pd.DataFrame:
    """Values that are far worse than the same predictor's on other patients.

    A value is an outlier if it lies more than 1.5 quartile ranges beyond the quartile on the metric's worse side (Tukey's
    rule), or is infinitely bad. Each predictor is judged on its own patients, so that a model that is bad everywhere has
    none. Of a normal distribution 0.35 % of the values lie beyond one such limit, so that a few among hundreds mean nothing.

    Args:
        scores: long table, or its result from `reduce_scores`.
        metrics: which.
        directions: metric → `higher` or `lower`; a metric without one has no outliers.

    Returns:
        One row per outlier, the worst of each metric first: `patient`, `predictor`, `family`, `group`, `metric`, `value`,
        `median` and `fence` of this predictor and metric, and `n_patients` with a defined value. No row of a predictor with
        fewer than 8 such patients.

    References:
        Tukey 1977, Exploratory Data Analysis.
    """
    reduced = reduced_scores(scores)
    parts = []
    for metric in metrics:
        sign = {"higher": 1.0, "lower": -1.0}.get(directions.get(metric, ""))
        if sign is None:
            continue
        own = reduced[(reduced["metric"] == metric) & reduced["value"].notna()]
        found = []
        for _, part in own.groupby("predictor", sort=False):
            values = part["value"].to_numpy(float)
            finite = values[np.isfinite(values)]
            if values.size < FEWEST_FOR_OUTLIERS or not finite.size:
                continue
            good = sign * finite  # higher is better
            q1, middle, q3 = np.quantile(good, [0.25, 0.5, 0.75])
            fence = q1 - WHISKER * (q3 - q1)
            hit = part[sign * values < fence - 1e-12 * max(1.0, abs(fence))]
            found.append(hit.assign(median=sign * middle, fence=sign * fence, n_patients=values.size))
        if found:
            worst = pd.concat(found, ignore_index=True).sort_values("value", ascending=sign > 0, kind="stable")
            parts.append(worst[list(COLUMNS)])
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(COLUMNS))


def worst_of(scores: pd.DataFrame, predictor: str, metric: str, direction: str) -> pd.Series | None:
    """A predictor's worst patient in a metric: `patient`, `group`, `value`, `median`, `n_patients`; None without a value."""
    reduced = reduced_scores(scores)
    own = reduced[(reduced["predictor"] == predictor) & (reduced["metric"] == metric) & reduced["value"].notna()]
    if own.empty or direction not in ("higher", "lower"):
        return None
    ordered = own.sort_values(["value", "patient"], ascending=[direction == "higher", True], kind="stable")
    worst = ordered.iloc[0][["patient", "group", "value"]].to_dict()
    return pd.Series(worst | {"median": float(own["value"].median()), "n_patients": len(own)})
