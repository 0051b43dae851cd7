"""Claims proved here.

- A folder comes back as it was, verified; unchanged content is neither sent nor fetched again; older versions are swept.
- What is damaged of it, a file or its manifest, is mended by writing it again.
- A reader sees the old folder until the new one is whole; damage is detected; absence is told.
- Tables and records round-trip, NaN included; what is no table or record is told.
- A manifest that names files elsewhere (upwards, absolute, with a drive, through a link), or says no digest, is refused
  before the first file is written; a store in a folder keeps to its folder.
"""

import hashlib

import numpy as np
import pandas as pd
import pytest

from curvas_assets.errors import CorruptArtefactError, MissingArtefactError, UnsafeNameError
from curvas_assets.storage import directories, tables
from curvas_assets.storage.metering import MeteredObjects
from curvas_assets.storage.objects import FolderObjects


@pytest.fixture
def store(tmp_path):
    return MeteredObjects(FolderObjects(tmp_path / "store"))


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "model"
    (folder / "fold_all").mkdir(parents=True)
    (folder / "plans.json").write_text("{}")
    (folder / "fold_all" / "checkpoint.pth").write_bytes(bytes(range(256)) * 40)
    return folder


def test_a_folder_comes_back_as_it_was(store, folder, tmp_path):
    stored = directories.write_directory(store, "models/m", folder)
    assert (stored.files, stored.size, stored.unchanged) == (2, 10242, False)
    back = directories.read_directory(store, "models/m", tmp_path / "back")
    assert {p.relative_to(back).as_posix(): p.read_bytes() for p in back.rglob("*") if p.is_file()} == {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }
    assert directories.read_file(store, "models/m", "plans.json") == b"{}"


def test_unchanged_content_is_neither_sent_nor_fetched_again(store, folder, tmp_path):
    first = directories.write_directory(store, "m", folder)
    up = store.bytes_up
    assert directories.write_directory(store, "m", folder).unchanged
    assert store.bytes_up == up
    directories.read_directory(store, "m", tmp_path / "back")
    down = store.bytes_down
    directories.read_directory(store, "m", tmp_path / "back")
    assert store.bytes_down - down < 1000  # the manifest
    (folder / "plans.json").write_text("{1}")
    second = directories.write_directory(store, "m", folder)
    assert second.version != first.version
    assert not list(store.list(f"m/{first.version}/"))


def test_what_a_killed_writer_left_is_not_seen_and_is_swept(store, folder, tmp_path):
    stored = directories.write_directory(store, "m", folder)
    store.put("m/0123456789abcdef/plans.json", b"half")
    back = directories.read_directory(store, "m", tmp_path / "back")
    assert (back / "plans.json").read_text() == "{}"
    assert directories.sweep(store, "m") == 4
    assert {item.key.split("/")[1] for item in store.list("m/")} == {stored.version, "manifest.json"}


def test_damage_and_absence_are_told(store, folder, tmp_path):
    with pytest.raises(MissingArtefactError):
        directories.read_directory(store, "m", tmp_path / "back")
    stored = directories.write_directory(store, "m", folder)
    store.put(f"m/{stored.version}/plans.json", b"[]")
    with pytest.raises(CorruptArtefactError, match="SHA-256"):
        directories.read_directory(store, "m", tmp_path / "back")
    with pytest.raises(CorruptArtefactError, match=r"it holds fold_all/checkpoint\.pth, plans\.json"):
        directories.read_file(store, "m", "other")
    store.put("m/manifest.json", b"[]")
    with pytest.raises(CorruptArtefactError):
        directories.read_file(store, "m", "plans.json")


def test_tables_and_records_round_trip(store):
    table = pd.DataFrame({"patient": ["P1", "P2"], "value": [0.5, np.nan], "note": ["", "empty"]})
    tables.write_table(store, "t.parquet", table)
    pd.testing.assert_frame_equal(tables.read_table(store, "t.parquet"), table, check_dtype=False)
    version = tables.write_json(store, "r.json", {"b": np.float32(1.5), "a": [np.int64(2), np.nan], "c": np.eye(2)})
    assert tables.read_json(store, "r.json") == {"a": [2, None], "b": 1.5, "c": [[1, 0], [0, 1]]}
    assert tables.write_json(store, "r.json", {"a": [2, None], "b": 1.5, "c": np.eye(2)}) == version
    store.put("t.parquet", b"PAR1 no")
    store.put("r.json", b"{")
    with pytest.raises(CorruptArtefactError):
        tables.read_table(store, "t.parquet")
    with pytest.raises(CorruptArtefactError):
        tables.read_json(store, "r.json")
    store.put("r.json", b"[1]")
    with pytest.raises(CorruptArtefactError):
        tables.read_json(store, "r.json")


def test_what_is_damaged_is_mended_by_writing_it_again(store, folder, tmp_path):
    stored = directories.write_directory(store, "m", folder)
    for key in (f"m/{stored.version}/fold_all/checkpoint.pth", "m/manifest.json"):
        content = store.get(key)
        for damaged in (content.replace(b"a", b"b", 1), content[:-9]):
            assert damaged != content
            store.put(key, damaged)
            assert not directories.write_directory(store, "m", folder).unchanged
            assert store.get(key) == content
    store.delete([f"m/{stored.version}/plans.json"])
    before = store.bytes_up
    assert not directories.write_directory(store, "m", folder).unchanged
    assert store.bytes_up - before < 1000  # the file that was gone, and the manifest
    assert (directories.read_directory(store, "m", tmp_path / "back") / "plans.json").read_text() == "{}"


OUTSIDE = [
    *(
        "../evil",
        "../../evil",
        "a/../../evil",
        "/evil",
        "/tmp/evil",
        "//evil",
        "./evil",
        "a//evil",
        "a/",
        "",
        ".",
        "..",
    ),
    *("C:/evil", "C:evil", "..\\evil", "a\\..\\evil", "a\0evil", "plans.json/evil"),
]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_manifest_that_names_files_elsewhere_is_refused_before_the_first_is_written(store, folder, tmp_path, name):
    content = b"#!/bin/sh"
    manifest = tables.read_json(store, _written(store, folder))
    evil = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    tables.write_json(store, "m/manifest.json", {**manifest, "files": {**manifest["files"], name: evil}})
    (tmp_path / "deep" / "back").mkdir(parents=True)
    before = sorted(path for path in tmp_path.rglob("*"))
    with pytest.raises(CorruptArtefactError, match="it names"):
        directories.read_directory(store, "m", tmp_path / "deep" / "back")
    with pytest.raises(CorruptArtefactError, match="it names"):
        directories.read_file(store, "m", name)
    assert sorted(path for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "change",
    [
        {"version": "../../other"},
        {"version": ""},
        {"files": {"plans.json": {"size": 2}}},
        {"files": {"plans.json": "x"}},
        {"files": ["plans.json"]},
    ],
)
def test_a_manifest_of_another_make_is_told(store, folder, tmp_path, change):
    manifest = tables.read_json(store, _written(store, folder))
    tables.write_json(store, "m/manifest.json", {**manifest, **change})
    with pytest.raises(CorruptArtefactError, match="reading a manifest"):
        directories.read_directory(store, "m", tmp_path / "back")


def test_a_link_that_leads_elsewhere_is_not_followed(store, folder, tmp_path):
    _written(store, folder)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "back").mkdir()
    (tmp_path / "back" / "fold_all").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnsafeNameError, match=r"fold_all/checkpoint\.pth.* leads out of the folder"):
        directories.read_directory(store, "m", tmp_path / "back")
    assert list((tmp_path / "elsewhere").iterdir()) == []
    (tmp_path / "back" / "fold_all").unlink()
    (tmp_path / "here").symlink_to(tmp_path / "back")  # the folder itself may be reached by a link
    assert (directories.read_directory(store, "m", tmp_path / "here") / "plans.json").read_text() == "{}"


def test_a_store_in_a_folder_keeps_to_it(tmp_path):
    store = FolderObjects(tmp_path / "store")
    for use in (store.get, store.head, lambda key: store.put(key, b"x"), lambda key: store.delete([key])):
        with pytest.raises(UnsafeNameError):
            use("../outside")
    assert list(tmp_path.iterdir()) == []


def _written(store, folder) -> str:
    directories.write_directory(store, "m", folder)
    return "m/manifest.json"
