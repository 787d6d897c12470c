"""Results on disk: JSON lines in shards, each written whole, so that a killed run resumes.

A store is a folder made for one setting (black box, texts, teacher, …), which its `key.json`
records; going on with anything else is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from training.attribution.record import Attribution
from training.runtime import write_json, write_text


class StoreError(ValueError):
    """A store on disk is damaged or belongs to something else; one line with the cure."""


class ShardStore:
    """Shards of JSON records in a folder.

    Args:
        folder: created if need be.
        key: what the records depend on, plain JSON types.

    Raises:
        StoreError: when the folder holds records made under another key.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any]) -> None:
        self.folder = folder
        path = folder / "key.json"
        if not path.exists():
            write_json(path, key)
            return
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:  # neither JSON nor UTF-8
            raise StoreError(f"{path} is damaged: remove the folder to compute it anew") from None
        changed = sorted(name for name in {*key, *stored} if key.get(name) != stored.get(name))
        if changed:
            raise StoreError(
                f"{folder} holds results of another run ({', '.join(changed)} differ): "
                "remove the folder to compute them anew"
            )

    def missing(self, shards: int) -> list[int]:
        """Returns the numbers below `shards` that are not on disk yet."""
        return [number for number in range(shards) if not self._path(number).exists()]

    def write(self, shard: int, records: Iterable[Mapping[str, Any]]) -> None:
        """Writes one shard, whole or not at all, with its checksum on the last line."""
        body = "".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records)
        write_text(self._path(shard), f"{body}{_checksum_line(body.encode()).decode()}")

    def read(self, shards: int) -> list[dict[str, Any]]:
        """Reads the records of shards 0 to `shards` - 1 and checks the checksums.

        Raises:
            StoreError: when a file is damaged.
        """
        records = []
        for number in range(shards):
            path = self._path(number)
            content = path.read_bytes()  # not text: damage may leave no valid UTF-8
            body = content[: content.rfind(b"\n", 0, -1) + 1]
            if content != body + _checksum_line(body):
                raise StoreError(f"{path} is damaged: remove it and run the stage again")
            records += [json.loads(line) for line in body.split(b"\n")[:-1]]
        return records

    def _path(self, shard: int) -> Path:
        return self.folder / f"{shard:05d}.jsonl"


def to_record(attribution: Attribution) -> dict[str, Any]:
    """Returns an attribution as plain JSON types."""
    values = {part.name: getattr(attribution, part.name) for part in fields(attribution)}
    return {**values, "weights": attribution.weights.tolist()}


def from_record(record: Mapping[str, Any]) -> Attribution:
    """Builds the attribution that `to_record` wrote, to the last bit."""
    return Attribution(**{**record, "weights": np.array(record["weights"], dtype=np.float64)})


def texts_digest(texts: Sequence[str]) -> str:
    """Returns a digest of a list of texts, for a store's key."""
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


def _checksum_line(body: bytes) -> bytes:
    return json.dumps({"sha256": hashlib.sha256(body).hexdigest()}).encode() + b"\n"
