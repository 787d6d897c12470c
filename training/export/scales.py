"""8-bit scales for what goes into the linear layers of a graph, chosen on texts.

Each layer gets the scale that leaves least of an error in its output. Where some channels of an
activation are far larger than the others, one scale for all has few steps left for these; then the
channels are balanced first: divided by a factor each, by which the layer's weights are multiplied
(Xiao et al., ICML 2023, "SmoothQuant", section 4). Scales are fixed here. Ones that follow the
batch, as in ONNX Runtime's dynamic quantisation, are ruled out: the same text would get another
answer in other company, pads included.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from models.device import available_threads
from models.graph import split
from models.text import FloatArray, TextEncoder
from training.runtime import progress

EXPLAINER: Final = "explainer."  # what the names of its weights begin with
HEADS: Final = tuple(
    f"{EXPLAINER}{name}." for name in ("interact", "regression", "ranking", "labelling")
)
ROWS: Final = 2_048  # tokens of the texts on which a layer's scale is chosen
CUT: Final = (0.0, 1e-5, 1e-4)  # shares of the values that may be cut off at either end
SMOOTH: Final = (0.5, 0.75)  # how much of a channel's size goes over to the weights
LEVEL: Final = (1.5, 3.0)  # or: channels larger than so many medians are brought down to them
LEAST: Final = 0.1  # of the median that a channel counts for, however small it was on the texts
# Balancing takes a node of its own, so it must leave at most this share of the error.
WORTH: Final = 0.8
NARROW: Final = 16  # outputs below which a layer is not worth the nodes around it


class Layer(NamedTuple):
    """A linear layer as the exporter writes it: MatMul(activation, Transpose(Cast(weight)))."""

    matmul: onnx.NodeProto
    transpose: onnx.NodeProto
    cast: onnx.NodeProto

    @property
    def activation(self) -> str:
        """The name of what goes in."""
        return str(self.matmul.input[0])

    @property
    def weight(self) -> str:
        """The name of the matrix."""
        return str(self.cast.input[0])


class Scale(NamedTuple):
    """How an activation becomes bytes.

    Attributes:
        low: of the range that they cover, after balancing; at most 0.
        high: likewise, at least 0.
        balance: float32 [inputs], what channels are divided by before; None leaves them.
    """

    low: float
    high: float
    balance: FloatArray | None = None

    @property
    def step(self) -> np.float32:
        """What the bytes count."""
        return np.float32((self.high - self.low) / 255 or 1.0)

    @property
    def zero(self) -> np.uint8:
        """The byte that stands for 0."""
        return np.uint8(np.clip(np.rint(-self.low / self.step), 0, 255))

    def rounded(self, values: FloatArray) -> FloatArray:
        """Returns what is left of balanced values [..., inputs] after they were bytes."""
        zero = float(self.zero)
        found: FloatArray = (np.clip(np.rint(values / self.step) + zero, 0, 255) - zero) * self.step
        return found


class Bytes(NamedTuple):
    """A weight as bytes.

    Attributes:
        values: int8 [outputs, inputs].
        steps: float32 [outputs, 1], what they count.
    """

    values: NDArray[np.int8]
    steps: FloatArray

    @classmethod
    def of(cls, weight: FloatArray) -> Bytes:
        """Rounds a weight [outputs, inputs], each output with a step of its own."""
        steps: FloatArray = (np.abs(weight).max(axis=1, keepdims=True) / 127).astype(np.float32)
        steps[steps == 0] = 1.0
        return cls(np.rint(weight / steps).astype(np.int8), steps)

    def weight(self) -> FloatArray:
        """Returns what they stand for, float32 [outputs, inputs]."""
        found: FloatArray = self.values.astype(np.float32) * self.steps
        return found


def linear_layers(graph: onnx.GraphProto) -> list[Layer]:
    """Returns the linear layers over tokens; not narrow ones, nor the explainer's heads."""
    graphs = with_branches(graph)
    makers = {name: node for part in graphs for node in part.node for name in node.output}
    wide = {
        tensor.name
        for tensor in graph.initializer
        if len(tensor.dims) == 2 and tensor.dims[0] >= NARROW
    }
    found = []
    for node in (node for part in graphs for node in part.node):
        transpose = makers.get(node.input[1]) if node.op_type == "MatMul" else None
        cast = makers.get(transpose.input[0]) if transpose is not None else None
        if transpose is None or cast is None:
            continue
        kinds, weight = (transpose.op_type, cast.op_type), cast.input[0]
        linear = kinds == ("Transpose", "Cast") and weight in wide
        if linear and not weight.startswith(HEADS):
            found.append(Layer(node, transpose, cast))
    return found


def with_branches(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    """Returns a graph and those of its branches, each before its own branches."""
    found = [graph]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                found += with_branches(attribute.g)
    return found


def choose_scales(model: bytes, encoder: TextEncoder, texts: Sequence[str]) -> dict[str, Scale]:
    """Runs the graph on texts and chooses the scale of what goes into each of its linear layers.

    Args:
        model: computes in float32, from `training.export.graph.to_onnx`.
        encoder: of the bundle. Each window runs alone and without pads, so that only what a text
            itself brings counts.
        texts: for calibration, of the training data.

    Returns:
        By the activation's name.

    Raises:
        ValueError: the classifier has no such layers.
    """
    proto = onnx.load_model_from_string(split(model, explain=True))
    layers = linear_layers(proto.graph)
    if all(layer.weight.startswith(EXPLAINER) for layer in layers):
        raise ValueError(
            "this classifier has no linear layers over tokens to quantise: export it as fp32"
        )
    readers: dict[str, list[str]] = defaultdict(list)  # weights by what they are multiplied with
    for layer in layers:
        readers[layer.activation].append(layer.weight)
    used = [weight for weights in readers.values() for weight in set(weights)]
    seen = _draw_rows(proto, sorted(readers), encoder, texts)
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    found = {}
    for name in progress(readers, total=len(readers), what="8-bit scales"):
        weights = [numpy_helper.to_array(stored[each]).astype(np.float32) for each in readers[name]]
        # A weight that several layers share has one balance at most, and they may differ.
        alone = all(used.count(each) == 1 for each in readers[name])
        found[name] = choose_scale(seen[name], np.concatenate(weights), balanced=alone)
    return found


def choose_scale(rows: FloatArray, weight: FloatArray, *, balanced: bool = True) -> Scale:
    """Chooses the scale that leaves the smallest error in a layer's output.

    A token's error counts beside how much its output varies, for mostly a norm over channels
    follows: a few tokens, such as `[SEP]`, have outputs many times as large as all others.

    Args:
        rows: float32 [tokens, inputs], what goes in.
        weight: float32 [outputs, inputs], rounded to bytes with a step for each output.
        balanced: whether channels may be balanced.

    Raises:
        ValueError: what goes in is not finite.
    """
    exact = rows @ weight.T
    if not np.isfinite(exact).all():
        raise ValueError("a layer's input is infinite or no number on the texts for calibration")
    spread = exact.var(axis=1)
    room = spread + (np.median(spread) or 1.0)
    plain: list[tuple[float, Scale]] = []
    other: list[tuple[float, Scale]] = []
    for balance in (None, *(_balances(rows, weight) if balanced else ())):
        inputs = rows if balance is None else rows / balance
        matrix = Bytes.of(weight if balance is None else weight * balance).weight()
        ends = np.quantile(inputs, (*CUT, *(1 - cut for cut in CUT))).reshape(2, -1).T
        for low, high in ends.tolist():
            scale = Scale(min(0.0, low), max(0.0, high), balance)
            gap = scale.rounded(inputs) @ matrix.T - exact
            error = float(np.mean(np.square(gap).mean(axis=1) / room)) ** 0.5
            (plain if balance is None else other).append((error, scale))
    best = min(plain, key=lambda one: one[0])
    rival = min(other, key=lambda one: one[0], default=best)
    return rival[1] if rival[0] < WORTH * best[0] else best[1]


def _balances(rows: FloatArray, weight: FloatArray) -> Iterator[FloatArray]:
    """Yields factors to try, all above 0.

    A channel counts for a tenth of the median at least: one that was silent on these texts may
    speak on others, and would be cut off.
    """
    sizes, weights = np.abs(rows).max(axis=0), np.abs(weight).max(axis=0)
    if not sizes.any() or not weights.any():
        return
    sizes = np.maximum(sizes, LEAST * np.median(sizes[sizes > 0]))
    weights = np.maximum(weights, LEAST * np.median(weights[weights > 0]))
    for share in SMOOTH:
        factors = sizes**share / weights ** (1 - share)
        yield factors / np.exp(np.log(factors).mean())
    for level in LEVEL:
        yield np.maximum(1.0, sizes / (level * np.median(sizes)))


def _draw_rows(
    proto: onnx.ModelProto, names: Sequence[str], encoder: TextEncoder, texts: Sequence[str]
) -> dict[str, FloatArray]:
    """Runs texts and keeps, of each activation, about `ROWS` tokens: float32 [tokens, channels].

    Each window gives as many.
    """
    for name in names:
        proto.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    options = ort.SessionOptions()
    options.intra_op_num_threads = available_threads()
    session = ort.InferenceSession(
        proto.SerializeToString(), options, ["CPUExecutionProvider"], enable_fallback=0
    )
    [classes] = [
        value.type.tensor_type.shape.dim[1].dim_value
        for value in proto.graph.output
        if value.name == "logits"
    ]
    windows = [window for text in texts for window in encoder.encode(text).windows]
    rng = np.random.default_rng(0)
    found: dict[str, list[FloatArray]] = {name: [] for name in names}
    each = -(-ROWS // max(1, len(windows)))
    for number, window in enumerate(progress(windows, total=len(windows), what="activations")):
        ids = window.input_ids[np.newaxis]
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        # Each class in turn: the explainer is asked about those that are not predicted, too.
        feed["target"] = np.array([number % classes])
        places = rng.random(each)  # as shares: the explainer's activations have label tokens, too
        for name, values in zip(names, session.run(names, feed), strict=True):
            rows = values.reshape(-1, values.shape[-1])
            found[name].append(rows[(places * len(rows)).astype(np.int64)])
    return {name: np.concatenate(rows) for name, rows in found.items()}
