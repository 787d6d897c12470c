import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from models.bundle import CorruptFileError, MismatchError
from models.session import (
    Device,
    DeviceError,
    OnnxSession,
    available_device,
    available_threads,
    cgroup_quotas,
    thread_limit,
)

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


@pytest.fixture(scope="module")
def session(tiny_model_bytes):
    return OnnxSession(tiny_model_bytes, device="cpu", threads=1)


@pytest.fixture(scope="module")
def batch(tiny_values):
    """Two rows: great but boring, then awful and a pad."""
    number = list(tiny_values).index
    ids = [
        [number("[CLS]"), number("great"), number("but"), number("boring"), number("[SEP]")],
        [number("[CLS]"), number("awful"), number("[SEP]"), number("[PAD]"), number("[PAD]")],
    ]
    input_ids = np.array(ids, dtype=np.int64)
    return input_ids, (input_ids != number("[PAD]")).astype(np.int64)


def ask(session, batch, targets=(-1, -1), *, explain=True):
    input_ids, mask = batch
    return session.run(input_ids, mask, np.array(targets), explain=explain)


def test_known_answers(session, batch):
    outputs = ask(session, batch)
    assert outputs.logits.tolist() == [[-0.5, 0.5], [1.5, -1.5]]
    assert outputs.weights.tolist() == [[0, 3, 0, -2, 0], [0, 3, 0, 0, 0]]
    assert outputs.label_probs.argmax(-1).tolist() == [[2, 4, 2, 0, 2], [2, 4, 2, 2, 2]]
    np.testing.assert_allclose(outputs.label_probs.sum(-1), 1, rtol=1e-6)
    assert {array.dtype for array in (outputs.logits, outputs.weights)} == {np.dtype(np.float32)}


def test_target_turns_the_weights(session, batch):
    outputs = ask(session, batch, (0, 1))
    assert outputs.weights.tolist() == [[0, -3, 0, 2, 0], [0, -3, 0, 0, 0]]


def test_label_only(session, batch):
    outputs = ask(session, batch, explain=False)
    assert outputs.logits.tolist() == [[-0.5, 0.5], [1.5, -1.5]]
    assert outputs.weights.shape == (2, 5)
    assert outputs.label_probs.shape == (2, 5, 5)
    assert not outputs.weights.any()
    assert not outputs.label_probs.any()


def test_from_a_file(session, tiny_bundle, batch):
    other = OnnxSession(tiny_bundle / "model.onnx", device="cpu")
    assert other.threads == available_threads()
    one, two = ask(session, batch), ask(other, batch)
    assert np.array_equal(one.logits, two.logits)
    assert np.array_equal(one.weights, two.weights)


def test_several_threads_may_run_it(session, batch):
    with ThreadPoolExecutor(4) as pool:
        answers = pool.map(lambda _: ask(session, batch).weights.tolist(), range(100))
        assert all(answer == ask(session, batch).weights.tolist() for answer in answers)


@pytest.mark.parametrize(
    ("requested", "providers", "expected"),
    [
        ("cpu", [CUDA, CPU], ("cpu", CPU)),
        ("auto", [CUDA, CPU], ("cuda", CUDA)),
        ("cuda", [CUDA, CPU], ("cuda", CUDA)),
        ("auto", ["AzureExecutionProvider", CPU], ("cpu", CPU)),
    ],
)
def test_available_device(requested, providers, expected):
    found = available_device(requested, providers)
    assert found[:2] == expected
    assert found.reason


def test_cuda_is_refused_with_the_cure():
    with pytest.raises(DeviceError) as error:
        available_device("cuda", [CPU])
    message = str(error.value)
    assert "\n" not in message
    for mention in ("'cuda'", CUDA, "extra `gpu`", "nvidia-smi", "auto or cpu"):
        assert mention in message


def test_unknown_device():
    with pytest.raises(ValueError, match="use auto, cpu or cuda"):
        available_device("tpu", [CPU])


def test_no_silent_fallback_from_cuda(tiny_model_bytes):
    # With a GPU it runs there; without one it must not run at all.
    try:
        session = OnnxSession(tiny_model_bytes, device="cuda")
    except DeviceError as error:
        assert "nvidia-smi" in str(error)  # noqa: PT017 - either outcome is right, by machine
    else:
        assert (session.device, session.provider) == ("cuda", CUDA)


def test_auto_says_why(tiny_model_bytes):
    session = OnnxSession(tiny_model_bytes)
    if CUDA not in ort.get_available_providers():
        found = Device(session.device, session.provider, session.device_reason)
        assert found == ("cpu", CPU, f"this ONNX Runtime has no {CUDA}")


@pytest.mark.parametrize(
    ("cores", "quotas", "expected"),
    [
        (8, [], 8),
        (8, ["max 100000\n"], 8),
        (8, ["200000 100000\n"], 2),
        (8, ["max 100000", "350000 100000"], 3),
        (2, ["800000 100000"], 2),
        (8, ["50000 100000"], 1),
        (8, ["", "nonsense", "1 2 3", "100000 0", "-1 100000"], 8),
        (0, [], 1),
    ],
)
def test_thread_limit(cores, quotas, expected):
    assert thread_limit(cores, quotas) == expected


def test_cgroup_quotas_of_all_levels(tmp_path):
    leaf = tmp_path / "system.slice" / "l2e.service"
    leaf.mkdir(parents=True)
    (leaf / "cpu.max").write_text("max 100000\n")
    (leaf.parent / "cpu.max").write_text("150000 100000\n")
    (tmp_path.parent / "cpu.max").write_text("1 100000\n")  # outside of the mount
    membership = "3:cpuset:/elsewhere\n0::/system.slice/l2e.service\n"
    assert cgroup_quotas(tmp_path, membership) == ["max 100000\n", "150000 100000\n"]
    (tmp_path.parent / "cpu.max").unlink()


@pytest.mark.parametrize("membership", ["", "0::/\n", "0::/gone\n", "1:cpu:/\n", "0::/../..\n"])
def test_no_cgroup_quotas(tmp_path, membership):
    assert cgroup_quotas(tmp_path, membership) == []


def test_available_threads():
    assert 1 <= available_threads() <= len(os.sched_getaffinity(0))


def test_threads_below_one(tiny_model_bytes):
    with pytest.raises(ValueError, match="at least 1"):
        OnnxSession(tiny_model_bytes, threads=0)


@pytest.mark.parametrize("model", [b"", b"junk", b"\x08" * 1000])
def test_not_an_onnx_file(model, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(model)
    for source in (model, path):
        with pytest.raises(CorruptFileError, match="cannot load it") as error:
            OnnxSession(source, device="cpu")
        assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_another_graph():
    value = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["B"])
    result = helper.make_tensor_value_info("logits", TensorProto.INT64, ["B"])
    node = helper.make_node("Identity", ["input_ids"], ["logits"])
    graph = helper.make_graph([node], "other", [value], [result])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    with pytest.raises(MismatchError, match="not a graph of l2e"):
        OnnxSession(model.SerializeToString(), device="cpu")


def test_nothing_is_printed(tiny_model_bytes, capfd, batch):
    ask(OnnxSession(tiny_model_bytes, device="cpu"), batch)
    with pytest.raises(CorruptFileError):
        OnnxSession(b"junk", device="cpu")
    assert capfd.readouterr() == ("", "")
