"""Claims proved here.

- An ensemble of one is its member; the order of members is irrelevant; equal members know no mutual information.
- Predictive entropy = mutual information + expected entropy; no part is negative; members are not changed.
- SciPy's entropy agrees.
- Streaming stored members gives what averaging arrays gives, for all ensembles at once.
- Members that are missing, or differ in shape, spacing, classes or patient, are refused by name.
"""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from curvas_assets.ensembling import average, stream_ensembles
from curvas_assets.errors import EnsembleError
from curvas_assets.geometry import Grid
from curvas_assets.storage.objects import FolderObjects
from curvas_assets.storage.softmax import SoftmaxWriter, open_softmax
from curvas_assets_tests.strategies import softmaxes

SHAPE = (3, 8, 9)


def _members(count, classes=4, dtype=np.float64):
    one = softmaxes(st.just(classes), st.just(SHAPE), st.just(dtype))
    return st.lists(one, min_size=count, max_size=count)


@given(_members(1))
def test_an_ensemble_of_one_is_its_member(members):
    found = average(members)
    np.testing.assert_allclose(found.mean, members[0], atol=1e-7)
    np.testing.assert_allclose(found.mutual_information, 0, atol=1e-7)


@given(_members(3), st.permutations([0, 1, 2]))
def test_order_is_irrelevant_and_members_are_not_changed(members, order):
    before = [member.copy() for member in members]
    one, other = average(members), average([members[i] for i in order])
    np.testing.assert_allclose(one.mean, other.mean, atol=1e-7)
    np.testing.assert_allclose(one.mutual_information, other.mutual_information, atol=1e-6)
    for member, copy in zip(members, before, strict=True):
        np.testing.assert_array_equal(member, copy)


@given(_members(4))
def test_predictive_is_expected_plus_mutual_and_none_is_negative(members):
    found = average(members)
    np.testing.assert_allclose(found.predictive_entropy, found.expected_entropy + found.mutual_information, atol=1e-6)
    for part in (found.predictive_entropy, found.expected_entropy, found.mutual_information):
        assert part.min() >= 0
    expected = np.mean([scipy.stats.entropy(member, axis=0) for member in members], axis=0)
    np.testing.assert_allclose(
        found.predictive_entropy, scipy.stats.entropy(np.mean(members, axis=0), axis=0), atol=1e-6
    )
    np.testing.assert_allclose(found.expected_entropy, np.minimum(expected, found.predictive_entropy), atol=1e-6)


@given(_members(1), st.integers(2, 5))
def test_equal_members_know_no_mutual_information(members, count):
    np.testing.assert_allclose(average(members * count).mutual_information, 0, atol=1e-6)


def _stored(store, name, softmax, patient="P1", spacing_mm=(5, 3, 2), names=("background", "a", "b", "c")):
    grid = Grid.with_voxels(softmax.shape[1:], spacing_mm)
    with SoftmaxWriter(store, name, grid, class_names=names, provenance={"patient": patient}) as writer:
        writer.write(0, softmax)
    return open_softmax(store, name)


def _random(seed, shape=(4, 37, 20, 23)):
    logits = np.random.default_rng(seed).normal(0, 3, shape)
    p = np.exp(logits)
    return (p / p.sum(axis=0)).astype(np.float32)


def test_streaming_is_averaging_for_all_ensembles_at_once(tmp_path):
    store = FolderObjects(tmp_path)
    members = {f"m{i}": _stored(store, f"m{i}", _random(i)) for i in range(4)}
    ensembles = {"some": ["m0", "m2"], "all": list(members)}
    parts = list(stream_ensembles(members, ensembles))
    assert [(z0, z1) for z0, z1, _ in parts] == [(0, 16), (16, 32), (32, 37)]
    for name, chosen in ensembles.items():
        whole = average([members[m] for m in chosen])
        for attribute in ("mean", "predictive_entropy", "expected_entropy", "mutual_information"):
            axis = 1 if attribute == "mean" else 0
            streamed = np.concatenate([getattr(slabs[name], attribute) for _, _, slabs in parts], axis=axis)
            np.testing.assert_allclose(streamed, getattr(whole, attribute), atol=2e-6)
        labels = np.concatenate([slabs[name].labels for _, _, slabs in parts])
        assert (labels == whole.mean.argmax(axis=0)).mean() > 0.9999


def test_a_missing_member_is_an_error_that_names_it(tmp_path):
    members = {"m0": _stored(FolderObjects(tmp_path), "m0", _random(0))}
    with pytest.raises(EnsembleError, match="no softmax of m1, m2"):
        next(stream_ensembles(members, {"all": ["m0", "m1", "m2"]}))


@pytest.mark.parametrize(
    ("what", "other"),
    [
        ("shape", {"softmax": _random(1, (4, 36, 20, 23))}),
        ("patient", {"softmax": _random(1), "patient": "P2"}),
        ("spacing", {"softmax": _random(1), "spacing_mm": (5, 3, 2.1)}),
        ("classes", {"softmax": _random(1), "names": ("background", "b", "a", "c")}),
    ],
)
def test_members_that_do_not_fit_together_are_named(tmp_path, what, other):
    store = FolderObjects(tmp_path)
    members = {"m0": _stored(store, "m0", _random(0)), "m1": _stored(store, "m1", **other)}
    with pytest.raises(EnsembleError, match=f"m1: averaging failed: its {what} is"):
        next(stream_ensembles(members, {"all": ["m0", "m1"]}))


def test_arrays_of_other_shapes_or_none_are_refused():
    with pytest.raises(EnsembleError, match="members of shapes"):
        average([_random(0), _random(1, (4, 36, 20, 23))])
    with pytest.raises(EnsembleError, match="no member"):
        average([])
