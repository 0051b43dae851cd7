"""Models: one nnU-Net for each annotator × seed, trained so that it can be killed and go on."""

import dagster as dg

from curvas_assets.assets.declaring import Declarations
from curvas_assets.orchestration.bucket import Bucket
from curvas_assets.orchestration.partitions import Partitions
from curvas_assets.stages import table
from curvas_assets.stages import train as stage
from curvas_assets.stages.stored import Artefacts
from curvas_assets.study import Study


def build(study: Study, partitions: Partitions) -> list[dg.AssetsDefinition]:
    """The models of one study."""
    declare = Declarations(study, partitions)

    @declare.cells(table.TRAINED_MODEL, stage.CHECKS)
    def trained_model(context: dg.AssetExecutionContext, bucket: Bucket, preprocessed_dataset: Artefacts):
        """One nnU-Net: seeded, stopped early, its best checkpoint published without optimizer state.

        While it trains, its latest checkpoint is kept in the bucket: a killed run continues from it, on any machine,
        and ends with the same weights as a run without interruption (on the CPU to the bit).
        """
        yield from declare.make(
            table.TRAINED_MODEL,
            stage.train_models,
            stage.CHECKS,
            context,
            bucket,
            preprocessed_dataset=preprocessed_dataset,
        )

    return [trained_model]
