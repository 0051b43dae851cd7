"""Claims proved here, on a checkpoint that a stock nnU-Net trainer wrote and on a real preprocessed dataset.

- A stock model is taken in: it loads for prediction, without optimizer state, with its curve and its best pseudo-Dice.
- The best checkpoint is taken before the final one.
- A model of other classes, of another configuration, without the fold, or whose file is damaged or could run code, is
  refused with what to do.
- A preprocessed dataset is taken in under our names and trains; one with a stranger's case is refused.
"""

import json
import pickle
import shutil

import numpy as np
import pytest
import torch

from curvas_assets.errors import SegmentationError
from curvas_assets.segmentation import Predictor, adopt_dataset, adopt_model, train_model
from curvas_assets.segmentation.runtime import dataset_name, nnunet_folders, quiet
from curvas_assets.study import ModelId
from curvas_assets_tests.segmentation.conftest import ANNOTATOR, tiny_study

MODEL = ModelId(ANNOTATOR, 112233, "all")


@pytest.fixture(scope="module")
def stock(dataset, tmp_path_factory):
    """nnU-Net's results folder of one trainer, as its own `save_checkpoint` leaves it after two logged epochs."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    root = tmp_path_factory.mktemp("stock")
    plans = json.loads((dataset / "nnUNetPlans.json").read_text())
    labels = json.loads((dataset / "dataset.json").read_text())
    (root / "preprocessed").mkdir()
    (root / "preprocessed" / dataset_name(ANNOTATOR)).symlink_to(dataset)
    with nnunet_folders(preprocessed=root / "preprocessed", results=root / "results"), quiet():
        trainer = nnUNetTrainer({**plans, "continue_training": False}, "3d_fullres", "all", labels, torch.device("cpu"))
        trainer.initialize()
        for epoch in range(2):
            for name, value in (
                ("train_losses", np.float64(0.5 - epoch)),
                ("val_losses", np.float32(0.25)),
                ("mean_fg_dice", np.float64(0.6)),
                ("lrs", 0.01),
            ):
                trainer.logger.log(name, value, epoch)
        trainer.current_epoch, trainer._best_ema = 1, np.float64(0.61)
        fold = root / "model" / "fold_all"
        fold.mkdir(parents=True)
        trainer.save_checkpoint(str(fold / "checkpoint_final.pth"))
    (root / "model" / "plans.json").write_text(json.dumps(plans))
    (root / "model" / "dataset.json").write_text(json.dumps(labels))
    return root / "model"


@pytest.fixture
def copied(stock, tmp_path):
    return shutil.copytree(stock, tmp_path / "copied")


def test_a_stock_model_is_taken_in_and_loads_for_prediction(stock, tmp_path):
    adopted = adopt_model(tiny_study(), MODEL, stock, tmp_path / "ours")
    assert (adopted.checkpoint, adopted.trainer, adopted.epochs) == ("checkpoint_final.pth", "nnUNetTrainer", 2)
    assert adopted.best_ema_dice == pytest.approx(0.61)
    assert adopted.curve["train_loss"].tolist() == [0.5, -0.5]
    assert adopted.curve["ema_dice"].tolist() == pytest.approx([0.6, 0.6])
    ours = tmp_path / "ours/fold_all/checkpoint_best.pth"
    assert "optimizer_state" not in torch.load(ours, weights_only=True)
    Predictor(tiny_study()).load(tmp_path / "ours")
    assert json.loads((tmp_path / "ours/training.json").read_text())["model"] == str(MODEL)


def test_what_was_taken_in_can_be_taken_in_again_and_the_best_checkpoint_wins(copied, tmp_path):
    state = torch.load(copied / "fold_all/checkpoint_final.pth", weights_only=False)
    torch.save({**state, "current_epoch": 1}, copied / "fold_all/checkpoint_best.pth")
    assert adopt_model(tiny_study(), MODEL, copied, tmp_path / "once").epochs == 1
    again = adopt_model(tiny_study(), MODEL, tmp_path / "once", tmp_path / "twice")
    assert (again.checkpoint, again.epochs, len(again.curve)) == ("checkpoint_best.pth", 1, 0)


class Runs:
    def __reduce__(self):
        return (print, ("this must never be printed",))


def _damage(folder, how):
    checkpoint = folder / "fold_all/checkpoint_final.pth"
    if how == "classes":
        (folder / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "spleen": 1}}))
    elif how == "fold":
        (folder / "fold_all").rename(folder / "fold_3")
    elif how == "truncated":
        checkpoint.write_bytes(checkpoint.read_bytes()[:-1000])
    elif how == "code":
        checkpoint.write_bytes(pickle.dumps({"network_weights": {}, "init_args": Runs()}))
    elif how == "weights":
        state = torch.load(checkpoint, weights_only=False)
        name = next(iter(state["network_weights"]))
        state["network_weights"][name] = torch.zeros(3)
        torch.save(state, checkpoint)
    elif how == "configuration":
        state = torch.load(checkpoint, weights_only=False)
        state["init_args"]["configuration"] = "2d"
        torch.save(state, checkpoint)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("classes", "its classes are"),
        ("fold", "fold_all"),
        ("truncated", "damaged"),
        ("code", "no checkpoint of nnU-Net"),
        ("weights", "do not fit the network"),
        ("configuration", "configuration 2d, the study's is 3d_fullres"),
    ],
)
def test_a_model_that_is_not_the_studys_is_refused(copied, tmp_path, capfd, how, says):
    _damage(copied, how)
    with pytest.raises(SegmentationError, match=says):
        adopt_model(tiny_study(), MODEL, copied, tmp_path / "ours")
    assert "never be printed" not in capfd.readouterr().out


def test_a_preprocessed_dataset_is_taken_in_and_trains(dataset, tmp_path):
    source = shutil.copytree(dataset, tmp_path / "elsewhere")
    plans = json.loads((source / "nnUNetPlans.json").read_text())
    (source / "nnUNetPlans.json").unlink()
    (source / "nnUNetResEncUNetMPlans.json").write_text(json.dumps({**plans, "dataset_name": "Dataset777_Other"}))
    facts = adopt_dataset(tiny_study(), ANNOTATOR, source, tmp_path / "ours")
    assert facts.cases == 3
    assert json.loads((tmp_path / "ours/nnUNetPlans.json").read_text())["dataset_name"] == dataset_name(ANNOTATOR)
    study = tiny_study(epochs=1, iterations_per_epoch=1, validation_iterations_per_epoch=1)
    assert train_model(study, MODEL, tmp_path / "ours", tmp_path / "model").epochs == 1


def test_a_dataset_with_a_strangers_case_is_refused(dataset, tmp_path):
    source = shutil.copytree(dataset, tmp_path / "elsewhere")
    (case,) = source.rglob("PHANTOM001.b2nd")
    case.rename(case.with_name("PHANTOM007.b2nd"))
    with pytest.raises(SegmentationError, match="PHANTOM007 are no training patients"):
        adopt_dataset(tiny_study(), ANNOTATOR, source, tmp_path / "ours")
