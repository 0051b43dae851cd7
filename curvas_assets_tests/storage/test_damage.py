"""Claims proved here.

- Whatever byte of whatever stored object is another, missing, or one too many: reading raises a CorruptArtefactError or
  returns exactly what was written. So of records, tables, folders, maps, volumes and single files.
- Damage of one transfer goes unnoticed: the object is read again. Damage of every transfer is told as that, to be tried
  again; only what is stored damaged is to be materialised again.
- Artefacts of before, which have no digest, are read as they are.
- The digest changes neither data versions nor what pandas, json and zarr read.
"""

import hashlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from curvas_assets.errors import CorruptArtefactError, StorageError
from curvas_assets.geometry import Grid
from curvas_assets.storage import (
    SoftmaxVolume,
    SoftmaxWriter,
    directories,
    open_softmax,
    read_softmax,
    tables,
    write_softmax,
)
from curvas_assets.storage.digests import RECORD_DIGEST, TABLE_DIGEST, opened_table
from curvas_assets.storage.maps import MapWriter, download_map
from curvas_assets.storage.objects import FolderObjects

RECORD = {"patient": "P1", "facts": {"shape": [1, 2, 3], "hu_range": [-1000.5, 1.0]}, "reader": "Zoë", "group": None}
TABLE = pd.DataFrame({"patient": ["P1", "P2", "P3"], "value": [0.5, np.nan, 2.0], "note": ["", "empty", "é"]})
AFFINE = np.diag([-1.0, -2.0, 3.0, 1.0])


def _softmax() -> np.ndarray:
    p = np.random.default_rng(0).random((3, 20, 12, 13))
    return p / p.sum(axis=0)


class Artefacts:
    """One small artefact of every kind in a folder, and how each is read."""

    def __init__(self, root: Path):
        self.root, self.store = root, FolderObjects(root / "store")
        tables.write_json(self.store, "scan.json", RECORD)
        tables.write_table(self.store, "scores.parquet", TABLE)
        tables.write_table(self.store, "empty.parquet", TABLE.iloc[:0])
        (root / "model" / "fold_all").mkdir(parents=True)
        (root / "model" / "plans.json").write_bytes(b"{}")
        (root / "model" / "fold_all" / "checkpoint.pth").write_bytes(bytes(range(60)))
        directories.write_directory(self.store, "model", root / "model")
        labels = np.random.default_rng(1).integers(0, 4, (5, 6, 7)).astype(np.uint8)
        with MapWriter(self.store, "labels.nii.gz", Grid((5, 6, 7), AFFINE), kind="labels") as writer:
            writer.write(0, labels)
        p = _softmax()
        with SoftmaxWriter(
            self.store,
            "softmax.zarr",
            Grid((20, 12, 13), AFFINE),
            class_names=["background", "liver", "kidney"],
            provenance={"patient": "P1"},
        ) as volume:
            volume.write(0, p)
        write_softmax(root / "store" / "single.zip", p, provenance={"patient": "P1"})
        self.reads: dict[str, Callable[[], Any]] = {
            "scan.json": lambda: repr(tables.read_json(self.store, "scan.json")),
            "scores.parquet": lambda: _content(tables.read_table(self.store, "scores.parquet")),
            "empty.parquet": lambda: _content(tables.read_table(self.store, "empty.parquet")),
            "model": self._model,
            "labels.nii.gz": self._map,
            "softmax.zarr": lambda: _facts(open_softmax(self.store, "softmax.zarr")),
            "single.zip": lambda: _facts(read_softmax(root / "store" / "single.zip")),
        }
        self.paths = {path: path.read_bytes() for path in sorted((root / "store").rglob("*")) if path.is_file()}
        self.right = {kind: read() for kind, read in self.reads.items()}

    def kind(self, path: Path) -> str:
        return path.relative_to(self.root / "store").parts[0]

    def _model(self) -> dict[str, bytes]:
        with tempfile.TemporaryDirectory() as folder:
            directories.read_directory(self.store, "model", Path(folder))
            return {p.relative_to(folder).as_posix(): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}

    def _map(self) -> tuple[bytes, str, bytes]:
        image = nib.Nifti1Image.from_filename(download_map(self.store, "labels.nii.gz", self.root / "map.nii.gz"))
        return np.asarray(image.dataobj).tobytes(), repr(image.affine), image.header.binaryblock


def _content(table: pd.DataFrame) -> tuple[str, str]:
    return table.to_json(), repr((table.dtypes.to_dict(), table.index))


def _facts(volume: SoftmaxVolume) -> tuple[Any, ...]:
    return (
        *(volume.shape, volume.class_names, volume.grid.spacing_mm, volume.grid.affine.tobytes(), volume.provenance),
        *(volume.fullest_slice, volume.version, volume.slab(0, 20).tobytes(), volume.labels(3, 9).tobytes()),
    )


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory):
    return Artefacts(tmp_path_factory.mktemp("artefacts"))


def _reads_right_or_raises(artefacts: Artefacts, path: Path, content: bytes) -> bool:
    """Whether reading raised; what it returned is compared."""
    kind = artefacts.kind(path)
    path.write_bytes(content)
    try:
        found = artefacts.reads[kind]()
    except StorageError:
        return True
    finally:
        path.write_bytes(artefacts.paths[path])
    assert found == artefacts.right[kind]
    return False


@settings(max_examples=300)
@given(st.data())
def test_a_changed_byte_never_changes_what_is_read(artefacts, data):
    path = data.draw(st.sampled_from(sorted(artefacts.paths)))
    content = artefacts.paths[path]
    at = data.draw(st.integers(0, len(content) - 1))
    other = data.draw(st.integers(1, 255)) ^ content[at]
    _reads_right_or_raises(artefacts, path, content[:at] + bytes([other]) + content[at + 1 :])


def test_every_byte_of_a_record_and_of_a_manifest_counts(artefacts):
    for name in ("scan.json", "model/manifest.json"):
        path = artefacts.root / "store" / name
        content = artefacts.paths[path]
        for at in range(len(content)):
            changed = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
            if not _reads_right_or_raises(artefacts, path, changed):
                assert chr(content[at]).isspace()


@settings(max_examples=150)
@given(st.data())
def test_neither_does_a_gap_a_lost_end_or_more_than_was_written(artefacts, data):
    path = data.draw(st.sampled_from(sorted(artefacts.paths)))
    content = artefacts.paths[path]
    begin, end = sorted(data.draw(st.tuples(*[st.integers(0, len(content))] * 2)))
    how = data.draw(st.sampled_from(["zeros", "cut out", "cut off", "more"]))
    changed = {
        "zeros": content[:begin] + bytes(end - begin) + content[end:],
        "cut out": content[:begin] + content[end:],
        "cut off": content[:begin],
        "more": content + content[begin:end],
    }[how]
    _reads_right_or_raises(artefacts, path, changed)


class DamagedOnItsWay(FolderObjects):
    """A store whose first transfers arrive with one byte changed, another at each."""

    def __init__(self, folder: Path, times: int):
        super().__init__(folder)
        self.left = times

    def get(self, key: str) -> bytes:
        return self._damaged(super().get(key))

    def get_range(self, key: str, start: int, length: int) -> bytes:
        return self._damaged(super().get_range(key, start, length))

    def download(self, key: str, path: Path) -> None:
        super().download(key, path)
        Path(path).write_bytes(self._damaged(Path(path).read_bytes()))

    def _damaged(self, content: bytes) -> bytes:
        if self.left == 0:
            return content
        self.left -= 1
        at = (7 * self.left) % min(len(content), 40)
        return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize("kind", ["scan.json", "scores.parquet", "model", "labels.nii.gz", "softmax.zarr"])
def test_a_damaged_transfer_is_read_again_and_lasting_damage_of_the_way_is_told_as_that(artefacts, kind, monkeypatch):
    monkeypatch.setattr(artefacts, "store", DamagedOnItsWay(artefacts.root / "store", 2))
    assert artefacts.reads[kind]() == artefacts.right[kind]
    monkeypatch.setattr(artefacts, "store", DamagedOnItsWay(artefacts.root / "store", 10_000))
    with pytest.raises(StorageError, match=r"different contents, none as it was written") as told:
        artefacts.reads[kind]()
    assert told.value.may_retry
    assert "Materialise" not in str(told.value)


def test_what_is_stored_damaged_is_to_be_materialised_again(artefacts):
    path = artefacts.root / "store" / "scan.json"
    path.write_bytes(artefacts.paths[path].replace(b"-1000.5", b"-1001.5"))
    try:
        with pytest.raises(
            CorruptArtefactError, match=r"it is not what its SHA-256 says.*Materialise it again"
        ) as told:
            tables.read_json(artefacts.store, "scan.json")
    finally:
        path.write_bytes(artefacts.paths[path])
    assert not told.value.may_retry


def test_artefacts_of_before_are_read_as_they_are(tmp_path):
    store = FolderObjects(tmp_path)
    before = json.dumps(RECORD, sort_keys=True, indent=1, ensure_ascii=False).encode()
    store.put("scan.json", before)
    assert tables.read_json(store, "scan.json") == RECORD
    TABLE.to_parquet(tmp_path / "t.parquet", index=False, compression="zstd")
    pd.testing.assert_frame_equal(tables.read_table(store, "t.parquet"), TABLE)
    assert tables.write_json(store, "new.json", RECORD) == hashlib.sha256(before).hexdigest()[:16]


def test_other_readers_read_what_carries_a_digest(artefacts):
    store = artefacts.root / "store"
    plain = json.loads((store / "scan.json").read_text(encoding="utf-8"))
    assert plain.pop(RECORD_DIGEST)
    assert plain == RECORD
    assert TABLE_DIGEST in (store / "scores.parquet").read_bytes()
    pd.testing.assert_frame_equal(pd.read_parquet(store / "scores.parquet"), TABLE)
    assert TABLE_DIGEST not in opened_table((store / "scores.parquet").read_bytes())
    group: Any = zarr.open_group(store / "softmax.zarr", mode="r")
    assert group[group.attrs["current"]].shape == (2, 20, 12, 13)
