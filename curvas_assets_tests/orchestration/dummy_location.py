"""A code location of the published study's shape with instant, dummy computations: 65 test patients × 9 models.

Loaded by Dagster's own processes in the tests of scale and in `benchmarks/orchestration.py`, and in this process by the
tests that launch runs. What fails is said by `CURVAS_TEST_BROKEN` (partition keys, comma-separated) at load, another study
by `CURVAS_TEST_STUDY`, another executor of the stages' jobs by `CURVAS_TEST_EXECUTOR`; with `CURVAS_TEST_COLD`, runs start as
Dagster starts them.
"""

import os

from dagster._core.definitions.reconstruct import ReconstructableJob, ReconstructableRepository
from dagster._core.execution.api import execute_run
from dagster._core.run_coordinator import RunCoordinator

from curvas_assets.errors import SegmentationError
from curvas_assets.orchestration.warm_starts import keep_warm
from curvas_assets.study import load_study
from curvas_assets_tests.orchestration.lineage import DummyLineage

REPOSITORY = ReconstructableRepository.for_module(
    "curvas_assets_tests.orchestration.dummy_location", "defs", working_directory=os.getcwd()
)
LINEAGE = DummyLineage(
    study=load_study(os.environ.get("CURVAS_TEST_STUDY", "curvas")),
    broken={
        key: SegmentationError("predicting", key, "it is broken", "Mend it.")
        for key in os.environ.get("CURVAS_TEST_BROKEN", "").split(",")
        if key
    },
    executor=os.environ.get("CURVAS_TEST_EXECUTOR", "in_process"),
)
defs = LINEAGE.definitions
if not os.environ.get("CURVAS_TEST_COLD"):
    keep_warm(os.environ.get("CURVAS_TEST_STUDY", ""))


def job(name: str) -> ReconstructableJob:
    return REPOSITORY.get_reconstructable_job(name)


class AtOnce(RunCoordinator):
    """Executes a run where it is submitted, before the submission returns."""

    def __init__(self):
        self.launched = []

    def submit_run(self, context):
        run = context.dagster_run
        self.launched.append(run)
        subset = job(run.job_name).get_subset(asset_selection=run.asset_selection)
        execute_run(subset, run, LINEAGE.instance, raise_on_error=False)
        return self._instance.get_run_by_id(run.run_id)

    def cancel_run(self, run_id):
        raise NotImplementedError
