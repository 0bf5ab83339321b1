"""Remove what no output depends on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx
import onnx_graphsurgeon as gs

from graphopt.ir import Edit, Graph, NewNode, bodies
from graphopt.passbase import Context, Pass, Promise

__all__ = ["RemoveDeadCode"]

_OPTIONAL = onnx.defs.OpSchema.FormalParameterOption.Optional


@dataclass(frozen=True)
class RemoveDeadCode(Pass):
    """Remove nodes and constants that no output depends on, and results that nobody reads.

    A second result goes where the operator's definition calls it optional: the indices of
    MaxPool, the mask of Dropout, the sequence or the states of LSTM and GRU. Not those of
    BatchNormalization, whose number said whether it is training in older operator sets.
    """

    name: ClassVar[str] = "remove-dead-code"
    promise: ClassVar[Promise] = Promise.EXACT

    def run(self, graph: Graph, context: Context) -> None:
        gone = graph.prune()
        shorter = [edit for node in graph.all_nodes() if (edit := without_unread(graph, node))]
        for edit in shorter:
            graph.apply(edit)
        context.notes["applied"] = {"dead nodes": gone, "unread results": len(shorter)}


def without_unread(graph: Graph, node: gs.Node) -> Edit | None:
    """The same node without the optional results that nobody reads."""
    names = [tensor.name for tensor in node.outputs]
    if len(names) < 2 or node.op == "BatchNormalization" or any(bodies(node)):
        return None
    domain = "" if node.domain in (None, "ai.onnx") else node.domain
    try:
        schema = onnx.defs.get_schema(node.op, graph.domains.get(domain, 1), domain)
    except onnx.defs.SchemaError:
        return None
    read = [
        name
        if name and (graph.consumers(name) or graph.is_output(name) or not _may_go(schema, place))
        else ""
        for place, name in enumerate(names)
    ]
    while read and not read[-1]:
        read.pop()
    if read == names or not any(read):
        return None
    inputs = tuple(tensor.name for tensor in node.inputs)
    new = NewNode(node.op, inputs, tuple(read), dict(node.attrs), domain, node.name)
    return Edit(remove=(node,), add=(new,))


def _may_go(schema: onnx.defs.OpSchema, place: int) -> bool:
    return place < len(schema.outputs) and schema.outputs[place].option == _OPTIONAL
