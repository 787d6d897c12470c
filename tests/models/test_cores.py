"""Runs on one thread each, or on all: which is taken, and that the answers are the same."""

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest

from models import SHIPPED, SHIPPED_INT8
from models.bundle import load
from models.cores import WIDE, WIDE_IN_FLOAT, CpuGraph
from models.session import OnnxSession, _wide_from

NAMES = ("logits",)


class Loaded:
    """Stands for a graph of ONNX Runtime on so many threads, and can be held in a run."""

    def __init__(self, threads, answer=0.0):
        self.threads = threads
        self.answer = answer
        self.runs = 0
        self.entered = threading.Semaphore(0)
        self.gate = threading.Event()
        self.gate.set()

    def run(self, names, feed):
        self.runs += 1
        self.entered.release()
        assert self.gate.wait(10)
        if not feed["input_ids"].size:
            raise RuntimeError("nothing to run")
        return [np.full(1, self.answer)]


@pytest.fixture
def graph():
    return CpuGraph(Loaded, 4)


def wide_of(graph):
    return graph._wide


def feed(tokens):
    return {"input_ids": np.zeros((1, tokens), np.int64)}


@pytest.mark.parametrize(("tokens", "wide"), [(8, 0), (WIDE - 8, 0), (WIDE, 1), (512, 1)])
def test_a_large_run_by_itself_takes_all_threads(graph, tokens, wide):
    graph.run(NAMES, feed(tokens))
    assert (graph.session.runs, wide_of(graph).runs) == (1 - wide, wide)
    assert (graph.session.threads, wide_of(graph).threads) == (1, 4)


def test_what_is_large_is_up_to_the_graph():
    graph = CpuGraph(Loaded, 4, wide=WIDE_IN_FLOAT)
    for tokens in (WIDE_IN_FLOAT - 8, WIDE_IN_FLOAT):
        graph.run(NAMES, feed(tokens))
    assert (graph.session.runs, wide_of(graph).runs) == (1, 1)


@pytest.mark.parametrize(("path", "wide"), [(SHIPPED_INT8, WIDE), (SHIPPED, WIDE_IN_FLOAT)])
def test_graphs_in_8_bits_take_all_threads_later(path, wide):
    assert _wide_from(path / "model.onnx") == wide
    assert _wide_from((path / "model.onnx").read_bytes()) == wide


@pytest.mark.parametrize("first", [8, 512])
def test_a_run_beside_another_takes_one(graph, first):
    held = wide_of(graph) if first >= WIDE else graph.session
    held.gate.clear()
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(graph.run, NAMES, feed(first))]
        assert held.entered.acquire(timeout=10)
        runs.append(pool.submit(graph.run, NAMES, feed(512)))
        assert graph.session.entered.acquire(timeout=10)
        held.gate.set()
        for run in runs:
            run.result()
    graph.run(NAMES, feed(512))
    assert (graph.session.runs, wide_of(graph).runs) == (
        (2, 1) if held is graph.session else (1, 2)
    )


def test_a_run_that_fails_is_over(graph):
    for tokens in (0, 0):
        with pytest.raises(RuntimeError, match="nothing to run"):
            graph.run(NAMES, feed(tokens))
    graph.run(NAMES, feed(512))
    assert wide_of(graph).runs == 1


def test_one_thread_needs_one_graph():
    begun = []

    def start(threads):
        begun.append(threads)
        return Loaded(threads)

    only = CpuGraph(start, 1)
    only.run(NAMES, feed(512))
    assert only.holds(NAMES)
    assert begun == [1]


def test_graphs_that_differ_are_not_both_used():
    graph = CpuGraph(lambda threads: Loaded(threads, answer=1e-9 * threads), 2)
    assert not graph.holds(NAMES)
    runs = graph.session.runs
    graph.run(NAMES, feed(512))
    assert graph.session.runs == runs + 1


def test_graphs_that_agree_are(graph):
    assert graph.holds(NAMES)
    graph.run(NAMES, feed(512))
    assert wide_of(graph).runs == 2


@pytest.mark.parametrize("path", [SHIPPED_INT8, SHIPPED])
def test_the_shipped_graphs_answer_the_same_on_any_threads(path):
    """Alone on all threads, beside others on one, in batches of any size: to the last bit."""
    model = load(path).model_bytes()
    rng = np.random.default_rng(0)
    several = []
    for rows, length in [(1, 24), (21, 24), (1, 128), (4, 128), (1, 256), (2, 256), (3, 96)]:
        ids = rng.integers(1_000, 20_000, (rows, length))
        mask = np.ones_like(ids)
        mask[-1, length - 5 :] = 0
        several.append((ids, mask, np.arange(rows) % 3 - 1))

    def ask(session, batch):
        found = session.run(*batch, explain=True)
        return [each.tobytes() for each in (found.logits, found.weights, found.label_probs)]

    narrow = OnnxSession(model, device="cpu", threads=1)
    expected = [ask(narrow, batch) for batch in several]
    for threads in (2, 3):
        session = OnnxSession(model, device="cpu", threads=threads)
        assert [ask(session, batch) for batch in several] == expected
        with ThreadPoolExecutor(threads) as pool:
            assert [*pool.map(partial(ask, session), several * 2)] == expected * 2
