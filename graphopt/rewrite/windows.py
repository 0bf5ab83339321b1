"""What a Slice takes of each axis, as Python slices."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir import Graph
from graphopt.rewrite.matching import integers

__all__ = ["TO_THE_END", "forward_slices"]

TO_THE_END = np.iinfo(np.int32).max
"""Exporters write an open end as the largest number of 32 or 64 bits."""


def forward_slices(graph: Graph, node: gs.Node) -> dict[int, slice] | None:
    """What a Slice takes, by axis counted from the front.

    None if bounds are computed, an axis cannot be named, or a step goes backwards: of forward
    steps, Python and ONNX clamp the bounds alike.
    """
    starts, ends = integers(graph, node, 1, "starts"), integers(graph, node, 2, "ends")
    if starts is None or ends is None:
        return None
    given = "axes" in node.attrs or (len(node.inputs) > 3 and bool(node.inputs[3].name))
    axes = integers(graph, node, 3, "axes") if given else tuple(range(len(starts)))
    stepped = len(node.inputs) > 4 and bool(node.inputs[4].name)
    steps = integers(graph, node, 4, "steps") if stepped else (1,) * len(starts)
    shape = graph.shape(node.inputs[0].name)
    if axes is None or steps is None or min(steps, default=1) < 1:
        return None
    if shape is None and min(axes, default=0) < 0:
        return None
    named = [axis if shape is None else axis % len(shape) for axis in axes]
    return dict(zip(named, map(slice, starts, ends, steps), strict=True))
