"""Claims proved here, by hand: the simulation of `benchmarks.scaling`.

- Workers take tasks as they become free; a stage waits for the one before; kinds of workers do not help each other out.
- On one worker of each kind the study's own costs add up to its 984 hours.
- Nine GPUs train nine models in the time of one; ten do no better. Money used does not depend on how many share the work.
- What one more worker of a kind saves is what names the bottleneck.
- Our own costs are the priors of forecasts, at full size; those of a ledger are the means of its cells, a patient's ensembles
  together; a GPU's cells count before others. Each figure has an origin.
"""

import pandas as pd
import pytest

from benchmarks.scaling import (
    STAGES,
    STUDY,
    STUDY_HOURS,
    Task,
    bottleneck,
    euros,
    ledger_costs,
    measured_costs,
    simulate,
    study_tasks,
)
from curvas_assets.errors import CurvasError
from curvas_assets.study import Prices


def test_a_free_worker_takes_the_next_task():
    tasks = [Task("a", "cpu", hours) for hours in (3, 2, 2)]
    assert simulate(tasks, {"cpu": 1}).wall_hours == 7
    assert simulate(tasks, {"cpu": 2}).wall_hours == 4  # 3 beside 2 + 2
    assert simulate(tasks, {"cpu": 3}).wall_hours == 3
    assert simulate(tasks, {"cpu": 2}).busy_hours == {"cpu": 7}


def test_a_stage_waits_for_the_one_before_and_kinds_stay_apart():
    first = [Task("a", "gpu", 1), Task("a", "gpu", 4)]
    second = [Task("b", "cpu", 2, frozenset({"a"})), Task("c", "cpu", 3)]
    schedule = simulate([*first, *second], {"gpu": 2, "cpu": 1})
    assert schedule.ended == {"a": 4, "c": 3, "b": 6}
    with pytest.raises(ValueError, match="1 tasks can never run"):
        simulate([Task("a", "gpu", 1)], {"cpu": 9})
    with pytest.raises(ValueError, match="can never run"):
        simulate([Task("a", "cpu", 1, frozenset({"b"})), Task("b", "cpu", 1, frozenset({"a"}))], {"cpu": 1})


def test_one_worker_of_each_kind_takes_the_studys_hours():
    tasks = study_tasks(STUDY, patients=64, run_start_hours=0)
    assert simulate(tasks, {"gpu": 1, "cpu": 1}).wall_hours == pytest.approx(STUDY_HOURS)
    late = study_tasks(STUDY, patients=64, run_start_hours=1)
    assert simulate(late, {"gpu": 1, "cpu": 1}).wall_hours == pytest.approx(STUDY_HOURS + len(late))


def test_nine_gpus_train_nine_models_in_the_time_of_one():
    tasks = study_tasks(STUDY, patients=64, patients_per_run=1, run_start_hours=0)
    for gpus, hours in ((1, 216), (3, 72), (9, 24), (10, 24)):
        assert simulate(tasks, {"gpu": gpus, "cpu": 1}).ended["training"] == pytest.approx(hours)
    # 64 patients × 9 h on 9 GPUs: eight rounds
    assert simulate(tasks, {"gpu": 9, "cpu": 1}).ended["prediction"] == pytest.approx(24 + 72)


def test_money_used_is_the_same_however_many_share_the_work():
    tasks = study_tasks(STUDY, patients=64, run_start_hours=0)
    for workers in ({"gpu": 1, "cpu": 1}, {"gpu": 9, "cpu": 9}):
        used, kept = euros(simulate(tasks, workers), workers, Prices())
        assert used == pytest.approx((216 + 576) * 0.50 + (128 + 64) * 0.05)
        assert kept > used


def test_one_more_worker_names_the_bottleneck():
    tasks = [*[Task("a", "gpu", 1)] * 6, *[Task("b", "cpu", 1, frozenset({"a"}))] * 2]
    assert bottleneck(tasks, {"gpu": 1, "cpu": 2}) == "gpu"
    assert bottleneck(tasks, {"gpu": 6, "cpu": 1}) == "cpu"
    assert bottleneck(tasks, {"gpu": 6, "cpu": 2}) == "size of runs"


def test_our_costs_are_those_that_were_measured_at_full_size():
    ours = measured_costs()
    assert ours.ensembling * 3600 == pytest.approx(47)
    assert ours.scoring * 3600 == pytest.approx(75)
    # 20 s of preprocessing for three models of an annotator, 20 s of export, and 0.3 s of a GPU for 96 × 224 × 224
    assert ours.prediction * 3600 == pytest.approx(20 / 3 + 20 + 0.3 * (866 * 512 * 512) / (96 * 224 * 224))
    assert len(ours.origins) == len(STUDY.origins) == len(STAGES)
    assert "H200" in ours.origins[0]


def test_a_ledgers_costs_are_the_means_of_its_cells():
    rows = [
        *(("trained_model", f"m{n}", 3600.0 * n, "cpu") for n in (1, 3)),
        *(("softmax", f"m|P{n}", 36.0, "cpu") for n in (1, 2)),
        ("softmax", "m|P3", 7.2, "cuda (H200) 0"),
        *((("ensemble_softmax", f"{name}|P{n}", 18.0 * n, "cpu")) for name in ("a", "b") for n in (1, 2)),
        ("scores", "P1", 360.0, "cpu"),
    ]
    table = pd.DataFrame(rows, columns=["asset", "partition", "seconds", "device"])
    costs = ledger_costs(table)
    assert (costs.training, costs.prediction) == pytest.approx((2, 0.002))
    assert (costs.ensembling, costs.scoring) == pytest.approx((54 / 3600, 0.1))
    assert costs.origins[1:3] == ("mean of 1 cells on GPUs", "mean of 2 patients on CPUs")
    with pytest.raises(CurvasError, match="scores: reading the ledger failed: it has no cell"):
        ledger_costs(table[table["asset"] != "scores"])
    with pytest.raises(CurvasError, match="device absent"):
        ledger_costs(table.drop(columns="device"))
