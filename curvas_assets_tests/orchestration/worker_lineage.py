"""A small lineage with the project's own tags, executor, IO manager and bucket, for the tests with Celery workers.

In the middle of their second partition, `trained` waits to be killed with its worker, and `predicted` kills its own process,
as the kernel does when memory runs out; both the first time only.
"""

import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import dagster as dg

from curvas_assets.orchestration.bucket import Bucket
from curvas_assets.orchestration.cells import materialise
from curvas_assets.orchestration.execution import StageNeeds, executor
from curvas_assets.orchestration.io_manager import ArtefactIOManager
from curvas_assets.stages.stored import Stored, one_by_one
from curvas_assets.storage import directories
from curvas_assets.study import load_study

NEEDS = StageNeeds.of(load_study("phantom"))
PARTITIONS = ("a", "b", "c")
STAGES = {"taken_in": NEEDS.intake, "trained": NEEDS.training, "predicted": NEEDS.prediction, "scored": NEEDS.scoring}
"""Asset → what it needs, in order; each is made from the one before."""
FILES = 3
HALF_WRITTEN = "0123456789abcdef_0123456789ab"
"""The place that the killed writer had begun to fill."""


def artefact_key(asset: str, partition: str) -> str:
    return f"output/{partition}/{asset}"


def _asset(name: str, before: str | None) -> dg.AssetsDefinition:
    needs = STAGES[name]

    @dg.asset(
        name=name,
        deps=[before] if before else [],
        partitions_def=dg.StaticPartitionsDefinition(list(PARTITIONS)),
        backfill_policy=dg.BackfillPolicy.single_run(),
        output_required=False,
        pool=needs.pool,
        op_tags=needs.op_tags,
        retry_policy=dg.RetryPolicy(max_retries=1, delay=1),
    )
    def made(context: dg.AssetExecutionContext, bucket: Bucket):
        objects = bucket.checked_objects()

        def produce(partition: str) -> Stored:
            with tempfile.TemporaryDirectory() as folder:
                for number in range(FILES):
                    Path(folder, f"{number}.txt").write_text(f"{name} {partition} {number}")
                if (name, partition) == ("trained", "b"):
                    objects.put(f"{artefact_key(name, partition)}/{HALF_WRITTEN}/0.txt", b"half")
                    if _first_time("waits"):
                        time.sleep(120)
                if (name, partition) == ("predicted", "b") and _first_time("kills-itself"):
                    os.kill(os.getpid(), signal.SIGKILL)
                stored = directories.write_directory(objects, artefact_key(name, partition), Path(folder))
            return Stored(artefact_key(name, partition), stored.version)

        yield from materialise(context, objects, one_by_one(produce))

    return made


def _first_time(what: str) -> bool:
    """Whether this happens for the first time; from now on it has."""
    try:
        Path(os.environ["WORKER_NOTES"], what).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def worker_lineage() -> dg.JobDefinition:
    names = list(STAGES)
    assets = [_asset(name, before) for before, name in zip([None, *names], names, strict=False)]
    bucket = Bucket()
    return dg.Definitions(
        assets=assets,
        jobs=[dg.define_asset_job("worker_lineage", executor_def=executor("celery"))],
        resources={"bucket": bucket, "io_manager": ArtefactIOManager(bucket=bucket)},
    ).resolve_job_def("worker_lineage")


if __name__ == "__main__":
    from curvas_assets_tests.orchestration import worker_lineage as module

    batch = {"dagster/asset_partition_range_start": PARTITIONS[0], "dagster/asset_partition_range_end": PARTITIONS[-1]}
    job = dg.reconstructable(module.worker_lineage)
    with dg.DagsterInstance.get() as instance:
        for stage in STAGES:  # a batch yields no output, so each stage is a run, as in the study
            result = dg.execute_job(job, instance=instance, tags=batch, asset_selection=[dg.AssetKey(stage)])
            if not result.success:
                sys.exit(1)
