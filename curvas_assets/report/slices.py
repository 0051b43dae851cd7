"""Slices as pixels, contours and panels, for the report's pictures and for previews alike.

Belongs here: what becomes of a slice before it is drawn. Does not belong here: whole figures, files. Slices arrive as they are
shown: rows to posterior, columns to the patient's left.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from curvas_assets.report.chart import Axis, Line, Mark, Panel, Picture, Scale, Swatch
from curvas_assets.report.style import ANNOTATOR_COLOURS, CT_WINDOW_HU, DASHES, ORGAN_COLOURS, colour_of

Slice = npt.NDArray[Any]
Pixels = npt.NDArray[np.uint8]
"""RGB, (Y, X, 3)."""


Window = tuple[float, float]
"""Intensities that are shown black and white."""


def windowed(image: Slice, window: Window | None = None) -> Pixels:
    """A slice in shades of grey; of a CT, in HU, without a window in that of soft tissue."""
    low, high = window or CT_WINDOW_HU
    grey = np.clip((image - low) / (high - low) * 255, 0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


def tinted(pixels: Pixels, tints: Mapping[str, npt.NDArray[np.bool_]], alpha: float = 0.55) -> Pixels:
    """Pixels with masks in colour, as one picture: plotly shows only the lowest of several in a layer."""
    mixed = pixels.astype(float)
    for colour, inside in tints.items():
        rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        mixed[inside] = (1 - alpha) * mixed[inside] + alpha * np.array(rgb)
    return mixed.round().astype(np.uint8)


def coloured(values: Slice, top: float) -> Pixels:
    """A map in the colours of Cividis, from 0 to `top`."""
    from matplotlib import colormaps

    return (colormaps["cividis"](np.clip(np.nan_to_num(values) / top, 0, 1))[..., :3] * 255).astype(np.uint8)


def contours(maps: Iterable[Slice], annotators: Sequence[str], pixel_mm: tuple[float, float]) -> list[Line]:
    """One line per annotator, in that annotator's colour and dash, around every organ.

    Args:
        maps: label maps (Y, X).
        annotators: their names; one that is missing is called by its number.
        pixel_mm: width and height of a pixel.
    """
    return [
        Line(
            x=x * pixel_mm[0],
            y=y * pixel_mm[1],
            colour=colour_of(ANNOTATOR_COLOURS, index),
            dash=colour_of(DASHES, index),
            width=2,
            name=annotators[index] if index < len(annotators) else str(index + 1),
        )
        for index, (x, y) in enumerate(map(_contours, maps))
    ]


def slice_panel(
    pixels: Pixels,
    pixel_mm: tuple[float, float],
    marks: Sequence[Mark] = (),
    *,
    title: str = "",
    titles: tuple[str, str] = ("", ""),
    scale: Scale | None = None,
) -> Panel:
    """A slice with marks upon it.

    Args:
        pixels: the slice.
        pixel_mm: width and height of a pixel.
        marks: in mm from the middle of the first pixel.
        title: above.
        titles: of the axes; numbers stand along those that have one.
        scale: of the colours.
    """
    (height, width), (dx, dy) = pixels.shape[:2], pixel_mm
    return Panel(
        marks=[Picture(pixels=pixels, pixel_mm=pixel_mm, scale=scale), *marks],
        title=title,
        x=Axis(titles[0], (-0.5 * dx, (width - 0.5) * dx), ticks=bool(titles[0])),
        y=Axis(titles[1], ((height - 0.5) * dy, -0.5 * dy), ticks=bool(titles[1])),
        is_picture=True,
    )


def segmentation_panel(
    image: Slice | None,
    labels: Slice,
    class_names: Sequence[str],
    pixel_mm: tuple[float, float],
    title: str,
    *,
    titles: tuple[str, str] = ("", ""),
    window: Window | None = None,
) -> Panel:
    """Organs in their colours on the scan, or on black without one.

    Args:
        image: (Y, X), of a CT in HU, or None.
        labels: label map (Y, X).
        class_names: background and organs; a label beyond them is called by its number.
        pixel_mm: width and height of a pixel.
        title: above.
        titles: of the axes.
        window: as for `windowed`.
    """
    present = [int(label) for label in np.unique(labels) if label > 0]
    below = np.zeros((*labels.shape, 3), np.uint8) if image is None else windowed(image, window)
    swatches = [
        Swatch(
            colour=colour_of(ORGAN_COLOURS, label - 1),
            name=class_names[label] if label < len(class_names) else str(label),
        )
        for label in present
    ]
    pixels = below
    for label, swatch in zip(present, swatches, strict=True):
        pixels = tinted(pixels, {swatch.colour: labels == label})
    return slice_panel(pixels, pixel_mm, swatches, title=title, titles=titles)


def map_panel(nats: Slice, pixel_mm: tuple[float, float], title: str, *, titles: tuple[str, str] = ("", "")) -> Panel:
    """A map in nats with its colour bar; arguments as for `slice_panel`."""
    top = max(float(np.max(nats, initial=0.0, where=np.isfinite(nats))), 1e-6)
    return slice_panel(coloured(nats, top), pixel_mm, title=title, titles=titles, scale=Scale(top, "nats"))


def _contours(labels: Slice) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Contours of all organs as one line with gaps: x and y in pixels."""
    from skimage.measure import find_contours

    xs: list[npt.NDArray[np.float64]] = []
    ys: list[npt.NDArray[np.float64]] = []
    for label in np.unique(labels[labels != 0]):
        for line in find_contours(np.pad((labels == label).astype(float), 1), 0.5):  # padded: one at the border closes
            ys += [line[:, 0] - 1, np.array([np.nan])]
            xs += [line[:, 1] - 1, np.array([np.nan])]
    return (np.concatenate(xs), np.concatenate(ys)) if xs else (np.zeros(0), np.zeros(0))
