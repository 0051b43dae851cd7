"""Datasets: the training patients as one annotator drew them, or several, preprocessed by nnU-Net."""

import dagster as dg

from curvas_assets.assets.declaring import Declarations
from curvas_assets.orchestration.bucket import Bucket
from curvas_assets.orchestration.partitions import Partitions
from curvas_assets.stages import prepare as stage
from curvas_assets.stages import table
from curvas_assets.stages.stored import Artefacts
from curvas_assets.study import Study


def build(study: Study, partitions: Partitions) -> list[dg.AssetsDefinition]:
    """The datasets of one study."""
    declare = Declarations(study, partitions)

    @declare.cells(table.TRAINING_CASES, stage.CASES_CHECKS)
    def training_cases(context: dg.AssetExecutionContext, bucket: Bucket, scan: Artefacts):
        """The training patients' files that one training label learns from: the bridge from the cohort to the datasets.

        It contains nothing of other annotators, so a further annotator makes no dataset again, and trains no model again,
        but those of fused labels, which learn from all.
        """
        yield from declare.make(
            table.TRAINING_CASES, stage.select_training_cases, stage.CASES_CHECKS, context, bucket, scan=scan
        )

    @declare.cells(table.PREPROCESSED_DATASET, stage.CHECKS)
    def preprocessed_dataset(context: dg.AssetExecutionContext, bucket: Bucket, training_cases: Artefacts):
        """The training patients as one annotator drew them, or several whose labels are fused (`training_labels` in the study
        file), fingerprinted, planned and preprocessed by nnU-Net.

        All in one voxel order (LPS), whatever their files are in; models inherit it, and predictions come back on each
        scan's own voxels.
        """
        yield from declare.make(
            table.PREPROCESSED_DATASET,
            stage.prepare_datasets,
            stage.CHECKS,
            context,
            bucket,
            training_cases=training_cases,
        )

    return [training_cases, preprocessed_dataset]
