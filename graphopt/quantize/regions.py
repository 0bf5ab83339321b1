"""Parts of a network that one tensor enters and one tensor leaves, with few layers in each.

A tensor on every path from the inputs to the outputs parts a network in two. What lies between two
such tensors in a row is a block: a residual one with all its layers, or a single layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from graphopt.ir import Graph, bodies

__all__ = ["Region", "find_regions"]

_MOST = 3
"""Layers in a row that are taken together where nothing goes around them."""


@dataclass(frozen=True)
class Region:
    """What enters a part (one tensor, or the network's inputs), what leaves it, and its layers."""

    reads: tuple[str, ...]
    gives: str
    layers: tuple[str, ...]
    """By their outputs, in order; at least two."""


def find_regions(
    graph: Graph, layers: Sequence[str], may_end: Callable[[str], bool]
) -> list[Region]:
    """The parts of a network with two layers or more, in order; each ends where `may_end` allows.

    Layers in a row are taken a few at a time. Behind an output that more is computed from, and in
    networks with functions or bodies, there are none.
    """
    if graph.functions or any(next(iter(bodies(node)), None) for node in graph.nodes):
        return []
    found: list[Region] = []
    row: list[str] = []
    alone, gives = False, ""
    start = before = tuple(graph.inputs)
    for cut, inside in _parts(graph, frozenset(layers), may_end):
        if row and inside and (alone or len(inside) > 1 or len(row) == _MOST):
            found.append(Region(start, gives, tuple(row)))
            row = []
        if not row:
            start = before
        if inside:
            row, gives, alone = [*row, *inside], cut, len(inside) > 1
        before = (cut,)
    if row:
        found.append(Region(start, gives, tuple(row)))
    return [region for region in found if len(region.layers) > 1]


def _parts(
    graph: Graph, layers: frozenset[str], may_end: Callable[[str], bool]
) -> Iterator[tuple[str, list[str]]]:
    """The tensors that part the network, each with the layers between it and the one before."""
    inside: list[str] = []
    waiting = {name: len(graph.consumers(name)) for name in graph.inputs}
    waiting = {name: count for name, count in waiting.items() if count}
    fixed: set[str] = set()
    for node in graph.nodes:
        read = [str(tensor.name) for tensor in node.inputs if tensor.name]
        made = [str(tensor.name) for tensor in node.outputs if tensor.name]
        if all(name in fixed or graph.constant(name) is not None for name in read):
            fixed.update(made)
            continue
        inside += [name for name in made if name in layers]
        for name in read:
            if name in waiting:
                waiting[name] -= 1
        for name in made:
            waiting[name] = len(graph.consumers(name)) + graph.is_output(name)
        waiting = {name: count for name, count in waiting.items() if count}
        if len(waiting) == 1 and (cut := next(iter(waiting))) in made and may_end(cut):
            yield cut, inside
            inside = []
