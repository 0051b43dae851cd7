"""Tables of scores made for tests: random studies, and tables with a chosen U."""

import numpy as np
import pandas as pd

SEEDS = (112233, 445566, 778899)


def predictors(annotators: int = 3, seeds: tuple[int, ...] = SEEDS) -> dict[str, str]:
    """Predictor → family, as a study of this many annotators has them."""
    names = [f"anno{a}" for a in range(1, annotators + 1)]
    models = {f"{a}_init{seed}_foldall": "individual" for a in names for seed in seeds}
    return models | {f"ensemble_{a}": "annotator" for a in names} | {"ensemble_all": "general"}


def random_scores(patients: int, metrics: tuple[str, ...], *, annotators: int = 3, seed: int = 0) -> pd.DataFrame:
    """One value per patient, predictor and metric; ensembles are better on average."""
    rng = np.random.default_rng(seed)
    gain = {"general": 0.02, "annotator": 0.01, "individual": 0.0}
    rows = [
        (f"UKCHLL{p:03d}", predictor, family, metric, 0.85 + 0.05 * difficulty + gain[family] + rng.normal(0, 0.02))
        for p, difficulty in zip(range(1, patients + 1), rng.normal(size=patients), strict=True)
        for predictor, family in predictors(annotators).items()
        for metric in metrics
    ]
    return pd.DataFrame(rows, columns=["patient", "predictor", "family", "metric", "value"])


def with_u(u: float, first: str, n_first: int, second: str, n_second: int) -> pd.DataFrame:
    """Values of two families whose Mann–Whitney U, of the first, is `u`, with a tie only where u is a half."""
    below = np.full(n_first, int(u) // n_first)
    below[: int(u) % n_first] += 1  # how many of the second each value of the first exceeds
    values = below - 0.5 + np.linspace(0, 1e-3, n_first)
    if u % 1:
        at = int(np.argmin(below))
        values[at] = below[at]  # ties with the second's value of this rank: half a point more
    rows = [(f"UKCHLL{i:03d}", f"{first}-{i}", first, "dice", v) for i, v in enumerate(values)]
    rows += [(f"UKCHLL{i:03d}", f"{second}-{i}", second, "dice", float(i)) for i in range(n_second)]
    return pd.DataFrame(rows, columns=["patient", "predictor", "family", "metric", "value"])
