"""Whose turn it is, the graph's or the texts', where each thread does both.

There is one for each core; they share the turns, as if they were one that is so much quicker.

Each change from one to the other finds the core's caches full of the other's: on an AMD EPYC the
Python of a text took .85 ms after every run of the graph, .6 ms after every fourth, and the HTTP of
its answer fared alike. So many texts are tokenised and decoded in a row, and many runs follow each
other, the more the more waits; where few urgent texts do, their answers go out sooner instead.
"""

from __future__ import annotations

from service.batching.lanes import Lane
from service.batching.rows import RowQueue
from service.batching.tickets import Task

# Runs of which half come in a row, or their tokens where a run may have more than so many: half a
# second of one core with the shipped bundle. With half as many the server answers about a
# hundredth less.
_RUNS = 32
_LONGEST = 512
# Of urgent rows half come in a row where this share of `_RUNS` waits, and less than half below it:
# against half of any number, texts at 70 % of full load, arriving by chance, took 7 % less at the
# median and 8 % at the 99th percentile, and as many were answered at full load.
_BUSY = 1 / 4
_TEXTS = 8  # fresh ones, that have their turn before the graph has another, where so many wait


class Turns:
    """Not safe for threads by itself: the scheduler locks.

    Args:
        rows: what waits for the graph.
        texts: what waits for Python.
        max_tokens: padded tokens of a run.
    """

    def __init__(self, rows: RowQueue[Task], texts: Lane, max_tokens: int) -> None:
        self._rows, self._texts = rows, texts
        self._most = _RUNS * min(max_tokens, _LONGEST)
        self._left = 0  # tokens that the graph may compute in a row; 0 while the texts have a turn
        self._due = 0  # texts to be tokenised before the graph has another turn

    def graph_is_next(self) -> bool:
        """Says whether the graph is to run now, given that rows wait.

        Its turn comes when no text is to be decoded and enough rows are ready, and ends when half
        of those or fewer are computed, so that no answer is kept longer than it had waited. Urgent
        rows do not wait until all others are tokenised, nor urgent texts until all others are
        computed; and whatever rows come from elsewhere, as those of long texts do, some texts have
        their turn.
        """
        rows, texts = self._rows, self._texts
        enough = rows.tokens >= self._most or (rows.urgent_tokens and not texts.urgent)
        if texts.urgent and not rows.urgent_tokens:
            self._left = 0
        elif not len(texts) or (
            self._left <= 0 and enough and not texts.computed and self._due <= 0
        ):
            self._left = max(1, self._turn(), self._left)
        return self._left > 0

    def _turn(self) -> int:
        """Returns the tokens of a turn of the graph; by urgent rows alone, where there are any."""
        urgent = min(self._most, self._rows.urgent_tokens)
        if not urgent:
            return min(self._most, self._rows.tokens) // 2
        return int(min(1.0, urgent / (_BUSY * self._most)) * urgent) // 2

    def crowded(self, tokens: int) -> bool:
        """Says whether so much waits that a run of so many padded tokens is not to be disturbed."""
        return tokens <= _LONGEST and self._rows.urgent_tokens >= _BUSY * self._most

    def ran(self, tokens: int) -> None:
        """Notes a run of so many padded tokens."""
        self._left -= tokens
        if self._left <= 0:
            self._due = min(_TEXTS, self._texts.fresh)

    def advanced(self, *, fresh: bool) -> None:
        """Notes that a text was tokenised, if it was `fresh`, or decoded."""
        self._left = 0
        self._due -= fresh
