"""`make demo`: takes a phantom cohort through the whole lineage, on an S3 server and a Dagster instance of its own.

Makes the cohort, puts it into the bucket as a user would, launches the job `study` and follows it. A second demo finds
everything up to date and takes seconds. Any study whose patients are synthetic can be shown: `make demo STUDY=phantom-full`.
"""

import argparse
import itertools
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
from dagster_graphql import DagsterGraphQLClient

from curvas_assets.cohort.phantom import CONTRASTS, Disagreement, write_cohort
from curvas_assets.errors import CurvasError, StudyError
from curvas_assets.file_paths import ANY, PATIENT, below_data
from curvas_assets.local.deployment import DEMO_STUDY, LocalDeployment, require_port, state_of, typed_as
from curvas_assets.local.processes import DagsterDev, end_cleanly_when_told, owner
from curvas_assets.orchestration.dagster_internals import (
    AUTO_RETRY_RUN_ID_TAG,
)
from curvas_assets.orchestration.environment import deployment as settings_here
from curvas_assets.orchestration.environment import variable
from curvas_assets.orchestration.study_run import STUDY_JOB
from curvas_assets.orchestration.under_way import unfinished_records, waits_for_retry
from curvas_assets.storage import tables
from curvas_assets.storage.connection import S3Settings, connect
from curvas_assets.study import Study, load_study

EXECUTOR = variable("executor")
START_SECONDS = 300
"""How long a busy machine may take to start Dagster and load the study."""
PHANTOM_SEED = 20240501
"""Seed of the demo's cohort: the same voxels on every machine."""
OF_HABITS = (DEMO_STUDY, "phantom")
"""Studies whose annotators have habits of their own: they share one cohort, whose scores are compared over time."""
COHORT: dict[str, Any] = {"shape": (48, 96, 96), "spacing_mm": (5.0, 3.5, 3.5), "seed": PHANTOM_SEED}


class Progress:
    """Lines with the time since the start."""

    def __init__(self) -> None:
        self.start = time.monotonic()

    def __call__(self, message: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - self.start), 60)
        print(f"[{minutes}:{seconds:02d}] {message}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--study", default=DEMO_STUDY, help="name or path of a study whose patients are synthetic")
    parser.add_argument("--state", type=Path, help="folder of everything the demo keeps")
    parser.add_argument("--port", type=int, default=3000, help="of the UI while the demo runs")
    arguments = parser.parse_args()
    state = arguments.state or state_of(arguments.study)
    try:
        succeeded = run(state, arguments.port, Progress(), arguments.study)
    except CurvasError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        print(f"stopped: the next `{typed_as('demo', state, arguments.study)}` goes on from here", flush=True)
        sys.exit(130)
    sys.exit(0 if succeeded else 1)


def run(state: Path, port: int, tell: Progress, name: str = DEMO_STUDY) -> bool:
    """Run the demo: a synthetic study on a store of its own, whatever the caller's environment says. True if it succeeded.

    Raises:
        StudyError: the study's patients are not synthetic, or there is no such study.
        InUseError: the state is in use.
        StorageError: the port is in use, or the store does not start.
    """
    study = load_study(name)
    require_synthetic(study)

    def bring(settings: S3Settings) -> None:
        upload_cohort(study, settings, state.resolve() / "cohort", tell)

    return run_study(study, name, state, port, tell, bring, typed_as("demo", state, name))


def run_study(
    study: Study, name: str, state: Path, port: int, tell: Progress, bring: Callable[[S3Settings], None], what: str
) -> bool:
    """Run a study on a store and an instance of its own, whatever the caller's environment says. True if it succeeded.

    Args:
        study: the study.
        name: by which Dagster's processes load it, a built-in name or a path.
        state: folder of everything that is kept.
        port: of the UI while the study runs.
        tell: told of the progress.
        bring: puts the patients into the bucket of these settings, as far as they are not there.
        what: the user typed.

    Raises:
        InUseError: the state is in use.
        StorageError: the port is in use, or the store does not start.
    """
    deployment = LocalDeployment(state, study=name, alone=True)
    end_cleanly_when_told(deployment.state)
    with owner(deployment.state, what, f"http://127.0.0.1:{port}"):
        require_port(port)
        with deployment.s3:
            environment = deployment.environment() | {EXECUTOR: chosen_executor(os.environ.get(EXECUTOR, ""), tell)}
            settings = S3Settings.from_environment(environment)
            tell(f"S3 server ready: bucket {settings.bucket} at {settings.endpoint}")
            bring(settings)
            # One step a GPU; without any, as many side by side as there are cores, one thread each.
            deployment.set_gpu_slots(settings_here().gpu_steps(without=os.cpu_count() or 1))
            with (
                dg.DagsterInstance.from_config(str(deployment.home)) as instance,
                deployment.reports(environment, port) as report,
                deployment.dagster({**environment, variable("report_url"): report}, port) as process,
            ):
                tell(f"Dagster starts; watch the study at http://127.0.0.1:{port}, and later its report at {report}")
                succeeded = follow(instance, study_under_way(instance, tell) or launch(process, port), tell)
            summarise(study, settings, deployment, state, tell, succeeded)
    return succeeded


def require_synthetic(study: Study) -> None:
    """Refuse to make up patients for a study that does not say they are made up: its report would not say so either."""
    if not study.synthetic:
        raise StudyError(
            "running the demo",
            study.name,
            "its patients are not synthetic, and the demo makes them up",
            "Name a study with `synthetic: true`, such as phantom or phantom-full; for patients of your own, `make study`.",
        )


def cohort_of(study: Study) -> dict[str, Any]:
    """How `write_cohort` makes the patients of a study: its organs, as many annotators, and how these disagree.

    In the demo, and in the published study in small, annotators have different habits; those of others are drawn from a known
    distribution, so that what its predictors say can be compared with the truth.
    """
    drawn = None if study.name in OF_HABITS else Disagreement()
    images = {"images": images_of(study)} if study.channels else {}
    return {**COHORT, "organs": study.labels, "annotators": len(study.annotators), "disagreement": drawn, **images}


def images_of(study: Study) -> dict[str, str]:
    """File name → what phantoms show there: a CT where HU are normalised, else the MR sequence of the channel's name, or T1 and T2 in
    turn.
    """
    sequences, shown = itertools.cycle(CONTRASTS), dict[str, str]()
    for channel in study.images:
        usual = next(sequences) if not channel.is_ct and channel.name not in CONTRASTS else channel.name
        shown[channel.file] = "CT" if channel.is_ct else usual
    return shown


def chosen_executor(asked: str, tell: Progress) -> str:
    """The executor that was asked for, if it needs only this machine; else `in_process`."""
    if asked.strip() in ("", "in_process", "multiprocess", "local"):
        return asked.strip() or "in_process"
    tell(f"{EXECUTOR}={asked} is ignored: the study runs on this machine alone")
    return "in_process"


def upload_cohort(study: Study, settings: S3Settings, folder: Path, tell: Progress) -> None:
    """Make the phantom patients that are not in the bucket yet, and upload them."""
    objects = connect(settings)
    patients = sorted(patient for members in study.sets.values() for patient in members)
    there = {item.key for item in objects.list(f"{settings.data_dir}/")}
    made = ["image.nii.gz", *(f"annotation_{k}.nii.gz" for k in range(1, len(study.annotators) + 1))]
    places = {p: [f"{settings.data_dir}/{_place(file, p)}" for file in study.files] for p in patients}
    missing = [p for p in patients if any(key not in there for key in places[p])]
    if not missing:
        tell(f"cohort: {len(patients)} phantom patients are in the bucket")
        return
    tell(f"cohort: making {len(missing)} phantom patients, {len(study.annotators)} annotators, seed {PHANTOM_SEED}")
    groups = {p: study.patient_group(p) or "A" for p in missing}
    write_cohort(folder, patients=missing, groups=groups, label_values=study.label_values, **cohort_of(study))
    for count, patient in enumerate(missing, 1):
        for name, key in zip(made, places[patient], strict=True):
            objects.upload(key, folder / patient / name)
        tell(f"cohort: {count} of {len(missing)}, {patient} uploaded")


def _place(file: str, patient: str) -> str:
    """Where a made-up patient's file is put below the data prefix."""
    return below_data(file).replace(PATIENT, patient).replace(ANY, "phantoms")


def study_under_way(instance: dg.DagsterInstance, tell: Progress) -> str | None:
    """The id of an earlier demo's run that Dagster continues after a stop or a kill; None if there is none."""
    for record in unfinished_records(instance):
        if record.dagster_run.job_name == STUDY_JOB:
            tell("the study of an earlier start is still running; it is followed")
            return record.dagster_run.run_id
    return None


def launch(process: DagsterDev, port: int) -> str:
    """Launch the job `study` as soon as Dagster answers, and return the run's id.

    Raises:
        CurvasError: Dagster does not start, or does not answer for `START_SECONDS`.
    """
    client = DagsterGraphQLClient("127.0.0.1", port_number=port)
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            return client.submit_job_execution(STUDY_JOB, repository_location_name="curvas_assets")
        except Exception as error:
            told, remedy = "launching the study", "See logs/dagster.log in the state folder, and start again."
            if process.has_ended:
                raise CurvasError(told, "Dagster", "it ended while starting", remedy) from error
            if time.monotonic() > deadline:
                found = f"it did not answer for {START_SECONDS} s ({' '.join(str(error).split())[:200]})"
                raise CurvasError(told, "Dagster", found, remedy) from error
            time.sleep(0.5)


def follow(instance: dg.DagsterInstance, run_id: str, tell: Progress) -> bool:
    """Print the log of the study's run, or of the run that continues it, until it ends. True if it succeeded."""
    cursor = None
    while True:
        record = instance.get_run_record_by_id(run_id)
        page = instance.get_records_for_run(run_id, cursor=cursor)
        cursor = page.cursor
        for entry in (one.event_log_entry for one in page.records):
            if entry.dagster_event is None:
                tell(str(entry.user_message))
            elif entry.dagster_event.is_step_failure:
                failure = entry.dagster_event.step_failure_data
                described = failure.user_failure_data and failure.user_failure_data.description
                tell(described or (failure.error.to_string() if failure.error else "a step failed"))
        if record is None:
            return False
        run = record.dagster_run
        if run.is_finished and not waits_for_retry(instance, record):
            if AUTO_RETRY_RUN_ID_TAG not in run.tags:
                return run.is_success
            tell("the study's run was killed; a new run continues it")
            run_id, cursor = run.tags[AUTO_RETRY_RUN_ID_TAG], None
        time.sleep(0.3)


def summarise(
    study: Study, settings: S3Settings, deployment: LocalDeployment, state: Path, tell: Progress, succeeded: bool
) -> None:
    """The results in a few lines, the report on disk, and what to do next."""
    ui = typed_as("ui", state, deployment.study)
    if not succeeded:
        tell(f"the study did not succeed: `{ui}` shows why; Dagster's own log is {deployment.logs / 'dagster.log'}")
        return
    from curvas_assets.statistics import shown_scores, with_unit
    from curvas_assets.storage import directories

    objects = connect(settings)
    report = state / "report"
    directories.read_directory(objects, f"{settings.reports_dir}/report", report)
    scores = tables.read_table(objects, f"{settings.metrics_dir}/study_scores.parquet")
    shown = shown_scores(scores[scores["metric"].isin(["dice", "confidence", "ece", "crps", "predictive_entropy"])])
    titled = [with_unit(metric, unit) for metric, unit in zip(shown["metric"], shown["unit"], strict=True)]
    means = shown.assign(metric=titled).groupby(["family", "metric"], sort=False)["value"].mean().unstack("metric")
    print(f"\n{study.title}: mean over {scores['patient'].nunique()} test patients\n\n{means.round(4).to_string()}\n")
    tell("done")
    print(f"Report:  {report / 'report.html'}   (each new one is copied there)\nUI:      {ui}\n")


if __name__ == "__main__":
    main()
