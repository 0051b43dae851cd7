"""Claims proved here.

- A flip is one summand of nnU-Net's own mirroring: of a patch, the mean of all flips' logits is nnU-Net's mirrored prediction; of a
  whole scan, within the half precision in which nnU-Net adds tiles up (with equal weights: at a scan's corner its Gaussian
  weights are too small for half precision). Of a 2-D network there are four.
- By hand: flip 3 of a network that marks the first corner marks the corner that is mirrored along the first two axes.
- Flip 0 is the prediction without mirroring, to the bit; flips differ; the model itself predicts as before, whatever came between.
- A flip along an axis that the model was not trained to mirror is refused and says what to change; flip 0 never is.
- A snapshot predicts as a model with its weights does, shares network and preprocessing with its model, and is an error that
  says what to do where the model keeps none.
"""

import shutil

import numpy as np
import pytest
import torch

from curvas_assets.errors import SegmentationError
from curvas_assets.segmentation import Predictor, train_model
from curvas_assets.segmentation.prediction import axes_of
from curvas_assets.segmentation.sliding_window import StudyPredictor
from curvas_assets.study import FLIPS, ModelId
from curvas_assets_tests.segmentation.conftest import flat_copy, tiny_study

HALF = 2e-3
"""Of a logit's size: nnU-Net adds tiles up in half precision, which keeps 11 bits."""


@pytest.fixture(scope="module")
def model(dataset, tmp_path_factory):
    """Trained with mirroring, with two snapshots."""
    folder = tmp_path_factory.mktemp("models") / "model"
    study = tiny_study(epochs=4, iterations_per_epoch=6, mirroring=True, snapshots=2)
    train_model(study, ModelId("anno1", 7, "all"), dataset, folder)
    return folder


@pytest.fixture(scope="module")
def image(scans):
    return scans / "PHANTOM007" / "image.nii.gz"


def _logits(predictor, scan, folder, variant=""):
    model = predictor.load(folder, variant)
    data, _ = predictor._preprocess(scan, model)
    return predictor._logits(model, data, lambda: None).float().numpy()


def _of_equal_tiles(folder, study):
    predictor = Predictor(study)
    predictor.load(folder).predictor.use_gaussian = False
    return predictor


def _mirroring():
    study = tiny_study()
    return study.model_copy(update={"prediction": study.prediction.model_copy(update={"mirroring": True})})


def test_the_mean_of_all_flips_of_a_patch_is_nnunets_mirrored_prediction(model):
    predictor = Predictor(_mirroring()).load(model).predictor
    assert predictor.allowed_mirroring_axes == (0, 1, 2)
    predictor.network.load_state_dict(
        torch.load(model / "fold_all" / "checkpoint_best.pth", weights_only=True)["network_weights"]
    )
    patch = torch.randn(1, 1, 16, 24, 24, generator=torch.Generator().manual_seed(0))
    expected = predictor._internal_maybe_mirror_and_predict(patch)
    flips = []
    for number in range(FLIPS["3d_fullres"]):
        predictor.flipped = axes_of(number)
        flips.append(predictor._internal_maybe_mirror_and_predict(patch))
    predictor.flipped = None
    assert len({tuple(axes_of(number)) for number in range(8)}) == 8
    torch.testing.assert_close(torch.stack(flips).mean(dim=0), expected, rtol=1e-4, atol=1e-5)
    assert (flips[0] - expected).abs().max() > 1e-3  # else this proves nothing


def test_of_a_whole_scan_too(model, image):
    mirrored, single = _of_equal_tiles(model, _mirroring()), _of_equal_tiles(model, tiny_study())
    expected = _logits(mirrored, mirrored.open(image, "PHANTOM007"), model)
    scan = single.open(image, "PHANTOM007")
    flips = [_logits(single, scan, model, f"flip{number}") for number in range(8)]
    np.testing.assert_allclose(np.mean(flips, axis=0), expected, atol=HALF * np.abs(expected).max())
    assert all(np.abs(one - flips[0]).max() > 0.05 for one in flips[1:])
    assert len(scan.preprocessed) == 1
    np.testing.assert_array_equal(_logits(single, scan, model), flips[0])  # the study's own: without mirroring
    # A flip is the same whatever the study says of mirroring, and leaves the model as it was.
    np.testing.assert_array_equal(_logits(mirrored, mirrored.open(image, "PHANTOM007"), model, "flip5"), flips[5])
    np.testing.assert_array_equal(_logits(mirrored, mirrored.open(image, "PHANTOM007"), model), expected)


def test_of_a_network_of_two_dimensions_there_are_four(model, image, tmp_path):
    flat = flat_copy(model, tmp_path, inference_allowed_mirroring_axes=(0, 1))
    mirrored, single = _of_equal_tiles(flat, _mirroring()), _of_equal_tiles(flat, tiny_study())
    expected = _logits(mirrored, mirrored.open(image, "PHANTOM007"), flat)
    scan = single.open(image, "PHANTOM007")
    flips = [_logits(single, scan, flat, f"flip{number}") for number in range(FLIPS["2d"])]
    np.testing.assert_allclose(np.mean(flips, axis=0), expected, atol=HALF * np.abs(expected).max())
    with pytest.raises(SegmentationError, match=r"flat_flip4: .*along the axes \[2\].*mirrored along \[0, 1\]"):
        single.predict(scan, flat, variant="flip4")


def test_a_flip_mirrors_the_axes_of_its_number_and_mirrors_back():
    class Corner(torch.nn.Module):
        """Marks the first voxel, and hands on its input."""

        def forward(self, x):
            marked = torch.zeros_like(x)
            marked[..., 0, 0, 0] = 1
            return torch.cat([marked, x], dim=1)

    window = StudyPredictor(device=torch.device("cpu"), perform_everything_on_device=False)
    window.network, window.flipped = Corner(), axes_of(3)
    patch = torch.arange(24.0).reshape(1, 1, 2, 3, 4)
    marked, handed_on = window._internal_maybe_mirror_and_predict(patch)[0]
    assert marked.nonzero().tolist() == [[1, 2, 0]]
    assert torch.equal(handed_on, patch[0, 0])


def test_a_model_that_was_trained_without_mirroring_has_no_flip_but_the_first(model, image, tmp_path):
    other = shutil.copytree(model, tmp_path / "other")
    path = other / "fold_all" / "checkpoint_best.pth"
    state = torch.load(path, weights_only=True)
    predictor = Predictor(tiny_study())
    scan = predictor.open(image, "PHANTOM007")
    torch.save(state | {"inference_allowed_mirroring_axes": None}, path)
    with pytest.raises(SegmentationError, match=r"other_flip2: .*along none. Train it with training.mirroring: true"):
        predictor.predict(scan, other, variant="flip2")
    np.testing.assert_array_equal(_logits(predictor, scan, other, "flip0"), _logits(predictor, scan, other))
    torch.save(state | {"inference_allowed_mirroring_axes": (1, 2)}, path)
    partly = Predictor(tiny_study())
    assert partly.predict(scan, other, variant="flip6").shape[0] == 4
    with pytest.raises(SegmentationError, match=r"other_flip3: .*along the axes \[0, 1\].*mirrored along \[1, 2\]"):
        partly.predict(scan, other, variant="flip3")


def test_a_snapshot_predicts_as_a_model_with_its_weights(model, image, tmp_path):
    other = shutil.copytree(model, tmp_path / "other")
    shutil.copyfile(other / "fold_all/checkpoint_snapshot2.pth", other / "fold_all/checkpoint_best.pth")
    predictor = Predictor(tiny_study())
    scan = predictor.open(image, "PHANTOM007")
    found = [_logits(predictor, scan, model, variant) for variant in ("", "snapshot1", "snapshot2")]
    np.testing.assert_array_equal(found[2], _logits(predictor, scan, other))
    assert np.abs(found[0] - found[1]).max() > 1e-2
    assert np.abs(found[1] - found[2]).max() > 1e-2
    assert len(scan.preprocessed) == 1
    assert predictor.load(model).predictor.network is predictor.load(model, "snapshot1").predictor.network


def test_a_model_that_keeps_no_such_snapshot_says_so(model, image, tmp_path):
    predictor = Predictor(tiny_study())
    scan = predictor.open(image, "PHANTOM007")
    with pytest.raises(
        SegmentationError, match=r"model_snapshot3: loading the snapshot failed: the model keeps 2 snap"
    ):
        predictor.predict(scan, model, variant="snapshot3")
    other = shutil.copytree(model, tmp_path / "other")
    for path in (other / "fold_all").glob("checkpoint_snapshot*"):
        path.unlink()
    with pytest.raises(SegmentationError, match=r"keeps no snapshots: .* Train it here with training.snapshots"):
        predictor.predict(scan, other, variant="snapshot1")
    assert predictor.predict(scan, other).shape == (4, 30, 56, 56)
