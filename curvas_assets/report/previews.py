"""Small pictures for the metadata of assets: one slice, one curve, as PNG bytes.

Belongs here: what is looked at while the pipeline runs. Does not belong here: the report's figures (`figures`,
`pictures`). Slices come as (Y, X) in array order, are hung radiologically (anterior on top, the patient's left on the
right) and keep the voxels' proportions. matplotlib is imported when a picture is drawn, not before.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from curvas_assets.errors import ReportError
from curvas_assets.report import paper
from curvas_assets.report.chart import Axis, Chart, Line, Panel, Scale
from curvas_assets.report.slices import (
    Slice,
    Window,
    coloured,
    contours,
    map_panel,
    segmentation_panel,
    slice_panel,
    windowed,
)
from curvas_assets.report.style import (
    BLACK,
    BLUE,
    GREY,
    ORANGE,
    ORGAN_COLOURS,
    Orientation,
    colour_of,
    pixel_mm,
    radiological,
)

if TYPE_CHECKING:
    import pandas as pd

    from curvas_assets.report.chart import Dash

DEFAULT_ORIENTATION = "LPS"
"""Array order of the challenge's images as nibabel reads them with X to the left and Y to posterior; pass the affine to be sure."""
CURVE_COLUMNS = ("epoch", "train_loss", "val_loss", "pseudo_dice", "ema_dice", "learning_rate", "seconds")
MOST_MARKED = 30
"""Epochs up to which each is marked on its line."""
MOST_PANELS = 8
"""Organs whose probabilities are shown side by side."""
FAINTEST = 0.01
"""Probability below which the CT alone is shown."""


def preview_scan(
    image_slice: Slice,
    annotation_slices: Sequence[Slice],
    spacing_mm: tuple[float, ...],
    *,
    window: Window | None = None,
    orientation: Orientation = DEFAULT_ORIENTATION,
    annotators: Sequence[str] | None = None,
    title: str | None = None,
) -> bytes:
    """One slice of a scan with each annotator's contours.

    Args:
        image_slice: (Y, X), of a CT in HU.
        annotation_slices: label maps (Y, X), one per annotator; may be empty.
        spacing_mm: voxel size along (Z, Y, X) or (Y, X).
        window: intensities that are shown black and white; a CT's soft-tissue window if left out.
        orientation: directions of the array axes X, Y, Z, or the image's affine.
        annotators: names for the legend; 1…R when left out.
        title: heading of the picture.

    Returns:
        PNG bytes.

    Raises:
        ReportError: shapes differ, or orientation or spacing cannot be used.
    """
    _same_shape("drawing a scan", image_slice, *annotation_slices)
    millimetres = pixel_mm(spacing_mm, orientation)
    names = annotators or [str(1 + index) for index in range(len(annotation_slices))]
    maps = [radiological(labels, orientation) for labels in annotation_slices]
    pixels = windowed(radiological(image_slice, orientation), window)
    panel = slice_panel(pixels, millimetres, contours(maps, names, millimetres))
    return _drawn([panel], (4.2, 4.4), title)


def preview_softmax(
    image_slice: Slice | None,
    probabilities: Slice,
    *,
    spacing_mm: tuple[float, ...] = (1.0, 1.0),
    orientation: Orientation = DEFAULT_ORIENTATION,
    class_names: Sequence[str] | None = None,
    title: str | None = None,
) -> bytes:
    """One slice of a softmax: the probability of each organ, over the CT where it is given. Of more than eight organs, those that
    have most of the slice.

    Args:
        image_slice: CT, HU, (Y, X), or None.
        probabilities: (C, Y, X), background first.
        spacing_mm: voxel size along (Z, Y, X) or (Y, X).
        orientation: directions of the array axes X, Y, Z, or the image's affine.
        class_names: names of the C classes.
        title: heading of the picture.

    Returns:
        PNG bytes.

    Raises:
        ReportError: shapes differ, or there is no class beside the background.
    """
    probabilities = np.asarray(probabilities, dtype=np.float32)
    if probabilities.ndim != 3 or probabilities.shape[0] < 2:
        raise ReportError(
            "drawing a softmax slice",
            "the probabilities",
            f"their shape is {probabilities.shape}",
            "Give (classes, Y, X), background first.",
        )
    _same_shape("drawing a softmax slice", probabilities[0], *([] if image_slice is None else [image_slice]))
    organs = probabilities.shape[0] - 1
    names = list(class_names or [str(c) for c in range(organs + 1)])[1:]
    millimetres = pixel_mm(spacing_mm, orientation)
    scan = None if image_slice is None else windowed(radiological(image_slice, orientation))
    shown = np.sort(np.argsort(-probabilities[1:].sum(axis=(1, 2)), kind="stable")[:MOST_PANELS])
    if len(shown) < organs:
        title = f"{title or 'softmax'}, the {len(shown)} of {organs} organs with most of it"
    panels = []
    for c in map(int, shown):
        name, probability = names[c], radiological(probabilities[1 + c], orientation)
        pixels = coloured(probability, 1.0)
        if scan is not None:
            pixels = np.where(probability[..., None] < FAINTEST, scan, 0.7 * pixels + 0.3 * scan).astype(np.uint8)
        panels.append(slice_panel(pixels, millimetres, title=name, scale=Scale(1.0, "probability")))
    return _drawn(panels, (min(2.6 * len(shown), 10.4) + 0.6, 3.0), title)


def preview_uncertainty(
    entropy_slice: Slice,
    mi_slice: Slice,
    label_slice: Slice,
    *,
    image_slice: Slice | None = None,
    spacing_mm: tuple[float, ...] = (1.0, 1.0),
    orientation: Orientation = DEFAULT_ORIENTATION,
    class_names: Sequence[str] | None = None,
    title: str | None = None,
) -> bytes:
    """One slice of an ensemble: labels, predictive entropy and mutual information.

    Args:
        entropy_slice: predictive entropy, nats, (Y, X).
        mi_slice: mutual information of prediction and member, nats, (Y, X).
        label_slice: segmentation, (Y, X).
        image_slice: CT, HU, (Y, X), under the labels; or None.
        spacing_mm: voxel size along (Z, Y, X) or (Y, X).
        orientation: directions of the array axes X, Y, Z, or the image's affine.
        class_names: names of the classes, background first.
        title: heading of the picture.

    Returns:
        PNG bytes.

    Raises:
        ReportError: shapes differ.
    """
    _same_shape(
        "drawing an uncertainty map",
        entropy_slice,
        mi_slice,
        label_slice,
        *([] if image_slice is None else [image_slice]),
    )
    millimetres = pixel_mm(spacing_mm, orientation)
    image = None if image_slice is None else radiological(image_slice, orientation)
    labels, entropy, information = (
        radiological(np.asarray(one), orientation) for one in (label_slice, entropy_slice, mi_slice)
    )
    panels = [
        segmentation_panel(image, labels, class_names or (), millimetres, "segmentation"),
        map_panel(entropy, millimetres, "predictive entropy"),
        map_panel(information, millimetres, "mutual information"),
    ]
    return _drawn(panels, (9.6, 3.4), title)


def training_curve(curve: "pd.DataFrame", *, title: str | None = None) -> bytes:
    """Losses and pseudo-Dice of one training, by epoch.

    Args:
        curve: columns epoch, train_loss, val_loss, pseudo_dice, ema_dice, learning_rate and seconds (one row per epoch);
            columns that are missing or all NaN are left out of the picture.
        title: heading of the picture.

    Returns:
        PNG bytes.

    Raises:
        ReportError: there is no epoch column.
    """
    if "epoch" not in curve:
        raise ReportError(
            "drawing a training curve",
            "the curve",
            f"its columns are {list(curve.columns)}",
            f"Give the columns {list(CURVE_COLUMNS)}.",
        )
    losses = _curves(curve, ("train_loss", "training", BLUE, "solid"), ("val_loss", "validation", ORANGE, "dash"))
    dice = _curves(curve, ("pseudo_dice", "pseudo-Dice", GREY, "dot"), ("ema_dice", "moving average", BLUE, "solid"))
    told = ""
    if "ema_dice" in curve and curve["ema_dice"].notna().any():
        best = curve.loc[curve["ema_dice"].idxmax()]
        told = f"best at epoch {best['epoch']:.0f}: {best['ema_dice']:.3f}"
        shown = np.concatenate([line.y for line in dice])
        ends = np.array([np.nanmin(shown), np.nanmax(shown)])
        dice.append(Line(x=np.full(2, best["epoch"], float), y=ends, colour=BLACK, dash="dot", width=1))
    epochs = Axis("epoch", whole=True)
    panels = [
        Panel(marks=losses, x=epochs, y=Axis("loss (no unit)")),
        Panel(marks=dice, title=told, x=epochs, y=Axis("pseudo-Dice (no unit)")),
    ]
    return _drawn(panels, (7.2, 3.0), title)


def _curves(curve: "pd.DataFrame", *columns: "tuple[str, str, str, Dash]") -> list[Line]:
    """A line for each column that there is: its name, what it is called, its colour and dash."""
    return [
        Line(
            x=curve["epoch"].to_numpy(float),
            y=curve[column].to_numpy(float),
            colour=colour,
            dash=dash,
            width=2,
            is_marked=len(curve) <= MOST_MARKED,
            name=name,
        )
        for column, name, colour, dash in columns
        if column in curve and curve[column].notna().any()
    ]


def reliability_diagram(bins: "pd.DataFrame", *, title: str | None = None) -> bytes:
    """Accuracy against confidence, bin by bin, with the gap between them and the share of voxels.

    Args:
        bins: columns `lower`, `upper`, `count` (voxels), `accuracy` and `confidence`; a `family`, `predictor` and
            `patient` where there are several. Rows of the same bin are pooled by their voxels.
        title: heading of the picture.

    Returns:
        PNG bytes.

    Raises:
        ReportError: a column is missing.
    """
    from curvas_assets.report.figures import reliability
    from curvas_assets.report.words import Words

    return paper.image(replace(reliability(bins, Words("en")), legend="below", heading=title or ""))


def calibration_curves(
    measured: Mapping[str, tuple[Slice, Slice]],
    probability: Slice,
    curves: Mapping[str, Slice],
    *,
    title: str | None = None,
) -> bytes:
    """What a calibrator makes of probabilities, over the annotators' mean response that it was fitted to.

    Args:
        measured: organ → mean probability and mean response of each bin, (bins,) each.
        probability: where curves are known, (n,).
        curves: organ, or whatever a curve is of → calibrated probability, (n,).
        title: heading of the picture.

    Returns:
        PNG bytes.
    """
    ends = np.array([0.0, 1.0])
    marks = [Line(x=ends, y=ends, colour=GREY, dash="dot", width=1)]
    colours = {name: colour_of(ORGAN_COLOURS, index) for index, name in enumerate(measured)}
    for name, (p, response) in measured.items():
        marks.append(
            Line(x=p, y=response, colour=colours[name], dash="dash", width=1, is_marked=True, name=f"{name}, measured")
        )
    for name, curve in curves.items():
        marks.append(Line(x=probability, y=curve, colour=colours.get(name, BLACK), width=2, name=f"{name}, calibrated"))
    limits = (0.0, 1.0)
    panel = Panel(
        marks=marks, x=Axis("probability", limits), y=Axis("mean response of the annotators", limits), is_picture=False
    )
    return _drawn([panel], (5.4, 4.4), title)


def _drawn(panels: Sequence[Panel], size_in: tuple[float, float], title: str | None) -> bytes:
    """Panels in a row, as PNG."""
    return paper.image(Chart(name="preview", rows=[panels], size_in=size_in, legend="below", heading=title or ""))


def _same_shape(attempted: str, first: Slice, *others: Slice) -> None:
    shapes = [np.shape(one) for one in (first, *others)]
    if len(shapes[0]) != 2 or any(shape != shapes[0] for shape in shapes):
        raise ReportError(
            attempted, "the slices", f"their shapes are {shapes}", "Give slices (Y, X) of the same patient and z."
        )
