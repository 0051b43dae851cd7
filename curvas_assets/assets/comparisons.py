"""Comparisons: do ensembles reduce uncertainty without hurting accuracy, beside the challenge's teams, at what cost?"""

import dagster as dg

from curvas_assets.assets.declaring import OWNERS, Declarations, table_output
from curvas_assets.orchestration.asset_keys import asset_key
from curvas_assets.orchestration.bucket import Bucket
from curvas_assets.orchestration.ledger import cost_table, materialisation_ledger, not_recorded
from curvas_assets.orchestration.partitions import Partitions
from curvas_assets.stages import compare as stage
from curvas_assets.stages import needs, table
from curvas_assets.stages.stored import Artefact
from curvas_assets.statistics import rank_among_teams
from curvas_assets.statistics.challenge import TEAM_ORGANS
from curvas_assets.study import Study


def build(study: Study, partitions: Partitions) -> list[dg.AssetsDefinition | dg.AssetSpec]:
    """The comparisons of one study."""
    declare = Declarations(study, partitions)

    @declare.table(table.FAMILY_COMPARISONS, stage.COMPARISONS_CHECK)
    def family_comparisons(study_scores: Artefact):
        """Families and predictors, pair by pair: the published test, and the one within patients.

        The pairs are those of `statistics.comparisons`, or general ensemble, annotator ensembles and single models, and
        each further predictor against what it is made from. `question` says which question a primary metric answers, and
        `p_adjusted` is corrected over all of them; every other metric is exploratory.
        """
        frame, facts, untested = stage.compare_families(study, study_scores.table())
        return table_output(table.FAMILY_COMPARISONS, frame, stage.COMPARISONS_CHECK, untested, facts)

    @declare.table(table.VARIANCE_COMPONENTS, stage.VARIANCE_CHECK)
    def variance_components(study_scores: Artefact):
        """How much of the variance of the models' scores patients, annotators and seeds carry, and what more of them would bring."""
        frame, facts, lacking = stage.split_variance(study, study_scores.table())
        return table_output(table.VARIANCE_COMPONENTS, frame, stage.VARIANCE_CHECK, lacking, facts)

    @declare.table(table.LEADERBOARD, stage.LEADERBOARD_CHECK)
    def leaderboard(study_scores: Artefact):
        """The three families among the challenge's teams, with what may be compared and what may not."""
        alike = len(study.organs) == len(TEAM_ORGANS)  # with further classes, scores of the whole image are others
        board = rank_among_teams(
            study_scores.table(),
            region=study.evaluation.region,
            synthetic=study.synthetic,
            reference=study.evaluation.reference,
            organs=study.scored_organs if alike else study.class_names[1:],
        )
        return table_output(table.LEADERBOARD, board, stage.LEADERBOARD_CHECK, stage.not_ranked(board))

    @declare.table(table.COST, stage.COST_CHECK)
    def cost(context: dg.AssetExecutionContext):
        """Hours, bytes and money that every stage has actually used, beside the study's own figures."""
        ledger = materialisation_ledger(context.instance)
        unrecorded = not_recorded(context.instance, ledger)
        return table_output(table.COST, cost_table(ledger, study.prices), stage.COST_CHECK, unrecorded)

    @declare.table(table.PREDICTOR_COST, stage.PREDICTOR_COST_CHECK)
    def predictor_cost(context: dg.AssetExecutionContext):
        """Hours of GPU and CPU that each predictor needs: an ensemble's members are trained and predict for it, once each."""
        frame = needs.predictor_cost(study, materialisation_ledger(context.instance, needs.RECORDS))
        return table_output(table.PREDICTOR_COST, frame, stage.PREDICTOR_COST_CHECK, needs.without_record(frame))

    published_table = dg.AssetSpec(
        asset_key(table.PUBLISHED_TABLE),
        group_name=table.PUBLISHED_COMPARISON.group,
        owners=OWNERS,
        kinds={"s3", "csv"},
        description=(
            f"The study's published wide table, uploaded by people as `{study.report.published_table}` below the metrics "
            "prefix. Optional; the sensor that registers patients reports it."
        ),
    )

    @declare.table(table.PUBLISHED_COMPARISON, stage.PUBLISHED_CHECK)
    def published_comparison(context: dg.AssetExecutionContext, bucket: Bucket, study_scores: Artefact):
        """This run's means beside the published ones, and the published tests on the published table; empty without one."""
        tools = declare.tools(context, bucket)
        frame, version, facts, unusable = stage.compare_published(tools, study_scores.table())
        return table_output(table.PUBLISHED_COMPARISON, frame, stage.PUBLISHED_CHECK, unusable, facts, version=version)

    other_studies = dg.AssetSpec(
        asset_key(table.OTHER_STUDIES),
        group_name=table.STUDY_COMPARISON.group,
        owners=OWNERS,
        kinds={"s3", "parquet"},
        description="The tables of scores of the studies that `compare_with` names, in the same bucket. Optional; the sensor that "
        "registers patients reports them.",
    )

    @declare.table(table.STUDY_COMPARISON, stage.OTHERS_CHECK)
    def study_comparison(context: dg.AssetExecutionContext, bucket: Bucket, study_scores: Artefact):
        """This study's families and predictors beside their namesakes of other studies, paired by patient; empty without one."""
        frame, facts, problems = stage.compare_others(declare.tools(context, bucket), study_scores.table())
        return table_output(table.STUDY_COMPARISON, frame, stage.OTHERS_CHECK, problems, facts)

    return [
        family_comparisons,
        variance_components,
        leaderboard,
        cost,
        predictor_cost,
        published_table,
        published_comparison,
        other_studies,
        study_comparison,
    ]
