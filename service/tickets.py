"""What is asked, what is answered, and the records of what is under way."""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

from models.answer import Flow, Row
from models.explainer import Explanation
from models.session import Outputs

LONG_CHARS = 20_000  # texts from here on are tokenised apart


class TextExplainer(Protocol):
    """What the service needs of `models.explainer.Explainer`."""

    @property
    def labels(self) -> Sequence[str]:
        """The labels, in the order of the classes."""

    def explanation_flow(
        self,
        text: str,
        target: str | None = None,
        *,
        explain: bool = True,
        max_words: int | None = None,
    ) -> Flow[Explanation]:
        """The way of one text to its label and rationale."""

    def verification_flow(self, explanation: Explanation) -> Flow[dict[str, float]]:
        """The way to what the rationale is worth."""

    def run(self, rows: Sequence[Row]) -> list[Outputs]:
        """Runs the graph once, on rows of one bucket that are all explained or all not."""


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
    """What the explainer said of one text; the verification only where it was wished.

    `stages` says how many seconds went into which stage, see `service.metrics.STAGES`.
    """

    explanation: Explanation
    verification: Mapping[str, float] | None = None
    stages: Mapping[str, float] = field(default_factory=dict)


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
    chars: int = 0  # of its texts that are not tokenised yet; this and tokens are admission's
    tokens: int = 0  # padded, of its rows in the queue
    abandoned: bool = False  # the client left, or was told 504
    late: bool = False  # it was told 504

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
    stages: dict[str, float] = field(default_factory=dict)
    since: float = field(default_factory=time.monotonic)  # start of the stage that it is in

    def enter(self, stage: str, now: float) -> None:
        """Notes that the time since the last call went into `stage`."""
        self.stages[stage] = self.stages.get(stage, 0.0) + now - self.since
        self.since = now

    @property
    def wanted(self) -> bool:
        """Whether its rows are still worth computing."""
        return self.error is None and self.ticket.wanted

    @property
    def long(self) -> bool:
        """Whether it goes to the thread for long texts."""
        return self.chars >= LONG_CHARS
