"""Exact rewrites that let channels go one by one where a graph ties them without need.

- A channel shuffle (Reshape, Transpose, Reshape that permutes one axis) becomes a Gather: split
  into rows it could only lose whole columns, and through several shuffles everything ties to
  everything.
- A vector that several nodes share, as exporters merge equal biases, becomes one vector each.
- States of zeros that a recurrent cell starts from are left out: it starts from zeros by itself,
  and their size need not be computed.
- Identity, which hides both, goes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.coupling.sizes import Sizes
from graphopt.ir import Edit, Graph, NewNode, remade

__all__ = ["prepare"]


def prepare(graph: Graph) -> None:
    """Loosen what ties channels without need; the graph computes what it did."""
    for node in [node for node in graph.nodes if node.op == "Identity"]:
        old, new = node.outputs[0].name, node.inputs[0].name
        if graph.can_replace(old, new):
            graph.apply(Edit(remove=(node,), replace={old: new}))
    candidates = [found for node in graph.nodes if (found := _permuting(graph, node)) is not None]
    if candidates:
        sizes = Sizes(graph)
        for nodes in candidates:
            edit = _shuffle(sizes, *nodes)
            if edit is not None:
                graph.apply(edit)
    for edit in _unshare(graph):
        graph.apply(edit)
    for node in [node for node in graph.nodes if node.op in _STATES]:
        if any(_is_zero(graph, node.inputs[place].name) for place in _given_states(node)):
            graph.apply(Edit(remove=(node,), add=(_without_zeros(graph, node),)))
    graph.prune()


_STATES: Mapping[str, tuple[int, ...]] = {"GRU": (5,), "LSTM": (5, 6), "RNN": (5,)}
"""Inputs, by position, that cells start from; without one they start from zeros."""

_KEEPING_ZEROS = frozenset(
    {
        "Concat",
        "Expand",
        "Identity",
        "Reshape",
        "Slice",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    }
)


def _given_states(node: gs.Node) -> list[int]:
    return [place for place in _STATES[node.op] if place < len(node.inputs)]


def _is_zero(graph: Graph, name: str) -> bool:
    """Whether a tensor is made of nothing but zeros."""
    array = graph.constant(name) if name else None
    if array is not None:
        return not array.any()
    maker = graph.producer(name) if name else None
    if maker is None or maker.domain not in (None, "", "ai.onnx"):
        return False
    if maker.op == "ConstantOfShape":
        value = maker.attrs.get("value")
        return value is None or not np.any(value.values)
    data = maker.inputs if maker.op == "Concat" else maker.inputs[:1]
    return maker.op in _KEEPING_ZEROS and all(_is_zero(graph, part.name) for part in data)


def _without_zeros(graph: Graph, node: gs.Node) -> NewNode:
    plain = remade(node, {})
    going = {place for place in _given_states(node) if _is_zero(graph, node.inputs[place].name)}
    inputs = tuple("" if place in going else name for place, name in enumerate(plain.inputs))
    return replace(plain, inputs=inputs)


def _alone(graph: Graph, node: gs.Node | None, op: str) -> bool:
    """Whether a node is of a kind and its result is read once."""
    if node is None or node.op != op:
        return False
    name = node.outputs[0].name
    return not graph.is_output(name) and len(graph.consumers(name)) == 1


def _permuting(graph: Graph, last: gs.Node) -> tuple[gs.Node, gs.Node, gs.Node] | None:
    """A Reshape, a Transpose and a Reshape back to the rank before, if `last` ends such a row."""
    turn = graph.producer(last.inputs[0].name) if last.op == "Reshape" else None
    if turn is None or not _alone(graph, turn, "Transpose"):
        return None
    first = graph.producer(turn.inputs[0].name)
    if first is None or not _alone(graph, first, "Reshape"):
        return None
    names = first.inputs[0].name, first.outputs[0].name, last.outputs[0].name
    whole, parts, back = (None if (s := graph.shape(name)) is None else len(s) for name in names)
    if whole and ((back and back != whole) or (parts and parts <= whole)):
        return None
    return first, turn, last


def _shuffle(sizes: Sizes, first: gs.Node, turn: gs.Node, last: gs.Node) -> Edit | None:
    source, result = first.inputs[0].name, last.outputs[0].name
    whole, parts = sizes.shape(source), sizes.shape(first.outputs[0].name)
    if whole is None or parts is None or whole != sizes.shape(result):
        return None
    order = [int(p) for p in turn.attrs.get("perm") or range(len(parts))[::-1]]
    moved = [place for place, target in enumerate(order) if place != target]
    if not moved:
        return None
    axis, stop = moved[0], moved[-1] + 1
    factors = parts[axis:stop]
    size = whole[axis]
    if (
        (*whole[:axis], *whole[axis + 1 :]) != (*parts[:axis], *parts[stop:])
        or size is None
        or None in factors
        or sizes.is_open(size)
    ):
        return None
    known = [factor for factor in factors if factor is not None]
    grid = np.arange(size, dtype=np.int64).reshape(known)
    places = grid.transpose([place - axis for place in order[axis:stop]]).reshape(-1)
    gather = NewNode("Gather", (source, places), (result,), {"axis": axis}, name=last.name)
    return Edit(remove=(first, turn, last), add=(gather,))


def _unshare(graph: Graph) -> Iterator[Edit]:
    for name, array in graph.constants().items():
        if array.dtype.kind != "f" or sum(size > 1 for size in array.shape) != 1:
            continue
        readers = {id(node): node for node in graph.consumers(name)}
        if len(readers) < 2 or graph.is_output(name):
            continue
        top = [node for node in readers.values() if graph.scope_of(node) is _top(graph)]
        for node in top[1:]:
            places = [place for place, t in enumerate(node.inputs) if t.name == name]
            yield Edit(remove=(node,), add=(remade(node, dict.fromkeys(places, array)),))


def _top(graph: Graph) -> gs.Graph:
    return next(graph.scopes())
