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

    Args:
        model: the graph of a bundle.

    Returns:
        The serialised graph: logits [B, C], weights [ROWS, 0], label_probs [ROWS, 0, 5].
    """
    found = onnx.load_model_from_string(model)
    graph = found.graph
    makers = {name: node for node in graph.node for name in node.output}
    needed: set[str] = set()
    names = ["logits"]
    while names:
        name = names.pop()
        if name not in needed:
            needed.add(name)
            names += [each for each in makers[name].input if each] if name in makers else []
    nodes = [node for node in graph.node if needed & set(node.output)]
    weights = [tensor for tensor in graph.initializer if tensor.name in needed]
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
