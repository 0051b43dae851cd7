"""Claims proved here, on a checkpoint that a stock nnU-Net trainer wrote and on a real preprocessed dataset.

- A stock model is taken in: it loads for prediction, without optimizer state, with its curve and its best pseudo-Dice.
- The best checkpoint is taken before the final one. Snapshots that this platform kept come with it; they too must fit the network.
- A model of other classes, of another configuration, without the fold, or whose file is damaged or could run code, is
  refused with what to do.
- So is, at adoption, whatever a prediction could not follow: regions, an ignore label, other values, two channels, another
  reader, cubic resampling, a normalisation, preprocessor or label manager of others, a cascade, axes or statistics missing.
- torch's linear resampling is taken; the voxel order is the reader's, the recorded or the given one, and no two that differ.
- A dataset's own record of its cases' voxel order is taken over; several orders, damaged or incomplete cases, strange labels,
  splits of others and pickles that would run code are refused.
- A preprocessed dataset is taken in under our names and trains; one with a stranger's case is refused.
"""

import json
import pickle
import shutil

import blosc2
import numpy as np
import pytest
import torch

from curvas_assets.errors import SegmentationError
from curvas_assets.segmentation import Predictor, adopt_dataset, adopt_model, train_model
from curvas_assets.segmentation.runtime import dataset_name, nnunet_folders, quiet
from curvas_assets.study import ModelId, Study
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


def test_snapshots_of_this_platform_come_along_and_must_fit_the_network(copied, tmp_path):
    fold = copied / "fold_all"
    state = torch.load(fold / "checkpoint_final.pth", weights_only=False)
    for number in (1, 2, 4):  # what is not numbered without a gap is none of ours
        weights = {name: number * part for name, part in state["network_weights"].items()}
        torch.save(
            {**state, "network_weights": weights, "current_epoch": number}, fold / f"checkpoint_snapshot{number}.pth"
        )
    adopted = adopt_model(tiny_study(), MODEL, copied, tmp_path / "ours")
    assert adopted.snapshots == 2
    names = sorted(path.name for path in (tmp_path / "ours/fold_all").iterdir())
    assert names == ["checkpoint_best.pth", "checkpoint_snapshot1.pth", "checkpoint_snapshot2.pth"]
    second = torch.load(tmp_path / "ours/fold_all/checkpoint_snapshot2.pth", weights_only=True)
    assert second["current_epoch"] == 2
    assert "optimizer_state" not in second
    name, weights = next(iter(state["network_weights"].items()))
    torch.testing.assert_close(second["network_weights"][name], 2 * weights)
    strange = {**state["network_weights"], name: torch.zeros(3)}
    torch.save({**state, "network_weights": strange}, fold / "checkpoint_snapshot1.pth")
    with pytest.raises(SegmentationError, match="its weights do not fit the network"):
        adopt_model(tiny_study(), MODEL, copied, tmp_path / "other")


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


def _edited(folder, name, change):
    """A JSON file of a folder, changed in place."""
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))


def _plan(**parts):
    return "plans.json", lambda plans: plans["configurations"]["3d_fullres"].update(parts)


def _top(**parts):
    return "plans.json", lambda plans: plans.update(parts)


def _told(**parts):
    return "dataset.json", lambda dataset: dataset.update(parts)


LINEAR = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
ORGANS = {"background": 0, "pancreas": 1, "kidney": 2, "liver": 3}
UNFIT = {
    "regions": (_told(labels={"background": 0, "abdomen": [1, 2, 3], "kidney": 2, "liver": 3}), "regions, whose"),
    "an ignore label": (_told(labels={**ORGANS, "ignore": 4}), "with an ignore label"),
    "values with a gap": (_told(labels={**ORGANS, "liver": 5}), "its classes are .*'liver': 5"),
    "another order": (_told(labels={**ORGANS, "kidney": 1, "pancreas": 2}), "its classes are .*'kidney': 1"),
    "nnU-Net 1": (_told(labels={"0": "background", "1": "pancreas"}), "the form of nnU-Net 1"),
    "no classes": (_told(labels=None), "names no classes"),
    "two channels": (_told(channel_names={"0": "CT", "1": "PET"}), "its channels are"),
    "no order": (_told(voxel_order="XYZ"), "voxel_order 'XYZ'"),
    "another reader": (_top(image_reader_writer="Tiff3DIO"), "read images by 'Tiff3DIO'"),
    "no reader": (_top(image_reader_writer=None), "read images by None"),
    "axes": (_top(transpose_forward=[0, 0, 2]), r"transpose axes by \[0, 0, 2\]"),
    "axes back": (_top(transpose_forward=[2, 0, 1], transpose_backward=[2, 0, 1]), "transpose axes by"),
    "another label manager": (_top(label_manager="SigmoidManager"), "by 'SigmoidManager'"),
    "no statistics": (_top(foreground_intensity_properties_per_channel={}), "no statistics of intensities"),
    "cubic": (_plan(resampling_fn_probabilities_kwargs={**LINEAR, "order": 3}), "resample probabilities by"),
    "no resampling": (_plan(resampling_fn_probabilities="no_resampling_hack"), "by no_resampling_hack"),
    "unknown resampling": (
        _plan(resampling_fn_data="resample_by_magic"),
        "resampling function 'resample_by_magic' for data",
    ),
    "unknown normalisation": (
        _plan(normalization_schemes=["MagicNormalization"]),
        "normalisation 'MagicNormalization'",
    ),
    "two normalisations": (_plan(normalization_schemes=["CTNormalization"] * 2), "normalise 2 channels"),
    "another preprocessor": (_plan(preprocessor_name="MagicPreprocessor"), "preprocessor 'MagicPreprocessor'"),
    "a cascade": (_plan(previous_stage="3d_lowres"), "second stage of a cascade, after 3d_lowres"),
    "two axes": (_plan(spacing=[1.0, 1.0]), "with 3 axes"),
    "no spacing": (_plan(spacing=None), "its plans are not whole"),
}


@pytest.mark.parametrize("what", UNFIT)
def test_what_a_prediction_could_not_follow_is_refused_at_adoption(copied, dataset, tmp_path, what):
    (name, change), says = UNFIT[what]
    _edited(copied, name, change)
    with pytest.raises(SegmentationError, match=f"{MODEL}: taking in the model failed: .*{says}"):
        adopt_model(tiny_study(), MODEL, copied, tmp_path / "ours")
    source = shutil.copytree(dataset, tmp_path / "elsewhere")
    _edited(source, name.replace("plans", "nnUNetPlans"), change)
    if what != "no order":  # its cases say which
        with pytest.raises(SegmentationError, match=f"{ANNOTATOR}: taking in the preprocessing failed: .*{says}"):
            adopt_dataset(tiny_study(), ANNOTATOR, source, tmp_path / "our_dataset")


def test_linear_resampling_by_torch_and_other_normalisations_are_taken(copied, tmp_path):
    torch_way = {"is_seg": False, "force_separate_z": None, "memefficient_seg_resampling": False}
    _edited(
        copied,
        *_plan(
            resampling_fn_probabilities="resample_torch_fornnunet",
            resampling_fn_probabilities_kwargs=torch_way,
            normalization_schemes=["ZScoreNormalization"],
        ),
    )
    assert adopt_model(tiny_study(), MODEL, copied, tmp_path / "ours").normalisation == "ZScoreNormalization"


def test_the_voxel_order_is_the_readers_the_recorded_or_the_given_one(copied, tmp_path):
    recorded = adopt_model(tiny_study(), MODEL, copied, tmp_path / "recorded")
    assert recorded.voxel_order == "LPS"
    with pytest.raises(SegmentationError, match=r"voxel_order is RAS, but its dataset.json says voxel_order LPS"):
        adopt_model(tiny_study(), MODEL, copied, tmp_path / "contradicted", voxel_order="RAS")
    _edited(copied, "dataset.json", lambda dataset: dataset.pop("voxel_order"))
    assert adopt_model(tiny_study(), MODEL, copied, tmp_path / "unknown").voxel_order is None
    given = adopt_model(tiny_study(), MODEL, copied, tmp_path / "given", voxel_order="RAI")
    assert given.voxel_order == "RAI"
    assert json.loads((tmp_path / "given/dataset.json").read_text())["voxel_order"] == "RAI"
    with pytest.raises(SegmentationError, match="voxel_order = 'up'"):
        adopt_model(tiny_study(), MODEL, copied, tmp_path / "odd", voxel_order="up")
    _edited(copied, *_top(image_reader_writer="NibabelIOWithReorient"))
    assert adopt_model(tiny_study(), MODEL, copied, tmp_path / "reader").voxel_order == "RAS"
    with pytest.raises(SegmentationError, match="its reader brings every scan into RAS"):
        adopt_model(tiny_study(), MODEL, copied, tmp_path / "against", voxel_order="LPS")


def _cross_validated():
    raw = tiny_study(epochs=1).model_dump(mode="json") | {"sets": {"train": ["001", "002", "003"]}, "folds": [0, 1, 2]}
    return Study.model_validate(raw)


def test_a_model_that_learned_from_whom_it_is_to_predict_is_refused(copied, tmp_path):
    study, model = _cross_validated(), ModelId(ANNOTATOR, 112233, 0)
    (held_out,), (other,) = study.held_out(0), study.held_out(1)
    (copied / "fold_all").rename(copied / "fold_0")
    assert adopt_model(study, model, copied, tmp_path / "untold").unseen.startswith("not known")
    (copied / "fold_0/validation").mkdir()
    (copied / f"fold_0/validation/{other}.nii.gz").touch()
    with pytest.raises(
        SegmentationError, match=rf"fold 0 left out {other} alone; the study also scores {held_out} by it"
    ):
        adopt_model(study, model, copied, tmp_path / "other")
    (copied / f"fold_0/validation/{held_out}.nii.gz").touch()
    assert adopt_model(study, model, copied, tmp_path / "right").unseen == "its fold left out all of them"
    assert adopt_model(study, model, tmp_path / "right", tmp_path / "again").unseen == "its fold left out all of them"
    _edited(tmp_path / "right", "training.json", lambda record: record.update(left_out=[other]))
    with pytest.raises(SegmentationError, match=rf"the study also scores {held_out} by it"):
        adopt_model(study, model, tmp_path / "right", tmp_path / "edited")


def test_so_is_this_platforms_own_model_of_another_study(copied, tmp_path):
    (copied / "training.json").write_text(json.dumps({"trained_on": ["PHANTOM001", "PHANTOM007"]}))
    with pytest.raises(SegmentationError, match=r"learned from PHANTOM007, whom the study scores by it"):
        adopt_model(tiny_study(), MODEL, copied, tmp_path / "leaked")
    raw = tiny_study().model_dump(mode="json")
    fits = Study.model_validate(raw | {"sets": raw["sets"] | {"validation": ["PHANTOM006"]}})
    (copied / "training.json").write_text(json.dumps({"trained_on": ["PHANTOM001", "PHANTOM006"]}))
    with pytest.raises(SegmentationError, match=r"PHANTOM006 of the validation set, on whom what follows .* is fitted"):
        adopt_model(fits, MODEL, copied, tmp_path / "fitted")
    (copied / "training.json").write_text(json.dumps({"trained_on": ["PHANTOM001", "somebody else"]}))
    assert adopt_model(tiny_study(), MODEL, copied, tmp_path / "ours").unseen == "its training.json names none of them"
    kept = json.loads((tmp_path / "ours/training.json").read_text())
    assert kept["trained_on"] == ["PHANTOM001", "somebody else"]


def test_folds_of_a_dataset_from_elsewhere_are_the_cross_validations(dataset, tmp_path):
    study = _cross_validated()
    source = shutil.copytree(dataset, tmp_path / "elsewhere")
    splits = [{"train": ["PHANTOM001", "PHANTOM002"], "val": ["PHANTOM003"]}] * 3
    wrong = next(n for n in range(3) if study.held_out(n) != ["PHANTOM003"])
    (source / "splits_final.json").write_text(json.dumps(splits))
    with pytest.raises(
        SegmentationError, match=rf"split {wrong} of splits_final.json trains on {study.held_out(wrong)[0]}"
    ):
        adopt_dataset(study, ANNOTATOR, source, tmp_path / "ours")
    with pytest.raises(SegmentationError, match=rf"fold {wrong} of the dataset's splits_final.json trains on"):
        train_model(study, ModelId(ANNOTATOR, 112233, wrong), source, tmp_path / "model")
    (source / "splits_final.json").unlink()
    adopt_dataset(study, ANNOTATOR, source, tmp_path / "ours")
    made = json.loads((tmp_path / "ours/splits_final.json").read_text())
    assert [split["val"] for split in made] == [study.held_out(fold) for fold in range(3)]


def test_a_datasets_voxel_order_is_that_of_its_cases(dataset, tmp_path):
    source = shutil.copytree(dataset, tmp_path / "elsewhere")
    _edited(source, "dataset.json", lambda content: content.pop("voxel_order"))
    assert adopt_dataset(tiny_study(), ANNOTATOR, source, tmp_path / "ours").voxel_order == "LPS"
    assert json.loads((tmp_path / "ours/dataset.json").read_text())["voxel_order"] == "LPS"
    (case,) = source.rglob("PHANTOM002.pkl")
    kept = pickle.loads(case.read_bytes())
    kept["sitk_stuff"]["direction"] = (0.0, 0.0, -1.0, -1.0, 0.0, 0.0, 0.0, -1.0, 0.0)
    case.write_bytes(pickle.dumps(kept))
    with pytest.raises(
        SegmentationError, match=r"several voxel orders \(PHANTOM001 LPS, PHANTOM002 [A-Z]{3}, PHANTOM003 LPS\)"
    ):
        adopt_dataset(tiny_study(), ANNOTATOR, source, tmp_path / "mixed")


def _break(source, how):
    (folder,) = (path for path in source.iterdir() if path.is_dir())
    if how == "code":
        (folder / "PHANTOM001.pkl").write_bytes(pickle.dumps({"sitk_stuff": Runs()}))
    elif how == "no properties":
        (folder / "PHANTOM001.pkl").unlink()
    elif how == "no labels":
        (folder / "PHANTOM001_seg.b2nd").unlink()
    elif how == "cut short":
        path = folder / "PHANTOM001.b2nd"
        path.write_bytes(path.read_bytes()[:100])
    elif how == "labels":
        path = folder / "PHANTOM001_seg.b2nd"
        labels = blosc2.open(str(path))[:]
        labels[0, 0, 0, 0] = 7
        path.unlink()
        blosc2.asarray(labels, urlpath=str(path))
    elif how == "splits":
        _edited(source, "splits_final.json", lambda splits: splits[1]["val"].append("PHANTOM007"))
    elif how == "fingerprint":
        _edited(source, "dataset_fingerprint.json", lambda content: content.pop("shapes_after_crop"))


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("code", r"PHANTOM001.pkl is not what nnU-Net writes \(UnpicklingError: it asks for builtins.print\)"),
        ("no properties", r"PHANTOM001.pkl is missing"),
        ("no labels", r"PHANTOM001_seg.b2nd is missing"),
        ("cut short", "PHANTOM001 cannot be read"),
        ("labels", r"PHANTOM001 holds the labels \[7\]"),
        ("splits", "split 1 of splits_final.json"),
        ("fingerprint", "dataset_fingerprint.json is not whole"),
    ],
)
def test_a_dataset_that_would_fail_in_training_is_refused(dataset, tmp_path, capfd, how, says):
    source = shutil.copytree(dataset, tmp_path / "elsewhere")
    _break(source, how)
    with pytest.raises(SegmentationError, match=says):
        adopt_dataset(tiny_study(), ANNOTATOR, source, tmp_path / "ours")
    assert "never be printed" not in capfd.readouterr().out
    assert not (tmp_path / "ours").exists()


def test_a_dataset_without_splits_gets_nnunets_own(dataset, tmp_path):
    source = shutil.copytree(dataset, tmp_path / "elsewhere")
    (source / "splits_final.json").unlink()
    adopt_dataset(tiny_study(), ANNOTATOR, source, tmp_path / "ours")
    assert json.loads((tmp_path / "ours/splits_final.json").read_text()) == json.loads(
        (dataset / "splits_final.json").read_text()
    )
