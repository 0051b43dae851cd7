"""Claims proved here, of synthetic ledgers whose truth is known.

- From the first tenth of a ledger of another size (585 cells whose cost follows their voxels, with noise, a heavy tail and a
  start of each run) the rest is forecast within 25 %, and the range holds the truth as often as it says.
- By hand: rate, start of runs, what each run fetches, euros, wall time, the total.
- Of runs that have begun, no start is to come; what compiles is compiled once. A run's first cell alone does not pass for all others.
- Ranges: one cell is uncertain by a factor of two, a prior by three; many equal cells by a tenth.
- Failures that were seen are expected again, within limits.
- Stages that took longer than their priors raise the priors of others on the same kind of device, within limits; a stage of
  hours counts no more than one of seconds, and compiling is foreseen only where a run's first cell was that slow.
- What is made costs nothing; an empty forecast says so.
"""

from dataclasses import replace

import numpy as np
import pytest

from curvas_assets.statistics.forecast import (
    MOST_OF_A_START,
    RUN_START_SECONDS,
    Measured,
    Prior,
    Sizes,
    Stage,
    as_shown,
    forecast,
    in_words,
)
from curvas_assets.study import Prices

PRIOR = Prior(2.0, 3.0, 4.0, "somebody's stopwatch", each=10.0, start=20.0)
FREE = Prices(gpu_hour_eur=0, cpu_hour_eur=0, storage_gb_month_eur=0, egress_gb_eur=0)


def sized(size: float) -> Sizes:
    return Sizes(size, size, size)


def row(stage: Stage, prices: Prices = FREE):
    return forecast([stage], prices).iloc[0]


def synthetic(seed: int, cells: int = 585, per_run: int = 90) -> list[Measured]:
    """A ledger in the order of its making. Costs follow voxels; 3 % of the cells take three to six times as long."""
    rng = np.random.default_rng(seed)
    voxels = rng.lognormal(np.log(1e8), 0.5, cells)
    slow = np.where(rng.random(cells) < 0.03, rng.uniform(3, 6, cells), 1)
    seconds = 1e-6 * voxels * rng.lognormal(-(0.3**2) / 2, 0.3, cells) * slow
    began = np.arange(cells) % per_run == 0
    return [
        Measured(sized(size), used + 30 * first, 2 * size, 0.5 * size, bool(first))
        for size, used, first in zip(voxels, seconds, began, strict=True)
    ]


def test_the_rest_of_a_ledger_of_another_size_is_forecast_from_its_first_tenth():
    near, held = [], []
    for seed in range(100):
        ledger = synthetic(seed)
        first, rest = ledger[:59], ledger[59:]
        stage = Stage("s", 59, [one.sizes for one in rest], PRIOR, first, begin=6, per_run=90)
        found = row(stage)
        truth = sum(one.seconds for one in rest) / 3600
        near.append(abs(found.hours / truth - 1) <= 0.25)
        held.append(found.hours_low <= truth <= found.hours_high)
        assert found.gb_stored == pytest.approx(sum(one.bytes_stored for one in rest) / 1e9)
    assert np.mean(near) > 0.95
    assert np.mean(held) >= 0.75


def test_a_rate_a_start_and_what_runs_fetch_by_hand():
    measured = [Measured(sized(1), 7, 2e9, 1e9, True), Measured(sized(1), 2, 2e9, 1e9), Measured(sized(2), 4, 4e9, 2e9)]
    prices = Prices(gpu_hour_eur=36, cpu_hour_eur=1, storage_gb_month_eur=3, storage_days=10, egress_gb_eur=0.5)
    stage = Stage(
        "s",
        3,
        [sized(3)] * 4,
        PRIOR,
        measured,
        begin=2,
        per_run=2,
        workers=1,
        gpu=True,
        fetched_bytes=5e9,
        disk_bytes=6e9,
    )
    found = forecast([stage, Stage("t", 0, [sized(5)], PRIOR)], prices)
    one, other, total = (found.iloc[at] for at in range(3))
    assert one.hours * 3600 == pytest.approx(4 * 3 * 2 + 2 * 5)
    assert (one.gpu_hours, other.gpu_hours) == (one.hours, 0)
    assert one.wall_hours * 3600 == pytest.approx(34 + 2 * RUN_START_SECONDS)
    assert (one.gb_down, one.gb_stored, one.gb_disk) == pytest.approx((24 + 2 * 5, 12, 6))
    assert one.euros == pytest.approx(34 * 0.01 + 34 * 0.5 + 12)
    assert other.hours * 3600 == pytest.approx(5 * 2 + 10 + 20)
    assert "measured on 3 cells" in one.basis
    assert other.basis == "prior: somebody's stopwatch"
    assert total.hours == pytest.approx(one.hours + other.hours)
    assert total.wall_hours == pytest.approx(one.wall_hours + other.wall_hours)
    halves = [
        one.hours_high - one.hours,
        other.hours_high - other.hours,
        0.25 * total.hours,
    ]  # 25 %: the machine's load
    assert total.hours_high - total.hours == pytest.approx(np.hypot(np.hypot(*halves[:2]), halves[2]))
    assert 0 < total.hours_low < total.hours


def test_runs_side_by_side_shorten_wall_time_and_not_work():
    cells = [sized(1)] * 6
    alone, three = (row(Stage("s", 0, cells, PRIOR, begin=6, workers=workers, disk_bytes=1e9)) for workers in (1, 3))
    assert alone.hours == three.hours
    assert alone.wall_hours == pytest.approx(3 * three.wall_hours)
    assert (alone.gb_disk, three.gb_disk) == (1, 3)


def test_runs_that_have_begun_go_on_side_by_side():
    measured = [Measured(sized(1), 60)] * 3
    stage = Stage("s", 3, [sized(1)] * 6, PRIOR, measured, begin=0, open=3, workers=3, disk_bytes=1e9)
    found = row(stage)
    assert (found.hours * 60, found.wall_hours * 60) == pytest.approx((6, 2))
    assert found.gb_disk == 3


def test_the_start_of_a_run_that_has_begun_is_paid_for():
    measured = [Measured(sized(1), 50, began_run=True), Measured(sized(1), 1), Measured(sized(1), 1)]
    late = row(Stage("s", 3, [sized(1)] * 6, PRIOR, measured, begin=0, per_run=9))
    new = row(Stage("s", 3, [sized(1)] * 6, PRIOR, measured, per_run=9))
    assert late.hours * 3600 == pytest.approx(6)
    assert (new.hours - late.hours) * 3600 == pytest.approx(49)


@pytest.mark.parametrize(("seconds", "expected"), [(50, 30), (8, 2)])  # 20 s of start; but not more than three quarters
def test_the_first_cell_of_a_run_does_not_pass_for_all_others(seconds, expected):
    measured = [Measured(sized(1), seconds, began_run=True)]
    found = row(Stage("s", 1, [sized(1)], PRIOR, measured, begin=0, per_run=9))
    assert found.hours * 3600 == pytest.approx(expected)
    assert found.factor == 2


def test_a_range_says_how_little_is_known():
    cells = [sized(1)] * 1000
    assert row(Stage("s", 0, cells, PRIOR)).factor == 3
    assert row(Stage("s", 1, cells, PRIOR, [Measured(sized(1), 5)])).factor == 2
    equal = [Measured(sized(1), 5)] * 200
    assert row(Stage("s", 200, cells, PRIOR, equal)).factor == pytest.approx(1.1)
    assert row(Stage("s", 200, cells, PRIOR, equal, least_factor=2)).factor == 2
    wild = [Measured(sized(1), 1 + 99 * (n == 0)) for n in range(4)]
    assert 2 < row(Stage("s", 4, cells, PRIOR, wild)).factor <= 3


def test_failures_are_expected_again_within_limits():
    cells, measured = [sized(1)] * 10, [Measured(sized(1), 5)] * 10
    none, some, many = (row(Stage("s", 10, cells, PRIOR, measured, failing=rate)) for rate in (0, 0.5, 40))
    assert some.hours == pytest.approx(1.5 * none.hours)
    assert many.hours == pytest.approx(2 * none.hours)
    assert some.hours_low == none.hours_low
    assert some.hours_high == pytest.approx(2 * none.hours_high)


def test_what_is_made_costs_nothing():
    found = forecast([Stage("s", 9, [], PRIOR), Stage("t", 0, [], PRIOR)], Prices())
    assert (found.drop(columns=["stage", "done", "factor", "basis"]) == 0).all(axis=None)
    assert found["basis"].tolist() == ["all are made", "none are needed", ""]
    assert in_words(found) == "Nothing is to come: everything is made and up to date."
    assert in_words(forecast([], Prices())) == in_words(found)


def test_people_read_a_sentence_and_few_digits():
    stage = Stage("s", 1, [Sizes(3600, 1e9, 12e9)] * 2, Prior(1.0, 1.0, 1.0, "x"), gpu=True, disk_bytes=2.5e9)
    found = forecast([stage], Prices(gpu_hour_eur=0.5, egress_gb_eur=0, storage_gb_month_eur=0))
    assert in_words(found) == (
        "About 2 h 0 min of wall time (36 min to 6 h 2 min), 2 GPU h, 24 GB stored, 2.5 GB of disk, "
        "€1.00 (€0.30 to €3.02) still to come, for 2 partitions."
    )
    shown = as_shown(found).iloc[0]
    assert (shown["work (range)"], shown["read"], shown["basis"]) == (
        "2 h 0 min (40 min to 6 h 0 min)",
        "2 GB",
        "prior: x",
    )


def test_stages_that_took_longer_than_their_priors_raise_those_that_were_not_measured():
    slow = Stage("s", 2, [], PRIOR, [Measured(sized(10), 3 * (2 * 10 + 10 + 20), began_run=True)])
    unmeasured = Stage("t", 0, [sized(10)], PRIOR)
    on_gpu = Stage("u", 0, [sized(10)], PRIOR, gpu=True)
    usual = (2 * 10 + 10 + 20) / 3600
    one = forecast([slow, unmeasured, on_gpu], FREE)
    two = forecast([slow, replace(slow, name="r"), unmeasured], FREE)
    assert one["hours"].tolist()[1:3] == pytest.approx([3**0.5 * usual, usual])  # a GPU's pace is its own
    assert two["hours"].tolist()[2] == pytest.approx(3 ** (2 / 3) * usual)
    assert "take 1.7 times their priors" in one["basis"][1]
    wild = replace(slow, measured=[Measured(sized(10), 1e6)])
    assert forecast([wild, unmeasured], FREE)["hours"][1] == pytest.approx(5 * usual)


def pace(*measured: Stage) -> float:
    """By which the prior of a stage that was not measured was raised."""
    usual = (2 * 10 + 10 + 20) / 3600
    return forecast([*measured, Stage("t", 0, [sized(10)], PRIOR)], FREE).iloc[len(measured)].hours / usual


def test_a_long_stage_whose_prior_is_wrong_does_not_rule_the_others():
    long = Stage("long", 1, [], PRIOR, [Measured(sized(10_000), 5 * (2 * 10_000 + 10))])
    right = [Stage(f"right {n}", 1, [], PRIOR, [Measured(sized(10), 2 * 10 + 10)]) for n in range(3)]
    assert pace(long) == pytest.approx(5 ** (1 / 2))
    assert pace(long, *right) == pytest.approx(5 ** (1 / 5))
    quick = replace(long, measured=[Measured(sized(10_000), (2 * 10_000 + 10) / 5)])
    assert pace(long, quick) == pytest.approx(1)


@pytest.mark.parametrize("slower", [1, 3])
@pytest.mark.parametrize("compiled", [0, 1])
@pytest.mark.parametrize("first_is_known", [True, False])
def test_compiling_is_foreseen_only_of_a_stage_whose_first_cell_was_that_slow(slower, compiled, first_is_known):
    prior = replace(PRIOR, once=100.0)
    later = [Measured(sized(10), slower * (2 * 10 + 10))] * 3
    first = Measured(sized(10), slower * (2 * 10 + 10 + 20 + 100 * compiled), began_run=True)
    known = [first, *later] if first_is_known else later
    assert pace(Stage("s", 4, [], prior, known, per_run=9)) == pytest.approx(slower ** (1 / 2))
    if slower == 1:
        assert pace(Stage("s", 1, [], prior, [first], per_run=9)) == pytest.approx(1)


def test_code_is_compiled_once_on_a_machine():
    prior = replace(PRIOR, once=100.0)
    usual = 3 * (2 * 1 + 10) + 3 * 20
    fresh = row(Stage("s", 0, [sized(1)] * 3, prior, begin=3))
    assert fresh.hours * 3600 == pytest.approx(usual + 100)
    compiled = [Measured(sized(1), 2 + 20 + 100, began_run=True), Measured(sized(1), 2)]
    begun = row(Stage("s", 2, [sized(1)] * 3, prior, compiled, begin=3, per_run=9))
    assert begun.hours * 3600 == pytest.approx(3 * 2 + 3 * 20)  # no later run compiles
    only = row(Stage("s", 1, [sized(1)] * 3, prior, compiled[:1], begin=0, per_run=9))
    assert only.hours * 3600 == pytest.approx(3 * (122 - MOST_OF_A_START * 122))
