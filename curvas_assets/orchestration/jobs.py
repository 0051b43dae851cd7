"""Jobs: one for each stage, to launch or backfill any of its partitions from the UI, a schedule or the command line."""

import dagster as dg

STAGES: dict[str, tuple[str, ...]] = {
    "take_in_scans": ("scan",),
    "select_test_scans": ("test_scan",),
    "describe_cohort": ("cohort",),
    "prepare_datasets": ("preprocessed_dataset",),
    "train_models": ("trained_model",),
    "predict": ("softmax",),
    "build_ensembles": ("ensemble_softmax",),
    "score_patients": ("scores",),
    "write_report": (
        "study_scores",
        "family_comparisons",
        "leaderboard",
        "published_comparison",
        "cohort",
        "cost",
        "figures",
        "report",
    ),
}
"""Stage job → assets it makes, in the order in which a study runs."""
REPORT = "write_report"


def stage_jobs(executor: dg.ExecutorDefinition) -> list:
    """A job for each stage of the study."""
    return [
        dg.define_asset_job(
            name,
            selection=dg.AssetSelection.assets(*assets),
            description=f"Materialise {', '.join(assets)}: choose partitions, or launch from `study`.",
            executor_def=executor,
        )
        for name, assets in STAGES.items()
    ]
