"""Write targets that are computed from dynamic shapes as constants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir import Array, Edit, Graph, remade
from graphopt.passbase import Context, Pass, Promise
from graphopt.rewrite import rewrite
from graphopt.rewrite.matching import integers
from graphopt.rewrite.shaping import expand_target, reshape_target

__all__ = ["FoldShapes"]


@dataclass(frozen=True)
class FoldShapes(Pass):
    """Replace targets computed from dynamic shapes by constants, so that the arithmetic goes.

    Reshape to (N, C / 2, ...) where only N is unknown becomes Reshape to (0, C / 2, ...) if N is
    the input's own first dimension, and (-1, C / 2, ...) otherwise; Expand to a dimension that
    the input has already becomes Expand to 1 there; Slice up to the size of its axis becomes
    Slice to the end. The batch stays dynamic. Targets with two unknown numbers stay computed. A
    dimension that has only a name is taken to be at least 1.
    """

    name: ClassVar[str] = "fold-shapes"
    promise: ClassVar[Promise] = Promise.EXACT

    def run(self, graph: Graph, context: Context) -> None:
        rules = {
            "Expand": (constant_expand,),
            "Reshape": (constant_reshape,),
            "Slice": (constant_slice,),
        }
        context.record(rewrite(graph, rules))


def constant_reshape(graph: Graph, node: gs.Node) -> Edit | None:
    """Reshape(x, computed) to Reshape(x, constant)."""
    if len(node.inputs) < 2 or graph.constant(node.inputs[1].name) is not None:
        return None
    target = reshape_target(graph.shape(node.inputs[0].name), graph.shape(node.outputs[0].name))
    return None if target is None else _with_inputs(node, {1: target})


def constant_expand(graph: Graph, node: gs.Node) -> Edit | None:
    """Expand(x, computed) to Expand(x, constant)."""
    if graph.constant(node.inputs[1].name) is not None:
        return None
    target = expand_target(graph.shape(node.inputs[0].name), graph.shape(node.outputs[0].name))
    return None if target is None else _with_inputs(node, {1: target})


def constant_slice(graph: Graph, node: gs.Node) -> Edit | None:
    """Slice(x, computed starts, computed ends) to constants."""
    computed = [
        index
        for index, tensor in enumerate(node.inputs[1:3], start=1)
        if graph.constant(tensor.name) is None
    ]
    shape = graph.shape(node.inputs[0].name)
    if not computed or shape is None:
        return None
    axes = integers(graph, node, 3, "axes") if len(node.inputs) > 3 else range(len(shape))
    steps = integers(graph, node, 4, "steps") if len(node.inputs) > 4 else ()
    dtype = graph.dtype(node.inputs[1].name)
    if axes is None or steps is None or any(step < 1 for step in steps) or dtype is None:
        return None
    to_the_end = np.iinfo(dtype.name).max
    new: dict[int, Array] = {}
    for index in computed:
        bounds = graph.known(node.inputs[index].name)
        if bounds is None:
            return None
        sizes = [shape[axis] for axis in axes][: bounds.size]
        numbers = [
            bound if isinstance(bound, int) else to_the_end if bound and bound == size else None
            for bound, size in zip(bounds, sizes, strict=True)
        ]
        if None in numbers:
            return None
        new[index] = np.array(numbers, dtype)
    return _with_inputs(node, new)


def _with_inputs(node: gs.Node, arrays: dict[int, Array]) -> Edit:
    """The same node with some inputs constant; in a new target 0 means the input's own size."""
    return Edit(remove=(node,), add=(remade(node, arrays, {"allowzero": None}),))
