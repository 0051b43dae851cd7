"""The study's wide table: one row per patient and predictor, with the column names the study published.

`Patient_ID`, `CT` (the predictor), then per metric and organ `DICE_panc`, `CONF_kidn`, `CRPS_livr` … (organs by their
abbreviation, or by their names where two share it), per metric and annotator `ECE_1` … `ECE_mean`, and `ENTROPY_mean`, `NCC_mean`.
"""

from collections import Counter
from collections.abc import Iterable

import pandas as pd

ABBREVIATIONS = {"pancreas": "panc", "kidney": "kidn", "liver": "livr"}
NAMES = {
    "dice": "DICE",
    "confidence": "CONF",
    "ece": "ECE",
    "ace": "ACE",
    "crps": "CRPS",
    "auroc": "AUROC",
    "aurc": "AURC",
    "eaurc": "EAURC",
    "predictive_entropy": "ENTROPY",
    "ncc": "NCC",
}
"""Metric → the study's name. Metrics that the study did not have are not in its table."""


def abbreviation(organ: str) -> str:
    """The study's four letters of an organ; of an organ it did not have, the first four."""
    return ABBREVIATIONS.get(organ, organ[:4])


def column_names(organs: Iterable[str]) -> dict[str, str]:
    """Organ → its part of a column's name: the abbreviation, or the whole name where several would share it.

    >>> column_names(["liver", "kidney-left", "kidney-right"])
    {'liver': 'livr', 'kidney-left': 'kidney-left', 'kidney-right': 'kidney-right'}
    """
    short = {organ: abbreviation(organ) if organ else "" for organ in organs}
    shared = Counter(short.values())
    return {organ: organ if shared[name] > 1 else name for organ, name in short.items()}


def study_columns(scores: pd.DataFrame) -> pd.DataFrame:
    """Long scores as the study's wide table.

    Args:
        scores: patient, predictor, metric, organ, annotator, value.
    """
    known = scores[scores["metric"].isin(NAMES)]
    short = column_names(map(str, known["organ"].unique()))
    suffix = known["organ"].map(short)
    annotator = known["annotator"].where(known["annotator"] != "", "")
    # Per organ and annotator, the study has the organ's mean; per image, one value called mean.
    keep = (suffix == "") | annotator.isin(["", "mean"])
    suffix = suffix.where(suffix != "", annotator.where(annotator != "", "mean"))
    column = known["metric"].map(NAMES) + "_" + suffix
    wide = (
        known.assign(column=column)[keep]
        .pivot_table(index=["patient", "predictor"], columns="column", values="value", sort=False, dropna=False)
        .reset_index()
        .rename(columns={"patient": "Patient_ID", "predictor": "CT"})
    )
    wide.columns.name = None
    return wide
