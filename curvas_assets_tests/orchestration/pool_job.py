"""A job whose steps write when they ran, executed by `test_pool` and `test_postgres` in several processes at once: as many as the
program's argument says, forked from one that has loaded Dagster, as the steps of each are.
"""

import os
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import dagster as dg

from curvas_assets.orchestration.devices import leased_device
from curvas_assets.orchestration.execution import StageNeeds
from curvas_assets.study import load_study

NEEDS = StageNeeds.of(load_study("phantom"))
PATIENCE_SECONDS = 60.0


def note(name: str, beside: str) -> None:
    """Write when this step ran. Beside steps in processes of their own, it stays until one of the other kind has begun,
    however slowly processes start."""
    folder, unique = Path(os.environ["POOL_NOTES"]), f"{name}-{os.getpid()}-{time.monotonic_ns()}"
    start = time.monotonic()
    (folder / f"{unique}.begun").touch()
    one_by_one = "POOL_IN_PROCESS" in os.environ
    while not (one_by_one or any(folder.glob(f"{beside}-*.begun"))) and time.monotonic() < start + PATIENCE_SECONDS:
        time.sleep(0.05)
    time.sleep(0.3)  # two holders of one device would overlap
    (folder / f"{unique}.span").write_text(f"{start} {time.monotonic()}")


@dg.op(pool=NEEDS.training.pool, tags=NEEDS.training.op_tags)
def gpu_step(context: dg.OpExecutionContext) -> None:
    with leased_device(context.log.info) as device:
        assert os.environ.get("CUDA_VISIBLE_DEVICES") == device
        note(f"gpu-{device}", beside="cpu")


@dg.op(tags=NEEDS.table.op_tags)
def cpu_step() -> None:
    note("cpu", beside="gpu")


@dg.job(
    executor_def=dg.multiprocess_executor.configured(
        {"start_method": {"forkserver": {"preload_modules": ["curvas_assets_tests.orchestration.pool_job"]}}}
    )
)
def pool_job() -> None:
    gpu_step.alias("gpu_a")()
    gpu_step.alias("gpu_b")()
    cpu_step()


def run() -> None:
    from curvas_assets_tests.orchestration import pool_job as module  # steps know it by this name

    with dg.DagsterInstance.get() as instance:
        if "POOL_IN_PROCESS" in os.environ:
            result = module.pool_job.execute_in_process(instance=instance)
        else:
            result = dg.execute_job(dg.reconstructable(module.pool_job), instance=instance)
        sys.exit(0 if result.success else 1)


if __name__ == "__main__":
    runs = [get_context("fork").Process(target=run) for _ in range(int(sys.argv[1]))]
    for one in runs:
        one.start()
    for one in runs:
        one.join()
    sys.exit(any(one.exitcode for one in runs))
