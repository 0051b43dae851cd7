"""From scores to answers: means with their gaps, tests, where scores vary, intervals for volumes, the published table, ranks."""

from curvas_assets.statistics.association import (
    annotator_agreement,
    dice_against_entropy,
    judges_annotators,
    paired_scores,
)
from curvas_assets.statistics.challenge import leaderboard_wide, rank_among_teams
from curvas_assets.statistics.conformal import (
    attainable_level,
    chance_is_small,
    conformal_margin,
    in_cm3,
    is_a_size,
    observed_coverage,
    volume_intervals,
)
from curvas_assets.statistics.directions import directions
from curvas_assets.statistics.families import compare_all_families, compare_families, non_inferiority, with_questions
from curvas_assets.statistics.other_studies import compare_studies
from curvas_assets.statistics.pairs import PAIRS, Pair, pairs_of
from curvas_assets.statistics.patients import failure_over_patients, out_of_distribution
from curvas_assets.statistics.published import (
    PublishedScores,
    compare_with_published,
    published_comparability,
    published_tests,
    read_published_scores,
)
from curvas_assets.statistics.reduction import best_predictors, reduce_scores, summarise
from curvas_assets.statistics.units import (
    scored_in_mm3,
    shown_differences,
    shown_scores,
    shown_unit,
    shown_variances,
    units_of,
    with_unit,
)
from curvas_assets.statistics.variance import projected_precision, variance_components

__all__ = [
    "PAIRS",
    "Pair",
    "PublishedScores",
    "annotator_agreement",
    "attainable_level",
    "best_predictors",
    "chance_is_small",
    "compare_all_families",
    "compare_families",
    "compare_studies",
    "compare_with_published",
    "conformal_margin",
    "dice_against_entropy",
    "directions",
    "failure_over_patients",
    "in_cm3",
    "is_a_size",
    "judges_annotators",
    "leaderboard_wide",
    "non_inferiority",
    "observed_coverage",
    "out_of_distribution",
    "paired_scores",
    "pairs_of",
    "projected_precision",
    "published_comparability",
    "published_tests",
    "rank_among_teams",
    "read_published_scores",
    "reduce_scores",
    "scored_in_mm3",
    "shown_differences",
    "shown_scores",
    "shown_unit",
    "shown_variances",
    "summarise",
    "units_of",
    "variance_components",
    "volume_intervals",
    "with_questions",
    "with_unit",
]
