"""What is asked, what is answered, and the records of what is under way."""

import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field

from models.answer import Flow
from models.explainer import Explanation
from models.session import Outputs

LONG_CHARS = 20_000  # texts from here on are tokenised apart


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
    """Too much waits already.

    Attributes:
        retry_after: seconds after which there should be room again.
    """

    def __init__(self, retry_after: float) -> None:
        super().__init__(retry_after)
        self.retry_after = retry_after


class ClosedError(Exception):
    """No new requests are taken."""


class DeadlineError(Exception):
    """Nobody got to the text in time."""


Outcome = Reply | Exception


@dataclass(slots=True, eq=False)
class Ticket:
    """A request."""

    deadline: float  # of time.monotonic()
    urgent: bool
    outcomes: list[Outcome | None]  # None: none yet
    left: int  # texts without an outcome
    done: Future[None] = field(default_factory=Future)
    started: bool = False  # the runner took a row of it
    abandoned: bool = False  # the client left, or was told 504

    @property
    def wanted(self) -> bool:
        """Whether somebody waits and is not waiting in vain."""
        return not self.abandoned and time.monotonic() < self.deadline


@dataclass(slots=True, eq=False)
class Task:
    """A text of a request, on its way."""

    ticket: Ticket
    place: int  # among the texts of the request
    chars: int
    flow: Flow[Reply]
    outputs: list[Outputs | None] = field(default_factory=list)  # of the rows it waits for
    missing: int = 0
    error: Exception | None = None  # of a run
    finished: bool = False

    @property
    def wanted(self) -> bool:
        """Whether its rows are still worth computing."""
        return self.error is None and self.ticket.wanted

    @property
    def long(self) -> bool:
        """Whether it goes to the thread for long texts."""
        return self.chars >= LONG_CHARS
