"""A graph that explains another class without running the classifier again."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from models.graph import split
from models.retarget import retargetable
from models.session import OnnxSession
from tests.graphs import OUTPUTS, run


@pytest.fixture(scope="module")
def parts(tiny_model_bytes):
    return retargetable(tiny_model_bytes)


def the_same(one, other):
    return [part.tobytes() for part in one] == [part.tobytes() for part in other]


def test_what_does_not_depend_on_the_target_is_given_out(parts, tiny_values, feed):
    assert parts.states == ("state.logits", "state.present")
    logits, present = run(parts.whole, {**feed, "explain": np.array(True)}, [*parts.states])
    table = np.array(list(tiny_values.values()), np.float32)
    assert np.array_equal(present, table[feed["input_ids"]] * feed["attention_mask"])
    assert logits[:, 1].tolist() == pytest.approx(present.sum(1).tolist())


@pytest.mark.parametrize("explain", [True, False])
def test_other_outputs_stay(explain, parts, tiny_model_bytes, feed):
    fed = {**feed, "explain": np.array(explain)}
    assert the_same(run(parts.whole, fed, OUTPUTS), run(tiny_model_bytes, fed, OUTPUTS))


@pytest.mark.parametrize("target", [-1, 0, 1])
def test_the_rest_explains_as_the_whole(target, parts, feed):
    explain = {**feed, "explain": np.array(True)}
    states = dict(zip(parts.states, run(parts.whole, explain, [*parts.states]), strict=True))
    targets = np.full(5, target)
    expected = run(parts.whole, {**explain, "target": targets}, OUTPUTS[1:])
    assert the_same(run(parts.rest, {**states, "target": targets}, OUTPUTS[1:]), expected)
    for row in range(5):
        alone = {name: values[row : row + 1] for name, values in states.items()}
        found = run(parts.rest, {**alone, "target": targets[:1]}, OUTPUTS[1:])
        assert the_same(found, [values[row : row + 1] for values in expected])


def test_the_rest_holds_no_more_than_it_needs(parts):
    rest = onnx.load_model_from_string(parts.rest)
    results = {name for node in rest.graph.node for name in node.output}
    assert results.isdisjoint({"value", "mask", "sum", "zeros"})
    assert {"predicted", "sign", "signed", "label_probs_on"} <= results
    assert "values" not in {weight.name for weight in rest.graph.initializer}
    assert [value.name for value in rest.graph.input] == [*parts.states, "target"]


def changed(tiny_model_bytes, change):
    """The tiny graph with another branch that explains."""
    model = onnx.load_model_from_string(tiny_model_bytes)
    [choice] = [node for node in model.graph.node if node.op_type == "If"]
    [branch] = [part.g for part in choice.attribute if part.name == "then_branch"]
    change(model.graph, branch)
    return model.SerializeToString()


def with_a_branch_that(kind, tiny_model_bytes):
    """The tiny graph, whose branch computes more, in numbers of this type."""

    def change(graph, branch):
        [signed] = [node for node in graph.node if node.output[0] == "signed"]
        graph.node.remove(signed)
        moved = [
            helper.make_node("Relu", ["present"], ["positive"]),
            helper.make_node("Cast", ["positive"], ["cast"], to=kind),
            helper.make_node("Cast", ["sign_column"], ["cast_sign"], to=kind),
            helper.make_node("Mul", ["cast", "cast_sign"], ["cast_signed"]),
            helper.make_node("Cast", ["cast_signed"], ["signed"], to=TensorProto.FLOAT),
        ]
        for place, node in enumerate(moved):
            branch.node.insert(place, node)

    return changed(tiny_model_bytes, change)


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT32])
def test_states_of_the_branch(kind, tiny_model_bytes, feed):
    """Given out in float32 alone; the branch that does not explain gives something, too."""
    model = with_a_branch_that(kind, tiny_model_bytes)
    parts = retargetable(model)
    assert parts is not None
    first = "state.cast" if kind == TensorProto.FLOAT else "state.positive"
    assert parts.states == (first, "state.logits")
    fed = {**feed, "explain": np.array(True)}
    states = dict(zip(parts.states, run(parts.whole, fed, [*parts.states]), strict=True))
    assert (states[first] > 0).any()
    assert the_same(
        run(parts.rest, {**states, "target": feed["target"]}, OUTPUTS[1:]),
        run(model, fed, OUTPUTS[1:]),
    )
    fed["explain"] = np.array(False)
    assert the_same(run(parts.whole, fed, OUTPUTS), run(model, fed, OUTPUTS))


def test_sizes_are_computed_again(tiny_model_bytes, feed):
    """A batch's are not those of one of its rows."""

    def change(graph, branch):
        moved = [
            helper.make_node("Shape", ["present"], ["size"]),
            helper.make_node("Cast", ["size"], ["float_size"], to=TensorProto.FLOAT),
            helper.make_node("ReduceSum", ["float_size"], ["sum_of_sizes"], keepdims=0),
        ]
        for place, node in enumerate(moved):
            branch.node.insert(place, node)
        [last] = [node for node in branch.node if node.output[0] == "weights_on"]
        last.input[1] = "sum_of_sizes"

    parts = retargetable(changed(tiny_model_bytes, change))
    assert parts is not None
    assert parts.states == ("state.logits", "state.present")
    fed = {**feed, "explain": np.array(True)}
    states = dict(zip(parts.states, run(parts.whole, fed, [*parts.states]), strict=True))
    one = {name: values[:1] for name, values in (states | feed).items()}
    alone = {name: one[name] for name in feed}
    assert the_same(
        run(parts.rest, {name: one[name] for name in (*parts.states, "target")}, OUTPUTS[1:]),
        run(parts.whole, {**alone, "explain": np.array(True)}, OUTPUTS[1:]),
    )


def test_half_precision_is_run_again(tiny_model_bytes, feed):
    model = with_a_branch_that(TensorProto.FLOAT16, tiny_model_bytes)
    assert retargetable(model) is None
    session = OnnxSession(model, device="cpu", threads=1)
    assert session.run(*feed.values(), explain=True, keep=True).states == {}
    with pytest.raises(ValueError, match="gives no states"):
        session.retarget({}, feed["target"])


def test_without_a_choice_there_is_nothing_to_take_apart(tiny_model_bytes):
    assert retargetable(split(tiny_model_bytes, explain=True)) is None


def with_weights_from(name, tiny_model_bytes):
    """The tiny graph, whose weights are turned by an input of whole numbers and the target."""

    def change(graph, branch):
        moved = [
            helper.make_node("Unsqueeze", ["target", "last_axis"], ["whom"]),
            helper.make_node("Add", [name, "whom"], ["turned"]),
            helper.make_node("Cast", ["turned"], ["float_turned"], to=TensorProto.FLOAT),
        ]
        for place, node in enumerate(moved):
            branch.node.insert(place, node)
        [last] = [node for node in branch.node if node.output[0] == "weights_on"]
        last.input[1] = "float_turned"

    return changed(tiny_model_bytes, change)


def test_the_rest_may_ask_for_the_mask(tiny_model_bytes, feed):
    session = OnnxSession(with_weights_from("attention_mask", tiny_model_bytes), device="cpu")
    ids, mask, target = feed.values()
    other = np.array([1, 0, 0, 1, 1])
    states = session.run(ids, mask, target, explain=True, keep=True).states
    assert [*states] == ["state.logits", "state.present", "state.attention_mask"]
    expected = session.run(ids, mask, other, explain=True)
    found = session.retarget(states, other)
    assert the_same(found, [expected.weights, expected.label_probs])


def turned(tiny_model_bytes):
    """A graph of which a state is [T, B]."""

    def change(graph, branch):
        moved = [
            helper.make_node("Transpose", ["present"], ["turned"]),
            helper.make_node("Transpose", ["sign_column"], ["turned_sign"]),
            helper.make_node("Mul", ["turned", "turned_sign"], ["turned_signed"]),
            helper.make_node("Transpose", ["turned_signed"], ["signed"]),
        ]
        [signed] = [node for node in graph.node if node.output[0] == "signed"]
        graph.node.remove(signed)
        for place, node in enumerate(moved):
            branch.node.insert(place, node)

    return changed(tiny_model_bytes, change)


def summed(tiny_model_bytes):
    """A graph of which a state is of all rows together."""

    def change(graph, branch):
        branch.node.insert(0, helper.make_node("ReduceMax", ["signed"], ["largest"], keepdims=0))
        branch.node.insert(1, helper.make_node("ReduceMax", ["present"], ["most"], keepdims=0))
        branch.node.insert(2, helper.make_node("Add", ["largest", "most"], ["both"]))
        [last] = [node for node in branch.node if node.output[0] == "weights_on"]
        last.input[1] = "both"

    return changed(tiny_model_bytes, change)


def later(tiny_model_bytes):
    """A graph whose weights are made behind the choice."""

    def change(graph, branch):
        [choice] = [node for node in graph.node if node.op_type == "If"]
        choice.output[0] = "half_weights"
        graph.node.append(helper.make_node("Mul", ["half_weights", "two"], ["weights"]))

    return changed(tiny_model_bytes, change)


@pytest.mark.parametrize("make", [turned, summed, later])
def test_a_graph_that_does_not_hold_in_parts_is_left_whole(make, tiny_model_bytes, feed, caplog):
    model = make(tiny_model_bytes)
    assert retargetable(model) is not None
    session = OnnxSession(model, device="cpu", threads=1)
    assert not session.retargets
    [line] = caplog.messages
    assert line.startswith("the graph is not cut, so that some windows are run twice: ")
    assert "\n" not in line
    found = session.run(*feed.values(), explain=True, keep=True)
    assert found.states == {}
    fed = {**feed, "explain": np.array(True)}
    assert the_same([found.logits, found.weights, found.label_probs], run(model, fed, OUTPUTS))
    with pytest.raises(ValueError, match="gives no states"):
        session.retarget({}, feed["target"])


def test_what_begins_with_the_ids_is_left_whole(tiny_model_bytes):
    model = with_weights_from("input_ids", tiny_model_bytes)
    assert retargetable(model) is None
    assert not OnnxSession(model, device="cpu").retargets


@pytest.mark.parametrize("cut", [1, 7, 100, 2_000])
def test_a_file_that_is_cut_off(cut, tiny_model_bytes):
    with pytest.raises(ValueError, match="it "):
        retargetable(tiny_model_bytes[:-cut])


@pytest.mark.parametrize("junk", [b"", b"junk", b"\x08" * 1000, b"\x3a\x02\x3a"])
def test_no_model(junk):
    with pytest.raises(ValueError, match="it "):
        retargetable(junk)
