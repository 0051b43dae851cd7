"""Calibration: what the validation patients say of predictors' probabilities."""

import dagster as dg

from curvas_assets.assets.declaring import Declarations
from curvas_assets.orchestration import checks as verdicts
from curvas_assets.orchestration import metadata
from curvas_assets.orchestration.bucket import Bucket
from curvas_assets.orchestration.partitions import Partitions
from curvas_assets.stages import calibrate as stage
from curvas_assets.stages import table
from curvas_assets.stages.stored import Artefacts
from curvas_assets.study import Study


def build(study: Study, partitions: Partitions) -> list[dg.AssetsDefinition]:
    """The calibrators of one study."""
    declare = Declarations(study, partitions)

    @declare.table(table.CALIBRATORS, stage.CALIBRATORS_CHECK)
    def calibrators(
        context: dg.AssetExecutionContext,
        bucket: Bucket,
        softmax: Artefacts,
        ensemble_softmax: Artefacts,
        scan: Artefacts,
    ):
        """Temperatures and isotonic curves, fitted on the validation patients and on no test patient.

        The predictors that they make, such as `isotonic_ensemble_all`, are computed while patients are scored and when they
        are downloaded; no volume of them is stored. A validation patient who is not predicted is left out with a warning.
        Empty, and made at once, where the study calibrates nothing.
        """
        record, version, facts, problems = stage.fit_calibrators(
            declare.tools(context, bucket), softmax=softmax, ensemble_softmax=ensemble_softmax, scan=scan
        )
        return dg.MaterializeResult(
            value=record,
            check_results=[verdicts.result(stage.CALIBRATORS_CHECK, table.CALIBRATORS.name, problems)],
            data_version=dg.DataVersion(version),
            metadata=metadata.shown(facts),
        )

    return [calibrators]
