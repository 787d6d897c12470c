"""Tables: .csv (RFC 4180), .tsv (unquoted) and .jsonl."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from training.data.example import DataError, Example

Row = Mapping[str, str]


def read_table(
    path: Path, text_column: str, label_column: str, where: Mapping[str, str]
) -> list[Example]:
    """Reads the rows of a file as examples.

    Args:
        path: `.csv`, `.tsv` or `.jsonl`.
        text_column: a column's name; numbers mean a file without header; several columns
            `1,2` are joined by a blank.
        label_column: a column's name or number.
        where: only rows in which each of these columns has this value.

    Returns:
        Examples whose id is the column `id` if there is one, else the row number from 0.

    Raises:
        DataError: on an unknown suffix, a missing column, a row without text or label.
    """
    text_columns = text_column.split(",")
    numbered = all(column.isdigit() for column in (*text_columns, label_column))
    examples = []
    for number, row in enumerate(_rows(path, numbered)):
        if any(row.get(column) != value for column, value in where.items()):
            continue
        texts = [_field(row, column, path, number) for column in text_columns]
        label = _field(row, label_column, path, number)
        text = " ".join(texts)
        if not text.strip() or not label:
            raise DataError(f"{path}, row {number}: empty text or label; fill or remove the row")
        examples.append(Example(row.get("id", str(number)), text, label))
    if not examples:
        raise DataError(f"{path} has no rows" + (f" with {dict(where)}" if where else ""))
    return examples


def _rows(path: Path, numbered: bool) -> Iterator[Row]:
    if path.suffix == ".jsonl":
        yield from _json_rows(path)
    elif path.suffix in (".csv", ".tsv"):
        yield from _separated_rows(path, numbered)
    else:
        raise DataError(f"{path} is neither .csv, .tsv nor .jsonl; rename or convert it")


def _json_rows(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{path}:{number} is not JSON ({error.msg})") from None
            if not isinstance(record, dict):
                raise DataError(f"{path}:{number} is not a JSON object; one object a line")
            yield {str(key): str(value) for key, value in record.items() if value is not None}


def _separated_rows(path: Path, numbered: bool) -> Iterator[Row]:
    with path.open(encoding="utf-8", newline="") as file:
        lines: Iterator[Sequence[str]]
        if path.suffix == ".tsv":
            lines = (line.rstrip("\r\n").split("\t") for line in file if line.strip())
        else:
            csv.field_size_limit(2**31 - 1)
            lines = (row for row in csv.reader(file, strict=True) if row)
        try:
            names = None if numbered else next(lines, [])
            for row in lines:
                keys = names if names is not None else [str(column) for column in range(len(row))]
                yield dict(zip(keys, row, strict=False))
        except csv.Error as error:
            raise DataError(f"{path} is not RFC 4180 CSV ({error})") from None


def _field(row: Row, column: str, path: Path, number: int) -> str:
    if column not in row:
        found = ", ".join(row) or "none"
        raise DataError(
            f"{path}, row {number}: no column {column!r}; found: {found} "
            "(name columns with --text-column and --label-column, or number them without header)"
        )
    return row[column]
