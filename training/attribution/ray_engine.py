"""Many machines: the same jobs through Ray Data, the black box as a pool of actors.

Each actor opens the black box once and sends back finished files; who drives writes them, so the
machines need no common disk. An actor that dies is replaced and its job done again, by Ray; a job
that ends several is named.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
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
        attempts: that `start_attempts` returned.
    """

    def __init__(self, source: BlackBoxSource, work: Work, processors: int, attempts: Any) -> None:
        tune_memory()
        torch.set_num_threads(min(processors, len(os.sched_getaffinity(0))))
        self.source = source
        self.work = work
        self.attempts = attempts

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Does the job of a batch of one."""
        from models.cluster import attempt

        [number], [job] = batch["number"], batch["job"]
        with attempt(self.attempts, f"shard {number} (from the text {job.texts[0][:40]!r} on)"):
            done = self.work.do(self.black_box, job)
        return {
            "content": np.array([done.content], dtype=object),
            "seconds_per_text": np.array([done.seconds_per_text]),
            "texts": np.array([done.texts]),
        }

    @cached_property
    def black_box(self) -> BlackBox:
        """The black box, opened with the first job.

        Of an error in a constructor Ray keeps the text alone.
        """
        return self.source.open()


@dataclass(frozen=True)
class RayEngine:
    """An `Engine` on a Ray cluster: the one at `RAY_ADDRESS`, else one on this machine.

    Attributes:
        source: of the black box; the caller's own copy is not sent.
        workers: actors, each with its share of the cluster's processors; see `share`.
    """

    source: BlackBoxSource
    workers: int

    def __call__(
        self, black_box: BlackBox, work: Work, jobs: Sequence[Job]
    ) -> Generator[Done, None, None]:
        """See `Engine`.

        Raises:
            ValueError: when Ray is not installed.
            RuntimeError: a job ended several workers in a row.
        """
        if not jobs:
            return
        import_ray()
        from models.cluster import results

        with closing(results(self._plan(work, jobs))) as rows:
            for row in rows:
                content, seconds = bytes(row["content"]), float(row["seconds_per_text"])
                yield Done(content, seconds, int(row["texts"]))

    def _plan(self, work: Work, jobs: Sequence[Job]) -> Any:
        """Returns what `Worker` will return as a dataset that is not computed yet."""
        import ray.data

        from models.cluster import start_attempts

        # A block for each job: a lost actor costs one job, and each result comes at once.
        items = [{"number": number, "job": job} for number, job in enumerate(jobs)]
        data = ray.data.from_items(items, override_num_blocks=len(jobs))
        workers = min(self.workers, len(jobs))
        machines = [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]
        processors = share(machines, workers)
        return data.map_batches(
            Worker,
            fn_constructor_args=(self.source, work, processors, start_attempts()),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=1,  # more might wait for ever on a cluster that others use too
        )


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
