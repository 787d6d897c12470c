"""A graph of l2e in float16, for GPUs: matrices are multiplied in half precision.

Layer norms, softmax, sums and whatever gives an output of the graph (so the logits) stay in
float32: they add up many numbers or are compared with each other. A processor computes such a
graph too, by turning every number back and forth, and is slower for it.

Shapes are also computed as far as they are known, so that no number has to travel between
processor and GPU in the middle of a run: a run can then be recorded as a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxscript import ir, optimizer

from models.graph import split
from training.export.graph import branch, strip

_FULL: Final = ("LayerNormalization", "Softmax", "ReduceSum", "ReduceMean", "Constant")
# Masks are numbers like -3e38, for which float16 has no room; this is far below every score, and
# adding a score to it stays in range.
_LARGEST: Final = 3e4
_FOLDED: Final = 64  # largest constant that is computed here: shapes and scales, no weights


def to_half(model: bytes) -> bytes:
    """Rewrites a graph; weights keep their names, inputs and outputs their types.

    Args:
        model: computes in float32, from `training.export.graph.to_onnx`.

    Returns:
        The serialised graph.
    """
    folded = _fold(onnx.load_model_from_string(split(model, explain=True)))
    proto = onnx.shape_inference.infer_shapes(folded, strict_mode=True)
    kinds = {value.name: value.type.tensor_type.elem_type for value in _values(proto.graph)}
    _pad_floats(proto.graph, kinds)
    _Half(
        proto.graph, {name for name, kind in kinds.items() if kind == TensorProto.FLOAT}
    ).rewrite()
    strip(proto)
    branch(proto)
    onnx.checker.check_model(proto, full_check=True)
    return bytes(proto.SerializeToString(deterministic=True))


def _fold(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Computes small constants; weights are left alone, or they would lose their names."""

    def foldable(node: ir.Node) -> bool | None:
        weights = [
            value
            for value in node.inputs
            if value is not None and value.is_initializer() and value.dtype == ir.DataType.FLOAT16
        ]
        return False if weights else None

    known = onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)
    model = ir.from_proto(known)
    optimizer.fold_constants(
        model,
        onnx_shape_inference=True,
        input_size_limit=_FOLDED,
        output_size_limit=_FOLDED,
        should_fold=foldable,
    )
    optimizer.remove_unused_nodes(model)
    return ir.to_proto(model)


def _values(graph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    yield from (*graph.input, *graph.value_info, *graph.output)


def _pad_floats(graph: onnx.GraphProto, kinds: MutableMapping[str, int]) -> None:
    """Pads the attention mask as floats, since CUDA has no Pad of integers."""
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type != "Pad" or kinds.get(node.input[0]) != TensorProto.INT64:
            nodes.append(node)
            continue
        result = node.output[0]
        casts = {place: f"{result}.{place}" for place in (0, 2) if node.input[place:]}
        for place, name in casts.items():
            nodes.append(
                helper.make_node("Cast", [node.input[place]], [name], to=TensorProto.FLOAT)
            )
            node.input[place] = name
            kinds[name] = TensorProto.FLOAT
        node.output[0] = f"{result}.float"
        kinds[node.output[0]] = TensorProto.FLOAT
        nodes += [node, helper.make_node("Cast", [node.output[0]], [result], to=TensorProto.INT64)]
    _replace(graph, nodes)


class _Half:
    """The rewriting of one graph; `half` and `full` name each float value's form in either type."""

    def __init__(self, graph: onnx.GraphProto, floats: set[str]) -> None:
        self.graph, self.floats = graph, floats
        self.half: dict[str, str] = {}
        self.full: dict[str, str] = {}
        self.nodes: list[onnx.NodeProto] = []

    def rewrite(self) -> None:
        """Goes through the nodes in order, which is one in which they can be computed."""
        halves = set()
        for tensor in self.graph.initializer:
            if tensor.data_type == TensorProto.FLOAT16:
                halves.add(tensor.name)
            elif tensor.data_type == TensorProto.FLOAT:
                _bound(tensor)
                self.full[tensor.name] = tensor.name
        outputs = {value.name for value in self.graph.output}
        for node in self.graph.node:
            if node.op_type == "Cast" and node.input[0] in halves:
                self.half[node.output[0]] = node.input[0]  # back to float32 where it is needed
            elif node.op_type in _FULL or outputs & set(node.output):
                self._keep(node)
            elif not self.floats & set(node.output) and self._reads(node) <= 1:
                self._pass(node)
            else:
                self._halve(node)
        _replace(self.graph, self.nodes)

    def _reads(self, node: onnx.NodeProto) -> int:
        """Counts the float inputs."""
        return sum(name in self.half or name in self.full for name in node.input)

    def _pass(self, node: onnx.NodeProto) -> None:
        """Lets a node that gives no floats, such as IsNaN, read its only one as it is."""
        for place, name in enumerate(node.input):
            node.input[place] = self.half.get(name, self.full.get(name, name))
        self.nodes.append(node)

    def _keep(self, node: onnx.NodeProto) -> None:
        self._read(node, self.full, self.half, TensorProto.FLOAT, "fp32")
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                _bound(attribute.t)
            elif node.op_type == "Constant" and attribute.name == "value_float":
                attribute.f = float(np.clip(attribute.f, -_LARGEST, _LARGEST))
        self.full.update((name, name) for name in node.output if name in self.floats)
        self.nodes.append(node)

    def _halve(self, node: onnx.NodeProto) -> None:
        made = [name for name in node.output if name in self.floats]
        if made and node.op_type == "CastLike":
            # ONNX Runtime 1.24 loses track of types where it follows another value's.
            node.op_type = "Cast"
            del node.input[1:]
            node.attribute.append(helper.make_attribute("to", TensorProto.FLOAT16))
        self._read(node, self.half, self.full, TensorProto.FLOAT16, "fp16")
        if made and node.op_type == "Cast":
            [attribute] = [one for one in node.attribute if one.name == "to"]
            attribute.i = TensorProto.FLOAT16
        self.half.update((name, name) for name in made)
        self.nodes.append(node)

    def _read(
        self,
        node: onnx.NodeProto,
        wanted: MutableMapping[str, str],
        other: MutableMapping[str, str],
        kind: int,
        suffix: str,
    ) -> None:
        """Lets a node read its float inputs in one type, cast once for all that read them."""
        for place, name in enumerate(node.input):
            if name not in wanted and name in other:
                wanted[name] = f"{other[name]}.{suffix}"
                self.nodes.append(helper.make_node("Cast", [other[name]], [wanted[name]], to=kind))
            node.input[place] = wanted.get(name, name)


def _bound(tensor: onnx.TensorProto) -> None:
    """Brings constants into the range of float16; infinity is there already."""
    values = numpy_helper.to_array(tensor)
    if tensor.data_type == TensorProto.FLOAT and (np.abs(values) > _LARGEST).any():
        bounded = np.where(np.isfinite(values), np.clip(values, -_LARGEST, _LARGEST), values)
        tensor.CopyFrom(numpy_helper.from_array(bounded.astype(np.float32), tensor.name))


def _replace(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
