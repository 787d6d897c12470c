"""A bundle's one graph as two without control flow: the label alone, and label and explanation.

On the CPU one graph serves both: its `If` on the input `explain` skips the explainer at no cost.
CUDA graphs allow no control flow, and OpenVINO's provider cannot load the `If`, so for them the
branch is moved into the graph when it is loaded, or left out. Weights are not changed.
"""

from typing import Final

from models.protobuf import Parts, bodies, fields, text, texts, with_length

# Numbers of fields in onnx.proto.
MODEL_GRAPH: Final = 7
NODE, INITIALIZER, INPUT, OUTPUT = 1, 5, 11, 12  # of a graph
_NAMED: Final = (2, 10, INPUT, OUTPUT)  # a branch's name, comment, inputs and outputs
NODE_INPUT, NODE_OUTPUT, OP_TYPE, ATTRIBUTE = 1, 2, 4, 5
ATTRIBUTE_NAME, ATTRIBUTE_GRAPH = 1, 6
VALUE_NAME: Final = 1


def split(model: bytes, *, explain: bool) -> bytes:
    """Return the graph with its choice made.

    Args:
        model: a serialised graph of l2e, with inputs input_ids, attention_mask, target, explain.
        explain: True gives inputs input_ids, attention_mask, target and outputs logits, weights,
            label_probs; False gives the output logits alone.

    Raises:
        ValueError: this is no ONNX model, or has no `If` on `explain`.
    """
    found = list(fields(memoryview(model)))
    graphs = [field for field in found if field.number == MODEL_GRAPH]
    if len(graphs) != 1:
        raise ValueError("it holds no graph")
    around = [field.whole for field in found if field.number != MODEL_GRAPH]
    decided = with_length(MODEL_GRAPH, *_decide(graphs[0].body, explain=explain))
    return b"".join([*around, *decided])


def is_quantized(model: bytes) -> bool:
    """Say whether a graph computes in 8 bits, in part at least.

    Args:
        model: any serialised graph.

    Raises:
        ValueError: this is no ONNX model.
    """
    return any(
        text(node, OP_TYPE) == "DequantizeLinear"
        for graph in bodies(memoryview(model), MODEL_GRAPH)
        for node in bodies(graph, NODE)
    )


def is_choice(node: memoryview) -> bool:
    """Whether a node is the `If` on the input `explain`."""
    return text(node, OP_TYPE) == "If" and text(node, NODE_INPUT) == "explain"


def branch(node: memoryview, name: str) -> memoryview:
    """The then_branch or else_branch of an `If`.

    Raises:
        ValueError: it has none.
    """
    for attribute in bodies(node, ATTRIBUTE):
        if text(attribute, ATTRIBUTE_NAME) == name:
            [found] = bodies(attribute, ATTRIBUTE_GRAPH)
            return found
    raise ValueError(f"its `If` has no {name}")


def outputs(graph: memoryview) -> list[str]:
    """The names of a graph's outputs."""
    return [text(value, VALUE_NAME) for value in bodies(graph, OUTPUT)]


def identity(source: str, result: str) -> bytes:
    """The node that gives a value a second name, as a field of a graph."""
    names = with_length(NODE_INPUT, source.encode()) + with_length(NODE_OUTPUT, result.encode())
    return b"".join(with_length(NODE, *names, *with_length(OP_TYPE, b"Identity")))


def _decide(graph: memoryview, *, explain: bool) -> Parts:
    parts: Parts = []
    choices = 0
    for field in fields(graph):
        if field.number == NODE and is_choice(field.body):
            choices += 1
            if explain:
                parts += _then(field.body)
        elif field.number == INPUT and text(field.body, VALUE_NAME) == "explain":
            continue
        elif field.number != OUTPUT or explain or text(field.body, VALUE_NAME) == "logits":
            parts.append(field.whole)
    if choices != 1:
        raise ValueError(f"it has {choices} nodes `If` on the input `explain` instead of one")
    return parts


def _then(node: memoryview) -> Parts:
    """Return the then-branch as fields of the graph around it; names are unique in both."""
    then = branch(node, "then_branch")
    moved = [field.whole for field in fields(then) if field.number not in _NAMED]
    outer = texts(node, NODE_OUTPUT)
    return [*moved, *(identity(*pair) for pair in zip(outputs(then), outer, strict=True))]
