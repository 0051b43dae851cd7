"""Runs and their steps begin in a process that has loaded Dagster and the code location already (Linux).

For each run Dagster starts a new interpreter, and for its steps one more. Each loads Dagster and the definitions, seconds of
work before a cell that may take a quarter of one. Here a code server keeps a process that has loaded both (a fork server of
`multiprocessing`), and every run, and every step, is forked from it. Nothing else changes: a run has a process of its own,
whose end the code server sees, whose number stands in the run's log, and which lives on when the code server is killed.

- Once a file of the package, the study file or `.env` has changed, runs begin as Dagster starts them, so that none mixes old
  code with new; from the next reload of the location on they are forked again.
- If the warm process is killed, its runs end with it, as killed runs do: the code server marks them as failed, they are
  retried, and their steps end (`lifeline`). The next run starts another warm process.
"""

import ctypes
import errno
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from multiprocessing import forkserver, reduction, resource_tracker
from multiprocessing.context import BaseContext, ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

from curvas_assets.orchestration.dagster_internals import code_server, reconstructable_repositories

REPOSITORIES = "CURVAS_WARM_REPOSITORIES"
"""Environment variable by which the warm process is told what to load."""
OF_STEPS = "dagster._core.executor.multiprocess"
"""Module that Dagster's executor has a fork server load before it starts steps."""
PRELOADED = ("dagster._grpc.impl", OF_STEPS, "curvas_assets.orchestration.warmed")
PACKAGE = Path(__file__).parents[1]
END_WITH_PARENT = 1
"""PR_SET_PDEATHSIG of Linux's prctl."""
AGAIN_SECONDS = 0.5
"""Between attempts to fork."""

_starting = threading.Lock()


def keep_warm(*files: str | Path) -> None:
    """From now on, runs that this process starts are forked from a warm one. For code servers; elsewhere nothing happens.

    A code location calls this where it makes its definitions.

    Args:
        files: what the definitions were made from, beside the package and `.env`: the study file.
    """
    server = code_server()
    if server is not None and sys.platform == "linux":  # on macOS, what a process has loaded may not survive a fork
        watched = [Path(file).resolve() for file in (*files, ".env")]
        loaded = _state(watched)

        def context(server: Any) -> BaseContext:
            return _warm_context(server) if _state(watched) == loaded else multiprocessing.get_context("spawn")

        # Which processes a server starts is said by an attribute that it sets itself, before or after this.
        server._mp_ctx = property(context, lambda _server, _set: None)


def _state(files: Iterable[Path]) -> dict[Path, int]:
    """When each file of the package, and each of these, was changed last; those that do not exist are left out."""
    found: dict[Path, int] = {}
    for file in (*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.yaml"), *files):
        try:
            found[file] = file.stat().st_mtime_ns
        except OSError:
            continue
    return found


def _warm_context(server: Any) -> "_WarmContext":
    """The context in which a code server starts its runs; the warm process is there, and may still be loading."""
    with _starting:
        repositories = reconstructable_repositories(server)
        if os.environ.get(REPOSITORIES) != repositories:  # set once: other threads read the environment
            os.environ[REPOSITORIES] = repositories
        forkserver.set_forkserver_preload(list(PRELOADED))
        forkserver.ensure_running()
    return _WarmContext()


class _Run(ForkServerProcess):
    """A run's process."""

    def run(self) -> None:
        warm = os.getppid()
        ctypes.CDLL(None).prctl(END_WITH_PARENT, signal.SIGKILL)
        if os.getppid() != warm:  # it was killed just before
            return
        _start_steps_from(warm)
        super().run()


class _WarmContext(ForkServerContext):
    Process = _Run  # pyright: ignore[reportAssignmentType]


def _start_steps_from(warm: int) -> None:
    """Steps that this process starts by a fork server are forked from the warm one, as long as that lives.

    Without this, the process would start a fork server of its own, which would load everything once more. What else it
    starts so, such as loaders of a training that runs within it, has a fork server of its own; what steps start has, too,
    because a step is forked from the warm process, where nothing is changed. From Python 3.14 on, a fork server answers
    only to who started it; there a run starts one of its own for its steps, as before.
    """
    own: Any = forkserver._forkserver  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
    if hasattr(own, "_forkserver_authkey"):
        return
    start: Callable[[], None] = own.ensure_running

    def ensure_running() -> None:
        if os.getppid() == warm and own._forkserver_pid is None and OF_STEPS in own._preload_modules:
            resource_tracker.ensure_running()
        else:
            start()

    own.ensure_running = ensure_running


# In the warm process --------------------------------------------------------------------------------------------------


def make_sturdy() -> None:
    """Have this fork server go on when a fork fails, or a client goes away in the middle of its request.

    By itself it ends then, and all runs that were forked from it with it.
    """
    own: Any = forkserver
    own.os = _Replacing(os, fork=_fork)
    own.reduction = _Replacing(reduction, recvfds=_received)


class _Replacing:
    """A module, as another one knows it, with some functions replaced."""

    def __init__(self, module: Any, **replaced: Any):
        self._module = module
        self.__dict__.update(replaced)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def _fork() -> int:
    """Fork, however often that fails for want of memory or process numbers."""
    while True:
        try:
            return os.fork()
        except OSError:
            time.sleep(AGAIN_SECONDS)


def _received(*arguments: Any) -> list[int]:
    """What a client sends. If it has gone away: the error after which a fork server goes on."""
    try:
        return reduction.recvfds(*arguments)
    except (EOFError, OSError) as error:
        raise ConnectionAbortedError(errno.ECONNABORTED, "a client has gone away") from error
