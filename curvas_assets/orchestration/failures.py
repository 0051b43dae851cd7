"""The message of a failed run: patient or model, reason and remedy, as its steps reported them."""

import re
from collections.abc import Iterator, Sequence

import dagster as dg
from dagster_shared.error import SerializableErrorInfo

from curvas_assets.orchestration.under_way import short_name

LONGEST = 1500
"""Characters of one step, so that a chat takes the message; the rest is in the run."""
MODULE = re.compile(r"^(?:\w+\.)+(?=\w+:)")
"""The module path before an error's class; it does not help the person on duty."""


def told(run: dg.DagsterRun, ended: dg.DagsterEvent, steps: Sequence[dg.DagsterEvent]) -> str:
    """One message of a failed run.

    Args:
        run: that failed.
        ended: its failure event, which says how it ended; the only source for a run that died.
        steps: the failure events of its steps.
    """
    partition = run.tags.get("dagster/partition")
    what = f"{short_name(run)}{f' ({partition})' if partition else ''} failed"
    reasons = [f"{step.step_key}: {_reason(step)}" for step in steps]
    return "\n".join([f"{what}:", *reasons] if reasons else [f"{what}: {ended.message}"])


def _reason(step: dg.DagsterEvent) -> str:
    """The step's failure message, or the message of the first error below Dagster's own."""
    data = step.step_failure_data
    words = data.user_failure_data.description if data.user_failure_data else None
    if not words:
        chain = list(_chain(data.error))
        own = next((one for one in chain if not (one.cls_name or "").startswith("Dagster")), None)
        words = MODULE.sub("", own.message.strip()) if own else step.message or "no reason is recorded"
    return words if len(words) <= LONGEST else f"{words[:LONGEST]} … (the rest is in the run)"


def _chain(error: SerializableErrorInfo | None) -> Iterator[SerializableErrorInfo]:
    while error is not None:
        yield error
        error = error.cause or error.context
