"""Merge chains of operators that only move axes or name them differently."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir import Edit, Graph, NewNode
from graphopt.passbase import Context, Pass, Promise
from graphopt.rewrite import Refusal, Rule, rewrite
from graphopt.rewrite.matching import integers, is_op, source
from graphopt.rewrite.shaping import reshape_target

__all__ = ["MergeReshapes"]

_RESHAPES = ("Flatten", "Reshape", "Squeeze", "Unsqueeze")
_AXES_AS_INPUT = 13
"""Since this operator set Squeeze and Unsqueeze take their axes as an input."""


@dataclass(frozen=True)
class MergeReshapes(Pass):
    """Merge chains of Reshape, Flatten, Squeeze and Unsqueeze, and chains of Transpose.

    Squeeze and Unsqueeze cancel or become one of them, whatever the sizes are; other chains
    become one Reshape if its target can be written as a constant. Two Transposes become one, or
    none if the second undoes the first. A Transpose that moves only axes of size 1 becomes a
    Reshape, which moves no data and merges with its neighbours.
    """

    name: ClassVar[str] = "merge-reshapes"
    promise: ClassVar[Promise] = Promise.EXACT

    def run(self, graph: Graph, context: Context) -> None:
        rules: dict[str, tuple[Rule, ...]] = {
            "Flatten": (reshapes,),
            "Reshape": (reshapes,),
            "Squeeze": (squeezes, reshapes),
            "Transpose": (transposes, transpose_as_reshape),
            "Unsqueeze": (squeezes, reshapes),
        }
        context.record(rewrite(graph, rules))


def reshapes(graph: Graph, node: gs.Node) -> Edit | Refusal | None:
    """Reshape(Reshape(x)) to Reshape(x), for all operators that keep the order of the elements."""
    maker = source(graph, node, 0, *_RESHAPES)
    if maker is None:
        return None
    data, output = maker.inputs[0].name, node.outputs[0].name
    target = reshape_target(graph.shape(data), graph.shape(output))
    if target is None:
        return Refusal("reshapes", node.name, "its shape cannot be written as a constant")
    return Edit(remove=(node,), add=(NewNode("Reshape", (data, target), (output,)),))


def squeezes(graph: Graph, node: gs.Node) -> Edit | None:
    """Chains of Squeeze and Unsqueeze to one of them, or none."""
    maker = source(graph, node, 0, "Squeeze", "Unsqueeze")
    if maker is None:
        return None
    data, output = maker.inputs[0].name, node.outputs[0].name
    shape = graph.shape(data)
    if shape is None:
        return None
    first = _renamed(graph, maker, list(range(len(shape))))
    axes = None if first is None else _renamed(graph, node, first)
    if axes is None:
        return None
    added = [place for place, axis in enumerate(axes) if axis is None]
    gone = [axis for axis in range(len(shape)) if axis not in axes]
    if not added and not gone:
        return _bypass(graph, node, data)
    if added and gone:
        return None
    op, moved = ("Unsqueeze", added) if added else ("Squeeze", gone)
    if graph.opset < _AXES_AS_INPUT:
        new = NewNode(op, (data,), (output,), {"axes": moved})
    else:
        new = NewNode(op, (data, np.array(moved, np.int64)), (output,))
    return Edit(remove=(node,), add=(new,))


def _renamed(graph: Graph, node: gs.Node, axes: list[int | None]) -> list[int | None] | None:
    """The axes of x, None for those that were added, after a Squeeze or an Unsqueeze."""
    given = integers(graph, node, 1, "axes")
    if given is None:
        return None
    if is_op(node, "Squeeze"):
        gone = {axis % len(axes) for axis in given}
        return [axis for place, axis in enumerate(axes) if place not in gone]
    added = {axis % (len(axes) + len(given)) for axis in given}
    kept = iter(axes)
    return [None if p in added else next(kept) for p in range(len(axes) + len(given))]


def transposes(graph: Graph, node: gs.Node) -> Edit | None:
    """Transpose(Transpose(x)) to Transpose(x), or to x."""
    maker = source(graph, node, 0, "Transpose")
    if maker is None:
        return None
    shape = graph.shape(maker.inputs[0].name)
    first, second = maker.attrs.get("perm"), node.attrs.get("perm")
    if first is None or second is None:
        if shape is None:
            return None
        backwards = list(range(len(shape)))[::-1]
        first, second = first or backwards, second or backwards
    order = [first[axis] for axis in second]
    data, output = maker.inputs[0].name, node.outputs[0].name
    if order == sorted(order):
        return _bypass(graph, node, data)
    return Edit(remove=(node,), add=(NewNode("Transpose", (data,), (output,), {"perm": order}),))


def transpose_as_reshape(graph: Graph, node: gs.Node) -> Edit | None:
    """A Transpose that moves only axes of size 1, to Reshape."""
    data, output = node.inputs[0].name, node.outputs[0].name
    shape = graph.shape(data)
    if shape is None:
        return None
    order = node.attrs.get("perm", range(len(shape))[::-1])
    moved = [axis for axis in order if shape[axis] != 1]
    target = reshape_target(shape, graph.shape(output))
    if moved != sorted(moved) or list(order) == sorted(order) or target is None:
        return None
    return Edit(remove=(node,), add=(NewNode("Reshape", (data, target), (output,)),))


def _bypass(graph: Graph, node: gs.Node, data: str) -> Edit:
    """Let readers of a node's output read `data`, which is the same."""
    output = node.outputs[0].name
    if graph.can_replace(output, data):
        return Edit(remove=(node,), replace={output: data})
    return Edit(remove=(node,), add=(NewNode("Identity", (data,), (output,)),))
