"""How much memory another process has, over time."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np

_PAGE = os.sysconf("SC_PAGE_SIZE")
WARM_UP = 0.25  # of the time, in which caches and pools fill


class Sample(NamedTuple):
    """Resident memory of a process: seconds from the start, and megabytes."""

    seconds: float
    megabytes: float


def resident_megabytes(pid: int) -> float:
    """Resident memory of a process, in 10^6 bytes.

    Raises:
        FileNotFoundError: it has ended.
    """
    pages = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * _PAGE / 1e6


def slope(samples: Sequence[Sample], warm_up: float = WARM_UP) -> float:
    """Megabytes a minute by least squares, after the first part of the time.

    Raises:
        ValueError: fewer than two samples are left.
    """
    end = samples[-1].seconds if samples else 0.0
    left = [one for one in samples if one.seconds >= warm_up * end]
    if len(left) < 2:
        raise ValueError(f"{len(left)} samples of memory give no slope: measure for longer")
    seconds, megabytes = np.array(left).T
    by_second = np.polyfit(seconds - seconds.mean(), megabytes, 1)[0]
    return float(60 * by_second)


class MemoryWatch:
    """Samples a process in a thread; a context manager.

    Args:
        pid: of the process.
        every: seconds between two samples.

    Attributes:
        samples: so far, in order; they end where the process ends.
    """

    def __init__(self, pid: int, every: float = 0.5) -> None:
        self.pid, self.every = pid, every
        self.samples: list[Sample] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        """Begins."""
        self._start = time.monotonic()
        self._sample()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Takes the last sample and ends."""
        self._ended.set()
        self._thread.join()
        self._sample()

    def summary(self) -> dict[str, Any]:
        """Megabytes at the start, after the warm-up, at most and at the end, and the slope."""
        late = [one for one in self.samples if one.seconds >= WARM_UP * self.samples[-1].seconds]
        values = [one.megabytes for one in self.samples]
        return {
            "samples": len(values),
            "start_mb": round(values[0], 1),
            "warm_mb": round(late[0].megabytes, 1),
            "most_mb": round(max(values), 1),
            "end_mb": round(values[-1], 1),
            "slope_mb_per_minute": round(slope(self.samples), 3),
        }

    def _watch(self) -> None:
        while not self._ended.wait(self.every):
            if not self._sample():
                return

    def _sample(self) -> bool:
        """Takes a sample; False where the process has ended, which has no memory then."""
        try:
            found = resident_megabytes(self.pid)
        except (FileNotFoundError, ProcessLookupError):
            return False
        if found:  # a process that nobody has waited for yet has none
            self.samples.append(Sample(time.monotonic() - self._start, found))
        return bool(found)
