"""Does a predictor's uncertainty tell which patients it segments badly, and which come from elsewhere?

Belongs here: failure and out-of-distribution detection with the patient as the unit (`scoring/definitions.md`, "Over
patients"). Does not belong here: the same over voxels, which `curvas_assets.scoring` counts.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from curvas_assets.statistics.association import paired_scores
from curvas_assets.statistics.reduction import checked_scores, reduced_scores

FAILURE_COLUMNS = ("predictor", "family", "n", "n_nan", "aurc", "eaurc", "augrc", "note")
DISTRIBUTION_COLUMNS = ("predictor", "family", "against", "n_in", "n_out", "n_nan", "auroc", "note")


def failure_over_patients(
    scores: pd.DataFrame, *, accuracy: str = "dice", uncertainty: str = "predictive_entropy"
) -> pd.DataFrame:
    """Risk–coverage over patients: risk = 1 − accuracy, the most certain patients kept first.

    Args:
        scores: long or reduced scores.
        accuracy: a metric of which 1 is perfect; averaged over organs.
        uncertainty: an aggregated uncertainty, high where the predictor is uncertain.

    Returns:
        One row per predictor: `predictor`, `family`, `n` patients, `n_nan` left out, `aurc`, `eaurc`, `augrc` (lower is
        better), `note`.

    Raises:
        StatisticsError: a metric is not in the table.

    References:
        Jaeger et al. 2023, arXiv:2211.15259; Traub et al. 2024, arXiv:2407.01032 (AUGRC).
    """
    rows = []
    for (predictor, family), part in paired_scores(scores, uncertainty, accuracy).groupby(
        ["predictor", "family"], sort=False
    ):
        defined = part[np.isfinite(part["x"]) & np.isfinite(part["y"])]
        row = {"predictor": predictor, "family": family, "n": len(defined), "n_nan": len(part) - len(defined)}
        if defined.empty:
            rows.append(row | dict.fromkeys(("aurc", "eaurc", "augrc"), np.nan) | {"note": "no patient with both"})
            continue
        area, excess, generalised = risk_coverage_areas(1 - defined["y"].to_numpy(float), -defined["x"].to_numpy(float))
        rows.append(row | {"aurc": area, "eaurc": excess, "augrc": generalised, "note": ""})
    return pd.DataFrame(rows, columns=list(FAILURE_COLUMNS))


def risk_coverage_areas(
    risk: npt.NDArray[np.float64], confidence: npt.NDArray[np.float64]
) -> tuple[float, float, float]:
    """AURC, E-AURC and AUGRC of any risks, ranked by confidence.

    One point per distinct confidence t, over {confidence ≥ t}; trapezoids in coverage, the risk flat down to coverage 0
    and the generalised risk 0 there. E-AURC subtracts the area of the perfect ranking integrated by the same rule: the
    smallest risks first, each patient a point of its own.

    Patients of equal confidence are one point. The chord over them can lie below the perfect curve, whose mean risk
    rises ever more slowly while the risks are equal: for the risks 0, 1, 1 with the two failures tied, the AURC is
    0.22, that of the perfect ranking 0.28. So E-AURC is cut off at 0, for voxels as for patients: it is never negative,
    and it is 0 for every perfect ranking, tied or not. Ties can hide a part of a small excess; over patients they
    hardly occur.

    Args:
        risk: (patients,) what goes wrong, 0 or more.
        confidence: (patients,) high where the patient is kept first.

    >>> risk_coverage_areas(np.array([0.0, 1.0]), np.array([2.0, 1.0]))
    (0.125, 0.0, 0.125)
    """
    area, general_area = _areas(risk, confidence)
    perfect, _ = _areas(np.sort(risk), -np.arange(risk.size, dtype=float))
    excess = area - perfect
    return area, excess if excess > 1e-12 * area else 0.0, general_area


def _areas(risk: npt.NDArray[np.float64], confidence: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Areas under the risk–coverage and the generalised risk–coverage curve."""
    order = np.argsort(-confidence, kind="stable")
    ranked, certainty = risk[order], confidence[order]
    last = np.append(certainty[1:] != certainty[:-1], True)  # of each group of equal confidence
    kept = np.arange(1, risk.size + 1)[last]
    coverage = kept / risk.size
    selective = np.cumsum(ranked)[last] / kept
    generalised = selective * coverage
    steps = np.diff(coverage, prepend=0.0)
    area = float(steps @ (selective + np.concatenate([selective[:1], selective[:-1]])) / 2)
    general_area = float(steps @ (generalised + np.concatenate([[0.0], generalised[:-1]])) / 2)
    return area, general_area


def out_of_distribution(
    scores: pd.DataFrame, in_distribution: str | None, *, uncertainty: str = "predictive_entropy"
) -> pd.DataFrame:
    """Is uncertainty higher on patients of groups that the models were not trained on?

    Args:
        scores: long scores with `group`.
        in_distribution: the group the models were trained on; None when the study does not name it.
        uncertainty: an aggregated uncertainty.

    Returns:
        One row per predictor and other group, and one against all others together (`against` = "all others"): patients
        `n_in`, `n_out`, `n_nan` left out, `auroc` of the uncertainty (0.5 is chance), `note` where it is NaN.

    Raises:
        StatisticsError: a column is missing.
    """
    from sklearn.metrics import roc_auc_score

    table = checked_scores(scores, ("patient", "predictor", "metric", "value"))
    reduced = reduced_scores(table)
    part = reduced[reduced["metric"] == uncertainty]
    known = part[part["group"] != ""] if "group" in part else part.iloc[:0]
    others = sorted(set(known["group"]) - {in_distribution})
    rows = []
    for (predictor, family), own in known.groupby(["predictor", "family"], sort=False):
        defined = own[np.isfinite(own["value"])]
        for against, groups in _sides(others):
            inside = defined.loc[defined["group"] == in_distribution, "value"].to_numpy(float)
            outside = defined.loc[defined["group"].isin(groups), "value"].to_numpy(float)
            row = {"predictor": predictor, "family": family, "against": against, "n_nan": len(own) - len(defined)}
            row |= {"n_in": inside.size, "n_out": outside.size, "auroc": np.nan, "note": "no patient on one side"}
            if inside.size and outside.size:
                labels = np.repeat([0, 1], [inside.size, outside.size])
                row |= {"auroc": float(roc_auc_score(labels, np.concatenate([inside, outside]))), "note": ""}
            rows.append(row)
    return pd.DataFrame(rows, columns=list(DISTRIBUTION_COLUMNS))


def _sides(others: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Each other group alone, and all of them when there are several."""
    alone = [(group, [group]) for group in others]
    return [*alone, ("all others", list(others))] if len(others) > 1 else alone
