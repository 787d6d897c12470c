"""Whose turn it is where one thread does both: the graph's or the texts'."""

import asyncio
import itertools
import time

import numpy as np
import pytest

from models.flows import Flow
from models.rows import Row
from service.batching.lanes import Lane
from service.batching.rows import Entry, RowQueue
from service.batching.scheduler import Scheduler
from service.batching.tickets import LONG_CHARS, Query, Reply, Task, Ticket, Wish
from service.batching.turns import Turns

RUN = 64  # padded tokens


def no_flow() -> Flow[Reply]:
    yield []
    raise AssertionError


class Line:
    """What waits, and what is done next with it, as the scheduler would."""

    def __init__(self):
        self.rows: RowQueue[Task] = RowQueue(RUN)
        self.texts = Lane()
        self.turns = Turns(self.rows, self.texts, RUN)

    def put(self, count, *, urgent=True):
        for _ in range(count):
            ticket = Ticket(time.monotonic() + 60, urgent, [None], 1)
            self.texts.put(Task(ticket, 0, 10, no_flow()))

    def add_rows(self, count, *, urgent=True, chars=10):
        """Rows of texts that somebody has tokenised; long ones go back to him."""
        ticket = Ticket(time.monotonic() + 60, urgent, [None], 1)
        row = Row(np.ones(32, dtype=np.int64))
        task = Task(ticket, 0, chars, no_flow())
        self.rows.add(Entry(row, task, 0, urgent) for _ in range(count))

    def go_on(self):
        """Does one thing: 'run', 'text', or 'words' of a text that is computed."""
        if len(self.rows) and self.turns.graph_is_next():
            batch, _ = self.rows.take()
            self.turns.ran(sum(entry.row.bucket for entry in batch))
            for entry in batch:
                if not entry.owner.long:
                    self.texts.put(entry.owner, computed=True)
            return "run"
        computed = self.texts.computed > 0
        task = self.texts.pop()
        if task is None:
            return None
        self.turns.advanced(fresh=not computed)
        if not computed:
            row = Row(np.ones(32, dtype=np.int64))
            self.rows.add([Entry(row, task, 0, task.ticket.urgent)])
        return "words" if computed else "text"

    def all_of_it(self):
        done = []
        while (one := self.go_on()) is not None:
            done.append(one)
        return done


@pytest.fixture
def line():
    return Line()


@pytest.mark.parametrize(
    ("rows", "urgent", "tokens", "crowded"),
    [
        (15, True, RUN, False),
        (16, True, RUN, True),
        (16, True, 513, False),
        (64, False, RUN, False),
    ],
)
def test_a_run_is_not_disturbed_where_much_urgent_waits(line, rows, urgent, tokens, crowded):
    """A quarter of 32 runs; and never for longer than runs of 512 tokens take."""
    line.add_rows(rows, urgent=urgent)
    assert line.turns.crowded(tokens) == crowded


def test_a_text_alone_goes_its_way(line):
    line.put(1)
    assert line.all_of_it() == ["text", "run", "words"]


@pytest.mark.parametrize("urgent", [True, False], ids=["sentences", "items"])
def test_all_are_tokenised_and_up_to_half_of_what_waits_is_run_in_a_row(line, urgent):
    line.put(32, urgent=urgent)
    # Two rows a run: of 32 the first 16, of 16 the first 8.
    whole = [("text", 32), ("run", 8), ("words", 16), ("run", 4), ("words", 8)]
    if urgent:  # fewer than half where fewer wait: of 8 the first 2, of 6 the first 2, and so on
        whole += [("run", 1), ("words", 2)] * 4
    else:
        whole += [("run", 2), ("words", 4)] + [("run", 1), ("words", 2)] * 2
    assert line.all_of_it() == [kind for kind, count in whole for _ in range(count)]


def test_few_urgent_texts_are_answered_soon_whatever_waits_beside_them(line):
    line.add_rows(40, urgent=False)
    line.put(6)
    assert line.all_of_it()[:9] == ["text"] * 6 + ["run"] + ["words"] * 2


@pytest.mark.parametrize("ready", [0, 400])
def test_no_more_than_sixteen_runs_come_in_a_row(line, ready):
    line.add_rows(ready)
    line.put(200)
    done = line.all_of_it()
    assert done.count("text") == 200
    assert done.count("words") == 200 + ready
    in_a_row = [len(list(same)) for kind, same in itertools.groupby(done) if kind == "run"]
    assert max(in_a_row) == 16
    if not ready:  # as many texts are tokenised as make thirty-two runs, before others are
        assert done.index("run") == 64


def test_an_urgent_text_does_not_wait_for_runs_of_others(line):
    line.add_rows(40, urgent=False)
    assert [line.go_on() for _ in range(3)] == ["run"] * 3
    line.put(1)
    # What is computed is told first, then it is its turn.
    assert [line.go_on() for _ in range(8)] == ["words"] * 6 + ["text", "run"]
    assert line.go_on() == "words"
    assert line.go_on() == "run"


def test_an_urgent_row_does_not_wait_until_others_are_tokenised(line):
    line.put(1)
    line.put(10, urgent=False)
    assert [line.go_on() for _ in range(3)] == ["text", "run", "words"]
    assert line.all_of_it()[:10] == ["text"] * 10


@pytest.mark.parametrize("of_books", [False, True], ids=["background books", "urgent books"])
@pytest.mark.parametrize("urgent", [False, True], ids=["item", "sentence"])
def test_no_text_starves_beside_books(line, of_books, urgent):
    """Whose rows come from another thread, as many as anybody can run."""
    line.put(20, urgent=urgent)
    done = []
    for _ in range(200):
        line.add_rows(max(0, 50 - len(line.rows)), urgent=of_books, chars=LONG_CHARS)
        done.append(line.go_on())
    assert done.count("text") == 20
    first, last = done.index("text"), len(done) - done[::-1].index("text")
    assert first <= 16
    assert last <= 20 + 4 * 16 + 20
    assert "run" in done[:last] or urgent > of_books  # and the books have their turns


def test_a_turn_is_not_longer_where_a_run_has_more_tokens():
    rows: RowQueue[Task] = RowQueue(16_384)
    ticket = Ticket(time.monotonic() + 60, False, [None], 1)
    task = Task(ticket, 0, 10, no_flow())
    row = Row(np.ones(512, dtype=np.int64))
    rows.add(Entry(row, task, 0, False) for _ in range(100))
    texts = Lane()
    texts.put(task, computed=True)
    turns = Turns(rows, texts, 16_384)
    assert not turns.graph_is_next()
    texts.pop()
    assert turns.graph_is_next()
    texts.put(task, computed=True)
    turns.ran(8192)
    assert not turns.graph_is_next()


def test_one_thread_answers_all_and_urgent_ones_first(held):
    """The same with a scheduler: what it runs, in which order."""
    scheduler = Scheduler(
        held, max_waiting=100, max_waiting_tokens=10**6, max_batch_tokens=8, crew="alone"
    )

    def ask(*texts, urgent):
        queries = [Query(text) for text in texts]
        return scheduler.ask(queries, Wish(), timeout=20, urgent=urgent)

    async def scene():
        held.hold()
        items = asyncio.ensure_future(ask(*["item"] * 20, urgent=False))
        await asyncio.to_thread(held.wait_until_entered)
        sentence = asyncio.ensure_future(ask("boring", urgent=True))
        await asyncio.sleep(0)
        held.gate.set()
        return [*await sentence, *await items]

    outcomes = asyncio.run(scene())
    scheduler.stop(10)
    assert [one.explanation.label for one in outcomes][:1] == ["NEG"]
    assert len(outcomes) == 21
    assert held.seen.index("boring") == 1
