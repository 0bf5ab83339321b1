"""What a layer should reproduce: the original's sum behind it, as far as the layer can."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from graphopt.ir import Graph
from graphopt.refit.layers import Layer

__all__ = ["Goal", "goal_of"]


@dataclass(frozen=True)
class Goal:
    """A tensor that both graphs have; what else is summed into it, and whether a ReLU reads it."""

    tensor: str
    shortcut: str | None
    rectified: bool


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
    readers = graph.consumers(name)
    relu = bool(readers) and not graph.is_output(name)
    return Goal(name, shortcut, relu and all(node.op == "Relu" for node in readers))


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
