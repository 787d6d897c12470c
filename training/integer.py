"""A graph of l2e with 8-bit integers: static scales, found on texts when it is exported.

Each linear layer over tokens multiplies unsigned 8-bit activations with signed 8-bit weights. A
weight matrix has one scale for each of its outputs; an activation has one scale and one zero point,
fixed here. Scales that follow the batch, as in ONNX Runtime's dynamic quantisation, are ruled out:
the same text would get another answer in other company, pads included. Behind the explainer's last
block all stays in float32: it is small, and what it says is what is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from models.device import available_threads
from models.graph import split
from models.text import FloatArray, TextEncoder

EXPLAINER: Final = "explainer."  # what the names of its weights begin with
HEADS: Final = tuple(
    f"{EXPLAINER}{name}." for name in ("interact", "regression", "ranking", "labelling")
)
SCALE: Final = ".scale"  # what follows a weight's name in the name of its scales
CLIPPED: Final = 1e-5  # share of an activation's values at either end that is cut off
_EXTREMES: Final = 4096  # values that are kept at either end to find where to cut


class _Layer(NamedTuple):
    """A linear layer as the exporter writes it: MatMul(activation, Transpose(Cast(weight)))."""

    matmul: onnx.NodeProto
    transpose: onnx.NodeProto
    cast: onnx.NodeProto

    @property
    def activation(self) -> str:
        return str(self.matmul.input[0])

    @property
    def weight(self) -> str:
        return str(self.cast.input[0])


class Range(NamedTuple):
    """What an activation is expected to lie in; both ends hold 0."""

    low: float
    high: float


def measure_ranges(model: bytes, encoder: TextEncoder, texts: Sequence[str]) -> dict[str, Range]:
    """Runs the graph on texts and notes what goes into its linear layers.

    Args:
        model: computes in float32, from `training.export.to_onnx`.
        encoder: of the bundle. Each window runs alone and without pads, so that only what a text
            itself brings counts.
        texts: for calibration, of the training data.

    Returns:
        By the activation's name; `CLIPPED` of the values lie outside at either end.

    Raises:
        ValueError: the classifier has no such layers.
    """
    proto = onnx.load_model_from_string(split(model, explain=True))
    layers = _layers(proto.graph)
    names = sorted({layer.activation for layer in layers})
    if all(layer.weight.startswith(EXPLAINER) for layer in layers):
        raise ValueError(
            "this classifier has no linear layers over tokens to quantise: export it as fp32"
        )
    for name in names:
        value = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        proto.graph.output.append(value)
    options = ort.SessionOptions()
    options.intra_op_num_threads = available_threads()
    session = ort.InferenceSession(
        proto.SerializeToString(), options, ["CPUExecutionProvider"], enable_fallback=0
    )
    found = {name: _Extremes() for name in names}
    [classes] = [
        value.type.tensor_type.shape.dim[1].dim_value
        for value in proto.graph.output
        if value.name == "logits"
    ]
    windows = (window for text in texts for window in encoder.encode(text).windows)
    for number, window in enumerate(windows):
        ids = window.input_ids[np.newaxis]
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        # Each class in turn: the explainer is asked about those that are not predicted, too.
        feed["target"] = np.array([number % classes])
        for name, values in zip(names, session.run(names, feed), strict=True):
            found[name].add(values)
    return {name: extremes.range() for name, extremes in found.items()}


class _Extremes:
    """The smallest and the largest of a stream of numbers."""

    def __init__(self) -> None:
        self.count = 0
        self.low: FloatArray = np.zeros(0)
        self.high: FloatArray = np.zeros(0)

    def add(self, values: FloatArray) -> None:
        flat = values.ravel()
        self.count += len(flat)
        self.low = _smallest(np.concatenate([self.low, flat]))
        self.high = -_smallest(-np.concatenate([self.high, flat]))

    def range(self) -> Range:
        cut = min(round(CLIPPED * self.count), _EXTREMES - 1)
        low, high = np.sort(self.low)[cut], np.sort(self.high)[-1 - cut]
        return Range(min(0.0, float(low)), max(0.0, float(high)))


def _smallest(values: FloatArray) -> FloatArray:
    if len(values) <= _EXTREMES:
        return values
    return np.partition(values, _EXTREMES)[:_EXTREMES]


def to_int8(model: bytes, ranges: Mapping[str, Range]) -> bytes:
    """Quantises the linear layers of a graph.

    Args:
        model: computes in float32, from `training.export.to_onnx`.
        ranges: from `measure_ranges` of this graph.

    Returns:
        The serialised graph. A quantised weight keeps its name and shape as int8 [outputs,
        inputs] and has float32 [outputs] beside it under its name and `SCALE`.
    """
    proto = onnx.load_model_from_string(model)
    graph = proto.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    before: dict[str, list[onnx.NodeProto]] = {}  # by the first output of the node that follows
    casts, quantised = set(), set()
    for layer in _layers(graph):
        added = before.setdefault(layer.matmul.output[0], [])
        if layer.activation not in quantised:
            quantised.add(layer.activation)
            added += _quantise_activation(graph, layer.activation, ranges[layer.activation])
        if layer.weight not in quantised:  # layers may share theirs, as ALBERT's do
            quantised.add(layer.weight)
            _quantise_weight(graph, stored[layer.weight])
        added.append(_dequantise_weight(layer))
        layer.matmul.input[0] = f"{layer.activation}.dequantised"
        casts.add(layer.cast.output[0])
    for part in reversed(_graphs(graph)):  # branches first: the nodes that hold them are copied
        nodes = []
        for node in part.node:
            if node.output[0] not in casts:
                nodes += [*before.get(node.output[0], ()), node]
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del part.node[:]
        part.node.extend(copies)
    onnx.checker.check_model(proto, full_check=True)
    return bytes(proto.SerializeToString(deterministic=True))


def dequantise(values: FloatArray, scales: FloatArray) -> FloatArray:
    """Returns the weight float32 [outputs, inputs] that int8 values and their scales stand for."""
    return np.asarray(values.astype(np.float32) * scales[:, np.newaxis])


def _graphs(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    """Returns a graph and those of its branches, each before its own branches."""
    found = [graph]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                found += _graphs(attribute.g)
    return found


def _layers(graph: onnx.GraphProto) -> list[_Layer]:
    graphs = _graphs(graph)
    makers = {name: node for part in graphs for node in part.node for name in node.output}
    stored = {tensor.name for tensor in graph.initializer}
    found = []
    for node in (node for part in graphs for node in part.node):
        transpose = makers.get(node.input[1]) if node.op_type == "MatMul" else None
        cast = makers.get(transpose.input[0]) if transpose is not None else None
        if transpose is None or cast is None:
            continue
        kinds, weight = (transpose.op_type, cast.op_type), cast.input[0]
        linear = kinds == ("Transpose", "Cast") and weight in stored
        if linear and not weight.startswith(HEADS):
            found.append(_Layer(node, transpose, cast))
    return found


def _quantise_activation(graph: onnx.GraphProto, name: str, limits: Range) -> list[onnx.NodeProto]:
    """Adds scale and zero point; returns the two nodes between an activation and its readers."""
    scale = np.float32((limits.high - limits.low) / 255 or 1.0)
    zero = np.uint8(np.clip(np.rint(-limits.low / scale), 0, 255))
    parameters = _parameters(name)
    for value, parameter in zip((scale, zero), parameters, strict=True):
        graph.initializer.append(numpy_helper.from_array(np.array(value), parameter))
    between, result = f"{name}.quantised", f"{name}.dequantised"
    return [
        helper.make_node("QuantizeLinear", [name, *parameters], [between]),
        helper.make_node("DequantizeLinear", [between, *parameters], [result]),
    ]


def _quantise_weight(graph: onnx.GraphProto, tensor: onnx.TensorProto) -> None:
    """Stores a weight as int8, its scales and zero points beside it."""
    weight = numpy_helper.to_array(tensor).astype(np.float32)
    scales = (np.abs(weight).max(axis=1) / 127).astype(np.float32)
    scales[scales == 0] = 1.0
    values = np.rint(weight / scales[:, np.newaxis]).astype(np.int8)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    zeros = np.zeros(len(scales), np.int8)
    for value, parameter in zip((scales, zeros), _parameters(tensor.name), strict=True):
        graph.initializer.append(numpy_helper.from_array(value, parameter))


def _dequantise_weight(layer: _Layer) -> onnx.NodeProto:
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
