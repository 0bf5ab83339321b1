"""Maps y = scale * x + shift with one scale and shift per channel, read off nodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from graphopt.ir import Array, Graph
from graphopt.rewrite.matching import data_source, is_op, keeps_shape, operands, sharing, source

__all__ = [
    "AFFINE_OPS",
    "Affine",
    "Vector",
    "affine_run",
    "batch_norm",
    "constant_affine",
    "elementwise_affine",
    "in_pieces",
    "in_type",
]

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Affine:
    """y = scale * x + shift; vectors over channels, of one element for all, or of any shape."""

    data: str
    """The tensor that is x."""
    scale: Vector
    shift: Vector

    def finite(self) -> bool:
        return bool(np.all(np.isfinite(self.scale)) and np.all(np.isfinite(self.shift)))

    def scales(self) -> bool:
        return bool(np.any(self.scale != 1.0))

    def shifts(self) -> bool:
        return bool(np.any(self.shift != 0.0))

    def after(self, first: Affine) -> Affine:
        """This map applied to what `first` gives."""
        return Affine(first.data, self.scale * first.scale, self.scale * first.shift + self.shift)


def batch_norm(graph: Graph, node: gs.Node) -> Affine | str | None:
    """What a BatchNormalization does at inference, on axis 1; or why that cannot be told."""
    if not is_op(node, "BatchNormalization"):
        return None
    if node.attrs.get("training_mode", 0) or any(tensor.name for tensor in node.outputs[1:]):
        return "it is in training mode"
    if not node.attrs.get("spatial", 1):
        return "its statistics are not per channel"
    given = [graph.constant(tensor.name) for tensor in node.inputs[1:5]]
    values = [value.astype(np.float64).reshape(-1) for value in given if value is not None]
    if len(values) != 4:
        return "its statistics are computed"
    gamma, beta, mean, variance = values
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        scale = gamma / np.sqrt(variance + float(node.attrs.get("epsilon", 1e-5)))
        return Affine(node.inputs[0].name, scale, beta - mean * scale)


def constant_affine(graph: Graph, node: gs.Node, axis: int) -> Affine | None:
    """Add, Sub, Mul or Div with a constant that varies along one axis at most, and not the shape.

    `axis` counts from the end (-3 for channels of images); the result's vectors run along it.
    """
    found = elementwise_affine(graph, node)
    if found is None:
        return None
    scale, shift = _per_channel(found.scale, axis), _per_channel(found.shift, axis)
    return None if scale is None or shift is None else Affine(found.data, scale, shift)


def affine_run(graph: Graph, node: gs.Node, axis: int) -> tuple[Affine | None, tuple[gs.Node, ...]]:
    """The map of a node and of the constant operations right before it, and those nodes."""
    whole = constant_affine(graph, node, axis)
    run: tuple[gs.Node, ...] = (node,)
    while whole is not None:
        maker = data_source(graph, run[0], *_CONSTANT)
        inner = None if maker is None else constant_affine(graph, maker, axis)
        if maker is None or inner is None or sharing(graph, maker):
            break
        whole, run = whole.after(inner), (maker, *run)
    return whole, run


def elementwise_affine(graph: Graph, node: gs.Node) -> Affine | None:
    """Add, Sub, Mul or Div with a constant of any shape that leaves the shape of the result."""
    row = _CONSTANT.get(node.op) if is_op(node, *_CONSTANT) else None
    pair = operands(graph, node) if row is not None else None
    if row is None or pair is None or not np.issubdtype(pair.constant.dtype, np.floating):
        return None
    if not keeps_shape(graph, pair.data, pair.constant):
        return None
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        coefficients = row(pair.constant.astype(np.float64), pair.first)
    return None if coefficients is None else Affine(pair.data, *coefficients)


def in_type(value: Vector, dtype: np.dtype[np.generic] | None) -> Array | None:
    """A constant in a tensor's type; None if it is not finite there."""
    if dtype is None:
        return None
    with np.errstate(over="ignore"):
        result = np.asarray(value, dtype)
    return result if bool(np.all(np.isfinite(result))) else None


def in_pieces(graph: Graph, node: gs.Node) -> str | None:
    """Why a constant factor or offset may end an activation or a norm that is written in pieces.

    Those end in x * (1 + erf(y)), x * clip(y) or x / sqrt(y), and then constants.
    """
    while (pair := operands(graph, node)) is not None:
        maker = graph.producer(pair.data)
        if maker is None or not is_op(maker, *_CONSTANT):
            return None
        node = maker
    for index in range(len(node.inputs)):
        maker = source(graph, node, index, *_PIECES.get(node.op, ()))
        if maker is not None:
            return f"it may belong to a function in pieces, {node.op} of {maker.op}"
        plus = source(graph, node, index, "Add")
        if plus is not None and data_source(graph, plus, "Erf", "Tanh"):
            return "it may belong to a GELU in pieces"
    return None


_PIECES: Mapping[str, tuple[str, ...]] = {
    "Div": ("Sqrt",),
    "Mul": ("Clip", "Max", "Min", "Pow", "Reciprocal"),
}


def _per_channel(constant: Array, axis: int) -> Vector | None:
    """A constant as a vector along `axis` (negative); None if it varies along another axis."""
    if constant.size == 0:
        return None
    for other in range(-constant.ndim, 0):
        if other == axis or constant.shape[other] == 1:
            continue
        if not np.array_equal(constant, np.broadcast_to(_first(constant, other), constant.shape)):
            return None
        constant = _first(constant, other)
    return constant.astype(np.float64).reshape(-1)


def _first(constant: Array, axis: int) -> Array:
    return np.take(constant, [0], axis=axis)


def _add(c: Vector, first: bool) -> tuple[Vector, Vector]:
    return np.ones_like(c), c


def _subtract(c: Vector, first: bool) -> tuple[Vector, Vector]:
    return (np.ones_like(c), -c) if first else (-np.ones_like(c), c)


def _multiply(c: Vector, first: bool) -> tuple[Vector, Vector]:
    return c, np.zeros_like(c)


def _divide(c: Vector, first: bool) -> tuple[Vector, Vector] | None:
    return (1.0 / c, np.zeros_like(c)) if first else None


_CONSTANT: Mapping[str, Callable[[Vector, bool], tuple[Vector, Vector] | None]] = {
    "Add": _add,
    "Div": _divide,
    "Mul": _multiply,
    "Sub": _subtract,
}
"""Scale and shift from the constant, and whether x is the first operand."""

AFFINE_OPS = tuple(sorted(_CONSTANT))
