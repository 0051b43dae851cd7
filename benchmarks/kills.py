"""kill -9 of everything, again and again, while the job `study` runs: it must end by itself in the state of an unbroken run.

    python -m benchmarks.kills --kills 60              cheap work in the phantom study's shape, some minutes
    python -m benchmarks.kills --kills 20 --real       the phantom study itself, with nnU-Net; half an hour and more
    python -m benchmarks.kills --together              two studies at once, five relaunches, make_missing beside a backfill
    python -m benchmarks.kills --away 60               once during each stage the store is away for so many seconds; nothing fails

Killed are processes of steps, of runs, the fork server of these, the daemon, the code server, the webserver, the S3 server, and
the whole machine: all at once, the owner (`make ui`) too, which is then started again, as an operating system would. Nothing else is done by hand: no run is
launched, ended or freed. A study that ends before the kills are used up is followed by another one on an empty state.

Counted in the end: torn (an artefact that does not read back whole), lost (a partition that is missing or stale), stuck (a run
that has not ended, a slot of the pool that is held, a process that is left), trained twice (a training that began anew after its
last epoch), and epochs that were begun more than once, which is what a kill costs.
"""

import argparse
import atexit
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import dagster as dg
import psutil
from dagster_graphql import DagsterGraphQLClient

from curvas_assets.local.demo import Progress, upload_cohort
from curvas_assets.local.deployment import LocalDeployment, free_port
from curvas_assets.local.server import EmbeddedS3
from curvas_assets.local.ui import serve
from curvas_assets.orchestration.environment import variable
from curvas_assets.orchestration.execution import GPU_POOL
from curvas_assets.orchestration.launcher import processes
from curvas_assets.orchestration.staleness import Staleness
from curvas_assets.orchestration.study_run import STUDY_JOB
from curvas_assets.orchestration.under_way import unfinished_records
from curvas_assets.stages.table import STAGES, STUDY_SCORES
from curvas_assets.storage.connection import S3Settings, connect
from curvas_assets.study import Study, load_study
from curvas_assets_tests.browser.serving import answers

Seen = TypeVar("Seen")
CHEAP = "curvas_assets_tests.orchestration.kill_location"
REAL = "curvas_assets.definitions"
WEIGHTS = {"step": 10, "run worker": 7, "S3": 4, "code server": 3, "fork server": 2, "daemon": 2, "machine": 2}
"""Of 30 kills. What works is killed most."""
PROGRESS_SECONDS = 90
"""The next kill waits for something to be made, a new epoch at least, but not longer."""
OF_THE_MOMENT = ("cost", "predictor_cost", "figures", "report")
"""Assets that hold times or costs: their content differs from run to run."""
QUIET_SECONDS = 600
"""Silence after which a study counts as stuck."""


class KilledDeployment(LocalDeployment):
    """The demo's, with a process a step, on a code location of ours."""

    def __init__(self, state: Path, location: str, study: str = "phantom"):
        super().__init__(state, study, alone=True)
        self.location = location

    def environment(self) -> dict[str, str]:
        notes = {"KILL_NOTES": str(self.state / "notes")} | {
            name: value for name, value in os.environ.items() if name.startswith("KILL_UNIT")
        }
        return super().environment() | notes | {variable("executor"): "multiprocess"}

    def dagster_command(self, port: int) -> list[str]:
        command = super().dagster_command(port)
        at = command.index("-w")
        return [*command[:at], "-m", self.location, *command[at + 2 :]]


class Round:
    """One study on an empty state.

    Args:
        state: folder.
        location: module of the code location.
        tell: told what happens.
        study: its name or file.
        stages: assets to make, by `make_missing`; all, by `study`, if there are none.
    """

    def __init__(self, state: Path, location: str, tell: Progress, study: str = "phantom", stages: Sequence[str] = ()):
        self.state, self.location, self.tell, self.study_file = state, location, tell, study
        self.stages, self.job = list(stages), "make_missing" if stages else STUDY_JOB
        self.study = load_study(study)
        self.deployment = KilledDeployment(state, location, study)
        self.home = str(self.deployment.home)
        self.port = free_port(0)
        self.owner: subprocess.Popen | None = None
        self.killed: Counter[tuple[str, str]] = Counter()
        self._progress_then = 0
        self._opened: dg.DagsterInstance | None = None

    @property
    def instance(self) -> dg.DagsterInstance:
        """The state's records, opened once: that costs 0.1 s of CPU, and they are looked at every second."""
        if self._opened is None:
            self._opened = dg.DagsterInstance.from_config(self.home)
        return self._opened

    def start(self) -> None:
        self.start_owner()
        settings = S3Settings.from_environment(self._environment())
        if self.location == REAL:
            upload_cohort(self.study, settings, self.state / "cohort", self.tell)
        else:
            objects = connect(settings)
            for patients in self.study.sets.values():
                for patient in patients:
                    objects.put(f"data/{patient}/image.nii.gz", patient.encode())
        if self.stages:  # what `study` does first
            self.wait_for_ui()  # two that make Dagster's tables at once are in each other's way
            with dg.DagsterInstance.from_config(self.home) as instance:
                everyone = [patient for patients in self.study.sets.values() for patient in patients]
                instance.add_dynamic_partitions("patient", everyone)
                instance.add_dynamic_partitions("test_patient", self.study.scored_patients())
        self.launch(self.job, **({"stages": self.stages} if self.stages else {}))

    def launch(self, job: str, seconds: float = 300, **settings: object) -> None:
        """Launch a job as the UI does; while nothing answers, again."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                self.client().submit_job_execution(job, run_config=settings, repository_location_name=self.location)
                return
            except Exception:
                if time.monotonic() > deadline:
                    raise
                time.sleep(1)

    def wait_for_ui(self, seconds: float = 300) -> None:
        deadline = time.monotonic() + seconds
        while not answers(f"http://127.0.0.1:{self.port}"):
            assert time.monotonic() < deadline, "the UI does not come up"
            time.sleep(0.5)

    def client(self) -> DagsterGraphQLClient:
        return DagsterGraphQLClient("127.0.0.1", port_number=self.port)

    def start_owner(self) -> None:
        command = [sys.executable, "-m", "benchmarks.kills", "--own", str(self.state), "--port", str(self.port)]
        with (self.state / "owner.log").open("a") as log:
            self.owner = subprocess.Popen(
                [*command, "--location", self.location, "--study", self.study_file],
                env={**os.environ, variable("gpu_slots"): "2"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        atexit.register(self.owner.terminate)  # or it would outlive a campaign that failed
        deadline = time.monotonic() + 120
        while EmbeddedS3(self.state).pid is None or not self._store_answers():
            assert self.owner.poll() is None, (self.state / "owner.log").read_text()[-3000:]
            assert time.monotonic() < deadline, "the owner does not start"
            time.sleep(0.2)

    def _environment(self) -> dict[str, str]:
        return self.deployment.environment()

    def _store_answers(self) -> bool:
        try:
            store = connect(S3Settings.from_environment(self._environment()), read_timeout_s=2, attempts=1)
            next(iter(store.list("")), None)
            return True
        except Exception:
            return False

    def victims(self, kind: str) -> list[psutil.Process]:
        """Processes of a kind that live now."""
        if kind == "S3":
            pid = EmbeddedS3(self.state).pid
            return [] if pid is None else [psutil.Process(pid)]
        runs = self._jobs()
        return [process for process in self._processes() if _kind(process, runs) == kind]

    def _processes(self) -> list[psutil.Process]:
        """Of this state, the owner left out."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.pid == os.getpid() or (self.owner and process.pid == self.owner.pid):
                    continue
                if process.status() != psutil.STATUS_ZOMBIE and process.environ().get("DAGSTER_HOME") == self.home:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def kill(self, kind: str, rng: random.Random) -> bool:
        """Kill one of a kind; False if there is none."""
        jobs = self._jobs()
        if kind == "machine":
            assert self.owner is not None
            names = " + ".join(sorted(set(jobs.values()) - {STUDY_JOB})) or "between stages"
            self.owner.send_signal(signal.SIGKILL)  # first, or it would start again what dies
            self.owner.wait()
            s3 = EmbeddedS3(self.state).pid
            while found := [*self._processes(), *([psutil.Process(s3)] if s3 and psutil.pid_exists(s3) else [])]:
                for process in found:
                    _kill(process)
                s3 = None
            self.tell(f"killed the machine, during {names}")
            self.killed[kind, names] += 1
            self.start_owner()
            return True
        found = self.victims(kind)
        if not found:
            return False
        victim = rng.choice(found)
        if kind == "run worker":
            name = jobs.get(victim.pid, "starting")
        elif kind == "step":
            name = self._steps().get(victim.pid, "step")
        else:
            name = " + ".join(sorted(set(jobs.values()) - {STUDY_JOB})) or "between stages"
        _kill(victim)
        self.tell(f"killed {kind} {victim.pid} ({name})")
        self.killed[kind, name] += 1
        return True

    def kill_job(self, job: str, rng: random.Random) -> bool:
        """Kill the process of a run of a job; False if there is none."""
        found = [psutil.Process(pid) for pid, name in self._jobs().items() if name == job and psutil.pid_exists(pid)]
        if found:
            _kill(rng.choice(found))
        return bool(found)

    def _jobs(self) -> dict[int, str]:
        """Process of a run → its job."""
        started = dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.STARTING])
        return {
            pid: run.job_name
            for run in self.instance.get_runs(started)
            for pid, _ in processes(self.instance, run.run_id)
        }

    def _steps(self) -> dict[int, str]:
        """Process of a step → its run's job."""
        started = dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED])
        return {
            int(str(event.engine_event_data.metadata["pid"].value)): run.job_name
            for run in self.instance.get_runs(started)
            for entry in self.instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_WORKER_STARTED)
            if (event := entry.dagster_event) and "pid" in event.engine_event_data.metadata
        }

    def wait_for_progress(self) -> None:
        """Until an epoch or a partition is done more than at the last kill."""
        deadline = time.monotonic() + PROGRESS_SECONDS
        while self._progress() == self._progress_then and time.monotonic() < deadline and not self.has_ended():
            time.sleep(0.5)
        self._progress_then = self._progress()

    def _progress(self) -> int:
        notes = self.state / "notes"
        if notes.exists():
            return notes.stat().st_size
        return len(self.instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.SUCCESS])))

    def has_ended(self) -> bool:
        studies = self.instance.get_runs(dg.RunsFilter(job_name=self.job), limit=1)
        return bool(studies) and studies[0].is_finished and not unfinished_records(self.instance)

    def wait(self) -> bool:
        """Until the study has ended by itself; False if nothing happens any more."""
        seen, since = -1, time.monotonic()
        while not self.has_ended():
            latest = self.instance.event_log_storage.get_maximum_record_id() or 0
            if latest != seen:
                seen, since = latest, time.monotonic()
            if time.monotonic() - since > QUIET_SECONDS:
                return False
            time.sleep(1)
        return True

    def store_is_away(self, seconds: float) -> None:
        """Kill the S3 server, and keep the owner from starting it again for a while."""
        server = EmbeddedS3(self.state)
        with server.alone():
            _kill(psutil.Process(server.pid))
            time.sleep(seconds)

    def wait_for_stage(self, job: str) -> None:
        """Until a run of the stage has begun its work, or the study has ended."""
        started = dg.RunsFilter(job_name=job, statuses=[dg.DagsterRunStatus.STARTED])
        while not self.has_ended():
            with dg.DagsterInstance.from_config(self.home) as instance:
                for run in instance.get_runs(started):
                    if instance.get_records_for_run(run.run_id, of_type=dg.DagsterEventType.STEP_START).records:
                        return
            time.sleep(0.2)

    def stop(self) -> float:
        """End the owner as Ctrl-C does; seconds that took. The state stays."""
        assert self.owner is not None
        atexit.unregister(self.owner.terminate)
        start = time.monotonic()
        self.owner.send_signal(signal.SIGINT)
        self.owner.wait(60)
        seconds = time.monotonic() - start
        if self._opened is not None:
            self._opened.dispose()
            self._opened = None
        return seconds

    def findings(self) -> dict[str, object]:
        """What is wrong, once the study has ended; the store must run."""
        found: dict[str, object] = {}
        with dg.DagsterInstance.from_config(self.home) as instance:
            latest = instance.get_runs(dg.RunsFilter(job_name=self.job), limit=1)
            found["study"] = latest[0].status.value if latest else "never launched"
            found["runs"] = len(instance.get_runs())
            unfinished = [
                f"{r.dagster_run.job_name} {r.dagster_run.status.value}" for r in unfinished_records(instance)
            ]
            pool = instance.event_log_storage.get_concurrency_info
            # The daemon frees those of a killed run some seconds after its end.
            slots = _what_stays(lambda: pool(GPU_POOL).active_slot_count, 30)
            graph = self._definitions().resolve_asset_graph()
            staleness = Staleness(graph, instance)
            keys = [key for key in graph.toposorted_asset_keys if not graph.get(key).is_external]
            keys = [key for key in keys if not self.stages or key.to_user_string() in self.stages]
            lost = [f"{key.to_user_string()} {one or ''}" for key in keys for one in staleness.due(key)]
            made = Counter(
                f"{key.to_user_string()} {record.partition_key}"
                for key in keys
                if graph.get(key).partitions_def is not None
                for record in instance.fetch_materializations(key, limit=5000).records
            )
            found["versions"] = versions(instance, keys)
        found["lost"], found["made twice"] = lost, sorted(name for name, count in made.items() if count > 1)
        left = _what_stays(self._steps_and_runs, 15)  # though their runs have ended
        found["stuck"] = [*unfinished, *(["a slot of the pool"] * slots), *left]
        notes = self.state / "notes"
        found |= training_notes(notes.read_text().splitlines() if notes.exists() else [])
        found["torn"] = self._torn()
        return found

    def _steps_and_runs(self) -> list[str]:
        """Kinds of those processes that are a step's or a run's."""
        return [kind for one in self._processes() if (kind := _kind(one)) in ("step", "run worker")]

    def _definitions(self) -> dg.Definitions:
        os.environ.update(self._environment())
        if self.location == REAL:
            from curvas_assets.definitions import build_definitions

            return build_definitions(self.study, executor="multiprocess")
        from curvas_assets_tests.orchestration.kill_location import build

        return build(self.study)

    def _torn(self) -> list[str]:
        from curvas_assets.orchestration.bucket import Bucket

        os.environ.update(self._environment())
        with tempfile.TemporaryDirectory() as folder:
            if self.location == REAL:
                return _torn_of_real(self.study, Bucket(), Path(folder))
            from curvas_assets_tests.orchestration.kill_location import read_back

            try:
                read_back(self.study, Bucket(), Path(folder), self.stages)
            except Exception as error:
                return [str(error)]
        return []


def _torn_of_real(study: Study, bucket, folder: Path) -> list[str]:
    """Volumes, folders and tables of a study that do not read back whole."""
    from curvas_assets.storage import directories, tables
    from curvas_assets.storage.softmax import open_softmax

    objects, layout = bucket.objects(), bucket.layout
    predictors = [str(one) for one in (*study.models, *study.ensemble_ids)]
    checks = {
        **{
            f"softmax {p} {m}": lambda p=p, m=m: open_softmax(objects, layout.softmax(p, m)).array()
            for p in study.scored_patients()
            for m in predictors
        },
        **{
            f"model {m}": lambda m=m: directories.read_directory(objects, layout.model(str(m)), folder / str(m))
            for m in study.models
        },
        **{
            f"dataset {a}": lambda a=a: directories.read_directory(objects, layout.dataset(a), folder / a)
            for a in study.annotator_names
        },
        "report": lambda: directories.read_directory(objects, layout.report(), folder / "report"),
        "study_scores": lambda: tables.read_table(objects, STUDY_SCORES.place(layout)),
    }
    torn = []
    for name, check in checks.items():
        try:
            check()
        except Exception as error:
            torn.append(f"{name}: {error}")
    return torn


def versions(instance: dg.DagsterInstance, keys: list[dg.AssetKey]) -> dict[str, str]:
    """Content of every partition, as its data version: what an unbroken run must equal."""
    tag, found = "dagster/data_version", {}
    for key in (key for key in keys if key.to_user_string() not in OF_THE_MOMENT):
        by_partition = instance.event_log_storage.get_latest_tags_by_partition(
            key, dg.DagsterEventType.ASSET_MATERIALIZATION, [tag]
        )
        found |= {f"{key.to_user_string()} {one}": tags[tag] for one, tags in by_partition.items() if one}
        if not found.keys() & {f"{key.to_user_string()} {one}" for one in by_partition}:
            record = instance.get_latest_data_version_record(key)
            tags = (record.asset_materialization.tags if record and record.asset_materialization else None) or {}
            found[key.to_user_string()] = tags.get(tag, "")
    return found


def training_notes(lines: list[str]) -> dict[str, object]:
    """From the notes of the cheap trainings: which began anew after their last epoch, and how many epochs were repeated."""
    epochs: dict[str, list[int]] = defaultdict(list)
    for line in lines:
        kind, *rest = line.split()
        if kind == "epoch":
            epochs[rest[0]].append(int(rest[1]))
    last = max((max(one) for one in epochs.values()), default=0)
    twice = [m for m, begun in epochs.items() if last in begun[:-1] and min(begun[begun.index(last) + 1 :]) < last]
    repeated = sum(len(begun) - len(set(begun)) for begun in epochs.values())
    return {
        "trained twice": twice,
        "epochs repeated": repeated,
        "epochs": sum(len(set(one)) for one in epochs.values()),
    }


def _what_stays(look: Callable[[], Seen], seconds: float) -> Seen:
    """What is still there after so many seconds; looked at again and again, until nothing is."""
    deadline = time.monotonic() + seconds
    while True:
        seen = look()
        if not seen or time.monotonic() > deadline:
            return seen
        time.sleep(0.5)


def _kind(process: psutil.Process, runs: Collection[int] = ()) -> str:
    """What a process is; runs and steps are forked from the same fork server, and only the log tells them apart.

    Args:
        process: of a state.
        runs: the processes of its runs.
    """
    command = _command(process)
    if "dagster_webserver" in command:
        return "webserver"
    if "dagster._daemon" in command:
        return "daemon"
    if "api grpc" in command:
        return "code server"
    if "multiprocessing.forkserver" in command:
        parent = process.parent()
        if parent is None or "multiprocessing.forkserver" not in _command(parent):
            return "fork server"
        return "run worker" if process.pid in runs else "step"
    if "multiprocessing.spawn" in command:
        return "run worker"
    return "other"


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
        process.wait(10)
    except (psutil.NoSuchProcess, psutil.TimeoutExpired):
        pass


def campaign(
    kills: int,
    folder: Path,
    *,
    location: str = CHEAP,
    study: str = "phantom",
    stages: Sequence[str] = (),
    seed: int = 1,
    pause_s: tuple[float, float] = (1, 8),
    weights: Mapping[str, int] = WEIGHTS,
    unbroken: dict[str, str] | None = None,
    minutes: float = float("inf"),
) -> dict[str, object]:
    """Rounds of the study until that many kills were made, or the time is over; what came of them, added up.

    Args:
        kills: how many.
        folder: for the states, which are removed when a round ended well.
        location: module of the code location.
        study: its name or file.
        stages: assets to make; all if there are none.
        seed: of the order of kills and their times.
        pause_s: from the first progress after a kill to the next one, least and most, s.
        weights: kind of process → how often it is killed, compared with the others.
        unbroken: contents of an unbroken run, to compare with.
        minutes: after which nothing is killed any more; the study under way then ends by itself.
    """
    rng, tell, deadline = random.Random(seed), Progress(), time.monotonic() + 60 * minutes
    each = [kind for kind, weight in weights.items() for _ in range(weight)]
    plan = [kind for _ in range(-(-kills // len(each))) for kind in rng.sample(each, len(each))][:kills]
    total: dict[str, object] = {"rounds": 0, "kills": Counter(), "stages": Counter(), "runs": 0, "stops": []}
    for name in ("torn", "lost", "stuck", "trained twice", "made twice", "different", "unfinished studies"):
        total[name] = []
    total["epochs repeated"] = total["epochs"] = 0
    while plan:
        state = folder / f"round{total['rounds']}"
        state.mkdir(parents=True)
        one = Round(state, location, tell, study, stages)
        one.start()
        while plan:
            one.wait_for_progress()
            time.sleep(rng.uniform(*pause_s))
            if one.has_ended() or time.monotonic() > deadline:
                break
            for kind in [*plan, "machine"]:  # the first of the plan that there is something of
                if one.kill(kind, rng):
                    plan.remove(kind) if kind in plan else plan.pop()
                    break
        ended = one.wait()
        found = one.findings()
        total["stops"].append(round(one.stop(), 1))  # type: ignore[union-attr]
        finished = ended and found["study"] == "SUCCESS"
        if not finished:
            total["unfinished studies"].append(f"round {total['rounds']}: {found['study']}")  # type: ignore[union-attr]
        for name in ("torn", "lost", "stuck", "trained twice", "made twice"):
            total[name] += found[name]  # type: ignore[operator]
        for name in ("epochs repeated", "epochs", "runs"):
            total[name] += found[name]  # type: ignore[operator]
        if unbroken is not None:
            contents = found["versions"]
            assert isinstance(contents, dict)
            names = unbroken.keys() | contents.keys()
            total["different"] += sorted(n for n in names if unbroken.get(n) != contents.get(n))  # type: ignore[operator]
        for (kind, stage), count in one.killed.items():
            total["kills"][kind] += count  # type: ignore[index]
            for name in stage.split(" + "):
                total["stages"][name] += count  # type: ignore[index]
        total["rounds"] += 1  # type: ignore[operator]
        tell(
            f"round ended: {found['study']}, {len(plan)} kills left; { {k: v for k, v in found.items() if k != 'versions'} }"
        )
        if not finished:
            break  # its state stays, to be looked at
        shutil.rmtree(state)
        if time.monotonic() > deadline:
            break
    return total


def together(folder: Path) -> dict[str, object]:
    """What two people do at once: two studies, five relaunches of one that is killed, `make_missing` beside a UI's backfill."""
    tell, state, rng = Progress(), folder / "together", random.Random(1)
    state.mkdir(parents=True)
    one = Round(state, CHEAP, tell)
    one.start()
    one.launch(STUDY_JOB)
    tell("two studies are launched")
    for number in range(5):
        one.wait_for_progress()
        while not one.kill_job(STUDY_JOB, rng):
            time.sleep(0.2)
        one.launch(STUDY_JOB)
        tell(f"relaunch {number + 1} of a study that was killed")
    assert one.wait()
    found: dict[str, object] = {"studies": one.findings()}
    softmax = dg.AssetKey("softmax")
    cells = [f"{model}|{patient}" for patient in one.study.scored_patients() for model in one.study.models]
    with dg.DagsterInstance.from_config(one.home) as instance:
        instance.wipe_assets([softmax])
    backfill = """mutation ($cells: [String!]!) { launchPartitionBackfill(backfillParams: {
        assetSelection: [{path: ["softmax"]}], partitionNames: $cells}) { __typename } }"""
    answer = one.client()._execute(backfill, {"cells": cells})
    tell(f"a backfill of {len(cells)} cells is asked for: {answer}")
    one.launch("make_missing", stages=["softmax"])
    time.sleep(5)
    one.launch("make_missing", stages=["softmax"])
    with dg.DagsterInstance.from_config(one.home) as instance:
        deadline = time.monotonic() + 600
        while unfinished_records(instance) or len(instance.get_materialized_partitions(softmax)) < len(cells):
            assert time.monotonic() < deadline, "the cells were not made"
            time.sleep(1)
        runs = instance.get_runs(dg.RunsFilter(job_name="make_missing"))
        found["make_missing"] = [run.status.value for run in runs]
    after = one.findings()
    after["lost"] = [name for name in after["lost"] if name.startswith("softmax ")]  # type: ignore[attr-defined]
    found["backfill"] = after
    one.stop()
    for part in ("studies", "backfill"):
        del found[part]["versions"]  # type: ignore[attr-defined]
    return found


def outages(seconds: float, folder: Path, stages: Sequence[str]) -> dict[str, object]:
    """One study during each of whose stages the store is away once; what came of it, with the runs that failed."""
    tell, state = Progress(), folder / "outages"
    state.mkdir(parents=True)
    one = Round(state, CHEAP, tell)
    one.start()
    for stage in stages:
        one.wait_for_stage(stage)
        tell(f"{stage}: the store is away for {seconds:g} s")
        one.store_is_away(seconds)
    ended, found = one.wait(), one.findings()
    with dg.DagsterInstance.from_config(one.home) as instance:
        failed = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE]))
        found["failed runs"] = [run.job_name for run in failed]
        waits = [
            entry
            for run in instance.get_runs()
            for entry in instance.all_logs(run.run_id)
            if "waiting for the store" in (entry.user_message or "")
        ]
        found["lines that say so"] = len(waits)
    one.stop()
    del found["versions"]
    if not ended:
        found["failed runs"] = [*failed, "the study itself"]
    return found


def unbroken_run(folder: Path, location: str) -> tuple[dict[str, str], float]:
    """Contents of a study that nobody kills, and the seconds it took."""
    state = folder / "unbroken"
    state.mkdir(parents=True)
    one, start = Round(state, location, Progress()), time.monotonic()
    one.start()
    assert one.wait()
    seconds = time.monotonic() - start
    found = one.findings()
    one.stop()
    assert found["study"] == "SUCCESS", found
    assert not found["lost"], found
    contents = found["versions"]
    assert isinstance(contents, dict)
    shutil.rmtree(state)
    return contents, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--real", action="store_true", help="the phantom study itself")
    parser.add_argument(
        "--away", type=float, help="no kills: the store is away for so many seconds, once in each stage"
    )
    parser.add_argument("--together", action="store_true", help="no other kills: what two people do at once")
    parser.add_argument("--stages", nargs="+", default=list(STAGES), help="with --away: these alone")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="of killing, at most")
    parser.add_argument("--least", type=float, default=1, help="from progress to the next kill, at least, s")
    parser.add_argument("--most", type=float, default=8, help="and at most")
    parser.add_argument("--own", type=Path, help=argparse.SUPPRESS)  # this script as the owner of a state
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--location", help=argparse.SUPPRESS)
    parser.add_argument("--study", default="phantom", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.own:
        try:
            serve(KilledDeployment(arguments.own, arguments.location, arguments.study), arguments.port)
        except KeyboardInterrupt:
            pass
        return
    folder = Path(tempfile.mkdtemp(prefix="curvas-kills-"))
    if arguments.together:
        both = together(folder)
        print(json.dumps(both, indent=1, default=str))
        sys.exit(
            any(both[name][wrong] for name in ("studies", "backfill") for wrong in ("made twice", "lost", "stuck"))
        )  # type: ignore[index]
    if arguments.away:
        found = outages(arguments.away, folder, arguments.stages)
        print(json.dumps(found, indent=1, default=str))
        sys.exit(any(bool(found[name]) for name in ("failed runs", "torn", "lost", "stuck", "made twice")))
    contents, pause = None, (arguments.least, arguments.most)
    if arguments.real:  # what the cheap work is to leave is known
        contents, seconds = unbroken_run(folder, REAL)
        print(f"an unbroken study takes {seconds:.0f} s", flush=True)
    location = REAL if arguments.real else CHEAP
    found = campaign(
        arguments.kills,
        folder,
        location=location,
        seed=arguments.seed,
        pause_s=pause,
        unbroken=contents,
        minutes=arguments.minutes,
    )
    print(json.dumps(found, indent=1, default=str))
    wrong = [
        name for name in ("torn", "lost", "stuck", "trained twice", "different", "unfinished studies") if found[name]
    ]
    print(
        "every study ended by itself as if nothing had happened"
        if not wrong
        else f"NOT: {', '.join(wrong)}; see {folder}"
    )
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
