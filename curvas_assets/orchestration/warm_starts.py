"""Runs and their steps begin in a process that has loaded Dagster and the code location already (Linux).

For each run Dagster starts a new interpreter, and for its steps one more. Each loads Dagster and the definitions, nearly two
seconds of work before a cell that takes a quarter of a second. Here a code server starts one process that loads both once,
and every run, and every step, is forked from it. Nothing else changes: a run has a process of its own, whose end the code
server sees, whose number stands in the run's log, and which lives on when the code server is killed.

- A run sees the definitions that the UI shows; "Reload" starts another code server, and so another warm process.
- If the warm process is killed, the code server takes its runs for dead, as it takes a killed run; they are retried, and what
  is left of them ends itself (`lifeline`). The next run starts another warm process.
"""

import os
import sys
import threading
from collections.abc import Callable
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Any

from curvas_assets.orchestration.dagster_internals import code_server, reconstructable_repositories

REPOSITORIES = "CURVAS_WARM_REPOSITORIES"
"""Environment variable by which the warm process is told what to load, and of which it rids itself."""
PRELOADED = ("dagster._grpc.impl", "dagster._core.executor.multiprocess", "curvas_assets.orchestration.warmed")

_starting = threading.Lock()


def keep_warm() -> None:
    """From now on, runs that this process starts are forked from a warm one. For code servers; elsewhere nothing happens.

    A code location calls this where it makes its definitions.
    """
    server = code_server()
    if server is not None and sys.platform == "linux":  # on macOS, what a process has loaded may not survive a fork
        # Which processes a server starts is said by an attribute that it sets itself, before or after this.
        server._mp_ctx = property(_context, lambda _server, _set: None)


def _context(server: Any) -> "_WarmContext":
    """The context in which a code server starts its runs; the warm process is there when this returns."""
    with _starting:
        os.environ[REPOSITORIES] = reconstructable_repositories(server)
        try:
            forkserver.set_forkserver_preload(list(PRELOADED))
            forkserver.ensure_running()
        finally:
            del os.environ[REPOSITORIES]
    return _WarmContext()


class _Run(ForkServerProcess):
    """A run's process."""

    def run(self) -> None:
        _start_steps_from(os.getppid())
        super().run()


class _WarmContext(ForkServerContext):
    Process = _Run  # pyright: ignore[reportAssignmentType]


def _start_steps_from(warm: int) -> None:
    """Processes that this one starts by a fork server are forked from the warm one, as long as that lives.

    Without this, the process would start a fork server of its own, which would load everything once more. Those that steps
    start (loaders of a training) are not meant: a step is forked from the warm process, where nothing is changed. From
    Python 3.14 on, a fork server answers only to who started it; there a run starts one of its own, as before.
    """
    own = forkserver._forkserver  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
    if hasattr(own, "_forkserver_authkey"):
        return
    start: Callable[[], None] = own.ensure_running

    def ensure_running() -> None:
        if os.getppid() == warm:
            resource_tracker.ensure_running()
        else:  # it was killed, and another process has adopted this one
            start()

    own.ensure_running = ensure_running
