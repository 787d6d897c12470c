"""How much waits, how long it will take, and whether one more request is let in."""

from __future__ import annotations

from dataclasses import dataclass, field

from service.tickets import OverloadedError, Ticket


class Average:
    """A ratio of sums in which old observations fade.

    Weighted by size: many small observations do not stand for a large one.

    Args:
        value: to begin with.
        weight: of that value, in units of the denominator.
    """

    def __init__(self, value: float, weight: float) -> None:
        self._top, self._bottom = value * weight, weight

    def add(self, top: float, bottom: float) -> None:
        """Adds an observation."""
        self._top = 0.98 * self._top + top
        self._bottom = 0.98 * self._bottom + bottom

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
        self._token_seconds = Average(1e-4, 10_000)  # of a padded token in the graph
        self._char_tokens = Average(0.25, 10_000)  # padded tokens for each character

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

    def enter(self, ticket: Ticket, chars: int, timeout: float) -> None:
        """Lets a request in.

        Args:
            ticket: the request.
            chars: of its texts.
            timeout: seconds until nobody wants its answer any more.

        Raises:
            OverloadedError: too much waits, or the answer would be late.
        """
        waiting = self._waiting[ticket.urgent]
        wait = self.predicted_wait(urgent=ticket.urgent)
        full = len(waiting.tickets) >= self._max_requests
        if full or wait > timeout or self._tokens_of(ticket.urgent) > self._max_tokens:
            raise OverloadedError(min(60.0, max(1.0, wait)))
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
