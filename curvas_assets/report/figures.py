"""The report's charts, each as an interactive plotly figure and as a matplotlib figure for print, from the same tidy data.

Belongs here: charts of tables. Does not belong here: pictures of slices and surfaces (`pictures`), text, arithmetic on
scores beyond pooling what is drawn (`curvas_assets.statistics` does the rest).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from curvas_assets.errors import ReportError
from curvas_assets.report.strokes import draw_reliability
from curvas_assets.report.style import (
    BLACK,
    BLUE,
    FAMILIES,
    FAMILY_COLOURS,
    FAMILY_DASHES,
    FAMILY_MARKERS,
    FAMILY_SYMBOLS,
    GREY,
    ImageFormat,
    new_figure,
    picture,
    pictures,
)
from curvas_assets.report.words import Words

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FEWEST_FOR_A_SHAPE = 8
"""Points below which a distribution is drawn as its points and their mean: a density or quartiles of three say nothing."""
NOTHING = "rgba(0,0,0,0)"
RELIABILITY_COLUMNS = ("lower", "upper", "count", "accuracy", "confidence")


@dataclass(frozen=True)
class Chart:
    """One figure of the report, drawn twice from the same data.

    Args:
        name: file stem, unique in a report.
        title: heading.
        caption: what is shown, with units and what is left out.
        plotly: draws it for the screen.
        matplotlib: draws it for print.
    """

    name: str
    title: str
    caption: str
    plotly: "Callable[[], go.Figure]"
    matplotlib: "Callable[[], Figure]"

    def interactive(self) -> "go.Figure":
        """The plotly figure."""
        return self.plotly()

    def image(self, image_format: ImageFormat = "png") -> bytes:
        """The printed figure as PNG, SVG or PDF."""
        return picture(self.matplotlib(), image_format)

    def images(self, image_formats: Sequence[ImageFormat]) -> dict[ImageFormat, bytes]:
        """The printed figure in several formats, drawn once."""
        return pictures(self.matplotlib(), image_formats) if image_formats else {}


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
    """Violin, box and every point of a metric, by family, one panel per organ or annotator.

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
    left_out = {"nan": int(table["value"].isna().sum()), "infinite": int(np.isinf(table["value"]).sum())}
    drawn = table[np.isfinite(table["value"])]
    families = [family for family in FAMILIES if family in set(table["family"])]
    places = {panel: place for place, panel in enumerate(order)}
    panels = sorted(drawn["panel"].unique(), key=lambda panel: (places.get(panel, len(places)), _natural(panel))) or [
        ""
    ]
    titles = [_panel_title(facet, panel, words) for panel in panels]
    axis = axis_title(words.metric(metric), unit, words)
    counts = drawn.groupby(["family", "panel"]).size()
    shaped = counts >= FEWEST_FOR_A_SHAPE
    shapes = (
        "" if not shaped.any() else words("shapes_all" if shaped.all() else "shapes_some", fewest=FEWEST_FOR_A_SHAPE)
    )
    caption = words(
        "distribution_caption",
        shapes=shapes,
        direction=words(direction if direction in ("higher", "lower") else "neither").capitalize(),
        point=words(f"point_{facet}" if facet else "point"),
        left_out=words("left_out", **left_out) if any(left_out.values()) else "",
    )

    def plotly() -> "go.Figure":
        import plotly.graph_objects as go
        from plotly.subplots import make_subplots

        figure = make_subplots(
            cols=len(panels), shared_yaxes=True, horizontal_spacing=0.02, subplot_titles=titles if facet else None
        )
        for column, panel in enumerate(panels, start=1):
            for family in families:
                part = drawn[(drawn["family"] == family) & (drawn["panel"] == panel)]
                has_shape = len(part) >= FEWEST_FOR_A_SHAPE
                colour = FAMILY_COLOURS[family]
                figure.add_trace(
                    go.Violin(
                        y=part["value"].to_numpy(),
                        x=np.full(
                            len(part), words.family(family).replace(" ", "<br>") if facet else words.family(family)
                        ),
                        name=words.family(family),
                        legendgroup=family,
                        showlegend=False,
                        line_color=colour if has_shape else NOTHING,
                        fillcolor=faint(colour, 0.18) if has_shape else NOTHING,
                        marker={
                            "symbol": FAMILY_SYMBOLS[family],
                            "size": 4 if has_shape else 8,
                            "opacity": 0.55,
                            "color": colour,
                        },
                        points="all",
                        pointpos=0,
                        jitter=0.5,
                        box={"visible": has_shape, "width": 0.25, "fillcolor": "rgba(255,255,255,0.75)"},
                        meanline={"visible": True, "color": colour, "width": 2},
                        spanmode="hard",
                        scalegroup=f"{family} {panel}",  # else panels of a narrow spread make the others thin
                        # The mean's line is as wide as the density there: of few points, make it as wide as it goes.
                        bandwidth=None if has_shape or part.empty else float(np.ptp(part["value"])) or None,
                        text=(part["patient"] + "<br>" + part["predictor"]).to_list(),
                        hoveron="points+kde" if has_shape else "points",
                        hovertemplate="%{text}<br>%{y:.4g}<extra></extra>",
                    ),
                    row=1,
                    col=column,
                )
        figure.update_yaxes(title_text=axis, col=1)
        figure.update_xaxes(tickangle=0)
        figure.update_layout(height=460, violingap=0.15)
        return dressed(figure, words)

    def printed() -> "Figure":
        figure = new_figure(max(6.0, 2.7 * len(panels) + 0.8), 3.6)
        grid = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        scatter = np.random.default_rng(0)  # sideways spread of the points only
        for axes, panel, title in zip(grid, panels, titles, strict=True):
            for position, family in enumerate(families):
                part = drawn[(drawn["family"] == family) & (drawn["panel"] == panel)]
                _draw_distribution(axes, part["value"].to_numpy(float), position, family, scatter)
            axes.set_xticks(range(len(families)), [words.family(f).replace(" ", "\n") for f in families], fontsize=7)
            axes.set_xlim(-0.6, len(families) - 0.4)
            axes.tick_params(axis="y", labelsize=7)
            axes.grid(axis="y", alpha=0.25, lw=0.5)
            axes.set_title(title, fontsize=9)
        grid[0].set_ylabel(axis, fontsize=8)
        return figure

    name = f"{metric}_by_family" + (f"_{facet}" if facet else "")
    title = words("distribution_title", metric=words.metric(metric), facets=words(f"per_{facet}") if facet else "")
    return Chart(name, title, caption, plotly, printed)


def _draw_distribution(axes: "Axes", values: np.ndarray, at: int, family: str, scatter: np.random.Generator) -> None:
    colour = FAMILY_COLOURS[family]
    if not values.size:
        return
    if values.size < FEWEST_FOR_A_SHAPE:
        axes.hlines(values.mean(), at - 0.3, at + 0.3, color=BLACK, lw=1, ls="--")
    else:
        _draw_shape(axes, values, at, colour)
    axes.scatter(
        at + scatter.uniform(-0.22, 0.22, values.size),
        values,
        s=5 if values.size >= FEWEST_FOR_A_SHAPE else 18,
        marker=FAMILY_MARKERS[family],
        color=colour,
        alpha=0.45,
        linewidths=0,
        zorder=3,
    )


def _draw_shape(axes: "Axes", values: np.ndarray, at: int, colour: str) -> None:
    """Density and box of values."""
    if np.unique(values).size >= 3:  # a density needs spread
        body = axes.violinplot([values], positions=[at], widths=0.85, showextrema=False)["bodies"]
        for shape in body:  # type: ignore[union-attr]
            shape.set(facecolor=colour, alpha=0.2, edgecolor=colour)
    axes.boxplot(
        [values],
        positions=[at],
        widths=0.22,
        showfliers=False,
        showmeans=True,
        meanline=True,
        patch_artist=True,
        manage_ticks=False,
        boxprops={"facecolor": "white", "alpha": 0.8, "edgecolor": colour, "lw": 1},
        medianprops={"color": colour, "lw": 1.6},
        meanprops={"color": BLACK, "lw": 1, "ls": "--"},
        whiskerprops={"color": colour, "lw": 1},
        capprops={"color": colour, "lw": 1},
    )


# Reliability -----------------------------------------------------------------------------------------------------------


def reliability(bins: pd.DataFrame, words: Words) -> Chart:
    """Reliability diagram per family: accuracy against confidence, the gap, and where the voxels are.

    Args:
        bins: as for `pooled_reliability`.
        words: the language.
    """
    pooled = pooled_reliability(bins)
    families = list(pooled["family"].unique()) or [""]
    shares = pooled["count"] / pooled.groupby("family")["count"].transform("sum").where(lambda total: total > 0)
    lowest = float(np.floor(np.log10(shares[shares > 0].min()))) if (shares > 0).any() else -1.0

    def plotly() -> "go.Figure":
        import plotly.graph_objects as go
        from plotly.subplots import make_subplots

        figure = make_subplots(
            rows=2,
            cols=len(families),
            row_heights=[0.76, 0.24],
            shared_xaxes=True,
            shared_yaxes=True,
            horizontal_spacing=0.03,
            vertical_spacing=0.04,
            subplot_titles=[words.family(family) for family in families],
        )
        for column, family in enumerate(families, start=1):
            part = pooled[(pooled["family"] == family) & (pooled["count"] > 0)]
            colour = FAMILY_COLOURS.get(family, BLUE)
            middle = ((part["lower"] + part["upper"]) / 2).to_numpy()
            width = (part["upper"] - part["lower"]).to_numpy()
            share = (part["count"] / max(float(part["count"].sum()), 1.0)).to_numpy()
            bars = {"x": middle, "width": width, "showlegend": column == 1}
            figure.add_trace(
                go.Bar(
                    **bars,
                    y=part["accuracy"].to_numpy(),
                    marker={"color": colour, "line": {"color": "white", "width": 0.5}},
                    name=words("accuracy"),
                    legendgroup="accuracy",
                    customdata=np.column_stack([part["confidence"], share]),
                    hovertemplate=f"{words('confidence_axis')} %{{customdata[0]:.3f}}<br>{words('accuracy_axis')} %{{y:.3f}}<br>"
                    f"{words('share_axis')} %{{customdata[1]:.2e}}<extra></extra>",
                ),
                row=1,
                col=column,
            )
            figure.add_trace(
                go.Bar(
                    **bars,
                    y=(part["confidence"] - part["accuracy"]).to_numpy(),
                    base=part["accuracy"].to_numpy(),
                    marker={
                        "color": "rgba(255,255,255,0.25)",
                        "pattern": {"shape": "/", "fgcolor": BLACK, "size": 5, "solidity": 0.25},
                        "line": {"color": BLACK, "width": 0.5},
                    },
                    name=words("gap"),
                    legendgroup="gap",
                    hoverinfo="skip",
                ),
                row=1,
                col=column,
            )
            figure.add_trace(
                go.Scatter(
                    x=[0, 1],
                    y=[0, 1],
                    mode="lines",
                    line={"color": BLACK, "dash": "dash", "width": 1},
                    name=words("perfect"),
                    legendgroup="perfect",
                    showlegend=column == 1,
                    hoverinfo="skip",
                ),
                row=1,
                col=column,
            )
            figure.add_trace(
                go.Bar(x=middle, width=width, y=share, marker_color=GREY, showlegend=False, hoverinfo="skip"),
                row=2,
                col=column,
            )
            figure.update_xaxes(title_text=words("confidence_axis"), row=2, col=column)
        figure.update_xaxes(range=[0, 1])
        figure.update_yaxes(range=[0, 1], row=1)
        figure.update_yaxes(type="log", row=2, exponentformat="power", range=[lowest, 0], nticks=4)
        figure.update_yaxes(title_text=words("accuracy_axis"), row=1, col=1)
        figure.update_yaxes(title_text=words("share_axis"), row=2, col=1)
        figure.update_layout(barmode="overlay", bargap=0, height=520, legend={"orientation": "h", "y": 1.14, "x": 0})
        return dressed(figure, words)

    def printed() -> "Figure":
        figure = new_figure(3.1 * len(families) + 0.4, 4.3)
        grid = figure.subplots(
            2, len(families), squeeze=False, sharex=True, sharey="row", gridspec_kw={"height_ratios": [3.4, 1]}
        )
        for column, family in enumerate(families):
            part = pooled[pooled["family"] == family]
            draw_reliability(
                grid[0, column],
                part,
                FAMILY_COLOURS.get(family, BLUE),
                labels=(words("accuracy"), words("gap"), words("perfect"), words("pooled_ece")),
            )
            filled = part[part["count"] > 0]
            grid[1, column].bar(
                (filled["lower"] + filled["upper"]) / 2,
                filled["count"] / max(float(filled["count"].sum()), 1.0),
                width=filled["upper"] - filled["lower"],
                color=GREY,
            )
            grid[1, column].set_yscale("log")
            grid[1, column].tick_params(labelsize=7)
            grid[0, column].set_title(words.family(family), fontsize=9)
            grid[1, column].set_xlabel(words("confidence_axis"), fontsize=8)
        grid[0, 0].set_ylabel(words("accuracy_axis"), fontsize=8)
        grid[1, 0].set_ylabel(words("share_axis"), fontsize=8)
        return figure

    return Chart("reliability", words("reliability_title"), words("reliability_caption"), plotly, printed)


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
    """Risk against coverage, one line per family.

    Args:
        curves: as for `risk_coverage_by_family`.
        words: the language.
    """
    means = risk_coverage_by_family(curves)
    families = list(means["family"].unique())

    def plotly() -> "go.Figure":
        import plotly.graph_objects as go

        figure = go.Figure()
        for family in families:
            part = means[means["family"] == family]
            x = part["coverage"].to_numpy()
            figure.add_trace(
                go.Scatter(
                    x=np.concatenate([x, x[::-1]]),
                    y=np.concatenate([part["q1"], part["q3"].to_numpy()[::-1]]),
                    fill="toself",
                    fillcolor=faint(FAMILY_COLOURS[family], 0.15),
                    line={"width": 0},
                    hoverinfo="skip",
                    showlegend=False,
                    legendgroup=family,
                )
            )
            figure.add_trace(
                go.Scatter(
                    x=x,
                    y=part["risk"].to_numpy(),
                    mode="lines",
                    name=words.family(family),
                    legendgroup=family,
                    line={"color": FAMILY_COLOURS[family], "dash": FAMILY_DASHES[family].replace("solid", "solid")},
                    hovertemplate="%{x:.2f}: %{y:.3g}",
                )
            )
        figure.update_xaxes(title_text=words("coverage_axis"), range=[0, 1])
        figure.update_yaxes(title_text=words("risk_axis"), rangemode="tozero")
        figure.update_layout(height=420, hovermode="x unified")
        return dressed(figure, words)

    def printed() -> "Figure":
        figure = new_figure(5.2, 3.4)
        axes = figure.subplots()
        for family in families:
            part = means[means["family"] == family]
            line = {"solid": "-", "dash": "--", "dot": ":"}[FAMILY_DASHES[family]]
            axes.fill_between(part["coverage"], part["q1"], part["q3"], color=FAMILY_COLOURS[family], alpha=0.15, lw=0)
            axes.plot(part["coverage"], part["risk"], line, color=FAMILY_COLOURS[family], label=words.family(family))
        axes.set_xlim(0, 1)
        axes.set_ylim(bottom=0)
        _label(axes, words("coverage_axis"), words("risk_axis"))
        if families:
            axes.legend(fontsize=7, frameon=False, loc="upper left")
        return figure

    return Chart("risk_coverage", words("risk_title"), words("risk_caption"), plotly, printed)


# Accuracy against uncertainty ------------------------------------------------------------------------------------------


def dice_against_entropy_chart(pairs: pd.DataFrame, words: Words, *, entropy_unit: str = "nats") -> Chart:
    """Mean Dice against predictive entropy, one point per patient and predictor.

    Args:
        pairs: from `curvas_assets.statistics.paired_scores`: `patient`, `predictor`, `family`, `x` (entropy), `y` (Dice).
        words: the language.
        entropy_unit: of `x`.
    """
    drawn = pairs[np.isfinite(pairs["x"]) & np.isfinite(pairs["y"])]
    families = [family for family in FAMILIES if family in set(drawn["family"])]
    x_title = axis_title(words.metric("predictive_entropy"), entropy_unit, words)
    y_title = axis_title(words.metric("dice"), "", words)
    line = None
    if len(drawn) >= 3 and np.ptp(drawn["x"]) > 0:
        slope, intercept = np.polyfit(drawn["x"], drawn["y"], 1)
        ends = np.array([drawn["x"].min(), drawn["x"].max()])
        line = (ends, slope * ends + intercept)

    def plotly() -> "go.Figure":
        import plotly.graph_objects as go

        figure = go.Figure()
        for family in reversed(families):  # the fewest points on top
            part = drawn[drawn["family"] == family]
            figure.add_trace(
                go.Scatter(
                    x=part["x"].to_numpy(),
                    y=part["y"].to_numpy(),
                    mode="markers",
                    name=words.family(family),
                    marker={
                        "color": FAMILY_COLOURS[family],
                        "symbol": FAMILY_SYMBOLS[family],
                        "size": 6,
                        "opacity": 0.65,
                    },
                    text=(part["patient"] + "<br>" + part["predictor"]).to_list(),
                    hovertemplate="%{text}<br>%{x:.3g}, %{y:.3f}<extra></extra>",
                )
            )
        if line is not None:
            figure.add_trace(
                go.Scatter(x=line[0], y=line[1], mode="lines", line={"color": BLACK, "dash": "dash"}, showlegend=False)
            )
        figure.update_xaxes(title_text=x_title)
        figure.update_yaxes(title_text=y_title)
        figure.update_layout(height=440)
        return dressed(figure, words)

    def printed() -> "Figure":
        figure = new_figure(5.4, 3.6)
        axes = figure.subplots()
        for family in reversed(families):
            part = drawn[drawn["family"] == family]
            axes.scatter(
                part["x"],
                part["y"],
                s=10,
                marker=FAMILY_MARKERS[family],
                color=FAMILY_COLOURS[family],
                alpha=0.6,
                linewidths=0,
                label=words.family(family),
            )
        if line is not None:
            axes.plot(*line, "--", color=BLACK, lw=1)
        _label(axes, x_title, y_title)
        if families:
            axes.legend(fontsize=7, frameon=False, loc="upper right")
        return figure

    return Chart("dice_against_entropy", words("scatter_title"), words("scatter_caption"), plotly, printed)


# Training --------------------------------------------------------------------------------------------------------------


def training_curves(curves: Mapping[str, pd.DataFrame], words: Words) -> Chart:
    """Training loss and EMA pseudo-Dice of all models.

    Args:
        curves: model → table with `epoch`, `train_loss`, `ema_dice`.
        words: the language.
    """
    from curvas_assets.report.style import ANNOTATOR_COLOURS, colour_of

    sides = (("train_loss", words("loss_axis")), ("ema_dice", words("dice_axis")))
    groups = list(dict.fromkeys(model.split("_")[0] for model in curves))
    dashes = ("solid", "dash", "dot", "dashdot", "longdash")
    styles: dict[str, tuple[str, int]] = {}
    for model in curves:
        group = model.split("_")[0]
        siblings = [m for m in curves if m.split("_")[0] == group]
        styles[model] = (colour_of(ANNOTATOR_COLOURS, groups.index(group)), siblings.index(model))

    def plotly() -> "go.Figure":
        import plotly.graph_objects as go
        from plotly.subplots import make_subplots

        figure = make_subplots(cols=2, horizontal_spacing=0.1)
        for column, (name, title) in enumerate(sides, start=1):
            for model, curve in curves.items():
                if name not in curve:
                    continue
                colour, sibling = styles[model]
                figure.add_trace(
                    go.Scatter(
                        x=curve["epoch"].to_numpy(),
                        y=curve[name].to_numpy(),
                        mode="lines",
                        name=model,
                        legendgroup=model,
                        showlegend=column == 1,
                        line={"color": colour, "dash": dashes[sibling % len(dashes)], "width": 1.5},
                    ),
                    row=1,
                    col=column,
                )
            figure.update_xaxes(title_text=words("epoch"), col=column)
            figure.update_yaxes(title_text=title, col=column)
        figure.update_layout(height=400)
        return dressed(figure, words)

    def printed() -> "Figure":
        figure = new_figure(8.2, 3.0)
        grid = figure.subplots(1, 2)
        for axes, (name, title) in zip(grid, sides, strict=True):
            for model, curve in curves.items():
                if name in curve:
                    colour, sibling = styles[model]
                    style = ("-", "--", ":", "-.")[sibling % 4]
                    axes.plot(curve["epoch"], curve[name], style, color=colour, lw=1.1, label=model)
            _label(axes, words("epoch"), title)
        if curves:
            figure.legend(*grid[0].get_legend_handles_labels(), fontsize=6, frameon=False, loc="outside right center")
        return figure

    return Chart("training_curves", words("curves_title"), words("curves_caption"), plotly, printed)


# Shared ----------------------------------------------------------------------------------------------------------------


def axis_title(name: str, unit: str, words: Words) -> str:
    """`name (unit)`, and `(no unit)` said where there is none."""
    return f"{name} ({unit or words('no_unit')})"


def dressed(figure: "go.Figure", words: Words) -> "go.Figure":
    """The report's look: white, thin grids, the language's decimal separator."""
    figure.update_layout(
        template="plotly_white",
        font={"family": "Liberation Sans, Arial, Helvetica, sans-serif", "size": 13, "color": "#1b1b1b"},
        margin={"l": 64, "r": 24, "t": 48, "b": 56},
        separators=words.decimal + "\u202f",
        hoverlabel={"font_size": 12},
    )
    return figure


def faint(colour: str, alpha: float) -> str:
    """A hexadecimal colour with transparency."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"


def _label(axes: "Axes", x: str, y: str) -> None:
    axes.set_xlabel(x, fontsize=8)
    axes.set_ylabel(y, fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.25, lw=0.5)


def _panel_title(facet: str | None, panel: str, words: Words) -> str:
    return words("annotator_n", name=panel) if facet == "annotator" else words.organ(panel)


def _natural(text: str) -> tuple[int, str]:
    return (int(text), "") if text.isdigit() else (10**9, text)
