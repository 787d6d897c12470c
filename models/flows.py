"""Ways to an answer, as generators, and what drives them: several runs of the graph at a time.

A flow yields the rows it wants to have run and is sent their outputs, in order, until it returns.
It runs no rows itself, so that one caller may drive a list of flows to the end (`run_flows`) and
another may mix the rows of many requests. Rows are batched with rows of their own padded length
only and a batch has a bounded number of tokens, so a document of any length, alone or in company,
gets the same numbers in bounded memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import TypeVar

from models.rows import Row, RowOutputs
from models.text import plan_batches

Result = TypeVar("Result")
# Yields rows, is sent the outputs of each, in order, and returns its result.
Flow = Generator[list[Row], list[RowOutputs], Result]


def run_batches(
    batches: Sequence[Sequence[Row]],
    run: Callable[[Sequence[Row]], list[RowOutputs]],
    runners: int = 1,
) -> Generator[list[RowOutputs], None, None]:
    """Runs batches, several at a time, and yields the outputs of each, in order.

    Args:
        batches: each of one bucket.
        run: runs the graph once, see `run_rows`; asked by `runners` threads.
        runners: at a time. Only so many and two more are begun before they are taken.
    """
    if runners == 1 or len(batches) == 1:
        yield from map(run, batches)
        return
    begun: deque[Future[list[RowOutputs]]] = deque()
    with ThreadPoolExecutor(runners, "run of the graph") as pool:
        try:
            for batch in batches:
                if len(begun) == runners + 2:
                    yield begun.popleft().result()
                begun.append(pool.submit(run, batch))
            while begun:
                yield begun.popleft().result()
        finally:
            for future in begun:
                future.cancel()


def run_flows(
    flows: Iterable[Flow[Result]],
    run: Callable[[Sequence[Row]], list[RowOutputs]],
    max_tokens: int,
    runners: int = 1,
) -> list[Result]:
    """Drives flows to their ends, all at a time.

    Args:
        flows: fresh ones.
        run: runs the graph once, see `run_rows`.
        max_tokens: padded tokens that it gets; a longer row runs alone.
        runners: runs at a time, on as many threads.

    Returns:
        What each flow returned, in order.
    """
    all_flows = list(flows)
    results: dict[int, Result] = {}
    wanted: dict[int, list[Row]] = {}

    def go_on(number: int, outputs: list[RowOutputs] | None) -> None:
        try:
            rows = all_flows[number].send(outputs)  # type: ignore[arg-type] # None begins
        except StopIteration as end:
            results[number] = end.value
            return
        if not rows:
            raise RuntimeError("a flow without rows")
        wanted[number] = rows

    for number in range(len(all_flows)):
        go_on(number, None)
    while wanted:
        rows = [(number, place) for number, rows in wanted.items() for place in range(len(rows))]
        asked, wanted = wanted, {}
        found: dict[int, dict[int, RowOutputs]] = {number: {} for number in asked}
        several = [asked[number][place] for number, place in rows]
        batches = [*_batches(several, max_tokens)]
        runs = run_batches([[several[i] for i in batch] for batch in batches], run, runners)
        with closing(runs):
            for batch, outputs in zip(batches, runs, strict=True):
                for index, one in zip(batch, outputs, strict=True):
                    number, place = rows[index]
                    found[number][place] = one
                    if len(found[number]) == len(asked[number]):
                        # At once, for outputs are much larger than what becomes of them.
                        mine = found.pop(number)
                        go_on(number, [mine[place] for place in range(len(mine))])
    return [results[number] for number in range(len(results))]


def _batches(rows: Sequence[Row], max_tokens: int) -> Iterator[list[int]]:
    """The places of any rows in batches of one bucket and a bounded number of tokens."""
    for explain in (True, False):
        chosen = [place for place, row in enumerate(rows) if row.explain == explain]
        lengths = [len(rows[place].input_ids) for place in chosen]
        for batch in plan_batches(lengths, max_tokens):
            yield [chosen[index] for index in batch]
