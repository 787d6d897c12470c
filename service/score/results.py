"""What is written of each row, and how it looks in each format.

A shard holds lines of JSON whatever the format of the output; the flat formats are made of them at
the end.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from models.explainer import Explanation
from models.views import one_line

# The columns of the flat formats, in their order; `service.score.parquet` has their types.
FIELDS = ("index", "id", "status", "label", "score", "target", "rationale", "windows", "error")


def answered(index: int, name: str | None, explanation: Explanation) -> dict[str, Any]:
    """The record of an answered row.

    Args:
        index: of the row, from 0.
        name: its id, if it has one.
        explanation: of its text.
    """
    return {
        **_head(index, name),
        "status": "ok",
        "label": explanation.label,
        "score": explanation.score,
        "scores": explanation.scores,
        "target": explanation.target,
        "rationale": [span.to_dict() for span in explanation.rationale],
        "windows": explanation.windows,
    }


def failed(index: int, name: str | None, error: str) -> dict[str, Any]:
    """The record of a row that has no answer; `error` is one line without any of its text."""
    return {**_head(index, name), "status": "error", "error": error}


def to_line(record: object) -> bytes:
    """Compact JSON on one line, for whatever its reader takes for the end of a line.

    Raises:
        ValueError: a number that JSON does not have; the models never answer one.
    """
    return f"{_compact(record)}\n".encode()


def check_cell(text: str, suffix: str, what: str) -> None:
    """Refuses what a format cannot hold.

    Args:
        text: of a cell.
        suffix: of the output.
        what: the name of the cell, for the error, which does not repeat the text.

    Raises:
        ValueError: a tab or a line end for an unquoted .tsv.
    """
    if suffix == ".tsv" and any(character in text for character in "\t\r\n"):
        raise ValueError(f"{what} has a tab or a line end, which .tsv cannot hold: write .csv")


def write_results(path: Path, suffix: str, shards: Iterable[bytes]) -> None:
    """Writes the file that people asked for.

    Args:
        path: to write to; another file there is replaced.
        suffix: one of `service.score.tables.FORMATS`.
        shards: lines of JSON, see `to_line`.
    """
    if suffix == ".parquet":
        from service.score import parquet  # noqa: PLC0415 - of an extra

        parquet.write_rows(path, _flat_rows(shards))
        return
    with path.open("wb") as file:
        if suffix == ".jsonl":
            file.writelines(shards)
            return
        format_row = _csv_line if suffix == ".csv" else _tsv_line
        file.write(format_row(FIELDS))
        for row in _flat_rows(shards):
            file.write(format_row(["" if row[name] is None else row[name] for name in FIELDS]))


def _head(index: int, name: str | None) -> dict[str, Any]:
    return {"index": index} if name is None else {"index": index, "id": name}


def _compact(value: object) -> str:
    found = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return one_line(found)


def _flat_rows(shards: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    for shard in shards:
        for line in shard.splitlines():
            record = json.loads(line)
            row = {name: record.get(name) for name in FIELDS}
            if row["rationale"] is not None:
                row["rationale"] = _compact(row["rationale"])
            yield row


def _csv_line(cells: Iterable[object]) -> bytes:
    buffer = io.StringIO(newline="")
    csv.writer(buffer).writerow(cells)  # its defaults are RFC 4180
    return buffer.getvalue().encode()


def _tsv_line(cells: Iterable[object]) -> bytes:
    return ("\t".join(map(str, cells)) + "\n").encode()
