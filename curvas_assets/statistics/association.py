"""How two scores go together, and how far the annotators agree among themselves.

Belongs here: association of accuracy with uncertainty, agreement of annotators. Does not belong here: tests between
families (`families`). The arithmetic is SciPy's and scikit-learn's.
"""

from math import factorial

import numpy as np
import pandas as pd
import scipy

from curvas_assets.errors import StatisticsError
from curvas_assets.statistics.families import FEWEST
from curvas_assets.statistics.reduction import reduced_scores, require_table, summarise

ASSOCIATION_COLUMNS = (
    "family",
    "n",
    "n_nan",
    "pearson",
    "p_pearson",
    "spearman",
    "p_spearman",
    "mutual_information",
    "r2",
    "slope",
    "intercept",
    "note",
)
NEIGHBOURS = 3
"""Of the nearest-neighbour estimate of mutual information (Kraskov et al. 2004); scikit-learn's default."""


def paired_scores(scores: pd.DataFrame, x_metric: str, y_metric: str) -> pd.DataFrame:
    """Two metrics side by side, one row per patient and predictor: `patient`, `predictor`, `family`, `x`, `y`.

    Raises:
        StatisticsError: a metric is not in the table.
    """
    reduced = reduced_scores(scores)
    sides = []
    for metric, name in ((x_metric, "x"), (y_metric, "y")):
        part = reduced.loc[reduced["metric"] == metric, ["patient", "predictor", "family", "value"]]
        if part.empty:
            raise StatisticsError(
                "pairing two metrics",
                metric,
                "no score of this metric is in the table",
                f"Use two of {sorted(map(str, reduced['metric'].unique()))}.",
            )
        sides.append(part.rename(columns={"value": name}))
    return sides[0].merge(sides[1], on=["patient", "predictor", "family"], how="inner")


def dice_against_entropy(
    scores: pd.DataFrame,
    *,
    dice_metric: str = "dice",
    entropy_metric: str = "predictive_entropy",
    seed: int = 20250515,
) -> pd.DataFrame:
    """Are patients on which the predictors are less certain segmented worse? Mean Dice against predictive entropy.

    Each patient counts once, with the means over its predictors. The predictors of a patient are not independent
    patients. If they are taken as such, 13 predictors of 20 patients show an association that does not exist in more
    than half of the studies, because all of them share the patient's own difficulty.

    Args:
        scores: long or reduced scores with both metrics.
        dice_metric: the accuracy, on the vertical side.
        entropy_metric: the uncertainty, on the horizontal side.
        seed: of the mutual information estimate's tie-breaking noise.

    Returns:
        One row over all predictors (`family` = "all") and one per family: `n` patients, `n_nan` pairs of values (patient and
        predictor) left out of the patients' means because one of the two is undefined, `pearson`, `p_pearson`, `spearman`,
        `p_spearman` (two-sided; none below 6 patients), `mutual_information` (nats, nearest neighbours), `r2` of the
        least-squares line of Dice on entropy (so 0 … 1; the study's −4.2 cannot come from a fit), its `slope` and
        `intercept`, and a `note` where a figure is NaN.

    Raises:
        StatisticsError: a metric is not in the table.
    """
    pairs = paired_scores(scores, entropy_metric, dice_metric)
    rows = [_association(pairs, "all", seed)]
    for family in ("general", "annotator", "individual"):
        part = pairs[pairs["family"] == family]
        if len(part):
            rows.append(_association(part, family, seed))
    return pd.DataFrame(rows, columns=list(ASSOCIATION_COLUMNS))


def judges_annotators(metric: str) -> bool:
    """Whether a metric is about the annotators alone, whatever the predictor."""
    return metric.startswith("agreement") or metric == "ncc_annotators"


def annotator_agreement(scores: pd.DataFrame, metrics: tuple[str, ...] | None = None) -> pd.DataFrame:
    """How far the annotators agree, per organ, over patients.

    Agreement does not depend on the predictor: each patient counts once, however many predictors were scored.

    Args:
        scores: long scores.
        metrics: the agreement metrics; those that judge the annotators alone when left out.

    Returns:
        As `summarise` by `organ`; no row when there is no such metric.
    """
    require_table(scores)
    wanted = metrics or tuple(m for m in map(str, scores["metric"].unique()) if judges_annotators(m))
    part = scores[scores["metric"].isin(wanted)].copy()
    part["organ"] = part["organ"].fillna("").astype(str) if "organ" in part else ""
    once = part.drop_duplicates(["patient", "metric", "organ", *(["annotator"] if "annotator" in part else [])])
    once = once.groupby(["patient", "metric", "organ"], sort=False, as_index=False).agg(
        value=("value", "mean"), unit=("unit", "first") if "unit" in once else ("metric", lambda _: "")
    )
    return summarise(once.assign(predictor="annotators", n_values=1, n_nan=0), by=("organ",))


def _association(pairs: pd.DataFrame, family: str, seed: int) -> dict[str, object]:
    defined = pairs[np.isfinite(pairs["x"]) & np.isfinite(pairs["y"])]
    means = defined.groupby("patient", sort=True)[["x", "y"]].mean()
    x, y = means["x"].to_numpy(float), means["y"].to_numpy(float)
    row: dict[str, object] = dict.fromkeys(ASSOCIATION_COLUMNS, np.nan)
    row |= {"family": family, "n": x.size, "n_nan": len(pairs) - len(defined), "note": ""}
    if x.size < 3:
        return row | {"note": "fewer than three patients"}
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return row | {"note": "one of the two is constant"}
    from sklearn.feature_selection import mutual_info_regression

    pearson, spearman, line = scipy.stats.pearsonr(x, y), scipy.stats.spearmanr(x, y), scipy.stats.linregress(x, y)
    row |= {
        "pearson": float(pearson.statistic),
        "spearman": float(spearman.statistic),
        "r2": float(line.rvalue**2),
        "slope": float(line.slope),
        "intercept": float(line.intercept),
    }
    if x.size > NEIGHBOURS:
        information = mutual_info_regression(x[:, None], y, n_neighbors=NEIGHBOURS, random_state=seed)
        row["mutual_information"] = float(information[0])
    if x.size < FEWEST:
        too_few = "no p" if x.size > NEIGHBOURS else "no p, no mutual information"
        return row | {"note": f"fewer than {FEWEST} patients: {too_few}"}
    # SciPy's p of Spearman is asymptotic: 0 for a perfect order, although two of the n! orders are as extreme.
    return row | {"p_pearson": float(pearson.pvalue), "p_spearman": max(float(spearman.pvalue), 2 / factorial(x.size))}
