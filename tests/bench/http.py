"""The service under load, against the same graph in a bare loop.

    python -m tests.bench.http [--bundle DIR] [--seconds N] [--json FILE]

A server process on this machine is asked over kept-alive connections by a small client in this
process; both share the same cores, so the client's own work counts against the server. Measured:
what HTTP adds to one request on an idle server, texts a second with all connections busy against
sorted batches in a bare loop (tokenisation included), and latency with requests that arrive by
a clock, whether or not earlier ones were answered, at 70 % and 200 % of what the server can do.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from models.answer import Row, answer_flow, run_rows
from models.bundle import load
from models.explainer import Explainer
from models.text import plan_batches
from service.settings import Settings
from training.evaluation.efficiency import machine
from training.runtime import write_json

SENTENCE = (
    "the story drags in places yet every scene with her is charming and i would gladly see it "
    "again while the music was dull and far too loud but nobody left before the end"
)
TOKENS = (8, 510)  # words of the mixed texts; a word of these is about a token
MEAN = 140
SHORT = 22  # words of a text of about 24 tokens
CONNECTIONS = 64


@dataclass
class Load:
    """What a number of requests gave.

    Attributes:
        seconds: latencies of those answered with 200.
        refused: how many were answered otherwise.
        rate: answered with 200 for each second that requests arrived.
    """

    seconds: list[float] = field(default_factory=list)
    refused: int = 0
    rate: float = 0.0

    def quantile(self, share: float) -> float:
        """Milliseconds that so many of the answered requests took at most."""
        return 1000 * float(np.quantile(self.seconds, share))


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

    async def post(self, request: bytes) -> int:
        """Sends a request and reads its answer; returns the status."""
        self.writer.write(request)
        head = (await self.reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
        await self.reader.readexactly(length)
        return int(head[9:12])

    def close(self) -> None:
        """Hangs up."""
        self.writer.close()


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="The service under load.")
    parser.add_argument("--bundle", type=Path, default=Settings().bundle)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each measurement")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    explainer = Explainer.load(options.bundle, device="cpu")
    texts = mixed_texts(400, seed=0)
    with server(options.bundle) as port:
        found = asyncio.run(measure(port, explainer, texts, options.seconds))
    result = {
        "machine": machine(),
        "bundle": load(options.bundle).digest,
        "seconds": options.seconds,
        "max_batch_tokens": Settings().max_batch_tokens,
        "mean_tokens": round(mean_tokens(explainer, texts), 1),
        **found,
    }
    for name, value in result.items():
        print(f"{name:28} {value}")
    if options.json:
        write_json(options.json, result)


async def measure(
    port: int, explainer: Explainer, texts: Sequence[str], seconds: float
) -> dict[str, Any]:
    """All measurements, one after the other, with an idle server where it must be."""
    short = " ".join(SENTENCE.split()[:SHORT])
    single = [predict(text) for text in texts]
    batch = [post("/predict/batch", {"items": [{"text": short}] * 32})]
    await flood(port, single, 2.0)  # warm
    inner = median_alone(explainer, short)
    idle_short = (await in_turn(port, [predict(short)] * 300)).quantile(0.5)
    idle = (await in_turn(port, single[:200])).quantile(0.5)
    raw = raw_rate(explainer, texts)
    busy = await flood(port, single, seconds)
    rate = len(busy.seconds) / seconds
    raw_short = raw_rate(explainer, [short] * 512)
    batched = 32 * len((await flood(port, batch, seconds, connections=4)).seconds) / seconds
    steady = await arrivals(port, single, 0.7 * rate, seconds, poisson=False)
    random = await arrivals(port, single, 0.7 * rate, seconds, poisson=True)
    over = await arrivals(port, single, 2.0 * rate, seconds, poisson=False)
    return {
        "idle": {
            "tokenise_and_run_ms": round(inner, 2),
            "http_ms": round(idle_short, 2),
            "overhead_ms": round(idle_short - inner, 2),
        },
        "mixed": {
            "raw_texts_per_second": round(raw, 1),
            "http_texts_per_second": round(rate, 1),
            "share": round(rate / raw, 3),
        },
        "batch_of_32_at_24_tokens": {
            "raw_texts_per_second": round(raw_short, 1),
            "http_texts_per_second": round(batched, 1),
            "share": round(batched / raw_short, 3),
        },
        "load_70_constant": summary(steady, idle),
        "load_70_poisson": summary(random, idle),
        "load_200": {
            **summary(over, idle),
            "goodput": round(over.rate / rate, 3),
        },
        "padding": await padding(port),
    }


def summary(load: Load, idle: float) -> dict[str, Any]:
    """Latencies in milliseconds and over the idle median."""
    if not load.seconds:
        return {"answered": 0, "refused": load.refused}
    p99 = load.quantile(0.99)
    return {
        "answered": len(load.seconds),
        "refused": load.refused,
        "p50_ms": round(load.quantile(0.5), 1),
        "p99_ms": round(p99, 1),
        "idle_p50_ms": round(idle, 1),
        "p99_over_idle_p50": round(p99 / idle, 2),
    }


def mixed_texts(count: int, seed: int) -> list[str]:
    """Texts of many lengths: log-normal, cut to `TOKENS`, about `MEAN` words."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(rng.lognormal(np.log(MEAN) - 0.3, 0.8, count), *TOKENS).astype(int)
    return [" ".join(rng.choice(SENTENCE.split(), length)) for length in lengths]


def mean_tokens(explainer: Explainer, texts: Sequence[str]) -> float:
    """Tokens of a text, special ones included."""
    rows = [window for text in texts for window in explainer.encode(text).windows]
    return sum(len(row.input_ids) for row in rows) / len(texts)


def raw_rate(explainer: Explainer, texts: Sequence[str]) -> float:
    """Texts a second of a bare loop: tokenise all, then sorted batches, nothing decoded."""
    start = time.perf_counter()
    rows: list[Row] = []
    for text in texts:
        rows += next(answer_flow(explainer.encode(text)))
    for group in plan_batches([len(row.input_ids) for row in rows], Settings().max_batch_tokens):
        run_rows(explainer.session, explainer.encoder.pad_id, [rows[place] for place in group])
    return len(texts) / (time.perf_counter() - start)


def median_alone(explainer: Explainer, text: str) -> float:
    """Milliseconds to tokenise one text and run it, the median of 300."""
    spent = []
    for _ in range(300):
        start = time.perf_counter()
        run_rows(
            explainer.session, explainer.encoder.pad_id, next(answer_flow(explainer.encode(text)))
        )
        spent.append(time.perf_counter() - start)
    return 1000 * float(np.median(spent))


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
    """All connections busy for so long."""
    load, end = Load(), time.perf_counter() + seconds
    numbers = iter(range(sys.maxsize))

    async def work(connection: Connection) -> None:
        while time.perf_counter() < end:
            await timed(connection, requests[next(numbers) % len(requests)], load)

    async with connected(port, connections) as opened:
        await asyncio.gather(*(work(connection) for connection in opened))
    return load


async def arrivals(
    port: int, requests: Sequence[bytes], rate: float, seconds: float, *, poisson: bool
) -> Load:
    """Requests that arrive by a clock, each on a connection that is free, or a new one."""
    rng = np.random.default_rng(0)
    count = int(rate * seconds)
    gaps = rng.exponential(1 / rate, count) if poisson else np.full(count, 1 / rate)
    load, free = Load(), list[Connection]()
    tasks = set[asyncio.Task[None]]()

    async def one(request: bytes, due: float) -> None:
        connection = free.pop() if free else await Connection(port).open()
        await timed(connection, request, load, due)
        free.append(connection)

    start = time.perf_counter()
    for number, due in enumerate(np.cumsum(gaps)):
        await asyncio.sleep(max(0.0, start + due - time.perf_counter()))
        # From when it was due: a client that is late itself must not hide the queue.
        task = asyncio.create_task(one(requests[number % len(requests)], start + due))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    load.rate = len(load.seconds) / (time.perf_counter() - start)
    await asyncio.gather(*tasks)
    for connection in free:
        connection.close()
    return load


async def timed(
    connection: Connection, request: bytes, load: Load, due: float | None = None
) -> None:
    """One request; its latency counts from `due`, by default from now."""
    start = time.perf_counter() if due is None else due
    if await connection.post(request) == 200:
        load.seconds.append(time.perf_counter() - start)
    else:
        load.refused += 1


async def padding(port: int) -> dict[str, float]:
    """Share of the computed tokens that were padding, from the server's own count."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: l2e\r\nConnection: close\r\n\r\n")
    text = (await reader.read()).decode()
    writer.close()
    numbers = dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("l2e_"))
    padded = float(numbers["l2e_batch_tokens_sum"])
    return {
        "share_of_tokens": round(float(numbers["l2e_padding_tokens_total"]) / padded, 3),
        "rows_per_batch": round(
            float(numbers["l2e_batch_rows_sum"]) / float(numbers["l2e_batch_rows_count"]), 2
        ),
    }


def predict(text: str) -> bytes:
    """A request for one text."""
    return post("/predict", {"text": text})


def post(path: str, value: object) -> bytes:
    """The bytes of a request."""
    body = json.dumps(value).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: l2e\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


@contextlib.asynccontextmanager
async def connected(port: int, count: int) -> AsyncIterator[list[Connection]]:
    """So many open connections."""
    opened = [await Connection(port).open() for _ in range(count)]
    try:
        yield opened
    finally:
        for connection in opened:
            connection.close()


@contextlib.contextmanager
def server(bundle: Path) -> Iterator[int]:
    """A server process of its own; yields its port once it is ready."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    given = {**os.environ, "L2E_BUNDLE": str(bundle), "L2E_PORT": str(port)}
    process = subprocess.Popen(
        [sys.executable, "-m", "service"], env=given, stderr=subprocess.DEVNULL
    )
    try:
        asyncio.run(ready(port))
        yield port
    finally:
        process.terminate()
        process.wait(30)


async def ready(port: int) -> None:
    """Waits until the server says so, at most a minute."""
    end = time.monotonic() + 60
    request = b"GET /health/ready HTTP/1.1\r\nHost: l2e\r\n\r\n"
    while time.monotonic() < end:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            async with connected(port, 1) as (connection,):
                if await connection.post(request) == 200:
                    return
        await asyncio.sleep(0.1)
    raise TimeoutError("the server did not get ready")


if __name__ == "__main__":
    main()
