"""The study's lineage with instant, dummy computations, and the real one with events alone: what the tests of the orchestration
run on.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import dagster as dg

from curvas_assets.assets.declaring import Declarations
from curvas_assets.orchestration import operations
from curvas_assets.orchestration.bucket import Bucket
from curvas_assets.orchestration.cells import cell_event, materialise, provenance_tags
from curvas_assets.orchestration.execution import executor
from curvas_assets.orchestration.partitions import Partitions, dimension_tags
from curvas_assets.orchestration.staleness import ELSEWHERE, MADE, Staleness
from curvas_assets.stages.stored import AVERAGED, Stored, one_by_one
from curvas_assets.stages.table import ASSETS, ENSEMBLE_SOFTMAX, PATIENT_FILES, SOFTMAX, STAGES, Asset
from curvas_assets.storage.layout import Cell
from curvas_assets.storage.metering import MeteredObjects
from curvas_assets.storage.objects import FolderObjects
from curvas_assets.study import Study, load_study

CELLS = tuple(row for row in ASSETS if row.axis)
"""What the study makes partition by partition; its tables and its report are no part of this lineage."""
FITTED = tuple(row for row in ASSETS if row.fits)
"""What is fitted on validation patients: there, whatever happens."""


class NothingIO(dg.IOManager):
    """Inputs are the keys that were asked for; nothing is stored."""

    def handle_output(self, context, obj):
        pass

    def load_input(self, context):
        return list(context.asset_partition_keys) if context.has_asset_partitions else None


def copied(records: dg.DagsterInstance) -> dg.DagsterInstance:
    """An instance in memory with what another one in memory holds: what several tests begin with is recorded once."""
    copy = dg.DagsterInstance.ephemeral()
    for those, its in ((records.event_log_storage, copy.event_log_storage), (records.run_storage, copy.run_storage)):
        those._held_conn.connection.dbapi_connection.backup(its._held_conn.connection.dbapi_connection)
    return copy


@dataclass
class DummyLineage:
    """Every partitioned asset of the table, with the partitions, mappings and policies of the real one.

    `broken` holds partition keys that fail, `versions` what a partition's content is, by key or by asset and key (its key, if
    it is not named), `made` what was computed, in order.
    """

    study: Study = field(default_factory=lambda: load_study("curvas"))
    broken: dict[str, Exception] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    made: list[tuple[str, str]] = field(default_factory=list)
    code: dict[str, str] = field(default_factory=dict)
    executor: str = "in_process"
    instance: dg.DagsterInstance = field(default_factory=dg.DagsterInstance.ephemeral)
    _built: dict[tuple, dg.Definitions] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self):
        self.partitions = Partitions.of(self.study)

    def register(self, *tests: str) -> None:
        """The training patients, and some test patients."""
        self.instance.add_dynamic_partitions("patient", [*self.study.training_patients(), *tests])
        self.instance.add_dynamic_partitions("test_patient", list(tests))

    def run_up_to_models(self) -> list[str]:
        """Register every test patient, and make all that predictions are made from; the test patients."""
        tests = sorted(self.study.sets["test"])
        self.register(*tests)
        for row in CELLS[: CELLS.index(SOFTMAX)]:
            self._run_all_of(row)
        return tests

    @property
    def definitions(self) -> dg.Definitions:
        """Built once for what they depend on; tests change code versions and stages."""
        depends_on = (*sorted(self.code.items()), *STAGES.items())
        if depends_on not in self._built:
            self._built[depends_on] = self._build()
        return self._built[depends_on]

    def _build(self) -> dg.Definitions:
        names = {row.name for row in CELLS}
        stages = [
            dg.define_asset_job(stage, selection=dg.AssetSelection.assets(*made), executor_def=executor(self.executor))
            for stage, made in STAGES.items()
            if names.issuperset(made)
        ]
        return dg.Definitions(
            assets=[
                *map(self._asset, CELLS),
                *(dg.AssetSpec(row.name) for row in FITTED),
                dg.AssetSpec(PATIENT_FILES, partitions_def=self.partitions.patient),
            ],
            jobs=[*stages, *operations.build(self.study, self.partitions, Bucket())],
            resources={"io_manager": NothingIO()},
        )

    def _asset(self, row: Asset) -> dg.AssetsDefinition:
        declared = Declarations(self.study, self.partitions)

        @dg.asset(
            name=row.name,
            ins=declared.inputs(row),
            deps=[str(above) for above in row.after],
            partitions_def=declared.divided(row),
            backfill_policy=dg.BackfillPolicy.multi_run(row.per_run),
            output_required=False,
            retry_policy=dg.RetryPolicy(max_retries=1),
            code_version=self.code.get(row.name, "1"),
        )
        def made(context: dg.AssetExecutionContext, **inputs):
            def produce(key: str) -> Stored:
                if key in self.broken:
                    raise self.broken[key]
                self.made.append((row.name, key))
                return Stored(
                    f"{row.name}/{key}", self._version(row.name, key), {"key": key, **self._told(row.name, key)}
                )

            yield from materialise(context, MeteredObjects(FolderObjects("unused")), one_by_one(produce))

        return made

    def run(self, asset: str, first: str, last: str | None = None) -> dg.ExecuteInProcessResult:
        """Materialise one partition, or a range (of a grid: a rectangle)."""
        definitions = self.definitions
        if last is None:
            divided = definitions.resolve_asset_graph().get(dg.AssetKey(asset)).partitions_def
            tags = {"dagster/partition": first, **dimension_tags(divided, first)}
        else:
            tags = {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}
        job = definitions.resolve_implicit_global_asset_job_def()
        return job.get_subset(asset_selection={dg.AssetKey(asset)}).execute_in_process(
            instance=self.instance, tags=tags, raise_on_error=False
        )

    def run_all(self) -> None:
        """Every partition of every asset, each asset in one run."""
        for row in CELLS:
            self._run_all_of(row)

    def _run_all_of(self, row: Asset) -> None:
        keys = self.staleness.partitions(dg.AssetKey(row.name))
        if not keys:  # a study without variants of models
            return
        assert self.run(row.name, str(keys[0]), str(keys[-1])).success

    def record_all(self, *, only: Sequence[str] = (), but: str = "") -> None:
        """Every partition of every asset, as if each asset had been made in one run: its events, without the runs.

        Args:
            only: the assets that are recorded; if not given, all.
            but: a patient of whom nothing is recorded.
        """
        graph = self.definitions.resolve_asset_graph()
        for key in (dg.AssetKey(row.name) for row in CELLS if row.name in only or not only):
            definition = graph.assets_def_for_key(key)
            tags = provenance_tags(self.instance, definition, "all")
            for one in map(str, self.staleness.partitions(key)):
                if but in one.split("|"):
                    continue
                stored = Stored("key", self._version(key.to_user_string(), one))
                told = self._told(key.to_user_string(), one)
                self.instance.report_runless_asset_event(cell_event(definition, one, stored, told, tags))

    def _told(self, asset: str, key: str) -> dict[str, list[str]]:
        """What an ensemble says of its members."""
        if asset != ENSEMBLE_SOFTMAX.name:
            return {}
        cell = Cell.of(key)
        return {AVERAGED: [str(one) for one in self.study.members(cell.predictor, cell.patient)]}

    def _version(self, asset: str, key: str) -> str:
        return self.versions.get(f"{asset} {key}", self.versions.get(key, key))

    def upload(self, asset: str, *partitions: str) -> None:
        """Report partitions as an upload does."""
        definition = self.definitions.resolve_asset_graph().assets_def_for_key(dg.AssetKey(asset))
        tags = provenance_tags(self.instance, definition, "an upload")
        for partition in partitions:
            event = cell_event(definition, partition, Stored("key", "uploaded"), {MADE: ELSEWHERE}, tags)
            self.instance.report_runless_asset_event(event)

    def change_files(self, patient: str, version: str) -> None:
        """What the sensor tells of a patient whose files are others now."""
        tags = {"dagster/data_version": version}
        self.instance.report_runless_asset_event(dg.AssetObservation("patient_files", partition=patient, tags=tags))

    def as_in(self, study: Study) -> "DummyLineage":
        """The lineage of an edited study on the same records, with the code versions that the real assets have then."""
        from curvas_assets.definitions import build_definitions  # a second that most tests and processes need not spend

        graph = build_definitions(study).resolve_asset_graph()
        code = {key.to_user_string(): graph.get(key).code_version for key in graph.materializable_asset_keys}
        return replace(self, study=study, code=code)

    @property
    def staleness(self) -> Staleness:
        return Staleness(self.definitions.resolve_asset_graph(), self.instance)

    def due(self) -> dict[str, list[str]]:
        """Missing or stale partitions, by asset; assets with none are left out."""
        staleness = self.staleness
        graph = self.definitions.resolve_asset_graph()
        due = {key.to_user_string(): [str(p) for p in staleness.due(key)] for key in graph.toposorted_asset_keys}
        return {asset: partitions for asset, partitions in due.items() if partitions}


class Events:
    """The real definitions of a study, and events as the platform writes them."""

    def __init__(self, study, instance):
        from curvas_assets.definitions import build_definitions  # as in DummyLineage.as_in

        self.study, self.instance = study, instance
        self.repository = build_definitions(study).get_repository_def()

    @property
    def staleness(self) -> Staleness:
        return Staleness(self.repository.asset_graph, self.instance)

    def tell(self, asset, *partitions, version="1"):
        self._report(asset, partitions or (None,), version, {}, "run")

    def upload(self, asset, *partitions):
        self._report(asset, partitions, "uploaded", {MADE: ELSEWHERE}, "an upload")

    def _report(self, asset, partitions, version, metadata, run_id):
        definition = self.repository.assets_defs_by_key[dg.AssetKey(asset)]
        tags = provenance_tags(self.instance, definition, run_id)
        for partition in partitions:
            event = cell_event(definition, partition, Stored("key", version), metadata, tags)
            self.instance.report_runless_asset_event(event)

    def due_of(self, *assets):
        """Asset → the partitions that are due; assets with none are left out."""
        staleness = self.staleness
        due = {asset: list(map(str, staleness.due(dg.AssetKey(asset)))) for asset in assets}
        return {asset: partitions for asset, partitions in due.items() if partitions}

    def due(self, *assets):
        return list(self.due_of(*assets))
