"""Datasets: the training patients as one annotator drew them, or several, fingerprinted, planned and preprocessed by nnU-Net."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from curvas_assets.cohort import PatientFiles
from curvas_assets.errors import MissingArtefactError, SegmentationError
from curvas_assets.geometry import order_of
from curvas_assets.predictors import Fusion
from curvas_assets.segmentation import TrainingScans, prepare_dataset
from curvas_assets.stages.checks import Check, StepChecks
from curvas_assets.stages.patients import fetch_files
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
CHECKS = (
    Check(
        "training_patients_are_complete",
        "Every training patient is in it; tells whom its annotator, or some of several, did not draw.",
    ),
)


def prepare_datasets(
    tools: Toolkit, annotators: Sequence[str], checks: StepChecks, *, scan: Artefacts
) -> Iterator[tuple[str, Outcome]]:
    """Datasets of annotators, and of fusions of all, from the same training patients, whose files are fetched and read once."""
    with ExitStack() as held:
        training = _TrainingPatients(tools, scan, held)
        yield from one_by_one(lambda annotator: _prepare(tools, annotator, training, checks))(annotators)


class _TrainingPatients:
    """Image and annotations of every training patient, in scratch from the first time they are asked for until `held` ends."""

    def __init__(self, tools: Toolkit, scan: Artefacts, held: ExitStack):
        self.tools, self.scan, self.held = tools, scan, held
        self._scratch = Path()
        self._files: dict[str, PatientFiles] = {}
        self._not_annotated: dict[str, list[str]] = {}
        self._read: TrainingScans | None = None

    def files(self) -> dict[str, PatientFiles]:
        """Patient → files, in scratch."""
        if not self._files:
            study = self.tools.study
            records = {patient: self.scan[patient].record() for patient in sorted(self.scan)}
            size = sum(file["size"] for record in records.values() for file in record["files"])
            self._scratch = self.held.enter_context(
                self.tools.scratch("preprocessed_dataset", PREPROCESSING_GROWTH * size)
            )
            for patient, record in records.items():
                files = fetch_files(self.tools.objects, record, self._scratch / patient, study.files)
                for annotator in record.get("not_annotated", []):
                    self._not_annotated.setdefault(annotator, []).append(patient)
                self._files[patient] = files
        return self._files

    @property
    def scratch(self) -> Path:
        """The folder of these files, for what is made of them."""
        self.files()
        return self._scratch

    def read(self) -> TrainingScans:
        """What has been read of them, for the datasets of all annotators."""
        if self._read is None:
            scratch = self.held.enter_context(tempfile.TemporaryDirectory(dir=self.scratch, prefix="scans-"))
            self._read = TrainingScans(self.tools.study, scratch)
        return self._read

    def drawn_by(self, label: str) -> dict[str, list[str]]:
        """Patient → the annotators whose label maps a training label takes, by name: of those who annotated the patient, as the
        intake's ledger tells, the one, or all if it fuses them. Patients whom nobody of these annotated are left out.
        """
        study = self.tools.study
        asked = sorted(study.annotator_names) if study.fusion(label) else [label]
        drawn = {p: [a for a in asked if p not in self._not_annotated.get(a, ())] for p in self.files()}
        return {patient: annotators for patient, annotators in drawn.items() if annotators}


def _prepare(tools: Toolkit, annotator: str, training: _TrainingPatients, checks: StepChecks) -> Stored:
    study, key = tools.study, tools.layout.dataset(annotator)
    fusion, label_files = study.fusion(annotator), {one.name: one.file for one in study.annotators}
    drawn = training.drawn_by(annotator)
    files = {patient: of for patient, of in training.files().items() if patient in drawn}
    omitted = [patient for patient in training.files() if patient not in drawn]
    incomplete = incompletely_drawn(study, drawn) if fusion else []
    checks["training_patients_are_complete"].look(annotator, [*(f"did not annotate {p}" for p in omitted), *incomplete])
    if omitted:
        tools.warn(f"{annotator} did not annotate {', '.join(omitted)}: not in this dataset")
        require_enough(study, annotator, list(drawn), omitted)
    with tempfile.TemporaryDirectory(dir=training.scratch) as folder:
        facts = prepare_dataset(
            study,
            annotator,
            {p: [of[f] for f in (*study.image_files, *(label_files[a] for a in drawn[p]))] for p, of in files.items()},
            Path(folder),
            all_annotations={p: [of[f] for f in label_files.values() if f in of] for p, of in files.items()},
            drawn_by=drawn,
            on_progress=lambda done, total, patient: tools.tell(
                f"{annotator}: {patient} preprocessed, {done} of {total}"
            ),
            read=training.read(),
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
    folds.

    nnU-Net silently makes a random split for a fold that the splits do not contain.
    """
    needed = max(1 if fold == "all" else max(2, int(fold) + 1) for fold in study.folds)
    if len(drawn) < needed:
        raise SegmentationError(
            "preparing the dataset",
            f"dataset of {annotator}",
            f"{len(drawn)} training patients are left, {needed} are needed (folds {', '.join(map(str, study.folds))}): "
            f"the label maps of {', '.join(omitted)} are blank or missing, which means not annotated",
            "Upload these annotations, use fewer folds, or set intake.blank_annotation to absent if there is no organ.",
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
