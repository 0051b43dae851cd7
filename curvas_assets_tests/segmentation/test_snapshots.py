"""Claims proved here.

- Kept epochs: whatever is at hand after an epoch was at hand before it, or is this epoch; never more than is allowed for; enough
  to choose from at any end of a training longer than the number of snapshots.
- Chosen epochs: as many as asked for, distinct, in order, without the published one, in the second half of a training that is
  long enough, each within two strides of its evenly spaced point.
- A training publishes the weights that it had after these epochs, to the bit, without optimizer state; one that stops early
  chooses among the epochs that it ran.
- A training that is killed and resumed, after any epoch, ends with the same snapshots.
- A training without snapshots keeps no weights, and its checkpoints and published folder hold none.
"""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from curvas_assets.segmentation import train_model
from curvas_assets.segmentation.snapshots import chosen_epochs, kept_epochs, most_kept, stride
from curvas_assets.study import ModelId
from curvas_assets_tests.segmentation.conftest import tiny_study

MODEL = ModelId("anno1", 7, "all")


@given(epochs=st.integers(1, 3000), snapshots=st.integers(1, 20))
def test_what_is_at_hand_was_at_hand_before_or_is_the_present_epoch(epochs, snapshots):
    now = kept_epochs(epochs, snapshots)
    assert set(now) <= {*kept_epochs(epochs - 1, snapshots), epochs}
    assert len(now) <= most_kept(snapshots)
    assert len(now) >= min(epochs, snapshots + 1)


@given(data=st.data(), epochs=st.integers(1, 3000), snapshots=st.integers(1, 20))
def test_chosen_epochs_are_distinct_evenly_spaced_and_not_the_published_one(data, epochs, snapshots):
    published = data.draw(st.integers(1, epochs))
    chosen = chosen_epochs(kept_epochs(epochs, snapshots), epochs, published, snapshots)
    assert len(chosen) == min(snapshots, epochs - 1)
    assert chosen == sorted(set(chosen) - {published})
    if epochs >= 2 * (snapshots + 1):
        points = [epochs / 2 * (1 + (k + 0.5) / snapshots) for k in range(snapshots)]
        step = stride(epochs, snapshots)
        assert min(chosen) >= epochs / 2
        assert all(abs(epoch - point) <= 2 * step for epoch, point in zip(chosen, points, strict=True))


def _trained(dataset, folder, resume_from=None, **training):
    """Outcome, and the checkpoint after each epoch."""
    folder.mkdir()
    checkpoints: dict[int, Path] = {}

    def keep(path: Path, epoch: int) -> None:
        checkpoints[epoch + 1] = folder / f"{epoch}.pth"
        checkpoints[epoch + 1].write_bytes(path.read_bytes())

    study = tiny_study(**training)
    outcome = train_model(study, MODEL, dataset, folder / "model", resume_from=resume_from, on_checkpoint=keep)
    return outcome, checkpoints


def _published(folder: Path) -> dict[str, dict]:
    return {path.name: torch.load(path, weights_only=True) for path in sorted((folder / "model/fold_all").iterdir())}


def _same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


SETTINGS = {
    "epochs": 7,
    "iterations_per_epoch": 2,
    "validation_iterations_per_epoch": 1,
    "patience": 100,
    "snapshots": 2,
}


@pytest.fixture(scope="module")
def whole(dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "training"
    return folder, *_trained(dataset, folder, **SETTINGS)


def test_the_weights_after_the_chosen_epochs_are_published_without_optimizer_state(whole):
    folder, outcome, checkpoints = whole
    expected = chosen_epochs(kept_epochs(7, 2), 7, outcome.best_epoch + 1, 2)
    assert list(outcome.snapshots) == expected
    assert len(expected) == 2
    published = _published(folder)
    assert list(published) == ["checkpoint_best.pth", "checkpoint_snapshot1.pth", "checkpoint_snapshot2.pth"]
    for number, epoch in enumerate(expected, 1):
        found = published[f"checkpoint_snapshot{number}.pth"]
        then = torch.load(checkpoints[epoch], weights_only=True)["network_weights"]
        assert _same(found["network_weights"], then)
        assert found["current_epoch"] == epoch
        assert found.keys() == published["checkpoint_best.pth"].keys()
        assert not _same(found["network_weights"], published["checkpoint_best.pth"]["network_weights"])
    assert json.loads((folder / "model/training.json").read_text())["snapshots"] == expected


@pytest.mark.parametrize("epoch", [1, 4, 6, 7])
def test_a_training_that_was_killed_and_resumed_ends_with_the_same_snapshots(dataset, whole, tmp_path, epoch):
    folder, outcome, checkpoints = whole
    resumed, _ = _trained(dataset, tmp_path / "resumed", resume_from=checkpoints[epoch], **SETTINGS)
    assert resumed.resumed_at_epoch == epoch
    assert resumed.snapshots == outcome.snapshots
    before, after = _published(folder), _published(tmp_path / "resumed")
    assert before.keys() == after.keys()
    for name in before:
        assert _same(before[name]["network_weights"], after[name]["network_weights"]), name


def test_one_that_stops_early_chooses_among_the_epochs_that_it_ran(dataset, tmp_path):
    # A learning rate of nearly nothing: the EMA pseudo-Dice wanders and soon finds no better value.
    settings = SETTINGS | {"epochs": 60, "iterations_per_epoch": 1, "patience": 3, "learning_rate": 1e-9}
    outcome, checkpoints = _trained(dataset, tmp_path / "early", **settings)
    assert outcome.epochs < 60
    n = outcome.epochs
    assert list(outcome.snapshots) == chosen_epochs(kept_epochs(n, 2), n, outcome.best_epoch + 1, 2)
    assert len(outcome.snapshots) == 2
    then = torch.load(checkpoints[outcome.snapshots[0]], weights_only=True)["network_weights"]
    assert _same(_published(tmp_path / "early")["checkpoint_snapshot1.pth"]["network_weights"], then)


def test_without_snapshots_nothing_is_kept(dataset, tmp_path):
    outcome, checkpoints = _trained(dataset, tmp_path / "none", **(SETTINGS | {"epochs": 2, "snapshots": 0}))
    assert outcome.snapshots == ()
    assert torch.load(checkpoints[2], weights_only=True)["kept_weights"] == {}
    assert list(_published(tmp_path / "none")) == ["checkpoint_best.pth"]
    assert "snapshots" not in json.loads((tmp_path / "none/model/training.json").read_text())
