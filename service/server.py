"""The process around the application: the socket, the signals and an orderly end."""

import asyncio
import gc
import logging
import signal
import socket
import time
from functools import partial
from types import FrameType
from typing import cast

import uvicorn
from fastapi import FastAPI

from service.backend import Backend, Phase
from service.protocol import Protocol

_log = logging.getLogger("l2e.service")


class Server(uvicorn.Server):
    """A uvicorn that says not ready before it stops listening, and ends with status 0.

    First SIGTERM: not ready, still answers for `drain_delay` seconds; then it stops listening,
    finishes what runs within `drain_timeout` seconds and ends. Ctrl-C skips the delay, and a second
    signal skips what is left.

    Args:
        config: see `configure`.
        backend: of the application.
        whole_process: whether nothing else lives in the process, whose memory may be settled then.
    """

    def __init__(
        self, config: uvicorn.Config, backend: Backend, *, whole_process: bool = False
    ) -> None:
        super().__init__(config)
        self._backend = backend
        self._whole_process = whole_process
        self._leave_at: float | None = None  # of time.monotonic()
        self._said_ready = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Starts to drain; the second signal ends at once."""
        if self._leave_at is not None:
            self.should_exit = self.force_exit = True
            return
        delay = 0.0 if sig == signal.SIGINT else self._backend.settings.drain_delay
        self._leave_at = time.monotonic() + delay
        self._backend.drain()

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether to stop listening now."""
        if self._backend.phase is Phase.READY and not self._said_ready:
            self._said_ready = True
            if self._whole_process:
                # What is loaded by now stays: else the collector would look through all of it every
                # few thousand requests, for which everybody waits some 40 ms.
                gc.collect()
                gc.freeze()
            session = self._backend.explainer.session
            _log.info("ready on %s (%s)", session.device, session.device_reason)
        leave = self._leave_at is not None and time.monotonic() >= self._leave_at
        stop = await super().on_tick(counter)
        return stop or leave or self._backend.phase is Phase.FAILED

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stops listening and waits for what runs."""
        self._backend.close()
        await super().shutdown(sockets)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises:
        OSError: the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.create_server((host, port), family=family, backlog=2048)
    # Inherited by the connections. Without it each answer waits 40 ms for the client's delayed
    # acknowledgement: asyncio sets it only on sockets that were created with their protocol named.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def serve(app: FastAPI, sock: socket.socket) -> int:
    """Serves `app` on `sock` until a signal; returns the exit status as `main` does."""
    backend: Backend = app.state.backend
    server = Server(configure(app), backend, whole_process=True)
    host, port = sock.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    _log.info("l2e listens on http://%s:%d with %s", shown, port, backend.settings.bundle)
    server.run(sockets=[sock])
    if backend.phase is Phase.FAILED:
        return 2 if backend.bad_input else 1
    _log.info("l2e has ended")
    return 0


def configure(app: FastAPI) -> uvicorn.Config:
    """How uvicorn runs: one process, our log lines in place of its own, no headers about itself."""
    backend: Backend = app.state.backend
    return uvicorn.Config(
        app,
        loop="uvloop",
        http=cast("type[asyncio.Protocol]", partial(Protocol, gate=backend.gate)),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=75,  # longer than gateways keep theirs, so that they close first
        timeout_graceful_shutdown=max(1, round(backend.settings.drain_timeout)),
    )
