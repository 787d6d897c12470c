"""Results on disk: JSON lines in shards, each written whole, so that a killed run resumes.

A store is a folder made for one setting (black box, texts, teacher, …), which its `key.json`
records; going on with anything else is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from training.attribution.store import StoreError, claim_folder
from training.runtime import progress, write_text

SHARD = 4  # texts per file: a killed run loses at most these


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
        claim_folder(folder, key)

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


def compute_records(
    work: Path,
    key: Mapping[str, Any],
    count: int,
    compute: Callable[[int], dict[str, Any]],
    what: str,
) -> list[dict[str, Any]]:
    """Computes records 0 to `count` - 1 in shards; a killed run loses at most one shard.

    Args:
        work: parent of the stores; each key has its own.
        key: what the records depend on, plain JSON types.
        count: number of records.
        compute: makes the record of a number.
        what: shown beside the progress bar.
    """
    store = ShardStore(work / texts_digest([json.dumps(key)])[:16], key)
    shards = -(-count // SHARD)
    todo = store.missing(shards)
    for number in progress(todo, total=shards, done=shards - len(todo), what=what):
        rows = range(number * SHARD, min(count, (number + 1) * SHARD))
        store.write(number, [compute(row) for row in rows])
    return store.read(shards)


def texts_digest(texts: Sequence[str]) -> str:
    """Returns a digest of a list of texts, for a store's key."""
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


def _checksum_line(body: bytes) -> bytes:
    return json.dumps({"sha256": hashlib.sha256(body).hexdigest()}).encode() + b"\n"
