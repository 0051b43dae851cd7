"""Comparisons: do ensembles reduce uncertainty without hurting accuracy, beside the challenge's teams, at what cost?"""

import dagster as dg
import pandas as pd

from curvas_assets.assets.cohort import OWNERS
from curvas_assets.orchestration import metadata
from curvas_assets.orchestration.execution import RETRY, StageNeeds
from curvas_assets.orchestration.io_manager import Artefact, artefact, table_version
from curvas_assets.orchestration.ledger import cost_table, materialisation_ledger
from curvas_assets.orchestration.partitions import Partitions
from curvas_assets.statistics import compare_all_families
from curvas_assets.statistics import leaderboard as rank_among_teams
from curvas_assets.study import Study

GROUP = "comparisons"


def build(study: Study, partitions: Partitions) -> list[dg.AssetsDefinition]:
    """The comparisons of one study."""
    needs = StageNeeds.of(study)

    @dg.asset(
        group_name=GROUP,
        owners=OWNERS,
        kinds={"scipy", "parquet"},
        code_version=f"1-{study.fingerprint('statistics')}",
        metadata=artefact("table"),
        op_tags=needs.table.op_tags,
        retry_policy=RETRY,
    )
    def family_comparisons(study_scores: Artefact) -> dg.Output[pd.DataFrame]:
        """General ensemble, annotator ensembles and single models, pair by pair: the published test and the paired one."""
        return table_output(compare_all_families(study_scores.table(), study.statistics))

    @dg.asset(
        group_name=GROUP,
        owners=OWNERS,
        kinds={"parquet"},
        code_version=f"1-{study.fingerprint('evaluation')}",
        metadata=artefact("table"),
        op_tags=needs.table.op_tags,
        retry_policy=RETRY,
    )
    def leaderboard(study_scores: Artefact) -> dg.Output[pd.DataFrame]:
        """The three families among the challenge's teams, with what may be compared and what may not."""
        return table_output(rank_among_teams(study_scores.table(), region=study.evaluation.region))

    @dg.asset(
        deps=["study_scores"],
        group_name=GROUP,
        owners=OWNERS,
        kinds={"parquet"},
        code_version=f"1-{study.fingerprint('prices')}",
        metadata=artefact("table"),
        op_tags=needs.table.op_tags,
        retry_policy=RETRY,
    )
    def cost(context: dg.AssetExecutionContext) -> dg.Output[pd.DataFrame]:
        """Hours, bytes and money that every stage has actually used, beside the study's own figures."""
        ledger = materialisation_ledger(context.instance)
        return table_output(cost_table(ledger, study.prices))

    return [family_comparisons, leaderboard, cost]


def table_output(frame: pd.DataFrame) -> dg.Output[pd.DataFrame]:
    """A table as an output that is versioned by its content and shown in the UI."""
    return dg.Output(
        frame, data_version=dg.DataVersion(table_version(frame)), metadata={"table": metadata.table(frame)}
    )
