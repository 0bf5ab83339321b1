"""Write picks from an axis and reductions of a single element more simply."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir import Edit, Graph, NewNode
from graphopt.passbase import Context, Pass, Promise
from graphopt.rewrite import rewrite
from graphopt.rewrite.matching import integers, source

__all__ = ["SimplifyAxes"]

_REDUCTIONS = ("ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum")
"""Reductions that give a single element back as it is."""

_SQUEEZE_BY_INPUT = 13
"""Since this operator set Squeeze takes its axes as an input."""


@dataclass(frozen=True)
class SimplifyAxes(Pass):
    """Write picks from an axis and reductions of a single element more simply.

    Gather of one index and Unsqueeze of its axis become a Gather that keeps the axis. A mean, sum,
    product, minimum or maximum over axes of size 1, which it drops, becomes Squeeze, which merges
    with its neighbours.
    """

    name: ClassVar[str] = "simplify-axes"
    promise: ClassVar[Promise] = Promise.EXACT

    def run(self, graph: Graph, context: Context) -> None:
        rules = dict.fromkeys(_REDUCTIONS, (as_squeeze,))
        context.record(rewrite(graph, {**rules, "Unsqueeze": (kept_axis,)}))


def kept_axis(graph: Graph, node: gs.Node) -> Edit | None:
    """Unsqueeze(Gather(x, i), axis) to Gather(x, [i], axis)."""
    maker, axes = source(graph, node, 0, "Gather"), integers(graph, node, 1, "axes")
    if maker is None or axes is None or len(axes) != 1:
        return None
    data, output = maker.inputs[0].name, node.outputs[0].name
    shape, index = graph.shape(data), graph.constant(maker.inputs[1].name)
    if shape is None or index is None or index.ndim:
        return None
    axis = int(maker.attrs.get("axis", 0)) % len(shape)
    if axes[0] % len(shape) != axis:
        return None
    new = NewNode("Gather", (data, index.reshape(1)), (output,), {"axis": axis}, name=maker.name)
    return Edit(remove=(node,), add=(new,))


def as_squeeze(graph: Graph, node: gs.Node) -> Edit | None:
    """A reduction over axes of size 1 that drops them, to Squeeze."""
    data, output = node.inputs[0].name, node.outputs[0].name
    shape, axes = graph.shape(data), integers(graph, node, 1, "axes")
    given = len(node.inputs) > 1 and bool(node.inputs[1].name)
    if shape is None or node.attrs.get("keepdims", 1) or (axes is None and given):
        return None
    if not axes:
        axes = () if node.attrs.get("noop_with_empty_axes", 0) else tuple(range(len(shape)))
    named = sorted(axis % len(shape) for axis in axes)
    if not named or any(shape[axis] != 1 for axis in named):
        return None
    if graph.opset < _SQUEEZE_BY_INPUT:
        new = NewNode("Squeeze", (data,), (output,), {"axes": named}, name=node.name)
    else:
        new = NewNode("Squeeze", (data, np.array(named, np.int64)), (output,), name=node.name)
    return Edit(remove=(node,), add=(new,))
