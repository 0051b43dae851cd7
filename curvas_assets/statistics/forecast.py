"""What a study will still take: from cells that were measured to cells that are still to come. Pure arithmetic.

A cell is one partition of an asset. Its *sizes* say what its cost grows with (voxels, iterations, members): one number
each for its seconds, for the bytes it reads and for the bytes it stores. Only ratios of sizes count.

**Estimate.** Seconds are a rate per size times the sizes to come, plus a start for each run that has not begun. The rate
is that of all measured cells together (sum of seconds over sum of sizes), without those that began a run, because these
also load libraries, and the first one compiles. What these took longer is the start, without what compiling took
elsewhere, which is done once on a machine. If only such cells were measured, a start that was measured elsewhere is taken
off them, but never more than three quarters. Bytes that are stored are a rate alone, and bytes that are read are a rate
and what each run fetches first, which is known. Without a measured cell, everything is the stage's prior; its seconds
are multiplied by the machine's pace.

**Pace.** How many times as long as their priors the measured stages took: the geometric mean of their ratios, in which
a stage of hours counts as much as one of seconds; those on GPUs are taken apart, and those that worked for less than ten
seconds are left out. One more ratio of 1 is counted in, because a prior may be wrong for reasons of its own. Compiling
is foreseen only of a stage where a run's first cell took so long.

**Range.** In about four of five cases the true figure lies between `low` and `high`. These are the estimate divided and
multiplied by exp(t · cv · √(1/n + 1/m)): n cells were measured, m are to come, cv is the coefficient of variation of the
measured cells' rates (drawn towards 70 %, because a few cells seldom show the slow ones), and t is the 90 % quantile of
Student's distribution. The factor is at least 1.1. It is 2 after one cell, 3 for a prior and never more than 3. Where
failures were seen, the range grows from "none any more" to "twice as many". The total's range adds a factor of 1.25 for
the load of the machine, which all stages have in common.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd
import scipy

from curvas_assets.study import Prices

LEAST_FACTOR, FACTOR_OF_ONE, FACTOR_OF_PRIOR = 1.1, 2.0, 3.0
QUANTILE = 0.9
LOAD_FACTOR = 1.25
"""By which a whole study may be slower or faster than its first cells foretell, because others use the machine as well. On
one that grew busier meanwhile, it took 1.3 to 1.5 times as long (D139)."""
UNSEEN_CELLS, UNSEEN_SPREAD = 6, 0.7
"""A few cells seldom show the slow ones: the spread is that of the measured cells and of six more that vary by 70 %."""
MOST_OF_A_START = 0.75
"""Of the only cell that was measured: so much of it at most is a run's start."""
MOST_PACE = 5.0
"""By which measured stages may raise or lower the priors of others."""
LEAST_OF_A_PACE = 10.0
"""Seconds that a stage must have worked before it tells of the machine; shorter work is mostly overhead."""
MOST_FAILING = 1.0
"""More failures than work are not expected of the cells to come: their cause will have been removed."""
RUN_START_SECONDS = 1.0
"""From a run's place in the queue to its first step: 0.5 to 1 s in demos on two cores at load 1 to 2 (`warm_starts`); the first
run after the code server's start takes two seconds more, and the pods of a cluster longer. It is wall time."""
ADDED_UP = ("done", "to_come", "hours", "gpu_hours", "wall_hours", "gb_down", "gb_stored", "euros")
COLUMNS = (
    *("stage", "done", "to_come", "hours", "hours_low", "hours_high", "gpu_hours", "wall_hours"),
    *("gb_down", "gb_stored", "gb_disk", "euros", "euros_low", "euros_high", "factor", "basis"),
)
TOTAL = "total"
WORK, READ, STORED = range(3)
"""Columns of sizes."""


@dataclass(frozen=True)
class Sizes:
    """What a cell's costs grow with: its work (seconds), what it reads, what it stores."""

    work: float = 1.0
    read: float = 1.0
    stored: float = 1.0


@dataclass(frozen=True)
class Measured:
    """A cell that was made, as the ledger tells.

    Args:
        sizes: of the cell.
        seconds: it took.
        bytes_down: it read from the store, without what its run fetched first.
        bytes_stored: that stand there now.
        began_run: whether it was the first cell of its run.
    """

    sizes: Sizes
    seconds: float
    bytes_down: float = 0.0
    bytes_stored: float = 0.0
    began_run: bool = False


@dataclass(frozen=True)
class Prior:
    """What a cell takes where nothing was measured.

    Args:
        seconds: per unit of work.
        bytes_down: per unit of what it reads.
        bytes_stored: per unit of what it stores.
        origin: where these figures come from.
        each: seconds of any cell, however small.
        start: seconds that a run's first cell takes longer.
        once: seconds that the first cell on a machine takes longer still, because code is compiled.
    """

    seconds: float
    bytes_down: float
    bytes_stored: float
    origin: str
    each: float = 0.0
    start: float = 0.0
    once: float = 0.0

    def at(self, pace: float) -> "Prior":
        """On a machine that takes so many times as long."""
        if round(pace, 1) == 1:
            return self
        return replace(
            self,
            seconds=self.seconds * pace,
            each=self.each * pace,
            start=self.start * pace,
            once=self.once * pace,
            origin=f"{self.origin}; here stages take {pace:.1f} times their priors",
        )


@dataclass(frozen=True)
class Stage:
    """One row of a forecast.

    Args:
        name: of the stage.
        done: cells that exist.
        to_come: sizes of the cells that will be made.
        prior: of a cell.
        measured: cells made by the present code on the kind of device that the cells to come will use.
        begin: runs that are still to begin.
        open: runs that have begun, and will make cells to come.
        per_run: cells that one run makes at most.
        workers: runs that go on at a time.
        gpu: whether a cell keeps a GPU.
        fetched_bytes: that each run reads first, such as its models.
        disk_bytes: scratch of one run.
        failing: seconds that failures took, per second of cells that were made.
        piece: what one measured cell is, for people.
        least_factor: of the range, where cells were measured.
        note: what people should know of the basis.
    """

    name: str
    done: int
    to_come: Sequence[Sizes]
    prior: Prior
    measured: Sequence[Measured] = ()
    begin: int = 1
    open: int = 0
    per_run: int = 1
    workers: int = 1
    gpu: bool = False
    fetched_bytes: float = 0.0
    disk_bytes: float = 0.0
    failing: float = 0.0
    piece: str = "cell"
    least_factor: float = LEAST_FACTOR
    note: str = ""

    @property
    def runs(self) -> int:
        """Runs that are still to begin; none if no cell is to come."""
        return self.begin if self.to_come else 0

    @property
    def side_by_side(self) -> int:
        """Runs among which the cells to come are divided, at least one."""
        return max(1, self.runs + self.open)


def forecast(stages: Sequence[Stage], prices: Prices) -> pd.DataFrame:
    """What each stage will still take, and their total in the last row.

    Args:
        stages: in the order in which they run, one after the other.
        prices: of an hour, a GB stored for a month and a GB read.

    Returns:
        Columns stage, done, to_come (cells), hours (of all workers together), hours_low, hours_high, gpu_hours,
        wall_hours (of the stage on its workers), gb_down, gb_stored, gb_disk (scratch at once, over all workers;
        stages do not add up), euros, euros_low, euros_high, factor (of the range), basis.
    """
    paces = {gpu: _pace([stage for stage in stages if stage.gpu == gpu]) for gpu in (False, True)}
    stages = [stage if stage.measured else replace(stage, prior=stage.prior.at(paces[stage.gpu])) for stage in stages]
    table = pd.DataFrame([_row(stage, prices) for stage in stages], columns=list(COLUMNS))
    return pd.concat([table, pd.DataFrame([_total(table)], columns=list(COLUMNS))], ignore_index=True)


def _pace(stages: Sequence[Stage]) -> float:
    """How many times as long as their priors say stages of this machine take, from those that were measured."""
    ratios = [ratio for stage in stages if (ratio := _ratio(stage))]
    mean = math.exp(sum(map(math.log, ratios)) / (len(ratios) + 1))
    return float(np.clip(mean, 1 / MOST_PACE, MOST_PACE))


def _ratio(stage: Stage) -> float | None:
    """How many times as long as its prior a measured stage took; None if it worked too short to tell."""
    prior, took = stage.prior, np.array([one.seconds for one in stage.measured], float)
    if took.sum() < LEAST_OF_A_PACE:
        return None
    began = np.array([one.began_run for one in stage.measured])
    foreseen = prior.seconds * _measured_sizes(stage)[:, WORK] + prior.each + prior.start * began
    if not foreseen.sum():
        return None
    later = float(took[~began].sum() / foreseen[~began].sum()) if foreseen[~began].sum() else 1.0
    compiled = bool(
        (took[began] >= later * (foreseen[began] + prior.once / 2)).any()
    )  # else the code was there already
    return float(took.sum() / (foreseen.sum() + prior.once * compiled))


def _row(stage: Stage, prices: Prices) -> dict[str, object]:
    factor = _factor(stage)
    seconds = _seconds(stage)
    failing = min(stage.failing, MOST_FAILING)
    expected, low, high = seconds * (1 + failing), seconds / factor, seconds * factor * (1 + 2 * failing)
    down = (_bytes(stage, "bytes_down", READ) + stage.fetched_bytes * stage.runs) / 1e9
    stored = _bytes(stage, "bytes_stored", STORED) / 1e9
    hour = prices.gpu_hour_eur if stage.gpu else prices.cpu_hour_eur
    bytes_eur = down * prices.egress_gb_eur + stored * prices.storage_gb_month_eur * prices.storage_days / 30
    at_once = min(stage.workers, stage.side_by_side) if stage.to_come else 0
    return {
        "stage": stage.name,
        "done": stage.done,
        "to_come": len(stage.to_come),
        "hours": expected / 3600,
        "hours_low": low / 3600,
        "hours_high": high / 3600,
        "gpu_hours": expected / 3600 if stage.gpu else 0.0,
        "wall_hours": _wall_seconds(stage, expected) / 3600,
        "gb_down": down,
        "gb_stored": stored,
        "gb_disk": stage.disk_bytes * at_once / 1e9,
        "euros": expected / 3600 * hour + bytes_eur,
        "euros_low": low / 3600 * hour + bytes_eur / factor,
        "euros_high": high / 3600 * hour + bytes_eur * factor,
        "factor": factor,
        "basis": _basis(stage),
    }


def _wall_seconds(stage: Stage, seconds: float) -> float:
    """Runs of equal length go on side by side, so many rounds of them; each run starts first."""
    if not stage.to_come:
        return 0.0
    runs = stage.side_by_side
    rounds = math.ceil(runs / max(1, stage.workers))
    return rounds * (seconds / runs + (RUN_START_SECONDS if stage.runs else 0.0))


def _total(table: pd.DataFrame) -> dict[str, object]:
    """Sums, and ranges that add up by the squares of their halves, as those of independent stages do.

    The machine's load, which all stages have in common, is one more half.
    """
    total: dict[str, object] = {"stage": TOTAL, "basis": "", **{name: table[name].sum() for name in ADDED_UP}}
    for what in ("hours", "euros"):
        middle = table[what].sum()
        below = math.hypot(*(table[what] - table[f"{what}_low"]), middle * (1 - 1 / LOAD_FACTOR))
        above = math.hypot(*(table[f"{what}_high"] - table[what]), middle * (LOAD_FACTOR - 1))
        total |= {f"{what}_low": max(0.0, middle - below), f"{what}_high": middle + above}
    return total | {"gb_disk": table["gb_disk"].max(), "factor": math.nan}


def _seconds(stage: Stage) -> float:
    """Of all cells to come."""
    rate, start = _rate_and_start(stage)
    work = rate * float(_array(stage.to_come)[:, WORK].sum()) + start * stage.runs
    if stage.measured or not stage.to_come:
        return work
    return work + stage.prior.each * len(stage.to_come) + stage.prior.once


def _rate_and_start(stage: Stage) -> tuple[float, float]:
    """Seconds per unit of work, and what a run's first cell takes longer."""
    prior = stage.prior
    if not stage.measured:
        return prior.seconds, prior.start
    work = _measured_sizes(stage)[:, WORK]
    seconds = np.array([one.seconds for one in stage.measured], float)
    began = np.array([one.began_run for one in stage.measured])
    if stage.per_run == 1 or not began.any():
        return float(seconds.sum() / work.sum()), 0.0
    if began.all():
        once = np.minimum(prior.start + prior.once / len(seconds), MOST_OF_A_START * seconds)
        return float((seconds - once).sum() / work.sum()), min(prior.start, float(once.mean()))
    rate = float(seconds[~began].sum() / work[~began].sum())
    start = max(0.0, float((seconds[began] - rate * work[began]).mean()))
    return rate, max(min(start, prior.start), start - prior.once / int(began.sum()))


def _bytes(stage: Stage, what: Literal["bytes_down", "bytes_stored"], column: int) -> float:
    """Of all cells to come."""
    rate = getattr(stage.prior, what)
    if stage.measured:
        sizes = float(_measured_sizes(stage)[:, column].sum())
        rate = sum(getattr(one, what) for one in stage.measured) / sizes if sizes else 0.0
    return rate * float(_array(stage.to_come)[:, column].sum())


def _factor(stage: Stage) -> float:
    """By which the estimate is divided and multiplied; see the module's head."""
    if not stage.to_come:
        return 1.0
    if not stage.measured:
        return FACTOR_OF_PRIOR
    used = [one for one in stage.measured if not one.began_run] if stage.per_run > 1 else stage.measured
    n = len(used)
    if n <= 1:
        return FACTOR_OF_ONE
    rates = np.array([one.seconds / one.sizes.work for one in used], float)
    mean = rates.mean()
    variation = float(rates.var(ddof=1) / mean**2) if mean > 0 else 0.0
    known, unseen = n - 1, UNSEEN_CELLS
    spread = math.sqrt((known * variation + unseen * UNSEEN_SPREAD**2) / (known + unseen))
    width = float(scipy.stats.t.ppf(QUANTILE, known + unseen)) * spread * math.sqrt(1 / n + 1 / len(stage.to_come))
    return float(np.clip(math.exp(min(width, math.log(FACTOR_OF_PRIOR))), stage.least_factor, FACTOR_OF_PRIOR))


def _basis(stage: Stage) -> str:
    if not stage.to_come:
        return "all are made" if stage.done else "none are needed"
    cells = len(stage.measured)
    said = f"measured on {cells} {stage.piece}{'s' if cells > 1 else ''}" if cells else f"prior: {stage.prior.origin}"
    return f"{said}; {stage.note}" if stage.note else said


def _measured_sizes(stage: Stage) -> np.ndarray:
    return _array([one.sizes for one in stage.measured])


def _array(sizes: Sequence[Sizes]) -> np.ndarray:
    """(cells, 3): work, read, stored."""
    return np.array([(one.work, one.read, one.stored) for one in sizes], float).reshape(-1, 3)


# In words ------------------------------------------------------------------------------------------------------------


def in_words(table: pd.DataFrame) -> str:
    """The total as a sentence: wall time with its range, GPU hours, bytes, euros."""
    total = table.iloc[-1]
    if not total["to_come"]:
        return "Nothing is to come: everything is made and up to date."
    low, high = (total["wall_hours"] * total[f"hours_{end}"] / (total["hours"] or 1.0) for end in ("low", "high"))
    return (
        f"About {duration(total['wall_hours'])} of wall time ({duration(low)} to {duration(high)}), "
        f"{_figure(total['gpu_hours'])} GPU h, {size(total['gb_stored'])} stored, {size(total['gb_disk'])} of disk, "
        f"€{total['euros']:.2f} (€{total['euros_low']:.2f} to €{total['euros_high']:.2f}) still to come, "
        f"for {int(total['to_come'])} partitions."
    )


def as_shown(table: pd.DataFrame) -> pd.DataFrame:
    """The table for people: ranges beside figures, few digits."""
    rows = [
        {
            "stage": row["stage"],
            "made": int(row["done"]),
            "to come": int(row["to_come"]),
            "work (range)": _ranged(duration, row["hours"], row["hours_low"], row["hours_high"]),
            "GPU hours": _figure(row["gpu_hours"]),
            "wall time": duration(row["wall_hours"]) if row["to_come"] else "0",
            "read": size(row["gb_down"]),
            "stored": size(row["gb_stored"]),
            "disk at once": size(row["gb_disk"]),
            "euros (range)": _ranged(_money, row["euros"], row["euros_low"], row["euros_high"]),
            "basis": row["basis"],
        }
        for row in table.to_dict("records")
    ]
    return pd.DataFrame(rows)


def duration(hours: float) -> str:
    """A time as people say it.

    >>> duration(3.337), duration(0.75), duration(0.03), duration(0.005), duration(100)
    ('3 h 20 min', '45 min', '1 min 48 s', '18 s', '100 h')
    """
    seconds = round(hours * 3600)
    if seconds < 600:
        return f"{seconds // 60} min {seconds % 60} s" if seconds >= 60 else f"{seconds} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if minutes < 24 * 60 else f"{hours:.0f} h"


def size(gigabytes: float) -> str:
    """Bytes as people say them.

    >>> size(12.3), size(0.0123), size(0), size(4000)
    ('12 GB', '12 MB', '0', '4 TB')
    """
    for unit, factor in (("TB", 1e-3), ("GB", 1.0), ("MB", 1e3), ("kB", 1e6)):
        if gigabytes * factor >= 1:
            return f"{_figure(gigabytes * factor)} {unit}"
    return "0"


def _figure(value: float) -> str:
    """Two digits, or all of a number from a hundred on."""
    return "0" if not value else f"{value:.0f}" if value >= 100 else f"{value:.2g}"


def _money(euros: float) -> str:
    return f"{euros:.2f}" if euros >= 0.005 else "< 0.01"


def _ranged(shown: Callable[[float], str], value: float, low: float, high: float) -> str:
    if not value:
        return "0"
    figure, ends = shown(value), (shown(low), shown(high))
    return figure if ends == (figure, figure) else f"{figure} ({ends[0]} to {ends[1]})"
