"""The metrics: one row each, with what it means, where it lies, which way is better and who else computes it.

The tests walk this table, the report prints it, the UI shows it. How a metric is computed stands in `panel`.
"""

from dataclasses import dataclass
from typing import Literal

import pandas as pd

Direction = Literal["higher", "lower", ""]
Per = Literal["organ", "organ and annotator", "annotator", "image"]


@dataclass(frozen=True)
class Metric:
    """One metric.

    Args:
        name: as in the scores table.
        family: accuracy, calibration, aleatoric or epistemic.
        unit: of its values; empty for a share.
        low, high: its range, limits included.
        direction: which way is better; empty if neither.
        per: what one value is about. `annotator` metrics also have a `mean` over annotators.
        when_empty: the value where an organ (or its absence) is not there.
        definition: in one line.
        oracle: an independent implementation that agrees.
        reference: where it is defined.
    """

    name: str
    family: Literal["accuracy", "calibration", "aleatoric", "epistemic"]
    unit: str
    low: float
    high: float
    direction: Direction
    per: Per
    when_empty: str
    definition: str
    oracle: str
    reference: str


INF = float("inf")
_CURVAS = "CURVAS 2024, doi:10.5281/zenodo.10979641"
_VALUES = "Kahl et al. 2024, arXiv:2401.08501"

METRICS: dict[str, Metric] = {
    m.name: m
    for m in (
        Metric("dice", "accuracy", "", 0, 1, "higher", "organ", "no consensus voxel: NaN if no false positive, else 0",
               "Dice of the prediction with the voxels all annotators give the organ; where they disagree is left out",
               "scikit-learn f1_score", _CURVAS),
        Metric("dice_annotator", "accuracy", "", 0, 1, "higher", "organ and annotator", "both empty: NaN; one empty: 0",
               "Dice of the prediction with one annotator's organ", "scikit-learn f1_score", "Dice 1945, doi:10.2307/1932409"),
        Metric("crps", "accuracy", "mm³", 0, INF, "lower", "organ", "annotators' volumes equal: |V − μ|",
               "Continuous ranked probability score of the soft volume under the normal law of the annotators' volumes",
               "SciPy quad of the definition", "Gneiting & Raftery 2007, doi:10.1198/016214506000001437"),
        Metric("ece", "calibration", "", 0, 1, "lower", "annotator", "never",
               "Expected calibration error of the top label: |accuracy − confidence| over equal bins, weighted by voxels",
               "torchmetrics multiclass_calibration_error", "Guo et al. 2017, arXiv:1706.04599"),
        Metric("ace", "calibration", "", 0, 1, "lower", "annotator", "never",
               "As ece, in fewer equal-width bins, every non-empty bin with the same weight", "NumPy", _VALUES),
        Metric("brier", "calibration", "", 0, 2, "lower", "annotator", "never",
               "Mean squared distance of the probabilities from the annotator's label, summed over classes",
               "scikit-learn mean_squared_error", "Brier 1950"),
        Metric("nll", "calibration", "nats", 0, INF, "lower", "annotator", "never",
               "Mean −ln of the probability of the annotator's label, clipped at 1e-7", "scikit-learn log_loss",
               "Gneiting & Raftery 2007, doi:10.1198/016214506000001437"),
        Metric("confidence", "aleatoric", "", 0, 1, "higher", "organ", "no consensus voxel, or none without it: NaN",
               "Mean of the organ's probability inside its consensus and of its complement where nobody drew it",
               "NumPy", _CURVAS),
        Metric("ncc", "aleatoric", "", -1, 1, "higher", "image", "one of the maps is constant: NaN",
               "Pearson correlation of the annotators' disagreement map and the predictive entropy map",
               "SciPy pearsonr", _VALUES),
        Metric("auroc", "epistemic", "", 0, 1, "higher", "organ and annotator", "organ absent, or everywhere: NaN",
               "Area under the ROC curve of the organ's probability against the annotator's organ, ties counted half",
               "scikit-learn roc_auc_score", _VALUES),
        Metric("auroc_error", "epistemic", "", 0, 1, "higher", "annotator", "no error, or nothing but errors: NaN",
               "Area under the ROC curve of 1 − confidence as a sign of an error", "scikit-learn roc_auc_score", _VALUES),
        Metric("aurc", "epistemic", "", 0, 1, "lower", "annotator", "never",
               "Area under the risk–coverage curve: the error rate among the most confident voxels",
               "NumPy", "Geifman & El-Yaniv 2017, arXiv:1705.08500"),
        Metric("eaurc", "epistemic", "", -1, 1, "lower", "annotator", "never",
               "aurc less that of a perfect ranking with the same errors", "NumPy", "Geifman et al. 2019, arXiv:1805.08206"),
        Metric("augrc", "epistemic", "", 0, 1, "lower", "annotator", "never",
               "As aurc, of the generalised risk: the share of all voxels that are kept and wrong",
               "NumPy", "Traub et al. 2024, arXiv:2407.01032"),
        Metric("predictive_entropy", "epistemic", "nats", 0, INF, "", "image", "never",
               "Entropy of the prediction, mean over the region's voxels", "SciPy entropy", _VALUES),
    )
}  # fmt: skip


def metric_table() -> pd.DataFrame:
    """The registry as a table, for people."""
    return pd.DataFrame(
        {
            "metric": m.name,
            "family": m.family,
            "direction": m.direction,
            "range": f"{m.low:g} … {'∞' if m.high == INF else f'{m.high:g}'}",
            "unit": m.unit,
            "per": m.per,
            "when_empty": m.when_empty,
            "definition": m.definition,
            "oracle": m.oracle,
            "reference": m.reference,
        }
        for m in METRICS.values()
    )
