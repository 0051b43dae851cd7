"""Judges a NIfTI file by its header before anything after it is read, because a small file may unpack to any size.

`geometry` judges where its voxels lie; the reader judges what they mean.
"""

import gzip
import io
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError

from curvas_assets.errors import CurvasError

HEADER_SIZE = 348
NIFTI2 = 540
"""Size of the header of the other version, which nibabel reads by another class."""
HEADER_BYTES = 1 << 24
"""Largest size of a header with its extensions; anything larger is not a header."""
FIRST_VOXEL = 352
"""Earliest byte at which voxels may begin. Readers treat smaller offsets differently: nibabel as 0, ITK as 352."""
TRAILING_BYTES = 1 << 20
"""Bytes allowed after the last voxel, since some writers pad. More means a wrong header or a decompression bomb."""


@dataclass(frozen=True)
class Promise:
    """What a header promises.

    Args:
        shape: voxels along (X, Y, Z).
        dtype: of a voxel as stored.
        size: bytes of the file, unpacked.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    size: int


def judge_header(
    stream: IO[bytes], largest_bytes: float, *, limit: str, attempted: str, subject: str, error: type[CurvasError]
) -> Promise:
    """What the header at a stream's beginning promises: one 3-D volume of scalars, no larger than allowed.

    Args:
        stream: of the file, unpacked; it is read to the header's end.
        largest_bytes: the most that the voxels may take.
        limit: what bounds them and how to raise it, for the message.
        attempted: what the file is wanted for, for the message.
        subject: whose it is.
        error: the kind of error to raise.

    Raises:
        CurvasError: of the kind `error`: another number of axes, colours, complex numbers, too large.
        Exception: nibabel's own, of many kinds, where it is no header at all.
    """
    beginning = stream.read(HEADER_SIZE)
    if int.from_bytes(beginning[:4], "little") == NIFTI2 or int.from_bytes(beginning[:4], "big") == NIFTI2:
        remedy = "Save it as NIfTI-1 (nibabel: nib.save(nib.Nifti1Image.from_image(image), path))."
        raise error(attempted, subject, "it is NIfTI-2", remedy)
    header = nib.Nifti1Header.from_fileobj(io.BytesIO(beginning))
    shape, dtype, offset = header.get_data_shape(), header.get_data_dtype(), float(header["vox_offset"])
    if len(shape) != 3 or min(shape) < 1:
        found = f"it has shape {tuple(int(n) for n in shape)}, not three axes"
        raise error(attempted, subject, found, "Give one 3-D volume per file.")
    if dtype.fields or dtype.kind not in "iuf" or dtype.itemsize > 8:
        kind = "colours" if dtype.fields else "complex numbers" if dtype.kind == "c" else str(dtype)
        raise error(
            attempted,
            subject,
            f"its voxels are {kind}, not one number each",
            "Convert the series again: this may be a screenshot or a derived picture. Voxels are int16, float32 or the like.",
        )
    if not FIRST_VOXEL <= offset <= HEADER_BYTES:
        raise ImageFileError(f"its voxels are said to begin at byte {offset:g}")
    x, y, z = (int(n) for n in shape)
    voxels = x * y * z * dtype.itemsize
    if voxels > largest_bytes:
        found = f"its header tells of {z} × {y} × {x} voxels (Z × Y × X), {voxels / 2**30:.3g} GiB"
        raise error(attempted, subject, found, limit)
    return Promise((x, y, z), dtype, int(offset) + voxels)


def require_volume(
    path: Path, largest_bytes: float, *, limit: str, attempted: str, subject: str, error: type[CurvasError]
) -> None:
    """Judge a file's header, then read the file to its end, which verifies a .gz's checksum; arguments as `judge_header`.

    Raises:
        CurvasError: as `judge_header`; or the file goes on far beyond its last voxel, which is not read.
        Exception: nibabel's or the decompressor's own, of many kinds.
    """
    with path.open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    if path.suffix == ".gz" and not compressed:
        raise ImageFileError("it is not compressed, although its name ends in .gz")
    with gzip.open(path, "rb") if compressed else path.open("rb") as stream:
        told: Any = {"attempted": attempted, "subject": subject, "error": error}
        promised = judge_header(stream, largest_bytes, limit=limit, **told).size  # type: ignore[arg-type]
        found = stream.tell()
        while found <= promised + TRAILING_BYTES and (block := stream.read(1 << 22)):
            found += len(block)
    if found > promised + TRAILING_BYTES:
        raise error(
            attempted,
            subject,
            f"the file goes on after its last voxel: its header promises {promised} bytes, and more than {TRAILING_BYTES} follow",
            "Convert it again from its source; the rest was not read.",
        )
