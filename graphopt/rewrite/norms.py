"""Normalizations written in pieces: a tensor divided by its own spread, read off nodes."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_graphsurgeon as gs

from graphopt.ir import Graph
from graphopt.rewrite.matching import data_source, integers, is_op, number, operands, source

__all__ = ["Norm", "read_norm"]


@dataclass(frozen=True)
class Norm:
    """d / sqrt(mean(d^2) + epsilon), the mean over `axes`."""

    data: str
    axes: tuple[int, ...]
    """Counted from the front."""
    epsilon: float
    centred: bool
    """Whether d is data - mean(data), or data itself."""


def read_norm(graph: Graph, node: gs.Node) -> Norm | None:
    """Read a Div or Mul as the last step of a normalization."""
    for place in (0, 1) if node.op == "Mul" else (1,):
        root = _inverse_root(graph, node, place) if node.op == "Mul" else _root(graph, node, place)
        found = None if root is None else _under_root(graph, root)
        if found is None:
            continue
        mean, epsilon = found
        data, axes = str(node.inputs[1 - place].name), _mean_axes(graph, mean)
        base = _squared(graph, mean)
        if axes is None or base is None:
            continue
        middle = _centred(graph, data, axes)
        if middle is not None and middle == _centred(graph, base, axes):
            return Norm(middle, axes, epsilon, centred=True)
        if base == data and middle is None:
            return Norm(data, axes, epsilon, centred=False)
    return None


def _root(graph: Graph, node: gs.Node, place: int) -> gs.Node | None:
    return source(graph, node, place, "Sqrt")


def _inverse_root(graph: Graph, node: gs.Node, place: int) -> gs.Node | None:
    """The node whose first input's root an input is one over."""
    inverted = source(graph, node, place, "Div", "Pow", "Reciprocal")
    if inverted is None:
        return None
    if inverted.op == "Pow":
        return inverted if _is_power(graph, inverted, -0.5) else None
    if inverted.op == "Reciprocal":
        return _root(graph, inverted, 0)
    return _root(graph, inverted, 1) if number(graph, inverted) == 1.0 else None


def _under_root(graph: Graph, root: gs.Node) -> tuple[gs.Node, float] | None:
    """The mean and the epsilon that a root is taken of."""
    plus = source(graph, root, 0, "Add")
    mean = None if plus is None else data_source(graph, plus, "ReduceMean")
    epsilon = None if plus is None else number(graph, plus)
    return None if mean is None or epsilon is None else (mean, epsilon)


def _mean_axes(graph: Graph, mean: gs.Node) -> tuple[int, ...] | None:
    """The axes that a ReduceMean runs over and keeps."""
    shape, axes = graph.shape(mean.inputs[0].name), integers(graph, mean, 1, "axes")
    if shape is None or not axes or not mean.attrs.get("keepdims", 1):
        return None
    return tuple(sorted(axis % len(shape) for axis in axes))


def _squared(graph: Graph, mean: gs.Node) -> str | None:
    """The tensor whose squares a mean is taken of."""
    square = source(graph, mean, 0, "Mul", "Pow")
    if square is None:
        return None
    left, right = (tensor.name for tensor in square.inputs)
    if square.op == "Pow":
        return str(left) if _is_power(graph, square, 2.0) else None
    return str(left) if left == right else None


def _is_power(graph: Graph, node: gs.Node, exponent: float) -> bool:
    """Whether a Pow raises its first operand to a number."""
    pair = operands(graph, node)
    return pair is not None and pair.first and number(graph, node) == exponent


def _centred(graph: Graph, name: str, axes: tuple[int, ...]) -> str | None:
    """The tensor that `name` is without its mean over `axes`."""
    minus = graph.producer(name)
    mean = None if minus is None else source(graph, minus, 1, "ReduceMean")
    if minus is None or not is_op(minus, "Sub") or mean is None or _mean_axes(graph, mean) != axes:
        return None
    data = str(minus.inputs[0].name)
    return data if mean.inputs[0].name == data else None
