"""Predictions: the softmax of one patient by one model, and by variants of a model."""

import dagster as dg

from curvas_assets.assets.declaring import Declarations
from curvas_assets.orchestration.bucket import Bucket
from curvas_assets.orchestration.partitions import Partitions
from curvas_assets.stages import predict as stage
from curvas_assets.stages import table
from curvas_assets.stages.stored import Artefacts
from curvas_assets.study import Study


def build(study: Study, partitions: Partitions) -> list[dg.AssetsDefinition]:
    """The predictions of one study."""
    declare = Declarations(study, partitions)

    @declare.cells(table.SOFTMAX, stage.CHECKS)
    def softmax(context: dg.AssetExecutionContext, bucket: Bucket, trained_model: Artefacts, test_scan: Artefacts):
        """Class probabilities (class, z, y, x) of one patient by one model, as one zarr volume.

        A step takes any rectangle of patients × models: each patient is fetched and preprocessed once, each model loaded
        once, and every volume is stored and reported as soon as it is done. Each model gets the scan in the voxel order
        that it was trained on; the volume is stored on the scan's own voxels.
        """
        yield from declare.make(
            table.SOFTMAX,
            stage.predict,
            stage.CHECKS,
            context,
            bucket,
            trained_model=trained_model,
            test_scan=test_scan,
        )

    @declare.cells(table.VARIANT_SOFTMAX, stage.CHECKS)
    def variant_softmax(context: dg.AssetExecutionContext, bucket: Bucket, softmax: Artefacts, test_scan: Artefacts):
        """Class probabilities of one patient by one variant of a model: one of the mirrored predictions that nnU-Net averages
        (`flip0` …), or a prediction by earlier weights of the model's training (`snapshot1` …).

        Members of the study's `cheap_ensembles`, not scored themselves; without these, it has no partitions. Each is
        predicted by the very model that made the model's own `softmax`, in steps like those of `softmax`.
        """
        yield from declare.make(
            table.VARIANT_SOFTMAX,
            stage.predict_variants,
            stage.CHECKS,
            context,
            bucket,
            softmax=softmax,
            test_scan=test_scan,
        )

    return [softmax, variant_softmax]
