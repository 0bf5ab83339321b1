"""Which values an integer input may take, read off the operators that use it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.cost import operator
from graphopt.ir import Dims, Graph

__all__ = ["Range", "input_range"]


@dataclass(frozen=True)
class Range:
    """What the graph says of an integer input.

    Values lie in [0, limit) for every limit; a limit may be a symbol, or None where nothing is
    known of the indexed axis. `choices` are the constants that the input is compared with.
    """

    limits: frozenset[int | str | None] = frozenset()
    choices: tuple[int, ...] = ()

    def below(self, sizes: Mapping[str, int]) -> int | None:
        """The bound that all limits give together; None if there is no limit."""
        known = [sizes.get(at, 1) if isinstance(at, str) else at or 1 for at in self.limits]
        return max(min(known), 1) if known else None


_Indexed = Callable[[Graph, gs.Node], Dims]


def _axis(source: int, attribute: str | None = None) -> _Indexed:
    """The index runs over one axis of input `source`: the attribute's, or the first."""

    def row(graph: Graph, node: gs.Node) -> Dims:
        shape = graph.shape(node.inputs[source].name)
        axis = int(node.attrs.get(attribute, 0)) if attribute else 0
        return (shape[axis],) if shape and -len(shape) <= axis < len(shape) else (None,)

    return row


def _leading_axes(graph: Graph, node: gs.Node) -> Dims:
    """The index is a tuple that runs over the data's axes behind the batch."""
    shape = graph.shape(node.inputs[0].name)
    indices = graph.shape(node.inputs[1].name)
    if not shape or not indices or not isinstance(indices[-1], int):
        return (None,)
    first = int(node.attrs.get("batch_dims", 0))
    return shape[first : first + indices[-1]]


# (operator, position of the index) -> the sizes that it must stay below.
_INDEXED: Mapping[tuple[str, int], _Indexed] = {
    ("GRU", 4): _axis(0),
    ("Gather", 1): _axis(0, "axis"),
    ("GatherElements", 1): _axis(0, "axis"),
    ("GatherND", 1): _leading_axes,
    ("LSTM", 4): _axis(0),
    ("RNN", 4): _axis(0),
    ("ScatterElements", 1): _axis(0, "axis"),
    ("ScatterND", 1): _leading_axes,
    ("TopK", 1): _axis(0, "axis"),
    ("com.microsoft:EmbedLayerNormalization", 0): _axis(2),
    ("com.microsoft:EmbedLayerNormalization", 1): _axis(4),
    ("com.microsoft:GatherBlockQuantized", 1): _axis(0, "gather_axis"),
}

# Operators that hand on the values of these inputs, at least in part; None stands for all inputs.
_PASSING: Mapping[str, frozenset[int] | None] = {
    "Cast": frozenset({0}),
    "Clip": frozenset({0}),
    "Concat": None,
    "Expand": frozenset({0}),
    "Flatten": frozenset({0}),
    "Gather": frozenset({0}),
    "Identity": None,
    "Reshape": frozenset({0}),
    "Slice": frozenset({0}),
    "Split": frozenset({0}),
    "Squeeze": frozenset({0}),
    "Tile": frozenset({0}),
    "Transpose": frozenset({0}),
    "Unsqueeze": frozenset({0}),
    "Where": frozenset({1, 2}),
}


def input_range(graph: Graph, name: str) -> Range:
    """Follow an input through the operators that only pass it on, to those that interpret it."""
    limits: set[int | str | None] = set()
    choices: list[int] = []
    seen, pending = {name}, [name]
    while pending:
        current = pending.pop()
        for node in graph.consumers(current):
            key = operator(node)
            for index in (i for i, t in enumerate(node.inputs) if t.name == current):
                if (key, index) in _INDEXED:
                    limits.update(_INDEXED[key, index](graph, node))
                if key == "Equal":
                    choices.extend(_constants(graph, node.inputs[1 - index].name))
                places = _PASSING.get(key, frozenset())
                if places is None or index in places:
                    made = {tensor.name for tensor in node.outputs} - seen - {""}
                    seen |= made
                    pending.extend(sorted(made))
    return Range(frozenset(limits), tuple(dict.fromkeys(choices)))


def _constants(graph: Graph, name: str) -> list[int]:
    """The values of a small integer constant."""
    array = graph.constant(name)
    if array is None or array.dtype.kind not in "iu" or array.size > 16:
        return []
    return [int(value) for value in np.unique(array)]
