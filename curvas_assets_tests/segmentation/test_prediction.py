"""Claims proved here.

- Slabs put together are nnU-Net's own export: probabilities within 1e-3, labels in at least 99.99 % of voxels, also when
  axes are transposed, the scan is cropped, coarse slices are resampled to the nearest, torch resamples, or the network is 2-D.
- They lie on the scan's own voxels, whatever its voxel order and the model's reader: what nnU-Net finds in the order that the
  model knows, turned back.
- A model that does not say which order it knows is told the training scans', or predicts LPS scans only.
- Outside nnU-Net's crop everything is background.
- Preprocessing is nnU-Net's, and done once for models that share it; they share a network too, each with its own weights.
- Weights are kept as far as there is room, and read again beyond it.
- Memory is estimated before the start and told; too little is an error that says what to change. A scaled and shifted
  file is read within the estimate. An input that is there already is not asked for again, and one that another thread
  removes is kept by whoever took it.
- Where a GPU's memory runs out in the sliding window, in the network or where tiles are cut, nothing hangs: nnU-Net tries
  again with its results in host memory, or the error says what to change. No thread is left, the error holds neither
  input nor results on the device, and this prediction, or the next one, is to the bit what it is without the fault. The
  same holds for what its causes came through, for a thread that cannot be started, and for an interruption of it.
- A release of nnU-Net whose sliding window would ignore our queue or thread is refused.
- A model with other classes, or without its files, is refused.
"""

import json
import runpy
import shutil
import threading
import tracemalloc
import weakref
from concurrent.futures import Future
from contextlib import contextmanager
from types import FunctionType

import nibabel as nib
import numpy as np
import pytest
import torch

from curvas_assets.errors import SegmentationError
from curvas_assets.geometry import Grid
from curvas_assets.segmentation import Predictor, estimate_memory, prediction, train_model
from curvas_assets.segmentation.runtime import nnunet_folders, quiet
from curvas_assets.study import ModelId
from curvas_assets.voxel_order import READERS, Turn, read_voxels, turned_image
from curvas_assets_tests.segmentation.conftest import flat_copy, tiny_study


@pytest.fixture(scope="module")
def model(dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "model"
    train_model(tiny_study(epochs=2, iterations_per_epoch=8), ModelId("anno1", 7, "all"), dataset, folder)
    return folder


def _ours(model, image):
    predictor = Predictor(tiny_study())
    prediction = predictor.predict(predictor.open(image, "PHANTOM007"), model)
    slabs = list(prediction.slabs)
    assert [z for z, _ in slabs] == list(range(0, prediction.shape[1], 16))
    volume = np.concatenate([slab for _, slab in slabs], axis=1)
    assert volume.shape == prediction.shape
    assert volume.dtype == np.float32
    return volume


def _stock(model, image):
    from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    with nnunet_folders(), quiet():
        predictor = nnUNetPredictor(
            use_mirroring=False, device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False
        )
        predictor.initialize_from_trained_model_folder(
            str(model), use_folds=("all",), checkpoint_name="checkpoint_best.pth"
        )
        reader = recursive_find_reader_writer_by_name(
            json.loads((model / "plans.json").read_text())["image_reader_writer"]
        )
        scan, properties = reader().read_images([str(image)])
        return predictor.predict_single_npy_array(scan, properties, None, None, True)


def _agree(model, image):
    ours = _ours(model, image)
    labels, probabilities = _stock(model, image)
    assert np.abs(ours - probabilities).max() <= 1e-3
    assert (ours.argmax(axis=0) == labels).mean() >= 0.9999
    np.testing.assert_allclose(ours.sum(axis=0), 1, atol=1e-5)
    return ours


def test_slabs_are_what_nnunet_itself_exports(model, scans):
    _agree(model, scans / "PHANTOM007" / "image.nii.gz")


def _resaved(scans, folder, change):
    image = nib.load(scans / "PHANTOM007" / "image.nii.gz")
    voxels, affine = change(np.asarray(image.dataobj).copy(), image.affine.copy())
    path = folder / "image.nii.gz"
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path


def test_also_where_nnunet_crops_what_is_zero(model, scans, tmp_path):
    def emptied(voxels, affine):
        voxels[:8] = voxels[-5:] = voxels[:, :, :3] = 0
        return voxels, affine

    ours = _agree(model, _resaved(scans, tmp_path, emptied))
    assert (ours[0, :3] == 1).all()
    assert (ours[0, :, :, :8] == 1).all()


def test_also_for_thick_slices_and_other_sizes(model, scans, tmp_path):
    def thick(voxels, affine):
        affine[:3, 2] *= 3.3
        return voxels[:-3, :-1, ::3], affine

    _agree(model, _resaved(scans, tmp_path, thick))


def test_also_when_the_plans_transpose_axes(model, scans, tmp_path):
    transposed = shutil.copytree(model, tmp_path / "transposed")
    plans = json.loads((transposed / "plans.json").read_text())
    plans["transpose_forward"], plans["transpose_backward"] = [2, 0, 1], [1, 2, 0]
    (transposed / "plans.json").write_text(json.dumps(plans))
    _agree(transposed, scans / "PHANTOM007" / "image.nii.gz")


def _with_plans(model, folder, **parts):
    """The model with other plans: of the configuration if it has such a part, else of the whole."""
    other = shutil.copytree(model, folder / "other")
    plans = json.loads((other / "plans.json").read_text())
    for name, value in parts.items():
        (plans["configurations"]["3d_fullres"] if name.startswith("resampling") else plans)[name] = value
    (other / "plans.json").write_text(json.dumps(plans))
    return other


@pytest.mark.parametrize("order", ["RAS", "PIR"])
@pytest.mark.parametrize("reader", sorted(READERS))
def test_they_lie_on_the_scans_own_voxels_whatever_order_and_reader(model, scans, tmp_path, reader, order):
    axes = {"transpose_forward": [2, 0, 1], "transpose_backward": [1, 2, 0]} if order == "PIR" else {}
    other = _with_plans(model, tmp_path, image_reader_writer=reader, **axes)
    image = nib.Nifti1Image.from_filename(scans / "PHANTOM007" / "image.nii.gz")
    own, lps = turned_image(image, order), tmp_path / "lps.nii.gz"
    nib.save(own, tmp_path / "own.nii.gz")
    nib.save(image, lps)
    ours = _ours(other, tmp_path / "own.nii.gz")
    labels, probabilities = _stock(other, tmp_path / "own.nii.gz" if READERS[reader] else lps)
    turned = Turn.to(READERS[reader] or "LPS", own.affine).forth(ours)
    assert np.abs(turned - probabilities).max() <= 1e-3
    assert (turned.argmax(axis=0) == labels).mean() >= 0.9999
    assert len(np.unique(labels)) > 1  # something was found, else this proves nothing


@pytest.mark.parametrize("thick", [False, True])
def test_also_for_probabilities_resampled_by_torch(model, scans, tmp_path, thick):
    other = _with_plans(
        model,
        tmp_path,
        resampling_fn_probabilities="resample_torch_fornnunet",
        resampling_fn_probabilities_kwargs={"is_seg": False, "force_separate_z": None},
    )

    def change(voxels, affine):
        affine[:3, 2] *= 3.3 if thick else 1.2
        return (voxels[:-3, :-1, ::3] if thick else voxels[:-3]), affine

    _agree(other, _resaved(scans, tmp_path, change))


def test_also_for_a_network_of_two_dimensions(model, scans, tmp_path):
    _agree(flat_copy(model, tmp_path), scans / "PHANTOM007" / "image.nii.gz")


def test_a_model_that_does_not_say_its_order_predicts_usual_scans_only_unless_told(model, scans, tmp_path):
    other = shutil.copytree(model, tmp_path / "other")
    dataset = json.loads((other / "dataset.json").read_text())
    assert dataset.pop("voxel_order") == "LPS"
    (other / "dataset.json").write_text(json.dumps(dataset))
    image = nib.Nifti1Image.from_filename(scans / "PHANTOM007" / "image.nii.gz")
    nib.save(turned_image(image, "RAS"), tmp_path / "ras.nii.gz")
    assert _ours(other, scans / "PHANTOM007" / "image.nii.gz").shape == (4, *image.shape[::-1])
    predictor = Predictor(tiny_study())
    with pytest.raises(SegmentationError, match=r"voxel order is RAS, and the model does not say.*voxel_order"):
        predictor.predict(predictor.open(tmp_path / "ras.nii.gz", "PHANTOM007"), other)
    as_it_is = Predictor(tiny_study(), unrecorded_order=lambda: "RAS")
    slabs = as_it_is.predict(as_it_is.open(tmp_path / "ras.nii.gz", "PHANTOM007"), other).slabs
    ours = np.concatenate([slab for _, slab in slabs], axis=1)
    assert (ours.argmax(axis=0) == _stock(other, tmp_path / "ras.nii.gz")[0]).mean() >= 0.9999


def test_a_scan_that_is_cut_short_is_told_before_anything_is_predicted(model, scans, tmp_path):
    content = (scans / "PHANTOM007" / "image.nii.gz").read_bytes()
    (tmp_path / "image.nii.gz").write_bytes(content[: len(content) // 2])
    predictor = Predictor(tiny_study())
    with pytest.raises(SegmentationError, match=r"PHANTOM007: reading the scan failed: image.nii.gz is damaged"):
        predictor.predict(predictor.open(tmp_path / "image.nii.gz", "PHANTOM007"), model)


def test_models_with_equal_preprocessing_share_it_and_one_network(model, scans, tmp_path):
    other = _with_plans(model, tmp_path, dataset_name="Dataset001_anno2")
    path = other / "fold_all" / "checkpoint_best.pth"
    state = torch.load(path, weights_only=True)
    for part in state["network_weights"].values():
        part *= 0.9
    torch.save(state, path)
    predictor = Predictor(tiny_study())
    scan = predictor.open(scans / "PHANTOM007" / "image.nii.gz", "PHANTOM007")
    volumes = [next(predictor.predict(scan, folder).slabs)[1] for folder in (model, other, model)]
    assert len(scan.preprocessed) == 1
    assert predictor.load(model).predictor.network is predictor.load(other).predictor.network
    assert np.abs(volumes[0] - volumes[1]).max() > 1e-4
    np.testing.assert_array_equal(volumes[0], volumes[2])


def test_weights_for_which_there_is_no_room_are_read_again(model, scans, monkeypatch):
    scan = scans / "PHANTOM007" / "image.nii.gz"
    kept = Predictor(tiny_study())
    expected = next(kept.predict(kept.open(scan, "PHANTOM007"), model).slabs)[1]
    assert len(kept._weights) == 1
    monkeypatch.setattr(prediction, "WEIGHTS_SHARE", 0)
    poor = Predictor(tiny_study())
    np.testing.assert_array_equal(next(poor.predict(poor.open(scan, "PHANTOM007"), model).slabs)[1], expected)
    assert poor._weights == {}


def test_the_networks_input_is_that_of_nnunets_own_preprocessing(model, scans, tmp_path):
    def thick(voxels, affine):
        voxels[:4] = 0
        affine[:3, 2] *= 3.3
        return voxels[:-3, :-1, ::3], affine

    predictor, path = Predictor(tiny_study()), _resaved(scans, tmp_path, thick)
    scan = predictor.open(path, "PHANTOM007")
    predictor.prepare(scan, model)
    loaded = predictor.load(model)
    voxels, spacing = read_voxels(nib.load(path), loaded.order)
    with nnunet_folders(), quiet():
        data, _, properties = loaded.configuration.preprocessor_class(verbose=False).run_case_npy(
            voxels, None, {"spacing": spacing}, loaded.plans, loaded.configuration, loaded.dataset
        )
    ours, ours_properties = scan.preprocessed[predictor.sharing(model)]
    np.testing.assert_array_equal(ours.numpy(), data)
    assert str(ours_properties) == str(properties)


def test_too_little_memory_is_an_error_that_says_what_to_change(model, scans):
    predictor = Predictor(tiny_study(), memory_bytes=1 << 20)
    scan = predictor.open(scans / "PHANTOM007" / "image.nii.gz", "PHANTOM007")
    with pytest.raises(SegmentationError, match=r"PHANTOM007 by .*GiB of memory are needed.*plans.spacing_mm"):
        predictor.predict(scan, model)


def test_memory_is_told_before_the_start(model, scans):
    told = []
    predictor = Predictor(tiny_study(), tell=told.append)
    prediction = predictor.predict(predictor.open(scans / "PHANTOM007" / "image.nii.gz", "PHANTOM007"), model)
    (message,) = told
    assert "PHANTOM007 by model: about 0.0 GiB of memory are needed for 30 × 56 × 56 voxels" in message
    assert 0 < prediction.memory_bytes < 2**28


def test_memory_is_asked_for_without_an_input_that_is_there(model, scans):
    predictor = Predictor(tiny_study())
    scan = predictor.open(scans / "PHANTOM007" / "image.nii.gz", "PHANTOM007")
    steps = predictor.memory(scan, model)
    predictor.memory_bytes = steps.alone
    predictor.prepare(scan, model)
    predictor.memory_bytes = steps.alone - steps.prepared
    assert predictor.predict(scan, model).memory_bytes == steps.alone
    predictor.memory_bytes -= 1
    with pytest.raises(SegmentationError, match=r"voxels that are preprocessed, .* are free"):
        predictor.predict(scan, model)
    scan.preprocessed.clear()
    predictor.memory_bytes = steps.alone - steps.prepared
    with pytest.raises(SegmentationError, match=r"voxels, .* are free"):
        predictor.predict(scan, model)


def test_an_input_may_be_removed_at_any_time(model, scans):
    class Emptied(dict):
        def __setitem__(self, key, value):
            """Another thread removes it at once."""

    predictor = Predictor(tiny_study())
    scan = predictor.open(scans / "PHANTOM007" / "image.nii.gz", "PHANTOM007")
    scan.preprocessed = Emptied()
    assert len(list(predictor.predict(scan, model).slabs)) == 2


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_scaled_scan_is_read_in_the_memory_that_is_estimated(tmp_path, ending):
    image = nib.Nifti1Image(np.zeros((40, 40, 500), np.int16), np.diag([-1.0, -1.0, 2.0, 1.0]))
    image.header.set_slope_inter(0.5, -1024)
    nib.save(image, tmp_path / f"image{ending}")
    read: nib.Nifti1Image = nib.load(tmp_path / f"image{ending}")
    estimated = prediction.estimate_steps(Grid.of(read), (9.0, 9.0, 9.0), classes=4).preparing
    tracemalloc.start()
    try:
        read_voxels(read, "LPS")
        taken = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 0.9 * estimated < taken < 1.02 * estimated


def test_memory_at_clinical_size_is_estimated_below_sixteen_gibibytes():
    needed = estimate_memory(Grid.with_voxels((866, 512, 512), (0.8, 0.9, 0.9)), (0.8, 0.9, 0.9), classes=4)
    assert 4 * 2**30 < needed < 16 * 2**30


def test_running_out_of_memory_is_told_with_what_to_change(model, scans, monkeypatch):
    def exhausted(*_, **__):
        raise RuntimeError("CUDA out of memory. Tried to allocate 20 GiB")

    predictor = Predictor(tiny_study())
    monkeypatch.setattr(predictor, "_logits", exhausted)
    with pytest.raises(SegmentationError, match=r"memory did not suffice.*prediction.device: cpu"):
        predictor.predict(predictor.open(scans / "PHANTOM007" / "image.nii.gz", "PHANTOM007"), model)


def test_also_when_it_runs_out_while_slabs_are_made_and_the_next_model_goes_on(model, scans, monkeypatch):
    from curvas_assets.segmentation import export as module

    def exhausted(*_, **__):
        raise MemoryError

    predictor = Predictor(tiny_study())
    scan = predictor.open(scans / "PHANTOM007" / "image.nii.gz", "PHANTOM007")
    with monkeypatch.context() as patch:
        patch.setattr(module, "_resample_axis", exhausted)
        slabs = predictor.predict(scan, model).slabs
        with pytest.raises(SegmentationError, match=r"PHANTOM007 by model.*memory did not suffice \(MemoryError\)"):
            list(slabs)
    assert len(list(predictor.predict(scan, model).slabs)) == 2


@contextmanager
def _memory_runs_out(predictor, model, where, times=None):
    """At the third tile, in the network or in the thread that cuts; each time, or only so many times."""
    network, clone, left = predictor.load(model).predictor.network, torch.clone, [3, times]

    def tile():
        left[0] -= 1
        if left[0] <= 0 and left[1] != 0:
            left[1] = None if left[1] is None else left[1] - 1
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    def cut(*args, **named):
        tile()
        return clone(*args, **named)

    with pytest.MonkeyPatch.context() as patch:
        hook = network.register_forward_hook(lambda *_: tile()) if where == "network" else None
        if hook is None:
            patch.setattr(torch, "clone", cut)
        try:
            yield
        finally:
            if hook is not None:
                hook.remove()


def _in_time(call):
    """What a call gives or raises; an error if it hangs."""
    found = Future()

    def run():
        try:
            found.set_result(call())
        except BaseException as error:
            found.set_exception(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        return found.result(timeout=60)
    finally:
        thread.join(1)


def _volume(predictor, scan, model):
    return np.concatenate([slab for _, slab in predictor.predict(scan, model).slabs], axis=1)


@pytest.fixture
def two_attempts(model, scans):
    """A predictor, a scan and its volume; nnU-Net tries on the device first, as on a GPU."""
    predictor = Predictor(tiny_study())
    scan = predictor.open(scans / "PHANTOM007" / "image.nii.gz", "PHANTOM007")
    expected = _volume(predictor, scan, model)
    predictor.load(model).predictor.perform_everything_on_device = True
    return predictor, scan, expected


@pytest.mark.parametrize("where", ["network", "cutting"])
@pytest.mark.parametrize("attempts", [1, 2])
def test_memory_that_runs_out_in_the_sliding_window_ends_this_prediction_alone(two_attempts, model, where, attempts):
    predictor, scan, expected = two_attempts
    predictor.load(model).predictor.perform_everything_on_device = attempts == 2
    threads = set(threading.enumerate())
    with (
        _memory_runs_out(predictor, model, where),
        pytest.raises(SegmentationError, match=r"memory did not suffice \(OutOfMemoryError\).*prediction.device: cpu"),
    ):
        _in_time(lambda: predictor.predict(scan, model))
    assert set(threading.enumerate()) <= threads
    np.testing.assert_array_equal(_in_time(lambda: _volume(predictor, scan, model)), expected)


@pytest.mark.parametrize("where", ["network", "cutting"])
def test_if_it_runs_out_once_nnunets_second_attempt_gives_the_same_volume(two_attempts, model, where):
    predictor, scan, expected = two_attempts
    threads = set(threading.enumerate())
    with _memory_runs_out(predictor, model, where, times=1):
        np.testing.assert_array_equal(_in_time(lambda: _volume(predictor, scan, model)), expected)
    assert set(threading.enumerate()) <= threads


def _window(two_attempts, model):
    """nnU-Net's predictor as it is used, and what its sliding window is given."""
    predictor, scan, _ = two_attempts
    window = predictor.load(model).predictor
    data = scan.preprocessed[predictor.sharing(model)][0]
    return window, data, window._internal_get_sliding_window_slicers(data.shape[1:])


def _moved(monkeypatch):
    """Weak references to what is moved to a device from now on, each a copy, as on a GPU."""
    to, moved = torch.Tensor.to, []

    def copied(tensor, *args, **named):
        copy = to(tensor, *args, **named).clone()
        moved.append(weakref.ref(copy))
        return copy

    monkeypatch.setattr(torch.Tensor, "to", copied)
    return moved


@pytest.mark.parametrize("where", ["network", "cutting"])
def test_its_error_holds_no_more_of_the_device_than_the_tile_at_which_the_network_was(
    two_attempts, model, where, monkeypatch
):
    window, data, tiles = _window(two_attempts, model)
    moved = _moved(monkeypatch)
    out_of_memory = _memory_runs_out(two_attempts[0], model, where)
    with out_of_memory, pytest.raises(torch.cuda.OutOfMemoryError) as raised:
        window._internal_predict_sliding_window_return_logits(data, tiles)
    monkeypatch.undo()
    assert raised.value.__traceback__ is not None
    assert len(moved) > 3
    assert moved[0]() is None  # the input
    assert sum(copy() is not None for copy in moved) <= (where == "network")


def test_nor_does_it_hold_what_its_causes_came_through(two_attempts, model, monkeypatch):
    window, data, tiles = _window(two_attempts, model)
    held = []

    def first():
        activation = torch.zeros(9)
        held.append(weakref.ref(activation))
        raise RuntimeError("cuDNN failed")

    def mirrored(_):
        try:
            first()
        except RuntimeError as error:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory") from error

    monkeypatch.setattr(window, "_internal_maybe_mirror_and_predict", mirrored)
    with pytest.raises(torch.cuda.OutOfMemoryError) as raised:
        window._internal_predict_sliding_window_return_logits(data, tiles)
    assert isinstance(raised.value.__cause__, RuntimeError)
    assert [one() for one in held] == [None]


def test_nor_the_input_where_the_thread_cannot_be_started(two_attempts, model, monkeypatch):
    window, data, tiles = _window(two_attempts, model)

    def refused(_):
        raise RuntimeError("can't start new thread")

    moved = _moved(monkeypatch)
    monkeypatch.setattr(threading.Thread, "start", refused)
    with pytest.raises(RuntimeError, match="can't start new thread") as raised:
        window._internal_predict_sliding_window_return_logits(data, tiles)
    monkeypatch.undo()
    assert raised.value.__traceback__ is not None
    assert [copy() for copy in moved] == [None]


class _Interrupted(BaseException):
    """As `KeyboardInterrupt`, no `Exception`."""


def test_an_interruption_where_tiles_are_cut_ends_the_prediction(two_attempts, model, monkeypatch):
    window, data, tiles = _window(two_attempts, model)
    threads = set(threading.enumerate())

    def cut(*_, **__):
        raise _Interrupted

    monkeypatch.setattr(torch, "clone", cut)
    with pytest.raises(_Interrupted):
        _in_time(lambda: window._internal_predict_sliding_window_return_logits(data, tiles))
    assert set(threading.enumerate()) <= threads


@pytest.mark.parametrize("name", ["Queue", "Thread"])
def test_a_release_whose_sliding_window_would_ignore_our_queue_or_thread_is_refused(monkeypatch, name):
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    from curvas_assets.segmentation import sliding_window

    code = sliding_window.NNUNETS.__code__
    other = code.replace(co_names=tuple("Another" if used == name else used for used in code.co_names))
    monkeypatch.setattr(nnUNetPredictor, sliding_window.NNUNETS.__name__, FunctionType(other, {}))
    with pytest.raises(SegmentationError, match=rf"nnunetv2 2.* does not use the name {name}\. Install the release"):
        runpy.run_path(sliding_window.__file__)


def test_a_model_of_other_classes_or_without_its_files_is_refused(model, scans, tmp_path):
    predictor = Predictor(tiny_study())
    scan = predictor.open(scans / "PHANTOM007" / "image.nii.gz", "PHANTOM007")
    with pytest.raises(SegmentationError, match=r"lacks plans\.json"):
        predictor.predict(scan, tmp_path)
    other = shutil.copytree(model, tmp_path / "other")
    dataset = json.loads((other / "dataset.json").read_text())
    dataset["labels"] = {"background": 0, "liver": 1, "kidney": 2, "pancreas": 3}
    (other / "dataset.json").write_text(json.dumps(dataset))
    with pytest.raises(SegmentationError, match="its classes are"):
        predictor.predict(scan, other)
