"""Several stored softmax volumes read side by side, from the first slice to the last, each chunk once.

One slab of codes is held of each volume, in memory that the next slab takes over; compressed bytes are fetched ahead.
"""

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor

import numpy as np

from curvas_assets.codes import DEPTH, Codes
from curvas_assets.storage.softmax import CHUNKS_PER_GET, FetchedChunks, SoftmaxVolume

FETCHED_SLABS = 32
"""Compressed slabs, of all volumes together, that one round of requests fetches."""
CONNECTIONS = 4


def code_slabs_of(
    volumes: Sequence[SoftmaxVolume], workers: Executor, slices: tuple[int, int] | None = None
) -> Iterator[tuple[int, int, Codes]]:
    """The slabs of volumes of one shape, 16 slices at a time.

    Args:
        volumes: M of them.
        workers: threads that decode.
        slices: from the first to beyond the last one that is wanted; None for all. Whole slabs are yielded.

    Yields:
        z0, z1, and codes of the foreground uint16 (M, C − 1, z1 − z0, Y, X), which the next slab overwrites.

    Raises:
        CorruptArtefactError, MissingArtefactError: of the volume that cannot be read.
    """
    classes, depth, height, width = volumes[0].shape
    begin, end = slices or (0, depth)
    first, last = begin // DEPTH, -(-end // DEPTH)
    held = np.empty(len(volumes) * (classes - 1) * min(DEPTH, depth) * height * width, np.uint16)
    at_once = min(CHUNKS_PER_GET, max(1, FETCHED_SLABS // len(volumes)))
    with ThreadPoolExecutor(min(CONNECTIONS, len(volumes)), thread_name_prefix="curvas-fetch") as fetching:

        def fetch(at: int) -> list[Future[FetchedChunks]]:
            stop = min(at + at_once, last)
            return [fetching.submit(volume.fetch, at, stop) for volume in volumes] if at < last else []

        coming = fetch(first)
        for at in range(first, last, at_once):
            fetched, coming = [one.result() for one in coming], fetch(at + at_once)
            for d in range(at, min(at + at_once, last)):
                z0, z1 = d * DEPTH, min((d + 1) * DEPTH, depth)
                shape = (len(volumes), classes - 1, z1 - z0, height, width)
                out = held[: math.prod(shape)].reshape(shape)

                def decode(m: int, d: int = d, fetched: list[FetchedChunks] = fetched, out: Codes = out) -> None:
                    volumes[m].decode_into(d, fetched[m], out[m])

                list(workers.map(decode, range(len(volumes))))
                yield z0, z1, out
