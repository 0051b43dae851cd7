"""Which columns a stored table has: what the code that makes the table promises, checked on writing and on reading.

Belongs here: how a table is checked against its columns. Does not belong here: the columns themselves, which stand in
`curvas_assets.stages.schemas`.
"""

from dataclasses import dataclass

import pyarrow as pa

from curvas_assets.errors import CorruptArtefactError, StorageError


@dataclass(frozen=True)
class TableSchema:
    """The columns of a stored table.

    Args:
        columns: in their order. Text is `string`, a whole number `int64`, a number `float64`, a yes or no `bool`; a
            column that is not nullable has a value in every row.
        optional: columns that a table may lack.
    """

    columns: pa.Schema
    optional: frozenset[str] = frozenset()

    def require_written(self, table: pa.Table, subject: str) -> None:
        """Refuse to store a table that other code could not read.

        Raises:
            StorageError: a column is missing, is not named by the schema, has another type, or lacks values.
        """
        if problems := self._problems(table):
            raise StorageError(
                "storing a table",
                subject,
                "; ".join(problems),
                "Report it: the code that makes it must change, or its schema.",
            )

    def require_read(self, table: pa.Table, subject: str) -> None:
        """Refuse a stored table that this code does not make.

        Raises:
            CorruptArtefactError: as `require_written`.
        """
        if problems := self._problems(table):
            raise CorruptArtefactError(
                "reading a table",
                subject,
                f"it was made by another version: {'; '.join(problems)}",
                "Materialise it again.",
            )

    def _problems(self, table: pa.Table) -> list[str]:
        """What is wrong with a table, column by column."""
        found = {name: table.column(name) for name in table.column_names}
        missing = [f"it has no column {name}" for name in self.columns.names if name not in {*found, *self.optional}]
        strange = [
            f"its column {name} is none of {', '.join(self.columns.names)}"
            for name in found
            if name not in self.columns.names
        ]
        wrong = [
            problem
            for name, column in found.items()
            if name in self.columns.names
            for problem in _column_problems(self.columns.field(name), column)
        ]
        return missing + strange + wrong


def _column_problems(wanted: pa.Field, column: pa.ChunkedArray) -> list[str]:
    """What is wrong with one column. Where a column has no value, pandas knows no type, and any will do."""
    absent = column.null_count
    if absent < len(column) and not _fits(wanted.type, column.type):
        return [f"its column {wanted.name} is {column.type}, not {wanted.type}"]
    if absent and not wanted.nullable:
        return [f"its column {wanted.name} lacks a value in {absent} of {len(column)} rows"]
    return []


def _fits(wanted: pa.DataType, found: pa.DataType) -> bool:
    """Whether a type is the wanted one, in any width; whole numbers also count as numbers."""
    kinds = {
        pa.string(): (pa.types.is_string, pa.types.is_large_string),
        pa.int64(): (pa.types.is_integer,),
        pa.float64(): (pa.types.is_floating, pa.types.is_integer),
        pa.bool_(): (pa.types.is_boolean,),
    }
    return any(is_kind(found) for is_kind in kinds[wanted])
