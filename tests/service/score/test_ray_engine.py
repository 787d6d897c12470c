"""`l2e score --engine ray` on a cluster of two workers, one of which is killed, and its driver."""

import dataclasses
import importlib
import itertools
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from models import bundle
from models.bundle import CorruptFileError, MismatchError
from models.explainer import Explainer
from service.score.run import run_locally, score
from service.score.shards import WorkError
from service.score.tables import InputRow
from service.score.work import SHARD_CHARS, Job, ScoreOptions

ROOT = Path(__file__).resolve().parents[3]
SHARDS = 8
WIDE_BLANK = "\u3000"  # three bytes
# The work of a test's engine: it notes in `folder` who does what, and in a worker waits until there
# are two, so that both have work.
MODULE = """
import os, signal, sys, time
from dataclasses import dataclass
from pathlib import Path
from service.score.work import Work

DONE = []

@dataclass(frozen=True)
class Watched(Work):
    folder: Path = Path()

    def note(self, *words):
        (self.folder / ".".join(map(str, words))).touch()

    def found(self, word):
        return len([*self.folder.glob(f"{word}.*")])

    def jobs(self):
        self.note("reader", os.getpid())
        for job in super().jobs():
            self.note("read", job.number)
            yield job

    def do(self, explainer, job):
        self.note("worker", os.getpid())
        self.note("explainer", os.getpid(), id(explainer), explainer.session.threads)
        if "torch" in sys.modules:
            self.note("torch", os.getpid())
        deadline = time.monotonic() + 60
        while self.found("worker") < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        self.harm(job)
        DONE.append(job.number)
        return super().do(explainer, job)

    def harm(self, job):
        pass

class Killed(Watched):
    def jobs(self):
        for job in super().jobs():
            if job.number == 5:
                self.kill("reader")
            yield job

    def harm(self, job):
        if len(DONE) == 1:  # in the middle of its work
            self.kill("worker")

    def kill(self, who):
        try:
            os.rename(self.folder / f"alive.{who}", self.folder / f"killed.{who}.{os.getpid()}")
        except FileNotFoundError:  # of several one succeeds
            return
        os.kill(os.getpid(), signal.SIGKILL)

class Deadly(Watched):
    def harm(self, job):
        if job.number == 3:
            self.note("killed", os.getpid())
            os.kill(os.getpid(), signal.SIGKILL)

class Broken(Watched):
    def harm(self, job):
        if job.number == 3:
            raise RuntimeError("cannot explain it\\nnor say why")

class Changed(Watched):
    def jobs(self):
        os.utime(self.source.path, ns=(1, 1))  # behind the driver's back
        return super().jobs()

class Slow(Watched):
    def do(self, explainer, job):
        self.note("ahead", self.found("read") - self.found("done"), job.number)
        self.note("explainer", os.getpid(), id(explainer), explainer.session.threads)
        time.sleep(0.05)
        done = Work.do(self, explainer, job)
        self.note("done", job.number)
        return done
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the module of the workers lies."""
    folder = tmp_path_factory.mktemp("module")
    (folder / "l2e_ray_watched.py").write_text(MODULE, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def cluster(folder):
    """A local cluster of two processors, whose address is returned."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of ray's own imports and sockets
        import ray
        import ray.data

        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=200 * 2**20,
            runtime_env={"env_vars": {"PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"}},
        )
        yield ray.get_runtime_context().gcs_address
        ray.shutdown()


@pytest.fixture
def engine(cluster, folder, monkeypatch):
    """An engine on the cluster: `engine(Killed, notes, workers=2)`."""
    monkeypatch.syspath_prepend(folder)
    from service.score.ray_engine import RayEngine

    def make(kind, notes, **settings):
        watched = importlib.import_module("l2e_ray_watched")
        notes.mkdir()

        def run(explainer, work):
            given = {field.name: getattr(work, field.name) for field in dataclasses.fields(work)}
            work = getattr(watched, kind)(**given, folder=notes)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of ray's own threads and files
                yield from RayEngine(**settings)(explainer, work)

        return run

    return make


@pytest.fixture(scope="module")
def shards(tmp_path_factory, tiny_explainer):
    """A file of shards that take little time, and the bytes that a local run writes."""
    folder = tmp_path_factory.mktemp("shards")
    rows = []
    for number in range(SHARDS):
        rows.append({"id": f"n{number}", "text": f"{'great ' * number}naïve 👩‍👩‍👧, but dull"})
        rows.append({"text": "a lone \ud800"})
        rows.append({"text": " " * SHARD_CHARS})
    table = folder / "in.jsonl"
    table.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    counts = score(table, folder / "out.jsonl", tiny_explainer, ScoreOptions())
    assert counts == (3 * SHARDS, 2 * SHARDS)
    return table, (folder / "out.jsonl").read_bytes()


def noted(folder, word):
    return [path.name.split(".")[1:] for path in sorted(folder.glob(f"{word}.*"))]


# On the cluster


def test_a_worker_and_the_reader_may_be_killed(engine, shards, tiny_explainer, tmp_path, capsys):
    (table, expected), notes = shards, tmp_path / "notes"
    killed = engine("Killed", notes)
    for process in ("worker", "reader"):
        (notes / f"alive.{process}").touch()
    score(table, tmp_path / "out.jsonl", tiny_explainer, ScoreOptions(), killed)
    assert (tmp_path / "out.jsonl").read_bytes() == expected
    assert f"in.jsonl: {3 * SHARDS}/{3 * SHARDS} texts in " in capsys.readouterr().err
    workers = [pid for [pid] in noted(notes, "worker")]
    readers = [pid for [pid] in noted(notes, "reader")]
    assert (len(workers), len(readers)) == (3, 2)  # one in place of the one that died
    died = dict(noted(notes, "killed"))
    assert died["worker"] in workers
    assert died["reader"] in readers
    assert not {*workers} & {*readers}
    assert sorted(pid for pid, _, _ in noted(notes, "explainer")) == sorted(workers)  # once each
    assert {threads for _, _, threads in noted(notes, "explainer")} == {"1"}
    assert noted(notes, "torch") == []


def test_a_shard_that_ends_its_workers_is_named(engine, shards, tiny_explainer, tmp_path):
    notes = tmp_path / "notes"
    deadly = engine("Deadly", notes)
    with pytest.raises(RuntimeError, match="rows 9 to 11 ended 3 processes of Ray"):
        score(shards[0], tmp_path / "out.jsonl", tiny_explainer, ScoreOptions(), deadly)
    assert len(noted(notes, "killed")) == 3


def test_a_bug_surfaces_and_another_engine_goes_on(engine, shards, tiny_explainer, tmp_path):
    (table, expected), output = shards, tmp_path / "out.jsonl"
    broken = engine("Broken", tmp_path / "notes")
    with pytest.raises(RuntimeError, match=r"^cannot explain it\n") as raised:
        score(table, output, tiny_explainer, ScoreOptions(), broken)
    assert "l2e_ray_watched.py" in raised.value.__notes__[0]  # the traceback in the worker
    assert not output.exists()
    score(table, output, tiny_explainer, ScoreOptions())
    assert output.read_bytes() == expected


def test_an_input_that_changed_is_not_read(engine, shards, tiny_explainer, tmp_path):
    table = tmp_path / "in.jsonl"
    table.write_bytes(shards[0].read_bytes())
    changed = engine("Changed", tmp_path / "notes", workers=1)
    with pytest.raises(WorkError, match="changed while it was read"):
        score(table, tmp_path / "out.jsonl", tiny_explainer, ScoreOptions(), changed)
    assert noted(tmp_path / "notes", "read") == []


def test_a_run_that_is_given_up_frees_its_processors(
    engine, shards, tiny_explainer, tmp_path, wait_until
):
    import ray

    table = tmp_path / "in.jsonl"
    table.write_bytes(shards[0].read_bytes())
    watched = engine("Watched", tmp_path / "notes")

    def spoiled(explainer, work):
        for done in watched(explainer, work):
            os.utime(table, ns=(1, 1))  # behind the run's back
            yield done

    with pytest.raises(WorkError, match="changed while it was read"):
        score(table, tmp_path / "out.jsonl", tiny_explainer, ScoreOptions(), spoiled)
    wait_until(lambda: ray.available_resources().get("CPU") == 2, 60)


def test_the_reader_waits_for_the_workers(engine, tiny_explainer, tmp_path):
    """Or the whole input would lie in memory."""
    from service.score.ray_engine import IN_FLIGHT

    line = json.dumps({"text": WIDE_BLANK * SHARD_CHARS}, ensure_ascii=False)
    (tmp_path / "in.jsonl").write_text(f"{line}\n" * 60, encoding="utf-8")
    slow = engine("Slow", tmp_path / "notes", processors=2)
    output = tmp_path / "out.jsonl"
    assert score(tmp_path / "in.jsonl", output, tiny_explainer, ScoreOptions(), slow) == (60, 60)
    ahead = [int(shards) for shards, _ in noted(tmp_path / "notes", "ahead")]
    assert len(ahead) == 60
    assert max(ahead) * 3 * SHARD_CHARS < 1.5 * IN_FLIGHT
    assert {threads for _, _, threads in noted(tmp_path / "notes", "explainer")} == {"2"}


def test_a_bundle_that_was_replaced_is_refused(engine, shards, tiny_fields, tmp_path):
    bundle.save(tmp_path / "tiny", **tiny_fields)
    explainer = Explainer.load(tmp_path / "tiny", device="cpu", threads=1)
    bundle.save(tmp_path / "tiny", **{**tiny_fields, "temperature": 3.0})
    watched = engine("Watched", tmp_path / "notes", workers=1)
    with pytest.raises(MismatchError, match=f"instead of {explainer.bundle.digest[:12]}…"):
        score(shards[0], tmp_path / "out.jsonl", explainer, ScoreOptions(), watched)


def test_no_machine_has_so_many_processors(engine, shards, tiny_explainer, tmp_path):
    greedy = engine("Watched", tmp_path / "notes", processors=3)
    with pytest.raises(ValueError, match="no machine of the Ray cluster has 3 CPU"):
        score(shards[0], tmp_path / "out.jsonl", tiny_explainer, ScoreOptions(), greedy)


# Without a cluster


@pytest.fixture
def module():
    """The module of the engine; its import warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from service.score import ray_engine
    return ray_engine


@pytest.mark.parametrize(
    ("machines", "needed", "workers"),
    [
        ([{"CPU": 2.0}], {"CPU": 1, "GPU": 0}, 2),
        ([{"CPU": 16.0}, {"CPU": 3.0}, {}], {"CPU": 4}, 4),
        ([{"CPU": 3.5}, {"CPU": 0.5}], {"CPU": 1}, 3),
        ([{"CPU": 16.0, "GPU": 2.0}, {"CPU": 64.0}], {"CPU": 4, "GPU": 1}, 2),
        ([{"CPU": 2.0}, {"CPU": 2.0}], {"CPU": 4}, 0),
        ([], {"CPU": 1}, 0),
    ],
)
def test_a_worker_lives_on_one_machine(module, machines, needed, workers):
    assert module.room(machines, needed) == workers


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("ray://10.0.0.1:10001", "ray://10.0.0.1:10001 is for clients"),
        ("http://127.0.0.1:8265", "http://127.0.0.1:8265 is for clients"),
        ("127.0.0.1:{port}", "no Ray cluster at RAY_ADDRESS 127.0.0.1:[0-9]+ .Connection refused"),
        ("[::1]:{port}", "no Ray cluster at RAY_ADDRESS"),
        ("127.0.0.1:", "no Ray cluster at RAY_ADDRESS 127.0.0.1: "),
    ],
)
def test_an_address_without_a_cluster_is_refused_at_once(module, address, words):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # it has a port, and nobody listens
        with pytest.raises(ValueError, match=words):
            module.check_address(address.format(port=free.getsockname()[1]))


def test_an_address_where_somebody_listens_is_for_ray_to_judge(module):
    with socket.create_server(("127.0.0.1", 0)) as server:
        module.check_address(f"127.0.0.1:{server.getsockname()[1]}")
    for address in ("", "auto", "local"):
        module.check_address(address)


# Ray looks for clusters among the processes of the machine, where there may be some; here it sees
# its own process alone.
ALONE = """
import os, sys, ray, psutil, l2e
from pathlib import Path
for entry in os.listdir("/proc"):
    if not entry.isdigit() or int(entry) == os.getpid():
        Path(sys.argv[1], entry).symlink_to(f"/proc/{entry}")
psutil.PROCFS_PATH = sys.argv[1]
sys.exit(l2e.main(["score", *sys.argv[2:], "--engine", "ray"]))
"""


def test_no_cluster_for_auto_is_one_line_with_the_cure(shards, tmp_path):
    given = {"PYTHONPATH": str(ROOT), "RAY_TMPDIR": str(tmp_path), "RAY_ADDRESS": "auto"}
    (tmp_path / "proc").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", ALONE, tmp_path / "proc", shards[0], tmp_path / "out.jsonl"],
        env=os.environ | given, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    [line] = done.stderr.splitlines()
    assert line.startswith("l2e score: no Ray cluster at RAY_ADDRESS auto: start one with")


def test_a_shard_travels_as_it_is(module):
    rows = (InputRow("naïve 👩‍👩‍👧 \ud800\0", "i\n"), InputRow("", None, "no text"), InputRow("a"))
    [row] = module.to_table(Job(3, 7, rows)).to_pylist()
    assert module.to_job(row) == Job(3, 7, [*rows])


def test_a_bundle_travels_as_bytes(module, tiny_explainer, mixed_texts):
    digest = tiny_explainer.bundle.digest
    files = module.pack(tiny_explainer.bundle)
    found = module.unpack(files, digest, "cpu", 1)
    assert not found.bundle.path.exists()
    assert found.explain(mixed_texts) == tiny_explainer.explain(mixed_texts)
    with pytest.raises(CorruptFileError, match=r"model\.onnx: has sha256"):
        module.unpack(files | {"model.onnx": files["model.onnx"][::-1]}, digest, "cpu", 1)


# The command, in a process of its own

COMMAND = """
import sys, l2e
status = l2e.main(["score", *sys.argv[1:]])
assert "torch" not in sys.modules
sys.exit(status)
"""


@pytest.fixture
def started(cluster, tiny_bundle):
    """Starts the command on the cluster: `started(IN, OUT, *flags) -> Popen`."""
    running = []
    flags = ("--bundle", tiny_bundle, "--device", "cpu", "--engine", "ray")

    def start(*arguments):
        process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, *map(str, (*arguments, *flags))],
            cwd=ROOT,
            env={**os.environ, "RAY_ADDRESS": cluster},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate(timeout=10)


def test_the_command_goes_on_where_a_local_run_was(started, shards, tiny_explainer, tmp_path):
    (table, expected), output = shards, tmp_path / "out.jsonl"

    def interrupted(explainer, work):
        yield from itertools.islice(run_locally(explainer, work), 3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score(table, output, tiny_explainer, ScoreOptions(), interrupted)
    process = started(table, output)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert output.read_bytes() == expected
    assert out == ""
    # One line of Ray's own, in C++, cannot be turned off.
    first, *others, last = [line for line in err.splitlines() if "core_worker.cc" not in line]
    assert first == f"in.jsonl: 9/{3 * SHARDS} texts done already"
    assert all(line.startswith("in.jsonl: ") for line in others), err
    assert last == f"{output}: {3 * SHARDS} rows, {2 * SHARDS} of them errors"


def test_a_killed_driver(started, shards, tiny_explainer, wait_until, tmp_path):
    (table, expected), output = shards, tmp_path / "out.jsonl"
    process = started(table, output, "--workers", 1)
    shard = tmp_path / "out.jsonl.part" / "000000.shard"
    wait_until(lambda: shard.exists() or process.poll() is not None, 120)
    process.kill()
    assert process.wait(10) == -signal.SIGKILL
    assert not output.exists()
    score(table, output, tiny_explainer, ScoreOptions())
    assert output.read_bytes() == expected


def test_without_ray_the_cure_is_named(tmp_path, shards, tiny_bundle):
    code = (
        "import sys; from importlib import util; find = util.find_spec; "
        "sys.modules['ray'] = None; "
        "util.find_spec = lambda name: None if name == 'ray' else find(name); "
        "import l2e; sys.exit(l2e.main(['score', *sys.argv[1:]]))"
    )
    for engine, status in (("ray", 2), ("local", 0)):
        flags = ("--bundle", tiny_bundle, "--engine", engine)
        done = subprocess.run(
            [sys.executable, "-c", code, shards[0], tmp_path / f"{engine}.jsonl", *flags],
            cwd=ROOT, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == status, done.stderr
        cure = "l2e score: this command needs ray: pip install 'l2e[ray]'\n"
        assert (done.stderr == cure) == (engine == "ray")
