"""Dagster's webserver and daemon on a code location of the tests, for as long as a block lasts."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from curvas_assets.local.deployment import ROOT, free_port

# The daemon looks for new backfills every 30 s; the tests do not wait that long.
DAEMON = """
import sys
from dagster._daemon import controller
controller.DEFAULT_DAEMON_INTERVAL_SECONDS = 1
from dagster._daemon.cli import cli
sys.argv = ["dagster-daemon", "run", "-m", sys.argv[1]]
cli()
"""


@contextmanager
def served(module: str, environment: Mapping[str, str], logs: Path, *, seconds: float = 90) -> Iterator[str]:
    """The URL of a running UI.

    Args:
        module: code location to load.
        environment: of the processes; DAGSTER_HOME is in it.
        logs: folder for their output.
        seconds: how long to wait for the location to load.
    """
    port = free_port(0)
    commands = {
        "webserver": [
            str(Path(sys.executable).with_name("dagster-webserver")),
            *("-m", module, "-h", "127.0.0.1", "-p", str(port)),
        ],
        "daemon": [sys.executable, "-c", DAEMON, module],
    }
    with ExitStack() as stack:
        processes = {}
        for name, command in commands.items():
            output = stack.enter_context((logs / f"{name}.log").open("w"))
            processes[name] = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            stack.callback(_stop, processes[name], 5)
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + seconds
        while not answers(url):
            for name, process in processes.items():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the {name} does not answer:\n{(logs / f'{name}.log').read_text()[-3000:]}")
            time.sleep(0.3)
        yield url


def _stop(process: subprocess.Popen, seconds: float) -> None:
    """End a process and what it started, politely first."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        pass
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def answers(url: str) -> bool:
    """Whether a UI answers."""
    try:
        with urllib.request.urlopen(f"{url}/server_info", timeout=2):
            return True
    except OSError:
        return False
