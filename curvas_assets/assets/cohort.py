"""Cohort: what people put into the bucket, validated patient by patient."""

import dagster as dg

from curvas_assets.assets.declaring import OWNERS, Declarations, table_output
from curvas_assets.orchestration.asset_keys import asset_key
from curvas_assets.orchestration.bucket import Bucket
from curvas_assets.orchestration.partitions import Partitions
from curvas_assets.stages import cohort as stage
from curvas_assets.stages import table
from curvas_assets.stages.cohort import unusual_geometry as unusual_geometry  # scripts know it from here
from curvas_assets.stages.stored import Artefacts
from curvas_assets.study import Study


def build(study: Study, partitions: Partitions) -> list[dg.AssetsDefinition | dg.AssetSpec]:
    """The cohort's assets for one study."""
    declare = Declarations(study, partitions)
    patient_files = dg.AssetSpec(
        asset_key(table.PATIENT_FILES),
        group_name=table.SCAN.group,
        partitions_def=partitions.patient,
        owners=OWNERS,
        kinds={"s3", "nifti"},
        description=(
            f"`{'`, `'.join(study.image_files)}` and {len(study.annotators)} annotations of each patient, as people put them into the "
            "bucket. Never changed by the pipeline; observed by the sensor that registers patients."
        ),
    )

    @declare.cells(table.SCAN, stage.SCAN_CHECKS)
    def scan(context: dg.AssetExecutionContext, bucket: Bucket):
        """One patient's CT and annotations, read to the last byte and validated; geometry and intensity facts.

        A patient with a defect is refused here, with what was found and what to do; other patients are not affected.
        What is odd (a blank map, an organ absent for one annotator, intensities that may be no HU) goes to the
        exclusion ledger.
        """
        yield from declare.make(table.SCAN, stage.take_in, stage.SCAN_CHECKS, context, bucket)

    @declare.cells(table.TEST_SCAN, stage.TEST_SCAN_CHECKS)
    def test_scan(context: dg.AssetExecutionContext, bucket: Bucket, scan: Artefacts):
        """The image of a patient that is predicted: the bridge from the cohort to the patient × model grid.

        It contains nothing of the annotations, so a changed annotation re-scores the patient without a new prediction.
        """
        yield from declare.make(
            table.TEST_SCAN, stage.select_test_scans, stage.TEST_SCAN_CHECKS, context, bucket, scan=scan
        )

    @declare.table(table.COHORT, stage.COHORT_CHECK)
    def cohort(context: dg.AssetExecutionContext, bucket: Bucket, scan: Artefacts):
        """Table of all patients: set, group, shape, spacing, warnings; who is excluded or missing, and why."""
        frame, facts = stage.describe_cohort(declare.tools(context, bucket), scan)
        return table_output(table.COHORT, frame, stage.COHORT_CHECK, stage.not_taken_in(frame), facts)

    return [patient_files, scan, test_scan, cohort]
