"""Softmax volumes: an open format (zarr v3) written and read slab by slab, on any object store.

    <key>/zarr.json                     a group; its attributes name the current place: the marker, written last
    <key>/<place>/zarr.json             the array: steps uint16 (foreground class, z, y, x) of codes along x
    <key>/<place>/c/0/0/0/0             its one shard; inner chunks of all classes × 16 × 256 × 256 in z order

zarr-python reads it without this module: a code is the sum of the steps up to it, modulo 2¹⁶ (2 d is a rise by d, 2 d − 1 a fall); it names
one of the levels that two attributes give (see `curvas_assets.codes`), and the background is what the foreground leaves of 1:

    a = group[group.attrs["current"]]; t, n = np.array(a.attrs["tail"]), a.attrs["steps"]; m = round(t[-1] * n)
    levels = np.unique(np.float32([0, *t, *np.arange(m + 1, n - m) / n, *(1 - t), 1])); s = a[:, z0:z1].astype(int)
    foreground = levels[((s >> 1) ^ -(s & 1)).cumsum(-1) % 2**16]; rest = foreground.sum(0, dtype=float)
    background = np.maximum(1 - rest * (rest >= 2**-24), 0)

Volumes of the first format (p = code / 65535) are read as well; it kept labels, calibration and
volumes, not the ranking of a confident network's voxels. Each writing has a place of its own (`versions`), and readers go
through the group, so they see one whole version; a writer that is killed leaves nothing that a reader finds.
"""

import errno
import hashlib
import json
import re
import struct
import time
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import NamedTemporaryFile, SpooledTemporaryFile
from typing import IO, Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from curvas_assets.codes import DEPTH, STEPS, levels_of, linear_levels, tail
from curvas_assets.errors import CorruptArtefactError, MissingArtefactError, StorageError
from curvas_assets.geometry import Grid
from curvas_assets.inputs import as_grid, as_path
from curvas_assets.probabilities import as_probabilities, require_probabilities
from curvas_assets.storage import versions
from curvas_assets.storage.digests import open_record, read_soundly, seal_record, sha256_of_bytes
from curvas_assets.storage.encoding import (
    EncodedSlab,
    codes_of,
    decode,
    decode_into,
    encode,
    labels_of,
    place_steps,
    steps_of,
)
from curvas_assets.storage.objects import Bytes, ObjectInfo, ObjectStore, UnfinishedUpload

FORMAT = "curvas-softmax-2"
FIRST_FORMAT = "curvas-softmax-1"
TILE = 256
CHUNKS_PER_GET = 8
"""Depths of chunks fetched by one request when a volume is read through."""
SPOOL_BYTES = 256 << 20
ABSENT = (1 << 64) - 1
COMPRESSION = {"cname": "zstd", "clevel": 1, "shuffle": "bitshuffle", "typesize": 2, "blocksize": 0}
GROUP = "zarr.json"
SHARD = "c/0/0/0/0"
DAMAGED_ZIP = (
    *(KeyError, zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, EOFError, zlib.error, struct.error),
)
"""What zipfile raises for a damaged file, which it takes for encrypted, compressed or of a later version."""


@cache
def _decoders() -> ThreadPoolExecutor:
    """Threads that unpack chunks, shared by all volumes: two keep up with any store."""
    return ThreadPoolExecutor(2, thread_name_prefix="curvas-decode")


@dataclass(frozen=True)
class SoftmaxFacts:
    """What was written.

    Args:
        version: digest of the payload and its description, without provenance.
        size: bytes stored.
        label_voxels: voxels of each class in the label map, background first.
        soft_voxels: sum of each class's stored probability.
        fullest_slice: the slice with most foreground.
        seconds: from the first slab to the last byte acknowledged.
    """

    version: str
    size: int
    label_voxels: tuple[int, ...]
    soft_voxels: tuple[float, ...]
    fullest_slice: int
    seconds: float


class SoftmaxWriter:
    """Writes one softmax volume to a store, slab by slab in z order; visible only when the block has ended well.

    Args:
        store: where.
        key: of the volume; what stands there is replaced.
        grid: of the scan.
        class_names: one per class, C of them, background first.
        provenance: who made it, e.g. patient, predictor; goes into the attributes.
        scratch: a folder that holds the compressed volume until the block ends; None keeps up to 256 MB of it in memory.

    Attributes:
        shape: (C, Z, Y, X), background included.

    Raises:
        StorageError: there are fewer than two class names; slabs do not fit the shape, hold no probabilities, or are not
            in order.
    """

    def __init__(
        self,
        store: ObjectStore,
        key: str,
        grid: Grid,
        *,
        class_names: Sequence[str],
        provenance: Mapping[str, Any] | None = None,
        scratch: Path | None = None,
    ):
        names = tuple(class_names) if isinstance(class_names, Iterable) else ()
        if not isinstance(grid, Grid):
            found = f"a {type(grid).__name__} instead of the scan's grid"
            raise StorageError("writing a softmax volume", key, found, "Give a Grid, such as Grid.of(nibabel's image).")
        if len(names) < 2:
            raise StorageError(
                "writing a softmax volume",
                key,
                f"classes {class_names!r:.200}",
                "Give one name per class: background, and at least one of the foreground.",
            )
        self.store, self.key, self.grid = store, key, grid
        self.shape = (len(names), *grid.shape)
        self.class_names = names
        self.provenance = dict(provenance or {})
        self.beside: dict[str, str] = {}
        """Map beside the volume → its check, which tells it from others of its name; filled before the block ends."""
        self.facts: SoftmaxFacts
        self._chunking = _Chunking(self.shape)
        self._payload: IO[bytes]
        if scratch is None:
            self._payload = SpooledTemporaryFile(max_size=SPOOL_BYTES)  # noqa: SIM115 - closed in __exit__
        else:
            self._payload = NamedTemporaryFile(dir=scratch)  # noqa: SIM115 - with a name, so that scratch counts its bytes
        self._digest = hashlib.sha256()
        self._index: list[tuple[int, int]] = []
        self._pending: list[npt.NDArray[Any]] = []
        self._pending_depth = self._next_z = 0
        self._label_voxels = np.zeros(self.shape[0], np.int64)
        self._soft = np.zeros(self.shape[0] - 1)
        self._fullest = (-1, 0)
        self._start = time.perf_counter()

    def __enter__(self) -> "SoftmaxWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._payload.close()

    def write(self, z0: int, slab: npt.NDArray[np.floating]) -> None:
        """The next slices.

        Args:
            z0: of the slab's first slice; slabs follow one another without gap.
            slab: probabilities (C, dz, Y, X), float16, float32 or float64, background first.
        """
        if z0 != self._next_z or slab.ndim != 4 or (slab.shape[0], *slab.shape[2:]) != (self.shape[0], *self.shape[2:]):
            raise StorageError(
                "writing a softmax volume",
                self.key,
                f"a slab of shape {slab.shape} at slice {z0}; expected slice {self._next_z} of {self.shape}",
                "Write slabs (C, dz, Y, X) from the first slice to the last.",
            )
        require_probabilities(slab, attempted="writing a softmax volume", subject=self.key, error=StorageError, z0=z0)
        self._next_z += slab.shape[1]
        self._pending.append(slab)
        self._pending_depth += slab.shape[1]
        while self._pending_depth >= DEPTH:
            self._encode(self._take(DEPTH))

    def write_encoded(self, z0: int, encoded: EncodedSlab) -> None:
        """The next slices, encoded already: as deep as a chunk, but for the last ones.

        Args:
            z0: of the slab's first slice.
            encoded: of these slices.
        """
        depth = min(DEPTH, self.shape[1] - z0)
        if (
            z0 != self._next_z
            or self._pending_depth
            or encoded.codes.shape != (self.shape[0] - 1, depth, *self.shape[2:])
        ):
            raise StorageError(
                "writing a softmax volume",
                self.key,
                f"codes of shape {encoded.codes.shape} at slice {z0}; expected slice {self._next_z} of {self.shape}",
                f"Write encoded slabs of {DEPTH} slices from the first to the last.",
            )
        self._next_z += depth
        self._pack(z0, encoded)

    def _take(self, depth: int) -> npt.NDArray[Any]:
        whole = self._pending[0] if len(self._pending) == 1 else np.concatenate(self._pending, axis=1)
        self._pending = [whole[:, depth:]] if whole.shape[1] > depth else []
        self._pending_depth = whole.shape[1] - min(depth, whole.shape[1])
        return whole[:, :depth]

    def _encode(self, slab: npt.NDArray[Any]) -> None:
        self._pack(self._next_z - self._pending_depth - slab.shape[1], encode(slab))

    def _pack(self, z0: int, encoded: EncodedSlab) -> None:
        self._label_voxels += encoded.label_voxels
        self._soft += encoded.soft_voxels
        if encoded.foreground.max() > self._fullest[0]:
            self._fullest = (int(encoded.foreground.max()), z0 + int(encoded.foreground.argmax()))
        with ThreadPoolExecutor(2) as pool:
            for content in pool.map(self._chunking.pack, self._chunking.tiles(steps_of(encoded.codes))):
                if content is None:
                    self._index.append((ABSENT, ABSENT))
                    continue
                self._index.append((self._payload.tell(), len(content)))
                self._append(content)

    def _append(self, content: bytes) -> None:
        self._payload.write(content)
        self._digest.update(content)

    def _finish(self) -> None:
        if self._pending_depth:
            self._encode(self._take(self._pending_depth))
        if self._next_z != self.shape[1]:
            raise StorageError(
                "writing a softmax volume",
                self.key,
                f"{self._next_z} of {self.shape[1]} slices were written",
                "Write every slice before the block ends.",
            )
        index = np.array(self._index, "<u8").tobytes()
        self._append(index + _crc32c(index).to_bytes(4, "little"))
        size = self._payload.tell()
        self._payload.seek(0)
        content = self._payload.read()
        array = _array_metadata(self, size, self._digest.hexdigest())
        description = seal_record(array, "attributes")
        version = _content_version(array)

        def send(place: str) -> dict[str, int]:
            self.store.put(f"{self.key}/{place}/{SHARD}", content)
            self.store.put(f"{self.key}/{place}/{GROUP}", description)
            return {SHARD: len(content), GROUP: len(description)}

        def mark(place: str) -> bytes:
            attributes = {
                "format": FORMAT,
                "current": place,
                "version": version,
                "fullest_slice": self._fullest[1],
                "beside": self.beside,
            }
            return seal_record({"zarr_format": 3, "node_type": "group", "attributes": attributes}, "attributes")

        versions.publish(self.store, self.key, GROUP, version, send, mark)
        voxels = int(np.prod(self.shape[1:], dtype=np.int64))
        soft = self._soft
        self.facts = SoftmaxFacts(
            version=version,
            size=size + len(description),
            label_voxels=tuple(int(n) for n in self._label_voxels),
            soft_voxels=(float(voxels - soft.sum()), *(float(s) for s in soft)),
            fullest_slice=self._fullest[1],
            seconds=round(time.perf_counter() - self._start, 3),
        )


def open_softmax(store: ObjectStore, key: str, *, class_names: Sequence[str] | None = None) -> "SoftmaxVolume":
    """A stored softmax volume; its voxels are fetched when they are asked for.

    Args:
        store: where.
        key: of the volume.
        class_names: what the caller takes the classes for; None takes the stored ones.

    Raises:
        MissingArtefactError: there is none.
        CorruptArtefactError: its description does not fit its payload, or the classes are others.
    """
    subject = f"{store.name}/{key}"

    def gone(missing: MissingArtefactError) -> MissingArtefactError:
        return MissingArtefactError("reading", subject, "its payload is gone", "Materialise it again.")

    def read(marker: dict[str, Any]) -> SoftmaxVolume:
        try:
            array = _description(store, f"{key}/{marker['current']}/{GROUP}", subject)
            volume = SoftmaxVolume(store, key, marker, array)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _corrupt(subject, f"its description cannot be read ({type(error).__name__}: {error})") from error
        info = store.head(f"{key}/{marker['current']}/{SHARD}")
        if info is None:
            raise MissingArtefactError("reading", subject, "its payload is gone", "Materialise it again.")
        if info.size != volume.size:
            raise _corrupt(subject, f"its payload has {info.size} bytes, its description says {volume.size}")
        return volume

    volume = versions.read_one_version(
        lambda: _marker(store, key), lambda marker: marker["current"], read, subject, gone
    )
    if class_names is not None and tuple(class_names) != volume.class_names:
        raise _corrupt(subject, f"its classes are {list(volume.class_names)}, expected {list(class_names)}")
    return volume


def place_of(store: ObjectStore, key: str) -> str:
    """The place of the volume that stands there; a MissingArtefactError if there is none."""
    return _marker(store, key)["current"]


def _marker(store: ObjectStore, key: str) -> dict[str, Any]:
    """The attributes of the group: which place is the current one."""
    subject = f"{store.name}/{key}"
    attributes = _description(store, f"{key}/{GROUP}", subject).get("attributes")
    if not isinstance(attributes, dict) or not re.fullmatch(r"\w+", str(attributes.get("current")), re.ASCII):
        raise _corrupt(subject, f"its description cannot be read (it holds {str(attributes)[:120]})")
    return attributes


def _description(store: ObjectStore, key: str, subject: str) -> dict[str, Any]:
    """The group's or the array's description, as it was written."""

    def parse(content: bytes) -> dict[str, Any]:
        try:
            return open_record(content, "attributes")
        except ValueError as error:
            raise _corrupt(subject, f"its description cannot be read ({error})") from error

    return read_soundly(lambda: store.get(key), parse, sha256_of_bytes, subject)


@dataclass(frozen=True)
class FetchedChunks:
    """Compressed chunks of a volume, whose checksums have been compared.

    Args:
        content: their bytes.
        start: where they begin in the payload.
    """

    content: memoryview
    start: int


class SoftmaxVolume:
    """A handle on a stored volume: what it is, and any slab of it. Two threads may read from it.

    Attributes:
        shape: (C, Z, Y, X), background included.
        grid: of the scan.
        class_names: background first.
        provenance: as it was written.
        beside: map beside the volume → its check, if maps were written with it.
        fullest_slice: the slice with most foreground.
        size: bytes of the payload.
        format: its name and number.
        levels: the probability of each code.
    """

    def __init__(self, store: ObjectStore, key: str, marker: Mapping[str, Any], array: Mapping[str, Any]):
        attributes = array["attributes"]
        foreground, z, y, x = array["shape"]
        self.shape: tuple[int, ...] = (foreground + 1, z, y, x)
        self.class_names = tuple(attributes["class_names"])
        self.format = str(attributes["format"])
        if len(self.class_names) != self.shape[0] or self.format not in (FORMAT, FIRST_FORMAT):
            raise ValueError(f"format {self.format} with classes {self.class_names}")
        if self.keeps_ranking:
            self.levels = levels_of(attributes["tail"], int(attributes["steps"]))
        else:
            self.levels = linear_levels()
        self.grid = Grid((z, y, x), np.asarray(attributes["affine"], np.float64))
        self.provenance = dict(attributes["provenance"])
        self.fullest_slice = int(marker.get("fullest_slice", 0))
        self.beside = dict(marker.get("beside", {}))
        self.size = int(attributes["payload_bytes"])
        self.sha256 = str(attributes["payload_sha256"])
        # Before each writing had a place of its own, a volume stood at its version.
        self.version, self._place = str(marker.get("version", marker["current"])), str(marker["current"])
        self._store, self._key, self._subject = store, key, f"{store.name}/{key}"
        self._shard = f"{key}/{self._place}/{SHARD}"
        self._chunking = _Chunking(self.shape)
        self._offsets: npt.NDArray[np.uint64] | None = None

    @property
    def keeps_ranking(self) -> bool:
        """Whether the order of confidences near 1 and of probabilities near 0 is the network's: not in the first format."""
        return self.format != FIRST_FORMAT

    def codes(self, z0: int, z1: int) -> npt.NDArray[np.uint16]:
        """Foreground codes (C − 1, z1 − z0, Y, X); one request, for the chunks that hold these slices.

        Raises:
            CorruptArtefactError: a chunk is not what was written.
        """
        self._require_slices(z0, z1)
        first, last = z0 // DEPTH, -(-z1 // DEPTH)
        out = self._decode(first, last, self._fetch(first, last))
        begin = z0 - first * DEPTH
        return out[:, begin : begin + z1 - z0]

    def _require_slices(self, z0: int, z1: int) -> None:
        if not 0 <= z0 < z1 <= self.shape[1]:
            raise ValueError(f"slices {z0} to {z1} of {self.shape[1]}")

    def _fetch(self, first: int, last: int) -> memoryview:
        """The bytes of the chunks at depths first … last − 1; one request, none if they hold only background."""
        start, length = self._span(first, last)
        if not length:
            return memoryview(b"")
        index = self._chunks(first, last)
        spans = [(int(at) - start, int(size)) for at, size in index[index[:, 0] != ABSENT]]

        def whole(content: bytes) -> memoryview:
            if len(content) != length:
                raise _corrupt(self._subject, f"its payload ends {length - len(content)} bytes early")
            chunks = memoryview(content)
            for at, size in spans:
                body, stored = chunks[at : at + size - 4], chunks[at + size - 4 : at + size]
                if _crc32c(body) != int.from_bytes(stored, "little"):
                    raise _corrupt(self._subject, "the checksum of a chunk is wrong")
            return chunks

        return read_soundly(
            lambda: self._read(lambda: self._store.get_range(self._shard, start, length)),
            whole,
            sha256_of_bytes,
            self._subject,
        )

    def _read(self, read: Callable[[], bytes]) -> bytes:
        """Bytes of the payload; if it is gone, the error says whether a newer one replaced it or it was lost."""
        try:
            return read()
        except MissingArtefactError as error:
            if _marker(self._store, self._key)["current"] != self._place:
                raise versions.replaced(self._subject) from error
            raise MissingArtefactError(
                "reading", self._subject, "its payload is gone", "Materialise it again."
            ) from error

    def _span(self, first: int, last: int) -> tuple[int, int]:
        """Where the chunks of these depths begin in the payload, and how many bytes they take."""
        index = self._chunks(first, last)
        present = index[index[:, 0] != ABSENT]
        if not len(present):
            return 0, 0
        start = int(present[0, 0])
        return start, int(present[-1].sum()) - start

    def _decode(self, first: int, last: int, content: memoryview) -> npt.NDArray[np.uint16]:
        """Codes of these depths of chunks, from the bytes that begin where their first chunk does."""
        index = self._chunks(first, last)
        start, _ = self._span(first, last)
        depth = min(last * DEPTH, self.shape[1]) - first * DEPTH
        out = np.zeros((self.shape[0] - 1, depth, *self.shape[2:]), np.uint16)

        def place(i: int) -> None:
            offset, size = int(index[i, 0]) - start, int(index[i, 1])
            z, row, column = self._chunking.position(i)
            tile = self._chunking.unpack(content[offset : offset + size])
            part = out[:, z : z + DEPTH, row : row + tile.shape[2], column : column + tile.shape[3]]
            part[...] = tile[:, : part.shape[1], : part.shape[2], : part.shape[3]]

        present = [int(i) for i in np.flatnonzero(index[:, 0] != ABSENT)]
        if len(present) < 2:
            for i in present:
                place(i)
        else:
            list(_decoders().map(place, present))
        return codes_of(out) if self.keeps_ranking else out

    def _chunks(self, first: int, last: int) -> npt.NDArray[np.uint64]:
        return self._index()[first * self._chunking.tiles_per_depth : last * self._chunking.tiles_per_depth]

    def slab(self, z0: int, z1: int) -> npt.NDArray[np.float32]:
        """Probabilities (C, z1 − z0, Y, X), background first; they sum to 1."""
        if z1 - z0 <= 2 * DEPTH:
            return decode(self.codes(z0, z1), self.levels)
        self._require_slices(z0, z1)
        out = np.empty((self.shape[0], z1 - z0, *self.shape[2:]), np.float32)
        for begin, end, codes in self._stream(z0 // DEPTH, -(-z1 // DEPTH)):
            low, high = max(z0, begin), min(z1, end)
            decode_into(out, low - z0, codes[:, low - begin : high - begin], self.levels)
        return out

    def labels(self, z0: int, z1: int) -> npt.NDArray[np.uint8]:
        """The label map (z1 − z0, Y, X)."""
        return labels_of(self.codes(z0, z1), self.levels)

    def code_slabs(self) -> Iterator[tuple[int, int, npt.NDArray[np.uint16]]]:
        """(z0, z1, codes) from the first slice to the last, 16 slices at a time.

        Compressed bytes are fetched ahead, for several slabs at once, and the next slab is decoded in the meantime. So
        only two decoded slabs are held, however large the volume is.
        """
        return self._stream(0, self._chunking.depths)

    def _stream(self, begin: int, end: int) -> Iterator[tuple[int, int, npt.NDArray[np.uint16]]]:
        """The slabs of these depths of chunks."""
        with ThreadPoolExecutor(1) as fetching, ThreadPoolExecutor(1) as decoding:

            def fetch(first: int) -> Future[memoryview] | None:
                return fetching.submit(self._fetch, first, min(first + CHUNKS_PER_GET, end)) if first < end else None

            def decode(depth: int, content: memoryview, offset: int) -> npt.NDArray[np.uint16]:
                start, length = self._span(depth, depth + 1)
                return self._decode(
                    depth, depth + 1, content[start - offset : start - offset + length] if length else content
                )

            def coming() -> Iterator[Future[npt.NDArray[np.uint16]]]:
                following = fetch(begin)
                for first in range(begin, end, CHUNKS_PER_GET):
                    assert following is not None
                    content, following = following.result(), fetch(first + CHUNKS_PER_GET)
                    last = min(first + CHUNKS_PER_GET, end)
                    offset, _ = self._span(first, last)
                    for depth in range(first, last):
                        yield decoding.submit(decode, depth, content, offset)

            slabs = coming()
            ahead = next(slabs)
            for depth in range(begin, end):
                codes, ahead = [ahead.result()], next(slabs, None) or Future()
                yield depth * DEPTH, min((depth + 1) * DEPTH, self.shape[1]), codes.pop()  # held by the caller alone

    def fetch(self, first: int, last: int) -> FetchedChunks:
        """The chunks at depths first … last − 1, still compressed; one request.

        Raises:
            CorruptArtefactError: a chunk is not what was written.
        """
        return FetchedChunks(self._fetch(first, last), self._span(first, last)[0])

    def decode_into(self, depth: int, chunks: FetchedChunks, out: npt.NDArray[np.uint16]) -> None:
        """Codes of the slices at a depth of chunks, by one thread.

        Args:
            depth: 0 for the first 16 slices, and so on.
            chunks: of this depth, and perhaps others.
            out: uint16 (C − 1, slices, Y, X), overwritten.
        """
        scratch = np.empty(self._chunking.chunk, "<u2")
        for i, (at, size) in enumerate(self._chunks(depth, depth + 1)):
            _, row, column = self._chunking.position(i)
            part = out[:, :, row : row + self._chunking.tile[0], column : column + self._chunking.tile[1]]
            if at == ABSENT:
                scratch[...] = 0
            else:
                offset = int(at) - chunks.start
                self._chunking.unpack_into(chunks.content[offset : offset + int(size)], scratch)
            if self.keeps_ranking:
                place_steps(scratch, out, row, column)
            else:
                part[...] = scratch[:, : part.shape[1], : part.shape[2], : part.shape[3]]

    def verify(self) -> None:
        """Read the whole payload and compare its SHA-256 with what was written; a CorruptArtefactError if it differs."""

        def compare(found: str) -> None:
            if found != self.sha256:
                raise _corrupt(self._subject, f"its SHA-256 is {found[:12]}…, not {self.sha256[:12]}…")

        read_soundly(
            lambda: sha256_of_bytes(self._read(lambda: self._store.get(self._shard))), compare, str, self._subject
        )

    def _index(self) -> npt.NDArray[np.uint64]:
        """(offset, size) of every chunk, from the end of the shard, read once."""
        if self._offsets is None:
            length = 16 * self._chunking.chunks + 4

            def parse(content: bytes) -> npt.NDArray[np.uint64]:
                if len(content) != length or _crc32c(content[:-4]) != int.from_bytes(content[-4:], "little"):
                    raise _corrupt(self._subject, "the index of its chunks is damaged")
                return np.frombuffer(content[:-4], "<u8").reshape(-1, 2)

            self._offsets = read_soundly(
                lambda: self._read(lambda: self._store.get_range(self._shard, self.size - length, length)),
                parse,
                sha256_of_bytes,
                self._subject,
            )
        return self._offsets


# Single files --------------------------------------------------------------------------------------------------------


def write_softmax(
    file: str | Path | IO[bytes],
    softmax: Any,
    *,
    class_names: Sequence[str] | None = None,
    spacing_mm: Sequence[float] | None = None,
    affine: npt.ArrayLike | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> SoftmaxFacts:
    """Write a softmax volume to one file: the zarr group in an uncompressed zip, which zarr-python reads.

    Args:
        file: path, or a binary file to write to.
        softmax: probabilities (C, Z, Y, X), background first: an array, a tensor or nested lists. The label map is kept
            exactly.
        class_names: `background`, `class_1` … if they are not given.
        spacing_mm: voxel size along (Z, Y, X); 1 mm if neither it nor the affine is given.
        affine: of the scan, as nibabel gives it.
        provenance: goes into the attributes; what JSON knows.

    Raises:
        StorageError: the values are no probabilities, another argument is not as said, or the file cannot be written.
            What stands at the path is replaced only once the values are known to be probabilities.
    """
    told: Any = {
        "attempted": "writing a softmax volume",
        "subject": str(file).strip() or "the file",
        "error": StorageError,
    }
    softmax = as_probabilities(softmax, **told)
    names = ["background", *(f"class_{c}" for c in range(1, softmax.shape[0]))] if class_names is None else class_names
    names = tuple(names) if isinstance(names, Iterable) else ()
    if len(names) != softmax.shape[0]:
        found = f"{softmax.shape[0]} classes, named {class_names!r:.200}"
        raise StorageError(told["attempted"], told["subject"], found, "Give one name per class, background first.")
    grid = as_grid(softmax.shape[1:], spacing_mm, affine, **told)
    try:
        json.dumps(provenance if provenance is None else dict(provenance))
    except (TypeError, ValueError) as error:
        found = f"provenance that JSON does not know ({error})"
        raise StorageError(told["attempted"], told["subject"], found, "Give names and plain values.") from error
    target = file if hasattr(file, "write") else as_path(file, **told)
    try:
        archive = zipfile.ZipFile(target, "w", zipfile.ZIP_STORED)  # type: ignore[arg-type]
    except OSError as error:
        found = f"the file cannot be written ({error.strerror or type(error).__name__})"
        raise StorageError(
            told["attempted"], told["subject"], found, "Give a path in a folder that is there."
        ) from error
    with archive:
        with SoftmaxWriter(_ZipObjects(archive), "", grid, class_names=names, provenance=provenance) as writer:
            for z0 in range(0, softmax.shape[1], DEPTH):
                writer.write(z0, softmax[:, z0 : z0 + DEPTH])
        return writer.facts


def read_softmax(file: str | Path | IO[bytes]) -> SoftmaxVolume:
    """A handle on a volume that `write_softmax` wrote; the file must stay open, or at its path, while it is read.

    Raises:
        MissingArtefactError: there is no such file.
        CorruptArtefactError: it is not such a file, or damaged.
        StorageError: it is neither path nor file, or cannot be read.
    """
    told: Any = {
        "attempted": "reading a softmax volume",
        "subject": str(file).strip() or "the file",
        "error": StorageError,
    }
    source = file if hasattr(file, "read") else as_path(file, **told)
    try:
        archive = zipfile.ZipFile(source)  # type: ignore[arg-type]
    except FileNotFoundError as error:
        raise MissingArtefactError("reading", str(file), "there is no such file", "Check the path.") from error
    except OSError as error:
        found = f"it cannot be read ({error.strerror or type(error).__name__})"
        raise StorageError(told["attempted"], told["subject"], found, "Give the file write_softmax wrote.") from error
    except DAMAGED_ZIP as error:
        raise _corrupt(str(getattr(file, "name", file)), "it is no zip, or cut short") from error
    return open_softmax(_ZipObjects(archive), "")


@dataclass
class _ZipObjects:
    """The objects of one zip file: as much of a store as a volume needs."""

    archive: zipfile.ZipFile
    name: str = field(init=False)

    def __post_init__(self) -> None:
        self.name = str(self.archive.filename or "file")

    def put(self, key: str, content: Bytes, *, only_if_absent: bool = False) -> bool:
        self.archive.writestr(key.lstrip("/"), bytes(content))
        return True

    def get(self, key: str) -> bytes:
        with self._as_corrupt(key):
            return self.archive.read(key.lstrip("/"))

    def get_range(self, key: str, start: int, length: int) -> bytes:
        with self._as_corrupt(key), self.archive.open(key.lstrip("/")) as file:
            file.seek(start)
            return file.read(length)

    @contextmanager
    def _as_corrupt(self, key: str) -> Generator[None]:
        """Turn zipfile's errors about a damaged archive, which it takes for an encrypted or otherwise packed one, into ours."""
        try:
            yield
        except DAMAGED_ZIP as error:
            raise _corrupt(self.name, f"{key.lstrip('/')}: {error}") from error
        except OSError as error:
            if error.errno != errno.EINVAL:  # it looks for content before the file's first byte
                raise
            raise _corrupt(self.name, f"{key.lstrip('/')}: {error}") from error

    def head(self, key: str) -> ObjectInfo | None:
        try:
            info = self.archive.getinfo(key.lstrip("/"))
        except KeyError:
            return None
        return ObjectInfo(key, info.file_size, f"{info.CRC:08x}")

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        for info in self.archive.infolist():
            if f"/{info.filename}".startswith(prefix):
                yield ObjectInfo(f"/{info.filename}", info.file_size, f"{info.CRC:08x}")

    def delete(self, keys: object) -> None:
        pass

    def clock(self) -> None:
        return None

    def unfinished_uploads(self, prefix: str) -> Iterator[UnfinishedUpload]:
        return iter(())

    def give_up(self, upload: UnfinishedUpload) -> None:
        pass

    def upload(self, key: str, path: Path) -> None:
        self.archive.write(path, key.lstrip("/"))

    def download(self, key: str, path: Path) -> None:
        Path(path).write_bytes(self.get(key))


# Chunks --------------------------------------------------------------------------------------------------------------


class _Chunking:
    """Inner chunks of a volume: their order in the shard, and their bytes."""

    def __init__(self, shape: Sequence[int]):
        classes, depth, height, width = shape
        self.tile = (min(TILE, height), min(TILE, width))
        self.rows, self.columns = -(-height // self.tile[0]), -(-width // self.tile[1])
        self.depths = -(-depth // DEPTH)
        self.padded = (self.rows * self.tile[0], self.columns * self.tile[1])
        self.chunk = (classes - 1, DEPTH, *self.tile)
        self.tiles_per_depth = self.rows * self.columns
        self.chunks = self.depths * self.tiles_per_depth

    def tiles(self, codes: npt.NDArray[np.uint16]) -> Iterator[npt.NDArray[np.uint16]]:
        """The chunks of one depth, in the shard's order, not yet padded."""
        height, width = self.tile
        for row in range(self.rows):
            for column in range(self.columns):
                yield codes[:, :, row * height : (row + 1) * height, column * width : (column + 1) * width]

    def position(self, i: int) -> tuple[int, int, int]:
        """First slice, row and column of the i-th chunk after a chunk at the beginning of a depth."""
        depth, rest = divmod(i, self.tiles_per_depth)
        row, column = divmod(rest, self.columns)
        return depth * DEPTH, row * self.tile[0], column * self.tile[1]

    def pack(self, tile: npt.NDArray[np.uint16]) -> bytes | None:
        """A chunk's bytes; None if there is nothing but background."""
        from numcodecs import blosc

        if not tile.any():
            return None
        whole = np.zeros(self.chunk, "<u2")
        whole[tuple(slice(0, n) for n in tile.shape)] = tile
        content = blosc.compress(whole, b"zstd", COMPRESSION["clevel"], blosc.BITSHUFFLE, 0)
        return bytes(content) + _crc32c(content).to_bytes(4, "little")

    def unpack(self, content: memoryview) -> npt.NDArray[np.uint16]:
        """A chunk from its bytes, whose checksum has been compared."""
        from numcodecs import blosc

        return np.frombuffer(blosc.decompress(bytes(content[:-4])), "<u2").reshape(self.chunk)

    def unpack_into(self, content: memoryview, chunk: npt.NDArray[np.uint16]) -> None:
        """The same, into memory that is there."""
        from numcodecs import blosc

        blosc.decompress(content[:-4], chunk)


def _array_metadata(writer: SoftmaxWriter, size: int, sha256: str) -> dict[str, Any]:
    chunking = writer._chunking  # pyright: ignore[reportPrivateUsage] - of this module
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [writer.shape[0] - 1, *writer.shape[1:]],
        "data_type": "uint16",
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": [writer.shape[0] - 1, chunking.depths * DEPTH, *chunking.padded]},
        },
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": [
            {
                "name": "sharding_indexed",
                "configuration": {
                    "chunk_shape": list(chunking.chunk),
                    "codecs": [
                        {"name": "bytes", "configuration": {"endian": "little"}},
                        {"name": "blosc", "configuration": COMPRESSION},
                        {"name": "crc32c"},
                    ],
                    "index_codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
                    "index_location": "end",
                },
            }
        ],
        "dimension_names": ["class", "z", "y", "x"],
        "attributes": {
            "format": FORMAT,
            "tail": list(tail()),
            "steps": STEPS,
            "class_names": list(writer.class_names),
            "classes_stored": list(writer.class_names[1:]),
            "background": "1 minus the sum of the stored classes; 1 where that sum is less than 2**-24",
            "spacing_mm": list(writer.grid.spacing_mm),
            "affine": writer.grid.affine.tolist(),
            "payload_bytes": size,
            "payload_sha256": sha256,
            "provenance": writer.provenance,
        },
    }


def _content_version(array: Mapping[str, Any]) -> str:
    """A digest of payload and description. Provenance is left out: the same content made by newer code is the same."""
    content = {**array, "attributes": {k: v for k, v in array["attributes"].items() if k != "provenance"}}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _crc32c(content: bytes | memoryview) -> int:
    return int(google_crc32c.value(bytes(content)))


def _corrupt(subject: str, found: str) -> CorruptArtefactError:
    return CorruptArtefactError("reading a softmax volume", subject, found, "Materialise it again.")
