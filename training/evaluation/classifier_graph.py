"""The classifier of a bundle without its explainer, as a graph for the same session."""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

ROWS = 4_096  # more than a run of the graph ever has
_EMPTY = {"weights": (ROWS, 0), "label_probs": (ROWS, 0, 5)}


def classifier_alone(model: bytes) -> bytes:
    """Cuts a bundle's graph down to what its logits depend on.

    The inputs stay, though `target` and `explain` are read by nothing any more, and so do the
    outputs, of which those of the explanation are empty constants: so `OnnxSession` opens the graph
    with the same options as the whole one, and nothing but the classifier is computed.

    Values are named by their places, for the exporter counts those of the explainer, too: bundles
    that differ in nothing but the explainer give the same bytes.

    Args:
        model: the graph of a bundle.

    Returns:
        The serialised graph: logits [B, C], weights [ROWS, 0], label_probs [ROWS, 0, 5].

    Raises:
        ValueError: a node of the classifier has a graph of its own, as a loop or a choice has.
    """
    found = onnx.load_model_from_string(model)
    graph = found.graph
    nodes, names = _in_order(graph, "logits")
    weights = []
    for tensor in graph.initializer:
        if tensor.name in names:
            weights.append(onnx.TensorProto.FromString(tensor.SerializeToString()))
            weights[-1].name = names[tensor.name]
    weights.sort(key=lambda tensor: tensor.name)
    [logits] = [value for value in graph.output if value.name == "logits"]
    empty = [helper.make_tensor(name, TensorProto.FLOAT, dims, []) for name, dims in _EMPTY.items()]
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)
        for name, dims in _EMPTY.items()
    ]
    small = onnx.ModelProto(ir_version=found.ir_version)
    small.opset_import.extend(found.opset_import)
    small.graph.CopyFrom(
        helper.make_graph(
            nodes, "classifier", list(graph.input), [logits, *outputs], [*weights, *empty]
        )
    )
    onnx.checker.check_model(small, full_check=True)
    return bytes(small.SerializeToString(deterministic=True))


def _in_order(graph: onnx.GraphProto, result: str) -> tuple[list[onnx.NodeProto], dict[str, str]]:
    """Returns copies of the nodes that a result depends on, and their values' new names.

    Both follow from what is computed: a node stands behind those of its first input, its second
    input and so on. Inputs of the graph and the result keep their names.

    Raises:
        ValueError: a node has a branch, whose values are named outside of what is followed here.
    """
    makers = {name: node for node in graph.node for name in node.output}
    kept = {value.name for value in graph.input} | {result}
    nodes: list[onnx.NodeProto] = []
    names = {"": ""}  # of an input that is left out
    waiting = [result]
    while waiting:
        name = waiting[-1]
        node = makers.get(name)
        before = [] if node is None else [each for each in node.input if each not in names]
        if name not in names and before:
            waiting.append(before[0])
            continue
        waiting.pop()
        if name in names:
            continue
        if node is None:
            names[name] = name if name in kept else f"value_{len(names)}"
            continue
        if any(attribute.type == onnx.AttributeProto.GRAPH for attribute in node.attribute):
            raise ValueError(f"the classifier has a node {node.op_type} with a graph of its own")
        copy = onnx.NodeProto.FromString(node.SerializeToString())
        copy.name = f"node_{len(nodes)}"
        for place, each in enumerate(node.output):
            if not each:  # left out, as an input may be
                continue
            names[each] = each if each in kept else f"value_{len(names)}"
            copy.output[place] = names[each]
        for place, each in enumerate(node.input):
            copy.input[place] = names[each]
        nodes.append(copy)
    return nodes, names
