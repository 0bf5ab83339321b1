"""Merge chains of casts, of clamps, and of concatenations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt.ir import Edit, Graph, NewNode
from graphopt.passbase import Context, Pass, Promise
from graphopt.rewrite import rewrite
from graphopt.rewrite.matching import private_source, source
from graphopt.rewrite.ramps import clamp

__all__ = ["MergeChains"]

_BOUNDS_AS_INPUTS = 11
"""Since this operator set Clip takes its bounds as inputs."""


@dataclass(frozen=True)
class MergeChains(Pass):
    """Merge Cast after Cast, Clip and Relu after one another, Concat within Concat.

    A Cast goes if the type in between holds every value of the type before (float16 to float32
    to anything); one that rounds stays. Clip and Relu clamp to an interval, and two of them clamp
    to one; [0, inf) is Relu again. A Concat that only another Concat on the same axis reads gives
    it its parts.
    """

    name: ClassVar[str] = "merge-chains"
    promise: ClassVar[Promise] = Promise.EXACT

    def run(self, graph: Graph, context: Context) -> None:
        rules = {"Cast": (casts,), "Clip": (clamps,), "Concat": (concats,), "Relu": (clamps,)}
        context.record(rewrite(graph, rules))


def casts(graph: Graph, node: gs.Node) -> Edit | None:
    """Cast(Cast(x)) to Cast(x), where the inner one loses nothing."""
    maker = source(graph, node, 0, "Cast")
    if maker is None or int(node.attrs["to"]) == onnx.TensorProto.STRING:
        return None  # digits are written according to the type
    data = maker.inputs[0].name
    given = graph.dtype(data)
    between = onnx.helper.tensor_dtype_to_np_dtype(int(maker.attrs["to"]))
    if given is None or not _holds(np.dtype(between), given):
        return None
    new = NewNode("Cast", (data,), (node.outputs[0].name,), dict(node.attrs), name=node.name)
    return Edit(remove=(node,), add=(new,))


def _holds(wide: np.dtype[np.generic], narrow: np.dtype[np.generic]) -> bool:
    """Whether every value of one type is a value of the other; of 64 bits numpy says too much."""
    if "O" in (wide.kind, narrow.kind) or (narrow.kind in "iu" and narrow.itemsize == 8):
        return wide == narrow
    return np.can_cast(narrow, wide, "safe")


def clamps(graph: Graph, node: gs.Node) -> Edit | None:
    """Clip or Relu of Clip or Relu, to one of them."""
    maker = source(graph, node, 0, "Clip", "Relu")
    if maker is None:
        return None
    inner, outer = _interval(graph, maker), _interval(graph, node)
    if inner is None or outer is None:
        return None
    low, high = (min(max(bound, outer[0]), outer[1]) for bound in inner)
    data, output = maker.inputs[0].name, node.outputs[0].name
    if (low, high) == inner and graph.can_replace(output, maker.outputs[0].name):
        return Edit(remove=(node,), replace={output: maker.outputs[0].name})
    return Edit(remove=(node,), add=(_clamp(graph, data, output, low, high),))


def _interval(graph: Graph, node: gs.Node) -> tuple[float, float] | None:
    """The bounds of a Clip or Relu of floats; None if they are computed or empty."""
    found = clamp(graph, node) if graph.is_float(node.inputs[0].name) else None
    return found if found is not None and found[0] <= found[1] else None


def _clamp(graph: Graph, data: str, output: str, low: float, high: float) -> NewNode:
    if (low, high) == (0, np.inf):
        return NewNode("Relu", (data,), (output,))
    if graph.opset < _BOUNDS_AS_INPUTS:
        bounds = {"min": low, "max": high}
        finite = {key: value for key, value in bounds.items() if np.isfinite(value)}
        return NewNode("Clip", (data,), (output,), finite)
    dtype = graph.dtype(data)
    ends = [np.array(bound, dtype) if np.isfinite(bound) else "" for bound in (low, high)]
    while ends and isinstance(ends[-1], str):
        ends.pop()
    return NewNode("Clip", (data, *ends), (output,))


def concats(graph: Graph, node: gs.Node) -> Edit | None:
    """Concat(a, Concat(b, c)) to Concat(a, b, c)."""
    for place in range(len(node.inputs)):
        maker = private_source(graph, node, place, "Concat")
        if maker is None or _axis(graph, maker) != _axis(graph, node):
            continue
        names = [tensor.name for tensor in node.inputs]
        names[place : place + 1] = [tensor.name for tensor in maker.inputs]
        output = node.outputs[0].name
        new = NewNode("Concat", tuple(names), (output,), dict(node.attrs), name=node.name)
        return Edit(remove=(node, maker), add=(new,))
    return None


def _axis(graph: Graph, node: gs.Node) -> int:
    axis, shape = int(node.attrs["axis"]), graph.shape(node.outputs[0].name)
    return axis if shape is None else axis % len(shape)
