"""The same run on a Ray cluster of two workers, one of which is killed."""

import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from training.attribution.ray_engine import RayEngine, Worker, share
from training.attribution.run import Work, attribute_texts, run_locally
from training.attribution.store import AttributionStore
from training.blackbox.callable import FunctionError
from training.blackbox.source import BlackBoxSource

ROOT = Path(__file__).resolve().parents[2]
TEXTS = {f"t{number}": f"film {number} was great and not dull ." for number in range(12)}
# In a worker it waits until there are two, so that both have work; at its third call, after the
# flag was raised, one of them kills its own process.
MODULE = """
import os, signal, time
from pathlib import Path
from typing import Any
import numpy as np

HERE = Path(__file__).parent
CALLS = []

def in_a_worker():
    return os.getpid() != int((HERE / "driver").read_text())

def deadly(texts):
    if any("film 5" in text for text in texts) and in_a_worker():
        (HERE / f"died.{os.getpid()}").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return predict(texts, wait=False)

def broken(texts):
    if in_a_worker():
        raise KeyError("cannot read it")
    return predict(texts, wait=False)

def predict(texts, wait=True):
    CALLS.append(len(texts))
    if wait and in_a_worker():
        (HERE / f"worker.{os.getpid()}").touch()
        deadline = time.monotonic() + 60
        while len([*HERE.glob("worker.*")]) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
    if (HERE / "raised").exists() and len(CALLS) == 3:
        try:
            (HERE / f"killed.{os.getpid()}").touch()
            os.rename(HERE / "raised", HERE / "lowered")  # of two workers one succeeds
        except FileNotFoundError:
            (HERE / f"killed.{os.getpid()}").unlink()
        else:
            os.kill(os.getpid(), signal.SIGKILL)
    odds = np.array([1.5 * ("great" in text) - 0.75 * ("dull" in text) for text in texts])
    chance = 1 / (1 + np.exp(-odds))
    return np.stack([1 - chance, chance], axis=1)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the function's file lies."""
    folder = tmp_path_factory.mktemp("module")
    (folder / "l2e_ray_toy.py").write_text(MODULE, encoding="utf-8")
    (folder / "driver").write_text(str(os.getpid()), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def cluster(folder):
    """A local cluster of two processors whose actors find `training` and the function."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of ray's own imports and sockets
        import ray

        ray.init(
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=80 * 2**20,
            runtime_env={"env_vars": {"PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"}},
        )
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        yield ray
        ray.shutdown()


@pytest.fixture
def module(folder, monkeypatch):
    """The current folder is that of the function."""
    monkeypatch.chdir(folder)
    path = [*sys.path]
    yield folder
    sys.path[:] = path
    sys.modules.pop("l2e_ray_toy", None)


@pytest.fixture
def run(cluster, tmp_path):
    """Attributes our texts, two to a shard, on two workers or here."""

    def attribute(source, folder, *, workers=2, **changes):
        store = AttributionStore(tmp_path / folder, {"black_box": "toy"})
        engine = RayEngine(source, workers) if workers else run_locally
        settings: dict[str, Any] = {"teacher": "kernel_shap", "budget": 14, **changes}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of ray's own threads and files
            return attribute_texts(
                source.open(), TEXTS, seed=0, store=store, shard=2, engine=engine, **settings
            )

    return attribute


@pytest.fixture
def files(tmp_path):
    return lambda folder: {
        path.name: path.read_bytes() for path in (tmp_path / folder).glob("*.parquet")
    }


def same(found, expected):
    assert [record.id for record in found] == [record.id for record in expected]
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.weights.tobytes() == theirs.weights.tobytes()
        assert (mine.value, mine.target, mine.budget) == (
            theirs.value,
            theirs.target,
            theirs.budget,
        )


def test_one_of_two_workers_may_be_killed(run, files, module):
    """While a budget grows from what the driver has stored."""
    source = BlackBoxSource("l2e_ray_toy:predict")
    for folder in ("killed", "here"):
        run(source, folder, workers=0, budget=8)
    (module / "raised").touch()
    found = run(source, "killed")
    assert (module / "lowered").exists()
    assert len([*module.glob("killed.*")]) == 1
    assert len([*module.glob("worker.*")]) == 3  # one in place of the one that died
    same(found, run(source, "here", workers=0))
    assert files("killed") == files("here")


def test_a_checkpoint_gives_the_same_files(run, files, lively_checkpoint):
    """Each worker opens it for itself."""
    source = BlackBoxSource(str(lively_checkpoint), max_tokens=32, overlap=4)
    expected = run(source, "here", workers=0, teacher="occlusion")
    same(run(source, "cluster", teacher="occlusion"), expected)
    assert files("cluster") == files("here")


def test_a_shard_that_ends_its_workers_is_named(run, module, tmp_path):
    named = "shard 2 .from the text 'film 4 was great and not dull .' on. ended 3 processes of Ray"
    with pytest.raises(RuntimeError, match=named):
        run(BlackBoxSource("l2e_ray_toy:deadly"), "cluster")
    assert len([*module.glob("died.*")]) == 3
    assert [*(tmp_path / "cluster").glob("*.parquet")]  # what the other worker did meanwhile


def test_an_error_in_a_worker_surfaces_as_it_is(run, module):
    with pytest.raises(
        FunctionError, match=r"l2e_ray_toy:broken failed .*cannot read it"
    ) as raised:
        run(BlackBoxSource("l2e_ray_toy:broken"), "cluster")
    assert "ray_engine.py" in raised.value.__notes__[0]  # the traceback in the worker


def test_nothing_to_do_starts_nothing(module):
    engine = RayEngine(BlackBoxSource("l2e_ray_toy:predict"), 2)
    black_box = BlackBoxSource("l2e_ray_toy:predict").open()
    assert [*engine(black_box, None, [])] == []  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("machines", "workers", "processors"),
    [
        ([2.0], 2, 1), ([16.0], 2, 8), ([16.0], 3, 5), ([16.0], 1, 16), ([4.0, 4.0, 4.0], 2, 4),
        ([4.0, 4.0, 4.0], 4, 2), ([8.0, 2.0], 3, 2), ([8.0, 2.0], 2, 4), ([1.0], 4, 1),
        ([0.5, 0.0], 1, 1), ([], 2, 1),
    ],
)  # fmt: skip
def test_processors_are_shared_among_the_workers(machines, workers, processors):
    """Each lives on one machine."""
    assert share(machines, workers) == processors


def test_a_worker_uses_as_many_threads_as_it_has_processors(module):
    """Not one for each processor of the machine, which other workers have."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    Worker(BlackBoxSource("l2e_ray_toy:predict"), Work("lime", 8, 0), 1, attempts=None)
    assert torch.get_num_threads() == 1
    torch.set_num_threads(before)
