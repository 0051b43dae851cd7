"""The question of the study, and the first screen's answer: two sentences, then one table of all predictors."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from curvas_assets.report.blocks import Answer, Block, Bullets, Heading, Note, Text
from curvas_assets.report.facts import Facts
from curvas_assets.report.predictors_table import predictor_tables
from curvas_assets.report.verdict import Compared, Verdict, against_single, corrected_tests, judge
from curvas_assets.statistics.families import FEWEST
from curvas_assets.statistics.reduction import WHOLE

ROUNDING = 1e-9
"""Smaller differences of means count as none."""
MAIN = ("general", "annotator", "individual")
"""The families of the published study, whose means stand beside each other."""


def write(facts: Facts) -> list[Block]:
    """What is asked, the answer in two sentences, every predictor in one table, and what to think of before believing it."""
    w, study = facts.words, facts.study
    blocks: list[Block] = [Text(_question(facts))]
    if len(study.scored_organs) < len(study.organs):
        blocks.append(Text(w("scored_organs_text", organs=", ".join(map(w.organ, study.scored_organs)))))
    if facts.by_family.empty:
        return [*blocks, Text(_families(facts))]
    table, *details = predictor_tables(facts)
    blocks += [Answer(answer(facts)), *map(Note, _odd_organs(facts)), table]
    if beaten := _beaten(facts):
        blocks.append(Bullets(beaten))
    blocks += [*facts.few(), *details]
    tested = corrected_tests(facts.comparisons, study.statistics)
    if lines := [line for metric in study.statistics.primary.values() if (line := _answer(facts, tested, metric))]:
        blocks += [Heading(w("answer_heading")), Text(_families(facts)), Bullets(lines), facts.claim()]
    return blocks + _approximate(facts)


def _odd_organs(facts: Facts) -> list[str]:
    """Sentences about organs that every predictor misses on every patient, and those without a reference on any."""
    w, dice = facts.words, facts.of_metric("dice")
    by_organ = dice[~dice["organ"].isin(WHOLE)].groupby("organ", sort=False)["value"]
    missed = [w.organ(str(organ)) for organ, values in by_organ if values.notna().any() and values.max() == 0]
    undrawn = [w.organ(str(organ)) for organ, values in by_organ if values.isna().all()]
    told = [w("missed_organs", organs=", ".join(missed))] if missed else []
    return told + ([w("undrawn_organs", organs=", ".join(undrawn))] if undrawn else [])


def answer(facts: Facts) -> list[str]:
    """Two sentences: is uncertainty reduced, and is accuracy unharmed? Never more than the tests allow."""
    verdict = judge(facts.comparisons, facts.margins, facts.study.statistics, facts.directions)
    return [_on_uncertainty(facts, verdict), _on_accuracy(facts, verdict)]


def _on_uncertainty(facts: Facts, verdict: Verdict) -> str:
    w = facts.words
    if verdict.uncertainty == "untested":
        return w("uncertainty_untested")
    lacking = ", ".join(map(w.metric, verdict.lacking))
    lacking = w("lacking_besides", metrics=lacking) if lacking else ""
    return w(
        f"uncertainty_{verdict.uncertainty}",
        patients=_patients(facts, verdict.patients),
        first=w.the_family(verdict.first),
        second=w.the_family("individual"),
        better=_listed(facts, verdict.better),
        worse=_listed(facts, verdict.worse),
        undecided=(w("undecided_besides", metrics=_listed(facts, verdict.open)) if verdict.open else "") + lacking,
        open=_listed(facts, verdict.open) + lacking,
        fewest=FEWEST,
    )


def _on_accuracy(facts: Facts, verdict: Verdict) -> str:
    w, accurate, margin = facts.words, verdict.accurate, verdict.margin
    if verdict.accuracy == "untested" or accurate is None or margin is None:
        return w("accuracy_untested")
    interval = w.interval(accurate.low, accurate.high)
    return w(
        f"accuracy_{verdict.accuracy}",
        metric=w.metric(accurate.metric),
        patients=_patients(facts, accurate.patients),
        difference=facts.signed(accurate.difference),
        interval=w("with_interval", interval=interval) if interval else "",
        first=w.the_family(verdict.first),
        second=w.the_family("individual"),
        bound=facts.signed(float(margin["bound"])),
        level=w.percent(float(margin["level"])),
        margin=w.number(float(margin["margin"])),
        fewest=FEWEST,
    )


def _patients(facts: Facts, count: int) -> str:
    kind = "synthetic" if facts.study.synthetic else "patient" if count == 1 else "patients"
    return facts.words(f"one_{kind}") if count == 1 else facts.words(f"n_{kind}", n=count)


def _listed(facts: Facts, compared: Sequence[Compared]) -> str:
    """Metrics with the mean difference of each, the corrected p where it tells something, and what contradicts it."""
    w = facts.words
    alpha = facts.study.statistics.alpha
    parts = []
    for one in compared:
        p = one.p_of_wins(alpha)
        which = w("corrected_p" if p == one.p else "corrected_p_two_sided")
        told = {"metric": w.metric(one.metric), "difference": facts.signed(one.difference), "which": which}
        if np.isnan(p):
            parts.append(w("difference_alone", **told))
        elif one.is_contradictory(alpha):
            interval = w.interval(one.low, one.high)
            told["interval"] = w("with_interval", interval=interval) if interval else ""
            parts.append(w("difference_contradicted", **told, wins=w.percent(one.wins), p=w.p_value(p)))
        else:
            parts.append(w("difference_p", **told, p=w.p_value(p)))
    return ", ".join(parts)


def _families(facts: Facts) -> str:
    """Which families there are, and what each is."""
    w = facts.words
    return w("families_text", families=w.joint.join(w.about_family(family) for family in facts.families))


def _answer(facts: Facts, tested: pd.DataFrame, metric: str) -> str:
    """One sentence: the means of the study's main families, and the general ensemble against models within patients."""
    w, by_family = facts.words, facts.by_family
    if by_family.empty or metric not in set(by_family["metric"]):
        return ""
    means = by_family[by_family["metric"] == metric].set_index("family")["mean"]
    told = [f"{w.family(family)} {w.number(float(means[family]))}" for family in MAIN if family in means.index]
    values: dict[str, object] = {"means": ", ".join(told)}
    values |= {"metric": w.metric(metric), "direction": w.direction(facts.directions.get(metric, ""))}
    compared = against_single(tested, "general", metric)
    if compared is None or compared["n_pairs"] == 0:
        return w("answer_means", **values)
    interval = w.interval(compared["interval_low"], compared["interval_high"])
    return w(
        "answer_line",
        **values,
        wins=w.percent(float(compared["win_probability"])),
        difference=w.number(float(compared["mean_difference"])),
        interval=w("with_interval", interval=interval) if interval else "",
        p=w.p_value(compared["better"]),
        n=int(compared["n_pairs"]),
    )


def _beaten(facts: Facts) -> list[str]:
    """Which individual models do better than the ensemble: the means of families alone would hide this."""
    lines = []
    for metric in facts.study.statistics.primary.values():
        sign = {"higher": 1, "lower": -1}.get(facts.directions.get(metric, ""), 0)
        gains = _gains(facts, metric) if sign else {}
        better = {model: gain for model, gain in gains.items() if sign * gain > ROUNDING}
        if better:
            best = max(better, key=lambda model: sign * better[model])
            lines.append(
                facts.words(
                    "beaten_line",
                    metric=facts.titled(metric),
                    ensemble=facts.lead,
                    count=len(better),
                    models=len(gains),
                    model=best,
                    difference=facts.signed(better[best]),
                )
            )
    return lines


def _gains(facts: Facts, metric: str) -> dict[str, float]:
    """Individual model → its mean difference from the leading ensemble on the patients that both have; empty without one."""
    reduced = facts.reduced
    own = reduced[(reduced["metric"] == metric) & np.isfinite(reduced["value"])]
    ensemble = own[own["predictor"] == facts.lead].set_index("patient")["value"]
    if ensemble.empty or facts.lead_family == "individual":
        return {}
    return {
        str(model): float((values.set_index("patient")["value"] - ensemble).dropna().mean())
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


def _question(facts: Facts) -> str:
    """What is asked: of CTs, or of the channels that the study names."""
    w, study = facts.words, facts.study
    is_ct = [channel.is_ct for channel in study.images] == [True]
    images = w("of_ct") if is_ct else w("on_channels", channels=w.joined([channel.name for channel in study.images]))
    said = {"images": images, "organs": ", ".join(facts.class_names[1:]), "n": len(study.organs)}
    if len(study.annotators) == 1:
        return w("question_of_one", **said)
    return w("question_text", annotators=len(study.annotators), **said)
