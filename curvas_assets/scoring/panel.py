"""The whole panel of one patient and predictor: one pass over its voxels, then every metric. Definitions: `registry`."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from curvas_assets.errors import ScoringError
from curvas_assets.scoring import accuracy, calibration, failure, uncertainty
from curvas_assets.scoring.counting import FULL, Counts, Slab, count, region_of, slabs_of_array
from curvas_assets.scoring.members import count_members
from curvas_assets.scoring.registry import METRICS, Row

COLUMNS = ["metric", "organ", "annotator", "value", "unit", "note"]
MOST_ANNOTATORS = 63
SLACK = 0.01
"""How far values may lie below 0, and their sum from 1, and still be taken for probabilities."""
HIGH_SHARE = 0.1
"""Of the largest entropy there is, ln C: what is above counts as high, unless a threshold is given."""


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
        entropy_threshold: nats above which an uncertainty counts as high; None for a tenth of ln C.

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
        entropy_threshold: float | None = None,
    ):
        if annotations.ndim != 4 or annotations.dtype != np.uint8 or not 1 <= annotations.shape[0] <= MOST_ANNOTATORS:
            raise ScoringError(
                "reading the annotations",
                "the patient",
                f"shape {annotations.shape}, {annotations.dtype}",
                f"Give label maps uint8 (annotators, z, y, x), of one to {MOST_ANNOTATORS} annotators.",
            )
        if len(spacing_mm) != 3 or min(spacing_mm) <= 0:
            raise ScoringError(
                "reading the annotations", "the patient", f"spacing {tuple(spacing_mm)}", "Give three lengths in mm."
            )
        self.annotations = annotations
        self.organs = dict(sorted(organs.items(), key=lambda item: item[1]))
        if list(self.organs.values()) != list(range(1, len(organs) + 1)):
            raise ScoringError("scoring", "the patient", f"organs {dict(organs)}", "Number the organs 1, 2, … .")
        self.region = region_of(annotations.shape[1:], region)
        if any(span.stop <= span.start for span in self.region):
            raise ScoringError(
                "scoring", "the patient", f"the region {self.region} holds no voxel", "Give another region, or none."
            )
        self.spacing_mm = tuple(float(s) for s in spacing_mm)
        self.voxel_mm3 = float(np.prod(spacing_mm))
        self.threshold = (
            HIGH_SHARE * math.log(len(organs) + 1) if entropy_threshold is None else float(entropy_threshold)
        )
        self.ece_bins, self.ace_bins, self.tolerance_mm = ece_bins, ace_bins, tolerance_mm

    def score(self, softmax: Any, members: Sequence[Any] | None = None) -> PatientScores:
        """Score one predictor.

        Args:
            softmax: probabilities (C, Z, Y, X), background first, or a stored volume (`shape`, `code_slabs()`).
            members: of an ensemble: its models' softmax.

        Raises:
            ScoringError: classes or shape are not those of the annotations.
        """
        for one in (softmax, *(members or ())):
            self._require_fit(one)
        classes = len(self.organs) + 1
        found = count(_slabs(softmax), self.annotations, classes, self.region, self.threshold)
        of_members = None
        if members:
            of_members = count_members(
                _slabs(softmax), [_slabs(m) for m in members], self.annotations, classes, self.region, self.threshold
            )
        rows: list[Row] = [
            *accuracy.overlap(found, self.organs),
            *accuracy.surfaces(found, self.organs, self.annotations, self.region, self.spacing_mm, self.tolerance_mm),
            *accuracy.volumes(found, self.organs, self._soft_voxels(softmax, found), self.voxel_mm3),
            *calibration.calibration(found, self.organs, self.ece_bins, self.ace_bins),
            *uncertainty.aleatoric(found, self.organs),
            *uncertainty.epistemic(found, of_members, self.organs),
            *failure.failure(found, self.organs),
        ]
        table = pd.DataFrame(
            [(m, o, a, float(v), METRICS[m].unit, note) for m, o, a, v, note in rows], columns=pd.Index(COLUMNS)
        )
        return PatientScores(_with_means(table), calibration.reliability(found, self.ece_bins), failure.curves(found))

    def _require_fit(self, softmax: Any) -> None:
        classes = len(self.organs) + 1
        if tuple(softmax.shape) != (classes, *self.annotations.shape[1:]):
            raise ScoringError(
                "scoring",
                "the predictor",
                f"softmax of shape {tuple(softmax.shape)} against annotations {self.annotations.shape}",
                f"Give {classes} classes (background and {', '.join(self.organs)}) on the annotations' voxels.",
            )
        if isinstance(softmax, np.ndarray) and not _are_probabilities(softmax):
            raise ScoringError(
                "scoring", "the predictor", "values that are no probabilities: NaN, negative, or not summing to 1",
                "Give a softmax over the classes, background first.",
            )  # fmt: skip

    def _soft_voxels(self, softmax: Any, found: Counts) -> list[float]:
        """Sum of each class's probability over the region: of floats as they are, of a stored volume from its codes."""
        if isinstance(softmax, np.ndarray):
            return [float(np.clip(p[self.region], 0, 1).sum(dtype=np.float64)) for p in softmax]
        return [found.code_sum(c) / FULL for c in range(len(self.organs) + 1)]


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
    entropy_threshold: float | None = None,
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
        entropy_threshold: nats above which an uncertainty counts as high; None for a tenth of ln C.

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
        entropy_threshold=entropy_threshold,
    )
    return reference.score(softmax, members).table


def _are_probabilities(softmax: npt.NDArray[Any]) -> bool:
    for z in range(softmax.shape[1]):
        plane = softmax[:, z].astype(np.float64)
        if not (plane.min() >= -SLACK and np.abs(plane.sum(axis=0) - 1).max() <= SLACK):  # NaN fails both
            return False
    return True


def _slabs(softmax: Any) -> Iterator[Slab]:
    if hasattr(softmax, "code_slabs"):
        return softmax.code_slabs()
    from curvas_assets.storage.encoding import encode

    return slabs_of_array(encode(np.asarray(softmax), tail=0.0)[0])


def _with_means(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the mean over annotators of every metric that has one value per annotator."""
    single = table[table["annotator"] != ""]
    rows = []
    for (metric, organ), part in single.groupby(["metric", "organ"], sort=False):
        left_out = int(part["value"].isna().sum())
        note = f"{left_out} of {len(part)} undefined" if left_out else ""
        value = part["value"].mean() if left_out < len(part) else math.nan
        if math.isinf(value):
            note = "; ".join(filter(None, [note, f"{int(np.isinf(part['value']).sum())} of {len(part)} infinite"]))
        rows.append((metric, organ, "mean", value, METRICS[str(metric)].unit, note))
    return pd.concat([table, pd.DataFrame(rows, columns=pd.Index(COLUMNS))], ignore_index=True)
