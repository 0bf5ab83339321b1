"""Fold the rearrangement of pixels into channels into the convolution that reads it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir import Array, Edit, Graph
from graphopt.passbase import Context, Pass, Promise
from graphopt.rewrite import Refusal, rewrite
from graphopt.rewrite.linear import LinearLayer, layer_bias, linear_layer, rebuild
from graphopt.rewrite.matching import private_source
from graphopt.rewrite.windows import TO_THE_END, forward_slices

__all__ = ["FoldSpaceToDepth"]


@dataclass(frozen=True)
class FoldSpaceToDepth(Pass):
    """Fold the rearrangement of pixels into channels into the convolution that reads it.

    Slices that take every b-th row and column, each with another offset, and their Concat (the
    "focus" of YOLO), or SpaceToDepth: the convolution after them becomes one over the image
    itself, with a b times larger window, pads and strides. It has the same weights in another
    order, b * b times fewer input channels, and as many MACs.
    """

    name: ClassVar[str] = "fold-space-to-depth"
    promise: ClassVar[Promise] = Promise.EXACT

    def run(self, graph: Graph, context: Context) -> None:
        context.record(rewrite(graph, {"Conv": (into_convolution,)}))


@dataclass(frozen=True)
class _Rearrangement:
    """Where each of b * b blocks of channels comes from."""

    nodes: tuple[gs.Node, ...]
    data: str
    size: int
    offsets: tuple[tuple[int, int], ...]


def into_convolution(graph: Graph, node: gs.Node) -> Edit | Refusal | None:
    """Conv(SpaceToDepth(x)) to Conv(x)."""
    layer = linear_layer(graph, node)
    found = _slices(graph, node) or _operator(graph, node)
    if layer is None or found is None or layer.weight.ndim != 4:
        return None
    bias = layer_bias(graph, layer)
    if layer.groups != 1:
        edit: Edit | str = "the convolution has groups"
    elif node.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        edit = "its padding depends on the size of the image"
    elif {*node.attrs.get("dilations", ())} - {1}:
        edit = "its window is dilated"
    elif isinstance(bias, str):
        edit = bias
    else:
        ends = (found.data, node.outputs[0].name)
        edit = rebuild(graph, layer, _spread(layer, found), bias, ends)
    if isinstance(edit, str):
        return Refusal("into_convolution", node.name, edit)
    [new] = edit.add
    attrs = {**new.attrs, **_scaled(node, found.size)}
    return Edit((*found.nodes, node), (replace(new, attrs=attrs),), constants=edit.constants)


def _slices(graph: Graph, node: gs.Node) -> _Rearrangement | None:
    """Concat of Slices that take every row and column of one tensor once."""
    concat = private_source(graph, node, 0, "Concat")
    if concat is None or int(concat.attrs["axis"]) not in (1, -3):
        return None
    size = math.isqrt(len(concat.inputs))
    makers = [private_source(graph, concat, place, "Slice") for place in range(len(concat.inputs))]
    parts = [part for part in makers if part is not None]
    names = {part.inputs[0].name for part in parts}
    offsets = [at for part in parts if (at := _offset(graph, part, size)) is not None]
    every = [(row, column) for row in range(size) for column in range(size)]
    if size < 2 or len(names) != 1 or len(parts) < len(makers) or sorted(offsets) != every:
        return None
    return _Rearrangement((*parts, concat), names.pop(), size, tuple(offsets))


def _offset(graph: Graph, node: gs.Node, step: int) -> tuple[int, int] | None:
    """The first row and column that a Slice takes, if it takes every `step`-th of both."""
    windows, shape = forward_slices(graph, node), graph.shape(node.inputs[0].name)
    if windows is None or shape is None or windows.keys() != {2, 3}:
        return None
    for axis, window in windows.items():
        size = shape[axis]
        whole = window.stop >= (size if isinstance(size, int) else TO_THE_END)
        divides = not isinstance(size, int) or size % step == 0
        if window.step != step or not 0 <= window.start < step or not whole or not divides:
            return None
    return windows[2].start, windows[3].start


def _operator(graph: Graph, node: gs.Node) -> _Rearrangement | None:
    maker = private_source(graph, node, 0, "SpaceToDepth")
    if maker is None:
        return None
    size = int(maker.attrs["blocksize"])
    offsets = tuple((row, column) for row in range(size) for column in range(size))
    return _Rearrangement((maker,), maker.inputs[0].name, size, offsets)


def _spread(layer: LinearLayer, found: _Rearrangement) -> Array:
    """The weight over the image: the block of channels of an offset is every b-th tap from it."""
    b, outputs = found.size, layer.outputs
    high, wide = layer.weight.shape[2:]
    weight = np.empty((outputs, layer.inputs // b**2, b * high, b * wide), layer.weight.dtype)
    blocks = np.split(layer.weight, b**2, axis=1)
    for (row, column), block in zip(found.offsets, blocks, strict=True):
        weight[:, :, row::b, column::b] = block
    return weight


def _scaled(node: gs.Node, size: int) -> dict[str, list[int]]:
    """The attributes that count pixels, for an image that is `size` times larger."""
    given = {"strides": (1, 1), **node.attrs}
    keys = [key for key in ("kernel_shape", "pads", "strides") if key in given]
    return {key: [size * int(entry) for entry in given[key]] for key in keys}
