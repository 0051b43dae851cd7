"""Claims proved here.

- Preprocessing gives nnU-Net's own arrays and properties, to the bit: voxels of any shape, axes in any order, a CT that is
  0 around the body, crops at the border, no organ, no resampling, thick slices along any axis, two-dimensional plans.
- So it does for several channels of different types and extents, by each of nnU-Net's normalisations, inside the body or
  everywhere, with labels drawn outside the body and without labels.
- Resampling gives nnU-Net's own values to the bit for any shapes, on flat ground and where labels tie, by any number of
  threads.
- The sample of intensities is the one that nnU-Net's fingerprint extractor draws, of each channel.
- Settings that are not known here, and scans with NaN, go to nnU-Net itself; without labels it resamples no mask.
- A whole dataset has the arrays and the fingerprint of nnU-Net's own functions.
- The sample of organs takes no more memory than is estimated for it.
"""

import json
import tracemalloc
from copy import deepcopy

import blosc2
import nibabel as nib
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from curvas_assets.segmentation.preprocessing import (
    Frame,
    estimate_memory,
    is_known,
    nonzero_box,
    preprocess,
    sample_intensities,
    sample_organs,
)
from curvas_assets.segmentation.resampling import resample_image, resample_image_slices, resample_labels
from curvas_assets_tests.segmentation.conftest import tiny_study

DATASET = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "a": 1, "b": 2, "c": 3}, "file_ending": ".nii.gz"}


@pytest.fixture(scope="module")
def plans(dataset):
    return json.loads((dataset / "nnUNetPlans.json").read_text())


def _managers(plans, spacing=(1.0, 0.8, 0.8), forward=(0, 1, 2), **options):
    plans = deepcopy(plans)
    configuration = plans["configurations"]["3d_fullres"] | options
    configuration["spacing"] = list(spacing)
    plans["configurations"]["3d_fullres"] = configuration
    plans["transpose_forward"] = list(forward)
    manager = PlansManager(plans)
    return manager, manager.get_configuration("3d_fullres")


def _scan(shape, seed=0):
    """A noisy CT that is 0 around a body with two dark corners and holes, and organs of which one is at the border."""
    random = np.random.default_rng(seed)
    hu = random.normal(20, 120, shape).astype(np.int16)
    z, y, x = np.indices(shape)
    hu[(z < 2) | (x > shape[2] - 3)] = 0
    hu[:, 4:6, 4:6] = 0  # open along z only where the body ends
    hu[random.random(shape) < 0.02] = 0
    labels = (np.indices(shape).sum(axis=0) // 7 % 4 * (random.random(shape) < 0.9)).astype(np.uint8)
    labels[y > shape[1] * 2 // 3] = 0
    return hu, labels


def _both(plans, hu, labels, spacing_mm, threads=2, **settings):
    manager, configuration = _managers(plans, **settings)
    seg = None if labels is None else labels[None].astype(np.float32)
    stock = DefaultPreprocessor(verbose=False).run_case_npy(
        hu[None].astype(np.float32), seg, {"spacing": list(spacing_mm)}, manager, configuration, DATASET
    )
    properties = {"spacing": list(spacing_mm)}
    return stock, preprocess(hu[None], labels, properties, manager, configuration, DATASET, threads=threads)


def _same(one, other):
    assert one.dtype == other.dtype
    assert one.shape == other.shape
    assert one.tobytes() == other.tobytes()


SETTINGS = {
    "coarser along z": {"spacing_mm": (1.0, 0.8, 0.8), "spacing": (1.1, 0.8, 0.8)},
    "finer along all axes": {"spacing_mm": (2.5, 0.9, 0.8), "spacing": (2.0, 0.7, 0.7)},
    "as it is": {"spacing_mm": (1.0, 0.8, 0.8), "spacing": (1.0, 0.8, 0.8)},
    "axes turned": {"spacing_mm": (0.7, 2.0, 0.8), "spacing": (1.6, 0.8, 0.9), "forward": (1, 0, 2)},
    "axes turned, x first": {"spacing_mm": (0.7, 0.8, 2.0), "spacing": (1.6, 0.8, 0.9), "forward": (2, 0, 1)},
    "thick slices": {"spacing_mm": (5.0, 0.8, 0.8), "spacing": (4.0, 0.9, 0.7)},
    "thick slices, as many": {"spacing_mm": (5.0, 0.8, 0.8), "spacing": (5.0, 0.9, 0.7)},
    "thick slices, in plane as they are": {"spacing_mm": (5.0, 0.8, 0.8), "spacing": (3.0, 0.8, 0.8)},
    "thick along y": {"spacing_mm": (0.8, 4.0, 0.9), "spacing": (0.9, 3.0, 0.8)},
    "thick along x": {"spacing_mm": (0.8, 0.9, 4.0), "spacing": (0.9, 0.8, 3.0)},
    "two-dimensional": {"spacing_mm": (2.0, 0.9, 0.8), "spacing": (0.8, 0.8)},
    "never slice by slice": {"spacing_mm": (5.0, 0.8, 0.8), "spacing": (4.0, 0.9, 0.7), "force_separate_z": False},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_preprocessing_is_nnunets_to_the_bit(plans, name):
    settings = dict(SETTINGS[name])
    if "force_separate_z" in settings:
        forced = {"force_separate_z": settings.pop("force_separate_z")}
        known = plans["configurations"]["3d_fullres"]
        settings |= {
            f"resampling_fn_{part}_kwargs": known[f"resampling_fn_{part}_kwargs"] | forced for part in ("data", "seg")
        }
    hu, labels = _scan((14, 23, 26))
    (image, seg, properties), (ours, drawn, ours_told) = _both(plans, hu, labels, **settings)
    _same(ours, image)
    _same(drawn, seg)
    assert -1 in seg
    assert {k: repr(v) for k, v in properties.items()} == {k: repr(v) for k, v in ours_told.items()}
    for label, places in properties["class_locations"].items():
        np.testing.assert_array_equal(places, ours_told["class_locations"][label])


def _channels(shape):
    """Sequences that are 0 around the body, each of an extent of its own, beside a CT and a map of fractions."""
    hu, labels = _scan(shape)
    random = np.random.default_rng(1)
    first, second = np.where(hu == 0, 0, hu + 700).astype(np.int16), (hu / np.float32(7)).astype(np.float32)
    second[:4], second[:, 5:9, 3:8] = 0, 0  # fewer slices, and a hole that the first fills only in part
    third, fourth = (random.random(shape) * (first > 0)).astype(np.float32), np.where(first, hu, 0).astype(np.float64)
    return [first, second, third, fourth], labels


Z, CT, SHARE, NONE = "ZScoreNormalization", "CTNormalization", "RescaleTo01Normalization", "NoNormalization"


@pytest.mark.parametrize("drawn", [True, False])
@pytest.mark.parametrize(
    ("name", "schemes", "masked"),
    [
        ("coarser along z", [Z, Z], [True, True]),
        ("axes turned", [Z, Z], [True, True]),
        ("thick along y", [Z, SHARE, CT, NONE], [True, False, False, False]),
        ("finer along all axes", [Z, SHARE, NONE, CT], [False] * 4),
        ("as it is", [Z, CT], [True, False]),
    ],
)
def test_channels_are_preprocessed_as_nnunet_does_to_the_bit(plans, name, schemes, masked, drawn):
    channels, labels = _channels((14, 23, 26))
    channels, plans = channels[: len(schemes)], deepcopy(plans)
    statistics = plans["foreground_intensity_properties_per_channel"]["0"]
    plans["foreground_intensity_properties_per_channel"] = {str(c): statistics for c in range(len(schemes))}
    settings = {k: v for k, v in SETTINGS[name].items() if k != "spacing_mm"}
    manager, configuration = _managers(plans, **settings, normalization_schemes=schemes, use_mask_for_norm=masked)
    assert is_known(configuration)
    stacked, given = np.stack([one.astype(np.float32) for one in channels]), labels if drawn else None
    image, seg, told = DefaultPreprocessor(verbose=False).run_case_npy(
        stacked, given if given is None else given[None].astype(np.float32), {"spacing": list(SETTINGS[name]["spacing_mm"])},
        manager, configuration, DATASET,
    )  # fmt: skip
    before = [one.copy() for one in channels]
    own = {"spacing": list(SETTINGS[name]["spacing_mm"])}
    ours, ours_seg, own = preprocess(channels, given, own, manager, configuration, DATASET, threads=2)
    _same(ours, image)
    if drawn:
        _same(ours_seg, seg)
        assert -1 in seg
    assert told["bbox_used_for_cropping"] == own["bbox_used_for_cropping"] != [[0, n] for n in channels[0].shape]
    assert all((one == kept).all() for one, kept in zip(channels, before, strict=True))


def test_a_scan_without_organs_or_labels_or_zeros_is_nnunets_to_the_bit(plans):
    hu, labels = _scan((14, 23, 26))
    settings = SETTINGS["coarser along z"]
    (image, seg, _), (ours, drawn, told) = _both(plans, hu - 2000, np.zeros_like(labels), **settings, threads=1)
    _same(ours, image)
    _same(drawn, seg)
    assert not drawn.any()
    assert not any(map(len, told["class_locations"].values()))
    (image, _, _), (ours, none, _) = _both(plans, hu.astype(np.float32) / 3, None, **settings)
    _same(ours, image)
    assert none is None
    (image, seg, _), (ours, drawn, _) = _both(plans, np.zeros_like(hu), labels, **settings)
    _same(ours, image)
    _same(drawn, seg)


def test_a_scan_with_nan_goes_to_nnunet(plans):
    hu, _ = _scan((14, 23, 26))
    holed = hu.astype(np.float32)
    holed[5, 5, 5] = np.nan
    with np.errstate(invalid="ignore"):
        (image, _, _), (ours, _, _) = _both(plans, holed, None, **SETTINGS["coarser along z"])
    assert np.isnan(image).any()
    _same(ours, image)


def test_labels_above_127_are_nnunets_to_the_bit(plans):
    hu, labels = _scan((14, 23, 26))
    (_, seg, _), (_, drawn, _) = _both(plans, hu, labels * 60, **SETTINGS["finer along all axes"])
    assert seg.max() == 180
    _same(drawn, seg)


def test_unknown_settings_go_to_nnunet(plans):
    kwargs = plans["configurations"]["3d_fullres"]["resampling_fn_data_kwargs"] | {"order": 1}
    settings = SETTINGS["coarser along z"] | {"resampling_fn_data_kwargs": kwargs}
    assert not is_known(_managers(plans, **{k: v for k, v in settings.items() if k != "spacing_mm"})[1])
    hu, labels = _scan((14, 23, 26))
    (image, seg, _), (ours, drawn, _) = _both(plans, hu, labels, **settings)
    _same(ours, image)
    _same(drawn, seg)


def test_without_labels_nnunet_resamples_the_image_alone(plans, monkeypatch):
    kwargs = plans["configurations"]["3d_fullres"]["resampling_fn_data_kwargs"] | {"order": 1}
    settings = SETTINGS["coarser along z"] | {"resampling_fn_data_kwargs": kwargs}
    hu, _ = _scan((14, 23, 26))
    (image, _, stock), (ours, none, told) = _both(plans, hu, None, **settings)
    _same(ours, image)
    assert none is None
    assert repr(told) == repr(stock)

    def asked(configuration):
        raise AssertionError("a mask is resampled that nobody reads")

    monkeypatch.setattr(ConfigurationManager, "resampling_fn_seg", property(asked))
    manager, configuration = _managers(plans, **{k: v for k, v in settings.items() if k != "spacing_mm"})
    again, _, _ = preprocess(hu[None], None, {"spacing": list(settings["spacing_mm"])}, manager, configuration, DATASET)
    _same(again, image)


SHAPES = st.tuples(*[st.integers(1, 9)] * 3)


@given(SHAPES, SHAPES, st.integers(0, 3), st.booleans(), st.integers(1, 3))
@example((40, 3, 2), (70, 3, 5), 1, False, 1)  # more slices than are kept between states
@example((70, 2, 30), (70, 4, 15), 2, False, 2)
@example((8, 8, 8), (16, 16, 16), 3, False, 1)  # every position halfway: labels tie
@example((8, 8, 8), (4, 4, 4), 3, True, 1)
def test_resampling_is_nnunets_to_the_bit(shape, wanted, seed, slices, threads):
    if shape == wanted:
        return
    random = np.random.default_rng(seed)
    image = random.normal(size=shape).astype(np.float32).clip(-0.5, 1.5)
    image[: shape[0] // 2] = (-0.5, 0, 1e-30, 1.5)[seed]
    labels = random.integers(-1, 4, shape).astype(np.int8)
    options = {"axis": 0, "do_separate_z": True} if slices else {}
    stock = resample_data_or_seg(image[None].copy(), wanted, False, order=3, order_z=0, **options)[0]
    resample = resample_image_slices if slices else resample_image
    _same(resample(lambda z: image[z], shape, wanted, threads=threads), stock)
    stock = resample_data_or_seg(labels[None].astype(np.float32), wanted, True, order=1, order_z=0, **options)[0]
    _same(resample_labels(labels, wanted, slices=slices, threads=threads), stock.astype(np.int8))


@pytest.mark.parametrize("drawn", [True, False])
def test_the_sample_of_intensities_is_nnunets(drawn):
    hu, labels = _scan((35, 12, 13))
    labels *= drawn
    image, seg, box = crop_to_nonzero(hu[None].astype(np.float32), labels[None].astype(np.float32))
    assert nonzero_box([hu]) == box != [[0, n] for n in hu.shape]
    stock, _ = DatasetFingerprintExtractor.collect_foreground_intensities(seg, image, num_samples=500)
    slabs = (labels[z : z + 16] > 0 for z in range(0, 35, 16))
    np.testing.assert_array_equal(sample_intensities([hu], slabs, box, 500), stock)


def test_the_sample_of_intensities_of_channels_is_nnunets():
    channels, labels = _channels((35, 12, 13))
    stacked = np.stack([one.astype(np.float32) for one in channels])
    image, seg, box = crop_to_nonzero(stacked, labels[None].astype(np.float32))
    assert nonzero_box(channels) == nonzero_box(stacked) == box
    stock, _ = DatasetFingerprintExtractor.collect_foreground_intensities(seg, image, num_samples=500)
    slabs = (labels[z : z + 16] > 0 for z in range(0, 35, 16))
    np.testing.assert_array_equal(sample_intensities(channels, slabs, box, 500), stock)


def test_a_dataset_is_that_of_nnunets_own_functions(dataset, scans, tmp_path):
    plans = PlansManager(json.loads((dataset / "nnUNetPlans.json").read_text()))
    facts = json.loads((dataset / "dataset.json").read_text())
    configuration = plans.get_configuration("3d_fullres")
    fingerprint = json.loads((dataset / "dataset_fingerprint.json").read_text())
    samples, relative = [], []
    number = int(tiny_study().plans.intensity_samples // 3)
    for i, patient in enumerate(("PHANTOM001", "PHANTOM002", "PHANTOM003")):
        image, label = str(scans / patient / "image.nii.gz"), str(tmp_path / f"{patient}.nii.gz")
        drawn = nib.load(scans / patient / "annotation_1.nii.gz")
        nib.save(nib.Nifti1Image(np.asarray(drawn.dataobj).astype(np.uint8), drawn.affine), label)
        shape, spacing, intensities, _, cropped = DatasetFingerprintExtractor.analyze_case(
            [image], label, SimpleITKIO, number
        )
        assert (fingerprint["shapes_after_crop"][i], fingerprint["spacings"][i]) == (list(shape), list(spacing))
        samples.append(intensities[0])
        relative.append(cropped)
        DefaultPreprocessor(verbose=False).run_case_save(
            str(tmp_path / patient), [image], label, plans, configuration, facts
        )
        for name in (f"{patient}.b2nd", f"{patient}_seg.b2nd"):
            stock, ours = (blosc2.open(str(f / name)) for f in (tmp_path, dataset / "nnUNetPlans_3d_fullres"))
            _same(ours[:], stock[:])
            assert (ours.chunks, ours.blocks, ours.dtype) == (stock.chunks, stock.blocks, stock.dtype)
        stock, ours = (
            np.load(f / f"{patient}.pkl", allow_pickle=True) for f in (tmp_path, dataset / "nnUNetPlans_3d_fullres")
        )
        assert repr(stock) == repr(ours)
    found = fingerprint["foreground_intensity_properties_per_channel"]["0"]
    drawn = np.concatenate(samples)
    assert [found[name] for name in ("mean", "std", "percentile_99_5")] == pytest.approx(
        [drawn.mean(), drawn.std(), np.percentile(drawn, 99.5)], rel=1e-9
    )
    assert fingerprint["median_relative_size_after_cropping"] == float(np.median(relative))


def test_the_sample_of_organs_takes_the_memory_that_is_estimated(plans):
    manager, configuration = _managers(plans)
    hu, seg = np.ones((100, 100, 100), np.int16), np.ones((1, 100, 100, 100), np.int8)
    frame = Frame.of([hu], {"spacing": [1.0, 0.8, 0.8]}, manager, configuration)
    least, most = (estimate_memory(frame, hu.itemsize, drawn) for drawn in (0, hu.size))
    tracemalloc.start()
    try:
        sample_organs(seg, manager, DATASET)
        _, taken = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert least < taken + hu.nbytes + seg.nbytes <= most < 1.1 * (taken + hu.nbytes + seg.nbytes)
