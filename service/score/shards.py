"""The work folder of an unfinished output: finished shards, what they belong to, and a lock.

Each file is whole or absent: it is written under a temporary name, flushed to the disk and renamed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

_LOCK = "lock"
_MANIFEST = "manifest.json"
_JOINED = "joined"  # the output while it is put together


class WorkError(ValueError):
    """The work folder or the output is not free; one line with the cure."""


class Counts(NamedTuple):
    """How many rows a shard or an output has, and how many of them are errors."""

    rows: int
    errors: int


class WorkFolder:
    """The folder beside an output that is not finished yet; made by `open_work`."""

    def __init__(self, path: Path, output: Path) -> None:
        self.path = path
        self.output = output

    def claim(self, key: Mapping[str, Any]) -> None:
        """Makes the folder that of one piece of work.

        Args:
            key: what the shards depend on, in plain JSON types.

        Raises:
            WorkError: the folder belongs to another piece of work.
        """
        if not (self.path / _MANIFEST).exists():
            self._write(_MANIFEST, json.dumps({"key": key}, indent=2).encode())
            return
        stored = self._manifest()["key"]
        changed = [name for name in {**key, **stored} if key.get(name) != stored.get(name)]
        if changed:
            named = " with its --bundle" if "bundle" in changed else ""
            raise WorkError(
                f"{self.path} holds unfinished work with another {', '.join(changed)}: repeat the "
                f"command that began it{named}, or remove the folder to begin anew"
            )

    def shards(self) -> dict[int, Counts]:
        """Finds the finished shards; one whose checksum is wrong is not finished."""
        found = {}
        for path in self.path.glob("*.shard"):
            _, counts = _unpack(path.read_bytes())
            if counts is not None:
                found[int(path.stem)] = counts
        return found

    def add(self, number: int, lines: bytes, counts: Counts) -> None:
        """Keeps a shard."""
        self._write(f"{number:06d}.shard", lines + _last_line(lines, counts))

    def read(self, shards: int) -> Iterator[bytes]:
        """Yields the lines of shards 0 to `shards` - 1."""
        for number in range(shards):
            path = self.path / f"{number:06d}.shard"
            lines, counts = _unpack(path.read_bytes())
            if counts is None:
                raise WorkError(f"{path} is damaged: repeat the command to compute it anew")
            yield lines

    @property
    def scratch(self) -> Path:
        """Where the output is put together."""
        return self.path / _JOINED

    def publish(self, counts: Counts) -> None:
        """Moves the output, which has these counts, from `scratch` to its place."""
        with self.scratch.open("rb") as file:
            os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        # Remembered first, so that a run that is killed after the renaming knows its own output.
        joined = {**counts._asdict(), "sha256": digest}
        self._write(_MANIFEST, json.dumps({**self._manifest(), _JOINED: joined}, indent=2).encode())
        try:
            os.link(self.scratch, self.output)  # unlike a renaming, it replaces nothing
        except FileExistsError:
            raise exists_already(self.output) from None
        except OSError:  # a file system without links
            if self.output.exists():
                raise exists_already(self.output) from None
            self.scratch.replace(self.output)
        _sync(self.output.parent)

    def published(self) -> Counts | None:
        """Returns the counts of the output if it is in its place, None if nothing is there.

        Raises:
            WorkError: something else is there.
        """
        if not self.output.exists():
            return None
        known = (self.path / _MANIFEST).exists() and self._manifest().get(_JOINED)
        if not known or not self.output.is_file():
            raise exists_already(self.output)
        with self.output.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != known["sha256"]:
            raise exists_already(self.output)
        return Counts(known["rows"], known["errors"])

    def remove(self) -> None:
        """Removes all that it holds; the manifest last, which says whose the rest is."""
        for path in (*self.path.glob("*.shard"), *self.path.glob("*.new"), self.scratch):
            path.unlink(missing_ok=True)
        (self.path / _MANIFEST).unlink()

    def _manifest(self) -> dict[str, Any]:
        path = self.path / _MANIFEST
        try:
            found: dict[str, Any] = json.loads(path.read_bytes())
        except ValueError:
            raise WorkError(f"{path} is damaged: remove {self.path} to begin anew") from None
        return found

    def _write(self, name: str, content: bytes) -> None:
        temporary = self.path / f"{name}.new"
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.path / name)


@contextmanager
def open_work(output: Path) -> Iterator[WorkFolder]:
    """Opens the work folder of an output for this process alone, and makes it if need be.

    Afterwards a folder that holds nothing is removed.

    Raises:
        WorkError: another process works in it.
    """
    folder = work_path(output)
    folder.mkdir(exist_ok=True)
    with (folder / _LOCK).open("wb") as lock:
        if not _lock(lock, folder / _LOCK):
            raise WorkError(f"another process writes {output}: wait for it, or choose another name")
        try:
            yield WorkFolder(folder, output)
        finally:
            if [path.name for path in folder.iterdir()] == [_LOCK]:
                (folder / _LOCK).unlink()
                with suppress(OSError):  # somebody is about to try the lock
                    folder.rmdir()


def work_path(output: Path) -> Path:
    """Where the work on an output is kept."""
    return output.with_name(f"{output.name}.part")


def exists_already(output: Path) -> WorkError:
    """The error of an output that would be overwritten."""
    return WorkError(f"{output} exists already: remove it, or choose another name")


def _lock(file: BinaryIO, path: Path) -> bool:
    """Locks a file until it is closed or the process ends in any way."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Whoever held it may have ended just now, and removed what was opened here.
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except (BlockingIOError, FileNotFoundError):
        return False


def _last_line(lines: bytes, counts: Counts) -> bytes:
    digest = hashlib.sha256(lines).hexdigest()
    return json.dumps({**counts._asdict(), "sha256": digest}).encode() + b"\n"


def _unpack(content: bytes) -> tuple[bytes, Counts | None]:
    """Splits a file into its lines and its counts; None where its checksum is wrong."""
    start = content.rfind(b"\n", 0, -1) + 1
    lines, last = content[:start], content[start:]
    try:
        found = json.loads(last)
        counts = Counts(found["rows"], found["errors"])
    except (ValueError, TypeError, KeyError):
        return lines, None
    return lines, counts if last == _last_line(lines, counts) else None


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
