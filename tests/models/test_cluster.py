"""Parts of work that end processes, on real machines of a Ray cluster, one of which is lost."""

import contextlib
import logging
import os
import signal
import time
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def cluster():
    """The module; its import warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from models import cluster
    return cluster


@pytest.fixture
def living():
    """The machines that go on, for a test to change."""
    return {"a", "b", "c"}


@pytest.fixture
def attempts(cluster, living):
    return cluster.Attempts(lambda: frozenset(living))


# Counting


def test_a_part_that_ends_its_processes_is_counted_wherever_it_was(attempts):
    found = [attempts.begin("x", machine) for machine in "aabc"]
    assert found == [(0, 0), (1, 0), (2, 0), (3, 0)]


def test_a_part_that_ended_by_itself_begins_anew(attempts):
    attempts.begin("x", "a")
    attempts.begin("x", "a")
    attempts.end("x")
    assert attempts.begin("x", "a") == (0, 0)
    assert attempts.begin("x", "a") == (1, 0)


def test_parts_are_counted_apart(attempts):
    attempts.begin("x", "a")
    attempts.begin("y", "a")
    attempts.end("y")
    assert attempts.begin("x", "a") == (1, 0)
    assert attempts.begin("y", "a") == (0, 0)


def test_what_was_lost_with_its_machine_is_counted_as_that(attempts, living):
    attempts.begin("x", "a")
    attempts.begin("x", "b")
    living -= {"a"}
    assert attempts.begin("x", "b") == (1, 1)
    assert attempts.begin("x", "c") == (2, 1)


def test_a_machine_may_turn_out_to_be_lost_later(attempts, living):
    attempts.begin("x", "a")
    assert attempts.begin("x", "b") == (1, 0)
    living -= {"a", "b"}
    assert attempts.begin("x", "c") == (0, 2)


# On a cluster


@pytest.fixture(scope="module")
def machines():
    """A cluster of the driver's machine and of one that can be lost."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of ray's own imports, threads and files
        import ray
        from ray.cluster_utils import Cluster

        memory = 80 * 2**20
        started = Cluster(True, head_node_args={"num_cpus": 0, "object_store_memory": memory})
        ray.init(
            started.address,
            log_to_driver=False,
            logging_level=logging.CRITICAL,
            runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
        )
        started.add_node(num_cpus=1, object_store_memory=memory)
        yield started
        ray.shutdown()
        started.shutdown()


@pytest.fixture(scope="module")
def counted(cluster, machines):
    """An actor of `Attempts`."""
    return cluster.start_attempts()


@pytest.fixture
def do(counted):
    """Does a part on a machine: `do(machine, what)`; returns a reference to its end."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def work(attempts, what, begun):
        from models.cluster import attempt

        with attempt(attempts, "x"):
            if what == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            if what == "waits":
                begun.touch()
                signal.pause()
            if what == "fails":
                raise ValueError("a bad part")

    def do(machine, what, begun=None):
        where = NodeAffinitySchedulingStrategy(machine.node_id, soft=False)
        task = ray.remote(work).options(num_cpus=0, max_retries=0, scheduling_strategy=where)
        return task.remote(counted, what, begun)

    return do


def test_a_process_that_died_is_told_from_a_machine_that_was_lost(do, counted, machines, tmp_path):
    import ray

    here, [other] = machines.head_node, machines.worker_nodes
    with pytest.raises(ray.exceptions.WorkerCrashedError):
        ray.get(do(here, "dies"))
    lost = do(other, "waits", tmp_path / "begun")
    end = time.monotonic() + 60
    while not (tmp_path / "begun").exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    machines.remove_node(other, allow_graceful=False)
    machines.wait_for_nodes()
    with pytest.raises(ray.exceptions.RayError):
        ray.get(lost)
    assert ray.get(counted.begin.remote("x", here.node_id)) == (1, 1)
    ray.get(do(here, "works"))
    assert ray.get(counted.begin.remote("x", here.node_id)) == (0, 0)
    with pytest.raises(ValueError, match="a bad part"):
        ray.get(do(here, "fails"))
    assert ray.get(counted.begin.remote("x", here.node_id)) == (0, 0)


@pytest.mark.parametrize(
    ("here", "lost", "words"),
    [
        (2, 9, None),
        (3, 0, "rows ended 3 processes of Ray, perhaps"),
        (3, 1, "rows ended 4 processes of Ray .1 with the whole machine., perhaps"),
        (0, 10, "rows ended 10 processes of Ray .10 with the whole machine., perhaps"),
    ],
)
def test_a_part_is_named_in_the_end(here, lost, words, cluster, counted, machines):
    part = f"after {here} and {lost} rows"
    for machine in [machines.head_node.node_id] * here + ["lost"] * lost:
        counted.begin.remote(part, machine)
    refused = pytest.raises(RuntimeError, match=words) if words else contextlib.nullcontext()
    with refused, cluster.attempt(counted, part):
        assert words is None
