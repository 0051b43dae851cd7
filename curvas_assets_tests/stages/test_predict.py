"""Claims proved here, with the untrained networks of the benchmark.

- A step's volumes are, bit for bit, those of one prediction after the other; so are those that are resampled and encoded
  by the code for GPUs, and those of models of different preprocessing that take turns. They come in the cells' order.
- Models with equal preprocessing share it, all models share the fetched patient and one network; a scan that no model
  needs any more is let go. At most two patients' files are in scratch, also if all of their cells fail, and at most one model
  is loaded while the network is at work.
- Steps of different cells overlap only on a GPU and where the memory for it is there; with less, nothing does, and the volumes are the
  same, also if what is held is no longer free; with less than one cell needs, it fails and says so.
- A patient that cannot be fetched or read, a network that fails or gives no probabilities, an export or a store that fails:
  each fails its cells alone, and what is wrong with probabilities is a verdict of the check.
- After the end, a failure, or a caller who stops, no thread is left, nnU-Net's own included, and no scratch; what was
  announced is stored.
"""

import json
import shutil
import threading
from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest
import torch

from benchmarks import prediction as benchmark
from curvas_assets.errors import PatientError, SegmentationError, SoftmaxError, StorageError
from curvas_assets.segmentation import Predictor, StepMemory, estimate_memory
from curvas_assets.segmentation.export import Export
from curvas_assets.segmentation.prediction import estimate_steps
from curvas_assets.stages import predict, table
from curvas_assets.stages.checks import StepChecks
from curvas_assets.stages.stored import Stored
from curvas_assets.storage.layout import Cell, patient_by_patient
from curvas_assets.storage.metering import MeteredObjects
from curvas_assets.storage.softmax import SoftmaxWriter, open_softmax
from curvas_assets.study import Study, load_study

PATIENTS = ["PHANTOM007", "PHANTOM008"]
RAW = load_study("phantom").model_dump(mode="json")
STUDY = Study.model_validate(
    RAW
    | {"seeds": [1], "sets": {"train": [1], "test": [7, 8]}, "groups": {}, "in_distribution_group": None}
    | {"plans": RAW["plans"] | {"patch_size": [16, 24, 24], "features_per_stage": [4, 8, 16]}}
)
MODELS = [str(model) for model in STUDY.models]
CELLS = patient_by_patient(str(Cell(model, patient)) for model in MODELS for patient in PATIENTS)
PATIENCE = 60


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A bucket with two scans and three models, of which the first two preprocess equally."""
    folder = tmp_path_factory.mktemp("study")
    only = STUDY.model_copy(update={"annotators": STUDY.annotators[:1]})
    benchmark.set_up(folder, only, (20, 40, 36), (9, 6.5, 7))
    tools, first = benchmark.tools_of(STUDY, folder), benchmark.results_of(folder, 0)
    for number, model in enumerate(STUDY.models):
        into = folder / "models" / str(model)
        shutil.copytree(first, into)
        state = torch.load(into / "fold_all/checkpoint_best.pth", weights_only=True)
        torch.manual_seed(number)
        weights = {name: w + 0.1 * torch.randn(w.shape) for name, w in state["network_weights"].items()}
        torch.save(state | {"network_weights": weights}, into / "fold_all/checkpoint_best.pth")
        if number == 2:
            plans = json.loads((into / "plans.json").read_text())
            plans["foreground_intensity_properties_per_channel"]["0"]["mean"] += 20
            (into / "plans.json").write_text(json.dumps(plans))
        benchmark.directories.write_directory(tools.objects, tools.layout.model(str(model)), into)
    return folder


class Step:
    """One step on a copy of the bucket."""

    def __init__(self, made, folder):
        shutil.copytree(made / "bucket", folder / "bucket")
        self.folder, self.checks = folder, StepChecks(*predict.CHECKS)
        self.tools = benchmark.tools_of(STUDY, folder)

    def run(self, cells=CELLS):
        models, patients = [sorted({getattr(Cell.of(c), part) for c in cells}) for part in ("predictor", "patient")]
        return predict.predict(
            self.tools,
            cells,
            self.checks,
            trained_model=benchmark.artefacts(self.tools, table.TRAINED_MODEL, models),
            test_scan=benchmark.artefacts(self.tools, table.TEST_SCAN, patients),
        )

    def versions(self):
        return {cell: outcome.data_version for cell, outcome in self.run()}

    def scratch(self):
        return [path.name for path in self.folder.iterdir() if path.name != "bucket"]


@pytest.fixture
def step(made, tmp_path, monkeypatch):
    """Without pictures, which take most of the time of so small a cell."""
    monkeypatch.setattr(predict, "preview_softmax", lambda volume, title: None)
    monkeypatch.setattr(Predictor, "runs_on_gpu", True)
    return Step(made, tmp_path)


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    pools = {thread for thread in threading.enumerate() if thread.name.startswith("curvas-decode")}
    assert set(threading.enumerate()) - before - pools == set()


@pytest.fixture(scope="module")
def expected(made, tmp_path_factory):
    """The versions of volumes that are made one after the other, from slabs of probabilities."""
    tools, found = benchmark.tools_of(STUDY, tmp_path_factory.mktemp("plain")), {}
    for cell in CELLS:
        model, patient = Cell.of(cell)
        predictor = Predictor(STUDY)
        prediction = predictor.predict(
            predictor.open(made / "tests" / patient / STUDY.image, patient), made / "models" / model
        )
        with SoftmaxWriter(tools.objects, cell, prediction.grid, class_names=STUDY.class_names) as writer:
            for z0, slab in prediction.slabs:
                writer.write(z0, slab)
        found[cell] = writer.facts.version
    assert len(set(found.values())) == len(CELLS)
    return found


def test_volumes_are_those_of_one_after_the_other_and_come_in_order(step, expected):
    versions = step.versions()
    assert versions == expected
    assert list(versions) == CELLS
    assert step.scratch() == []


def test_so_are_they_if_models_of_different_preprocessing_take_turns(step, expected):
    cells = [str(Cell(MODELS[i], patient)) for patient in PATIENTS for i in (0, 2, 1)]
    assert {cell: outcome.data_version for cell, outcome in step.run(cells)} == expected
    assert step.scratch() == []


def test_so_are_those_of_the_code_for_gpus(step, expected, monkeypatch):
    monkeypatch.setattr(predict, "Predictor", partial(Predictor, export_device="cpu"))
    assert step.versions() == expected


def test_patients_preprocessing_and_networks_are_shared_and_scans_let_go(step, monkeypatch):
    fetched, preprocessed, opened, predictors = [], [], [], []

    class Watched(Predictor):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            predictors.append(self)

        def open(self, image, patient):
            opened.append(super().open(image, patient))
            return opened[-1]

        def _preprocess(self, scan, model):
            if model.sharing not in scan.preprocessed:
                preprocessed.append((scan.patient, model.name))
            found = super()._preprocess(scan, model)
            assert sum(len(one.preprocessed) for one in opened) <= 2
            return found

    fetch = predict.fetch_files
    monkeypatch.setattr(predict, "Predictor", Watched)
    monkeypatch.setattr(predict, "fetch_files", lambda *a: (fetched.append(a[1]["patient"]), fetch(*a))[1])
    assert len(step.versions()) == len(CELLS)
    assert fetched == PATIENTS
    assert preprocessed == [(patient, model) for patient in PATIENTS for model in (MODELS[0], MODELS[2])]
    assert len({id(model.predictor.network) for model in predictors[0]._models.values()}) == 1
    assert [len(one.preprocessed) for one in opened] == [0, 1]


def test_at_most_two_patients_files_are_there_though_no_cell_reaches_the_network(step, monkeypatch):
    there = []

    class Watched(Predictor):
        def open(self, images, patient):
            there.append({path for path in images[0].parent.parent.iterdir() if path.name != "models"})
            return super().open(images, patient)

        def _preprocess(self, scan, model):
            raise SegmentationError("reading the scan", scan.patient, "it is damaged", "Upload it again.")

    monkeypatch.setattr(predict, "Predictor", Watched)
    cells = [str(Cell(model, patient)) for model in MODELS for patient in PATIENTS]  # fetched for each cell again
    assert [type(outcome) for _, outcome in step.run(cells)] == [SegmentationError] * len(cells)
    assert [len(folders) for folders in there] == [1] + [2] * (len(cells) - 1)


def test_at_most_one_model_is_loaded_while_the_network_is_at_work(step, expected, monkeypatch):
    third_is_wanted, networks, before = threading.Event(), [], []

    class Watched(Predictor):
        def _read(self, folder, snapshot):
            before.append(len(networks))
            return super()._read(folder, snapshot)

        def _logits(self, model, data, proceed):
            assert third_is_wanted.wait(PATIENCE)
            found = super()._logits(model, data, proceed)
            networks.append(model.name)
            return found

    class Cells(predict._Cells):
        def _fetched_model(self, model, turn):
            if model == MODELS[2]:
                third_is_wanted.set()
            return super()._fetched_model(model, turn)

    monkeypatch.setattr(predict, "Predictor", Watched)
    monkeypatch.setattr(predict, "_Cells", Cells)
    assert step.versions() == expected
    assert len(before) == len(MODELS)
    assert all(count >= index - 1 for index, count in enumerate(before)), before


@pytest.mark.parametrize("on_gpu", [True, False])
def test_memory_for_one_suffices_though_inputs_that_are_held_are_not_free(step, expected, monkeypatch, on_gpu):
    opened = []

    class Watched(Predictor):
        def open(self, image, patient):
            opened.append(super().open(image, patient))
            return opened[-1]

        def available_bytes(self):
            steps = estimate_steps(opened[0].grid, STUDY.plans.spacing_mm, len(STUDY.class_names))
            return steps.alone - steps.prepared * sum(len(scan.preprocessed) for scan in opened)

    monkeypatch.setattr(Predictor, "runs_on_gpu", on_gpu)
    monkeypatch.setattr(predict, "Predictor", Watched)
    assert step.versions() == expected


@pytest.mark.parametrize("room", ["for all", "for one", "no GPU"])
def test_steps_overlap_only_where_memory_suffices(step, expected, monkeypatch, room):
    """With room, the first volume is not finished before the next cell is computed and the next scan prepared."""
    scan = Predictor(STUDY).open(step.folder / "bucket/data/PHANTOM007/image.nii.gz", "PHANTOM007")
    needed = estimate_memory(scan.grid, STUDY.plans.spacing_mm, len(STUDY.class_names))
    lock, under_way, together, networks = threading.Lock(), [], set(), []
    second_network, second_scan = threading.Event(), threading.Event()

    @contextmanager
    def noted(name):
        with lock:
            under_way.append(name)
            together.add(tuple(sorted(under_way)))
        yield
        with lock:
            under_way.remove(name)

    class Watched(Predictor):
        def _preprocess(self, scan, model):
            if (found := scan.preprocessed.get(model.sharing)) is not None:
                return found
            with noted("prepare"):
                if model.name == MODELS[2]:
                    second_scan.set()
                return super()._preprocess(scan, model)

        def _logits(self, model, data, proceed):
            with noted("compute"):
                networks.append(model.name)
                if len(networks) == 2:
                    second_network.set()
                return super()._logits(model, data, proceed)

    class Cells(predict._Cells):
        def finish(self, cell, computed, turn):
            with noted("finish"):
                if room == "for all" and cell == CELLS[0]:
                    assert second_network.wait(PATIENCE)
                    assert second_scan.wait(PATIENCE)
                return super().finish(cell, computed, turn)

    memory = needed if room == "for one" else 1 << 40
    monkeypatch.setattr(Predictor, "runs_on_gpu", room != "no GPU")
    monkeypatch.setattr(predict, "Predictor", partial(Watched, memory_bytes=memory))
    monkeypatch.setattr(predict, "_Cells", Cells)
    assert step.versions() == expected
    assert len(networks) == len(CELLS)
    if room != "for all":
        assert together == {("prepare",), ("compute",), ("finish",)}
    else:
        assert ("compute", "finish") in together


def test_a_cell_whose_input_was_let_go_waits_until_it_can_be_made_again(step, monkeypatch):
    asked = []

    class Watched(Predictor):
        def predict(self, scan, model_folder, *, variant="", checked=False, proceed=lambda: None):
            asked.append(checked)

    class Waiting:
        index = 1

        def until_finished(self, count):
            asked.append(f"wait for {count}")

        def go_on(self):
            """Never stopped."""

    monkeypatch.setattr(predict, "Predictor", partial(Watched, memory_bytes=50))
    cells = predict._Cells(step.tools, step.folder, None, step.checks, {}, {})
    scan = Predictor(STUDY).open(step.folder / "bucket/data/PHANTOM007/image.nii.gz", "PHANTOM007")
    memory = StepMemory(preparing=60, prepared=10, window=20, export=0, slabs=5)
    ready = predict._Ready(predict._Preparation(scan, "one", 0, memory), step.folder, "")
    cells.compute(CELLS[1], ready, Waiting())
    assert asked == ["wait for 1", False]
    scan.preprocessed["one"] = None
    cells.compute(CELLS[1], ready, Waiting())
    assert asked == ["wait for 1", False, True]


def test_with_less_memory_than_one_cell_needs_each_fails_and_says_so(step, monkeypatch):
    monkeypatch.setattr(predict, "Predictor", partial(Predictor, memory_bytes=1 << 20))
    for cell, outcome in step.run(CELLS[:2]):
        assert isinstance(outcome, SegmentationError), cell
        assert "GiB of memory are needed" in str(outcome)


class Breaking(MeteredObjects):
    """A store that refuses to put below a key."""

    def __init__(self, objects, key):
        super().__init__(objects)
        self.key = key

    def put(self, key, content, *, only_if_absent=False):
        if key.startswith(self.key):
            raise StorageError("storing", key, "it is full", "Free some space.")
        return super().put(key, content, only_if_absent=only_if_absent)


def _break(step, what, monkeypatch):
    """Break one thing; the cells that fail by it, and with which error."""
    patient, cell = PATIENTS[0], CELLS[1]
    of_patient = [c for c in CELLS if Cell.of(c).patient == patient]
    scan = step.tools.layout.patient_file(patient, STUDY.image)
    export, logits = Export.encoded, Predictor._logits

    def broken_export(self, device):
        yield from () if self.subject == "{} of {}".format(*Cell.of(cell)) else export(self, device)
        if self.subject == "{} of {}".format(*Cell.of(cell)):
            raise OSError("broken export")

    def broken_network(self, model, data, proceed):
        def tile():
            proceed()
            if model.name == Cell.of(cell).predictor:
                raise ZeroDivisionError("broken network")

        return logits(self, model, data, tile)

    def no_number(self, model, data, proceed):
        found = logits(self, model, data, proceed)
        return found * float("nan") if model.name == Cell.of(cell).predictor else found

    of_model = [c for c in CELLS if Cell.of(c).predictor == Cell.of(cell).predictor]
    if what == "fetch":
        step.tools.objects.put(scan, b"another file")
        return of_patient, PatientError
    if what == "preprocessing":
        preprocess = Predictor._preprocess

        def broken(self, scan, model):
            if scan.patient == patient:
                raise SegmentationError("reading the scan", patient, "it is damaged", "Upload it again.")
            return preprocess(self, scan, model)

        monkeypatch.setattr(Predictor, "_preprocess", broken)
        return of_patient, SegmentationError
    if what == "network":
        monkeypatch.setattr(Predictor, "_logits", broken_network)
        return of_model, ZeroDivisionError
    if what == "probabilities":
        monkeypatch.setattr(Predictor, "_logits", no_number)
        return of_model, SoftmaxError
    if what == "export":
        monkeypatch.setattr(Export, "encoded", broken_export)
        return [cell], OSError
    model, patient = Cell.of(cell)
    store = Breaking(step.tools.objects.objects, step.tools.layout.softmax(patient, model))
    object.__setattr__(step.tools, "objects", store)
    return [cell], StorageError


@pytest.mark.parametrize("what", ["fetch", "preprocessing", "network", "probabilities", "export", "store"])
def test_a_failure_is_that_of_its_cells(step, expected, monkeypatch, what):
    failing, kind = _break(step, what, monkeypatch)
    outcomes = dict(step.run())
    assert list(outcomes) == CELLS
    for cell, outcome in outcomes.items():
        if cell in failing:
            assert isinstance(outcome, kind), outcome
        else:
            assert isinstance(outcome, Stored), outcome
            assert outcome.data_version == expected[cell]
    found = step.checks["sums_to_one"].found
    assert [cell for cell in found if found[cell]] == (failing if what == "probabilities" else [])
    assert step.scratch() == []


def test_a_caller_who_stops_keeps_what_was_announced_and_leaves_nothing_behind(step, expected, monkeypatch):
    """It stops while a network is at work, which ends at its next tile."""
    logits, computing = Predictor._logits, threading.Event()

    def waiting(self, model, data, proceed):
        def tile():
            if computing.is_set():
                while True:  # until the caller stops
                    proceed()
            proceed()

        if data.shape and model.name == MODELS[1]:
            computing.set()
        return logits(self, model, data, tile)

    monkeypatch.setattr(Predictor, "_logits", waiting)
    outcomes = step.run()
    cell, stored = next(outcomes)
    assert computing.wait(PATIENCE)
    outcomes.close()
    assert (cell, stored.data_version) == (CELLS[0], expected[CELLS[0]])
    volume = open_softmax(step.tools.objects, stored.key)
    np.testing.assert_allclose(volume.slab(0, 4).sum(axis=0), 1, atol=1e-6)
    assert step.scratch() == []
