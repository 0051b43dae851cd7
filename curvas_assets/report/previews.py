"""Small pictures for the metadata of assets: one slice, one curve, as PNG bytes.

Belongs here: what is looked at while the pipeline runs. Does not belong here: the report's figures (`figures`,
`pictures`). Slices come as (Y, X) in array order, are hung radiologically (anterior on top, the patient's left on the
right) and keep the voxels' proportions. matplotlib is imported when a picture is drawn, not before.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from curvas_assets.errors import ReportError
from curvas_assets.report.strokes import (
    annotator_legend,
    bare,
    draw_reliability,
    organ_legend,
    outline,
    show_ct,
    show_labels,
    show_map,
)
from curvas_assets.report.style import (
    BLACK,
    BLUE,
    CT_WINDOW_HU,
    FAMILY_COLOURS,
    GREY,
    ORANGE,
    Orientation,
    new_figure,
    picture,
    pixel_aspect,
    radiological,
)

if TYPE_CHECKING:
    import pandas as pd

Slice = npt.NDArray[Any]
DEFAULT_ORIENTATION = "LPS"
"""Array order of the challenge's images as nibabel reads them with X to the left and Y to posterior; pass the affine to be sure."""
CURVE_COLUMNS = ("epoch", "train_loss", "val_loss", "pseudo_dice", "ema_dice", "learning_rate", "seconds")


def preview_scan(
    image_slice: Slice,
    annotation_slices: Sequence[Slice],
    spacing_mm: tuple[float, ...],
    *,
    orientation: Orientation = DEFAULT_ORIENTATION,
    annotators: Sequence[str] | None = None,
    title: str | None = None,
) -> bytes:
    """One CT slice with each annotator's contours.

    Args:
        image_slice: CT, HU, (Y, X).
        annotation_slices: label maps (Y, X), one per annotator; may be empty.
        spacing_mm: voxel size along (Z, Y, X) or (Y, X).
        orientation: directions of the array axes X, Y, Z, or the image's affine.
        annotators: names for the legend; 1…R when left out.
        title: heading of the picture.

    Returns:
        PNG bytes.

    Raises:
        ReportError: shapes differ, or orientation or spacing cannot be used.
    """
    _same_shape("drawing a scan", image_slice, *annotation_slices)
    figure = new_figure(4.2, 4.2)
    axes = figure.add_subplot()
    aspect = pixel_aspect(spacing_mm, orientation)
    show_ct(axes, radiological(image_slice, orientation), aspect)
    names = annotators or [str(1 + index) for index in range(len(annotation_slices))]
    for index, labels in enumerate(annotation_slices):
        outline(axes, radiological(labels, orientation), index)
    if annotation_slices:
        annotator_legend(axes, names)
    if title:
        axes.set_title(title, fontsize=9)
    return picture(figure)


def preview_softmax(
    image_slice: Slice | None,
    probabilities: Slice,
    *,
    spacing_mm: tuple[float, ...] = (1.0, 1.0),
    orientation: Orientation = DEFAULT_ORIENTATION,
    class_names: Sequence[str] | None = None,
    title: str | None = None,
) -> bytes:
    """One slice of a softmax: the probability of each organ, over the CT where it is given.

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
    figure = new_figure(min(2.6 * organs, 10.4) + 0.6, 3.0)
    aspect = pixel_aspect(spacing_mm, orientation)
    grid = figure.subplots(1, organs, squeeze=False)[0]
    shown: Any = None
    for index, axes in enumerate(grid):
        probability = radiological(probabilities[1 + index], orientation)
        if image_slice is None:
            shown = axes.imshow(probability, cmap="cividis", vmin=0, vmax=1, aspect=aspect, interpolation="nearest")
        else:
            show_ct(axes, radiological(image_slice, orientation), aspect)
            faint = np.ma.masked_less(probability, 0.01)
            shown = axes.imshow(
                faint, cmap="cividis", vmin=0, vmax=1, aspect=aspect, alpha=0.7, interpolation="nearest"
            )
        bare(axes)
        axes.set_title(names[index], fontsize=9)
    bar = figure.colorbar(shown, ax=list(grid), shrink=0.7)
    bar.set_label("probability", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    if title:
        figure.suptitle(title, fontsize=9)
    return picture(figure)


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
    aspect = pixel_aspect(spacing_mm, orientation)
    figure = new_figure(9.6, 3.2)
    left, middle, right = figure.subplots(1, 3)
    labels = radiological(label_slice, orientation)
    if image_slice is None:
        show_ct(left, np.full(labels.shape, CT_WINDOW_HU[0]), aspect)
    else:
        show_ct(left, radiological(image_slice, orientation), aspect)
    show_labels(left, labels, aspect)
    organ_legend(left, labels, class_names)
    left.set_title("segmentation", fontsize=9)
    for axes, nats, name, colours in (
        (middle, entropy_slice, "predictive entropy", "cividis"),
        (right, mi_slice, "mutual information", "cividis"),
    ):
        show_map(axes, radiological(np.asarray(nats), orientation), aspect, name, colours)
    if title:
        figure.suptitle(title, fontsize=9)
    return picture(figure)


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
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(7.2, 2.8)
    losses, dice = figure.subplots(1, 2)
    marker = "o" if len(curve) <= 30 else None
    for axes, columns, unit in (
        (losses, (("train_loss", "training", BLUE, "-"), ("val_loss", "validation", ORANGE, "--")), "loss (no unit)"),
        (
            dice,
            (("pseudo_dice", "pseudo-Dice", GREY, ":"), ("ema_dice", "moving average", BLUE, "-")),
            "pseudo-Dice (no unit)",
        ),
    ):
        for column, label, colour, line in columns:
            if column in curve and curve[column].notna().any():
                axes.plot(
                    curve["epoch"],
                    curve[column],
                    line,
                    color=colour,
                    label=label,
                    marker=marker,
                    markersize=2.5,
                    lw=1.3,
                )
        axes.set_xlabel("epoch", fontsize=8)
        axes.set_ylabel(unit, fontsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.25, lw=0.5)
        if axes.lines:
            axes.legend(fontsize=7, frameon=False, loc="lower right")
    if "ema_dice" in curve and curve["ema_dice"].notna().any():
        best = curve["ema_dice"].idxmax()
        dice.axvline(float(curve.loc[best, "epoch"]), color=BLACK, lw=0.8, ls=":")  # type: ignore[arg-type]
        dice.set_title(f"best at epoch {curve.loc[best, 'epoch']}: {curve.loc[best, 'ema_dice']:.3f}", fontsize=8)
    if title:
        figure.suptitle(title, fontsize=9)
    return picture(figure)


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
    from curvas_assets.report.figures import pooled_reliability

    pooled = pooled_reliability(bins)
    families = list(pooled["family"].unique()) or [""]
    figure = new_figure(3.1 * len(families), 3.3)
    grid = figure.subplots(1, len(families), squeeze=False, sharey=True)[0]
    for axes, family in zip(grid, families, strict=True):
        draw_reliability(axes, pooled[pooled["family"] == family], FAMILY_COLOURS.get(family, BLUE))
        axes.set_title(str(family), fontsize=9)
        axes.set_xlabel("confidence (probability)", fontsize=8)
    grid[0].set_ylabel("accuracy (share of voxels)", fontsize=8)
    if title:
        figure.suptitle(title, fontsize=9)
    return picture(figure)


def _same_shape(attempted: str, first: Slice, *others: Slice) -> None:
    shapes = [np.shape(one) for one in (first, *others)]
    if len(shapes[0]) != 2 or any(shape != shapes[0] for shape in shapes):
        raise ReportError(
            attempted, "the slices", f"their shapes are {shapes}", "Give slices (Y, X) of the same patient and z."
        )
