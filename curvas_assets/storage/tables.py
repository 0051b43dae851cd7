"""Tables as Parquet and records as JSON: one object each, so that a reader sees all of it or none."""

import hashlib
import io
import json
import math
from typing import Any

import numpy as np
import pandas as pd

from curvas_assets.errors import CorruptArtefactError
from curvas_assets.storage.objects import ObjectStore


def write_table(store: ObjectStore, key: str, table: pd.DataFrame) -> None:
    """Store a table as Parquet (zstd), its index left out."""
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False, compression="zstd")
    store.put(key, buffer.getbuffer())


def read_table(store: ObjectStore, key: str) -> pd.DataFrame:
    """A stored table; a MissingArtefactError if there is none, a CorruptArtefactError if it is no Parquet."""
    return parse_table(store.get(key), f"{store.name}/{key}")


def parse_table(content: bytes, subject: str) -> pd.DataFrame:
    """The table in the bytes of a Parquet file."""
    try:
        return pd.read_parquet(io.BytesIO(content))
    except Exception as error:
        raise CorruptArtefactError(
            "reading a table", subject, f"it is no Parquet file ({type(error).__name__})", "Materialise it again."
        ) from error


def write_json(store: ObjectStore, key: str, record: dict[str, Any]) -> str:
    """Store a record as JSON with sorted keys; NaN and infinity become null.

    Returns:
        A digest of its content, to be used as data version.
    """
    content = json.dumps(_plain(record), sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False).encode()
    store.put(key, content)
    return hashlib.sha256(content).hexdigest()[:16]


def read_json(store: ObjectStore, key: str) -> dict[str, Any]:
    """A stored record; a MissingArtefactError if there is none, a CorruptArtefactError if it is no JSON object."""
    content = store.get(key)
    try:
        record = json.loads(content)
    except ValueError as error:
        raise CorruptArtefactError(
            "reading a record", f"{store.name}/{key}", f"it is no JSON ({error})", "Materialise it again."
        ) from error
    if not isinstance(record, dict):
        raise CorruptArtefactError(
            "reading a record", f"{store.name}/{key}", f"it holds a {type(record).__name__}", "Materialise it again."
        )
    return record


def _plain(value: Any) -> Any:
    """Values as JSON knows them: NumPy numbers and arrays become Python's own."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
