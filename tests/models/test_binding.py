"""Buffers on the device: the plan by itself, runs in the processor's memory, and on a GPU."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime as ort
import pytest

from models.binding import RECORDED_ROWS, BoundGraph, Part, fill, make_plan
from models.graph import split
from models.session import OnnxSession

CUDA = "CUDAExecutionProvider"


def plan(rows, tokens=24, *, explain=True, record=False):
    return make_plan(rows, tokens, 2, explain=explain, record=record)


# The plan


@pytest.mark.parametrize(
    ("rows", "room"), [(1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (8, 8), (9, 16), (682, 1024)]
)
def test_rows_are_rounded_up_to_a_power_of_two(rows, room):
    for record in (False, True):
        found = plan(rows, record=record)
        assert found.bucket == (room, 24)
        assert all(part.held[0] == room for part in (*found.inputs, *found.outputs))


def test_parts_of_a_plain_run():
    found = plan(3)
    assert found.inputs == (
        Part("input_ids", np.int64, (4, 24), (3, 24)),
        Part("attention_mask", np.int64, (4, 24), (3, 24)),
        Part("target", np.int64, (4,), (3,)),
    )
    assert found.outputs == (
        Part("logits", np.float32, (4, 2), (3, 2)),
        Part("weights", np.float32, (4, 24), (3, 24)),
        Part("label_probs", np.float32, (4, 24, 5), (3, 24, 5)),
    )
    assert found.graph_id is None


def test_a_label_copies_only_logits_back():
    assert [part.name for part in plan(3, explain=False).outputs] == ["logits"]


@pytest.mark.parametrize("rows", [1, 3, 7, 8])
def test_a_recorded_run_sees_the_whole_bucket(rows):
    found = plan(rows, record=True)
    assert found.graph_id is not None
    assert all(part.used == part.held for part in (*found.inputs, *found.outputs))


def test_many_rows_are_not_recorded():
    found = plan(RECORDED_ROWS + 1, record=True)
    assert found.graph_id is None
    assert found.inputs[0].used == (RECORDED_ROWS + 1, 24)


def test_graph_ids_are_of_one_bucket_each_and_positive():
    found = {
        (rows, tokens): make_plan(rows, tokens, 2, explain=True, record=True)
        for rows in range(1, 2 * RECORDED_ROWS)
        for tokens in range(8, 520, 8)
    }
    recorded = {one.graph_id: one.bucket for one in found.values() if one.graph_id is not None}
    assert len(recorded) == len(set(recorded.values())) == 4 * len(range(8, 520, 8))
    assert min(recorded) >= 1
    for one in found.values():
        assert one.graph_id is None or recorded[one.graph_id] == one.bucket


def test_a_bucket_is_filled_with_its_first_row():
    values = np.arange(6).reshape(3, 2)
    part = Part("input_ids", np.int64, (4, 2), (4, 2))
    assert fill(part, values).tolist() == [[0, 1], [2, 3], [4, 5], [0, 1]]
    assert fill(part, np.arange(8).reshape(4, 2)).tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert fill(part._replace(held=(8,)), np.array([-1, 1])).tolist() == [-1, 1, *[-1] * 6]
    turned = fill(part, np.arange(8).reshape(2, 4).T)  # a view whose rows do not lie together
    assert turned.flags.c_contiguous
    assert turned.tolist() == [[0, 4], [1, 5], [2, 6], [3, 7]]


# Runs


@pytest.fixture(scope="module")
def whole(tiny_model_bytes):
    return OnnxSession(tiny_model_bytes, device="cpu", threads=1)


@pytest.fixture
def bound(tiny_model_bytes):
    """Makes the bound graph of the tiny model in the processor's memory."""

    def make(*, explain=True, record=False):
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = ort.InferenceSession(
            split(tiny_model_bytes, explain=explain), options, ["CPUExecutionProvider"]
        )
        return BoundGraph(session, "cpu", explain=explain, record=record)

    return make


def batch(rows, tokens, seed=0):
    rng = np.random.default_rng(seed)
    ids = rng.integers(5, 120, (rows, tokens))
    mask = (np.arange(tokens) < rng.integers(2, tokens + 1, (rows, 1))).astype(np.int64)
    return ids, mask, rng.integers(-1, 2, rows)


SHAPES = [(1, 8), (3, 8), (2, 16), (3, 8), (1, 8), (9, 8), (4, 8), (30, 24), (8, 8), (5, 8)]


@pytest.mark.parametrize("record", [False, True])
def test_bound_runs_are_the_plain_runs_to_the_last_bit(bound, whole, record):
    """In turns that use each bucket with different rows, full and not."""
    graph = bound(record=record)
    for seed, shape in enumerate(SHAPES):
        feed = batch(*shape, seed)
        expected = whole.run(*feed, explain=True)
        found = graph.run(*feed)
        wanted = (expected.logits, expected.weights, expected.label_probs)
        assert [part.shape for part in found] == [part.shape for part in wanted]
        assert [part.tobytes() for part in found] == [part.tobytes() for part in wanted]


def test_a_bound_label_is_the_logits_alone(bound, whole):
    graph = bound(explain=False)
    feed = batch(3, 8)
    [logits] = graph.run(*feed)
    assert logits.tobytes() == whole.run(*feed, explain=False).logits.tobytes()


def test_answers_outlive_the_next_run(bound, whole):
    graph = bound()
    first, second = batch(3, 8, seed=1), batch(4, 8, seed=2)
    kept = graph.run(*first)
    graph.run(*second)
    expected = whole.run(*first, explain=True)
    assert [part.tobytes() for part in kept] == [
        part.tobytes() for part in (expected.logits, expected.weights, expected.label_probs)
    ]


@pytest.mark.parametrize("record", [False, True])
def test_several_threads_share_the_buffers(bound, whole, record):
    graph = bound(record=record)
    feeds = [batch(1 + seed % 5, 8, seed) for seed in range(40)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda feed: graph.run(*feed), feeds))
    for feed, found in zip(feeds, answers, strict=True):
        expected = whole.run(*feed, explain=True)
        assert found[0].tobytes() == expected.logits.tobytes()
        assert found[1].tobytes() == expected.weights.tobytes()


# A GPU. These have not been run where they were written: there was none.


@pytest.fixture(params=["cuda", "cuda-graphs"])
def on_gpu(request, tiny_model_bytes):
    if CUDA not in ort.get_available_providers():
        pytest.skip(f"this ONNX Runtime has no {CUDA}")
    return OnnxSession(tiny_model_bytes, device=request.param)


@pytest.mark.gpu
def test_a_gpu_gives_the_known_answers_in_every_bucket(on_gpu, whole):
    """Twice each, so that a recorded run is also played back."""
    for seed, shape in enumerate(SHAPES * 2):
        feed = batch(*shape, seed)
        for explain in (True, False):
            expected, found = (one.run(*feed, explain=explain) for one in (whole, on_gpu))
            # Sums of multiples of 1/16 are exact anywhere.
            assert np.array_equal(found.logits, expected.logits)
            assert np.array_equal(found.weights, expected.weights)
            np.testing.assert_allclose(found.label_probs, expected.label_probs, atol=1e-6)


@pytest.mark.gpu
def test_several_threads_may_ask_a_gpu(on_gpu, whole):
    feeds = [batch(1 + seed % 5, 8, seed) for seed in range(100)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda feed: on_gpu.run(*feed, explain=True), feeds))
    for feed, found in zip(feeds, answers, strict=True):
        assert np.array_equal(found.weights, whole.run(*feed, explain=True).weights)
