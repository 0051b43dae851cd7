"""Intervals: what an organ's volume may be in a new patient, from the errors on the validation patients."""

import dagster as dg

from curvas_assets.assets.declaring import Declarations, table_output
from curvas_assets.orchestration.bucket import Bucket
from curvas_assets.orchestration.partitions import Partitions
from curvas_assets.stages import intervals as stage
from curvas_assets.stages import table
from curvas_assets.stages.stored import Artefact, Artefacts
from curvas_assets.study import Study


def build(study: Study, partitions: Partitions) -> list[dg.AssetsDefinition]:
    """The intervals of one study."""
    declare = Declarations(study, partitions)

    @declare.table(table.VOLUME_INTERVALS, stage.INTERVALS_CHECK)
    def volume_intervals(context: dg.AssetExecutionContext, bucket: Bucket, scores: Artefacts, study_scores: Artefact):
        """Conformal intervals for the organ volumes of the test patients, with the coverage that was observed.

        Errors of validation patients alone give their widths.
        """
        frame, facts, problems = stage.find_intervals(declare.tools(context, bucket), scores, study_scores)
        return table_output(table.VOLUME_INTERVALS, frame, stage.INTERVALS_CHECK, problems, facts)

    return [volume_intervals]
