"""Merge slices of slices, slices that divide an axis, and Split with Concat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir import Edit, Graph, NewNode
from graphopt.passbase import Context, Pass, Promise
from graphopt.rewrite import rewrite
from graphopt.rewrite.matching import is_op, source
from graphopt.rewrite.windows import forward_slices

__all__ = ["MergeSlices"]

_SLICE_BY_INPUTS = 10
_SPLIT_BY_INPUT = 13
"""Since these operator sets the bounds of Slice and the sizes of Split are inputs."""


@dataclass(frozen=True)
class MergeSlices(Pass):
    """Merge Slice after Slice, Slices that divide an axis, and Split with Concat.

    Slices on different axes become one, and so do two on one axis that take every element of a
    window counted from the start. Slices of one tensor that together are the whole of one axis,
    each element once, become one Split. Concat of all parts of a Split, in order and on its axis,
    is the tensor that was split; Split of a Concat at its seams gives back the parts.
    """

    name: ClassVar[str] = "merge-slices"
    promise: ClassVar[Promise] = Promise.EXACT

    def run(self, graph: Graph, context: Context) -> None:
        rules = {"Concat": (concat_of_split,), "Slice": (slices, division)}
        context.record(rewrite(graph, {**rules, "Split": (split_of_concat,)}))


def _slice(graph: Graph, data: str, output: str, windows: Mapping[int, slice]) -> NewNode:
    order = sorted(windows)
    starts = [windows[axis].start for axis in order]
    ends = [windows[axis].stop for axis in order]
    if graph.opset < _SLICE_BY_INPUTS:
        return NewNode("Slice", (data,), (output,), {"starts": starts, "ends": ends, "axes": order})
    steps = [windows[axis].step for axis in order]
    bounds = (np.array(numbers, np.int64) for numbers in (starts, ends, order, steps))
    return NewNode("Slice", (data, *bounds), (output,))


def _counted(graph: Graph, data: str, axis: int, window: slice) -> tuple[int, int] | None:
    """Start and end of a window from the front, if it takes every element between them."""
    shape = graph.shape(data)
    size = None if shape is None else shape[axis]
    if window.step != 1:
        return None
    if not isinstance(size, int):
        return (window.start, window.stop) if min(window.start, window.stop) >= 0 else None
    start, end, _ = window.indices(size)
    return start, max(start, end)


def slices(graph: Graph, node: gs.Node) -> Edit | None:
    """Slice(Slice(x)) to Slice(x)."""
    maker = source(graph, node, 0, "Slice")
    first = None if maker is None else forward_slices(graph, maker)
    second = forward_slices(graph, node)
    if maker is None or first is None or second is None:
        return None
    data, output = maker.inputs[0].name, node.outputs[0].name
    merged = {**first, **second}
    for axis in first.keys() & second.keys():
        inner = _counted(graph, data, axis, first[axis])
        outer = _counted(graph, node.inputs[0].name, axis, second[axis])
        if inner is None or outer is None:
            return None
        merged[axis] = slice(inner[0] + outer[0], min(inner[1], inner[0] + outer[1]), 1)
    return Edit(remove=(node,), add=(_slice(graph, data, output, merged),))


def division(graph: Graph, node: gs.Node) -> Edit | None:
    """Slices of one tensor that divide one of its axes, to Split."""
    data = node.inputs[0].name
    mine, shape = forward_slices(graph, node), graph.shape(data)
    if mine is None or shape is None or len(mine) != 1:
        return None
    [axis] = mine
    parts: dict[tuple[int, int], gs.Node] = {}
    for reader in graph.consumers(data):
        if not is_op(reader, "Slice") or graph.scope_of(reader) is not graph.scope_of(node):
            continue
        windows = forward_slices(graph, reader) or {}
        bounds = _counted(graph, data, axis, windows[axis]) if windows.keys() == {axis} else None
        if bounds is not None and bounds[0] < bounds[1]:
            parts[bounds] = reader
    order = sorted(parts)
    edges = [0, *(end for _, end in order)]
    if len(order) < 2 or edges[-1] != shape[axis] or edges[:-1] != [start for start, _ in order]:
        return None
    sizes = [end - start for start, end in order]
    readers = tuple(parts[bounds] for bounds in order)
    outputs = tuple(reader.outputs[0].name for reader in readers)
    return Edit(remove=readers, add=(_split(graph, data, outputs, axis, sizes),))


def _split(
    graph: Graph, data: str, outputs: tuple[str, ...], axis: int, sizes: list[int]
) -> NewNode:
    if graph.opset < _SPLIT_BY_INPUT:
        return NewNode("Split", (data,), outputs, {"axis": axis, "split": sizes})
    return NewNode("Split", (data, np.array(sizes, np.int64)), outputs, {"axis": axis})


def concat_of_split(graph: Graph, node: gs.Node) -> Edit | None:
    """Concat(Split(x)) to x."""
    maker = source(graph, node, 0, "Split")
    axis = _axis(graph, node)
    if maker is None or axis is None or _axis(graph, maker) != axis:
        return None
    parts, data = [tensor.name for tensor in maker.outputs], maker.inputs[0].name
    output = node.outputs[0].name
    if [t.name for t in node.inputs] != parts or not graph.can_replace(output, data):
        return None
    return Edit(remove=(node,), replace={output: data})


def split_of_concat(graph: Graph, node: gs.Node) -> Edit | None:
    """Split(Concat(a, b)) to a and b."""
    maker = source(graph, node, 0, "Concat")
    axis = _axis(graph, node)
    if maker is None or axis is None or _axis(graph, maker) != axis:
        return None
    if len(maker.inputs) != len(node.outputs) or any(graph.is_output(t.name) for t in node.outputs):
        return None
    pairs = [(new.name, old.name) for new, old in zip(node.outputs, maker.inputs, strict=True)]
    for new, old in pairs:
        sizes = {shape[axis] if shape else None for shape in (graph.shape(old), graph.shape(new))}
        if len(sizes) > 1 or not all(isinstance(size, int) for size in sizes):
            return None
    return Edit(remove=(node,), replace=dict(pairs))


def _axis(graph: Graph, node: gs.Node) -> int | None:
    """The axis of a Concat or Split, counted from the front."""
    shape = graph.shape(node.inputs[0].name)
    return None if shape is None else int(node.attrs.get("axis", 0)) % len(shape)
