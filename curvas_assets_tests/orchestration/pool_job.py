"""A job whose steps write when they ran, executed by `test_pool` in several processes at once."""

import os
import sys
import time
from pathlib import Path

import dagster as dg

from curvas_assets.orchestration.devices import leased_device
from curvas_assets.orchestration.execution import StageNeeds
from curvas_assets.study import load_study

NEEDS = StageNeeds.of(load_study("phantom"))


def note(name: str, seconds: float) -> None:
    start = time.monotonic()
    time.sleep(seconds)
    Path(os.environ["POOL_NOTES"], f"{name}-{os.getpid()}-{time.monotonic_ns()}").write_text(
        f"{start} {time.monotonic()}"
    )


@dg.op(pool=NEEDS.training.pool, tags=NEEDS.training.op_tags)
def gpu_step(context: dg.OpExecutionContext) -> None:
    with leased_device(context.log.info) as device:
        assert os.environ.get("CUDA_VISIBLE_DEVICES") == device
        note(f"gpu-{device}", 0.6)


@dg.op(tags=NEEDS.table.op_tags)
def cpu_step() -> None:
    note("cpu", 2.0)


@dg.job(executor_def=dg.multiprocess_executor)
def pool_job() -> None:
    gpu_step.alias("gpu_a")()
    gpu_step.alias("gpu_b")()
    cpu_step()


if __name__ == "__main__":
    with dg.DagsterInstance.get() as instance:
        if "POOL_IN_PROCESS" in os.environ:
            result = pool_job.execute_in_process(instance=instance)
        else:
            result = dg.execute_job(dg.reconstructable(pool_job), instance=instance)
        sys.exit(0 if result.success else 1)
