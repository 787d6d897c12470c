"""A client of /predict/stream that sends as fast as it may and reads slowly."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import numpy as np

from tests.bench.texts import random_text

_BUFFER = 8_192  # bytes that lie in the client, so that the server notices a slow reader soon
_PAUSE = 0.2  # seconds between two readings
_BYTES = 4_000  # of an item, blanks between its words for the most part: sockets hold megabytes
_HEAD = (
    b"POST /predict/stream HTTP/1.1\r\nHost: l2e\r\nContent-Type: application/x-ndjson\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)


async def stream_slowly(port: int, items: int, lines_per_second: float) -> dict[str, Any]:
    """Sends items and reads so many lines a second.

    Returns:
        `items`, `sent_mb`, the server's `summary`, `seconds`, and `most_ahead`: how many items were
        sent at most whose answers had not been read, which is what server and sockets held.
    """
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
    sock.connect(("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=sock, limit=_BUFFER)
    writer.transport.set_write_buffer_limits(high=_BUFFER)
    sent = sent_bytes = read = most_ahead = 0
    started = time.monotonic()

    async def send() -> None:
        nonlocal sent, sent_bytes
        rng = np.random.default_rng(0)
        writer.write(_HEAD)
        for number in range(items):
            line = json.dumps({"id": str(number), "text": wide_text(rng)}).encode() + b"\n"
            sent_bytes += len(line)
            writer.write(b"%x\r\n%s\r\n" % (len(line), line))
            await writer.drain()
            sent += 1
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    sending = asyncio.create_task(send())
    last: dict[str, Any] = {}
    async for line in _lines(reader):
        last = json.loads(line)
        read += 1
        most_ahead = max(most_ahead, sent - read)
        ahead = started + read / lines_per_second - time.monotonic()
        if ahead > _PAUSE:
            await asyncio.sleep(ahead)
    await sending
    writer.close()
    if last.get("summary", {}).get("ok") != items:
        raise RuntimeError(f"{items} items were sent, and the stream ended with {last}")
    seconds = round(time.monotonic() - started, 1)
    return {
        "items": items,
        "sent_mb": round(sent_bytes / 1e6, 1),
        "seconds": seconds,
        "most_ahead": most_ahead,
        **last,
    }


def wide_text(rng: np.random.Generator) -> str:
    """A few words, far from each other."""
    words = random_text(rng, int(rng.integers(4, 40))).split()
    blanks = " " * ((_BYTES - sum(map(len, words))) // len(words))
    return blanks.join(words)


async def _lines(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """The lines of a chunked answer."""
    head = await reader.readuntil(b"\r\n\r\n")
    if b" 200 " not in head.split(b"\r\n")[0]:
        raise RuntimeError(f"the stream was refused: {head.splitlines()[0].decode()}")
    rest = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        *whole, rest = (rest + (await reader.readexactly(size + 2))[:-2]).split(b"\n")
        for line in whole:
            yield line
