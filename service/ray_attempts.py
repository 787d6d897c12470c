"""How often each part of the work was begun on a Ray cluster, which does again what ends a process.

A module of its own, since the engine's imports take seconds in each process.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

ATTEMPTS = 3  # the processes that a part may cost before it is taken for what ends them


class Attempts:
    """Counts; lives in an actor."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def add(self, part: str) -> int:
        """Counts a part and returns how often it was begun, with this time."""
        self.counts[part] += 1
        return self.counts[part]


def start_counting() -> Any:
    """Starts an actor of `Attempts` on the driver's machine, with which it would be lost anyway."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(Attempts).options(num_cpus=0, scheduling_strategy=here).remote()


def begin(attempts: Any, part: str) -> None:
    """Says that a part of the work begins.

    Args:
        attempts: that `start_counting` returned.
        part: such as `rows 0 to 999`.

    Raises:
        RuntimeError: it ended `ATTEMPTS` processes before.
    """
    if ray.get(attempts.add.remote(part)) > ATTEMPTS:
        raise RuntimeError(
            f"{part} ended {ATTEMPTS} processes of Ray, perhaps for want of memory: look into its "
            "logs, or give fewer --workers"
        )
