from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from models.bundle import CorruptFileError, MismatchError
from models.device import DEVICES, available_threads
from models.session import DeviceError, OnnxSession

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
OPENVINO = "OpenVINOExecutionProvider"


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


def test_several_threads_may_retarget_beside_runs(session, batch):
    ids, mask = batch
    states = session.run(ids, mask, np.array([-1, -1]), explain=True, keep=True).states
    expected = [ask(session, batch, (target, target)).weights.tolist() for target in (0, 1)]

    def work(number):
        target = np.full(2, number % 2)
        if number % 3:
            return session.retarget(states, target)[0].tolist()
        return session.run(ids, mask, target, explain=True, keep=True).weights.tolist()

    with ThreadPoolExecutor(4) as pool:
        for number, found in enumerate(pool.map(work, range(120))):
            assert found == expected[number % 2]


@pytest.mark.parametrize("name", [name for name in DEVICES if name not in ("auto", "cpu")])
def test_no_silent_fallback(name, tiny_model_bytes, session, batch):
    """Where the device works it gives the known answers; elsewhere it must not run at all."""
    try:
        other = OnnxSession(tiny_model_bytes, device=name, threads=1)
    except DeviceError as error:
        [line] = str(error).splitlines()
        assert f"device {name!r} does not work here" in line
        return
    assert (other.device, other.provider) == (name, OPENVINO if "openvino" in name else CUDA)
    for explain in (True, False):
        one, two = (ask(each, batch, (-1, 0), explain=explain) for each in (session, other))
        assert np.array_equal(one.logits, two.logits)
        assert np.array_equal(one.weights, two.weights)
        np.testing.assert_allclose(one.label_probs, two.label_probs, atol=1e-2)


def test_auto_says_why(tiny_model_bytes):
    session = OnnxSession(tiny_model_bytes)
    if CUDA not in ort.get_available_providers():
        assert (session.device, session.provider, session.precision) == ("cpu", CPU, None)
        assert session.device_reason.startswith(f"this ONNX Runtime has no {CUDA}")


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


def test_a_device_that_computes_in_less_may_be_further_off(tiny_golden):
    assert tiny_golden.allowed("fp32") == 1e-4
    assert tiny_golden.allowed("fp32", "bf16") == 0.2
    said = replace(tiny_golden, tolerance={"fp32": 1e-4, "int8": 0.3, "bf16": 0.05})
    assert said.allowed("fp32", "bf16") == 0.05
    assert said.allowed("int8", "bf16") == 0.3
    assert said.allowed("int8") == 0.3
