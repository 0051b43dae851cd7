"""The report: what is said in which order, as one offline HTML page and as Markdown.

Belongs here: sections and their sentences' order, and what stands where an input is missing. Does not belong here: the
sentences (`words`), drawing (`figures`, `pictures`), any test or average that `curvas_assets.statistics` can do. Time,
commit and versions come in as values, so that equal inputs give equal bytes.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from importlib import resources
from typing import Any, Literal

import numpy as np
import pandas as pd

from curvas_assets.errors import ReportError
from curvas_assets.report.figures import (
    Chart,
    dice_against_entropy_chart,
    distribution_by_family,
    reliability,
    risk_coverage,
    training_curves,
)
from curvas_assets.report.pictures import OrganView, SliceView, annotators_on_slice, organs_in_3d, uncertainty_on_slice
from curvas_assets.report.style import FAMILIES, ImageFormat
from curvas_assets.report.tables import MISSING, Table, cell, counted, number, p_value, statistic, table_of
from curvas_assets.report.words import Words
from curvas_assets.statistics import (
    PublishedScores,
    best_predictors,
    directions,
    judges_annotators,
    leaderboard_wide,
    paired_scores,
    published_tests,
    reduce_scores,
    scored_in_mm3,
    shown_differences,
    shown_scores,
    shown_unit,
    summarise,
    with_questions,
    with_unit,
)
from curvas_assets.statistics.families import EXPLORATORY, FEWEST
from curvas_assets.study import Statistics, Study

UNCERTAINTY = ("ece", "confidence", "predictive_entropy")
ACCURACY = ("dice", "crps", "hd95")
FAILURE = ("aurc", "eaurc")
WHOLE_FIRST = ("dice", "ece")
"""Metrics drawn over all organs or annotators before they are drawn by each."""
PRINTED: Mapping[str, tuple[float, int]] = {
    "dice": (100, 2),
    "confidence": (100, 2),
    "ece": (1000, 2),
    "crps": (1, 2),
    "overall": (1, 2),
}
"""Column of the challenge's table → factor and decimals in which it prints it."""
PRINTED_UNITS: Mapping[str, str] = {"dice": "%", "confidence": "%", "ece": "×10⁻³", "crps": "cm³"}
ROUNDING = 1e-9
"""Differences of means that are none."""
WIDTH = 8
"""Metrics side by side in a table of means."""
FACETS: Mapping[str, str] = {"dice": "organ", "hd95": "annotator", "hausdorff": "annotator"}
"""Panels of a distribution, where the table has more than one; AURC and E-AURC take organs, or else annotators."""
TOLD = frozenset(
    (
        *("note", "reason", "comparability", "definition", "difference_note", "when_empty", "per", "oracle"),
        *("direction", "region", "set", "status", "stage", "step"),
    )
)
"""Columns of other packages' words, shown in the report's language."""


@dataclass(frozen=True)
class Provenance:
    """Where the report comes from; values, never looked up here.

    Args:
        generated_at: date and time, as shown.
        git_commit: of the code.
        packages: package → version.
        data_versions: input (asset and partition) → version or checksum.
    """

    generated_at: str = ""
    git_commit: str = ""
    packages: Mapping[str, str] = field(default_factory=dict)
    data_versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ReportInputs:
    """Everything a report is made of. What is optional and missing leaves a sentence in the report.

    Args:
        study: the study's configuration; its `report.language` is the report's.
        scores: long scores of all patients: `patient`, `predictor`, `family`, `group`, `metric`, `organ`, `annotator`,
            `value`, `unit`, `note`. May be empty.
        provenance: clock, commit, versions.
        metrics: the metric registry as a table: `metric`, `direction` (higher, lower or empty), `unit`, and for display
            `family`, `range`, `definition`, `reference`.
        cohort: one row per patient: `patient`, `set`, `group`, then whatever is known (`shape`, `spacing_mm`, `excluded`, …).
        exclusions: ledger: `patient`, `predictor`, `metric`, `organ`, `annotator`, `reason`.
        comparisons: from `compare_all_families`.
        non_inferiority: from `non_inferiority`.
        association: from `dice_against_entropy`.
        agreement: from `annotator_agreement`.
        failure: from `failure_over_patients`.
        out_of_distribution: from `out_of_distribution`.
        leaderboard: from `leaderboard`.
        published: from `read_published_scores`.
        reliability: bins: `family`, `predictor`, `patient`, `lower`, `upper`, `count`, `accuracy`, `confidence`.
        risk_coverage: curves: `family`, `predictor`, `patient`, `annotator`, `coverage`, `risk`.
        cost: the cost table, as it shall be shown (`step`, `count`, `hours`, `gb_down`, `gb_up`, `euros`, …).
        curves: model → training curve (`epoch`, `train_loss`, `val_loss`, `pseudo_dice`, `ema_dice`, …).
        state: of the lineage when the report was made: `asset`, `partitions`, `made`, `stale`, `missing`, `elsewhere`, `why`.
        averaged: what the ensembles that were scored are the mean of: `predictor`, `members`, `patients`, `models`.
        slices: slices to show, with annotations and, of an ensemble, its maps.
        organs: a label volume for the 3-D view.
    """

    study: Study
    scores: pd.DataFrame
    provenance: Provenance = field(default_factory=Provenance)
    metrics: pd.DataFrame | None = None
    cohort: pd.DataFrame | None = None
    exclusions: pd.DataFrame | None = None
    comparisons: pd.DataFrame | None = None
    non_inferiority: pd.DataFrame | None = None
    association: pd.DataFrame | None = None
    agreement: pd.DataFrame | None = None
    failure: pd.DataFrame | None = None
    out_of_distribution: pd.DataFrame | None = None
    leaderboard: pd.DataFrame | None = None
    published: PublishedScores | None = None
    reliability: pd.DataFrame | None = None
    risk_coverage: pd.DataFrame | None = None
    cost: pd.DataFrame | None = None
    curves: Mapping[str, pd.DataFrame] | None = None
    state: pd.DataFrame | None = None
    averaged: pd.DataFrame | None = None
    slices: Sequence[SliceView] = ()
    organs: OrganView | None = None


@dataclass(frozen=True)
class Report:
    """A finished report.

    Args:
        html: one self-contained page.
        markdown: the same, with figures as links to `figures/<name>.png`.
        attachments: relative path → bytes: each figure as `figures/<name>.png`, `.svg` and `.pdf`.
        figures: names of the figures, in order.
    """

    html: str
    markdown: str
    attachments: Mapping[str, bytes]
    figures: tuple[str, ...]


@dataclass(frozen=True)
class _Block:
    kind: Literal["heading", "text", "absent", "list", "table", "figure"]
    text: str = ""
    items: tuple[str, ...] = ()
    table: Table | None = None
    chart: Chart | None = None
    caption: str = ""
    folded: bool = False
    html: str = ""
    name: str = ""


@dataclass(frozen=True)
class _Section:
    anchor: str
    title: str
    blocks: tuple[_Block, ...]


def build_report(
    inputs: ReportInputs, *, image_formats: Sequence[ImageFormat] = ("png", "svg", "pdf"), page: bool = True
) -> Report:
    """Write the report.

    Args:
        inputs: everything it is made of.
        image_formats: of the figures beside the page.
        page: write the HTML too; without it, the Markdown alone takes a tenth of the time.

    Returns:
        The page, the Markdown and the figures as files. The same inputs give the same bytes.

    Raises:
        ReportError: a table lacks a column that it must have.
    """
    sections = _Writer(inputs).sections()
    charts = [block.chart for section in sections for block in section.blocks if block.chart is not None]
    names = [chart.name for chart in charts]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ReportError(
            "writing the report",
            inputs.study.name,
            f"two figures are called {twice}",
            "Give each patient's slice once.",
        )
    attachments = {
        f"figures/{chart.name}.{image_format}": content
        for chart in charts
        for image_format, content in chart.images(image_formats).items()
    }
    words = Words(inputs.study.report.language)
    html = _html(inputs, sections, words) if page else ""
    return Report(html, _markdown(inputs, sections, words), attachments, tuple(names))


class _Writer:
    """Puts the sections together; one method each."""

    def __init__(self, inputs: ReportInputs):
        needed = ("patient", "predictor", "family", "metric", "value")
        missing = [column for column in needed if column not in inputs.scores]
        if missing:
            raise ReportError(
                "writing the report",
                inputs.study.name,
                f"the scores have no column {', '.join(missing)}",
                f"Give the long table of scores with {list(needed)}.",
            )
        self.inputs = inputs
        self.study = inputs.study
        self.words = Words(inputs.study.report.language)
        scores = inputs.scores.copy()
        for column in ("organ", "annotator", "group", "unit"):
            scores[column] = scores[column].astype("string").fillna("").astype(str) if column in scores else ""
        scores["value"] = pd.to_numeric(scores["value"], errors="coerce").astype(float)
        in_mm3 = scored_in_mm3(scores)
        self.scores = scores = shown_scores(scores)
        self.reduced = reduce_scores(scores)
        self.directions = directions()
        if inputs.metrics is not None and {"metric", "direction"} <= set(inputs.metrics.columns):
            self.directions |= {
                str(row.metric): str(row.direction or "")
                for row in inputs.metrics.itertuples()  # type: ignore[attr-defined]
            }
        self.comparisons, self.margins = (
            pd.DataFrame() if table is None else shown_differences(table, in_mm3)
            for table in (inputs.comparisons, inputs.non_inferiority)
        )
        self.by_family = summarise(self.reduced, by=("family",)) if len(self.reduced) else pd.DataFrame()

    def sections(self) -> tuple[_Section, ...]:
        return tuple(
            _Section(name, self.words(name), tuple(getattr(self, name)()))
            for name in (
                "question",
                "data",
                "protocol",
                "results",
                "statistics",
                "comparison",
                "maps",
                "cost",
                "metrics",
                "reproducibility",
                "state",
            )
        )

    # Question ----------------------------------------------------------------------------------------------------------

    def question(self) -> list[_Block]:
        w = self.words
        blocks = [
            _text(w("question_text", annotators=len(self.study.annotators), organs=", ".join(self._classes()[1:]))),
            _text(w("families_text")),
        ]
        lines = [line for metric in self.study.statistics.primary.values() if (line := self._headline(metric))]
        if lines:
            lines += self._not_inferior() + self._beaten()
            blocks += [_heading(w("answer_heading")), _Block("list", items=tuple(lines)), *self._few(), self._claim()]
        return blocks + self._approximate()

    def _few(self) -> list[_Block]:
        """That there are too few patients to call anything significant."""
        patients = self.scores["patient"].nunique()
        return [_text(self.words("few_text", n=patients, fewest=FEWEST))] if patients < FEWEST else []

    def _claim(self) -> _Block:
        """For whom the tests speak, and with what n."""
        return _text(
            self.words(
                "claim_text",
                patients=self.scores["patient"].nunique(),
                predictors=self.scores["predictor"].nunique(),
                seeds=len(self.study.seeds),
                annotators=len(self.study.annotators),
                n=len(self.study.seeds) * len(self.study.annotators),
            )
        )

    def _approximate(self) -> list[_Block]:
        """A warning where scores were ranked from volumes of the first storage format."""
        if "note" not in self.scores:
            return []
        from curvas_assets.scoring.panel import APPROXIMATE  # with numba: only when it is asked for

        told = self.scores["note"].astype("string").fillna("").str.contains(APPROXIMATE.split(",")[0], regex=False)
        affected = self.scores.loc[told, ["patient", "predictor"]].drop_duplicates()
        if affected.empty:
            return []
        return [
            _text(
                self.words(
                    "approximate_text",
                    volumes=len(affected),
                    predictors=affected["predictor"].nunique(),
                    patients=affected["patient"].nunique(),
                )
            )
        ]

    def _not_inferior(self) -> list[str]:
        """One sentence: does the general ensemble hurt accuracy, compared with the individual models?"""
        table, w = self.margins, self.words
        row = table[(table["first"] == "general") & (table["second"] == "individual")] if len(table) else table
        if not len(row) or pd.isna(row["bound"].iloc[0]):
            return []
        one = row.iloc[0]
        return [
            w(
                "not_inferior_line" if one["not_inferior"] else "maybe_inferior_line",
                metric=w.metric(str(one["metric"])),
                bound=self._number(float(one["bound"])),
                level=self._percent(float(one["level"])),
                margin=self._number(float(one["margin"])),
                n=int(one["n_pairs"]),
            )
        ]

    def _beaten(self) -> list[str]:
        """Where individual models do better than the general ensemble: a reader would miss it among the means of families."""
        lines = []
        for metric in self.study.statistics.primary.values():
            sign = {"higher": 1, "lower": -1}.get(self.directions.get(metric, ""), 0)
            own = self.reduced[(self.reduced["metric"] == metric) & np.isfinite(self.reduced["value"])]
            general = own[own["family"] == "general"].set_index("patient")["value"]
            if not sign or general.empty:
                continue
            models = {
                str(model): float((values.set_index("patient")["value"] - general).dropna().mean())
                for model, values in own[own["family"] == "individual"].groupby("predictor", sort=False)
            }
            better = {model: gain for model, gain in models.items() if sign * gain > ROUNDING}
            if better:
                best = max(better, key=lambda model: sign * better[model])
                lines.append(
                    self.words(
                        "beaten_line",
                        metric=self._titled(metric),
                        count=len(better),
                        models=len(models),
                        model=best,
                        difference=self._number(better[best]),
                    )
                )
        return lines

    def _headline(self, metric: str) -> str:
        """One sentence: the means of the three families, and the first against the last within patients."""
        w = self.words
        if self.by_family.empty or metric not in set(self.by_family["metric"]):
            return ""
        means = self.by_family[self.by_family["metric"] == metric].set_index("family")["mean"]
        values: dict[str, object] = {
            family: self._number(float(means.get(family, float("nan")))) for family in FAMILIES
        }
        values |= {"metric": w.metric(metric), "direction": self._direction_words(metric)}
        comparisons = self.comparisons
        if len(comparisons):
            row = comparisons[
                (comparisons["metric"] == metric)
                & (comparisons["first"] == "general")
                & (comparisons["second"] == "individual")
            ]
            if len(row) and row["n_pairs"].iloc[0] > 0:
                one = row.iloc[0]
                return w(
                    "answer_line",
                    **values,
                    wins=self._percent(float(one["win_probability"])),
                    difference=self._number(float(one["mean_difference"])),
                    interval=w("with_interval", interval=interval) if (interval := self._interval(one)) else "",
                    p=self._p(one["p_randomisation_holm"]),
                    n=int(one["n_pairs"]),
                )
        return w("answer_means", **values)

    # Data --------------------------------------------------------------------------------------------------------------

    def data(self) -> list[_Block]:
        w, cohort = self.words, self.inputs.cohort
        scored = self.scores["patient"].nunique()
        predictors = self.scores["predictor"].nunique()
        blocks: list[_Block] = []
        if cohort is None or not len(cohort):
            blocks += [_text(w("scored_text", scored=scored, predictors=predictors)), _absent(w("no_cohort"))]
        else:
            sets = (
                ", ".join(
                    f"{w.told(str(name))} {count}"
                    for name, count in cohort["set"].fillna("").replace("", MISSING).value_counts(sort=False).items()
                )
                if "set" in cohort
                else MISSING
            )
            blocks.append(
                _text(w("cohort_text", patients=len(cohort), sets=sets, scored=scored, predictors=predictors))
            )
            if "doubts" in cohort:  # the reasons are in the table and in the ledger
                doubted = cohort.loc[cohort["doubts"].fillna("") != "", "patient"]
                cohort = cohort.drop(columns=["doubts"])
                if len(doubted):
                    blocks.append(_text(w("doubted_intensities", n=len(doubted), patients=counted(list(doubted)))))
            columns = {str(column): w.column(str(column)) for column in cohort.columns}
            blocks.append(self._table(cohort, columns, caption=w("cohort"), folded=len(cohort) > 12))
        if self.study.exclusions:
            excluded = pd.DataFrame(self.study.exclusions.items(), columns=["patient", "reason"])
            blocks += [
                _heading(w("excluded_patients")),
                self._table(excluded, {"patient": w.column("patient"), "reason": w.column("reason")}),
            ]
        else:
            blocks.append(_text(w("no_excluded_patients")))
        if missing := self._missing_cells():
            blocks.append(_text(w("missing_cells", missing=counted(missing))))
        return blocks + self._ledger()

    def _missing_cells(self) -> list[str]:
        """Patients and predictors that belong together and were never scored together."""
        present = set(zip(self.scores["patient"], self.scores["predictor"], strict=True))
        return [
            f"{patient} × {predictor}"
            for patient in self.scores["patient"].unique()
            for predictor in self.scores["predictor"].unique()
            if (patient, predictor) not in present
            and (not self.study.cross_validated or predictor in self.study.predictors_of(str(patient)))
        ]

    def _ledger(self) -> list[_Block]:
        w, ledger = self.words, self.inputs.exclusions
        if ledger is None:
            undefined = self.scores[self.scores["value"].isna()]
            ledger = undefined.assign(reason=undefined.get("note", pd.Series("", index=undefined.index)))
        blocks = [_heading(w("ledger"))]
        if not len(ledger):
            return [*blocks, _text(w("no_ledger"))]
        keys = [column for column in ("reason", "metric", "organ", "annotator") if column in ledger]
        filled = ledger.assign(**{key: ledger[key].astype("string").fillna("").astype(str) for key in keys})
        filled = self._named(filled)
        grouped = (
            filled.groupby(keys, sort=False)
            .agg(
                values=("patient", "size"),
                patients=("patient", lambda names: counted(list(dict.fromkeys(map(str, names))))),
            )
            .reset_index()
        )
        columns = {key: w.column(key) for key in (*keys, "values", "patients")}
        return [
            *blocks,
            _text(w("ledger_text", n=len(ledger))),
            self._table(grouped, columns, caption=w("ledger"), folded=len(grouped) > 15),
        ]

    # Protocol ----------------------------------------------------------------------------------------------------------

    def protocol(self) -> list[_Block]:
        w, study = self.words, self.study
        blocks = [
            _text(
                w(
                    "protocol_text",
                    models=len(study.models),
                    annotators=len(study.annotators),
                    seeds=len(study.seeds),
                    folds=len(study.folds),
                    ensembles=len(study.ensemble_ids),
                    epochs=study.training.epochs,
                    patience=study.training.patience,
                )
            )
        ]
        if study.cross_validated:
            blocks.append(_text(w("cross_validated_text", patients=len(study.scored_patients()))))
        if "all" in study.folds or study.cross_validated:
            share = study.training.held_out_fraction
            blocks.append(
                _text(w("held_out_text", share=f"{100 * share:.0f} %") if share > 0 else w("not_held_out_text"))
            )
        settings = pd.DataFrame(_settings(study), columns=["setting", "value"])
        blocks.append(
            self._table(
                settings, {"setting": w("setting"), "value": w("value")}, caption=w("configuration"), folded=True
            )
        )
        blocks.append(_heading(w("training")))
        if self.inputs.curves:
            blocks.append(_figure(training_curves(self.inputs.curves, w)))
        else:
            blocks.append(_absent(w("no_curves")))
        return blocks

    # Results -----------------------------------------------------------------------------------------------------------

    def results(self) -> list[_Block]:
        w = self.words
        blocks = [_heading(w("uncertainty_heading"))]
        for metric in UNCERTAINTY:
            blocks += self._distribution(metric)
        blocks.append(
            _figure(reliability(self.inputs.reliability, w))
            if self.inputs.reliability is not None and len(self.inputs.reliability)
            else _absent(w("no_reliability"))
        )
        blocks.append(_heading(w("accuracy_heading")))
        for metric in ACCURACY:
            blocks += self._distribution(metric)
        blocks.append(_heading(w("failure_heading")))
        for metric in FAILURE:
            blocks += self._distribution(metric)
        blocks.append(
            _figure(risk_coverage(self.inputs.risk_coverage, w))
            if self.inputs.risk_coverage is not None and len(self.inputs.risk_coverage)
            else _absent(w("no_risk"))
        )
        present = set(self.scores["metric"])
        if {"dice", "predictive_entropy"} <= present:
            pairs = paired_scores(self.reduced, "predictive_entropy", "dice")
            unit = self._unit("predictive_entropy") or "nats"
            blocks.append(_figure(dice_against_entropy_chart(pairs, w, entropy_unit=unit)))
        else:
            blocks.append(_absent(w("no_scatter")))
        blocks += self._over_patients()
        blocks += self._agreement()
        if len(self.reduced):
            blocks += self._means()
        return blocks

    def _distribution(self, metric: str) -> list[_Block]:
        """A metric's distribution: over all, and by organ or annotator where the study has several."""
        w = self.words
        of_metric = self.scores[self.scores["metric"] == metric]
        if of_metric.empty:
            # CRPS, HD95 and the like are optional in a study; one sentence says that they are not there.
            return [_absent(w("not_scored", metric=w.metric(metric)))]
        if not of_metric["value"].notna().any():
            return [_absent(w("all_nan", metric=w.metric(metric), n=len(of_metric)))]
        draw = partial(
            distribution_by_family,
            metric=metric,
            words=w,
            unit=self._unit(metric),
            direction=self.directions.get(metric, ""),
        )
        blocks = []
        table, facet = self._panels(metric)
        if facet is None or metric in WHOLE_FIRST:
            blocks.append(_figure(draw(self.reduced)))
        if facet is not None:
            blocks.append(_figure(draw(table, facet=facet, order=self.study.class_names)))
        return blocks

    def _panels(self, metric: str) -> tuple[pd.DataFrame, str | None]:
        """The scores to draw, one per patient, predictor and panel, and the column that names the panels."""
        of_metric = self.scores[self.scores["metric"] == metric]
        wanted = [FACETS[metric]] if metric in FACETS else (["organ", "annotator"] if metric in FAILURE else [])
        for facet in wanted:
            single = of_metric[~of_metric[facet].isin(["", "mean", "all"])]
            if single[facet].nunique() > 1:
                parts = [
                    reduce_scores(part).assign(**{facet: name}) for name, part in single.groupby(facet, sort=False)
                ]
                return pd.concat(parts, ignore_index=True), facet
        return self.reduced[self.reduced["metric"] == metric], None

    def _over_patients(self) -> list[_Block]:
        """Failure and out-of-distribution detection with the patient as the unit."""
        w, failure, ood = self.words, self.inputs.failure, self.inputs.out_of_distribution
        blocks = [_heading(w("patients_title"))]
        if failure is None or not len(failure):
            blocks.append(_absent(w("no_patients")))
        else:
            columns = {c: w.column(c) for c in ("predictor", "n", "n_nan", "aurc", "eaurc", "augrc")}
            blocks.append(self._table(failure, columns, caption=w("patients_caption")))
        blocks.append(_heading(w("ood_title")))
        if ood is None or not ood["auroc"].notna().any():
            blocks.append(_absent(w("no_ood")))
        else:
            columns = {c: w.column(c) for c in ("predictor", "against", "n_in", "n_out", "n_nan", "auroc", "note")}
            caption = w("ood_caption", group=self.study.in_distribution_group or MISSING)
            blocks.append(self._table(ood, columns, caption=caption, folded=len(ood) > 15))
        return blocks

    def _agreement(self) -> list[_Block]:
        w, agreement = self.words, self.inputs.agreement
        blocks = [_heading(w("agreement_title"))]
        if agreement is None or not len(agreement):
            return [*blocks, _absent(w("no_agreement"))]
        columns = {c: w.column(c) for c in ("metric", "organ", "n", "n_nan", "mean", "sd", "median")}
        shown = self._named(agreement)
        return [*blocks, self._table(shown, columns, caption=w("agreement_caption"))]

    def _means(self) -> list[_Block]:
        """Means per predictor with the best in bold, and per family with spread."""
        w = self.words
        predictors = list(dict.fromkeys(self.reduced["predictor"]))
        marked = best_predictors(summarise(self.reduced), self.directions)
        blocks = [_heading(w("means_title")), _text(w("means_caption"))]
        for name, metrics in self._metric_groups().items():
            shown, strong = (pd.DataFrame(index=range(len(predictors))) for _ in range(2))
            shown["predictor"] = predictors
            for metric in metrics:
                rows = marked[marked["metric"] == metric].set_index("predictor").reindex(predictors)
                shown[metric] = [self._mean_text(row) for _, row in rows.iterrows()]
                strong[metric] = rows["best"].astype("boolean").fillna(False).to_list()
            headings = {"predictor": w.column("predictor")} | {m: self._titled(m) for m in metrics}
            table = table_of(shown, headings, strong=strong)
            table = dataclasses.replace(table, numeric=frozenset(range(1, len(headings))))
            blocks.append(_Block("table", table=table, caption=name))
        blocks.append(_heading(w("families_title")))
        rows = self.by_family[~self.by_family["metric"].map(judges_annotators)].copy()
        rows["mean_sd"] = [
            f"{self._number(m)} ± {self._number(s)}" for m, s in zip(rows["mean"], rows["sd"], strict=True)
        ]
        rows["quartiles"] = [
            f"{self._number(m)} [{self._number(a)}; {self._number(b)}]"
            for m, a, b in zip(rows["median"], rows["q1"], rows["q3"], strict=True)
        ]
        rows["family"] = [w.family(str(family)) for family in rows["family"]]
        rows["metric"] = [self._titled(str(metric)) for metric in rows["metric"]]
        columns = {c: w.column(c) for c in ("metric", "family", "n", "n_nan", "mean_sd", "quartiles")}
        return [*blocks, self._table(rows, columns, caption=w("families_caption"), folded=len(rows) > 30)]

    def _metric_groups(self) -> dict[str, list[str]]:
        """The scored metrics by family of the registry, at most eight to a table."""
        metrics = [m for m in dict.fromkeys(map(str, self.reduced["metric"])) if not judges_annotators(m)]
        registry = self.inputs.metrics
        known = (
            dict(zip(registry["metric"].astype(str), registry["family"].astype(str), strict=True))
            if registry is not None and {"metric", "family"} <= set(registry.columns)
            else {}
        )
        groups: dict[str, list[str]] = {}
        for metric in metrics:
            groups.setdefault(known.get(metric, self.words("other_metrics")), []).append(metric)
        named = {self.words.told(name): members for name, members in groups.items()}
        return {
            name[:1].upper() + name[1:] + (f" ({1 + start // WIDTH})" if start else ""): members[start : start + WIDTH]
            for name, members in named.items()
            for start in range(0, len(members), WIDTH)
        }

    # Statistics --------------------------------------------------------------------------------------------------------

    def statistics(self) -> list[_Block]:
        w, comparisons = self.words, self.comparisons
        settings = self.study.statistics
        primary = ", ".join(
            w("primary_one", question=w.question(q), metric=w.metric(m)) for q, m in settings.primary.items()
        )
        blocks = [
            _text(w("statistics_text", draws=settings.draws, fewest=FEWEST)),
            _text(w("primary_text", primary=primary, alpha=self._alpha(), fewest=FEWEST)),
            self._claim(),
            *self._few(),
        ]
        if not len(comparisons):
            blocks.append(_absent(w("no_comparisons")))
        else:
            blocks += self._comparison_tables(comparisons)
        blocks += self._margin_table()
        association = self.inputs.association
        if association is not None and len(association):
            columns = {
                c: w.column(c)
                for c in (
                    "family",
                    "n",
                    "n_nan",
                    "pearson",
                    "p_pearson",
                    "spearman",
                    "p_spearman",
                    "mutual_information",
                    "r2",
                    "note",
                )
            }
            shown = association.assign(family=[w.family(str(f)) for f in association["family"]])
            if not shown["note"].astype(bool).any():
                shown = shown.drop(columns="note")
            formats = {"p_pearson": self._p, "p_spearman": self._p}
            blocks += [
                _heading(w("association_title")),
                self._table(shown, columns, caption=w("association_caption", fewest=FEWEST), formats=formats),
            ]
        return blocks

    def _comparison_tables(self, comparisons: pd.DataFrame, *, folded: bool = False) -> list[_Block]:
        w = self.words
        shown = with_questions(comparisons.reset_index(drop=True), self.study.statistics)
        # Below so many patients, and for metrics that answer no question, nothing is called significant by either test.
        judged = (shown["n_pairs"] >= FEWEST) & (shown["question"] != EXPLORATORY)
        shown = shown.assign(
            interval=[self._interval(row) or MISSING for _, row in shown.iterrows()],
            pair=self._pairs(shown),
            metric=[self._titled(str(metric)) for metric in shown["metric"]],
            question=[w.question(question) for question in shown["question"]],
        )
        if not shown["note"].astype(bool).any():
            shown = shown.drop(columns="note")
        corrected = ("p_bonferroni", "p_randomisation_holm")
        formats = dict.fromkeys(("p", "p_randomisation", "p_randomisation_two_sided", *corrected), self._p)
        formats |= {"U": partial(statistic, decimal=w.decimal)}
        note = w("significant_note", alpha=self._alpha(), fewest=FEWEST)
        tables = []
        for title, names in (
            ("published_test", "metric pair question n_first n_second nan_first nan_second U p p_bonferroni"),
            (
                "within_test",
                "metric pair question n_pairs unpaired_patients win_probability p_randomisation p_randomisation_holm "
                "p_randomisation_two_sided mean_difference interval note",
            ),
        ):
            strong = pd.DataFrame({name: judged & (shown[name] < self.study.statistics.alpha) for name in corrected})
            columns = {c: w.column(c) for c in names.split()}
            tables += [
                _heading(w(title)),
                self._table(shown, columns, caption=note, formats=formats, strong=strong, folded=folded),
            ]
        return tables

    def _margin_table(self) -> list[_Block]:
        """Is anything of accuracy lost? The bound of each pair against the margin."""
        w, table = self.words, self.margins
        blocks = [_heading(w("margin_title"))]
        if not len(table):
            return [*blocks, _absent(w("no_margin"))]
        settings, one = self.study.statistics, table.iloc[0]
        usual = settings.non_inferiority_margin == Statistics().non_inferiority_margin and one["metric"] == "dice"
        text = w(
            "margin_text",
            metric=w.metric(str(one["metric"])),
            margin=self._number(float(one["margin"])),
            why=w("margin_why") if usual else w("margin_set"),
            level=self._percent(float(one["level"])),
            fewest=FEWEST,
        )
        shown = table.assign(pair=self._pairs(table))
        if not shown["note"].astype(bool).any():
            shown = shown.drop(columns="note")
        names = ("pair", "n_pairs", "mean_difference", "bound", "margin", "not_inferior", "note")
        return [*blocks, _text(text), self._table(shown, {c: w.column(c) for c in names}, caption=w("margin_title"))]

    def _pairs(self, table: pd.DataFrame) -> list[str]:
        w = self.words
        return [
            w("versus", first=w(f"short_{a}"), second=w(f"short_{b}"))
            for a, b in zip(table["first"], table["second"], strict=True)
        ]

    # Published study and challenge -------------------------------------------------------------------------------------

    def comparison(self) -> list[_Block]:
        w, board = self.words, self.inputs.leaderboard
        blocks = [_heading(w("leaderboard_title"))]
        if board is None or not len(board):
            blocks.append(_absent(w("no_leaderboard")))
        else:
            blocks += self._leaderboard(board)
        blocks.append(_heading(w("published_title")))
        if self.inputs.published is None:
            return [*blocks, _absent(w("no_published"))]
        return blocks + self._published(self.inputs.published)

    def _leaderboard(self, board: pd.DataFrame) -> list[_Block]:
        w = self.words
        wide = leaderboard_wide(board)
        ranked = set(board.loc[board["kind"] == "team", "metric"])
        metrics = [str(m) for m in board["metric"].unique() if m in ranked]
        left_out = board[~board["metric"].isin(ranked)].drop_duplicates("metric")
        first = board[board["kind"] == "this run"].drop_duplicates("metric").set_index("metric")
        columns = board.drop_duplicates("metric").set_index("metric")["column"]
        shown = pd.DataFrame({"entry": [self._entry(k, e) for k, e in zip(wide["kind"], wide["entry"], strict=True)]})
        for metric in metrics:
            shown[metric] = [
                self._ranked(columns[metric], value, rank)
                for value, rank in zip(wide[metric], wide[f"{metric}_rank"], strict=True)
            ]
        headings = {"entry": w.column("entry")} | {
            m: w.column("overall")
            if m == "overall"
            else with_unit(w.metric(m), PRINTED_UNITS[columns[m]])
            + (" †" if m in first.index and not first.loc[m, "comparable"] else "")
            for m in metrics
        }
        ours = wide["kind"] == "this run"
        table = table_of(shown, headings, strong=pd.DataFrame({"entry": ours}))
        table = dataclasses.replace(table, numeric=frozenset(range(1, len(headings))))
        about = board[(board["kind"] != "team") & (board["metric"] != "overall")].drop_duplicates(
            ["metric", "kind", "comparability", "n_patients"]
        )
        about = about.assign(
            metric=[w.metric(str(m)) for m in about["metric"]],
            entry=[self._entry(k, e) for k, e in zip(about["kind"], about["entry"], strict=True)],
        )
        about_columns = (
            "metric",
            "entry",
            "definition",
            "region",
            "n_patients",
            "n_nan",
            "comparable",
            "comparability",
        )
        n = self.scores["patient"].nunique()
        teams = board.loc[board["kind"] == "team", "comparability"]
        return [
            _text(w("leaderboard_text")),
            _text(w("synthetic_cohort") if self.study.synthetic else w("other_cohort", n=n)),
            *(
                _text(w("left_out_metric", metric=w.metric(str(row.metric)), why=w.told(str(row.comparability))))
                for row in left_out.itertuples()
            ),
            _Block("table", table=table, caption=w.told(str(teams.iloc[0])) if len(teams) else ""),
            self._table(about, {c: w.column(c) for c in about_columns}, caption=w("comparability_title"), folded=True),
        ]

    def _entry(self, kind: str, entry: str) -> str:
        if kind == "team":
            return entry
        return f"{self.words.column('this_run' if kind == 'this run' else 'published')} – {self.words.family(entry)}"

    def _ranked(self, column: str, value: float, rank: Any) -> str:
        """A value as the challenge prints it, its rank in brackets."""
        if pd.isna(value):
            return MISSING
        scale, decimals = PRINTED[column]
        text = f"{scale * value:.{decimals}f}".replace(".", self.words.decimal) if abs(value) < float("inf") else "∞"
        return f"{text} ({int(rank)})" if not pd.isna(rank) else text

    def _published(self, published: PublishedScores) -> list[_Block]:
        w = self.words
        means = summarise(reduce_scores(published.scores), by=("family",))
        notes = published.scores.loc[published.scores["value"].notna()].groupby("metric", sort=False)["note"].first()
        rows = []
        for _, row in means.iterrows():
            ours = (
                self.by_family[
                    (self.by_family["metric"] == row["metric"]) & (self.by_family["family"] == row["family"])
                ]
                if len(self.by_family)
                else self.by_family
            )
            rows.append(
                {
                    "metric": w.metric(str(row["metric"])),
                    "family": w.family(str(row["family"])),
                    "this_run": self._mean_text(ours.iloc[0], self._unit(str(row["metric"]))) if len(ours) else MISSING,
                    "published": self._mean_text(row, str(row["unit"] or "")),
                    "n": int(row["n"]),
                    "difference_note": notes.get(row["metric"], ""),
                }
            )
        columns = {c: w.column(c) for c in ("metric", "family", "this_run", "published", "n", "difference_note")}
        blocks = [self._table(pd.DataFrame(rows), columns, caption=w("published_caption"), folded=len(rows) > 30)]
        tests = published_tests(published, self.study.statistics)
        if len(tests):
            blocks += [_heading(w("published_statistics")), *self._comparison_tables(tests, folded=True)]
        if len(published.unusable):
            reasons = (
                published.unusable.groupby("reason", sort=False)
                .agg(
                    values=("reason", "size"),
                    patients=("patient", lambda p: counted([x for x in dict.fromkeys(p) if x])),
                )
                .reset_index()
            )
            columns = {c: w.column(c) for c in ("reason", "values", "patients")}
            blocks += [
                _text(w("published_unusable", n=len(published.unusable))),
                self._table(reasons, columns, folded=len(reasons) > 15, caption=w("ledger")),
            ]
        return blocks

    # Maps --------------------------------------------------------------------------------------------------------------

    def maps(self) -> list[_Block]:
        w = self.words
        blocks: list[_Block] = []
        for view in self.inputs.slices:
            if len(view.annotations):
                blocks.append(_figure(annotators_on_slice(view, self.study.annotator_names, w)))
            if view.has_maps:
                blocks.append(_figure(uncertainty_on_slice(view, self._classes(), w)))
        if self.inputs.organs is not None:
            blocks.append(_figure(organs_in_3d(self.inputs.organs, self._classes(), w)))
        return blocks or [_absent(w("no_maps"))]

    # Cost, metrics, reproducibility ------------------------------------------------------------------------------------

    def cost(self) -> list[_Block]:
        w, cost = self.words, self.inputs.cost
        if cost is None or not len(cost):
            return [_absent(w("no_cost"))]
        return [_text(w("cost_text")), self._table(cost, {str(c): w.column(str(c)) for c in cost.columns})]

    def metrics(self) -> list[_Block]:
        w, table = self.words, self.inputs.metrics
        if table is None or not len(table):
            return [_absent(w("no_metrics"))]
        columns = {str(c): w.column("metric_family" if c == "family" else str(c)) for c in table.columns}
        if "family" in table:
            table = table.assign(family=[w.told(str(family)) for family in table["family"]])
        if "unit" in table:
            table = table.assign(unit=[shown_unit(str(unit)) for unit in table["unit"].fillna("")])
        return [_text(w("metrics_text")), self._table(table, columns, caption=w("metrics"), folded=len(table) > 12)]

    def reproducibility(self) -> list[_Block]:
        w, provenance = self.words, self.inputs.provenance
        blocks = [
            _text(
                w(
                    "reproducibility_text",
                    commit=provenance.git_commit or w("unknown"),
                    date=provenance.generated_at or w("unknown"),
                    fingerprint=self.study.fingerprint(),
                )
            )
        ]
        for title, absent, values, first, second in (
            ("packages", "no_packages", provenance.packages, "package", "version"),
            ("data_versions", "no_data_versions", provenance.data_versions, "artefact", "version"),
        ):
            if values:
                frame = pd.DataFrame([(str(k), str(v)) for k, v in values.items()], columns=[first, second])
                columns = {first: w.column(first), second: w.column(second)}
                blocks.append(self._table(frame, columns, caption=w(title), folded=len(frame) > 20))
            else:
                blocks.append(_absent(w(absent)))
        return blocks

    # State -------------------------------------------------------------------------------------------------------------

    def state(self) -> list[_Block]:
        w, state, averaged = self.words, self.inputs.state, self.inputs.averaged
        blocks: list[_Block] = []
        if averaged is not None and len(averaged):
            columns = {name: w.column(name) for name in ("predictor", "members", "patients", "models")}
            blocks += [_text(w("averaged_text")), self._table(averaged, columns, folded=len(averaged) > 15)]
        if state is None:
            return [*blocks, _absent(w("no_state"))]
        if not state["stale"].any():
            blocks.append(_text(w("fresh_text")))
        shown = state.assign(why=[w.reason(str(why)) for why in state["why"]])
        return [*blocks, _text(w("state_text")), self._table(shown, {str(c): w.column(str(c)) for c in shown.columns})]

    # Small things ------------------------------------------------------------------------------------------------------

    def _table(
        self, frame: pd.DataFrame, columns: Mapping[str, str], *, caption: str = "", folded: bool = False, **more: Any
    ) -> _Block:
        for column in TOLD.intersection(frame.columns):
            frame = frame.assign(
                **{column: [self.words.told(cell) if isinstance(cell, str) else cell for cell in frame[column]]}
            )
        return _Block(
            "table", table=table_of(frame, columns, decimal=self.words.decimal, **more), caption=caption, folded=folded
        )

    def _named(self, frame: pd.DataFrame) -> pd.DataFrame:
        """A table whose metrics and organs have their names in the report's language."""
        w = self.words
        names: dict[str, Callable[[str], str]] = {
            "metric": lambda metric: w.metric(metric) if metric else "",
            "organ": w.organ,
        }
        return frame.assign(**{c: [name(str(x)) for x in frame[c]] for c, name in names.items() if c in frame})

    def _classes(self) -> list[str]:
        return [self.words.organ(name) for name in self.study.class_names]

    def _number(self, value: float, *, digits: int = 3) -> str:
        return number(float(value), digits=digits, decimal=self.words.decimal)

    def _alpha(self) -> str:
        return f"{self.study.statistics.alpha:g}".replace(".", self.words.decimal)

    def _p(self, value: object) -> str:
        return p_value(value, decimal=self.words.decimal)

    def _interval(self, row: pd.Series) -> str:
        low, high = row["interval_low"], row["interval_high"]
        if pd.isna(low) or pd.isna(high):
            return ""
        return self.words("interval", low=self._number(low), high=self._number(high))

    def _percent(self, share: float) -> str:
        return f"{100 * share:.3g}\u00a0%".replace(".", self.words.decimal)

    def _unit(self, metric: str) -> str:
        units = self.reduced.loc[self.reduced["metric"] == metric, "unit"]
        return str(units.iloc[0]) if len(units) else ""

    def _titled(self, metric: str) -> str:
        return with_unit(self.words.metric(metric), self._unit(metric))

    def _mean_text(self, row: pd.Series, unit: str = "") -> str:
        """A mean with its unit, and what it left out in brackets."""
        if "mean" not in row or pd.isna(row["n_nan"]):
            return MISSING
        out = [f"{int(row['n_nan'])} NaN"] if row["n_nan"] else []
        out += [f"{int(row['n_infinite'])} ∞"] if row["n_infinite"] else []
        return (
            self._number(float(row["mean"]))
            + (f"\u00a0{unit}" if unit else "")
            + (f" ({', '.join(out)})" if out else "")
        )

    def _direction_words(self, metric: str) -> str:
        direction = self.directions.get(metric, "")
        return self.words(direction if direction in ("higher", "lower") else "neither")


# Writing ---------------------------------------------------------------------------------------------------------------


def _html(inputs: ReportInputs, sections: Sequence[_Section], words: Words) -> str:
    numbered = 0
    shown = []
    for section in sections:
        blocks = []
        for block in section.blocks:
            if block.chart is not None:
                numbered += 1
                blocks.append(
                    dataclasses.replace(
                        block,
                        html=_div(block.chart),
                        name=block.chart.name,
                        caption=block.chart.caption,
                        text=words("figure_n", n=numbered, title=block.chart.title),
                    )
                )
            elif block.table is not None:
                caption = "" if block.folded else block.caption
                blocks.append(dataclasses.replace(block, html=block.table.html(caption)))
            else:
                blocks.append(block)
        shown.append(dataclasses.replace(section, blocks=tuple(blocks)))
    return _template().render(
        language=words.language,
        title=inputs.study.title,
        subtitle=words("generated", date=inputs.provenance.generated_at) if inputs.provenance.generated_at else "",
        contents=words("contents"),
        sections=shown,
        plotly_js=_plotly_js() if numbered else "",
    )


def _markdown(inputs: ReportInputs, sections: Sequence[_Section], words: Words) -> str:
    lines = [f"# {inputs.study.title}", ""]
    if inputs.provenance.generated_at:
        lines += [words("generated", date=inputs.provenance.generated_at), ""]
    for section in sections:
        lines += [f"## {section.title}", ""]
        for block in section.blocks:
            if block.kind == "heading":
                lines += [f"### {block.text}", ""]
            elif block.kind == "text":
                lines += [block.text, ""]
            elif block.kind == "absent":
                lines += [f"*{block.text}*", ""]
            elif block.kind == "list":
                lines += [*(f"- {item}" for item in block.items), ""]
            elif block.table is not None:
                lines += [*([f"*{block.caption}*", ""] if block.caption else []), block.table.markdown(), ""]
            elif block.chart is not None:
                lines += [f"![{block.chart.title}](figures/{block.chart.name}.png)", "", f"*{block.chart.caption}*", ""]
    return "\n".join(lines).rstrip() + "\n"


def _div(chart: Chart) -> str:
    """The interactive figure without plotly.js, under a fixed id so that equal reports are equal."""
    return chart.interactive().to_html(
        full_html=False,
        include_plotlyjs=False,
        div_id=f"plot-{chart.name}",
        config={
            "displaylogo": False,
            "responsive": True,
            "toImageButtonOptions": {"format": "svg", "filename": chart.name},
            "modeBarButtonsToRemove": ["select2d", "lasso2d", "sendDataToCloud"],
        },
    )


@cache
def _plotly_js() -> str:
    from plotly.offline import get_plotlyjs

    # A literal closing tag inside the script would end it; plotly has none today, and this keeps it so.
    return get_plotlyjs().replace("</script", "<\\/script")


@cache
def _template() -> Any:
    from jinja2 import Environment, StrictUndefined

    text = (resources.files("curvas_assets.report") / "templates" / "report.html.j2").read_text(encoding="utf-8")
    return Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True).from_string(
        text
    )


def _settings(study: Study) -> list[tuple[str, str]]:
    """The whole configuration as dotted names and values."""
    rows: list[tuple[str, str]] = []

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, Mapping) and value:
            for key, one in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), one)
        elif isinstance(value, list):
            rows.append((prefix, ", ".join(one if isinstance(one, str) else json.dumps(one) for one in value)))
        else:
            rows.append((prefix, MISSING if value is None or value == {} else cell(value)))

    walk("", study.model_dump(mode="json"))
    return rows


def _text(text: str) -> _Block:
    return _Block("text", text=text)


def _absent(text: str) -> _Block:
    return _Block("absent", text=text)


def _heading(text: str) -> _Block:
    return _Block("heading", text=text)


def _figure(chart: Chart) -> _Block:
    return _Block("figure", chart=chart)
