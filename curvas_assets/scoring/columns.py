"""The study's wide table: one row per patient and predictor, with the column names the study published.

`Patient_ID`, `CT` (the predictor), then per metric and organ `DICE_panc`, `CONF_kidn`, `CRPS_livr` … (organs by their
abbreviation, or by their names where two share it), per metric and annotator `ECE_1` … `ECE_mean`, and `ENTROPY_mean`, `NCC_mean`.
The study's annotators, `anno1`, `anno2` …, have their numbers there, all others their names: `ECE_boris`.
Where Dice and confidence compare with another reference than the consensus, their columns say so: `DICE_majority_panc`.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable

import pandas as pd

from curvas_assets.errors import ScoringError

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
MEAN = "mean"
"""Part of the column of a value that is of no organ, or of all annotators."""
OF_CONSENSUS = ("dice", "confidence")
"""Metrics that the study takes against the consensus, and this run against `evaluation.reference`."""


def abbreviation(organ: str) -> str:
    """The study's four-letter abbreviation of an organ; for an organ it did not have, the first four letters, or the whole name if
    these are `mean`, which is an image's.
    """
    return ABBREVIATIONS.get(organ, organ if organ[:4] == MEAN else organ[:4])


def number(annotator: str) -> str:
    """What the study's table calls its annotators `anno1`, `anno2` …: `1`, `2` …; any other name is kept."""
    return annotator.removeprefix("anno") if re.fullmatch("anno[0-9]+", annotator) else annotator


def column_names(names: Iterable[str], short: Callable[[str], str] = abbreviation) -> dict[str, str]:
    """Organ or annotator → its part of a column's name: the short form, or the whole name where several would share it.

    >>> column_names(["liver", "kidney-left", "kidney-right"])
    {'liver': 'livr', 'kidney-left': 'kidney-left', 'kidney-right': 'kidney-right'}
    >>> column_names(["anno1", "boris", "mean"], number)
    {'anno1': '1', 'boris': 'boris', 'mean': 'mean'}
    """
    shortened = {name: short(name) if name else "" for name in names}
    shared = Counter(shortened.values())
    return {name: name if shared[part] > 1 else part for name, part in shortened.items()}


def study_columns(scores: pd.DataFrame, *, reference: str = "consensus") -> pd.DataFrame:
    """Long scores as the study's wide table.

    Args:
        scores: patient, predictor, metric, organ, annotator, value; each score stands there once.
        reference: with what `dice` and `confidence` compare. Another than the consensus stands in their columns' names, so
            that nobody takes them for the study's.

    Returns:
        One row per patient and predictor, NaN where a score is undefined or absent.

    Raises:
        ScoringError: a score stands there twice.
    """
    known = scores[scores["metric"].isin(NAMES)]
    suffix = known["organ"].map(column_names(map(str, known["organ"].unique())))
    annotator = known["annotator"].map(column_names(map(str, known["annotator"].unique()), number))
    # Per organ and annotator, the study has the organ's mean; per image, one value called mean.
    keep = (suffix == "") | annotator.isin(["", MEAN])
    suffix = suffix.where(suffix != "", annotator.where(annotator != "", MEAN))
    names = NAMES if reference == "consensus" else NAMES | {one: f"{NAMES[one]}_{reference}" for one in OF_CONSENSUS}
    column = known["metric"].map(names) + "_" + suffix
    cells = known.assign(column=column)[keep]
    _require_once(cells)
    # `pivot_table` would also keep the order of rows and columns, but it would average duplicate scores.
    wide = cells.set_index(["patient", "predictor", "column"])["value"].unstack("column")
    rows = pd.MultiIndex.from_frame(cells[["patient", "predictor"]].drop_duplicates())
    wide = wide.reindex(index=rows, columns=cells["column"].unique()).reset_index()
    return wide.rename(columns={"patient": "Patient_ID", "predictor": "CT"}).rename_axis(columns=None)


def _require_once(cells: pd.DataFrame) -> None:
    """A ScoringError if two scores would stand in one cell of the wide table."""
    where = ["patient", "predictor", "column"]
    twice = cells[cells.duplicated(where, keep=False)]
    if twice.empty:
        return
    patient, predictor, column = twice[where].iloc[0]
    values = twice[(twice[where] == [patient, predictor, column]).all(axis=1)]["value"].tolist()
    raise ScoringError(
        "making the study's wide table",
        str(patient),
        f"{predictor} has {len(values)} scores for {column}: {values}",
        "Give each score once.",
    )
