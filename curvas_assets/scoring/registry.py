"""The metrics: one row each, with its meaning, its range, which way is better and an independent implementation.

The tests walk this table, the report prints it, the UI shows it. Conventions and formulae are in `definitions.md`; how a metric
is computed stands in `panel`.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import pandas as pd

Direction = Literal["higher", "lower", ""]
Per = Literal["organ", "organ and annotator", "annotator", "pair of annotators", "image"]
Family = Literal["accuracy", "calibration", "aleatoric", "total uncertainty", "epistemic", "failure detection", "size"]
"""`total uncertainty` is what predictive entropy measures: expected entropy (aleatoric) + mutual information (epistemic);
`size` judges nothing."""
Only = Literal["", "thresholds", "vessels"]
"""Which studies have a metric: all, those whose reference is `thresholds`, or those that name a tumour and its vessels."""
Row = tuple[str, str, str, float, str]
"""(metric, organ, annotator, value, note); organ and annotator are empty where they do not apply."""
PAIR = "/"
"""Between the names of two annotators: a name may have a dash, and none has a slash."""


@dataclass(frozen=True)
class Metric:
    """One metric.

    Args:
        name: as in the scores table.
        family: what it judges.
        unit: of its values; empty for a share.
        low: its least value, included in the range.
        high: its largest value, included too.
        direction: which way is better; empty if neither, or if the annotators alone decide it.
        per: what one value is about. `annotator` metrics also have a `mean` over annotators.
        when_empty: the value where no voxel holds the organ, or none is without it.
        definition: in one line.
        oracle: an independent implementation that agrees.
        reference: where it is defined.
        of_ensembles: it needs the members of an ensemble; a single model has no such row.
        only: which studies have it.
    """

    name: str
    family: Family
    unit: str
    low: float
    high: float
    direction: Direction
    per: Per
    when_empty: str
    definition: str
    oracle: str
    reference: str
    of_ensembles: bool = False
    only: Only = ""


CUTS, OF = (5, 12, 19, 26, 33, 40), 50
"""The heights at which probabilities and shares of annotators are cut, six from 0.1 to 0.8, in fiftieths, so that comparing
with them is exact."""


class Compared(NamedTuple):
    """What a reference other than the consensus changes in what the registry says.

    Args:
        note: of the rows that are compared with it.
        dice, confidence: the metrics' definitions.
        dice_empty, confidence_empty: their values where there is nothing.
    """

    note: str
    dice: str
    confidence: str
    dice_empty: str
    confidence_empty: str


_ONE_EMPTY = "both empty: NaN; one empty: 0"
REFERENCES: Mapping[str, Compared] = {
    "majority": Compared(
        "compared with the label of most annotators",
        "Dice of the prediction with the voxels most annotators give the organ; a tie goes to the lowest label",
        "Mean of the organ's probability where most annotators drew it and of its complement elsewhere",
        _ONE_EMPTY,
        "the organ nowhere in the reference, or everywhere: NaN",
    ),
    "staple": Compared(
        "compared with the annotators' STAPLE estimate",
        "Dice of the prediction with the annotators' STAPLE estimate of the organ",
        "Mean of the organ's probability inside the annotators' STAPLE estimate of it and of its complement elsewhere",
        _ONE_EMPTY,
        "the organ nowhere in the reference, or everywhere: NaN",
    ),
    "thresholds": Compared(
        "compared with the annotators' mean response, mean over six cuts",
        "Dice of the probability with the share of annotators who drew the organ, both cut at the same height: mean over "
        "six heights from 0.1 to 0.8",
        "Mean of the organ's probability where the share of annotators who drew it exceeds a height and of its complement "
        "elsewhere: mean over six heights from 0.1 to 0.8",
        "a cut at which both are empty is left out; one empty: 0",
        "a cut without a voxel on one side is left out",
    ),
}
"""Reference other than the consensus (`evaluation.reference`) → what it changes."""

INF = float("inf")
_CURVAS = "CURVAS 2024, doi:10.5281/zenodo.10979641"
_VALUES = "Kahl et al. 2024, arXiv:2401.08501"
_PDACVI = "Riera-Marín et al. 2026, arXiv:2604.27582"
_GUO = "Guo et al. 2017, arXiv:1706.04599"
_SURFACES = "both empty: NaN; one empty: ∞"
_AGGREGATES = {
    "": "mean over the region's voxels",
    "_patch": "largest mean over a patch of 10 × 10 × 10 voxels",
    "_above": "mean over the voxels above the threshold (a tenth of ln C unless set)",
}


def _uncertainty(name: str, family: Family, what: str, oracle: str, *, of_ensembles: bool) -> list[Metric]:
    return [
        Metric(name + suffix, family, "nats", 0, INF, "", "image",
               "no voxel above the threshold: NaN" if suffix == "_above" else "never", f"{what}, {aggregate}",
               oracle, _VALUES, of_ensembles)
        for suffix, aggregate in _AGGREGATES.items()
    ]  # fmt: skip


METRICS: dict[str, Metric] = {
    m.name: m
    for m in (
        Metric("dice", "accuracy", "", 0, 1, "higher", "organ", "no consensus voxel: NaN if no false positive, else 0",
               "Dice of the prediction with the voxels all annotators give the organ; where they disagree is left out",
               "scikit-learn f1_score", _CURVAS),
        Metric("dice_published", "accuracy", "", 0, 1, "higher", "organ", "no row with consensus: 0",
               "As the challenge's code has it, only to stand beside its table: mean over slices of the mean over rows (the "
               "region's first row left out) of the Dice along the row, over rows with consensus",
               "the definition written out with NumPy", _CURVAS),
        Metric("dice_annotator", "accuracy", "", 0, 1, "higher", "organ and annotator", _ONE_EMPTY,
               "Dice of the prediction with one annotator's organ", "scikit-learn f1_score", "Dice 1945, doi:10.2307/1932409"),
        Metric("recall", "accuracy", "", 0, 1, "higher", "organ and annotator", "organ not annotated: NaN",
               "Share of one annotator's organ that the prediction finds", "scikit-learn recall_score",
               "Maier-Hein et al. 2024, arXiv:2206.01653"),
        Metric("hausdorff", "accuracy", "mm", 0, INF, "lower", "organ and annotator", _SURFACES,
               "Largest distance from a surface voxel of one to the nearest of the other", "MONAI compute_hausdorff_distance",
               "Huttenlocher et al. 1993, doi:10.1109/34.232073"),
        Metric("hd95", "accuracy", "mm", 0, INF, "lower", "organ and annotator", _SURFACES,
               "As hausdorff, the larger of the two directed 95th percentiles", "MONAI compute_hausdorff_distance",
               "Maier-Hein et al. 2024, arXiv:2206.01653"),
        Metric("assd", "accuracy", "mm", 0, INF, "lower", "organ and annotator", _SURFACES,
               "Mean distance over the surface voxels of both", "MONAI compute_average_surface_distance",
               "Maier-Hein et al. 2024, arXiv:2206.01653"),
        Metric("nsd", "accuracy", "", 0, 1, "higher", "organ and annotator", _ONE_EMPTY,
               "Normalised surface Dice: share of both surfaces' area within the tolerance (1 mm unless set) of the other",
               "surface-distance", "Nikolov et al. 2021, doi:10.2196/26151"),
        Metric("crps", "accuracy", "mm³", 0, INF, "lower", "organ", "annotators' volumes equal: |V − μ|",
               "Continuous ranked probability score of the soft volume under the normal law of the annotators' volumes",
               "SciPy quad of the definition", "Gneiting & Raftery 2007, doi:10.1198/016214506000001437"),
        Metric("crps_published", "accuracy", "mm³", 0, INF, "lower", "organ", "annotators' volumes equal: NaN",
               "As the challenge's code has it, only to stand beside its table: the integral of crps over μ ± 3σ only",
               "SciPy quad of the definition", _CURVAS),
        Metric("ece", "calibration", "", 0, 1, "lower", "annotator", "never",
               "Expected calibration error of the top label: |accuracy − confidence| over equal bins, weighted by voxels",
               "torchmetrics multiclass_calibration_error", _GUO),
        Metric("ece_published", "calibration", "", 0, 1, "lower", "annotator", "never",
               "As the challenge's code has it, only to stand beside its table: ece with every sum kept in float32, voxel by "
               "voxel, so that counts stop at 2²⁴", "torchmetrics multiclass_calibration_error", _CURVAS),
        Metric("ace", "calibration", "", 0, 1, "lower", "annotator", "never",
               "As ece, in fewer equal-width bins, every non-empty bin with the same weight; of the raw probabilities, where "
               "ValUES computes it after Platt scaling",
               "the definition written out with NumPy", _VALUES),
        Metric("adaptive_ece", "calibration", "", 0, 1, "lower", "annotator", "never",
               "As ace, in bins of equally many voxels; ties at a limit are shared out", "NumPy, over all orders of a tie",
               "Nguyen & O'Connor 2015, arXiv:1508.05154"),
        Metric("classwise_ece", "calibration", "", 0, 1, "lower", "organ and annotator", "never",
               "As ece, of the class's probability against whether the annotator gave it; without organ the mean over all "
               "classes, background included", "torchmetrics binary_calibration_error",
               "Kull et al. 2019, arXiv:1910.12656"),
        Metric("ece_mean_response", "calibration", "", 0, 1, "lower", "organ", "never",
               "As ece, of the organ's probability against the share of annotators who gave it",
               "the definition written out with NumPy", "Mehrtash et al. 2020, arXiv:1911.13273"),
        Metric("brier", "calibration", "", 0, 2, "lower", "annotator", "never",
               "Mean squared distance of the probabilities from the annotator's label, summed over classes",
               "the definition written out with NumPy", "Brier 1950, doi:10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2"),
        Metric("nll", "calibration", "nats", 0, INF, "lower", "annotator", "never",
               "Mean −ln of the probability of the annotator's label, clipped at 1e-7", "scikit-learn log_loss",
               "Gneiting & Raftery 2007, doi:10.1198/016214506000001437"),
        Metric("confidence", "aleatoric", "", 0, 1, "higher", "organ", "no consensus voxel, or none without it: NaN",
               "Mean of the organ's probability inside its consensus and of its complement where nobody drew it",
               "the definition written out with NumPy", _CURVAS),
        Metric("ncc", "aleatoric", "", -1, 1, "higher", "image", "one of the maps is constant: NaN",
               "Pearson correlation of the annotators' disagreement map and the predictive entropy map",
               "SciPy pearsonr", _VALUES),
        Metric("ncc_annotators", "aleatoric", "", -1, 1, "", "pair of annotators", "every organ empty for one: NaN",
               "Mean over organs of the Pearson correlation of the two annotators' masks", "SciPy pearsonr", _VALUES),
        Metric("ged", "aleatoric", "", 0, 2, "lower", "image", "an organ in neither of two label maps counts as agreement",
               "Generalised energy distance of the members' label maps and the annotators', with 1 − mean organ Dice as the "
               "distance; all pairs, a map with itself too", "the definition written out with scikit-learn f1_score",
               "Kohl et al. 2018, arXiv:1806.05034", True),
        Metric("agreement", "aleatoric", "", 0, 1, "", "organ", "drawn by nobody, or one annotator: NaN",
               "Mean Dice over pairs of annotators; a pair without the organ is left out", "scikit-learn f1_score",
               "Dice 1945, doi:10.2307/1932409"),
        Metric("agreement_kappa", "aleatoric", "", -1, 1, "", "organ", "drawn by nobody, by everybody everywhere, or one annotator: NaN",
               "Fleiss' κ of the annotators, organ against not organ, over the evaluation region", "statsmodels fleiss_kappa",
               "Fleiss 1971, doi:10.1037/h0031619"),
        *_uncertainty("predictive_entropy", "total uncertainty", "Entropy of the prediction", "SciPy entropy", of_ensembles=False),
        *_uncertainty("expected_entropy", "aleatoric", "Mean entropy of the members", "SciPy entropy", of_ensembles=True),
        *_uncertainty("mutual_information", "epistemic", "Entropy of the prediction less the mean entropy of the members",
                      "SciPy entropy", of_ensembles=True),
        Metric("member_dice", "failure detection", "", 0, 1, "", "organ", "found by no member: NaN",
               "Mean Dice over pairs of an ensemble's members", "scikit-learn f1_score",
               "Zenk et al. 2024, arXiv:2406.03323", True),
        Metric("auroc", "failure detection", "", 0, 1, "higher", "organ and annotator", "organ absent, or everywhere: NaN",
               "Area under the ROC curve of the organ's probability against the annotator's organ, ties counted half",
               "scikit-learn roc_auc_score", _VALUES),
        Metric("auroc_error", "failure detection", "", 0, 1, "higher", "annotator", "no error, or nothing but errors: NaN",
               "Area under the ROC curve of 1 − confidence as a sign of an error", "scikit-learn roc_auc_score", _VALUES),
        Metric("aurc", "failure detection", "", 0, 1, "lower", "annotator", "never",
               "Area under the risk–coverage curve: the error rate among the most confident voxels",
               "the definition written out with NumPy", "Geifman & El-Yaniv 2017, arXiv:1705.08500"),
        Metric("eaurc", "failure detection", "", 0, 1, "lower", "annotator", "never",
               "aurc less that of a perfect ranking with the same errors, integrated by the same rule", "the definition written out with NumPy",
               "Geifman et al. 2019, arXiv:1805.08206"),
        Metric("augrc", "failure detection", "", 0, 1, "lower", "annotator", "never",
               "As aurc, of the generalised risk: the share of all voxels that are kept and wrong",
               "the definition written out with NumPy", "Traub et al. 2024, arXiv:2407.01032"),
        *(Metric(f"dice_cut{k}", "accuracy", "", 0, 1, "higher", "organ", _ONE_EMPTY,
                 f"Dice of the organ's probability and the share of annotators who drew it, both cut at {height / OF:g}",
                 "scikit-learn f1_score", _PDACVI, only="thresholds") for k, height in enumerate(CUTS, 1)),
        Metric("dice_cuts_published", "accuracy", "", 0, 1, "higher", "organ", "a cut at which both are empty counts 1",
               "As the challenge of 2025 has it, only to stand beside its table: mean of the tumour's Dice over the six cuts, 1 "
               "where both are empty", "the definition written out with NumPy", _PDACVI, only="vessels"),
        Metric("tumour_ece", "calibration", "", 0, 1, "lower", "organ and annotator", "drawn by nobody: NaN",
               "As ece, of the tumour against everything else, within 20 voxels of the box that holds it for any annotator",
               "torchmetrics multiclass_calibration_error", _PDACVI, only="vessels"),
        Metric("involvement", "accuracy", "°", 0, 360, "", "organ and annotator", "no outline of the vessel: NaN",
               "Largest share of the vessel's outline, over the slices of a plane, that the annotator's tumour touches, of 360°; "
               "mean over the three planes", "the definition written out with NumPy", _PDACVI, only="vessels"),
        Metric("involvement_predicted", "accuracy", "°", 0, 360, "", "organ", "no outline of the vessel: NaN",
               "As involvement, of the predicted tumour; mean over six cuts of its probability",
               "the definition written out with NumPy", _PDACVI, only="vessels"),
        Metric("involvement_distance", "accuracy", "°", 0, 360, "lower", "organ", "no outline of the vessel: NaN",
               "Wasserstein distance between the involvements by the annotators' tumours and those by the six cuts of the "
               "prediction's, in each plane; mean over planes", "SciPy wasserstein_distance", _PDACVI, only="vessels"),
        Metric("involvement_published", "accuracy", "°", 0, 360, "lower", "organ", "no voxel of the vessel: 0",
               "As the code of the challenge of 2025 has it, only to stand beside its table: pixels instead of lengths, normal laws on "
               "a grid instead of the values, and rules where these vanish", "the definition written out with SciPy", _PDACVI,
               only="vessels"),
        Metric("volume", "size", "mm³", 0, INF, "", "organ", "never",
               "Expected volume of the organ: the sum of its probability over the region's voxels, times the voxel volume",
               "the definition written out with NumPy", _CURVAS),
        Metric("volume_annotator", "size", "mm³", 0, INF, "", "organ and annotator", "never",
               "Volume that an annotator drew of the organ, within the region",
               "SimpleITK LabelShapeStatisticsImageFilter", _CURVAS),
    )
}  # fmt: skip


def metrics_of(reference: str = "consensus", *, vessels: bool = False) -> dict[str, Metric]:
    """The metrics that a study has, each with the definition that holds for it.

    Args:
        reference: the study's `evaluation.reference`.
        vessels: whether it names a tumour and its vessels.
    """
    has: Collection[Only] = (
        "",
        *(("thresholds",) if reference == "thresholds" else ()),
        *(("vessels",) if vessels else ()),
    )
    found = {name: metric for name, metric in METRICS.items() if metric.only in has}
    if compared := REFERENCES.get(reference):
        found["dice"] = replace(found["dice"], definition=compared.dice, when_empty=compared.dice_empty)
        found["confidence"] = replace(
            found["confidence"], definition=compared.confidence, when_empty=compared.confidence_empty
        )
    return found


def metric_table(reference: str = "consensus", *, vessels: bool = False) -> pd.DataFrame:
    """The registry as a table, for people: the metrics that a study has.

    Args:
        reference: the study's `evaluation.reference`.
        vessels: whether it names a tumour and its vessels.
    """
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
        for m in metrics_of(reference, vessels=vessels).values()
    )
