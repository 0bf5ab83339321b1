"""Merge two linear layers with nothing between them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir import Edit, Graph
from graphopt.passbase import Context, Pass, Promise
from graphopt.rewrite import Refusal, rewrite
from graphopt.rewrite.affine import Vector
from graphopt.rewrite.linear import LinearLayer, layer_bias, linear_layer, rebuild
from graphopt.rewrite.matching import sharing, source

__all__ = ["MergeLayers"]


@dataclass(frozen=True)
class MergeLayers(Pass):
    """Merge a 1x1 Conv with the Conv that alone reads it, or two Gemm or MatMul in a row.

    The weights are multiplied. Only where parameters and multiplications both fall: a narrow
    layer between two wide ones is a factorization and stays. A bias between the two asks that the
    second layer does not pad.
    """

    name: ClassVar[str] = "merge-layers"
    promise: ClassVar[Promise] = Promise.EXACT

    def run(self, graph: Graph, context: Context) -> None:
        context.record(rewrite(graph, dict.fromkeys(("Conv", "Gemm", "MatMul"), (merge,))))


def merge(graph: Graph, node: gs.Node) -> Edit | Refusal | None:
    """Replace second(first(x)) by one layer."""
    maker = source(graph, node, 0, *(("Conv",) if node.op == "Conv" else ("Gemm", "MatMul")))
    first = None if maker is None else linear_layer(graph, maker)
    second = linear_layer(graph, node)
    if maker is None or first is None or second is None or not _is_plain(first):
        return None
    if second.groups != 1 or node.attrs.get("transA", 0) or sharing(graph, maker):
        return None
    found = _merged(graph, first, second)
    if isinstance(found, str):
        return Refusal("merge", node.name, found)
    return replace(found, remove=(maker, node))


def _is_plain(layer: LinearLayer) -> bool:
    """Whether a layer maps each position by itself, with one group."""
    taps, steps = layer.weight.shape[2:], layer.node.attrs.get("strides", (1,))
    transposed = layer.node.attrs.get("transA", 0)
    return layer.groups == 1 and layer.unpadded and {*taps, *steps} <= {1} and not transposed


def _merged(graph: Graph, first: LinearLayer, second: LinearLayer) -> Edit | str:
    taps = math.prod(second.weight.shape[2:])
    inner, outer = first.weight.size, second.weight.size
    merged = first.inputs * second.outputs * taps
    if merged >= inner + outer:
        return f"{merged} weights would take the place of {inner} and {outer}"
    biases = layer_bias(graph, first), layer_bias(graph, second)
    if isinstance(biases[0], str) or isinstance(biases[1], str):
        return "a bias is computed"
    bias: Vector | None = biases[1]
    if biases[0] is not None and np.any(biases[0]):
        if not second.unpadded:
            return "a bias before a padded layer differs at the border"
        bias = second.response(biases[0]) + (0.0 if bias is None else bias)
    matrix = _matrix(first).reshape(first.outputs, -1)
    product = np.moveaxis(np.tensordot(_matrix(second), matrix, (1, 0)), -1, 1)
    if not second.outputs_first:
        product = product.T
    ends = (first.node.inputs[0].name, second.node.outputs[0].name)
    return rebuild(graph, second, product.astype(second.weight.dtype), bias, ends)


def _matrix(layer: LinearLayer) -> Vector:
    """The weight with its outputs first, in double precision, the layer's factor included."""
    weight: Vector = layer.weight.astype(np.float64) * layer.factor
    return weight if layer.outputs_first else weight.T
