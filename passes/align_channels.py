"""Pad the channels of depthwise convolutions to a size that runs fast."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.errors import RecipeError
from graphopt.ir import Edit, Graph, NewNode
from graphopt.passbase import Context, Pass, Promise
from graphopt.rewrite import Refusal, rewrite
from graphopt.rewrite.linear import LinearLayer, layer_bias, linear_layer, rebuild
from graphopt.rewrite.matching import is_op, private_source, sole_reader

__all__ = ["AlignChannels"]

_FAST = 4
"""ONNX Runtime runs depthwise convolutions in its blocked layout from multiples of 4 channels."""

_MOST = 0.25
"""Channels to add at most, as a part of those there are: beyond it, the work outweighs the gain."""

_ACTIVATIONS = (
    *("Clip", "Elu", "HardSigmoid", "HardSwish", "LeakyRelu", "Relu", "Sigmoid", "Softplus"),
    "Tanh",
)
"""Operators that make a number of 0 and know no channels."""


@dataclass(frozen=True)
class AlignChannels(Pass):
    """Pad the channels of depthwise convolutions with zeros to a multiple of `multiple`.

    ONNX Runtime's blocked layout takes depthwise convolutions of images only if their channels
    are a multiple of 4; any other number also costs the convolutions before and after it their
    speed. Where these two are plain convolutions with nothing but activations between, zero
    filters are added to the first, and zero weights to the last ignore what they yield. Costs
    parameters and MACs, so it is done only where the number is no multiple of 4, and for a
    quarter more channels at most; made for ONNX Runtime on CPUs.
    """

    multiple: int = 4

    name: ClassVar[str] = "align-channels"
    promise: ClassVar[Promise] = Promise.EXACT

    def __post_init__(self) -> None:
        if self.multiple < 1 or self.multiple % _FAST:
            raise RecipeError(
                f"{self.name}: multiple must be a multiple of {_FAST}, got {self.multiple}"
            )

    def run(self, graph: Graph, context: Context) -> None:
        def align(graph: Graph, node: gs.Node) -> Edit | Refusal | None:
            return aligned(graph, node, self.multiple)

        context.record(rewrite(graph, {"Conv": (align,)}))


def aligned(graph: Graph, node: gs.Node, multiple: int) -> Edit | Refusal | None:
    """Conv(depthwise(Conv(x))) with more channels between, where the depthwise one is `node`."""
    middle = linear_layer(graph, node)
    if middle is None or not 1 < middle.groups == middle.inputs == middle.outputs:
        return None
    size = middle.outputs
    more = -size % multiple
    if size % _FAST == 0 or middle.weight.ndim != 4 or middle.weight.dtype != np.float32:
        return None
    if more > _MOST * size:
        return Refusal("aligned", node.name, f"{more} more channels are too many for {size}")
    before = _way(node, lambda at: private_source(graph, at, 0, "Conv", *_ACTIVATIONS))
    after = _way(node, lambda at: sole_reader(graph, at, "Conv", *_ACTIVATIONS))
    first, last = (linear_layer(graph, way[-1]) if way else None for way in (before, after))
    if first is None or last is None or first.groups != 1 or last.groups != 1:
        return Refusal("aligned", node.name, "it does not stand between two plain convolutions")
    plan = {id(layer.node): (layer, 0, more) for layer in (first, middle)}
    plan[id(last.node)] = (last, 1, more)
    found = _rebuilt(graph, [*before[::-1], node, *after], plan)
    return Refusal("aligned", node.name, found) if isinstance(found, str) else found


def _way(node: gs.Node, step: Callable[[gs.Node], gs.Node | None]) -> list[gs.Node]:
    """The activations up to the next convolution, and that; empty if something else comes."""
    found: list[gs.Node] = []
    at = step(node)
    while at is not None:
        found.append(at)
        if is_op(at, "Conv"):
            return found
        at = step(at)
    return []


def _rebuilt(
    graph: Graph, chain: Sequence[gs.Node], plan: Mapping[int, tuple[LinearLayer, int, int]]
) -> Edit | str:
    """The chain with so many zeros added along an axis of the weights of its layers."""
    whole, data = Edit(remove=tuple(chain)), chain[0].inputs[0].name
    for node in chain:
        output = node.outputs[0].name
        made = output if node is chain[-1] else graph.fresh(f"{output}_aligned")
        if id(node) not in plan:
            inputs = (data, *(tensor.name for tensor in node.inputs[1:]))
            part = Edit(add=(NewNode(node.op, inputs, (made,), node.attrs, name=node.name),))
        else:
            layer, axis, more = plan[id(node)]
            bias = layer_bias(graph, layer)
            if isinstance(bias, str):
                return bias
            pads = [(0, more if axis == place else 0) for place in range(layer.weight.ndim)]
            longer = bias if bias is None or axis == 1 else np.pad(bias, pads[0])
            found = rebuild(graph, layer, np.pad(layer.weight, pads), longer, (data, made))
            if isinstance(found, str):
                return found
            part = found
            if layer.groups > 1:
                [new] = found.add
                attrs = {**new.attrs, "group": layer.groups + more}
                part = replace(found, add=(replace(new, attrs=attrs),))
        constants = {**whole.constants, **part.constants}
        whole = replace(whole, add=(*whole.add, *part.add), constants=constants)
        data = made
    return whole
