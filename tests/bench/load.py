"""A small HTTP client and ways to ask: in turn, as fast as it goes, and by a clock."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from training.evaluation.timing import server_timing

CONNECTIONS = 64
WARM = 64  # requests that warm a server up, again and again


class Answer(NamedTuple):
    """What came back.

    Attributes:
        status: of the response.
        stages: milliseconds of each stage that the server named in `Server-Timing`.
        body: of the response.
    """

    status: int
    stages: dict[str, float]
    body: bytes


class Sent(NamedTuple):
    """A request of a clock, in seconds from its start.

    Attributes:
        number: of the request among those that were given.
        due: when it was to be sent.
        sent: when it was; a client that is late itself is later.
        answered: when its answer with status 200 was there, None where it was refused.
    """

    number: int
    due: float
    sent: float
    answered: float | None


@dataclass
class Load:
    """What a number of requests gave.

    Attributes:
        seconds: latencies of those answered with 200.
        refused: how many were answered otherwise.
        rate: answered with 200 for each second that requests arrived.
        stages: of those answered with 200, milliseconds of each stage that the server named.
        sent: of a clock, in the order of the answers.
    """

    seconds: list[float] = field(default_factory=list)
    refused: int = 0
    rate: float = 0.0
    stages: list[dict[str, float]] = field(default_factory=list)
    sent: list[Sent] = field(default_factory=list)

    def add(self, other: Load) -> None:
        """Counts what another one gave, too; the rate stays."""
        self.seconds += other.seconds
        self.refused += other.refused
        self.stages += other.stages
        self.sent += other.sent

    def quantile(self, share: float) -> float | None:
        """Milliseconds that so many of the answered requests took at most; None without any."""
        return 1000 * float(np.quantile(self.seconds, share)) if self.seconds else None

    def counts(self) -> dict[str, int]:
        """The JSON form of how many were answered and refused."""
        return {"answered": len(self.seconds), "refused": self.refused}


class Connection:
    """One kept-alive connection; as little client as will do."""

    def __init__(self, port: int) -> None:
        self.port = port

    async def open(self) -> Connection:
        """Connects."""
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        sock: socket.socket = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self

    async def ask(self, request: bytes) -> Answer:
        """Sends a request and reads its answer, which must say how long it is."""
        self.writer.write(request)
        head = (await self.reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
        body = await self.reader.readexactly(length)
        _, _, timing = head.partition(b"server-timing: ")
        return Answer(int(head[9:12]), server_timing(timing.split(b"\r\n")[0].decode()), body)

    @property
    def closed(self) -> bool:
        """Whether the server has hung up, as it may when nothing was asked for some seconds."""
        return self.reader.at_eof() or self.writer.is_closing()

    def close(self) -> None:
        """Hangs up."""
        self.writer.close()


def predict(text: str, **options: object) -> bytes:
    """A request for one text."""
    return post("/predict", {"text": text, **options})


def post(path: str, value: object) -> bytes:
    """The bytes of a request with a body."""
    body = json.dumps(value).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: l2e\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def get(path: str) -> bytes:
    """The bytes of a request without one."""
    return f"GET {path} HTTP/1.1\r\nHost: l2e\r\n\r\n".encode()


@contextlib.asynccontextmanager
async def connected(port: int, count: int) -> AsyncIterator[list[Connection]]:
    """So many open connections."""
    opened = [await Connection(port).open() for _ in range(count)]
    try:
        yield opened
    finally:
        for connection in opened:
            connection.close()


async def in_turn(port: int, requests: Sequence[bytes]) -> Load:
    """One request after the other on one connection."""
    load = Load()
    async with connected(port, 1) as (connection,):
        for request in requests:
            await timed(connection, request, load)
    return load


async def flood(
    port: int, requests: Sequence[bytes], seconds: float, *, connections: int = CONNECTIONS
) -> Load:
    """All connections busy for so long, and until each request was sent as often as the others.

    Rates are compared, and those of the first few texts are not those of all.

    Args:
        port: of the server.
        requests: taken in turn, in whole rounds.
        seconds: after which no further round begins.
        connections: how many are busy.
    """
    load, end = Load(), time.perf_counter() + seconds

    def whole_rounds() -> Iterator[bytes]:
        while time.perf_counter() < end:
            yield from requests

    left = whole_rounds()  # of all connections together

    async def work(connection: Connection) -> None:
        for request in left:
            await timed(connection, request, load)

    async with connected(port, connections) as opened:
        started = time.perf_counter()
        await asyncio.gather(*(work(connection) for connection in opened))
        # To the last answer: those of requests that were sent before the end count, too.
        load.rate = len(load.seconds) / (time.perf_counter() - started)
    return load


def clock(
    rate: float, seconds: float, *, poisson: bool, whole: int = 1, seed: int = 0
) -> npt.NDArray[np.float64]:
    """When requests are due, in seconds from the start, float64 [rate x seconds].

    Args:
        rate: requests a second; with 0 none is ever due.
        seconds: about how long.
        poisson: with exponential gaps, else with equal ones.
        whole: requests of a round: there are as many rounds as come nearest to the seconds, one at
            least, so that each request is sent as often as the others.
        seed: of the gaps.
    """
    if not rate:
        return np.zeros(0)
    count = whole * max(1, round(rate * seconds / whole))
    if not poisson:
        return np.arange(1, count + 1) / rate
    return np.cumsum(np.random.default_rng(seed).exponential(1 / rate, count))


async def arrivals(port: int, requests: Sequence[bytes], due: Sequence[float]) -> Load:
    """Requests that arrive by a clock, each on a connection that is free, or a new one.

    Args:
        port: of the server.
        requests: taken in turn.
        due: see `clock`.
    """
    load, free = Load(), list[Connection]()
    tasks = list[asyncio.Task[None]]()

    async def one(number: int, at: float) -> None:
        while free and free[-1].closed:
            free.pop().close()
        connection = free.pop() if free else await Connection(port).open()
        sent = time.perf_counter()
        # From when it was due: a client that is late itself must not hide the queue.
        good = await timed(connection, requests[number % len(requests)], load, start + at)
        answered = time.perf_counter() - start if good else None
        load.sent.append(Sent(number, at, sent - start, answered))
        free.append(connection)

    def begin(number: int, at: float) -> None:
        tasks.append(loop.create_task(one(number, at)))

    def pace() -> None:
        for number, at in enumerate(due):
            if stopped.wait(max(0.0, start + at - time.perf_counter())):
                return
            loop.call_soon_threadsafe(begin, number, float(at))

    loop, stopped = asyncio.get_running_loop(), threading.Event()
    with without_collector():
        start = time.perf_counter()
        try:
            # By a thread, because the event loop's own timers are up to a millisecond late.
            await asyncio.to_thread(pace)
        finally:
            stopped.set()
        load.rate = len(load.seconds) / (time.perf_counter() - start)
        await asyncio.gather(*tasks)
    for connection in free:
        connection.close()
    return load


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
    """Nothing is collected meanwhile: the client's own pauses would be counted as the server's."""
    gc.collect()
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


async def timed(
    connection: Connection, request: bytes, load: Load, due: float | None = None
) -> bool:
    """One request; its latency counts from `due`, by default from now. Whether it was answered."""
    start = time.perf_counter() if due is None else due
    answer = await connection.ask(request)
    if answer.status != 200:
        load.refused += 1
        return False
    load.seconds.append(time.perf_counter() - start)
    load.stages.append(answer.stages)
    return True
