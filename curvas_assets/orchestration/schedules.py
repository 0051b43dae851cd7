"""Schedules: nightly the changed patients, up to their scores; weekly the report. Off until turned on in the UI."""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from curvas_assets.orchestration.asset_keys import key_of, keys_of, name_of
from curvas_assets.orchestration.environment import deployment, variable
from curvas_assets.orchestration.nightly import concerned, fit_is_due
from curvas_assets.orchestration.staleness import Staleness
from curvas_assets.stages.table import REPORT, STUDY_SCORES


def build(jobs: dict[str, Any]) -> list[dg.ScheduleDefinition]:
    """The schedules, over the jobs by name."""

    @dg.schedule(
        name="nightly_scores",
        cron_schedule="0 2 * * *",
        job=jobs["refresh_scores"],
        description="Takes in, ensembles and scores again only the patients for whom something changed, and fits calibrators that are out of date. Predicts "
        f"only if {variable('nightly_predict')}=1, because that uses GPUs.",
    )
    def nightly_scores(context: dg.ScheduleEvaluationContext):
        staleness = Staleness(context.repository_def.asset_graph, context.instance)
        yield from due_scores(staleness, predict=deployment().nightly_predict)

    @dg.schedule(
        name="weekly_report",
        cron_schedule="0 4 * * 1",
        job=jobs[REPORT],
        description="On Mondays: makes cohort, statistics, cost, figures and report, if anything they depend on has changed.",
    )
    def weekly_report(context: dg.ScheduleEvaluationContext):
        yield from due_report(Staleness(context.repository_def.asset_graph, context.instance))

    return [nightly_scores, weekly_report]


def due_scores(staleness: Staleness, *, predict: bool = False) -> Iterator[dg.RunRequest | dg.SkipReason]:
    """One run for all patients of whom something changed, and for calibrators that are to be fitted.

    Args:
        staleness: what there is.
        predict: whether the run may predict.
    """
    patients = concerned(staleness, predict=predict)
    if patients:
        yield dg.RunRequest(
            run_config={"patients": patients, "predict": predict}, tags={"curvas/due": f"{len(patients)} patients"}
        )
    elif fit_is_due(staleness):  # the run finds whom it concerns by itself: nobody, if nothing happens until then
        yield dg.RunRequest(run_config={"predict": predict}, tags={"curvas/due": "calibrators"})
    else:
        yield dg.SkipReason("the scores of every patient with complete predictions are up to date")


def due_report(staleness: Staleness) -> Iterator[dg.RunRequest | dg.SkipReason]:
    """One run of the whole stage if any table behind the report is due and scores exist.

    The whole stage runs, so that the page states cohort and cost of the same moment.
    """
    keys = keys_of(REPORT)
    due = [name_of(key) for key in keys if staleness.due(key)]
    if due and staleness.ready(key_of(STUDY_SCORES), None):
        yield dg.RunRequest(tags={"curvas/due": ", ".join(due)})
    else:
        yield dg.SkipReason("nothing behind the report has changed" if not due else "there are no scores yet")
