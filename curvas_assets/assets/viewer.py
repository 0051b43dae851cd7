"""Viewer: previews of patients, small enough to be shared with people who have no key of the bucket."""

import dagster as dg

from curvas_assets.assets.declaring import Declarations
from curvas_assets.orchestration.bucket import Bucket
from curvas_assets.orchestration.partitions import Partitions
from curvas_assets.stages import preview as stage
from curvas_assets.stages import table
from curvas_assets.stages.stored import Artefacts
from curvas_assets.study import Study


def build(study: Study, partitions: Partitions) -> list[dg.AssetsDefinition]:
    """The previews of one study."""
    declare = Declarations(study, partitions)

    @declare.cells(table.VIEWER_PREVIEW, stage.CHECKS)
    def viewer_preview(
        context: dg.AssetExecutionContext,
        bucket: Bucket,
        softmax: Artefacts,
        ensemble_softmax: Artefacts,
        scan: Artefacts,
    ):
        """A patient's scan, annotations, segmentation and maps of uncertainty on a coarser grid: about 2 MB of 8-bit NIfTI.

        The job `share` puts them into a bundle that opens in a browser, offline. The segmentation and the maps are those of
        the predictor that the study is about.
        """
        yield from declare.make(
            table.VIEWER_PREVIEW,
            stage.preview_patients,
            stage.CHECKS,
            context,
            bucket,
            softmax=softmax,
            ensemble_softmax=ensemble_softmax,
            scan=scan,
        )

    return [viewer_preview]
