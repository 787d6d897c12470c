"""What every request passes, as plain ASGI: log line, headers, last resort, and body limit.

None of it is built on Starlette's BaseHTTPMiddleware, which hides from the routes that a
client left.
"""

import random
import re
import time
from collections.abc import Container, Mapping

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import errors
from service.logs import TRACE, AccessLines, Answered
from service.metrics import Metrics

# Keys of the scope.
STAGES = "l2e.stages"  # seconds of each stage
ITEMS = "l2e.items"  # how many of several texts are "ok" and how many "failed"
REQUEST_ID = "l2e.request_id"
SINCE = "l2e.since"  # of `time.perf_counter()`, where the server says when it came
_REQUEST_ID = re.compile("[0-9a-f]{32}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}

# The page needs its own scripts, styles and icon and asks this server; nothing else is allowed.
_SECURITY_HEADERS = [
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]


class Envelope:
    """What is around every answer: a log line, a count, headers, and a 500 where nobody answered.

    The headers say which request it was and how long it took, tell browsers what the page may do,
    and caches to keep nothing. The route is the pattern that matched, never the path or query,
    which may hold a text. The request id is the one that came, if it is a UUID or 32 hexadecimal
    digits, else a new one. Routes put the seconds of a request's stages under `STAGES` into the
    scope. The 500 is ours because the server would log what nobody caught with its message.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, lines: AccessLines) -> None:
        self.app = app
        self.metrics = metrics
        self.lines = lines

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on and notes how it went."""
        if scope["type"] != "http":
            try:
                await self.app(scope, receive, send)
            finally:
                if scope["type"] == "lifespan":  # the server ends
                    self.lines.close()
            return
        start: float = scope.get(SINCE) or time.perf_counter()
        status = sent = 0
        given = Headers(scope=scope).get("x-request-id", "")
        # Ids tell requests apart and keep no secret. `uuid.uuid4` asks the system for each of them,
        # which lets other threads run meanwhile: on a busy core it came back .6 ms later.
        identity = given if _REQUEST_ID.fullmatch(given) else f"{random.getrandbits(128):032x}"
        scope[REQUEST_ID] = identity

        async def pass_on(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                timing = _timing(scope.get(STAGES, {}), time.perf_counter() - start)
                # Added as they are sent; no route sets any of these, or it would be there twice.
                ours = [(b"x-request-id", identity.encode()), (b"server-timing", timing)]
                message["headers"] = _with_security([*message["headers"], *ours])
            sent += len(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, receive, pass_on)
        except Exception as error:  # noqa: BLE001 - the last resort
            problem = errors.internal(error)
            if not status:
                await problem.response()(scope, receive, pass_on)
        finally:
            method = scope["method"] if scope["method"] in METHODS else "other"
            route = getattr(scope.get("route"), "path", "-")
            seconds = time.perf_counter() - start
            about = (identity, method, route, status, sent, seconds, scope.get(STAGES, {}))
            self.metrics.answered(route, method, status, seconds)
            self.lines.add(Answered(time.time(), *about, TRACE.get() or {}))


def _timing(stages: Mapping[str, float], total: float) -> bytes:
    shown = [*stages.items(), ("total", total)]
    return ", ".join([f"{stage};dur={1000 * seconds:.2f}" for stage, seconds in shown]).encode()


def _with_security(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    if b"cache-control" not in [name for name, _ in headers]:
        headers.append((b"cache-control", b"no-store"))
    return headers + _SECURITY_HEADERS


class BodyLimit:
    """Refuses a body over `max_bytes`, announced or not, before it is kept.

    Bodies for `unbounded` paths are never kept, and may be of any length.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, unbounded: Container[str] = ()) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.unbounded = unbounded

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on while its body is within the limit."""
        if scope["type"] != "http" or scope["path"] in self.unbounded:
            await self.app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "")
        if len(announced) > 19 or (announced.isdecimal() and int(announced) > self.max_bytes):
            await errors.too_large(self.max_bytes).response()(scope, receive, send)
            return
        received = 0

        async def count() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_bytes:
                raise errors.too_large(self.max_bytes)
            return message

        await self.app(scope, count, send)
