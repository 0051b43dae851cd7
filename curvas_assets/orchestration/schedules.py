"""Schedules: every night the scores that are missing or stale, every week the report. Off until switched on in the UI."""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from curvas_assets.orchestration.jobs import STAGES
from curvas_assets.orchestration.staleness import Staleness


def build(jobs: dict[str, Any]) -> list[dg.ScheduleDefinition]:
    """The schedules, over the stage jobs by name."""

    @dg.schedule(
        name="nightly_scores",
        cron_schedule="0 2 * * *",
        job=jobs["score_patients"],
        description="Every patient whose scores are missing or stale and whose predictions are complete; nothing else.",
    )
    def nightly_scores(context: dg.ScheduleEvaluationContext):
        yield from due_scores(Staleness(context.repository_def.asset_graph, context.instance))

    @dg.schedule(
        name="weekly_report",
        cron_schedule="0 4 * * 1",
        job=jobs["write_report"],
        description="Mondays: statistics, figures and report, if the scores have changed since.",
    )
    def weekly_report(context: dg.ScheduleEvaluationContext):
        yield from due_report(Staleness(context.repository_def.asset_graph, context.instance))

    return [nightly_scores, weekly_report]


def due_scores(staleness: Staleness) -> Iterator[dg.RunRequest | dg.SkipReason]:
    """One run for each patient to score."""
    key = dg.AssetKey("scores")
    ready = [p for p in staleness.due(key) if staleness.ready(key, p)]
    for patient in ready:
        yield dg.RunRequest(partition_key=patient)
    if not ready:
        yield dg.SkipReason("the scores of every patient with complete predictions are up to date")


def due_report(staleness: Staleness) -> Iterator[dg.RunRequest | dg.SkipReason]:
    """One run if any table behind the report is due and there are scores at all."""
    keys = [dg.AssetKey(name) for name in STAGES["write_report"]]
    due = [key.to_user_string() for key in keys if staleness.due(key)]
    if due and staleness.ready(keys[0], None):
        yield dg.RunRequest(tags={"curvas/due": ", ".join(due)})
    else:
        yield dg.SkipReason("nothing behind the report has changed" if not due else "there are no scores yet")
