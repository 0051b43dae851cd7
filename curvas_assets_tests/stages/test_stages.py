"""Claims proved here, without Dagster: stages are plain functions of a study, a store and what was made before.

- From files in a bucket to scores and comparisons, each stage called directly; what it stores is what the next one reads.
- Scores compare with the reference that the study names, and have the metrics of its vessels.
- An error is its partition's alone, names the patient, and stores nothing of it; what a check found is told beside it.
- Too little memory says nothing about a patient's files.
- An ensemble without one of its members is refused, and the ensembles beside it are stored.
- Artefacts of the table and objects of the bucket belong together, both ways.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from curvas_assets.cohort.phantom import write_cohort
from curvas_assets.errors import MissingArtefactError, PatientError
from curvas_assets.geometry import Grid
from curvas_assets.scoring import metrics_of
from curvas_assets.stages import cohort, compare, ensemble, schemas, score, table
from curvas_assets.stages.checks import Check, StepChecks
from curvas_assets.stages.places import partition_of, root_of
from curvas_assets.stages.stored import Artefact, Artefacts, Stored
from curvas_assets.stages.toolkit import Toolkit
from curvas_assets.storage.layout import Cell, Layout
from curvas_assets.storage.metering import MeteredObjects
from curvas_assets.storage.objects import FolderObjects
from curvas_assets.storage.softmax import SoftmaxWriter
from curvas_assets.storage.tables import write_json, write_table
from curvas_assets.study import Study, load_study
from curvas_assets_tests.statistics import test_other_studies as others

SHAPE, SPACING = (12, 24, 28), (20, 14, 12)
ROUNDING = 2 * 3 * 2**-16
"""Half a step of the stored codes for each of three organs, which the background takes up: of the members, and of the mean."""
PATIENT, BROKEN = "PHANTOM007", "PHANTOM008"
STUDY = Study.model_validate(
    load_study("phantom").model_dump(mode="json")
    | {"seeds": [112233, 445566], "sets": {"train": [1], "test": [7, 8]}, "groups": {}, "in_distribution_group": None}
)
MODELS = [str(model) for model in STUDY.models]
NONE = Artefacts({})


def no_calibrators(objects) -> Artefact:
    """What stages are given where nothing is calibrated: it is not read."""
    return Artefact(objects, "nowhere", "record", "calibrators")


class Bench:
    """A study's bucket in a folder, and stages called on it as its assets call them."""

    def __init__(self, folder: Path, study: Study = STUDY):
        self.study = study
        self.folder, self.objects, self.layout = folder, MeteredObjects(FolderObjects(folder / "bucket")), Layout()
        self.warnings: list[str] = []

    @property
    def tools(self) -> Toolkit:
        return Toolkit(
            study=self.study,
            objects=self.objects,
            layout=self.layout,
            tell=lambda _: None,
            warn=self.warnings.append,
            scratch=self.scratch,
            device=lambda: contextlib.nullcontext(None),
            code=lambda *packages: dict.fromkeys(packages, "0"),
        )

    @contextlib.contextmanager
    def scratch(self, subject: str, needed_bytes: int = 0):
        folder = self.folder / "scratch" / subject.replace("|", "-") / str(self.objects.bytes_up)
        folder.mkdir(parents=True)
        yield folder

    def upload(self, patients: Sequence[str]) -> None:
        write_cohort(self.folder / "cohort", patients=patients, shape=SHAPE, spacing_mm=SPACING, seed=3)
        for patient in patients:
            for path in (self.folder / "cohort" / patient).iterdir():
                self.objects.upload(self.layout.patient_file(patient, path.name), path)

    def of(self, row: table.Asset, partitions: Sequence[str]) -> Artefacts:
        return Artefacts(
            {p: Artefact(self.objects, row.place(self.layout, p), row.kind, f"{row} of {p}") for p in partitions}
        )

    def make(self, stage, described: Sequence[Check], partitions: Sequence[str], **inputs) -> tuple[dict, StepChecks]:
        checks = StepChecks(*described)
        return dict(stage(self.tools, partitions, checks, **inputs)), checks

    def score_uncalibrated(self, softmax: Artefacts, means: Artefacts, scans: Artefacts) -> tuple[dict, StepChecks]:
        """The patients of scans, by models and ensembles alone."""
        return self.make(
            score.score_patients,
            score.CHECKS,
            list(scans),
            softmax=softmax,
            variant_softmax=NONE,
            ensemble_softmax=means,
            calibrators=no_calibrators(self.objects),
            scan=scans,
        )

    def predict(self, model: str, patient: str) -> np.ndarray:
        rng = np.random.default_rng(sum(map(ord, model)))
        values = rng.dirichlet(np.ones(len(self.study.class_names)), SHAPE).transpose(3, 0, 1, 2).astype(np.float32)
        with SoftmaxWriter(
            self.objects,
            self.layout.softmax(patient, model),
            Grid(SHAPE, np.diag((*reversed(SPACING), 1.0))),
            class_names=self.study.class_names,
            provenance={"patient": patient, "predictor": model},
        ) as writer:
            writer.write(0, values)
        return values


@pytest.fixture
def bench(tmp_path) -> Bench:
    return Bench(tmp_path)


def test_from_files_to_comparisons_each_stage_reads_what_the_one_before_has_stored(bench):
    bench.upload([PATIENT])
    taken, checks = bench.make(cohort.take_in, cohort.SCAN_CHECKS, [PATIENT])
    assert taken[PATIENT].key == bench.layout.scan(PATIENT)
    assert checks["files_are_sound"].found == {PATIENT: []}
    scans = bench.of(table.SCAN, [PATIENT])
    bridged, _ = bench.make(cohort.select_test_scans, cohort.TEST_SCAN_CHECKS, [PATIENT], scan=scans)
    assert isinstance(bridged[PATIENT], Stored)
    frame, facts = cohort.describe_cohort(bench.tools, scans)
    assert dict(zip(frame["patient"], frame["status"], strict=True)) == {
        "PHANTOM001": "missing", PATIENT: "taken in", BROKEN: "missing"}  # fmt: skip
    assert facts["taken in"] == 1
    arrays = {model: bench.predict(model, PATIENT) for model in MODELS}
    members = bench.of(table.SOFTMAX, [str(Cell(model, PATIENT)) for model in MODELS])
    cells = [str(Cell(str(one), PATIENT)) for one in STUDY.ensemble_ids]
    built, _ = bench.make(ensemble.build_ensembles, ensemble.CHECKS, cells, softmax=members, variant_softmax=NONE)
    means = bench.of(table.ENSEMBLE_SOFTMAX, cells)
    for cell in cells:
        assert isinstance(built[cell], Stored)
        names = [str(m) for m in STUDY.members(Cell.of(cell).predictor, PATIENT)]
        expected = np.mean([arrays[name] for name in names], axis=0)
        np.testing.assert_allclose(means[cell].volume().slab(0, SHAPE[0]), expected, atol=ROUNDING)
    scored, checks = bench.score_uncalibrated(members, means, scans)
    assert checks["scores_are_sound"].found == {PATIENT: []}
    assert scored[PATIENT].metadata["predictors"] == len(STUDY.predictors)
    merged, _ = score.merge_scores(bench.tools, bench.of(table.SCORES, [PATIENT, BROKEN]))
    assert set(merged["predictor"]) == set(STUDY.predictors)
    assert bench.warnings == [f"no scores yet of {BROKEN}: they are not in the table"]
    comparisons, _, _ = compare.compare_families(STUDY, merged)
    assert {"dice", "recall", "ece"} <= set(comparisons["metric"])
    variance, facts, lacking = compare.split_variance(STUDY, merged)
    assert {"dice", "ece", "dice_annotator"} <= set(variance["metric"])
    assert set(variance["note"]) >= {"one patient alone: nothing tells how others vary"}
    assert len(lacking) == (len(STUDY.statistics.primary) if len(STUDY.seeds) > 1 else 0)
    assert len(facts["standard error of the mean"]) == 0


def test_a_study_whose_scores_are_missing_or_damaged_is_told_and_stops_nothing(tmp_path):
    named = {name: f"{name}/metrics" for name in ("gone", "torn", "twice", "mistaken", "sound")}
    bench = Bench(tmp_path, STUDY.model_copy(update={"compare_with": named}))
    own = others.scores(others.named(range(4))).assign(group="", note="")
    bench.objects.put("torn/metrics/study_scores.parquet", b"half of it")
    for name, scores in {"twice": pd.concat([own, own]), "mistaken": own, "sound": own}.items():
        write_table(bench.objects, f"{name}/metrics/study_scores.parquet", scores, schemas.SCORES)
        write_json(bench.objects, f"{name}/metrics/study.json", {"study": STUDY.name if name == "mistaken" else name})
    found, _, problems = compare.compare_others(bench.tools, own)
    assert set(found["other"]) == {"sound"}
    assert [problem.partition(":")[0] for problem in problems] == ["gone", "torn", "twice", "mistaken"]
    assert all("cannot be read" in problem for problem in problems[1:3])
    assert f"stand the scores of {STUDY.name}" in problems[3]


@pytest.mark.parametrize("reference", ["consensus", "majority", "staple", "thresholds"])
def test_scores_compare_with_what_the_study_says_and_know_its_vessels(tmp_path, reference):
    vascular = {"tumour": "pancreas", "vessels": ["liver", "kidney"]}
    small = STUDY.model_dump(mode="json") | {"seeds": STUDY.seeds[:1]}  # half the models: what is asked is of each
    changed = {"evaluation": {**STUDY.evaluation.model_dump(mode="json"), "reference": reference, "vascular": vascular}}
    bench = Bench(tmp_path, Study.model_validate(small | changed))
    bench.upload([PATIENT])
    bench.make(cohort.take_in, cohort.SCAN_CHECKS, [PATIENT])
    models = [str(model) for model in bench.study.models]
    for model in models:
        bench.predict(model, PATIENT)
    members = bench.of(table.SOFTMAX, [str(Cell(model, PATIENT)) for model in models])
    cells = [str(Cell(str(one), PATIENT)) for one in bench.study.ensemble_ids]
    bench.make(ensemble.build_ensembles, ensemble.CHECKS, cells, softmax=members, variant_softmax=NONE)
    means, scans = bench.of(table.ENSEMBLE_SOFTMAX, cells), bench.of(table.SCAN, [PATIENT])
    scored, checks = bench.score_uncalibrated(members, means, scans)
    assert checks["scores_are_sound"].found == {PATIENT: []}, scored
    merged, facts = score.merge_scores(bench.tools, bench.of(table.SCORES, [PATIENT]))
    assert (
        set(merged["metric"])
        == set(metrics_of(reference, vessels=True))
        == set(facts["what the metrics are"]["metric"])
    )
    notes = merged[merged["metric"] == "dice"]["note"]
    assert notes.str.startswith("compared with").all() == (reference != "consensus")
    assert set(merged[merged["metric"] == "involvement_distance"]["organ"]) == {"liver", "kidney"}
    assert set(compare.compare_families(bench.study, merged)[0]["metric"]) >= {"involvement_distance", "tumour_ece"}
    default = table.SCORES.version(Study.model_validate(small))
    assert default not in (table.SCORES.version(bench.study), "")


def test_an_error_is_its_partitions_alone_and_stores_nothing_of_it(bench):
    bench.upload([PATIENT, BROKEN])
    bench.objects.put(bench.layout.patient_file(BROKEN, STUDY.image), b"no image")
    taken, checks = bench.make(cohort.take_in, cohort.SCAN_CHECKS, [BROKEN, PATIENT])
    assert isinstance(taken[PATIENT], Stored)
    assert isinstance(taken[BROKEN], PatientError)
    assert taken[BROKEN].subject.startswith(BROKEN)
    assert checks["files_are_sound"].found[PATIENT] == []
    assert len(checks["files_are_sound"].found[BROKEN]) == 1
    assert bench.objects.head(bench.layout.scan(BROKEN)) is None


def test_too_little_memory_says_nothing_about_a_patients_files(bench, monkeypatch):
    bench.upload([PATIENT])
    monkeypatch.setattr("curvas_assets.cohort.intake.available_memory", lambda: 0)
    taken, checks = bench.make(cohort.take_in, cohort.SCAN_CHECKS, [PATIENT])
    assert isinstance(taken[PATIENT], PatientError)
    assert taken[PATIENT].may_retry
    assert checks["files_are_sound"].found == {}


def test_an_ensemble_without_a_member_is_refused_and_those_beside_it_are_stored(bench):
    absent = MODELS[-1]
    for model in MODELS[:-1]:
        bench.predict(model, PATIENT)
    members = bench.of(table.SOFTMAX, [str(Cell(model, PATIENT)) for model in MODELS])
    cells = [str(Cell(str(one), PATIENT)) for one in STUDY.ensemble_ids]
    built, checks = bench.make(ensemble.build_ensembles, ensemble.CHECKS, cells, softmax=members, variant_softmax=NONE)
    found = checks["members_are_complete"].found
    for cell in cells:
        lacks = absent in [str(m) for m in STUDY.members(Cell.of(cell).predictor, PATIENT)]
        assert isinstance(built[cell], MissingArtefactError if lacks else Stored), cell
        assert any(absent in problem for problem in found[cell]) == lacks
        assert (bench.objects.head(table.ENSEMBLE_SOFTMAX.place(bench.layout, cell) + "/zarr.json") is None) == lacks


def _partition(row: table.Asset) -> str:
    predictors = {
        "patient_by_model": MODELS[0],
        "patient_by_variant": f"{MODELS[0]}_flip3",
        "patient_by_ensemble": "ensemble_all",
    }
    return str(Cell(predictors[row.axis], PATIENT)) if row.axis in predictors else "a_name"


@pytest.mark.parametrize("row", [row for row in table.ASSETS if row.axis is not None], ids=str)
def test_what_stands_where_an_artefact_does_belongs_to_its_partition(row):
    layout, partition = Layout(), _partition(row)
    for place in row.owned(layout, partition):
        key = place if row.kind == "record" else f"{place}/a/part"
        assert partition_of(layout, key) == (row, partition)
        assert partition_of(layout, f"elsewhere/{key}") is None


def test_what_stands_where_no_artefact_does_is_somebodys_else():
    strangers = [
        "data/PHANTOM007/image.nii.gz", "output/notes.txt", "output/PHANTOM007/notes.json", "output/PHANTOM007/notes/a",
        "output/PHANTOM007/anno1_init112233_foldall", "artifacts/models/a_name", "artifacts/other/a_name/part",
        "metrics/PHANTOM007/notes/part", "metrics/study_scores.parquet", "reports/report/manifest.json", "elsewhere",
    ]  # fmt: skip
    assert [key for key in strangers if partition_of(Layout(), key) is not None] == []


@pytest.mark.parametrize("row", [row for row in table.ASSETS if row.kind in ("folder", "softmax")], ids=str)
def test_objects_below_an_artefact_of_several_have_it_as_their_root(row):
    layout, partition = Layout(), _partition(row)
    for place in (row.place(layout, partition), *row.unfinished(layout, partition)):
        assert root_of(layout, f"{place}/a/part") == place
        assert root_of(layout, place) is None
        assert root_of(layout, f"{place}_of_somebody/part") != place


@pytest.mark.parametrize("row", table.ASSETS, ids=str)
def test_each_row_says_enough_for_whoever_reads_it(row):
    assert table.asset(row.name) is row
    assert row.jobs
    assert row.version(STUDY) == row.version(load_study(STUDY))
    before = table.ASSETS[: table.ASSETS.index(row)]
    assert [
        one for one in row.inputs if one not in before
    ] == []  # inputs come first, so that jobs run in the rows' order


def test_partitioned_assets_of_one_job_are_divided_along_one_axis():
    """Dagster's asset jobs span no more than one."""
    axes = {job: {table.asset(name).axis for name in assets} - {None} for job, assets in table.STAGES.items()}
    assert {job: found for job, found in axes.items() if len(found) > 1} == {}
