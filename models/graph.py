"""A bundle's one graph as two without control flow: the label alone, and label and explanation.

On the CPU one graph serves both: its `If` on the input `explain` skips the explainer at no cost.
CUDA graphs allow no control flow, and OpenVINO's provider cannot load the `If`, so for them the
branch is moved into the graph when it is loaded, or left out. Weights are not changed.

The `onnx` package is not installed where bundles are served, so the protobuf messages are taken
apart here; only fields that matter are looked into, all others are copied as they are.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

# Numbers of fields in onnx.proto.
_MODEL_GRAPH: Final = 7
_NODE, _INPUT, _OUTPUT = 1, 11, 12  # of a graph
_NAMED: Final = (2, 10, _INPUT, _OUTPUT)  # a branch's name, comment, inputs and outputs
_NODE_INPUT, _NODE_OUTPUT, _OP_TYPE, _ATTRIBUTE = 1, 2, 4, 5
_ATTRIBUTE_NAME, _ATTRIBUTE_GRAPH = 1, 6
_VALUE_NAME: Final = 1

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types


class _Field(NamedTuple):
    """One field of a message.

    Attributes:
        number: which field.
        body: its bytes without key and length; empty unless it has a length.
        whole: its bytes as they lie in the message.
    """

    number: int
    body: memoryview
    whole: memoryview


def split(model: bytes, *, explain: bool) -> bytes:
    """Return the graph with its choice made.

    Args:
        model: a serialised graph of l2e, with inputs input_ids, attention_mask, target, explain.
        explain: True gives inputs input_ids, attention_mask, target and outputs logits, weights,
            label_probs; False gives the output logits alone.

    Raises:
        ValueError: this is no ONNX model, or has no `If` on `explain`.
    """
    fields = list(_fields(memoryview(model)))
    graphs = [field for field in fields if field.number == _MODEL_GRAPH]
    if len(graphs) != 1:
        raise ValueError("it holds no graph")
    parts = [field.whole for field in fields if field.number != _MODEL_GRAPH]
    return b"".join([*parts, _field(_MODEL_GRAPH, _decide(graphs[0].body, explain=explain))])


def _decide(graph: memoryview, *, explain: bool) -> bytes:
    parts: list[bytes | memoryview] = []
    choices = 0
    for field in _fields(graph):
        if field.number == _NODE and _is_choice(field.body):
            choices += 1
            if explain:
                parts += _then(field.body)
        elif field.number == _INPUT and _text(field.body, _VALUE_NAME) == "explain":
            continue
        elif field.number != _OUTPUT or explain or _text(field.body, _VALUE_NAME) == "logits":
            parts.append(field.whole)
    if choices != 1:
        raise ValueError(f"it has {choices} nodes `If` on the input `explain` instead of one")
    return b"".join(parts)


def _is_choice(node: memoryview) -> bool:
    return _text(node, _OP_TYPE) == "If" and _text(node, _NODE_INPUT) == "explain"


def _then(node: memoryview) -> list[bytes | memoryview]:
    """Return the then-branch as fields of the graph around it; names are unique in both."""
    for attribute in _bodies(node, _ATTRIBUTE):
        if _text(attribute, _ATTRIBUTE_NAME) == "then_branch":
            [branch] = _bodies(attribute, _ATTRIBUTE_GRAPH)
            inner = [_text(value, _VALUE_NAME) for value in _bodies(branch, _OUTPUT)]
            outer = [bytes(name).decode() for name in _bodies(node, _NODE_OUTPUT)]
            moved = [field.whole for field in _fields(branch) if field.number not in _NAMED]
            return [*moved, *(_identity(*pair) for pair in zip(inner, outer, strict=True))]
    raise ValueError("its `If` has no then-branch")


def _identity(source: str, result: str) -> bytes:
    """Return the node that gives a value a second name, as a field of a graph."""
    body = _field(_NODE_INPUT, source.encode()) + _field(_NODE_OUTPUT, result.encode())
    return _field(_NODE, body + _field(_OP_TYPE, b"Identity"))


def _text(message: memoryview, number: int) -> str:
    """Return the first string of this number, empty where there is none."""
    return next((bytes(body).decode() for body in _bodies(message, number)), "")


def _bodies(message: memoryview, number: int) -> list[memoryview]:
    return [field.body for field in _fields(message) if field.number == number]


def _fields(message: memoryview) -> Iterator[_Field]:
    place = 0
    while place < len(message):
        start = place
        key, place = _varint(message, place)
        wire, size = key & 7, 0
        if wire == _VARINT:
            _, place = _varint(message, place)
        elif wire == _BYTES:
            size, place = _varint(message, place)
        elif wire in (_FIXED64, _FIXED32):
            place += 8 if wire == _FIXED64 else 4
        else:
            raise ValueError("it is not a protobuf message")
        body = message[place : place + size]
        place += size
        if place > len(message):
            raise ValueError("it is cut off")
        yield _Field(key >> 3, body, message[start:place])


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    """Return the number at `place` and where it ends."""
    value = shift = 0
    while place < len(message) and shift < 64:
        byte = message[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7
    raise ValueError("it is cut off")


def _field(number: int, body: bytes) -> bytes:
    """Return a field with a length."""
    encoded = bytearray()
    for value in (number << 3 | _BYTES, len(body)):
        rest = value
        while rest > 0x7F:
            encoded.append(rest & 0x7F | 0x80)
            rest >>= 7
        encoded.append(rest)
    return bytes(encoded) + body
