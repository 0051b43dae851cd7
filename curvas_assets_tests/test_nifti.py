"""Claims proved here.

- What a .gz of any parts, padding between them and sizes of reads unpacks to is what Python's `gzip` unpacks.
- One that is cut short anywhere, or damaged anywhere behind its header, is not read to its end without an error.
- A file that is not compressed is read as it is.
"""

import gzip
import random
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curvas_assets.nifti import Unpacked

PARTS = st.lists(st.binary(max_size=300), min_size=1, max_size=3)


def _read(path, sizes=(1 << 20,)):
    found = []
    with Unpacked(path) as stream:
        while True:
            for size in sizes:
                content = stream.read(size)
                found.append(content)
                if len(content) < size:
                    assert stream.tell() == sum(map(len, found))
                    return b"".join(found)


@given(PARTS, st.integers(0, 40), st.lists(st.integers(1, 200), min_size=1, max_size=3))
def test_parts_and_padding_are_unpacked_as_gzip_unpacks_them(tmp_path_factory, parts, zeros, sizes):
    path = tmp_path_factory.mktemp("packed") / "file.gz"
    path.write_bytes(b"".join(gzip.compress(part) + bytes(zeros) for part in parts))
    assert _read(path, sizes) == gzip.decompress(path.read_bytes()) == b"".join(parts)


def test_more_than_one_piece_comes_whole(tmp_path):
    content = random.Random(1).randbytes(1 << 19) + bytes(9 << 20)
    (tmp_path / "file.gz").write_bytes(gzip.compress(content, 1))
    assert _read(tmp_path / "file.gz", (3 << 20, 5)) == content


@given(st.binary(min_size=1, max_size=300), st.data())
def test_a_file_that_is_cut_short_or_damaged_is_never_read_to_its_end(tmp_path_factory, content, data):
    path = tmp_path_factory.mktemp("cut") / "file.gz"
    whole = gzip.compress(content)
    path.write_bytes(whole[: data.draw(st.integers(2, len(whole) - 1))])
    with pytest.raises(EOFError):
        _read(path)
    at = data.draw(st.integers(len(whole) - 8, len(whole) - 1))  # checksum and length
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(zlib.error):
        _read(path)


def test_what_follows_a_part_and_is_no_gzip_is_refused(tmp_path):
    (tmp_path / "file.gz").write_bytes(gzip.compress(b"sound") + b"\0\0more")
    with pytest.raises(gzip.BadGzipFile):
        _read(tmp_path / "file.gz")


def test_a_file_that_is_not_compressed_is_read_as_it_is(tmp_path):
    (tmp_path / "file.nii").write_bytes(b"plain" * 9)
    assert _read(tmp_path / "file.nii", (4, 7)) == b"plain" * 9
