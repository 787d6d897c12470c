"""Work in parts on a Ray cluster: which part ends its processes, and the results of all.

Ray begins a part again whenever its process ended, however often that was. Processes end for
reasons of their own, too, above all where machines are taken away; so it is counted what a part
ended in a row, and where.

The only module of `models` that needs Ray, imported by the engines of both halves. It leaves
`ray.data` out, which takes seconds in each process.
"""

from __future__ import annotations

import gc
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Mapping, Set
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

if TYPE_CHECKING:
    from ray.data import Dataset

# What a part may end in a row before it is taken for the reason. Machines are lost for reasons of
# their own, but hardly ten times with the same part; and a part that ends them must end, too.
PROCESSES = 3
MACHINES = 10


class Ended(NamedTuple):
    """What ended while a part was done: processes whose machines go on, and machines."""

    processes: int
    machines: int


class Attempts:
    """Where each part was begun and did not end; lives in an actor.

    Args:
        living: returns the names of the machines that go on.
    """

    def __init__(self, living: Callable[[], Set[str]]) -> None:
        self.living = living
        self.begun: defaultdict[str, list[str]] = defaultdict(list)

    def begin(self, part: str, machine: str) -> Ended:
        """Notes that a part begins on a machine.

        Returns:
            What ended since the part last ended by itself. All of it is judged anew each time,
            since a machine may be known to be lost only some time after its processes.
        """
        earlier = self.begun[part]
        living = self.living() if earlier else frozenset()
        processes = sum(machine in living for machine in earlier)
        ended = Ended(processes, len(earlier) - processes)
        earlier.append(machine)
        return ended

    def end(self, part: str) -> None:
        """Forgets a part, which was done or raised an error."""
        self.begun.pop(part, None)


def start_attempts() -> Any:
    """Starts an actor of `Attempts` on the driver's machine, with which it would be lost anyway."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(Attempts).options(num_cpus=0, scheduling_strategy=here)
    return actor.remote(machines)


def machines() -> frozenset[str]:
    """Returns the names of the machines of the cluster that go on."""
    return frozenset(node["NodeID"] for node in ray.nodes() if node["Alive"])


@contextmanager
def attempt(attempts: Any, part: str) -> Iterator[None]:
    """Does a part of the work in the `with` block, in a process of the cluster.

    Args:
        attempts: that `start_attempts` returned.
        part: such as `rows 0 to 999`; no two have the same name.

    Raises:
        RuntimeError: it ended `PROCESSES` processes in a row, or `MACHINES` machines.
    """
    here = ray.get_runtime_context().get_node_id()
    ended = Ended(*ray.get(attempts.begin.remote(part, here)))
    if ended.processes >= PROCESSES or ended.machines >= MACHINES:
        lost = f" ({ended.machines} with the whole machine)" if ended.machines else ""
        raise RuntimeError(
            f"{part} ended {sum(ended)} processes of Ray{lost}, perhaps for want of memory: look "
            "into its logs, or give fewer --workers"
        )
    try:
        yield
    except Exception:  # and not SystemExit, say, with which the process ends
        ray.get(attempts.end.remote(part))
        raise
    ray.get(attempts.end.remote(part))


def results(data: Dataset) -> Generator[Mapping[str, Any], None, None]:
    """Computes a dataset and yields its rows as they come; closed, it stops the cluster's work.

    Args:
        data: to which the caller keeps no reference, since its actors live as long as it does.

    Raises:
        Exception: what a worker raised, with a note that says where.
    """
    data.context.raise_original_map_exception = True
    rows = iter(data.iter_rows())
    failure: Exception | None = None
    try:
        yield from rows
    except ray.exceptions.RayTaskError as error:
        failure = error.cause
        failure.add_note(str(error))
    finally:
        # Datasets and errors are cycles, and as long as they are there actors keep processors.
        del data, rows
        gc.collect()
    if failure is not None:
        raise failure
