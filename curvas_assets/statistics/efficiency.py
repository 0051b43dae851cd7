"""How much less uncertain a predictor is than the individual models, and for how many hours of computation.

Belongs here: the reduction of one measure, and its ratio to hours. Does not belong here: whether a reduction is more than
chance (`families`), which hours a predictor needs (`curvas_assets.stages.needs`).
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from curvas_assets.statistics.reduction import reduced_scores
from curvas_assets.study import Statistics

ACCURACY = "accuracy"
"""The question of `statistics.primary` that is not about uncertainty."""
SINGLE = "individual"
"""The family whose mean is what a reduction is taken from."""
COLUMNS = ("predictor", "family", "metric", "n_patients", "single", "value", "reduction")
HOURS = ("gpu_hours", "cpu_hours", "hours", "device")


def measure_of_reduction(statistics: Statistics, directions: Mapping[str, str]) -> str | None:
    """The primary metric whose reduction is set against hours: that of calibration, or else the first of uncertainty of which
    less is better. None where the study has none.
    """
    asked = {question: metric for question, metric in statistics.primary.items() if question != ACCURACY}
    ordered = [*([asked["calibration"]] if "calibration" in asked else []), *asked.values()]
    return next((metric for metric in ordered if directions.get(metric) == "lower"), None)


def reductions(scores: pd.DataFrame, metric: str) -> pd.DataFrame:
    """By what share a metric is lower with each predictor than with the individual models, on the same patients.

    Args:
        scores: long table, or its result from `reduce_scores`.
        metric: of which less is better.

    Returns:
        One row per predictor that has the metric: `predictor`, `family`, `metric`, `n_patients` (with a finite value of the
        predictor and of an individual model), `single` (mean over these patients of the individual models' mean), `value`
        (the predictor's mean) and `reduction`, 1 − value / single: 0.1 is a tenth less, a negative one is more. NaN where
        there is no such patient, or the individual models' mean is 0.
    """
    reduced = reduced_scores(scores)
    own = reduced[(reduced["metric"] == metric) & np.isfinite(reduced["value"].astype(float))]
    single = own[own["family"] == SINGLE].groupby("patient")["value"].mean()
    rows = []
    for (predictor, family), part in own.groupby(["predictor", "family"], sort=False):
        values = part.set_index("patient")["value"]
        shared = values.index.intersection(single.index)
        before, after = float(single[shared].mean()), float(values[shared].mean())
        reduction = 1 - after / before if len(shared) and before > 0 else float("nan")
        rows.append((str(predictor), str(family), metric, len(shared), before, after, reduction))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def network_hours(costs: pd.DataFrame) -> pd.DataFrame:
    """Each predictor's hours of networks, training and inference together, by predictor.

    Args:
        costs: as `curvas_assets.stages.needs.predictor_cost` gives them.

    Returns:
        Indexed by predictor: `gpu_hours`, `cpu_hours`; `device`, `GPU` or `CPU`, empty where both computed or nothing did;
        and `hours`, those of that device. NaN where artefacts have no record of work (the sum would be too small), or
        where hours of different devices would be added.
    """
    known = costs["unrecorded"] == 0
    gpu = costs["training_gpu_hours"] + costs["inference_gpu_hours"]
    cpu = costs["training_cpu_hours"] + costs["inference_cpu_hours"]
    device = np.select([(gpu > 0) & (cpu == 0), (cpu > 0) & (gpu == 0)], ["GPU", "CPU"], "")
    table = pd.DataFrame({"gpu_hours": gpu, "cpu_hours": cpu, "device": device}).assign(
        hours=(gpu + cpu).where(known & (device != ""))
    )
    return table[list(HOURS)].set_index(costs["predictor"].astype(str))


def reduction_per_hour(reduced: pd.DataFrame, hours: pd.DataFrame) -> pd.DataFrame:
    """Reductions with the `hours` and the `device` of each predictor, and `per_hour`, the reduction that an hour brings.

    The hours are all that the predictor needs, from nothing: an ensemble's are those of all its members. NaN where they are
    0 or not known.

    Args:
        reduced: from `reductions`.
        hours: from `network_hours`.
    """
    joined = reduced.join(hours[["hours", "device"]], on="predictor")
    positive = joined["hours"].where(joined["hours"] > 0)
    return joined.assign(per_hour=joined["reduction"] / positive, device=joined["device"].fillna(""))
