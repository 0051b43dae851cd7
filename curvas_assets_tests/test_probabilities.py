"""Claims proved here.

- Every softmax passes, of whatever float type, as an array, a tensor on any type (half and bfloat16 too) or nested lists;
  arrays of floats are handed on without a copy.
- Half precision's sums and a background of −1e-7 pass; what is scaled by more than 1.02 never does.
- Logits are called logits, NaN and infinity by their name, and a multiple of a softmax by its sum; label maps, complex
  numbers and objects are told apart from probabilities. The error is of the kind asked for and names the slices.
- Members come as a sequence or as an array of five axes; one softmax instead of several is refused.
"""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from curvas_assets.errors import EnsembleError, ScoringError
from curvas_assets.inputs import to_array
from curvas_assets.probabilities import as_members, as_probabilities
from curvas_assets_tests.strategies import softmaxes

SOFTMAX = np.full((4, 20, 3, 5), 0.25, np.float32)


def _check(values):
    return as_probabilities(values, attempted="scoring", subject="m of P", error=ScoringError)


def _changed(value, dtype=np.float32):
    changed = SOFTMAX.astype(dtype)
    changed[1, 17, 2, 4] = value
    return changed


@given(softmaxes())
def test_every_softmax_passes_as_it_is(softmax):
    assert _check(softmax) is softmax


@given(softmaxes(), st.floats(1.021, 1e6, exclude_min=True))
def test_a_scaled_softmax_is_refused(softmax, scale):
    with np.errstate(over="ignore"), pytest.raises(ScoringError):
        _check(softmax.astype(np.float64) * scale)


@given(
    softmaxes(dtype=st.just(np.float32)), st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64])
)
def test_tensors_of_any_float_type_pass(softmax, dtype):
    tensor = torch.from_numpy(softmax).to(dtype).requires_grad_()
    np.testing.assert_array_equal(_check(tensor), tensor.detach().double().numpy())


def test_nested_lists_pass():
    np.testing.assert_array_equal(_check(SOFTMAX.tolist()), SOFTMAX)
    np.testing.assert_array_equal(_check([torch.from_numpy(part) for part in SOFTMAX]), SOFTMAX)


def test_rounding_passes():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.full(60, 0.2), (20, 9, 9)).transpose(3, 0, 1, 2).astype(np.float16)
    assert abs(p.sum(axis=0, dtype=np.float64) - 1).max() > 1e-4  # half precision's own
    _check(p)
    below = np.zeros((2, 1, 1, 1))
    below[:, 0, 0, 0] = -1e-7, 1 + 1e-7
    _check(below)


@pytest.mark.parametrize(
    "wrap", [np.asarray, torch.from_numpy, lambda a: torch.from_numpy(a).half(), np.ndarray.tolist]
)
@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.random.default_rng(0).normal(size=(4, 20, 3, 5)).astype(np.float32) * 3, "logits.*apply the softmax"),
        (np.full((4, 20, 3, 5), 7.0, np.float32) + np.arange(20, dtype=np.float32)[:, None, None], "logits"),
        (
            np.broadcast_to(np.float32([1.015, -0.005, -0.005, -0.005])[:, None, None, None], SOFTMAX.shape).copy(),
            r"values from -0\.005\d* to 1\.01\d .*: logits",
        ),
        (SOFTMAX * 3, "sum to 3 between the slices 0 and 15, not to 1.*Divide"),
        (_changed(0.5), "sum to 1 … 1.25 between the slices 16 and 19"),
        (_changed(np.nan), "NaN or infinity in 1 voxels between the slices 16 and 19"),
        (_changed(np.inf), "NaN or infinity in 1 voxels"),
        (_changed(-np.inf), "NaN or infinity in 1 voxels"),
    ],
)
def test_what_is_no_softmax_is_called_by_its_name(values, message, wrap):
    with pytest.raises(ScoringError, match=rf"^m of P: scoring failed: .*{message}"):
        _check(wrap(values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((4, 2, 3, 5), np.uint8), "whole numbers .* a label map"),
        (np.zeros((4, 2, 3, 5), bool), "a label map"),
        (torch.zeros(4, 2, 3, 5, dtype=torch.int64), "a label map"),
        (SOFTMAX.astype(np.complex64), "ndarray of complex64"),
        (SOFTMAX.astype(object), "a ndarray"),
        (torch.from_numpy(SOFTMAX).to_sparse(), "a Tensor"),
        (torch.empty(4, 2, 3, 5, device="meta"), "a Tensor"),
        (SOFTMAX[0], r"shape \(20, 3, 5\)"),
        (SOFTMAX[:1] * 4, "at least two classes"),
        (SOFTMAX[:, :0], "shape"),
        ([[0.5], [0.5, 0.5]], "a list"),
        ("softmax.zip", "a str"),
        (None, "a NoneType"),
        ({}, "a dict"),
        (object(), "a object"),
    ],
)
def test_what_is_no_array_of_probabilities_is_told(values, message):
    with pytest.raises(ScoringError, match=message):
        _check(values)


def test_members_are_several():
    def members(values):
        return as_members(values, attempted="averaging", subject="the ensemble", error=EnsembleError)

    assert len(members([SOFTMAX, SOFTMAX])) == 2
    assert len(members(np.stack([SOFTMAX] * 3))) == 3
    assert len(members(torch.from_numpy(np.stack([SOFTMAX] * 3)))) == 3
    assert len(members(iter((SOFTMAX,)))) == 1
    for odd in (SOFTMAX, torch.from_numpy(SOFTMAX), SOFTMAX[0], "a.zip", None, 3, {"m": SOFTMAX}):
        with pytest.raises(EnsembleError, match=r"sequence of softmaxes") as told:
            members(odd)
        assert ("list(members.values())" in str(told.value)) is isinstance(odd, dict)


def test_numbers_and_lists_become_arrays_and_the_rest_none():
    assert to_array(3).shape == ()
    assert to_array([1, torch.tensor(2)]).tolist() == [1, 2]
    for odd in (None, object(), [[1], [1, 2]], 10**400, {1}):
        assert to_array(odd) is None
