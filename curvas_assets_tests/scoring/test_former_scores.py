"""Claim proved here: scores are, on every metric, those that were computed before predictors were counted in one pass.

`former_scores.csv` was written by `scores_of_the_case` with the code of commit 0006f71.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from curvas_assets.geometry import Grid
from curvas_assets.scoring import PatientReference, metrics_of
from curvas_assets.storage.objects import FolderObjects
from curvas_assets.storage.softmax import SoftmaxWriter, open_softmax

FORMER = Path(__file__).with_name("former_scores.csv")
SHAPE, SPACING = (35, 24, 40), (2.5, 0.8, 0.8)
ORGANS = {"pancreas": 1, "kidney": 2}
REGION = (slice(2, 34), slice(1, 24), slice(0, 40))
BOXES = {1: (slice(4, 20), slice(5, 15), slice(3, 22)), 2: (slice(15, 30), slice(8, 20), slice(20, 36))}
LATER = {"volume", "volume_annotator"}
"""Metrics that the former code did not have."""
KEYS = ["predictor", "metric", "organ", "annotator"]


def scores_of_the_case(folder: Path) -> pd.DataFrame:
    """Tables of a stored ensemble of three and of a model in memory, against three annotators."""
    draws = np.random.RandomState(20261127)  # its numbers are the same in every NumPy
    annotations = np.zeros((3, *SHAPE), np.uint8)
    for r, of_annotator in enumerate(annotations):
        for organ, (z, y, x) in BOXES.items():
            of_annotator[z, y.start + r : y.stop, x.start : x.stop - r] = organ
    models = [_model(draws) for _ in range(3)]
    mean = ((models[0] + models[1] + models[2]) / 3).astype(np.float32)
    grid, store = Grid.with_voxels(SHAPE, SPACING), FolderObjects(folder)
    with SoftmaxWriter(store, "mean", grid, class_names=["background", *ORGANS]) as writer:
        writer.write(0, mean)
    reference = PatientReference(annotations, SPACING, organs=ORGANS, region=REGION)
    found = {"ensemble": reference.score(open_softmax(store, "mean"), models), "model": reference.score(models[0])}
    return pd.concat([scores.table.assign(predictor=name) for name, scores in found.items()], ignore_index=True)


def _model(draws: np.random.RandomState) -> np.ndarray:
    """Certain background, around two boxes of noise; by products and quotients alone, which round alike everywhere."""
    weights = np.zeros((3, *SHAPE))
    weights[0] = 1
    for organ, box in BOXES.items():
        z, y, x = (slice(span.start - 2, span.stop + 2) for span in box)
        weights[(organ, z, y, x)] = 8 * draws.random_sample(weights[(organ, z, y, x)].shape) ** 2
    return (weights / (weights[0] + weights[1] + weights[2])).astype(np.float32)


def test_scores_are_those_of_the_former_code(tmp_path):
    found = scores_of_the_case(tmp_path)
    former = pd.read_csv(FORMER, dtype={"annotator": str}, keep_default_na=False)
    later = set(metrics_of()) - set(former["metric"])
    assert later <= LATER
    assert set(former["metric"]) <= set(metrics_of())
    found = found[~found["metric"].isin(later)].reset_index(drop=True)
    pd.testing.assert_frame_equal(found[KEYS], former[KEYS], check_dtype=False)
    np.testing.assert_allclose(found["value"], former["value"], rtol=1e-12, atol=0)
