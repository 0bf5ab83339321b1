"""Functions clip(slope * x + offset, low, high), read off chains of nodes with scalar constants."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import onnx_graphsurgeon as gs

from graphopt.ir import Graph
from graphopt.rewrite.affine import AFFINE_OPS, elementwise_affine
from graphopt.rewrite.matching import is_op, keeps_shape, operands, private_source, scalar, source

__all__ = ["CLIP_OPS", "RAMP_OPS", "Ramp", "bounds", "clamp", "never_negative", "ramp"]


@dataclass(frozen=True)
class Ramp:
    """clip(slope * x + offset, low, high)."""

    data: str
    """The tensor that is x."""
    slope: float = 1.0
    offset: float = 0.0
    low: float = -math.inf
    high: float = math.inf

    def scaled(self, factor: float) -> Ramp:
        """The ramp times a factor; a negative one turns the bounds round."""
        if factor == 0.0:
            return replace(self, slope=0.0, offset=0.0, low=0.0, high=0.0)
        low, high = sorted((self.low * factor, self.high * factor))
        return replace(
            self, slope=self.slope * factor, offset=self.offset * factor, low=low, high=high
        )

    def shifted(self, term: float) -> Ramp:
        return replace(self, offset=self.offset + term, low=self.low + term, high=self.high + term)

    def clipped(self, low: float, high: float) -> Ramp:
        """The ramp between tighter bounds, low before high as Clip applies them."""
        return replace(
            self,
            low=min(max(self.low, low), high),
            high=min(max(self.high, low), high),
        )

    def close_to(self, low: float, high: float) -> bool:
        """Whether the bounds are these, up to single precision."""
        return math.isclose(self.low, low, abs_tol=1e-6) and math.isclose(
            self.high, high, abs_tol=1e-6
        )


def ramp(graph: Graph, node: gs.Node) -> Ramp | None:
    """Read a node's result as a ramp of the nearest tensor that others read as well.

    None if the node itself is no step of a ramp.
    """
    step = _step(graph, node)
    if step is None:
        return None
    data, index, apply = step
    maker = private_source(graph, node, index, *RAMP_OPS)
    inner = None if maker is None else ramp(graph, maker)
    return apply(Ramp(data) if inner is None else inner)


_Step = tuple[str, int, Callable[[Ramp], Ramp]]


def _step(graph: Graph, node: gs.Node) -> _Step | None:
    """The computed input's name and place, and what the node does to it."""
    if is_op(node, *AFFINE_OPS):
        return _affine_step(graph, node)
    found = bounds(graph, node)
    if found is None:
        return None
    index, low, high = found
    return node.inputs[index].name, index, lambda inner: inner.clipped(low, high)


def _affine_step(graph: Graph, node: gs.Node) -> _Step | None:
    pair = operands(graph, node)
    index = 0 if pair is None or pair.first else 1
    if pair is None or scalar(graph, node.inputs[1 - index].name) is None:
        return None
    found = elementwise_affine(graph, node)
    if found is None or not found.finite():
        return None
    factor, term = float(found.scale.flat[0]), float(found.shift.flat[0])
    return found.data, index, lambda inner: inner.scaled(factor).shifted(term)


_POSITIVE = ("Abs", "Exp", "HardSigmoid", "Sigmoid", "Softmax", "Softplus")


def never_negative(graph: Graph, node: gs.Node) -> bool:
    """Whether what a node reads first is known to be at least zero."""
    maker = source(graph, node, 0, *CLIP_OPS, *_POSITIVE)
    if maker is None:
        return False
    found = bounds(graph, maker)
    return is_op(maker, *_POSITIVE) or (found is not None and found[1] >= 0.0)


_Bounds = tuple[int, float, float]
"""Which input is x, and the bounds."""


def bounds(graph: Graph, node: gs.Node) -> _Bounds | None:
    """Which input a node clips, and to what; None if it does not, or its bounds are computed."""
    row = _BOUNDS.get(node.op) if is_op(node, *_BOUNDS) else None
    return None if row is None else row(graph, node)


def clamp(graph: Graph, node: gs.Node) -> tuple[float, float] | None:
    """Between which bounds a Clip or Relu keeps floats; None if it is neither, or computes them."""
    found = bounds(graph, node) if is_op(node, "Clip", "Relu") else None
    return None if found is None else found[1:]


def _clip(graph: Graph, node: gs.Node) -> _Bounds | None:
    if graph.opset < 11:
        low = float(node.attrs.get("min", -math.inf))
        return 0, low, float(node.attrs.get("max", math.inf))
    bounds = [-math.inf, math.inf]
    for index, tensor in enumerate(node.inputs[1:3]):
        value = scalar(graph, tensor.name)
        if tensor.name and value is None:
            return None
        bounds[index] = bounds[index] if value is None else value
    return 0, bounds[0], bounds[1]


def _relu(graph: Graph, node: gs.Node) -> _Bounds | None:
    return 0, 0.0, math.inf


def _maximum(graph: Graph, node: gs.Node) -> _Bounds | None:
    index, value = _bound(graph, node)
    return None if value is None else (index, value, math.inf)


def _minimum(graph: Graph, node: gs.Node) -> _Bounds | None:
    index, value = _bound(graph, node)
    return None if value is None else (index, -math.inf, value)


def _bound(graph: Graph, node: gs.Node) -> tuple[int, float | None]:
    pair = operands(graph, node)
    if pair is None or not keeps_shape(graph, pair.data, pair.constant):
        return 0, None
    index = 0 if pair.first else 1
    return index, scalar(graph, node.inputs[1 - index].name)


_BOUNDS: Mapping[str, Callable[[Graph, gs.Node], _Bounds | None]] = {
    "Clip": _clip,
    "Max": _maximum,
    "Min": _minimum,
    "Relu": _relu,
}

CLIP_OPS = tuple(sorted(_BOUNDS))
RAMP_OPS = (*AFFINE_OPS, *CLIP_OPS)
