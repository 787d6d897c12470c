"""What stands behind the routes: the explainer from loading to shutdown, and its scheduler."""

import asyncio
import logging
import time
from collections.abc import Sequence
from enum import Enum
from functools import partial

from models.bundle import BundleError
from models.device import available_threads
from models.explainer import Explainer
from models.session import DeviceError
from service import errors
from service.batching.gate import Gate
from service.batching.scheduler import CrewKind, Scheduler
from service.batching.tickets import (
    ClosedError,
    DeadlineError,
    Outcome,
    OverloadedError,
    Query,
    Wish,
)
from service.metrics import Metrics
from service.settings import Settings

_LOADING_SECONDS = 2.0  # a guess for Retry-After; the shipped bundle takes about as long
_PATIENCE = 0.05  # seconds until there may be room
# One text for each size class of the model, so that the first real requests find memory and kernels
# ready.
_WARM_UP = tuple("A warm-up sentence, said again. " * times for times in (1, 5, 20, 80))

_log = logging.getLogger("l2e.service")


class Phase(Enum):
    """Where the server is in its life."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


class Backend:
    """Loads the bundle, hands requests to the scheduler and says whether it is ready.

    Args:
        settings: of this server.
        explainer: one that is loaded already; None loads `settings.bundle` in `start`.
    """

    def __init__(self, settings: Settings, explainer: Explainer | None = None) -> None:
        self.settings = settings
        self.phase = Phase.LOADING
        self.failure: str | None = None  # one line, when the phase is FAILED
        self.bad_input = False  # whether that was the bundle's or a setting's fault
        self.metrics = Metrics()
        self.gate = Gate()
        self._explainer = explainer
        self._scheduler: Scheduler | None = None
        self._closed_at: float | None = None  # of time.monotonic()

    async def start(self) -> None:
        """Loads, checks and warms up; a failure becomes the phase, not an exception."""
        try:
            explainer = self._explainer
            if explainer is None:
                explainer = await asyncio.to_thread(_load, self.settings)
        except (BundleError, DeviceError) as error:
            self._fail(str(error), bad_input=True)
        except Exception as error:  # noqa: BLE001 - whatever a runtime raises on a file it dislikes
            self._fail(f"the model cannot be loaded: {type(error).__name__}: {error}")
        else:
            self._explainer = explainer
            self._scheduler = Scheduler(
                explainer,
                max_waiting=self.settings.max_waiting,
                max_waiting_tokens=self.settings.max_waiting_tokens,
                max_batch_tokens=self.settings.max_batch_tokens or explainer.session.batch_tokens,
                metrics=self.metrics,
                crew=crew_for(explainer.session.device, available_threads()),
                runners=explainer.session.runners,
                cores=available_threads(),
                gate=self.gate,
            )
            _watch(self.metrics, self._scheduler)
            self.metrics.loaded(explainer.bundle)
            if self.phase is Phase.LOADING:
                self.phase = Phase.READY

    def drain(self) -> None:
        """Says not ready from now on, but still answers."""
        self.gate.stay_open()
        if self.phase is not Phase.FAILED:
            self.phase = Phase.DRAINING

    async def stop(self) -> None:
        """Takes no more requests and answers those in the line."""
        self.drain()
        if self._scheduler is not None:
            # The same seconds as for the server's own requests, not as many again.
            spent = 0.0 if self._closed_at is None else time.monotonic() - self._closed_at
            left = max(0.0, self.settings.drain_timeout - spent)
            await asyncio.to_thread(self._scheduler.stop, left)

    def close(self) -> None:
        """Takes no more requests."""
        self._closed_at = time.monotonic()
        self.drain()
        if self._scheduler is not None:
            self._scheduler.close()

    @property
    def alive(self) -> bool:
        """Whether the scheduler's threads are, or may still come, alive."""
        return self._scheduler is None or self._scheduler.alive

    @property
    def explainer(self) -> Explainer:
        """The loaded explainer.

        Raises:
            Problem: 503 while there is none.
        """
        if self._scheduler is None or self._explainer is None:
            raise self._not_loaded()
        return self._explainer

    def check_ready(self) -> None:
        """Returns when new requests are welcome.

        Raises:
            Problem: 503 with Retry-After otherwise.
        """
        if self.phase is Phase.DRAINING:
            raise errors.draining()
        if self.phase is not Phase.READY:
            raise self._not_loaded()

    async def ask(
        self, queries: Sequence[Query], wish: Wish, *, urgent: bool = True, patient: bool = False
    ) -> list[Outcome]:
        """Answers `queries`, see `Scheduler.ask`.

        Args:
            queries: what is asked.
            wish: of all of them.
            urgent: whether they go before others.
            patient: whether they wait for room where too much waits already.

        Raises:
            Problem: 503 or 504 for the request as a whole.
        """
        if self._scheduler is None:
            raise self._not_loaded()
        seconds = self.settings.request_timeout
        while True:
            try:
                return await self._scheduler.ask(
                    queries, wish, timeout=seconds, urgent=urgent, patient=patient
                )
            except OverloadedError as error:
                if not patient:
                    raise self._overloaded(error, len(queries)) from None
            except ClosedError:
                raise errors.draining() from None
            except DeadlineError:
                raise errors.deadline_passed(seconds) from None
            await asyncio.sleep(_PATIENCE)

    def check_room(self) -> None:
        """Returns where an urgent request for one text would be let in now.

        Raises:
            Problem: 503 otherwise.
        """
        if self._scheduler is None:
            raise self._not_loaded()
        try:
            self._scheduler.check_room(self.settings.request_timeout)
        except OverloadedError as error:
            raise self._overloaded(error, 1) from None

    def problem(self, error: Exception) -> errors.Problem:
        """The problem that one text's exception becomes."""
        if isinstance(error, DeadlineError):
            return errors.deadline_passed(self.settings.request_timeout)
        return errors.internal(error)

    def _fail(self, line: str, *, bad_input: bool = False) -> None:
        self.failure, self.bad_input, self.phase = " ".join(line.split()), bad_input, Phase.FAILED
        _log.error("%s", self.failure)

    def _overloaded(self, error: OverloadedError, texts: int) -> errors.Problem:
        self.metrics.dropped("overload", texts)
        detail = "too much waits already: try again later"
        return errors.unavailable("overloaded", detail, error.retry_after)

    def _not_loaded(self) -> errors.Problem:
        if self.phase is Phase.FAILED:
            detail = "the bundle could not be loaded: see the server's log"
            return errors.unavailable("failed", detail, 60)
        if self.phase is Phase.DRAINING:
            return errors.draining()
        return errors.unavailable("loading", "the bundle is being loaded", _LOADING_SECONDS)


def crew_for(device: str, processors: int) -> CrewKind:
    """The threads that suit a device and so many processors, see `Scheduler`.

    With two processors a single thread leaves one of them idle at times: the server then answered
    an eighth less than with two.
    """
    if device.startswith("cuda"):
        return "apart"
    return "alone" if processors == 1 else "equal"


def _watch(metrics: Metrics, scheduler: Scheduler) -> None:
    gauges = {
        "l2e_waiting_requests": ("Requests of which nothing is computed yet.", "waiting"),
        "l2e_waiting_rows": ("Rows that wait for a run of the graph.", "waiting_rows"),
        "l2e_waiting_tokens": ("Padded tokens that wait.", "waiting_tokens"),
        "l2e_queue_age_seconds": ("How long the oldest row has waited.", "waiting_seconds"),
    }
    for name, (meaning, attribute) in gauges.items():
        metrics.gauge(name, meaning, partial(getattr, scheduler, attribute))


def _load(settings: Settings) -> Explainer:
    explainer = Explainer.load(settings.bundle, device=settings.device, threads=settings.threads)
    for text in _WARM_UP:
        explainer.explain([text])
    explainer.explain(_WARM_UP)  # several runs at a time, where there are
    return explainer
