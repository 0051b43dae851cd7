"""Pictures of patients for the report: whom to show, which slice, and what stands on it.

Belongs here: choosing patients and slices, and reading them from the bucket. Does not belong here: drawing
(`curvas_assets.report.pictures`), the report itself (`write_up`).
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pandas as pd

from curvas_assets.cohort import read_annotations
from curvas_assets.errors import MissingArtefactError
from curvas_assets.predictors import EnsembleId, predictor_of
from curvas_assets.report import OrganView, SliceView, most_disputed_slice
from curvas_assets.report.pictures import most_wrong_slice
from curvas_assets.report.verdict import leading_predictor
from curvas_assets.stages.patients import fetch_files, grid_of, shown_window
from curvas_assets.stages.toolkit import Toolkit
from curvas_assets.statistics import directions
from curvas_assets.statistics.outliers import find_outliers, worst_of
from curvas_assets.statistics.reduction import reduce_scores
from curvas_assets.storage import tables
from curvas_assets.storage.encoding import labels_of
from curvas_assets.storage.layout import Layout
from curvas_assets.storage.maps import download_map
from curvas_assets.storage.objects import ObjectStore
from curvas_assets.storage.softmax import SoftmaxVolume, open_softmax
from curvas_assets.study import Study

LARGEST_3D = 128
"""Voxels along an axis of the 3-D view; larger volumes are thinned."""
MOST_CASES = 4
"""Worst cases and outliers that are pictured, beside the typical patient."""


@dataclass(frozen=True)
class Case:
    """A patient to be pictured.

    Args:
        patient: who.
        kind: why: `typical`, `worst` of a metric, or an `outlier` in one.
        metric: which; empty for the typical patient.
    """

    patient: str
    kind: str
    metric: str = ""


def choose_cases(study: Study, scores: pd.DataFrame) -> list[Case]:
    """The typical patient, then the leading predictor's worst patient of each primary metric, then its outliers; each once,
    and no more than there is room for.
    """
    reduced, better = reduce_scores(scores), directions()
    lead = leading_predictor(study, reduced["predictor"].unique())
    cases = [Case(typical_patient(study, scores), "typical")]
    primary = list(study.statistics.primary.values())
    for metric in primary:
        worst = worst_of(reduced, lead, metric, better.get(metric, ""))
        if worst is not None and worst["n_patients"] > 1:
            cases.append(Case(str(worst["patient"]), "worst", metric))
    of_lead = reduced[reduced["predictor"] == lead]
    outliers = find_outliers(of_lead, primary, better)
    cases += [Case(str(row.patient), "outlier", str(row.metric)) for row in outliers.itertuples()]
    worst_first = {case.patient: case for case in reversed(cases[1:])}  # the first reason of each stays
    chosen = [case for case in cases[1:] if worst_first[case.patient] is case]
    if cases[0].patient in worst_first:  # of few patients, the typical one may be the worst in something
        return chosen[: MOST_CASES + 1]
    return [cases[0], *chosen[:MOST_CASES]]


def typical_patient(study: Study, scores: pd.DataFrame) -> str:
    """The patient whose Dice by the leading predictor is the median: neither the best nor the worst case."""
    dice = scores[scores["metric"] == "dice"]
    of_lead = dice[dice["predictor"] == leading_predictor(study, scores["predictor"].unique())]
    means = (of_lead if len(of_lead) else dice).groupby("patient")["value"].mean().dropna()
    if means.empty:
        return str(scores["patient"].iloc[0])
    return str(means.sort_values(kind="stable").index[(len(means) - 1) // 2])


def pictures(
    tools: Toolkit, cases: Sequence[Case], predictor: str, scratch: Path
) -> tuple[list[SliceView], OrganView | None]:
    """A slice of each case with annotations and a predictor's maps, and the organs of the first.

    A case whose volumes are gone is left out with a warning.
    """
    slices: list[SliceView] = []
    organs: OrganView | None = None
    for case in cases:
        folder = scratch / case.patient
        try:
            view, organ_view = _picture(tools.study, tools.objects, tools.layout, case, predictor, folder)
        except MissingArtefactError as error:
            tools.warn(f"no picture of {case.patient}: {error}")
            continue
        slices.append(view)
        organs = organs or organ_view
    return slices, organs


def anatomy(study: Study, objects: ObjectStore, layout: Layout, patients: Sequence[str]) -> pd.DataFrame:
    """What annotators drew of these patients, as the intake counted it: patient, organ, annotator, volume_ml.

    An annotator who has not annotated a patient has no row, one who drew nothing of an organ has a volume of 0.
    """

    def rows(patient: str) -> list[tuple[str, str, str, float]]:
        try:
            volumes = tables.read_json(objects, layout.scan(patient))["facts"].get("organ_volumes_ml", {})
        except MissingArtefactError:  # emptied since it was scored
            return []
        return [
            (patient, organ, annotator, float(ml))
            for organ, of_annotators in volumes.items()
            for annotator, ml in of_annotators.items()
            if ml is not None and organ in study.organs and annotator in study.annotator_names
        ]

    with ThreadPoolExecutor(8, thread_name_prefix="curvas-anatomy") as pool:
        found = [row for some in pool.map(rows, patients) for row in some]
    return pd.DataFrame(found, columns=["patient", "organ", "annotator", "volume_ml"])


def _picture(
    study: Study, objects: ObjectStore, layout: Layout, case: Case, predictor: str, scratch: Path
) -> tuple[SliceView, OrganView]:
    patient = case.patient
    record = tables.read_json(objects, layout.scan(patient))
    volume = open_softmax(objects, layout.softmax(patient, predictor))
    first, *_ = study.image_files
    wanted = [first, *(annotator.file for annotator in study.annotators)]
    files, blank = fetch_files(objects, record, scratch, wanted), record.get("not_annotated", [])
    drawn = [i for i, name in enumerate(study.annotator_names) if name not in blank]
    annotations = read_annotations(files, study, not_annotated=blank).only(drawn)
    labels = _labels(volume)
    z = most_disputed_slice(annotations) if case.kind == "typical" else most_wrong_slice(annotations, labels)
    image = np.asarray(nib.Nifti1Image.from_filename(files[first]).dataobj[:, :, z]).T
    grid = grid_of(record)
    view = SliceView(
        patient=patient,
        z=z,
        image=image,
        annotations=annotations[:, z],
        annotators=tuple(study.annotator_names[i] for i in drawn),
        spacing_mm=grid.spacing_mm,
        orientation=grid.orientation,
        predictor=predictor,
        segmentation=labels[z],
        case=case.kind,
        metric=case.metric,
        channel="" if study.images[0].is_ct else study.images[0].name,
        window=shown_window(study, record["facts"]),
        **_maps(objects, layout, patient, predictor, volume, z, scratch),
    )
    step = tuple(-(-n // LARGEST_3D) for n in labels.shape)
    thinned = labels[tuple(slice(None, None, s) for s in step)]
    z_mm, y_mm, x_mm = (float(s * n) for s, n in zip(grid.spacing_mm, step, strict=True))
    return view, OrganView(patient, thinned, (z_mm, y_mm, x_mm), predictor, grid.orientation)


def _labels(volume: SoftmaxVolume) -> npt.NDArray[np.uint8]:
    """The label map (Z, Y, X), read slab by slab."""
    labels = np.empty(volume.shape[1:], np.uint8)
    for z0, z1, codes in volume.code_slabs():
        labels[z0:z1] = labels_of(codes, volume.levels)
    return labels


def _maps(
    objects: ObjectStore,
    layout: Layout,
    patient: str,
    predictor: str,
    volume: SoftmaxVolume,
    z: int,
    scratch: Path,
) -> Mapping[str, Any]:
    """Entropy of the slice, nats; of an ensemble also its mutual information, which its members' disagreement is."""
    if not isinstance(predictor_of(predictor), EnsembleId):
        return {"predictive_entropy": entropy(volume.slab(z, z + 1)[:, 0])}
    maps: dict[str, Any] = {}
    for name, given in (("entropy", "predictive_entropy"), ("mutual_information", "mutual_information")):
        key = layout.ensemble_map(patient, predictor, name)
        path = download_map(objects, key, scratch / f"{name}.nii.gz", check=volume.beside.get(name))
        maps[given] = np.asarray(nib.Nifti1Image.from_filename(path).dataobj[:, :, z]).T
    return maps


def entropy(probabilities: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Entropy of probabilities (C, Y, X), nats (Y, X); a probability of 0 adds nothing."""
    p = probabilities.astype(np.float64)
    return -(p * np.log(np.where(p > 0, p, 1.0))).sum(axis=0)
