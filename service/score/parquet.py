"""Parquet files, read and written a few rows at a time; the only module that needs pyarrow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from service.score.columns import Columns, Record, TableError, scalar

SCHEMA = pa.schema(
    [
        pa.field("index", pa.int64(), nullable=False),
        pa.field("id", pa.string()),
        pa.field("status", pa.string(), nullable=False),
        pa.field("label", pa.string()),
        pa.field("score", pa.float64()),
        pa.field("target", pa.string()),
        pa.field("rationale", pa.string()),  # JSON, as in the other flat formats
        pa.field("windows", pa.int32()),
        pa.field("error", pa.string()),
    ]
)
_ROWS = 64  # read at a time: texts may be long
_BUFFER_BYTES = 1 << 20
_GROUP_ROWS = 16_384
_GROUP_CHARS = 1 << 24  # of text, so that a row group fits in memory however long its texts are


def read_records(path: Path, columns: Columns) -> Iterator[Record]:
    """Yields the rows of a file, of which only the columns that are asked for are read.

    Raises:
        TableError: not a Parquet file, or a column is missing.
    """
    try:
        # Reading on threads of its own may hang at the interpreter's end (apache/arrow 34314).
        # Without a buffer a whole column of a row group, which may be the file, would be read.
        file = parquet.ParquetFile(path, pre_buffer=False, buffer_size=_BUFFER_BYTES)
    except pa.ArrowInvalid:
        raise TableError(f"{path} is not a Parquet file; convert it, or name it right") from None
    with file:
        found = file.schema_arrow.names
        columns.check(path, found)
        wanted = [name for name in dict.fromkeys((*columns.needed, "id")) if name in found]
        for name in wanted:
            _check_type(path, file.schema_arrow.field(name))
        for batch in file.iter_batches(_ROWS, columns=wanted, use_threads=False):
            values = {name: _strings(batch.column(name)) for name in wanted}
            for row in range(batch.num_rows):
                cells = {name: values[name][row] for name in wanted}
                if _NO_UTF8 in cells.values():
                    yield Record({}, (), "a value of the row is not UTF-8")
                else:
                    yield Record({k: v for k, v in cells.items() if v is not None}, found)


def _check_type(path: Path, column: pa.Field) -> None:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    plain = (
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_string_view,
        pa.types.is_integer,
        pa.types.is_floating,
        pa.types.is_boolean,
        pa.types.is_null,
    )
    if not any(check(kind) for check in plain):
        raise TableError(f"{path}: column {column.name!r} is of type {kind}; write it as a string")


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes rows of the columns of `SCHEMA`, in bounded memory; equal rows give equal bytes."""
    with parquet.ParquetWriter(path, SCHEMA, compression="zstd") as writer:
        waiting: list[Mapping[str, Any]] = []
        size = 0
        for row in rows:
            waiting.append(row)
            size += sum(len(value) for value in row.values() if isinstance(value, str))
            if size >= _GROUP_CHARS or len(waiting) >= _GROUP_ROWS:
                _flush(writer, waiting)
                size = 0
        if waiting:
            _flush(writer, waiting)


def _flush(writer: parquet.ParquetWriter, rows: list[Mapping[str, Any]]) -> None:
    writer.write_table(pa.Table.from_pylist(rows, SCHEMA))
    rows.clear()


# Marks a value that is no text; no file can hold it.
_NO_UTF8 = "\udcff"


def _strings(column: pa.Array) -> Sequence[str | None]:
    """The values of a column as texts; nothing promises that its strings are valid UTF-8."""
    try:
        return [scalar(value) for value in column.to_pylist()]
    except UnicodeDecodeError:
        return [_string(value) for value in column]


def _string(value: pa.Scalar) -> str | None:
    try:
        return scalar(value.as_py())
    except UnicodeDecodeError:
        return _NO_UTF8
