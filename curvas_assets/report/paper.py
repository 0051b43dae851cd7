"""Charts for print, as matplotlib figures and their bytes.

Belongs here: how each mark of a `chart` is drawn by matplotlib. Does not belong here: what a figure shows. matplotlib is
imported when a figure is drawn, not before, and without pyplot, so that nothing global remembers a figure.
"""

import io
from collections.abc import Sequence
from functools import singledispatch
from typing import TYPE_CHECKING, Any

import numpy as np

from curvas_assets.report.chart import (
    MOST_LEVEL,
    NOTHING,
    TALLEST_LEGEND,
    Axis,
    Band,
    Bars,
    Chart,
    Distribution,
    Line,
    Panel,
    Picture,
    Points,
    Scale,
    Scene,
    Swatch,
)
from curvas_assets.report.style import BLACK, ImageFormat

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DASHES: dict[str, Any] = {
    "solid": "-",
    "dash": "--",
    "dot": ":",
    "dashdot": "-.",
    "longdash": (0, (8, 2)),
    "longdashdot": (0, (8, 2, 1, 2)),
    "shortdash": (0, (2, 1.5)),
    "dashdotdot": (0, (5, 1.5, 1, 1.5, 1, 1.5)),
    "sparsedot": (0, (1, 4)),
}
MARKERS = {
    **{"circle": "o", "square": "s", "triangle-up": "^", "diamond": "D", "triangle-down": "v"},
    **{"x": "X", "pentagon": "p", "cross": "P", "star": "*", "ring": "o"},
}
LEGENDS: dict[str, Any] = {
    "right": "outside right upper",
    "above": "outside upper center",
    "below": "outside lower center",
}
POINTS_PER_PIXEL = 0.7
"""Widths of lines: a figure on paper is smaller than on the screen."""
DPI = 120


def draw(chart: Chart) -> "Figure":
    """The chart as a matplotlib figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=chart.size_in, layout="constrained")
    FigureCanvasAgg(figure)
    if isinstance(chart.rows, Scene):
        _draw_scene(figure, chart.rows)
    else:
        _draw_panels(figure, chart, chart.rows)
    _add_legend(figure, chart)
    if chart.heading:
        figure.suptitle(chart.heading, fontsize=9)
    return figure


def images(chart: Chart, image_formats: Sequence[ImageFormat]) -> dict[ImageFormat, bytes]:
    """The chart as bytes of each format, drawn and laid out once; the same bytes for the same chart."""
    import matplotlib

    # Without these, SVG ids are random and PDF and SVG carry the date: equal reports would differ.
    dateless = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None, "ModDate": None}}
    drawn: dict[ImageFormat, bytes] = {}
    figure = draw(chart) if image_formats else None
    with matplotlib.rc_context({"svg.hashsalt": "curvas-assets", "pdf.fonttype": 42, "svg.fonttype": "path"}):
        for image_format in image_formats:
            assert figure is not None
            buffer = io.BytesIO()
            figure.savefig(buffer, format=image_format, dpi=DPI, metadata=dateless[image_format])
            drawn[image_format] = buffer.getvalue()
            figure.set_layout_engine(None)  # what is laid out stays so; with "none" each format is drawn twice
    return drawn


def image(chart: Chart, image_format: ImageFormat = "png") -> bytes:
    """The chart as PNG, SVG or PDF."""
    return images(chart, [image_format])[image_format]


def _draw_panels(figure: "Figure", chart: Chart, rows: Sequence[Sequence[Panel]]) -> None:
    grid = figure.subplots(
        len(rows),
        len(rows[0]),
        squeeze=False,
        sharex="col" if chart.is_shared else False,
        sharey="row" if chart.is_shared else False,
        gridspec_kw={"height_ratios": chart.heights},
    )
    scatter = np.random.default_rng(0)  # sideways spread of the points of distributions only
    bars: dict[Scale, list[Axes]] = {}
    for (row, column), axes in np.ndenumerate(grid):
        panel = rows[row][column]
        if panel is NOTHING:  # the panel above has no axis of another one below it
            axes.set_axis_off()
            above: Any = grid[row - 1, column]
            above.tick_params(labelbottom=True)
            continue
        for mark in panel.marks:
            _draw(mark, axes)
            if isinstance(mark, Picture) and mark.scale:
                bars.setdefault(mark.scale, []).append(axes)
        _draw_distributions(axes, [mark for mark in panel.marks if isinstance(mark, Distribution)], scatter)
        _set_axes(axes, panel)
    for scale, beside in bars.items():
        _add_colour_bar(figure, scale, beside)


def _set_axes(axes: "Axes", panel: Panel) -> None:
    axes.set_title(panel.title, fontsize=9)
    axes.tick_params(labelsize=7)
    if panel.is_picture:
        axes.set_aspect("equal")
    else:
        axes.set_axisbelow(True)
        axes.grid(alpha=0.25, lw=0.5, axis="y" if any(isinstance(m, Distribution) for m in panel.marks) else "both")
    _set_axis(panel.x, axes.set_xlabel, axes.set_xlim, axes.set_xscale, axes.xaxis)
    _set_axis(panel.y, axes.set_ylabel, axes.set_ylim, axes.set_yscale, axes.yaxis)
    if panel.note:
        axes.text(0.04, 0.95, panel.note, transform=axes.transAxes, va="top", fontsize=7)


def _set_axis(axis: Axis, set_label: Any, set_limits: Any, set_scale: Any, drawn: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    if axis.title:
        set_label(axis.title, fontsize=8)
    if axis.log:
        set_scale("log")
    if axis.limits is not None:
        set_limits(*axis.limits)
    if axis.whole:
        drawn.set_major_locator(MaxNLocator(integer=True))
    if axis.places:
        is_vertical = drawn.axis_name == "y"
        drawn.set_ticks(range(len(axis.places)), labels=list(axis.places), rotation=0 if is_vertical else 90)
        if is_vertical:
            set_limits(len(axis.places) - 0.5, -0.5)
        elif len(axis.places) > 30:
            drawn.set_tick_params(labelsize=5.5)
    if not axis.ticks:
        drawn.set_ticks([])


@singledispatch
def _draw(mark: Any, axes: "Axes") -> None:
    """A mark in its panel; distributions are drawn together, because each takes its place beside the others."""


@_draw.register
def _(mark: Line, axes: Any) -> None:
    width = mark.width * POINTS_PER_PIXEL
    look = {"ls": DASHES[mark.dash], "lw": width, "marker": "o" if mark.is_marked else None, "markersize": 2.5}
    axes.plot(mark.x, mark.y, color=mark.colour, label=mark.name or None, **look)


@_draw.register
def _(mark: Points, axes: Any) -> None:
    look: dict[str, Any] = {"marker": MARKERS[mark.marker], "color": mark.colour, "linewidths": 0}
    look |= {"s": 36, "zorder": 3} if mark.is_large else {"s": 10, "alpha": 0.6}
    if mark.marker == "ring":
        look = {"s": 45, "marker": "o", "facecolors": "none", "edgecolors": mark.colour, "linewidths": 0.9}
    axes.scatter(mark.x, mark.y, label=mark.name or None, **look)
    for x, y, text in zip(mark.x, mark.y, mark.texts, strict=False):
        _write_beside(axes, x, y, text)


@_draw.register
def _(mark: Band, axes: Any) -> None:
    axes.fill_between(mark.x, mark.low, mark.high, color=mark.colour, alpha=0.15, lw=0)


@_draw.register
def _(mark: Bars, axes: Any) -> None:
    plain = {"color": mark.colour, "edgecolor": "white"}
    hatched = {"facecolor": "none", "edgecolor": mark.colour, "hatch": "////"}
    look = hatched if mark.hatched else plain
    axes.bar(mark.middle, mark.height, bottom=mark.base, width=mark.width, lw=0.3, label=mark.name or None, **look)


@_draw.register
def _(mark: Picture, axes: Any) -> None:
    (height, width), (dx, dy) = mark.pixels.shape[:2], mark.pixel_mm
    extent = (-0.5 * dx, (width - 0.5) * dx, (height - 0.5) * dy, -0.5 * dy)
    axes.imshow(mark.pixels, extent=extent, interpolation="nearest")


@_draw.register
def _(mark: Swatch, axes: Any) -> None:
    axes.scatter([], [], marker="s", color=mark.colour, label=mark.name)


def _draw_distributions(axes: "Axes", marks: Sequence[Distribution], scatter: np.random.Generator) -> None:
    """Distributions side by side."""
    for at, mark in enumerate(marks):
        if not len(mark.values):
            continue
        if mark.has_shape:
            _draw_shape(axes, mark, at)
        else:
            axes.hlines(mark.values.mean(), at - 0.3, at + 0.3, color=BLACK, lw=1, ls="--")
        x = at + scatter.uniform(-0.22, 0.22, len(mark.values))
        axes.scatter(
            x,
            mark.values,
            s=5 if mark.has_shape else 18,
            marker=MARKERS[mark.marker],
            color=mark.colour,
            alpha=0.45,
            linewidths=0,
            zorder=3,
        )
        for place, value, text in zip(x, mark.values, mark.texts, strict=False):
            _write_beside(axes, place, value, text)
    if marks:
        slanted: dict[str, Any] = {"rotation": 30, "ha": "right"} if len(marks) > MOST_LEVEL else {}
        axes.set_xticks(range(len(marks)), [mark.place for mark in marks], **slanted)
        axes.set_xlim(-0.6, len(marks) - 0.4)


def _write_beside(axes: "Axes", x: float, y: float, text: str) -> None:
    """A few words beside a point."""
    if text:
        axes.annotate(text, (x, y), xytext=(4, 3), textcoords="offset points", fontsize=5.5, color=BLACK)


def _draw_shape(axes: "Axes", mark: Distribution, at: int) -> None:
    """Density and box of values."""
    if np.unique(mark.values).size >= 3:  # a density needs spread
        bodies: Any = axes.violinplot([mark.values], positions=[at], widths=0.85, showextrema=False)["bodies"]
        for body in bodies:
            body.set(facecolor=mark.colour, alpha=0.2, edgecolor=mark.colour)
    axes.boxplot(
        [mark.values],
        positions=[at],
        widths=0.22,
        showfliers=False,
        showmeans=True,
        meanline=True,
        patch_artist=True,
        manage_ticks=False,
        boxprops={"facecolor": "white", "alpha": 0.8, "edgecolor": mark.colour, "lw": 1},
        medianprops={"color": mark.colour, "lw": 1.6},
        meanprops={"color": BLACK, "lw": 1, "ls": "--"},
        whiskerprops={"color": mark.colour, "lw": 1},
        capprops={"color": mark.colour, "lw": 1},
    )


def _add_colour_bar(figure: "Figure", scale: Scale, beside: "Sequence[Axes]") -> None:
    """One bar for all pictures of the same scale."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    bar = figure.colorbar(ScalarMappable(Normalize(0, scale.top), "cividis"), ax=list(beside), shrink=0.7)
    bar.set_label(scale.title, fontsize=8)
    bar.ax.tick_params(labelsize=7)


def _draw_scene(figure: "Figure", scene: Scene) -> None:
    from matplotlib.colors import LightSource

    axes: Any = figure.add_subplot(projection="3d")
    light = LightSource(azdeg=300, altdeg=40)
    for surface in scene.surfaces:
        x, y, z = surface.points.T
        body = axes.plot_trisurf(x, y, z, triangles=surface.faces, color=surface.colour, lightsource=light, lw=0)
        body.set_rasterized(True)  # ten thousand shaded triangles as vectors are 10 MB of SVG
        axes.scatter([], [], [], marker="s", color=surface.colour, label=surface.name)
    for axis, title in zip("xyz", scene.titles, strict=True):
        getattr(axes, f"set_{axis}label")(title, fontsize=7)
    axes.tick_params(labelsize=6)
    axes.view_init(elev=12, azim=-80)
    if scene.surfaces:
        axes.set_aspect("equal")


def _add_legend(figure: "Figure", chart: Chart) -> None:
    """Every name once, outside the panels."""
    named: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            named.setdefault(name, handle)
    if named:
        named = {name: named[name] for name in dict.fromkeys((*chart.listed, *named)) if name in named}
        columns = -(-len(named) // TALLEST_LEGEND) if chart.legend == "right" else min(len(named), 4)
        place = LEGENDS[chart.legend]
        figure.legend(named.values(), named.keys(), loc=place, ncols=columns, fontsize=7, frameon=False)
