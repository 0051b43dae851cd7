"""Strokes in matplotlib that several pictures share: a CT slice, labels, contours, a map, a reliability diagram.

Belongs here: drawing into axes that somebody else made. Does not belong here: whole figures, orientation, files.
Slices arrive as they are shown: rows to posterior, columns to the patient's left.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from curvas_assets.report.style import (
    ANNOTATOR_COLOURS,
    ANNOTATOR_LINES,
    BLACK,
    CT_WINDOW_HU,
    DISSENSUS_COLOUR,
    ORGAN_COLOURS,
    colour_of,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

Slice = npt.NDArray[Any]


def show_ct(axes: "Axes", image: Slice, aspect: float) -> None:
    """The CT in a soft-tissue window."""
    axes.imshow(image, cmap="gray", vmin=CT_WINDOW_HU[0], vmax=CT_WINDOW_HU[1], aspect=aspect, interpolation="nearest")
    bare(axes)


def show_labels(axes: "Axes", labels: Slice, aspect: float, *, alpha: float = 0.55) -> None:
    """Organs in their colours, background transparent."""
    from matplotlib.colors import ListedColormap

    highest = max(int(labels.max(initial=0)), 1)
    colours = ListedColormap([colour_of(ORGAN_COLOURS, label) for label in range(highest)])
    shown = np.ma.masked_equal(labels, 0)
    axes.imshow(shown, cmap=colours, vmin=0.5, vmax=highest + 0.5, aspect=aspect, alpha=alpha, interpolation="nearest")


def show_dissensus(axes: "Axes", apart: Slice, aspect: float) -> None:
    """Where annotators disagree, highlighted."""
    from matplotlib.colors import ListedColormap

    shown = np.ma.masked_equal(apart.astype(int), 0)
    axes.imshow(shown, cmap=ListedColormap([DISSENSUS_COLOUR]), aspect=aspect, alpha=0.55, interpolation="nearest")


def show_map(
    axes: "Axes", nats: Slice, aspect: float, name: str, colours: str, *, maximum: float | None = None
) -> None:
    """A map in nats with its colour bar."""
    finite = nats[np.isfinite(nats)]
    top = maximum if maximum is not None else max(float(finite.max(initial=0.0)), 1e-6)
    shown = axes.imshow(nats, cmap=colours, vmin=0, vmax=top, aspect=aspect, interpolation="nearest")
    bare(axes)
    axes.set_title(name, fontsize=9)
    assert axes.figure is not None
    bar = axes.figure.colorbar(shown, ax=axes, shrink=0.7)
    bar.set_label("nats", fontsize=8)
    bar.ax.tick_params(labelsize=7)


def outline(axes: "Axes", labels: Slice, annotator: int) -> None:
    """One annotator's contours, in that annotator's colour and dash."""
    for organ in np.unique(labels):
        if organ == 0:
            continue
        inside = np.pad((labels == organ).astype(float), 1)  # so that an organ at the border closes
        axes.contour(
            np.arange(-1, labels.shape[1] + 1),
            np.arange(-1, labels.shape[0] + 1),
            inside,
            levels=[0.5],
            colors=[colour_of(ANNOTATOR_COLOURS, annotator)],
            linestyles=[colour_of(ANNOTATOR_LINES, annotator)],
            linewidths=1.1,
        )
    axes.set_xlim(-0.5, labels.shape[1] - 0.5)
    axes.set_ylim(labels.shape[0] - 0.5, -0.5)


def draw_reliability(
    axes: "Axes",
    pooled: "pd.DataFrame",
    colour: str,
    *,
    labels: tuple[str, str, str, str] = ("accuracy", "calibration gap", "perfect calibration", "pooled ECE"),
) -> None:
    """Bars of accuracy, the gap to the confidence hatched, and the diagonal."""
    filled = pooled[pooled["count"] > 0]
    middle = (filled["lower"] + filled["upper"]) / 2
    width = filled["upper"] - filled["lower"]
    axes.bar(middle, filled["accuracy"], width=width, color=colour, edgecolor="white", lw=0.3, label=labels[0])
    gap = filled["confidence"] - filled["accuracy"]
    axes.bar(
        middle,
        gap,
        bottom=filled["accuracy"],
        width=width,
        facecolor="none",
        edgecolor=BLACK,
        hatch="////",
        lw=0.3,
        label=labels[1],
    )
    axes.plot([0, 1], [0, 1], ls="--", lw=0.9, color=BLACK, label=labels[2])
    total = float(filled["count"].sum())
    if total > 0:
        error = float((filled["count"] / total * gap.abs()).sum())
        axes.text(0.04, 0.95, f"{labels[3]} {error:.2g}", transform=axes.transAxes, va="top", fontsize=7)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_aspect("equal")
    axes.tick_params(labelsize=7)
    axes.legend(fontsize=6, loc="lower right", framealpha=0.9)


def annotator_legend(axes: "Axes", names: Sequence[str], *, dissensus: str = "") -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    lines = [
        Line2D([], [], color=colour_of(ANNOTATOR_COLOURS, i), ls=colour_of(ANNOTATOR_LINES, i), lw=1.4, label=name)
        for i, name in enumerate(names)
    ]
    apart = [Patch(color=DISSENSUS_COLOUR, label=dissensus)] if dissensus else []
    axes.legend(handles=[*lines, *apart], fontsize=7, loc="lower right", framealpha=0.8)


def organ_legend(axes: "Axes", labels: Slice, class_names: Sequence[str] | None) -> None:
    from matplotlib.patches import Patch

    present = [int(label) for label in np.unique(labels) if label > 0]
    names: Mapping[int, str] = dict(enumerate(class_names or []))
    patches = [
        Patch(color=colour_of(ORGAN_COLOURS, label - 1), label=names.get(label, str(label))) for label in present
    ]
    if patches:
        axes.legend(handles=patches, fontsize=7, loc="lower right", framealpha=0.8)


def bare(axes: "Axes") -> None:
    axes.set_xticks([])
    axes.set_yticks([])
