"""How figures look: colours, dashes and markers of families and annotators, orientation of slices.

Belongs here: what every figure shares. Does not belong here: any figure, any number of a study.
Colours are those of Okabe and Ito (2008, "Color Universal Design"), told apart with every common colour blindness; what
a colour tells is told a second time by a marker or a dash, so that a black-and-white print still reads.
"""

import re
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

FURTHER = tuple(
    re.findall(
        "#[0-9A-F]{6}",
        """
        #8700F0 #692D0F #2D1E96 #00FF87 #4B2D5A #E1004B #A578FF #B4E1B4
        #B4A54B #870F3C #A50F87 #FFC3F0 #962DD2 #78C378 #874B69 #964B00
        #5A784B #C3D25A #F01EC3 #FF7896 #5A0F78 #8787E1 #5A961E #1ED2B4
        #A52D2D #875AFF #5A00C3 #0F4BB4 #F078D2 #D22D87 #C36969 #87F0D2
        #00692D #F0C300 #A5F0A5 #0000FF #69D269 #96A55A #D2C3FF #D2A53C
        #870F96 #0F00D2 #FF96D2 #966996 #F096FF #C30FF0 #690F3C #5AB496
        #0F4B78 #C300A5 #C3F05A #FF4B3C #5A5A96 #693C00 #2D69E1 #78F0FF
        """,
    )
)
"""For more than Okabe and Ito have: each is as far as can be (CIELAB, seen as it is and with each colour blindness, by Machado
et al. 2009) from theirs, from white and from those before it; none is grey, as a CT is."""
ANNOTATOR_COLOURS = (SKY, ORANGE, PURPLE, GREEN, VERMILION, BLUE, *FURTHER)
ORGAN_COLOURS = (VERMILION, SKY, GREEN, PURPLE, ORANGE, BLUE, YELLOW, *FURTHER, BLACK)
"""By label − 1; of 64 organs, which is all that a study may have, each has its own."""
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
