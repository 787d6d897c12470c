"""Attributions on disk: Parquet files that are only ever added, named by their own checksum.

A store is a folder for one black box. A file holds the records of one shard; it is written under
a temporary name and renamed, so a killed run leaves whole files and nothing else, and several
processes may add to one folder. A record is found by text, target, teacher and seed; of several
the one with the largest budget counts.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from training.attribution.record import Attribution
from training.runtime import write_bytes, write_json

SCHEMA = pa.schema(
    [
        pa.field("text_sha256", pa.binary(32), nullable=False),
        pa.field("teacher", pa.string(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("asked", pa.int32(), nullable=False),  # the target asked for, -1 = predicted
        pa.field("target", pa.int32(), nullable=False),
        pa.field("budget", pa.int32(), nullable=False),
        pa.field("value", pa.float64(), nullable=False),
        pa.field("null_value", pa.float64(), nullable=False),
        pa.field("eps", pa.float64()),
        pa.field("weights", pa.list_(pa.float64()), nullable=False),
        pa.field("values", pa.list_(pa.float64()), nullable=False),
    ]
)
# Stored values belong to masks that are drawn again when they are read: raise this with every
# change of what a teacher draws, of words, or of these columns.
VERSION = 1
# Decoded files that are kept: records are asked for in the order of texts, which may take turns
# between the files of several runs.
OPEN = 4
_NAME = re.compile(r"[0-9a-f]{64}\.parquet")

Key = tuple[bytes, int, str, int]  # digest of the text, target, teacher, seed


class StoreError(ValueError):
    """A store on disk is damaged or belongs to something else; one line with the cure."""


@dataclass(frozen=True)
class _Place:
    path: Path
    row: int


class AttributionStore:
    """The attributions of one black box in a folder.

    Every file is checked against its name when the store is opened. Beside it may lie a note of
    how long it took, which is no part of the attributions: their bytes are the same everywhere.

    Args:
        folder: created if need be.
        key: what the records depend on besides their own columns, plain JSON types: the black
            box, its precision, the mask.

    Raises:
        StoreError: when the folder was made for another key, or a file is damaged.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any]) -> None:
        self.folder = folder
        claim_folder(folder, {**key, "version": VERSION})
        self._places: dict[Key, dict[int, _Place]] = {}  # by budget
        self._open: dict[Path, list[dict[str, Any]]] = {}  # the least recently used first
        for path in sorted(folder.glob("*.parquet")):
            self._index(path, _checked(path))

    def find(
        self, text: str, target: int, teacher: str, seed: int, budget: int
    ) -> Attribution | None:
        """Returns the record of this budget, else the one with the largest budget, else None.

        Args:
            text: the whole text.
            target: a class, or `PREDICTED` for a record made when the predicted one was asked.
            teacher: its name.
            seed: of sampling.
            budget: evaluations spent.
        """
        places = self._places.get((text_digest(text), target, teacher, seed))
        if places is None:
            return None
        place = places[budget if budget in places else max(places)]
        return _from_row(self._rows(place.path)[place.row])

    def seconds(self, text: str, record: Attribution) -> float:
        """Returns the seconds that a stored record took, its share of its file.

        Those of an ensemble are the sum over its members; NaN where nobody knows.
        """
        if record.members:
            return sum(self.seconds(text, member) for member in record.members)
        places = self._places.get((text_digest(text), record.target, record.teacher, record.seed))
        try:
            note = (places or {})[record.budget].path.with_suffix(".json")
            return float(json.loads(note.read_text(encoding="utf-8"))["seconds_per_text"])
        except (OSError, ValueError, KeyError, TypeError):  # a lost note does no harm
            return float("nan")

    def seconds_per_text(self, texts: Mapping[str, str], records: Sequence[Attribution]) -> float:
        """Returns the mean seconds over records whose ids are keys of `texts`."""
        return float(np.mean([self.seconds(texts[record.id], record) for record in records]))

    def add(self, content: bytes, seconds_per_text: float) -> Path:
        """Writes the records of one shard, made by `encode_records`, into a file of its own.

        Returns:
            The file, named by the sha256 of its bytes.
        """
        path = self.folder / f"{hashlib.sha256(content).hexdigest()}.parquet"
        write_json(path.with_suffix(".json"), {"seconds_per_text": seconds_per_text})
        write_bytes(path, content)
        self._index(path, content)
        return path

    def _index(self, path: Path, content: bytes) -> None:
        columns = ["text_sha256", "asked", "target", "teacher", "seed", "budget"]
        for row, record in enumerate(_decode(content, columns)):
            for target in {record["asked"], record["target"]}:
                key = (record["text_sha256"], target, record["teacher"], record["seed"])
                # Two processes may have made the same record; the first name in the folder holds.
                self._places.setdefault(key, {}).setdefault(record["budget"], _Place(path, row))

    def _rows(self, path: Path) -> list[dict[str, Any]]:
        rows = self._open.pop(path, None)
        if rows is None:
            rows = _decode(_checked(path))
            if len(self._open) == OPEN:
                del self._open[next(iter(self._open))]
        self._open[path] = rows
        return rows


def claim_folder(folder: Path, key: Mapping[str, Any]) -> None:
    """Writes what a folder's results depend on into its `key.json`; refuses one made for another.

    Raises:
        StoreError: naming what differs, or the damaged or missing file.
    """
    path = folder / "key.json"
    if not path.exists():
        if any(folder.glob("*.parquet")):
            raise StoreError(f"{path} is missing, so whose results these are: remove the folder")
        write_json(path, key)
        return
    try:
        stored = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):  # no JSON object, or not even UTF-8
        raise StoreError(f"{path} is damaged: remove the folder to compute it anew") from None
    changed = sorted(name for name in {*key, *stored} if key.get(name) != stored.get(name))
    if changed:
        raise StoreError(
            f"{folder} holds results of another run ({', '.join(changed)} differ): "
            "remove the folder to compute them anew"
        )


def encode_records(
    texts: Sequence[str], asked: Sequence[int], found: Sequence[Attribution]
) -> bytes:
    """Returns records as a Parquet file; equal records give equal bytes."""
    rows = [
        {
            "text_sha256": text_digest(text),
            "teacher": record.teacher,
            "seed": record.seed,
            "asked": target,
            "target": record.target,
            "budget": record.budget,
            "value": record.value,
            "null_value": record.null_value,
            "eps": record.eps,
            "weights": record.weights,
            "values": record.values,
        }
        for text, target, record in zip(texts, asked, found, strict=True)
    ]
    buffer = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows, SCHEMA), buffer, compression="zstd")
    return buffer.getvalue()


def text_digest(text: str) -> bytes:
    """Returns the sha256 of a text."""
    return hashlib.sha256(text.encode()).digest()


def _from_row(row: Mapping[str, Any]) -> Attribution:
    return Attribution(
        id="",
        target=row["target"],
        teacher=row["teacher"],
        budget=row["budget"],
        seed=row["seed"],
        value=row["value"],
        null_value=row["null_value"],
        weights=np.array(row["weights"], dtype=np.float64),
        values=np.array(row["values"], dtype=np.float64),
        eps=row["eps"],
    )


def _decode(content: bytes, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Reads the rows of a Parquet file on this thread.

    `parquet.read_table` reads on threads of its own, which may still hold a Python object while
    the interpreter ends: the process then aborts or hangs after its work is done
    (apache/arrow issues 34314 and 50482).
    """
    file = parquet.ParquetFile(io.BytesIO(content), pre_buffer=False)
    rows: list[dict[str, Any]] = file.read(columns=columns, use_threads=False).to_pylist()
    return rows


def _checked(path: Path) -> bytes:
    """Reads a file of a store and compares it with the checksum that is its name."""
    content = path.read_bytes()
    whole = _NAME.fullmatch(path.name) and hashlib.sha256(content).hexdigest() == path.stem
    if not whole:
        raise StoreError(f"{path} is damaged: remove it and run again to compute its part anew")
    return content
