"""Claims proved here, on a real S3 server and on a folder.

- Objects, ranges, heads, lists and deletions behave the same on both.
- A conditional write has one winner in a race.
- Large files go in parts and come back whole; listings go beyond one page.
- A wrong key, a missing bucket and an unreachable endpoint are one clear line each, before any work.
- The reader's identity cannot write.
- Artefacts of every kind round-trip through S3.
- A disk that fills up during a download is told as one.
"""

import errno
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from curvas_assets.errors import DiskError, MissingArtefactError, StorageError
from curvas_assets.geometry import Grid
from curvas_assets.storage import directories
from curvas_assets.storage.connection import S3Settings, check, connect
from curvas_assets.storage.objects import FolderObjects
from curvas_assets.storage.softmax import SoftmaxWriter, open_softmax


@pytest.fixture(params=["s3", "folder"])
def store(request, s3_store, tmp_path):
    return s3_store if request.param == "s3" else FolderObjects(tmp_path / "store")


def test_objects_behave_the_same_on_s3_and_in_a_folder(store, tmp_path):
    assert store.put("a/one", b"hello")
    assert not store.put("a/one", b"other", only_if_absent=True)
    assert store.put("a/two", memoryview(b"more"), only_if_absent=True)
    assert store.get("a/one") == b"hello"
    assert store.get_range("a/one", 1, 3) == b"ell"
    assert store.get_range("a/one", 3, 99) == b"lo"
    assert [(item.key, item.size) for item in store.list("a/")] == [("a/one", 5), ("a/two", 4)]
    before = store.head("a/one")
    store.put("a/one", b"world")
    assert store.head("a/one").tag != before.tag
    store.download("a/one", tmp_path / "deep" / "one")
    assert (tmp_path / "deep" / "one").read_bytes() == b"world"
    store.delete(["a/one", "a/never"])
    assert store.head("a/one") is None
    for read in (
        lambda: store.get("a/one"),
        lambda: store.get_range("a/one", 0, 1),
        lambda: store.download("a/one", tmp_path / "x"),
    ):
        with pytest.raises(MissingArtefactError, match="a/one"):
            read()
    assert not (tmp_path / "x").exists()


def test_a_conditional_write_has_one_winner(s3_store):
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda i: s3_store.put("race", str(i).encode(), only_if_absent=True), range(8)))
    assert won.count(True) == 1
    assert s3_store.get("race") == str(won.index(True)).encode()


def test_large_files_go_in_parts_and_listings_beyond_a_page(s3_store, tmp_path):
    content = np.random.default_rng(0).bytes(20_000_000)
    (tmp_path / "large").write_bytes(content)
    s3_store.upload("large", tmp_path / "large")
    assert "-" in s3_store.head("large").tag  # how S3 marks an object made of parts
    s3_store.download("large", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == content
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: s3_store.put(f"many/{i:04d}", b"x"), range(1005)))
    assert [item.key for item in s3_store.list("many/")] == [f"many/{i:04d}" for i in range(1005)]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "refused the key"),
        ({"AWS_ACCESS_KEY_ID": "wrong"}, "refused the key"),
        ({"S3_BUCKET": "no-such-bucket"}, "there is no bucket 'no-such-bucket'"),
        ({"S3_ENDPOINT": "127.0.0.1:9"}, "Could not connect"),
    ],
)
def test_what_is_wrong_with_the_store_is_one_clear_line(bucket_environment, change, found):
    start = time.monotonic()
    with pytest.raises(StorageError, match=found) as error:
        check(connect(S3Settings.from_environment({**bucket_environment, **change})))
    assert "\n" not in str(error.value)
    assert time.monotonic() - start < 10


def test_a_store_that_is_right_passes_the_check(s3_store):
    check(s3_store)


def test_the_readers_identity_reads_and_cannot_write(s3_server, s3_store, bucket_environment):
    s3_store.put("a", b"1")
    reader = connect(
        S3Settings.from_environment(
            {**s3_server.environment(reader=True), "S3_BUCKET": bucket_environment["S3_BUCKET"]}
        )
    )
    assert reader.get("a") == b"1"
    with pytest.raises(StorageError, match="refused the key"):
        reader.put("b", b"2")


def test_volumes_and_directories_round_trip(s3_store, tmp_path):
    p = np.random.default_rng(0).random((4, 35, 40, 41))
    softmax = p / p.sum(axis=0)
    with SoftmaxWriter(s3_store, "v", Grid.with_voxels(softmax.shape[1:], (1, 1, 1)), class_names="abcd") as writer:
        writer.write(0, softmax)
    volume = open_softmax(s3_store, "v")
    np.testing.assert_array_equal(volume.labels(3, 33), softmax[:, 3:33].argmax(axis=0))
    volume.verify()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "file").write_bytes(b"content")
    directories.write_directory(s3_store, "d", tmp_path / "in")
    assert (directories.read_directory(s3_store, "d", tmp_path / "out") / "file").read_bytes() == b"content"


def test_a_disk_that_fills_up_during_a_download_is_told_and_leaves_no_file(s3_store, tmp_path, monkeypatch):
    content, write = random.Random(1).randbytes(3000), os.pwrite
    s3_store.put("some/file", content)
    monkeypatch.setattr(os, "pwrite", lambda file, part, at: write(file, part[:700], at))  # it takes a part at a time
    s3_store.download("some/file", tmp_path / "there")
    assert (tmp_path / "there").read_bytes() == content

    def full(file, part, at):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(DiskError, match=r"some/file: downloading failed: the disk of .* is full"):
        s3_store.download("some/file", tmp_path / "absent")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
