"""Label maps held compressed in memory while volumes stream past: they are nearly all background."""

from collections.abc import Sequence
from types import EllipsisType
from typing import Any

import numpy as np
import numpy.typing as npt

from curvas_assets.codes import DEPTH


class PackedLabels:
    """Label maps uint8 (R, Z, Y, X) in memory, compressed 16 slices at a time; sliced as a NumPy array is.

    Blocks are as deep as the slabs of volumes, so that each is unpacked once for a slab.

    Args:
        maps: how many label maps.
        shape: (Z, Y, X) of each.
    """

    ndim = 4
    dtype = np.dtype(np.uint8)

    def __init__(self, maps: int, shape: tuple[int, int, int]):
        self.shape: tuple[int, int, int, int] = (maps, *shape)
        self._slabs: dict[tuple[int, int], bytes] = {}

    def put(self, r: int, z0: int, slab: npt.NDArray[np.uint8]) -> None:
        """Keep a slab (≤ 16, Y, X) that begins at slice z0, a multiple of 16. One without labels takes no space."""
        from numcodecs import blosc

        if slab.any():
            self._slabs[r, z0 // DEPTH] = blosc.compress(np.ascontiguousarray(slab), b"lz4", 1, blosc.NOSHUFFLE, 0)

    def put_whole(self, r: int, labels: npt.NDArray[np.uint8]) -> None:
        """Keep a label map (Z, Y, X)."""
        for z0 in range(0, len(labels), DEPTH):
            self.put(r, z0, labels[z0 : z0 + DEPTH])

    def only(self, maps: Sequence[int]) -> "PackedLabels":
        """Some of the maps, by their indices, in that order; nothing is copied."""
        chosen = PackedLabels(len(maps), self.shape[1:])
        for r, source in enumerate(maps):
            chosen._slabs |= {(r, block): slab for (of, block), slab in self._slabs.items() if of == source}
        return chosen

    @classmethod
    def stacked(cls, sources: Sequence["PackedLabels"]) -> "PackedLabels":
        """The maps of several on the same voxels, one after the other; nothing is copied."""
        chosen = cls(sum(one.shape[0] for one in sources), sources[0].shape[1:])
        first = 0
        for one in sources:
            chosen._slabs |= {(first + r, block): slab for (r, block), slab in one._slabs.items()}
            first += one.shape[0]
        return chosen

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(len(content) for content in self._slabs.values())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        """All of it at once."""
        return self[...].astype(dtype or np.uint8, copy=False)

    def __getitem__(self, where: Any) -> npt.NDArray[np.uint8]:
        """As NumPy: numbers, and slices without steps, along (R, Z, Y, X); later ones may be left out."""
        named = [] if isinstance(where, EllipsisType) else list(where) if isinstance(where, tuple) else [where]
        spans = [
            slice(range(n)[at], range(n)[at] + 1) if isinstance(at, int | np.integer) else at
            for at, n in zip(named, self.shape, strict=False)
        ]
        spans += [slice(None)] * (4 - len(spans))
        one = tuple(axis for axis, at in enumerate(named) if isinstance(at, int | np.integer))
        bounds = (span.indices(n)[:2] for span, n in zip(spans, self.shape, strict=True))
        (r0, r1), (z0, z1), (y0, y1), (x0, x1) = ((start, max(start, stop)) for start, stop in bounds)
        out = np.zeros((r1 - r0, z1 - z0, y1 - y0, x1 - x0), np.uint8)
        for r in range(r0, r1):
            for block in range(z0 // DEPTH, -(-z1 // DEPTH)):
                slab = self._unpack(r, block)
                if slab is not None:
                    lo, hi = max(z0, block * DEPTH), min(z1, (block + 1) * DEPTH)
                    out[r - r0, lo - z0 : hi - z0] = slab[lo - block * DEPTH : hi - block * DEPTH, y0:y1, x0:x1]
        return out.squeeze(axis=one) if one else out

    def _unpack(self, r: int, block: int) -> npt.NDArray[np.uint8] | None:
        from numcodecs import blosc

        content = self._slabs.get((r, block))
        if content is None:
            return None
        return np.frombuffer(blosc.decompress(content), np.uint8).reshape(-1, *self.shape[2:])
