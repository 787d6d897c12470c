"""What is asked, what is answered, and the records of what is under way."""

import threading
import time
from collections.abc import Callable, Container, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from models.explainer import Explanation
from models.flows import Flow
from models.rows import Row, RowOutputs

LONG_CHARS = 20_000  # texts from here on are tokenised apart
_MOST_STRETCHES = 128  # that a journal keeps: a book has as many runs


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

    def run(self, rows: Sequence[Row]) -> list[RowOutputs]:
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


class Size(NamedTuple):
    """How much was computed: rows, their tokens, and these with the padding."""

    rows: int = 0
    tokens: int = 0
    padded: int = 0

    @classmethod
    def of(cls, rows: Sequence[Row]) -> "Size":
        """The size of `rows`."""
        tokens = sum(len(row.input_ids) for row in rows)
        return cls(len(rows), tokens, sum(row.bucket for row in rows))


_NOTHING = Size()


class Stretch(NamedTuple):
    """A text in one of `service.metrics.STAGES`.

    Attributes:
        stage: which.
        start: of `time.monotonic()`.
        end: likewise.
        size: of the run of the graph, or of the rows that the stage led to.
    """

    stage: str
    start: float
    end: float
    size: Size


class Journal:
    """What became of one request's texts, for a trace; any thread may write.

    Args:
        keep: stages whose stretches are kept one by one; all count in the sums.

    Attributes:
        tokens: of all their rows, without padding.
        seconds: that the texts spent in each stage; together more than passed, where several texts
            were under way at once.
        stretches: the first ones of the stages to keep; a run of several texts is there once.
    """

    def __init__(self, keep: Container[str] = ()) -> None:
        self.tokens = 0
        self.seconds: dict[str, float] = {}
        self.stretches: dict[Stretch, None] = {}  # a set in order
        self._keep = keep
        self._closed = False
        self._lock = threading.Lock()

    def note(self, stretch: Stretch) -> None:
        """Notes where a text was."""
        stage, start, end, size = stretch
        with self._lock:
            if self._closed:
                return
            self.seconds[stage] = self.seconds.get(stage, 0.0) + end - start
            if stage != "run":  # whose rows are also those of others
                self.tokens += size.tokens
            if stage in self._keep and len(self.stretches) < _MOST_STRETCHES:
                self.stretches[stretch] = None

    def close(self) -> None:
        """Takes no more notes, so that it can be read while texts nobody waits for end."""
        with self._lock:
            self._closed = True


# Of the request that is being answered; None where nobody wants to know.
JOURNAL: ContextVar[Journal | None] = ContextVar("journal", default=None)


def _tell_nobody() -> None:
    pass


@dataclass(slots=True, eq=False)
class Ticket:
    """A request."""

    deadline: float  # of time.monotonic()
    urgent: bool
    outcomes: list[Outcome | None]  # None: none yet
    left: int  # texts without an outcome
    answered: Callable[[], None] = _tell_nobody  # by the thread that gives the last outcome
    chars: int = 0  # of its texts that are not tokenised yet; this and tokens are admission's
    tokens: int = 0  # padded, of its rows in the queue
    abandoned: bool = False  # the client left, or was told 504
    late: bool = False  # it was told 504
    journal: Journal | None = None

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
    outputs: list[RowOutputs | None] = field(default_factory=list)  # of the rows it waits for
    missing: int = 0
    line: int | None = None  # the place of its rows, see `service.batching.rows.RowQueue.add`
    error: Exception | None = None  # of a run
    finished: bool = False
    stages: dict[str, float] = field(default_factory=dict)
    since: float = field(default_factory=time.monotonic)  # start of the stage that it is in
    runs: int = 0  # that hold rows of it and are under way

    def enter(self, stage: str, now: float, size: Size = _NOTHING) -> None:
        """Notes that the time since the last call went into `stage`, and what was computed."""
        self.stages[stage] = self.stages.get(stage, 0.0) + now - self.since
        if self.ticket.journal is not None:
            self.ticket.journal.note(Stretch(stage, self.since, now, size))
        self.since = now

    def begin_run(self, now: float) -> None:
        """Notes that a run with rows of it begins; the scheduler locks."""
        if not self.runs:
            self.enter("queue", now)
        self.runs += 1

    def end_run(self, now: float, size: Size) -> None:
        """Notes that one ends; as long as others go on, it is in the same stage."""
        self.runs -= 1
        if not self.runs:
            self.enter("run", now, size)

    @property
    def wanted(self) -> bool:
        """Whether its rows are still worth computing."""
        return self.error is None and self.ticket.wanted

    @property
    def long(self) -> bool:
        """Whether it goes to the thread for long texts."""
        return self.chars >= LONG_CHARS
