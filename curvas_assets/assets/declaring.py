"""From a row of the table to a Dagster asset: what all declarations share."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import dagster as dg
import pandas as pd

from curvas_assets.orchestration import checks as verdicts
from curvas_assets.orchestration import metadata as ui
from curvas_assets.orchestration.asset_keys import asset_key, key_of
from curvas_assets.orchestration.bucket import Bucket
from curvas_assets.orchestration.cells import materialise
from curvas_assets.orchestration.devices import leased_device
from curvas_assets.orchestration.execution import RETRY, Needs, StageNeeds
from curvas_assets.orchestration.partitions import Partitions
from curvas_assets.orchestration.provenance import code_facts
from curvas_assets.orchestration.scratch import scratch_space
from curvas_assets.stages.checks import Check, StepChecks
from curvas_assets.stages.stored import Artefact, Artefacts, Outcome
from curvas_assets.stages.table import Asset
from curvas_assets.stages.toolkit import Toolkit
from curvas_assets.storage.ownership import require_own
from curvas_assets.storage.tables import table_version
from curvas_assets.study import Study

OWNERS = ["team:imaging"]
Stage = Callable[..., Iterator[tuple[str, Outcome]]]
"""Of `curvas_assets.stages`: (tools, partitions, checks, **artefacts of each input) → the outcome of each partition."""


@dataclass(frozen=True)
class Declarations:
    """Makes the assets of one study.

    Args:
        study: whose they are.
        partitions: of the study.
    """

    study: Study
    partitions: Partitions

    def needs(self, row: Asset) -> Needs:
        """What a step of an asset asks of its machine."""
        return getattr(StageNeeds.of(self.study), row.needs)

    def divided(self, row: Asset) -> dg.PartitionsDefinition | None:
        return getattr(self.partitions, row.axis) if row.axis else None

    def inputs(self, row: Asset) -> dict[str, dg.AssetIn]:
        return {
            above.name: dg.AssetIn(
                key_of(above), partition_mapping=self.partitions.between(above.axis, row.axis, fits=row.fits)
            )
            for above in row.inputs
        }

    def described(self, row: Asset) -> dict[str, Any]:
        """The attributes that any declaration of an asset has, whether its step makes this asset alone or several."""
        return {
            "group_name": row.group,
            "owners": OWNERS,
            "kinds": set(row.tools),
            "code_version": row.version(self.study),
        }

    def table(self, row: Asset, *checks: Check) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
        """Decorator for a function that makes an asset without partitions."""
        return dg.asset(
            key=key_of(row),
            ins=self.inputs(row),
            deps=[asset_key(str(one)) for one in row.after],
            check_specs=verdicts.specs(row.name, checks),
            op_tags=self.needs(row).op_tags,
            retry_policy=RETRY,
            **self.described(row),
        )

    def cells(self, row: Asset, checks: Sequence[Check]) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
        """Decorator for a function that makes any number of partitions of an asset per step, by calling `make`."""
        needs = self.needs(row)
        return dg.asset(
            key=key_of(row),
            ins=self.inputs(row),
            deps=[asset_key(str(one)) for one in row.after],
            partitions_def=self.divided(row),
            backfill_policy=dg.BackfillPolicy.multi_run(row.per_run),
            output_required=False,
            check_specs=verdicts.specs(row.name, checks, self.divided(row)),
            pool=needs.pool,
            op_tags=needs.op_tags,
            retry_policy=RETRY,
            **self.described(row),
        )

    def make(
        self,
        row: Asset,
        stage: Stage,
        described: Sequence[Check],
        context: dg.AssetExecutionContext,
        bucket: Bucket,
        **inputs: Artefact | Artefacts,
    ) -> Iterator[Any]:
        """Let a stage make the partitions of a step, each stored and reported as soon as it is done.

        Args:
            row: of the asset.
            stage: that makes it.
            described: the asset's checks.
            context: of the step.
            bucket: the study's.
            inputs: artefacts by asset; of one without partitions, the artefact.
        """
        tools = self.tools(context, bucket, self.needs(row).hours * len(context.partition_keys))
        checks = StepChecks(*described)
        yield from materialise(context, tools.objects, lambda keys: stage(tools, keys, checks, **inputs), checks)

    def tools(self, context: dg.AssetExecutionContext, bucket: Bucket, hours: float = 0) -> Toolkit:
        """The toolkit of a stage, for a step that takes so many hours. The store is checked first."""

        def device() -> AbstractContextManager[str | None]:
            return leased_device(context.log.info)

        objects, layout = bucket.checked_objects(hours=hours), bucket.layout
        require_own(objects, layout, self.study.name)
        return Toolkit(
            study=self.study,
            objects=objects,
            layout=layout,
            tell=context.log.info,
            warn=context.log.warning,
            scratch=scratch_space,
            device=device,
            code=code_facts,
        )


def table_output(
    row: Asset,
    frame: pd.DataFrame,
    check: Check,
    problems: Iterable[str] = (),
    facts: dict[str, Any] | None = None,
    version: str | None = None,
) -> dg.MaterializeResult[pd.DataFrame]:
    """A table as an output that is versioned by its content and shown in the UI, with the verdict on it.

    Args:
        row: of the asset.
        frame: what is stored.
        check: that looked at it.
        problems: what it found.
        facts: what people see in the UI; if not given, the table.
        version: the data version, if the table's content alone does not determine it.
    """
    return dg.MaterializeResult(
        value=frame,
        check_results=[verdicts.result(check, row.name, problems)],
        data_version=dg.DataVersion(version or table_version(frame)),
        metadata=ui.shown({"table": frame} if facts is None else facts),
    )
