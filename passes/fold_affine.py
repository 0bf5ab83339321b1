"""Fold constant factors and offsets into the layers beside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir import Edit, Graph, NewNode
from graphopt.passbase import Context, Pass, Promise
from graphopt.rewrite import Refusal, rewrite
from graphopt.rewrite.affine import (
    AFFINE_OPS,
    Affine,
    Vector,
    batch_norm,
    constant_affine,
    in_pieces,
    in_type,
)
from graphopt.rewrite.linear import (
    LINEAR_OPS,
    fold_after,
    fold_before,
    linear_layer,
    reading_layers,
)
from graphopt.rewrite.matching import data_source, sharing

__all__ = ["FoldAffine"]


@dataclass(frozen=True)
class FoldAffine(Pass):
    """Fold Mul, Add, Sub and Div with constants into Conv, ConvTranspose, Gemm or MatMul.

    The constant may differ per channel and along no other axis. After a layer, factors go into its
    weight and offsets into its bias (or into BatchNormalization's coefficients). Before layers,
    factors always fold, offsets only if no layer pads its input. A factor that ends an activation
    or a normalization written in pieces stays, so that they can be recognised.
    """

    name: ClassVar[str] = "fold-affine"
    promise: ClassVar[Promise] = Promise.EXACT

    def run(self, graph: Graph, context: Context) -> None:
        rules = (into_previous, into_batch_norm, into_next)
        context.record(rewrite(graph, dict.fromkeys(AFFINE_OPS, rules)))


def into_previous(graph: Graph, node: gs.Node) -> Edit | Refusal | None:
    """Replace layer(x) * c, layer(x) + c and the like by layer'(x)."""
    maker = data_source(graph, node, *LINEAR_OPS)
    layer = None if maker is None else linear_layer(graph, maker)
    change = None if layer is None else constant_affine(graph, node, layer.channel_axis)
    if maker is None or layer is None or change is None:
        return None
    found = sharing(graph, maker) or fold_after(graph, layer, change, node)
    return Refusal("into_previous", node.name, found) if isinstance(found, str) else found


def into_batch_norm(graph: Graph, node: gs.Node) -> Edit | Refusal | None:
    """Replace s * BatchNormalization(x) + t by a BatchNormalization with other coefficients."""
    maker = data_source(graph, node, "BatchNormalization")
    shape = graph.shape(node.outputs[0].name)
    if maker is None or shape is None or not isinstance(batch_norm(graph, maker), Affine):
        return None
    change = constant_affine(graph, node, 1 - len(shape))
    if change is None:
        return None
    if reason := sharing(graph, maker):
        return Refusal("into_batch_norm", node.name, reason)
    data, gamma, beta, mean, variance = (tensor.name for tensor in maker.inputs)
    dtype = graph.dtype(gamma)
    scale = in_type(change.scale * _doubles(graph, gamma), dtype)
    shift = in_type(change.scale * _doubles(graph, beta) + change.shift, dtype)
    if scale is None or shift is None:
        return Refusal("into_batch_norm", node.name, f"the result is not finite in {dtype}")
    inputs = (data, scale, shift, mean, variance)
    outputs = (node.outputs[0].name,)
    new = NewNode(maker.op, inputs, outputs, maker.attrs, name=maker.name)
    return Edit(remove=(maker, node), add=(new,))


def into_next(graph: Graph, node: gs.Node) -> Edit | Refusal | None:
    """Replace layer(x * c) and the like by layer'(x), for every layer that reads it."""
    layers = reading_layers(graph, node) or []
    axes = {layer.channel_axis for layer in layers}
    change = constant_affine(graph, node, axes.pop()) if len(axes) == 1 else None
    if change is None:
        return None
    found = in_pieces(graph, node) or fold_before(graph, layers, change, node)
    return Refusal("into_next", node.name, found) if isinstance(found, str) else found


def _doubles(graph: Graph, name: str) -> Vector:
    value = graph.constant(name)
    assert value is not None, "batch_norm has read it"
    return value.astype(np.float64)
