"""Ranks that inference leaves open: which ones a tensor can have, and which one it must have.

The branches of an If may yield tensors of different ranks; then nothing is known of the result.
But the operators that read it say what they accept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_graphsurgeon as gs

from graphopt.ir import Graph
from graphopt.rewrite.matching import integers, is_op

__all__ = ["needed_rank", "possible_ranks"]

_SAME_RANK = (
    "Cast",
    "Clip",
    "Dropout",
    "Exp",
    "Identity",
    "LeakyRelu",
    "Neg",
    "Relu",
    "Sigmoid",
    "Tanh",
)
_RECURRENT_RANKS = {0: 3, 1: 3, 2: 3, 3: 2, 4: 1, 5: 3, 6: 3}
_DEPTH = 16
"""Chains longer than this are not followed."""


def possible_ranks(graph: Graph, name: str, depth: int = _DEPTH) -> frozenset[int] | None:
    """The ranks that a tensor can have; None if that cannot be said."""
    shape = graph.shape(name)
    if shape is not None:
        return frozenset({len(shape)})
    node = graph.producer(name)
    if node is None or depth == 0:
        return None
    if is_op(node, "If"):
        place = next(i for i, tensor in enumerate(node.outputs) if tensor.name == name)
        branches = (node.attrs["then_branch"], node.attrs["else_branch"])
        found = [possible_ranks(graph, b.outputs[place].name, depth - 1) for b in branches]
        known = [ranks for ranks in found if ranks is not None]
        return frozenset().union(*known) if len(known) == len(found) else None
    added = _added_axes(graph, node)
    if added is None:
        return None
    before = possible_ranks(graph, node.inputs[0].name, depth - 1)
    return None if before is None else frozenset(rank + added for rank in before)


def needed_rank(graph: Graph, name: str, depth: int = _DEPTH) -> int | None:
    """The rank without which some reader in the tensor's own scope could not run."""
    maker = graph.producer(name)
    for reader in graph.consumers(name) if maker is not None and depth else ():
        if graph.scope_of(reader) is not graph.scope_of(maker):
            continue
        place = next(i for i, tensor in enumerate(reader.inputs) if tensor.name == name)
        row = _NEEDS.get(reader.op) if is_op(reader, reader.op) else None
        rank = None if row is None else row(graph, reader, place)
        added = _added_axes(graph, reader)
        if rank is None and added is not None and place == 0:
            after = needed_rank(graph, reader.outputs[0].name, depth - 1)
            rank = None if after is None else after - added
        if rank is not None:
            return rank
    return None


def _added_axes(graph: Graph, node: gs.Node) -> int | None:
    """How many axes a node's result has more than its first input."""
    if is_op(node, *_SAME_RANK):
        return 0
    if not is_op(node, "Squeeze", "Unsqueeze"):
        return None
    axes = integers(graph, node, 1, "axes")
    return None if axes is None else len(axes) if node.op == "Unsqueeze" else -len(axes)


def _recurrent(graph: Graph, node: gs.Node, place: int) -> int | None:
    return _RECURRENT_RANKS.get(place)


def _convolution(graph: Graph, node: gs.Node, place: int) -> int | None:
    weight = graph.shape(node.inputs[1].name)
    return len(weight) if place == 0 and weight is not None else None


def _gemm(graph: Graph, node: gs.Node, place: int) -> int | None:
    return 2 if place < 2 else None


def _transpose(graph: Graph, node: gs.Node, place: int) -> int | None:
    return len(node.attrs["perm"]) if "perm" in node.attrs else None


_NEEDS: Mapping[str, Callable[[Graph, gs.Node, int], int | None]] = {
    "Conv": _convolution,
    "ConvTranspose": _convolution,
    "GRU": _recurrent,
    "Gemm": _gemm,
    "LSTM": _recurrent,
    "RNN": _recurrent,
    "Transpose": _transpose,
}
"""The rank that an operator's input must have."""
