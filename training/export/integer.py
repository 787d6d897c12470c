"""A graph of l2e with 8-bit integers: static scales, found on texts when it is exported.

Each linear layer over tokens multiplies unsigned 8-bit activations with signed 8-bit weights. A
weight matrix has one scale for each of its outputs; an activation has the one that
`training.export.scales` chose, and its channels may be balanced. Behind the explainer's last block
all stays in float32: it is small, and what it says is what is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import onnx
from onnx import helper, numpy_helper

from models.text import FloatArray
from training.export.scales import Bytes, Layer, Scale, linear_layers, with_branches

SCALE: Final = ".scale"  # what follows a weight's name in the name of its scales
# And an activation's in that of what its channels are multiplied by, one over its balance.
FACTORS: Final = ".factors"


def to_int8(model: bytes, scales: Mapping[str, Scale]) -> bytes:
    """Quantises the linear layers of a graph.

    Args:
        model: computes in float32, from `training.export.graph.to_onnx`.
        scales: of `training.export.scales.choose_scales` for this graph.

    Returns:
        The serialised graph. A quantised weight keeps its name and shape as int8 [outputs,
        inputs] and has float32 [outputs] beside it under its name and `SCALE`;
        `dequantised_weights` gives it back.

    Raises:
        ValueError: layers that share a weight balance their channels differently.
    """
    proto = onnx.load_model_from_string(model)
    graph = proto.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    before: dict[str, list[onnx.NodeProto]] = {}  # by the first output of the node that follows
    casts, seen = set(), set()
    quantised: dict[str, FloatArray | None] = {}  # by the name of a weight, how it is balanced
    for layer in linear_layers(graph):
        scale = scales[layer.activation]
        added = before.setdefault(layer.matmul.output[0], [])
        if layer.activation not in seen:
            seen.add(layer.activation)
            added += _quantise_activation(graph, layer.activation, scale)
        if layer.weight not in quantised:  # layers may share theirs, as ALBERT's do
            quantised[layer.weight] = scale.balance
            _quantise_weight(graph, stored[layer.weight], scale.balance)
        elif quantised[layer.weight] is not scale.balance:
            raise ValueError(f"{layer.weight} is shared and cannot be balanced in several ways")
        added.append(_dequantise_weight(layer))
        layer.matmul.input[0] = f"{layer.activation}.dequantised"
        casts.add(layer.cast.output[0])
    for part in reversed(
        with_branches(graph)
    ):  # branches first: the nodes that hold them are copied
        nodes = []
        for node in part.node:
            if node.output[0] not in casts:
                nodes += [*before.get(node.output[0], ()), node]
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del part.node[:]
        part.node.extend(copies)
    onnx.checker.check_model(proto, full_check=True)
    return bytes(proto.SerializeToString(deterministic=True))


def dequantised_weights(graph: onnx.GraphProto) -> dict[str, FloatArray]:
    """Returns the weights that the bytes of a graph stand for.

    Returns:
        By the name of each int8 weight, float32 [outputs, inputs].
    """
    stored = {tensor.name: tensor for tensor in graph.initializer}
    nodes = [node for part in with_branches(graph) for node in part.node]
    makers = {name: node for node in nodes for name in node.output}

    def source(name: str, *kinds: str) -> str:
        """Goes back through nodes of these kinds, to what they were made from."""
        node = makers.get(name)
        return source(node.input[0], *kinds) if node and node.op_type in kinds else name

    found = {}
    for node in nodes:
        if node.op_type != "MatMul":
            continue
        name = source(node.input[1], "DequantizeLinear", "Transpose")
        if name + SCALE not in stored:
            continue
        steps = numpy_helper.to_array(stored[name + SCALE])[:, np.newaxis]
        found[name] = Bytes(numpy_helper.to_array(stored[name]), steps).weight()
        balanced = makers.get(source(node.input[0], "DequantizeLinear", "QuantizeLinear"))
        if balanced is not None and balanced.input[-1].endswith(FACTORS):
            found[name] *= numpy_helper.to_array(stored[balanced.input[-1]])
    return found


def _quantise_activation(graph: onnx.GraphProto, name: str, scale: Scale) -> list[onnx.NodeProto]:
    """Adds scale and zero point; returns the nodes between an activation and its readers."""
    nodes, source = [], name
    if scale.balance is not None:
        factors = (1 / scale.balance).astype(np.float32)  # to multiply takes less than to divide
        graph.initializer.append(numpy_helper.from_array(factors, name + FACTORS))
        source = f"{name}.balanced"
        nodes.append(helper.make_node("Mul", [name, name + FACTORS], [source]))
    parameters = _parameters(name)
    for value, parameter in zip((scale.step, scale.zero), parameters, strict=True):
        graph.initializer.append(numpy_helper.from_array(np.array(value), parameter))
    between, result = f"{name}.quantised", f"{name}.dequantised"
    return [
        *nodes,
        helper.make_node("QuantizeLinear", [source, *parameters], [between]),
        helper.make_node("DequantizeLinear", [between, *parameters], [result]),
    ]


def _quantise_weight(
    graph: onnx.GraphProto, tensor: onnx.TensorProto, balance: FloatArray | None
) -> None:
    """Stores a weight as int8, its scales and zero points beside it."""
    weight: FloatArray = numpy_helper.to_array(tensor).astype(np.float32)
    if balance is not None:
        weight = weight * balance
    found = Bytes.of(weight)
    tensor.CopyFrom(numpy_helper.from_array(found.values, tensor.name))
    zeros = np.zeros(len(found.values), np.int8)
    for value, parameter in zip((found.steps[:, 0], zeros), _parameters(tensor.name), strict=True):
        graph.initializer.append(numpy_helper.from_array(np.array(value), parameter))


def _dequantise_weight(layer: Layer) -> onnx.NodeProto:
    """Returns the node that gives a weight back to its layer as float32.

    Scales lie behind the Transpose, which a runtime folds away, so that it finds the pattern it
    knows: DequantizeLinear before MatMul.
    """
    weight, source = layer.weight, layer.transpose.output[0]
    layer.transpose.input[0] = weight
    layer.matmul.input[1] = f"{source}.dequantised"
    return helper.make_node(
        "DequantizeLinear", [source, *_parameters(weight)], [layer.matmul.input[1]], axis=1
    )


def _parameters(name: str) -> list[str]:
    """Names the scales and the zero points of what is quantised."""
    return [f"{name}{SCALE}", f"{name}.zero"]
