"""Scores: every predictor of a patient against every annotator, and the study's one table."""

import dagster as dg

from curvas_assets.assets.declaring import Declarations, table_output
from curvas_assets.orchestration.bucket import Bucket
from curvas_assets.orchestration.partitions import Partitions
from curvas_assets.stages import score as stage
from curvas_assets.stages import table
from curvas_assets.stages.stored import Artefact, Artefacts
from curvas_assets.study import Study


def build(study: Study, partitions: Partitions) -> list[dg.AssetsDefinition]:
    """The scores of one study."""
    declare = Declarations(study, partitions)

    @declare.cells(table.SCORES, stage.CHECKS)
    def scores(
        context: dg.AssetExecutionContext,
        bucket: Bucket,
        softmax: Artefacts,
        variant_softmax: Artefacts,
        ensemble_softmax: Artefacts,
        calibrators: Artefact,
        scan: Artefacts,
    ):
        """All predictors of one patient on every metric, organ and annotator; reliability bins, risk–coverage curves."""
        yield from declare.make(
            table.SCORES,
            stage.score_patients,
            stage.CHECKS,
            context,
            bucket,
            softmax=softmax,
            variant_softmax=variant_softmax,
            ensemble_softmax=ensemble_softmax,
            calibrators=calibrators,
            scan=scan,
        )

    @declare.table(table.STUDY_SCORES, stage.STUDY_CHECK)
    def study_scores(context: dg.AssetExecutionContext, bucket: Bucket, scores: Artefacts):
        """Scores of all patients in one long table, and as `metrics.csv` with the study's columns.

        The current study file decides which patients, predictors, families and groups are in it.
        """
        frame, facts = stage.merge_scores(declare.tools(context, bucket), scores)
        return table_output(table.STUDY_SCORES, frame, stage.STUDY_CHECK, stage.not_scored(study, frame), facts)

    return [scores, study_scores]
