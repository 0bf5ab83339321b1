"""Undo sequences of parts: a tensor split into a sequence whose elements are then picked.

Exporters that trace a split whose parts are unpacked write SplitToSequence and one SequenceAt for
each part. A Split says the same, and shapes are known behind it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir.edit import Edit, NewNode

if TYPE_CHECKING:
    from graphopt.ir.graph import Graph

__all__ = ["split_sequences"]

_SIZES_AS_INPUT = 13
"""The operator set from which Split takes its sizes as an input."""


def split_sequences(graph: Graph) -> bool:
    """Turn sequences whose elements are picked by known numbers into Splits; say if any were."""
    edits = list(_found(graph))
    for edit in edits:
        graph.apply(edit)
    return bool(edits)


def _found(graph: Graph) -> Iterator[Edit]:
    if graph.opset < _SIZES_AS_INPUT:
        return
    for node in graph.all_nodes():
        if node.op == "SplitToSequence" and node.domain in (None, "", "ai.onnx"):
            edit = _split(graph, node)
            if edit is not None:
                yield edit


def _split(graph: Graph, node: gs.Node) -> Edit | None:
    sizes, sequence = _sizes(graph, node), node.outputs[0].name
    readers = graph.consumers(sequence)
    scope = graph.scope_of(node)
    if sizes is None or graph.is_output(sequence) or not readers:
        return None
    outputs = [graph.fresh(f"{sequence}_{place}") for place in range(len(sizes))]
    picked: dict[int, str] = {}
    for reader in readers:
        place = _place(graph, reader, len(sizes))
        if place is None or place in picked or graph.scope_of(reader) is not scope:
            return None
        picked[place] = outputs[place] = reader.outputs[0].name
    parts = np.array(sizes, np.int64)
    axis = int(node.attrs.get("axis", 0))
    source = node.inputs[0].name
    made = NewNode("Split", (source, parts), tuple(outputs), {"axis": axis}, name=node.name)
    return Edit(remove=(node, *readers), add=(made,))


def _sizes(graph: Graph, node: gs.Node) -> list[int] | None:
    """The sizes of the parts, where they are known before the model runs."""
    given = graph.constant(node.inputs[1].name) if len(node.inputs) > 1 else None
    shape = graph.shape(node.inputs[0].name)
    if given is None or shape is None:
        return None
    if given.ndim:
        return [int(size) for size in given]
    whole, part = shape[int(node.attrs.get("axis", 0))], int(given)
    if not isinstance(whole, int) or whole < 1:
        return None
    return [min(part, whole - start) for start in range(0, whole, part)]


def _place(graph: Graph, reader: gs.Node, count: int) -> int | None:
    """Which element a node picks of a sequence of so many."""
    if reader.op != "SequenceAt":
        return None
    index = graph.constant(reader.inputs[1].name)
    if index is None or not -count <= int(index.reshape(-1)[0]) < count:
        return None
    return int(index.reshape(-1)[0]) % count
