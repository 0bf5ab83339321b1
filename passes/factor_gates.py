"""Factor out what is added to its own gated copy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir import Edit, Graph, NewNode
from graphopt.passbase import Context, Pass, Promise
from graphopt.rewrite import rewrite
from graphopt.rewrite.matching import private_source

__all__ = ["FactorGates"]


@dataclass(frozen=True)
class FactorGates(Pass):
    """Write x + x * s as x * (s + 1), where s has fewer elements than x.

    That is a squeeze-and-excitation gate with a shortcut around it, and one pass over x less.
    """

    name: ClassVar[str] = "factor-gates"
    promise: ClassVar[Promise] = Promise.EXACT

    def run(self, graph: Graph, context: Context) -> None:
        context.record(rewrite(graph, {"Add": (gate,)}))


def gate(graph: Graph, node: gs.Node) -> Edit | None:
    """Replace x + x * s by x * (s + 1), where s has fewer elements than x."""
    for place in (0, 1):
        data = node.inputs[1 - place].name
        product = private_source(graph, node, place, "Mul")
        names = [] if product is None else [tensor.name for tensor in product.inputs]
        if product is None or data not in names or len(names) != 2:
            continue
        scale = names[1 - names.index(data)]
        dtype = graph.dtype(data)
        if graph.constant(scale) is not None or not _is_gate(graph, scale, data):
            continue
        more = graph.fresh(f"{scale}_more")
        plus = NewNode("Add", (scale, np.ones((), dtype)), (more,))
        times = NewNode("Mul", (data, more), (node.outputs[0].name,), name=node.name)
        return Edit(remove=(product, node), add=(plus, times))
    return None


def _is_gate(graph: Graph, scale: str, data: str) -> bool:
    """Whether one tensor is broadcast to the shape of another, and is smaller."""
    one, other = graph.shape(scale), graph.shape(data)
    if one is None or other is None or len(one) > len(other):
        return False
    pairs = list(zip(one[::-1], other[::-1], strict=False))
    shorter = len(one) < len(other) or any(a == 1 != b for a, b in pairs)
    return shorter and all(a == 1 or (a == b and a is not None) for a, b in pairs)
