"""Steps on Celery workers: their settings, and what happens when a worker dies.

    celery -A curvas_assets.orchestration.workers worker -Q gpu -c 1 -n gpu@%h

A worker takes a step off the queue when it starts it, so that the broker never gives a step of many hours to a second
worker. The run therefore notices when a worker is gone: it asks the worker about each step under way. A worker that
stays silent, or no longer knows the step, has lost it; the step's own policy then retries it on any free worker of its
queue. A worker that was only disconnected may finish its copy, too: each copy is a whole artefact, and the last
manifest wins. When a run is killed, its steps continue on the workers until these see that the run has failed
(`lifeline`). The steps then end, and the run that continues sends them again.
"""

import multiprocessing
import multiprocessing.process
import time
from collections.abc import Callable
from typing import Any

import dagster as dg
from billiard.exceptions import WorkerLostError
from celery import Celery, states
from celery.result import AsyncResult
from celery.signals import worker_process_init
from dagster_celery.core_execution_loop import core_celery_execution_loop
from dagster_celery.executor import CeleryExecutor, _submit_task  # pyright: ignore[reportPrivateUsage]
from dagster_celery.make_app import make_app
from dagster_celery.tasks import create_task
from dagster_shared.error import SerializableErrorInfo

from curvas_assets.orchestration import lifeline
from curvas_assets.orchestration.dagster_internals import (
    DagsterEvent,
    RetryMode,
    multiple_process_executor_requirements,
    serialize_value,
)
from curvas_assets.orchestration.environment import deployment

SETTINGS: dict[str, Any] = {
    "task_track_started": True,  # who has a step, and since when
    "task_acks_late": False,
    "worker_prefetch_multiplier": 1,
    "worker_disable_prefetch": True,  # a busy worker reserves no step that an idle one could run
    "worker_max_tasks_per_child": 1,  # a step's memory and GPU are released when it ends
    "result_expires": 7 * 24 * 3600,
    "broker_connection_retry_on_startup": True,
}
ASK_SECONDS = 1.0
"""How long a worker may take to answer. Its main process does nothing else: the step runs in a child."""
_MAIN = multiprocessing.current_process()
"""What this process is to Python's `multiprocessing`, before a worker forks its children."""
QUESTIONS = 4
"""A worker that leaves this many questions in a row unanswered counts as dead."""


class WatchedStep:
    """A step that was sent to a worker, and is noticed when the worker loses it.

    Args:
        app: through which workers are asked.
        result: what Celery knows of the step.
        told_lost: makes the event that Dagster continues with: a retry, or the step's failure.
        lost_after_s: silence after which the worker counts as dead, s.
    """

    def __init__(self, app: Celery, result: AsyncResult, told_lost: Callable[[str], DagsterEvent], lost_after_s: float):
        self._app, self._result, self._told_lost = app, result, told_lost
        self._every_s = lost_after_s / QUESTIONS
        self._worker: str | None = None
        self._asked = time.monotonic()
        self._unanswered = 0
        self._lost: str | None = None

    def ready(self) -> bool:
        """Whether there is something to `get`."""
        if self._result.ready():
            return True
        if self._worker is None:
            known = self._result.backend.get_task_meta(self._result.id)  # state and worker in one answer
            if known["status"] == states.STARTED:
                self._worker = known["result"]["hostname"]
        if self._worker is not None and time.monotonic() - self._asked > self._every_s:
            self._asked = time.monotonic()
            self._unanswered = 0 if self._worker_has_it() else self._unanswered + 1
            # The step may have ended since the last answer: its result is read first.
            if self._unanswered >= QUESTIONS and not self._result.ready():
                self._lost = f"worker {self._worker} is gone, or no longer knows the step"
                self.revoke()
        return self._lost is not None

    def get(self) -> list[str]:
        """The step's events; for a lost step, the one event that makes Dagster retry it."""
        if self._lost is None:
            try:
                return self._result.get()
            except WorkerLostError as error:
                self._lost = f"its process on worker {self._worker or 'unknown'} was killed ({error})"
        return [serialize_value(self._told_lost(self._lost))]

    def revoke(self) -> None:
        """End the step wherever it waits or runs."""
        self._result.revoke(terminate=True, signal="SIGTERM")

    def _worker_has_it(self) -> bool:
        answers = self._app.control.inspect(destination=[self._worker], timeout=ASK_SECONDS).query_task(self._result.id)
        return bool(answers and any(self._result.id in known for known in answers.values()))


class WatchedCeleryExecutor(CeleryExecutor):
    """dagster-celery's executor with `WatchedStep`s."""

    def __init__(self, broker: str, lost_after_s: float):
        super().__init__(retries=RetryMode.ENABLED, broker=broker, backend=broker, config_source=SETTINGS)
        self._lost_after_s = lost_after_s

    def execute(self, plan_context: Any, execution_plan: Any):
        return core_celery_execution_loop(plan_context, execution_plan, step_execution_fn=self._submit)

    def _submit(
        self, app: Celery, plan_context: Any, step: Any, queue: str, priority: Any, known_state: Any
    ) -> WatchedStep:
        def told_lost(reason: str) -> DagsterEvent:
            error = SerializableErrorInfo(message=f"{step.key}: {reason}\n", stack=[], cls_name="WorkerLost")
            return self.log_failure_or_retry_event_after_error(plan_context.for_step(step), error, known_state)

        result = _submit_task(app, plan_context, step, queue, priority, known_state)
        return WatchedStep(app, result, told_lost, self._lost_after_s)


@dg.executor(name="celery", requirements=multiple_process_executor_requirements())
def watched_celery_executor(_: dg.InitExecutorContext) -> WatchedCeleryExecutor:
    """Each step is a Celery task on the queue that its tags name; `CURVAS_BROKER` says where the queues are."""
    return _configured()


def _configured() -> WatchedCeleryExecutor:
    settings = deployment()
    return WatchedCeleryExecutor(settings.broker, settings.lost_after_seconds)


app = make_app(_configured().app_args())
execute_plan = create_task(app)


@worker_process_init.connect
def _step_processes_end_with_their_runs(**_: Any) -> None:
    lifeline.belongs_to_steps()


@worker_process_init.connect
def _steps_may_start_processes(**_: Any) -> None:
    """Celery's library of processes (billiard) makes its child a daemonic process to Python's `multiprocessing`, too, which
    lets such a one start no loader processes, nor send them a key of billiard's.
    """
    _MAIN.name = multiprocessing.current_process().name  # which stands in the worker's log
    multiprocessing.process._current_process = _MAIN  # pyright: ignore[reportAttributeAccessIssue] - there is no other way
