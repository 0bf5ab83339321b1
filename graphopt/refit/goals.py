"""What a layer should reproduce: the original's sum behind it, as far as the layer can."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from graphopt.ir import Graph
from graphopt.refit.layers import Layer
from graphopt.refit.solving import Passing
from graphopt.rewrite.ramps import clamp

__all__ = ["Goal", "goal_of"]

_ALL = (-math.inf, math.inf)


@dataclass(frozen=True)
class Goal:
    """A tensor that both graphs have, and what else is summed into it.

    `passing` is the range of values that get through to whatever reads it: from 0 behind a ReLU.
    None is all.
    """

    tensor: str
    shortcut: str | None
    passing: Passing | None


def goal_of(graph: Graph, layer: Layer, pending: Collection[str]) -> Goal:
    """The sum with a shortcut, if nothing before the shortcut is still to be solved.

    `pending` holds the outputs of all layers that may still change, this one's too.
    """
    name, shortcut = layer.output, None
    readers = graph.consumers(name)
    if len(readers) == 1 and readers[0].op == "Add" and not graph.is_output(name):
        names = [tensor.name for tensor in readers[0].inputs]
        other = names[1 - names.index(name)]
        total = readers[0].outputs[0].name
        if (
            other != name
            and graph.constant(other) is None
            and _alike(graph, name, other, total)
            and _settled(graph, other, pending)
        ):
            name, shortcut = total, other
    return Goal(name, shortcut, _passing(graph, name))


def _passing(graph: Graph, name: str) -> Passing | None:
    """What gets through a ReLU or Clip, if nothing else reads the tensor."""
    readers = graph.consumers(name)
    ranges = {_clamped(graph, node) for node in readers}
    if len(ranges) != 1 or graph.is_output(name):
        return None
    (found,) = ranges
    return found


def _clamped(graph: Graph, node: gs.Node) -> Passing | None:
    found = clamp(graph, node)
    return found if found is not None and found[0] < found[1] and found != _ALL else None


def _alike(graph: Graph, *names: str) -> bool:
    """Whether nothing is broadcast (as far as ranks and sizes are known)."""
    shapes = [graph.shape(name) for name in names]
    return shapes[0] is not None and all(shape == shapes[0] for shape in shapes[1:])


def _settled(graph: Graph, name: str, pending: Collection[str]) -> bool:
    """Whether a tensor depends on none of the layers that may still change."""
    waiting, seen = [name], {name}
    while waiting:
        current = waiting.pop()
        if current in pending:
            return False
        maker = graph.producer(current)
        if maker is not None:
            new = {tensor.name for tensor in maker.inputs if tensor.name} - seen
            seen |= new
            waiting.extend(new)
    return True
