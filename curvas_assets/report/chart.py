"""What a figure of the report shows, described once: panels, axes and marks, for `screen` and `paper` to draw.

Belongs here: the vocabulary. Does not belong here: any figure (`figures`, `pictures`, `previews`), any drawing library.
Coordinates are in the axes' units; colours are hexadecimal.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

FEWEST_FOR_A_SHAPE = 8
"""Points below which a distribution is drawn as its points and their mean: a density or quartiles of three points say
nothing."""
MOST_LEVEL = 4
"""Names of distributions that stand level; more are slanted."""
TALLEST_LEGEND = 15
"""Names above each other beside a figure on paper; more stand in several columns."""
Numbers: TypeAlias = npt.NDArray[np.floating[Any]]
Dash = Literal["solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "shortdash", "dashdotdot", "sparsedot"]
Marker = Literal[
    "circle", "square", "triangle-up", "diamond", "triangle-down", "x", "pentagon", "cross", "star", "ring"
]
"""A ring is drawn around another point, which stays to be seen."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Line:
    """A line through points, which are marked where `is_marked`; it breaks at NaN.

    `width` is in pixels; a line without a name is not in the legend.
    """

    x: Numbers
    y: Numbers
    colour: str
    dash: Dash = "solid"
    width: float = 1.5
    is_marked: bool = False
    name: str = ""


@dataclass(frozen=True, eq=False, kw_only=True)
class Points:
    """Points; on the screen, `labels` say whose value each point is. `texts` are written beside them, also on paper.

    `is_placed` if x only says where the point stands along the names of an axis, and is no value. Large points are few and
    stand for estimates.
    """

    x: Numbers
    y: Numbers
    colour: str
    marker: Marker
    labels: Sequence[str]
    name: str
    texts: Sequence[str] = ()
    is_placed: bool = False
    is_large: bool = False


@dataclass(frozen=True, eq=False, kw_only=True)
class Band:
    """The area between two lines; `name` is that of the line which it belongs to."""

    x: Numbers
    low: Numbers
    high: Numbers
    colour: str
    name: str


@dataclass(frozen=True, eq=False, kw_only=True)
class Bars:
    """Bars of a histogram, from `base` up by `height`; hatched ones show what is below. `labels` are shown on the screen."""

    middle: Numbers
    width: Numbers
    height: Numbers
    base: Numbers | float = 0.0
    colour: str
    hatched: bool = False
    name: str = ""
    labels: Sequence[str] = ()


@dataclass(frozen=True, eq=False, kw_only=True)
class Distribution:
    """Every value with its mean at one place of a panel; from `FEWEST_FOR_A_SHAPE` on with density and box.

    Distributions of a panel stand side by side in their order; `place` is written below, `labels` say whose each value is.
    `texts` are written beside the points on paper, where nobody can point at them.
    """

    values: Numbers
    place: str
    colour: str
    marker: Marker
    labels: Sequence[str]
    name: str
    texts: Sequence[str] = ()

    @property
    def has_shape(self) -> bool:
        """Whether there are enough values for a density and a box."""
        return len(self.values) >= FEWEST_FOR_A_SHAPE


@dataclass(frozen=True)
class Scale:
    """The colour bar of a picture in the colours of Cividis, from 0 to `top`."""

    top: float
    title: str


@dataclass(frozen=True, eq=False, kw_only=True)
class Picture:
    """Pixels, uint8 (Y, X, 3), the middle of the first one at 0; `pixel_mm` is a pixel's width and height."""

    pixels: npt.NDArray[np.uint8]
    pixel_mm: tuple[float, float]
    scale: Scale | None = None


@dataclass(frozen=True, kw_only=True)
class Swatch:
    """A colour with its name, in the legend alone: what a picture is tinted with."""

    colour: str
    name: str


Mark: TypeAlias = Line | Points | Band | Bars | Distribution | Picture | Swatch


@dataclass(frozen=True)
class Axis:
    """An axis.

    Args:
        title: the quantity with its unit; empty where a neighbour or the whole figure says it.
        limits: of what is shown, the second at the right or on top; None for what the marks take.
        log: logarithmic.
        ticks: whether numbers stand along it.
        whole: whether these numbers are whole.
        places: names that stand along it in place of numbers, at 0, 1, 2 …; of a vertical axis the first on top, and of a
            horizontal one written upwards.
    """

    title: str = ""
    limits: tuple[float | None, float | None] | None = None
    log: bool = False
    ticks: bool = True
    whole: bool = False
    places: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Two axes and what is drawn between them.

    Args:
        marks: in the order of drawing.
        title: above; line breaks stay.
        x: horizontal axis.
        y: vertical axis.
        note: a few words in the upper left corner.
        is_picture: a unit is as long along both axes, and there is no grid.
    """

    marks: Sequence[Mark]
    title: str = ""
    x: Axis = Axis()
    y: Axis = Axis()
    note: str = ""
    is_picture: bool = False


NOTHING = Panel(marks=())
"""Fills the last row, where panels do not."""


@dataclass(frozen=True, eq=False)
class Surface:
    """Triangles (m, 3) as indices of points (n, 3)."""

    points: Numbers
    faces: npt.NDArray[np.integer[Any]]
    colour: str
    name: str


@dataclass(frozen=True)
class Scene:
    """Surfaces in three dimensions, seen from the front; `titles` are those of the axes x, y, z."""

    surfaces: Sequence[Surface]
    titles: tuple[str, str, str]


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One figure.

    Args:
        name: file stem, unique in a report.
        title: what it is called.
        caption: what is shown, with units and what is left out.
        rows: panels, row by row, as many in each; or one scene.
        size_in: width and height on paper.
        height_px: on the screen, where the width is the page's.
        heights: of the rows, relative to each other.
        is_shared: panels of a row have one vertical axis and panels of a column one horizontal axis.
        legend: where it stands.
        listed: names in the order of the legend; the others follow them as they are drawn.
        is_read_across: pointing at an x on the screen tells every line's y.
        decimal: the language's decimal separator.
        heading: written above the panels, where no page does.
    """

    name: str
    title: str = ""
    caption: str = ""
    rows: Sequence[Sequence[Panel]] | Scene
    size_in: tuple[float, float]
    height_px: int = 400
    heights: Sequence[float] = (1.0,)
    is_shared: bool = False
    legend: Literal["right", "above", "below"] = "right"
    listed: Sequence[str] = ()
    is_read_across: bool = False
    decimal: str = "."
    heading: str = ""
