"""Replace If by the branch that is taken, where that is known."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import onnx_graphsurgeon as gs

from graphopt.ir import Edit, Graph, NewNode, as_integers
from graphopt.passbase import Context, Pass, Promise
from graphopt.rewrite import RewriteLog, rewrite
from graphopt.rewrite.ranks import needed_rank, possible_ranks

__all__ = ["InlineBranches"]


@dataclass(frozen=True)
class InlineBranches(Pass):
    """Replace If by the branch it takes, where that is known before the model runs.

    Its condition is constant or follows from shapes; or one branch yields a tensor of a rank with
    which its readers could not run (LSTM reads three axes, no more), so that the model runs only
    where it takes the other. The branch's nodes keep their names and move to where the If stood,
    with the bodies that they carry; the other branch goes with its weights. Loop and Scan stay.
    """

    name: ClassVar[str] = "inline-branches"
    promise: ClassVar[Promise] = Promise.EXACT

    def run(self, graph: Graph, context: Context) -> None:
        applied: Counter[str] = Counter()
        while (log := rewrite(graph, {"If": (known_condition, impossible_branch)})).applied:
            applied.update(log.applied)
            graph.prune()
            graph.reshape_notice()  # inference now sees what was hidden in a body
        context.record(RewriteLog(applied, log.refusals))


def known_condition(graph: Graph, node: gs.Node) -> Edit | None:
    """An If whose condition is known, to the branch."""
    condition = as_integers(graph.known(node.inputs[0].name))
    if condition is None or condition.size != 1:
        return None
    return _take(graph, node, "then_branch" if condition.any() else "else_branch")


def impossible_branch(graph: Graph, node: gs.Node) -> Edit | None:
    """An If one of whose branches cannot be followed by what comes after, to the other."""
    possible = {"then_branch", "else_branch"}
    for place, output in enumerate(node.outputs):
        rank = needed_rank(graph, output.name) if output.name else None
        for branch in sorted(possible) if rank is not None else ():
            ranks = possible_ranks(graph, node.attrs[branch].outputs[place].name)
            if ranks is not None and rank not in ranks:
                possible.discard(branch)
    return _take(graph, node, possible.pop()) if len(possible) == 1 else None


def _take(graph: Graph, node: gs.Node, branch_name: str) -> Edit:
    """The nodes of a branch in the place of the If."""
    branch: gs.Graph = node.attrs[branch_name]
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
