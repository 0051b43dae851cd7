"""How figures look: colours, dashes and markers of families and annotators, orientation of slices.

Belongs here: what every figure shares. Does not belong here: any figure, any number of a study.
Colours are those of Okabe and Ito (2008, "Color Universal Design"), told apart with every common colour blindness; what
a colour tells is told a second time by a marker or a dash, so that a black-and-white print still reads.
"""

from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from curvas_assets.errors import ReportError
from curvas_assets.report.chart import Dash, Marker

ImageFormat = Literal["png", "svg", "pdf"]
Orientation: TypeAlias = str | npt.NDArray[np.floating[Any]]
"""Directions of the array axes X, Y, Z: nibabel's codes (`LPS`, `RAS`, …) or the 4 × 4 RAS+ affine of the image."""

BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILION, PURPLE = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#F0E442",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)
GREY = "#6E6E6E"

VIOLET, INDIGO = "#B040F0", "#6B2A8C"
"""Two more, chosen to differ from the others under each colour blindness (a test simulates them)."""

FAMILY_COLOURS: dict[str, str] = {
    "general": BLUE,
    "annotator": ORANGE,
    "individual": GREEN,
    "fused ensemble": PURPLE,
    "fused": SKY,
    "flips": VERMILION,
    "snapshots": INDIGO,
    "folds": BLACK,
    "calibrated": VIOLET,
}
FAMILIES: tuple[str, ...] = tuple(FAMILY_COLOURS)
"""Families in the order in which they are shown, that of `study.Family`, which previews need not load."""
FAMILY_MARKERS: dict[str, Marker] = {
    "general": "circle",
    "annotator": "square",
    "individual": "triangle-up",
    "fused ensemble": "diamond",
    "fused": "triangle-down",
    "flips": "x",
    "snapshots": "pentagon",
    "folds": "cross",
    "calibrated": "star",
}
FAMILY_DASHES: dict[str, Dash] = {
    "general": "solid",
    "annotator": "dash",
    "individual": "dot",
    "fused ensemble": "dashdot",
    "fused": "longdash",
    "flips": "longdashdot",
    "snapshots": "shortdash",
    "folds": "dashdotdot",
    "calibrated": "sparsedot",
}
DASHES: tuple[Dash, ...] = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")

ANNOTATOR_COLOURS = (SKY, ORANGE, PURPLE, GREEN, VERMILION, BLUE)
# fmt: off
ORGAN_COLOURS = (
    VERMILION, SKY, GREEN, PURPLE, ORANGE, BLUE, YELLOW, BLACK,
    "#0000FF", "#00FF00", "#FF00E1", "#694BD2", "#FF005A", "#4BA500", "#695A00", "#00FF96",
    "#871E1E", "#00FFFF", "#FFA587", "#C3E196", "#870078", "#F087FF", "#FF3CA5", "#FF0000",
    "#0F5A00", "#A5F000", "#5A3C69", "#B42DFF", "#A5A5FF", "#FFD278", "#87C3B4", "#A51E5A",
    "#969600", "#A59669", "#0F3C96", "#005A4B", "#FFD2FF", "#FF695A", "#87FFC3", "#B4F069",
    "#003CF0", "#0087FF", "#784B2D", "#C3873C", "#B40000", "#A500B4", "#69C369", "#965AB4",
    "#C39696", "#4BE13C", "#2D8796", "#9687B4", "#F06987", "#3C4B1E", "#874B5A", "#004B69",
    "#69873C", "#FFE1B4", "#00C3D2", "#5A00B4", "#B4E1FF", "#964B0F", "#D23CB4", "#E15AFF",
)
# fmt: on
"""By class − 1. Those after the eighth were chosen one by one, each as far as possible (CIELAB) from all before it, grey and white: no
palette of so many is told apart with a colour blindness, so names stand beside them."""
DISSENSUS_COLOUR = YELLOW

CT_WINDOW_HU = (-160.0, 240.0)
"""Abdominal soft-tissue window: level 40 HU, width 400 HU."""
_AXES = {"L": "LR", "R": "LR", "P": "PA", "A": "PA", "S": "SI", "I": "SI"}


def colour_of(palette: tuple[Any, ...], index: int) -> Any:
    """The palette's colour (or line) of an index; repeats after the last."""
    return palette[index % len(palette)]


def axis_codes(orientation: Orientation) -> str:
    """Directions in which the array axes X, Y, Z run, as three letters such as `LPS`.

    Raises:
        ReportError: neither three letters, one of each of L/R, P/A and S/I, nor a 4 × 4 affine.
    """
    if isinstance(orientation, str):
        codes = orientation.upper()
    else:
        affine = np.asarray(orientation, dtype=float)
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise ReportError(
                "orienting a slice",
                "the affine",
                f"it has shape {affine.shape}",
                "Give nibabel's 4 × 4 affine, or three letters such as LPS.",
            )
        from nibabel.orientations import aff2axcodes

        codes = "".join(code or "?" for code in aff2axcodes(affine))
    if sorted(_AXES.get(code, "?") for code in codes) != ["LR", "PA", "SI"]:
        raise ReportError(
            "orienting a slice",
            repr(orientation),
            "it does not name left–right, posterior–anterior and superior–inferior once each",
            "Give three letters such as LPS or RAS, or the image's affine.",
        )
    return codes


def radiological(slices: npt.NDArray[Any], orientation: Orientation) -> npt.NDArray[Any]:
    """Slices as radiologists hang them, whichever plane the array's last two axes span.

    Axial ones have anterior on top and the patient's left on the viewer's right; coronal ones superior on top and left on
    the right; sagittal ones superior on top and anterior on the left.

    Args:
        slices: (…, Y, X) in array order.
        orientation: directions of the axes X, Y, Z, or the affine.

    Returns:
        A view with the same leading axes; rows run to posterior or inferior, columns to the patient's left or posterior.

    Raises:
        ReportError: the orientation is not readable.
    """
    x, y, _ = axis_codes(orientation)
    if _is_hung_transposed(orientation):
        slices = np.swapaxes(slices, -1, -2)
        x, y = y, x
    if x in "RA":
        slices = slices[..., ::-1]
    if y in "AS":
        slices = slices[..., ::-1, :]
    return slices


def _is_hung_transposed(orientation: Orientation) -> bool:
    """Whether a slice's array columns become rows: X runs along superior–inferior, or posterior–anterior in an axial slice."""
    x, _, z = axis_codes(orientation)
    return x in "SI" or (x in "PA" and z in "SI")


def pixel_mm(spacing_mm: tuple[float, ...], orientation: Orientation) -> tuple[float, float]:
    """Width and height of a displayed pixel, mm, from the spacing (Z, Y, X) or (Y, X) in mm."""
    if len(spacing_mm) < 2 or not all(np.isfinite(s) and s > 0 for s in spacing_mm):
        raise ReportError(
            "drawing a slice", "the spacing", repr(spacing_mm), "Give the voxel size along (Z, Y, X) or (Y, X), in mm."
        )
    y_mm, x_mm = float(spacing_mm[-2]), float(spacing_mm[-1])
    return (y_mm, x_mm) if _is_hung_transposed(orientation) else (x_mm, y_mm)
