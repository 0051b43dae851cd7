"""Claims proved here: stages.calibrate on stored volumes, and the asset in real runs of Dagster.

- No test patient enters a fit: the asset's inputs are cells of validation patients and of what is calibrated, and when all
  volumes, scans and annotations of test patients are destroyed, the record is the same to the byte.
- A validation patient who is not taken in or not predicted is left out and named; if none is left, the error says what to do.
- A study that calibrates nothing stores an empty record without reading anything, and its scores read none.
- Scores hold calibrated predictors, in their family, beside the others, which score as before; each Dice of a temperature is
  that of its source. A calibrator that is missing is an error that says how to get it.
- Calibrated predictors are downloaded as NIfTI with the probabilities that were scored; a new fit replaces them.
- Calibrators are stale when what they are fitted on, or the study's part about them, changes; scores follow them. A batch of
  scores is not stale at once.
- The sensor for new patients fits once, when all validation patients are predicted; the night fits again what is out of date.
- An edit of the study changes the version of calibrators only where something is calibrated.
"""

import contextlib
import json
import tempfile
from pathlib import Path

import dagster as dg
import nibabel as nib
import numpy as np
import pytest

from curvas_assets.calibration import CalibratedVolume, calibrator_of
from curvas_assets.cohort.phantom import write_cohort
from curvas_assets.definitions import build_definitions
from curvas_assets.errors import MissingArtefactError
from curvas_assets.geometry import Grid
from curvas_assets.orchestration import nightly
from curvas_assets.orchestration.bucket import Bucket
from curvas_assets.orchestration.cells import cell_event, provenance_tags
from curvas_assets.orchestration.following import due_for_patients
from curvas_assets.orchestration.operations.download import download
from curvas_assets.orchestration.partitions import Partitions
from curvas_assets.orchestration.staleness import Staleness
from curvas_assets.stages import calibrate, cohort, ensemble, score, table
from curvas_assets.stages.stored import Artefact, Stored
from curvas_assets.storage.layout import Cell
from curvas_assets.storage.softmax import SoftmaxWriter, open_softmax
from curvas_assets.storage.tables import write_json
from curvas_assets.study import Study, load_study
from curvas_assets_tests.stages.test_stages import SHAPE, SPACING, Bench

FITTING, TESTS = ["PHANTOM004", "PHANTOM005"], ["PHANTOM007", "PHANTOM008"]
CALIBRATED = {"temperature": ["ensemble_all"], "isotonic": ["ensemble_all", "anno1_init7_foldall"]}
NAMES = ["temperature_ensemble_all", "isotonic_ensemble_all", "isotonic_anno1_init7_foldall"]


def study_with(**fields) -> Study:
    raw = load_study("phantom").model_dump(mode="json")
    sets = {"train": ["001"], "validation": ["004", "005"], "test": ["007", "008"]}
    raw |= {
        "annotators": raw["annotators"][:2],
        "seeds": [7],
        "sets": sets,
        "groups": {},
        "in_distribution_group": None,
    }
    return Study.model_validate(raw | {"calibrated": CALIBRATED} | fields)


STUDY = study_with()
MODELS = [str(model) for model in STUDY.models]


def predict(objects, layout, model: str, patient: str) -> None:
    """A volume that is too sure of itself, of a patient's own anatomy."""
    rng = np.random.default_rng([ord(letter) for letter in model + patient])
    logits = rng.normal(size=(4, *SHAPE)) * 5
    logits[0] += 6
    powers = np.exp(logits - logits.max(axis=0))
    grid = Grid(SHAPE, np.diag((*reversed(SPACING), 1.0)))
    with SoftmaxWriter(objects, layout.softmax(patient, model), grid, class_names=STUDY.class_names) as writer:
        writer.write(0, (powers / powers.sum(axis=0)).astype(np.float32))


class CalibrationBench(Bench):
    """Stages of a study that calibrates, on a bucket in a folder."""

    def __init__(self, folder: Path):
        super().__init__(folder, STUDY)

    @contextlib.contextmanager
    def scratch(self, subject: str, needed_bytes: int = 0):
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            yield Path(folder)

    def up_to_ensembles(self, patients) -> None:
        self.upload(patients)
        assert all(
            isinstance(one, Stored) for one in self.make(cohort.take_in, cohort.SCAN_CHECKS, patients)[0].values()
        )
        for patient in patients:
            for model in MODELS:
                predict(self.objects, self.layout, model, patient)
        cells = [str(Cell(str(one), p)) for one in STUDY.ensemble_ids for p in patients]
        softmax = self.of(table.SOFTMAX, [str(Cell(model, p)) for model in MODELS for p in patients])
        none = self.of(table.VARIANT_SOFTMAX, [])
        built, _ = self.make(ensemble.build_ensembles, ensemble.CHECKS, cells, softmax=softmax, variant_softmax=none)
        assert all(isinstance(one, Stored) for one in built.values())

    def inputs(self):
        partitions = Partitions.of(self.study)
        return {
            row.name: self.of(row, partitions.fitting_partitions(row.axis))
            for row in table.CALIBRATORS.inputs
            if row.axis
        }

    def fit(self):
        return calibrate.fit_calibrators(self.tools, **self.inputs())

    def score(self, patients, record):
        artefact = Artefact(self.objects, self.layout.calibrators(), "record", "calibrators")
        if record is not None:
            write_json(self.objects, artefact.key, record)
        cells = [str(Cell(name, p)) for name in (*MODELS, *map(str, self.study.ensemble_ids)) for p in patients]
        both = {row.name: self.of(row, cells) for row in (table.SOFTMAX, table.ENSEMBLE_SOFTMAX)}
        made, _ = self.make(
            score.score_patients,
            score.CHECKS,
            patients,
            **both,
            variant_softmax=self.of(table.VARIANT_SOFTMAX, []),
            calibrators=artefact,
            scan=self.of(table.SCAN, patients),
        )
        return made


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> CalibrationBench:
    bench = CalibrationBench(tmp_path_factory.mktemp("bench"))
    bench.up_to_ensembles([*FITTING, TESTS[0]])
    return bench


def test_inputs_are_cells_of_validation_patients_and_of_what_is_calibrated():
    partitions = Partitions.of(STUDY)
    for row in table.CALIBRATORS.inputs:
        mapping = partitions.between(row.axis, None, fits=True)
        assert isinstance(mapping, dg.SpecificPartitionsPartitionMapping)
        assert {key.rpartition("|")[2] for key in mapping.partition_keys} == set(FITTING)
    cells = partitions.fitting_partitions("patient_by_model"), partitions.fitting_partitions("patient_by_ensemble")
    assert [{Cell.of(key).predictor for key in of_axis} for of_axis in cells] == [
        {"anno1_init7_foldall"},
        {"ensemble_all"},
    ]
    nothing = Partitions.of(study_with(calibrated={}))
    assert [nothing.fitting_partitions(row.axis) for row in table.CALIBRATORS.inputs] == [[], [], []]


def test_all_calibrators_are_fitted_on_the_validation_patients(bench):
    record, version, facts, problems = bench.fit()
    # The bench's networks are hardly better than chance: curves say so of each organ whose response stays below 1/2.
    low = [
        f"{name}, {organ}"
        for name in NAMES
        if name.startswith("isotonic")
        for organ in STUDY.class_names[1:]
        if record["calibrators"][name]["curves"][organ]["response"][-1] < 0.5
    ]
    assert low
    assert [one.split(": ")[0] for one in problems] == low
    assert all("no probability of this organ is mapped above" in one for one in problems)
    assert list(record["calibrators"]) == NAMES
    for name in NAMES:
        assert record["calibrators"][name]["patients"] == FITTING
        assert record["calibrators"][name]["of"] == name.partition("_")[2]
        calibrator_of(record["calibrators"][name], name)
    assert record["calibrators"]["temperature_ensemble_all"]["temperature"] > 1.5
    fitted = facts["fitted"]
    assert (fitted["after"] < fitted["before"]).all()
    assert {f"curves of {name}" for name in NAMES} <= set(facts)
    again = bench.fit()
    assert (again[0], again[1]) == (record, version)
    assert len(json.dumps(record)) < 1_000_000


def test_a_patient_who_is_not_predicted_is_left_out_and_named(tmp_path):
    bench = CalibrationBench(tmp_path)
    bench.up_to_ensembles([FITTING[0]])
    record, _, facts, problems = bench.fit()
    assert record["calibrators"]["isotonic_ensemble_all"]["patients"] == [FITTING[0]]
    told = f"ensemble_all is calibrated on 1 of 2 validation patients: {FITTING[1]} (its scan was not taken in)"
    assert told in bench.warnings
    assert f"ensemble_all lacks {FITTING[1]} (its scan was not taken in)" in problems
    assert FITTING[1] in facts["left out"]
    bench.upload([FITTING[1]])
    bench.make(cohort.take_in, cohort.SCAN_CHECKS, [FITTING[1]])
    assert f"ensemble_all lacks {FITTING[1]} (it is not predicted)" in bench.fit()[3]
    bench.objects.delete([item.key for item in bench.objects.list(bench.layout.softmax(FITTING[0], "ensemble_all"))])
    with pytest.raises(
        MissingArtefactError, match=r"none of the 2 validation patients can be used.*launch `study`"
    ) as error:
        bench.fit()
    assert all(patient in str(error.value) for patient in FITTING)


def test_a_study_that_calibrates_nothing_reads_nothing(tmp_path):
    bench = CalibrationBench(tmp_path)
    bench.study = study_with(calibrated={})
    record, version, _, problems = bench.fit()
    assert (record, problems) == ({"calibrators": {}}, [])
    assert version == bench.fit()[1]
    assert bench.objects.bytes_down == 0
    assert table.CALIBRATORS.version(study_with(calibrated={})) == table.CALIBRATORS.version(
        study_with(calibrated={}, sets={"train": ["001"], "validation": ["004"], "test": ["007"]})
    )


@pytest.mark.parametrize(
    ("fields", "changes"),
    [
        ({"calibrated": {"temperature": ["ensemble_all"]}}, True),
        ({"sets": {"train": ["001"], "validation": ["004"], "test": ["007", "008"]}}, True),
        ({"sets": {"train": ["001"], "validation": ["004", "005"], "test": ["007"]}}, False),
        ({"evaluation": {"region": "image"}}, True),
        ({"statistics": {"draws": 500}}, False),
    ],
)
def test_an_edit_of_the_study_changes_the_version_of_what_is_fitted(fields, changes):
    assert (table.CALIBRATORS.version(study_with(**fields)) != table.CALIBRATORS.version(STUDY)) is changes


def test_scores_hold_calibrated_predictors_beside_the_others_which_score_as_before(bench):
    record = bench.fit()[0]
    made = bench.score([TESTS[0]], record)
    assert isinstance(made[TESTS[0]], Stored), made
    scores = bench.of(table.SCORES, [TESTS[0]])[TESTS[0]].table("scores")
    assert list(scores["predictor"].unique()) == STUDY.predictors
    assert set(scores[scores["predictor"].isin(NAMES)]["family"]) == {"calibrated"}
    wide = scores.set_index(["predictor", "metric", "organ", "annotator"])["value"]
    np.testing.assert_array_equal(wide["temperature_ensemble_all"]["dice"], wide["ensemble_all"]["dice"])
    bench.study = study_with(calibrated={})
    try:
        bench.score([TESTS[0]], None)
    finally:
        bench.study = STUDY
    plain = bench.of(table.SCORES, [TESTS[0]])[TESTS[0]].table("scores")
    before = scores[~scores["predictor"].isin(NAMES)].reset_index(drop=True)
    assert plain.equals(before)


def test_scores_without_a_calibrator_say_how_to_get_it(bench):
    record = bench.fit()[0]
    del record["calibrators"][NAMES[1]]
    made = bench.score([TESTS[0]], record)
    assert isinstance(made[TESTS[0]], MissingArtefactError)
    assert NAMES[1] in str(made[TESTS[0]])
    assert "fit_calibrators" in str(made[TESTS[0]])


def test_calibrated_predictors_are_downloaded_as_they_are_scored(bench, tmp_path):
    objects, layout, name, patient = bench.objects, bench.layout, NAMES[1], TESTS[0]
    record = bench.fit()[0]
    write_json(objects, layout.calibrators(), record)

    def fetch(what, probabilities=True):
        return download(
            objects, layout, STUDY, what, [patient], NAMES, tmp_path, lambda _: None, probabilities=probabilities
        )

    def read(file):
        return np.asarray(nib.load(tmp_path / "ensembles" / patient / name / file).dataobj).T

    assert fetch("ensembles").fetched == 2
    assert fetch("predictions").fetched == 1
    source = open_softmax(objects, layout.softmax(patient, "ensemble_all"))
    volume = CalibratedVolume(source, calibrator_of(record["calibrators"][name], name))
    for c, organ in enumerate(STUDY.class_names[1:], 1):
        np.testing.assert_allclose(read(f"probability_{organ}.nii.gz"), volume.slab(0, SHAPE[0])[c], atol=1e-4)
    np.testing.assert_array_equal(read("labels.nii.gz"), volume.labels(0, SHAPE[0]))
    assert not (tmp_path / "ensembles" / patient / name / "softmax.zarr").exists()
    record["calibrators"][name]["curves"]["liver"] = {"probability": [0.0, 1.0], "response": [0.0, 0.0]}
    write_json(objects, layout.calibrators(), record)
    fetch("ensembles")
    assert not read("probability_liver.nii.gz").any()
    objects.delete([layout.calibrators()])
    assert fetch("ensembles").missing == (f"{NAMES[0]} of {patient}", f"{NAMES[1]} of {patient}")


class Lineage:
    """The real definitions on an embedded store, with predictions that were made elsewhere."""

    def __init__(self, study: Study, instance: dg.DagsterInstance):
        self.study, self.instance, self.bucket = study, instance, Bucket()
        self.objects, self.layout = self.bucket.objects(), self.bucket.layout
        self.definitions = build_definitions(study, executor="in_process")
        self.graph = self.definitions.resolve_asset_graph()

    def run(self, job: str, first: str | None = None, last: str | None = None):
        tags = (
            {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last} if first else {}
        )
        done = self.definitions.resolve_job_def(job).execute_in_process(instance=self.instance, tags=tags)
        assert done.success
        return done

    def report(self, row: table.Asset, partitions) -> None:
        reported(self.instance, self.graph, row, partitions)

    def due(self, row: table.Asset) -> list[str | None]:
        return Staleness(self.graph, self.instance).due(dg.AssetKey(row.name))

    def stored(self) -> bytes:
        return self.objects.get(self.layout.calibrators())


@pytest.fixture
def lineage(tmp_path, s3_server, monkeypatch):
    for name, value in {**s3_server.environment(), "CURVAS_SCRATCH": str(tmp_path / "scratch")}.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "scratch").mkdir()
    with dg.DagsterInstance.ephemeral() as instance:
        lineage = Lineage(STUDY, instance)
        yield lineage
        lineage.objects.delete([item.key for item in lineage.objects.list("")])


def test_in_a_real_run_a_validation_patient_without_a_folder_is_left_out(lineage, tmp_path):
    """Its partitions do not exist: nobody has registered it."""
    bench = CalibrationBench(tmp_path)
    bench.up_to_ensembles([FITTING[0]])
    for path in (item for item in (tmp_path / "bucket").rglob("*") if item.is_file()):
        lineage.objects.upload(path.relative_to(tmp_path / "bucket").as_posix(), path)
    for name in ("patient", "test_patient"):
        lineage.instance.add_dynamic_partitions(name, [FITTING[0]])
    lineage.report(table.SCAN, [FITTING[0]])
    lineage.report(table.SOFTMAX, [str(Cell(model, FITTING[0])) for model in MODELS])
    lineage.report(table.ENSEMBLE_SOFTMAX, [str(Cell("ensemble_all", FITTING[0]))])
    done = lineage.run("fit_calibrators")
    (check,) = done.get_asset_check_evaluations()
    assert not check.passed
    assert check.severity is dg.AssetCheckSeverity.WARN
    record = json.loads(lineage.stored())
    assert record["calibrators"]["temperature_ensemble_all"]["patients"] == [FITTING[0]]
    assert lineage.due(table.CALIBRATORS) == []


def test_in_a_real_run_no_test_patient_enters_a_fit_and_scores_follow_it(lineage, tmp_path):
    patients = [*FITTING, *TESTS]
    write_cohort(tmp_path / "cohort", patients=patients, shape=SHAPE, spacing_mm=SPACING, annotators=2, seed=3)
    for path in sorted((tmp_path / "cohort").rglob("*.nii.gz")):
        lineage.objects.upload(lineage.layout.patient_file(path.parent.name, path.name), path)
    lineage.instance.add_dynamic_partitions("patient", patients)
    lineage.instance.add_dynamic_partitions("test_patient", patients)
    key = dg.AssetKey("calibrators")
    missing = Staleness(lineage.graph, lineage.instance).missing_parents(key, None)
    assert {name.rpartition("|")[2].rpartition(" ")[2] for name in missing} == set(FITTING)
    lineage.run("take_in_scans", FITTING[0], TESTS[1])
    lineage.run("select_test_scans", FITTING[0], TESTS[1])
    for patient in patients:
        for model in MODELS:
            predict(lineage.objects, lineage.layout, model, patient)
    lineage.report(table.SOFTMAX, [str(Cell(model, patient)) for model in MODELS for patient in patients])
    ensembles = [str(one) for one in STUDY.ensemble_ids]
    lineage.run("build_ensembles", str(Cell(ensembles[0], patients[0])), str(Cell(ensembles[-1], patients[-1])))
    assert Staleness(lineage.graph, lineage.instance).ready(key, None)

    lineage.run("fit_calibrators")
    first = lineage.stored()
    assert lineage.due(table.CALIBRATORS) == []
    lineage.run("score_patients", FITTING[0], TESTS[1])
    assert lineage.due(table.SCORES) == []
    assert lineage.objects.head(f"{lineage.layout.scores(TESTS[0])}/manifest.json") is not None

    for item in [*lineage.objects.list(""), *lineage.objects.list("data/")]:
        if any(patient in item.key for patient in TESTS) and "/scores/" not in item.key:
            lineage.objects.put(item.key, b"destroyed")
    lineage.run("fit_calibrators")
    assert lineage.stored() == first
    assert lineage.due(table.SCORES) == []

    changed = str(Cell("ensemble_all", FITTING[0]))
    lineage.report(table.ENSEMBLE_SOFTMAX, [str(Cell("ensemble_all", TESTS[0]))])
    assert lineage.due(table.CALIBRATORS) == []  # of a test patient: nothing to it
    predict(lineage.objects, lineage.layout, MODELS[0], FITTING[0])
    lineage.report(table.ENSEMBLE_SOFTMAX, [changed])
    assert lineage.due(table.CALIBRATORS) == [None]
    lineage.instance.report_runless_asset_event(dg.AssetMaterialization(key, tags={"dagster/data_version": "another"}))
    assert set(TESTS) <= set(lineage.due(table.SCORES))


@pytest.fixture(scope="module")
def graph():
    return build_definitions(STUDY, executor="in_process").resolve_asset_graph()


def reported(instance, graph, row, partitions) -> None:
    definition = graph.assets_def_for_key(dg.AssetKey(row.name))
    tags = provenance_tags(instance, definition, "here")
    for one in partitions:
        instance.report_runless_asset_event(cell_event(definition, one, Stored("key", f"of {one}"), {}, tags))


def everything_above(instance, graph, patients) -> None:
    """What scores of some patients are made from, but for calibrators."""
    for name in ("patient", "test_patient"):
        instance.add_dynamic_partitions(name, patients)
    reported(instance, graph, table.SCAN, patients)
    reported(instance, graph, table.TEST_SCAN, patients)
    for row, names in ((table.SOFTMAX, MODELS), (table.ENSEMBLE_SOFTMAX, [str(one) for one in STUDY.ensemble_ids])):
        reported(instance, graph, row, [str(Cell(name, patient)) for name in names for patient in patients])
    reported(instance, graph, table.VIEWER_PREVIEW, patients)


def test_the_sensor_fits_once_all_validation_patients_are_predicted_and_new_patients_then_find_it(graph):
    def asked(instance):
        requests = list(due_for_patients(STUDY, Staleness(graph, instance), [TESTS[0]], {}))
        return [(request.job_name, request.run_key) for request in requests]

    with dg.DagsterInstance.ephemeral() as instance:
        everything_above(instance, graph, [TESTS[0], FITTING[0]])
        instance.add_dynamic_partitions("patient", [FITTING[1]])
        reported(instance, graph, table.SCAN, [FITTING[1]])
        assert asked(instance) == []  # a validation patient is taken in, but not yet predicted, and scores wait
        everything_above(instance, graph, [FITTING[1]])
        ((job, first),) = asked(instance)
        assert job == "fit_calibrators"
        assert asked(instance) == [(job, first)]  # the same key: the daemon launches it once
        fitted = dg.AssetMaterialization("calibrators", tags={"dagster/data_version": "1"})
        instance.report_runless_asset_event(fitted)
        assert [job for job, _ in asked(instance)] == ["score_patients"]


def test_at_night_calibrators_are_fitted_again_before_patients_are_scored(graph):
    with dg.DagsterInstance.ephemeral() as instance:
        everything_above(instance, graph, [*FITTING, TESTS[0]])
        launched = []

        def run(stage, scope):
            launched.append(stage)
            return []

        def fresh():
            return Staleness(graph, instance)

        nightly.work(fresh, run, [TESTS[0]], print, predict=False)
        assert launched == [
            "take_in_scans",
            "select_test_scans",
            "build_ensembles",
            "fit_calibrators",
            "score_patients",
        ]
        reported(instance, graph, table.SCORES, [TESTS[0]])
        assert nightly.concerned(fresh()) == []
        instance.report_runless_asset_event(dg.AssetMaterialization("calibrators", tags={"dagster/data_version": "2"}))
        assert nightly.concerned(fresh()) == [*FITTING, TESTS[0]]  # those of validation are scored for the first time
