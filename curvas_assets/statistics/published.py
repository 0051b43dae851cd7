"""The study's published per-patient table, read into the platform's form, flaws and all.

Belongs here: the wide CSV's columns, what they mean, what of a given file could not be used, and this run's means beside
it. Does not belong here: numbers of the study; how tests are made (`families`). A row or cell is never dropped in silence: `unusable` lists each.
"""

import io
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import pandas as pd

from curvas_assets.errors import StatisticsError, StudyError
from curvas_assets.statistics.challenge import other_definition
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


_Flaw = dict[str, object]
"""A row of `PublishedScores.unusable`."""


class _Row(NamedTuple):
    """A row of the file whose patient and predictor are known."""

    line: int
    patient: str
    predictor: str
    family: str
    cells: pd.Series


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
        study: gives each predictor's family if the study defines its own ensembles, and the annotators' names.

    Returns:
        The scores and what was unusable.

    Raises:
        StatisticsError: not a table, or no column for the patient, the predictor or any metric.
    """
    wide = _read(csv)
    keys = _named(wide, "patient_id", "patient"), _named(wide, "ct", "predictor", "model")
    meanings = _metric_columns(wide, study.annotator_names if study else ())
    rows, left_out = _first_rows(wide, keys, meanings, ids, study)
    scores, unreadable = _long(rows, meanings, study)
    unusable = [*_unknown_columns(wide, {*keys, *meanings}), *left_out, *unreadable, *_absent(rows)]
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


def published_comparability(metric: str, reference: str = "consensus") -> str:
    """What the study's number means, where it differs from this run's; parts are joined by `; `.

    Args:
        metric: ours, as `compare_with_published` names it.
        reference: with what this run's `dice` and `confidence` compare; the study's is the consensus.
    """
    parts = [DEFECTS[metric]] if metric in DEFECTS else []
    if told := other_definition(metric, reference):
        parts += ["this run's is not taken against the consensus", told]
    return "; ".join(parts)


def compare_with_published(
    scores: pd.DataFrame, published: PublishedScores, *, reference: str = "consensus"
) -> pd.DataFrame:
    """This run's means beside the published ones, by metric and family.

    Args:
        scores: long scores of this run.
        published: of the study.
        reference: with what this run's `dice` and `confidence` compare.

    Returns:
        `metric`, `family`, `unit`, `n`, `mean`, `sd` of this run (missing where it has no such metric), the same as
        `published_…`, and `comparability`: what the study's number means, where it differs from ours.
    """
    columns = ["metric", "family", "unit", "n", "mean", "sd"]
    theirs = summarise(published.scores, by=("family",))[columns]
    ours = summarise(scores, by=("family",))[columns]
    table = theirs.merge(ours, on=["metric", "family"], how="left", suffixes=("_theirs", ""))
    table = table.rename(columns={f"{name}_theirs": f"published_{name}" for name in columns[2:]})
    table["comparability"] = [published_comparability(str(metric), reference) for metric in table["metric"]]
    return table[[*columns, *(f"published_{name}" for name in columns[2:]), "comparability"]]


def column_meaning(column: str, annotators: Sequence[str] = ()) -> Column | None:
    """What a column such as `DICE_panc`, `ECE_2`, `NCC_GT1-3` or `CRPS_mean` holds; None if it is no metric.

    Args:
        column: its name in the wide table.
        annotators: the study's, in order: the table numbers them, or calls them by name. Without them, numbers stay.
    """
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
    if re.fullmatch(r"[0-9]+", rest) or rest in annotators:
        return Column(metric, "", _annotator(rest, annotators), unit)
    if pair := re.fullmatch(r"GT([0-9]+)-([0-9]+)", rest):
        return Column(metric, "", "/".join(_annotator(one, annotators) for one in pair.groups()), unit)
    return None


def _annotator(told: str, annotators: Sequence[str]) -> str:
    """The name of an annotator whom the table calls by name, or by number: that of `anno2`, or of the second."""
    if told in annotators or f"anno{told}" in annotators:
        return told if told in annotators else f"anno{told}"
    place = int(told)
    return annotators[place - 1] if 1 <= place <= len(annotators) else told


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


def _metric_columns(wide: pd.DataFrame, annotators: Sequence[str]) -> dict[str, Column]:
    known = {column: column_meaning(column, annotators) for column in wide.columns}
    meanings = {column: meaning for column, meaning in known.items() if meaning is not None}
    if not meanings:
        raise StatisticsError(
            "reading published scores",
            "the table",
            f"none of its columns is a metric: {list(wide.columns)}",
            "Give the study's wide table, with columns such as DICE_panc and ECE_1.",
        )
    return meanings


def _unknown_columns(wide: pd.DataFrame, known: Collection[str]) -> list[_Flaw]:
    return [
        _flaw(None, "", "", str(column), "", "a column of no known meaning")
        for column in wide.columns
        if column not in known and not _is_index(column)
    ]


def _first_rows(
    wide: pd.DataFrame, keys: tuple[str, str], metrics: Collection[str], ids: PatientIds, study: Study | None
) -> tuple[list[_Row], list[_Flaw]]:
    """The first row of each patient and predictor (which stand in the columns `keys`), and the rows that are left out."""
    first: dict[tuple[str, str], _Row] = {}
    left_out: list[_Flaw] = []
    for position, cells in wide.iterrows():
        row = _recognised(int(position) + 2, cells, keys, ids, study)  # type: ignore[arg-type]
        if not isinstance(row, _Row):
            left_out.append(row)
            continue
        earlier = first.setdefault((row.patient, row.predictor), row)
        if earlier is not row:
            same = all(_text(earlier.cells[column]) == _text(cells[column]) for column in metrics)
            reason = "the same row again" if same else "another row of this patient and predictor; the first is kept"
            left_out.append(_flaw(row.line, row.patient, row.predictor, "", _text(cells[keys[0]]), reason))
    return list(first.values()), left_out


def _recognised(
    line: int, cells: pd.Series, keys: tuple[str, str], ids: PatientIds, study: Study | None
) -> _Row | _Flaw:
    """A row with its patient and predictor, or why it has none."""
    raw_patient, predictor = (_text(cells[key]) for key in keys)
    try:
        patient = ids.normalise(raw_patient if ids.has(raw_patient) else re.sub(r"\.0$", "", raw_patient))
    except StudyError as error:
        return _flaw(line, raw_patient, predictor, "", raw_patient, f"patient: {error.found}")
    family = _family(predictor, study)
    if family is None:
        return _flaw(line, patient, predictor, "", predictor, "neither the name of a model nor of an ensemble")
    return _Row(line, patient, predictor, family, cells)


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


def _long(
    rows: Iterable[_Row], meanings: Mapping[str, Column], study: Study | None
) -> tuple[pd.DataFrame, list[_Flaw]]:
    """The long table of scores, and the cells that hold no number."""
    records: list[dict[str, object]] = []
    unreadable: list[_Flaw] = []
    for row in rows:
        for column, meaning in meanings.items():
            value, note = _number(_text(row.cells[column]))
            if note:
                unreadable.append(
                    _flaw(row.line, row.patient, row.predictor, str(column), _text(row.cells[column]), note)
                )
            records.append(
                {
                    "patient": row.patient,
                    "predictor": row.predictor,
                    "family": row.family,
                    "group": (study.patient_group(row.patient) or "") if study else "",
                    "metric": meaning.metric,
                    "organ": meaning.organ,
                    "annotator": meaning.annotator,
                    "value": value,
                    "unit": meaning.unit,
                    "note": note or DEFECTS.get(meaning.metric, ""),
                }
            )
    columns = ["patient", "predictor", "family", "group", "metric", "organ", "annotator", "value", "unit", "note"]
    return pd.DataFrame(records, columns=columns).astype({"value": float}), unreadable


def _absent(rows: Sequence[_Row]) -> list[_Flaw]:
    """Predictors that some patients have and others lack."""
    families = {row.predictor: row.family for row in rows}
    there = {(row.patient, row.predictor) for row in rows}
    return [
        _flaw(None, patient, predictor, "", "", f"this patient has no row of this {family} predictor")
        for patient in dict.fromkeys(row.patient for row in rows)
        for predictor, family in families.items()
        if (patient, predictor) not in there
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


def _flaw(line: int | None, patient: str, predictor: str, column: str, found: str, reason: str) -> _Flaw:
    return dict(zip(UNUSABLE, (line, patient, predictor, column, found, reason), strict=True))
