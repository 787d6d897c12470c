"""One graph with a choice, and the two without."""

import numpy as np
import onnx
import pytest
from onnx import helper

from models import SHIPPED, SHIPPED_INT8
from models.graph import is_quantized, split
from tests.graphs import OUTPUTS, run


@pytest.mark.parametrize("explain", [True, False])
def test_both_halves_answer_as_the_whole(explain, tiny_model_bytes, feed):
    names = OUTPUTS if explain else OUTPUTS[:1]
    whole = run(tiny_model_bytes, {**feed, "explain": np.array(explain)}, names)
    half = run(split(tiny_model_bytes, explain=explain), feed, names)
    assert [part.tobytes() for part in half] == [part.tobytes() for part in whole]


def test_graphs_in_8_bits_are_told_from_others(tiny_model_bytes):
    assert is_quantized((SHIPPED_INT8 / "model.onnx").read_bytes())
    assert not is_quantized((SHIPPED / "model.onnx").read_bytes())
    assert not is_quantized(tiny_model_bytes)
    with pytest.raises(ValueError, match=r"protobuf|cut off"):
        is_quantized(b"\x07 no model")


@pytest.mark.parametrize("explain", [True, False])
def test_a_half_has_no_control_flow_and_is_valid(explain, tiny_model_bytes):
    model = onnx.load_model_from_string(split(tiny_model_bytes, explain=explain))
    onnx.checker.check_model(model, full_check=True)
    assert "If" not in {node.op_type for node in model.graph.node}
    names = [value.name for value in model.graph.input]
    assert names == ["input_ids", "attention_mask", "target"]
    outputs = [value.name for value in model.graph.output]
    assert outputs == (OUTPUTS if explain else OUTPUTS[:1])
    whole = onnx.load_model_from_string(tiny_model_bytes)
    assert list(model.graph.initializer) == list(whole.graph.initializer)
    assert model.opset_import == whole.opset_import


def test_weights_of_the_branch_come_along(tiny_model_bytes):
    model = onnx.load_model_from_string(tiny_model_bytes)
    [choice] = [node for node in model.graph.node if node.op_type == "If"]
    [branch] = [part.g for part in choice.attribute if part.name == "then_branch"]
    inner = onnx.numpy_helper.from_array(np.zeros(1, np.float32), "of the branch")
    branch.initializer.append(inner)
    halves = {
        explain: onnx.load_model_from_string(split(model.SerializeToString(), explain=explain))
        for explain in (True, False)
    }
    found = {explain: half.graph.initializer[-1].name for explain, half in halves.items()}
    # Weights may stand before or after the nodes in a file.
    assert "of the branch" in {entry.name for entry in halves[True].graph.initializer}
    assert found[False] != "of the branch"


def test_a_graph_without_the_choice_is_refused(tiny_model_bytes):
    once = split(tiny_model_bytes, explain=True)
    with pytest.raises(ValueError, match="0 nodes `If` on the input `explain`"):
        split(once, explain=True)


def test_another_if_is_left_alone(tiny_model_bytes):
    model = onnx.load_model_from_string(tiny_model_bytes)
    [choice] = [node for node in model.graph.node if node.op_type == "If"]
    other = onnx.NodeProto()
    other.CopyFrom(choice)
    other.input[0] = "another"
    del other.output[:]
    other.output.extend(["more weights", "more probs"])
    model.graph.node.append(other)
    model.graph.input.append(helper.make_tensor_value_info("another", onnx.TensorProto.BOOL, []))
    half = onnx.load_model_from_string(split(model.SerializeToString(), explain=True))
    assert [node.input[0] for node in half.graph.node if node.op_type == "If"] == ["another"]


@pytest.mark.parametrize("cut", [1, 7, 100, 2_000])
def test_a_file_that_is_cut_off(cut, tiny_model_bytes):
    with pytest.raises(ValueError, match="it "):
        split(tiny_model_bytes[:-cut], explain=True)


@pytest.mark.parametrize("junk", [b"", b"junk", b"\x08" * 1000, b"\xff" * 40, b"\x3a\x02\x3a"])
def test_no_model(junk):
    with pytest.raises(ValueError, match="it "):
        split(junk, explain=False)
