"""The study's published per-patient table, read into the platform's form, flaws and all.

Belongs here: the wide CSV's columns, what they mean, what of a given file could not be used, and this run's means beside
it. Does not belong here: numbers of the study; how tests are made (`families`). A row or cell is never dropped in silence: `unusable` lists each.
"""

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import pandas as pd

from curvas_assets.errors import StatisticsError, StudyError
from curvas_assets.statistics.families import Alternative, compare_families
from curvas_assets.statistics.reduction import summarise
from curvas_assets.study import EnsembleId, ModelId, PatientIds, Statistics, Study

CHALLENGE_IDS = PatientIds(prefix="UKCHLL", digits=3)
UNUSABLE = ("line", "patient", "predictor", "column", "found", "reason")


class Column(NamedTuple):
    """What one column of the wide table holds."""

    metric: str
    organ: str
    annotator: str
    unit: str


_PER_ORGAN = {"panc": "pancreas", "kidn": "kidney", "livr": "liver", "live": "liver", "liver": "liver"}
_METRICS = {
    "DICE": ("dice", ""),
    "CONF": ("confidence", ""),
    "ECE": ("ece", ""),
    "ACE": ("ace", ""),
    "AUROC": ("auroc", ""),
    "AURC": ("aurc", ""),
    "EAURC": ("eaurc", ""),
    "CRPS": ("crps", "voxel"),
    "Hausdorff": ("hausdorff", "voxel"),
    "NCC": ("ncc_annotators", ""),
    "ENTROPY": ("predictive_entropy", "nats"),
}
_SINGLE = {
    "Entropy_GT": Column("label_entropy_annotations", "", "", "nats"),
    "Entropy_Pred": Column("label_entropy", "", "", "nats"),
}
DEFECTS: Mapping[str, str] = {
    "dice": "Dice along image rows, averaged: false positives on other rows are not seen (our dice_published)",
    "confidence": "within the annotations' box only",
    "ece": "within the annotations' box only",
    "ace": "within the annotations' box only; bins of equal width",
    "crps": "voxels, not cm³; the integral stops at ±4 σ and is undefined where annotators agree",
    "hausdorff": "in voxels, all organs merged",
    "auroc": "annotators and organs are confused: a perfect prediction scores 0.53",
    "aurc": "annotators and organs are confused",
    "eaurc": "annotators and organs are confused",
    "ncc_annotators": "correlates label numbers of the annotators",
    "label_entropy": "entropy of the histogram of labels, not of the prediction's probabilities",
    "label_entropy_annotations": "entropy of the histogram of labels",
}
"""What the study's code computed under each name, where it differs from our metric of the same name."""


TESTS: Mapping[str, Alternative] = {"dice": "greater", "ece": "less"}
"""What the study's report tests (its tables 1 and 2)."""


class PublishedScores(NamedTuple):
    """The published table in the platform's form.

    Attributes:
        scores: long: `patient`, `predictor`, `family`, `group`, `metric`, `organ`, `annotator`, `value`, `unit`, `note`. A
            cell that is empty or no number is there as NaN with its reason.
        unusable: one row per thing that could not be used: `line` (of the file, header = 1), `patient`, `predictor`,
            `column`, `found`, `reason`. `column` is empty where the whole row was left out, and `line` is missing where
            something is not in the file at all.
    """

    scores: pd.DataFrame
    unusable: pd.DataFrame


def read_published_scores(
    csv: str | Path | bytes | IO[str] | IO[bytes], *, ids: PatientIds = CHALLENGE_IDS, study: Study | None = None
) -> PublishedScores:
    """Read the study's wide table of metrics, one row per patient and predictor.

    Ids with and without the prefix are one patient. Left out, and listed: rows without a readable patient or predictor,
    repeated rows (the first stays), columns of no known meaning. Empty, NaN and unreadable cells stay as NaN and are
    listed; so are predictors that a patient lacks while others have them.

    Args:
        csv: path, bytes or file-like; comma or semicolon separated; columns `Patient_ID`, `CT` (the predictor's name),
            `DICE_panc`, …, `NCC_mean`.
        ids: how patients are called.
        study: gives each predictor's family if the study defines its own ensembles.

    Returns:
        The scores and what was unusable.

    Raises:
        StatisticsError: not a table, or no column for the patient, the predictor or any metric.
    """
    wide = _read(csv)
    patient_column = _named(wide, "patient_id", "patient")
    predictor_column = _named(wide, "ct", "predictor", "model")
    meanings = {column: meaning for column in wide.columns if (meaning := column_meaning(column)) is not None}
    if not meanings:
        raise StatisticsError(
            "reading published scores",
            "the table",
            f"none of its columns is a metric: {list(wide.columns)}",
            "Give the study's wide table, with columns such as DICE_panc and ECE_1.",
        )
    unusable: list[dict[str, object]] = [
        _flaw(None, "", "", str(column), "", "a column of no known meaning")
        for column in wide.columns
        if column not in meanings and column not in (patient_column, predictor_column) and not _is_index(column)
    ]
    kept: dict[tuple[str, str], pd.Series] = {}
    families: dict[str, str] = {}
    for position, row in wide.iterrows():
        line = int(position) + 2  # type: ignore[arg-type]
        raw_patient, raw_predictor = _text(row[patient_column]), _text(row[predictor_column])
        try:
            patient = ids.normalise(re.sub(r"\.0$", "", raw_patient))
        except StudyError as error:
            unusable.append(_flaw(line, raw_patient, raw_predictor, "", raw_patient, f"patient: {error.found}"))
            continue
        predictor = raw_predictor
        family = _family(predictor, study)
        if family is None:
            unusable.append(
                _flaw(line, patient, predictor, "", predictor, "neither the name of a model nor of an ensemble")
            )
            continue
        earlier = kept.get((patient, predictor))
        if earlier is not None:
            same = all(_text(earlier[column]) == _text(row[column]) for column in meanings)
            reason = "the same row again" if same else "another row of this patient and predictor; the first is kept"
            unusable.append(_flaw(line, patient, predictor, "", raw_patient, reason))
            continue
        kept[patient, predictor] = row
        families[predictor] = family
    records = []
    for (patient, predictor), row in kept.items():
        for column, meaning in meanings.items():
            value, note = _number(_text(row[column]))
            if note:
                line = int(row.name) + 2  # type: ignore[arg-type]
                unusable.append(_flaw(line, patient, predictor, str(column), _text(row[column]), note))
            records.append(
                {
                    "patient": patient,
                    "predictor": predictor,
                    "family": families[predictor],
                    "group": (study.patient_group(patient) or "") if study else "",
                    "metric": meaning.metric,
                    "organ": meaning.organ,
                    "annotator": meaning.annotator,
                    "value": value,
                    "unit": meaning.unit,
                    "note": note or DEFECTS.get(meaning.metric, ""),
                }
            )
    unusable += _absent(kept, families)
    columns = ["patient", "predictor", "family", "group", "metric", "organ", "annotator", "value", "unit", "note"]
    scores = pd.DataFrame(records, columns=columns)
    scores["value"] = scores["value"].astype(float)
    return PublishedScores(scores, pd.DataFrame(unusable, columns=list(UNUSABLE)).astype({"line": "Int64"}))


def published_tests(published: PublishedScores, statistics: Statistics) -> pd.DataFrame:
    """The study's own tests on its own table, as `compare_families` gives them; no rows without Dice and ECE."""
    there = set(published.scores["metric"])
    parts = [
        compare_families(
            published.scores,
            metric,
            alternative,
            draws=statistics.draws,
            seed=statistics.seed,
        )
        for metric, alternative in TESTS.items()
        if metric in there
    ]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def compare_with_published(scores: pd.DataFrame, published: PublishedScores) -> pd.DataFrame:
    """This run's means beside the published ones, by metric and family.

    Args:
        scores: long scores of this run.
        published: of the study.

    Returns:
        `metric`, `family`, `unit`, `n`, `mean`, `sd` of this run (missing where it has no such metric), the same as
        `published_…`, and `comparability`: what the study's number means, where it differs from ours.
    """
    columns = ["metric", "family", "unit", "n", "mean", "sd"]
    theirs = summarise(published.scores, by=("family",))[columns]
    ours = summarise(scores, by=("family",))[columns]
    table = theirs.merge(ours, on=["metric", "family"], how="left", suffixes=("_theirs", ""))
    table = table.rename(columns={f"{name}_theirs": f"published_{name}" for name in columns[2:]})
    table["comparability"] = [DEFECTS.get(str(metric), "") for metric in table["metric"]]
    return table[[*columns, *(f"published_{name}" for name in columns[2:]), "comparability"]]


def column_meaning(column: str) -> Column | None:
    """What a column such as `DICE_panc`, `ECE_2`, `NCC_GT1-3` or `CRPS_mean` holds; None if it is no metric."""
    if column in _SINGLE:
        return _SINGLE[column]
    name, _, rest = column.partition("_")
    if name not in _METRICS or not rest:
        return None
    metric, unit = _METRICS[name]
    if rest in _PER_ORGAN:
        return Column(metric, _PER_ORGAN[rest], "", unit)
    if rest == "mean":
        return Column(metric, "", "mean", unit)
    if re.fullmatch(r"[0-9]+", rest):
        return Column(metric, "", rest, unit)
    if pair := re.fullmatch(r"GT([0-9]+-[0-9]+)", rest):
        return Column(metric, "", pair.group(1), unit)
    return None


def _read(csv: str | Path | bytes | IO[str] | IO[bytes]) -> pd.DataFrame:
    """The file as text cells, whatever separator it uses."""
    source = io.BytesIO(csv) if isinstance(csv, bytes) else csv
    try:
        content = Path(source).read_bytes() if isinstance(source, str | Path) else source.read()
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content.removeprefix("\ufeff")
        header = text.splitlines()[0] if text.strip() else ""
        separator = ";" if header.count(";") > header.count(",") else ","
        wide = pd.read_csv(io.StringIO(text), sep=separator, dtype=str, keep_default_na=False, skip_blank_lines=False)
    except (OSError, AttributeError, TypeError, ValueError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise StatisticsError(
            "reading published scores",
            str(csv) if isinstance(csv, str | Path) else "the table",
            " ".join(str(error).split()) or type(error).__name__,
            "Give the study's metrics.csv, as a path or as bytes.",
        ) from error
    wide.columns = [str(column).strip() for column in wide.columns]
    blank = (wide.map(lambda cell: _text(cell) == "")).all(axis=1)
    return wide[~blank]


def _named(wide: pd.DataFrame, *names: str) -> str:
    for column in wide.columns:
        if column.lower() in names:
            return column
    raise StatisticsError(
        "reading published scores",
        "the table",
        f"no column {' or '.join(names)} (found {list(wide.columns)})",
        "Give the study's wide table, with Patient_ID and CT.",
    )


def _family(predictor: str, study: Study | None) -> str | None:
    try:
        if study is not None and predictor in study.predictors:
            return study.family(predictor)
        if predictor.startswith("ensemble_"):
            return "general" if EnsembleId.parse(predictor).name == "all" else "annotator"
        ModelId.parse(predictor)
    except StudyError:
        return None
    return "individual"


def _absent(kept: Mapping[tuple[str, str], pd.Series], families: Mapping[str, str]) -> list[dict[str, object]]:
    """Predictors that some patients have and others lack."""
    patients = list(dict.fromkeys(patient for patient, _ in kept))
    return [
        _flaw(None, patient, predictor, "", "", f"this patient has no row of this {families[predictor]} predictor")
        for patient in patients
        for predictor in families
        if (patient, predictor) not in kept
    ]


def _number(text: str) -> tuple[float, str]:
    """A cell as a number, and the reason if it is not one."""
    if text == "":
        return np.nan, "an empty cell"
    plain = text.strip("[]").replace(",", ".") if re.fullmatch(r"\[?-?[0-9]+,[0-9]+\]?", text) else text
    try:
        value = float(plain)
    except ValueError:
        return np.nan, "not a number"
    return value, "NaN in the file" if np.isnan(value) else ""


def _text(cell: object) -> str:
    return str(cell).strip() if isinstance(cell, str) else ""


def _is_index(column: str) -> bool:
    return column == "" or column.startswith("Unnamed:")


def _flaw(line: int | None, patient: str, predictor: str, column: str, found: str, reason: str) -> dict[str, object]:
    return dict(zip(UNUSABLE, (line, patient, predictor, column, found, reason), strict=True))
