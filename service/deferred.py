"""Calls that nobody waits for, made together.

Between two runs of the graph a core's caches are full of its weights, and Python that comes once
takes several times as long as Python that comes many times in a row.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, TypeVarTuple

Ts = TypeVarTuple("Ts")


class Deferred:
    """Calls that are begun in the order in which they came; any thread may add or make them.

    Args:
        most: that wait; who adds the last of so many makes all.
    """

    def __init__(self, most: int) -> None:
        self._calls: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._most = most

    def add(self, call: Callable[[*Ts], object], *arguments: *Ts) -> None:
        """Adds a call, whose arguments stay as they are until it is made."""
        self._calls.append((call, arguments))
        if len(self._calls) >= self._most:
            self.make()

    def make(self) -> None:
        """Makes all that wait."""
        while self._calls:
            try:
                call, arguments = self._calls.popleft()
            except IndexError:  # another thread was quicker
                return
            call(*arguments)
