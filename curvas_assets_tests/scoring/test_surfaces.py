"""Claims proved here.

- Hausdorff, hd95 and assd agree with MONAI, nsd with surface-distance, on random blobs, single voxels, organs at the
  border, anisotropic spacing, and one to eight annotators.
- One empty: infinite, nsd 0; both empty: NaN with a note. MONAI's NaN for the percentile of an empty organ is pinned.
- Known disagreements are pinned: with SciPy's distance between whole masks, and MONAI's voxel-counting surface Dice.
- Laws: symmetric in the two label maps; scaled by the spacing; hd95 ≤ hausdorff; far-away surfaces (beyond what is
  searched nearby) are exact too.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.metrics.hausdorff_distance import compute_hausdorff_distance
from monai.metrics.surface_dice import compute_surface_dice
from monai.metrics.surface_distance import compute_average_surface_distance
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import directed_hausdorff
from surface_distance import compute_surface_dice_at_tolerance, compute_surface_distances

from curvas_assets.scoring import score, surfaces
from curvas_assets.scoring.surfaces import surface_distances
from curvas_assets_tests.scoring.tables import value_of

spacings = st.sampled_from([(1.0, 1.0, 1.0), (5.0, 0.7, 0.9), (0.5, 2.0, 1.25)])


@st.composite
def pairs(draw, maps=st.just(2)):
    """Label maps of one organ (maps, Z, Y, X), each with at least one voxel: blobs, single voxels, everything."""
    shape = draw(st.tuples(st.integers(1, 9), st.integers(1, 14), st.integers(1, 14)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    out = []
    for _ in range(draw(maps)):
        kind = draw(st.sampled_from(["blob", "blob", "blob", "voxel", "everything"]))
        if kind == "blob":
            field = gaussian_filter(rng.standard_normal(shape), 1.5)
            mask = field > np.quantile(field, draw(st.sampled_from([0.3, 0.6, 0.9])))
        else:
            mask = np.full(shape, kind == "everything")
        if not mask.any():
            mask[tuple(rng.integers(0, n) for n in shape)] = True
        out.append(mask.astype(np.uint8))
    return np.stack(out)


def _batch(mask):
    """Two channels, as MONAI wants them."""
    return torch.from_numpy(np.stack([1 - mask, mask])[None].astype(np.float32))


@given(pairs(), spacings)
def test_distances_agree_with_monai(maps, spacing):
    predicted, drawn = maps
    (found,) = surface_distances(predicted, drawn[None], 1, spacing, 1.0)
    one, other = _batch(predicted), _batch(drawn)
    for name, expected in {
        "hausdorff": compute_hausdorff_distance(one, other, spacing=spacing),
        "hd95": compute_hausdorff_distance(one, other, spacing=spacing, percentile=95),
        "assd": compute_average_surface_distance(one, other, symmetric=True, spacing=spacing),
    }.items():
        assert getattr(found, name) == pytest.approx(float(expected[0, 0]), abs=1e-5, rel=1e-6), name


@given(pairs(), spacings, st.sampled_from([0.5, 1.0, 3.0]))
def test_surface_dice_agrees_with_surface_distance(maps, spacing, tolerance):
    predicted, drawn = maps
    (found,) = surface_distances(predicted, drawn[None], 1, spacing, tolerance)
    distances = compute_surface_distances(drawn == 1, predicted == 1, spacing)
    assert found.nsd == pytest.approx(compute_surface_dice_at_tolerance(distances, tolerance), abs=1e-9)
    with pytest.MonkeyPatch.context() as patch:  # as for a tolerance too long to try every offset
        patch.setattr(surfaces, "MOST_OFFSETS", 0)
        (measured,) = surface_distances(predicted, drawn[None], 1, spacing, tolerance)
    assert measured.nsd == pytest.approx(found.nsd, abs=1e-12, nan_ok=True)


@given(pairs(maps=st.integers(2, 9)), spacings)
def test_each_annotator_is_measured_as_if_alone_and_both_ways(maps, spacing):
    predicted, drawn = maps[0], maps[1:]
    together = surface_distances(predicted, drawn, 1, spacing, 1.0)
    for r, annotation in enumerate(drawn):
        assert together[r] == surface_distances(predicted, annotation[None], 1, spacing, 1.0)[0]
        assert together[r].hd95 <= together[r].hausdorff
    one = together[0]  # what follows is of two maps, whoever drew one
    back = surface_distances(drawn[0], predicted[None], 1, spacing, 1.0)[0]
    assert one.nsd == pytest.approx(back.nsd, abs=1e-12)
    assert (one.hausdorff, one.hd95) == (back.hausdorff, back.hd95)
    doubled = surface_distances(predicted, drawn[:1], 1, tuple(2 * s for s in spacing), 2.0)[0]
    assert doubled.hausdorff == pytest.approx(2 * one.hausdorff)
    assert doubled.nsd == pytest.approx(one.nsd)


def test_surfaces_far_apart_are_exact():
    maps = np.zeros((2, 4, 90, 90), np.uint8)
    maps[0, :, :3, :3] = 1
    maps[1, 1:, 80:, 70:88] = 1
    (found,) = surface_distances(maps[0], maps[1:], 1, (3.0, 1.0, 1.0), 1.0)
    one, other = _batch(maps[0]), _batch(maps[1])
    expected = compute_hausdorff_distance(one, other, spacing=(3.0, 1.0, 1.0))
    assert found.hausdorff == pytest.approx(float(expected[0, 0]), rel=1e-6)
    assert found.nsd == 0


def test_empty_organs_have_their_values_and_notes():
    annotations = np.zeros((2, 3, 8, 8), np.uint8)
    annotations[0, 1, 2:5, 2:5] = 1
    softmax = np.zeros((3, 3, 8, 8))
    softmax[0] = 1
    softmax[0, 1, 3, 3], softmax[1, 1, 3, 3] = 0, 1
    table = score(softmax, annotations, (1, 1, 1), organs={"a": 1, "b": 2})
    for metric in ("hausdorff", "hd95", "assd"):
        assert math.isfinite(value_of(table, metric, "a", 1))
        assert value_of(table, metric, "a", 2) == math.inf
        assert math.isnan(value_of(table, metric, "b", 1))
    assert value_of(table, "nsd", "a", 2) == 0
    notes = table[(table.metric == "hd95")].set_index(["organ", "annotator"])["note"]
    assert notes["a", "1"] == ""
    assert notes["a", "2"] == "no voxel annotated"
    assert notes["b", "1"] == "organ in neither the prediction nor the annotation"
    assert notes["a", "mean"] == "1 of 2 infinite"
    empty = compute_hausdorff_distance(_batch(np.ones((3, 8, 8))), _batch(np.zeros((3, 8, 8))), percentile=95)
    assert math.isnan(float(empty[0, 0])), "MONAI has no percentile of an empty surface; here it is infinite"


def test_known_disagreements():
    maps = np.zeros((2, 9, 9, 9), np.uint8)
    maps[0, 1:8, 1:8, 1:8] = 1
    maps[1, 1:8, 1:8, 1:8] = 1
    maps[1, 3:6, 3:6, 3:6] = 0  # a hollow
    (found,) = surface_distances(maps[0], maps[1:], 1, (1.0, 1.0, 1.0), 1.0)
    whole = directed_hausdorff(np.argwhere(maps[0]), np.argwhere(maps[1]))[0]
    assert (found.hausdorff, whole) == (1.0, 2.0), (
        "the hollow's middle is two voxels from the mask; its wall is one from the surface"
    )
    monai = float(compute_surface_dice(_batch(maps[0]), _batch(maps[1]), class_thresholds=[1.0])[0, 0])
    assert monai != pytest.approx(found.nsd, abs=1e-3), "MONAI counts voxels, surface-distance weighs areas"
