"""Intervals for organ volumes: what they claim and on which grounds, every interval, and how often they held."""

import math

import pandas as pd

from curvas_assets.report.blocks import Absent, Block, FigureBlock, Heading, Text
from curvas_assets.report.facts import Facts
from curvas_assets.report.figures import volume_intervals_charts
from curvas_assets.report.tables import MISSING, counted
from curvas_assets.statistics import chance_is_small, in_cm3, observed_coverage


def write(facts: Facts) -> list[Block]:
    """What is claimed, the intervals of each predictor, observed coverage, and the groups in which it falls short."""
    w, given = facts.words, facts.inputs.volume_intervals
    if given is None or given.empty:
        return [Absent(w("no_volumes"))]
    intervals, coverage = in_cm3(given), in_cm3(observed_coverage(given))
    claims = _claims(facts, given)
    blocks: list[Block] = [Text(w("volumes_text")), *([Text(w("volumes_assumption"))] if claims else []), *claims]
    for predictor, part in intervals.groupby("predictor", sort=False):
        blocks += [
            Heading(w("volumes_heading", predictor=predictor)),
            *_seen(facts, part),
            *map(
                FigureBlock,
                volume_intervals_charts(part, facts.of_metric("volume_annotator"), facts.study.annotator_names, w),
            ),
            _margins(facts, coverage[coverage["predictor"] == predictor]),
        ]
    return [*blocks, *_by_group(facts, coverage)]


def _claims(facts: Facts, intervals: pd.DataFrame) -> list[Block]:
    """What so few validation patients allow, for each number of them and the predictors whose intervals claim anything."""
    w, told = facts.words, list[Block]()
    claiming = intervals[intervals["claimed"].notna()]
    for (n, predictors), part in _by_number(claiming):
        level, attainable = float(part["level"].iloc[0]), float(part["attainable"].iloc[0])
        said = {"n": n, "of": n + 1, "level": w.percent(level), "attainable": w.percent(attainable)}
        why = w("volumes_few" if level > attainable else "volumes_enough", **said)
        organs = [w.organ(organ) for organ in part["organ"].unique()]
        every = len(organs) == len(facts.study.organs) > 3
        said |= {"organs": w("all_organs", n=len(organs)) if every else counted(organs)}
        said |= {"predictors": counted(predictors), "claimed": w.percent(min(level, attainable))}
        told.append(Text(w("volumes_claim", **said, why=why)))
    return told


def _by_number(intervals: pd.DataFrame) -> list[tuple[tuple[int, list[str]], pd.DataFrame]]:
    """Intervals by number of validation patients, and of these, predictors together that have the same organs."""
    found = []
    for n, part in intervals.groupby("n_fitted"):
        together: dict[tuple[str, ...], list[str]] = {}
        for predictor, own in part.groupby("predictor", sort=False):
            together.setdefault(tuple(own["organ"].unique()), []).append(str(predictor))
        found += [((n, names), part[part["predictor"].isin(names)]) for names in together.values()]
    return found


def _seen(facts: Facts, part: pd.DataFrame) -> list[Block]:
    """The sentence that a predictor was calibrated on the patients whose errors give its margins, if it was."""
    w = facts.words
    return [Text(w("volumes_seen"))] if part["claimed"].isna().any() else []


def _margins(facts: Facts, coverage: pd.DataFrame) -> Block:
    """Margin and coverage of each organ and target, over all patients."""
    shown = _shown(facts, coverage[coverage["group"] == ""])
    names = ("organ", "target", "n_fitted", "margin_cm3", "claimed", "n_patients", "observed", "expected", "p_so_few")
    caption = facts.words("volumes_caption")
    return facts.table(shown, facts.headings(*names), caption=caption, formats={"p_so_few": facts.words.p_value})


def _by_group(facts: Facts, coverage: pd.DataFrame) -> list[Block]:
    """Coverage of the annotators' mean in each group, where patients have groups, and where it falls short."""
    w = facts.words
    of_mean = coverage[(coverage["target"] == "mean") & (coverage["group"] != "")]
    if of_mean.empty:
        return [Heading(w("volumes_groups")), Absent(w("volumes_no_groups"))]
    names = ("predictor", "organ", "group", "claimed", "n_patients", "observed", "p_so_few")
    short = of_mean[of_mean["p"].map(chance_is_small)]
    places = [f"{w.organ(row.organ)}, {row.group} ({row.predictor})" for row in short.itertuples()]
    if places:
        said = w("volumes_short", where="; ".join(places))
    else:
        said = w("volumes_none_short" if of_mean["p"].notna().any() else "volumes_no_claim")
    table = facts.table(
        _shown(facts, of_mean),
        facts.headings(*names),
        caption=w("volumes_groups_caption"),
        formats={"p_so_few": w.p_value},
        folded=len(of_mean) > 15,
    )
    return [Heading(w("volumes_groups")), Text(said), table]


def _shown(facts: Facts, coverage: pd.DataFrame) -> pd.DataFrame:
    """Shares in per cent, with their intervals in brackets."""
    w = facts.words

    def share(value: float) -> str:
        return MISSING if math.isnan(value) else w.percent(value)

    def between(low: float, high: float) -> str:
        return "" if math.isnan(low) else w("interval", low=w.percent(low), high=w.percent(high))

    return coverage.assign(
        organ=[w.organ(organ) for organ in coverage["organ"]],
        target=[w(f"target_{target}") for target in coverage["target"]],
        margin_cm3=coverage["margin"],
        claimed=[share(value) for value in coverage["claimed"]],
        observed=[
            f"{share(row.observed)} {between(row.observed_low, row.observed_high)}".strip()
            for row in coverage.itertuples()
        ],
        expected=[between(row.expected_low, row.expected_high) or MISSING for row in coverage.itertuples()],
        p_so_few=coverage["p"],
    )
