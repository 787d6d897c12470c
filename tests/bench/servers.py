"""Server processes to be measured, and the processors that they and the client run on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.device import available_threads
from tests.bench.load import connected, get

READY_SECONDS = 180.0  # a peer imports torch, on a busy machine
ROOT = Path(__file__).resolve().parents[2]
PORTS = ("L2E_PORT", "PEER_PORT", "INFINITY_PORT")
SERVICE = (sys.executable, "-m", "service")  # ours; L2E_BUNDLE says which bundle


@dataclass(frozen=True)
class Cores:
    """Which processors who may use.

    Attributes:
        server: those of the server, and of the bare loop that it is compared with.
        client: those of the client.
    """

    server: frozenset[int]
    client: frozenset[int]

    @property
    def pinned(self) -> bool:
        """Whether the two have none in common."""
        return not self.server & self.client

    def threads(self) -> int:
        """How many threads the server can keep busy: fewer than it has processors under a quota."""
        with running_on(self.server):
            return available_threads()

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        how = "the server and the bare loop have cores of their own" if self.pinned else "shared"
        return {"sharing": how, "server": sorted(self.server), "client": sorted(self.client)}


def share_cores() -> Cores:
    """All processors for both."""
    mine = frozenset(os.sched_getaffinity(0))
    return Cores(mine, mine)


def pin_cores() -> Cores:
    """The last processor for the client, the others for the server.

    Raises:
        ValueError: there is only one.
    """
    *server, client = sorted(os.sched_getaffinity(0))
    if not server:
        raise ValueError("--pin needs two processors, and this process may use one: leave it out")
    return Cores(frozenset(server), frozenset([client]))


@contextlib.contextmanager
def running_on(cores: frozenset[int]) -> Iterator[None]:
    """Keeps this thread, and the threads and processes that it starts meanwhile, on some cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@dataclass(frozen=True)
class Server:
    """A server process: where it listens, and its id."""

    port: int
    pid: int


@contextlib.contextmanager
def server(
    command: Sequence[str],
    cores: frozenset[int],
    *,
    environment: Mapping[str, str] | None = None,
    health: str = "/health/ready",
    log: Path | None = None,
) -> Iterator[Server]:
    """A server process of its own, once it is ready.

    Args:
        command: that starts it, with the port in the environment under each of `PORTS`.
        cores: that it may use.
        environment: beside that of this process.
        health: what it answers with 200 when it is ready.
        log: where its standard error goes; None throws it away.

    Raises:
        RuntimeError: it ended, or did not get ready in time.
    """
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    given = {**os.environ, **dict.fromkeys(PORTS, str(port)), **(environment or {})}
    with contextlib.ExitStack() as stack:
        shown = stack.enter_context(log.open("wb")) if log else subprocess.DEVNULL
        with running_on(cores):
            process = subprocess.Popen(
                command, cwd=ROOT, env=given, stdout=shown, stderr=shown, start_new_session=True
            )
        try:
            asyncio.run(_ready(process, port, health))
            yield Server(port, process.pid)
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # LitServe leaves its workers behind
            process.wait()


async def _ready(process: subprocess.Popen[bytes], port: int, health: str) -> None:
    end = time.monotonic() + READY_SECONDS
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            async with connected(port, 1) as (connection,):
                if (await connection.ask(get(health))).status == 200:
                    return
        await asyncio.sleep(0.1)
    raise RuntimeError("a server did not get ready: run its command by hand, or look at its log")
