"""Move constant factors and offsets before a Transpose, to where they fold into a layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir import Edit, Graph, NewNode
from graphopt.passbase import Context, Pass, Promise
from graphopt.rewrite import rewrite
from graphopt.rewrite.affine import AFFINE_OPS
from graphopt.rewrite.linear import LINEAR_OPS, linear_layer
from graphopt.rewrite.matching import (
    data_source,
    is_op,
    keeps_shape,
    operands,
    private_source,
    sharing,
)

__all__ = ["HoistScales"]


@dataclass(frozen=True)
class HoistScales(Pass):
    """Move Mul, Add, Sub and Div with constants before a Transpose that follows a linear layer.

    Only if the constant then runs along the layer's channels, so that fold-affine folds it into
    the weight or the bias: the layer scale of ConvNeXt, written for images after a layer of rows.
    """

    name: ClassVar[str] = "hoist-scales"
    promise: ClassVar[Promise] = Promise.EXACT

    def run(self, graph: Graph, context: Context) -> None:
        context.record(rewrite(graph, dict.fromkeys(AFFINE_OPS, (before_transpose,))))


def before_transpose(graph: Graph, node: gs.Node) -> Edit | None:
    """Replace Transpose(layer(x)) * c by Transpose(layer(x) * c')."""
    pair, transpose = operands(graph, node), data_source(graph, node, "Transpose")
    if pair is None or transpose is None or sharing(graph, transpose):
        return None
    layer = _layer(graph, transpose)
    order, shape = transpose.attrs.get("perm"), graph.shape(pair.data)
    found = None if layer is None else linear_layer(graph, layer)
    if found is None or order is None or shape is None or len(order) != len(shape):
        return None
    if not np.issubdtype(pair.constant.dtype, np.floating):
        return None
    if is_op(node, "Div") and not pair.first:
        return None
    if not keeps_shape(graph, pair.data, pair.constant):
        return None
    whole = pair.constant.reshape((1,) * (len(order) - pair.constant.ndim) + pair.constant.shape)
    moved = np.transpose(whole, np.argsort(order))
    if moved.size != moved.shape[found.channel_axis]:
        return None
    moved = moved.reshape(moved.shape[found.channel_axis :])
    data, between = transpose.inputs[0].name, graph.fresh(f"{transpose.inputs[0].name}_scaled")
    inputs = (data, moved) if pair.first else (moved, data)
    scaled = NewNode(node.op, inputs, (between,), node.attrs, name=node.name)
    outputs = (node.outputs[0].name,)
    turned = NewNode("Transpose", (between,), outputs, transpose.attrs, name=transpose.name)
    return Edit(remove=(transpose, node), add=(scaled, turned))


def _layer(graph: Graph, node: gs.Node) -> gs.Node | None:
    """The linear layer that a node alone reads, with a constant added to its result or not."""
    plus = private_source(graph, node, 0, "Add", "Sub")
    if plus is None:
        return private_source(graph, node, 0, *LINEAR_OPS)
    pair = operands(graph, plus)
    if pair is None or (not pair.first and is_op(plus, "Sub")):
        return None
    return private_source(graph, plus, 0 if pair.first else 1, *LINEAR_OPS)
