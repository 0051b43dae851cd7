"""What independent implementations make of a case, metric by metric: scikit-learn, SciPy, MONAI, torchmetrics, torch,
statsmodels, SimpleITK, surface-distance, or the definition of `scoring/definitions.md` over whole arrays. Nothing here calls what it judges.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import combinations, product

import numpy as np
import pandas as pd
import SimpleITK
import torch
from monai.metrics.hausdorff_distance import compute_hausdorff_distance
from monai.metrics.surface_distance import compute_average_surface_distance
from scipy.integrate import quad
from scipy.ndimage import binary_dilation, binary_erosion, convolve, gaussian_filter
from scipy.spatial import distance
from scipy.stats import binned_statistic, entropy, norm, pearsonr, wasserstein_distance
from sklearn.metrics import auc, f1_score, recall_score, roc_auc_score
from statsmodels.stats.inter_rater import fleiss_kappa
from surface_distance import compute_surface_dice_at_tolerance, compute_surface_distances
from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

from curvas_assets_tests.strategies import overconfident

SHAPE = (12, 16, 20)
"""Its voxels divide into 20 bins of equally many."""
SPACING_MM = (5.0, 0.8, 1.3)
ORGANS = {"pancreas": 1, "kidney": 2, "liver": 3}
CLASSES = len(ORGANS) + 1
ECE_BINS, ACE_BINS, TOLERANCE_MM, PATCH = 50, 20, 1.0, 10
THRESHOLD = 0.1 * math.log(CLASSES)
HEIGHTS = [Fraction(n, 50) for n in (5, 12, 19, 26, 33, 40)]
TUMOUR, VESSELS = "pancreas", ("kidney", "liver")
NEARLY_ONE = 1 - 1e-6
"""torchmetrics gives a confidence of 1 a bin of its own, and computes in float32."""

Values = dict[tuple[str, str], float]
"""(organ, annotator) → value, as in the scores table."""


@dataclass(frozen=True)
class Case:
    """An ensemble of one patient: members and their mean, float32 (C, Z, Y, X); label maps, uint8 (R, Z, Y, X)."""

    members: list[np.ndarray]
    annotations: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        return np.mean(self.members, axis=0)

    @property
    def p(self) -> np.ndarray:
        return self.mean.astype(np.float64)

    @property
    def labels(self) -> np.ndarray:
        return self.mean.argmax(axis=0)

    @property
    def annotators(self) -> dict[str, np.ndarray]:
        return {str(r): annotation for r, annotation in enumerate(self.annotations, 1)}


# Cases ---------------------------------------------------------------------------------------------------------------


def _logits(rng: np.random.Generator) -> np.ndarray:
    """Smooth fields (C, Z, Y, X): blobs, with the background in front elsewhere."""
    logits = np.stack([gaussian_filter(rng.standard_normal(SHAPE), 2.0) for _ in range(CLASSES)])
    logits /= logits.std()
    logits[0] += 0.8
    return logits


def _softmax(logits: np.ndarray) -> np.ndarray:
    p = np.exp(logits - logits.max(axis=0))
    return (p / p.sum(axis=0)).astype(np.float32)


def _typical() -> Case:
    """Three annotators and three members that differ at the borders."""
    rng = np.random.default_rng(1)
    truth = _logits(rng)
    noisy = [truth + 0.4 * _logits(rng) for _ in range(6)]
    annotations = np.stack([logits.argmax(axis=0) for logits in noisy[:3]]).astype(np.uint8)
    return Case([_softmax(3 * logits) for logits in noisy[3:]], annotations)


def _absent() -> Case:
    """The pancreas is predicted and drawn by nobody; the kidney is drawn by the second of two annotators alone, and missed."""
    case = _typical()
    annotations = case.annotations[:2].copy()
    annotations[annotations == ORGANS["pancreas"]] = 0
    annotations[0][annotations[0] == ORGANS["kidney"]] = 0
    members = [member.copy() for member in case.members[:2]]
    for member in members:
        member[0] += member[ORGANS["kidney"]]
        member[ORGANS["kidney"]] = 0
    return Case(members, annotations)


def _overconfident() -> Case:
    """Five annotators, and members that are sure, often wrong, and tied where they are certain."""
    rng = np.random.default_rng(2)
    members = [overconfident(rng, CLASSES, SHAPE).astype(np.float32) for _ in range(2)]
    members[1] = np.where(rng.random(SHAPE) < 0.8, members[0], members[1])
    sure = rng.random(SHAPE) < 0.3
    for member in members:
        np.copyto(member, np.array([1, 0, 0, 0], np.float32)[:, None, None, None], where=sure)
    first = np.where(rng.random(SHAPE) < 0.1, rng.integers(0, CLASSES, SHAPE), members[0].argmax(axis=0))
    others = [np.where(rng.random(SHAPE) < 0.1, rng.integers(0, CLASSES, SHAPE), first) for _ in range(4)]
    return Case(members, np.stack([first, *others]).astype(np.uint8))


CASES = {"typical": _typical, "absent organs": _absent, "overconfident": _overconfident}


# Overlap -------------------------------------------------------------------------------------------------------------


def _dice(one: np.ndarray, other: np.ndarray) -> float:
    """NaN if both are empty."""
    return float(f1_score(one.ravel(), other.ravel(), zero_division=np.nan))


def _mean_defined(values: list[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return float(np.mean(defined)) if defined else math.nan


def _consensus(case: Case, label: int) -> tuple[np.ndarray, np.ndarray]:
    """Masks (Z, Y, X): all gave the organ, nobody did."""
    return (case.annotations == label).all(axis=0), (case.annotations != label).all(axis=0)


def _dice_of_consensus(case: Case) -> Values:
    found = {}
    for organ, label in ORGANS.items():
        inside, outside = _consensus(case, label)
        known = inside | outside
        found[organ, ""] = _dice(inside[known], (case.labels == label)[known])
    return found


def _dice_by_rows(case: Case) -> Values:
    found = {}
    for organ, label in ORGANS.items():
        inside, outside = _consensus(case, label)
        slices = []
        for z in range(SHAPE[0]):
            rows = []
            for y in range(1, SHAPE[1]):
                known = (inside | outside)[z, y]
                drawn, predicted = inside[z, y][known], (case.labels[z, y] == label)[known]
                if drawn.any():
                    rows.append(1 - distance.dice(drawn, predicted))
            slices += [np.mean(rows)] if rows else []
        found[organ, ""] = float(np.mean(slices)) if slices else 0.0
    return found


def _dice_of_annotators(case: Case) -> Values:
    return {
        (organ, r): _dice(annotation == label, case.labels == label)
        for (organ, label), (r, annotation) in product(ORGANS.items(), case.annotators.items())
    }


def _recall_of_annotators(case: Case) -> Values:
    return {
        (organ, r): recall_score((annotation == label).ravel(), (case.labels == label).ravel())
        if (annotation == label).any()
        else math.nan
        for (organ, label), (r, annotation) in product(ORGANS.items(), case.annotators.items())
    }


def _mean_dice_of_pairs(maps: list[np.ndarray]) -> Values:
    return {
        (organ, ""): _mean_defined([_dice(a == label, b == label) for a, b in combinations(maps, 2)])
        for organ, label in ORGANS.items()
    }


def _energy_distance(case: Case) -> Values:
    def apart(one: np.ndarray, other: np.ndarray) -> float:
        each = [_dice(one == label, other == label) for label in ORGANS.values()]
        return 1 - float(np.mean(np.nan_to_num(each, nan=1.0)))

    def mean(ones: list[np.ndarray], others: list[np.ndarray]) -> float:
        return float(np.mean([apart(a, b) for a, b in product(ones, others)]))

    members, drawn = [member.argmax(axis=0) for member in case.members], list(case.annotations)
    return {("", ""): 2 * mean(members, drawn) - mean(members, members) - mean(drawn, drawn)}


# Surfaces and volumes ------------------------------------------------------------------------------------------------


def _surfaces(one_empty: float, measure: Callable[[np.ndarray, np.ndarray], float], case: Case) -> Values:
    """A measure of two masks (Z, Y, X), for every organ and annotator; what is empty has the value by convention."""
    found = {}
    for (organ, label), (r, annotation) in product(ORGANS.items(), case.annotators.items()):
        predicted, drawn = case.labels == label, annotation == label
        if predicted.any() and drawn.any():
            found[organ, r] = float(measure(predicted, drawn))
        else:
            found[organ, r] = one_empty if predicted.any() or drawn.any() else math.nan
    return found


def _batch(mask: np.ndarray) -> torch.Tensor:
    """Two channels, as MONAI wants them."""
    return torch.from_numpy(np.stack([~mask, mask])[None].astype(np.float32))


def _hausdorff(predicted: np.ndarray, drawn: np.ndarray, percentile: float | None = None) -> float:
    return compute_hausdorff_distance(_batch(predicted), _batch(drawn), percentile=percentile, spacing=SPACING_MM)[0, 0]


def _mean_distance(predicted: np.ndarray, drawn: np.ndarray) -> float:
    one, other = _batch(predicted), _batch(drawn)
    return compute_average_surface_distance(one, other, symmetric=True, spacing=SPACING_MM)[0, 0]


def _surface_dice(predicted: np.ndarray, drawn: np.ndarray) -> float:
    return compute_surface_dice_at_tolerance(compute_surface_distances(drawn, predicted, SPACING_MM), TOLERANCE_MM)


def _crps(deviations: float, when_equal: Callable[[float], float], case: Case) -> Values:
    """∫ (Φ − [v ≥ V])² dv over μ ± a number of deviations; of equal volumes, a function of V − μ."""
    found = {}
    voxel_mm3 = math.prod(SPACING_MM)
    for organ, label in ORGANS.items():
        drawn = [float((annotation == label).sum()) * voxel_mm3 for annotation in case.annotations]
        volume = case.p[label].sum() * voxel_mm3
        if len(set(drawn)) == 1:
            found[organ, ""] = when_equal(volume - drawn[0])
            continue
        law = norm(np.mean(drawn), np.std(drawn))
        low, high = law.mean() - deviations * law.std(), law.mean() + deviations * law.std()
        step = min(max(volume, low), high)
        below = quad(lambda v, law=law: law.cdf(v) ** 2, low, step, points=[law.mean()], limit=200)[0]
        above = quad(lambda v, law=law: law.sf(v) ** 2, step, high, points=[law.mean()], limit=200)[0]
        found[organ, ""] = below + above + (0 if deviations == 3 else abs(volume - step))  # beyond, the integrand is 1
    return found


def _expected_volumes(case: Case) -> Values:
    return {(organ, ""): float(case.p[label].sum()) * math.prod(SPACING_MM) for organ, label in ORGANS.items()}


def _drawn_volumes(case: Case) -> Values:
    found: Values = dict.fromkeys(product(ORGANS, case.annotators), 0.0)
    for r, annotation in case.annotators.items():
        image = SimpleITK.GetImageFromArray(annotation)
        image.SetSpacing(SPACING_MM[::-1])
        shapes = SimpleITK.LabelShapeStatisticsImageFilter()
        shapes.Execute(image)
        found |= {(o, r): shapes.GetPhysicalSize(label) for o, label in ORGANS.items() if shapes.HasLabel(label)}
    return found


# Calibration ---------------------------------------------------------------------------------------------------------


def _of_annotators(measure: Callable[[Case, np.ndarray], float], case: Case) -> Values:
    return {("", r): float(measure(case, annotation)) for r, annotation in case.annotators.items()}


def _flat(p: np.ndarray) -> torch.Tensor:
    """(voxels, C)."""
    return torch.from_numpy(p.reshape(CLASSES, -1).T.copy())


def _target(annotation: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(annotation.ravel().astype(np.int64))


def _ece(largest: float, case: Case, annotation: np.ndarray) -> float:
    p = np.minimum(case.mean, np.float32(largest))
    return multiclass_calibration_error(_flat(p), _target(annotation), num_classes=CLASSES, n_bins=ECE_BINS)


def _gaps(p: np.ndarray, came_true: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """|frequency − mean probability| of the filled bins, and their voxels."""
    count = np.histogram(p, bins, (0, 1))[0]
    mean, frequency = (binned_statistic(p.ravel(), v.ravel(), "mean", bins, (0, 1)).statistic for v in (p, came_true))
    return np.abs(frequency - mean)[count > 0], count[count > 0]


def _ace(case: Case, annotation: np.ndarray) -> float:
    return _gaps(case.p.max(axis=0), (case.labels == annotation).astype(float), ACE_BINS)[0].mean()


def _adaptive_ece(case: Case, annotation: np.ndarray) -> float:
    """The mean over all orders of a tie: each of its voxels is as right as the tie."""
    table = pd.DataFrame({"confidence": case.p.max(axis=0).ravel(), "right": (case.labels == annotation).ravel()})
    table["right"] = table.groupby("confidence")["right"].transform("mean")
    bins = table.sort_values("confidence").to_numpy(float).reshape(ACE_BINS, -1, 2).mean(axis=1)
    return np.abs(bins[:, 0] - bins[:, 1]).mean()


def _classwise_ece(case: Case) -> Values:
    found = {}
    for r, annotation in case.annotators.items():
        each = [
            float(
                binary_calibration_error(
                    torch.from_numpy(np.minimum(case.p[c].ravel(), NEARLY_ONE)),
                    _target(annotation == c),
                    n_bins=ECE_BINS,
                )
            )
            for c in range(CLASSES)
        ]
        found |= {(organ, r): each[label] for organ, label in ORGANS.items()} | {
            ("", r): float(np.mean([each[c] for c in (0, *ORGANS.values())]))
        }
    return found


def _ece_of_mean_response(case: Case) -> Values:
    found = {}
    for organ, label in ORGANS.items():
        gap, count = _gaps(case.p[label], (case.annotations == label).mean(axis=0), ECE_BINS)
        found[organ, ""] = float(np.average(gap, weights=count))
    return found


def _brier(case: Case, annotation: np.ndarray) -> float:
    truth = torch.nn.functional.one_hot(_target(annotation), CLASSES)
    return CLASSES * torch.nn.functional.mse_loss(_flat(case.p), truth.double())


def _nll(case: Case, annotation: np.ndarray) -> float:
    return torch.nn.functional.nll_loss(_flat(case.p).clamp(min=1e-7).log(), _target(annotation))


# Uncertainty ---------------------------------------------------------------------------------------------------------


def _confidence(case: Case) -> Values:
    found = {}
    for organ, label in ORGANS.items():
        inside, outside = _consensus(case, label)
        p = case.p[label]
        both = inside.any() and outside.any()
        found[organ, ""] = float((p[inside].mean() + 1 - p[outside].mean()) / 2) if both else math.nan
    return found


def _ncc(case: Case) -> Values:
    votes = np.stack([(case.annotations == c).mean(axis=0) for c in range(CLASSES)])
    return {("", ""): float(pearsonr(entropy(votes, axis=0).ravel(), entropy(case.p, axis=0).ravel())[0])}


def _ncc_of_annotators(case: Case) -> Values:
    found = {}
    for (one, a), (other, b) in combinations(case.annotators.items(), 2):
        masks = [((a == label).ravel(), (b == label).ravel()) for label in ORGANS.values()]
        each = [float(pearsonr(*pair)[0]) for pair in masks if all(np.ptp(mask.astype(int)) > 0 for mask in pair)]
        found["", f"{one}/{other}"] = _mean_defined(each)
    return found


def _kappa(case: Case) -> Values:
    found = {}
    for organ, label in ORGANS.items():
        votes = (case.annotations == label).sum(axis=0).ravel()
        table = np.stack([votes, len(case.annotations) - votes], axis=1)
        found[organ, ""] = float(fleiss_kappa(table)) if 0 < votes.sum() < case.annotations.size else math.nan
    return found


def _predictive(case: Case) -> np.ndarray:
    return entropy(case.p, axis=0)


def _expected(case: Case) -> np.ndarray:
    return np.mean([entropy(member.astype(np.float64), axis=0) for member in case.members], axis=0)


def _mutual(case: Case) -> np.ndarray:
    return _predictive(case) - _expected(case)


def _mean(field: Callable[[Case], np.ndarray], case: Case) -> Values:
    return {("", ""): float(field(case).mean())}


def _largest_patch(field: Callable[[Case], np.ndarray], case: Case) -> Values:
    size = [min(PATCH, n) for n in SHAPE]
    means = torch.nn.functional.avg_pool3d(torch.from_numpy(field(case))[None, None], size, stride=1)
    return {("", ""): float(means.max())}


def _above(field: Callable[[Case], np.ndarray], case: Case) -> Values:
    values = field(case)
    return {("", ""): _mean_defined(list(values[values > THRESHOLD]))}


# Failure detection ---------------------------------------------------------------------------------------------------


def _auroc_of_organs(case: Case) -> Values:
    return {
        (organ, r): _auroc(annotation == label, case.p[label])
        for (organ, label), (r, annotation) in product(ORGANS.items(), case.annotators.items())
    }


def _auroc(positive: np.ndarray, value: np.ndarray) -> float:
    mixed = 0 < positive.sum() < positive.size
    return float(roc_auc_score(positive.ravel(), value.ravel())) if mixed else math.nan


def _auroc_of_errors(case: Case, annotation: np.ndarray) -> float:
    return _auroc(case.labels != annotation, -case.p.max(axis=0))


def _kept(confidence: np.ndarray, wrong: np.ndarray) -> pd.DataFrame:
    """Voxels and errors among those of at least each confidence, the most confident first."""
    table = pd.DataFrame({"confidence": confidence.ravel(), "errors": wrong.ravel().astype(int), "voxels": 1})
    return table.groupby("confidence").sum().sort_index(ascending=False).cumsum()


def _area(confidence: np.ndarray, wrong: np.ndarray) -> float:
    kept = _kept(confidence, wrong)
    risk = kept["errors"] / kept["voxels"]
    return auc([0, *kept["voxels"] / wrong.size], [risk.iloc[0], *risk])


def _aurc(case: Case, annotation: np.ndarray) -> float:
    return _area(case.p.max(axis=0), case.labels != annotation)


def _eaurc(case: Case, annotation: np.ndarray) -> float:
    wrong = (case.labels != annotation).ravel()
    return _aurc(case, annotation) - _area(np.where(wrong, -np.cumsum(wrong), 1), wrong)


def _augrc(case: Case, annotation: np.ndarray) -> float:
    kept = _kept(case.p.max(axis=0), case.labels != annotation) / annotation.size
    return auc([0, *kept["voxels"]], [0, *kept["errors"]])


# Cuts, and a tumour and its vessels -----------------------------------------------------------------------------------


def _cut_dice(height: Fraction, case: Case) -> Values:
    return {(organ, ""): _dice(*cut_masks(case, label, height)) for organ, label in ORGANS.items()}


def cut_masks(case: Case, label: int, height: Fraction) -> tuple[np.ndarray, np.ndarray]:
    """Masks (Z, Y, X): the share of annotators, and the probability, exceed a height; in whole numbers and in double."""
    given = (case.annotations == label).sum(axis=0) * height.denominator > height.numerator * len(case.annotations)
    return given, case.p[label] * height.denominator > height.numerator


def _dice_of_cuts_published(case: Case) -> Values:
    share, p = (case.annotations == ORGANS[TUMOUR]).mean(axis=0), case.p[ORGANS[TUMOUR]]
    each = []
    for height in np.linspace(0.1, 0.8, 6):
        one, other = share > height, p > height
        both_empty = not one.any() and not other.any()
        each.append(1.0 if both_empty else 2 * (one & other).sum() / (one.sum() + other.sum() + 1e-6))
    return {(TUMOUR, ""): float(np.mean(each))}


def _ece_of_the_tumour(case: Case) -> Values:
    """The box with its margin is the whole case; see `test_vascular` for others."""
    p = np.minimum(np.stack([1 - case.p[ORGANS[TUMOUR]], case.p[ORGANS[TUMOUR]]]), NEARLY_ONE)
    flat = torch.from_numpy(p.reshape(2, -1).T.copy())
    found = {}
    for r, annotation in case.annotators.items():
        target = _target(annotation == ORGANS[TUMOUR])
        drawn = (case.annotations == ORGANS[TUMOUR]).any()
        ece = multiclass_calibration_error(flat, target, num_classes=2, n_bins=ECE_BINS)
        found[TUMOUR, r] = float(ece) if drawn else math.nan
    return found


def vessel_of(case: Case, label: int) -> np.ndarray:
    """Mask (Z, Y, X) of a vessel: the label of most annotators, the lowest of several."""
    votes = np.stack([(case.annotations == c).sum(axis=0) for c in range(CLASSES)])
    return votes.argmax(axis=0) == label


def degrees(vessel: np.ndarray, tumour: np.ndarray, axis: int, spacing_mm: tuple[float, ...] = SPACING_MM) -> float:
    """Largest touched share of the vessel's outline over the slices across an axis, of 360°."""
    touched, whole = np.zeros(vessel.shape[axis]), np.zeros(vessel.shape[axis])
    for along in (other for other in range(3) if other != axis):
        (length,) = (spacing_mm[other] for other in range(3) if other not in (axis, along))
        first, second = (np.take(vessel, range(*ends), along) for ends in _beside(vessel.shape[along]))
        one, other = (np.take(tumour, range(*ends), along) for ends in _beside(vessel.shape[along]))
        in_slice = tuple(other for other in range(3) if other != axis)
        whole += length * (first != second).sum(axis=in_slice)
        touched += length * ((first != second) & (one | other)).sum(axis=in_slice)
    return float(360 * np.max(touched[whole > 0] / whole[whole > 0])) if whole.any() else math.nan


def _beside(n: int) -> tuple[tuple[int, int], tuple[int, int]]:
    return (0, n - 1), (1, n)


KERNELS = [np.array(kernel) for kernel in ([[1, 1]], [[1], [1]], [[1, 0], [0, 1]], [[0, 1], [1, 0]])]


def degrees_published(vessel: np.ndarray, tumour: np.ndarray, axis: int) -> float:
    """As the challenge's code counts: pixels of the vessel's edge under the dilated tumour, and pixels beside what of it lies
    elsewhere, once for each kernel that finds it.
    """
    largest = 0.0
    for own, other in zip(np.moveaxis(vessel, axis, 0), np.moveaxis(tumour, axis, 0), strict=True):
        if not own.any() or not other.any():
            continue
        edge, grown = own & ~binary_erosion(own), binary_dilation(other)
        apart = (grown & ~edge).astype(np.uint8)
        beside = sum(int(((convolve(apart, k, mode="constant") > 0) & edge & ~grown).sum()) for k in KERNELS)
        largest = max(largest, 360 * (int((edge & grown).sum()) + beside) / int(edge.sum()))
    return largest


def _vascular(measure: Callable[[list[list[float]], list[list[float]]], float], published: bool, case: Case) -> Values:
    """A measure of the degrees by (plane, annotator) and (plane, height), for each vessel."""
    found = {}
    for organ in VESSELS:
        vessel, tumour = vessel_of(case, ORGANS[organ]), ORGANS[TUMOUR]
        of = degrees_published if published else degrees
        drawn = [[of(vessel, annotation == tumour, axis) for annotation in case.annotations] for axis in range(3)]
        masks = [cut_masks(case, tumour, height)[1] for height in HEIGHTS]
        predicted = [[of(vessel, mask, axis) for mask in masks] for axis in range(3)]
        found[organ, ""] = measure(drawn, predicted)
    return found


def _involvement(case: Case) -> Values:
    tumour = ORGANS[TUMOUR]
    return {
        (organ, r): float(np.mean([degrees(vessel_of(case, ORGANS[organ]), drawn == tumour, a) for a in range(3)]))
        for organ, (r, drawn) in product(VESSELS, case.annotators.items())
    }


def _apart(drawn: list[list[float]], predicted: list[list[float]]) -> float:
    return float(np.mean([wasserstein_distance(*each) for each in zip(drawn, predicted, strict=True)]))


def distance_published(drawn: list[float], predicted: list[float]) -> float:
    """The challenge's rules for two normal laws on a grid, one after the other."""
    x = np.linspace(0, 360, 1000)
    p, q = (norm.pdf(x, np.mean(values), np.std(values) + 1e-6) for values in (drawn, predicted))
    vanishes = np.allclose(p, 0), np.allclose(q, 0)
    if all(vanishes):
        return 0.0
    if vanishes[0]:
        mean = (x * q).sum()  # not divided by the sum of q
        return abs(mean) if np.isclose(np.sqrt((q * (x - mean) ** 2).sum() / q.sum()), 0) else 360.0
    if vanishes[1]:
        mean = (x * p).sum() / p.sum()
        return abs(mean) if np.isclose(np.sqrt((p * (x - mean) ** 2).sum() / p.sum()), 0) else 360.0
    return float(wasserstein_distance(x, x, p / p.sum(), q / q.sum()))


def _apart_published(drawn: list[list[float]], predicted: list[list[float]]) -> float:
    return float(np.mean([distance_published(*each) for each in zip(drawn, predicted, strict=True)]))


FIELDS = {"predictive_entropy": _predictive, "expected_entropy": _expected, "mutual_information": _mutual}
ORACLES: dict[str, Callable[[Case], Values]] = {
    "dice": _dice_of_consensus,
    "dice_published": _dice_by_rows,
    "dice_annotator": _dice_of_annotators,
    "recall": _recall_of_annotators,
    "hausdorff": partial(_surfaces, math.inf, _hausdorff),
    "hd95": partial(_surfaces, math.inf, partial(_hausdorff, percentile=95)),
    "assd": partial(_surfaces, math.inf, _mean_distance),
    "nsd": partial(_surfaces, 0.0, _surface_dice),
    "crps": partial(_crps, 12, abs),
    "crps_published": partial(_crps, 3, lambda _: math.nan),
    "ece": partial(_of_annotators, partial(_ece, NEARLY_ONE)),
    "ece_published": partial(_of_annotators, partial(_ece, 1.0)),
    "ace": partial(_of_annotators, _ace),
    "adaptive_ece": partial(_of_annotators, _adaptive_ece),
    "classwise_ece": _classwise_ece,
    "ece_mean_response": _ece_of_mean_response,
    "brier": partial(_of_annotators, _brier),
    "nll": partial(_of_annotators, _nll),
    "confidence": _confidence,
    "ncc": _ncc,
    "ncc_annotators": _ncc_of_annotators,
    "ged": _energy_distance,
    "agreement": lambda case: _mean_dice_of_pairs(list(case.annotations)),
    "agreement_kappa": _kappa,
    "member_dice": lambda case: _mean_dice_of_pairs([member.argmax(axis=0) for member in case.members]),
    "auroc": _auroc_of_organs,
    "auroc_error": partial(_of_annotators, _auroc_of_errors),
    "aurc": partial(_of_annotators, _aurc),
    "eaurc": partial(_of_annotators, _eaurc),
    "augrc": partial(_of_annotators, _augrc),
    **{f"dice_cut{k}": partial(_cut_dice, height) for k, height in enumerate(HEIGHTS, 1)},
    "dice_cuts_published": _dice_of_cuts_published,
    "tumour_ece": _ece_of_the_tumour,
    "involvement": _involvement,
    "involvement_predicted": partial(_vascular, lambda _, predicted: float(np.mean(predicted)), False),
    "involvement_distance": partial(_vascular, _apart, False),
    "involvement_published": partial(_vascular, _apart_published, True),
    "volume": _expected_volumes,
    "volume_annotator": _drawn_volumes,
    **{name: partial(_mean, field) for name, field in FIELDS.items()},
    **{f"{name}_patch": partial(_largest_patch, field) for name, field in FIELDS.items()},
    **{f"{name}_above": partial(_above, field) for name, field in FIELDS.items()},
}
"""Metric → what it should be in a case."""
TOLERANCES = {
    "tumour_ece": 2e-5,
    "ece": 2e-5,
    "classwise_ece": 2e-5,
    "ece_published": 1e-6,
    "hausdorff": 1e-5,
    "hd95": 1e-5,
    "assd": 1e-5,
}
"""Of those that other implementations compute in float32; 1e-6 else."""
