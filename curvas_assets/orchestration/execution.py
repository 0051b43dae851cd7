"""What each stage needs to run, and what "gpu" and "large memory" mean: said here, and only here.

Pools limit across runs on one instance; the queue and Kubernetes tags act when the executor is Celery or Kubernetes and
are inert otherwise. `CURVAS_EXECUTOR` picks the executor.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import dagster as dg

GPU_POOL = "gpu"
EXECUTORS = ("multiprocess", "in_process", "celery", "kubernetes")


@dataclass(frozen=True)
class Needs:
    """The pool of a stage and the tags that clusters read from its op."""

    pool: str | None = None
    op_tags: Mapping[str, Any] = field(default_factory=dict)


def _needs(queue: str, *, cpu: str, memory: str, pool: str | None = None, gpus: int = 0) -> Needs:
    requests = {"cpu": cpu, "memory": memory}
    limits = {"memory": memory, **({"nvidia.com/gpu": str(gpus)} if gpus else {})}
    return Needs(
        pool=pool,
        op_tags={
            "curvas/needs": queue,
            "dagster-celery/queue": queue,
            "dagster-k8s/config": {"container_config": {"resources": {"requests": requests, "limits": limits}}},
        },
    )


GPU = _needs("gpu", cpu="4", memory="16Gi", pool=GPU_POOL, gpus=1)
LARGE_MEMORY = _needs("cpu", cpu="2", memory="16Gi")
CPU = _needs("cpu", cpu="1", memory="4Gi")

RETRY = dg.RetryPolicy(max_retries=2, delay=10, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)
"""For passing faults of the store or the machine. Errors that only a person can mend are not retried (`cells`)."""


def executor(name: str) -> dg.ExecutorDefinition:
    """The executor of every job.

    Args:
        name: one of `EXECUTORS`.

    Raises:
        ValueError: another name, or its package is not installed.
    """
    if name == "multiprocess":
        return dg.multiprocess_executor.configured({"start_method": {"forkserver": {}}})
    if name == "in_process":
        return dg.in_process_executor
    if name in ("celery", "kubernetes"):
        module, attribute = {
            "celery": ("dagster_celery", "celery_executor"),
            "kubernetes": ("dagster_k8s", "k8s_job_executor"),
        }[name]
        try:
            return getattr(__import__(module), attribute)
        except ImportError as error:
            raise ValueError(
                f"CURVAS_EXECUTOR={name!r} needs {module.replace('_', '-')}: pip install 'curvas-assets[{name}]'."
            ) from error
    raise ValueError(f"CURVAS_EXECUTOR={name!r}: allowed is one of {', '.join(EXECUTORS)}.")
