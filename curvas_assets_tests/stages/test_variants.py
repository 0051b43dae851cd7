"""Claims proved here, with real tiny networks on the CPU: one model with two snapshots, trained with mirroring.

- From predictions to scores: flips and snapshots are stored as variants, averaged as members, scored as ensembles and not by
  themselves; their mutual information is above 0, and nothing but the variants of the study is read.
- The volumes are those that one prediction after the other gives, patient and preprocessing are fetched once, and the ensemble of
  flips is their mean.
- Steps for models and flips fetch the model's own weights alone.
- A model that keeps too few snapshots is an error of these cells alone; so is one that is not the model that made the volume of
  the model itself, one whose own volume was uploaded, and one that has seen the patient.
- Each outcome tells its device, model and variant, so that the cost of a variant can be told.
- An ensemble without one of its variants is refused; those beside it are stored.
- Folds of a label and seed are an ensemble like any other.
"""

import json
import shutil

import numpy as np
import pytest

from benchmarks import prediction as benchmark
from curvas_assets.errors import MissingArtefactError, SegmentationError
from curvas_assets.segmentation import Predictor, train_model
from curvas_assets.stages import ensemble, predict, score, table
from curvas_assets.stages.checks import StepChecks
from curvas_assets.stages.stored import Stored
from curvas_assets.storage import directories
from curvas_assets.storage.layout import Cell, patient_by_patient
from curvas_assets.storage.softmax import SoftmaxWriter, open_softmax
from curvas_assets.study import Study, load_study
from curvas_assets_tests.stages import test_stages

PATIENT = "PHANTOM007"
RAW = load_study("phantom").model_dump(mode="json")
STUDY = Study.model_validate(
    RAW
    | {"sets": {"train": ["001", "002", "003"], "test": ["007"]}, "groups": {}, "in_distribution_group": None}
    | {"seeds": [1, 2], "annotators": RAW["annotators"][:1]}
    | {"plans": RAW["plans"] | {"patch_size": [16, 24, 24], "features_per_stage": [4, 8, 16]}}
    | {
        "training": RAW["training"]
        | {
            "epochs": 4,
            "iterations_per_epoch": 6,
            "validation_iterations_per_epoch": 2,
            "mirroring": True,
            "snapshots": 2,
        },
        "cheap_ensembles": {"flips": ["anno1_init1_foldall"], "snapshots": ["anno1_init1_foldall"]},
    }
)
MODELS = [str(model) for model in STUDY.models]
FLIPS, SNAPSHOTS = "ensemble_flips-anno1-1", "ensemble_snapshots-anno1-1"
CELLS = patient_by_patient(str(Cell(str(variant), PATIENT)) for variant in STUDY.variants)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A bucket with one scan, and two models that share a training; their own volumes are stored."""
    folder = tmp_path_factory.mktemp("study")
    benchmark.set_up(folder, STUDY, (20, 40, 36), (9, 6.5, 7))
    tools = benchmark.tools_of(STUDY, folder)
    for number, model in enumerate(STUDY.models):
        training = STUDY.training.model_copy(update={} if not number else {"epochs": 1, "snapshots": 0})
        shutil.rmtree(folder / "models" / str(model), ignore_errors=True)
        (folder / "models").mkdir(exist_ok=True)
        into = folder / "models" / str(model)
        train_model(STUDY.model_copy(update={"training": training}), model, folder / "datasets/anno1", into)
        directories.write_directory(tools.objects, tools.layout.model(str(model)), into)
    cells = [str(Cell(model, PATIENT)) for model in MODELS]
    trained, scans = (
        benchmark.artefacts(tools, row, keys)
        for row, keys in ((table.TRAINED_MODEL, MODELS), (table.TEST_SCAN, [PATIENT]))
    )
    checks = StepChecks(*predict.CHECKS)
    for cell, outcome in predict.predict(tools, cells, checks, trained_model=trained, test_scan=scans):
        assert isinstance(outcome, Stored), (cell, outcome)
    return folder


class Step:
    """Stages on a copy of the bucket."""

    def __init__(self, made, folder):
        shutil.copytree(made / "bucket", folder / "bucket")
        self.folder, self.tools = folder, benchmark.tools_of(STUDY, folder)

    def of(self, row, partitions):
        return benchmark.artefacts(self.tools, row, partitions)

    def variants(self, cells=CELLS):
        return dict(
            predict.predict_variants(
                self.tools,
                cells,
                StepChecks(*predict.CHECKS),
                softmax=self.of(table.SOFTMAX, [str(Cell(model, PATIENT)) for model in MODELS]),
                test_scan=self.of(table.TEST_SCAN, [PATIENT]),
            )
        )

    def ensembles(self, names):
        checks = StepChecks(*ensemble.CHECKS)
        built = ensemble.build_ensembles(
            self.tools,
            [str(Cell(name, PATIENT)) for name in names],
            checks,
            softmax=self.of(table.SOFTMAX, [str(Cell(model, PATIENT)) for model in MODELS]),
            variant_softmax=self.of(table.VARIANT_SOFTMAX, CELLS),
        )
        return {Cell.of(cell).predictor: outcome for cell, outcome in built}, checks

    def volume(self, predictor):
        volume = open_softmax(self.tools.objects, self.tools.layout.softmax(PATIENT, predictor))
        return volume.slab(0, volume.shape[1])


@pytest.fixture
def step(made, tmp_path, monkeypatch):
    """Without pictures, which take most of the time of so small a cell."""
    monkeypatch.setattr(predict, "preview_softmax", lambda volume, title: None)
    return Step(made, tmp_path)


def test_from_variants_to_scores(step, made, monkeypatch):
    fetched, preprocessed = [], []

    class Watched(Predictor):
        def _preprocess(self, scan, model):
            if model.sharing not in scan.preprocessed:
                preprocessed.append(model.name)
            return super()._preprocess(scan, model)

    fetch = predict.fetch_files
    monkeypatch.setattr(predict, "Predictor", Watched)
    monkeypatch.setattr(predict, "fetch_files", lambda *a: (fetched.append(a[1]["patient"]), fetch(*a))[1])
    outcomes = step.variants()
    assert list(outcomes) == CELLS
    assert len(CELLS) == 8 + 2
    assert fetched == [PATIENT]
    assert len(preprocessed) == 1
    for cell, outcome in outcomes.items():
        assert isinstance(outcome, Stored), outcome
        assert outcome.metadata["device"] == "cpu"
        assert outcome.metadata["model"] == MODELS[0]
        assert f"{MODELS[0]}_{outcome.metadata['variant']}" == Cell.of(cell).predictor
        assert outcome.key == table.VARIANT_SOFTMAX.place(step.tools.layout, cell)
    assert len({outcome.data_version for outcome in outcomes.values()}) == len(CELLS)
    plain = Predictor(STUDY)
    for variant in ("flip5", "snapshot2"):
        scan = plain.open(made / "tests" / PATIENT / STUDY.image, PATIENT)
        slabs = plain.predict(scan, made / "models" / MODELS[0], variant=variant).slabs
        expected = np.concatenate([slab for _, slab in slabs], axis=1)
        np.testing.assert_allclose(step.volume(f"{MODELS[0]}_{variant}"), expected, atol=test_stages.ROUNDING)

    built, _ = step.ensembles([str(one) for one in STUDY.ensemble_ids])
    assert set(built) == {"ensemble_all", FLIPS, SNAPSHOTS}
    for name, outcome in built.items():
        assert isinstance(outcome, Stored), outcome
        assert outcome.metadata["mean mutual information (nats)"] > 1e-4, name
        expected = np.mean([step.volume(str(member)) for member in STUDY.members(name)], axis=0)
        np.testing.assert_allclose(step.volume(name), expected, atol=test_stages.ROUNDING)

    checks = StepChecks(*score.CHECKS)
    ((_, scored),) = score.score_patients(
        step.tools,
        [PATIENT],
        checks,
        softmax=step.of(table.SOFTMAX, [str(Cell(model, PATIENT)) for model in MODELS]),
        variant_softmax=step.of(table.VARIANT_SOFTMAX, CELLS),
        ensemble_softmax=step.of(table.ENSEMBLE_SOFTMAX, [str(Cell(str(e), PATIENT)) for e in STUDY.ensemble_ids]),
        calibrators=test_stages.no_calibrators(step.tools.objects),
        scan=step.of(table.SCAN, [PATIENT]),
    )
    assert isinstance(scored, Stored), scored
    assert checks["scores_are_sound"].found == {PATIENT: []}
    rows = step.of(table.SCORES, [PATIENT])[PATIENT].table("scores")
    assert set(rows["predictor"]) == set(STUDY.predictors)
    values = rows.groupby(["predictor", "metric"])["value"].mean()
    for name in (FLIPS, SNAPSHOTS):
        assert values[name, "mutual_information"] > 0
        assert values[name, "expected_entropy"] > 0
        found = values[name, "expected_entropy"] + values[name, "mutual_information"]
        assert found == pytest.approx(values[name, "predictive_entropy"], abs=1e-6)
    assert set(rows[rows["predictor"] == FLIPS]["family"]) == {"flips"}


def test_steps_fetch_no_snapshots_for_models_and_flips(step, monkeypatch):
    held = []
    opened = Predictor.load

    def load(self, folder, variant=""):
        held.append({path.name for path in (folder / "fold_all").iterdir()})
        return opened(self, folder, variant)

    monkeypatch.setattr(Predictor, "load", load)
    best, snapshots = "checkpoint_best.pth", {"checkpoint_snapshot1.pth", "checkpoint_snapshot2.pth"}
    flip, snapshot = (str(Cell(f"{MODELS[0]}_{name}", PATIENT)) for name in ("flip1", "snapshot1"))
    assert isinstance(step.variants([flip])[flip], Stored)
    assert held
    assert all(found == {best} for found in held)
    held.clear()
    assert isinstance(step.variants([snapshot])[snapshot], Stored)
    assert all(found == {best, *snapshots} for found in held)
    assert isinstance(step.variants([flip, snapshot])[snapshot], Stored)


def test_what_cannot_be_predicted_is_an_error_of_its_cells_alone(step, made, tmp_path):
    layout, objects = step.tools.layout, step.tools.objects
    cells = [str(Cell(f"{model}_{variant}", PATIENT)) for model in MODELS for variant in ("flip1", "snapshot1")]
    outcomes = step.variants(cells)
    assert [isinstance(outcomes[cell], Stored) for cell in cells] == [True, True, True, False]
    assert "anno1_init2_foldall_snapshot1: loading the snapshot failed: the model keeps no snapshots" in str(
        outcomes[cells[3]]
    )
    # Another model stands there by now.
    changed = shutil.copytree(made / "models" / MODELS[1], tmp_path / "changed")
    (changed / "dataset_fingerprint.json").write_text("{}")
    directories.write_directory(objects, layout.model(MODELS[1]), changed)
    refused = step.variants(cells)
    assert isinstance(refused[cells[0]], Stored)
    assert isinstance(refused[cells[2]], SegmentationError)
    assert "Materialise softmax of this patient and model again" in str(refused[cells[2]])
    # The model's own volume was uploaded.
    volume = open_softmax(objects, layout.softmax(PATIENT, MODELS[1]))
    with SoftmaxWriter(
        objects,
        layout.softmax(PATIENT, MODELS[1]),
        volume.grid,
        class_names=volume.class_names,
        provenance={"patient": PATIENT, "predictor": MODELS[1], "origin": "not told"},
    ) as writer:
        writer.write(0, volume.slab(0, volume.shape[1]))
    assert "was uploaded and does not say which version" in str(step.variants(cells)[cells[2]])
    # The model has seen the patient.
    record = json.loads((changed / "training.json").read_text())
    (changed / "training.json").write_text(json.dumps(record | {"trained_on": [PATIENT]}))
    directories.write_directory(objects, layout.model(MODELS[0]), changed)
    assert "was trained on this patient" in str(step.variants(cells[:1])[cells[0]])


def test_an_ensemble_without_one_of_its_variants_is_refused_and_others_are_stored(step):
    assert all(isinstance(one, Stored) for one in step.variants([c for c in CELLS if "flip6" not in c]).values())
    built, checks = step.ensembles(["ensemble_all", FLIPS, SNAPSHOTS])
    assert isinstance(built[FLIPS], MissingArtefactError)
    assert f"variant_softmax of {MODELS[0]}_flip6" in str(built[FLIPS])
    assert isinstance(built["ensemble_all"], Stored)
    assert isinstance(built[SNAPSHOTS], Stored)
    found = checks["members_are_complete"].found
    assert {Cell.of(cell).predictor: bool(problems) for cell, problems in found.items()} == {
        "ensemble_all": False, FLIPS: True, SNAPSHOTS: False}  # fmt: skip


def test_folds_of_a_label_and_seed_are_averaged_and_scored(tmp_path):
    """From files to scores, with made-up predictions."""
    raw = test_stages.STUDY.model_dump(mode="json") | {"seeds": [1], "folds": [0, 1]}
    raw |= {"sets": {"train": [1, 2, 3], "test": [7]}, "cheap_ensembles": {"folds": True}}
    study = Study.model_validate(raw)
    bench = test_stages.Bench(tmp_path, study)
    bench.upload([PATIENT])
    bench.make(test_stages.cohort.take_in, test_stages.cohort.SCAN_CHECKS, [PATIENT])
    models = [str(model) for model in study.models]
    arrays = {model: bench.predict(model, PATIENT) for model in models}
    members = bench.of(table.SOFTMAX, [str(Cell(model, PATIENT)) for model in models])
    cells = [str(Cell(str(one), PATIENT)) for one in study.ensemble_ids]
    built, _ = bench.make(
        ensemble.build_ensembles, ensemble.CHECKS, cells, softmax=members, variant_softmax=test_stages.NONE
    )
    assert all(isinstance(one, Stored) for one in built.values())
    means = bench.of(table.ENSEMBLE_SOFTMAX, cells)
    name = "ensemble_folds-anno2-1"
    expected = np.mean([arrays["anno2_init1_fold0"], arrays["anno2_init1_fold1"]], axis=0)
    found = means[str(Cell(name, PATIENT))].volume().slab(0, test_stages.SHAPE[0])
    np.testing.assert_allclose(found, expected, atol=test_stages.ROUNDING)
    scored, _ = bench.score_uncalibrated(members, means, bench.of(table.SCAN, [PATIENT]))
    assert isinstance(scored[PATIENT], Stored)
    rows = bench.of(table.SCORES, [PATIENT])[PATIENT].table("scores")
    assert set(rows["predictor"]) == set(study.predictors)
    of_folds = rows[rows["predictor"] == name]
    assert set(of_folds["family"]) == {"folds"}
    assert of_folds.set_index("metric").loc["mutual_information", "value"] > 0
