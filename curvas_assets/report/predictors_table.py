"""The first screen's table: every predictor with its accuracy, calibration, uncertainty and cost.

Belongs here: its rows and columns, and what is folded into a family's row. Does not belong here: what a predictor needs
(`curvas_assets.stages.needs`), what an hour brings (`curvas_assets.statistics.efficiency`).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pandas as pd

from curvas_assets.report.blocks import Absent, Block, Note, TableBlock
from curvas_assets.report.facts import Facts
from curvas_assets.report.tables import BREAK, MISSING, table_of
from curvas_assets.statistics import best_predictors, summarise, with_unit
from curvas_assets.statistics.efficiency import measure_of_reduction, network_hours, reduction_per_hour, reductions

MOST_ROWS = 4
"""Predictors of a family that have a row each on the first screen; of more, the family has one."""


def predictor_tables(facts: Facts) -> list[Block]:
    """One table of predictors and families of many; how it is to be read; and, where a family was folded, every predictor."""
    w, study = facts.words, facts.study
    metrics = [metric for metric in study.statistics.primary.values() if metric in set(facts.reduced["metric"])]
    if not metrics:
        return [Absent(w("no_primary"))]
    every = Predictors(facts, metrics)
    rows: list[dict[str, str]] = []
    strong: list[set[str]] = []
    is_folded = False
    for family in facts.families:
        members = [name for name in facts.named_predictors if facts.family_of[name] == family]
        if len(members) > MOST_ROWS or (family == "individual" and len(members) > 1):
            is_folded = True
            rows.append(every.folded(family, members))
            strong.append(set())
        else:
            rows += [every.row(name) for name in members]
            strong += [every.best(name) for name in members]
    blocks: list[Block] = [every.table(rows, strong, w("predictors_caption"))]
    blocks += [Note(text) for text in every.notes(is_folded=is_folded)]
    if is_folded:
        names = facts.named_predictors
        whole = every.table(
            [every.row(name) for name in names],
            [every.best(name) for name in names],
            w("every_predictor", n=len(names)),
        )
        blocks.append(dataclasses.replace(whole, folded=True))
    return blocks


class Predictors:
    """Texts of the table's cells.

    Args:
        facts: of the report.
        metrics: primary ones that were scored.
    """

    def __init__(self, facts: Facts, metrics: Sequence[str]):
        self._facts, self._metrics = facts, metrics
        own = facts.reduced[facts.reduced["metric"].isin(metrics)]
        self._summary = best_predictors(summarise(own), facts.directions).set_index(["predictor", "metric"])
        defined = own[own["value"].notna()]
        self._seen = {str(name): frozenset(part) for name, part in defined.groupby("predictor")["patient"]}
        costs = facts.inputs.predictor_cost
        self._costs = None if costs is None or not len(costs) else costs.set_index(costs["predictor"].astype(str))
        self._hours = None if self._costs is None else network_hours(self._costs)
        self._measure = measure_of_reduction(facts.study.statistics, facts.directions)
        self._gained: pd.DataFrame | None = None
        if self._measure in metrics and "individual" in facts.families:
            gained = reductions(facts.reduced, str(self._measure))
            hours = self._hours if self._hours is not None else pd.DataFrame(columns=["hours", "device"])
            self._gained = reduction_per_hour(gained, hours).set_index("predictor")

    def row(self, name: str) -> dict[str, str]:
        """A predictor's own row."""
        facts, w = self._facts, self._facts.words
        cells = {
            "predictor": name,
            "family": w.family(facts.family_of[name]),
            "n_patients": str(self._patients([name])),
        }
        for metric in self._metrics:
            known = (name, metric) in self._summary.index
            cells[metric] = self._mean(self._summary.loc[(name, metric)], metric) if known else MISSING
        return cells | self._cost([name]) | self._gain([name])

    def folded(self, family: str, members: Sequence[str]) -> dict[str, str]:
        """A family's row: the mean of its predictors, with the lowest and the highest."""
        w = self._facts.words
        cells = {
            "predictor": w("folded_row", n=len(members)),
            "family": w.family(family),
            "n_patients": str(self._patients(members)),
        }
        for metric in self._metrics:
            means = [
                float(self._summary.loc[(one, metric), "mean"])  # type: ignore[arg-type]
                for one in members
                if (one, metric) in self._summary.index
            ]
            cells[metric] = self._range(means, self._scale(metric))
        return cells | self._cost(members) | self._gain(members)

    def best(self, name: str) -> set[str]:
        """The metrics in which a predictor has the best mean of all."""
        return {
            m for m in self._metrics if (name, m) in self._summary.index and bool(self._summary.loc[(name, m), "best"])
        }

    def table(self, rows: Sequence[dict[str, str]], strong: Sequence[set[str]], caption: str) -> TableBlock:
        """Rows as a table; numbers stand right."""
        facts, w = self._facts, self._facts.words
        headings = facts.headings("predictor", "family", "n_patients")
        questions = {metric: question for question, metric in facts.study.statistics.primary.items()}
        headings |= {
            metric: w("asked_metric", question=w.question(questions[metric]), metric=self._titled(metric))
            for metric in self._metrics
        }
        if self._costs is not None:
            headings |= {f"{device}_hours": w(f"hours_{device}") for device in self._devices()}
        if self._gained is not None:
            headings |= {"reduction": w("reduction_heading", metric=w.short_metric(str(self._measure)))}
            if self._hours is not None:
                headings |= {"per_hour": w(f"per_hour_{self._device() or 'none'}")}
        bold = pd.DataFrame({metric: [metric in one for one in strong] for metric in self._metrics})
        table = table_of(pd.DataFrame(list(rows), columns=list(headings)), headings, strong=bold)
        unbroken = frozenset(range(len(headings)))
        return TableBlock(dataclasses.replace(table, numeric=unbroken - {0, 1}, unbroken=unbroken), caption)

    def notes(self, *, is_folded: bool) -> list[str]:
        """How the table is to be read, and what of it is not known."""
        facts, w = self._facts, self._facts.words
        notes = [" ".join(w.about_metric(metric) for metric in self._metrics if w.about_metric(metric))]
        notes.append(w("corrected_note"))
        notes += self._names()
        notes += [w("folded_note")] if is_folded else []
        if self._costs is None:
            notes.append(w("no_predictor_cost"))
        else:
            notes.append(w("hours_note"))
            if not self._devices():
                notes.append(w("no_hours"))
            elif self._device() == "":
                notes.append(w("mixed_devices"))
            if (self._costs["unrecorded"] > 0).any():
                notes.append(w("unrecorded_note"))
            if (self._costs["estimated"] > 0).any():
                notes.append(w("estimated_note"))
        if self._gained is not None:
            notes.append(w("reduction_note", metric=w.short_metric(str(self._measure))))
        patients = {self._patients([name]) for name in facts.named_predictors}
        if len(patients) > 1:
            notes.append(w("other_patients_note"))
        return [" ".join(note for note in notes if note)]

    def _names(self) -> list[str]:
        """How the names of predictors are read, by the first model and ensemble; nothing where one of both is absent."""
        facts, w = self._facts, self._facts.words
        there = facts.named_predictors
        model = next((one for one in facts.study.models if str(one) in there), None)
        ensemble = next((str(one) for one in facts.study.ensemble_ids if str(one) in there), "")
        if model is None or not ensemble:
            return []
        fold = w("fold_of_all") if model.fold == "all" else w("fold_of_some", fold=model.fold)
        return [w("names_note", model=model, label=model.annotator, seed=model.seed, fold=fold, ensemble=ensemble)]

    def _scale(self, metric: str) -> float:
        """Thousandths, where all means of a metric without a unit are below a hundredth."""
        means = self._summary["mean"].xs(metric, level="metric").abs()
        return 1000.0 if not self._facts.unit(metric) and means.max() < 0.01 else 1.0

    def _titled(self, metric: str) -> str:
        """The short name of a metric with its unit, or with the power of ten of its column."""
        unit = self._facts.unit(metric) or ("×10⁻³" if self._scale(metric) > 1 else "")
        return with_unit(self._facts.words.short_metric(metric), unit)

    def _mean(self, row: pd.Series, metric: str) -> str:
        scaled = row.copy()
        scaled["mean"] = self._scale(metric) * float(row["mean"])
        return self._facts.mean(scaled)

    def _patients(self, names: Sequence[str]) -> int:
        return len(frozenset[str]().union(*(self._seen.get(name, frozenset()) for name in names)))

    def _range(self, values: Sequence[float], scale: float = 1.0, unit: str = "") -> str:
        """`mean [lowest; highest]`; one number where they are the same; three digits, however large."""
        finite = [scale * value for value in values if np.isfinite(value)]
        mean = float(np.mean(finite)) if finite else np.nan
        if finite and abs(mean) < 1e-9 * max(map(abs, finite)):  # of members whose reductions cancel out
            mean = 0.0
        if not finite:
            return MISSING
        w = self._facts.words
        middle, low, high = (w.number(float(f"{value:.3g}")) for value in (mean, min(finite), max(finite)))
        return f"{middle}{unit}" if low == high else f"{middle}{unit}{BREAK}{w('interval', low=low, high=high)}"

    def _devices(self) -> list[str]:
        """The devices on which networks computed: `gpu`, `cpu`, both, or none."""
        if self._hours is None:
            return []
        return [device for device in ("gpu", "cpu") if (self._hours[f"{device}_hours"] > 0).any()]

    def _device(self) -> str:
        """The one device on which all networks computed; empty where there are several."""
        return self._devices()[0] if len(self._devices()) == 1 else ""

    def _cost(self, names: Sequence[str]) -> dict[str, str]:
        """Hours of each device, training + inference; of a family, the mean of its predictors."""
        if self._costs is None:
            return {}
        own = self._costs.reindex(list(names)).dropna(subset=["trainings"])
        if own.empty:
            return dict.fromkeys(("gpu_hours", "cpu_hours"), MISSING)
        w = self._facts.words
        mark = ("≥\u00a0" if (own["unrecorded"] > 0).any() else "") + (
            "≈\u00a0" if (own["estimated"] > 0).any() else ""
        )
        cells: dict[str, str] = {}
        for device in ("gpu", "cpu"):
            training, inference = (float(own[f"{stage}_{device}_hours"].mean()) for stage in ("training", "inference"))
            nothing = training == 0 and inference == 0
            cells[f"{device}_hours"] = (
                MISSING if nothing else f"{mark}{w.number(training)}\u00a0+\u00a0{w.number(inference)}"
            )
        return cells

    def _gain(self, names: Sequence[str]) -> dict[str, str]:
        """The reduction of the measure, in per cent, and for each hour."""
        if self._gained is None:
            return {}
        own = self._gained.reindex(list(names))
        texts = {}
        for column in ("reduction", "per_hour"):
            values = own[column].astype(float).to_list()
            if len(names) > 1 and column == "per_hour":
                # The mean of ratios would be ruled by the cheapest predictor.
                hours = own["hours"].astype(float)
                whole = float(hours.sum()) if hours.notna().all() else float("nan")
                total = float(own["reduction"].astype(float).sum())
                values = [(0.0 if abs(total) < 1e-9 else total) / whole if whole > 0 else float("nan")]
            texts[column] = self._range(values, 100, "\u00a0%")
        return texts
