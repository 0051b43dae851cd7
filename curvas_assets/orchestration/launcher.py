"""Launches runs as Dagster's default launcher does, and can also tell whether a run's process is still alive.

The instance files name this launcher. Run monitoring asks it about every started run. A run whose process is gone is
marked as failed and then retried (`run_retries`), so a crash of machine, daemon or code server leaves no run hanging.
"""

import json
import socket
import time
from collections.abc import Callable
from functools import partial

import dagster as dg
import psutil

from curvas_assets.orchestration.dagster_internals import (
    GRPC_INFO_TAG,
    MAX_RETRIES_TAG,
    RETRY_NUMBER_TAG,
    RUN_FAILURE_REASON_TAG,
    CheckRunHealthResult,
    ConfigurableClass,
    DagsterLaunchFailedError,
    DagsterUserCodeUnreachableError,
    DefaultRunLauncher,
    LaunchRunContext,
    WorkerStatus,
    has_run_under_way,
    is_kept_in_files,
)

CLOCK_SECONDS = 2.0
"""How much later than its own log event a process may seem to have started, s. Process starts are counted from boot."""
RETRIES_OF_FAILURES = 2
TOLD = ("RUN_EXCEPTION", "JOB_INITIALIZATION_FAILURE")
"""Failure reasons that a run records by itself. A killed run records none."""
SINCE = psutil.Process().create_time()
"""When this process began."""
BOOTED = psutil.boot_time()
"""Boot time by the clock of that moment. Setting the clock shifts it, and with it the start time of every process."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class WatchedRunLauncher(DefaultRunLauncher, ConfigurableClass):
    """Dagster's default launcher, with a health check.

    A run's process is identified by its id in the run's log and by its age: a reused id belongs to a process that is
    younger than the event. For a run on another machine, its code server is asked. If that is impossible, the run
    counts as alive, because a run that is still working must never be marked as failed.
    """

    def launch_run(self, context: LaunchRunContext) -> None:
        """Launch as Dagster does, but give up a run that fails by itself again and again; killed runs are still
        retried.

        Raises:
            DagsterLaunchFailedError: the run has failed too often and is not retried again.
        """
        run = context.dagster_run
        if _failures_before(self._instance, run) > RETRIES_OF_FAILURES:
            self._instance.add_run_tags(run.run_id, {MAX_RETRIES_TAG: "0"})
            raise DagsterLaunchFailedError(
                f"Not launched again: the run was not killed; it failed {RETRIES_OF_FAILURES + 1} times before its steps began. "
                "The error is in the log of the previous run. Remove its cause, then launch again."
            )
        super().launch_run(context)

    @property
    def supports_check_run_worker_health(self) -> bool:
        return True

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        self.fail_dead_starts(SINCE)
        if not self._is_here(run):
            return self._asked(run)
        found = processes(self._instance, run.run_id)
        if not found:
            return CheckRunHealthResult(WorkerStatus.RUNNING, "no process is in its log yet")
        pid = next((pid for pid, since in found if is_alive(pid, since)), None)
        if pid is not None:
            return CheckRunHealthResult(WorkerStatus.RUNNING, run_worker_id=str(pid))
        pid, _ = found[-1]
        if self._has_ended(run.run_id):  # it ended after the run was read and before its processes were checked
            return CheckRunHealthResult(WorkerStatus.SUCCESS, run_worker_id=str(pid))
        return CheckRunHealthResult(
            WorkerStatus.NOT_FOUND,
            f"process {pid} of the run is gone: it or its machine was killed",
            run_worker_id=str(pid),
        )

    def terminate(self, run_id: str) -> bool:
        """Terminate through the code server, as Dagster does; if that server is gone, end the process itself."""
        try:
            return super().terminate(run_id)
        except DagsterUserCodeUnreachableError:
            run = self._instance.get_run_by_id(run_id)
            found = processes(self._instance, run_id) if run and self._is_here(run) else []
            alive = [pid for pid, since in found if is_alive(pid, since)]
            if not alive:
                raise
            for pid in alive:
                psutil.Process(pid).terminate()
            return True

    def fail_dead_starts(self, daemon_since: float = 0.0) -> list[str]:
        """Mark as failed the runs of this machine whose process died before they started, and return their ids.

        Run monitoring checks only started runs, and gives the others two minutes, enough for a start on a busy machine.

        Args:
            daemon_since: when the daemon began, POSIX time. An earlier launch without a process was its predecessor's.
        """
        failed = []
        starting = dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTING])
        for run in self._instance.get_runs(starting):
            if not self._is_here(run):
                continue
            every = processes(self._instance, run.run_id)
            if any(is_alive(*one) for one in every):
                continue
            launched = self._instance.get_run_stats(run.run_id).launch_time
            found = any(since >= (launched or 0.0) for _, since in every)  # earlier ones belong to an earlier launch
            if not found and (launched or time.time()) >= daemon_since:
                continue
            now = self._instance.get_run_by_id(run.run_id)
            if now and now.status is dg.DagsterRunStatus.STARTING:  # it may have begun or ended since the first look
                told = "its process was killed" if found else "the daemon that started it was killed"
                self._instance.report_run_failed(run, f"{told} before the run had started")
                failed.append(run.run_id)
        return failed

    def _has_ended(self, run_id: str) -> bool:
        run = self._instance.get_run_by_id(run_id)
        return run is None or run.is_finished

    def _is_here(self, run: dg.DagsterRun) -> bool:
        """Whether the run's process is on this machine. A run that no launcher started may be anywhere, unless the
        instance is kept in files of this machine.
        """
        if GRPC_INFO_TAG not in run.tags:
            return is_of_this_machine(self._instance)
        host = json.loads(run.tags[GRPC_INFO_TAG]).get("host") or LOOPBACK[0]
        return host in (*LOOPBACK, socket.gethostname())

    def _asked(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        client = self._get_grpc_client_for_termination(run.run_id)
        if client is None:
            return CheckRunHealthResult(
                WorkerStatus.RUNNING, "it was started on another machine, which cannot be asked"
            )
        return asked_of_server(run.run_id, partial(has_run_under_way, client))


def asked_of_server(run_id: str, knows: Callable[[str], bool | None]) -> CheckRunHealthResult:
    """What follows from a code server's answer about a run."""
    known = knows(run_id)
    if known is None:
        return CheckRunHealthResult(WorkerStatus.RUNNING, "its code server does not answer: the run may still be alive")
    if known:
        return CheckRunHealthResult(WorkerStatus.RUNNING)
    return CheckRunHealthResult(WorkerStatus.NOT_FOUND, "its code server was restarted and does not know the run")


def _failures_before(instance: dg.DagsterInstance, run: dg.DagsterRun) -> int:
    """How many runs directly before this retry ended with an exception that they recorded themselves."""
    count = 0
    while RETRY_NUMBER_TAG in run.tags and run.parent_run_id:
        parent = instance.get_run_by_id(run.parent_run_id)
        if parent is None or parent.tags.get(RUN_FAILURE_REASON_TAG) not in TOLD:
            break
        run, count = parent, count + 1
    return count


def is_of_this_machine(instance: dg.DagsterInstance) -> bool:
    """Whether an instance is kept in files of this machine (SQLite), so that no other machine runs anything for it."""
    return is_kept_in_files(instance)


def processes(instance: dg.DagsterInstance, run_id: str) -> list[tuple[int, float]]:
    """The processes that a run's log names, each with the time of its log entry.

    There are several if the code server did not answer, the launch was repeated, and the first launch had worked after
    all. Only one of them continues.
    """
    found = []
    for entry in instance.all_logs(run_id, of_type=dg.DagsterEventType.ENGINE_EVENT):
        event = entry.dagster_event
        metadata = event.engine_event_data.metadata if event and event.step_key is None else {}
        if "pid" in metadata:
            found.append((int(str(metadata["pid"].value)), entry.timestamp))
    return found


def is_alive(pid: int, since: float) -> bool:
    """Whether the process that had this number at that time still has it."""
    try:
        process = psutil.Process(pid)
        set_forward = max(0.0, psutil.boot_time() - BOOTED)
        return process.status() != psutil.STATUS_ZOMBIE and process.create_time() - set_forward <= since + CLOCK_SECONDS
    except psutil.NoSuchProcess:
        return False
