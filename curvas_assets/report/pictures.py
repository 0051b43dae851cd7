"""The report's pictures of patients: annotators' contours, uncertainty maps, organs in three dimensions.

Belongs here: slices and label volumes turned into figures, for the screen and for print. Does not belong here: charts
of tables (`figures`), choosing or reading the slices (the caller gives them).
"""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from curvas_assets.errors import ReportError
from curvas_assets.report.figures import Chart, dressed
from curvas_assets.report.strokes import (
    annotator_legend,
    organ_legend,
    outline,
    show_ct,
    show_dissensus,
    show_labels,
    show_map,
)
from curvas_assets.report.style import (
    ANNOTATOR_COLOURS,
    CT_WINDOW_HU,
    DISSENSUS_COLOUR,
    ORGAN_COLOURS,
    Orientation,
    axis_codes,
    colour_of,
    new_figure,
    pixel_aspect,
    pixel_mm,
    radiological,
)
from curvas_assets.report.words import Words

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from matplotlib.figure import Figure

MAX_FACES = 20_000
"""Triangles per organ in the 3-D view: about 1 MB of HTML each."""


@dataclass(frozen=True)
class SliceView:
    """One slice of one patient and, where it is known, of one ensemble.

    Args:
        patient: the patient's id.
        z: index of the slice.
        image: CT, HU, (Y, X) in array order.
        annotations: label maps (R, Y, X).
        annotators: whose they are; the study's, in order, when left out.
        spacing_mm: voxel size along (Z, Y, X).
        orientation: directions of the array axes X, Y, Z (`LPS`, …), or the image's 4 × 4 affine.
        predictor: whose maps these are; empty without maps.
        segmentation: label map (Y, X), or None.
        predictive_entropy: nats (Y, X), or None.
        mutual_information: nats (Y, X), or None.
    """

    patient: str
    z: int
    image: npt.NDArray[Any]
    annotations: npt.NDArray[Any]
    spacing_mm: tuple[float, float, float]
    orientation: Orientation = "LPS"
    predictor: str = ""
    segmentation: npt.NDArray[Any] | None = None
    predictive_entropy: npt.NDArray[Any] | None = None
    mutual_information: npt.NDArray[Any] | None = None
    annotators: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        maps = [m for m in (self.segmentation, self.predictive_entropy, self.mutual_information) if m is not None]
        shapes = [np.shape(self.image), *(np.shape(a) for a in self.annotations), *(np.shape(m) for m in maps)]
        if len(shapes[0]) != 2 or any(shape != shapes[0] for shape in shapes):
            raise ReportError(
                "drawing a slice",
                self.patient,
                f"image, annotations and maps have the shapes {shapes}",
                "Give slices (Y, X) of the same z.",
            )

    @property
    def has_maps(self) -> bool:
        return self.segmentation is not None and self.predictive_entropy is not None


@dataclass(frozen=True)
class OrganView:
    """A label volume for the 3-D view.

    Args:
        patient: the patient's id.
        labels: label map (Z, Y, X), small integers.
        spacing_mm: voxel size along (Z, Y, X).
        source: whose labels these are, in words: an annotator, a predictor.
        orientation: directions of the array axes X, Y, Z, or the affine.
    """

    patient: str
    labels: npt.NDArray[Any]
    spacing_mm: tuple[float, float, float]
    source: str
    orientation: Orientation = "LPS"


def dissensus(annotations: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Where not all annotators chose the same label: (R, …) → bool (…)."""
    return np.any(annotations != annotations[:1], axis=0)


def most_disputed_slice(annotations: Any) -> int:
    """The slice worth showing: with the most organs and, among those, the most voxels of dissensus.

    Args:
        annotations: label maps (R, Z, Y, X), sliceable; one slice of each is looked at at a time.
    """
    worth = []
    for z in range(annotations.shape[1]):
        maps = np.asarray(annotations[:, z])
        worth.append((np.count_nonzero(np.unique(maps)), int(dissensus(maps).sum()), int((maps > 0).sum())))
    return max(range(len(worth)), key=worth.__getitem__)


def annotators_on_slice(view: SliceView, annotators: list[str], words: Words) -> Chart:
    """Each annotator's contours on the CT, dissensus highlighted."""
    annotators = list(view.annotators) or annotators
    image = radiological(view.image, view.orientation)
    maps = radiological(view.annotations, view.orientation)
    apart = dissensus(maps) if len(maps) else np.zeros(image.shape, bool)
    labelled = np.any(maps > 0, axis=0) if len(maps) else apart
    share = f"{100 * apart.sum() / labelled.sum():.0f} %" if labelled.any() else "0 %"
    aspect = pixel_aspect(view.spacing_mm, view.orientation)
    caption = words(
        "contours_caption",
        patient=view.patient,
        z=view.z,
        low=f"{CT_WINDOW_HU[0]:.0f}".replace("-", "−"),
        high=f"{CT_WINDOW_HU[1]:.0f}",
        share=share,
    )

    def plotly() -> "go.Figure":
        import plotly.graph_objects as go

        figure = go.Figure()
        dx, dy = pixel_mm(view.spacing_mm, view.orientation)
        _add_picture(figure, _tinted(_windowed(image), {DISSENSUS_COLOUR: apart}), dx, dy)
        for index, labels in enumerate(maps):
            x, y = _contours(labels)
            figure.add_trace(
                go.Scatter(
                    x=x * dx,
                    y=y * dy,
                    mode="lines",
                    name=annotators[index] if index < len(annotators) else str(index + 1),
                    line={
                        "color": colour_of(ANNOTATOR_COLOURS, index),
                        "width": 2,
                        "dash": ("solid", "dash", "dot", "dashdot")[index % 4],
                    },
                    hoverinfo="name",
                )
            )
        figure.add_trace(
            go.Scatter(
                x=[None],
                y=[None],
                mode="markers",
                name=words("dissensus"),
                marker={"symbol": "square", "size": 11, "color": DISSENSUS_COLOUR},
            )
        )
        _axes_of_slice(figure, image.shape, dx, dy, words)
        figure.update_layout(height=520)
        return dressed(figure, words)

    def printed() -> "Figure":
        figure = new_figure(5.2, 5.0)
        axes = figure.subplots()
        show_ct(axes, image, aspect)
        show_dissensus(axes, apart, aspect)
        for index, labels in enumerate(maps):
            outline(axes, labels, index)
        if len(maps):
            annotator_legend(axes, annotators[: len(maps)], dissensus=words("dissensus"))
        return figure

    return Chart(f"annotators_{view.patient}", words("contours_title", patient=view.patient), caption, plotly, printed)


def uncertainty_on_slice(view: SliceView, class_names: Sequence[str], words: Words) -> Chart:
    """Segmentation on the CT, predictive entropy and mutual information, side by side.

    Raises:
        ReportError: the view has no maps.
    """
    if view.segmentation is None or view.predictive_entropy is None:
        raise ReportError(
            "drawing an uncertainty map",
            view.patient,
            "the slice has no segmentation or no entropy",
            "Give both, from an ensemble.",
        )
    image = radiological(view.image, view.orientation)
    labels = radiological(view.segmentation, view.orientation)
    maps = [(words.metric("predictive_entropy"), radiological(view.predictive_entropy, view.orientation))]
    if view.mutual_information is not None:
        maps.append((words.metric("mutual_information"), radiological(view.mutual_information, view.orientation)))
    aspect = pixel_aspect(view.spacing_mm, view.orientation)
    caption = words("uncertainty_caption", patient=view.patient, z=view.z, predictor=view.predictor)

    def plotly() -> "go.Figure":
        import plotly.graph_objects as go
        from plotly.subplots import make_subplots

        count = 1 + len(maps)
        figure = make_subplots(
            cols=count, subplot_titles=[words("segmentation"), *(name for name, _ in maps)], horizontal_spacing=0.09
        )
        dx, dy = pixel_mm(view.spacing_mm, view.orientation)
        present = [label for label in range(1, len(class_names)) if (labels == label).any()]
        tints = {colour_of(ORGAN_COLOURS, label - 1): labels == label for label in present}
        _add_picture(figure, _tinted(_windowed(image), tints), dx, dy)
        for label in present:
            figure.add_trace(
                go.Scatter(
                    x=[None],
                    y=[None],
                    mode="markers",
                    name=class_names[label],
                    marker={"symbol": "square", "size": 11, "color": colour_of(ORGAN_COLOURS, label - 1)},
                ),
                row=1,
                col=1,
            )
        for column, (name, nats) in enumerate(maps, start=2):
            top = max(float(np.nanmax(nats, initial=0.0)), 1e-6)
            right = figure.layout[f"xaxis{column}"].domain[1]
            _add_picture(figure, _coloured(nats, top), dx, dy, col=column)
            # The picture is pixels; an invisible point carries its colour bar.
            figure.add_trace(
                go.Scatter(
                    x=[None],
                    y=[None],
                    mode="markers",
                    name=name,
                    showlegend=False,
                    marker={
                        "color": [0, top],
                        "cmin": 0,
                        "cmax": top,
                        "colorscale": "Cividis",
                        "showscale": True,
                        "colorbar": {"title": {"text": "nats"}, "x": right + 0.005, "thickness": 10, "len": 0.8},
                    },
                ),
                row=1,
                col=column,
            )
        _axes_of_slice(figure, image.shape, dx, dy, words, columns=count)
        figure.update_layout(height=430, legend={"orientation": "h", "y": -0.12})
        return dressed(figure, words)

    def printed() -> "Figure":
        figure = new_figure(3.3 * (1 + len(maps)), 3.2)
        grid = figure.subplots(1, 1 + len(maps), squeeze=False)[0]
        show_ct(grid[0], image, aspect)
        show_labels(grid[0], labels, aspect)
        organ_legend(grid[0], labels, class_names)
        grid[0].set_title(words("segmentation"), fontsize=9)
        for axes, (name, nats) in zip(grid[1:], maps, strict=True):
            show_map(axes, nats, aspect, name, "cividis")
        return figure

    return Chart(
        f"uncertainty_{view.patient}", words("uncertainty_title", patient=view.patient), caption, plotly, printed
    )


def organs_in_3d(view: OrganView, class_names: Sequence[str], words: Words, *, max_faces: int = MAX_FACES) -> Chart:
    """Surfaces of all organs of a label volume, in millimetres, anterior in front."""
    surfaces = {
        class_names[label] if label < len(class_names) else str(label): (
            surface(view.labels == label, view.spacing_mm, view.orientation, max_faces=max_faces),
            colour_of(ORGAN_COLOURS, label - 1),
        )
        for label in map(int, np.unique(view.labels))
        if label > 0
    }

    def plotly() -> "go.Figure":
        import plotly.graph_objects as go

        figure = go.Figure()
        for name, ((points, faces), colour) in surfaces.items():
            figure.add_trace(
                go.Mesh3d(
                    x=points[:, 0].astype(np.float32),
                    y=points[:, 1].astype(np.float32),
                    z=points[:, 2].astype(np.float32),
                    i=faces[:, 0].astype(np.uint32),
                    j=faces[:, 1].astype(np.uint32),
                    k=faces[:, 2].astype(np.uint32),
                    color=colour,
                    opacity=1.0,
                    name=name,
                    showlegend=True,
                    hoverinfo="name",
                    flatshading=False,
                    lighting={"ambient": 0.55, "diffuse": 0.7, "specular": 0.15, "roughness": 0.6},
                )
            )
        figure.update_layout(
            scene={
                "aspectmode": "data",
                "xaxis_title": words("left_right"),
                "yaxis_title": words("posterior"),
                "zaxis_title": words("superior"),
                "camera": {"eye": {"x": 0.35, "y": -2.2, "z": 0.4}},
            },
            height=560,
        )
        return dressed(figure, words)

    def printed() -> "Figure":
        from matplotlib.colors import LightSource
        from matplotlib.patches import Patch

        figure = new_figure(5.6, 5.0)
        axes: Any = figure.add_subplot(projection="3d")
        light = LightSource(azdeg=300, altdeg=40)
        for (points, faces), colour in surfaces.values():
            body = axes.plot_trisurf(
                points[:, 0], points[:, 1], points[:, 2], triangles=faces, color=colour, lightsource=light, lw=0
            )
            body.set_rasterized(True)  # ten thousand shaded triangles as vectors are 10 MB of SVG
        axes.set_xlabel(words("left_right"), fontsize=7)
        axes.set_ylabel(words("posterior"), fontsize=7)
        axes.set_zlabel(words("superior"), fontsize=7)
        axes.tick_params(labelsize=6)
        axes.view_init(elev=12, azim=-80)
        if surfaces:
            axes.set_aspect("equal")
            axes.legend(
                handles=[Patch(color=c, label=name) for name, (_, c) in surfaces.items()], fontsize=7, loc="upper right"
            )
        return figure

    return Chart(
        f"organs_{view.patient}",
        words("view_title", patient=view.patient),
        words("view_caption", patient=view.patient, source=view.source),
        plotly,
        printed,
    )


def surface(
    mask: npt.NDArray[np.bool_],
    spacing_mm: tuple[float, float, float],
    orientation: Orientation = "LPS",
    *,
    max_faces: int = MAX_FACES,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """The surface of a mask as triangles, with at most about `max_faces` of them.

    The mask is averaged over blocks of voxels, the larger the more triangles there would be, and cut at one half.

    Args:
        mask: bool (Z, Y, X).
        spacing_mm: voxel size along (Z, Y, X).
        orientation: directions of the array axes X, Y, Z, or the affine.
        max_faces: triangles wanted at most.

    Returns:
        Points (n, 3) in mm along (to the patient's left, to posterior, to superior) from the volume's corner, and
        triangles (m, 3) as indices of points; both empty for an empty mask.
    """
    from skimage.measure import block_reduce, marching_cubes

    if not mask.any():
        return np.zeros((0, 3)), np.zeros((0, 3), int)
    codes = axis_codes(orientation)
    sides = [np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis))) for axis in range(3)]
    box = [slice(int(side[0]), int(side[-1]) + 1) for side in sides]
    corner = np.array([part.start for part in box], float)
    crop = np.ascontiguousarray(mask[tuple(box)]).astype(np.float32)
    spacing = np.asarray(spacing_mm, float)
    millimetres = float(spacing.min())
    while True:
        block = [max(1, round(millimetres / one)) for one in spacing]
        coarse = np.pad(block_reduce(crop, tuple(block), np.mean), 1)  # type: ignore[arg-type]  # padded: surfaces close
        if coarse.max() <= 0.5:  # thinner than the blocks: cut lower rather than lose it
            coarse = coarse / coarse.max()
        points, faces, _, _ = marching_cubes(coarse, 0.5)
        if len(faces) <= max_faces or all(b >= n for b, n in zip(block, crop.shape, strict=True)):
            return _placed(points, np.array(block), corner, spacing, codes, mask.shape), faces.astype(np.int64)
        millimetres *= 1.3


def _placed(
    points: npt.NDArray[np.float64],
    block: npt.NDArray[np.int64],
    corner: npt.NDArray[np.float64],
    spacing: npt.NDArray[np.float64],
    codes: str,
    shape: tuple[int, ...],
) -> npt.NDArray[np.float64]:
    """Points of the padded, coarse crop (Z, Y, X) in mm along left, posterior and superior."""
    # Block index − 1 (padding) → voxel index of the block's middle → mm.
    voxels = corner + (points - 1 + 0.5) * block - 0.5
    zyx = voxels * spacing
    extent = np.array(shape) * spacing
    lps = np.empty_like(zyx)
    for axis, code in zip((2, 1, 0), codes, strict=True):  # codes are of X, Y, Z
        values = zyx[:, axis] if code in "LPS" else extent[axis] - zyx[:, axis]
        lps[:, "LPS".index({"R": "L", "A": "P", "I": "S"}.get(code, code))] = values
    return lps


def _windowed(image: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    low, high = CT_WINDOW_HU
    return np.clip((image - low) / (high - low) * 255, 0, 255).astype(np.uint8)


def _tinted(
    grey: npt.NDArray[np.uint8], tints: Mapping[str, npt.NDArray[np.bool_]], alpha: float = 0.55
) -> npt.NDArray[np.uint8]:
    """The CT with masks in colour, as one picture: plotly shows only the lowest of several in a layer."""
    pixels = np.repeat(grey[..., None], 3, axis=-1).astype(float)
    for colour, inside in tints.items():
        pixels[inside] = (1 - alpha) * pixels[inside] + alpha * np.array(
            [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        )
    return pixels.round().astype(np.uint8)


def _coloured(nats: npt.NDArray[Any], top: float) -> npt.NDArray[np.uint8]:
    from matplotlib import colormaps

    return (colormaps["cividis"](np.clip(np.nan_to_num(nats) / top, 0, 1))[..., :3] * 255).astype(np.uint8)


def _add_picture(figure: "go.Figure", pixels: npt.NDArray[np.uint8], dx: float, dy: float, *, col: int = 1) -> None:
    """Pixels as a PNG inside the figure: a hundredth of the same slice as numbers."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    height, width = pixels.shape[:2]
    suffix = "" if col == 1 else str(col)
    figure.add_layout_image(
        source="data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode(),
        xref=f"x{suffix}",
        yref=f"y{suffix}",
        x=-0.5 * dx,
        y=-0.5 * dy,
        sizex=width * dx,
        sizey=height * dy,
        sizing="stretch",
        layer="below",
    )


def _axes_of_slice(
    figure: "go.Figure", shape: tuple[int, ...], dx: float, dy: float, words: Words, *, columns: int = 1
) -> None:
    height, width = shape
    for column in range(1, columns + 1):
        suffix = "" if column == 1 else str(column)
        figure.update_layout(
            {
                f"xaxis{suffix}": {
                    "range": [-0.5 * dx, (width - 0.5) * dx],
                    "title": {"text": words("x_pixels")},
                    "showgrid": False,
                    "zeroline": False,
                    "constrain": "domain",
                },
                f"yaxis{suffix}": {
                    "range": [(height - 0.5) * dy, -0.5 * dy],
                    "title": {"text": words("y_pixels") if column == 1 else ""},
                    "showgrid": False,
                    "zeroline": False,
                    "scaleanchor": f"x{suffix}",
                    "scaleratio": 1,
                    "constrain": "domain",
                    "showticklabels": column == 1,
                },
            }
        )


def _contours(labels: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Contours of all organs as one line with gaps: x and y in pixels."""
    from skimage.measure import find_contours

    xs: list[npt.NDArray[np.float64]] = []
    ys: list[npt.NDArray[np.float64]] = []
    for label in np.unique(labels):
        if label == 0:
            continue
        for line in find_contours(np.pad((labels == label).astype(float), 1), 0.5):
            ys += [line[:, 0] - 1, np.array([np.nan])]
            xs += [line[:, 1] - 1, np.array([np.nan])]
    return (np.concatenate(xs), np.concatenate(ys)) if xs else (np.zeros(0), np.zeros(0))
