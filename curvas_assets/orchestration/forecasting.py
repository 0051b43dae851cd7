"""What a study will still take on this deployment: reads Dagster's records, and leaves the arithmetic to `statistics.forecast`.

Quick by design: of each asset only its newest cells are read, whatever the size of the study. Nothing is launched.
"""

import math
import platform
import sys
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any

import dagster as dg
import pandas as pd

from curvas_assets.machine import usable_cores
from curvas_assets.orchestration.asset_keys import key_of
from curvas_assets.orchestration.dagster_internals import StaleStatus
from curvas_assets.orchestration.environment import Deployment
from curvas_assets.orchestration.execution import GPU_POOL, StageNeeds
from curvas_assets.orchestration.launches import batches
from curvas_assets.orchestration.ledger import newest_rows
from curvas_assets.orchestration.scope import Scope
from curvas_assets.orchestration.staleness import NEW_CODE, NEW_INPUT, REMOVED_INPUT, Staleness
from curvas_assets.orchestration.under_way import UnderWay
from curvas_assets.stages.sizes import StudySizes, prior, voxels_in, weights_fetched
from curvas_assets.stages.table import (
    ASSETS,
    ENSEMBLE_SOFTMAX,
    PREDICTED,
    PREPROCESSED_DATASET,
    SCAN,
    TEST_SCAN,
    TRAINED_MODEL,
    TRAINING_CASES,
    VARIANT_SOFTMAX,
    Asset,
)
from curvas_assets.statistics.forecast import FACTOR_OF_ONE, LEAST_FACTOR, Measured, Sizes, Stage, duration, forecast
from curvas_assets.storage.layout import Cell, patient_of
from curvas_assets.study import ModelId, Study

NEWEST_CELLS = 100
"""Of each asset: enough for a mean, and read in a tenth of a second."""
MOST_SHAPES = 2000
"""Test patients whose sizes are looked up; the others count as the median."""
MOST_FAILURES = 50
"""Failed runs that are looked at, the newest."""
STEP_EVENTS = 500
"""Of a failed run; one that launches others has few steps."""
TABLES = "tables and report"
ON_A_CLUSTER = ("celery", "kubernetes")


@dataclass(frozen=True)
class Capacity:
    """What the deployment can do at a time.

    Args:
        gpus: that steps may use.
        gpu_steps: steps of the pool `gpu` at a time.
        runs: other runs at a time.
    """

    gpus: int
    gpu_steps: int
    runs: int

    @classmethod
    def of(cls, instance: dg.DagsterInstance, settings: Deployment) -> "Capacity":
        """The capacity, as the instance's limits and the environment describe it.

        Steps of this machine share its cores, so that no more of them count than there are cores. One run of the queue
        is taken by `study` itself.
        """
        cluster = settings.executor in ON_A_CLUSTER
        queue = instance.get_concurrency_config().run_queue_config
        most = queue.max_concurrent_runs if queue and queue.max_concurrent_runs > 0 else sys.maxsize
        cores = sys.maxsize if cluster else usable_cores()
        return cls(
            gpus=settings.gpu_steps(without=1 if cluster else 0),
            gpu_steps=max(1, min(_slots(instance), most - 1)),
            runs=max(1, min(most - 1, cores)),
        )

    def __str__(self) -> str:
        gpus = {0: "no GPU"}.get(self.gpus, f"{self.gpus} GPU" + ("s" if self.gpus > 1 else ""))
        steps = f"{self.gpu_steps} training or prediction step" + ("s" if self.gpu_steps > 1 else "")
        return f"{gpus}; {steps} and {self.runs} other run{'s' if self.runs > 1 else ''} at a time"

    def device(self, setting: str) -> str:
        """The kind of device that a setting of the study will mean: `cuda`, `mps` or `cpu`."""
        if setting != "auto":
            return setting
        if self.gpus:
            return "cuda"
        return "mps" if sys.platform == "darwin" and platform.machine() == "arm64" else "cpu"


def _slots(instance: dg.DagsterInstance) -> int:
    """Steps that the pool `gpu` lets run at a time."""
    storage = instance.event_log_storage
    info = storage.get_concurrency_info(GPU_POOL) if storage.supports_global_concurrency_limits else None
    limit = info.limit if info and info.limit is not None else instance.global_op_concurrency_default_limit
    return limit or 1


def forecast_study(
    study: Study, staleness: Staleness, scope: Scope, capacity: Capacity, assets: Collection[str] | None = None
) -> pd.DataFrame:
    """What is to come of a study, as `statistics.forecast` tabulates it.

    Args:
        study: whose settings and prices count.
        staleness: what there is.
        scope: which partitions would be made.
        capacity: of the deployment that would make them.
        assets: that would be made; all if not given.
    """
    instance = staleness.instance
    rows = _rows(study, staleness)
    coming = coming_of_study(study, staleness, scope, assets)
    newest = {row: newest_rows(instance, key_of(row), NEWEST_CELLS if row.axis else 1) for row in rows}
    sizes = study_sizes(study, instance, newest)
    under_way = UnderWay(staleness.graph, instance, backfills=False)
    view = _View(study, staleness, capacity, sizes, newest, lost_seconds(instance, newest), under_way)
    stages = [view.stage(row, coming.get(row.name, [])) for row in rows if row.axis]
    tables = [row for row in rows if not row.axis]
    stages += [view.tables(tables, coming)] if tables else []
    return forecast(stages, study.prices)


def _rows(study: Study, staleness: Staleness) -> list[Asset]:
    """The assets that the study has and this deployment makes."""
    graph = staleness.graph
    there = [row for row in ASSETS if row is not VARIANT_SOFTMAX or study.variants]
    return [row for row in there if graph.has(key_of(row)) and not graph.get(key_of(row)).is_external]


def coming_of_study(
    study: Study, staleness: Staleness, scope: Scope, assets: Collection[str] | None = None
) -> dict[str, list[str]]:
    """What `to_come` says of the study's assets, or of those that are named."""
    rows = [row for row in _rows(study, staleness) if assets is None or row.name in assets]
    return to_come(study, staleness, scope, rows)


def to_come(study: Study, staleness: Staleness, scope: Scope, rows: Sequence[Asset]) -> dict[str, list[str]]:
    """Asset → partitions that will be made (`""` of a table): those that are due, and those made from them.

    A cell that is up to date counts too if one of its inputs will be made again, unless that is expected to turn out as it
    was (`_likely_as_it_was`). It may be spared in the end, if another input turns out as it was.
    """
    graph = staleness.graph
    coming: dict[dg.AssetKey, set[str | None]] = {}
    changing: dict[dg.AssetKey, set[str | None]] = {}
    """Of what is to come, what is likely to become another than it was."""
    by_key = {key_of(row): row for row in rows}
    for key in graph.toposorted_asset_keys:
        if key not in by_key:
            continue
        definition = graph.get(key).partitions_def
        found = set(scope.due(staleness, key))
        above = [parent for parent in graph.get(key).parent_keys if changing.get(parent)]
        for partition in staleness.partitions(key) if above else ():
            if partition in found or not scope.includes(definition, partition):
                continue
            if not scope.elsewhere and staleness.elsewhere(key, partition):
                continue
            if any(not changing[parent].isdisjoint(staleness.inputs(key, partition, parent)) for parent in above):
                found.add(partition)
        coming[key] = found
        changing[key] = {one for one in found if not _likely_as_it_was(study, staleness, by_key[key], one)}
    return {row.name: sorted(str(one or "") for one in coming[key]) for key, row in by_key.items() if coming.get(key)}


def _likely_as_it_was(study: Study, staleness: Staleness, row: Asset, partition: str | None) -> bool:
    """Whether a partition that will be made again is expected to turn out as it was.

    That is so of a bridge all of whose changed inputs are read again because the study file now says otherwise how to read
    them, as when an annotator joins: the patients' other files are taken to be as they were, unless everybody's files pass
    the bridge. And of what is made again only because this version of the platform gives it other inputs than the one that
    made it.
    """
    key = key_of(row)
    if not staleness.made(key, partition):
        return False
    if reasons := staleness.status(key, partition).reasons:
        if row is TRAINING_CASES and NEW_CODE in reasons and _takes_everybody(study, str(partition)):
            return False
        if all(one.startswith((NEW_INPUT, REMOVED_INPUT)) for one in reasons):
            return True
        if any(one != NEW_CODE for one in reasons):
            return False
    if not row.bridge:
        return False
    above = (
        (parent, one)
        for parent in staleness.graph.get(key).parent_keys
        for one in staleness.inputs(key, partition, parent)
    )
    found = [staleness.status(parent, one) for parent, one in above]
    return all(one.status is StaleStatus.FRESH or NEW_CODE in one.reasons for one in found)


def _takes_everybody(study: Study, label: str) -> bool:
    """Whether the dataset of a training label is made of the label maps of all annotators."""
    return study.fusion(label) is not None or study.plans.shared_intensity_statistics


def told_of_trainings(staleness: Staleness, coming: Mapping[str, Collection[str]]) -> list[str]:
    """A sentence about models that exist and will be trained again, with the cause; none if there are none.

    Args:
        staleness: what there is.
        coming: what is to come, from `to_come`.
    """
    key, above = key_of(TRAINED_MODEL), (key_of(PREPROCESSED_DATASET), key_of(TRAINING_CASES))
    again = [one for one in coming.get(TRAINED_MODEL.name, ()) if staleness.made(key, one)]
    if not again:
        return []
    labels = sorted({str(one) for model in again for one in staleness.inputs(key, model, above[0])})
    reasons = {reason for model in again for reason in staleness.status(key, model).reasons}
    reasons |= {
        reason
        for asset in above
        for one in labels
        if staleness.made(asset, one)
        for reason in staleness.status(asset, one).reasons
    }
    cause = (
        "the study file has other training patients, annotators, images, organs, plans or settings of the training than they "
        "were made with"
        if NEW_CODE in reasons
        else "files of training patients, or the datasets themselves, are others than they learned from"
    )
    many = f"{len(again)} models that exist" if len(again) > 1 else "1 model that exists"
    return [
        f"{many} will be trained again, and all that is made from {'them' if len(again) > 1 else 'it'}, because {cause}. "
        "If that is not meant, undo the change before a launch: until then they are kept."
    ]


def study_sizes(
    study: Study, instance: dg.DagsterInstance, newest: Mapping[Asset, Sequence[Mapping[str, Any]]]
) -> StudySizes:
    """Sizes of scans from their records, and of trainings from those that are over."""
    training = dg.AssetRecordsFilter(key_of(SCAN), asset_partitions=study.training_patients())
    scans = [*newest.get(SCAN, ()), *newest_rows(instance, training, NEWEST_CELLS)]
    tests = newest_rows(instance, key_of(TEST_SCAN), MOST_SHAPES)
    voxels: dict[str, int] = {}
    files: dict[str, float] = {}
    for row in reversed([*scans, *tests]):  # the newest is looked at last, and stays
        if found := voxels_in(row["shape"]):
            voxels[row["partition"]] = found
    for row in reversed(scans):
        files[row["partition"]] = float(row["bytes_down"] or 0)
    return StudySizes(study, voxels, files)


def lost_seconds(instance: dg.DagsterInstance, newest: Mapping[Asset, Sequence[Mapping[str, Any]]]) -> dict[str, float]:
    """Asset → seconds that failed runs worked without making anything, as far back as the asset's cells were read.

    A step counts from its first start, because it may have waited for a GPU before. Attempts that a later attempt of the
    same run made good are not seen.
    """
    lost: dict[str, float] = {}
    since = {row.name: (0.0 if len(cells) < NEWEST_CELLS else cells[-1]["made"]) for row, cells in newest.items()}
    of_step = {"__".join(key_of(row).path): row.name for row in newest}
    """A step is named like its asset, with the deployment's prefix before it."""
    made = Counter[tuple[str, str]]()
    for cells in newest.values():
        for one in cells:
            made[one["run"], one["asset"]] += one["seconds"]
    for record in instance.get_run_records(dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE]), limit=MOST_FAILURES):
        run_id = record.dagster_run.run_id
        for step, seconds in _failed_steps(instance, run_id, record.end_time or 0.0).items():
            asset = of_step.get(step)
            if asset and (record.start_time or 0.0) > since[asset]:  # so that all it made is among these cells
                lost[asset] = lost.get(asset, 0.0) + max(0.0, seconds - made[run_id, asset])
    return lost


def _failed_steps(instance: dg.DagsterInstance, run_id: str, run_ended: float) -> dict[str, float]:
    """Step of a failed run → seconds from its first start to its failure, or to the run's end if it was killed."""
    kinds = {dg.DagsterEventType.STEP_START, dg.DagsterEventType.STEP_FAILURE, dg.DagsterEventType.STEP_SUCCESS}
    started: dict[str, float] = {}
    ended: dict[str, float] = {}
    for record in instance.get_records_for_run(run_id, of_type=kinds, limit=STEP_EVENTS, ascending=True).records:
        step, event = record.event_log_entry.step_key or "", record.event_log_entry.get_dagster_event()
        if event.is_step_start:
            started.setdefault(step, record.timestamp)
        elif event.is_step_success:
            ended[step] = started.get(step, record.timestamp)
        else:
            ended[step] = record.timestamp
    return {step: ended.get(step, run_ended) - start for step, start in started.items()}


@dataclass(frozen=True)
class _View:
    """All that is known when the rows of a forecast are made."""

    study: Study
    staleness: Staleness
    capacity: Capacity
    sizes: StudySizes
    newest: Mapping[Asset, Sequence[Mapping[str, Any]]]
    lost: Mapping[str, float]
    under_way: UnderWay

    def stage(self, row: Asset, coming: Sequence[str]) -> Stage:
        """The row of an asset with partitions."""
        needs = getattr(StageNeeds.of(self.study), row.needs)
        device = self._device(row)
        used, note, least_factor = self._usable(row, device)
        sizes = self.sizes
        if row is TRAINED_MODEL and used:  # a training may end before the study's largest number of epochs
            sizes = replace(sizes, epochs=mean(one["epochs"] or self.study.training.epochs for one in used))
        measured = [
            self._measured(row, one, sizes, began, fetched_bytes)
            for one, began, fetched_bytes in zip(used, _began(used), self._fetched_by(row, used), strict=True)
        ]
        if row is ENSEMBLE_SOFTMAX:
            measured = _by_patient(used, measured)
        begin, running = self._runs(row, coming)
        worked, lost = sum(one.seconds for one in measured), self.lost.get(row.name, 0.0)
        if lost >= 1:
            note = "; ".join([*([note] if note else []), f"failures took {duration(lost / 3600)} so far"])
        return Stage(
            row.name,
            done=self._done(row, coming),
            to_come=[sizes.of(row, one) for one in coming],
            prior=prior(self.study, row, gpu=device == "cuda"),
            measured=measured,
            begin=begin,
            open=running,
            per_run=row.per_run,
            workers=self.capacity.gpu_steps if needs.pool else self.capacity.runs,
            gpu=device == "cuda",
            fetched_bytes=self._fetched(row, coming),
            disk_bytes=sizes.scratch_bytes(
                row, coming, self._bytes_of(PREPROCESSED_DATASET), self._bytes_of(TRAINED_MODEL)
            ),
            piece="patient" if row is ENSEMBLE_SOFTMAX else "cell",
            failing=lost / worked if worked else 0.0,
            least_factor=least_factor,
            note=note,
        )

    def tables(self, rows: Sequence[Asset], coming: Collection[str]) -> Stage:
        """One row for all assets without partitions, which one run makes."""
        used = [(row, one) for row in rows for one in self.newest[row]]
        return Stage(
            TABLES,
            done=sum(self._done(row, [""] if row.name in coming else []) for row in rows),
            to_come=[self.sizes.of(row, "") for row in rows if row.name in coming],
            prior=prior(self.study, rows[0], gpu=False),
            measured=[self._measured(row, one, self.sizes) for row, one in used],
            begin=int(any(row.name in coming for row in rows)),
            per_run=len(rows),
        )

    def _device(self, row: Asset) -> str:
        """The kind of device on which cells to come will be made."""
        if row is TRAINED_MODEL:
            return self.capacity.device(self.study.training.device)
        return self.capacity.device(self.study.prediction.device) if row in PREDICTED else "cpu"

    def _usable(self, row: Asset, device: str) -> tuple[list[Mapping[str, Any]], str, float]:
        """The measured cells that tell what cells to come will take; what to know of them; the least factor of the range.

        Cells of another kind of device never count, nor do partitions that belong to the study no more. Those made with
        other settings count only where there is nothing better; of a network never, because its size decides.
        """
        own = set(self.staleness.partitions(key_of(row)))
        cells = [one for one in self.newest[row] if one["partition"] in own]
        here = [one for one in cells if str(one["device"]).split()[0] == device]
        if not here:
            others = Counter(str(one["device"]).split()[0] for one in cells)
            told = ", ".join(f"{count} on {kind}" for kind, count in others.items())
            return [], f"{told} do not count for {device}" if told else "", LEAST_FACTOR
        code = self.staleness.graph.get(key_of(row)).code_version
        since = self._networks_since() if row in PREDICTED else 0.0
        now = [one for one in here if one["code"] == code and one["made"] >= since]
        if not now and row in (TRAINED_MODEL, *PREDICTED):
            return [], f"{len(here)} made with other settings do not count", LEAST_FACTOR
        return (now, "", LEAST_FACTOR) if now else (here, "made with other code or settings", FACTOR_OF_ONE)

    def _networks_since(self) -> float:
        """When the first model of the present settings was made: volumes before it are other networks'."""
        models = self.newest[TRAINED_MODEL]
        code = self.staleness.graph.get(key_of(TRAINED_MODEL)).code_version
        return min((one["made"] for one in models if one["code"] == code), default=math.inf if models else 0.0)

    def _measured(
        self, row: Asset, one: Mapping[str, Any], sizes: StudySizes, began: bool = False, fetched: float = 0.0
    ) -> Measured:
        trained = max(1, (one["epochs"] or self.study.training.epochs) - (one["resumed"] or 0))
        stored = one["bytes_up"] if one["bytes"] is None else one["bytes"]
        return Measured(
            sizes.of(row, one["partition"], epochs=trained),
            float(one["seconds"]),
            max(0.0, float(one["bytes_down"] or 0) - fetched),
            float(stored or 0),
            began,
        )

    def _done(self, row: Asset, coming: Collection[str]) -> int:
        key, again = key_of(row), set(coming)
        partitions = self.staleness.partitions(key)
        return sum(self.staleness.made(key, one) and (one or "") not in again for one in partitions)

    def _runs(self, row: Asset, coming: Sequence[str]) -> tuple[int, int]:
        """Runs that will begin for the cells to come, and runs that have made a cell already and will make some of them."""
        begun, key = {one["run"] for one in self.newest[row]}, key_of(row)
        running: set[str] = set()
        left: list[str] = []
        for one in coming:
            if makers := begun.intersection(maker.id for maker in self.under_way.makers(key, one)):
                running |= makers
            else:
                left.append(one)
        definition = self.staleness.graph.get(key).partitions_def
        to_begin = len(batches(definition, left, row.per_run, self.staleness.instance)) if definition else 0
        return to_begin, len(running)

    def _fetched(self, row: Asset, coming: Collection[str]) -> float:
        """Bytes that each run of an asset fetches before its first cell: its models, or the patients to train on."""
        if row is PREPROCESSED_DATASET:
            return sum(map(self.sizes.file_bytes, self.study.training_patients()))
        predictors = {Cell.of(one).predictor for one in coming} if row in PREDICTED else ()
        return weights_fetched(self.study, predictors) * self._bytes_of(TRAINED_MODEL)

    def _fetched_by(self, row: Asset, cells: Sequence[Mapping[str, Any]]) -> list[float]:
        """How many of these bytes are in what each measured cell read: each model comes with the first cell of its own."""
        if row is PREPROCESSED_DATASET:
            return [began * self._fetched(row, ()) for began in _began(cells)]
        if row not in PREDICTED:
            return [0.0] * len(cells)
        model, seen = self._bytes_of(TRAINED_MODEL), set[tuple[str, str]]()
        found: list[float] = []
        for one in reversed(cells):  # the oldest first
            predictor = Cell.of(one["partition"]).predictor
            of_run = one["run"], str(ModelId.parse(predictor).trained)
            found.append(0.0 if of_run in seen else model * weights_fetched(self.study, [predictor]))
            seen.add(of_run)
        return found[::-1]

    def _bytes_of(self, row: Asset) -> float:
        """Of one stored partition: measured, else by the prior."""
        stored = [float(one["bytes"]) for one in self.newest[row] if one["bytes"]]
        size = self.sizes.of(row, "").stored
        return mean(stored) if stored else prior(self.study, row, gpu=False).bytes_stored * size


def _began(cells: Sequence[Mapping[str, Any]]) -> list[bool]:
    """Of cells, the newest first: whether each was the first of its run.

    The run of the oldest cell may have begun before it, unless all cells of the asset are here.
    """
    runs = [one["run"] for one in cells]
    first = [run not in runs[index + 1 :] for index, run in enumerate(runs)]
    return [*first[:-1], first[-1] and len(cells) < NEWEST_CELLS] if first else []


def _by_patient(cells: Sequence[Mapping[str, Any]], measured: Sequence[Measured]) -> list[Measured]:
    """Measured cells of a run and a patient as one: all ensembles of a patient come from one pass, told as the first's."""
    groups: dict[tuple[str, str], list[Measured]] = {}
    for one, found in zip(cells, measured, strict=True):
        groups.setdefault((one["run"], patient_of(one["partition"])), []).append(found)
    return [
        Measured(
            Sizes(*(sum(getattr(one.sizes, side) for one in group) for side in ("work", "read", "stored"))),
            sum(one.seconds for one in group),
            sum(one.bytes_down for one in group),
            sum(one.bytes_stored for one in group),
            any(one.began_run for one in group),
        )
        for group in groups.values()
    ]
