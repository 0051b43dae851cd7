"""The settings of the deployment: the only place that reads environment variables.

`.env` in the working directory is read too; variables that are set win over it. Values are read when they are needed,
so that definitions load without credentials.
"""

import math
import os
from collections.abc import Mapping
from pathlib import Path

from dotenv import dotenv_values

from curvas_assets.errors import StorageError

STUDY = "CURVAS_STUDY"
EXECUTOR = "CURVAS_EXECUTOR"
SCRATCH = "CURVAS_SCRATCH"
SCRATCH_GIB = "CURVAS_SCRATCH_GIB"
GIT_COMMIT = "CURVAS_GIT_COMMIT"
DEVICES = "CURVAS_DEVICES"
GPU_SLOTS = "CURVAS_GPU_SLOTS"
GPU_NODES = "CURVAS_GPU_NODES"
BROKER = "CURVAS_BROKER"
LOST_AFTER = "CURVAS_LOST_AFTER_SECONDS"
POSTGRES = "CURVAS_POSTGRES_URL"
NIGHTLY_PREDICT = "CURVAS_NIGHTLY_PREDICT"
PATIENCE = "CURVAS_STORE_PATIENCE_SECONDS"
MOST_PATIENCE = 6 * 3600
"""The longest wait, s: far shorter than the age at which unfinished writing is swept (`storage.versions`)."""
REPORT_FOLDER = "CURVAS_REPORT_FOLDER"


def environment() -> Mapping[str, str]:
    """Variables of `.env`, overridden by those of the process."""
    return {**{k: v for k, v in dotenv_values(".env").items() if v is not None}, **os.environ}


def study_name() -> str:
    """The study to load: `CURVAS_STUDY`, a built-in name or a path; `curvas` if it is not set."""
    return environment().get(STUDY, "").strip() or "curvas"


def executor_name() -> str:
    """The executor to run with: `CURVAS_EXECUTOR`; `local` if it is not set."""
    return environment().get(EXECUTOR, "").strip() or "local"


def scratch_folder() -> Path | None:
    """Where steps keep files while they work: `CURVAS_SCRATCH`; the system's temporary folder if it is not set."""
    named = environment().get(SCRATCH, "").strip()
    if not named:
        return None
    Path(named).mkdir(parents=True, exist_ok=True)
    return Path(named)


def report_folder() -> Path | None:
    """Where a copy of the newest report is kept on this machine: `CURVAS_REPORT_FOLDER`; nowhere if it is not set."""
    named = environment().get(REPORT_FOLDER, "").strip()
    return Path(named) if named else None


def scratch_gib() -> float:
    """What all steps of this machine may keep there at once: `CURVAS_SCRATCH_GIB`, GiB; 80 (of Onyxia's 100 GB) if not set."""
    return float(environment().get(SCRATCH_GIB, "").strip() or 80)


def device_names() -> list[str]:
    """The GPUs that steps may use: `CURVAS_DEVICES` ("0,1,2"), else `CUDA_VISIBLE_DEVICES`, else all that are there."""
    variables = environment()
    for variable in (DEVICES, "CUDA_VISIBLE_DEVICES"):
        if variable in variables:
            return [name.strip() for name in variables[variable].split(",") if name.strip()]
    return sorted((file.name.removeprefix("nvidia") for file in Path("/dev").glob("nvidia[0-9]*")), key=int)


def gpu_slots(without: int = 1) -> int:
    """GPU steps at a time over the whole deployment: `CURVAS_GPU_SLOTS`, else this machine's GPUs.

    Args:
        without: the answer where neither says anything.
    """
    named = environment().get(GPU_SLOTS, "").strip()
    return int(named) if named else len(device_names()) or without


def gpu_node_labels() -> dict[str, str]:
    """Labels of the cluster's nodes with a GPU: `CURVAS_GPU_NODES` ("key=value,key=value"; empty: any node).

    The default is the label that NVIDIA's GPU operator gives.
    """
    named = environment().get(GPU_NODES, "nvidia.com/gpu.present=true")
    pairs = [pair.partition("=") for pair in named.split(",") if pair.strip()]
    return {key.strip(): value.strip() for key, _, value in pairs}


def broker_url() -> str:
    """Where Celery's tasks wait: `CURVAS_BROKER`; Redis on this machine if it is not set."""
    return environment().get(BROKER, "").strip() or "redis://127.0.0.1:6379/0"


def lost_after_seconds() -> float:
    """Silence after which a Celery worker counts as dead: `CURVAS_LOST_AFTER_SECONDS`, s; a minute if it is not set."""
    return float(environment().get(LOST_AFTER, "").strip() or 60)


def store_patience_seconds() -> float:
    """How long steps wait for a store that is away: `CURVAS_STORE_PATIENCE_SECONDS`, s; ten minutes if it is not set.

    Raises:
        StorageError: it is set to something that is no length of time.
    """
    named = environment().get(PATIENCE, "").strip() or "600"
    try:
        seconds = float(named)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= MOST_PATIENCE:
        remedy = f"Set it to a number of seconds between 0 (do not wait) and {MOST_PATIENCE}."
        raise StorageError("connecting to S3", PATIENCE, f"it is {named!r}", remedy)
    return seconds


def postgres_url() -> str | None:
    """Where Dagster keeps its runs and events: `CURVAS_POSTGRES_URL`; None (SQLite) if it is not set."""
    return environment().get(POSTGRES, "").strip() or None


def nightly_predict() -> bool:
    """Whether `nightly_scores` may predict, which takes GPUs: `CURVAS_NIGHTLY_PREDICT`, 1 or 0; not if it is not set."""
    named = environment().get(NIGHTLY_PREDICT, "").strip().lower()
    if named not in ("", "0", "1", "false", "true"):
        raise ValueError(f"{NIGHTLY_PREDICT}={named!r}: allowed are 1 and 0.")
    return named in ("1", "true")
