"""A Dagster deployment on this machine: state folder, instance, environment of its processes, start and stop."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import dagster as dg

from curvas_assets.errors import StorageError
from curvas_assets.local.server import EmbeddedS3, private_folder
from curvas_assets.orchestration.environment import postgres_url
from curvas_assets.orchestration.execution import GPU_POOL

ROOT = Path(__file__).resolve().parents[2]
POSTGRES_SCHEME = "postgresql+psycopg2://"


class LocalDeployment:
    """Everything below one git-ignored folder: the bucket, Dagster's home, scratch.

    Args:
        state: the folder; made if it is not there, and closed to other users of the machine.
        study: the study to load, a built-in name or a path.
    """

    def __init__(self, state: Path, study: str):
        self.state = private_folder(Path(state).resolve())
        self.study = study
        self.home = self.state / "dagster"
        self.scratch = self.state / "scratch"
        self.logs = self.state / "logs"
        for folder in (self.home, self.scratch, self.logs):
            folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(instance_file(), self.home / "dagster.yaml")
        self.s3 = EmbeddedS3(self.state)

    def environment(self) -> dict[str, str]:
        """What Dagster's processes need to know. Settings of the caller win, but never another bucket's keys."""
        return {
            **os.environ,
            "DAGSTER_HOME": str(self.home),
            "CURVAS_STUDY": os.environ.get("CURVAS_STUDY", self.study),
            "CURVAS_SCRATCH": str(self.scratch),
            "CURVAS_REPORT_FOLDER": str(self.state / "report"),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
            **self.s3.environment(),
        }

    @contextmanager
    def dagster(self, environment: Mapping[str, str], port: int) -> Iterator[subprocess.Popen]:
        """`dagster dev` with this state, until the block ends; its output goes to the state's log folder."""
        log = self.logs / "dagster.log"
        command = [*self.dagster_command(port), "--log-level", "warning"]
        with log.open("w") as output:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=dict(environment),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                yield process
            finally:
                stop(process)

    def set_gpu_slots(self, slots: int) -> None:
        """How many GPU steps run at a time, over all runs of this deployment."""
        with dg.DagsterInstance.from_config(str(self.home)) as instance:
            instance.event_log_storage.set_concurrency_slots(GPU_POOL, slots)

    def dagster_command(self, port: int) -> list[str]:
        binary = Path(sys.executable).with_name("dagster")
        return [str(binary), "dev", "-w", str(ROOT / "workspace.yaml"), "-h", "127.0.0.1", "-p", str(port)]


def instance_file() -> Path:
    """The instance file of this machine: SQLite, or Postgres where `CURVAS_POSTGRES_URL` names one.

    Raises:
        StorageError: the URL names no driver. SQLAlchemy 2.1 would take psycopg 3, and dagster-postgres has psycopg 2.
    """
    url = postgres_url()
    if url is None:
        return ROOT / "dagster.yaml"
    if not url.startswith(POSTGRES_SCHEME):
        raise StorageError(
            "choosing Dagster's storage",
            "CURVAS_POSTGRES_URL",
            f"it begins with {url.partition('://')[0]}://",
            f"Begin it with {POSTGRES_SCHEME}.",
        )
    return ROOT / "deploy" / "postgres" / "dagster.yaml"


def stop_cleanly_when_terminated() -> None:
    """SIGTERM ends this process as Ctrl-C does: what it started is stopped first."""

    def end(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)


def free_port(preferred: int = 3000) -> int:
    """A loopback port nobody listens on; the preferred one if it is free."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return probe.getsockname()[1]
    raise OSError("no free port on 127.0.0.1")


def stop(process: subprocess.Popen, seconds: float = 20) -> None:
    """End a process and what it started, politely first."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + seconds
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()
