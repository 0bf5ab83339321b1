"""Recognise smooth activations in pieces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir import Edit, Graph, NewNode
from graphopt.passbase import Context, Pass, Promise
from graphopt.rewrite import Refusal, rewrite
from graphopt.rewrite.affine import elementwise_affine
from graphopt.rewrite.matching import (
    data_source,
    dying,
    integers,
    is_op,
    number,
    operands,
    private_source,
    source,
)

__all__ = ["FuseActivations"]

_MISH_OPSET = 18

_SOFTMAX_OPSET = 13
"""From here on Softmax runs along one axis."""


@dataclass(frozen=True)
class FuseActivations(Pass):
    """Recognise sigmoid, softmax and mish that are written in pieces.

    1 / (1 + exp(-x)) becomes Sigmoid, exp(x) / sum(exp(x)) Softmax, with or without the maximum
    taken off first, x * tanh(softplus(x)) Mish (operator set 18), and x * (1 / y) Div.
    """

    name: ClassVar[str] = "fuse-activations"
    promise: ClassVar[Promise] = Promise.EXACT

    def run(self, graph: Graph, context: Context) -> None:
        rules = {
            "Div": (sigmoid, softmax),
            "Mul": (mish, quotient),
            "Reciprocal": (sigmoid,),
        }
        context.record(rewrite(graph, rules))


def sigmoid(graph: Graph, node: gs.Node) -> Edit | None:
    """Replace 1 / (1 + exp(-x)) by Sigmoid."""
    pair = operands(graph, node)
    if node.op == "Div" and (pair is None or pair.first or number(graph, node) != 1.0):
        return None
    plus = private_source(graph, node, len(node.inputs) - 1, "Add")
    one = None if plus is None else elementwise_affine(graph, plus)
    power = None if plus is None else data_source(graph, plus, "Exp")
    if power is None or one is None or not np.all(one.shift == 1.0):
        return None
    turned = source(graph, power, 0, "Neg", "Mul")
    if turned is None:
        return None
    data = turned.inputs[0].name
    if is_op(turned, "Mul"):
        factor = elementwise_affine(graph, turned)
        if factor is None or not np.all(factor.scale == -1.0):
            return None
        data = factor.data
    new = NewNode("Sigmoid", (data,), (node.outputs[0].name,), name=node.name)
    return Edit(remove=dying(graph, (node,), data), add=(new,))


def softmax(graph: Graph, node: gs.Node) -> Edit | Refusal | None:
    """Replace exp(x - max(x)) / sum(exp(x - max(x))), or that without the maximum, by Softmax."""
    power = source(graph, node, 0, "Exp")
    total = private_source(graph, node, 1, "ReduceSum")
    if power is None or total is None or total.inputs[0].name != power.outputs[0].name:
        return None
    axis, shape = _single_axis(graph, total), graph.shape(power.outputs[0].name)
    if axis is None or shape is None:
        return None
    if graph.opset < _SOFTMAX_OPSET and axis != len(shape) - 1:
        return Refusal("softmax", node.name, "before operator set 13 Softmax joins the last axes")
    data = _without_maximum(graph, power, axis) or power.inputs[0].name
    new = NewNode("Softmax", (data,), (node.outputs[0].name,), {"axis": axis}, name=node.name)
    return Edit(remove=dying(graph, (node,), data), add=(new,))


def _without_maximum(graph: Graph, power: gs.Node, axis: int) -> str | None:
    """The tensor x, if the power is taken of x - max(x)."""
    minus = source(graph, power, 0, "Sub")
    largest = None if minus is None else source(graph, minus, 1, "ReduceMax")
    if minus is None or largest is None or _single_axis(graph, largest) != axis:
        return None
    data = str(minus.inputs[0].name)
    return data if largest.inputs[0].name == data else None


def _single_axis(graph: Graph, node: gs.Node) -> int | None:
    """The one axis that a reduction runs over and keeps, counted from the front."""
    shape, axes = graph.shape(node.inputs[0].name), integers(graph, node, 1, "axes")
    if shape is None or axes is None or len(axes) != 1 or not node.attrs.get("keepdims", 1):
        return None
    return axes[0] % len(shape)


def mish(graph: Graph, node: gs.Node) -> Edit | None:
    """Replace x * tanh(softplus(x)) by Mish."""
    for place in (0, 1) if graph.opset >= _MISH_OPSET else ():
        bent = private_source(graph, node, place, "Tanh")
        plus = None if bent is None else private_source(graph, bent, 0, "Softplus")
        if bent is not None and plus is not None:
            data = plus.inputs[0].name
            if node.inputs[1 - place].name == data:
                new = NewNode("Mish", (data,), (node.outputs[0].name,), name=node.name)
                return Edit(remove=(plus, bent, node), add=(new,))
    return None


def quotient(graph: Graph, node: gs.Node) -> Edit | None:
    """Replace x * (1 / y) by x / y, but where 1 / y ends a normalization."""
    for place in (0, 1):
        inverted = private_source(graph, node, place, "Reciprocal")
        if inverted is None or source(graph, inverted, 0, "Sqrt") is not None:
            continue
        inputs = (node.inputs[1 - place].name, inverted.inputs[0].name)
        new = NewNode("Div", inputs, (node.outputs[0].name,), name=node.name)
        return Edit(remove=(inverted, node), add=(new,))
    return None
