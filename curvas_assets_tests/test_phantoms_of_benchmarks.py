"""Claims proved here.

- The phantom of an overconfident network is a softmax of float32, differs from model to model, and is the same when made again.
- Its voxels are as sure as those of a network that was trained for 60 epochs, within 6 percentage points at 1 − 1e-2 … 1 − 1e-7.
- Some of its sure voxels are wrong.
"""

import numpy as np
import pytest

from benchmarks import phantoms

SHAPE = (64, 128, 128)
TRAINED = {2: 0.976, 3: 0.953, 4: 0.752, 5: 0.439, 6: 0.205, 7: 0.079}
"""Share of a trained network's voxels that are surer than 1 − 10⁻ᵏ."""


@pytest.fixture(scope="module")
def softmax():
    return phantoms.softmax(SHAPE, confident=True)


def test_it_is_a_softmax_of_float32(softmax):
    assert softmax.dtype == np.float32
    assert softmax.min() >= 0
    np.testing.assert_allclose(softmax.sum(axis=0, dtype=np.float64), 1, atol=5e-7)
    np.testing.assert_array_equal(softmax, phantoms.softmax(SHAPE, confident=True))
    other = phantoms.softmax(SHAPE, 1, confident=True)
    assert 0.0005 < (other.argmax(axis=0) != softmax.argmax(axis=0)).mean() < 0.03


@pytest.mark.parametrize("k", TRAINED)
def test_it_is_as_sure_as_a_trained_network(softmax, k):
    body = np.broadcast_to(phantoms.in_body(SHAPE), SHAPE)
    assert (softmax.max(axis=0)[body] > np.float32(1 - 10.0**-k)).mean() == pytest.approx(TRAINED[k], abs=0.06)


def test_some_sure_voxels_are_wrong(softmax):
    for annotation in phantoms.label_maps(SHAPE):
        wrong = softmax.argmax(axis=0) != annotation
        assert 0.01 < (softmax.max(axis=0)[wrong] > 0.999).mean() < 0.3
