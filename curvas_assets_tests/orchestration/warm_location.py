"""A code location whose one step says which process loaded this file, which runs the step, and which forked that.

The file that `CURVAS_TEST_STUDY` names counts as the study's.
"""

import os
import time
from pathlib import Path

import dagster as dg

from curvas_assets.orchestration.execution import executor
from curvas_assets.orchestration.warm_starts import keep_warm

LOADED_IN = os.getpid()


@dg.op(config_schema={"file": str, "wait_for": dg.Field(str, default_value="")})
def tell(context: dg.OpExecutionContext) -> None:
    file = Path(context.op_config["file"])
    partial = file.with_suffix(".partial")
    partial.write_text(f"{LOADED_IN} {os.getpid()} {os.getppid()}")
    partial.rename(file)
    while context.op_config["wait_for"] and not Path(context.op_config["wait_for"]).exists():
        time.sleep(0.05)


@dg.job(executor_def=executor("local"))
def telling():
    tell()


@dg.job(executor_def=executor("in_process"))
def telling_within():
    tell()


defs = dg.Definitions(jobs=[telling, telling_within])
keep_warm(os.environ["CURVAS_TEST_STUDY"])
