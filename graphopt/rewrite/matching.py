"""Questions that the rules of exact rewriting ask about a node's surroundings.

All answers stay within one scope: a node in the body of a Loop is never fused with one outside.
Operators outside the standard domain match nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir import Array, Graph

__all__ = [
    "Operands",
    "data_source",
    "dying",
    "integers",
    "is_op",
    "keeps_shape",
    "number",
    "operands",
    "private_source",
    "scalar",
    "sharing",
    "sole_reader",
    "source",
]


@dataclass(frozen=True)
class Operands:
    """A binary operator's computed operand and its constant one."""

    data: str
    constant: Array
    first: bool
    """Whether the computed operand comes first, as in x - 1."""


def is_op(node: gs.Node, *ops: str) -> bool:
    """Whether a node is one of these operators of the standard domain."""
    return node.op in ops and node.domain in (None, "", "ai.onnx")


def source(graph: Graph, node: gs.Node, index: int, *ops: str) -> gs.Node | None:
    """The node that computes an input, if it is one of `ops` and stands in the same scope."""
    if index >= len(node.inputs) or not node.inputs[index].name:
        return None
    maker = graph.producer(node.inputs[index].name)
    if maker is None or not is_op(maker, *ops) or graph.scope_of(maker) is not graph.scope_of(node):
        return None
    return maker


def data_source(graph: Graph, node: gs.Node, *ops: str) -> gs.Node | None:
    """As `source`, of the computed operand of a node whose other operand is constant."""
    pair = operands(graph, node)
    return None if pair is None else source(graph, node, 0 if pair.first else 1, *ops)


def private_source(graph: Graph, node: gs.Node, index: int, *ops: str) -> gs.Node | None:
    """As `source`, if nothing else reads any result of that node."""
    maker = source(graph, node, index, *ops)
    return None if maker is None or sharing(graph, maker) else maker


def sharing(graph: Graph, node: gs.Node) -> str | None:
    """Why a node's result is not for one reader alone; None if it is."""
    for tensor in node.outputs[1:]:
        if tensor.name and (graph.consumers(tensor.name) or graph.is_output(tensor.name)):
            return f"its second result {tensor.name!r} is used"
    name = node.outputs[0].name
    if graph.is_output(name):
        return f"{name!r} is an output as well"
    readers = len(graph.consumers(name))
    return None if readers == 1 else f"{name!r} is read {readers} times"


def sole_reader(graph: Graph, node: gs.Node, *ops: str) -> gs.Node | None:
    """The only reader of a node's result, if it is one of `ops` and stands in the same scope."""
    if sharing(graph, node):
        return None
    reader = graph.consumers(node.outputs[0].name)[0]
    if not is_op(reader, *ops) or graph.scope_of(reader) is not graph.scope_of(node):
        return None
    return reader


def operands(graph: Graph, node: gs.Node) -> Operands | None:
    """Tell the computed from the constant operand; None unless there is one of each."""
    if len(node.inputs) != 2:
        return None
    left, right = (tensor.name for tensor in node.inputs)
    left_value, right_value = graph.constant(left), graph.constant(right)
    if left_value is None and right_value is not None:
        return Operands(left, right_value, first=True)
    if right_value is None and left_value is not None:
        return Operands(right, left_value, first=False)
    return None


def keeps_shape(graph: Graph, data: str, constant: Array) -> bool:
    """Whether combining a tensor with a constant, element by element, leaves its shape."""
    if constant.ndim == 0:
        return True
    shape = graph.shape(data)
    if shape is None or constant.ndim > len(shape):
        return False
    aligned = shape[len(shape) - constant.ndim :]
    return all(size in (1, dim) for size, dim in zip(constant.shape, aligned, strict=True))


def number(graph: Graph, node: gs.Node) -> float | None:
    """The number that a node combines its computed operand with, if that leaves the shape."""
    pair = operands(graph, node)
    if pair is None or not keeps_shape(graph, pair.data, pair.constant):
        return None
    return scalar(graph, node.inputs[1 if pair.first else 0].name)


def scalar(graph: Graph, name: str) -> float | None:
    """The value of a float constant whose elements are all the same number."""
    value = graph.constant(name) if name else None
    if value is None or value.size == 0 or not np.issubdtype(value.dtype, np.floating):
        return None
    first = value.reshape(-1)[0]
    return float(first) if value.size == 1 or bool(np.all(value == first)) else None


def dying(graph: Graph, tops: tuple[gs.Node, ...], kept: str) -> tuple[gs.Node, ...]:
    """The nodes `tops`, and those before them that only they need; `kept` is needed still."""
    going = list(tops)
    for node in going:
        for tensor in node.inputs:
            maker = graph.producer(tensor.name) if tensor.name not in ("", kept) else None
            if maker is None or _among(maker, going):
                continue
            if graph.scope_of(maker) is graph.scope_of(node) and _unneeded(graph, maker, going):
                going.append(maker)
    return tuple(going)


def _unneeded(graph: Graph, node: gs.Node, going: list[gs.Node]) -> bool:
    names = [tensor.name for tensor in node.outputs if tensor.name]
    readers = [reader for name in names for reader in graph.consumers(name)]
    return not any(graph.is_output(name) for name in names) and all(
        _among(reader, going) for reader in readers
    )


def _among(node: gs.Node, nodes: list[gs.Node]) -> bool:
    return any(node is other for other in nodes)


def integers(graph: Graph, node: gs.Node, index: int, key: str) -> tuple[int, ...] | None:
    """Axes and the like: an attribute in older operator sets, a constant input in newer ones."""
    if key in node.attrs:
        return tuple(int(value) for value in node.attrs[key])
    if index >= len(node.inputs) or not node.inputs[index].name:
        return None
    value = graph.constant(node.inputs[index].name)
    return None if value is None else tuple(int(entry) for entry in value.reshape(-1))
