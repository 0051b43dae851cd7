"""Scoring: one predictor of one patient against every annotator."""

from curvas_assets.scoring.checks import check_scores
from curvas_assets.scoring.columns import study_columns
from curvas_assets.scoring.panel import PatientReference, PatientScores, score
from curvas_assets.scoring.registry import METRICS, Metric, metric_table, metrics_of

__all__ = [
    "METRICS",
    "Metric",
    "PatientReference",
    "PatientScores",
    "check_scores",
    "metric_table",
    "metrics_of",
    "score",
    "study_columns",
]
