"""Many machines: the same shards through Ray Data, the explainer in a pool of actors.

One task reads the input where the command runs, no further ahead than its rows are wanted; each
actor gets the bundle through Ray's object store, opens it once and sends back finished shards; who
drives writes them. So the machines need no common disk. A process that dies is replaced and its
shard done again, by Ray.
"""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data.block import BlockMetadata

from models.bundle import CONFIG, MANIFEST, MODEL, TOKENIZER, Bundle, MismatchError
from models.cluster import attempt, results, start_attempts
from models.explainer import Explainer
from models.session import DeviceName
from service.score.shards import Counts
from service.score.tables import InputRow
from service.score.work import Done, Job, Work

IN_FLIGHT = 1 << 25  # bytes per worker in Ray's object store: shards that wait, and results


@dataclass(frozen=True)
class RayEngine:
    """An `Engine` on a Ray cluster: the one at `RAY_ADDRESS`, else one on this machine.

    Attributes:
        workers: actors at most, each with a session of its own; None for as many as there is room.
        processors: that Ray assigns to each, and threads of its session, at least 1.
    """

    workers: int | None = None
    processors: int = 1

    def __call__(self, explainer: Explainer, work: Work) -> Generator[Done, None, None]:
        """See `Engine`.

        Raises:
            ValueError: no machine of the cluster has what a worker needs, or the input changed.
            BundleError: the bundle changed, or gives another golden answer on a worker's machine.
            RuntimeError: a shard ended several workers in a row.
        """
        connect()
        with closing(results(self._plan(explainer, work))) as rows:
            for row in rows:
                counts = Counts(int(row["rows"]), int(row["errors"]))
                yield Done(int(row["number"]), bytes(row["lines"]), counts)

    def _plan(self, explainer: Explainer, work: Work) -> ray.data.Dataset:
        """Returns what `Worker` will return as a dataset that is not computed yet."""
        device = explainer.session.device
        needed = {"CPU": self.processors, "GPU": int(device.startswith("cuda"))}
        workers = min(self._workers(needed), work.missing)
        # The reader and the workers have current folders of their own.
        work = replace(work, source=replace(work.source, path=work.source.path.absolute()))
        attempts = start_attempts()
        data = ray.data.read_datasource(Jobs(work, attempts), num_cpus=0, override_num_blocks=1)
        done: ray.data.Dataset = data.map_batches(
            Worker,
            fn_constructor_kwargs={
                "files": ray.put(pack(explainer.bundle)),
                "digest": explainer.bundle.digest,
                "device": device,
                "work": replace(work, finished=frozenset()),
                "attempts": attempts,
            },
            batch_size=1,
            batch_format="pyarrow",
            # The next shard lies ready where one is done; all others wait with the reader.
            compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=2),
            num_cpus=needed["CPU"],
            num_gpus=needed["GPU"],
        )
        _configure(done.context, workers * IN_FLIGHT)
        return done

    def _workers(self, needed: Mapping[str, int]) -> int:
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        most = room(machines, needed)
        if most == 0:
            asked = " and ".join(f"{amount} {name}" for name, amount in needed.items() if amount)
            cure = "give fewer --threads, or another --device"
            raise ValueError(f"no machine of the Ray cluster has {asked}: {cure}")
        return most if self.workers is None else min(self.workers, most)


class Jobs(ray.data.Datasource):
    """The shards to do as rows of a dataset, read by one task on the driver's machine.

    Args:
        work: whose jobs these are; the path of its source is absolute.
        attempts: that `start_attempts` returned.
    """

    supports_distributed_reads = False

    def __init__(self, work: Work, attempts: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.work = work
        self.attempts = attempts

    def estimate_inmemory_data_size(self) -> int | None:
        """See `Datasource`."""
        return None

    def get_read_tasks(self, *arguments: object, **settings: object) -> list[ray.data.ReadTask]:
        """Returns the one task, which reads a shard when there is room for it."""
        work, attempts = self.work, self.attempts

        def read() -> Iterator[pa.Table]:
            with attempt(attempts, f"reading {work.source.path}"):
                for job in work.jobs():
                    yield to_table(job)

        unknown = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [ray.data.ReadTask(read, unknown)]


class Worker:
    """Answers shards; lives in an actor.

    Args:
        files: a reference to what `pack` returned.
        digest: of the bundle.
        device: of the driver's session.
        work: what to do with each shard.
        attempts: that `start_attempts` returned.
    """

    def __init__(
        self,
        files: ray.ObjectRef[dict[str, bytes]],
        digest: str,
        device: DeviceName,
        work: Work,
        attempts: Any,
    ) -> None:
        self.files = files
        self.digest = digest
        self.device = device
        self.work = work
        self.attempts = attempts

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Answers the shard of a batch of one."""
        [row] = batch.to_pylist()
        job = to_job(row)
        with attempt(self.attempts, f"rows {job.start} to {job.start + len(job.rows) - 1}"):
            done = self.work.do(self.explainer, job)
        return pa.table(
            {
                "number": [done.number],
                "lines": pa.array([done.lines], pa.large_binary()),
                "rows": [done.counts.rows],
                "errors": [done.counts.errors],
            }
        )

    @cached_property
    def explainer(self) -> Explainer:
        """The bundle on as many threads as Ray assigned processors to this actor.

        It is opened with the first shard: of an error in a constructor Ray keeps the text alone.
        """
        threads = int(ray.get_runtime_context().get_assigned_resources()["CPU"])
        return unpack(ray.get(self.files), self.digest, self.device, threads)


def connect() -> None:
    """Joins the cluster that `RAY_ADDRESS` names or that runs here, or starts one.

    Nothing happens where this process has done so already.

    Raises:
        ValueError: there is no such cluster; see also `check_address`.
    """
    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS", "")
    check_address(address)
    # Ray's lines would stand among those of the progress; its errors come as exceptions.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    try:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.CRITICAL)
    except ConnectionError as error:
        named = f"RAY_ADDRESS {address}" if address else "the address that `ray start` left here"
        raise ValueError(
            f"no Ray cluster at {named}: start one with `ray start --head`, or unset RAY_ADDRESS "
            "and run `ray stop` to have one for this command alone"
        ) from error


def check_address(address: str) -> None:
    """Refuses the address of a cluster that Ray would try in vain for many minutes.

    Args:
        address: HOST:PORT, a word that Ray knows, or empty.

    Raises:
        ValueError: it is that of a client or a dashboard, or nobody listens there.
    """
    if "://" in address:
        raise ValueError(
            f"RAY_ADDRESS {address} is for clients, whose files a cluster cannot read: run the "
            "command on a machine of the cluster, with HOST:PORT or auto"
        )
    host, colon, port = address.rpartition(":")
    if colon:
        try:
            socket.create_connection((host.strip("[]"), port), timeout=10).close()
        except OSError as error:
            raise ValueError(
                f"no Ray cluster at RAY_ADDRESS {address} ({error.strerror or error}): give the "
                "HOST:PORT that `ray start` printed"
            ) from None


def room(machines: Sequence[Mapping[str, float]], needed: Mapping[str, int]) -> int:
    """Returns how many workers can live at the same time.

    Args:
        machines: what each has, by the name of the resource; a worker lives on one.
        needed: by a worker, likewise.
    """
    asked = {name: amount for name, amount in needed.items() if amount}
    return sum(
        min(int(machine.get(name, 0.0) // amount) for name, amount in asked.items())
        for machine in machines
    )


def pack(bundle: Bundle) -> dict[str, bytes]:
    """Reads the files of a bundle; `unpack` finds out whether they changed since it was loaded."""
    return {
        name: (bundle.path / name).read_bytes() for name in (MANIFEST, MODEL, TOKENIZER, CONFIG)
    }


def unpack(files: dict[str, bytes], digest: str, device: DeviceName, threads: int) -> Explainer:
    """Opens a bundle from its files, with all checks.

    Args:
        files: content by name.
        digest: that the bundle must have.
        device: as in `Explainer.load`.
        threads: of the session.

    Raises:
        BundleError: another digest, or what `Explainer.load` refuses.
    """
    with TemporaryDirectory(prefix="l2e-") as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        explainer = Explainer.load(folder, device=device, threads=threads)
    if explainer.bundle.digest != digest:
        raise MismatchError(
            f"a worker got bundle {explainer.bundle.digest[:12]}… instead of {digest[:12]}…, which "
            "was replaced meanwhile: repeat the command"
        )
    return explainer


def to_table(job: Job) -> pa.Table:
    """Returns a job as a table of one row."""
    # Arrow has no strings with lone surrogates, which are an error of their row alone.
    rows = json.dumps([row[:3] for row in job.rows], ensure_ascii=False)
    content = pa.array([rows.encode("utf-8", "surrogatepass")], pa.large_binary())
    return pa.table({"number": [job.number], "start": [job.start], "rows": content})


def to_job(row: Mapping[str, Any]) -> Job:
    """Returns a row of `to_table` as the job it was; of its rows `columns` is left out."""
    rows = json.loads(row["rows"].decode("utf-8", "surrogatepass"))
    return Job(row["number"], row["start"], [InputRow(*cells) for cells in rows])


def _configure(context: ray.data.DataContext, memory: int) -> None:
    limits = ray.data.ExecutionResources(object_store_memory=memory)
    context.execution_options.resource_limits = limits
    context.target_max_block_size = 1  # byte: a block, and so a task, for each shard
    context.max_errored_blocks = 0
    context.enable_progress_bars = False
    context.print_on_execution_start = False
