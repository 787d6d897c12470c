"""What the text threads have to do."""

import itertools
import math
import queue
import time

from service.tickets import Task

_HEAD_START = 1.0  # seconds by which urgent texts go before others


class Lane:
    """What one text thread has to do.

    Texts that have been computed go first, for only words are wanting; then fresh ones by their
    age, where urgent ones count as a second older, so that the others get their turn, too.
    """

    def __init__(self) -> None:
        self._queue: queue.PriorityQueue[tuple[float, int, Task | None]] = queue.PriorityQueue()
        self._numbers = itertools.count()

    def put(self, task: Task, *, computed: bool = False) -> None:
        """Adds a task."""
        head_start = _HEAD_START if task.ticket.urgent else 0.0
        self._put(-math.inf if computed else time.monotonic() - head_start, task)

    def get(self) -> Task | None:
        """Waits for a task; None is the end."""
        return self._queue.get()[2]

    def close(self) -> None:
        """Ends the thread once all else is done."""
        self._put(math.inf, None)

    def _put(self, rank: float, task: Task | None) -> None:
        self._queue.put((rank, next(self._numbers), task))
