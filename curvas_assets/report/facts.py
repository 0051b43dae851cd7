"""What all sections of the report use: the inputs, prepared once, and the wording of their numbers and tables.

Belongs here: what two sections or more need. Does not belong here: what one section says (`sections`), any test or average
that `curvas_assets.statistics` can do.
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from curvas_assets.errors import ReportError
from curvas_assets.report.blocks import TableBlock, Text
from curvas_assets.report.inputs import ReportInputs
from curvas_assets.report.style import FAMILIES
from curvas_assets.report.tables import MISSING, table_of
from curvas_assets.report.verdict import leading_predictor
from curvas_assets.report.words import Words
from curvas_assets.statistics import (
    directions,
    reduce_scores,
    scored_in_mm3,
    shown_differences,
    shown_scores,
    shown_variances,
    summarise,
    units_of,
    with_unit,
)
from curvas_assets.statistics.families import FEWEST
from curvas_assets.study import Study

NEEDED = ("patient", "predictor", "family", "metric", "value")
"""Columns without which scores cannot be reported."""
TOLD = frozenset(
    (
        *("note", "reason", "comparability", "definition", "difference_note", "when_empty", "per", "oracle"),
        *("direction", "region", "set", "status", "stage", "step"),
    )
)
"""Columns of other packages' words, shown in the report's language."""


@dataclass(frozen=True)
class Facts:
    """The inputs of a report, prepared.

    Args:
        inputs: as given.
        words: the language.
        scores: long scores in the units that are shown.
        reduced: one score per patient, predictor and metric.
        by_family: mean, spread and counts per metric and family; empty without scores.
        directions: metric → `higher`, `lower` or empty.
        comparisons: of families and predictors, in the units that are shown; empty where none were given.
        margins: non-inferiority, in the units that are shown; empty where it was not tested.
        variance: its components, in the units that are shown; empty where they were not estimated.
    """

    inputs: ReportInputs
    words: Words
    scores: pd.DataFrame
    reduced: pd.DataFrame
    by_family: pd.DataFrame
    directions: dict[str, str]
    comparisons: pd.DataFrame
    margins: pd.DataFrame
    variance: pd.DataFrame

    @property
    def study(self) -> Study:
        """The study that is reported."""
        return self.inputs.study

    @property
    def patients(self) -> int:
        """How many patients were scored."""
        return self.scores["patient"].nunique()

    @property
    def predictors(self) -> int:
        """How many predictors were scored."""
        return self.scores["predictor"].nunique()

    @cached_property
    def family_of(self) -> dict[str, str]:
        """Predictor → its family, in the order of families and, within one, of the study."""
        pairs = self.scores[["predictor", "family"]].drop_duplicates("predictor")
        family = dict(zip(pairs["predictor"].astype(str), pairs["family"].astype(str), strict=True))
        ranks = {name: rank for rank, name in enumerate(FAMILIES)}
        places = {name: place for place, name in enumerate(self.study.predictors)}
        order = sorted(family, key=lambda one: (ranks.get(family[one], len(ranks)), places.get(one, len(places))))
        return {name: family[name] for name in order}

    @cached_property
    def _by_metric(self) -> dict[str, pd.DataFrame]:
        return {str(metric): part for metric, part in self.scores.groupby("metric", sort=False)}

    def of_metric(self, metric: str) -> pd.DataFrame:
        """The long scores of one metric, split once: a study of 1,000 patients has millions of rows."""
        return self._by_metric.get(metric, self.scores.iloc[:0])

    @cached_property
    def group_of(self) -> dict[str, str]:
        """Patient → the group, empty where a patient has none."""
        pairs = self.scores[["patient", "group"]].drop_duplicates("patient")
        return dict(zip(pairs["patient"].astype(str), pairs["group"].astype(str), strict=True))

    @property
    def named_predictors(self) -> list[str]:
        """The predictors that were scored, family by family."""
        return list(self.family_of)

    @property
    def families(self) -> list[str]:
        """The families that were scored, in their order."""
        return list(dict.fromkeys(self.family_of.values()))

    @cached_property
    def lead(self) -> str:
        """The predictor that the study is about: its first general ensemble, or the first of what there is; empty without any."""
        return leading_predictor(self.study, self.family_of)

    @property
    def lead_family(self) -> str:
        """The family of `lead`."""
        return self.family_of.get(self.lead, "")

    def signed(self, value: float) -> str:
        """A difference with its sign."""
        text = self.words.number(value)
        return f"+{text}" if value > 0 else text

    @property
    def class_names(self) -> list[str]:
        """Background and organs, as the language calls them."""
        return [self.words.organ(name) for name in self.study.class_names]

    @property
    def alpha(self) -> str:
        """The level of significance, as shown."""
        return f"{self.study.statistics.alpha:g}".replace(".", self.words.decimal)

    @cached_property
    def _units(self) -> dict[str, str]:
        return units_of(self.reduced)

    def unit(self, metric: str) -> str:
        """The unit in which a metric was scored; empty where it has none."""
        return self._units.get(metric, "")

    def titled(self, metric: str) -> str:
        """A metric's name and unit."""
        return with_unit(self.words.metric(metric), self.unit(metric))

    def mean(self, row: Mapping[Hashable, Any] | pd.Series, unit: str = "") -> str:
        """A mean with its unit, and in brackets how many values it leaves out."""
        if "mean" not in row or pd.isna(row["n_nan"]):
            return MISSING
        left_out = [f"{int(row['n_nan'])} NaN"] if row["n_nan"] else []
        left_out += [f"{int(row['n_infinite'])} ∞"] if row["n_infinite"] else []
        return (
            self.words.number(float(row["mean"]))
            + (f"\u00a0{unit}" if unit else "")
            + (f" ({', '.join(left_out)})" if left_out else "")
        )

    def headings(self, *columns: object) -> dict[str, str]:
        """Columns and what stands above them."""
        return {str(column): self.words.column(str(column)) for column in columns}

    def table(
        self, frame: pd.DataFrame, columns: Mapping[str, str], *, caption: str = "", folded: bool = False, **more: Any
    ) -> TableBlock:
        """A table, with other packages' words in the report's language.

        Args:
            frame: the numbers.
            columns: column → its heading, in the order shown.
            caption: above the table.
            folded: whether the page shows it only on a click.
            more: for `table_of`.
        """
        for column in TOLD.intersection(frame.columns):
            frame = frame.assign(
                **{column: [self.words.told(cell) if isinstance(cell, str) else cell for cell in frame[column]]}
            )
        return TableBlock(table_of(frame, columns, decimal=self.words.decimal, **more), caption, folded)

    def named(self, frame: pd.DataFrame) -> pd.DataFrame:
        """A table whose metrics and organs have their names in the report's language."""
        names: Mapping[str, Callable[[str], str]] = {
            "metric": lambda metric: self.words.metric(metric) if metric else "",
            "organ": self.words.organ,
        }
        return frame.assign(**{c: [name(str(x)) for x in frame[c]] for c, name in names.items() if c in frame})

    def few(self) -> list[Text]:
        """The sentence that there are too few patients to call anything significant, if there are."""
        return [Text(self.words("few_text", n=self.patients, fewest=FEWEST))] if self.patients < FEWEST else []

    def claim(self) -> Text:
        """For whom the results of the tests hold, and with what n."""
        seeds = len(self.study.seeds)
        annotators = len([name for name in self.study.label_names if name in self.study.annotator_names])
        return Text(
            self.words(
                "claim_text",
                patients=self.patients,
                predictors=self.predictors,
                seeds=seeds,
                annotators=annotators,
                n=seeds * annotators,
            )
        )


def gather(inputs: ReportInputs) -> Facts:
    """Prepare the inputs of a report; they stay as they are.

    Raises:
        ReportError: the scores lack a column that they must have.
    """
    if missing := [column for column in NEEDED if column not in inputs.scores]:
        raise ReportError(
            "writing the report",
            inputs.study.name,
            f"the scores have no column {', '.join(missing)}",
            f"Give the long table of scores with {list(NEEDED)}.",
        )
    scores = _complete(inputs.scores)
    in_mm3 = scored_in_mm3(scores)
    shown = shown_scores(scores)
    reduced = reduce_scores(shown)
    comparisons, margins = (
        pd.DataFrame() if table is None else shown_differences(table, in_mm3)
        for table in (inputs.comparisons, inputs.non_inferiority)
    )
    return Facts(
        inputs=inputs,
        words=Words(inputs.study.report.language),
        scores=shown,
        reduced=reduced,
        by_family=summarise(reduced, by=("family",)) if len(reduced) else pd.DataFrame(),
        directions=directions() | _own_directions(inputs.metrics),
        comparisons=comparisons,
        margins=margins,
        variance=pd.DataFrame() if inputs.variance is None else shown_variances(inputs.variance),
    )


def _complete(scores: pd.DataFrame) -> pd.DataFrame:
    """Scores with every optional column, text as text and values as numbers."""
    scores = scores.copy()
    for column in ("organ", "annotator", "group", "unit"):
        scores[column] = scores[column].astype("string").fillna("").astype(str) if column in scores else ""
    scores["value"] = pd.to_numeric(scores["value"], errors="coerce").astype(float)
    return scores


def _own_directions(metrics: pd.DataFrame | None) -> dict[str, str]:
    """Directions that the given table of metrics states."""
    if metrics is None or not {"metric", "direction"} <= set(metrics.columns):
        return {}
    return {str(m): str(d or "") for m, d in zip(metrics["metric"], metrics["direction"], strict=True)}
