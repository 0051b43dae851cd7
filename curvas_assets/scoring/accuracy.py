"""Accuracy: overlap with the consensus and with each annotator, distances of surfaces, volumes."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

from curvas_assets.scoring.counting import Counts, in_image
from curvas_assets.scoring.references import Comparison
from curvas_assets.scoring.registry import Row
from curvas_assets.scoring.surfaces import ONE_EMPTY, UNDEFINED, surface_distances


def overlap(found: Counts, organs: Mapping[str, int], reference: Comparison) -> Iterator[Row]:
    """`dice`, `dice_published`, `dice_annotator` and `recall`."""
    for organ, c in organs.items():
        yield "dice", organ, "", *reference.dice(c)
        published = float(found.published_dice[c])
        if math.isnan(published):
            yield "dice_published", organ, "", 0.0, "no row with consensus"
        else:
            yield "dice_published", organ, "", published, ""
        for r in range(1, found.overlap.shape[0]):
            value = pair_dice(found.overlap[:, :, c], 0, r)
            note = "organ in neither the prediction nor the annotation" if math.isnan(value) else ""
            yield "dice_annotator", organ, str(r), value, note
            drawn, found_of_it = int(found.overlap[r, r, c]), int(found.overlap[0, r, c])
            if drawn:
                yield "recall", organ, str(r), found_of_it / drawn, ""
            else:
                yield "recall", organ, str(r), math.nan, "organ not annotated"


def pair_dice(overlap: npt.NDArray[np.int64], one: int, other: int) -> float:
    """Dice of two label maps from the table of their overlaps; NaN if both are empty."""
    sizes = int(overlap[one, one] + overlap[other, other])
    return 2 * int(overlap[one, other]) / sizes if sizes else math.nan


def surfaces(
    found: Counts,
    organs: Mapping[str, int],
    annotations: Any,
    region: tuple[slice, slice, slice],
    spacing_mm: Sequence[float],
    tolerance_mm: float,
) -> Iterator[Row]:
    """`hausdorff`, `hd95`, `assd` and `nsd`, each on the box that holds the organ in any label map."""
    for organ, c in organs.items():
        box = found.boxes[c]
        if box is None:
            distances = [UNDEFINED] * annotations.shape[0]
        else:
            drawn = annotations[:, *in_image(box, region)]
            distances = surface_distances(found.labels[:, *box][0], drawn, c, spacing_mm, tolerance_mm)
        for r, each in enumerate(distances, 1):
            note = ""
            if each == ONE_EMPTY:
                note = "no voxel " + ("predicted" if found.overlap[0, 0, c] == 0 else "annotated")
            elif math.isnan(each.nsd):
                note = "organ in neither the prediction nor the annotation"
            for metric in ("hausdorff", "hd95", "assd", "nsd"):
                yield metric, organ, str(r), getattr(each, metric), note


def volumes(
    found: Counts, organs: Mapping[str, int], soft_voxels: npt.NDArray[np.floating], voxel_mm3: float
) -> Iterator[Row]:
    """`volume`, `volume_annotator`, `crps` and `crps_published`, from the sum of each class's probability in voxels."""
    for organ, c in organs.items():
        drawn = [int(found.overlap[r, r, c]) * voxel_mm3 for r in range(1, found.overlap.shape[0])]
        yield "volume", organ, "", float(soft_voxels[c] * voxel_mm3), ""
        yield from (("volume_annotator", organ, str(r), volume, "") for r, volume in enumerate(drawn, 1))
        equal = "the annotators' volumes are equal" if len(set(drawn)) == 1 else ""
        yield "crps", organ, "", crps(soft_voxels[c] * voxel_mm3, drawn), equal and f"{equal}: |V − μ|"
        cut = crps_published(soft_voxels[c] * voxel_mm3, drawn)
        yield "crps_published", organ, "", cut, equal or "integral from μ − 3σ to μ + 3σ"


def crps(volume: float, volumes: npt.NDArray[np.floating] | Sequence[float]) -> float:
    """CRPS of a volume under the normal law with the mean and deviation (ddof 0) of the annotators' volumes.

    Lower is better; the distance from the mean if they all agree. Unit: that of the volumes.

    References:
        Gneiting & Raftery 2007, doi:10.1198/016214506000001437, equation 21.
    """
    mean, deviation = float(np.mean(volumes)), float(np.std(volumes))
    if np.ptp(volumes) == 0:
        return abs(volume - mean)
    z = (volume - mean) / deviation
    return float(
        deviation * (z * (2 * scipy.stats.norm.cdf(z) - 1) + 2 * scipy.stats.norm.pdf(z) - 1 / math.sqrt(math.pi))
    )


def crps_published(volume: float, volumes: npt.NDArray[np.floating] | Sequence[float]) -> float:
    """The same integral over μ ± 3σ only, as the challenge's evaluation has it; NaN if the volumes agree.

    A volume far outside costs no more than one at the limit: this is not a proper score.
    """
    mean, deviation = float(np.mean(volumes)), float(np.std(volumes))
    if np.ptp(volumes) == 0:  # their deviation may be a mere rounding error
        return math.nan
    z = min(max((volume - mean) / deviation, -3.0), 3.0)
    return float(deviation * (_squared_cdf(z) - 2 * _squared_cdf(-3.0) + _squared_cdf(-z)))


def _squared_cdf(t: float) -> float:
    """∫ Φ² from −∞ to t."""
    return float(
        t * scipy.stats.norm.cdf(t) ** 2
        + 2 * scipy.stats.norm.cdf(t) * scipy.stats.norm.pdf(t)
        - scipy.stats.norm.cdf(math.sqrt(2) * t) / math.sqrt(math.pi)
    )
