"""Comparisons: do ensembles reduce uncertainty without hurting accuracy, beside the challenge's teams, at what cost?"""

import dagster as dg
import pandas as pd

from curvas_assets.assets.cohort import OWNERS
from curvas_assets.errors import MissingArtefactError
from curvas_assets.orchestration import metadata
from curvas_assets.orchestration.bucket import Bucket
from curvas_assets.orchestration.checks import Check
from curvas_assets.orchestration.execution import RETRY, StageNeeds
from curvas_assets.orchestration.io_manager import Artefact, artefact, table_version
from curvas_assets.orchestration.ledger import COST_STAGES, cost_table, materialisation_ledger
from curvas_assets.orchestration.partitions import Partitions
from curvas_assets.statistics import (
    PublishedScores,
    compare_all_families,
    compare_with_published,
    published_tests,
    read_published_scores,
    scored_in_mm3,
    shown_differences,
    shown_scores,
    units_of,
    with_questions,
    with_unit,
)
from curvas_assets.statistics import leaderboard as rank_among_teams
from curvas_assets.statistics.challenge import STANDINGS
from curvas_assets.storage.objects import ObjectStore
from curvas_assets.study import Statistics, Study

GROUP = "comparisons"
COMPARISONS_CHECK = Check(
    "primary_metrics_are_tested", "Every primary metric has its p in every pair of families that the study has."
)
LEADERBOARD_CHECK = Check(
    "metrics_are_ranked",
    "Every metric of the challenge has a rank for every family that was scored; tells which has none.",
)
COST_CHECK = Check(
    "work_is_recorded", "Every artefact that is there has recorded what it used; what was made elsewhere has not."
)
PUBLISHED_CHECK = Check(
    "published_table_is_usable",
    "Every value of the published table could be read, if there is one; tells what could not.",
)


def build(study: Study, partitions: Partitions) -> list[dg.AssetsDefinition | dg.AssetSpec]:
    """The comparisons of one study."""
    needs = StageNeeds.of(study)

    @dg.asset(
        group_name=GROUP,
        owners=OWNERS,
        kinds={"scipy", "parquet"},
        code_version=f"2-{study.fingerprint('statistics')}",
        metadata=artefact("table"),
        check_specs=[COMPARISONS_CHECK.spec("family_comparisons")],
        op_tags=needs.table.op_tags,
        retry_policy=RETRY,
    )
    def family_comparisons(study_scores: Artefact):
        """General ensemble, annotator ensembles and single models, pair by pair: the published test, and the one within patients.

        `question` says which question a primary metric answers; every other metric is exploratory.
        """
        scores = study_scores.table()
        comparisons = with_questions(compare_all_families(scores, study.statistics), study.statistics)
        untested = not_tested(comparisons, set(scores["family"]), study.statistics)
        verdict = COMPARISONS_CHECK.result("family_comparisons", untested)
        return table_output(comparisons, verdict, shown_comparisons(comparisons, scores))

    @dg.asset(
        group_name=GROUP,
        owners=OWNERS,
        kinds={"parquet"},
        code_version=f"2-{study.fingerprint('evaluation', 'synthetic')}",
        metadata=artefact("table"),
        check_specs=[LEADERBOARD_CHECK.spec("leaderboard")],
        op_tags=needs.table.op_tags,
        retry_policy=RETRY,
    )
    def leaderboard(study_scores: Artefact):
        """The three families among the challenge's teams, with what may be compared and what may not."""
        board = rank_among_teams(study_scores.table(), region=study.evaluation.region, synthetic=study.synthetic)
        return table_output(board, LEADERBOARD_CHECK.result("leaderboard", not_ranked(board)))

    @dg.asset(
        deps=["study_scores", "family_comparisons", "leaderboard"],  # after the comparisons, whose cost is in it
        group_name=GROUP,
        owners=OWNERS,
        kinds={"parquet"},
        code_version=f"1-{study.fingerprint('prices')}",
        metadata=artefact("table"),
        check_specs=[COST_CHECK.spec("cost")],
        op_tags=needs.table.op_tags,
        retry_policy=RETRY,
    )
    def cost(context: dg.AssetExecutionContext):
        """Hours, bytes and money that every stage has actually used, beside the study's own figures."""
        ledger = materialisation_ledger(context.instance)
        unrecorded = not_recorded(context.instance, ledger)
        return table_output(cost_table(ledger, study.prices), COST_CHECK.result("cost", unrecorded))

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
        check_specs=[PUBLISHED_CHECK.spec("published_comparison")],
        op_tags=needs.table.op_tags,
        retry_policy=RETRY,
    )
    def published_comparison(bucket: Bucket, study_scores: Artefact):
        """This run's means beside the published ones, and the published tests on the published table; empty without one."""
        objects, key = bucket.checked_objects(), bucket.layout.published_table(study.report.published_table)
        published = published_scores(objects, key, study)
        if published is None:
            return dg.MaterializeResult(
                value=pd.DataFrame({"metric": []}),
                check_results=[PUBLISHED_CHECK.result("published_comparison", ())],
                data_version=dg.DataVersion("none"),
                metadata={"published table": f"none: upload {objects.name}/{key} to compare with it"},
            )
        table = compare_with_published(study_scores.table(), published)
        version = table_version(pd.concat([published.scores, published.unusable, table]).astype(str))
        return dg.MaterializeResult(
            value=table,
            check_results=[PUBLISHED_CHECK.result("published_comparison", unusable(published.unusable))],
            data_version=dg.DataVersion(version),
            metadata={
                "published table": f"{objects.name}/{key}",
                "table": metadata.table(shown_scores(table)),
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


def table_output(
    frame: pd.DataFrame, check: dg.AssetCheckResult, shown: pd.DataFrame | None = None
) -> dg.MaterializeResult[pd.DataFrame]:
    """A table as an output that is versioned by its content and shown in the UI, with the verdict on it.

    Args:
        frame: what is stored.
        check: the verdict.
        shown: what people see in the UI, where it is not the same.
    """
    return dg.MaterializeResult(
        value=frame,
        check_results=[check],
        data_version=dg.DataVersion(table_version(frame)),
        metadata={"table": metadata.table(frame if shown is None else shown)},
    )


def shown_comparisons(comparisons: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """The comparisons as people read them: differences in the unit that the metric is shown in, which its name tells."""
    units = units_of(scores)
    shown = shown_differences(comparisons, scored_in_mm3(scores))
    return shown.assign(metric=[with_unit(str(metric), units.get(metric, "")) for metric in shown["metric"]])


def not_tested(comparisons: pd.DataFrame, families: set[str], settings: Statistics) -> list[str]:
    """The pairs of families in which a primary metric has no p.

    Args:
        comparisons: from `compare_all_families`.
        families: those that were scored.
        settings: which metrics are primary.
    """
    lacking = []
    for question, metric in settings.primary.items():
        own = comparisons[comparisons["metric"] == metric]
        possible = own[own["first"].isin(families) & own["second"].isin(families)]
        if own.empty:
            lacking.append(f"{metric} ({question}) was not scored")
        for row in possible[possible["p_randomisation"].isna()].itertuples():
            lacking.append(f"{metric} ({question}): no p for {row.pair}" + (f", {row.note}" if row.note else ""))
    return lacking


def not_ranked(board: pd.DataFrame) -> list[str]:
    """This run's metrics without a rank, each with the reason."""
    teams = set(board.loc[board["kind"] == "team", "metric"])
    ours = board[board["kind"] == "this run"]
    columns = dict.fromkeys(standing.column for standing in STANDINGS.values())
    absent = [
        f"{column}: no metric of this column of the challenge's was scored"
        for column in columns
        if column not in set(ours["column"])
    ]
    left_out = ours[~ours["metric"].isin(teams)].drop_duplicates("metric")
    undefined = ours[ours["metric"].isin(teams) & ours["rank"].isna()]
    return [
        *absent,
        *(f"{row.metric} is not ranked: {row.comparability}" for row in left_out.itertuples()),
        *(f"{row.metric} of {row.entry}: no value is defined" for row in undefined.itertuples()),
    ]


def not_recorded(instance: dg.DagsterInstance, ledger: pd.DataFrame) -> list[str]:
    """Assets with partitions that are there and have recorded no work: their cost is in no row of the table."""
    recorded = ledger.groupby("asset")["partition"].agg(set).to_dict()
    lacking = []
    for asset in (asset for assets in COST_STAGES.values() for asset in assets):
        absent = sorted(instance.get_materialized_partitions(dg.AssetKey(asset)) - recorded.get(asset, set()))
        if absent:
            more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
            lacking.append(f"{asset}: {absent[0]}{more} used nothing here (made elsewhere?): the cost leaves them out")
    return lacking


def unusable(problems: pd.DataFrame) -> list[str]:
    """What of the published table could not be read, by reason."""
    return [f"{reason} ({len(rows)} ×)" for reason, rows in problems.groupby("reason", sort=False)]
