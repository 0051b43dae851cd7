"""What people do apart from making assets (upload, download, look, empty): each is a job with a launchpad."""

import dagster as dg

from curvas_assets.orchestration.bucket import Bucket
from curvas_assets.orchestration.operations import describing, downloading, making, removing, sharing, uploading
from curvas_assets.orchestration.partitions import Partitions
from curvas_assets.study import Study

OPERATIONS = tuple(
    operation
    for module in (uploading, downloading, sharing, making, describing, removing)
    for operation in module.OPERATIONS
)
"""All of them, in the order of the README."""


def build(study: Study, partitions: Partitions, bucket: Bucket) -> list[dg.JobDefinition]:
    """The operations of one study, as jobs."""
    return [operation.job(study, partitions, bucket) for operation in OPERATIONS]
