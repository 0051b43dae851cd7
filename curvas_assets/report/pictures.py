"""The report's pictures of patients: annotators' contours, uncertainty maps, organs in three dimensions.

Belongs here: slices and label volumes turned into figures, for the screen and for print. Does not belong here: charts
of tables (`figures`), choosing or reading the slices (the caller gives them).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from curvas_assets.errors import ReportError
from curvas_assets.report.chart import Chart, Scene, Surface, Swatch
from curvas_assets.report.slices import (
    Window,
    contours,
    map_panel,
    segmentation_panel,
    slice_panel,
    tinted,
    windowed,
)
from curvas_assets.report.style import (
    CT_WINDOW_HU,
    DISSENSUS_COLOUR,
    ORGAN_COLOURS,
    Orientation,
    colour_of,
    pixel_mm,
    radiological,
)
from curvas_assets.report.surfaces import MAX_FACES, surface

if TYPE_CHECKING:
    from curvas_assets.report.words import Words


@dataclass(frozen=True)
class SliceView:
    """One slice of one patient and, where it is known, of one ensemble.

    Args:
        patient: the patient's id.
        z: index of the slice.
        image: (Y, X) in array order, of a CT in HU.
        annotations: label maps (R, Y, X).
        annotators: whose they are; the study's, in order, when left out.
        spacing_mm: voxel size along (Z, Y, X).
        orientation: directions of the array axes X, Y, Z (`LPS`, …), or the image's 4 × 4 affine.
        predictor: whose maps these are; empty without maps.
        segmentation: label map (Y, X), or None.
        predictive_entropy: nats (Y, X), or None.
        mutual_information: nats (Y, X), or None.
        case: why this patient is shown: `typical`, `worst` of a metric, `outlier` in one; empty for no reason.
        metric: which, if there is one.
        channel: what the image shows if it is no CT, such as T1; empty for a CT.
        window: intensities that are shown black and white; None for a CT's soft-tissue window.
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
    case: str = ""
    metric: str = ""
    channel: str = ""
    window: Window | None = None

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
        """Whether an ensemble's segmentation and entropy are there to be drawn."""
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


def most_wrong_slice(annotations: Any, labels: npt.NDArray[Any]) -> int:
    """The slice with the most voxels whose label no annotator chose; the most disputed one if there is no such voxel.

    Args:
        annotations: label maps (R, Z, Y, X), sliceable; one slice of each is looked at at a time.
        labels: a predictor's label map (Z, Y, X).
    """
    wrong = [int(np.all(np.asarray(annotations[:, z]) != labels[z], axis=0).sum()) for z in range(annotations.shape[1])]
    if not any(wrong):
        return most_disputed_slice(annotations)
    return max(range(len(wrong)), key=wrong.__getitem__)


def why_shown(view: SliceView, words: "Words") -> str:
    """Why this patient is shown; empty if the view does not say."""
    if view.case == "typical":
        return words("case_typical", predictor=view.predictor)
    if view.case in ("worst", "outlier"):
        return words(f"case_{view.case}", predictor=view.predictor, metric=words.metric(view.metric))
    return ""


def annotators_on_slice(view: SliceView, annotators: Sequence[str], words: "Words") -> Chart:
    """Each annotator's contours on the scan, dissensus highlighted.

    Args:
        view: the slice.
        annotators: the study's, in order; the view's own, where it names them, come first.
        words: the language.
    """
    annotators = view.annotators or annotators
    image = radiological(view.image, view.orientation)
    maps = radiological(view.annotations, view.orientation)
    apart = dissensus(maps) if len(maps) else np.zeros(image.shape, bool)
    labelled = np.any(maps > 0, axis=0) if len(maps) else apart
    low, high = (f"{limit:.0f}".replace("-", "−") for limit in view.window or CT_WINDOW_HU)
    share = f"{100 * apart.sum() / labelled.sum():.0f} %" if labelled.any() else "0 %"
    millimetres = pixel_mm(view.spacing_mm, view.orientation)
    shown = {"z": view.z, "low": low, "high": high, "share": share}
    caption = (
        words("contours_caption_channel", channel=view.channel, **shown)
        if view.channel
        else words("contours_caption", **shown)
    )
    panel = slice_panel(
        tinted(windowed(image, view.window), {DISSENSUS_COLOUR: apart}),
        millimetres,
        [*contours(maps, annotators, millimetres), Swatch(colour=DISSENSUS_COLOUR, name=words("dissensus"))],
        titles=(words("x_pixels"), words("y_pixels")),
    )
    return Chart(
        name=f"annotators_{view.patient}",
        title=words("contours_title", patient=view.patient),
        caption=f"{why_shown(view, words)} {caption}".strip(),
        rows=[[panel]],
        size_in=(5.2, 5.2),
        height_px=520,
        legend="below",
        decimal=words.decimal,
    )


def uncertainty_on_slice(view: SliceView, class_names: Sequence[str], words: "Words") -> Chart:
    """Segmentation on the scan, predictive entropy and mutual information, side by side.

    Args:
        view: the slice.
        class_names: background and organs, as the language calls them.
        words: the language.

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
    image, labels = (radiological(one, view.orientation) for one in (view.image, view.segmentation))
    millimetres = pixel_mm(view.spacing_mm, view.orientation)
    across, down = words("x_pixels"), words("y_pixels")
    panels = [
        segmentation_panel(
            image, labels, class_names, millimetres, words("segmentation"), titles=(across, down), window=view.window
        ),
        *(
            map_panel(radiological(nats, view.orientation), millimetres, words.metric(name), titles=(across, ""))
            for name, nats in (
                ("predictive_entropy", view.predictive_entropy),
                ("mutual_information", view.mutual_information),
            )
            if nats is not None
        ),
    ]
    shown = {"z": view.z, "predictor": view.predictor}
    caption = (
        words("uncertainty_caption_channel", channel=view.channel, **shown)
        if view.channel
        else words("uncertainty_caption", **shown)
    )
    return Chart(
        name=f"uncertainty_{view.patient}",
        title=words("uncertainty_title", patient=view.patient),
        caption=f"{why_shown(view, words)} {caption}".strip(),
        rows=[panels],
        size_in=(3.3 * len(panels), 3.4),
        height_px=430,
        legend="below",
        decimal=words.decimal,
    )


def organs_in_3d(view: OrganView, class_names: Sequence[str], words: "Words", *, max_faces: int = MAX_FACES) -> Chart:
    """Surfaces of all organs of a label volume, in millimetres, anterior in front.

    Args:
        view: the volume.
        class_names: background and organs, as the language calls them.
        words: the language.
        max_faces: triangles per organ at most.
    """
    surfaces = [
        Surface(
            *surface(view.labels == label, view.spacing_mm, view.orientation, max_faces=max_faces),
            colour_of(ORGAN_COLOURS, label - 1),
            class_names[label] if label < len(class_names) else str(label),
        )
        for label in map(int, np.unique(view.labels))
        if label > 0
    ]
    return Chart(
        name=f"organs_{view.patient}",
        title=words("view_title", patient=view.patient),
        caption=words("view_caption", source=view.source),
        rows=Scene(surfaces, (words("left_right"), words("posterior"), words("superior"))),
        size_in=(5.6, 5.0),
        height_px=560,
        decimal=words.decimal,
    )
