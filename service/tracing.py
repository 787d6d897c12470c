"""One OpenTelemetry span a request, with its stages below it; the only module that needs the SDK.

`L2E_TRACES=otlp` switches it on, and no variable of the standard does: these may be there for
another program, by the standard's default it would be on, and a server that reads people's texts
sends nothing anywhere unless it is told to. All the rest is said by the standard's variables, which
the SDK reads: `OTEL_EXPORTER_OTLP_*`, `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`,
`OTEL_TRACES_SAMPLER`, `OTEL_BSP_*`, `OTEL_PROPAGATORS`.

The middleware is our own, because those of OpenTelemetry, Starlette and FastAPI put the path, the
query and some headers into their spans, where texts may stand, know nothing of our stages, and
would be longer to tame than this is. For the same reason the path and unknown methods, which the
conventions for HTTP ask for, are left out; the route says what matters of them.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from opentelemetry import propagate, trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import (
    SERVICE_NAME,
    SERVICE_VERSION,
    OTELResourceDetector,
    Resource,
)
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, StatusCode
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import logs
from service.batching.tickets import JOURNAL, Journal
from service.metrics import STAGES
from service.middleware import ITEMS, METHODS, REQUEST_ID
from service.settings import SettingsError

# Most that the last spans may take to be sent when the server ends. It comes after `drain_timeout`,
# so it is short: a collector that answers takes a fraction of it.
STOP_SECONDS = 2.0
UNTRACED = {"/health/live", "/health/ready", "/metrics"}
# Which stages become spans. Those of a batch overlap and are many, but its runs tell where it
# waited; a stream may have millions.
_CHILDREN = {"/predict": STAGES, "/predict/batch": ("run",)}
_RATIOS = ("traceidratio", "parentbased_traceidratio")
_SAMPLERS = (
    *("always_on", "always_off", "parentbased_always_on", "parentbased_always_off"),
    *_RATIOS,
)
# Of variables with two names the first that is set counts.
_CHOICES = (
    (("OTEL_TRACES_EXPORTER",), ("otlp",)),
    (("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"), ("http/protobuf",)),
    (
        ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "OTEL_EXPORTER_OTLP_COMPRESSION"),
        ("none", "gzip", "deflate"),
    ),
    (("OTEL_TRACES_SAMPLER",), _SAMPLERS),
)
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_TIMEOUTS = ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT")
_MOST = 1_000_000  # spans, milliseconds or seconds

_log = logging.getLogger("l2e.service")


class Tracing:
    """Makes spans and sends them in the background.

    The provider is not the global one, so that no other library's spans, which may hold texts, get
    in.

    Args:
        version: of this service.

    Raises:
        SettingsError: a standard variable asks for what is not there, or is no number.

    Attributes:
        provider: of the SDK; may be given more processors.
    """

    def __init__(self, version: str) -> None:
        _check_choices()
        self._batches = _read_batches()
        ours = {SERVICE_NAME: "l2e", SERVICE_VERSION: version}
        named = OTELResourceDetector().detect().attributes
        given = {key: value for key, value in ours.items() if key not in named}
        try:
            # At the interpreter's end it would wait for half a minute; `stop` does not.
            self.provider = TracerProvider(resource=Resource.create(given), shutdown_on_exit=False)
            self._exporter = OTLPSpanExporter(timeout=_number(_TIMEOUTS, 0.001))
        except (RuntimeError, ValueError) as error:  # of variables that few use, such as limits
            raise SettingsError(f"bad setting: OTEL_*: {error}") from None
        self._tracer = self.provider.get_tracer("l2e", version)

    def install(self, app: Starlette) -> None:
        """Traces the requests of `app`, from before the middleware that was added so far."""
        app.add_middleware(TracedRequests, tracing=self)

    def start(self) -> None:
        """Starts the thread that sends what has ended; it drops spans when it cannot keep up."""
        self.provider.add_span_processor(BatchSpanProcessor(self._exporter, **self._batches))

    def stop(self) -> None:
        """Sends what is left, within `STOP_SECONDS`."""
        # The SDK's own bounds are half a minute here and ten seconds a batch.
        ending = threading.Thread(target=self.provider.shutdown, name="last spans", daemon=True)
        ending.start()
        ending.join(STOP_SECONDS)
        if ending.is_alive():
            _log.warning("the collector did not take the last spans in %g s", STOP_SECONDS)
            self._exporter.shutdown()  # tries no more

    def begin(self, scope: Scope) -> Span:
        """A span for a request, in the caller's trace where there is one."""
        method = _method(scope)
        return self._tracer.start_span(
            "HTTP" if method == "_OTHER" else method,
            context=propagate.extract(Headers(scope=scope)),
            kind=SpanKind.SERVER,
            attributes={
                "http.request.method": method,
                "url.scheme": scope.get("scheme", "http"),
                "network.protocol.version": scope.get("http_version", "1.1"),
            },
        )

    def end(self, span: Span, scope: Scope, status: int, journal: Journal) -> None:
        """Ends the span of a request with what is known by now.

        Args:
            span: of `begin`.
            scope: of the request, after its answer.
            status: of the answer; 0 where there was none.
            journal: of its texts.
        """
        if route := getattr(scope.get("route"), "path", None):
            method = _method(scope)
            span.update_name(f"{'HTTP' if method == '_OTHER' else method} {route}")
            span.set_attribute("http.route", route)
        if status:
            span.set_attribute("http.response.status_code", status)
        if status >= 500 or not status:
            span.set_attribute("error.type", str(status or "no_response"))
            span.set_status(StatusCode.ERROR)
        span.set_attribute("l2e.request.id", scope.get(REQUEST_ID, ""))
        for name, count in scope.get(ITEMS, {}).items():
            span.set_attribute(f"l2e.items.{name}", count)
        if journal.seconds:
            span.set_attribute("l2e.tokens", journal.tokens)
        for stage, seconds in journal.seconds.items():
            span.set_attribute(f"l2e.{stage}.seconds", seconds)
        self._add_stages(span, journal)
        span.end()

    def _add_stages(self, parent: Span, journal: Journal) -> None:
        context = trace.set_span_in_context(parent)
        epoch = time.time_ns() - time.monotonic_ns()
        for stage, start, end, size in journal.stretches:
            span = self._tracer.start_span(stage, context, start_time=epoch + round(1e9 * start))
            prefix = "l2e.batch" if stage == "run" else "l2e"  # shared with other requests, or not
            for name, count in size._asdict().items():
                if count:
                    span.set_attribute(f"{prefix}.{name}", count)
            span.end(epoch + round(1e9 * end))


class TracedRequests:
    """Gives each request its span and each of its log lines the span's ids."""

    def __init__(self, app: ASGIApp, tracing: Tracing) -> None:
        self.app = app
        self.tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on and ends its span when all of it is answered."""
        if scope["type"] != "http" or scope["path"] in UNTRACED:
            await self.app(scope, receive, send)
            return
        span = self.tracing.begin(scope)
        journal = Journal(_CHILDREN.get(scope["path"], ()))
        status = 0

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        ids = span.get_span_context()
        shown = {"trace_id": f"{ids.trace_id:032x}", "span_id": f"{ids.span_id:016x}"}
        writing = JOURNAL.set(journal if span.is_recording() else None)
        logging_ids = logs.TRACE.set(shown if ids.is_valid else None)
        try:
            await self.app(scope, receive, watch)
        finally:
            logs.TRACE.reset(logging_ids)
            JOURNAL.reset(writing)
            journal.close()
            self.tracing.end(span, scope, status, journal)


def _method(scope: Scope) -> str:
    return scope["method"] if scope["method"] in METHODS else "_OTHER"


def _check_choices() -> None:
    """Refuses what would fail in the background, batch by batch, or be replaced by a default."""
    for names, known in _CHOICES:
        for name, value in _given(names):
            if value.lower() not in known:
                cure = f"must be {' or '.join(known)} here, or set L2E_TRACES=none"
                raise SettingsError(f"bad setting: {name}: {cure}")
    if os.environ.get("OTEL_TRACES_SAMPLER", "").lower() in _RATIOS:
        _number(("OTEL_TRACES_SAMPLER_ARG",), 0, 1)
    for name, value in _given(_ENDPOINTS):
        url = urlsplit(value)
        if url.scheme not in {"http", "https"} or not url.hostname:
            raise SettingsError(f"bad setting: {name}: must be a URL such as http://collector:4318")
    for kind in ("CERTIFICATE", "CLIENT_CERTIFICATE", "CLIENT_KEY"):
        names = (f"OTEL_EXPORTER_OTLP_TRACES_{kind}", f"OTEL_EXPORTER_OTLP_{kind}")
        for name, value in _given(names):
            if not Path(value).is_file():
                raise SettingsError(f"bad setting: {name}: there is no file {value}")


def _read_batches() -> dict[str, Any]:
    """How spans are sent, as arguments of the SDK, which of bad variables writes tracebacks."""
    queue = _number(("OTEL_BSP_MAX_QUEUE_SIZE",), 1, whole=True) or 2_048
    delay = _number(("OTEL_BSP_SCHEDULE_DELAY",), 1, whole=True) or 5_000
    batch = _number(("OTEL_BSP_MAX_EXPORT_BATCH_SIZE",), 1, whole=True) or 512
    if batch > queue:
        cure = f"must be at most OTEL_BSP_MAX_QUEUE_SIZE, and {batch} is more than {queue}"
        raise SettingsError(f"bad setting: OTEL_BSP_MAX_EXPORT_BATCH_SIZE: {cure}")
    return {
        "max_queue_size": queue,
        "max_export_batch_size": batch,
        "schedule_delay_millis": delay,
        "export_timeout_millis": 30_000,  # it would read the variable, but does not use it
    }


def _number(
    names: Iterable[str], least: float, most: float = _MOST, *, whole: bool = False
) -> float | None:
    """The number that a variable gives, None where it is not set."""
    for name, value in _given(names):
        try:
            number = int(value) if whole else float(value)
        except ValueError:
            number = math.nan
        if least <= number <= most:
            return number
        kind = "whole number" if whole else "number"
        cure = f"must be a {kind} from {least} to {most}"
        raise SettingsError(f"bad setting: {name}: {cure}")
    return None


def _given(names: Iterable[str]) -> list[tuple[str, str]]:
    """The first of the variables that is set and its value, or nothing."""
    return [(name, value) for name in names if (value := os.environ.get(name))][:1]
