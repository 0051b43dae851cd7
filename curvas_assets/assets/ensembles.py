"""Ensembles: the mean softmax of several models of one patient, and where and why they are unsure."""

import dagster as dg

from curvas_assets.assets.declaring import Declarations
from curvas_assets.orchestration.bucket import Bucket
from curvas_assets.orchestration.partitions import Partitions
from curvas_assets.stages import ensemble as stage
from curvas_assets.stages import table
from curvas_assets.stages.stored import Artefacts
from curvas_assets.study import Study


def build(study: Study, partitions: Partitions) -> list[dg.AssetsDefinition]:
    """The ensembles of one study."""
    declare = Declarations(study, partitions)

    @declare.cells(table.ENSEMBLE_SOFTMAX, stage.CHECKS)
    def ensemble_softmax(
        context: dg.AssetExecutionContext, bucket: Bucket, softmax: Artefacts, variant_softmax: Artefacts
    ):
        """Mean probability of an ensemble's members, and maps of its uncertainty as NIfTI beside it.

        Predictive entropy = expected entropy (aleatoric) + mutual information (epistemic), in nats per voxel. All
        ensembles of a patient's models come from one pass over the members. A missing member is an error, never a smaller
        ensemble.
        """
        yield from declare.make(
            table.ENSEMBLE_SOFTMAX,
            stage.build_ensembles,
            stage.CHECKS,
            context,
            bucket,
            softmax=softmax,
            variant_softmax=variant_softmax,
        )

    return [ensemble_softmax]
