"""Claims proved here.

- Label maps that are held compressed are sliced as the NumPy array they were made from.
- Slabs without labels take no space.
"""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from curvas_assets.codes import DEPTH
from curvas_assets.storage.labels import PackedLabels

SHAPE = (2, 35, 7, 9)
MAPS = np.random.default_rng(0).integers(0, 4, SHAPE).astype(np.uint8)


def packed(maps):
    labels = PackedLabels(len(maps), maps.shape[1:])
    for r in range(len(maps)):
        for z in range(0, maps.shape[1], DEPTH):
            labels.put(r, z, maps[r, z : z + DEPTH])
    return labels


def places(size):
    whole = st.integers(-size, size - 1)
    bounds = st.none() | st.integers(-size - 2, size + 2)
    return whole | st.builds(slice, bounds, bounds)


@given(st.tuples(*map(places, SHAPE)), st.integers(1, 4))
def test_sliced_as_the_array_it_was_made_from(where, named):
    np.testing.assert_array_equal(packed(MAPS)[where[:named]], MAPS[where[:named]])


def test_as_an_array():
    labels = packed(MAPS)
    np.testing.assert_array_equal(np.asarray(labels), MAPS)
    assert (labels.shape, labels.ndim, labels.dtype) == (MAPS.shape, MAPS.ndim, MAPS.dtype)


def test_slabs_without_labels_take_no_space():
    maps = np.zeros((1, 64, 50, 50), np.uint8)
    assert packed(maps).nbytes == 0
    maps[0, 20, 5, 5] = 1
    assert 0 < packed(maps).nbytes < 1000


def test_some_of_the_maps_are_the_same_maps():
    some = packed(MAPS).only([1])
    np.testing.assert_array_equal(np.asarray(some), MAPS[[1]])
    np.testing.assert_array_equal(np.asarray(packed(MAPS).only([1, 0])), MAPS[[1, 0]])
