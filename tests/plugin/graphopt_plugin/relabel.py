"""A pass that changes names only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphopt.ir import Edit, Graph, NewNode
from graphopt.passbase import Context, Pass, Promise


@dataclass(frozen=True)
class RelabelNodes(Pass):
    """Give every node of the main scope a name of its own."""

    name: ClassVar[str] = "relabel-nodes"
    promise: ClassVar[Promise] = Promise.EXACT

    prefix: str = "node"

    def run(self, graph: Graph, context: Context) -> None:
        for place, node in enumerate(list(graph.nodes)):
            wanted = f"{self.prefix}{place}"
            if node.name == wanted:
                continue
            inputs = tuple(tensor.name for tensor in node.inputs)
            outputs = tuple(tensor.name for tensor in node.outputs)
            new = NewNode(node.op, inputs, outputs, node.attrs, node.domain or "", wanted)
            graph.apply(Edit(remove=(node,), add=(new,)))
