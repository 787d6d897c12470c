"""Calls timed in turns, so that a busy moment of the machine meets all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np


def in_turns(
    calls: Mapping[str, Callable[[], object]], rounds: int, *, warm: bool = False
) -> dict[str, list[float]]:
    """Times calls that are compared with one another.

    Args:
        calls: by name.
        rounds: at least 1, after one round that warms up. Each round begins with another call, so
            that none always follows the same one.
        warm: makes each call once before it is timed, every time: else one that follows another
            of the same weights finds them in the processor's caches, and the others do not.

    Returns:
        Milliseconds of each call, one for each round, in the order of the rounds.
    """
    names = list(calls)
    spent: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + 1):
        first = number % len(names)
        for name in (*names[first:], *names[:first]):
            if warm:
                calls[name]()
            taken = milliseconds(calls[name])
            if number:
                spent[name].append(taken)
    return spent


def milliseconds(call: Callable[[], object]) -> float:
    """Returns how long a call takes."""
    started = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - started)


def quartiles(values: Sequence[float]) -> list[float]:
    """Returns the first quartile, the median and the third."""
    found: list[float] = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
    return found


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Divides round by round: what slows a whole round down leaves its ratio as it is."""
    return [one / other for one, other in zip(above, below, strict=True)]


def server_timing(header: str) -> dict[str, float]:
    """Reads `Server-Timing: queue;dur=0.10, total;dur=9.20`: stage to milliseconds."""
    pairs = [part.strip().split(";dur=") for part in header.split(",") if ";dur=" in part]
    return {stage: float(milliseconds) for stage, milliseconds in pairs}
