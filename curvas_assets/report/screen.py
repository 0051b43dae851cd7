"""Charts for the screen, as interactive plotly figures.

Belongs here: how each mark of a `chart` is drawn by plotly. Does not belong here: what a figure shows.
"""

import base64
import io
from functools import singledispatch
from typing import TYPE_CHECKING, Any

import numpy as np

from curvas_assets.report.chart import (
    MOST_LEVEL,
    NOTHING,
    Axis,
    Band,
    Bars,
    Chart,
    Distribution,
    Line,
    Mark,
    Panel,
    Picture,
    Points,
    Scene,
    Swatch,
)

if TYPE_CHECKING:
    import plotly.graph_objects as go

TRANSPARENT = "rgba(0,0,0,0)"
SYMBOLS = {"ring": "circle-open"}
DASHES = {"shortdash": "3px,2px", "dashdotdot": "6px,2px,2px,2px,2px,2px", "sparsedot": "2px,6px"}
"""Names of `chart` that plotly has not."""
LEGENDS = {
    "right": {},
    "above": {"orientation": "h", "yref": "container", "yanchor": "top", "x": 0},
    "below": {"orientation": "h", "y": -0.16, "x": 0},
}
LINE_PX = 20
"""Height of a line of a panel's title."""
TOOLBAR_PX, ABOVE_PX = 32, 112
"""Height of plotly's toolbar, below which a legend above the panels begins, and where that legend ends if it has four lines."""


def draw(chart: Chart) -> "go.Figure":
    """The chart as a plotly figure: white, thin grids, the language's decimal separator."""
    figure = _scene(chart.rows) if isinstance(chart.rows, Scene) else _panels(chart, chart.rows)
    figure.update_layout(
        template="plotly_white",
        font={"family": "Liberation Sans, Arial, Helvetica, sans-serif", "size": 13, "color": "#1b1b1b"},
        margin={
            "l": 64,
            "r": 24,
            "t": (ABOVE_PX + 24 if chart.legend == "above" else 48) + LINE_PX * (_lines(chart) - 1),
            "b": 56,
        },
        separators=chart.decimal + "\u202f",
        hoverlabel={"font_size": 12},
        hovermode="x unified" if chart.is_read_across else "closest",
        height=chart.height_px,
        legend=LEGENDS[chart.legend],
    )
    if chart.legend == "above":
        figure.update_layout(legend_y=1 - TOOLBAR_PX / chart.height_px)
    for rank, name in enumerate(chart.listed, start=1):  # where none is given, it is 1000
        figure.update_traces(legendrank=rank, selector={"name": name})
    return figure


def _panels(chart: Chart, rows: Any) -> "go.Figure":
    from plotly.subplots import make_subplots

    titles = [panel.title.replace("\n", "<br>") for row in rows for panel in row]
    gap = (
        0.04 if len(rows) < 5 else 0.16 / (len(rows) - 1)
    )  # shares of the height: of many rows they would leave nothing
    figure = make_subplots(
        rows=len(rows),
        cols=len(rows[0]),
        row_heights=list(chart.heights),
        shared_xaxes=chart.is_shared,
        shared_yaxes=chart.is_shared,
        horizontal_spacing=0.03 if chart.is_shared else 0.1,
        vertical_spacing=gap + LINE_PX * (_lines(chart) - 1) / chart.height_px,
        subplot_titles=titles if any(titles) else None,
    )
    named: set[str] = set()
    for row, panels in enumerate(rows, start=1):
        for col, panel in enumerate(panels, start=1):
            if panel is NOTHING:  # the panel above has no axis of another one below it
                figure.update_xaxes(visible=False, row=row, col=col)
                figure.update_yaxes(visible=False, row=row, col=col)
                figure.update_xaxes(showticklabels=True, row=row - 1, col=col)
                continue
            for mark in panel.marks:
                _add(figure, mark, row, col, named)
            _set_axes(figure, panel, row, col)
    figure.update_layout(barmode="overlay", bargap=0, violingap=0.15)
    return figure


def _lines(chart: Chart) -> int:
    """Lines of the longest title of a panel."""
    rows = () if isinstance(chart.rows, Scene) else chart.rows
    return 1 + max((panel.title.count("\n") for row in rows for panel in row), default=0)


def _add(figure: "go.Figure", mark: Mark, row: int, col: int, named: set[str]) -> None:
    """A mark in its panel; the legend shows each name once, and its entry hides every mark of that name."""
    if isinstance(mark, Picture):
        _add_picture(figure, mark, row, col)
        return
    # A distribution's place says its name, and a band goes with its line.
    is_listed = bool(mark.name) and mark.name not in named and not isinstance(mark, Distribution | Band)
    if is_listed:
        named.add(mark.name)
    trace = _trace(mark) | {"showlegend": is_listed, "legendgroup": mark.name or None}
    if isinstance(mark, Distribution):
        trace["scalegroup"] = f"{mark.name} {col}"  # else panels of a narrow spread make the others thin
    figure.add_trace(trace, row=row, col=col)


def _set_axes(figure: "go.Figure", panel: Panel, row: int, col: int) -> None:
    for axis, update in ((panel.x, figure.update_xaxes), (panel.y, figure.update_yaxes)):
        look: dict[str, Any] = {"title_text": axis.title, "range": _limits(axis), "dtick": 1 if axis.whole else None}
        if axis.log:
            look |= {"type": "log", "exponentformat": "power", "nticks": 4}
        if axis.places:
            look |= {"tickvals": list(range(len(axis.places))), "ticktext": list(axis.places), "automargin": True}
            if axis is panel.y:
                look["range"] = [len(axis.places) - 0.5, -0.5]
            else:
                look |= {"tickangle": -90, "tickfont": {"size": 11 if len(axis.places) <= 30 else 9}, "zeroline": False}
        if not axis.ticks:
            look["showticklabels"] = False
        if panel.is_picture:
            look |= {"showgrid": False, "zeroline": False, "constrain": "domain"}
        update(row=row, col=col, **look)
    if any(isinstance(mark, Distribution) for mark in panel.marks):
        figure.update_xaxes(tickangle=0 if len(panel.marks) <= MOST_LEVEL else -30, row=row, col=col)
    if panel.is_picture:
        across = figure.get_subplot(row, col).xaxis.plotly_name.replace("axis", "")
        figure.update_yaxes(scaleanchor=across, scaleratio=1, row=row, col=col)
    if panel.note:
        corner = {"x": 0.04, "y": 0.96, "xref": "x domain", "yref": "y domain", "xanchor": "left", "yanchor": "top"}
        figure.add_annotation(text=panel.note, showarrow=False, row=row, col=col, **corner)


def _limits(axis: Axis) -> list[float | None] | None:
    """The range of an axis as plotly wants it: exponents where it is logarithmic."""
    if axis.limits is None:
        return None
    return [float(np.log10(limit)) if axis.log and limit is not None else limit for limit in axis.limits]


@singledispatch
def _trace(mark: Any) -> dict[str, Any]:
    """A mark as plotly's trace."""
    raise TypeError(mark)


@_trace.register
def _(mark: Line) -> dict[str, Any]:
    return {
        "type": "scatter",
        "x": mark.x,
        "y": mark.y,
        "mode": "lines+markers" if mark.is_marked else "lines",
        "name": mark.name,
        "marker": {"size": 4},
        "line": {"color": mark.colour, "dash": DASHES.get(mark.dash, mark.dash), "width": mark.width},
        "hovertemplate": "%{x:.3g}: %{y:.3g}" if mark.name else None,
        "hoverinfo": None if mark.name else "skip",
    }


@_trace.register
def _(mark: Points) -> dict[str, Any]:
    return {
        "type": "scatter",
        "x": mark.x,
        "y": mark.y,
        "mode": "markers+text" if any(mark.texts) else "markers",
        "name": mark.name,
        "marker": _marker(mark),
        "text": list(mark.texts) or None,
        "textposition": "top center",
        "textfont": {"size": 10},
        "hovertext": list(mark.labels),
        "hovertemplate": "%{hovertext}<br>" + ("" if mark.is_placed else "%{x:.3g}, ") + "%{y:.3g}<extra></extra>",
    }


def _marker(mark: Points) -> dict[str, Any]:
    if mark.marker == "ring":
        return {"color": mark.colour, "symbol": SYMBOLS["ring"], "size": 13, "line": {"width": 1.5}}
    size, opacity = (10, 1) if mark.is_large else (6, 0.65)
    return {"color": mark.colour, "symbol": mark.marker, "size": size, "opacity": opacity}


@_trace.register
def _(mark: Band) -> dict[str, Any]:
    return {
        "type": "scatter",
        "x": np.concatenate([mark.x, mark.x[::-1]]),
        "y": np.concatenate([mark.low, mark.high[::-1]]),
        "fill": "toself",
        "fillcolor": _faint(mark.colour, 0.15),
        "line": {"width": 0},
        "hoverinfo": "skip",
    }


@_trace.register
def _(mark: Bars) -> dict[str, Any]:
    plain = {"color": mark.colour, "line": {"color": "white", "width": 0.5}}
    hatched = {
        "color": "rgba(255,255,255,0.25)",
        "pattern": {"shape": "/", "fgcolor": mark.colour, "size": 5, "solidity": 0.25},
        "line": {"color": mark.colour, "width": 0.5},
    }
    return {
        "type": "bar",
        "x": mark.middle,
        "width": mark.width,
        "y": mark.height,
        "base": mark.base,
        "marker": hatched if mark.hatched else plain,
        "name": mark.name,
        "hovertext": list(mark.labels),
        "hovertemplate": "%{hovertext}<extra></extra>" if mark.labels else None,
        "hoverinfo": None if mark.labels else "skip",
    }


@_trace.register
def _(mark: Distribution) -> dict[str, Any]:
    shaped = mark.has_shape
    return {
        "type": "violin",
        "y": mark.values,
        "x": np.full(len(mark.values), mark.place.replace("\n", "<br>")),
        "name": mark.name,
        "line": {"color": mark.colour if shaped else TRANSPARENT},
        "fillcolor": _faint(mark.colour, 0.18) if shaped else TRANSPARENT,
        "marker": {"symbol": mark.marker, "size": 4 if shaped else 8, "opacity": 0.55, "color": mark.colour},
        "points": "all",
        "pointpos": 0,
        "jitter": 0.5,
        "box": {"visible": shaped, "width": 0.25, "fillcolor": "rgba(255,255,255,0.75)"},
        "meanline": {"visible": True, "color": mark.colour, "width": 2},
        "spanmode": "hard",
        # The mean's line is as wide as the density there: of few points, make it as wide as it goes.
        "bandwidth": None if shaped or not len(mark.values) else float(np.ptp(mark.values)) or None,
        "text": list(mark.labels),
        "hoveron": "points+kde" if shaped else "points",
        "hovertemplate": "%{text}<br>%{y:.4g}<extra></extra>",
    }


@_trace.register
def _(mark: Swatch) -> dict[str, Any]:
    square = {"symbol": "square", "size": 11, "color": mark.colour}
    return {"type": "scatter", "x": [None], "y": [None], "mode": "markers", "name": mark.name, "marker": square}


def _add_picture(figure: "go.Figure", mark: Picture, row: int, col: int) -> None:
    """Pixels as a PNG inside the figure: a hundredth of the same slice as numbers."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(mark.pixels).save(buffer, format="PNG", optimize=True)
    (height, width), (dx, dy) = mark.pixels.shape[:2], mark.pixel_mm
    figure.add_layout_image(
        source="data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode(),
        x=-0.5 * dx,
        y=-0.5 * dy,
        sizex=width * dx,
        sizey=height * dy,
        sizing="stretch",
        layer="below",
        row=row,
        col=col,
    )
    if mark.scale is None:
        return
    # The picture is pixels; an invisible point carries its colour bar.
    right = figure.get_subplot(row, col).xaxis.domain[1]
    bar = {"title": {"text": mark.scale.title}, "x": right + 0.005, "thickness": 10, "len": 0.8}
    colours = {"color": [0, mark.scale.top], "cmin": 0, "cmax": mark.scale.top, "colorscale": "Cividis"}
    marker = {**colours, "showscale": True, "colorbar": bar}
    trace = {"type": "scatter", "x": [None], "y": [None], "mode": "markers", "showlegend": False, "marker": marker}
    figure.add_trace(trace, row=row, col=col)


def _scene(scene: Scene) -> "go.Figure":
    import plotly.graph_objects as go

    figure = go.Figure()
    for surface in scene.surfaces:
        points, faces = surface.points.astype(np.float32), surface.faces.astype(np.uint32)
        figure.add_trace(
            go.Mesh3d(
                **dict(zip("xyz", points.T, strict=True)),
                **dict(zip("ijk", faces.T, strict=True)),
                color=surface.colour,
                opacity=1.0,
                name=surface.name,
                showlegend=True,
                hoverinfo="name",
                flatshading=False,
                lighting={"ambient": 0.55, "diffuse": 0.7, "specular": 0.15, "roughness": 0.6},
            )
        )
    titles = {f"{axis}axis_title": title for axis, title in zip("xyz", scene.titles, strict=True)}
    camera = {"eye": {"x": 0.35, "y": -2.2, "z": 0.4}}
    figure.update_layout(scene={"aspectmode": "data", "camera": camera, **titles})
    return figure


def _faint(colour: str, alpha: float) -> str:
    """A hexadecimal colour with transparency."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"
