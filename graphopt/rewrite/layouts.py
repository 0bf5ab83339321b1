"""Operators that do the same whatever the order of their tensors' axes: one row per operator.

An order is a permutation: axis i of the reordered tensor is axis order[i] of the tensor as it was,
as in `Transpose`. A row tells which inputs take the order of the outputs and what else changes:
constants are transposed, axes renumbered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir import Array, Graph
from graphopt.rewrite.matching import integers, is_op

__all__ = ["Change", "Move", "Order", "inverse", "movement", "then"]

Order = tuple[int, ...]


@dataclass(frozen=True)
class Change:
    """What replaces a node's inputs (by place) and attributes when the order changes."""

    inputs: Mapping[int, Array] = field(default_factory=dict)
    attrs: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Move:
    """How a node follows a change of order."""

    tied: tuple[int, ...]
    """Places of the inputs whose order changes."""
    change: Callable[[Order], Change | None]
    """What else changes; None if the node cannot follow to that order."""
    outputs: bool = True
    """Whether the outputs change their order too."""


_Row = Callable[[Graph, gs.Node, int], Move | None]


def inverse(order: Order) -> Order:
    return tuple(int(axis) for axis in np.argsort(order))


def then(first: Order, second: Order) -> Order:
    """One order for a Transpose after a Transpose."""
    return tuple(first[axis] for axis in second)


def movement(graph: Graph, node: gs.Node, rank: int) -> Move | None:
    """How a node follows when its tensors of `rank` axes are reordered; None if it does not."""
    row = MOVES.get(node.op) if is_op(node, *MOVES) else None
    return None if row is None else row(graph, node, rank)


def _alone(graph: Graph, node: gs.Node, rank: int) -> Move | None:
    """Element by element from the first input; the others are numbers."""
    return Move((0,), lambda order: Change())


def _together(graph: Graph, node: gs.Node, rank: int) -> Move | None:
    """Element by element from all inputs, with broadcasting."""
    tied, constants = [], {}
    if {"axis", "broadcast"} & node.attrs.keys():
        return None  # before operator set 7 attributes said how shapes meet
    for place, tensor in enumerate(node.inputs):
        value, shape = graph.constant(tensor.name), graph.shape(tensor.name)
        if shape is None or (value is None and len(shape) not in (0, rank)) or len(shape) > rank:
            return None
        if value is not None and value.ndim:
            constants[place] = value.reshape((1,) * (rank - value.ndim) + value.shape)
        elif len(shape) == rank:
            tied.append(place)

    def change(order: Order) -> Change:
        return Change({place: value.transpose(order) for place, value in constants.items()})

    return Move(tuple(tied), change) if tied else None


def _axis(default: int | None, *, least_opset: int = 1) -> _Row:
    """Along one axis, which is an attribute."""

    def row(graph: Graph, node: gs.Node, rank: int) -> Move | None:
        axis = node.attrs.get("axis", default)
        if axis is None or graph.opset < least_opset:
            return None
        tied = (0,) if node.op != "Concat" else tuple(range(len(node.inputs)))
        axis = int(axis) % rank
        return Move(tied, lambda order: Change(attrs={"axis": order.index(axis)}))

    return row


def _gather(graph: Graph, node: gs.Node, rank: int) -> Move | None:
    shape = graph.shape(node.inputs[1].name)
    return _axis(0)(graph, node, rank) if shape is not None and len(shape) == 1 else None


def _quantize(graph: Graph, node: gs.Node, rank: int) -> Move | None:
    """With one scale, or one for each index along an axis."""
    shape = graph.shape(node.inputs[1].name)
    if shape is None or len(shape) > 1:
        return None
    return _axis(1)(graph, node, rank) if len(shape) == 1 else _alone(graph, node, rank)


def _reduce(graph: Graph, node: gs.Node, rank: int) -> Move | None:
    """Over axes that are kept, or dropped where the others stay in their order."""
    given = "axes" in node.attrs or (len(node.inputs) > 1 and bool(node.inputs[1].name))
    axes = integers(graph, node, 1, "axes") if given else ()
    if axes is None or (not axes and node.attrs.get("noop_with_empty_axes", 0)):
        return None
    kept = bool(node.attrs.get("keepdims", 1))
    over = {axis % rank for axis in axes} or set(range(rank))

    def change(order: Order) -> Change | None:
        rest = [axis for axis in order if axis not in over]
        if not kept and rest != sorted(rest):
            return None
        places = np.sort([order.index(axis) for axis in over])
        return _listed(node, 1, "axes", places) if given else Change()

    return Move((0,), change, outputs=kept)


def _listed(node: gs.Node, place: int, key: str, values: Array) -> Change:
    """Integers go where they were: into the attribute or the input."""
    if key in node.attrs:
        return Change(attrs={key: [int(value) for value in values]})
    return Change({place: values.astype(np.int64)})


def _pad(graph: Graph, node: gs.Node, rank: int) -> Move | None:
    sizes = integers(graph, node, 1, "pads")
    if sizes is None or len(sizes) != 2 * rank or len(node.inputs) > 3:
        return None
    pairs = np.asarray(sizes).reshape(2, rank)
    return Move((0,), lambda order: _listed(node, 1, "pads", pairs[:, list(order)].reshape(-1)))


def _slice(graph: Graph, node: gs.Node, rank: int) -> Move | None:
    starts, axes = integers(graph, node, 1, "starts"), integers(graph, node, 3, "axes")
    named = "axes" in node.attrs or len(node.inputs) > 3
    if starts is None or (named and axes is None):
        return None
    numbers = tuple(range(len(starts))) if axes is None else tuple(axis % rank for axis in axes)

    def change(order: Order) -> Change:
        places = np.asarray([order.index(axis) for axis in numbers])
        if "starts" in node.attrs:
            return Change(attrs={"axes": places.tolist()})
        return Change({3: places.astype(graph.dtype(node.inputs[1].name))})

    return Move((0,), change)


def _resize(graph: Graph, node: gs.Node, rank: int) -> Move | None:
    """By constant factors or sizes, one for each axis."""
    constants = {}
    for place, tensor in enumerate(node.inputs[1:], start=1):
        value = graph.constant(tensor.name) if tensor.name else None
        if value is not None and value.size == rank:
            constants[place] = value
        elif tensor.name and (value is None or value.size):
            return None
    if "axes" in node.attrs or not constants:
        return None

    def change(order: Order) -> Change:
        return Change({place: value[list(order)] for place, value in constants.items()})

    return Move((0,), change)


# fmt: off
_ALONE = (
    "Abs", "Cast", "Ceil", "Celu", "Clip", "Cos", "Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu",
    "HardSigmoid", "HardSwish", "Identity", "IsNaN", "LeakyRelu", "Log", "Mish", "Neg", "Not",
    "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign",
    "Sqrt", "Swish", "Tanh", "ThresholdedRelu",
)
_TOGETHER = (
    "Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max",
    "Mean", "Min", "Mul", "Or", "PRelu", "Pow", "Sub", "Sum", "Where", "Xor",
)
_REDUCE = (
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
    "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare",
)
# fmt: on

MOVES: Mapping[str, _Row] = {
    **dict.fromkeys(_ALONE, _alone),
    **dict.fromkeys(_TOGETHER, _together),
    **dict.fromkeys(_REDUCE, _reduce),
    "Concat": _axis(None),
    "DequantizeLinear": _quantize,
    "Gather": _gather,
    "LogSoftmax": _axis(-1, least_opset=13),
    "Pad": _pad,
    "QuantizeLinear": _quantize,
    "Resize": _resize,
    "Slice": _slice,
    "Softmax": _axis(-1, least_opset=13),
    "Split": _axis(0),
    "Upsample": _resize,
}
"""Operators that follow a change of order; any other keeps its tensors' order as it is."""
