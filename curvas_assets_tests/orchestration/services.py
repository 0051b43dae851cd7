"""Real servers on loopback for the tests: Redis and Postgres from Debian, Celery workers. Each ends with its block."""

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from glob import glob
from pathlib import Path
from typing import Any

from curvas_assets.local.deployment import free_port

ROOT = Path(__file__).resolve().parents[2]
READY_SECONDS = 60


POSTGRES_FOLDERS = "/usr/lib/postgresql/*/bin"
"""Where Debian keeps a server's programs, which are not on the path."""


def postgres_folder() -> Path | None:
    """Where `initdb` and `postgres` are; None if the server is not installed."""
    folders = [Path(folder) for folder in sorted(glob(POSTGRES_FOLDERS))]
    found = shutil.which("initdb", path=os.pathsep.join([*map(str, folders), os.environ.get("PATH", "")]))
    return Path(found).resolve().parent if found else None


@contextmanager
def postgres() -> Iterator[str]:
    """A server with an empty database, on loopback and behind a password; its URL.

    Postgres refuses to run as root: then it runs as `nobody`, in a folder that user owns.
    """
    programs, port, password = postgres_folder(), free_port(0), secrets.token_hex(16)
    assert programs is not None
    who: dict[str, Any] = {}
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        who = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    with tempfile.TemporaryDirectory(prefix="curvas-postgres-", ignore_cleanup_errors=True) as folder:
        given, data, log = Path(folder, "password"), Path(folder, "data"), Path(folder, "log")
        given.write_text(password)
        if who:
            for path in (Path(folder), given):
                os.chown(path, who["user"], who["group"])
        initialise = [
            programs / "initdb",
            "-D",
            data,
            "-U",
            "curvas",
            "--auth=scram-sha-256",
            f"--pwfile={given}",
            "-N",
        ]
        subprocess.run([*initialise, "-E", "UTF8"], check=True, capture_output=True, cwd=folder, **who)
        command = [str(programs / "postgres"), "-D", str(data), "-p", str(port), "-c", "listen_addresses=127.0.0.1"]
        command += ["-c", "unix_socket_directories=", "-c", "fsync=off"]
        with _process(command, log, {**os.environ}, folder, **who) as process:
            _wait(lambda: b"ready to accept connections" in log.read_bytes(), process)
            yield f"postgresql+psycopg2://curvas:{password}@127.0.0.1:{port}/postgres"


def redis_program() -> str | None:
    return shutil.which("redis-server")


@contextmanager
def redis(folder: Path) -> Iterator[str]:
    """A Redis that keeps nothing on disk; its URL. What it is asked to do goes to `redis-commands.log`."""
    program, port = redis_program(), free_port(0)
    assert program is not None
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    with _process(command, folder / "redis.log", {**os.environ}) as process:
        _wait(lambda: b"Ready to accept connections" in (folder / "redis.log").read_bytes(), process)
        monitor = ["redis-cli", "-p", str(port), "monitor"]
        with _process(monitor, folder / "redis-commands.log", {**os.environ}):
            yield f"redis://127.0.0.1:{port}/0"


@contextmanager
def celery_workers(
    queues: Mapping[str, str], folder: Path, environment: Mapping[str, str]
) -> Iterator[dict[str, subprocess.Popen]]:
    """Workers, started as `docs/machines.md` says: name → queue. They are `name@here` in Dagster's events."""
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
def _process(
    command: list[str], log: Path, environment: Mapping[str, str], folder: Path | str = ROOT, **who: Any
) -> Iterator[subprocess.Popen]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=dict(environment), stdout=output, stderr=output, start_new_session=True, **who
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
