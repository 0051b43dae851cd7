"""A small study from files to a bundle, for the tests of this folder and of the browser: made once, in a folder."""

import contextlib
import tempfile
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy.ndimage import gaussian_filter

from curvas_assets.cohort.phantom import write_cohort
from curvas_assets.geometry import Grid
from curvas_assets.orchestration.operations.share import Shared, share
from curvas_assets.report import ReportInputs, build_report
from curvas_assets.stages import cohort, ensemble, preview, table
from curvas_assets.storage import directories, tables
from curvas_assets.storage.layout import Cell
from curvas_assets.storage.softmax import SoftmaxWriter
from curvas_assets.study import ModelId, Study
from curvas_assets_tests.report.studies import make_scores, make_study
from curvas_assets_tests.stages.test_stages import NONE, Bench

SHAPE, SPACING = (30, 56, 56), (8, 6, 6)
PATIENTS = ["UKCHLL001", "UKCHLL002", "UKCHLL003"]


def study_of(language: str = "en") -> Study:
    return make_study(seeds=1, patients=len(PATIENTS), language=language)


def blurred(path: Path, classes: int, wide: float) -> np.ndarray:
    """Probabilities (C, Z, Y, X) of a network that draws what an annotator drew, unsure at the borders."""
    labels = np.asarray(nib.load(path).dataobj).T
    parts = np.stack([gaussian_filter((labels == c).astype(np.float32), wide) for c in range(classes)]) + 1e-7
    return parts / parts.sum(axis=0)


class SharedStudy(Bench):
    """Everything that a bundle is made of, in a bucket that is a folder; no network."""

    @contextlib.contextmanager
    def scratch(self, subject: str, needed_bytes: int = 0):
        with tempfile.TemporaryDirectory(dir=self.folder) as lent:
            yield Path(lent)

    def make_all(self) -> None:
        write_cohort(self.folder / "cohort", patients=PATIENTS, shape=SHAPE, spacing_mm=SPACING, seed=3)
        for patient in PATIENTS:
            for path in (self.folder / "cohort" / patient).iterdir():
                self.objects.upload(self.layout.patient_file(patient, path.name), path)
        self.make(cohort.take_in, cohort.SCAN_CHECKS, PATIENTS)
        models = [str(model) for model in self.study.models]
        for patient in PATIENTS:
            for model in models:
                self._predict(model, patient)
        members = self.of(table.SOFTMAX, [str(Cell(model, patient)) for model in models for patient in PATIENTS])
        cells = [str(Cell(str(one), patient)) for patient in PATIENTS for one in self.study.ensemble_ids]
        self.make(ensemble.build_ensembles, ensemble.CHECKS, cells, softmax=members, variant_softmax=NONE)
        self.outcomes, self.checks = self.make(
            preview.preview_patients,
            preview.CHECKS,
            PATIENTS,
            softmax=members,
            ensemble_softmax=self.of(table.ENSEMBLE_SOFTMAX, cells),
            scan=self.of(table.SCAN, PATIENTS),
        )
        scores = make_scores(self.study)
        tables.write_table(self.objects, self.layout.table("study_scores"), scores)
        page = self.folder / "page"
        page.mkdir()
        few = scores[scores["metric"].isin(["dice", "ece"])]  # each figure more takes a browser its time
        report = build_report(ReportInputs(self.study, few), image_formats=())
        (page / "report.html").write_text(report.html, encoding="utf-8")
        directories.write_directory(self.objects, self.layout.report(), page)

    def _predict(self, model: str, patient: str) -> None:
        annotator = self.study.annotator_names.index(ModelId.parse(model).annotator)
        file = self.folder / "cohort" / patient / self.study.annotators[annotator].file
        values = blurred(file, len(self.study.class_names), 0.6 + 0.2 * annotator).astype(np.float32)
        grid = Grid.of(nib.load(file))
        with SoftmaxWriter(
            self.objects,
            self.layout.softmax(patient, model),
            grid,
            class_names=self.study.class_names,
            provenance={"patient": patient, "predictor": model},
        ) as writer:
            for z0 in range(0, SHAPE[0], 16):
                writer.write(z0, values[:, z0 : z0 + 16])


@dataclass
class Made:
    """A bundle, and what it was made of."""

    study: SharedStudy
    folder: Path
    done: Shared


def make_bundle(folder: Path, *, language: str = "en", **settings) -> Made:
    made = SharedStudy(folder, study_of(language))
    made.make_all()
    return Made(made, folder / "bundle", share(made.tools, folder / "bundle", patients=PATIENTS, **settings))
