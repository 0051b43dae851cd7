"""Tables as Parquet and records as JSON: one object each, so that a reader sees all of it or none; with their digests."""

import hashlib
import io
import math
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from curvas_assets.errors import CorruptArtefactError
from curvas_assets.storage.digests import (
    open_record,
    opened_table,
    read_soundly,
    record_text,
    seal_record,
    seal_table,
    sha256_of_bytes,
)
from curvas_assets.storage.objects import ObjectStore
from curvas_assets.storage.schemas import TableSchema

SEALED = b"curvas.sealed"
"""In the footer of a table that has a digest, so that a lost digest is noticed."""


def write_table(store: ObjectStore, key: str, table: pd.DataFrame, schema: TableSchema | None = None) -> None:
    """Store a table as Parquet (zstd), its index left out, its digest in it.

    Args:
        store: where.
        key: of the object.
        table: what is stored.
        schema: what its columns must be; any if it is not given.

    Raises:
        StorageError: the table is not as its schema says.
    """
    columns = pa.Table.from_pandas(table, preserve_index=False)
    if schema is not None:
        schema.require_written(columns, f"{store.name}/{key}")
    columns = columns.replace_schema_metadata({**(columns.schema.metadata or {}), SEALED: b"sha256"})
    buffer = io.BytesIO()
    pq.write_table(columns, buffer, compression="zstd")
    store.put(key, seal_table(buffer.getvalue()))


def read_table(store: ObjectStore, key: str, schema: TableSchema | None = None) -> pd.DataFrame:
    """A stored table.

    Args:
        store: where.
        key: of the object.
        schema: what its columns must be; any if it is not given.

    Raises:
        MissingArtefactError: there is none.
        CorruptArtefactError: what is stored is no Parquet, not what was written, or not as its schema says.
        StorageError: the transfer damages it.
    """
    subject = f"{store.name}/{key}"
    table = read_soundly(
        lambda: store.get(key), lambda content: parse_table(content, subject), sha256_of_bytes, subject
    )
    require_schema(table, schema, subject)
    return table


def require_schema(table: pd.DataFrame, schema: TableSchema | None, subject: str) -> None:
    """A CorruptArtefactError unless a table that was read is as its schema says, if it has one."""
    if schema is not None:
        schema.require_read(pa.Table.from_pandas(table, preserve_index=False), subject)


def parse_table(content: bytes, subject: str) -> pd.DataFrame:
    """The table in the bytes of a Parquet file.

    Raises:
        CorruptArtefactError: they are no Parquet file, or not what was written.
    """
    try:
        plain = opened_table(content)
        if plain is content and SEALED in (pq.read_metadata(io.BytesIO(content)).metadata or {}):
            raise ValueError("its SHA-256 is gone")
        return pd.read_parquet(io.BytesIO(plain))
    except Exception as error:
        raise CorruptArtefactError(
            "reading a table",
            subject,
            f"it is no Parquet file as it was written ({type(error).__name__}: {' '.join(str(error).split())[:120]})",
            "Materialise it again.",
        ) from error


def write_json(store: ObjectStore, key: str, record: dict[str, Any]) -> str:
    """Store a record as JSON with sorted keys, its digest in it; NaN and infinity become null.

    Returns:
        A digest of its content, to be used as data version.
    """
    plain = _plain(record)
    store.put(key, seal_record(plain))
    return record_version(plain)


def record_version(record: dict[str, Any]) -> str:
    """Sixteen hexadecimal digits that change exactly when a record's content does; those that `write_json` returns."""
    return sha256_of_bytes(record_text(_plain(record)))[:16]


def read_json(store: ObjectStore, key: str) -> dict[str, Any]:
    """A stored record.

    Raises:
        MissingArtefactError: there is none.
        CorruptArtefactError: what is stored is no JSON object, or not what was written.
        StorageError: the transfer damages it.
    """
    subject = f"{store.name}/{key}"
    return read_soundly(lambda: store.get(key), lambda content: _parse(content, subject), sha256_of_bytes, subject)


def _parse(content: bytes, subject: str) -> dict[str, Any]:
    try:
        return open_record(content)
    except ValueError as error:
        raise CorruptArtefactError(
            "reading a record", subject, f"it is no record as it was written ({error})", "Materialise it again."
        ) from error


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


def table_version(table: pd.DataFrame) -> str:
    """A digest of a table's content, column names and order of rows included."""
    digest = hashlib.sha256(repr(list(table.columns)).encode())
    digest.update(pd.util.hash_pandas_object(table, index=False).to_numpy().tobytes())
    return digest.hexdigest()[:16]
