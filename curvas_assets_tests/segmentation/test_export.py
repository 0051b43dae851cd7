"""Claims proved here. No GPU is needed: the code for GPUs runs on the CPU, and gives there what the code for CPUs gives.

- Codes of tensors are those of arrays, voxel by voxel, whatever the softmax; so are the counts beside them.
- A probability at the end of a level's cell, and its float32 neighbours, get the same code.
- If the GPU's memory runs out, the rest is encoded on the CPU; no slab stays on the GPU, then or between two slabs.
- What is no distribution is refused by the slab in which it is.
- A difference of one float32 step in a probability moves its code by at most one.
"""

import weakref

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from curvas_assets.errors import SoftmaxError
from curvas_assets.segmentation import export as module
from curvas_assets.segmentation.export import Export, encode_tensor
from curvas_assets.storage.encoding import decode, encode, search_tables
from curvas_assets.voxel_order import Turn
from curvas_assets_tests.strategies import softmaxes


def _same(ours, theirs):
    np.testing.assert_array_equal(ours.codes, theirs.codes)
    np.testing.assert_array_equal(ours.label_voxels, theirs.label_voxels)
    np.testing.assert_array_equal(ours.foreground, theirs.foreground)
    np.testing.assert_allclose(ours.soft_voxels, theirs.soft_voxels, rtol=1e-12)
    assert ours.codes.dtype == theirs.codes.dtype


@given(softmaxes(dtype=st.just(np.float32)), st.sampled_from([1.0, 1.004, 0.996]))
def test_codes_of_tensors_are_those_of_arrays(softmax, scale):
    softmax = softmax * np.float32(scale)
    _same(encode_tensor(torch.from_numpy(softmax)), encode(softmax))


def test_codes_of_many_organs_are_those_of_arrays():
    """Of 64, whose roundings add up: each is rounded down by nearly half a step."""
    middle = np.floor(2**15 / 78) / 2**15 + 0.49 * 2**-15
    small = np.float32(np.floor(2**15 / 800) / 2**15 + 0.49 * 2**-15)
    softmax = np.full((65, 1, 2, 8), middle, np.float32)
    softmax[1:, 0, 1] = small
    softmax[0] = 1 - softmax[1:].sum(axis=0, dtype=np.float64)
    codes = encode(softmax)
    _same(encode_tensor(torch.from_numpy(softmax)), codes)
    assert np.abs(decode(codes.codes, search_tables().levels) - softmax).max() <= 2e-4 + 2**-15


def _one_organ(p):
    """Volumes of one organ with these probabilities."""
    p = p[: len(p) // 8 * 8].reshape(1, -1, 8)
    return np.stack([(1 - p.astype(np.float64)).astype(np.float32), p])


def test_also_at_the_ends_of_all_cells():
    tables = search_tables()
    ends = tables.limits[:-1].astype(np.float32)
    near = [
        ends,
        np.nextafter(ends, np.float32(0)),
        np.nextafter(ends, np.float32(2)),
        tables.levels.astype(np.float32),
    ]
    softmax = _one_organ(np.concatenate(near))
    _same(encode_tensor(torch.from_numpy(softmax)), encode(softmax))


def test_a_float32_step_moves_a_code_by_one_at_most():
    """So that a GPU whose exponential rounds otherwise stores the neighbouring level at worst."""
    rng = np.random.default_rng(4)
    p = (10.0 ** rng.uniform(-12, -1, 40_000)).astype(np.float32)
    p = np.concatenate([p, rng.uniform(0, 1, 40_000).astype(np.float32), 1 - p])
    code, above = (encode(_one_organ(one)).codes.astype(int) for one in (p, np.nextafter(p, np.float32(2))))
    assert np.abs(above - code).max() <= 1


class _Plans:
    transpose_forward = (0, 1, 2)


class _Configuration:
    spacing = (2.0, 2.0, 2.0)
    configuration = {  # noqa: RUF012 - as nnU-Net has it
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None},
    }


@pytest.fixture
def export():
    """An organ in noise, to be resampled, on a scan of another order of which nnU-Net cropped a part."""
    torch.manual_seed(1)
    logits = 4 * torch.randn((3, 20, 9, 10)).half()
    logits[0] += 3
    properties = {
        "bbox_used_for_cropping": [[2, 37], [1, 19], [0, 20]],
        "shape_after_cropping_and_before_resampling": (35, 18, 20),
        "spacing": (1.1, 1.0, 1.0),
    }
    turn = Turn.to("LPS", np.diag([1.0, -1.0, -1.1, 1.0]))
    assert turn.flipped[0]
    return Export(logits, _Plans(), _Configuration(), properties, (40, 21, 20), turn, "m of P")


def test_volumes_of_the_code_for_gpus_are_the_same(export):
    expected = [(z0, encode(slab)) for z0, slab in export.slabs()]
    for device in (None, "cpu"):
        found = list(export.encoded(device))
        assert [z0 for z0, _ in found] == [z0 for z0, _ in expected] == [0, 16, 32]
        for (_, ours), (_, theirs) in zip(found, expected, strict=True):
            _same(ours, theirs)


def test_if_the_gpus_memory_runs_out_the_rest_is_encoded_on_the_cpu(export, monkeypatch):
    asked = []

    def exhausted(slab):
        asked.append(weakref.ref(slab))
        if len(asked) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode_tensor(slab)

    expected = list(export.encoded(None))
    monkeypatch.setattr(module, "encode_tensor", exhausted)
    for (_, ours), (_, theirs) in zip(export.encoded("cpu"), expected, strict=True):
        _same(ours, theirs)
        assert [slab() for slab in asked if slab() is not None] == []
    assert len(asked) == 2


@pytest.mark.parametrize("device", [None, "cpu"])
def test_what_is_no_distribution_is_refused(export, device):
    export.logits[1, 1] = float("nan")  # the scan's slices run the other way: its last slab
    slabs = export.encoded(device)
    assert [next(slabs)[0], next(slabs)[0]] == [0, 16]
    with pytest.raises(SoftmaxError, match=r"^m of P: predicting failed: NaN or infinity in .* between the slices 32"):
        next(slabs)
