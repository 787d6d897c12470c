"""A bundle's graph made to explain another class without running the classifier again.

A window of a long document is explained for its own class, and again where the document turns out
to have another. What is computed before the explainer hears of the class stays: here the values
are found that the rest takes from it, and given out by the graph; the rest becomes a graph of its
own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from models.graph import (
    ATTRIBUTE,
    ATTRIBUTE_GRAPH,
    ATTRIBUTE_NAME,
    INITIALIZER,
    INPUT,
    MODEL_GRAPH,
    NODE,
    NODE_INPUT,
    NODE_OUTPUT,
    OP_TYPE,
    OUTPUT,
    VALUE_NAME,
    branch,
    identity,
    is_choice,
    outputs,
)
from models.protobuf import (
    Field,
    Parts,
    bodies,
    fields,
    text,
    texts,
    whole_number,
    with_length,
    with_value,
)

_STATE: Final = "state."  # before the names of what is given out
_TENSOR_KIND, _TENSOR_NAME = 2, 8  # fields of TensorProto
_ATTRIBUTE_INT, _ATTRIBUTE_TENSOR = 3, 5
_VALUE_TYPE, _TENSOR_TYPE, _ELEMENT = 2, 1, 1
_ROWS: Final = ("input_ids", "attention_mask")
# Types of elements. Values of others, such as classes, are computed again.
_FLOAT, _INT64, _FLOAT16, _OTHER = 1, 7, 10, 0
# The type of a node's result is that of its first input, but for these.
_KIND_OF_INPUT: Final = {"CastLike": 1, "Where": 1, "QuantizeLinear": 2, "DequantizeLinear": 1}
_SIZES: Final = frozenset({"Shape", "Size"})
_NOT_FLOAT: Final = _SIZES.union(
    ("ArgMax", "ArgMin", "ConvInteger", "DynamicQuantizeLinear", "MatMulInteger", "NonZero"),
    ("And", "Equal", "Greater", "GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual"),
    ("Not", "Or", "Xor"),
)


class Retargetable(NamedTuple):
    """A graph in two.

    Attributes:
        whole: the graph, with further outputs.
        states: the names of these, [B, ...] each.
        rest: the graph from the states and `target`, int64 [B], to weights and label_probs.
    """

    whole: bytes
    states: tuple[str, ...]
    rest: bytes


class _Node(NamedTuple):
    """A node of the graph or of the branch that explains."""

    op_type: str
    inputs: list[str]
    results: list[str]
    field: Field


class _Plan(NamedTuple):
    """What goes where.

    Attributes:
        states: values that are given out, and the types of their elements.
        nodes: of the rest, in order.
        weights: likewise.
    """

    states: dict[str, int]
    nodes: list[_Node]
    weights: list[Field]


def retargetable(model: bytes) -> Retargetable | None:
    """Takes a graph apart.

    None where it has no choice whether to explain; where the rest would begin with the ids, and
    so hold most of the classifier; and where it computes in float16: ONNX Runtime's CPU provider
    turns that into float32 and rounds as it joins nodes, so that two graphs of the same nodes
    differ. Nor can all others be cut: whoever loads the parts has to compare them.

    Args:
        model: a serialised graph of l2e, with inputs input_ids, attention_mask, target, explain.

    Raises:
        ValueError: this is no ONNX model.
    """
    found = list(fields(memoryview(model)))
    around = [field.whole for field in found if field.number != MODEL_GRAPH]
    graphs = [field.body for field in found if field.number == MODEL_GRAPH]
    if len(graphs) != 1:
        raise ValueError("it holds no graph")
    graph = _Graph(graphs[0])
    plan = graph.plan()
    if plan is None:
        return None
    return Retargetable(
        b"".join([*around, *with_length(MODEL_GRAPH, *graph.with_states(plan.states))]),
        tuple(_STATE + name for name in plan.states),
        b"".join([*around, *with_length(MODEL_GRAPH, *graph.rest(plan))]),
    )


class _Graph:
    """A graph and the branch that explains, whose names are unique in both."""

    def __init__(self, body: memoryview) -> None:
        self._fields = list(fields(body))
        self._choices: list[Field] = []
        self._main: list[_Node] = []
        self._branch: list[_Node] = []
        self._inner: list[str] = []
        scopes = [body]
        for field in self._fields:
            if field.number == NODE and is_choice(field.body):
                self._choices.append(field)
            elif field.number == NODE:
                self._main.append(_node(field))
        if len(self._choices) == 1:
            then = branch(self._choices[0].body, "then_branch")
            self._branch = [_node(field) for field in fields(then) if field.number == NODE]
            self._inner = outputs(then)
            scopes.append(then)
        self._weights = {
            text(field.body, _TENSOR_NAME): field
            for scope in scopes
            for field in fields(scope)
            if field.number == INITIALIZER
        }
        self._makers = {name: node for node in self._nodes for name in node.results}

    @property
    def _nodes(self) -> list[_Node]:
        return [*self._main, *self._branch]

    def plan(self) -> _Plan | None:
        """Goes from the explanation back to what does not depend on the target."""
        if len(self._choices) != 1:
            return None
        moving, aimed = self._reached([*_ROWS, "target"]), self._reached(["target"])
        wanted = set(self._inner)
        states: dict[str, int] = {}
        nodes = []
        for node in reversed(self._nodes):
            results = wanted.intersection(node.results)
            if not results:
                continue
            again = moving.isdisjoint(results) or not aimed.isdisjoint(results)
            kinds = {name: self._kind(name) for name in results}
            if again or any(kind != _FLOAT for kind in kinds.values()):
                nodes.append(node)
                wanted.update(node.inputs)
            else:
                states |= kinds
        computed = moving.intersection(name for node in nodes for name in node.results)
        if "input_ids" in wanted or any(self._kind(name) == _FLOAT16 for name in computed):
            return None
        if "attention_mask" in wanted:
            states["attention_mask"] = _INT64
        weights = [field for name, field in self._weights.items() if name in wanted]
        return _Plan(states, nodes[::-1], weights)

    def with_states(self, states: dict[str, int]) -> Parts:
        """The graph with its states as further outputs."""
        [choice] = self._choices
        within = {name for node in self._branch for name in node.results}
        inner = [name for name in states if name in within]
        return [
            *(field.whole for field in self._fields if field is not choice),
            *with_length(NODE, *_choice(choice.body, inner)),
            *(identity(name, _STATE + name) for name in states if name not in inner),
            *(_value(OUTPUT, _STATE + name) for name in states),
        ]

    def rest(self, plan: _Plan) -> Parts:
        """The graph from the states and the target to weights and label_probs."""
        [choice] = self._choices
        outer = texts(choice.body, NODE_OUTPUT)
        return [
            *with_length(2, b"rest"),
            *(field.whole for field in plan.weights),
            *(_value(INPUT, _STATE + name, kind) for name, kind in plan.states.items()),
            _value(INPUT, "target", _INT64),
            *(identity(_STATE + name, name) for name in plan.states),
            *(node.field.whole for node in plan.nodes),
            *(identity(*pair) for pair in zip(self._inner, outer, strict=True)),
            *(_value(OUTPUT, name) for name in outer),
        ]

    def _reached(self, names: Iterable[str]) -> set[str]:
        """Everything that depends on what is in values of these names, and not on their sizes.

        Sizes are none of a row's own, so what follows from them is computed again.
        """
        reached = set(names)
        for node in self._nodes:
            if node.op_type not in _SIZES and not reached.isdisjoint(node.inputs):
                reached.update(node.results)
        return reached

    def _kind(self, name: str) -> int:
        """The type of a value's elements; `_OTHER` for one that is never given out."""
        while name in self._makers:
            node = self._makers[name]
            if node.op_type in _NOT_FLOAT:
                return _OTHER
            if node.op_type in ("Cast", "Constant", "ConstantOfShape"):
                return _said(node)
            place = _KIND_OF_INPUT.get(node.op_type, 0)
            if place >= len(node.inputs):
                return _OTHER
            name = node.inputs[place]
        if name in self._weights:
            return whole_number(self._weights[name].body, _TENSOR_KIND)
        return _OTHER  # an input: whole numbers all


def _node(field: Field) -> _Node:
    op_type, inputs, results = "", [], []
    for part in fields(field.body):
        if part.number == OP_TYPE:
            op_type = bytes(part.body).decode()
        elif part.number == NODE_INPUT and part.body:
            inputs.append(bytes(part.body).decode())
        elif part.number == NODE_OUTPUT:
            results.append(bytes(part.body).decode())
    return _Node(op_type, inputs, results, field)


def _said(node: _Node) -> int:
    """The type of elements that a node's attributes name."""
    for attribute in bodies(node.field.body, ATTRIBUTE):
        name = text(attribute, ATTRIBUTE_NAME)
        if name == "to":
            return whole_number(attribute, _ATTRIBUTE_INT)
        if name == "value":
            [tensor] = bodies(attribute, _ATTRIBUTE_TENSOR)
            return whole_number(tensor, _TENSOR_KIND)
    return _FLOAT if node.op_type == "ConstantOfShape" else _OTHER


def _choice(node: memoryview, states: Iterable[str]) -> Parts:
    """The `If` with states of its then-branch as further outputs."""
    parts: Parts = []
    for field in fields(node):
        if field.number != ATTRIBUTE:
            parts.append(field.whole)
            continue
        graph = branch(node, text(field.body, ATTRIBUTE_NAME))
        if text(field.body, ATTRIBUTE_NAME) == "then_branch":
            more = [_value(OUTPUT, name) for name in states]
        else:
            more = _empty(outputs(graph)[0], states)
        others = [part.whole for part in fields(field.body) if part.number != ATTRIBUTE_GRAPH]
        inner = with_length(ATTRIBUTE_GRAPH, graph, *more)
        parts += with_length(ATTRIBUTE, *others, *inner)
    for name in states:
        parts += with_length(NODE_OUTPUT, (_STATE + name).encode())
    return parts


def _empty(source: str, states: Iterable[str]) -> list[bytes]:
    """What the else-branch gives in place of states: anything in float32."""
    parts = []
    for name in states:
        result = f"else.{name}"
        parts += [identity(source, result), _value(OUTPUT, result)]
    return parts


def _value(number: int, name: str, kind: int = _OTHER) -> bytes:
    """An input or output of a graph; what is unknown of its type follows from its nodes."""
    body = with_length(VALUE_NAME, name.encode())
    if kind != _OTHER:
        tensor = with_length(_TENSOR_TYPE, with_value(_ELEMENT, kind))
        body += with_length(_VALUE_TYPE, *tensor)
    return b"".join(with_length(number, *body))
