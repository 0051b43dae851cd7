"""A Dagster deployment on this machine: state folder, instance, environment of its processes, start and stop."""

import os
import shlex
import shutil
import socket
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
from botocore.httpsession import where

from curvas_assets.errors import StorageError
from curvas_assets.local.processes import DagsterDev
from curvas_assets.local.server import EmbeddedS3, private_folder
from curvas_assets.orchestration.bucket import layout_of
from curvas_assets.orchestration.environment import PREFIX, deployment, variable
from curvas_assets.orchestration.execution import GPU_POOL
from curvas_assets.orchestration.launcher import is_of_this_machine
from curvas_assets.orchestration.report_server import served
from curvas_assets.storage.connection import S3Settings, connect

ROOT = Path(__file__).resolve().parents[2]
"""The checkout, or the folder that the package was installed to."""
FILES = Path(__file__).resolve().parent
"""Where the instance files and the workspace are, which are part of the package; a checkout has links to them."""
SQLITE, POSTGRES, WORKSPACE = FILES / "dagster.yaml", FILES / "postgres.yaml", FILES / "workspace.yaml"
POSTGRES_SCHEME = "postgresql+psycopg2://"
RETRIES_CURSOR = f"EVENT_LOG_CONSUMER_CURSOR-{dg.DagsterEventType.RUN_FAILURE.value}"
"""Key under which Dagster's daemon stores the last event up to which it has retried failed runs."""
OF_THE_MACHINE = tuple(map(variable, ("devices", "gpu_slots", "scratch_gib", "git_commit")))
"""Settings that belong to this machine, whatever the study."""
STORE = {
    "S3_STUDY_DIR": "",
    "S3_DATA_DIR": "data",
    "S3_ARTIFACTS_DIR": "artifacts",
    "S3_OUTPUT_DIR": "output",
    "S3_METRICS_DIR": "metrics",
    "S3_REPORTS_DIR": "reports",
    "AWS_CA_BUNDLE": where(),
    "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
}
"""The other variables that describe a store, with the values of the embedded one. They are set so that no `.env` overrides them."""


DEMO_STUDY = "demo"
"""The study of `make demo` and `make ui` unless they are told another."""


def typed_as(program: str, state: Path, study: str = DEMO_STUDY, *, data: str = "") -> str:
    """What a user types for a program of this package: `make demo` in a checkout, Python's module elsewhere.

    Args:
        program: `demo`, `ui` or `study`.
        state: the folder of its state.
        study: the study's name or path.
        data: the folder of the patients' files, of `study`.
    """
    if (ROOT / "Makefile").is_file():
        chosen = [
            "" if study == DEMO_STUDY else f" STUDY={shlex.quote(study)}",
            f" DATA={shlex.quote(data)}" if data else "",
            "" if state.resolve() == state_of(study).resolve() else f" STATE={shlex.quote(str(state))}",
        ]
        return f"make {program}{''.join(chosen)}"
    chosen = [
        "" if study == DEMO_STUDY else f" --study {shlex.quote(study)}",
        f" --data {shlex.quote(data)}" if data else "",
    ]
    return f"python -m curvas_assets.local.{program} --state {shlex.quote(str(state))}{''.join(chosen)}"


def state_of(study: str) -> Path:
    """The folder that a study's state is kept in unless another is named: each synthetic study has a store of its own."""
    return Path(".state" if study == DEMO_STUDY else f".state-{Path(study).stem}")


class LocalDeployment:
    """Everything below one git-ignored folder: the bucket, Dagster's home, scratch.

    Args:
        state: the folder; made if it is not there, and closed to other users of the machine.
        study: the study to load, a built-in name or a path.
        alone: whether to ignore all settings of a study or store in the caller's environment or `.env`. The demo does, because
            it must not write to a real store.
    """

    def __init__(self, state: Path, study: str, *, alone: bool = False):
        self.state = private_folder(Path(state).resolve())
        self.study = study
        self.alone = alone
        self.home = self.state / "dagster"
        self.scratch = self.state / "scratch"
        self.logs = self.state / "logs"
        for folder in (self.home, self.scratch, self.logs):
            folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(SQLITE if alone else instance_file(), self.home / "dagster.yaml")
        self.s3 = EmbeddedS3(self.state, lasting=True)

    def environment(self) -> dict[str, str]:
        """The environment of Dagster's processes. The caller's settings win, except those that name another store, and another
        study than the one whose state this is.
        """
        given = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        chosen = given.get(variable("study"), self.study) if self.study == DEMO_STUDY else self.study
        if self.alone:
            ours = dict.fromkeys(map(variable, ("broker", "postgres_url", "webhook_url")), "")
            given = {n: v for n, v in given.items() if not n.startswith(PREFIX) or n in OF_THE_MACHINE} | ours
            chosen = self.study
        return {
            **given,
            **STORE,
            **self.s3.environment(),
            "DAGSTER_HOME": str(self.home),
            variable("study"): chosen,
            variable("scratch"): str(self.scratch),
            variable("report_folder"): str(self.state / "report"),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
            "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "passive"),  # steps share the cores
        }

    @contextmanager
    def dagster(self, environment: Mapping[str, str], port: int) -> Generator[DagsterDev]:
        """`dagster dev` with this state, until the block ends; its output goes to the state's log folder.

        Parts that die are started again. Processes that a killed owner left are ended first, and its runs are marked as failed,
        so that new runs continue them. The working directory is the caller's, so that both read the same `.env`.
        """
        command = [*self.dagster_command(port), "--log-level", "warning"]
        record = self.state / "sessions.json"
        with DagsterDev(
            command, environment, Path.cwd(), self.logs / "dagster.log", record, before_start=self.fail_dead_runs
        ) as process:
            yield process

    @contextmanager
    def reports(self, environment: Mapping[str, str], port: int) -> Generator[str]:
        """Serve the report beside the UI until the block ends; gives the address.

        Args:
            environment: of the store.
            port: of the UI; the next one is taken if it is free.
        """
        settings = S3Settings.from_environment(environment)
        with served(connect(settings), layout_of(settings), port + 1) as address:
            yield address

    def fail_dead_runs(self) -> None:
        """Mark runs as failed that a crash of the machine left active in Dagster's records. Call it while nothing runs on this state.

        With Postgres, other machines may have active runs; there the launcher's health check finds the dead ones.
        """
        with dg.DagsterInstance.from_config(str(self.home)) as instance:
            if not is_of_this_machine(instance):
                return
            # The daemon retries what has failed since its first look; a crash may come before that.
            if not instance.daemon_cursor_storage.get_cursor_values({RETRIES_CURSOR}):
                latest = instance.event_log_storage.get_maximum_record_id() or 0
                instance.daemon_cursor_storage.set_cursor_values({RETRIES_CURSOR: str(latest)})
            under_way = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
            for run in instance.get_runs(dg.RunsFilter(statuses=under_way)):
                told = "its process was killed, or ended with Dagster"
                if run.status is dg.DagsterRunStatus.CANCELING:
                    instance.report_run_canceled(run, told)
                else:
                    instance.report_run_failed(run, told)

    def set_gpu_slots(self, slots: int) -> None:
        """How many GPU steps run at a time, over all runs of this deployment."""
        with dg.DagsterInstance.from_config(str(self.home)) as instance:
            instance.event_log_storage.set_concurrency_slots(GPU_POOL, slots)

    def dagster_command(self, port: int) -> list[str]:
        binary = Path(sys.executable).with_name("dagster")
        return [str(binary), "dev", "-w", str(WORKSPACE), "-h", "127.0.0.1", "-p", str(port)]


def instance_file() -> Path:
    """The instance file of this machine: Postgres if `CURVAS_POSTGRES_URL` is set, else SQLite.

    Raises:
        StorageError: the URL names no driver. SQLAlchemy 2.1 would take psycopg 3, and dagster-postgres has psycopg 2.
    """
    url = deployment().postgres_url
    if url is None:
        return SQLITE
    if not url.startswith(POSTGRES_SCHEME):
        raise StorageError(
            "choosing Dagster's storage",
            variable("postgres_url"),
            f"it begins with {url.partition('://')[0]}://",
            f"Begin it with {POSTGRES_SCHEME}.",
        )
    return POSTGRES


def require_port(port: int) -> None:
    """Raise a StorageError if a program listens on a loopback port. Remains of closed connections do not count."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise StorageError(
                "starting the UI",
                f"port {port}",
                "another program listens there",
                f"End it, or choose another: PORT={port + 10} (the report is served on the port after it).",
            ) from None


def free_port(preferred: int = 3000) -> int:
    """A loopback port on which no program listens; the preferred one if it is free."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return probe.getsockname()[1]
    raise OSError("no free port on 127.0.0.1")
