"""The threads of the scheduler, what each may do, and the texts that wait for one of them."""

from __future__ import annotations

import heapq
import itertools
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from service.batching.tickets import Task

_HEAD_START = 1.0  # seconds by which urgent texts go before others


class Lane:
    """Texts that are to be tokenised, or to be given their words and rationale.

    Not safe for threads by itself: the scheduler locks.

    Texts that have been computed go first, for only words are wanting; then fresh ones by their
    age, where urgent ones count as a second older, so that the others get their turn, too.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Task]] = []
        self._numbers = itertools.count()
        self._urgent = self._computed = 0

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def computed(self) -> int:
        """How many texts have been computed and want only words."""
        return self._computed

    @property
    def fresh(self) -> int:
        """How many texts have not been tokenised."""
        return len(self._heap) - self._computed

    @property
    def urgent(self) -> bool:
        """Whether an urgent text waits."""
        return self._urgent > 0

    def put(self, task: Task, *, computed: bool = False) -> None:
        """Adds a text."""
        head_start = _HEAD_START if task.ticket.urgent else 0.0
        rank = -math.inf if computed else time.monotonic() - head_start
        heapq.heappush(self._heap, (rank, next(self._numbers), task))
        self._urgent += task.ticket.urgent
        self._computed += computed

    def pop(self) -> Task | None:
        """Removes the text whose turn it is; None where there is none."""
        if not self._heap:
            return None
        rank, _, task = heapq.heappop(self._heap)
        self._urgent -= task.ticket.urgent
        self._computed -= rank == -math.inf
        return task


@dataclass(frozen=True, eq=False, slots=True)
class Worker:
    """A thread's part in the work.

    Attributes:
        name: of the thread.
        lane: whose texts it carries on; None for no texts.
        runs: whether it may run the graph.
        called: waited on by the thread while it is idle; shares the scheduler's lock.
    """

    name: str
    lane: Lane | None
    runs: bool
    called: threading.Condition


Job = Callable[[], None]


class Crew:
    """Threads that do what a scheduler finds for them.

    Nobody waits while there is something that he may do: who makes work beyond what he will find
    himself next has to call another; but texts that one run computed stay with who ran it.

    Args:
        lock: of the scheduler, held while it is asked; so are the methods to be called under it.
        parts: the `name`, `lane` and `runs` of each thread, see `Worker`.
        find: says what a worker does next; None for nothing now.
        over: says whether there will never be anything more.
    """

    def __init__(
        self,
        lock: threading.RLock,
        parts: Sequence[tuple[str, Lane | None, bool]],
        find: Callable[[Worker], Job | None],
        over: Callable[[], bool],
    ) -> None:
        self._lock, self._find, self._over = lock, find, over
        self._idle: list[Worker] = []
        workers = [Worker(*part, threading.Condition(lock)) for part in parts]
        self._threads = [
            threading.Thread(target=self._work, args=(worker,), name=worker.name, daemon=True)
            for worker in workers
        ]

    def start(self) -> None:
        """Starts the threads."""
        for thread in self._threads:
            thread.start()

    def join(self, timeout: float | None = None) -> None:
        """Waits for the ends of the threads, `timeout` seconds in all."""
        end = None if timeout is None else time.monotonic() + timeout
        for thread in self._threads:
            thread.join(None if end is None else max(0.0, end - time.monotonic()))

    @property
    def alive(self) -> bool:
        """Whether all threads run."""
        return all(thread.is_alive() for thread in self._threads)

    def call_runner(self) -> None:
        """Calls one that may run the graph, where one is idle."""
        self._call(lambda worker: worker.runs)

    def call_for(self, lane: Lane) -> None:
        """Calls one for a text of `lane`, where one is idle."""
        self._call(lambda worker: worker.lane is lane)

    def call_all(self) -> None:
        """Calls all that are idle."""
        while self._idle:
            self._call(lambda _: True)

    def _call(self, suits: Callable[[Worker], bool]) -> None:
        for worker in reversed(self._idle):  # who did something last is the quickest
            if suits(worker):
                self._idle.remove(worker)
                worker.called.notify()
                return

    def _work(self, worker: Worker) -> None:
        while (job := self._next(worker)) is not None:
            job()

    def _next(self, worker: Worker) -> Job | None:
        with self._lock:
            while (job := self._find(worker)) is None and not self._over():
                self._idle.append(worker)
                worker.called.wait()
            return job
