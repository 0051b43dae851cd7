"""The question of the study, and the answer in short."""

import numpy as np
import pandas as pd

from curvas_assets.report.blocks import Block, Bullets, Heading, Text
from curvas_assets.report.facts import Facts
from curvas_assets.report.style import FAMILIES

ROUNDING = 1e-9
"""Smaller differences of means count as none."""


def write(facts: Facts) -> list[Block]:
    """What is asked, the answer of each primary metric, and for whom it holds."""
    w, study = facts.words, facts.study
    blocks: list[Block] = [
        Text(w("question_text", annotators=len(study.annotators), organs=", ".join(facts.class_names[1:]))),
        Text(w("families_text")),
    ]
    if answers := [line for metric in study.statistics.primary.values() if (line := _answer(facts, metric))]:
        lines = answers + _not_inferior(facts) + _beaten(facts)
        blocks += [Heading(w("answer_heading")), Bullets(lines), *facts.few(), facts.claim()]
    return blocks + _approximate(facts)


def _answer(facts: Facts, metric: str) -> str:
    """One sentence: the means of the three families, and the first against the last within patients."""
    w, by_family = facts.words, facts.by_family
    if by_family.empty or metric not in set(by_family["metric"]):
        return ""
    means = by_family[by_family["metric"] == metric].set_index("family")["mean"]
    values: dict[str, object] = {family: w.number(float(means.get(family, float("nan")))) for family in FAMILIES}
    values |= {"metric": w.metric(metric), "direction": w.direction(facts.directions.get(metric, ""))}
    compared = _against_individual(facts.comparisons, metric)
    if compared is None or compared["n_pairs"] == 0:
        return w("answer_means", **values)
    interval = w.interval(compared["interval_low"], compared["interval_high"])
    return w(
        "answer_line",
        **values,
        wins=w.percent(float(compared["win_probability"])),
        difference=w.number(float(compared["mean_difference"])),
        interval=w("with_interval", interval=interval) if interval else "",
        p=w.p_value(compared["p_randomisation_holm"]),
        n=int(compared["n_pairs"]),
    )


def _not_inferior(facts: Facts) -> list[str]:
    """One sentence: does the general ensemble hurt accuracy, compared with the individual models?"""
    w, tested = facts.words, _against_individual(facts.margins)
    if tested is None or pd.isna(tested["bound"]):
        return []
    return [
        w(
            "not_inferior_line" if tested["not_inferior"] else "maybe_inferior_line",
            metric=w.metric(str(tested["metric"])),
            bound=w.number(float(tested["bound"])),
            level=w.percent(float(tested["level"])),
            margin=w.number(float(tested["margin"])),
            n=int(tested["n_pairs"]),
        )
    ]


def _against_individual(table: pd.DataFrame, metric: str | None = None) -> pd.Series | None:
    """The row of the general ensemble against the individual models, of a metric or the only one; None if missing."""
    if table.empty:
        return None
    wanted = (table["first"] == "general") & (table["second"] == "individual")
    rows = table[wanted & (table["metric"] == metric)] if metric else table[wanted]
    return rows.iloc[0] if len(rows) else None


def _beaten(facts: Facts) -> list[str]:
    """Which individual models do better than the general ensemble: the means of families alone would hide this."""
    lines = []
    for metric in facts.study.statistics.primary.values():
        sign = {"higher": 1, "lower": -1}.get(facts.directions.get(metric, ""), 0)
        gains = _gains(facts.reduced, metric) if sign else {}
        better = {model: gain for model, gain in gains.items() if sign * gain > ROUNDING}
        if better:
            best = max(better, key=lambda model: sign * better[model])
            lines.append(
                facts.words(
                    "beaten_line",
                    metric=facts.titled(metric),
                    count=len(better),
                    models=len(gains),
                    model=best,
                    difference=facts.words.number(better[best]),
                )
            )
    return lines


def _gains(reduced: pd.DataFrame, metric: str) -> dict[str, float]:
    """Individual model → its mean difference from the general ensemble on the patients that both have; empty without one."""
    own = reduced[(reduced["metric"] == metric) & np.isfinite(reduced["value"])]
    general = own[own["family"] == "general"].set_index("patient")["value"]
    if general.empty:
        return {}
    return {
        str(model): float((values.set_index("patient")["value"] - general).dropna().mean())
        for model, values in own[own["family"] == "individual"].groupby("predictor", sort=False)
    }


def _approximate(facts: Facts) -> list[Block]:
    """A warning where scores were ranked from volumes of the first storage format."""
    if "note" not in facts.scores:
        return []
    from curvas_assets.scoring.panel import APPROXIMATE  # with numba: only when it is asked for

    told = facts.scores["note"].astype("string").fillna("").str.contains(APPROXIMATE.split(",")[0], regex=False)
    affected = facts.scores.loc[told, ["patient", "predictor"]].drop_duplicates()
    if affected.empty:
        return []
    counts = {f"{name}s": affected[name].nunique() for name in ("predictor", "patient")}
    return [Text(facts.words("approximate_text", volumes=len(affected), **counts))]
