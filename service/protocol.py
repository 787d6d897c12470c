"""HTTP/1.1 by uvicorn and llhttp, with bounds on what no limit of ours would see.

h11, uvicorn's other parser, needs none of this, but takes .2 ms longer on a busy core: it bounds
heads by itself, stops at the end of each request, and ignores offers to speak another protocol.
"""

from __future__ import annotations

from asyncio import Transport
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

MAX_HEAD = 1 << 16  # bytes; of a chunk's head and of trailers likewise
PIECE = 1 << 14  # bytes that are parsed at a time


class Protocol(HttpToolsProtocol):
    """One connection.

    A head, trailers or the head of a chunk without end are refused: the parser keeps a header until
    it is whole, and all of them until the last. Bytes are counted from whatever ended last; those
    in one piece with that end do not count.

    Requests that come before their predecessor is answered are parsed a piece at a time, the next
    when all of one are answered, and nothing is read meanwhile.

    A connection that offers another protocol goes on with h11, which answers in this one: llhttp
    takes the body of such a request for the other protocol's.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ws_protocol_class = H11Protocol
        self._rest = b""  # not parsed yet
        self._since = 0  # bytes since something ended
        self._end: Callable[[], None] | None = None  # how it ends, once all before is answered

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """Somebody is there."""
        super().connection_made(transport)
        self.flow = _Flow(transport, self)

    def connection_lost(self, exc: Exception | None) -> None:
        """They have left."""
        super().connection_lost(exc)
        self._rest, self._end = b"", None

    def data_received(self, data: bytes) -> None:
        """Parses what came, unless what came before is to be answered first."""
        self._rest = self._rest + data if self._rest else data
        self._parse()

    def on_headers_complete(self) -> None:
        """The parser has a request's head."""
        self._since = 0
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

    def on_response_complete(self) -> None:
        """The application has answered."""
        super().on_response_complete()
        if not self.transport.is_closing():
            self._parse()
            self.flow.resume_reading()

    def handle_websocket_upgrade(self) -> None:
        """Hands the connection over to h11."""
        rest, self._rest = self._rest, b""
        self.flow.resume_reading()
        super().handle_websocket_upgrade()  # gives it the request's head
        if rest:
            cast("H11Protocol", self.transport.get_protocol()).data_received(rest)

    @property
    def must_wait(self) -> bool:
        """Whether nothing more is to be read before something is answered."""
        return bool(self.pipeline or self._rest or self._end)

    def _should_upgrade(self) -> bool:
        return True  # the parser says so

    def _parse(self) -> None:
        while self._rest and not (self.pipeline or self._end or self.transport.is_closing()):
            self._unset_keepalive_if_required()
            piece, self._rest = self._rest[:PIECE], self._rest[PIECE:]
            self._since += len(piece)
            try:
                self.parser.feed_data(piece)
            except httptools.HttpParserUpgrade as offer:
                self._rest = piece[offer.args[0] :] + self._rest
                self._end = self.handle_websocket_upgrade
            except httptools.HttpParserError:
                self._end = partial(self._refuse, "Invalid HTTP request received.")
            else:
                if self._since > MAX_HEAD:
                    message = f"The head of a request may have {MAX_HEAD} bytes."
                    self._end = partial(self._refuse, message)
        if self._end and not (self.pipeline or self._answering):
            end, self._end = self._end, None
            end()
        elif self.must_wait:
            self.flow.pause_reading()

    @property
    def _answering(self) -> bool:
        """Whether a request that came as a whole is not answered yet."""
        cycle = cast("RequestResponseCycle | None", self.cycle)
        return cycle is not None and not (cycle.response_complete or cycle.more_body)

    def _refuse(self, message: str) -> None:
        cycle = cast("RequestResponseCycle | None", self.cycle)
        if cycle is not None and cycle.response_started and not cycle.response_complete:
            self.transport.close()  # in the middle of an answer
        else:
            self.send_400_response(message)


class _Flow(FlowControl):
    """Reads no more while the protocol must wait, even if a request asks for the rest of it."""

    def __init__(self, transport: Transport, protocol: Protocol) -> None:
        super().__init__(transport)
        self._protocol = protocol

    def resume_reading(self) -> None:
        """Goes on."""
        if not self._protocol.must_wait:
            super().resume_reading()
