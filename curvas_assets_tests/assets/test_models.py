"""Claims proved here.

- The checkpoint of an unfinished training comes back as it was kept, the latest of several, and goes without remains.
- A damaged one is told and not resumed from; the next one kept takes its place.
- One that was kept before there was a manifest is resumed from.
"""

import pytest

from curvas_assets.assets.models import Checkpoints
from curvas_assets.storage.objects import FolderObjects

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
