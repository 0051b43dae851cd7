"""Real servers on loopback for the tests: Redis and Postgres from Debian, Celery workers. Each ends with its block."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from curvas_assets.local.deployment import free_port

ROOT = Path(__file__).resolve().parents[2]
READY_SECONDS = 60


def redis_program() -> str | None:
    return shutil.which("redis-server")


@contextmanager
def redis(folder: Path) -> Iterator[str]:
    """A Redis that keeps nothing on disk; its URL."""
    program, port = redis_program(), free_port(0)
    assert program is not None
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    with _process(command, folder / "redis.log", {**os.environ}) as process:
        _wait(lambda: b"Ready to accept connections" in (folder / "redis.log").read_bytes(), process)
        yield f"redis://127.0.0.1:{port}/0"


@contextmanager
def celery_workers(
    queues: Mapping[str, str], folder: Path, environment: Mapping[str, str]
) -> Iterator[dict[str, subprocess.Popen]]:
    """Workers, started as the README says: name → queue. They are `name@here` in Dagster's events."""
    command = [
        sys.executable,
        "-m",
        "celery",
        "-A",
        "curvas_assets.orchestration.workers",
        "worker",
        "-c",
        "1",
        "-l",
        "INFO",
    ]
    with ExitStack() as running:
        started = {
            name: running.enter_context(
                _process([*command, "-Q", queue, "-n", f"{name}@here"], folder / f"{name}.log", environment)
            )
            for name, queue in queues.items()
        }
        for name, process in started.items():
            _wait(lambda name=name: b"ready." in (folder / f"{name}.log").read_bytes(), process)
        yield started


@contextmanager
def _process(command: list[str], log: Path, environment: Mapping[str, str], **options) -> Iterator[subprocess.Popen]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=dict(environment), stdout=output, stderr=output, start_new_session=True, **options
        )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                pass
            kill_group(process)


def kill_group(process: subprocess.Popen) -> None:
    """Kill -9 of a process and all that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def _wait(ready, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not ready():
        assert process.poll() is None, f"{process.args} ended with {process.returncode}"
        assert time.monotonic() < deadline, f"{process.args} is not ready"
        time.sleep(0.1)
