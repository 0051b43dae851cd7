"""Every patient by name: values, outliers and worst cases with what can be read of them, and groups of patients."""

import numpy as np
import pandas as pd

from curvas_assets.report.blocks import Absent, Block, FigureBlock, Heading, TableBlock, Text
from curvas_assets.report.facts import Facts
from curvas_assets.report.patient_figures import values_by_group, values_by_patient
from curvas_assets.report.reasons import reasons_for
from curvas_assets.report.tables import MISSING, counted
from curvas_assets.statistics.outliers import FEWEST_FOR_OUTLIERS, find_outliers, worst_of

MOST_SHOWN = 15
"""Rows of a table that is not folded."""


def write(facts: Facts) -> list[Block]:
    """Values per patient as a figure and a table, the worst case of each measure, outliers with reasons, and groups."""
    metrics = [m for m in facts.study.statistics.primary.values() if facts.reduced["metric"].eq(m).any()]
    defined = facts.reduced[facts.reduced["metric"].isin(metrics) & facts.reduced["value"].notna()]
    if defined.empty:
        return [Absent(facts.words("no_patient_values"))]
    outliers = find_outliers(facts.reduced, metrics, facts.directions)
    patients = order_of_patients(facts, metrics)
    return [
        *_values(facts, metrics, patients, outliers),
        *_worst(facts, metrics),
        *_outliers(facts, outliers),
        *_groups(facts, metrics),
    ]


def order_of_patients(facts: Facts, metrics: list[str]) -> list[str]:
    """All patients, the worst of the leading predictor's first metric first; those without a value last."""
    first, names = metrics[0], sorted(map(str, facts.reduced["patient"].unique()))
    own = facts.reduced[(facts.reduced["metric"] == first) & (facts.reduced["predictor"] == facts.lead)]
    values = dict(zip(own["patient"].astype(str), own["value"].astype(float), strict=True))
    sign = -1.0 if facts.directions.get(first) == "lower" else 1.0
    worst = {name: sign * values[name] for name in names if name in values and not np.isnan(values[name])}
    return sorted(names, key=lambda name: (name not in worst, worst.get(name, 0.0), name))


def _values(facts: Facts, metrics: list[str], patients: list[str], outliers: pd.DataFrame) -> list[Block]:
    w = facts.words
    chart = values_by_patient(
        facts.reduced,
        metrics,
        patients,
        outliers,
        w,
        units={metric: facts.unit(metric) for metric in metrics},
        directions=facts.directions,
    )
    return [
        Heading(w("values_title")),
        Text(w("order_text", predictor=facts.lead, metric=w.metric(metrics[0]))),
        FigureBlock(chart),
        _values_table(facts, metrics, patients, outliers),
    ]


def _values_table(facts: Facts, metrics: list[str], patients: list[str], outliers: pd.DataFrame) -> TableBlock:
    """A row per patient: the leading predictor's values, and the mean and range of the individual models."""
    w, reduced = facts.words, facts.reduced
    table = pd.DataFrame({"patient": patients, "group": [facts.group_of.get(one, "") or MISSING for one in patients]})
    strong = pd.DataFrame(index=table.index)
    headings = facts.headings("patient", "group")
    with_single = facts.lead_family != "individual" and "individual" in facts.families
    for metric in metrics:
        of_metric = reduced[reduced["metric"] == metric]
        lead = of_metric[of_metric["predictor"] == facts.lead].set_index("patient")["value"].astype(float)
        name = w.short_metric(metric)
        table[f"{metric} lead"] = lead.reindex(patients).to_numpy(float)
        headings[f"{metric} lead"] = w("of_predictor", metric=name, predictor=facts.lead)
        hit = outliers[(outliers["metric"] == metric) & (outliers["predictor"] == facts.lead)]["patient"]
        strong[f"{metric} lead"] = table["patient"].isin(list(hit))
        if with_single:
            single = (
                of_metric[of_metric["family"] == "individual"].groupby("patient")["value"].agg(["mean", "min", "max"])
            )
            single = single.reindex(patients)
            table[f"{metric} single"] = [
                MISSING if np.isnan(mean) else f"{w.number(mean)} {w.interval(low, high)}".strip()
                for mean, low, high in single.astype(float).itertuples(index=False)
            ]
            headings[f"{metric} single"] = w("of_single", metric=name)
    caption = w("values_table_caption", n=len(patients))
    return facts.table(table, headings, caption=caption, folded=len(patients) > MOST_SHOWN, strong=strong)


def _worst(facts: Facts, metrics: list[str]) -> list[Block]:
    """The leading predictor's worst patient in each measure."""
    w = facts.words
    rows = []
    for metric in metrics:
        found = worst_of(facts.reduced, facts.lead, metric, facts.directions.get(metric, ""))
        if found is not None:
            rows.append(
                {
                    "metric": facts.titled(metric),
                    "patient": str(found["patient"]),
                    "group": str(found["group"]) or MISSING,
                    "value": float(found["value"]),
                    "median": float(found["median"]),
                    "n": int(found["n_patients"]),
                    "seen": _reasons(facts, str(found["patient"]), metric, facts.lead),
                }
            )
    if not rows:
        return []
    columns = facts.headings("metric", "patient", "group", "value", "median", "n", "seen")
    table = facts.table(pd.DataFrame(rows), columns, caption=w("worst_caption", predictor=facts.lead))
    return [Heading(w("worst_title")), table]


def _outliers(facts: Facts, outliers: pd.DataFrame) -> list[Block]:
    """Every outlier, by patient and measure, with what can be read of it."""
    w = facts.words
    blocks: list[Block] = [Heading(w("outliers_title"))]
    if facts.patients < FEWEST_FOR_OUTLIERS:
        return [*blocks, Text(w("too_few_for_outliers", n=facts.patients, fewest=FEWEST_FOR_OUTLIERS))]
    blocks.append(Text(w("outliers_text")))
    if outliers.empty:
        return [*blocks, Text(w("no_outliers"))]
    rows = []
    judged = facts.reduced[facts.reduced["metric"].isin(outliers["metric"].unique()) & facts.reduced["value"].notna()]
    counts = judged.groupby(["metric", "patient"])["predictor"].nunique()
    for (patient, metric), part in outliers.groupby(["patient", "metric"], sort=False):
        count = int(counts[metric, patient])
        of_lead = part[part["predictor"] == facts.lead]
        shown = of_lead.iloc[0] if len(of_lead) else part.iloc[0]
        names = [name for name in facts.named_predictors if name in set(part["predictor"])]
        rows.append(
            {
                "patient": patient,
                "group": str(shown["group"]) or MISSING,
                "metric": facts.titled(str(metric)),
                "predictors": w("of_predictors", k=len(part), n=count, names=counted(names))
                if len(part) < count
                else w("all_predictors", n=count),
                "worst": f"{shown['predictor']}: {w.number(float(shown['value']))}",
                "median": float(shown["median"]),
                "seen": _reasons(facts, str(patient), str(metric), str(shown["predictor"])),
                "share": len(part) / count,
            }
        )
    named = dict.fromkeys(map(str, outliers["patient"]))
    blocks.append(Text(w("outliers_named", patients=", ".join(sorted(named)))))
    table = pd.DataFrame(rows).sort_values("share", ascending=False, kind="stable").drop(columns="share")
    columns = facts.headings("patient", "group", "metric", "predictors", "worst", "median", "seen")
    caption = w("outliers_caption", n=len(outliers), patients=outliers["patient"].nunique())
    return [*blocks, facts.table(table, columns, caption=caption, folded=len(table) > MOST_SHOWN)]


def _reasons(facts: Facts, patient: str, metric: str, predictor: str) -> str:
    return facts.words.joint.join(reasons_for(facts, patient, metric, predictor)) or facts.words("reason_unknown")


def _groups(facts: Facts, metrics: list[str]) -> list[Block]:
    """Means in each group of patients, of the leading predictor and of the individual models."""
    w, study = facts.words, facts.study
    blocks: list[Block] = [Heading(w("groups_title"))]
    groups = [group for group in dict.fromkeys(facts.group_of.values()) if group]
    if not groups:
        return [*blocks, Absent(w("no_groups"))]
    inside = study.in_distribution_group
    ordered = sorted({*groups, *facts.group_of.values()}, key=lambda group: (group != inside, not group, group))
    rows = []
    for group in ordered:
        of_group = facts.reduced[facts.reduced["group"] == group]
        row: dict[str, object] = {
            "group": group or w("no_group"),
            "trained_on": MISSING if inside is None or not group else w("inside" if group == inside else "outside"),
            "n_patients": of_group["patient"].nunique(),
        }
        for metric in metrics:
            own = of_group[(of_group["metric"] == metric) & np.isfinite(of_group["value"].astype(float))]
            row[f"{metric} lead"] = float(own.loc[own["predictor"] == facts.lead, "value"].mean())
            single = own[own["family"] == "individual"].groupby("predictor")["value"].mean()
            row[f"{metric} single"] = float(single.mean())
        rows.append(row)
    headings = facts.headings("group", "trained_on", "n_patients")
    for metric in metrics:
        headings[f"{metric} lead"] = w("of_predictor", metric=w.short_metric(metric), predictor=facts.lead)
        if facts.lead_family != "individual" and "individual" in facts.families:
            headings[f"{metric} single"] = w("of_single", metric=w.short_metric(metric))
    blocks.append(facts.table(pd.DataFrame(rows), headings, caption=w("groups_table_caption")))
    if inside is None:
        blocks.append(Text(w("no_training_group")))
    chart = values_by_group(
        facts.reduced,
        metrics,
        facts.lead,
        w,
        units={metric: facts.unit(metric) for metric in metrics},
        directions=facts.directions,
        in_distribution=inside,
    )
    return [*blocks, FigureBlock(chart)]
