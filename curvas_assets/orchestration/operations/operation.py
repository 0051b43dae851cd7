"""An operation: settings that people fill in at the launchpad, and what is done with them, as a job of one step.

Each runs in one process and can be launched again. An error that a person must fix fails the step, without a retry.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import dagster as dg

from curvas_assets.errors import CurvasError
from curvas_assets.orchestration import metadata
from curvas_assets.orchestration.asset_keys import key_of
from curvas_assets.orchestration.bucket import Bucket
from curvas_assets.orchestration.cells import cell_event, provenance_tags
from curvas_assets.orchestration.dagster_internals import AssetGraph
from curvas_assets.orchestration.operations import selection
from curvas_assets.orchestration.partitions import Partitions, current_keys
from curvas_assets.orchestration.staleness import Staleness
from curvas_assets.orchestration.under_way import other_runs
from curvas_assets.stages.stored import Stored
from curvas_assets.stages.table import Asset
from curvas_assets.storage.layout import Layout
from curvas_assets.storage.metering import MeteredObjects
from curvas_assets.storage.ownership import require_own
from curvas_assets.study import Study

SUFFIX = "_op"
"""Suffix of an op's name, because Dagster requires a name that differs from the job's."""
FOLDER = "A folder on the machine where this run executes."

Settings = TypeVar("Settings", bound=dg.Config)


@dataclass(frozen=True)
class Session:
    """What an operation works with, in one run.

    Args:
        context: of its step.
        study: that the code location serves.
        partitions: the study's.
        bucket: the study's.
    """

    context: dg.OpExecutionContext
    study: Study
    partitions: Partitions
    bucket: Bucket

    @property
    def instance(self) -> dg.DagsterInstance:
        """Where runs and events are kept."""
        return self.context.instance

    @property
    def graph(self) -> AssetGraph:
        """The lineage."""
        return self.context.repository_def.asset_graph

    @property
    def layout(self) -> Layout:
        """Where artefacts stand."""
        return self.bucket.layout

    def tell(self, message: str) -> None:
        """Into the run's log."""
        self.context.log.info(message)

    def objects(self) -> MeteredObjects:
        """The store, once it has been tried."""
        return self.bucket.checked_objects()

    def own_objects(self, *, claim: bool = True) -> MeteredObjects:
        """The store, for what writes or removes artefacts, once its prefixes are known to be no other study's.

        Args:
            claim: as `require_own`; an operation that only removes takes nothing into possession.

        Raises:
            StorageError: one is another study's.
        """
        objects = self.objects()
        require_own(objects, self.layout, self.study.name, claim=claim)
        return objects

    def staleness(self) -> Staleness:
        """A new snapshot of what there is."""
        return Staleness(self.graph, self.instance)

    def known(self) -> list[str]:
        """The registered patients that belong to the study."""
        return current_keys(self.partitions.patient, self.instance)

    def patients(self, asked: list[str]) -> list[str]:
        """Those that the words of a launchpad stand for."""
        return selection.choose_patients(self.study, asked, self.known())

    def other_runs(self) -> list[dg.DagsterRun]:
        """Runs beside this one that have not ended."""
        return other_runs(self.instance, self.context.run)

    def report(self, asset: Asset, partition: str, stored: Stored) -> dg.Output[None]:
        """Report an uploaded partition to Dagster; it is fresh until one of its inputs changes."""
        definition = self.context.repository_def.assets_defs_by_key[key_of(asset)]
        uri = f"{self.bucket.objects().name}/{stored.key}"
        facts = {**metadata.shown(stored.metadata), metadata.URI: uri}
        tags = provenance_tags(self.instance, definition, self.context.run.run_id)
        self.context.log_event(cell_event(definition, partition, stored, facts, tags))
        return dg.Output(None, metadata={"partition": f"{asset} {partition}", metadata.URI: uri})


class NoSettings(dg.Config):
    """The settings of an operation that has none."""


@dataclass(frozen=True)
class Operation(Generic[Settings]):
    """A job that people launch beside making assets.

    Args:
        name: of the job.
        description: in the UI.
        settings: what people fill in at the launchpad.
        work: what is done with them; what it returns is shown with the step.
        tags: of its runs, beside the operation's name.
    """

    name: str
    description: str
    settings: type[Settings]
    work: Callable[[Session, Settings], dg.Output[None] | None]
    tags: Mapping[str, str] = field(default_factory=dict)

    def job(self, study: Study, partitions: Partitions, bucket: Bucket) -> dg.JobDefinition:
        """Its job for one study; the launchpad holds the operation's settings and nothing around them."""
        schema, name = self.settings.to_config_schema(), f"{self.name}{SUFFIX}"

        @dg.op(
            name=name,
            description=self.description,
            config_schema=schema,
            required_resource_keys={"bucket"},
            tags={"curvas/needs": "cpu"},
        )
        def operation(context: dg.OpExecutionContext):
            session = Session(context, study, partitions, context.resources.bucket)
            try:
                return self.work(session, self.settings(**context.op_config))
            except CurvasError as error:
                raise dg.Failure(str(error), allow_retries=error.may_retry) from error

        @dg.graph(name=self.name, description=self.description)
        def graph() -> None:
            operation()

        def to_op(given: dict[str, Any]) -> dict[str, Any]:
            return {"ops": {name: {"config": given}}}

        return graph.to_job(
            config=dg.ConfigMapping(to_op, config_schema=schema),
            resource_defs={"bucket": bucket, "io_manager": dg.mem_io_manager},
            executor_def=dg.in_process_executor,
            tags={"curvas/operation": self.name, **self.tags},
        )
