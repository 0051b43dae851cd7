"""A part of the panel written straight from the definitions with NumPy, SciPy, scikit-learn and surface-distance.

What the scoring benchmark is compared with: readable, exact, and as fast as whole-array code is.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy.ndimage import binary_erosion, distance_transform_edt
from scipy.stats import norm
from sklearn.metrics import roc_auc_score
from surface_distance import compute_surface_dice_at_tolerance, compute_surface_distances


def plain_panel(
    softmax: npt.NDArray[np.float64],
    annotations: npt.NDArray[np.uint8],
    spacing_mm: Sequence[float],
    organs: Mapping[str, int],
) -> dict[tuple[str, str, str], float]:
    """(metric, organ, annotator) → value.

    Args:
        softmax: (C, Z, Y, X).
        annotations: (R, Z, Y, X).
        spacing_mm: along (Z, Y, X).
        organs: name → label.
    """
    labels, confidence = softmax.argmax(axis=0), softmax.max(axis=0)
    found: dict[tuple[str, str, str], float] = {}
    logs = np.log(np.where(softmax > 0, softmax, 1))
    entropy = -(softmax * logs).sum(axis=0)
    found["predictive_entropy", "", ""] = float(entropy.mean())
    votes = np.stack([(annotations == c).mean(axis=0) for c in range(len(softmax))])
    disagreement = -(votes * np.log(np.where(votes > 0, votes, 1))).sum(axis=0)
    found["ncc", "", ""] = float(np.corrcoef(disagreement.ravel(), entropy.ravel())[0, 1])
    for organ, label in organs.items():
        inside, outside = (annotations == label).all(axis=0), (annotations != label).all(axis=0)
        predicted, p = labels == label, softmax[label]
        hits, false = int((predicted & inside).sum()), int((predicted & outside).sum())
        found["dice", organ, ""] = 2 * hits / (int(inside.sum()) + hits + false)
        found["confidence", organ, ""] = float((1 - p[outside].mean() + p[inside].mean()) / 2)
        voxel_mm3 = float(np.prod(spacing_mm))
        drawn = np.array([(a == label).sum() * voxel_mm3 for a in annotations])
        z = (p.sum() * voxel_mm3 - drawn.mean()) / drawn.std()
        found["crps", organ, ""] = float(
            drawn.std() * (z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - 1 / math.sqrt(math.pi))
        )
        for r, annotation in enumerate(annotations, 1):
            mask = annotation == label
            found["dice_annotator", organ, str(r)] = 2 * (mask & predicted).sum() / (mask.sum() + predicted.sum())
            found["auroc", organ, str(r)] = float(roc_auc_score(mask.ravel(), p.ravel()))
            one, other = (
                _surface_distances(predicted, mask, spacing_mm),
                _surface_distances(mask, predicted, spacing_mm),
            )
            found["hausdorff", organ, str(r)] = float(max(one.max(), other.max()))
            found["hd95", organ, str(r)] = float(max(np.percentile(one, 95), np.percentile(other, 95)))
            found["assd", organ, str(r)] = float((one.sum() + other.sum()) / (one.size + other.size))
            surfaces = compute_surface_distances(mask, predicted, spacing_mm)
            found["nsd", organ, str(r)] = float(compute_surface_dice_at_tolerance(surfaces, 1.0))
    for r, annotation in enumerate(annotations, 1):
        right = labels == annotation
        for name, bins, weighted in (("ece", 50, True), ("ace", 20, False)):
            place = np.minimum((confidence * bins + 1e-9).astype(int), bins - 1).ravel()
            number = np.bincount(place, minlength=bins)
            gap = np.abs(
                np.bincount(place, right.ravel(), minlength=bins)
                - np.bincount(place, confidence.ravel(), minlength=bins)
            )
            filled = number > 0
            found[name, "", str(r)] = float(
                gap.sum() / number.sum() if weighted else (gap[filled] / number[filled]).mean()
            )
        found["auroc_error", "", str(r)] = float(roc_auc_score(~right.ravel(), -confidence.ravel()))
        found["aurc", "", str(r)] = _risk_area(confidence.ravel(), ~right.ravel())
        truth = np.take_along_axis(softmax, annotation[None].astype(int), axis=0)[0]
        found["nll", "", str(r)] = float(-np.log(np.maximum(truth, 1e-7)).mean())
        found["brier", "", str(r)] = float(((softmax**2).sum(axis=0) - 2 * truth + 1).mean())
    return found


def _surface_distances(
    mask: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_], spacing_mm: Sequence[float]
) -> npt.NDArray[np.float64]:
    """Of each surface voxel of the first mask, the distance to the nearest of the second, mm."""
    edge, target = mask & ~binary_erosion(mask), other & ~binary_erosion(other)
    return distance_transform_edt(~target, sampling=spacing_mm)[edge]


def _risk_area(confidence: npt.NDArray[np.float64], wrong: npt.NDArray[np.bool_]) -> float:
    order = np.argsort(-confidence, kind="stable")
    last = np.flatnonzero(np.append(np.diff(confidence[order]) != 0, True))
    kept = last + 1
    risk = np.cumsum(wrong[order])[last] / kept
    return float(np.trapezoid(np.concatenate([risk[:1], risk]), np.concatenate([[0], kept / len(order)])))
