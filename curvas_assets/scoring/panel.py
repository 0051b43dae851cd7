"""The metrics of one patient and predictor, from the counts of one pass. Definitions: `registry`."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import norm

from curvas_assets.errors import ScoringError
from curvas_assets.scoring.counting import CODES, FULL, Counts, count, region_of, slabs_of_array
from curvas_assets.scoring.registry import METRICS

COLUMNS = ["metric", "organ", "annotator", "value", "unit", "note"]
CURVE_POINTS = 300
"""Points kept of a risk–coverage curve; its area is computed from all of them."""
Row = tuple[str, str, str, float, str]


@dataclass(frozen=True)
class PatientScores:
    """What one predictor of one patient scores.

    Args:
        table: metric, organ, annotator (1 … R, `mean`, or empty), value, unit, note; NaN always with a note.
        reliability: annotator, bin, lower, upper, count, confidence, accuracy: the bins behind `ece`.
        risk_coverage: annotator, coverage, risk: the curve behind `aurc`, thinned.
    """

    table: pd.DataFrame
    reliability: pd.DataFrame
    risk_coverage: pd.DataFrame


class PatientReference:
    """The annotations of a patient, against which its predictors are scored.

    Args:
        annotations: label maps uint8 (R, Z, Y, X), sliceable.
        spacing_mm: voxel size along (Z, Y, X).
        organs: name → label; labels are 1 … without gaps.
        region: slices along (Z, Y, X) in which voxels count; None for the whole image.
        ece_bins, ace_bins: numbers of bins.
        tolerance_mm: of the normalised surface Dice.

    Raises:
        ScoringError: annotations that are not label maps, or an empty region.
    """

    def __init__(
        self,
        annotations: Any,
        spacing_mm: Sequence[float],
        *,
        organs: Mapping[str, int],
        region: tuple[slice, slice, slice] | None = None,
        ece_bins: int = 50,
        ace_bins: int = 20,
        tolerance_mm: float = 1.0,
    ):
        if annotations.ndim != 4 or annotations.dtype != np.uint8:
            raise ScoringError(
                "reading the annotations",
                "the patient",
                f"shape {annotations.shape}, {annotations.dtype}",
                "Give label maps uint8 (annotators, z, y, x).",
            )
        if len(spacing_mm) != 3 or min(spacing_mm) <= 0:
            raise ScoringError(
                "reading the annotations", "the patient", f"spacing {tuple(spacing_mm)}", "Give three lengths in mm."
            )
        self.annotations = annotations
        self.organs = dict(sorted(organs.items(), key=lambda item: item[1]))
        self.region = region_of(annotations.shape[1:], region)
        if any(span.stop <= span.start for span in self.region):
            raise ScoringError(
                "scoring", "the patient", f"the region {self.region} holds no voxel", "Give another region, or none."
            )
        self.voxel_mm3 = float(np.prod(spacing_mm))
        self.ece_bins, self.ace_bins, self.tolerance_mm = ece_bins, ace_bins, tolerance_mm

    def score(self, softmax: Any, members: Sequence[Any] | None = None) -> PatientScores:
        """Score one predictor.

        Args:
            softmax: probabilities (C, Z, Y, X), background first, or a stored volume (`shape`, `code_slabs()`).
            members: of an ensemble: its models' softmax.

        Raises:
            ScoringError: classes or shape are not those of the annotations.
        """
        classes = len(self.organs) + 1
        if tuple(softmax.shape) != (classes, *self.annotations.shape[1:]):
            raise ScoringError(
                "scoring",
                "the predictor",
                f"softmax of shape {tuple(softmax.shape)} against annotations {self.annotations.shape}",
                f"Give {classes} classes (background and {', '.join(self.organs)}) on the annotations' voxels.",
            )
        found = count(_slabs(softmax), self.annotations, classes, self.region)
        rows = [*_overlap(self, found), *_calibration(self, found), *_uncertainty(found), *_ranking(self, found)]
        table = pd.DataFrame(
            [(m, o, a, v, METRICS[m].unit, note) for m, o, a, v, note in rows], columns=pd.Index(COLUMNS)
        )
        return PatientScores(_with_means(table), _reliability(found, self.ece_bins), _curves(found))


def score(
    softmax: Any,
    annotations: npt.NDArray[np.uint8],
    spacing_mm: Sequence[float],
    *,
    organs: Mapping[str, int],
    region: tuple[slice, slice, slice] | None = None,
    members: Sequence[Any] | None = None,
    ece_bins: int = 50,
    ace_bins: int = 20,
    tolerance_mm: float = 1.0,
) -> pd.DataFrame:
    """Score one predictor of one patient on every metric.

    Args:
        softmax: probabilities (C, Z, Y, X), background first, or a stored volume.
        annotations: label maps uint8 (R, Z, Y, X).
        spacing_mm: voxel size along (Z, Y, X).
        organs: name → label.
        region: slices along (Z, Y, X); None for the whole image.
        members: of an ensemble: its models' softmax.
        ece_bins: bins of `ece`.
        ace_bins: bins of `ace`.
        tolerance_mm: of the normalised surface Dice.

    Returns:
        Long table: metric, organ, annotator, value, unit, note.

    Raises:
        ScoringError: shapes, classes or labels do not fit together.
    """
    reference = PatientReference(
        annotations,
        spacing_mm,
        organs=organs,
        region=region,
        ece_bins=ece_bins,
        ace_bins=ace_bins,
        tolerance_mm=tolerance_mm,
    )
    return reference.score(softmax, members).table


def _slabs(softmax: Any) -> Iterator[tuple[int, int, npt.NDArray[np.uint16]]]:
    if hasattr(softmax, "code_slabs"):
        return softmax.code_slabs()
    from curvas_assets.storage.encoding import encode

    return slabs_of_array(encode(np.asarray(softmax), tail=0.0)[0])


# Accuracy, confidence ------------------------------------------------------------------------------------------------


def _overlap(reference: PatientReference, found: Counts) -> Iterator[Row]:
    for c, organ in enumerate(reference.organs):
        inside, hits, outside, false, codes_in, codes_out = (int(n) for n in found.consensus[c])
        if inside:
            yield "dice", organ, "", 2 * hits / (inside + hits + false), ""
        elif false:
            yield "dice", organ, "", 0.0, "no consensus voxel, but false positives"
        else:
            yield "dice", organ, "", math.nan, "no consensus voxel and no false positive"
        if inside and outside:
            confidence = ((1 - codes_out / (FULL * outside)) + codes_in / (FULL * inside)) / 2
            yield "confidence", organ, "", confidence, ""
        else:
            yield "confidence", organ, "", math.nan, "no consensus voxel" if not inside else "no voxel outside"
        for r, confusion in enumerate(found.confusion, 1):
            label = c + 1
            both, sizes = int(confusion[label, label]), int(confusion[label].sum() + confusion[:, label].sum())
            yield (
                "dice_annotator",
                organ,
                str(r),
                2 * both / sizes if sizes else math.nan,
                "" if sizes else "organ in neither the prediction nor the annotation",
            )
        soft = float(found.organ[c, 0].sum(axis=0) @ np.arange(CODES)) / FULL
        volumes = found.confusion[:, :, c + 1].sum(axis=1) * reference.voxel_mm3
        yield "crps", organ, "", crps(soft * reference.voxel_mm3, volumes), ""


def crps(volume: float, volumes: npt.NDArray[np.floating] | Sequence[float]) -> float:
    """CRPS of a volume under the normal law with the mean and deviation (ddof 0) of the annotators' volumes.

    Lower is better; the distance from the mean if they all agree. Unit: that of the volumes.

    References:
        Gneiting & Raftery 2007, doi:10.1198/016214506000001437, equation 21.
    """
    mean, deviation = float(np.mean(volumes)), float(np.std(volumes))
    if deviation == 0:
        return abs(volume - mean)
    z = (volume - mean) / deviation
    return float(deviation * (z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - 1 / math.sqrt(math.pi)))


# Calibration ---------------------------------------------------------------------------------------------------------


def _bins(histogram: npt.NDArray[np.int64], edges: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.int64], ...]:
    """Voxels, correct voxels and sum of codes in each bin [lower, upper), the last one closed."""
    bins = len(edges) - 1
    place = np.clip(np.searchsorted(edges, np.arange(CODES) / FULL, side="right") - 1, 0, bins - 1)
    everybody = histogram.sum(axis=0)
    return (
        np.bincount(place, everybody, bins).astype(np.int64),
        np.bincount(place, histogram[1], bins).astype(np.int64),
        np.array([int(part.sum()) for part in _split(everybody * np.arange(CODES), place, bins)], dtype=object),
    )


def _split(values: npt.NDArray[np.int64], place: npt.NDArray[np.int64], bins: int) -> list[npt.NDArray[np.int64]]:
    return np.split(values, np.searchsorted(place, np.arange(1, bins)))


def _gaps(histogram: npt.NDArray[np.int64], edges: npt.NDArray[np.float64]) -> tuple[npt.NDArray[Any], ...]:
    """(count, accuracy, confidence) of every bin; NaN where it is empty."""
    voxels, correct, codes = _bins(histogram, edges)
    with np.errstate(invalid="ignore", divide="ignore"):
        return voxels, correct / voxels, codes.astype(float) / FULL / voxels


def _calibration(reference: PatientReference, found: Counts) -> Iterator[Row]:
    ece_edges = np.linspace(0, 1, reference.ece_bins + 1)
    ace_edges = np.linspace(0, 1, reference.ace_bins + 1)
    for r, histogram in enumerate(found.top):
        annotator = str(r + 1)
        voxels, accuracy, confidence = _gaps(histogram, ece_edges)
        filled = voxels > 0
        yield "ece", "", annotator, float((voxels * np.abs(accuracy - confidence))[filled].sum() / found.voxels), ""
        voxels, accuracy, confidence = _gaps(histogram, ace_edges)
        yield "ace", "", annotator, float(np.abs(accuracy - confidence)[voxels > 0].mean()), ""
        squares = found.code_squares / found.voxels / FULL**2
        yield "brier", "", annotator, squares - 2 * int(found.code_of_label[r]) / found.voxels / FULL + 1, ""
        yield "nll", "", annotator, float(found.log_loss[r]) / found.voxels, "clipped at 1e-7"


def _reliability(found: Counts, bins: int) -> pd.DataFrame:
    edges = np.linspace(0, 1, bins + 1)
    parts = []
    for r, histogram in enumerate(found.top, 1):
        voxels, accuracy, confidence = _gaps(histogram, edges)
        parts.append(
            pd.DataFrame(
                {
                    "annotator": str(r),
                    "bin": np.arange(bins),
                    "lower": edges[:-1],
                    "upper": edges[1:],
                    "count": voxels,
                    "confidence": confidence,
                    "accuracy": accuracy,
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


# Uncertainty ---------------------------------------------------------------------------------------------------------


def _uncertainty(found: Counts) -> Iterator[Row]:
    n = found.voxels
    yield "predictive_entropy", "", "", found.entropy / n, ""
    d, dd, pp, dp = found.maps
    varies_d, varies_p = dd - d * d / n, pp - found.entropy * found.entropy / n
    if varies_d <= 1e-12 * max(dd, 1) or varies_p <= 1e-12 * max(pp, 1):
        yield "ncc", "", "", math.nan, "the annotators agree everywhere" if dd == 0 else "a map is constant"
    else:
        yield "ncc", "", "", float((dp - d * found.entropy / n) / math.sqrt(varies_d * varies_p)), ""


# Ranking -------------------------------------------------------------------------------------------------------------


def _ranking(reference: PatientReference, found: Counts) -> Iterator[Row]:
    for c, organ in enumerate(reference.organs):
        for r in range(found.organ.shape[1]):
            yield "auroc", organ, str(r + 1), *_auroc(found.organ[c, r, 1], found.organ[c, r, 0], "annotated voxel")
    for r, (wrong, right) in enumerate(found.top, 1):
        yield "auroc_error", "", str(r), *_auroc(wrong[::-1], right[::-1], "wrong voxel")
        area, generalised, best = risk_areas(wrong, right)
        yield "aurc", "", str(r), area, ""
        yield "eaurc", "", str(r), area - best, ""
        yield "augrc", "", str(r), generalised, ""


def _auroc(positives: npt.NDArray[np.int64], negatives: npt.NDArray[np.int64], what: str) -> tuple[float, str]:
    """Share of (positive, negative) pairs in which the positive has the larger code, ties counted half."""
    p, n = int(positives.sum()), int(negatives.sum())
    if p == 0 or n == 0:
        return math.nan, f"no {what}" if p == 0 else f"nothing but {what}s"
    below = np.cumsum(negatives) - negatives
    return (float(positives.astype(float) @ below) + 0.5 * float(positives.astype(float) @ negatives)) / p / n, ""


def risk_curve(wrong: npt.NDArray[np.int64], right: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.float64], ...]:
    """Coverage and risk at every distinct confidence t, over {confidence ≥ t}; coverage grows to 1."""
    kept = np.cumsum((wrong + right)[::-1])
    errors = np.cumsum(wrong[::-1])
    distinct = (wrong + right)[::-1] > 0
    kept, errors = kept[distinct], errors[distinct]
    return kept / kept[-1], errors / kept


def risk_areas(wrong: npt.NDArray[np.int64], right: npt.NDArray[np.int64]) -> tuple[float, float, float]:
    """Areas under the risk–coverage and generalised-risk curves, and that of a perfect ranking.

    One point per distinct confidence, trapezoids in coverage, flat down to coverage 0 (the generalised risk goes to 0
    there). The perfect ranking keeps every error for the last: the mean over k of the k smallest risks' mean.
    """
    coverage, risk = risk_curve(wrong, right)
    steps = np.diff(coverage, prepend=0.0)
    area = float(steps @ ((risk + np.concatenate([risk[:1], risk[:-1]])) / 2))
    generalised = risk * coverage
    general_area = float(steps @ ((generalised + np.concatenate([[0.0], generalised[:-1]])) / 2))
    n, errors = int((wrong + right).sum()), int(wrong.sum())
    return area, general_area, _perfect(n, errors)


def _perfect(n: int, errors: int) -> float:
    """(1/n) Σ_{k = n−e+1}^{n} (k − (n − e))/k, without summing 10⁸ terms: harmonic numbers by their asymptotic series."""
    right = n - errors
    return (errors - right * (_harmonic(n) - _harmonic(right))) / n if errors else 0.0


def _harmonic(n: int) -> float:
    from scipy.special import digamma

    return float(digamma(n + 1)) + np.euler_gamma


def _curves(found: Counts) -> pd.DataFrame:
    parts = []
    for r, (wrong, right) in enumerate(found.top, 1):
        coverage, risk = risk_curve(wrong, right)
        grid = np.unique(
            np.searchsorted(coverage, np.linspace(coverage[0], 1, CURVE_POINTS)).clip(0, len(coverage) - 1)
        )
        parts.append(pd.DataFrame({"annotator": str(r), "coverage": coverage[grid], "risk": risk[grid]}))
    return pd.concat(parts, ignore_index=True)


def _with_means(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the mean over annotators of every metric that has one value per annotator."""
    single = table[table["annotator"] != ""]
    rows = []
    for (metric, organ), part in single.groupby(["metric", "organ"], sort=False):
        left_out = int(part["value"].isna().sum())
        note = f"{left_out} of {len(part)} annotators undefined" if left_out else ""
        value = part["value"].mean() if left_out < len(part) else math.nan
        rows.append((metric, organ, "mean", value, METRICS[str(metric)].unit, note))
    return pd.concat([table, pd.DataFrame(rows, columns=pd.Index(COLUMNS))], ignore_index=True)
