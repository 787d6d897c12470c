"""From the texts of a request to their outcomes: tickets, two text threads and one runner.

A request is a ticket; each of its texts is a task whose way is a flow (see `models.answer`). The
text threads carry flows on: tokenisation at the start, words and rationale at the end; long texts
have a thread of their own, so that a book being tokenised holds up nobody else's sentence. Between
these the rows wait in one queue, where the runner, the only thread that runs the graph, mixes those
of all requests into batches. Requests are refused at the door when their answers would come too
late, and what nobody waits for any more is not computed.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import replace

from models.answer import Flow, Row
from models.session import Outputs
from service.lanes import Lane
from service.metrics import Metrics
from service.rows import Entry, RowQueue
from service.tickets import (
    ClosedError,
    DeadlineError,
    Outcome,
    OverloadedError,
    Query,
    Reply,
    Task,
    TextExplainer,
    Ticket,
    Wish,
)

_SMOOTH = 0.1  # weight of the newest observation in moving averages

_log = logging.getLogger("l2e.service")


class Scheduler:
    """Three threads that own the explainer.

    Args:
        explainer: used by these threads alone.
        max_waiting: requests of which nothing has been computed yet, at most.
        max_waiting_tokens: padded tokens that wait, beyond which nothing more is taken.
        max_batch_tokens: padded tokens in one run of the graph.
        metrics: where all of it is counted; None counts for nobody.
    """

    def __init__(
        self,
        explainer: TextExplainer,
        *,
        max_waiting: int,
        max_waiting_tokens: int,
        max_batch_tokens: int,
        metrics: Metrics | None = None,
    ) -> None:
        self._explainer = explainer
        self._metrics = metrics or Metrics()
        self._max_waiting = max_waiting
        self._max_waiting_tokens = max_waiting_tokens
        self._rows: RowQueue[Task] = RowQueue(max_batch_tokens)
        self._changed = threading.Condition()  # guards all below, and the tickets
        self._waiting: set[Ticket] = set()
        self._open = 0  # tasks without an outcome
        self._chars = {True: 0, False: 0}  # of texts not tokenised yet, by urgency
        self._closed = self._stopped = False
        self._token_seconds = 1e-4  # of a padded token in the graph, lately
        self._char_tokens = 0.25  # padded tokens for each character, lately
        self._lanes = (Lane(), Lane())
        self._threads = [
            threading.Thread(target=work, args=given, name=name, daemon=True)
            for name, work, given in (
                ("runner", self._run_batches, ()),
                ("texts", self._carry_on, (self._lanes[0],)),
                ("long texts", self._carry_on, (self._lanes[1],)),
            )
        ]
        for thread in self._threads:
            thread.start()

    async def ask(
        self, queries: Sequence[Query], wish: Wish, *, timeout: float, urgent: bool = True
    ) -> list[Outcome]:
        """Answers `queries` in their order.

        A text that fails has its exception as outcome; one that was not reached within `timeout`
        seconds has a `DeadlineError`. Cancelling takes what has not been computed out of the line.
        Urgent requests go before the others, which keep a tenth of the computation.

        Raises:
            OverloadedError: too many requests or tokens wait, or the answer would be late.
            ClosedError: `close` was called.
            DeadlineError: no text at all was reached in time.
        """
        count = len(queries)
        ticket = Ticket(time.monotonic() + timeout, urgent, [None] * count, count)
        # Nobody may cancel it: a waiting coroutine that is cancelled abandons the ticket instead.
        ticket.done.set_running_or_notify_cancel()
        self._enter(ticket, queries, wish, timeout)
        try:
            await asyncio.wait_for(asyncio.wrap_future(ticket.done), timeout)
        except TimeoutError:
            pass  # what is there by now is answered
        finally:
            self._leave(ticket)
        outcomes = list(ticket.outcomes)
        if all(outcome is None or isinstance(outcome, DeadlineError) for outcome in outcomes):
            raise DeadlineError
        return [DeadlineError() if outcome is None else outcome for outcome in outcomes]

    def close(self) -> None:
        """Takes no new requests; those in the line are still answered."""
        with self._changed:
            self._closed = True

    def stop(self, timeout: float | None = None) -> None:
        """Closes, answers what is in the line and ends the threads, within `timeout` seconds."""
        end = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            self._closed = self._stopped = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._open, timeout)
        for lane in self._lanes:
            lane.close()
        for thread in self._threads:
            thread.join(None if end is None else max(0.0, end - time.monotonic()))

    @property
    def alive(self) -> bool:
        """Whether all threads run."""
        return all(thread.is_alive() for thread in self._threads)

    @property
    def waiting(self) -> int:
        """Requests of which nothing has been computed yet."""
        return len(self._waiting)

    @property
    def waiting_rows(self) -> int:
        """Rows that wait for a run of the graph."""
        with self._changed:
            return len(self._rows)

    @property
    def waiting_seconds(self) -> float:
        """How long the oldest row has waited; 0 where there is none."""
        with self._changed:
            oldest = self._rows.oldest
            return 0.0 if oldest is None else time.monotonic() - oldest.owner.since

    @property
    def waiting_tokens(self) -> float:
        """Padded tokens that wait, those of texts not tokenised yet by estimate."""
        with self._changed:
            return self._tokens()

    def predicted_wait(self, *, urgent: bool) -> float:
        """Seconds until what waits now would be computed, as far as it goes before a new text.

        Args:
            urgent: whether the new text is.
        """
        kinds = (True,) if urgent else (True, False)
        tokens = sum(self._rows.tokens[kind] for kind in kinds)
        chars = sum(self._chars[kind] for kind in kinds)
        return (tokens + chars * self._char_tokens) * self._token_seconds

    def _enter(self, ticket: Ticket, queries: Sequence[Query], wish: Wish, timeout: float) -> None:
        with self._changed:
            if self._closed:
                raise ClosedError
            wait = self.predicted_wait(urgent=ticket.urgent)
            full = len(self._waiting) >= self._max_waiting
            if full or wait > timeout or self._tokens() > self._max_waiting_tokens:
                self._metrics.dropped("overload", len(queries))
                raise OverloadedError(min(60.0, max(1.0, wait)))
            self._waiting.add(ticket)
            self._open += len(queries)
            self._chars[ticket.urgent] += sum(len(query.text) for query in queries)
        for place, query in enumerate(queries):
            task = Task(ticket, place, len(query.text), self._flow(query, wish))
            self._lanes[task.long].put(task, 0 if ticket.urgent else 2)

    def _flow(self, query: Query, wish: Wish) -> Flow[Reply]:
        explanation = yield from self._explainer.explanation_flow(
            query.text, query.target, explain=wish.explain, max_words=wish.max_words
        )
        if not (wish.explain and wish.verify):
            return Reply(explanation)
        return Reply(explanation, (yield from self._explainer.verification_flow(explanation)))

    def _leave(self, ticket: Ticket) -> None:
        with self._changed:
            ticket.abandoned = True
            self._waiting.discard(ticket)
            self._changed.notify_all()  # the runner drops its rows

    def _tokens(self) -> float:
        return sum(self._rows.tokens.values()) + sum(self._chars.values()) * self._char_tokens

    # The text threads.

    def _carry_on(self, lane: Lane) -> None:
        while (task := lane.get()) is not None:
            try:
                self._advance(task)
            except BaseException as error:  # noqa: BLE001 - whatever happens, the thread lives on
                _log.error("texts: %s outside of any text", type(error).__name__)
                self._finish(task, RuntimeError(type(error).__name__))

    def _advance(self, task: Task) -> None:
        """Takes a flow to its next rows, or to its end."""
        fresh = not task.outputs
        task.enter("queue", time.monotonic())
        outcome: Outcome | None = None
        rows: list[Row] = []
        if not task.ticket.wanted:
            outcome = DeadlineError()
        else:
            try:
                if task.error is not None:
                    raise task.error
                rows = task.flow.send(task.outputs or None)  # type: ignore[arg-type]
            except StopIteration as end:
                outcome = end.value
            except Exception as error:  # noqa: BLE001 - it becomes this text's outcome
                outcome = error
        task.enter("tokenize" if fresh else "decode", time.monotonic())
        with self._changed:
            if fresh:
                self._tokenised(task, rows)
            if outcome is None:
                task.outputs, task.missing = [None] * len(rows), len(rows)
                task.running = False
                urgent = task.ticket.urgent
                self._rows.add(Entry(row, task, place, urgent) for place, row in enumerate(rows))
                self._changed.notify_all()
        if outcome is not None:
            self._finish(task, outcome)

    def _tokenised(self, task: Task, rows: Sequence[Row]) -> None:
        self._chars[task.ticket.urgent] -= task.chars
        if rows:
            share = sum(row.bucket for row in rows) / task.chars
            self._char_tokens += _SMOOTH * (share - self._char_tokens)

    def _finish(self, task: Task, outcome: Outcome) -> None:
        ticket = task.ticket
        if isinstance(outcome, Reply):
            outcome = replace(outcome, stages=task.stages)
        with self._changed:
            if task.finished:
                return
            task.finished = True
            ticket.outcomes[task.place] = outcome
            ticket.left -= 1
            self._open -= 1
            last = not ticket.left
            if last:
                self._waiting.discard(ticket)
            if not self._open:
                self._changed.notify_all()
        if last:
            ticket.done.set_result(None)
        if isinstance(outcome, Reply):
            self._metrics.explained(outcome.explanation, task.stages)
        elif isinstance(outcome, DeadlineError):
            late = time.monotonic() >= ticket.deadline
            self._metrics.dropped("deadline" if late else "client_gone")

    # The runner.

    def _run_batches(self) -> None:
        while (batch := self._next()) is not None:
            try:
                self._run(batch)
            except BaseException as error:  # noqa: BLE001 - whatever happens, the thread lives on
                _log.error("runner: %s outside of any run", type(error).__name__)

    def _next(self) -> list[Entry[Task]] | None:
        with self._changed:
            while not (batch := self._take()):
                if self._stopped and not self._open:
                    return None
                self._changed.wait()
            for entry in batch:
                self._waiting.discard(entry.owner.ticket)
            return batch

    def _take(self) -> list[Entry[Task]]:
        batch, dropped = self._rows.take()
        for entry in dropped:
            self._finish(entry.owner, entry.owner.error or DeadlineError())
        return batch

    def _run(self, batch: list[Entry[Task]]) -> None:
        rows = [entry.row for entry in batch]
        start = time.monotonic()
        for task in {entry.owner: None for entry in batch if not entry.owner.running}:
            task.running = True
            task.enter("queue", start)
        try:
            found: list[Outputs | Exception] = list(self._explainer.run(rows))
        except Exception as error:  # noqa: BLE001 - one of them is bad: find out which
            found = [error] if len(rows) == 1 else [self._run_one(row) for row in rows]
        else:
            padded = sum(row.bucket for row in rows)
            self._metrics.ran(len(rows), padded, sum(len(row.input_ids) for row in rows))
            seconds = (time.monotonic() - start) / padded
            self._token_seconds += _SMOOTH * (seconds - self._token_seconds)
        ready = []
        with self._changed:
            for entry, outputs in zip(batch, found, strict=True):
                task = entry.owner
                if isinstance(outputs, Exception):
                    task.error = outputs
                else:
                    task.outputs[entry.place] = outputs
                task.missing -= 1
                if not task.missing and not task.finished:
                    ready.append(task)
        now = time.monotonic()
        for task in ready:
            task.enter("run", now)
            self._lanes[task.long].put(task, 0 if task.ticket.urgent else 1)

    def _run_one(self, row: Row) -> Outputs | Exception:
        try:
            return self._explainer.run([row])[0]
        except Exception as error:  # noqa: BLE001 - it becomes this text's outcome
            return error
