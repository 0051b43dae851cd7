"""On which side each metric is better, as `curvas_assets.scoring` registers it."""


def directions() -> dict[str, str]:
    """Metric → `higher`, `lower`, or empty where neither is better."""
    from curvas_assets.scoring.registry import METRICS  # with numba: only when it is asked for

    return {name: metric.direction for name, metric in METRICS.items()}


def directions_in(reference: str, *, vessels: bool) -> dict[str, str]:
    """The same of the metrics that a study has: with its `evaluation.reference`, and with or without vessels."""
    from curvas_assets.scoring.registry import metrics_of

    return {name: metric.direction for name, metric in metrics_of(reference, vessels=vessels).items()}
