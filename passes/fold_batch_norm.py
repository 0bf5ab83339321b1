"""Fold BatchNormalization into the linear layers beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_graphsurgeon as gs

from graphopt.ir import Edit, Graph
from graphopt.passbase import Context, Pass, Promise
from graphopt.rewrite import Refusal, rewrite
from graphopt.rewrite.affine import batch_norm
from graphopt.rewrite.linear import (
    LINEAR_OPS,
    LinearLayer,
    fold_after,
    fold_before,
    linear_layer,
    reading_layers,
)
from graphopt.rewrite.matching import sharing, source

__all__ = ["FoldBatchNorm"]


@dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """Fold BatchNormalization at inference into Conv, ConvTranspose, Gemm or MatMul.

    With a = scale / sqrt(variance + epsilon) and b = bias - a * mean, the layer before it takes
    W' = a W and bias' = a bias + b; a bias is made where there was none. Where no layer stands
    before it, the layers that read it take W' = W a and bias' = bias + W b, which is exact only if
    none of them pads its input (or b is zero). After Concat or Add it stays.
    """

    name: ClassVar[str] = "fold-batch-norm"
    promise: ClassVar[Promise] = Promise.EXACT

    def run(self, graph: Graph, context: Context) -> None:
        context.record(rewrite(graph, {"BatchNormalization": (into_previous, into_next)}))


def into_previous(graph: Graph, node: gs.Node) -> Edit | Refusal | None:
    """Replace BatchNormalization(layer(x)) by layer'(x)."""
    maker = source(graph, node, 0, *LINEAR_OPS)
    change = batch_norm(graph, node)
    if maker is None or change is None:
        return None
    layer = linear_layer(graph, maker)
    if isinstance(change, str):
        found: Edit | str = change
    elif layer is None:
        found = f"the weight of {maker.name!r} is computed"
    elif reason := sharing(graph, maker):
        found = reason
    elif layer.channel_axis != _axis(layer):
        found = f"{maker.op} and BatchNormalization have their channels on different axes"
    else:
        found = fold_after(graph, layer, change, node)
    return Refusal("into_previous", node.name, found) if isinstance(found, str) else found


def into_next(graph: Graph, node: gs.Node) -> Edit | Refusal | None:
    """Replace layer(BatchNormalization(x)) by layer'(x), for every layer that reads it."""
    change, layers = batch_norm(graph, node), reading_layers(graph, node)
    if change is None or isinstance(change, str) or layers is None:
        return None
    if any(layer.channel_axis != _axis(layer) for layer in layers):
        return Refusal("into_next", node.name, "the channels are on different axes")
    found = fold_before(graph, layers, change, node)
    return Refusal("into_next", node.name, found) if isinstance(found, str) else found


def _axis(layer: LinearLayer) -> int | None:
    """Where BatchNormalization has its channels in the layer's input and output, from the end."""
    return None if layer.rank is None else 1 - layer.rank
