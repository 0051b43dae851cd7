"""What a table of scores must obey before anybody uses it."""

from collections.abc import Mapping, Sequence

import pandas as pd

from curvas_assets.scoring.registry import METRICS, Metric, metrics_of

ROUNDING = 1e-9


def check_scores(
    table: pd.DataFrame, predictors: Sequence[str] | None = None, *, metrics: Mapping[str, Metric] | None = None
) -> list[str]:
    """What is wrong with a table of scores, a sentence each; empty if nothing is.

    Args:
        table: metric, organ, annotator, value, note, and predictor if predictors are to be checked.
        predictors: all that must be there.
        metrics: those that the study has; left out, those that every study has.
    """
    problems: list[str] = []
    expected = metrics_of() if metrics is None else metrics
    for metric, part in table.groupby("metric", sort=False):
        known = METRICS.get(str(metric))
        if known is None:
            problems.append(f"{metric} is no registered metric")
            continue
        values = part["value"]
        outside = part[(values < known.low - ROUNDING) | (values > known.high + ROUNDING)]
        if len(outside):
            problems.append(
                f"{metric}: {len(outside)} values outside {known.low:g} … {known.high:g}, e.g. {outside['value'].iloc[0]:g}"
            )
        silent = part[values.isna() & (part["note"] == "")]
        if len(silent):
            problems.append(f"{metric}: {len(silent)} undefined values without a reason")
    missing = sorted({m.name for m in expected.values() if not m.of_ensembles} - set(table["metric"]))
    if missing:
        problems.append(f"no value at all of {', '.join(missing)}")
    if predictors is not None:
        absent = [p for p in predictors if p not in set(table["predictor"])]
        if absent:
            problems.append(f"no scores of {', '.join(absent)}")
    return problems
