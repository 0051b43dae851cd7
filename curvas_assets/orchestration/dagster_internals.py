# Others import these names from here:
# pyright: reportUnusedImport=false
"""Every private name of Dagster that this package uses, each with the reason; everything else is public interface.

`pyproject.toml` pins Dagster to one minor release, and `test_upstream.py` fails when an upgrade moves one of these names or
changes what is used of it. Look here first after an upgrade, and replace a name as soon as Dagster publishes one.
"""

import sys
from typing import Any

import dagster as dg

# The verdict on a partition names the event it looked at; the class of that name is not published.
from dagster._core.definitions.asset_checks.asset_check_evaluation import (
    AssetCheckEvaluationTargetMaterializationData,
)

# The lineage as a graph: `AssetsDefinition`s and `RepositoryDefinition.asset_graph` are public, the class of the graph is not.
from dagster._core.definitions.assets.graph.base_asset_graph import BaseAssetGraph

# Tags and values by which Dagster's own staleness works: cells of a batch are reported with the same, and read back.
from dagster._core.definitions.data_version import (
    CODE_VERSION_TAG,
    DATA_VERSION_IS_USER_PROVIDED_TAG,
    DATA_VERSION_TAG,
    DEFAULT_DATA_VERSION,
    NULL_DATA_VERSION,
    DataProvenance,
    StaleStatus,
    extract_data_provenance_from_entry,
    extract_data_version_from_entry,
    get_input_data_version_tag,
    get_input_event_pointer_tag,
)

# What our own executor must declare.
from dagster._core.definitions.executor_definition import (
    multiple_process_executor_requirements,
)

# The keys of a partition range can be read only within this context.
from dagster._core.definitions.partitions.context import partition_loading_context

# The tags of a cell's dimensions, on runs and events.
from dagster._core.definitions.partitions.utils import (
    get_tags_from_multi_partition_key,
)

# What the launcher and the search for runs under way have to catch.
from dagster._core.errors import (
    DagsterInvalidInvocationError,
    DagsterLaunchFailedError,
    DagsterUserCodeUnreachableError,
)

# An event made outside of a step, when a Celery worker has lost it.
from dagster._core.events import DagsterEvent

# Backfills that have not launched all their runs.
from dagster._core.execution.backfill import BulkActionsFilter, BulkActionStatus
from dagster._core.execution.retries import RetryMode

# The store of registered patients, as a partitions definition is given it.
from dagster._core.instance import DynamicPartitionsStore

# The default launcher, which `WatchedRunLauncher` extends by a health check.
from dagster._core.launcher import (
    CheckRunHealthResult,
    DefaultRunLauncher,
    LaunchRunContext,
    WorkerStatus,
)

# A run of another job of the same code location, put into the queue from within a run.
from dagster._core.remote_origin import RemoteJobOrigin
from dagster._core.run_coordinator import SubmitRunContext

# Whether a person has turned a sensor off, or left it as its code declares it.
from dagster._core.scheduler.instigation import InstigatorStatus

# A run with its times, as the instance returns it.
from dagster._core.storage.dagster_run import RunRecord

# Names of tags that the daemon and the UI write and read.
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    AUTO_RETRY_RUN_ID_TAG,
    BACKFILL_ID_TAG,
    GRPC_INFO_TAG,
    MAX_RETRIES_TAG,
    PARENT_RUN_ID_TAG,
    PARTITION_NAME_TAG,
    RETRY_NUMBER_TAG,
    RETRY_STRATEGY_TAG,
    RUN_FAILURE_REASON_TAG,
    SCHEDULE_NAME_TAG,
    SENSOR_NAME_TAG,
    USER_TAG,
    WILL_RETRY_TAG,
)

# The form in which Dagster's processes hand objects to one another; the mark and the data of a class that dagster.yaml names.
from dagster._serdes import ConfigurableClass, ConfigurableClassData, serialize_value

# What a claim of a pool's slot answers.
from dagster._utils.concurrency import ConcurrencySlotStatus

AssetGraph = BaseAssetGraph[Any]
"""The lineage of a code location."""


def is_kept_in_files(instance: dg.DagsterInstance) -> bool:
    """Whether an instance keeps its runs in SQLite, in files of this machine."""
    from dagster._core.storage.runs import SqliteRunStorage  # loads SQLAlchemy, which few processes need

    return isinstance(instance.run_storage, SqliteRunStorage)


def has_run_under_way(client: Any, run_id: str) -> bool | None:
    """Whether a code server has a run under way; None if it does not answer.

    Args:
        client: `DagsterGrpcClient` of the server; loading its class takes half a second, which only the daemon pays.
        run_id: of the run.
    """
    from dagster._grpc.types import CanCancelExecutionRequest, CanCancelExecutionResult
    from dagster._serdes import deserialize_value

    try:
        answer = client.can_cancel_execution(CanCancelExecutionRequest(run_id=run_id), timeout=5)
    except DagsterUserCodeUnreachableError:
        return None
    return deserialize_value(answer, CanCancelExecutionResult).can_cancel


def code_server() -> Any:
    """The class of code servers if this process runs one, or could; else None. `_mp_ctx` says how it starts runs."""
    module = sys.modules.get("dagster._grpc.server")
    return getattr(module, "DagsterApiServer", None)


def reconstructable_repositories(server: Any) -> str:
    """What a code server's runs load, for `load_repositories`.

    Args:
        server: `DagsterApiServer`.
    """
    loaded = server._loaded_repositories
    return serialize_value(list(loaded.reconstructables_by_name.values()) if loaded else [])


def load_repositories(serialized: str) -> None:
    """Load what runs load, as they load it; they find it then."""
    from dagster._core.definitions.reconstruct import ReconstructableRepository
    from dagster._serdes import deserialize_value

    for repository in deserialize_value(serialized, list[ReconstructableRepository]):
        repository.get_definition()
