"""From the texts of a request to their outcomes: tickets, rows, and the threads that work on them.

A request is a ticket; each of its texts is a task whose way is a flow (see `models.flows`).
Threads carry flows on: tokenisation at the start, words and rationale at the end. Between these the
rows wait in one queue, where those of all requests are mixed into batches for the graph. Equal
threads share all of this, one for each run that may go on at a time, and a text that comes alone
stays with one of them from its start to its end: on an idle server each change of thread would cost
it a tenth of a millisecond. Where each may be running the graph, they do both in turns (see
`service.batching.turns`). Long texts are tokenised by another, so that a book holds up nobody
else's sentence. Requests are refused at the door when their answers would come too late, and what
nobody waits for any more is not computed.
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Sequence
from functools import partial
from typing import Literal

from models.flows import Flow
from models.rows import Row, RowOutputs
from service.batching.admission import Admission
from service.batching.gate import Gate
from service.batching.lanes import Crew, Job, Lane, Worker
from service.batching.rows import Entry, RowQueue
from service.batching.tickets import (
    JOURNAL,
    ClosedError,
    DeadlineError,
    Outcome,
    Query,
    Reply,
    Size,
    Task,
    TextExplainer,
    Ticket,
    Wish,
)
from service.batching.turns import Turns
from service.metrics import Metrics

CrewKind = Literal["equal", "alone", "apart"]

_log = logging.getLogger("l2e.service")


class Scheduler:
    """Threads that own the explainer.

    Args:
        explainer: used by these threads alone; never asked for more than `runners` runs at a time,
            while flows go on beside them.
        max_waiting: see `Admission`.
        max_waiting_tokens: likewise.
        max_batch_tokens: padded tokens in one run of the graph.
        metrics: where all of it is counted; None counts for nobody.
        crew: "equal" for at least two threads that do everything, "alone" for one that does, where
            there is one core, and "apart" where all runs of the graph come from one thread, which
            does nothing else: for devices that keep something for each thread that asks them, such
            as CUDA.
        runners: of "equal": runs of the graph at a time.
        cores: of "equal": a thread for each runner, and where there are more cores one that
            prepares what is next; no more threads than cores, but two.
        gate: shut during runs that are not to be disturbed, where one thread does everything.
    """

    def __init__(
        self,
        explainer: TextExplainer,
        *,
        max_waiting: int,
        max_waiting_tokens: int,
        max_batch_tokens: int,
        metrics: Metrics | None = None,
        crew: CrewKind = "equal",
        runners: int = 1,
        cores: int = 1,
        gate: Gate | None = None,
    ) -> None:
        self._explainer = explainer
        self._metrics = metrics or Metrics()
        self._gate = gate or Gate()
        self._rows: RowQueue[Task] = RowQueue(max_batch_tokens)
        self._lock = threading.RLock()  # guards all below, and the tickets
        self._changed = threading.Condition(self._lock)
        self._admission = Admission(max_waiting, max_waiting_tokens)
        self._open = 0  # tasks without an outcome
        self._closed = self._stopped = False
        self._running, self._runners = 0, runners  # runs of the graph, and how many there may be
        self._short, self._long = Lane(), Lane()
        count = 1 if crew == "alone" else max(2, min(runners + 1, cores))
        shared = crew != "apart" and count <= runners
        self._turns = Turns(self._rows, self._short, max_batch_tokens) if shared else None
        self._alone = crew == "alone"
        parts: list[tuple[str, Lane | None, bool]] = [("long texts", self._long, False)]
        if crew == "apart":
            parts += [("graph", None, True), ("texts", self._short, False)]
        else:
            parts += [
                (f"texts and graph {1 + number}", self._short, True) for number in range(count)
            ]
        self._crew = Crew(self._lock, parts, self._find, self._over)
        self._crew.start()

    async def ask(
        self,
        queries: Sequence[Query],
        wish: Wish,
        *,
        timeout: float,
        urgent: bool = True,
        patient: bool = False,
    ) -> list[Outcome]:
        """Answers `queries` in their order.

        A text that fails has its exception as outcome; one that was not reached within `timeout`
        seconds has a `DeadlineError`. Cancelling takes what has not been computed out of the line.
        Urgent requests go before the others, which keep a tenth of the graph's time;
        patient ones leave half of the room to others.

        Raises:
            OverloadedError: too many requests or tokens wait, or the answer would be late.
            ClosedError: `close` was called.
            DeadlineError: no text at all was reached in time.
        """
        count = len(queries)
        if not count:
            return []
        loop = asyncio.get_running_loop()
        done = loop.create_future()

        def settle() -> None:
            if not done.done():
                done.set_result(None)

        def answered() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(settle)

        deadline = time.monotonic() + timeout
        ticket = Ticket(deadline, urgent, [None] * count, count, answered, journal=JOURNAL.get())
        self._enter(ticket, queries, wish, timeout, patient=patient)
        timer = loop.call_later(timeout, settle)
        try:
            await done
            # Not by the clock: the loop's timers may end a millisecond before the deadline.
            ticket.late = ticket.left > 0  # what is there by now is answered
        finally:
            timer.cancel()
            self._leave(ticket)
        outcomes = list(ticket.outcomes)
        if all(outcome is None or isinstance(outcome, DeadlineError) for outcome in outcomes):
            raise DeadlineError
        return [DeadlineError() if outcome is None else outcome for outcome in outcomes]

    def check_room(self, timeout: float) -> None:
        """Returns where an urgent request would be let in now.

        Raises:
            OverloadedError: as `ask`.
        """
        with self._lock:
            self._admission.check_room(timeout, urgent=True)

    def close(self) -> None:
        """Takes no new requests; those in the line are still answered."""
        with self._lock:
            self._closed = True

    def stop(self, timeout: float | None = None) -> None:
        """Closes, answers what is in the line and ends the threads, within `timeout` seconds."""
        end = None if timeout is None else time.monotonic() + timeout
        with self._lock:
            self._closed = self._stopped = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._open, timeout)
            self._crew.call_all()
        self._crew.join(None if end is None else max(0.0, end - time.monotonic()))

    @property
    def alive(self) -> bool:
        """Whether all threads run."""
        return self._crew.alive

    @property
    def waiting(self) -> int:
        """Requests of which nothing has been computed yet."""
        with self._lock:
            return self._admission.requests

    @property
    def waiting_rows(self) -> int:
        """Rows that wait for a run of the graph."""
        with self._lock:
            return len(self._rows)

    @property
    def waiting_seconds(self) -> float:
        """How long the row has waited that has done so longest; 0 where there is none."""
        with self._lock:
            now = time.monotonic()
            return max((now - entry.owner.since for entry in self._rows), default=0.0)

    @property
    def waiting_tokens(self) -> float:
        """Padded tokens that wait, those of texts not tokenised yet by estimate."""
        with self._lock:
            return self._admission.tokens

    def _enter(
        self,
        ticket: Ticket,
        queries: Sequence[Query],
        wish: Wish,
        timeout: float,
        *,
        patient: bool,
    ) -> None:
        tasks = [
            Task(ticket, place, len(query.text), self._flow(query, wish))
            for place, query in enumerate(queries)
        ]
        chars = sum(task.chars for task in tasks)
        with self._lock:
            if self._closed:
                raise ClosedError
            self._admission.enter(ticket, chars, timeout, patient=patient)
            self._open += len(tasks)
            for task in tasks:
                self._lane(task).put(task)
                self._crew.call_for(self._lane(task))

    def _flow(self, query: Query, wish: Wish) -> Flow[Reply]:
        explanation = yield from self._explainer.explanation_flow(
            query.text, query.target, explain=wish.explain, max_words=wish.max_words
        )
        if not (wish.explain and wish.verify):
            return Reply(explanation)
        return Reply(explanation, (yield from self._explainer.verification_flow(explanation)))

    def _leave(self, ticket: Ticket) -> None:
        with self._lock:
            self._admission.leave(ticket)  # its rows are dropped when their turn comes

    # What the threads do.

    def _find(self, worker: Worker) -> Job | None:
        """The graph goes before texts, for which another has time, unless all may be running it."""
        # A batch may be empty, because nobody wants its rows any more, while others wait.
        while worker.runs and self._may_run() and self._graph_is_next():
            if batch := self._take():
                self._running += 1
                if self._alone and self._turns and self._turns.crowded(_tokens(batch)):
                    self._gate.shut()
                if worker.lane is not None and len(worker.lane):
                    self._crew.call_for(worker.lane)
                elif self._may_run():
                    self._crew.call_runner()
                return partial(self._run_batch, worker, batch)
        if worker.lane is not None and (task := worker.lane.pop()) is not None:
            if self._turns is not None and worker.runs:
                self._turns.advanced(fresh=not task.outputs)
            if self._may_run():
                self._crew.call_runner()
            return partial(self._advance, worker, task)
        return None

    def _may_run(self) -> bool:
        return self._running < self._runners and len(self._rows) > 0

    def _graph_is_next(self) -> bool:
        return self._turns is None or self._turns.graph_is_next()

    def _over(self) -> bool:
        return self._stopped and not self._open

    def _lane(self, task: Task) -> Lane:
        return self._long if task.long else self._short

    # Texts.

    def _advance(self, worker: Worker, task: Task) -> None:
        """Takes a flow to its next rows, or to its end."""
        fresh = not task.outputs
        task.enter("queue", time.monotonic())
        outcome, rows = self._step(task)
        size = Size.of(rows)
        task.enter("tokenize" if fresh else "decode", time.monotonic(), size)
        with self._lock:
            if fresh:
                self._admission.tokenised(task.ticket, task.chars, size.padded)
            if outcome is None:
                task.outputs, task.missing = [None] * len(rows), len(rows)
                urgent = task.ticket.urgent
                entries = [Entry(row, task, place, urgent) for place, row in enumerate(rows)]
                task.line = self._rows.add(entries, task.line)
                self._admission.queued(task.ticket, size.padded)
                if not worker.runs and self._may_run():
                    self._crew.call_runner()
        if outcome is not None:
            self._finish(task, outcome)

    def _step(self, task: Task) -> tuple[Outcome | None, list[Row]]:
        if not task.ticket.wanted:
            return DeadlineError(), []
        if task.error is not None:
            return task.error, []
        try:
            rows = task.flow.send(task.outputs or None)  # type: ignore[arg-type]
        except StopIteration as end:
            return end.value, []
        except BaseException as error:  # noqa: BLE001 - the tokenizer's panics are no Exceptions
            return _as_exception(error), []
        return (None, rows) if rows else (RuntimeError("a flow without rows"), [])

    def _finish(self, task: Task, outcome: Outcome) -> None:
        ticket = task.ticket
        if isinstance(outcome, Reply):
            outcome = Reply(outcome.explanation, outcome.verification, task.stages)
        with self._lock:
            if task.finished:
                return
            task.finished = True
            ticket.outcomes[task.place] = outcome
            ticket.left -= 1
            self._open -= 1
            last = not ticket.left
            gone = ticket.abandoned and not ticket.late
            if last:
                self._admission.started(ticket)
            if not self._open:
                self._changed.notify_all()
            if self._over():
                self._crew.call_all()
        if last:
            ticket.answered()
        if isinstance(outcome, Reply):
            self._metrics.explained(outcome.explanation, task.stages)
        elif isinstance(outcome, DeadlineError):
            self._metrics.dropped("client_gone" if gone else "deadline")
        else:
            self._metrics.failed()

    # The graph.

    def _run_batch(self, worker: Worker, batch: list[Entry[Task]]) -> None:
        ready: list[Task] = []
        try:
            ready = self._run(batch)
        except BaseException as error:  # noqa: BLE001 - whatever happens, the thread lives on
            _log.error("a run of the graph: %s", type(error).__name__)
            for entry in batch:
                self._finish(entry.owner, _as_exception(error))
        finally:
            self._gate.open()
            with self._lock:
                self._running -= 1
        with self._lock:
            # They stay with this thread: another would wait for Python's lock.
            for task in ready:
                self._lane(task).put(task, computed=True)
            for lane in {self._lane(task) for task in ready}:
                if lane is not worker.lane:
                    self._crew.call_for(lane)

    def _take(self) -> list[Entry[Task]]:
        batch, dropped = self._rows.take()
        if self._turns is not None:
            self._turns.ran(_tokens(batch))
        for entry in (*batch, *dropped):
            self._admission.queued(entry.owner.ticket, -entry.row.bucket)
        for entry in batch:
            self._admission.started(entry.owner.ticket)
        for entry in dropped:
            self._finish(entry.owner, entry.owner.error or DeadlineError())
        return batch

    def _run(self, batch: list[Entry[Task]]) -> list[Task]:
        """Runs a batch; returns the tasks that have all their outputs now."""
        tasks = dict.fromkeys(entry.owner for entry in batch)
        rows = [entry.row for entry in batch]
        size = Size.of(rows)
        with self._lock:
            start = time.monotonic()
            for task in tasks:
                task.begin_run(start)
        found = self._outputs(rows)
        with self._lock:
            end = time.monotonic()
            for task in tasks:
                task.end_run(end, size)
            for entry, outputs in zip(batch, found, strict=True):
                task = entry.owner
                if isinstance(outputs, Exception):
                    task.error = outputs
                else:
                    task.outputs[entry.place] = outputs
                task.missing -= 1
            return [task for task in tasks if not task.missing and not task.finished]

    def _outputs(self, rows: Sequence[Row]) -> list[RowOutputs | Exception]:
        """Runs rows together; where that fails, each alone, to find the bad one."""
        start = time.monotonic()
        try:
            found = list(self._explainer.run(rows))
            if len(found) != len(rows):
                raise RuntimeError(f"{len(found)} outputs for {len(rows)} rows")
        except Exception as error:  # noqa: BLE001 - it becomes the outcome of one text
            if len(rows) == 1:
                return [error]
            return [outputs for row in rows for outputs in self._outputs([row])]
        size = Size.of(rows)
        self._metrics.ran(size.rows, size.padded, size.tokens)
        with self._lock:
            # What runs beside it is as quick.
            self._admission.ran(size.padded, (time.monotonic() - start) / self._running)
        return list(found)


def _tokens(batch: Sequence[Entry[Task]]) -> int:
    return sum(entry.row.bucket for entry in batch)


def _as_exception(error: BaseException) -> Exception:
    return error if isinstance(error, Exception) else RuntimeError(type(error).__name__)
