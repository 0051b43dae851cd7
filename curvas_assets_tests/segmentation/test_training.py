"""Claims proved here.

- The same seed gives the same weights to the bit; another seed gives others.
- A training that is killed (SIGKILL) in mid-epoch and resumed elsewhere ends with the weights of an unbroken one, if
  with another number of loader processes.
- Its loader processes, and the server that forked them, end with it.
- A training goes on while a checkpoint is copied away, and ends with the error if that fails.
- A checkpoint of another seed, setting or dataset is refused, and said; a damaged one too.
- Patience counts from the history that the checkpoint carries, so it survives a resume; a finished training is not
  entered again.
- With fold `all` a part of the patients is held out, or it is said that there is none; fold 0 uses nnU-Net's split.
- A fold that the dataset was not split into, or whose patients it does not hold, is refused: nnU-Net would draw one at random.
- A loss that is no number stops the training with an error that says what to change.
- The published model holds no optimizer state and no path, and a stock nnU-Net loads it.
"""

import json
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
import torch

from curvas_assets.errors import SegmentationError, StorageError
from curvas_assets.segmentation import train_model
from curvas_assets.segmentation.trainer import StudyTrainer
from curvas_assets.study import ModelId, Study
from curvas_assets_tests.segmentation import killed_training
from curvas_assets_tests.segmentation.conftest import tiny_study

MODEL = ModelId("anno1", 7, "all")
ROOT = Path(__file__).resolve().parents[2]


def _weights(folder: Path, fold: str = "all") -> dict[str, torch.Tensor]:
    return torch.load(folder / f"fold_{fold}" / "checkpoint_best.pth", weights_only=True)["network_weights"]


def _equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def unbroken(dataset, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken") / "model"
    train_model(tiny_study(), MODEL, dataset, folder)
    return folder


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(dataset, unbroken, tmp_path):
    outcome = train_model(tiny_study(), MODEL, dataset, tmp_path / "again")
    assert _equal(_weights(unbroken), _weights(tmp_path / "again"))
    assert outcome.epochs == 3
    assert outcome.resumed_at_epoch is None
    assert list(outcome.curve["epoch"]) == [0, 1, 2]
    train_model(tiny_study(), ModelId("anno1", 8, "all"), dataset, tmp_path / "other")
    assert not _equal(_weights(unbroken), _weights(tmp_path / "other"))


def test_a_killed_training_resumes_elsewhere_and_ends_like_an_unbroken_one(dataset, unbroken, tmp_path):
    study_file = tmp_path / "study.json"
    study_file.write_text(tiny_study(loader_workers=1).model_dump_json())
    checkpoint = tmp_path / "kept.pth"
    command = [sys.executable, "-m", killed_training.__name__, str(study_file), str(dataset)]
    (tmp_path / "here").mkdir()
    with subprocess.Popen(
        [*command, str(tmp_path / "here" / "model"), str(checkpoint)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout.readline().strip() == "0"
        started = psutil.Process(first.pid).children(recursive=True)
        assert len(started) >= 2
        first.send_signal(signal.SIGKILL)
    assert first.returncode == -signal.SIGKILL
    _, left = psutil.wait_procs(started, timeout=60)
    assert not [process for process in left if process.status() != psutil.STATUS_ZOMBIE]
    assert not (tmp_path / "here" / "model").exists()

    (tmp_path / "elsewhere").mkdir()
    folder = tmp_path / "elsewhere" / "model"
    resumed = train_model(tiny_study(), MODEL, dataset, folder, resume_from=checkpoint)
    assert resumed.resumed_at_epoch in (1, 2)
    assert resumed.epochs == 3
    assert _equal(_weights(unbroken), _weights(folder))


def _checkpoint(dataset, tmp_path, **training) -> Path:
    kept = tmp_path / "kept.pth"
    train_model(
        tiny_study(**training),
        MODEL,
        dataset,
        tmp_path / "source",
        on_checkpoint=lambda path, epoch: kept.write_bytes(path.read_bytes()),
    )
    return kept


def test_a_checkpoint_of_another_training_is_refused(dataset, tmp_path):
    kept = _checkpoint(dataset, tmp_path, epochs=1)
    seed = train_model(tiny_study(epochs=1), ModelId("anno1", 8, "all"), dataset, tmp_path / "a", resume_from=kept)
    setting = train_model(tiny_study(epochs=1, learning_rate=0.02), MODEL, dataset, tmp_path / "b", resume_from=kept)
    for outcome in (seed, setting):
        assert outcome.resumed_at_epoch is None
        assert outcome.refused_checkpoint == "the checkpoint is of another model, dataset or setting"
    kept.write_bytes(kept.read_bytes()[:1000])
    damaged = train_model(tiny_study(epochs=1), MODEL, dataset, tmp_path / "c", resume_from=kept)
    assert "cannot be read" in damaged.refused_checkpoint


def test_a_training_goes_on_while_a_checkpoint_is_copied_away(dataset, tmp_path, monkeypatch):
    next_epoch, waited = threading.Event(), []
    step = StudyTrainer.train_step

    def train_step(self, batch):
        if self.current_epoch == 1:
            next_epoch.set()
        return step(self, batch)

    monkeypatch.setattr(StudyTrainer, "train_step", train_step)
    train_model(
        tiny_study(epochs=2),
        MODEL,
        dataset,
        tmp_path / "model",
        on_checkpoint=lambda path, epoch: waited.append((epoch, next_epoch.wait(60), path.exists())),
    )
    assert waited == [(0, True, True), (1, True, True)]


def test_a_checkpoint_that_cannot_be_copied_away_ends_the_training(dataset, tmp_path):
    def refuse(path: Path, epoch: int) -> None:
        raise StorageError("storing the checkpoint", "anno1_init7_foldall", f"epoch {epoch}", "Look.", may_retry=True)

    with pytest.raises(StorageError, match="storing the checkpoint failed: epoch 0"):
        train_model(tiny_study(epochs=3), MODEL, dataset, tmp_path / "model", on_checkpoint=refuse)
    assert not (tmp_path / "model").exists()


def test_patience_survives_a_resume_and_a_finished_training_is_not_entered_again(dataset, tmp_path):
    # A learning rate of nearly nothing: the EMA pseudo-Dice wanders and soon finds no better value.
    settings = {
        "epochs": 60,
        "patience": 2,
        "iterations_per_epoch": 1,
        "validation_iterations_per_epoch": 1,
        "learning_rate": 1e-9,
    }
    study, checkpoints = tiny_study(**settings), []

    def keep(path: Path, epoch: int) -> None:
        checkpoints.append(tmp_path / f"{epoch}.pth")
        checkpoints[-1].write_bytes(path.read_bytes())

    whole = train_model(study, MODEL, dataset, tmp_path / "whole", on_checkpoint=keep)
    assert whole.epochs < 60
    assert whole.stopped_because.startswith("no better EMA pseudo-Dice for 2 epochs")
    assert whole.epochs - 1 - whole.best_epoch == 2
    resumed = train_model(study, MODEL, dataset, tmp_path / "resumed", resume_from=checkpoints[-2])
    assert (resumed.epochs, resumed.best_epoch) == (whole.epochs, whole.best_epoch)
    finished = train_model(study, MODEL, dataset, tmp_path / "finished", resume_from=checkpoints[-1])
    assert (finished.epochs, finished.resumed_at_epoch) == (whole.epochs, whole.epochs)
    assert _equal(_weights(tmp_path / "whole"), _weights(tmp_path / "finished"))


def test_what_stopping_is_decided_on_is_held_out_or_said(dataset, tmp_path):
    held_out = train_model(tiny_study(epochs=1), MODEL, dataset, tmp_path / "a")
    assert "held-out patients PHANTOM00" in held_out.stopped_because
    nothing = train_model(tiny_study(epochs=1, held_out_fraction=0), MODEL, dataset, tmp_path / "b")
    assert "the training patients themselves" in nothing.stopped_because
    train_model(tiny_study(epochs=1), ModelId("anno1", 7, 0), dataset, tmp_path / "c")
    record = json.loads((tmp_path / "c" / "training.json").read_text())
    splits = json.loads((dataset / "splits_final.json").read_text())
    assert record["held_out"] == splits[0]["val"]
    assert (tmp_path / "c" / "fold_0" / "checkpoint_best.pth").exists()


def test_under_cross_validation_nothing_is_chosen_on_the_patients_that_are_scored(dataset, tmp_path):
    raw = tiny_study(epochs=1).model_dump(mode="json") | {"sets": {"train": ["001", "002", "003"]}, "folds": [0, 1, 2]}
    study = Study.model_validate(raw)
    model = ModelId("anno1", 7, 0)
    stopped = train_model(study, model, dataset, tmp_path / "model").stopped_because
    record = json.loads((tmp_path / "model" / "training.json").read_text())
    (scored,) = study.held_out(0)
    assert scored not in record["held_out"]
    assert scored not in stopped


def test_a_loss_that_is_no_number_stops_with_what_to_change(dataset, tmp_path):
    study = tiny_study(optimizer="sgd")
    training = study.training.model_copy(update={"learning_rate": 1e30})  # no study file may say so
    with pytest.raises(SegmentationError, match=r"loss is nan.*Lower training.learning_rate"):
        train_model(study.model_copy(update={"training": training}), MODEL, dataset, tmp_path / "model")


def test_the_published_model_is_small_without_paths_and_loads_in_a_stock_nnunet(dataset, unbroken, scans):
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    checkpoint = torch.load(unbroken / "fold_all" / "checkpoint_best.pth", weights_only=True)
    assert "optimizer_state" not in checkpoint
    assert checkpoint["trainer_name"] == "nnUNetTrainer"
    for path in unbroken.rglob("*"):
        if path.is_file():
            assert str(dataset).encode() not in path.read_bytes()
            assert str(unbroken).encode() not in path.read_bytes()
    predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(
        str(unbroken), use_folds=("all",), checkpoint_name="checkpoint_best.pth"
    )
    assert _equal(dict(predictor.list_of_parameters[0]), checkpoint["network_weights"])


@pytest.mark.parametrize(
    ("splits", "says"),
    [
        ("own", "split into 3 folds, counted from 0, and fold 3 is none of them"),
        (None, "splits_final.json is missing"),
        ([{"train": ["PHANTOM001"]}] * 4, "splits_final.json is missing or not nnU-Net's"),
        ([{"train": ["PHANTOM001"], "val": ["PHANTOM009"]}] * 4, "fold 3 names PHANTOM009"),
    ],
)
def test_a_fold_that_the_dataset_does_not_have_is_refused(dataset, tmp_path, splits, says):
    source = shutil.copytree(dataset, tmp_path / "dataset")
    if splits is None:
        (source / "splits_final.json").unlink()
    elif splits != "own":
        (source / "splits_final.json").write_text(json.dumps(splits))
    with pytest.raises(SegmentationError, match=f"anno1_init7_fold3: training failed: .*{says}"):
        train_model(tiny_study(), ModelId("anno1", 7, 3), source, tmp_path / "model")
    assert not (tmp_path / "model").exists()
