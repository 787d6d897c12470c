"""Log lines, for people or for machines; in neither form is there ever a text."""

import asyncio
import json
import logging
import sys
import time
from collections.abc import Mapping
from contextvars import Context, ContextVar
from typing import Literal, NamedTuple

from service.deferred import Deferred

_MOST = 32  # lines that wait
_SECONDS = 0.1  # that they wait at most

# The ids of the request's span where requests are traced, see `service.tracing`.
TRACE: ContextVar[Mapping[str, str] | None] = ContextVar("trace", default=None)

_access = logging.getLogger("l2e.access")


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, then a request's fields, or ids and message."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        fields = getattr(record, "fields", None)
        if fields is None:
            fields = {**(TRACE.get() or {}), "message": record.getMessage()}
        return json.dumps(line | fields)


class Answered(NamedTuple):
    """What an access line says of a request.

    Attributes:
        when: it was answered, of `time.time()`.
        identity: its id.
        method: one of HTTP's own, or "other".
        route: the pattern that matched.
        status: of the answer; 0 where there was none.
        sent: bytes of the answer's body.
        seconds: from its head to the last of its answer.
        stages: seconds of each, see `service.metrics.STAGES`.
        trace: ids of its span, none where it is not traced.
    """

    when: float
    identity: str
    method: str
    route: str
    status: int
    sent: int
    seconds: float
    stages: Mapping[str, float]
    trace: Mapping[str, str]


class AccessLines:
    """Lines about requests, written many together: with the 32nd, or soon after the first.

    Also where one request comes at a time, for the next often comes as soon as one is answered, and
    would wait for the line. Of one event loop.
    """

    def __init__(self) -> None:
        self._lines = Deferred(_MOST)
        self._timer: asyncio.Handle | None = None
        self._closed = False

    def add(self, answered: Answered) -> None:
        """Notes that a request has been answered."""
        self._lines.add(_write, answered)
        if self._closed:
            self._lines.make()
        elif self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(_SECONDS, self._flush, context=Context())

    def close(self) -> None:
        """Writes what waits, and all else as it comes: the server ends."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._flush()

    def _flush(self) -> None:
        self._timer = None
        self._lines.make()


def _write(answered: Answered) -> None:
    """Writes a line, with the time of the answer."""
    if not _access.isEnabledFor(logging.INFO):
        return
    when, identity, method, route, status, sent, seconds, stages, trace = answered
    fields = {
        **trace,
        "request": identity,
        "method": method,
        "route": route,
        "status": status,
        "bytes": sent,
        "ms": round(1000 * seconds, 1),
        **{f"{stage}_ms": round(1000 * spent, 2) for stage, spent in stages.items()},
    }
    record = {
        "name": _access.name,
        "levelno": logging.INFO,
        "levelname": "INFO",
        "msg": f"{method} {route} {status} {sent}B {1000 * seconds:.1f}ms",
        "created": when,
        "msecs": 1000 * (when % 1),
        "fields": fields,
    }
    _access.handle(logging.makeLogRecord(record))


def set_up(form: Literal["text", "json"]) -> None:
    """Sends all lines to standard error in the given form; may be called again."""
    handler = logging.StreamHandler(sys.stderr)
    plain = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    handler.setFormatter(JsonFormatter() if form == "json" else plain)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
