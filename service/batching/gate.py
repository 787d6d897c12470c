"""Where one core does everything, requests begin together after a run of the graph, not during it.

Each that comes during a run interrupts it, and finds the core's caches full of the graph's weights.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from contextvars import Context, copy_context
from typing import TypeVarTuple

Ts = TypeVarTuple("Ts")

_MOST = 64  # calls that are kept
_SECONDS = 0.1  # that one is kept at most: a run may hang, and health is asked for meanwhile


class Gate:
    """Keeps calls of one event loop while it is shut, for a tenth of a second at most.

    It is open at first. Any thread may shut and open it.
    """

    def __init__(self) -> None:
        self._kept: list[tuple[Context, Callable[[], object]]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._shut = self._stays_open = False

    @property
    def is_shut(self) -> bool:
        """Whether calls are kept now."""
        return self._shut

    @property
    def keeps(self) -> int:
        """How many calls it keeps."""
        return len(self._kept)

    def pass_on(self, call: Callable[[*Ts], object], *arguments: *Ts) -> None:
        """Makes a call now, or when the gate opens, in the context of now; of the event loop."""
        if not self._kept and not self._shut:
            call(*arguments)
            return
        if not self._kept:
            self._loop = asyncio.get_running_loop()
            self._timer = self._loop.call_later(_SECONDS, self._make)
        self._kept.append((copy_context(), lambda: call(*arguments)))
        # It may have been opened meanwhile, by somebody who saw nothing kept.
        if not self.is_shut or len(self._kept) >= _MOST:
            self._make()

    def shut(self) -> None:
        """Keeps calls from now on."""
        self._shut = not self._stays_open

    def open(self) -> None:
        """Has the event loop make what was kept, and keeps no more."""
        self._shut = False
        if self._kept and self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._make)

    def stay_open(self) -> None:
        """Opens and is not shut any more: the server ends, and what has come is to be answered."""
        self._stays_open = True
        self.open()

    def _make(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        kept, self._kept = self._kept, []
        for context, call in kept:  # each by itself: one that fails takes no other with it
            asyncio.get_running_loop().call_soon(call, context=context)
