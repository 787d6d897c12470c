"""A file as shards of work: what is asked of its rows, how they are cut, and what is left to do.

The rows are cut by their order and length alone, and a text's answer does not depend on its
company, so that a shard has the same bytes whoever does it, and when.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from models.explainer import Explainer, Explanation
from models.text import check_text
from service.score.columns import Columns
from service.score.results import answered, check_cell, failed, to_line
from service.score.shards import Counts, WorkError
from service.score.tables import InputRow, read_rows

# Of a shard, whichever comes first; a killed run loses at most the shard it was in.
SHARD_ROWS = 1_000
SHARD_CHARS = 500_000
# Raise it with every change of what a shard holds or of how rows are cut.
VERSION = 1


@dataclass(frozen=True, slots=True)
class ScoreOptions:
    """What is asked of each row.

    Attributes:
        columns: of the input.
        target: the label to explain; None explains the predicted one.
        explain: False labels only.
        max_words: the most words of a rationale; None means 30 % of the text's words.
    """

    columns: Columns = field(default_factory=Columns)
    target: str | None = None
    explain: bool = True
    max_words: int | None = None

    def answer(self, explainer: Explainer, texts: Sequence[str]) -> list[Explanation]:
        """Asks the explainer."""
        if self.explain:
            return explainer.explain(texts, self.target, max_words=self.max_words)
        return explainer.predict(texts, self.target)


@dataclass(frozen=True, slots=True)
class Source:
    """An input file as it was when the run began.

    Attributes:
        path: of the file.
        sha256: of its content.
        rows: in it.
        shards: that they are cut into.
        stat: what changes when somebody writes to it.
    """

    path: Path
    sha256: str
    rows: int
    shards: int
    stat: tuple[int, int, int]

    def check(self) -> None:
        """Refuses to go on with a file that is written to meanwhile."""
        if _stat(self.path) != self.stat:
            raise WorkError(
                f"{self.path} changed while it was read: repeat the command when it is as it was, "
                "or remove the work folder to begin anew"
            )


class Job(NamedTuple):
    """A shard to do.

    Attributes:
        number: of the shard, from 0.
        start: the index of its first row.
        rows: in the order of the input.
    """

    number: int
    start: int
    rows: Sequence[InputRow]


class Done(NamedTuple):
    """A finished shard: its number, a line of JSON per row, and how many there are."""

    number: int
    lines: bytes
    counts: Counts


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be done with an input; small enough to be sent to another process.

    Attributes:
        source: the input.
        options: what is asked of each row.
        suffix: of the output.
        finished: the shards that an earlier run has done.
    """

    source: Source
    options: ScoreOptions
    suffix: str
    finished: frozenset[int]

    @property
    def missing(self) -> int:
        """How many shards are to be done."""
        return self.source.shards - len(self.finished)

    def jobs(self) -> Iterator[Job]:
        """Reads the input and yields the shards that are missing, each when it is asked for.

        Raises:
            WorkError: the input is no longer what it was.
        """
        self.source.check()
        start = 0
        for number, rows in enumerate(cut(read_rows(self.source.path, self.options.columns))):
            if number not in self.finished:
                yield Job(number, start, rows)
            start += len(rows)

    def do(self, explainer: Explainer, job: Job) -> Done:
        """Answers the rows of a shard; a bad one fails alone."""
        checked = [_checked(row, self.suffix) for row in job.rows]
        texts = [row.text for row in checked if row.error is None]
        answers = iter(self.options.answer(explainer, texts))
        lines = []
        for index, row in enumerate(checked, job.start):
            if row.error is None:
                record = answered(index, row.id, next(answers))
            else:
                record = failed(index, row.id, row.error)
            lines.append(to_line(record))
        return Done(job.number, b"".join(lines), Counts(len(checked), len(checked) - len(texts)))


def survey(path: Path, columns: Columns) -> Source:
    """Reads a file once before any work: what is in it, and whether it can be read to its end.

    Raises:
        TableError: it is no table, or no row has a column that is needed.
    """
    stat = _stat(path)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    rows, shards, missing = 0, 0, set(columns.needed)
    first: Sequence[str] = ()
    for shard in cut(read_rows(path, columns)):
        rows += len(shard)
        shards += 1
        for row in shard:
            missing.difference_update(row.columns)
            first = first or row.columns
    if missing and first:
        columns.check(path, first)
    return Source(path, digest, rows, shards, stat)


def cut(rows: Iterable[InputRow]) -> Iterator[list[InputRow]]:
    """Cuts rows into shards of at most `SHARD_ROWS` and about `SHARD_CHARS`."""
    shard: list[InputRow] = []
    chars = 0
    for row in rows:
        shard.append(row)
        chars += len(row.text) + len(row.id or "")
        if len(shard) == SHARD_ROWS or chars >= SHARD_CHARS:
            yield shard
            shard, chars = [], 0
    if shard:
        yield shard


def _checked(row: InputRow, suffix: str) -> InputRow:
    """Gives a row that cannot be answered, or whose id cannot be written, its error."""
    try:
        check_cell(row.id or "", suffix, "id")
    except ValueError as error:
        return row._replace(id=None, error=str(error))
    try:
        if row.error is None:
            check_text(row.text)
    except ValueError as error:
        return row._replace(error=str(error))
    return row


def _stat(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ino
