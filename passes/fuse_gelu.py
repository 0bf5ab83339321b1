"""Recognise GELU in pieces."""

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
from graphopt.rewrite.matching import data_source, dying, is_op, operands, private_source, source

__all__ = ["FuseGelu"]

_GELU = 20
"""The operator set that brought Gelu."""

_CLOSE = 1e-6
"""How far a constant may be from what it should be, for it was rounded."""


@dataclass(frozen=True)
class FuseGelu(Pass):
    """Recognise GELU that is written in pieces.

    x / 2 * (1 + erf(x / sqrt(2))), with its factors in any order, becomes Gelu where the operator
    set has it, from 20 on. Before, it becomes (x * (1 + erf(x / sqrt(2)))) * 0.5, the order that
    ONNX Runtime recognises.
    """

    name: ClassVar[str] = "fuse-gelu"
    promise: ClassVar[Promise] = Promise.EXACT

    def run(self, graph: Graph, context: Context) -> None:
        context.record(rewrite(graph, {"Mul": (gelu,), "Div": (gelu,)}))


def gelu(graph: Graph, node: gs.Node) -> Edit | None:
    """Replace c * x * (1 + erf(y)), where c is 1 / 2 and y is x / sqrt(2)."""
    found = _product(graph, node)
    if found is None or len(found[0]) != 2 or abs(found[1] - 0.5) > _CLOSE:
        return None
    for data, other in (found[0], found[0][::-1]):
        if graph.dtype(data) != np.float32 or not _is_gate(graph, other, data):
            continue
        if graph.opset >= _GELU:
            new = NewNode("Gelu", (data,), (node.outputs[0].name,), name=node.name)
            return Edit(remove=dying(graph, (node,), data), add=(new,))
        return _in_order(graph, node, data, other)
    return None


def _product(graph: Graph, node: gs.Node) -> tuple[list[str], float] | None:
    """The computed factors of a product that is made step by step, and the constant one."""
    change = elementwise_affine(graph, node)
    if change is None and not is_op(node, "Mul"):
        return None
    if change is not None and (change.shifts() or np.unique(change.scale).size != 1):
        return None
    factors: list[str] = []
    constant = 1.0 if change is None else float(change.scale.flat[0])
    for index, tensor in enumerate(node.inputs):
        if graph.constant(tensor.name) is not None:
            continue
        maker = private_source(graph, node, index, "Div", "Mul")
        inner = None if maker is None else _product(graph, maker)
        factors += [tensor.name] if inner is None else inner[0]
        constant *= 1.0 if inner is None else inner[1]
    return factors, constant


def _is_gate(graph: Graph, name: str, data: str) -> bool:
    """Whether a tensor is 1 + erf(data / sqrt(2))."""
    plus = graph.producer(name)
    one = None if plus is None else elementwise_affine(graph, plus)
    erf = None if plus is None else data_source(graph, plus, "Erf")
    scaled = None if erf is None else source(graph, erf, 0, "Div", "Mul")
    change = None if scaled is None else elementwise_affine(graph, scaled)
    if one is None or change is None or change.data != data or change.shifts():
        return False
    adds_one = not one.scales() and bool(np.all(one.shift == 1.0))
    return adds_one and bool(np.all(np.abs(change.scale - math.sqrt(0.5)) <= _CLOSE))


def _in_order(graph: Graph, node: gs.Node, data: str, gate: str) -> Edit | None:
    """(x * gate) * 0.5 for x * (gate * 0.5), which is the order that is not recognised."""
    names = [tensor.name for tensor in node.inputs]
    if data not in names or operands(graph, node) is not None:
        return None
    halved = private_source(graph, node, 1 - names.index(data), "Div", "Mul")
    if halved is None or elementwise_affine(graph, halved) is None:
        return None
    product = graph.fresh(f"{node.outputs[0].name}_twice")
    half = np.array(0.5, graph.dtype(data))
    new = (
        NewNode("Mul", (data, gate), (product,), name=halved.name),
        NewNode("Mul", (product, half), (node.outputs[0].name,), name=node.name),
    )
    return Edit(remove=(halved, node), add=new)
