"""Volumes of the first format (codes p × 65535 that sum to 65535), written by zarr-python as they lie in old buckets."""

import hashlib
import json
import tempfile
from pathlib import Path

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec

from curvas_assets.storage.objects import FolderObjects
from curvas_assets.storage.softmax import SoftmaxVolume, open_softmax

KEY, VERSION = "softmax.zarr", "0123456789abcdef"


def first_format(softmax: np.ndarray) -> SoftmaxVolume:
    """A stored volume of probabilities (C, Z, Y, X), at most 256 voxels wide, in a folder of its own."""
    root = Path(tempfile.mkdtemp())
    codes = np.round(softmax[1:] * 65535).astype(np.uint16)
    depths = -(-codes.shape[1] // 16)
    names = ["background", *(f"organ{c}" for c in range(1, len(softmax)))]
    chunk = (codes.shape[0], 16, *codes.shape[2:])
    array = zarr.create_array(
        root / KEY / VERSION,
        shape=codes.shape,
        dtype="uint16",
        chunks=chunk,
        shards=(chunk[0], depths * 16, *chunk[2:]),
        compressors=[BloscCodec(cname="zstd", clevel=5, shuffle="shuffle", typesize=2), Crc32cCodec()],
        fill_value=0,
    )
    array[:] = codes
    payload = (root / KEY / VERSION / "c/0/0/0/0").read_bytes()
    attributes = {
        "format": "curvas-softmax-1",
        "scale_factor": 1 / 65535,
        "class_names": names,
        "spacing_mm": [1.0, 1.0, 1.0],
        "affine": np.eye(4).tolist(),
        "encoder": {"tail": 1e-4, "block": [16, 32, 32]},
        "payload_bytes": len(payload),
        "payload_sha256": hashlib.sha256(payload).hexdigest(),
        "provenance": {},
    }
    array.attrs.update(attributes)
    group = {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": {"format": "curvas-softmax-1", "current": VERSION, "fullest_slice": 0},
    }
    (root / KEY / "zarr.json").write_text(json.dumps(group))
    return open_softmax(FolderObjects(root), KEY)
