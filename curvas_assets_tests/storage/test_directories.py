"""Claims proved here.

- A folder comes back as it was, verified, or those of its files that are wanted; unchanged content is neither sent nor fetched
  again.
- What no manifest names goes once nobody has touched it for a day by the store's clock, not before: a writer may be at it.
- A reader whose version is replaced and removed meanwhile has all of the next one, without remains; a writer that stood
  still for half a day sends again what it then announces.
- What is damaged of it, a file or its manifest, is mended by writing it again.
- A reader sees the old folder until the new one is whole; damage is detected; absence is told.
- Tables and records round-trip, NaN included; what is no table or record is told.
- A manifest that names files elsewhere (upwards, absolute, with a drive, through a link), or says no digest, is refused
  before the first file is written; a store in a folder keeps to its folder.
"""

import hashlib
import os
import shutil

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


def test_only_what_is_wanted_of_it_is_fetched_and_the_rest_later(store, folder, tmp_path):
    stored = directories.write_directory(store, "m", folder)
    back, down = tmp_path / "back", store.bytes_down
    version = directories.fetch_directory(store, "m", back, lambda name: not name.startswith("fold_all/"))
    assert version == stored.version
    assert [path.name for path in back.rglob("*")] == ["plans.json"]
    assert store.bytes_down - down < 1000
    assert directories.fetch_directory(store, "m", back) == version
    assert (back / "fold_all" / "checkpoint.pth").read_bytes() == (folder / "fold_all" / "checkpoint.pth").read_bytes()


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
    assert _stand(store) == {first.place, second.place}


def _stand(store) -> set[str]:
    return {item.key.split("/")[1] for item in store.list("m/")} - {"manifest.json"}


def _grow_old(store, place: str, hours: float) -> None:
    for path in (store.objects.folder / "m" / place).rglob("*"):
        then = path.stat().st_mtime - 3600 * hours
        os.utime(path, (then, then))


def test_what_a_killed_writer_left_is_not_seen_and_goes_when_nobody_has_touched_it_for_a_day(store, folder, tmp_path):
    stored = directories.write_directory(store, "m", folder)
    killed = "0123456789abcdef_0123456789ab"
    for name in ("plans.json", "fold_all/checkpoint.pth"):
        store.put(f"m/{killed}/{name}", b"half")
    back = directories.read_directory(store, "m", tmp_path / "back")
    assert (back / "plans.json").read_text() == "{}"
    _grow_old(store, stored.place, 1000)  # how old the current one is does not matter
    _grow_old(store, killed, 23.9)
    assert directories.sweep(store, "m") == 0
    _grow_old(store, killed, 0.2)
    os.utime(store.objects.folder / "m" / killed / "plans.json")  # its writer is not dead
    assert directories.sweep(store, "m") == 0
    _grow_old(store, killed, 24)
    assert directories.sweep(store, "m") == 8
    assert _stand(store) == {stored.place}


def test_writing_again_removes_what_is_old_and_nothing_else(store, folder):
    first = directories.write_directory(store, "m", folder)
    (folder / "plans.json").write_text("{1}")
    second = directories.write_directory(store, "m", folder)
    _grow_old(store, first.place, 25)
    assert directories.write_directory(store, "m", folder).unchanged
    assert _stand(store) == {second.place}
    (folder / "plans.json").write_text("{2}")
    _grow_old(store, second.place, 25)
    third = directories.write_directory(store, "m", folder)
    assert _stand(store) == {third.place}


class Meanwhile(MeteredObjects):
    """A store in which something happens just before the n-th request of a kind."""

    def __init__(self, objects, kind, n, happens):
        super().__init__(objects)
        self.kind, self.left, self.happens = kind, n, happens

    def _pass(self, kind):
        if kind == self.kind:
            self.left -= 1
            if self.left == 0:
                self.happens()

    def upload(self, key, path):
        self._pass("upload")
        super().upload(key, path)

    def put(self, key, content, *, only_if_absent=False):
        self._pass("put")
        return super().put(key, content, only_if_absent=only_if_absent)

    def download(self, key, path):
        self._pass("download")
        super().download(key, path)

    def get_range(self, key, start, length):
        self._pass("get_range")
        return super().get_range(key, start, length)

    def list(self, prefix):
        self._pass("list")
        return super().list(prefix)


@pytest.mark.parametrize("n", [1, 2])
def test_a_reader_whose_version_is_removed_meanwhile_has_all_of_the_next(store, folder, tmp_path, n):
    first = directories.write_directory(store, "m", folder)
    other = tmp_path / "other"
    other.mkdir()
    (other / "plans.json").write_text("{2}")
    (other / "fold_all").write_text("a file where a folder was")

    def replace() -> None:
        _grow_old(store, first.place, 25)
        directories.write_directory(store, "m", other)
        assert first.place not in _stand(store)

    back = directories.read_directory(Meanwhile(store.objects, "download", n, replace), "m", tmp_path / "back")
    assert {p.relative_to(back).as_posix(): p.read_text() for p in back.rglob("*") if p.is_file()} == {
        "plans.json": "{2}",
        "fold_all": "a file where a folder was",
    }


def test_a_file_that_is_gone_is_damage_and_an_artefact_that_is_gone_is_missing(store, folder, tmp_path):
    stored = directories.write_directory(store, "m", folder)
    store.delete([f"m/{stored.place}/plans.json"])
    for read in (
        lambda: directories.read_directory(store, "m", tmp_path / "b"),
        lambda: directories.read_file(store, "m", "plans.json"),
    ):
        with pytest.raises(CorruptArtefactError, match="which is gone"):
            read()
    emptied = Meanwhile(store.objects, "download", 1, lambda: store.delete([i.key for i in store.list("m/")]))
    with pytest.raises(MissingArtefactError):
        directories.read_directory(emptied, "m", tmp_path / "back")


def test_a_writer_that_stood_still_sends_again_what_it_announces(store, folder, tmp_path):
    def asleep() -> None:
        for place in _stand(store):
            _grow_old(store, place, 13)

    slow = Meanwhile(store.objects, "list", 1, asleep)
    stored = directories.write_directory(slow, "m", folder)
    assert slow.bytes_up > 2 * stored.size
    assert len(_stand(store)) == 2
    assert directories.read_directory(store, "m", tmp_path / "back")

    def swept() -> None:
        store.delete([i.key for i in store.list("m/") if i.key.endswith("checkpoint.pth")])

    (folder / "plans.json").write_text("{3}")
    directories.write_directory(Meanwhile(store.objects, "list", 1, swept), "m", folder)
    assert (directories.read_directory(store, "m", tmp_path / "again") / "plans.json").read_text() == "{3}"


def test_two_with_the_same_content_never_share_a_place(store, folder, tmp_path):
    places = []
    racing = Meanwhile(
        store.objects, "put", 1, lambda: places.append(directories.write_directory(store, "m", folder).place)
    )
    places.append(directories.write_directory(racing, "m", folder).place)
    assert len(set(places)) == 2
    directories.remove_place(store, "m", places[0])  # whatever becomes of one
    assert directories.read_directory(store, "m", tmp_path / "back")


def test_a_folder_that_is_replaced_while_it_is_mended_is_written_anew(store, folder, tmp_path):
    stored = directories.write_directory(store, "m", folder)
    store.put(f"m/{stored.place}/plans.json", b"[]")
    other = tmp_path / "other"
    other.mkdir()
    (other / "plans.json").write_text("{2}")
    racing = Meanwhile(store.objects, "upload", 1, lambda: directories.write_directory(store, "m", other))
    assert directories.write_directory(racing, "m", folder).place != stored.place
    assert (directories.read_directory(store, "m", tmp_path / "back") / "plans.json").read_text() == "{}"


@pytest.mark.parametrize("n", [1, 2])
def test_a_version_that_is_removed_while_it_is_verified_is_written_anew(store, folder, tmp_path, n):
    first = directories.write_directory(store, "m", folder)
    other = tmp_path / "other"
    other.mkdir()
    (other / "plans.json").write_text("{2}")

    def replace() -> None:
        _grow_old(store, first.place, 25)
        directories.write_directory(store, "m", other)

    again = directories.write_directory(Meanwhile(store.objects, "get_range", n, replace), "m", folder)
    assert (again.version, again.unchanged) == (first.version, False)
    assert (directories.read_directory(store, "m", tmp_path / "back") / "plans.json").read_text() == "{}"


def test_artefacts_of_before_stand_at_their_version_and_are_read_and_replaced(store, folder, tmp_path):
    manifest = tables.read_json(store, _written(store, folder))
    before = tmp_path / "store" / "before"
    shutil.copytree(tmp_path / "store" / "m" / manifest["place"], before / manifest["version"])
    old = {"version": manifest["version"], "files": manifest["files"]}
    tables.write_json(store, "before/manifest.json", old)
    back = directories.read_directory(store, "before", tmp_path / "back")
    assert (back / "plans.json").read_text() == "{}"
    assert directories.write_directory(store, "before", folder).unchanged
    assert directories.size_of(store, "before") == 10242
    (folder / "plans.json").write_text("{2}")
    directories.write_directory(store, "before", folder)
    assert directories.read_file(store, "before", "plans.json") == b"{2}"


def test_damage_and_absence_are_told(store, folder, tmp_path):
    with pytest.raises(MissingArtefactError):
        directories.read_directory(store, "m", tmp_path / "back")
    stored = directories.write_directory(store, "m", folder)
    store.put(f"m/{stored.place}/plans.json", b"[]")
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
    for name in ("fold_all/checkpoint.pth", "manifest.json"):
        for damage in (lambda content: content.replace(b"a", b"b", 1), lambda content: content[:-9]):
            key = "m/manifest.json" if name == "manifest.json" else f"m/{stored.place}/{name}"
            content = store.get(key)
            assert damage(content) != content
            store.put(key, damage(content))
            stored = directories.write_directory(store, "m", folder)
            assert not stored.unchanged
            back = directories.read_directory(store, "m", tmp_path / f"back-{len(damage(content))}-{name[:3]}")
            assert (back / "fold_all" / "checkpoint.pth").read_bytes() == bytes(range(256)) * 40
    store.delete([f"m/{stored.place}/plans.json"])
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
        {"place": "../../other"},
        {"place": None},
        {"before": ["../.."]},
        {"before": 3},
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
