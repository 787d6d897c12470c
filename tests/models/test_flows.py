"""What drives flows: batches in order, several at a time, and no more than are soon taken."""

import threading
import time

import numpy as np
import pytest

from models.flows import run_batches, run_flows
from models.rows import Row, RowOutputs


def test_a_flow_goes_on_as_soon_as_its_rows_are_run():
    """What is kept of one text is gone before all others are run."""
    order: list[str] = []

    def flow(name):
        for step in range(2):
            yield [Row(np.zeros(3, np.int64))] * 2
            order.append(f"{name}{step}")
        return name

    def run(rows):
        order.append(f"run {len(rows)}")
        nothing = np.zeros(0, np.float32)
        return [RowOutputs(0, nothing, nothing, nothing) for _ in rows]

    assert run_flows([flow(name) for name in "abc"], run, 24) == ["a", "b", "c"]
    first = ["run 3", "a0", "run 3", "b0", "c0"]
    assert order == [*first, "run 3", "a1", "run 3", "b1", "c1"]


class Together:
    """Runs of a graph that end when so many have begun, and what was begun in which order."""

    def __init__(self, runners):
        self._barrier = threading.Barrier(runners)
        self.begun: list[int] = []

    def run(self, rows):
        self.begun.append(len(rows))
        self._barrier.wait(10)
        nothing = np.zeros(0, np.float32)
        return [RowOutputs(len(rows), nothing, nothing, nothing) for _ in rows]


def batches_of(*sizes):
    return [[Row(np.zeros(3, np.int64))] * size for size in sizes]


def test_batches_run_at_a_time_and_come_in_order():
    sizes = [1, 2, 3, 4, 5, 6, 7, 8, 9]
    outputs = [*run_batches(batches_of(*sizes), Together(3).run, 3)]
    assert [{one.target for one in several} for several in outputs] == [{size} for size in sizes]


def test_a_batch_alone_is_run_by_the_thread_that_asks():
    threads = []

    def run(rows):
        threads.append(threading.current_thread())
        return []

    assert [*run_batches(batches_of(2), run, 4)] == [[]]
    assert threads == [threading.current_thread()]


def test_no_more_batches_are_begun_than_are_taken_soon():
    together = Together(1)
    outputs = run_batches(batches_of(*[1] * 50), together.run, 2)
    next(outputs)
    time.sleep(0.05)
    assert len(together.begun) <= 4
    outputs.close()
    assert len(together.begun) <= 4


def test_a_batch_that_fails_ends_all():
    begun = []

    def run(rows):
        begun.append(len(rows))
        if len(rows) == 3:
            raise RuntimeError("broken")
        return []

    with pytest.raises(RuntimeError, match="broken"):
        [*run_batches(batches_of(1, 2, 3, *[4] * 20), run, 2)]
    assert len(begun) < 10


def test_a_flow_without_rows_is_an_error():
    def flow():
        yield []

    with pytest.raises(RuntimeError, match="a flow without rows"):
        run_flows([flow()], lambda rows: [], 24)
