"""What every format of a table shares: which columns are read, and a row as its file has it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

_SHOWN = 10  # column names in an error


class TableError(ValueError):
    """A file cannot be read as a table, or lacks a column; one line with the cure."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns are read.

    Attributes:
        text: name or number; several, `1,2`, are joined by a blank. Numbers mean a file without
            header, in .csv and .tsv.
        id: likewise; None takes the column `id` where there is one.
    """

    text: str = "text"
    id: str | None = None

    @property
    def texts(self) -> tuple[str, ...]:
        """The columns that make up the text."""
        return tuple(self.text.split(","))

    @property
    def needed(self) -> tuple[str, ...]:
        """The columns that a file must have."""
        return self.texts if self.id is None else (*self.texts, self.id)

    @property
    def numbered(self) -> bool:
        """Whether a file has no header."""
        return all(column.isdecimal() for column in self.needed)

    def check(self, path: Path, found: Sequence[str]) -> None:
        """Refuses a file that has the columns `found` and lacks one of those that are needed."""
        for column in self.needed:
            if column not in found:
                names = ", ".join(f"{name:.40}" for name in found[:_SHOWN])
                more = ", …" if len(found) > _SHOWN else ""
                flag = "--text-column" if column in self.texts else "--id-column"
                raise TableError(
                    f"{path}: no column {column!r}; found: {names or 'none'}{more} (name one with "
                    f"{flag}, or give its number in a .csv or .tsv without header)"
                )


class Record(NamedTuple):
    """A row as its file has it: cells by column, or why it cannot be read."""

    cells: Mapping[str, str]
    columns: Sequence[str]
    error: str | None = None


def scalar(value: object) -> str | None:
    """Returns a string itself, a number or truth value as JSON writes it, None for the rest."""
    if isinstance(value, str):
        return value
    return json.dumps(value) if isinstance(value, (bool, int, float)) else None
