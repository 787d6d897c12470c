"""HTTP/1.1 by uvicorn and llhttp, with bounds on what never reaches the application.

h11, uvicorn's other parser, needs none of this, but takes .2 ms longer on a busy core: it bounds
heads by itself, stops at the end of each request, and ignores offers to speak another protocol.
"""

from __future__ import annotations

import time
from asyncio import AbstractEventLoop, Transport
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import h11
import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.batching.gate import Gate
from service.middleware import SINCE
from service.requests import GONE

MAX_HEAD = 1 << 16  # bytes; of a chunk's head and of trailers likewise
PIECE = 1 << 12  # bytes that are parsed at a time


class Protocol(HttpToolsProtocol):
    """One connection.

    A head, trailers or the head of a chunk without end are refused: the parser keeps a header until
    it is whole, and all of them until the last. Bytes are counted from whatever ended last; those
    in one piece with that end do not count. Refused is, too, what h11 refuses: an HTTP/1.1 request
    that does not name one host, other versions, codings beside chunks.

    Requests that come before their predecessor is answered are parsed a piece at a time, the next
    when all of one are answered, and nothing is read meanwhile, so that a client that leaves then
    is missed only when it is written to.

    A connection that offers another protocol goes on with h11, which answers in this one: llhttp
    takes the body of such a request for the other protocol's.
    """

    def __init__(self, *args: Any, gate: Gate | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._gate = gate or Gate()  # that requests pass
        self._rest = b""  # not parsed yet
        self._since = 0  # bytes since something ended
        self._end: Callable[[], None] | None = None  # how it ends, once all before is answered
        self._running: RequestResponseCycle | None = None  # `cycle` is the last that was parsed

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """Somebody is there."""
        super().connection_made(transport)
        self.flow = _Flow(transport, self)
        self._output = _Output(transport, self.loop)
        self._gone = self.loop.create_future()
        self._parse()

    def connection_lost(self, exc: Exception | None) -> None:
        """They have left."""
        super().connection_lost(exc)
        running = self._running
        if running is not None and not running.response_complete:
            running.disconnected = True
            running.message_event.set()
        if not self._gone.done():
            self._gone.set_result(None)
        self.pipeline.clear()
        self._rest, self._end = b"", None
        self._output.drop()

    def shutdown(self) -> None:
        """Ends after the request that is computed."""
        super().shutdown()
        if self._running is not None:
            self._running.keep_alive = False

    def data_received(self, data: bytes) -> None:
        """Parses what came, unless what came before is to be answered first."""
        self._rest = self._rest + data if self._rest else data
        self._parse()

    def on_headers_complete(self) -> None:
        """The parser has a request's head.

        Raises:
            HttpParserError: it is not one for us.
        """
        self._since = 0
        version, hosts = self.parser.get_http_version(), 0
        for name, value in self.headers:
            hosts += name == b"host"
            if name == b"transfer-encoding" and value.lower() != b"chunked":
                raise httptools.HttpParserError("a coding beside chunks")
        if version not in ("1.0", "1.1") or hosts > 1 or (version == "1.1" and not hosts):
            raise httptools.HttpParserError("no host, several, or another version")
        super().on_headers_complete()
        self.headers = []  # for trailers, of which nobody hears

    def on_body(self, body: bytes) -> None:
        """The parser has a part of a body, which the application bounds."""
        self._since = 0
        super().on_body(body)

    def on_chunk_header(self) -> None:
        """The parser has the head of a chunk."""
        self._since = 0

    def on_message_complete(self) -> None:
        """The parser has all of a request."""
        self._since = 0
        super().on_message_complete()
        if not (self.parser.should_upgrade() or self.parser.should_keep_alive()):
            self.cycle.keep_alive = False  # a trailer may have said so, and it parses no more
            if self.cycle.response_complete:
                self.transport.close()

    def on_response_complete(self) -> None:
        """The application has answered."""
        self._output.flush()
        super().on_response_complete()
        if not self.transport.is_closing():
            self._parse()
            self.flow.resume_reading()

    @property
    def must_wait(self) -> bool:
        """Whether nothing more is to be read before something is answered."""
        return bool(self.pipeline or self._rest or self._end)

    def _should_upgrade(self) -> bool:
        return True  # to h11, as soon as the parser says so

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        cycle.transport = cast("Transport", self._output)
        scope = cast("dict[str, Any]", cycle.scope)
        scope[GONE], scope[SINCE] = self._gone, time.perf_counter()
        self._gate.pass_on(super()._start_asgi_task, cycle, app)

    def _parse(self) -> None:
        data, start = self._rest, 0
        while start < len(data) and not (self.pipeline or self._end or self.transport.is_closing()):
            self._unset_keepalive_if_required()
            piece = data[start : start + PIECE]
            start += len(piece)
            self._since += len(piece)
            try:
                self.parser.feed_data(piece)
            except httptools.HttpParserUpgrade as offer:
                start += offer.args[0] - len(piece)
                self._end = self._hand_over
            except httptools.HttpParserError:
                self._end = partial(self._refuse, "Invalid HTTP request received.")
            else:
                if self._since > MAX_HEAD:
                    message = f"More than {MAX_HEAD:,} bytes that belong to no body."
                    self._end = partial(self._refuse, message)
        self._rest = data[start:]
        cycle = cast("RequestResponseCycle | None", self.cycle)
        answered = cycle is None or cycle.response_complete
        if self._end and not self.pipeline and (answered or self.cycle.more_body):
            end, self._end = self._end, None
            end()
        elif self.must_wait:
            self.flow.pause_reading()
        elif not answered and not self.cycle.more_body:
            # Nobody asks for more of a body that is whole, but a departure is to be noticed.
            self.flow.resume_reading()
        elif answered and self.timeout_keep_alive_task is None:  # in the middle of a head, too
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _refuse(self, message: str) -> None:
        self.logger.warning(message)
        self._output.flush()
        cycle = cast("RequestResponseCycle | None", self.cycle)
        if cycle is not None and cycle.response_started and not cycle.response_complete:
            self.transport.close()  # in the middle of an answer
        else:
            self.send_400_response(message)

    def _hand_over(self) -> None:
        self._unset_keepalive_if_required()
        rest, self._rest = self._rest, b""
        self.flow.resume_reading()
        self.connections.discard(self)
        first = f"{self.scope['method']} ".encode() + self.url
        lines = [first + f" HTTP/{self.scope['http_version']}".encode()]
        lines += [name + b": " + value for name, value in self.scope["headers"]]
        protocol = _H11Protocol(self.config, self.server_state, self.app_state)
        protocol.connection_made(self.transport)
        self.transport.set_protocol(protocol)
        protocol.data_received(b"\r\n".join([*lines, b"", rest]))


class _Output:
    """What an answer is written to: the connection, which gets two pieces at a time.

    So a head leaves together with the body, which comes at once as a rule, in one call of the
    system. Nothing is kept beyond the loop's turn.

    Args:
        transport: of the connection.
        loop: that it belongs to.
    """

    def __init__(self, transport: Transport, loop: AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._kept = b""

    def write(self, data: bytes) -> None:
        """Sends what was kept together with this, or keeps it until the loop goes on."""
        if self._kept:
            kept, self._kept = self._kept, b""
            self._transport.write(kept + data)
        elif data:
            self._kept = data
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Sends what is kept."""
        if self._kept:
            self.write(b"")

    def drop(self) -> None:
        """Forgets what is kept, for nobody is there any more."""
        self._kept = b""

    def close(self) -> None:
        """Closes the connection when all is sent."""
        self.flush()
        self._transport.close()

    def is_closing(self) -> bool:
        """Whether it is closed or closing."""
        return self._transport.is_closing()


class _H11Protocol(H11Protocol):
    """Says nothing more where an answer has begun or has been the last one."""

    def data_received(self, data: bytes) -> None:
        """Parses what came."""
        if not self.transport.is_closing():
            super().data_received(data)

    def send_400_response(self, msg: str) -> None:
        """Refuses, if it can."""
        if self.conn.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            super().send_400_response(msg)
        else:
            self.transport.close()

    def _unsupported_upgrade_warning(self) -> None:
        pass  # clients offer it all day, and nobody here can do anything about it


class _Flow(FlowControl):
    """Reads no more while the protocol must wait, even if a request asks for the rest of it."""

    def __init__(self, transport: Transport, protocol: Protocol) -> None:
        super().__init__(transport)
        self._protocol = protocol

    def resume_reading(self) -> None:
        """Goes on."""
        if not self._protocol.must_wait:
            super().resume_reading()
