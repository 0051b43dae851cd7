"""Judges a NIfTI file by its header before anything after it is read, because a small file may unpack to any size; then
reads its voxels, once, and verifies the file to its end meanwhile.

`geometry` judges where its voxels lie; the reader judges what they mean.
"""

import gzip
import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.filebasedimages import ImageFileError

from curvas_assets.codes import DEPTH
from curvas_assets.errors import CurvasError
from curvas_assets.geometry import Grid

HEADER_SIZE = 348
NIFTI2 = 540
"""Size of the header of the other version, which nibabel reads by another class."""
HEADER_BYTES = 1 << 24
"""Largest size of a header with its extensions; anything larger is not a header."""
FIRST_VOXEL = 352
"""Earliest byte at which voxels may begin. Readers treat smaller offsets differently: nibabel as 0, ITK as 352."""
TRAILING_BYTES = 1 << 20
"""Bytes allowed after the last voxel, since some writers pad. More means a wrong header or a decompression bomb."""
GZIP = b"\x1f\x8b"
PACKED_PIECE, UNPACKED_PIECE = 1 << 18, 1 << 22
"""Bytes that a .gz is read by, and the most that are unpacked at a time."""


def header_of(grid: Grid, dtype: npt.DTypeLike, slope: float = 1.0, intercept: float = 0.0) -> nib.Nifti1Header:
    """The header of one file (`.nii`) with a volume on a grid; four bytes without extensions follow it, then the voxels.

    Args:
        grid: where the voxels lie; its shape is (Z, Y, X).
        dtype: of the stored voxels.
        slope: of their values.
        intercept: of their values.
    """
    header = nib.Nifti1Header()
    header.set_data_dtype(dtype)
    header.set_data_shape(grid.shape[::-1])
    header.set_sform(grid.affine, code=1)
    header.set_qform(grid.affine, code=1, strip_shears=True)
    header.set_zooms(grid.spacing_mm[::-1])
    header.set_xyzt_units("mm")
    header.set_slope_inter(slope, intercept)
    header["magic"], header["vox_offset"] = b"n+1", FIRST_VOXEL
    return header


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


def judge_file(
    path: Path, largest_bytes: float, *, limit: str, attempted: str, subject: str, error: type[CurvasError]
) -> Promise:
    """What a file's header promises; nothing after the header is read. Arguments and errors as `judge_header`."""
    with Unpacked(path) as stream:
        if path.suffix == ".gz" and not stream.compressed:
            raise ImageFileError("it is not compressed, although its name ends in .gz")
        return judge_header(stream, largest_bytes, limit=limit, attempted=attempted, subject=subject, error=error)  # type: ignore[arg-type]


def read_type(image: Any) -> np.dtype[Any]:
    """The type of the voxels that `read_slabs` gives of an image of nibabel, in the machine's order of bytes."""
    scaled = _scaled_type(image)
    return image.dataobj.dtype.newbyteorder("=") if scaled is None else np.dtype(scaled)


def _scaled_type(image: Any) -> type[np.floating[Any]] | None:
    """Of voxels whose scale is not trivial; else None."""
    stored = image.dataobj
    if (stored.slope, stored.inter) == (1, 0):
        return None
    return np.float32 if stored.dtype.itemsize <= 2 else np.float64


def read_slabs(
    image: Any, *, attempted: str, subject: str, error: type[CurvasError]
) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """(z0, voxels (≤ 16, Y, X)) from the first slice to the last; as stored if the scale is trivial, else scaled.

    A slab is 8 MiB of a clinical CT, and what `PackedLabels` takes. The file is read once. When the last slab has been
    taken and the iterator asked on, it is verified to its end. In a NIfTI file x varies fastest and z slowest, so that the
    bytes of a slab, one after the other, are in (Z, Y, X) order: the one place where axes are swapped.

    Args:
        image: of nibabel, three axes.
        attempted: what the voxels are wanted for, for the message.
        subject: whose they are.
        error: the kind of error to raise.

    Raises:
        CurvasError: of the kind `error`: the file is cut short, damaged, or goes on far beyond its last voxel, which is not read.
    """
    again = "Upload it again from its source."
    stored = image.dataobj
    x, y, z = (int(n) for n in stored.shape)
    scaled = _scaled_type(image)
    try:
        with Unpacked(Path(image.get_filename())) as file:
            file.read(stored.offset)
            for z0 in range(0, z, DEPTH):
                depth = min(DEPTH, z - z0)
                wanted = depth * y * x * stored.dtype.itemsize
                content = file.read(wanted)
                if len(content) < wanted:
                    ends = z0 + len(content) * depth // wanted
                    found = f"the file holds fewer voxels than its header promises: it ends in slice {ends} of {z}"
                    raise error(attempted, subject, found, again)
                voxels = np.frombuffer(content, stored.dtype).reshape(depth, y, x)
                if scaled is not None:
                    with np.errstate(over="ignore", invalid="ignore"):  # infinity is reported when voxels are checked
                        voxels = voxels.astype(scaled) * stored.slope + stored.inter
                yield z0, voxels
            promised = file.tell()
            if len(file.read(TRAILING_BYTES + 1)) > TRAILING_BYTES:
                found = (
                    f"the file goes on after its last voxel: its header promises {promised} bytes, "
                    f"and more than {TRAILING_BYTES} follow"
                )
                raise error(attempted, subject, found, "Convert it again from its source; the rest was not read.")
    except (EOFError, zlib.error, gzip.BadGzipFile) as reason:
        raise error(attempted, subject, f"the file is truncated or damaged ({reason})", again) from reason


class Unpacked:
    """The bytes of a file from the first to the last, unpacked if it is a .gz, whose checksums are verified on the way.

    zlib itself reads header, checksum and length of a .gz: half the time of Python's `gzip`, and threads run beside it.

    Args:
        path: of the file.

    Raises:
        OSError: the file cannot be read; `gzip.BadGzipFile` where what follows a part is no gzip.
        EOFError: a .gz is cut short; raised where it ends.
        zlib.error: a .gz is damaged.
    """

    def __init__(self, path: Path):
        self._file = path.open("rb")
        self.compressed = self._file.peek(2)[:2] == GZIP
        self._given, self._taken = b"", 0
        self._part: Any = None

    def __enter__(self) -> "Unpacked":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def tell(self) -> int:
        """Bytes read so far."""
        return self._taken

    def read(self, size: int) -> bytes:
        """The next bytes; fewer than asked for only at the end."""
        if not self.compressed:
            content = self._file.read(size)
        else:
            pieces: list[bytes] = []
            missing = size
            while missing and (piece := self._unpack(min(missing, UNPACKED_PIECE))):
                pieces.append(piece)
                missing -= len(piece)
            content = b"".join(pieces)
        self._taken += len(content)
        return content

    def _unpack(self, most: int) -> bytes:
        """At least one byte, or none at the end of the last part."""
        while (part := self._open_part()) is not None:
            given = self._given or self._file.read(PACKED_PIECE)
            piece = part.decompress(given, most)
            self._given = part.unused_data if part.eof else part.unconsumed_tail
            if piece:
                return piece
            if not given and not part.eof:
                raise EOFError("it ends in the middle of its compressed data")
        return b""

    def _open_part(self) -> Any:
        """The part that is being unpacked, or the next of those that a .gz may consist of; zeros after a part are padding."""
        if self._part is not None and not self._part.eof:
            return self._part
        if self._part is None:
            self._given = self._file.read(PACKED_PIECE)
        else:
            self._given = self._given.lstrip(b"\0")
            while not self._given and (more := self._file.read(PACKED_PIECE)):
                self._given = more.lstrip(b"\0")
        if not self._given:
            return None
        if len(self._given) < len(GZIP):
            self._given += self._file.read(len(GZIP))
        if not self._given.startswith(GZIP):
            raise gzip.BadGzipFile("what follows its compressed data is no gzip")
        self._part = zlib.decompressobj(zlib.MAX_WBITS | 16)
        return self._part
