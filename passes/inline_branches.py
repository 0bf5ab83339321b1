"""Replace If by the branch that is taken, where that is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_graphsurgeon as gs

from graphopt.ir import Edit, Graph, NewNode, as_integers
from graphopt.passbase import Context, Pass, Promise
from graphopt.rewrite import rewrite

__all__ = ["InlineBranches"]


@dataclass(frozen=True)
class InlineBranches(Pass):
    """Replace If whose condition is constant, or follows from shapes, by the branch it takes.

    The branch's nodes keep their names and move to where the If stood, with the bodies that they
    carry; nested Ifs follow. The other branch goes with its weights. Loop and Scan stay.
    """

    name: ClassVar[str] = "inline-branches"
    promise: ClassVar[Promise] = Promise.EXACT

    def run(self, graph: Graph, context: Context) -> None:
        context.record(rewrite(graph, {"If": (take_branch,)}))
        if context.notes["applied"]:
            graph.prune()
            graph.reshape_notice()  # inference now sees what was hidden in a body


def take_branch(graph: Graph, node: gs.Node) -> Edit | None:
    """The nodes of the branch in the place of the If."""
    condition = as_integers(graph.known(node.inputs[0].name))
    if condition is None or condition.size != 1:
        return None
    branch: gs.Graph = node.attrs["then_branch" if condition.any() else "else_branch"]
    moved = [_moved(inner) for inner in branch.nodes if graph.holds(inner)]
    replace: dict[str, str] = {}
    for taken, output in zip(branch.outputs, node.outputs, strict=True):
        if not output.name:
            continue
        if not graph.is_output(output.name) or _can_be_renamed(graph, taken, branch, replace):
            replace[output.name] = taken.name
        else:
            moved.append(NewNode("Identity", (taken.name,), (output.name,)))
    return Edit(remove=(node,), add=tuple(moved), replace=replace)


def _can_be_renamed(
    graph: Graph, taken: gs.Tensor, branch: gs.Graph, replaced: dict[str, str]
) -> bool:
    """Whether a result of the branch can take the name of a graph output."""
    maker = graph.producer(taken.name)
    computed = maker is not None and graph.scope_of(maker) is branch
    return computed and taken.name not in replaced.values()


def _moved(node: gs.Node) -> NewNode:
    inputs = tuple(tensor.name for tensor in node.inputs)
    outputs = tuple(tensor.name for tensor in node.outputs)
    return NewNode(node.op, inputs, outputs, dict(node.attrs), node.domain or "", node.name)
