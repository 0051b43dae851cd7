"""Claims proved here.

- The checkpoint of an unfinished training comes back as it was kept, the latest of several, and goes without remains.
- A damaged one is told and not resumed from; the next one kept takes its place.
- One that was kept before there was a manifest is resumed from.
- A training of many epochs keeps two; one that is resumed removes what the killed one kept. Another training of the same
  model beside it loses nothing, whichever of them ends first.
- A training that ended for the machine's sake gives no verdict on the model; one that ended for its own sake does.
"""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest

from curvas_assets.errors import SegmentationError
from curvas_assets.stages import train
from curvas_assets.stages.checks import StepChecks
from curvas_assets.stages.train import Checkpoints
from curvas_assets.storage.layout import Layout
from curvas_assets.storage.objects import FolderObjects
from curvas_assets.study import load_study

KEY = "artifacts/training/anno1_init1_foldall"


@pytest.fixture
def store(tmp_path):
    return FolderObjects(tmp_path / "store")


def _kept(store, tmp_path, content):
    path = tmp_path / "checkpoint_latest.pth"
    path.write_bytes(content)
    Checkpoints(store, KEY, print).keep(path, 1)


def test_the_latest_checkpoint_comes_back_and_goes_without_remains(store, tmp_path):
    unfinished = Checkpoints(store, KEY, print)
    assert unfinished.fetch(tmp_path / "none") is None
    for content in (b"first", b"second"):
        _kept(store, tmp_path, content)
    path = unfinished.fetch(tmp_path / "back")
    assert path is not None
    assert (path.name, path.read_bytes()) == ("checkpoint_latest.pth", b"second")
    unfinished.remove()
    assert not list(store.list(KEY))


@pytest.mark.parametrize("damaged", ["checkpoint_latest.pth", "manifest.json"])
def test_a_damaged_checkpoint_is_told_and_not_resumed_from(store, tmp_path, damaged):
    _kept(store, tmp_path, b"weights")
    (item,) = [item for item in store.list(KEY) if item.key.endswith(damaged)]
    store.put(item.key, store.get(item.key)[:-1] + b"?")
    told = []
    unfinished = Checkpoints(store, KEY, told.append)
    assert unfinished.fetch(tmp_path / "back") is None
    assert len(told) == 1
    assert "training begins anew" in told[0]
    _kept(store, tmp_path, b"weights")
    path = unfinished.fetch(tmp_path / "back")
    assert path is not None
    assert path.read_bytes() == b"weights"


def test_a_checkpoint_of_before_is_resumed_from(store, tmp_path):
    store.put(f"{KEY}/checkpoint_latest.pth", b"weights")
    path = Checkpoints(store, KEY, print).fetch(tmp_path / "back")
    assert path is not None
    assert path.read_bytes() == b"weights"


def _places(store) -> int:
    return len({item.key.split("/")[3] for item in store.list(KEY)} - {"manifest.json"})


def _resumed(store, tmp_path, name: str) -> tuple[Checkpoints, bytes | None]:
    unfinished = Checkpoints(store, KEY, print)
    path = unfinished.fetch(tmp_path / name)
    return unfinished, path and path.read_bytes()


def _keep(unfinished, tmp_path, content: bytes) -> None:
    path = tmp_path / "checkpoint_latest.pth"
    path.write_bytes(content)
    unfinished.keep(path, 1)


def test_a_training_keeps_two_checkpoints_and_a_resumed_one_ends_without_remains(store, tmp_path):
    killed = Checkpoints(store, KEY, print)
    for content in (b"1", b"2", b"3", b"3", b"4"):
        _keep(killed, tmp_path, content)
        assert _places(store) <= 2
    resumed, content = _resumed(store, tmp_path, "resumed")
    assert content == b"4"
    _keep(resumed, tmp_path, b"5")
    assert _places(store) == 2
    resumed.remove()
    assert not list(store.list(KEY))


def test_two_trainings_of_one_model_lose_nothing_to_each_other(store, tmp_path):
    one, other = Checkpoints(store, KEY, print), Checkpoints(store, KEY, print)
    rng = np.random.default_rng(0)
    for n in range(40):
        writer = (one, other)[rng.integers(2)]
        _keep(writer, tmp_path, f"{n}".encode())
        assert _resumed(store, tmp_path, f"r{n}")[1] == f"{n}".encode()
    _keep(one, tmp_path, b"one")
    _keep(other, tmp_path, b"other")
    one.remove()
    assert _resumed(store, tmp_path, "last")[1] == b"other"
    other.remove()
    assert not list(store.list(KEY))


def test_a_checkpoint_that_its_manifest_names_in_vain_is_told_and_training_begins_anew(store, tmp_path):
    _kept(store, tmp_path, b"weights")
    store.delete([item.key for item in store.list(KEY) if item.key.endswith(".pth")])
    told = []
    assert Checkpoints(store, KEY, told.append).fetch(tmp_path / "back") is None
    assert "which is gone" in told[0]


@pytest.mark.parametrize("may_retry", [True, False])
def test_only_a_training_that_fails_for_its_own_sake_is_unsound(store, tmp_path, monkeypatch, may_retry):
    def fail(*_: object, **__: object) -> None:
        raise SegmentationError("training", "anno1_init112233_foldall", "something", "Do it.", may_retry=may_retry)

    monkeypatch.setattr(train, "train_model", fail)
    monkeypatch.setattr(train.directories, "size_of", lambda *_: 0)
    tools = SimpleNamespace(
        study=load_study("phantom"),
        objects=store,
        layout=Layout(),
        tell=print,
        warn=print,
        scratch=lambda *_: nullcontext(tmp_path),
        device=lambda: nullcontext(None),
    )
    checks = StepChecks(*train.CHECKS)
    dataset = {"anno1": SimpleNamespace(folder=lambda into: into)}
    ((name, outcome),) = train.train_models(tools, ["anno1_init112233_foldall"], checks, preprocessed_dataset=dataset)
    assert isinstance(outcome, SegmentationError)
    assert checks["training_is_sound"].found == ({} if may_retry else {name: ["training failed: something. Do it."]})
