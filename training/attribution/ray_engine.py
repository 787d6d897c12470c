"""Many machines: the same jobs through Ray Data, the black box as a pool of actors.

Each actor opens the black box once and sends back finished files; who drives writes them, so the
machines need no common disk. An actor that dies is replaced and its job done again, by Ray.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from training.attribution.run import Done, Job, Work
from training.blackbox.protocol import BlackBox
from training.blackbox.source import BlackBoxSource
from training.runtime import tune_memory


class Worker:
    """Does jobs; lives in an actor.

    Args:
        source: of the black box, reachable from the actor's machine.
        work: what to do with each job.
        processors: of this actor; torch uses as many threads, not one for each processor of the
            machine, where other actors have theirs.
    """

    def __init__(self, source: BlackBoxSource, work: Work, processors: int) -> None:
        tune_memory()
        torch.set_num_threads(min(processors, len(os.sched_getaffinity(0))))
        self.black_box = source.open()
        self.work = work

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Does the jobs of a batch, of which there is one."""
        done = [self.work.do(self.black_box, job) for job in batch["job"]]
        return {
            "content": np.array([part.content for part in done], dtype=object),
            "seconds_per_text": np.array([part.seconds_per_text for part in done]),
            "texts": np.array([part.texts for part in done]),
        }


@dataclass(frozen=True)
class RayEngine:
    """An `Engine` on a Ray cluster: the one at `RAY_ADDRESS`, else one on this machine.

    Attributes:
        source: of the black box; the caller's own copy is not sent.
        workers: actors, each with its share of the cluster's processors; see `share`.
    """

    source: BlackBoxSource
    workers: int

    def __call__(self, black_box: BlackBox, work: Work, jobs: Sequence[Job]) -> Iterator[Done]:
        """See `Engine`.

        Raises:
            ValueError: when Ray is not installed.
        """
        if not jobs:
            return
        ray = import_ray()
        # A block for each job: a lost actor costs one job, and each result comes at once.
        data = ray.data.from_items([{"job": job} for job in jobs], override_num_blocks=len(jobs))
        workers = min(self.workers, len(jobs))
        machines = [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]
        processors = share(machines, workers)
        done = data.map_batches(
            Worker,
            fn_constructor_args=(self.source, work, processors),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=1,  # more might wait for ever on a cluster that others use too
        )
        rows: Iterator[Mapping[str, Any]] = done.iter_rows()
        for row in rows:
            yield Done(bytes(row["content"]), float(row["seconds_per_text"]), int(row["texts"]))


def share(machines: Sequence[float], workers: int) -> int:
    """Returns the most processors that each of the workers can have, at least 1.

    Args:
        machines: processors of each; an actor lives on one.
        workers: actors that are to live at the same time.
    """
    for processors in range(int(max(machines, default=1.0)), 1, -1):
        if sum(int(machine // processors) for machine in machines) >= workers:
            return processors
    return 1


def import_ray() -> Any:
    """Imports Ray with its data library.

    Raises:
        ValueError: when the extra is not installed.
    """
    try:
        import ray
        import ray.data
    except ImportError:
        raise ValueError("--engine ray needs Ray: pip install 'l2e[ray]'") from None
    return ray
