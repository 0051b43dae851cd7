# numba infers the types of its functions:
# pyright: reportMissingParameterType=false
"""How far a tumour involves vessels, and how well a prediction tells that: the scores of the challenge of 2025 (CURVAS-PDACVI).

One map of the vessels serves annotators and predictors alike, so that only the tumour makes a difference: the label of most
annotators. In each slice of a plane, the involvement is the share of the vessel's outline that the tumour touches, of
360°. The annotators' largest involvements are one distribution, those of the prediction at six cuts the other.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy
from numba import njit

from curvas_assets.codes import DEPTH
from curvas_assets.fusing import majority
from curvas_assets.scoring.calibration import expected_error
from curvas_assets.scoring.counting import Counts, Spans, in_image
from curvas_assets.scoring.references import Further, Thresholds
from curvas_assets.scoring.registry import CUTS, Row
from curvas_assets.storage.labels import PackedLabels

FULL_CIRCLE = 360.0
AROUND = 20
"""Voxels by which the box around the annotators' tumours is widened for `tumour_ece`, as in the challenge."""
MARGIN = 3
"""Voxels around a vessel that its outline and the challenge's dilations look at."""
SMOOTHING = 1e-6
"""What the challenge adds to denominators and deviations."""
PLANES = 3
Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Vessel:
    """A vessel in the map of most annotators.

    Args:
        mask: bool (z, y, x), in its box.
        box: the voxels (in the region) of the vessel and a margin; it ends at the region's border.
        annotators: degrees by (measure, annotator, plane), as from `involvement`.
    """

    mask: npt.NDArray[np.bool_]
    box: Spans
    annotators: Values


@dataclass(frozen=True)
class Anatomy:
    """The vessels of a patient, and where annotators see the tumour.

    Args:
        vessels: organ → vessel; None where most annotators drew none.
        around: voxels (in the region) around the annotators' tumours; None if nobody drew one.
        tumour: the tumour's organ.
        spacing_mm: voxel size along (Z, Y, X).
    """

    vessels: Mapping[str, Vessel | None]
    around: Spans | None
    tumour: str
    spacing_mm: Sequence[float]

    @classmethod
    def of(
        cls,
        annotations: Any,
        region: Spans,
        spacing_mm: Sequence[float],
        organs: Mapping[str, int],
        tumour: str,
        vessels: Sequence[str],
    ) -> "Anatomy":
        """Find it, slab by slab.

        Args:
            annotations: uint8 (R, Z, Y, X), sliceable.
            region: voxels outside do not count.
            spacing_mm: voxel size along (Z, Y, X).
            organs: name → label.
            tumour: the organ that is the tumour.
            vessels: the organs that are vessels.
        """
        zs, ys, xs = region
        shape = (zs.stop - zs.start, ys.stop - ys.start, xs.stop - xs.start)
        packed, wanted = PackedLabels(1, shape), {organs[vessel] for vessel in vessels}
        boxes: dict[int, npt.NDArray[np.int64]] = {}
        of_tumour = organs[tumour]
        for z in range(0, shape[0], DEPTH):
            drawn = annotations[:, zs.start + z : min(zs.start + z + DEPTH, zs.stop), ys, xs]
            if not drawn.any():
                continue
            most = majority(drawn)
            packed.put(0, z, most)
            _widen(boxes, most, wanted, z)
            _widen(boxes, np.where((drawn == of_tumour).any(axis=0), of_tumour, 0), {of_tumour}, z)
        found: dict[str, Vessel | None] = {}
        for vessel in vessels:
            box = _spans(boxes.get(organs[vessel]), MARGIN, shape)
            if box is None:
                found[vessel] = None
                continue
            mask, own = packed[(0, *box)] == organs[vessel], in_image(box, region)
            each = [
                involvement(mask, (annotations[(r, *own)] == of_tumour).astype(np.uint8), 1, spacing_mm)[:, 0]
                for r in range(annotations.shape[0])
            ]
            found[vessel] = Vessel(mask, box, np.stack(each, axis=1))
        return cls(found, _spans(boxes.get(of_tumour), AROUND, shape), tumour, spacing_mm)


def involvement_rows(found: Counts, further: Further, anatomy: Anatomy, organs: Mapping[str, int]) -> Iterator[Row]:
    """`dice_cuts_published` and `tumour_ece` of the tumour; `involvement`, `involvement_predicted`, `involvement_distance` and
    `involvement_published` of each vessel.
    """
    tumour = anatomy.tumour
    value, both_empty = dice_published(Thresholds(found, further).sizes(organs[tumour]))
    note = f"nothing at {both_empty} of {len(CUTS)} cuts, which count 1" if both_empty else ""
    yield "dice_cuts_published", tumour, "", value, note
    annotators = found.overlap.shape[0] - 1
    for r in range(annotators):
        if anatomy.around is None:
            yield "tumour_ece", tumour, str(r + 1), math.nan, "no annotator drew the tumour"
        else:
            voxels, mass = further.near
            yield "tumour_ece", tumour, str(r + 1), expected_error(voxels, further.near_hits[r], mass), ""
    for name, vessel in anatomy.vessels.items():
        if vessel is None:
            yield from _without(name, annotators)
            continue
        exceeded = further.exceeded[(0, *vessel.box)]
        ours, published = involvement(vessel.mask, exceeded, len(CUTS), anatomy.spacing_mm)
        drawn, drawn_published = vessel.annotators
        undefined = "the vessel's outline lies at the border of the region" if np.isnan(ours).any() else ""
        for r, degrees in enumerate(drawn, 1):
            yield "involvement", name, str(r), float(degrees.mean()), undefined
        yield "involvement_predicted", name, "", float(ours.mean()), undefined
        apart = [wasserstein(drawn[:, plane], ours[:, plane]) for plane in range(PLANES)]
        yield "involvement_distance", name, "", float(np.mean(apart)), undefined
        apart = [distance_published(drawn_published[:, plane], published[:, plane]) for plane in range(PLANES)]
        yield "involvement_published", name, "", float(np.mean(apart)), ""


def _without(vessel: str, annotators: int) -> Iterator[Row]:
    """The rows of a vessel that most annotators did not draw."""
    absent = "no voxel that most annotators gave the vessel"
    for r in range(1, annotators + 1):
        yield "involvement", vessel, str(r), math.nan, absent
    for metric in ("involvement_predicted", "involvement_distance"):
        yield metric, vessel, "", math.nan, absent
    yield "involvement_published", vessel, "", 0.0, absent


def involvement(
    vessel: npt.NDArray[np.bool_], exceeded: npt.NDArray[np.uint8], cuts: int, spacing_mm: Sequence[float]
) -> Values:
    """Largest involvement of a vessel by a tumour over the slices of each plane, in degrees.

    In a slice, the vessel's outline consists of the edges between its pixels and others; those at the array's border
    are unknown and do not count. The tumour touches an edge if a pixel on either side of it is tumour. The involvement is
    the touched share of the outline's length, of 360°.

    Args:
        vessel: bool (Z, Y, X).
        exceeded: uint8 (Z, Y, X): how many of several tumours, each inside the one before, hold the voxel.
        cuts: how many tumours there are, K.
        spacing_mm: voxel size along (Z, Y, X).

    Returns:
        (2, K, 3): of each tumour and plane, by this definition, and by the code of the challenge of 2025. NaN (of ours) where
        no slice of a plane has an outline.
    """
    found = np.zeros((2, cuts, PLANES))
    for axis in range(PLANES):
        down, across = (spacing_mm[other] for other in range(PLANES) if other != axis)
        turned = np.moveaxis(vessel, axis, 0), np.moveaxis(exceeded, axis, 0)
        outline, touched, edge, contact = _contacts(*turned, cuts, float(down), float(across))
        with np.errstate(invalid="ignore", divide="ignore"):
            ours = np.where(outline > 0, touched.T / outline, np.nan)
            published = np.where(edge > 0, contact.T / edge, 0.0)
        has_outline = np.isfinite(ours).any()
        found[0, :, axis] = FULL_CIRCLE * np.nanmax(ours, axis=1) if has_outline else math.nan
        found[1, :, axis] = FULL_CIRCLE * published.max(axis=1, initial=0.0)
    return found


def wasserstein(one: Values, other: Values) -> float:
    """The Wasserstein distance of order 1 between two distributions of equally likely values: ∫ |F − G|."""
    places = np.unique(np.concatenate([one, other]))
    if np.isnan(places).any():
        return math.nan
    shares = [np.searchsorted(np.sort(values), places[:-1], side="right") / values.size for values in (one, other)]
    return float(np.abs(shares[0] - shares[1]) @ np.diff(places))


def distance_published(drawn: Values, predicted: Values) -> float:
    """The distance of two sets of degrees as the code of the challenge of 2025 has it.

    Both become normal laws (ddof 0, 1e-6 more), whose densities stand on 1000 points from 0° to 360°. A law whose density vanishes on
    all of them, because its values agree, is not compared: two such laws are 0° apart, whatever their degrees, and one
    such law is 360° from any other, unless the other stands at 0° exactly, from which it is 0° apart.
    """
    grid = np.linspace(0, FULL_CIRCLE, 1000)
    p, q = (scipy.stats.norm(np.mean(each), np.std(each) + SMOOTHING).pdf(grid) for each in (drawn, predicted))
    no_p, no_q = np.allclose(p, 0), np.allclose(q, 0)
    if no_p and no_q:
        return 0.0
    if no_p or no_q:
        other = q if no_p else p
        mean = float(grid @ other) / (1.0 if no_p else float(other.sum()))  # the prediction's is not divided
        spread = math.sqrt(float(other @ (grid - mean) ** 2) / float(other.sum()))
        return abs(mean) if np.allclose(spread, 0) else FULL_CIRCLE
    below = np.cumsum(p / p.sum() - q / q.sum())[:-1]
    return float(np.abs(below) @ np.diff(grid))


def dice_published(sizes: npt.NDArray[np.int64]) -> tuple[float, int]:
    """The mean Dice over cuts as the code of the challenge of 2025 has it, and at how many cuts both are empty, which count 1.

    Args:
        sizes: (K, 3): voxels of each cut that annotators drew, that are predicted, and both.
    """
    each = [2 * int(b) / (int(d + p) + SMOOTHING) if d + p else 1.0 for d, p, b in sizes]
    return float(np.mean(each)), int((sizes[:, :2].sum(axis=1) == 0).sum())


def _widen(boxes: dict[int, npt.NDArray[np.int64]], labels: npt.NDArray[Any], wanted: set[int], z: int) -> None:
    """Widen the boxes (3, 2) of the wanted labels by a slab that begins at slice z."""
    if not labels.any():
        return
    for label, where in enumerate(scipy.ndimage.find_objects(labels.astype(np.int32)), 1):
        if where is None or label not in wanted:
            continue
        box = np.array([[span.start, span.stop] for span in where]) + np.array([[z], [0], [0]])
        known = boxes.get(label, box)
        boxes[label] = np.stack([np.minimum(known[:, 0], box[:, 0]), np.maximum(known[:, 1], box[:, 1])], axis=1)


def _spans(box: npt.NDArray[np.int64] | None, margin: int, shape: tuple[int, int, int]) -> Spans | None:
    """A box widened by a margin, within the region."""
    if box is None:
        return None
    z, y, x = (
        slice(max(int(low) - margin, 0), min(int(high) + margin, n)) for (low, high), n in zip(box, shape, strict=True)
    )
    return z, y, x


@njit(cache=True, nogil=True)
def _contacts(vessel, exceeded, cuts, down_mm, across_mm):
    """Of each slice (first axis): the length of the outline, what of it each tumour touches, and, as the challenge counts them,
    the vessel's edge pixels and the contacts of each tumour with them.
    """
    slices, height, width = vessel.shape
    outline, edge = np.zeros(slices), np.zeros(slices)
    touched, contact = np.zeros((slices, cuts)), np.zeros((slices, cuts))
    grown, is_edge = np.zeros((height, width), np.uint8), np.zeros((height, width), np.bool_)
    for s in range(slices):
        of_vessel, of_tumour = vessel[s], exceeded[s]
        anything = False
        for i in range(height):
            for j in range(width):
                anything |= of_tumour[i, j] > 0
                is_edge[i, j] = False
                if not of_vessel[i, j]:
                    continue
                for way in range(4):
                    a, b = i + (way == 0) - (way == 1), j + (way == 2) - (way == 3)
                    if a < 0 or b < 0 or a >= height or b >= width:
                        is_edge[i, j] = True
                        continue
                    if of_vessel[a, b]:
                        continue
                    is_edge[i, j] = True
                    length = across_mm if way < 2 else down_mm
                    outline[s] += length
                    for k in range(max(of_tumour[i, j], of_tumour[a, b])):
                        touched[s, k] += length
                edge[s] += is_edge[i, j]
        if anything and edge[s] > 0:
            _grow(of_tumour, grown)
            for i in range(height):
                for j in range(width):
                    if is_edge[i, j]:
                        _count_contacts(i, j, grown, is_edge, contact[s])
    return outline, touched, edge, contact


@njit(cache=True, nogil=True, inline="always")
def _grow(tumour, grown):
    """Each pixel's largest number over itself and its four neighbours: all tumours dilated by a pixel at once."""
    height, width = tumour.shape
    for i in range(height):
        for j in range(width):
            most = tumour[i, j]
            if i > 0:
                most = max(most, tumour[i - 1, j])
            if i + 1 < height:
                most = max(most, tumour[i + 1, j])
            if j > 0:
                most = max(most, tumour[i, j - 1])
            if j + 1 < width:
                most = max(most, tumour[i, j + 1])
            grown[i, j] = most


@njit(cache=True, nogil=True, inline="always")
def _count_contacts(i, j, grown, is_edge, contact):
    """Count an edge pixel as the challenge does: once if the dilated tumour covers it; else once for each of four kernels that
    finds the dilated tumour, the vessel's edge left out, beside it. The kernels look right, below, right and below at once,
    and right or below.
    """
    own = np.int64(grown[i, j])
    for k in range(own):
        contact[k] += 1
    right, below = _beside(i, j + 1, grown, is_edge), _beside(i + 1, j, grown, is_edge)
    diagonal = _beside(i + 1, j + 1, grown, is_edge)
    for k in range(own, contact.size):
        contact[k] += (right > k) + (below > k) + (diagonal > k) + (max(right, below) > k)


@njit(cache=True, nogil=True, inline="always")
def _beside(i, j, grown, is_edge):
    """The dilated tumours at a neighbour that is no edge of the vessel."""
    if i >= grown.shape[0] or j >= grown.shape[1] or is_edge[i, j]:
        return np.int64(0)
    return np.int64(grown[i, j])
