"""Let Transposes meet and cancel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphopt.ir import Edit, Graph
from graphopt.passbase import Context, Pass, Promise
from graphopt.rewrite.islands import Island, islands, order_of, reorder
from graphopt.rewrite.layouts import inverse

__all__ = ["SinkTransposes"]


@dataclass(frozen=True)
class SinkTransposes(Pass):
    """Reorder whole islands of a graph so that the Transposes around them cancel.

    An island is a set of tensors joined by operators that do the same in any order of axes:
    element by element, Concat, Split, Slice, Pad, Reduce, Softmax, Resize. Converters from
    channels-last frameworks put a Transpose on each side of every convolution, and everything
    between is such an island. It is reordered if fewer Transposes remain, or as many that move
    less; constants, axes and pads follow.
    """

    name: ClassVar[str] = "sink-transposes"
    promise: ClassVar[Promise] = Promise.EXACT

    def run(self, graph: Graph, context: Context) -> None:
        moved, before = 0, -1
        while moved != before:
            before = moved
            for island in islands(graph):
                edit = _gain(graph, island)
                if edit is not None:
                    graph.apply(edit)
                    moved += 1
        context.notes["islands"] = moved


def _gain(graph: Graph, island: Island) -> Edit | None:
    """The reordering of an island that leaves the least Transposes, if it is worth while."""
    border = (*island.entries, *island.exits)
    if not all(graph.holds(node) for node in (*island.nodes, *border)):
        return None
    if any(node.inputs[0].name in island.tensors for node in island.entries):
        return None
    orders = {inverse(order) for node in island.entries if (order := order_of(graph, node))}
    orders |= {order for node in island.exits if (order := order_of(graph, node))}
    found = [reorder(graph, island, order) for order in sorted(orders)]
    known = [plan for plan in found if plan.count <= 0 and plan.elements < 0]
    best = min(known, key=lambda plan: (plan.count, plan.elements), default=None)
    return None if best is None else best.edit
