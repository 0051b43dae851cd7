"""Comparisons: do ensembles reduce uncertainty without hurting accuracy, beside the challenge's teams, at what cost?"""

import dagster as dg
import pandas as pd

from curvas_assets.assets.cohort import OWNERS
from curvas_assets.errors import MissingArtefactError
from curvas_assets.orchestration import metadata
from curvas_assets.orchestration.bucket import Bucket
from curvas_assets.orchestration.execution import RETRY, StageNeeds
from curvas_assets.orchestration.io_manager import Artefact, artefact, table_version
from curvas_assets.orchestration.ledger import cost_table, materialisation_ledger
from curvas_assets.orchestration.partitions import Partitions
from curvas_assets.statistics import (
    PublishedScores,
    compare_all_families,
    compare_with_published,
    published_tests,
    read_published_scores,
    with_questions,
)
from curvas_assets.statistics import leaderboard as rank_among_teams
from curvas_assets.storage.objects import ObjectStore
from curvas_assets.study import Study

GROUP = "comparisons"


def build(study: Study, partitions: Partitions) -> list[dg.AssetsDefinition | dg.AssetSpec]:
    """The comparisons of one study."""
    needs = StageNeeds.of(study)

    @dg.asset(
        group_name=GROUP,
        owners=OWNERS,
        kinds={"scipy", "parquet"},
        code_version=f"2-{study.fingerprint('statistics')}",
        metadata=artefact("table"),
        op_tags=needs.table.op_tags,
        retry_policy=RETRY,
    )
    def family_comparisons(study_scores: Artefact) -> dg.Output[pd.DataFrame]:
        """General ensemble, annotator ensembles and single models, pair by pair: the published test, and the one within patients.

        `question` says which question a primary metric answers; every other metric is exploratory.
        """
        comparisons = compare_all_families(study_scores.table(), study.statistics)
        return table_output(with_questions(comparisons, study.statistics))

    @dg.asset(
        group_name=GROUP,
        owners=OWNERS,
        kinds={"parquet"},
        code_version=f"2-{study.fingerprint('evaluation', 'synthetic')}",
        metadata=artefact("table"),
        op_tags=needs.table.op_tags,
        retry_policy=RETRY,
    )
    def leaderboard(study_scores: Artefact) -> dg.Output[pd.DataFrame]:
        """The three families among the challenge's teams, with what may be compared and what may not."""
        board = rank_among_teams(study_scores.table(), region=study.evaluation.region, synthetic=study.synthetic)
        return table_output(board)

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

    published_table = dg.AssetSpec(
        "published_table",
        group_name=GROUP,
        owners=OWNERS,
        kinds={"s3", "csv"},
        description=(
            f"The study's published wide table, uploaded by people as `{study.report.published_table}` below the metrics "
            "prefix. Optional; the sensor that registers patients tells of it."
        ),
    )

    @dg.asset(
        deps=["published_table"],
        group_name=GROUP,
        owners=OWNERS,
        kinds={"parquet"},
        code_version=f"2-{study.fingerprint('statistics', 'report')}",
        metadata=artefact("table"),
        op_tags=needs.table.op_tags,
        retry_policy=RETRY,
    )
    def published_comparison(bucket: Bucket, study_scores: Artefact) -> dg.Output[pd.DataFrame]:
        """This run's means beside the published ones, and the published tests on the published table; empty without one."""
        objects, key = bucket.checked_objects(), bucket.layout.published_table(study.report.published_table)
        published = published_scores(objects, key, study)
        if published is None:
            return dg.Output(
                pd.DataFrame({"metric": []}),
                data_version=dg.DataVersion("none"),
                metadata={"published table": f"none: upload {objects.name}/{key} to compare with it"},
            )
        table = compare_with_published(study_scores.table(), published)
        version = table_version(pd.concat([published.scores, published.unusable, table]).astype(str))
        return dg.Output(
            table,
            data_version=dg.DataVersion(version),
            metadata={
                "published table": f"{objects.name}/{key}",
                "table": metadata.table(table),
                "published tests": metadata.table(published_tests(published, study.statistics)),
                "could not be used": metadata.table(published.unusable),
            },
        )

    return [family_comparisons, leaderboard, cost, published_table, published_comparison]


def published_scores(objects: ObjectStore, key: str, study: Study) -> PublishedScores | None:
    """The study's published table, if people have uploaded one."""
    try:
        content = objects.get(key)
    except MissingArtefactError:
        return None
    return read_published_scores(content, ids=study.patients, study=study)


def table_output(frame: pd.DataFrame) -> dg.Output[pd.DataFrame]:
    """A table as an output that is versioned by its content and shown in the UI."""
    return dg.Output(
        frame, data_version=dg.DataVersion(table_version(frame)), metadata={"table": metadata.table(frame)}
    )
