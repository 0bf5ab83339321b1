"""Write channel shuffles as Gather."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir import Edit, Graph, NewNode
from graphopt.passbase import Context, Pass, Promise
from graphopt.rewrite import Refusal, rewrite
from graphopt.rewrite.matching import integers, is_op, private_source, source

__all__ = ["FoldShuffle"]


@dataclass(frozen=True)
class FoldShuffle(Pass):
    """Write a channel shuffle as one Gather, and Slice or Split of a Gather as smaller Gathers.

    A shuffle is Reshape [N, g, k, H, W], Transpose [0, 2, 1, 3, 4], Reshape [N, g k, H, W].
    Gather on the channels copies whole channels, and parts that are cut off are never made.
    """

    name: ClassVar[str] = "fold-shuffle"
    promise: ClassVar[Promise] = Promise.EXACT

    def run(self, graph: Graph, context: Context) -> None:
        rules = {"Reshape": (shuffle,), "Slice": (parts,), "Split": (parts,)}
        context.record(rewrite(graph, rules))


def shuffle(graph: Graph, node: gs.Node) -> Edit | Refusal | None:
    """Replace Reshape(Transpose(Reshape(x))) by Gather(x), where only channels change places."""
    transpose = private_source(graph, node, 0, "Transpose")
    first = None if transpose is None else private_source(graph, transpose, 0, "Reshape")
    if transpose is None or first is None:
        return None
    data = first.inputs[0].name
    before, middle = graph.shape(data), graph.shape(first.outputs[0].name)
    after, perm = graph.shape(node.outputs[0].name), transpose.attrs.get("perm")
    if before is None or middle is None or after is None or len(before) < 3:
        return None
    if perm is None or list(perm) != [0, 2, 1, *range(3, len(before) + 1)]:
        return None
    groups, each = middle[1], middle[2]
    if before[1:] != after[1:] or middle[3:] != before[2:]:
        return None
    if not isinstance(groups, int) or not isinstance(each, int) or before[1] != groups * each:
        return None
    if None in before[2:]:
        return Refusal("shuffle", node.name, f"the sizes of {data!r} are not known: {before}")
    index = np.arange(groups * each, dtype=np.int64).reshape(groups, each).T.reshape(-1)
    new = NewNode("Gather", (data, index), (node.outputs[0].name,), {"axis": 1}, name=node.name)
    return Edit(remove=(first, transpose, node), add=(new,))


def parts(graph: Graph, node: gs.Node) -> Edit | None:
    """Replace the slices of Gather(x) by Gathers of x, if nothing else reads it."""
    gather = source(graph, node, 0, "Gather")
    index = None if gather is None else graph.constant(gather.inputs[1].name)
    shape = None if gather is None else graph.shape(gather.inputs[0].name)
    if gather is None or index is None or index.ndim != 1 or shape is None:
        return None
    whole = gather.outputs[0].name
    axis = int(gather.attrs.get("axis", 0)) % len(shape)
    if len(shape) < axis + 2 or graph.is_output(whole):
        return None
    readers = graph.consumers(whole)
    cuts = [_cut(graph, reader, axis, index.size) for reader in readers]
    if any(reader.inputs[0].name != whole for reader in readers):
        return None
    if any(graph.scope_of(reader) is not graph.scope_of(gather) for reader in readers):
        return None
    known = [cut for cut in cuts if cut is not None]
    if len(known) != len(cuts) or sum(b - a for cut in known for _, a, b in cut) > index.size:
        return None
    news = tuple(
        NewNode("Gather", (gather.inputs[0].name, index[start:end]), (name,), {"axis": axis})
        for cut in known
        for name, start, end in cut
    )
    return Edit(remove=(gather, *readers), add=news)


_Cut = list[tuple[str, int, int]]
"""The tensors that a node cuts out, each with its first index and the one after its last."""


def _cut(graph: Graph, node: gs.Node, axis: int, size: int) -> _Cut | None:
    if is_op(node, "Slice"):
        return _slice(graph, node, axis, size)
    return _split(graph, node, axis) if is_op(node, "Split") else None


def _slice(graph: Graph, node: gs.Node, axis: int, size: int) -> _Cut | None:
    starts, ends = integers(graph, node, 1, "starts"), integers(graph, node, 2, "ends")
    axes = integers(graph, node, 3, "axes")
    if starts is None or ends is None or axes is None or len(axes) != 1:
        return None
    steps = integers(graph, node, 4, "steps") if len(node.inputs) > 4 else (1,)
    rank = len(graph.shape(node.outputs[0].name) or ())
    if steps != (1,) or not rank or axes[0] % rank != axis:
        return None
    first, last, _ = slice(starts[0], ends[0]).indices(size)
    return [(node.outputs[0].name, first, last)] if first < last else None


def _split(graph: Graph, node: gs.Node, axis: int) -> _Cut | None:
    shapes = [graph.shape(tensor.name) for tensor in node.outputs]
    if any(shape is None or not isinstance(shape[axis], int) for shape in shapes):
        return None
    if int(node.attrs.get("axis", 0)) % len(shapes[0] or ()) != axis:
        return None
    ends = np.cumsum([int(shape[axis] or 0) for shape in shapes if shape is not None]).tolist()
    names = [tensor.name for tensor in node.outputs]
    return [
        (name, start, end)
        for name, start, end in zip(names, [0, *ends[:-1]], ends, strict=True)
        if name
    ]
