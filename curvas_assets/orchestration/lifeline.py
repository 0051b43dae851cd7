"""A step ends with its run: once the run has failed or been cancelled, the step must not work beside its replacement.

If a run's own process is gone, Dagster does not kill its other processes. A step in another process (`multiprocess`, a
Celery worker) would train for hours, hold its GPU, and write the same artefacts as the retried run.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager

import dagster as dg
import psutil

LOOK_SECONDS = 5.0

_is_a_workers = False
"""Whether this is a process that a Celery worker has forked for its steps."""


def belongs_to_steps() -> None:
    """Mark this process as started to run steps, if `multiprocessing` does not know that."""
    global _is_a_workers
    _is_a_workers = True


def _may_end_this_process() -> bool:
    """Whether this process was started to run a step or a run. A console or a test that runs one within itself was not."""
    return _is_a_workers or multiprocessing.parent_process() is not None


@contextmanager
def ends_with_its_run(instance: dg.DagsterInstance, run_id: str, every_s: float = LOOK_SECONDS) -> Generator[None]:
    """While the block runs, end this process, and those it has started, once its run has failed or been cancelled."""
    if not _may_end_this_process():
        yield
        return
    done = threading.Event()

    def watch() -> None:
        while not done.wait(every_s):
            try:
                run = instance.get_run_by_id(run_id)
            except Exception:  # the database is away, which says nothing about the run
                continue
            if (run is None or (run.is_finished and not run.is_success)) and not done.wait(every_s):
                end_this_process()

    threading.Thread(target=watch, name="lifeline", daemon=True).start()
    try:
        yield
    finally:
        done.set()


def end_this_process() -> None:
    """Kill it at once: nobody is left to report to, and the next writer removes what is half-written."""
    for child in psutil.Process().children(recursive=True):
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue
    os.kill(os.getpid(), signal.SIGKILL)
