"""Claims proved here, on Dagster's own records of instant, dummy computations.

- What is to come is what is missing or stale, and what is made from that; what was uploaded costs nothing.
- With an empty ledger everything rests on priors; while no scan was taken in, patients count as full size, and then as the
  median of those that were.
- The cells of the run itself calibrate a stage, by size: those of another kind of device, of partitions that are gone, and
  of networks of other settings never do; other cells of other settings only for want of better ones. All ensembles of a patient count as one piece of work.
- What failed runs worked, from the start of their steps, is expected again.
- A training counts by its epochs: those it took, not those it was allowed, and without those of an earlier attempt.
- Of a run that is under way and has made a cell, no start is to come.
"""

import dagster as dg
import pytest

from curvas_assets.errors import CurvasError
from curvas_assets.orchestration import forecasting
from curvas_assets.orchestration.cells import cell_event, provenance_tags
from curvas_assets.orchestration.environment import deployment
from curvas_assets.orchestration.forecasting import Capacity, forecast_study
from curvas_assets.orchestration.scope import Scope
from curvas_assets.orchestration.staleness import Staleness
from curvas_assets.stages.sizes import FULL_SIZE
from curvas_assets.stages.stored import Stored
from curvas_assets.study import load_study
from curvas_assets_tests.orchestration.lineage import CELLS, DummyLineage

STUDY = load_study("phantom")
TESTS = sorted(STUDY.sets["test"])
MODELS = [str(model) for model in STUDY.models]
LAPTOP, WORKSTATION = Capacity(gpus=0, gpu_steps=2, runs=2), Capacity(gpus=1, gpu_steps=1, runs=8)
SHAPES = {TESTS[0]: "10 × 20 × 30", TESTS[1]: "20 × 20 × 30", TESTS[2]: "40 × 20 × 30"}


class Ledger:
    """The dummy lineage, and cells reported with what they used."""

    def __init__(self, graph):
        self.lineage, self.graph = DummyLineage(study=STUDY), graph
        self.lineage.register(*TESTS)

    def made(self, asset, *partitions, code=None, **used):
        definition = self.graph.assets_def_for_key(dg.AssetKey(asset))
        tags = provenance_tags(self.lineage.instance, definition, "a run")
        if code:
            tags["dagster/code_version"] = code
        for partition in partitions:
            facts = {"seconds": 1.0, "bytes_down": 0, "bytes_up": 0, "device": "cpu", **used}
            facts = {name: facts[name] for name in facts if facts[name] is not None}
            event = cell_event(definition, partition, Stored("key", partition), facts, tags)
            self.lineage.instance.report_runless_asset_event(event)

    def taken_in(self):
        self.made("scan", *STUDY.training_patients(), shape="20 × 20 × 30", bytes_down=1000)
        for patient, shape in SHAPES.items():
            self.made("scan", patient, shape=shape, bytes_down=1000)
            self.made("test_scan", patient, shape=shape)

    def forecast(self, capacity=LAPTOP, assets=None, **scope):
        found = forecast_study(STUDY, Staleness(self.graph, self.lineage.instance), Scope(**scope), capacity, assets)
        return found.set_index("stage")

    def of(self, asset, capacity=LAPTOP):
        """The row of an asset whose inputs will stay as they are."""
        return self.forecast(capacity, {asset}).loc[asset]


@pytest.fixture(scope="module")
def graph():
    return DummyLineage(study=STUDY).definitions.resolve_asset_graph()


@pytest.fixture
def ledger(graph):
    return Ledger(graph)


def test_an_empty_ledger_rests_on_priors(ledger):
    found = ledger.forecast()
    assert found["to_come"].to_dict() == {
        **{"scan": 8, "test_scan": 3, "training_cases": 3, "preprocessed_dataset": 3, "trained_model": 9},
        **{"softmax": 27, "ensemble_softmax": 12, "scores": 3, "viewer_preview": 3, "total": 71},
    }
    assert (found["done"] == 0).all()
    assert found.drop("total")["basis"].str.startswith("prior: ").all()
    assert (found["factor"].drop("total") == 3).all()
    full = ledger.forecast(patients=frozenset(TESTS[:1])).loc["scan"]
    assert full.hours * 3600 == pytest.approx(6 + 0.2 + 0.3)
    ledger.made("test_scan", TESTS[1], shape="20 × 20 × 30")
    known = ledger.forecast(patients=frozenset(TESTS[:1])).loc["scan"]
    assert known.hours * 3600 == pytest.approx(6 * 12000 / FULL_SIZE + 0.2 + 0.3)


def test_what_is_made_from_what_is_to_come_is_to_come_and_uploads_cost_nothing(ledger):
    ledger.lineage.record_all()
    assert ledger.forecast()["to_come"].sum() == 0
    ledger.lineage.upload("trained_model", MODELS[0])  # its three predictions are stale now
    found = ledger.forecast()
    assert found["to_come"].drop("total").to_dict() == {
        **{"scan": 0, "test_scan": 0, "training_cases": 0, "preprocessed_dataset": 0, "trained_model": 0},
        **{"softmax": 3, "ensemble_softmax": 6, "scores": 3, "viewer_preview": 3},  # of the annotator, and of all
    }
    assert found.loc["trained_model", "basis"] == "all are made"
    assert (found.loc["softmax", "done"], found.loc["ensemble_softmax", "done"]) == (24, 6)
    ledger.lineage.upload("softmax", *(f"{MODELS[0]}|{patient}" for patient in TESTS))
    assert ledger.forecast().loc["softmax", "to_come"] == 0
    assert ledger.forecast().loc["scores", "to_come"] == 3


def test_cells_of_the_run_calibrate_by_size(ledger):
    ledger.taken_in()
    ledger.made("scores", TESTS[0], seconds=3.0)  # of 6,000 voxels; the others have 12,000 and 24,000
    one = ledger.of("scores")
    assert (one.done, one.to_come, one.basis) == (1, 2, "measured on 1 cell")
    ledger.made("scores", TESTS[1], seconds=6.0)
    two = ledger.of("scores")
    assert two.hours * 3600 == pytest.approx(12)
    assert two.basis == "measured on 2 cells"
    ledger.made("scores", TESTS[2], seconds=12.0)
    whole = ledger.of("scores")
    assert (whole.hours, whole.euros, whole.to_come) == (0, 0, 0)


def test_a_gpus_cells_do_not_calibrate_a_cpu(ledger):
    ledger.taken_in()
    ledger.made("softmax", *(f"{MODELS[0]}|{one}" for one in TESTS), seconds=9.0, device="cuda (NVIDIA H200) 0")
    there, here = ledger.forecast(WORKSTATION).loc["softmax"], ledger.forecast(LAPTOP).loc["softmax"]
    assert there.basis == "measured on 3 cells"
    assert there.gpu_hours == there.hours > 0
    assert here.basis.endswith("3 on cuda do not count for cpu")
    assert here.basis.startswith("prior: ")
    assert here.gpu_hours == 0
    ledger.made("softmax", f"{MODELS[1]}|{TESTS[0]}", seconds=90.0)
    assert ledger.forecast(LAPTOP).loc["softmax", "basis"] == "measured on 1 cell"
    assert ledger.forecast(WORKSTATION).loc["softmax", "basis"] == "measured on 3 cells"


def test_cells_of_other_settings_count_only_where_there_are_no_others(ledger):
    ledger.taken_in()
    ledger.made("scores", *TESTS[:2], seconds=60.0, code="earlier")
    old = ledger.of("scores")
    assert old.to_come == 3  # those two are stale
    assert old.basis == "measured on 2 cells; made with other code or settings"
    assert old.factor >= 2
    ledger.made("scores", TESTS[0], seconds=3.0)
    new = ledger.of("scores")
    assert new.basis == "measured on 1 cell"
    assert new.hours < old.hours / 10


def test_networks_of_other_settings_never_count(ledger):
    ledger.taken_in()
    small = {"seconds": 1.0, "epochs": 7}
    ledger.made("trained_model", *MODELS[:4], code="earlier", **small)
    ledger.made("softmax", *(f"{MODELS[0]}|{patient}" for patient in TESTS))
    for asset, count in (("trained_model", 4), ("softmax", 3)):
        found = ledger.of(asset)
        assert found.basis.startswith("prior: ")
        assert found.basis.endswith(f"{count} made with other settings do not count")
    ledger.made("trained_model", MODELS[0], **small)
    ledger.made("softmax", f"{MODELS[0]}|{TESTS[0]}")
    assert ledger.of("softmax").basis == "measured on 1 cell"


def test_what_belongs_to_the_study_no_more_does_not_count(ledger):
    ledger.taken_in()
    ledger.made("ensemble_softmax", f"ensemble_gone|{TESTS[0]}", seconds=90.0)
    assert ledger.of("ensemble_softmax").basis.startswith("prior: ")


def test_a_training_counts_by_its_epochs(ledger):
    ledger.made("trained_model", MODELS[0], seconds=50.0, epochs=5)  # stopped early, of 7
    assert ledger.of("trained_model").hours * 3600 == pytest.approx(8 * 50)
    ledger.made("trained_model", MODELS[1], seconds=10.0, epochs=5, **{"resumed at epoch": 4})
    assert ledger.of("trained_model").hours * 3600 == pytest.approx(7 * 50)


def test_all_ensembles_of_a_patient_are_one_piece_of_work(ledger):
    ledger.taken_in()
    names = [str(one) for one in STUDY.ensemble_ids]
    for patient, seconds in zip(TESTS[:2], (8.0, 16.0), strict=True):
        ledger.made("ensemble_softmax", f"{names[0]}|{patient}", seconds=seconds)  # the pass over all members
        ledger.made("ensemble_softmax", *(f"{name}|{patient}" for name in names[1:]), seconds=0.0)
    found = ledger.of("ensemble_softmax")
    assert (found.to_come, found.basis) == (4, "measured on 2 patients")
    assert found.hours * 3600 == pytest.approx(32)


def test_failures_are_part_of_what_is_to_come(ledger, monkeypatch):
    ledger.taken_in()
    ledger.made("scores", TESTS[0], seconds=2.0)
    before = ledger.of("scores")
    ledger.lineage.broken[TESTS[1]] = CurvasError("scoring", TESTS[1], "its labels are wrong", "Correct them.")
    assert not ledger.lineage.run("scores", TESTS[1]).success
    worked = forecasting.lost_seconds(ledger.lineage.instance, {row: [] for row in CELLS})["scores"]
    assert worked > 0
    after = ledger.of("scores")
    assert after.hours == pytest.approx(before.hours * (1 + min(1, worked / 2)))
    assert after.hours_low == before.hours_low
    monkeypatch.setattr(forecasting, "lost_seconds", lambda *_: {"scores": 90.0})
    found = ledger.of("scores")
    assert found.hours == pytest.approx(2 * before.hours)
    assert found.basis.endswith("failures took 1 min 30 s so far")


def test_a_run_under_way_has_paid_for_its_start(ledger):
    ledger.taken_in()
    instance = ledger.lineage.instance
    job = ledger.lineage.definitions.resolve_implicit_global_asset_job_def()
    tags = {"dagster/asset_partition_range_start": TESTS[0], "dagster/asset_partition_range_end": TESTS[2]}
    run = instance.create_run_for_job(job, asset_selection={dg.AssetKey("scores")}, tags=tags)
    ledger.made("scores", TESTS[0], seconds=50.0)
    waiting = ledger.of("scores")
    row = {**forecasting.newest_rows(instance, dg.AssetKey("scores"), 1)[0], "run": run.run_id}
    with pytest.MonkeyPatch.context() as patched:
        real = forecasting.newest_rows
        patched.setattr(
            forecasting, "newest_rows", lambda i, of, most: [row] if of == dg.AssetKey("scores") else real(i, of, most)
        )
        instance.handle_run_event(run.run_id, dg.DagsterEvent("PIPELINE_STARTING", run.job_name))
        started = ledger.of("scores")
    assert started.hours < waiting.hours


def test_the_capacity_is_read_from_the_deployment(monkeypatch):
    monkeypatch.setenv("CURVAS_DEVICES", "0,1")
    with dg.DagsterInstance.ephemeral() as instance:
        here = Capacity.of(instance, deployment())
        monkeypatch.setenv("CURVAS_DEVICES", "")
        without = Capacity.of(instance, deployment())
        monkeypatch.setenv("CURVAS_EXECUTOR", "kubernetes")
        monkeypatch.setenv("CURVAS_GPU_SLOTS", "3")
        cluster = Capacity.of(instance, deployment())
    assert (here.gpus, here.device("auto"), here.device("cpu")) == (2, "cuda", "cpu")
    assert without.gpus == 0
    assert without.device("auto") in ("cpu", "mps")
    assert (cluster.gpus, cluster.device("auto")) == (3, "cuda")
    assert cluster.runs > here.runs
    assert str(LAPTOP) == "no GPU; 2 training or prediction steps and 2 other runs at a time"
