"""The rows of a file as a stream: .jsonl, .csv (RFC 4180), .tsv (unquoted) and .parquet.

A row that cannot be used carries its error and the stream goes on; a file that cannot be read as a
table at all is a `TableError`. One line, or one cell of a CSV, is all that is ever in memory.
"""

from __future__ import annotations

import csv
import importlib.util
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

from service.score.columns import Columns, Record, TableError, scalar

FORMATS = (".jsonl", ".csv", ".tsv", ".parquet")
MAX_CHARS = 1_000_000  # of a text, as the HTTP API has it; a longer one is an error of its row
MAX_LINE = 1 << 24  # characters; JSON may write one of the text as twelve


class InputRow(NamedTuple):
    """A row.

    Attributes:
        text: of the text columns; empty where there is an error.
        id: of the id column; None where there is none.
        error: why there is no text, in one line that repeats nothing of the row.
        columns: that the row has; none where it could not be read.
    """

    text: str
    id: str | None = None
    error: str | None = None
    columns: Sequence[str] = ()


def format_of(path: Path) -> str:
    """Returns the ending that says how a file is read or written.

    Raises:
        TableError: another ending, or one that takes a package which is not installed.
    """
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise TableError(f"{path} is none of {', '.join(FORMATS)}; rename or convert it")
    if suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise TableError(f"{path} needs pyarrow: pip install 'l2e[parquet]'")
    return suffix


def read_rows(path: Path, columns: Columns) -> Iterator[InputRow]:
    """Yields the rows of a file in order; blank lines are no rows.

    Args:
        path: one of `FORMATS`; text is UTF-8, with or without a byte order mark.
        columns: which to read.

    Raises:
        TableError: no such column in the header, or not the format that its ending says.
    """
    suffix = format_of(path)
    for record in _parquet(path, columns) if suffix == ".parquet" else _text(path, suffix, columns):
        yield _row(record, columns)


def _parquet(path: Path, columns: Columns) -> Iterator[Record]:
    from service.score.parquet import read_records  # noqa: PLC0415 - of an extra

    return read_records(path, columns)


def _text(path: Path, suffix: str, columns: Columns) -> Iterator[Record]:
    # Without this newline setting a lone carriage return inside a text would end the line. Bytes
    # that are no UTF-8 become lone surrogates, so that only their row is lost.
    newline = "" if suffix == ".csv" else "\n"
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline=newline) as file:
        if suffix == ".jsonl":
            yield from _json_records(file)
        elif suffix == ".csv":
            yield from _named(path, _csv_fields(path, file), columns)
        else:
            yield from _named(path, _tsv_fields(file), columns)


def _lines(file: TextIO) -> Iterator[str | None]:
    """Yields lines with their ends; None for one that is too long to be kept."""
    while line := file.readline(MAX_LINE):
        if len(line) < MAX_LINE or line.endswith("\n"):
            yield line
            continue
        while (rest := file.readline(MAX_LINE)) and not rest.endswith("\n"):
            pass
        yield None


def _json_records(file: TextIO) -> Iterator[Record]:
    for number, line in enumerate(_lines(file), 1):
        if line is None:
            yield Record({}, (), _too_long(number))
        elif line.strip():
            yield _json_record(line, number)


def _json_record(line: str, number: int) -> Record:
    if not _is_utf8(line):
        return Record({}, (), f"line {number} is not UTF-8")
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        what = error.msg.removesuffix(" at")
        return Record({}, (), f"line {number} is not JSON ({what} at column {error.colno})")
    except (ValueError, RecursionError):
        # A number of thousands of digits, thousands of brackets.
        return Record({}, (), f"line {number} is JSON that is too large or too deep")
    if not isinstance(value, dict):
        return Record({}, (), f"line {number} is not a JSON object")
    cells = {key: cell for key, found in value.items() if (cell := scalar(found)) is not None}
    return Record(cells, [*value])


# A row's place and its fields, or why it has none.
_Fields = tuple[str, list[str] | None]


def _tsv_fields(file: TextIO) -> Iterator[_Fields]:
    for number, line in enumerate(_lines(file), 1):
        if line is None:
            yield _too_long(number), None
        else:
            fields = line.removesuffix("\n").removesuffix("\r").split("\t")
            blank = len(fields) == 1 and not fields[0].strip()
            yield f"line {number}", [] if blank else fields


def _csv_fields(path: Path, file: TextIO) -> Iterator[_Fields]:
    csv.field_size_limit(MAX_LINE)
    reader, first = csv.reader(_csv_lines(path, file), strict=True), 1
    try:
        for fields in reader:
            yield f"line {first}", fields
            first = reader.line_num + 1  # a quoted field may span lines
    except csv.Error as error:
        # Nobody knows where the next row begins.
        raise TableError(
            f"{path}:{first} is not RFC 4180 CSV ({error}); quote the field or name the file .tsv"
        ) from None


def _csv_lines(path: Path, file: TextIO) -> Iterator[str]:
    for number, line in enumerate(_lines(file), 1):
        if line is None:
            raise TableError(f"{path}: {_too_long(number)}")
        yield line


def _named(path: Path, rows: Iterable[_Fields], columns: Columns) -> Iterator[Record]:
    """Gives fields the names of the header, or their numbers where there is none."""
    header: list[str] | None = None
    for place, fields in rows:
        if fields is None:
            yield Record({}, (), place)
            continue
        if not fields:  # a blank line; one with separators or quotes is a row of empty cells
            continue
        if header is None and not columns.numbered:
            header = fields
            columns.check(path, header)
            continue
        names = [str(column) for column in range(len(fields))] if header is None else header
        if not all(map(_is_utf8, fields)):
            yield Record({}, (), f"{place} is not UTF-8")
        elif len(fields) > len(names):
            counts = f"{len(fields)} fields under a header of {len(names)}"
            yield Record({}, (), f"{place} has {counts}")
        else:
            yield Record(dict(zip(names, fields, strict=False)), names)


def _row(record: Record, columns: Columns) -> InputRow:
    """Picks the text and the id of a row."""
    cells, found, error = record
    if error is not None:
        return InputRow("", None, error)
    name = cells.get(columns.id or "id")
    if name is not None and not _is_utf8(name):
        return InputRow("", None, "id has a lone surrogate: give valid Unicode", found)
    for column in columns.texts:
        if column not in cells:
            return InputRow("", name, f"no text in column {column!r}", found)
    text = " ".join(cells[column] for column in columns.texts)
    if len(text) > MAX_CHARS:
        fault = f"text has {len(text):,} characters: give at most {MAX_CHARS:,}, cut it in parts"
        return InputRow("", name, fault, found)
    return InputRow(text, name, None, found)


def _too_long(number: int) -> str:
    return f"line {number} has more than {MAX_LINE:,} characters"


def _is_utf8(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
