"""Rows that wait for a run of the graph, and which of them make the next one.

Work-conserving: a batch is whatever waits when the graph is free, and none waits to be filled. Its
bucket is that of the oldest row, so none starves; rows of the same bucket fill it up to a number of
padded tokens. What a text asks for later is as old as what it asked for first: it has waited its
turn. Rows of different buckets are never padded to one another: that would cost tokens, and in
reduced precision change answers.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from operator import itemgetter
from typing import Generic, NamedTuple, Protocol, TypeVar

from models.rows import Row

FLOOR = 0.1  # of the computed tokens, for background rows while urgent ones wait
_PLACE = itemgetter(0)  # in the line


class Owner(Protocol):
    """Whom a row is computed for."""

    @property
    def wanted(self) -> bool:
        """Whether anybody still waits for the answer."""


OwnerT = TypeVar("OwnerT", bound=Owner)


@dataclass(frozen=True, slots=True, eq=False)
class Entry(Generic[OwnerT]):
    """A row in the queue.

    Attributes:
        row: what is to be run.
        owner: whom for.
        place: of the row among those that its owner asked for.
        urgent: whether it goes before background rows.
    """

    row: Row
    owner: OwnerT
    place: int
    urgent: bool


class _Key(NamedTuple):
    """What the rows of a batch have in common."""

    urgent: bool
    explain: bool
    bucket: int


class RowQueue(Generic[OwnerT]):
    """Not safe for threads by itself: the scheduler locks.

    Args:
        max_tokens: padded tokens in a batch; a longer row forms a batch of its own.
    """

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._groups: dict[_Key, deque[tuple[int, Entry[OwnerT]]]] = {}
        self._count = 0  # of all rows that were the first of their owners
        self._rows = {True: 0, False: 0}  # that wait, urgent and not
        self._tokens = {True: 0, False: 0}  # of those
        self._owed = 0.0  # tokens of background work
        self._dropped: list[Entry[OwnerT]] = []

    def __len__(self) -> int:
        return sum(self._rows.values())

    def __iter__(self) -> Iterator[Entry[OwnerT]]:
        return (entry for group in self._groups.values() for _, entry in group)

    @property
    def tokens(self) -> int:
        """Padded tokens of all rows."""
        return self._tokens[True] + self._tokens[False]

    @property
    def urgent_tokens(self) -> int:
        """Padded tokens of the urgent rows; 0 where there are none."""
        return self._tokens[True]

    def add(self, entries: Iterable[Entry[OwnerT]], place: int | None = None) -> int:
        """Puts rows at the end of the line, or where earlier ones of their owner were.

        Args:
            entries: rows of one owner.
            place: of those earlier ones, None for the first.

        Returns:
            Their place: how many rows had come before them.
        """
        first, place = place is None, self._count if place is None else place
        for entry in entries:
            key = _Key(entry.urgent, entry.row.explain, entry.row.bucket)
            insort(self._groups.setdefault(key, deque()), (place, entry), key=_PLACE)
            self._count += first
            self._rows[key.urgent] += 1
            self._tokens[key.urgent] += key.bucket
        return place

    def take(self) -> tuple[list[Entry[OwnerT]], list[Entry[OwnerT]]]:
        """Removes the rows of the next batch.

        Returns:
            The batch, empty when nothing that is wanted waits, and rows met on the way that nobody
            waits for any more.
        """
        urgent, background = self._oldest(urgent=True), self._oldest(urgent=False)
        batch = self._choose(urgent, background)
        dropped, self._dropped = self._dropped, []
        return batch, dropped

    def _choose(self, urgent: _Key | None, background: _Key | None) -> list[Entry[OwnerT]]:
        if background is None:
            self._owed = 0.0
        if urgent is None or background is None:
            key = urgent or background
            return [] if key is None else self._fill(key, self._max_tokens)
        if self._owed >= background.bucket:
            batch = self._fill(background, min(self._max_tokens, int(self._owed)))
            self._owed -= len(batch) * background.bucket
        else:
            batch = self._fill(urgent, self._max_tokens)
            self._owed += len(batch) * urgent.bucket * FLOOR / (1 - FLOOR)
        return batch

    def _oldest(self, *, urgent: bool) -> _Key | None:
        """Returns the group whose first wanted row is the oldest of its urgency."""
        ages = {}
        for key in [key for key in self._groups if key.urgent == urgent]:
            group = self._groups[key]
            while group and not group[0][1].owner.wanted:
                self._dropped.append(self._pop(key))
            if group:
                ages[key] = group[0][0]
            else:
                del self._groups[key]
        return min(ages, key=ages.__getitem__) if ages else None

    def _fill(self, key: _Key, max_tokens: int) -> list[Entry[OwnerT]]:
        batch: list[Entry[OwnerT]] = []
        group = self._groups[key]
        while group and (not batch or (len(batch) + 1) * key.bucket <= max_tokens):
            entry = self._pop(key)
            if entry.owner.wanted:
                batch.append(entry)
            else:
                self._dropped.append(entry)
        return batch

    def _pop(self, key: _Key) -> Entry[OwnerT]:
        self._rows[key.urgent] -= 1
        self._tokens[key.urgent] -= key.bucket
        return self._groups[key].popleft()[1]
