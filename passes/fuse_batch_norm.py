"""Recognise BatchNormalization in pieces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir import Edit, Graph, NewNode
from graphopt.passbase import Context, Pass, Promise
from graphopt.rewrite import Refusal, rewrite
from graphopt.rewrite.affine import AFFINE_OPS, affine_run, constant_affine, in_pieces, in_type
from graphopt.rewrite.matching import sole_reader

__all__ = ["FuseBatchNorm"]


@dataclass(frozen=True)
class FuseBatchNorm(Pass):
    """Write two or more constant factors and offsets in a row as one BatchNormalization.

    They may differ per channel (axis 1). Run it after the passes that fold constants into layers:
    what is left then, before an activation or after Concat, is one pass over the tensor instead of
    several, and ONNX Runtime keeps BatchNormalization in its blocked layout.
    """

    name: ClassVar[str] = "fuse-batch-norm"
    promise: ClassVar[Promise] = Promise.EXACT

    def run(self, graph: Graph, context: Context) -> None:
        context.record(rewrite(graph, dict.fromkeys(AFFINE_OPS, (affine,))))


def affine(graph: Graph, node: gs.Node) -> Edit | Refusal | None:
    """Replace s * x + t, over two nodes or more, by BatchNormalization."""
    shape = graph.shape(node.outputs[0].name)
    if shape is None or len(shape) < 3 or not isinstance(shape[1], int):
        return None
    axis, channels = 1 - len(shape), shape[1]
    change, run = affine_run(graph, node, axis)
    reader = sole_reader(graph, node, *AFFINE_OPS)
    if change is None or len(run) < 2:
        return None
    if reader is not None and constant_affine(graph, reader, axis) is not None:
        return None
    if reason := in_pieces(graph, node):
        return Refusal("affine", node.name, reason)
    if graph.dtype(change.data) != np.float32:
        return Refusal("affine", node.name, "ONNX Runtime normalizes batches of floats alone")
    zero, one = np.zeros(channels, np.float32), np.ones(channels, np.float32)
    wide = [np.broadcast_to(values, (channels,)) for values in (change.scale, change.shift)]
    scale, shift = (in_type(values, zero.dtype) for values in wide)
    if scale is None or shift is None:
        return Refusal("affine", node.name, "the result is not finite")
    inputs = (change.data, scale, shift, zero, one)
    outputs = (node.outputs[0].name,)
    new = NewNode("BatchNormalization", inputs, outputs, {"epsilon": 0.0}, name=node.name)
    return Edit(remove=run, add=(new,))
