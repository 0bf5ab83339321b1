"""Recognise Relu, Clip, LeakyRelu and PRelu in pieces."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir import Edit, Graph, NewNode
from graphopt.passbase import Context, Pass, Promise
from graphopt.rewrite import rewrite
from graphopt.rewrite.affine import elementwise_affine
from graphopt.rewrite.matching import dying, operands, private_source, source
from graphopt.rewrite.ramps import CLIP_OPS, Ramp, bounds

__all__ = ["FuseRelus"]


@dataclass(frozen=True)
class FuseRelus(Pass):
    """Recognise rectifiers that are written in pieces.

    max(x, 0) and clip(x, 0, inf) become Relu, min(max(x, a), b) becomes Clip, max(x, a x) with a
    between 0 and 1 LeakyRelu, and relu(x) - a relu(-x) PRelu with a number or one per channel.
    """

    name: ClassVar[str] = "fuse-relus"
    promise: ClassVar[Promise] = Promise.EXACT

    def run(self, graph: Graph, context: Context) -> None:
        rules = {
            "Add": (prelu,),
            "Clip": (clip,),
            "Max": (leaky_relu, clip),
            "Min": (clip,),
            "Relu": (clip,),
            "Sub": (prelu,),
        }
        context.record(rewrite(graph, rules))


def clip(graph: Graph, node: gs.Node) -> Edit | None:
    """Replace Max and Min with constants, alone or in a row, by Relu or Clip."""
    found = bounds(graph, node)
    if found is None:
        return None
    index, low, high = found
    data, whole = node.inputs[index].name, Ramp("").clipped(low, high)
    going: tuple[gs.Node, ...] = (node,)
    maker = private_source(graph, node, index, *CLIP_OPS)
    inner = None if maker is None else bounds(graph, maker)
    if maker is not None and inner is not None:
        data, going = maker.inputs[inner[0]].name, (maker, node)
        whole = Ramp("").clipped(*inner[1:]).clipped(low, high)
    dtype = graph.dtype(data)
    if dtype is None or not np.issubdtype(dtype, np.floating):
        return None
    output = node.outputs[0].name
    if (whole.low, whole.high) == (0.0, math.inf):
        new = NewNode("Relu", (data,), (output,), name=node.name)
        return None if [gone.op for gone in going] == ["Relu"] else Edit(remove=going, add=(new,))
    if len(going) == 1 or not {gone.op for gone in going} & {"Max", "Min"}:
        return None
    return Edit(remove=going, add=(_clip(graph, (data, output), whole, dtype),))


def _clip(graph: Graph, ends: tuple[str, str], whole: Ramp, dtype: np.dtype[np.generic]) -> NewNode:
    given = {"min": whole.low, "max": whole.high}
    finite = {key: value for key, value in given.items() if math.isfinite(value)}
    if graph.opset < 11:
        return NewNode("Clip", ends[:1], ends[1:], finite)
    inputs = [np.asarray(finite[key], dtype) if key in finite else "" for key in given]
    while inputs and isinstance(inputs[-1], str):
        inputs.pop()
    return NewNode("Clip", (ends[0], *inputs), ends[1:])


def leaky_relu(graph: Graph, node: gs.Node) -> Edit | None:
    """Replace max(x, a * x) by LeakyRelu."""
    if len(node.inputs) != 2:
        return None
    for index in (0, 1):
        maker = private_source(graph, node, index, "Mul", "Div")
        slope = None if maker is None else elementwise_affine(graph, maker)
        if maker is None or slope is None or slope.data != node.inputs[1 - index].name:
            continue
        values = np.unique(slope.scale)
        if values.size == 1 and 0.0 <= values[0] <= 1.0:
            attrs = {"alpha": float(np.float32(values[0]))}
            new = NewNode("LeakyRelu", (slope.data,), (node.outputs[0].name,), attrs)
            return Edit(remove=(maker, node), add=(new,))
    return None


def prelu(graph: Graph, node: gs.Node) -> Edit | None:
    """Replace relu(x) - a * relu(-x), the sign in either place, by PRelu."""
    positive = source(graph, node, 0, "Relu")
    negative = private_source(graph, node, 1, "Mul")
    if positive is None or negative is None:
        return None
    slope, pair = elementwise_affine(graph, negative), operands(graph, negative)
    if slope is None or pair is None:
        return None
    rectified = private_source(graph, negative, 0 if pair.first else 1, "Relu")
    turned = None if rectified is None else private_source(graph, rectified, 0, "Neg")
    data = positive.inputs[0].name
    if turned is None or turned.inputs[0].name != data:
        return None
    going = dying(graph, (node,), data)
    sign = 1.0 if node.op == "Sub" else -1.0
    value = np.asarray(sign * slope.scale, pair.constant.dtype)
    new = NewNode("PRelu", (data, value), (node.outputs[0].name,), name=node.name)
    return Edit(remove=going, add=(new,))
