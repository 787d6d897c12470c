"""Tables: .csv (RFC 4180), .tsv (unquoted) and .jsonl."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from training.data.example import DataError, Example

_NAMING = "name columns with --text-column and --label-column, or number them without header"


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table.

    Attributes:
        place: `FILE:LINE` of its first line.
        cells: column to text; a column without a value is missing.
        columns: of the header, of the widest row so far, or of this JSON object.
    """

    place: str
    cells: Mapping[str, str]
    columns: Sequence[str]


def read_table(
    path: Path, text_column: str, label_column: str | None, where: Mapping[str, str]
) -> list[Example]:
    """Reads the rows of a file as examples.

    Args:
        path: `.csv`, `.tsv` or `.jsonl`, UTF-8 with or without a byte order mark.
        text_column: a column's name; numbers mean a file without header; several columns
            `1,2` are joined by a blank.
        label_column: a column's name or number; None leaves the labels empty.
        where: only rows in which each of these columns has this value.

    Returns:
        Examples whose id is the column `id` if there is one, else the row number from 0. Blank
        rows are skipped and not counted.

    Raises:
        DataError: on an unknown suffix, another encoding, a missing column, a row without text or
            label or with more fields than the header.
    """
    text_columns = text_column.split(",")
    label_columns = () if label_column is None else (label_column,)
    numbered = all(column.isdecimal() for column in (*text_columns, *label_columns))
    examples = []
    try:
        for number, row in enumerate(_rows(path, numbered)):
            if any(row.cells.get(column) != value for column, value in where.items()):
                continue
            text = " ".join(_cell(row, column) for column in text_columns)
            label = "" if label_column is None else _cell(row, label_column)
            if not text.strip() or not (label.strip() or label_column is None):
                raise DataError(f"{row.place}: empty text or label; fill or remove the row")
            examples.append(Example(row.cells.get("id", str(number)), text, label))
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 ({error.reason}); convert it, for example with iconv"
        ) from None
    if not examples:
        raise DataError(f"{path} has no rows" + (f" with {dict(where)}" if where else ""))
    return examples


def _rows(path: Path, numbered: bool) -> Iterator[Row]:
    """Yields the rows that are not blank."""
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".tsv", ".jsonl"):
        raise DataError(f"{path} is neither .csv, .tsv nor .jsonl; rename or convert it")
    # Without this newline setting a lone carriage return inside a text would end the line.
    with path.open(encoding="utf-8-sig", newline="" if suffix == ".csv" else "\n") as file:
        if suffix == ".jsonl":
            yield from _json_rows(path, file)
        else:
            records = _csv_records(path, file) if suffix == ".csv" else _tsv_records(path, file)
            yield from _named(records, numbered)


def _json_rows(path: Path, lines: Iterator[str]) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        place = f"{path}:{number}"
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{place} is not JSON ({error.msg}); repair or remove the line"
            ) from None
        if not isinstance(record, dict):
            raise DataError(f"{place} is not a JSON object; write one object a line")
        cells = {key: _scalar(value) for key, value in record.items()}
        yield Row(place, {key: cell for key, cell in cells.items() if cell is not None}, [*record])


def _scalar(value: object) -> str | None:
    """Returns a string itself, a number or truth value as JSON writes it, None for the rest."""
    if value is None or isinstance(value, (dict, list)):
        return None
    return value if isinstance(value, str) else json.dumps(value)


def _tsv_records(path: Path, lines: Iterator[str]) -> Iterator[tuple[str, list[str]]]:
    for number, line in enumerate(lines, 1):
        yield f"{path}:{number}", line.removesuffix("\n").removesuffix("\r").split("\t")


def _csv_records(path: Path, lines: Iterator[str]) -> Iterator[tuple[str, list[str]]]:
    csv.field_size_limit(2**31 - 1)
    reader, first = csv.reader(lines, strict=True), 1
    try:
        for fields in reader:
            yield f"{path}:{first}", fields
            first = reader.line_num + 1  # a quoted field may span lines
    except csv.Error as error:
        raise DataError(
            f"{path}:{first} is not RFC 4180 CSV ({error}); quote the field or name the file .tsv"
        ) from None


def _named(records: Iterator[tuple[str, list[str]]], numbered: bool) -> Iterator[Row]:
    """Gives fields the names of the header, or their numbers where there is none."""
    names: list[str] | None = None
    width = 0  # of the widest row so far
    for place, fields in records:
        if not any(field.strip() for field in fields):
            continue
        if not numbered and names is None:
            names = fields
            continue
        width = max(width, len(fields))
        columns = [str(column) for column in range(width)] if names is None else names
        if len(fields) > len(columns):
            raise DataError(
                f"{place}: {len(fields)} fields under a header of {len(columns)}; "
                "repair or remove the row"
            )
        yield Row(place, dict(zip(columns, fields, strict=False)), columns)


def _cell(row: Row, column: str) -> str:
    if column in row.cells:
        return row.cells[column]
    if column in row.columns:
        raise DataError(f"{row.place}: no text in column {column!r}; fill or remove the row")
    found = ", ".join(row.columns) or "none"
    raise DataError(f"{row.place}: no column {column!r}; found: {found} ({_NAMING})")
