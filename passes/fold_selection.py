"""Fold a selection of channels into the convolutions beside it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from graphopt.ir import Edit, Graph, NewNode
from graphopt.linear import LinearLayer, layer_bias, linear_layer, rebuild
from graphopt.matching import is_op, sharing, source
from graphopt.passbase import Context, Pass, Promise
from graphopt.rewrite import Refusal, rewrite

__all__ = ["FoldSelection"]

_Index = npt.NDArray[np.int64]


@dataclass(frozen=True)
class FoldSelection(Pass):
    """Fold a Gather of channels by constant indices into Conv.

    A Conv before it makes only the channels that are selected, in their order. If all channels
    only change places, the convolutions that read them have their weights permuted instead; a
    depthwise one is permuted whole and the Gather moves behind it.
    """

    name: ClassVar[str] = "fold-selection"
    promise: ClassVar[Promise] = Promise.EXACT

    def run(self, graph: Graph, context: Context) -> None:
        context.record(rewrite(graph, {"Gather": (into_previous, into_next)}))


def into_previous(graph: Graph, node: gs.Node) -> Edit | Refusal | None:
    """Replace Gather(conv(x)) by a Conv with the selected rows of its weight."""
    maker = source(graph, node, 0, "Conv")
    layer = None if maker is None else linear_layer(graph, maker)
    index = _channels(graph, node)
    if maker is None or layer is None or index is None or layer.groups != 1:
        return None
    reason = sharing(graph, maker) or ("it repeats" if index.size > layer.outputs else None)
    bias = layer_bias(graph, layer)
    if reason is not None or isinstance(bias, str):
        return Refusal("into_previous", node.name, reason or str(bias))
    ends = (maker.inputs[0].name, node.outputs[0].name)
    taken = None if bias is None else bias[index]
    found = rebuild(graph, layer, layer.weight[index], taken, ends)
    if isinstance(found, str):
        return Refusal("into_previous", node.name, found)
    return replace(found, remove=(maker, node))


def into_next(graph: Graph, node: gs.Node) -> Edit | Refusal | None:
    """Replace conv(Gather(x)) by conv'(x), for every Conv that reads a permutation."""
    index, name = _channels(graph, node), node.outputs[0].name
    shape = graph.shape(node.inputs[0].name)
    if index is None or shape is None or graph.is_output(name):
        return None
    if shape[1] != index.size or not np.array_equal(np.sort(index), np.arange(index.size)):
        return None
    layers = [linear_layer(graph, reader) for reader in graph.consumers(name)]
    whole, moved = Edit(remove=(node,)), 0
    for layer in layers:
        if layer is None or not is_op(layer.node, "Conv") or layer.node.inputs[0].name != name:
            return None
        if graph.scope_of(layer.node) is not graph.scope_of(node):
            return None
        moved += layer.groups > 1
        edit = _permuted(graph, layer, index, node.inputs[0].name)
        if isinstance(edit, str) or moved > 1:
            reason = edit if isinstance(edit, str) else "several depthwise layers read it"
            return Refusal("into_next", node.name, reason)
        whole = Edit(
            remove=(*whole.remove, *edit.remove),
            add=(*whole.add, *edit.add),
            constants={**whole.constants, **edit.constants},
        )
    return whole if layers else None


def _channels(graph: Graph, node: gs.Node) -> _Index | None:
    """The channels that a Gather takes; None if it works along another axis."""
    shape, index = graph.shape(node.inputs[0].name), graph.constant(node.inputs[1].name)
    if shape is None or index is None or len(shape) < 3 or index.ndim != 1:
        return None
    size = shape[1]
    if int(node.attrs.get("axis", 0)) % len(shape) != 1 or not isinstance(size, int):
        return None
    return index.astype(np.int64) % size


def _permuted(graph: Graph, layer: LinearLayer, index: _Index, data: str) -> Edit | str:
    """The layer reading `data`, whose channels are not yet in the order of `index`."""
    inverse, name = np.argsort(index), layer.node.outputs[0].name
    bias = layer_bias(graph, layer)
    if isinstance(bias, str):
        return bias
    if layer.groups == 1:
        return rebuild(graph, layer, layer.weight[:, inverse], bias, (data, name))
    if layer.groups != layer.inputs or layer.inputs != layer.outputs:
        return "a layer of several groups reads it"
    before = graph.fresh(f"{name}_unordered")
    taken = None if bias is None else bias[inverse]
    edit = rebuild(graph, layer, layer.weight[inverse], taken, (data, before))
    if isinstance(edit, str):
        return edit
    gather = NewNode("Gather", (before, index), (name,), {"axis": 1})
    return replace(edit, add=(*edit.add, gather))
