"""The waiting line and the one thread that owns the explainer.

A request is a ticket in a bounded first-in-first-out line. The runner thread takes one ticket at a
time and answers its texts in small chunks; between chunks it looks whether anybody still waits. A
scheduler that mixes several requests into one batch can replace `Runner` as it stands: what callers
use is `ask`, `close`, `stop`, `alive` and `retry_after`.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

from models.explainer import Explanation

_CHUNK_TEXTS = 32  # what is computed between two looks at the clock
_CHUNK_CHARS = 20_000

_log = logging.getLogger("l2e.service")


class TextExplainer(Protocol):
    """What the service needs of `models.explainer.Explainer`."""

    @property
    def labels(self) -> Sequence[str]:
        """The labels, in the order of the classes."""

    def explain(
        self,
        texts: Sequence[str],
        target: str | Sequence[str | None] | None = None,
        *,
        max_words: int | None = None,
    ) -> list[Explanation]:
        """Labels with rationales."""

    def predict(
        self, texts: Sequence[str], target: str | Sequence[str | None] | None = None
    ) -> list[Explanation]:
        """Labels only."""

    def verify(self, explanation: Explanation) -> Mapping[str, float]:
        """What the rationale is worth."""


@dataclass(frozen=True, slots=True)
class Query:
    """One text and the label to explain (None: the predicted one)."""

    text: str
    target: str | None = None


@dataclass(frozen=True, slots=True)
class Wish:
    """What a request wants to know of each of its texts."""

    explain: bool = True
    verify: bool = False
    max_words: int | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """What the explainer said of one text; the verification only where it was wished."""

    explanation: Explanation
    verification: Mapping[str, float] | None = None


class OverloadedError(Exception):
    """The waiting line is full."""


class ClosedError(Exception):
    """No new requests are taken."""


class DeadlineError(Exception):
    """Nobody got to the text in time."""


Outcome = Reply | Exception


@dataclass(slots=True, eq=False)
class _Ticket:
    queries: Sequence[Query]
    wish: Wish
    deadline: float  # of time.monotonic()
    outcomes: list[Outcome | None]  # the runner fills it; None: not computed yet
    done: Future[None] = field(default_factory=Future)
    abandoned: bool = False  # the client left, or was told 504

    @property
    def wanted(self) -> bool:
        return not self.abandoned and time.monotonic() < self.deadline


class Runner:
    """One thread that owns the explainer, and the line before it.

    Args:
        explainer: used by the runner's thread alone.
        max_waiting: places in the line; the request that is being computed takes none.
    """

    def __init__(self, explainer: TextExplainer, *, max_waiting: int) -> None:
        self._explainer = explainer
        self._max_waiting = max_waiting
        self._line: deque[_Ticket] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._stopped = False
        self._seconds = 0.05  # what a ticket took lately
        self._thread = threading.Thread(target=self._work, name="runner", daemon=True)
        self._thread.start()

    async def ask(self, queries: Sequence[Query], wish: Wish, *, timeout: float) -> list[Outcome]:
        """Answers `queries` in their order.

        A text that fails has its exception as outcome; one that was not reached within `timeout`
        seconds has a `DeadlineError`. Cancelling takes the request out of the line.

        Raises:
            OverloadedError: no place in the line.
            ClosedError: `close` was called.
            DeadlineError: no text at all was reached in time.
        """
        ticket = _Ticket(queries, wish, time.monotonic() + timeout, [None] * len(queries))
        self._enter(ticket)
        try:
            await asyncio.wait_for(asyncio.wrap_future(ticket.done), timeout)
        except TimeoutError:
            pass  # what is there by now is answered
        finally:
            self._leave(ticket)
        outcomes = list(ticket.outcomes)
        if all(outcome is None for outcome in outcomes):
            raise DeadlineError
        return [DeadlineError() if outcome is None else outcome for outcome in outcomes]

    def close(self) -> None:
        """Takes no new requests; those in the line are still answered."""
        with self._changed:
            self._closed = True

    def stop(self, timeout: float | None = None) -> None:
        """Closes, answers what is in the line and ends the thread, within `timeout` seconds."""
        with self._changed:
            self._closed = self._stopped = True
            self._changed.notify()
        self._thread.join(timeout)

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """Requests in the line."""
        return len(self._line)

    @property
    def retry_after(self) -> float:
        """Seconds after which a place in the line should be free, 1 to 60."""
        return min(60.0, max(1.0, self._seconds * (1 + self.waiting)))

    def _enter(self, ticket: _Ticket) -> None:
        with self._changed:
            if self._closed:
                raise ClosedError
            if len(self._line) >= self._max_waiting:
                raise OverloadedError
            self._line.append(ticket)
            self._changed.notify()

    def _leave(self, ticket: _Ticket) -> None:
        with self._changed:
            ticket.abandoned = True
            if ticket in self._line:
                self._line.remove(ticket)

    def _work(self) -> None:
        while (ticket := self._next()) is not None:
            if not ticket.done.set_running_or_notify_cancel():
                continue
            start = time.monotonic()
            try:
                self._answer(ticket)
            except BaseException as error:  # noqa: BLE001 - whatever happens, the thread lives on
                _log.error("runner: %s outside of any text", type(error).__name__)
            ticket.done.set_result(None)
            self._seconds += 0.2 * (time.monotonic() - start - self._seconds)

    def _next(self) -> _Ticket | None:
        with self._changed:
            while not self._line:
                if self._stopped:
                    return None
                self._changed.wait()
            return self._line.popleft()

    def _answer(self, ticket: _Ticket) -> None:
        for chunk in _chunks(ticket.queries):
            if not ticket.wanted:
                return
            queries = ticket.queries[chunk]
            try:
                ticket.outcomes[chunk] = self._explain(queries, ticket.wish)
            except Exception as error:  # noqa: BLE001 - one of them is bad: find out which
                if len(queries) == 1:
                    ticket.outcomes[chunk] = [error]
                else:
                    ticket.outcomes[chunk] = [
                        self._explain_one(one, ticket.wish) for one in queries
                    ]

    def _explain(self, queries: Sequence[Query], wish: Wish) -> list[Outcome]:
        texts = [query.text for query in queries]
        targets = [query.target for query in queries]
        if not wish.explain:
            return [Reply(explanation) for explanation in self._explainer.predict(texts, targets)]
        explanations = self._explainer.explain(texts, targets, max_words=wish.max_words)
        if not wish.verify:
            return [Reply(explanation) for explanation in explanations]
        return [Reply(one, self._explainer.verify(one)) for one in explanations]

    def _explain_one(self, query: Query, wish: Wish) -> Outcome:
        try:
            return self._explain([query], wish)[0]
        except Exception as error:  # noqa: BLE001 - it becomes this text's outcome
            return error


def _chunks(queries: Sequence[Query]) -> Iterator[slice]:
    """Runs of queries of limited number and size, at least one query each."""
    start = chars = 0
    for stop, query in enumerate(queries):
        full = stop - start >= _CHUNK_TEXTS or chars + len(query.text) > _CHUNK_CHARS
        if full and stop > start:
            yield slice(start, stop)
            start, chars = stop, 0
        chars += len(query.text)
    yield slice(start, len(queries))
