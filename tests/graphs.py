"""What tests ask of ONNX graphs."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy.typing as npt
import onnx
import onnxruntime as ort

OUTPUTS = ["logits", "weights", "label_probs"]


def run(
    model: bytes, feed: Mapping[str, npt.NDArray[Any]], names: Sequence[str]
) -> list[npt.NDArray[Any]]:
    """The outputs of these names, on one thread of the processor."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(model, options, ["CPUExecutionProvider"])
    found: list[npt.NDArray[Any]] = session.run([*names], dict(feed))
    return found


def every_graph(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and those of its branches."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from every_graph(attribute.g)
