"""The study's wall time and money on 1, 3 and 9 GPUs and n CPU workers, by discrete simulation: no voxel is touched.

Run `python -m benchmarks.scaling`. A worker takes the next task that is ready, in the order of the study's job: stages one
after the other, each as runs of at most ten patients. There are three sets of costs, and each figure is printed with its
origin:

- `study`: its table 4, 216 h for 9 models, 576 h for 576 volumes, 128 h and 64 h for ensembles and scores of 64 patients.
- `ours`: what was measured on this platform, for patients of full size (866 × 512 × 512). These are the priors of
  forecasts (`curvas_assets.stages.sizes`). On a GPU only smaller work was measured, so training and prediction are scaled
  by voxels.
- `ledger`: the cells of a ledger, as they took, whatever their size: `--ledger FILE` reads a CSV file with the columns
  asset, partition, seconds and device. `--save-ledger FILE` writes one from the instance of `DAGSTER_HOME`.

A run's start takes 1 s (0.5 to 1 s on two cores, from a warm process).
"""

import argparse
import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from curvas_assets.errors import CurvasError
from curvas_assets.stages.sizes import StudySizes, prior
from curvas_assets.stages.table import ENSEMBLE_SOFTMAX, SCORES, SOFTMAX, TRAINED_MODEL, Asset
from curvas_assets.statistics.forecast import RUN_START_SECONDS
from curvas_assets.storage.layout import Cell, patient_of
from curvas_assets.study import Prices, load_study

STUDY_HOURS = 984.0
"""216 + 576 + 128 + 64: what the study itself used, one thing after another."""
RUN_START_HOURS = RUN_START_SECONDS / 3600
GPUS = (1, 3, 9)
CPU_WORKERS = (1, 3, 9)
PATIENTS_PER_RUN = 10
"""As the assets' backfill policies have it: 90 volumes of 9 models, 40 of 4 ensembles, 10 patients' scores."""


@dataclass(frozen=True)
class Costs:
    """Hours of one worker for one model, one volume, all ensembles of a patient, all scores of a patient.

    `origins` says where each of these comes from.
    """

    training: float
    prediction: float
    ensembling: float
    scoring: float
    origins: tuple[str, ...] = ()


STUDY = Costs(
    training=216 / 9,
    prediction=576 / 576,
    ensembling=128 / 64,
    scoring=64 / 64,
    origins=("216 h for 9 models", "576 h for 576 volumes", "128 h for 64 patients", "64 h for 64 patients"),
)
STAGES = {"training": TRAINED_MODEL, "prediction": SOFTMAX, "ensembling": ENSEMBLE_SOFTMAX, "scoring": SCORES}


def measured_costs() -> Costs:
    """Our own: the priors of forecasts, for the published study's settings and a patient of full size."""
    study = load_study("curvas")
    sizes, patient, model = StudySizes(study, {}, {}), study.scored_patients()[0], study.models[0]
    cells = {
        "training": [str(model)],
        "prediction": [str(Cell(str(model), patient))],
        "ensembling": [str(Cell(str(one), patient)) for one in study.ensemble_ids],
        "scoring": [patient],
    }

    def hours(row: Asset, partitions: Sequence[str]) -> float:
        of_row = prior(study, row, gpu=row in (TRAINED_MODEL, SOFTMAX))
        return of_row.seconds * sum(sizes.of(row, one).work for one in partitions) / 3600

    origins = tuple(prior(study, row, gpu=row in (TRAINED_MODEL, SOFTMAX)).origin for row in STAGES.values())
    return Costs(**{stage: hours(row, cells[stage]) for stage, row in STAGES.items()}, origins=origins)


def ledger_costs(ledger: pd.DataFrame) -> Costs:
    """Those of a ledger's cells, the mean of each stage. Ensembles and scores are those of a patient.

    Args:
        ledger: columns asset, partition, seconds, device, as `orchestration.ledger` gives it. A GPU's cells count, if a
            stage has any; otherwise those of other devices.

    Raises:
        CurvasError: a column is absent, or a stage has no cell; names it.
    """
    if absent := {"asset", "partition", "seconds", "device"} - set(ledger.columns):
        raise CurvasError(
            "reading the ledger", "its columns", f"{', '.join(sorted(absent))} absent", "Use --save-ledger."
        )
    hours: dict[str, float] = {}
    origins: list[str] = []
    for stage, row in STAGES.items():
        cells = ledger[ledger["asset"] == row.name]
        if not len(cells):
            raise CurvasError("reading the ledger", row.name, "it has no cell", "Use a ledger in which all stages ran.")
        on_gpu = cells["device"].astype(str).str.startswith("cuda")
        used = (cells[on_gpu] if on_gpu.any() else cells).drop_duplicates("partition")  # the newest of each comes first
        by = used["partition"].map(patient_of) if row is ENSEMBLE_SOFTMAX else used["partition"]
        hours[stage] = float(used.groupby(by)["seconds"].sum().mean()) / 3600
        what = "patients" if row in (ENSEMBLE_SOFTMAX, SCORES) else "cells"
        origins.append(f"mean of {by.nunique()} {what} on {'GPUs' if on_gpu.any() else 'CPUs'}")
    return Costs(**hours, origins=tuple(origins))


@dataclass(frozen=True)
class Task:
    """A run: its stage, the kind of worker it needs, its hours, and the stages that must be done before."""

    stage: str
    kind: str
    hours: float
    after: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Schedule:
    """When what was done: wall hours, worker hours by kind, and when each stage ended."""

    wall_hours: float
    busy_hours: dict[str, float]
    ended: dict[str, float]


def simulate(tasks: Sequence[Task], workers: Mapping[str, int]) -> Schedule:
    """Each free worker takes the first task that is ready.

    Args:
        tasks: in order of preference.
        workers: kind → how many there are.

    Raises:
        ValueError: a task can never run: no worker of its kind, or stages wait for one another.
    """
    waiting = list(tasks)
    free = dict(workers)
    left: dict[str, int] = {}
    for task in tasks:
        left[task.stage] = left.get(task.stage, 0) + 1
    running: list[tuple[float, int, Task]] = []
    now, count = 0.0, 0
    busy = dict.fromkeys(workers, 0.0)
    ended: dict[str, float] = {}
    while waiting or running:
        for task in list(waiting):
            if free.get(task.kind, 0) > 0 and not any(left.get(stage) for stage in task.after):
                waiting.remove(task)
                free[task.kind] -= 1
                busy[task.kind] += task.hours
                heapq.heappush(running, (now + task.hours, count, task))
                count += 1
        if not running:
            raise ValueError(f"{len(waiting)} tasks can never run, the first: {waiting[0]}")
        now, _, done = heapq.heappop(running)
        free[done.kind] += 1
        left[done.stage] -= 1
        if not left[done.stage]:
            ended[done.stage] = now
    return Schedule(now, busy, ended)


def study_tasks(
    costs: Costs,
    *,
    models: int = 9,
    patients: int = 65,
    patients_per_run: int = PATIENTS_PER_RUN,
    run_start_hours: float = RUN_START_HOURS,
) -> list[Task]:
    """The runs that the job `study` launches for GPU and CPU stages; tables and report take minutes and are left out."""
    batches = [min(patients_per_run, patients - first) for first in range(0, patients, patients_per_run)]

    def runs(stage: str, kind: str, hours: Iterable[float], after: str | None) -> list[Task]:
        before = frozenset({after} if after else ())
        return [Task(stage, kind, run_start_hours + one, before) for one in hours]

    return [
        *runs("training", "gpu", [costs.training] * models, None),
        *runs("prediction", "gpu", [costs.prediction * models * size for size in batches], "training"),
        *runs("ensembling", "cpu", [costs.ensembling * size for size in batches], "prediction"),
        *runs("scoring", "cpu", [costs.scoring * size for size in batches], "ensembling"),
    ]


def euros(schedule: Schedule, workers: Mapping[str, int], prices: Prices) -> tuple[float, float]:
    """Money for the hours that workers were busy, and for all of them from start to end."""
    price = {"gpu": prices.gpu_hour_eur, "cpu": prices.cpu_hour_eur}
    used = sum(hours * price[kind] for kind, hours in schedule.busy_hours.items())
    return used, sum(schedule.wall_hours * number * price[kind] for kind, number in workers.items())


def bottleneck(tasks: Sequence[Task], workers: Mapping[str, int]) -> str:
    """The kind of worker of which one more saves most wall time; `size of runs` if neither saves a hundredth."""
    wall = simulate(tasks, workers).wall_hours
    saved = {kind: wall - simulate(tasks, {**workers, kind: number + 1}).wall_hours for kind, number in workers.items()}
    kind = max(saved, key=lambda k: saved[k])
    return kind if saved[kind] > 0.01 * wall else "size of runs"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--ledger", type=Path, help="CSV file with the cells of a ledger, simulated as well")
    parser.add_argument(
        "--save-ledger", type=Path, help="write the ledger of the instance of DAGSTER_HOME to a CSV file"
    )
    arguments = parser.parse_args()
    if arguments.save_ledger:
        save_ledger(arguments.save_ledger)
        return
    costs = {"study": STUDY, "ours": measured_costs()}
    if arguments.ledger:
        costs["ledger"] = ledger_costs(pd.read_csv(arguments.ledger))
    print(f"The study itself: {STUDY_HOURS:.0f} h, one thing after another, 64 patients. Below: 65 patients.\n")
    print("costs     of          minutes  origin")
    for name, one in costs.items():
        for stage, origin in zip(STAGES, one.origins, strict=True):
            print(f"{name:<9} {stage:<11} {60 * getattr(one, stage):>7.2f}  {origin}")
    print("\nOf one model, one volume, the ensembles of a patient, the scores of a patient.\n")
    print_simulations(costs)


def save_ledger(file: Path) -> None:
    """Write the ledger of the instance of `DAGSTER_HOME` as CSV."""
    import dagster as dg

    from curvas_assets.orchestration.ledger import materialisation_ledger

    with dg.DagsterInstance.get() as instance:
        materialisation_ledger(instance).to_csv(file, index=False)


def print_simulations(costs: Mapping[str, Costs]) -> None:
    """One line for each set of costs, size of runs, and number of workers."""
    print(
        "costs     patients/run  GPUs  CPU workers   wall h  of 984 h   € used  € kept on   longest stage  one more helps"
    )
    for name, one in costs.items():
        for size in (PATIENTS_PER_RUN, 1):
            tasks = study_tasks(one, patients_per_run=size)
            for gpus in GPUS:
                for cpus in CPU_WORKERS:
                    workers = {"gpu": gpus, "cpu": cpus}
                    schedule = simulate(tasks, workers)
                    used, kept = euros(schedule, workers, Prices())
                    print(
                        f"{name:<9} {size:>12}  {gpus:>4}  {cpus:>11} {schedule.wall_hours:>8.1f} "
                        f"{schedule.wall_hours / STUDY_HOURS:>8.0%} {used:>8.0f} {kept:>10.0f} "
                        f"{_longest(schedule):>15}  {bottleneck(tasks, workers)}"
                    )


def _longest(schedule: Schedule) -> str:
    """The stage that takes most of the wall time; stages follow one another."""
    ends = sorted(schedule.ended.items(), key=lambda item: item[1])
    spans = {stage: end - start for (stage, end), start in zip(ends, [0.0, *(end for _, end in ends)], strict=False)}
    return max(spans, key=lambda stage: spans[stage])


if __name__ == "__main__":
    main()
