"""The whole panel of one patient and predictor: one pass over its voxels, then every metric. Definitions: `registry`."""

import math
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from curvas_assets.errors import ScoringError
from curvas_assets.probabilities import as_probabilities
from curvas_assets.scoring import accuracy, calibration, failure, references, uncertainty, vascular
from curvas_assets.scoring.arguments import (
    checked_annotations,
    checked_bins,
    checked_length,
    checked_members,
    checked_names,
    checked_organs,
    checked_reference,
    checked_region,
    checked_scored,
    checked_spacing,
    checked_threshold,
    checked_vessels,
)
from curvas_assets.scoring.counting import Counts, region_of
from curvas_assets.scoring.members import MemberCounts
from curvas_assets.scoring.one_pass import Setting, count_all, workers
from curvas_assets.scoring.ranks import rank_organ
from curvas_assets.scoring.references import Further, Reference, Wanted
from curvas_assets.scoring.registry import METRICS, PAIR, Row
from curvas_assets.storage.labels import PackedLabels

COLUMNS = ["metric", "organ", "annotator", "value", "unit", "note"]
PREDICTOR = "the predictor"
"""Its name in messages, where only one is scored."""
RANKING_METRICS = ("auroc", "auroc_error", "aurc", "eaurc", "augrc", "nll")
APPROXIMATE = "approximate: ranked from a volume of the first format, which pools what is nearly certain; make it again"
NOT_ANNOTATED = "not annotated: the label map is blank or missing, and the study says what that means"
HIGH_SHARE = 0.1
"""Share of the largest entropy, ln C, above which an uncertainty counts as high unless a threshold is given."""


SCORED_AT_ONCE = 4
"""Predictors whose scores are made side by side after the pass, at most: 117 to 250 MB each, however many cores there are."""
LARGE_BOX = 1 << 24
"""Voxels of an organ's box from which on the distances of one predictor alone are measured at a time, to save memory."""


@dataclass(frozen=True)
class PatientScores:
    """What one predictor of one patient scores.

    Args:
        table: metric, organ, annotator (a name, `mean`, two names `anna/boris`, or empty), value, unit, note; NaN always with
            a note.
        reliability: annotator, bin, lower, upper, count, confidence, accuracy: the bins behind `ece`.
        risk_coverage: annotator, coverage, risk: the curve behind `aurc`, thinned.
    """

    table: pd.DataFrame
    reliability: pd.DataFrame
    risk_coverage: pd.DataFrame


class PatientReference:
    """The annotations of a patient, against which its predictors are scored.

    Args:
        annotations: label maps (R, Z, Y, X) of whole numbers, one per annotator: an array, a tensor, a list of arrays, or
            packed label maps; uint8 is taken as it is, other types are converted.
        spacing_mm: voxel size along (Z, Y, X).
        organs: name → label; labels are 1 … without gaps.
        region: slices along (Z, Y, X), or (start, stop) of each, in which voxels count; None for the whole image.
        ece_bins: number of bins of `ece`, 1 … 10,000.
        ace_bins: number of bins of `ace` and `adaptive_ece`, 1 … 10,000.
        tolerance_mm: of the normalised surface Dice, 0 or above.
        entropy_threshold: nats above which an uncertainty counts as high; None for a tenth of ln C.
        annotators: their names in the order of the label maps, each once; `1` … `R` when left out.
        not_annotated: names of those who did not annotate this patient. Their maps are ignored, the others keep their names,
            and the scores against them are NaN with a note.
        reference: what `dice` and `confidence` compare with: `consensus`, `majority`, `staple` or `thresholds`.
        tumour: the organ that is a tumour, if its involvement of vessels is to be scored.
        vessels: the organs that are vessels; given with a tumour, and only then.
        scored_organs: organs that are scored; None for all. Of the others there is no row but as the tumour or a vessel, and
            they are in no mean over organs. Metrics of the whole image are of all classes in any case.

    Raises:
        ScoringError: annotations that are not label maps, an empty region, nobody annotated, or any other argument that is not
            as said.
    """

    def __init__(
        self,
        annotations: Any,
        spacing_mm: Sequence[float],
        *,
        organs: Mapping[str, int],
        region: Sequence[slice | Sequence[int]] | None = None,
        ece_bins: int = 50,
        ace_bins: int = 20,
        tolerance_mm: float = 1.0,
        entropy_threshold: float | None = None,
        annotators: Sequence[str] | None = None,
        not_annotated: Collection[str | int] = (),
        reference: str = "consensus",
        tumour: str = "",
        vessels: Sequence[str] = (),
        scored_organs: Collection[str] | None = None,
    ):
        self.annotations = checked_annotations(annotations)
        names = checked_names(annotators, self.annotations.shape[0])
        self.annotators = _drawn(names, not_annotated)
        self.not_annotated = [name for name in names if name not in self.annotators]
        if self.not_annotated:
            chosen = [place for place, name in enumerate(names) if name in self.annotators]
            packed = isinstance(self.annotations, PackedLabels)
            self.annotations = self.annotations.only(chosen) if packed else np.asarray(self.annotations)[chosen]
        self.spacing_mm = checked_spacing(spacing_mm)
        self.organs = checked_organs(organs)
        self.scored_organs = checked_scored(scored_organs, self.organs)
        self.region = region_of(self.annotations.shape[1:], checked_region(region))
        if any(span.stop <= span.start for span in self.region):
            raise ScoringError(
                "scoring", "the patient", f"the region {self.region} holds no voxel", "Give another region, or none."
            )
        self.voxel_mm3 = math.prod(self.spacing_mm)
        most = math.log(len(self.organs) + 1)
        threshold = checked_threshold(entropy_threshold)
        self.threshold = HIGH_SHARE * most if threshold is None else min(threshold, 2 * most)  # nothing is above ln C
        self.ece_bins, self.ace_bins = checked_bins(ece_bins, "ece_bins"), checked_bins(ace_bins, "ace_bins")
        self.tolerance_mm = checked_length(tolerance_mm, "tolerance_mm")
        self.reference: Reference = checked_reference(reference)
        self.tumour, self.vessels = checked_vessels(tumour, vessels, self.organs)
        self._looking = threading.Lock()
        self._beside: tuple[Wanted, vascular.Anatomy | None] | None = None

    def score(self, softmax: Any, members: Any = None) -> PatientScores:
        """Score one predictor.

        Args:
            softmax: probabilities (C, Z, Y, X), background first, taken as float32; or a stored volume.
            members: of an ensemble: a sequence of its models' softmaxes, or an array (M, C, Z, Y, X).

        Raises:
            ScoringError: the softmax or a member holds no probabilities; classes or shape are not those of the annotations.
        """
        of_ensemble = {f"member {m}": one for m, one in enumerate(checked_members(members), 1)}
        ensembles = {PREDICTOR: list(of_ensemble)} if of_ensemble else {}
        volumes = {name: self._fitting(one, PREDICTOR) for name, one in {PREDICTOR: softmax, **of_ensemble}.items()}
        ((_, scores),) = self._score(volumes, ensembles, [PREDICTOR])
        return scores

    def score_all(
        self,
        predictors: Mapping[str, Any],
        ensembles: Mapping[str, Sequence[str]] | None = None,
        *,
        scored: Collection[str] | None = None,
        progress: Callable[[int, int], None] = lambda done, of: None,
    ) -> Iterator[tuple[str, PatientScores]]:
        """Score all predictors of the patient in one pass, in which each volume is read once; as `score` does one by one.

        Args:
            predictors: name → probabilities (C, Z, Y, X), background first, taken as float32; or a stored volume.
            ensembles: predictor → the predictors whose mean it is.
            scored: predictors that get scores; None for all. The others are read as members only.
            progress: told how many slices of how many have been counted.

        Yields:
            The name and scores of each one that is scored, in the given order, once the pass is done.

        Raises:
            ScoringError: a predictor holds no probabilities; classes or shape are not those of the annotations; an
                ensemble is not the mean of its members, or a member is no predictor.
        """
        ensembles = {} if ensembles is None else ensembles
        for name, members in ensembles.items():
            absent = [one for one in (name, *members) if one not in predictors]
            if absent or not members:
                raise ScoringError(
                    "scoring an ensemble",
                    name,
                    f"no softmax of {', '.join(absent) or 'any member'}",
                    "Give every ensemble and all its members among the predictors.",
                )
        volumes = {name: self._fitting(one, name) for name, one in predictors.items()}
        wanted = [name for name in volumes if scored is None or name in scored]
        yield from self._score(volumes, ensembles, wanted, progress)

    def _score(
        self,
        volumes: Mapping[str, Any],
        ensembles: Mapping[str, Sequence[str]],
        wanted: Sequence[str],
        progress: Callable[[int, int], None] = lambda done, of: None,
    ) -> Iterator[tuple[str, PatientScores]]:
        """Scores of the wanted ones of some predictors, after one pass over all of them."""
        beside, anatomy = self._wanted()
        setting = Setting(self.annotations, len(self.organs) + 1, self.region, self.threshold, self.ece_bins, beside)
        found = count_all(volumes, setting, ensembles, wanted, progress)
        alone = threading.Lock()

        def scores(name: str) -> PatientScores:
            behind = [volumes[one] for one in (name, *ensembles.get(name, ()))]
            approximate = not all(getattr(one, "keeps_ranking", True) for one in behind)
            counts = found.counts.pop(name)()
            further = found.further.pop(name)() if name in found.further else None
            with alone if _largest_box(counts) > LARGE_BOX else nullcontext():
                of_members = found.members.get(name)
                return self._scores(volumes[name], counts, of_members, further, anatomy, approximate=approximate)

        threads = ThreadPoolExecutor(min(SCORED_AT_ONCE, workers()), thread_name_prefix="curvas-score")
        try:
            coming = {name: threads.submit(scores, name) for name in wanted}
            for name in wanted:
                yield name, coming.pop(name).result()
        finally:  # after an error, too, nothing new begins, and no thread reads a volume that its caller has closed
            threads.shutdown(cancel_futures=True)

    def _wanted(self) -> tuple[Wanted, vascular.Anatomy | None]:
        """What is counted beside, and the patient's vessels: found once, however many predictors are scored."""
        with self._looking:
            if self._beside is None:
                anatomy = None
                if self.tumour:
                    anatomy = vascular.Anatomy.of(
                        self.annotations, self.region, self.spacing_mm, self.organs, self.tumour, self.vessels
                    )
                fused = references.staple(self.annotations, len(self.organs)) if self.reference == "staple" else None
                around = None if anatomy is None else anatomy.around
                self._beside = Wanted(self.reference, fused, self.organs.get(self.tumour, 0), around), anatomy
            return self._beside

    def _scores(
        self,
        predictor: Any,
        found: Counts,
        of_members: MemberCounts | None,
        further: Further | None,
        anatomy: vascular.Anatomy | None,
        *,
        approximate: bool,
    ) -> PatientScores:
        """The scores that follow from what a pass found."""
        reference, organs = references.comparison(self.reference, found, further), self.scored_organs
        if found.ranks:
            ranks = [found.ranks[c - 1] for c in organs.values()]
        else:
            ranks = [rank_organ(predictor, self.annotations, c, self.region) for c in organs.values()]
        rows: list[Row] = [
            *accuracy.overlap(found, organs, reference),
            *accuracy.surfaces(found, organs, self.annotations, self.region, self.spacing_mm, self.tolerance_mm),
            *accuracy.volumes(found, organs, found.soft_voxels, self.voxel_mm3),
            *calibration.calibration(found, organs, self.ece_bins, self.ace_bins),
            *uncertainty.aleatoric(found, organs, reference),
            *uncertainty.epistemic(found, of_members, organs),
            *failure.failure(found, ranks, organs),
        ]
        if further is not None and self.reference == "thresholds":
            rows += references.cut_by_cut(found, further, organs)
        if further is not None and anatomy is not None:
            rows += vascular.involvement_rows(found, further, anatomy, self.organs)
        table = pd.DataFrame(
            [(m, o, a, float(v), METRICS[m].unit, note) for m, o, a, v, note in rows], columns=pd.Index(COLUMNS)
        )
        table = _with_means(self._named(table))
        if approximate:
            ranked = table["metric"].isin(RANKING_METRICS)
            table.loc[ranked, "note"] = [f"{APPROXIMATE}; {note}".strip("; ") for note in table.loc[ranked, "note"]]
        curves = (calibration.reliability(found, self.ece_bins), failure.curves(found))
        return PatientScores(table, *(frame.assign(annotator=self._renamed(frame["annotator"])) for frame in curves))

    def _renamed(self, annotators: pd.Series) -> pd.Series:
        """The annotators' names for `1`, `1/2`, …: their places among those who annotated."""
        names = {str(place): name for place, name in enumerate(self.annotators, 1)}
        pairs = {PAIR.join(two): PAIR.join(names[one] for one in two) for two in combinations(names, 2)}
        return annotators.map({"": "", **names, **pairs})

    def _named(self, table: pd.DataFrame) -> pd.DataFrame:
        """A table of those who annotated, under their names, and NaN with a note for those who did not."""
        table = table.assign(annotator=self._renamed(table["annotator"]))
        if not self.not_annotated:
            return table
        single = table[table["annotator"].isin(self.annotators)]
        missing = single.drop_duplicates(["metric", "organ"])[["metric", "organ", "unit"]]
        rows = [missing.assign(annotator=name, value=math.nan, note=NOT_ANNOTATED) for name in self.not_annotated]
        return pd.concat([table, *rows], ignore_index=True)[COLUMNS]

    def _fitting(self, softmax: Any, name: str) -> Any:
        """The softmax, as an array if it is no stored volume; a ScoringError if it does not fit the annotations."""
        predictor = softmax
        if not hasattr(softmax, "code_slabs"):
            predictor = as_probabilities(softmax, attempted="scoring", subject=name, error=ScoringError)
        classes = len(self.organs) + 1
        if tuple(predictor.shape) != (classes, *self.annotations.shape[1:]):
            raise ScoringError(
                "scoring",
                name,
                f"softmax of shape {tuple(predictor.shape)} against annotations {self.annotations.shape}",
                f"Give {classes} classes (background and {', '.join(self.organs)}) on the annotations' voxels.",
            )
        return predictor


def score(
    softmax: Any,
    annotations: Any,
    spacing_mm: Sequence[float],
    *,
    organs: Mapping[str, int],
    annotators: Sequence[str] | None = None,
    region: Sequence[slice | Sequence[int]] | None = None,
    members: Any = None,
    ece_bins: int = 50,
    ace_bins: int = 20,
    tolerance_mm: float = 1.0,
    entropy_threshold: float | None = None,
    reference: str = "consensus",
    tumour: str = "",
    vessels: Sequence[str] = (),
    scored_organs: Collection[str] | None = None,
) -> pd.DataFrame:
    """Score one predictor of one patient on every metric.

    Args:
        softmax: probabilities (C, Z, Y, X), background first, or a stored volume.
        annotations: label maps (R, Z, Y, X) of whole numbers: an array, a tensor, or a list of arrays.
        spacing_mm: voxel size along (Z, Y, X).
        organs: name → label; labels are 1 … without gaps.
        annotators: their names in the order of the label maps; `1` … `R` when left out.
        region: slices along (Z, Y, X), or (start, stop) of each; None for the whole image.
        members: of an ensemble: a sequence of its models' softmaxes, or an array (M, C, Z, Y, X).
        ece_bins: bins of `ece`.
        ace_bins: bins of `ace`.
        tolerance_mm: of the normalised surface Dice.
        entropy_threshold: nats above which an uncertainty counts as high; None for a tenth of ln C.
        reference: what `dice` and `confidence` compare with: `consensus`, `majority`, `staple` or `thresholds`.
        tumour: the organ that is a tumour, if its involvement of vessels is to be scored.
        vessels: the organs that are vessels; given with a tumour, and only then.
        scored_organs: organs that are scored; None for all.

    Returns:
        Long table: metric, organ, annotator, value, unit, note.

    Raises:
        ScoringError: an argument is not as said, or shapes, classes or labels do not fit together.
    """
    patient = PatientReference(
        annotations,
        spacing_mm,
        organs=organs,
        annotators=annotators,
        region=region,
        ece_bins=ece_bins,
        ace_bins=ace_bins,
        tolerance_mm=tolerance_mm,
        entropy_threshold=entropy_threshold,
        reference=reference,
        tumour=tumour,
        vessels=vessels,
        scored_organs=scored_organs,
    )
    return patient.score(softmax, members).table


def _largest_box(found: Counts) -> int:
    """Voxels of the largest box that holds an organ."""
    return max((math.prod(span.stop - span.start for span in box) for box in found.boxes if box), default=0)


def _drawn(names: Sequence[str], not_annotated: Collection[str | int]) -> list[str]:
    """Those who annotated, in their order; a ScoringError if there is none, or a name belongs to no annotator."""
    absent = [str(name) for name in not_annotated]
    drawn = [name for name in names if name not in absent]
    if not drawn or set(absent) - set(names):
        raise ScoringError(
            "scoring",
            "the patient",
            f"not_annotated = {absent} of the annotators {', '.join(names)}",
            "Name some of these annotators, and leave at least one.",
        )
    return drawn


def _with_means(table: pd.DataFrame) -> pd.DataFrame:
    """The table, with a row for the mean over annotators of every metric that has one value per annotator."""
    columns = (table[name].tolist() for name in ("metric", "organ", "annotator", "value"))
    single: dict[tuple[str, str], list[float]] = {}
    for metric, organ, annotator, value in zip(*columns, strict=True):
        if annotator:
            single.setdefault((metric, organ), []).append(value)
    rows = []
    for (metric, organ), values in single.items():
        each = np.array(values)
        undefined = np.isnan(each)
        left_out = int(undefined.sum())
        note = f"{left_out} of {len(values)} undefined" if left_out else ""
        value = np.where(undefined, 0, each).sum() / (len(each) - left_out) if left_out < len(each) else math.nan
        if math.isinf(value):
            note = "; ".join(filter(None, [note, f"{int(np.isinf(each).sum())} of {len(values)} infinite"]))
        rows.append((metric, organ, "mean", value, METRICS[metric].unit, note))
    return pd.concat([table, pd.DataFrame(rows, columns=pd.Index(COLUMNS))], ignore_index=True)
