"""How much waits, how long it will take, and whether one more request is let in."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from service.batching.tickets import OverloadedError, Ticket


class Average:
    """A ratio of sums in which old observations fade.

    Both weight and fading go by size: many small observations do not stand for a large one.

    Args:
        value: to begin with.
        scale: of the denominator, over which an observation fades to 1/e.
    """

    def __init__(self, value: float, scale: float) -> None:
        self._top, self._bottom, self._scale = value * scale, scale, scale

    def add(self, top: float, bottom: float) -> None:
        """Adds an observation."""
        kept = math.exp(-bottom / self._scale)
        self._top = kept * self._top + top
        self._bottom = kept * self._bottom + bottom

    @property
    def value(self) -> float:
        """The ratio."""
        return self._top / self._bottom


@dataclass(slots=True)
class _Waiting:
    """What waits of one urgency; of tickets that somebody still waits for."""

    tickets: set[Ticket] = field(default_factory=set)  # nothing of them is computed yet
    chars: int = 0  # of texts not tokenised yet
    tokens: int = 0  # padded, of rows in the queue


class Admission:
    """Not safe for threads by itself: the scheduler locks.

    Urgent and background requests are counted apart, for background work must not keep out what
    goes before it.

    Args:
        max_requests: of one urgency of which nothing has been computed yet, at most.
        max_tokens: of one urgency that wait, beyond which nothing more is let in. A request that
            finds less may have any number itself, else it could never be answered.
    """

    def __init__(self, max_requests: int, max_tokens: int) -> None:
        self._max_requests = max_requests
        self._max_tokens = max_tokens
        self._waiting = {True: _Waiting(), False: _Waiting()}
        self._token_seconds = Average(1e-4, 100_000)  # of a padded token in the graph
        self._char_tokens = Average(0.25, 100_000)  # padded tokens for each character

    @property
    def requests(self) -> int:
        """Requests of which nothing has been computed yet."""
        return sum(len(waiting.tickets) for waiting in self._waiting.values())

    @property
    def tokens(self) -> float:
        """Padded tokens that wait, those of texts not tokenised yet by estimate."""
        return sum(self._tokens_of(urgent) for urgent in (True, False))

    def predicted_wait(self, *, urgent: bool) -> float:
        """Seconds until what goes before a new text is computed.

        Args:
            urgent: whether the new text is.
        """
        kinds = (True,) if urgent else (True, False)
        return sum(self._tokens_of(kind) for kind in kinds) * self._token_seconds.value

    def check_room(self, timeout: float, *, urgent: bool, patient: bool = False) -> None:
        """Returns where a request would be let in now, whatever its texts are.

        Args:
            timeout: see `enter`.
            urgent: of the request.
            patient: see `enter`.

        Raises:
            OverloadedError: too much waits, or the answer would be late.
        """
        wait = self.predicted_wait(urgent=urgent)
        share = 2 if patient else 1
        full = len(self._waiting[urgent].tickets) >= max(1, self._max_requests // share)
        heavy = self._tokens_of(urgent) > self._max_tokens / share
        if full or heavy or wait > timeout:
            raise OverloadedError(min(60.0, max(1.0, wait)))

    def enter(self, ticket: Ticket, chars: int, timeout: float, *, patient: bool = False) -> None:
        """Lets a request in.

        Args:
            ticket: the request.
            chars: of its texts.
            timeout: seconds until nobody wants its answer any more.
            patient: whether it may wait outside; it leaves half of the room to those that may not.

        Raises:
            OverloadedError: too much waits, or the answer would be late.
        """
        self.check_room(timeout, urgent=ticket.urgent, patient=patient)
        waiting = self._waiting[ticket.urgent]
        waiting.tickets.add(ticket)
        waiting.chars += chars
        ticket.chars = chars

    def tokenised(self, ticket: Ticket, chars: int, tokens: int) -> None:
        """Notes that a text of a request became rows, or none where it is not to be computed."""
        if tokens:
            self._char_tokens.add(tokens, chars)
        if not ticket.abandoned:
            ticket.chars -= chars
            self._waiting[ticket.urgent].chars -= chars

    def queued(self, ticket: Ticket, tokens: int) -> None:
        """Notes rows of so many tokens, fewer than none where they leave the queue."""
        if not ticket.abandoned:
            ticket.tokens += tokens
            self._waiting[ticket.urgent].tokens += tokens

    def started(self, ticket: Ticket) -> None:
        """Notes that something of a request is computed."""
        self._waiting[ticket.urgent].tickets.discard(ticket)

    def ran(self, tokens: int, seconds: float) -> None:
        """Notes how long a run of so many padded tokens took."""
        self._token_seconds.add(seconds, tokens)

    def leave(self, ticket: Ticket) -> None:
        """Forgets a request that nobody waits for any more."""
        self.started(ticket)
        self._waiting[ticket.urgent].chars -= ticket.chars
        self._waiting[ticket.urgent].tokens -= ticket.tokens
        ticket.chars = ticket.tokens = 0
        ticket.abandoned = True

    def _tokens_of(self, urgent: bool) -> float:
        waiting = self._waiting[urgent]
        return waiting.tokens + waiting.chars * self._char_tokens.value
