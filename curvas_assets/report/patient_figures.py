"""The report's figures of patients: every value under the name of its patient, and groups of patients beside each other.

Belongs here: charts in which a patient has a place or a name. Does not belong here: distributions of families (`figures`),
pictures of slices (`pictures`), who is an outlier (`curvas_assets.statistics.outliers`).
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from curvas_assets.report.chart import Axis, Chart, Distribution, Mark, Panel, Points
from curvas_assets.report.figures import axis_title, named_worst
from curvas_assets.report.style import BLACK, BLUE, FAMILIES, FAMILY_COLOURS, FAMILY_MARKERS, GREY, VERMILION
from curvas_assets.report.words import Words

MOST_POINTS = 20_000
"""Points that a figure has at most; with more, families have one point a patient, the mean of their predictors."""
MOST_NAMES = 200
"""Names that stand along an axis at most."""
SPREAD = 0.6
"""Share of a patient's place over which its families stand side by side."""
FEW = 12
"""Values of a group up to which each has its patient's name on paper."""


def values_by_patient(
    reduced: pd.DataFrame,
    metrics: Sequence[str],
    patients: Sequence[str],
    outliers: pd.DataFrame,
    words: Words,
    *,
    units: Mapping[str, str],
    directions: Mapping[str, str],
) -> Chart:
    """Every value above the name of its patient, one panel a metric; outliers have a ring.

    Args:
        reduced: from `reduce_scores`. Undefined and infinite values are counted in the caption and not drawn.
        metrics: one panel each.
        patients: in the order shown.
        outliers: from `find_outliers`.
        words: the language.
        units: metric → its unit.
        directions: metric → `higher` or `lower`.
    """
    own = reduced[reduced["metric"].isin(list(metrics)) & reduced["patient"].isin(list(patients))]
    drawn = own[np.isfinite(own["value"].astype(float))]
    is_mean = len(drawn) > MOST_POINTS
    place = {patient: at for at, patient in enumerate(patients)}
    families = [family for family in FAMILIES if family in set(drawn["family"])]
    aside = {one: SPREAD * (at - (len(families) - 1) / 2) / len(families) for at, one in enumerate(families)}
    names = list(patients) if len(patients) <= MOST_NAMES else []
    panels = [
        Panel(
            marks=[
                *_families(drawn[drawn["metric"] == metric], place, aside, words, is_mean=is_mean),
                *_rings(outliers[outliers["metric"] == metric], place, aside, words, is_drawn=not is_mean),
            ],
            title=words(
                "panel_of_metric", metric=words.metric(metric), direction=words.direction(directions.get(metric, ""))
            ),
            x=Axis(words("patient_axis") if at == len(metrics) - 1 else "", (-0.6, len(patients) - 0.4), places=names),
            y=Axis(axis_title(words.short_metric(metric), units.get(metric, ""), words)),
        )
        for at, metric in enumerate(metrics)
    ]
    left_out = {"nan": int(own["value"].isna().sum()), "infinite": int(np.isinf(own["value"].astype(float)).sum())}
    return Chart(
        name="values_by_patient",
        title=words("values_title"),
        caption=words(
            "values_caption",
            point=words("point_of_family" if is_mean else "point"),
            left_out=words("left_out", **left_out) if any(left_out.values()) else "",
        ),
        rows=[[panel] for panel in panels],
        size_in=(float(np.clip(0.14 * len(patients) + 2.2, 6.6, 40)), 2.1 * len(panels) + 0.9),
        height_px=230 * len(panels) + 130,
        heights=[1.0] * len(panels),
        is_shared=True,
        legend="above",
        listed=[words.family(family) for family in families],
        decimal=words.decimal,
    )


def _families(
    part: pd.DataFrame, place: Mapping[str, int], aside: Mapping[str, float], words: Words, *, is_mean: bool
) -> list[Mark]:
    """The points of each family; those of few predictors on top of those of many."""
    marks: list[Mark] = []
    present = [family for family in FAMILIES if family in set(part["family"])]
    for family in sorted(present, key=lambda one: -int((part["family"] == one).sum())):
        own = part[part["family"] == family]
        if is_mean:
            counts = own.groupby("patient", sort=False)["value"].agg(["mean", "size"])
            who = [words("mean_of_family", n=int(n), family=words.family(family)) for n in counts["size"]]
            own = pd.DataFrame({"patient": counts.index, "predictor": who, "value": counts["mean"].to_numpy(float)})
        marks.append(
            Points(
                x=own["patient"].map(place).to_numpy(float) + aside[family],
                y=own["value"].to_numpy(float),
                colour=FAMILY_COLOURS[family],
                marker=FAMILY_MARKERS[family],
                labels=(own["patient"] + "<br>" + own["predictor"]).to_list(),
                name=words.family(family),
                is_placed=True,
            )
        )
    return marks


def _rings(
    outliers: pd.DataFrame, place: Mapping[str, int], aside: Mapping[str, float], words: Words, *, is_drawn: bool
) -> list[Mark]:
    own = outliers[np.isfinite(outliers["value"].astype(float)) & outliers["patient"].isin(list(place))]
    if own.empty or not is_drawn:
        return []
    patients = own["patient"].astype(str)
    return [
        Points(
            x=patients.map(dict(place)).to_numpy(float) + own["family"].map(aside).to_numpy(float),
            y=own["value"].to_numpy(float),
            colour=BLACK,
            marker="ring",
            labels=(patients + "<br>" + own["predictor"].astype(str) + "<br>" + words("outlier")).to_list(),
            name=words("outlier"),
            is_placed=True,
        )
    ]


def values_by_group(
    reduced: pd.DataFrame,
    metrics: Sequence[str],
    predictor: str,
    words: Words,
    *,
    units: Mapping[str, str],
    directions: Mapping[str, str],
    in_distribution: str | None,
) -> Chart:
    """One predictor's values in each group of patients, one panel a metric; the group that models trained on first.

    Args:
        reduced: from `reduce_scores`, with `group`.
        metrics: one panel each.
        predictor: whose values.
        words: the language.
        units: metric → its unit.
        directions: metric → `higher` or `lower`.
        in_distribution: the group that models trained on, if it is known.
    """
    own = reduced[(reduced["predictor"] == predictor) & reduced["metric"].isin(list(metrics))]
    drawn = own[np.isfinite(own["value"].astype(float))]
    groups = sorted(set(drawn["group"]), key=lambda group: (group != in_distribution, group))
    panels = []
    for metric in metrics:
        marks: list[Mark] = []
        for group in groups:
            part = drawn[(drawn["metric"] == metric) & (drawn["group"] == group)]
            marks.append(
                Distribution(
                    values=part["value"].to_numpy(float),
                    place=group or words("no_group"),
                    colour=BLUE if group == in_distribution else VERMILION if in_distribution and group else GREY,
                    marker="circle" if group == in_distribution else "square",
                    labels=part["patient"].to_list(),
                    name=words("group_n", group=group or words("no_group")),
                    texts=named_worst(part, directions.get(metric, ""), most=FEW),
                )
            )
        panels.append(Panel(marks=marks, y=Axis(axis_title(words.short_metric(metric), units.get(metric, ""), words))))
    return Chart(
        name="values_by_group",
        title=words("groups_title"),
        caption=words("groups_caption", predictor=predictor),
        rows=[panels],
        size_in=(max(6.0, 2.6 * len(panels)), 3.3),
        height_px=420,
        decimal=words.decimal,
    )
