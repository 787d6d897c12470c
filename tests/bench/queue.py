"""A simulated server that never idles: what the queue alone costs, on measured batch times.

It runs as many batches at a time as the server does, on one core one. Whenever a runner is free and
something waits, it runs what the service's own rule picks (`service.batching.rows.RowQueue`), and a
batch takes as long as one of its shape did when it was measured, by itself or beside as many others
as there may be. There is no tokenising, no HTTP and no other process: what a server with this rule
takes longer on the same arrivals is its own.
"""

from __future__ import annotations

import heapq
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from models.explainer import Explainer
from models.flows import run_batches
from models.rows import Row
from service.batching.rows import Entry, RowQueue

IntArray = npt.NDArray[np.int64]
Rounds = Sequence[Sequence[Row]]  # rows that a text asks for together, one round after the other
# Rows, their padded length and whether no other batch runs when theirs begins, to seconds.
Service = Callable[[int, int, bool], float]
_PASSES = 5
_REPEATS = 4  # of runs at a time, so that how they begin and end counts for little


@dataclass(eq=False)
class Request:
    """A text in the simulation.

    Attributes:
        arrival: seconds from the start.
        left: rounds of rows that have not been asked for, the next one last.
        missing: rows of the round that has been, which have not been run.
        line: the place of its rows, see `service.batching.rows.RowQueue.add`.
        done: when the last of all was run, in seconds from the start.
        wanted: whether somebody waits; here somebody always does.
    """

    arrival: float
    left: list[Sequence[Row]]
    missing: int = 0
    line: int | None = None
    done: float = field(default=float("nan"))
    wanted: bool = True


def simulate(
    arrivals: Sequence[float],
    texts: Sequence[Rounds],
    service: Service,
    max_tokens: int,
    runners: int = 1,
) -> npt.NDArray[np.float64]:
    """Runs texts through the queue.

    Args:
        arrivals: of N texts, in seconds, in order.
        texts: the rows of each, those that it asks for when others are done after these.
        service: how long a batch takes.
        max_tokens: padded tokens in a batch.
        runners: batches at a time.

    Returns:
        When each was done, in seconds on the clock of the arrivals, float64 [N].
    """
    queue: RowQueue[Request] = RowQueue(max_tokens)
    requests = [Request(at, [*rounds[::-1]]) for at, rounds in zip(arrivals, texts, strict=True)]
    coming, now = 0, 0.0
    running: list[tuple[float, int, list[Entry[Request]]]] = []  # a heap, by when each ends
    begun = itertools.count()

    def ask(owner: Request) -> None:
        rows = owner.left.pop()
        owner.missing = len(rows)
        entries = [Entry(row, owner, place, True) for place, row in enumerate(rows)]
        owner.line = queue.add(entries, owner.line)

    def end(batch: list[Entry[Request]]) -> None:
        for entry in batch:
            owner = entry.owner
            owner.missing -= 1
            if not owner.missing and owner.left:
                ask(owner)
            elif not owner.missing:
                owner.done = now

    while coming < len(requests) or len(queue) or running:
        while len(queue) and len(running) < runners:
            batch, _ = queue.take()
            lasts = service(len(batch), batch[0].row.bucket, not running)
            heapq.heappush(running, (now + lasts, next(begun), batch))
        arrival = requests[coming].arrival if coming < len(requests) else math.inf
        # Who comes while all run waits for the end of one, so that it is seen to no sooner.
        if running and (len(running) == runners or running[0][0] <= arrival):
            now, _, batch = heapq.heappop(running)
            end(batch)
        else:
            now = max(now, arrival)
        while coming < len(requests) and requests[coming].arrival <= now:
            ask(requests[coming])
            coming += 1
    return np.array([request.done for request in requests])


class BatchTimes:
    """How long batches take, from measurements of some.

    Args:
        measured: padded length to pairs of rows and seconds; at least one row and one more.
        alone: the same of batches that run by themselves, where several run at a time otherwise.
    """

    def __init__(
        self, measured: Mapping[int, Mapping[int, float]], alone: BatchTimes | None = None
    ) -> None:
        self.measured = {length: dict(sorted(of.items())) for length, of in measured.items()}
        self.alone = alone or self

    def __call__(self, rows: int, length: int) -> float:
        """Seconds of a batch, between two measured numbers of rows on a line between theirs.

        Raises:
            ValueError: more rows than were measured, or another length.
        """
        known = self.measured.get(length, {})
        if not known or not min(known) <= rows <= max(known):
            raise ValueError(f"no time was measured for {rows} rows of {length} tokens")
        return float(np.interp(rows, [*known], [*known.values()]))

    def each(self, length: int) -> float:
        """Seconds of a row in the largest batch of its length that was measured."""
        rows = max(self.measured[length])
        return self.measured[length][rows] / rows

    def to_dict(self) -> dict[str, dict[str, float]]:
        """The JSON form, in milliseconds."""
        return {
            str(length): {str(rows): round(1e3 * seconds, 3) for rows, seconds in known.items()}
            for length, known in self.measured.items()
        }


def average(several: Sequence[BatchTimes]) -> BatchTimes:
    """The means of measurements of the same batches."""
    means = [
        {
            length: {
                rows: float(np.mean([one.measured[length][rows] for one in times]))
                for rows in known
            }
            for length, known in times[0].measured.items()
        }
        for times in (several, [one.alone for one in several])
    ]
    return BatchTimes(means[0], BatchTimes(means[1]))


def measure_batches(
    explainer: Explainer, lengths: Sequence[int], max_tokens: int, passes: int = _PASSES
) -> BatchTimes:
    """Times batches of each length with one row, half of what fits and all that fits.

    Where several runs go on at a time, each is timed beside others of its shape, too.

    Args:
        explainer: whose graph runs, label and rationale.
        lengths: padded ones.
        max_tokens: padded tokens in a batch.
        passes: over all of them, of which each takes its median; a busy moment meets many shapes
            and none of them often.
    """
    sizes = {length: _sizes(max(1, max_tokens // length)) for length in sorted(set(lengths))}
    shapes = [(length, rows) for length, several in sizes.items() for rows in several]
    runners = explainer.session.runners
    beside = _spent(explainer, shapes, passes, runners) if runners > 1 else None
    alone = BatchTimes(_spent(explainer, shapes, passes, 1))
    return alone if beside is None else BatchTimes(beside, alone)


def _spent(
    explainer: Explainer, shapes: Sequence[tuple[int, int]], passes: int, runners: int
) -> dict[int, dict[int, float]]:
    """Median seconds of a run by padded length and rows, where so many go on at a time."""
    repeats = 1 if runners == 1 else _REPEATS
    spent: dict[tuple[int, int], list[float]] = {shape: [] for shape in shapes}
    for number in range(passes + 1):
        for length, rows in shapes:
            batch = [Row(np.full(length, 5, dtype=np.int64)) for _ in range(rows)]
            started = time.perf_counter()
            for _ in run_batches([batch] * runners * repeats, explainer.run, runners):
                pass
            if number:  # the first pass warms up
                spent[length, rows].append((time.perf_counter() - started) / repeats)
    found: dict[int, dict[int, float]] = {}
    for (length, rows), seconds in spent.items():
        found.setdefault(length, {})[rows] = float(np.median(seconds))
    return found


def _sizes(most: int) -> list[int]:
    return sorted({1, (1 + most) // 2, most})
