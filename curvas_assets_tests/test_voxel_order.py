"""Claims proved here, with nnU-Net's own readers and without a network.

- Turning to another voxel order and back is lossless, and a label stays where it is in the world.
- What we hand over is what each of nnU-Net's readers reads: voxels and spacing, of any order and obliqueness.
- A file in the canonical order gives ITK, nibabel's sform and its qform one geometry, keeps type and scale, and is refused
  by nobody.
- Whatever the order, the oblique angle, the reader and the transposition: a prediction that repeats the scan lies on the
  scan's own voxels, label for label.
- Sheared grids, files of other kinds and orders that are none are told.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nibabel.affines import apply_affine

from curvas_assets.errors import SegmentationError
from curvas_assets.geometry import Grid, displacement_mm, order_of, same_place
from curvas_assets.segmentation import export
from curvas_assets.segmentation.prediction import Predictor, _Model
from curvas_assets.voxel_order import (
    CANONICAL,
    READERS,
    Turn,
    is_order,
    itk_reads,
    open_image,
    read_voxels,
    turned_grid,
    turned_image,
)
from curvas_assets_tests.strategies import LETTERS, ORDERS, oblique_images

TOLD = {"attempted": "opening the scan", "subject": "P1", "error": SegmentationError}


def _saved(image, folder) -> Path:
    path = Path(folder, "image.nii.gz")
    nib.save(image, path)
    return path


def _by_place(labels, affine):
    """(place in the world rounded to 0.01 mm, label) of every voxel of (Z, Y, X), in one order."""
    indices = np.argwhere(np.ones(labels.shape, bool))
    places = np.round(apply_affine(affine, indices[:, ::-1]), 2) + 0.0
    return sorted((*place, label) for place, label in zip(places.tolist(), labels.ravel().tolist(), strict=True))


@given(image=oblique_images(), order=st.sampled_from(ORDERS))
def test_turning_is_lossless_and_keeps_the_place_of_every_label(image, order):
    own = np.asarray(image.dataobj).transpose(2, 1, 0)
    turn = Turn.to(order, image.affine)
    grid = turned_grid(Grid.of(image), order)
    handed = turn.forth(own)
    assert handed.shape == grid.shape
    assert grid.orientation == order
    np.testing.assert_array_equal(turn.back(handed), own)
    exact = np.arange(own.size).reshape(own.shape)  # every voxel its own label
    there = turn.forth(exact)
    places = np.empty((own.size, 3))
    places[there.ravel()] = apply_affine(grid.affine, np.argwhere(np.ones(grid.shape, bool))[:, ::-1])
    np.testing.assert_allclose(
        places, apply_affine(image.affine, np.argwhere(np.ones(own.shape, bool))[:, ::-1]), atol=1e-9
    )
    assert turn.nothing == (order == order_of(image.affine))


@given(image=oblique_images(), name=st.sampled_from(sorted(READERS)))
def test_what_is_handed_over_is_what_nnunets_reader_reads(image, name):
    from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name

    with TemporaryDirectory() as folder:
        opened = open_image(_saved(image, folder), **TOLD)
        theirs, properties = recursive_find_reader_writer_by_name(name)().read_images([str(opened.get_filename())])
        ours, spacing = read_voxels(opened, READERS[name])
    np.testing.assert_array_equal(ours, theirs)
    assert ours.dtype == theirs.dtype == np.float32
    np.testing.assert_allclose(spacing, properties["spacing"], rtol=1e-6)


@given(image=oblique_images(), slope=st.sampled_from([1.0, 0.5]), inter=st.sampled_from([0.0, -3.0]))
def test_a_canonical_file_leaves_no_reader_a_choice(image, slope, inter):
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    image.header.set_slope_inter(slope, inter)
    with TemporaryDirectory() as folder:
        own: Any = nib.Nifti1Image.from_filename(_saved(image, folder))
        path = Path(folder, "turned.nii.gz")
        nib.save(turned_image(own, CANONICAL), path)
        turned: Any = nib.Nifti1Image.from_filename(path)
        assert order_of(turned.affine) == CANONICAL
        assert turned.get_data_dtype() == own.get_data_dtype()
        assert (turned.dataobj.slope, turned.dataobj.inter) == (slope, inter)
        expected = turned_grid(Grid.of(own), CANONICAL)
        for place in (turned.get_sform(), turned.get_qform()):
            assert displacement_mm(expected.read_as(place), expected) < 5e-2
            assert same_place(expected.read_as(place), expected, 1e-2)
        assert itk_reads(path, expected.affine)
        read, _ = SimpleITKIO().read_images([str(path)])
        np.testing.assert_array_equal(read[0], Turn.to(CANONICAL, own.affine).forth(own.get_fdata().transpose(2, 1, 0)))


class Repeating(Predictor):
    """A network that sees what it is given: logits are the intensities, one class each."""

    def __init__(self, reader: str, forward: list[int], spacing: list[float], order: str):
        super().__init__("phantom", memory_bytes=1 << 40)
        self.given = (reader, forward, spacing, order)

    def load(self, folder, variant="") -> _Model:
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        reader, forward, spacing, order = self.given
        linear = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
        plans = PlansManager(
            {
                "image_reader_writer": reader,
                "transpose_forward": forward,
                "transpose_backward": [forward.index(axis) for axis in range(3)],
                "foreground_intensity_properties_per_channel": {"0": {}},
                "configurations": {
                    "3d_fullres": {
                        "architecture": {},
                        "preprocessor_name": "DefaultPreprocessor",
                        "spacing": [spacing[axis] for axis in forward],
                        "normalization_schemes": ["NoNormalization"],
                        "use_mask_for_norm": [False],
                        **{
                            f"resampling_fn_{what}{end}": value
                            for what in ("data", "seg", "probabilities")
                            for end, value in (("", "resample_data_or_seg_to_shape"), ("_kwargs", linear))
                        },
                    }
                },
            }
        )
        configuration = plans.get_configuration("3d_fullres")
        return _Model("repeating", None, plans, configuration, {}, READERS[reader] or order, "one")

    def _logits(self, model, data, proceed):
        import torch

        return torch.stack([100.0 * (data[0] == label) for label in range(4)])


@given(
    image=oblique_images(),
    reader=st.sampled_from(sorted(READERS)),
    forward=st.permutations([0, 1, 2]),
    known=st.sampled_from(ORDERS),
)
def test_a_prediction_that_repeats_the_scan_lies_on_the_scans_own_voxels(image, reader, forward, known):
    own = np.asarray(image.dataobj).transpose(2, 1, 0)
    order = READERS[reader] or known
    with TemporaryDirectory() as folder:
        path = _saved(image, folder)
        _, spacing = read_voxels(open_image(path, **TOLD), order)
        predictor = Repeating(reader, list(forward), spacing, known)
        prediction = predictor.predict(predictor.open(path, "P1"), folder)
        with patch.object(export, "DEPTH", 3):  # several slabs, the last one cut short
            softmax = np.concatenate([slab for _, slab in prediction.slabs], axis=1)
    assert prediction.shape == softmax.shape == (4, *own.shape)
    np.testing.assert_array_equal(softmax.argmax(axis=0), own)
    assert _by_place(softmax.argmax(axis=0), prediction.grid.affine) == _by_place(own, image.affine)


def test_what_a_qform_rounds_is_the_same_place_and_a_turn_or_a_shift_is_not():
    """At clinical size float32's quaternion puts the far corner 0.6 mm off; a tenth of a degree more is a turn."""
    image = nib.Nifti1Image(np.zeros((2, 2, 2), np.int16), None)
    shape, worst = (866, 512, 512), 0.0
    for degrees in np.linspace(0, 0.05, 26):
        c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
        affine = np.diag([-0.8, -0.8, 0.8, 1.0])
        affine[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ affine[:3, :3]
        image.header.set_zooms((0.8,) * 3)
        image.set_qform(affine, 1)
        grid = Grid(shape, affine)
        assert same_place(grid.read_as(image.get_qform()), grid, 0.1)
        worst = max(worst, displacement_mm(grid.read_as(image.get_qform()), grid))
        turn = np.deg2rad(0.15)
        turned = affine.copy()
        turned[:3, :3] = (
            np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]]) @ affine[:3, :3]
        )
        assert not same_place(grid.read_as(turned), grid, 0.1)
        shifted = affine.copy()
        shifted[0, 3] += 0.2
        assert not same_place(grid.read_as(shifted), grid, 0.1)
    assert worst > 0.1  # the rounding is there


def test_a_sheared_grid_and_files_of_other_kinds_are_told(tmp_path):
    voxels = np.zeros((4, 5, 6), np.int16)
    tilted = np.diag([-1.0, -1.0, 2.0, 1.0])
    tilted[1, 2] = 2 * np.tan(np.deg2rad(13.5))
    nib.save(nib.Nifti1Image(voxels, tilted), tmp_path / "tilted.nii.gz")
    with pytest.raises(SegmentationError, match=r"sheared by 13\.5°.*Resample the scan"):
        open_image(tmp_path / "tilted.nii.gz", **TOLD)
    nib.save(nib.Nifti1Image(voxels.astype(np.complex64), np.eye(4)), tmp_path / "complex.nii.gz")
    nib.save(nib.Nifti1Image(voxels[..., None], np.eye(4)), tmp_path / "four.nii.gz")
    colour = np.zeros((4, 5, 6), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(colour, np.eye(4)), tmp_path / "colour.nii.gz")
    for name in ("complex", "four", "colour"):
        with pytest.raises(SegmentationError, match="no 3-D NIfTI"):
            open_image(tmp_path / f"{name}.nii.gz", **TOLD)


def test_orders_are_three_letters_of_three_axes():
    assert len(ORDERS) == 48
    assert all(map(is_order, ORDERS))
    assert not any(map(is_order, ["", "LP", "LPSI", "LRS", "XYZ", "lps", None, 3, ["L", "P", "S"]]))
    assert {letter for order in ORDERS for letter in order} == set(LETTERS)
