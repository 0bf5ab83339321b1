"""Recognise hard-sigmoid and hard-swish in pieces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir import Edit, Graph, NewNode
from graphopt.passbase import Context, Pass, Promise
from graphopt.rewrite import rewrite
from graphopt.rewrite.affine import elementwise_affine
from graphopt.rewrite.matching import data_source, dying, is_op, operands, private_source, sharing
from graphopt.rewrite.ramps import CLIP_OPS, RAMP_OPS, Ramp, ramp

__all__ = ["FuseHardActivations"]


@dataclass(frozen=True)
class FuseHardActivations(Pass):
    """Recognise hard-sigmoid and hard-swish that are written in pieces.

    clip(x + 3, 0, 6) / 6, in any order and with Min and Max for Clip, becomes HardSigmoid. Times x
    it becomes the pair of HardSigmoid and Mul: ONNX Runtime fuses that into the convolution before
    it, and unlike HardSwish it needs no newer operator set.
    """

    name: ClassVar[str] = "fuse-hard-activations"
    promise: ClassVar[Promise] = Promise.EXACT

    def run(self, graph: Graph, context: Context) -> None:
        rules = dict.fromkeys(("Mul", "Div"), (hard_swish, hard_sigmoid))
        rest = dict.fromkeys(("Add", "Sub", *CLIP_OPS), (hard_sigmoid,))
        context.record(rewrite(graph, {**rules, **rest}))


def hard_sigmoid(graph: Graph, node: gs.Node) -> Edit | None:
    """Replace a chain that computes clip(a x + b, 0, 1) by HardSigmoid."""
    found = ramp(graph, node)
    if found is None or not _is_gate(graph, found):
        return None
    going = dying(graph, (node,), found.data)
    if len(going) < 2:
        return None
    return Edit(remove=going, add=(_gate(found, node.outputs[0].name),))


def hard_swish(graph: Graph, node: gs.Node) -> Edit | None:
    """Replace c * x * clip(a x + b, low, high) by x * HardSigmoid(x), where c makes it that."""
    product, factor = node, 1.0
    if operands(graph, node) is not None:
        scale, maker = _factor(graph, node), data_source(graph, node, "Mul")
        if scale is None or maker is None or sharing(graph, maker):
            return None
        product, factor = maker, scale
    if not is_op(product, "Mul") or len(product.inputs) != 2:
        return None
    for side in (0, 1):
        gate = private_source(graph, product, side, *RAMP_OPS)
        found = None if gate is None else ramp(graph, gate)
        if found is None:
            continue
        other, extra = product.inputs[1 - side].name, 1.0
        if other != found.data:
            other, extra = _unscaled(graph, product, 1 - side)
        found = found.scaled(factor * extra)
        if other == found.data and _is_gate(graph, found):
            return _swish(graph, node, found)
    return None


def _swish(graph: Graph, node: gs.Node, found: Ramp) -> Edit | None:
    going = dying(graph, (node,), found.data)
    output, gate = node.outputs[0].name, graph.fresh(f"{node.outputs[0].name}_gate")
    if len(going) <= 2:
        return None
    product = NewNode("Mul", (found.data, gate), (output,))
    return Edit(remove=going, add=(_gate(found, gate), product))


def _unscaled(graph: Graph, node: gs.Node, index: int) -> tuple[str, float]:
    """The tensor that an input is a multiple of, and the factor."""
    maker = private_source(graph, node, index, "Mul", "Div")
    factor = None if maker is None else _factor(graph, maker)
    pair = None if maker is None else operands(graph, maker)
    return ("", 1.0) if factor is None or pair is None else (pair.data, factor)


def _factor(graph: Graph, node: gs.Node) -> float | None:
    """The number that a node multiplies by; None if it does anything else."""
    found = elementwise_affine(graph, node)
    if found is None or found.shifts() or not found.finite():
        return None
    values = np.unique(found.scale)
    return float(values[0]) if values.size == 1 else None


def _is_gate(graph: Graph, found: Ramp) -> bool:
    """Whether a ramp is a hard sigmoid; ONNX Runtime has it for single precision alone."""
    rises = found.slope != 0.0 and found.close_to(0.0, 1.0)
    return rises and graph.dtype(found.data) == np.float32


def _gate(found: Ramp, output: str) -> NewNode:
    attrs = {"alpha": float(np.float32(found.slope)), "beta": float(np.float32(found.offset))}
    return NewNode("HardSigmoid", (found.data,), (output,), attrs)
