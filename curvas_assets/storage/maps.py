# numba infers the types of its functions:
# pyright: reportMissingParameterType=false
"""Maps beside a volume (entropy, mutual information, labels) as NIfTI that any viewer opens, written slab by slab.

Entropies are whole thousandths of a nat (int16 with NIfTI's own scale, which viewers apply): as float32 a map takes 150 MB
at clinical size, nearly all for the noise far from organs. The file grows in a scratch folder, a few slices at a time, and
reaches the store as one object once it is whole. Gzip's own length and CRC-32, at the end of the file, are its digest:
`download_map` reads that far.
"""

import gzip
import os
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from numba import njit, prange

from curvas_assets.errors import CorruptArtefactError, StorageError
from curvas_assets.geometry import Grid
from curvas_assets.label_values import LabelValues
from curvas_assets.nifti import FIRST_VOXEL, header_of
from curvas_assets.parallel import PARALLEL
from curvas_assets.storage.digests import read_soundly, sha256_of
from curvas_assets.storage.objects import ObjectStore, staged

GZIP_LEVEL = 1
"""Higher levels cost five times as long for a tenth of the size."""
STEP_NATS = 1e-3
FLOOR_NATS = 3e-3
"""Smaller values are written as 0. They are the entropy of the tails: noise that would take most of the file."""
Kind = Literal["entropy", "labels", "probability"]
DTYPES: dict[Kind, str] = {"entropy": "<i2", "labels": "u1", "probability": "<f4"}


@dataclass(frozen=True)
class MapFacts:
    """What was written.

    Args:
        size: bytes stored.
        check: gzip's own length and CRC-32 of the content, which tell one map from another of the same name.
    """

    size: int
    check: str


class MapWriter:
    """Writes one map to a store; visible only when the block has ended well.

    Args:
        store: where.
        key: of the map; ends in `.nii.gz`.
        grid: of the scan.
        kind: `entropy` (nats), `labels` or `probability` (float32, as it is).
        scratch: where the file grows; None takes the system's temporary folder.
        values: of `labels`: the study's own values, which the map has in place of the classes that are written; None keeps
            the classes.
    """

    def __init__(
        self,
        store: ObjectStore,
        key: str,
        grid: Grid,
        *,
        kind: Kind,
        scratch: Path | None = None,
        values: LabelValues | None = None,
    ):
        self.store, self.key, self.shape = store, key, grid.shape
        self.kind, self.dtype = kind, np.dtype(DTYPES[kind])
        self._values = values if kind == "labels" else None
        if self._values is not None:
            self.dtype = self._values.value_type.newbyteorder("<")
        header = header_of(grid, self.dtype, STEP_NATS if kind == "entropy" else 1)
        self._folder = tempfile.TemporaryDirectory(prefix="map-", dir=scratch)
        self._path = Path(self._folder.name, "map.nii.gz")
        self._file = gzip.open(self._path, "wb", compresslevel=GZIP_LEVEL)  # noqa: SIM115 - closed in __exit__
        self._file.write(header.binaryblock + b"\0\0\0\0")
        self._next_z = 0
        self.facts: MapFacts | None = None

    def __enter__(self) -> "MapWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._file.close()
        try:
            if kind is None:
                if self._next_z != self.shape[0]:
                    raise StorageError(
                        "writing a map",
                        self.key,
                        f"{self._next_z} of {self.shape[0]} slices were written",
                        "Write every slice before the block ends.",
                    )
                self.store.upload(self.key, self._path)
                self.facts = MapFacts(self._path.stat().st_size, _check_of(self._path))
        finally:
            self._folder.cleanup()

    def write(self, z0: int, slab: npt.NDArray[np.generic]) -> None:
        """The next slices, (dz, Y, X): NIfTI's X-fastest order is C order of (Z, Y, X)."""
        if z0 != self._next_z or slab.shape[1:] != self.shape[1:]:
            raise StorageError(
                "writing a map",
                self.key,
                f"a slab of shape {slab.shape} at slice {z0}; expected slice {self._next_z} of {self.shape}",
                "Write slabs (dz, Y, X) from the first slice to the last.",
            )
        self._next_z += slab.shape[0]
        steps = np.empty(slab.shape, self.dtype)
        if self.kind == "entropy":
            with PARALLEL:
                _in_steps(np.ascontiguousarray(slab, np.float32), steps)
        else:
            steps[...] = slab if self._values is None else self._values.written(slab.astype(np.uint8, copy=False))
        self._file.write(steps.data)


def download_map(store: ObjectStore, key: str, path: Path, *, check: str | None = None) -> Path:
    """Download a stored map whole: reading a single slice would never reach its checksum.

    Args:
        store: where it is.
        key: of the map.
        path: of the file.
        check: of the map that belongs to the volume beside it (`SoftmaxVolume.beside`); None takes any.

    Raises:
        MissingArtefactError: there is no such map.
        CorruptArtefactError: what is stored is no map as it was written.
        StorageError: the transfer damages it, or it is not the one that belongs to the volume.
    """
    subject = f"{store.name}/{key}"
    with staged(Path(path)) as part:

        def fetch() -> None:
            store.download(key, part)

        def read_through(_: None) -> None:
            try:
                with gzip.open(part) as file:
                    if not file.read(FIRST_VOXEL):
                        raise EOFError("it is empty")  # which gzip takes for no member at all
                    while file.read(1 << 22):
                        pass
            except (OSError, EOFError, zlib.error) as error:
                raise CorruptArtefactError(
                    "reading a map", subject, f"it is no map as it was written ({error})", "Materialise it again."
                ) from error

        read_soundly(fetch, read_through, lambda _: sha256_of(part), subject)
        if check is not None and _check_of(part) != check:
            raise StorageError(
                "reading a map",
                subject,
                "it was not written with the volume beside it",
                "Try again when the ensemble has been written; if it goes on, materialise it again.",
                may_retry=True,
            )
        part.replace(path)
    return Path(path)


def _check_of(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(-8, os.SEEK_END)
        return file.read().hex()


@njit(parallel=True, cache=True, nogil=True)
def _in_steps(nats, steps):
    for z in prange(nats.shape[0]):
        for y in range(nats.shape[1]):
            for x in range(nats.shape[2]):
                value = nats[z, y, x]
                steps[z, y, x] = np.int16(value / STEP_NATS + 0.5) if value >= FLOOR_NATS else 0
