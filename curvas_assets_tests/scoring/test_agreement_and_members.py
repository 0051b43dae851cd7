"""Claims proved here.

- Annotator agreement agrees with scikit-learn (Dice), statsmodels (Fleiss' κ) and SciPy (correlation of masks).
- Entropies and mutual information agree with SciPy: mean, largest patch mean, mean above the threshold.
- Member Dice and the generalised energy distance agree with scikit-learn's Dice over all pairs.
- Laws: identical members have no mutual information, member Dice 1; identical annotators agree fully; members in another
  order change nothing; a single model has no rows that need members.
- A stored ensemble with stored members scores as the arrays do.
"""

import math
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view
from scipy.stats import entropy, pearsonr
from sklearn.metrics import f1_score
from statsmodels.stats.inter_rater import fleiss_kappa

from curvas_assets.geometry import Grid
from curvas_assets.scoring import METRICS, check_scores, metrics_of, score
from curvas_assets.scoring.uncertainty_maps import MapSummary
from curvas_assets.storage.objects import FolderObjects
from curvas_assets.storage.softmax import SoftmaxWriter, open_softmax
from curvas_assets_tests.scoring.tables import value_of
from curvas_assets_tests.strategies import label_maps, softmaxes

SHAPE = (3, 11, 12)
SPACING = (3.0, 1.0, 1.0)
AGGREGATES = ("", "_patch", "_above")


@st.composite
def ensembles(draw):
    """Members (M of (C, Z, Y, X)), their mean, annotations."""
    classes, members, annotators = draw(st.integers(2, 9)), draw(st.integers(1, 5)), draw(st.sampled_from([1, 2, 3, 5]))
    strategy = softmaxes(st.just(classes), st.just(SHAPE), st.just(np.float32))
    found = [draw(strategy) for _ in range(members)]
    return found, np.mean(found, axis=0, dtype=np.float64), draw(label_maps(classes, annotators, SHAPE))


def organs_of(softmax):
    return {f"organ{c}": c for c in range(1, softmax.shape[0])}


def dice(one, other):
    """NaN if both are empty."""
    return f1_score(one.ravel(), other.ravel(), zero_division=np.nan)


@settings(max_examples=15)
@given(ensembles())
def test_agreement_of_annotators(case):
    _, mean, annotations = case
    table = score(mean, annotations, SPACING, organs=organs_of(mean))
    many = len(annotations) > 1
    correlations = {pair: [] for pair in combinations(range(len(annotations)), 2)}
    for organ, label in organs_of(mean).items():
        masks = annotations == label
        each = [dice(masks[a], masks[b]) for a, b in combinations(range(len(masks)), 2)]
        expected = np.nanmean(each) if many and not np.isnan(each).all() else math.nan
        assert value_of(table, "agreement", organ) == pytest.approx(expected, abs=1e-9, nan_ok=True)
        votes = masks.sum(axis=0).ravel()
        kappa = math.nan
        if many and 0 < votes.sum() < masks.size:
            kappa = fleiss_kappa(np.stack([votes, len(masks) - votes], axis=1))
        assert value_of(table, "agreement_kappa", organ) == pytest.approx(kappa, abs=1e-9, nan_ok=True)
        for a, b in correlations:
            if all(0 < masks[i].sum() < masks[i].size for i in (a, b)):
                correlations[a, b].append(pearsonr(masks[a].ravel().astype(float), masks[b].ravel().astype(float))[0])
    for (a, b), values in correlations.items():
        expected = np.mean(values) if values else math.nan
        found = value_of(table, "ncc_annotators", "", f"{a + 1}/{b + 1}")
        assert found == pytest.approx(expected, abs=1e-9, nan_ok=True)


@settings(max_examples=15)
@given(ensembles())
def test_entropies_agree_with_scipy(case):
    members, mean, annotations = case
    threshold = 0.3
    table = score(mean, annotations, SPACING, organs=organs_of(mean), members=members, entropy_threshold=threshold)
    total = entropy(mean, axis=0)
    expected = np.mean([entropy(member, axis=0) for member in members], axis=0)
    for metric, field in {
        "predictive_entropy": total,
        "expected_entropy": expected,
        "mutual_information": total - expected,
    }.items():
        assert value_of(table, metric) == pytest.approx(max(field.mean(), 0), abs=1e-6)
        patches = sliding_window_view(field, tuple(min(10, n) for n in field.shape)).mean(axis=(3, 4, 5))
        assert value_of(table, f"{metric}_patch") == pytest.approx(max(patches.max(), 0), abs=1e-6)
        if not (np.abs(field - threshold) < 1e-6).any():
            above = field[field > threshold]
            found = value_of(table, f"{metric}_above")
            assert found == pytest.approx(above.mean() if above.size else math.nan, abs=1e-6, nan_ok=True)


@settings(max_examples=15)
@given(ensembles())
def test_member_dice_and_energy_distance(case):
    members, mean, annotations = case
    organs = organs_of(mean)
    table = score(mean, annotations, SPACING, organs=organs, members=members)
    assert check_scores(table) == []
    labels = [member.argmax(axis=0) for member in members]
    for organ, label in organs.items():
        each = [dice(a == label, b == label) for a, b in combinations(labels, 2)]
        expected = np.nanmean(each) if each and not np.isnan(each).all() else math.nan
        assert value_of(table, "member_dice", organ) == pytest.approx(expected, abs=1e-9, nan_ok=True)

    def distance(a, b):
        each = [dice(a == label, b == label) for label in organs.values()]
        return 1 - np.mean([1.0 if math.isnan(value) else value for value in each])

    across = np.mean([distance(a, b) for a, b in product(labels, annotations)])
    within = np.mean([distance(a, b) for a, b in product(labels, labels)])
    between = np.mean([distance(a, b) for a, b in product(annotations, annotations)])
    assert value_of(table, "ged") == pytest.approx(2 * across - within - between, abs=1e-9)


@settings(max_examples=15)
@given(ensembles(), st.randoms())
def test_order_of_members_and_annotators_does_not_matter(case, random):
    members, mean, annotations = case
    shuffled, order = random.sample(members, len(members)), random.sample(range(len(annotations)), len(annotations))
    one = score(mean, annotations, SPACING, organs=organs_of(mean), members=members)
    other = score(mean, annotations[order], SPACING, organs=organs_of(mean), members=shuffled)
    for metric, organ in [
        ("ged", ""),
        ("mutual_information", ""),
        ("agreement", "organ1"),
        ("ncc", ""),
        ("dice", "organ1"),
    ]:
        assert value_of(one, metric, organ) == pytest.approx(value_of(other, metric, organ), abs=1e-8, nan_ok=True)
    for new, old in enumerate(order, 1):
        assert value_of(one, "ece", "", old + 1) == pytest.approx(value_of(other, "ece", "", new), abs=1e-12)


def test_identical_members_and_annotators_agree():
    rng = np.random.default_rng(1)
    annotation = rng.integers(0, 3, (1, *SHAPE)).astype(np.uint8)
    p = rng.random((3, *SHAPE))
    member = (p / p.sum(axis=0)).astype(np.float32)
    table = score(
        member, np.repeat(annotation, 3, axis=0), SPACING, organs={"a": 1, "b": 2}, members=[member, member, member]
    )
    assert value_of(table, "mutual_information") == 0
    assert value_of(table, "mutual_information_patch") == 0
    assert value_of(table, "member_dice", "a") == value_of(table, "agreement", "a") == 1
    assert value_of(table, "ncc_annotators", "", "1/3") == pytest.approx(1)
    assert value_of(table, "agreement_kappa", "a") == 1
    assert value_of(table, "ged") == pytest.approx(
        2 * (1 - np.mean([dice(member.argmax(axis=0) == c, annotation[0] == c) for c in (1, 2)]))
    )


def test_a_single_model_has_no_rows_that_need_members():
    softmax = np.full((2, *SHAPE), 0.5)
    table = score(softmax, np.zeros((2, *SHAPE), np.uint8), SPACING, organs={"a": 1})
    ensembles_only = {metric.name for metric in METRICS.values() if metric.of_ensembles}
    assert set(table.metric) == set(metrics_of()) - ensembles_only
    assert {"ged", "member_dice", "mutual_information", "expected_entropy"} <= ensembles_only


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 13), min_size=1, max_size=6))
def test_map_summaries_do_not_depend_on_how_the_map_is_cut(seed, depths):
    field = np.random.default_rng(seed).integers(-(2**20), 2**30, (sum(depths), 13, 12), dtype=np.int32)
    whole, cut = MapSummary(field.shape, 4, 0.5), MapSummary(field.shape, 4, 0.5)
    whole.add(field)
    for z, depth in zip(np.cumsum([0, *depths]), depths, strict=False):
        cut.add(field[z : z + depth])
    for name in ("mean", "patch_maximum", "above"):
        assert getattr(whole, name) == getattr(cut, name)
    windows = sliding_window_view(field.astype(np.int64), whole.patch).sum(axis=(3, 4, 5))
    assert whole.patch_maximum == pytest.approx(windows.max() / whole.units / np.prod(whole.patch), abs=1e-12)


def test_a_stored_ensemble_scores_as_its_arrays(tmp_path):
    rng = np.random.default_rng(0)
    shape = (35, 20, 21)
    members = []
    for _ in range(3):
        p = rng.random((4, *shape)) ** 4
        members.append((p / p.sum(axis=0)).astype(np.float32))
    mean = np.mean(members, axis=0)
    annotations = rng.integers(0, 4, (3, *shape)).astype(np.uint8)
    store = FolderObjects(tmp_path)
    for name, softmax in {"mean": mean, **{f"m{i}": m for i, m in enumerate(members)}}.items():
        grid = Grid.with_voxels(shape, SPACING)
        with SoftmaxWriter(store, name, grid, class_names=["background", "a", "b", "c"]) as writer:
            writer.write(0, softmax)
    organs, region = {"a": 1, "b": 2, "c": 3}, (slice(1, 33), slice(2, 20), slice(0, 17))
    read = {name: open_softmax(store, name).slab(0, 35) for name in ("mean", "m0", "m1", "m2")}
    stored = score(
        open_softmax(store, "mean"), annotations, SPACING, organs=organs, region=region,
        members=[open_softmax(store, f"m{i}") for i in range(3)],
    )  # fmt: skip
    arrays = score(
        read["mean"], annotations, SPACING, organs=organs, region=region, members=[read["m0"], read["m1"], read["m2"]]
    )
    np.testing.assert_allclose(stored["value"], arrays["value"], rtol=1e-9, atol=1e-9)
