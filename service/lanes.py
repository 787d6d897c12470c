"""What the text threads have to do."""

import itertools
import queue

from service.tickets import Task


class Lane:
    """What a text thread has to do: urgent tasks first, then those that were begun."""

    def __init__(self) -> None:
        self._queue: queue.PriorityQueue[tuple[int, int, Task | None]] = queue.PriorityQueue()
        self._numbers = itertools.count()

    def put(self, task: Task | None, rank: int) -> None:
        """Adds a task; those of a lower rank go first, then the older."""
        self._queue.put((rank, next(self._numbers), task))

    def get(self) -> Task | None:
        """Waits for a task; None is the end."""
        return self._queue.get()[2]

    def close(self) -> None:
        """Ends the thread once all else is done."""
        self.put(None, 3)
