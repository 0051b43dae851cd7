"""Datasets: the training patients as one annotator drew them, or several, fingerprinted, planned and preprocessed by nnU-Net."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from curvas_assets.cohort import PatientFiles
from curvas_assets.errors import CorruptArtefactError, MissingArtefactError, PatientError, SegmentationError
from curvas_assets.geometry import order_of
from curvas_assets.predictors import Fusion
from curvas_assets.segmentation import TrainingScans, prepare_dataset
from curvas_assets.stages.checks import Check, StepChecks
from curvas_assets.stages.patients import fetch_files, place_of
from curvas_assets.stages.stored import Artefacts, Outcome, Stored, one_by_one
from curvas_assets.stages.toolkit import Toolkit
from curvas_assets.storage import directories, tables
from curvas_assets.storage.layout import Layout
from curvas_assets.storage.objects import ObjectStore
from curvas_assets.study import Study

PREPROCESSING_GROWTH = 7
"""Scratch of a step, as a multiple of the files it reads. Of a CT that gzip halves: files 1, voxels as stored 1.9, one
dataset at most 3.6 on a grid like the scan's (images float32; 0.3 measured of a phantom, whose air and noise pack well).
Images that annotators share are links."""
CASES_CHECKS = (
    Check(
        "files_were_read",
        "The intake has read the scan of every training patient, and the label maps that this label takes.",
        of_defects=True,
    ),
)
CHECKS = (
    Check(
        "training_patients_are_complete",
        "Every training patient is in it; tells whom its annotator, or some of several, did not draw.",
    ),
)


def select_training_cases(
    tools: Toolkit, labels: Sequence[str], checks: StepChecks, *, scan: Artefacts
) -> Iterator[tuple[str, Outcome]]:
    """What a dataset needs to know of the training patients: of each the image, and the label maps that this label takes.

    It contains nothing of other annotators, so that one who joins or leaves changes the datasets of fused labels alone, and
    those that share statistics of intensities.
    """
    study, layout = tools.study, tools.layout
    records = {patient: scan[patient] for patient in sorted(scan)}
    read: dict[str, Mapping[str, Any]] = {}

    def bridge(label: str) -> Stored:
        for patient, artefact in records.items():
            if patient not in read:
                read[patient] = artefact.record()
        try:
            cases = {patient: training_case(study, label, read[patient]) for patient in records}
        except PatientError as error:
            raise checks["files_were_read"].refuse(label, error) from error
        checks["files_were_read"].look(label)
        key = layout.training_cases(label)
        version = tables.write_json(tools.objects, key, {"label": label, "cases": cases})
        omitted = [patient for patient, case in cases.items() if not case["annotators"]]
        files = [file for case in cases.values() for file in case["files"]]
        facts = {
            "label": label,
            "cases": len(cases) - len(omitted),
            "not annotated": ", ".join(omitted) or "none",
            "files": len(files),
            "bytes of files": sum(file["size"] for file in files),
        }
        return Stored(key, version, facts)

    yield from one_by_one(bridge)(labels)


def training_case(study: Study, label: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """What a training label's dataset takes of a patient: files, grid, and whose label maps, by name.

    Args:
        study: who draws what.
        label: an annotator, or a fusion of all: then it takes the label maps of all who annotated this patient.
        record: of the patient's scan. Where nobody of the label annotated the patient, the case has no file.

    Raises:
        PatientError: the record lacks one of the files, because the scan was taken in when the study had other annotators.
    """
    blank = record.get("not_annotated", ())
    drawn = {one.name: one.file for one in study.annotators if one.name not in blank}
    names = sorted(drawn) if study.fusion(label) else [name for name in (label,) if name in drawn]
    read = drawn.values() if study.plans.shared_intensity_statistics else [drawn[name] for name in names]
    wanted = {*study.image_files, *read} if names else set()
    files = [file for file in record["files"] if file["name"] in wanted]
    if unread := sorted(wanted - {file["name"] for file in files}):
        raise PatientError(
            "selecting training cases",
            record["patient"],
            f"{', '.join(unread)} was not read when the scan was taken in",
            "Materialise scan of this patient again; if it is refused, its run says why.",
        )
    return {
        "patient": record["patient"],
        "annotators": names,
        "files": files,
        "affine": record["affine"],
        "facts": {"shape": record["facts"]["shape"]},
    }


def prepare_datasets(
    tools: Toolkit, annotators: Sequence[str], checks: StepChecks, *, training_cases: Artefacts
) -> Iterator[tuple[str, Outcome]]:
    """Datasets of annotators, and of fusions of all, from the same training patients, whose files are fetched and read once."""
    with ExitStack() as held:
        training = _TrainingPatients(tools, annotators, training_cases, held)
        yield from one_by_one(lambda annotator: _prepare(tools, annotator, training, checks))(annotators)


class _TrainingPatients:
    """Images and annotations of the training patients, in scratch from the first time they are asked for until `held` ends."""

    def __init__(self, tools: Toolkit, labels: Sequence[str], training_cases: Artefacts, held: ExitStack):
        self.tools, self.labels, self.training_cases, self.held = tools, labels, training_cases, held
        self._fetched: dict[Path, str] = {}
        """File in scratch → digest of what was fetched."""

    @cached_property
    def folder(self) -> Path:
        """With room for the files of all labels, and what is made of them."""
        sizes: dict[tuple[str, str], int] = {}
        for label in self.labels:  # one whose cases cannot be read fails when its turn comes
            with suppress(MissingArtefactError, CorruptArtefactError):
                for patient, case in self.cases(label).items():
                    sizes.update({(patient, file["name"]): file["size"] for file in case["files"]})
        return self.held.enter_context(
            self.tools.scratch("preprocessed_dataset", PREPROCESSING_GROWTH * sum(sizes.values()))
        )

    def cases(self, label: str) -> dict[str, dict[str, Any]]:
        """Patient → the case that a label has of it."""
        return self.training_cases[label].record()["cases"]

    def fetch(self, case: Mapping[str, Any]) -> PatientFiles:
        """The files of this case, in scratch, annotations on the voxels of the scan; each is fetched once for all labels."""
        folder = self.folder / case["patient"]
        places = {file["name"]: place_of(folder, file) for file in case["files"]}
        new = [file for file in case["files"] if self._fetched.get(places[file["name"]]) != file["sha256"]]
        fetch_files(self.tools.objects, dict(case), folder, [file["name"] for file in new])
        self._fetched.update({places[file["name"]]: file["sha256"] for file in new})
        return PatientFiles(case["patient"], places)

    @cached_property
    def read(self) -> TrainingScans:
        """What has been read of them, for the datasets of all annotators."""
        scratch = self.held.enter_context(tempfile.TemporaryDirectory(dir=self.folder, prefix="scans-"))
        return TrainingScans(self.tools.study, scratch)


def _prepare(tools: Toolkit, annotator: str, training: _TrainingPatients, checks: StepChecks) -> Stored:
    study, key = tools.study, tools.layout.dataset(annotator)
    fusion, label_files = study.fusion(annotator), {one.name: one.file for one in study.annotators}
    cases = training.cases(annotator)
    drawn = {patient: case["annotators"] for patient, case in cases.items() if case["annotators"]}
    omitted = [patient for patient in cases if patient not in drawn]
    incomplete = incompletely_drawn(study, drawn) if fusion else []
    checks["training_patients_are_complete"].look(annotator, [*(f"did not annotate {p}" for p in omitted), *incomplete])
    if omitted:
        tools.warn(f"{annotator} did not annotate {', '.join(omitted)}: not in this dataset")
        require_enough(study, annotator, list(drawn), omitted)
    files = {patient: training.fetch(cases[patient]) for patient in drawn}
    with tempfile.TemporaryDirectory(dir=training.folder) as folder:
        facts = prepare_dataset(
            study,
            annotator,
            {p: [of[f] for f in (*study.image_files, *(label_files[a] for a in drawn[p]))] for p, of in files.items()},
            Path(folder),
            all_annotations={
                p: [of[file["name"]] for file in cases[p]["files"] if file["name"] not in study.image_files]
                for p, of in files.items()
            },
            drawn_by=drawn,
            on_progress=lambda done, total, patient: tools.tell(
                f"{annotator}: {patient} preprocessed, {done} of {total}"
            ),
            read=training.read,
        )
        stored = directories.write_directory(tools.objects, key, Path(folder))
    described = facts.as_dict()
    return Stored(
        key,
        facts.digest,
        {
            "annotator": annotator,
            **({"labels": described_fusion(study, fusion)} if fusion else {}),
            **({"of fewer annotators": "; ".join(incomplete) or "none"} if fusion else {}),
            "cases": described["cases"],
            "not annotated": ", ".join(omitted) or "none",
            "voxel order": facts.voxel_order or "unknown",
            "patch size": str(described["patch_size"]),
            "target spacing (mm)": str(described["spacing_mm"]),
            "bytes": stored.size,
            "facts": described,
        },
    )


def incompletely_drawn(study: Study, drawn: Mapping[str, Sequence[str]]) -> list[str]:
    """The patients whom only some of the annotators drew, each in words."""
    count = len(study.annotators)
    few = {patient: annotators for patient, annotators in drawn.items() if len(annotators) < count}
    return [f"{patient} is of {', '.join(annotators)} alone" for patient, annotators in few.items()]


def described_fusion(study: Study, fusion: Fusion) -> str:
    """How a training label takes several annotators' label maps, in words."""
    how = {
        "majority": "the label of most of",
        "staple": "STAPLE's estimate of each organ from",
        "random": "one annotator drawn for each patch, of",
        "soft": "the mean of the one-hot labels of",
    }
    return f"{how[fusion]} {', '.join(sorted(study.annotator_names))}"


def require_enough(study: Study, annotator: str, drawn: list[str], omitted: list[str]) -> None:
    """Raise a SegmentationError if an annotator annotated too few patients to train on, or too few for the study's
    folds, or those of a fold on one side alone.

    nnU-Net silently makes a random split for a fold that the splits do not contain, and cannot train on a fold without
    patients, nor stop by one.
    """
    remedy = (
        "Upload these annotations, name the others in training_labels, use fewer folds, or set intake.blank_annotation to absent "
        "if there is no organ."
    )
    if len(drawn) < study.least_cases:
        raise SegmentationError(
            "preparing the dataset",
            f"dataset of {annotator}",
            f"{len(drawn)} training patients are left, {study.least_cases} are needed (folds {', '.join(map(str, study.folds))}): "
            f"the label maps of {', '.join(omitted)} are blank or missing, which means not annotated",
            remedy,
        )
    for fold in (fold for fold in study.folds if fold != "all"):
        held_out = study.held_out(fold)
        of_held_out = [patient for patient in drawn if patient in held_out]
        if len(of_held_out) == len(drawn) or not (of_held_out or study.cross_validated):
            none = "leaves none to train on" if of_held_out else "holds none out, by whom a training would stop"
            raise SegmentationError(
                "preparing the dataset",
                f"dataset of {annotator}",
                f"of the {len(drawn)} training patients who are annotated, fold {fold} {none}: the label maps of {', '.join(omitted)} "
                "are blank or missing, which means not annotated",
                remedy,
            )


def order_of_training_scans(objects: ObjectStore, layout: Layout, study: Study) -> str | None:
    """The voxel order of the study's training scans that were taken in; None if they differ, or there are none.

    A model whose `dataset.json` names no order was trained in this order, because nnU-Net does not reorder scans.
    """
    orders: set[str] = set()
    for patient in study.training_patients():
        try:
            orders.add(order_of(tables.read_json(objects, layout.scan(patient))["affine"]))
        except MissingArtefactError:
            continue
    return orders.pop() if len(orders) == 1 else None
