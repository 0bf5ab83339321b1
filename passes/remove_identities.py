"""Remove operators that hand on one of their inputs unchanged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_graphsurgeon as gs

from graphopt.ir import Edit, Graph
from graphopt.passbase import Context, Pass, Promise
from graphopt.rewrite import Refusal, rewrite
from graphopt.rewrite.noops import PASSED_ON

__all__ = ["RemoveIdentities"]


@dataclass(frozen=True)
class RemoveIdentities(Pass):
    """Remove operators whose output provably equals one of their inputs.

    Identity; Dropout at inference; Cast to the same type; Pad by nothing; Slice or Gather of
    everything in order; Transpose that moves nothing; Reshape, Flatten, Squeeze, Unsqueeze,
    Expand, Tile and Resize to the same shape; Concat, Sum, Max, Min, Mean or Split of one part;
    Add or Sub of 0, Mul, Div or Pow by 1; And with true, Or with false; pooling with a window of
    1 and reductions over sizes of 1; Clip without bounds; Where with a constant condition. Adding
    0 turns -0.0 into 0.0; the two are equal. A node stays where a graph output would have to take
    its name from a graph input, a constant, another output or an outer scope.
    """

    name: ClassVar[str] = "remove-identities"
    promise: ClassVar[Promise] = Promise.EXACT

    def run(self, graph: Graph, context: Context) -> None:
        context.record(rewrite(graph, dict.fromkeys(PASSED_ON, (bypass,))))


def bypass(graph: Graph, node: gs.Node) -> Edit | Refusal | None:
    """Let the readers of an output read the input that it equals."""
    others = [tensor.name for tensor in node.outputs[1:] if tensor.name]
    if any(graph.is_output(name) or graph.consumers(name) for name in others):
        return None
    kept = PASSED_ON[node.op](graph, node)
    if kept is None:
        return None
    output, source = node.outputs[0].name, node.inputs[kept].name
    if not graph.can_replace(output, source):
        return Refusal("bypass", node.name, f"{source!r} cannot take the name of output {output!r}")
    return Edit(remove=(node,), replace={output: source})
