"""Fold selections and reorderings of channels into the convolutions beside them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from graphopt.ir import Edit, Graph, NewNode
from graphopt.passbase import Context, Pass, Promise
from graphopt.rewrite import Refusal, rewrite
from graphopt.rewrite.linear import layer_bias, linear_layer, rebuild
from graphopt.rewrite.matching import is_op, sharing, source

__all__ = ["FoldPermutations"]

_Index = npt.NDArray[np.int64]


@dataclass(frozen=True)
class FoldPermutations(Pass):
    """Fold a Gather of channels into the convolutions beside it.

    A convolution before it makes only the channels that are taken, in their order. If all
    channels only change places, the convolutions that read them take the order into their weights
    instead; depthwise convolutions, pooling and activations on the way pass it on. Only where
    every path ends in a convolution with one group.
    """

    name: ClassVar[str] = "fold-permutations"
    promise: ClassVar[Promise] = Promise.EXACT

    def run(self, graph: Graph, context: Context) -> None:
        context.record(rewrite(graph, {"Gather": (into_previous, into_next)}))


def into_previous(graph: Graph, node: gs.Node) -> Edit | Refusal | None:
    """Replace Gather(conv(x)) by a Conv with the rows of its weight that are taken."""
    maker, picks = source(graph, node, 0, "Conv"), _picks(graph, node)
    layer = None if maker is None else linear_layer(graph, maker)
    if maker is None or layer is None or picks is None or layer.groups != 1:
        return None
    reason = sharing(graph, maker)
    if picks.size > layer.outputs:
        reason = f"{picks.size} channels are taken of {layer.outputs}"
    bias = layer_bias(graph, layer)
    if reason is not None or isinstance(bias, str):
        return Refusal("into_previous", node.name, reason or str(bias))
    ends = (maker.inputs[0].name, node.outputs[0].name)
    found = rebuild(graph, layer, layer.weight[picks], None if bias is None else bias[picks], ends)
    if isinstance(found, str):
        return Refusal("into_previous", node.name, found)
    return replace(found, remove=(maker, node))


def into_next(graph: Graph, node: gs.Node) -> Edit | Refusal | None:
    """Replace conv(Gather(x)) by conv'(x), where the Gather takes all channels."""
    picks, name = _picks(graph, node), node.outputs[0].name
    shape = graph.shape(node.inputs[0].name)
    if picks is None or shape is None or picks.size != shape[1]:
        return None
    if not np.array_equal(np.sort(picks), np.arange(picks.size)):
        return None
    found = _permuted(graph, name, node.inputs[0].name, np.argsort(picks))
    if isinstance(found, str):
        return Refusal("into_next", node.name, found)
    return _both(Edit(remove=(node,)), found)


def _picks(graph: Graph, node: gs.Node) -> _Index | None:
    """The channels (axis 1) that a Gather takes, counted from the front."""
    shape, picks = graph.shape(node.inputs[0].name), graph.constant(node.inputs[1].name)
    if shape is None or picks is None or picks.ndim != 1 or len(shape) < 3:
        return None
    size = shape[1]
    if int(node.attrs.get("axis", 0)) % len(shape) != 1 or not isinstance(size, int):
        return None
    return picks.astype(np.int64) % size


_PER_CHANNEL = (
    *("AveragePool", "Clip", "Elu", "GlobalAveragePool", "GlobalMaxPool", "HardSigmoid"),
    *("HardSwish", "LeakyRelu", "MaxPool", "Relu", "Sigmoid", "Softplus", "Tanh"),
)
"""Operators that treat every channel alike."""


def _permuted(graph: Graph, old: str, new: str, order: _Index) -> Edit | str:
    """Make everything that reads `old` read `new`, which has the channels `old[order]`."""
    readers = graph.consumers(old)
    if graph.is_output(old) or not readers:
        return f"{old!r} is an output"
    whole = Edit()
    for reader in readers:
        if graph.scope_of(reader) is not graph.scope_of(readers[0]):
            return f"{reader.name!r} is in another scope"
        if reader.inputs[0].name != old or sum(r is reader for r in readers) > 1:
            return f"{reader.name!r} reads it otherwise than as data"
        part = _reader(graph, reader, new, order)
        if isinstance(part, str):
            return part
        whole = _both(whole, part)
    return whole


def _reader(graph: Graph, node: gs.Node, new: str, order: _Index) -> Edit | str:
    """Make one reader read `new`, and whatever reads its result too if that changes its order."""
    output = node.outputs[0].name
    moved = graph.fresh(f"{output}_reordered")
    layer = linear_layer(graph, node) if is_op(node, "Conv") else None
    if layer is not None:
        bias = layer_bias(graph, layer)
        if isinstance(bias, str):
            return bias
        if layer.groups == 1:
            return rebuild(graph, layer, layer.weight[:, order], bias, (new, output))
        if not layer.groups == layer.inputs == layer.outputs:
            return f"{node.name!r} has {layer.groups} groups"
        turned = None if bias is None else bias[order]
        first = rebuild(graph, layer, layer.weight[order], turned, (new, moved))
    elif is_op(node, *_PER_CHANNEL) and not any(tensor.name for tensor in node.outputs[1:]):
        inputs = (new, *(tensor.name for tensor in node.inputs[1:]))
        same = NewNode(node.op, inputs, (moved,), node.attrs, name=node.name)
        first = Edit(remove=(node,), add=(same,))
    else:
        return f"{node.name!r} ({node.op}) cannot take the order over"
    rest = first if isinstance(first, str) else _permuted(graph, output, moved, order)
    return rest if isinstance(first, str) or isinstance(rest, str) else _both(first, rest)


def _both(one: Edit, other: Edit) -> Edit:
    return Edit(
        remove=(*one.remove, *other.remove),
        add=(*one.add, *other.add),
        constants={**one.constants, **other.constants},
    )
