"""What the deployment says: the one place that reads environment variables.

`.env` in the working directory is read too; variables that are set win over it. Values are read when they are needed,
so that definitions load without credentials.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from dotenv import dotenv_values

STUDY = "CURVAS_STUDY"
EXECUTOR = "CURVAS_EXECUTOR"
SCRATCH = "CURVAS_SCRATCH"
GIT_COMMIT = "CURVAS_GIT_COMMIT"
DEVICES = "CURVAS_DEVICES"


def environment() -> Mapping[str, str]:
    """Variables of `.env`, overridden by those of the process."""
    return {**{k: v for k, v in dotenv_values(".env").items() if v is not None}, **os.environ}


def study_name() -> str:
    """The study to load: `CURVAS_STUDY`, a built-in name or a path; `curvas` if it is not set."""
    return environment().get(STUDY, "").strip() or "curvas"


def executor_name() -> str:
    """The executor to run with: `CURVAS_EXECUTOR`; `multiprocess` if it is not set."""
    return environment().get(EXECUTOR, "").strip() or "multiprocess"


def scratch_folder() -> Path | None:
    """Where steps keep files while they work: `CURVAS_SCRATCH`; the system's temporary folder if it is not set."""
    named = environment().get(SCRATCH, "").strip()
    if not named:
        return None
    Path(named).mkdir(parents=True, exist_ok=True)
    return Path(named)


def device_names() -> list[str]:
    """The GPUs that steps may use: `CURVAS_DEVICES` ("0,1,2"), else `CUDA_VISIBLE_DEVICES`, else all that are there."""
    variables = environment()
    for variable in (DEVICES, "CUDA_VISIBLE_DEVICES"):
        if variable in variables:
            return [name.strip() for name in variables[variable].split(",") if name.strip()]
    return sorted((file.name.removeprefix("nvidia") for file in Path("/dev").glob("nvidia[0-9]*")), key=int)
