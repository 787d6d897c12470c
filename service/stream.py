"""`POST /predict/stream`: lines of JSON in, lines of JSON out, for as long as they last.

A window of items is under way at a time. When it is full, because the model or the reader of the
answers is slow, nothing more is read from the socket, and TCP holds the sender back; so memory does
not grow with the number of lines. A client therefore has to read while it sends, as `curl -T` does.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from functools import partial
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from service import errors, render
from service.backend import Backend, Phase
from service.batching.tickets import Outcome, Query
from service.errors import Problem
from service.middleware import ITEMS
from service.requests import parse, target_fault
from service.schemas import BadItem, BatchItem, Options, read_item, wish

MEDIA_TYPE = "application/x-ndjson"
_WINDOW_ITEMS = 128
_WINDOW_BYTES = 2_000_000  # one item may have more
_AHEAD_BYTES = 1 << 18  # read beyond a full window: that a client left is seen behind its lines
_LARGE_BYTES = 50_000  # a line from here on is parsed off the event loop
_BLANK = b" \t\r"
_POLL = 0.25  # seconds between two looks whether the server shuts down

Entry = tuple[str | None, Problem | Awaitable[Outcome]]


class StreamResponse(Response):
    """The answer to one stream; it reads the request itself while it is sent.

    Args:
        backend: what answers.
        item_model: of a line, with this server's limits.
        options: of all lines.
    """

    media_type = MEDIA_TYPE

    def __init__(self, backend: Backend, item_model: type[BatchItem], options: Options) -> None:
        super().__init__()
        del self.headers["content-length"]
        self.headers["X-Accel-Buffering"] = "no"  # a gateway passes lines on as they come
        self._backend = backend
        self._item_model = item_model
        self._options = options
        self._window = _Window()
        self._items = {"ok": 0, "failed": 0}
        # None is the end of the input.
        self._entries: asyncio.Queue[Entry | None] = asyncio.Queue()
        # A client that asks first whether to go on is told so when its body is asked for, which has
        # to be before the answer begins.
        self._asked = asyncio.Event()
        self._ahead: asyncio.Future[Message] | None = None  # a message that was asked for
        self._early: Message | None = None  # what was read while the window was full, as one
        self._cut = False  # the server shuts down, and has not read all of it

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Reads and answers until the input ends, the client leaves or the server shuts down."""
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        scope[ITEMS] = self._items
        try:
            async with asyncio.TaskGroup() as group:
                reading = group.create_task(self._read(receive, group))
                await self._asked.wait()
                await send(start)
                await self._write(send)
                reading.cancel()  # it would wait for the client to leave
        except* ClientDisconnect:
            pass
        finally:
            if self._ahead is not None:
                self._ahead.cancel()

    async def _read(self, receive: Receive, group: asyncio.TaskGroup) -> None:
        limit = self._backend.settings.max_body_bytes
        try:
            async for line in lines(partial(self._receive, receive), limit):
                await self._room(0 if line is None else len(line), receive)
                self._entries.put_nowait(await self._entry(line, group))
        except _DrainingError:
            self._cut = True
        self._entries.put_nowait(None)
        while not self._cut:
            if (await self._next(receive))["type"] == "http.disconnect":
                raise ClientDisconnect
            self._ahead = None

    async def _receive(self, receive: Receive) -> Message:
        """The next message, unless the server shuts down before it comes."""
        if self._early and self._backend.phase is not Phase.DRAINING:
            early, self._early = self._early, None
            return early
        message = self._next(receive)
        await asyncio.sleep(0)  # it is asked for
        self._asked.set()
        while self._backend.phase is not Phase.DRAINING:
            done, _ = await asyncio.wait({message}, timeout=_POLL)
            if done:
                self._ahead = None
                return message.result()
        raise _DrainingError

    def _next(self, receive: Receive) -> asyncio.Future[Message]:
        if self._ahead is None:
            self._ahead = asyncio.ensure_future(receive())
        return self._ahead

    async def _room(self, size: int, receive: Receive) -> None:
        """Waits until an item of this size may enter, or the client is seen to leave."""
        entering = asyncio.ensure_future(self._window.enter(size))
        try:
            while not entering.done() and not self._read_ahead:
                message = self._next(receive)
                either: set[asyncio.Future[Any]] = {entering, message}
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                if not message.done():
                    continue
                if message.result()["type"] == "http.disconnect":
                    raise ClientDisconnect
                self._keep(message.result())
                self._ahead = None
            await entering
        finally:
            entering.cancel()

    @property
    def _read_ahead(self) -> bool:
        return self._early is not None and len(self._early["body"]) >= _AHEAD_BYTES

    def _keep(self, message: Message) -> None:
        # In place: a client may send byte by byte.
        early = self._early or {"type": "http.request", "body": bytearray()}
        early["body"] += message.get("body", b"")
        self._early = {**early, "more_body": message.get("more_body", False)}

    async def _entry(self, line: bytearray | None, group: asyncio.TaskGroup) -> Entry:
        if line is None:
            return None, errors.too_large(self._backend.settings.max_body_bytes)
        try:
            if len(line) < _LARGE_BYTES:
                item = self._item(line)
            else:
                item = await run_in_threadpool(self._item, line)
        except Problem as problem:
            return None, problem
        if isinstance(item, BadItem):
            return item.id, errors.invalid(item.faults)
        if fault := target_fault(item.target, self._backend.explainer.labels):
            return item.id, errors.invalid([fault])
        return item.id, group.create_task(self._ask(Query(item.text, item.target)))

    def _item(self, line: bytearray) -> BatchItem | BadItem:
        return read_item(self._item_model, parse(line))

    async def _ask(self, query: Query) -> Outcome:
        # The stream as a whole has time: a full server makes it wait.
        asked = self._backend.ask([query], wish(self._options), urgent=False, patient=True)
        try:
            (outcome,) = await asked
        except Problem as problem:
            return problem
        return outcome

    async def _write(self, send: Send) -> None:
        items = self._items
        while (entry := await self._entries.get()) is not None:
            name, found = entry
            outcome = found if isinstance(found, Problem) else await found
            body, good = await run_in_threadpool(
                render.item, sum(items.values()), name, outcome, self._options, self._backend
            )
            items["ok" if good else "failed"] += 1
            await self._send(send, body)
            await self._window.leave()
        summary: dict[str, Any] = {"summary": items}
        if self._cut:  # the client must not take this for the whole
            summary["stopped"] = errors.draining().body()
        await self._send(send, render.to_json(summary))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send, line: bytes) -> None:
        message = {"type": "http.response.body", "body": line + b"\n", "more_body": True}
        try:
            async with asyncio.timeout(self._backend.settings.request_timeout):
                await send(message)
        except TimeoutError:  # nobody reads: what is held for them is given up
            raise ClientDisconnect from None


class _DrainingError(Exception):
    """The server shuts down."""


class _Window:
    """How much is under way."""

    def __init__(self) -> None:
        self._changed = asyncio.Condition()
        self._sizes: list[int] = []  # oldest first

    async def enter(self, size: int) -> None:
        """Waits for room."""
        async with self._changed:
            await self._changed.wait_for(
                lambda: (
                    not self._sizes
                    or (
                        len(self._sizes) < _WINDOW_ITEMS
                        and sum(self._sizes) + size <= _WINDOW_BYTES
                    )
                )
            )
            self._sizes.append(size)

    async def leave(self) -> None:
        """Makes room of the oldest."""
        async with self._changed:
            self._sizes.pop(0)
            self._changed.notify()


async def lines(receive: Receive, max_bytes: int) -> AsyncIterator[bytearray | None]:
    """Yields the lines of a request's body that are not blank, without their ends.

    Args:
        receive: the request's.
        max_bytes: of a line; None is yielded in place of a longer one, which is not kept.

    Raises:
        ClientDisconnect: the client left before the end.
    """
    line = bytearray()
    skipping = False
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        *whole, rest = message.get("body", b"").split(b"\n")
        for part in whole:
            line += part
            if skipping or len(line) > max_bytes:
                yield None
            elif line.strip(_BLANK):
                yield line
            line, skipping = bytearray(), False
        if not skipping:
            line += rest
        if len(line) > max_bytes:
            line, skipping = bytearray(), True
        more = message.get("more_body", False)
    if skipping:
        yield None
    elif line.strip(_BLANK):
        yield line
