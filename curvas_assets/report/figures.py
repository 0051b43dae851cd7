"""The report's figures of tables: each described once, for the screen and for print.

Belongs here: which marks show which table. Does not belong here: how marks are drawn (`screen`, `paper`), pictures of slices
and surfaces (`pictures`), arithmetic on scores beyond pooling what is drawn (`curvas_assets.statistics` does the rest).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from textwrap import fill
from typing import Any

import numpy as np
import pandas as pd

from curvas_assets.errors import ReportError
from curvas_assets.report.chart import (
    FEWEST_FOR_A_SHAPE,
    NOTHING,
    TALLEST_LEGEND,
    Axis,
    Band,
    Bars,
    Chart,
    Dash,
    Distribution,
    Line,
    Mark,
    Marker,
    Numbers,
    Panel,
    Points,
)
from curvas_assets.report.style import (
    ANNOTATOR_COLOURS,
    BLACK,
    BLUE,
    DASHES,
    FAMILIES,
    FAMILY_COLOURS,
    FAMILY_DASHES,
    FAMILY_MARKERS,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    VERMILION,
    colour_of,
)
from curvas_assets.report.words import Words

MOST_SIDE_BY_SIDE = 4
"""Families whose names and panels fit side by side; panels of organs and annotators, too."""
MOST_ORGANS = 6
"""Organs below each other in one figure of volumes: more do not fit on a page of paper."""
LONGEST_TITLE = 26
"""Letters of a panel's title that stand in one line."""
MARGIN = 0.04
"""Of the range of values, above and below them, where an axis is set."""
RELIABILITY_COLUMNS = ("lower", "upper", "count", "accuracy", "confidence")


# Distributions ---------------------------------------------------------------------------------------------------------


def distribution_by_family(
    scores: pd.DataFrame,
    metric: str,
    words: Words,
    *,
    unit: str = "",
    direction: str = "",
    facet: str | None = None,
    order: Sequence[str] = (),
) -> Chart:
    """Density, box and every point of a metric, by family, one panel per organ or annotator.

    Args:
        scores: `patient`, `predictor`, `family`, `metric`, `value`, and the column of the facet. NaN and infinite values
            are counted in the caption and not drawn.
        metric: the metric.
        words: the language.
        unit: of the metric; empty for none.
        direction: `higher`, `lower`, or empty.
        facet: `organ`, `annotator`, or None for one panel.
        order: panels in the order shown; others follow.
    """
    table = scores.loc[scores["metric"] == metric].copy()
    table["panel"] = table[facet].astype(str) if facet else ""
    drawn = table[np.isfinite(table["value"])]
    places = {panel: place for place, panel in enumerate(order)}
    names = sorted(drawn["panel"].unique(), key=lambda panel: places.get(panel, len(places)))
    families = [family for family in FAMILIES if family in set(table["family"])]
    are_many = len(families) > MOST_SIDE_BY_SIDE  # then panels stand above each other, and names are slanted
    names = names or [""]
    across = 1 if are_many else min(len(names), MOST_SIDE_BY_SIDE)
    limits = _limits(drawn["value"]) if across < len(names) and not are_many else None
    panels = [
        Panel(
            marks=[
                _distribution(
                    drawn[(drawn["family"] == family) & (drawn["panel"] == name)],
                    family,
                    words,
                    direction,
                    are_many=are_many,
                )
                for family in families
            ],
            title=_panel_title(facet, name, words),
            y=Axis("" if place % across else axis_title(words.metric(metric), unit, words), limits),
        )
        for place, name in enumerate(names)
    ]
    rows = [
        [*panels[at : at + across], *[NOTHING] * (at + across - len(panels))] for at in range(0, len(panels), across)
    ]
    size_in, height_px = (max(6.0, 2.7 * across + 0.8), 3.6), 460
    if are_many:
        size_in, height_px = (8.0, 2.3 * len(panels) + 1.6), 320 * len(panels) + 160
    elif len(rows) > 1:
        size_in, height_px = (size_in[0], 2.6 * len(rows) + 0.8), 330 * len(rows) + 120
    return Chart(
        name=f"{metric}_by_family" + (f"_{facet}" if facet else ""),
        title=words("distribution_title", metric=words.metric(metric), facets=words(f"per_{facet}") if facet else ""),
        caption=_distribution_caption(table, panels, facet, direction, words),
        rows=rows,
        heights=[1.0] * len(rows),
        size_in=size_in,
        height_px=height_px,
        is_shared=True,
        decimal=words.decimal,
    )


def _distribution(part: pd.DataFrame, family: str, words: Words, direction: str, *, are_many: bool) -> Distribution:
    return Distribution(
        values=part["value"].to_numpy(float),
        texts=named_worst(part, direction),
        place=words.family(family) if are_many else words.family(family).replace(" ", "\n"),
        colour=FAMILY_COLOURS[family],
        marker=FAMILY_MARKERS[family],
        labels=_whose(part),
        name=words.family(family),
    )


def _limits(values: pd.Series) -> tuple[float, float]:
    """One range for panels in several rows, so that they can be compared."""
    low, high = float(values.min()), float(values.max())
    margin = MARGIN * (high - low) or MARGIN * abs(high) or MARGIN
    return low - margin, high + margin


def _distribution_caption(
    table: pd.DataFrame, panels: Sequence[Panel], facet: str | None, direction: str, words: Words
) -> str:
    """Which side is better, what a point is, what the shapes are, how many values are not drawn, and which have no panel."""
    values = table["value"]
    finite = set(table.loc[np.isfinite(values), "panel"])
    empty = [name for name in table["panel"].unique() if name not in finite] if facet else []
    drawn = [mark for panel in panels for mark in panel.marks if isinstance(mark, Distribution) and len(mark.values)]
    shaped = [mark.has_shape for mark in drawn]
    shapes = words("shapes_all" if all(shaped) else "shapes_some", fewest=FEWEST_FOR_A_SHAPE) if any(shaped) else ""
    left_out = {"nan": int(values.isna().sum()), "infinite": int(np.isinf(values).sum())}
    return words(
        "distribution_caption",
        shapes=shapes,
        direction=words.direction(direction).capitalize(),
        point=words(f"point_{facet}") if facet else words("point"),
        left_out=(words("left_out", **left_out) if any(left_out.values()) else "")
        + (words("no_panel", names=", ".join(_panel_name(facet, name, words) for name in empty)) if empty else ""),
    )


# Reliability -----------------------------------------------------------------------------------------------------------


def pooled_reliability(bins: pd.DataFrame) -> pd.DataFrame:
    """Bins pooled over patients, predictors and annotators, by family.

    Args:
        bins: `lower`, `upper` (edges of the confidence bin), `count` (voxels), `accuracy`, `confidence` (means within
            the bin; anything where `count` is 0), and possibly `family`.

    Returns:
        `family` ("" when there was none), `lower`, `upper`, `count`, `accuracy`, `confidence`; NaN where `count` is 0.

    Raises:
        ReportError: a column is missing.
    """
    missing = [column for column in RELIABILITY_COLUMNS if column not in bins]
    if missing:
        raise ReportError(
            "drawing a reliability diagram",
            "the table of bins",
            f"it has no {', '.join(missing)}",
            f"Give the columns {list(RELIABILITY_COLUMNS)}.",
        )
    table = bins.assign(
        family=bins.get("family", ""),
        correct=(bins["count"] * bins["accuracy"]).where(bins["count"] > 0, 0.0),
        confident=(bins["count"] * bins["confidence"]).where(bins["count"] > 0, 0.0),
    )
    pooled = table.groupby(["family", "lower", "upper"], as_index=False)[["count", "correct", "confident"]].sum()
    filled = pooled["count"].where(pooled["count"] > 0)
    pooled["accuracy"] = pooled["correct"] / filled
    pooled["confidence"] = pooled["confident"] / filled
    order = {family: rank for rank, family in enumerate(FAMILIES)}
    pooled = pooled.sort_values(["family", "lower"], key=lambda c: c.map(order).fillna(9) if c.name == "family" else c)
    return pooled.drop(columns=["correct", "confident"]).reset_index(drop=True)


def reliability(bins: pd.DataFrame, words: Words) -> Chart:
    """Reliability diagram per family: accuracy against confidence, the gap, and where the voxels are.

    Args:
        bins: as for `pooled_reliability`.
        words: the language.

    Raises:
        ReportError: a column is missing.
    """
    pooled = pooled_reliability(bins)
    total = pooled.groupby("family")["count"].transform("sum")
    filled = pooled.assign(share=pooled["count"] / total)[pooled["count"] > 0]
    lowest = 10 ** np.floor(np.log10(filled["share"].min())) if len(filled) else 0.1
    families = list(pooled["family"].unique()) or [""]
    parts = [filled[filled["family"] == family] for family in families]
    if len(families) > MOST_SIDE_BY_SIDE:
        return _reliability_lines(dict(zip(families, parts, strict=True)), lowest, words)
    return Chart(
        name="reliability",
        title=words("reliability_title"),
        caption=words("reliability_caption"),
        rows=[
            [
                Panel(
                    marks=_reliability_marks(part, FAMILY_COLOURS.get(family, BLUE), words),
                    title=words.family(family),
                    x=Axis(limits=(0, 1)),
                    y=Axis("" if column else words("accuracy_axis"), (0, 1)),
                    note=_pooled_ece(part, words),
                )
                for column, (family, part) in enumerate(zip(families, parts, strict=True))
            ],
            [
                Panel(
                    marks=[_bars(part, "share", GREY)],
                    x=Axis(words("confidence_axis"), (0, 1)),
                    y=Axis("" if column else words("share_axis"), (lowest, 1), log=True),
                )
                for column, part in enumerate(parts)
            ],
        ],
        size_in=(3.1 * len(families) + 0.4, 4.5),
        height_px=520,
        heights=(0.76, 0.24),
        is_shared=True,
        legend="above",
        decimal=words.decimal,
    )


def _reliability_lines(parts: Mapping[str, pd.DataFrame], lowest: float, words: Words) -> Chart:
    """The same of many families as lines in one panel."""
    diagonal = np.array([0.0, 1.0])
    lines: list[Mark] = [Line(x=diagonal, y=diagonal, colour=GREY, width=1, name=words("perfect"))]
    shares: list[Mark] = []
    for family, part in parts.items():
        look: dict[str, Any] = {"colour": FAMILY_COLOURS.get(family, BLUE), "dash": FAMILY_DASHES.get(family, "solid")}
        x, name = part["confidence"].to_numpy(float), f"{words.family(family)}, {_pooled_ece(part, words)}"
        lines.append(Line(x=x, y=part["accuracy"].to_numpy(float), name=name, width=2, **look))
        shares.append(Line(x=x, y=part["share"].to_numpy(float), name=name, width=2, **look))
    return Chart(
        name="reliability",
        title=words("reliability_title"),
        caption=words("reliability_lines_caption"),
        rows=[
            [Panel(marks=lines, x=Axis(limits=(0, 1)), y=Axis(words("accuracy_axis"), (0, 1)))],
            [
                Panel(
                    marks=shares,
                    x=Axis(words("confidence_axis"), (0, 1)),
                    y=Axis(words("share_axis"), (lowest, 1), log=True),
                )
            ],
        ],
        size_in=(8.4, 5.2),
        height_px=620,
        heights=(0.76, 0.24),
        is_shared=True,
        decimal=words.decimal,
    )


def _reliability_marks(filled: pd.DataFrame, colour: str, words: Words) -> list[Mark]:
    """Bars of accuracy, the gap to the confidence hatched, and the diagonal."""
    labels = [
        f"{words('confidence_axis')} {words.number(confidence)}<br>{words('accuracy_axis')} {words.number(accuracy)}<br>"
        f"{words('share_axis')} {words.number(share)}"
        for confidence, accuracy, share in zip(filled["confidence"], filled["accuracy"], filled["share"], strict=True)
    ]
    gap = filled.assign(gap=filled["confidence"] - filled["accuracy"])
    return [
        _bars(filled, "accuracy", colour, name=words("accuracy"), labels=labels),
        _bars(gap, "gap", BLACK, base=filled["accuracy"].to_numpy(float), hatched=True, name=words("gap")),
        Line(x=np.array([0.0, 1.0]), y=np.array([0.0, 1.0]), colour=BLACK, dash="dash", width=1, name=words("perfect")),
    ]


def _bars(filled: pd.DataFrame, height: str, colour: str, **more: Any) -> Bars:
    """A column as bars over the bins of confidence."""
    lower, upper = filled["lower"].to_numpy(float), filled["upper"].to_numpy(float)
    return Bars(
        middle=(lower + upper) / 2, width=upper - lower, height=filled[height].to_numpy(float), colour=colour, **more
    )


def _pooled_ece(filled: pd.DataFrame, words: Words) -> str:
    """The calibration error of all voxels of a family together; empty without any."""
    if filled.empty:
        return ""
    error = float((filled["share"] * (filled["confidence"] - filled["accuracy"]).abs()).sum())
    return f"{words('pooled_ece')} {words.number(error)}"


# Risk and coverage -----------------------------------------------------------------------------------------------------


def risk_coverage_by_family(curves: pd.DataFrame, points: int = 101) -> pd.DataFrame:
    """Mean and quartiles of the risk at common coverages, by family.

    Args:
        curves: `coverage` (0 … 1, share of voxels kept), `risk`, `family`, and what tells one curve from another: any of
            `patient`, `predictor`, `annotator`.
        points: coverages on the common grid.

    Returns:
        `family`, `coverage`, `risk` (mean over curves), `q1`, `q3`, `n` curves.

    Raises:
        ReportError: a column is missing.
    """
    missing = [column for column in ("coverage", "risk", "family") if column not in curves]
    if missing:
        raise ReportError(
            "drawing risk–coverage curves",
            "the table of curves",
            f"it has no {', '.join(missing)}",
            "Give the columns coverage, risk and family.",
        )
    which = [column for column in ("patient", "predictor", "annotator") if column in curves]
    grid = np.linspace(0, 1, points)
    parts = []
    for family in [f for f in FAMILIES if f in set(curves["family"])]:
        of_family = curves[(curves["family"] == family) & curves["risk"].notna() & curves["coverage"].notna()]
        groups = of_family.groupby(which, sort=False) if which else [((), of_family)]
        risks = []
        for _, curve in groups:
            ordered = curve.sort_values("coverage", kind="stable")
            risks.append(np.interp(grid, ordered["coverage"], ordered["risk"]))
        if not risks:
            continue
        stacked = np.stack(risks)
        q1, q3 = np.quantile(stacked, [0.25, 0.75], axis=0)
        parts.append(
            pd.DataFrame(
                {"family": family, "coverage": grid, "risk": stacked.mean(axis=0), "q1": q1, "q3": q3, "n": len(risks)}
            )
        )
    return (
        pd.concat(parts, ignore_index=True)
        if parts
        else pd.DataFrame(columns=["family", "coverage", "risk", "q1", "q3", "n"])
    )


def risk_coverage(curves: pd.DataFrame, words: Words) -> Chart:
    """Risk against coverage, one line per family, with its quartiles.

    Args:
        curves: as for `risk_coverage_by_family`.
        words: the language.

    Raises:
        ReportError: a column is missing.
    """
    marks: list[Mark] = []
    for family, part in risk_coverage_by_family(curves).groupby("family", sort=False):
        colour, name, x = FAMILY_COLOURS[str(family)], words.family(str(family)), part["coverage"].to_numpy(float)
        marks += [
            Band(x=x, low=part["q1"].to_numpy(float), high=part["q3"].to_numpy(float), colour=colour, name=name),
            Line(
                x=x,
                y=part["risk"].to_numpy(float),
                colour=colour,
                dash=FAMILY_DASHES[str(family)],
                width=2,
                name=name,
            ),
        ]
    panel = Panel(marks=marks, x=Axis(words("coverage_axis"), (0, 1)), y=Axis(words("risk_axis"), (0, None)))
    return Chart(
        name="risk_coverage",
        title=words("risk_title"),
        caption=words("risk_caption"),
        rows=[[panel]],
        size_in=(6.4, 3.4),
        height_px=420,
        is_read_across=True,
        decimal=words.decimal,
    )


# Accuracy against uncertainty ------------------------------------------------------------------------------------------


def dice_against_entropy_chart(pairs: pd.DataFrame, words: Words, *, entropy_unit: str = "nats") -> Chart:
    """Mean Dice against predictive entropy, one point per patient and predictor.

    Args:
        pairs: from `curvas_assets.statistics.paired_scores`: `patient`, `predictor`, `family`, `x` (entropy), `y` (Dice).
        words: the language.
        entropy_unit: of `x`.
    """
    drawn = pairs[np.isfinite(pairs["x"]) & np.isfinite(pairs["y"])]
    marks: list[Mark] = []
    first = next((family for family in FAMILIES if family in set(drawn["family"])), "")
    for family in reversed(FAMILIES):  # the fewest points on top
        part = drawn[drawn["family"] == family]
        if len(part):
            marks.append(
                Points(
                    x=part["x"].to_numpy(float),
                    y=part["y"].to_numpy(float),
                    colour=FAMILY_COLOURS[family],
                    marker=FAMILY_MARKERS[family],
                    labels=_whose(part),
                    name=words.family(family),
                    texts=named_worst(part.assign(value=part["y"]), "higher") if family == first else (),
                )
            )
    if len(drawn) >= 3 and np.ptp(drawn["x"]) > 0:
        slope, intercept = np.polyfit(drawn["x"], drawn["y"], 1)
        ends = np.array([drawn["x"].min(), drawn["x"].max()])
        marks.append(Line(x=ends, y=slope * ends + intercept, colour=BLACK, dash="dash"))
    panel = Panel(
        marks=marks,
        x=Axis(axis_title(words.metric("predictive_entropy"), entropy_unit, words)),
        y=Axis(axis_title(words.metric("dice"), "", words)),
    )
    return Chart(
        name="dice_against_entropy",
        title=words("scatter_title"),
        caption=words("scatter_caption"),
        rows=[[panel]],
        size_in=(6.6, 3.6),
        height_px=440,
        listed=[words.family(family) for family in FAMILIES],
        decimal=words.decimal,
    )


# Volumes ---------------------------------------------------------------------------------------------------------------


def volume_intervals_chart(
    intervals: pd.DataFrame, scores: pd.DataFrame, annotators: Sequence[str], words: Words
) -> Chart:
    """One predictor's intervals, patient by patient, beside the volumes that the annotators drew; a row for each organ.

    Args:
        intervals: from `curvas_assets.statistics.volume_intervals`, of one predictor, in cm³.
        scores: long scores with `volume_annotator` in cm³.
        annotators: their names, in the study's order.
        words: the language.
    """
    predictor, patients = str(intervals["predictor"].iloc[0]), sorted(intervals["patient"].unique())
    organs = list(intervals["organ"].unique())
    drawn = scores[(scores["metric"] == "volume_annotator") & (scores["predictor"] == predictor)]
    rows = [
        [
            Panel(
                marks=_interval_marks(
                    intervals[intervals["organ"] == organ], drawn[drawn["organ"] == organ], patients, annotators, words
                ),
                title=words.organ(organ),
                x=Axis(words("patient_axis") if organ == organs[-1] else "", places=patients),
                y=Axis(axis_title(words("volume_axis"), "cm³", words), (0, None)),
            )
        ]
        for organ in organs
    ]
    return Chart(
        name=f"volumes_{predictor}",
        title=words("volumes_title", predictor=predictor),
        caption=words("volumes_figure"),
        rows=rows,
        size_in=(min(12.0, 4.4 + 0.13 * len(patients)), 0.9 + 1.9 * len(organs)),
        height_px=120 + 240 * len(organs),
        heights=[1.0] * len(organs),
        is_shared=True,
        decimal=words.decimal,
    )


def volume_intervals_charts(
    intervals: pd.DataFrame, scores: pd.DataFrame, annotators: Sequence[str], words: Words
) -> list[Chart]:
    """As `volume_intervals_chart`; of many organs in several figures of about as many organs each."""
    organs = list(intervals["organ"].unique())
    parts = [list(part) for part in np.array_split(np.array(organs, dtype=object), -(-len(organs) // MOST_ORGANS))]
    charts = []
    for number, part in enumerate(parts, start=1):
        chart = volume_intervals_chart(intervals[intervals["organ"].isin(part)], scores, annotators, words)
        if len(parts) > 1:
            title = chart.title + words("part_of", part=number, parts=len(parts))
            chart = replace(chart, name=f"{chart.name}_{number}", title=title)
        charts.append(chart)
    return charts


def _interval_marks(
    intervals: pd.DataFrame, drawn: pd.DataFrame, patients: Sequence[str], annotators: Sequence[str], words: Words
) -> list[Mark]:
    """Bars for the annotators' mean, lines for one annotator, the predicted volumes and those that were drawn."""
    place = {patient: at for at, patient in enumerate(patients)}
    of_mean, of_one = (intervals[intervals["target"] == target] for target in ("mean", "annotator"))
    ends, gap = of_one[["lower", "upper"]].to_numpy(float), np.full(len(of_one), np.nan)
    x, low = _placed(of_mean, place), of_mean["lower"].to_numpy(float)
    marks: list[Mark] = [
        Bars(
            middle=x,
            width=np.full(len(x), 0.5),
            height=of_mean["upper"].to_numpy(float) - low,
            base=low,
            colour="#C9CDD3",
            name=words("interval_of_mean"),
            labels=[
                f"{row.patient}<br>{words.interval(row.lower, row.upper)} cm³<br>"
                + words("drawn_mean", volume=words.number(row.drawn_mean))
                for row in of_mean.itertuples()
            ],
        ),
        Line(
            x=np.repeat(_placed(of_one, place), 3),
            y=np.column_stack([ends, gap]).ravel(),
            colour=GREY,
            name=words("interval_of_annotator"),
        ),
        Points(
            x=x,
            y=of_mean["volume"].to_numpy(float),
            colour=BLACK,
            marker="square",
            labels=[f"{patient}<br>{words('predicted')}" for patient in of_mean["patient"]],
            name=words("predicted"),
        ),
    ]
    for number, name in enumerate(annotators, start=1):
        own = drawn[(drawn["annotator"] == name) & drawn["value"].notna() & drawn["patient"].isin(patients)]
        said = words("annotator_n", name=name)
        marks.append(
            Points(
                x=_placed(own, place) + 0.3 * (number - (len(annotators) + 1) / 2) / max(len(annotators), 1),
                y=own["value"].to_numpy(float),
                colour=colour_of(ANNOTATOR_COLOURS, number - 1),
                marker=colour_of(("circle", "triangle-up", "diamond", "triangle-down", "pentagon"), number - 1),
                labels=[f"{patient}<br>{said}" for patient in own["patient"]],
                name=said,
            )
        )
    return marks


def _placed(table: pd.DataFrame, place: Mapping[str, int]) -> np.ndarray:
    return table["patient"].map(place).to_numpy(float)


# Estimates with their intervals ----------------------------------------------------------------------------------------

VERDICTS: Mapping[str, tuple[str, Marker]] = {
    "not_inferior": (BLUE, "circle"),
    "not_shown": (VERMILION, "square"),
    "no_bound": (GREY, "triangle-up"),
}
"""What is told of a pair → its colour and marker."""


def forest(
    margins: pd.DataFrame, places: Sequence[str], words: Words, *, direction: str = "higher", unit: str = ""
) -> Chart:
    """Mean difference of each pair with its one-sided bound, and the margin that the bound must not pass.

    Args:
        margins: rows of one metric from `non_inferiority`, in the unit shown.
        places: what the pairs are called, in the same order.
        words: the language.
        direction: `higher` or `lower`: on which side the metric is better.
        unit: of the metric; empty for none.
    """
    metric = words.metric(str(margins["metric"].iloc[0]))
    margin, bound = float(margins["margin"].iloc[0]), margins["bound"].to_numpy(float)
    mean, at = margins["mean_difference"].to_numpy(float), np.arange(len(margins), dtype=float)
    holds = margins["not_inferior"].fillna(False).to_numpy(bool)
    kinds = np.where(np.isnan(bound), "no_bound", np.where(holds, "not_inferior", "not_shown"))
    limit = margin if direction == "lower" else -margin
    marks: list[Mark] = [_upright(limit, len(at), "dash", words("margin_line")), _upright(0.0, len(at), "dot")]
    for kind, (colour, marker) in VERDICTS.items():
        own = (kinds == kind) & np.isfinite(mean)
        if not own.any():
            continue
        labels = [
            f"{place}<br>{words('mean_and_bound', mean=words.number(one), bound=words.number(two))}"
            for place, one, two, is_own in zip(places, mean, bound, own, strict=True)
            if is_own
        ]
        marks += [
            _whiskers(mean[own], bound[own], at[own], colour),
            Points(
                x=mean[own],
                y=at[own],
                colour=colour,
                marker=marker,
                labels=labels,
                name=words(f"told_{kind}"),
                is_large=True,
            ),
        ]
    panel = Panel(
        marks=marks,
        x=Axis(axis_title(words("difference_of", metric=metric), unit, words)),
        y=Axis(places=tuple(places)),
    )
    return Chart(
        name=f"non_inferiority_{margins['metric'].iloc[0]}",
        title=words("forest_title", metric=metric),
        caption=words("forest_caption", margin=words.number(margin)),
        rows=[[panel]],
        size_in=(7.2, 1.3 + 0.3 * len(at)),
        height_px=180 + 34 * len(at),
        legend="below",
        decimal=words.decimal,
    )


def variance_shares(components: pd.DataFrame, words: Words) -> Chart:
    """Share of the variance that each component carries, with its interval, one panel per metric.

    Args:
        components: rows with numbers from `variance_components`; every metric has the same components.
        words: the language.
    """
    names = list(dict.fromkeys(components["component"]))
    panels = []
    for column, (metric, part) in enumerate(components.groupby("metric", sort=False)):
        at = np.array([names.index(name) for name in part["component"]], float)
        share, low, high = (part[name].to_numpy(float) for name in ("share", "share_low", "share_high"))
        labels = [
            f"{words.component(str(name))}<br>{words.percent(one)} ({words.percent(least)} … {words.percent(most)})"
            for name, one, least, most in zip(part["component"], share, low, high, strict=True)
        ]
        marks: list[Mark] = [
            _whiskers(low, high, at, BLUE),
            Points(
                x=share,
                y=at,
                colour=BLUE,
                marker="circle",
                labels=labels,
                name=words("share_of_variance"),
                is_large=True,
            ),
        ]
        panels.append(
            Panel(
                marks=marks,
                title=words.metric(str(metric)),
                x=Axis(words("variance_axis"), (-0.02, 1.02)),
                y=Axis(places=[words.component(name) for name in names] if column == 0 else [" "] * len(names)),
            )
        )
    return Chart(
        name="variance_components",
        title=words("variance_figure"),
        caption=words("variance_caption"),
        rows=[panels],
        size_in=(max(6.0, 2.1 * len(panels) + 1.6), 3.0),
        height_px=380,
        legend="below",
        decimal=words.decimal,
    )


def precision_forecast(precision: pd.DataFrame, words: Words, units: Mapping[str, str]) -> Chart:
    """Standard error of the mean against the number of seeds: a line per number of annotators, a column per metric.

    Above for new patients, annotators and seeds, below for new annotators and seeds on the same patients.

    Args:
        precision: from `projected_precision`, finite numbers of seeds.
        words: the language.
        units: metric → unit shown.
    """
    looks = tuple(zip((GREEN, BLUE, ORANGE, PURPLE), DASHES, strict=False))
    rows: list[list[Panel]] = []
    for which in ("standard_error", "same_patients"):
        panels = []
        for metric, part in precision.groupby("metric", sort=False):
            marks: list[Mark] = []
            for number, (annotators, line) in enumerate(part.groupby("annotators", sort=True)):
                colour, dash = colour_of(looks, number)
                count = words("without_limit") if np.isinf(float(annotators)) else f"{annotators:g}"
                name = words("annotators_n", n=count)
                x, y = line["seeds"].to_numpy(float), line[which].to_numpy(float)
                marks.append(Line(x=x, y=y, colour=colour, dash=dash, is_marked=True, name=name))
            studied = part[part["as_studied"]]
            here = {"x": studied["seeds"].to_numpy(float), "y": studied[which].to_numpy(float)}
            labels = [words("as_studied")] * len(studied)
            marks.append(
                Points(**here, colour=BLACK, marker="square", labels=labels, name=words("as_studied"), is_large=True)
            )
            title = axis_title(words(f"{which}_axis"), units.get(str(metric), ""), words)
            named = words.metric(str(metric)) if which == "standard_error" else ""
            panels.append(
                Panel(marks=marks, title=named, x=Axis(words("seeds_axis"), whole=True), y=Axis(title, (0, None)))
            )
        rows.append(panels)
    return Chart(
        name="precision_forecast",
        title=words("precision_title"),
        caption=words("precision_caption"),
        rows=rows,
        size_in=(max(6.0, 2.8 * len(rows[0]) + 0.6), 5.2),
        height_px=640,
        heights=(0.5, 0.5),
        legend="below",
        decimal=words.decimal,
    )


def _upright(x: float, rows: int, dash: Dash, name: str = "") -> Line:
    """A line from top to bottom of a panel of places."""
    return Line(x=np.array([x, x]), y=np.array([-0.5, rows - 0.5]), colour=BLACK, dash=dash, width=1.2, name=name)


def _whiskers(start: Numbers, end: Numbers, at: Numbers, colour: str) -> Line:
    """One horizontal line for each place; none where an end is missing."""
    nothing = np.full(len(at), np.nan)
    x, y = np.stack([start, end, nothing], axis=1), np.stack([at, at, nothing], axis=1)
    x[np.isnan(start) | np.isnan(end)] = np.nan
    return Line(x=x.ravel(), y=y.ravel(), colour=colour, width=3)


# Training --------------------------------------------------------------------------------------------------------------


def training_curves(curves: Mapping[str, pd.DataFrame], words: Words) -> Chart:
    """Training loss and EMA pseudo-Dice of all models: a colour per annotator, a dash per model of the same one.

    Args:
        curves: model → table with `epoch`, `train_loss`, `ema_dice`.
        words: the language.
    """
    annotators = list(dict.fromkeys(_annotator(model) for model in curves))
    siblings = {one: [model for model in curves if _annotator(model) == one] for one in annotators}
    panels = [
        Panel(
            marks=[
                Line(
                    x=curve["epoch"].to_numpy(float),
                    y=curve[column].to_numpy(float),
                    colour=colour_of(ANNOTATOR_COLOURS, annotators.index(_annotator(model))),
                    dash=colour_of(DASHES, siblings[_annotator(model)].index(model)),
                    is_marked=len(curve) == 1,  # of a single epoch there is no line to see
                    name=model,
                )
                for model, curve in curves.items()
                if column in curve
            ],
            x=Axis(words("epoch")),
            y=Axis(title),
        )
        for column, title in (("train_loss", words("loss_axis")), ("ema_dice", words("dice_axis")))
    ]
    return Chart(
        name="training_curves",
        title=words("curves_title"),
        caption=words("curves_caption"),
        rows=[panels],
        size_in=(6.7 + 2.1 * max(1, -(-len(curves) // TALLEST_LEGEND)), 3.0),
        decimal=words.decimal,
    )


def _annotator(model: str) -> str:
    return model.split("_")[0]


# Shared ----------------------------------------------------------------------------------------------------------------


def axis_title(name: str, unit: str, words: Words) -> str:
    """`name (unit)`, and `(no unit)` said where there is none."""
    return f"{name} ({unit or words('no_unit')})"


def _whose(part: pd.DataFrame) -> list[str]:
    """The patient and predictor of each row, one above the other."""
    return (part["patient"] + "<br>" + part["predictor"]).to_list()


def named_worst(part: pd.DataFrame, direction: str, *, most: int = 1) -> list[str]:
    """The patient's name of each value that shall have one on paper: of all if they are few, or else of the worst."""
    if len(part) <= most:
        return part["patient"].astype(str).to_list()
    if direction not in ("higher", "lower"):
        return [""] * len(part)
    values = part["value"].to_numpy(float)
    worst = int(np.argmin(values) if direction == "higher" else np.argmax(values))
    return [str(patient) if at == worst else "" for at, patient in enumerate(part["patient"])]


def _panel_title(facet: str | None, panel: str, words: Words) -> str:
    """The panel's name in lines that fit above it."""
    return fill(_panel_name(facet, panel, words), LONGEST_TITLE, break_long_words=False)


def _panel_name(facet: str | None, panel: str, words: Words) -> str:
    return words("annotator_n", name=panel) if facet == "annotator" else words.organ(panel)
