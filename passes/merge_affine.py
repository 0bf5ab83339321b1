"""Merge constant factors and offsets that follow each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir import Array, Edit, Graph, NewNode
from graphopt.passbase import Context, Pass, Promise
from graphopt.rewrite import rewrite
from graphopt.rewrite.affine import (
    AFFINE_OPS,
    Affine,
    Vector,
    constant_affine,
    elementwise_affine,
    in_pieces,
    in_type,
)
from graphopt.rewrite.linear import LINEAR_OPS, linear_layer
from graphopt.rewrite.matching import data_source, is_op, sharing

__all__ = ["MergeAffine"]


@dataclass(frozen=True)
class MergeAffine(Pass):
    """Merge Mul, Div, Add and Sub with constants that follow each other.

    (x * a) * b becomes x * ab and (x + a) + b becomes x + (a + b), unless the merged constant
    would be larger than both or imprecise in its type, or a is so large that adding it rounds.
    (x + b) * c becomes x * c + bc where a factor or a linear layer before it can take c, as in a
    projection whose result is scaled.
    """

    name: ClassVar[str] = "merge-affine"
    promise: ClassVar[Promise] = Promise.EXACT

    def run(self, graph: Graph, context: Context) -> None:
        context.record(rewrite(graph, dict.fromkeys(AFFINE_OPS, (merge, hoist))))


def merge(graph: Graph, node: gs.Node) -> Edit | None:
    """Replace (x * a) * b by x * ab, and (x + a) + b by x + (a + b)."""
    alike = ("Mul", "Div") if node.op in ("Mul", "Div") else ("Add", "Sub")
    maker = data_source(graph, node, *alike)
    first = None if maker is None else elementwise_affine(graph, maker)
    second = elementwise_affine(graph, node)
    if maker is None or first is None or second is None or sharing(graph, maker):
        return None
    whole, dtype = second.after(first), graph.dtype(first.data)
    bloats = whole.scale.size > max(first.scale.size, second.scale.size)
    if bloats or (whole.scales() and whole.shifts()) or _rounds(first, dtype):
        return None
    op, value = ("Add", whole.shift) if whole.shifts() else ("Mul", whole.scale)
    constant = _precise(value, dtype)
    if constant is None or in_pieces(graph, maker):
        return None
    new = NewNode(op, (whole.data, constant), (node.outputs[0].name,), name=node.name)
    return Edit(remove=(maker, node), add=(new,))


def _precise(value: Vector, dtype: np.dtype[np.generic] | None) -> Array | None:
    """A constant in a tensor's type; None if it overflows there, or nearly vanishes."""
    result = in_type(value, dtype)
    if result is None or np.any(
        (np.abs(value) < np.finfo(result.dtype.name).tiny) & (value != 0.0)
    ):
        return None
    return result


def _rounds(change: Affine, dtype: np.dtype[np.generic] | None) -> bool:
    """Whether an offset is so large that adding and subtracting it rounds to whole numbers."""
    return dtype is not None and bool(
        np.any(np.abs(change.shift) * np.finfo(dtype.name).eps >= 1.0)
    )


def hoist(graph: Graph, node: gs.Node) -> Edit | None:
    """Replace (x + b) * c by x * c + bc, where the layer or factor that makes x absorbs c."""
    maker = data_source(graph, node, "Add", "Sub") if is_op(node, "Mul", "Div") else None
    ahead = None if maker is None else data_source(graph, maker, *LINEAR_OPS, "Mul", "Div")
    if maker is None or ahead is None or sharing(graph, maker) or sharing(graph, ahead):
        return None
    first, second = elementwise_affine(graph, maker), elementwise_affine(graph, node)
    if first is None or second is None or not _absorbs(graph, ahead, node):
        return None
    whole, dtype = second.after(first), graph.dtype(first.data)
    factor, offset = _precise(whole.scale, dtype), _precise(whole.shift, dtype)
    if factor is None or offset is None:
        return None
    if whole.shift.size > max(first.shift.size, second.shift.size):
        return None
    scaled, output = graph.fresh(f"{maker.outputs[0].name}_scaled"), node.outputs[0].name
    times = NewNode("Mul", (whole.data, factor), (scaled,))
    return Edit(remove=(maker, node), add=(times, NewNode("Add", (scaled, offset), (output,))))


def _absorbs(graph: Graph, ahead: gs.Node, node: gs.Node) -> bool:
    """Whether the factor that `node` applies becomes part of the node `ahead`."""
    layer = linear_layer(graph, ahead)
    if layer is None:
        return elementwise_affine(graph, ahead) is not None and not in_pieces(graph, ahead)
    return constant_affine(graph, node, layer.channel_axis) is not None
