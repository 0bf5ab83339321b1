"""Fuse Pad into the convolution or pooling that reads it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import onnx_graphsurgeon as gs

from graphopt.ir import Edit, Graph, NewNode
from graphopt.passbase import Context, Pass, Promise
from graphopt.rewrite import Refusal, rewrite
from graphopt.rewrite.matching import integers, is_op, scalar, sharing, source
from graphopt.rewrite.ramps import never_negative

__all__ = ["FusePad"]


@dataclass(frozen=True)
class FusePad(Pass):
    """Fuse a constant Pad of spatial axes into Conv, MaxPool or AveragePool.

    Zeros before a Conv become its pads. Zeros before an AveragePool do, if they are counted. A
    MaxPool pads with minus infinity, so zeros fuse only where no input is negative (after Relu,
    Sigmoid and the like), copies of the border always, if each window holds an input.
    """

    name: ClassVar[str] = "fuse-pad"
    promise: ClassVar[Promise] = Promise.EXACT

    def run(self, graph: Graph, context: Context) -> None:
        context.record(rewrite(graph, dict.fromkeys(_ROWS, (into_reader,))))


@dataclass(frozen=True)
class _Padding:
    """What a Pad node adds on either side of the spatial axes."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    value: float | None
    """None for copies of the border."""


def into_reader(graph: Graph, node: gs.Node) -> Edit | Refusal | None:
    """Replace Conv(Pad(x)) by a Conv with pads, and pooling likewise."""
    pad = source(graph, node, 0, "Pad")
    if pad is None:
        return None
    found = _fused_attributes(graph, node, pad)
    if isinstance(found, str):
        return Refusal("into_reader", node.name, found)
    inputs = (pad.inputs[0].name, *(tensor.name for tensor in node.inputs[1:]))
    outputs = tuple(tensor.name for tensor in node.outputs)
    gone = (node,) if sharing(graph, pad) else (pad, node)
    return Edit(remove=gone, add=(NewNode(node.op, inputs, outputs, found, name=node.name),))


def _fused_attributes(graph: Graph, node: gs.Node, pad: gs.Node) -> dict[str, object] | str:
    name = pad.outputs[0].name
    if graph.is_output(name) or not all(is_op(n, *_ROWS) for n in graph.consumers(name)):
        return f"{name!r} is used by others"
    padding = _read(graph, pad)
    if isinstance(padding, str):
        return padding
    own = _own_pads(node, len(padding.before))
    if isinstance(own, str):
        return own
    reason = _ROWS[node.op](graph, node, pad, padding)
    if isinstance(reason, str):
        return reason
    added = (*padding.before, *padding.after)
    pads = [mine + more for mine, more in zip(own, added, strict=True)]
    kernel = [int(size) for size in node.attrs.get("kernel_shape", ())]
    if node.op != "Conv" and any(p >= size for p, size in zip(pads, kernel * 2, strict=True)):
        return f"pads {pads} are as large as the window {kernel}"
    kept = {key: value for key, value in node.attrs.items() if key != "auto_pad"}
    return {**kept, **reason, "pads": pads}


def _read(graph: Graph, pad: gs.Node) -> _Padding | str:
    sizes = integers(graph, pad, 1, "pads")
    axes = integers(graph, pad, 3, "axes")
    mode = pad.attrs.get("mode", "constant")
    if sizes is None or mode not in ("constant", "edge"):
        return "it pads by a computed size, or mirrors"
    if len(pad.inputs) > 3 and pad.inputs[3].name:
        shape = graph.shape(pad.inputs[0].name)
        if axes is None or shape is None:
            return "it pads computed axes, or a tensor of unknown rank"
        every = [0] * (2 * len(shape))
        for place, axis in enumerate(axes):
            every[axis % len(shape)] = sizes[place]
            every[axis % len(shape) + len(shape)] = sizes[place + len(axes)]
        sizes = tuple(every)
    rank = len(sizes) // 2
    before, after = sizes[:rank], sizes[rank:]
    if any(before[:2] + after[:2]) or min(sizes, default=0) < 0:
        return f"pads {list(sizes)} are not of spatial axes alone, or crop"
    if mode == "edge":
        return _Padding(before[2:], after[2:], None)
    value: float | None = float(pad.attrs.get("value", 0.0))
    if len(pad.inputs) > 2 and pad.inputs[2].name:
        value = scalar(graph, pad.inputs[2].name)
    if value is None:
        return "it pads with a computed value, or not with a float"
    return _Padding(before[2:], after[2:], value)


def _own_pads(node: gs.Node, dims: int) -> list[int] | str:
    automatic = node.attrs.get("auto_pad", "NOTSET")
    if automatic == "VALID":
        return [0] * (2 * dims)
    if automatic != "NOTSET":
        return f"the layer pads by itself ({automatic})"
    return [int(size) for size in node.attrs.get("pads", [0] * (2 * dims))]


_Extra = dict[str, object]
"""Attributes that fusing adds besides the pads."""


def _conv(graph: Graph, node: gs.Node, pad: gs.Node, padding: _Padding) -> _Extra | str:
    return {} if padding.value == 0.0 else f"it pads with {padding.value}, a Conv with 0"


def _average_pool(graph: Graph, node: gs.Node, pad: gs.Node, padding: _Padding) -> _Extra | str:
    counted = node.attrs.get("count_include_pad", 0) or not any(node.attrs.get("pads", ()))
    if padding.value != 0.0 or node.attrs.get("ceil_mode", 0) or not counted:
        return "it does not pad with zeros, or the pool rounds up, or does not count its own pads"
    return {"count_include_pad": 1}


def _max_pool(graph: Graph, node: gs.Node, pad: gs.Node, padding: _Padding) -> _Extra | str:
    indices = len(node.outputs) > 1 and bool(node.outputs[1].name)
    spread = any(step != 1 for step in node.attrs.get("dilations", ()))
    if node.attrs.get("ceil_mode", 0) or indices or spread:
        return "the pool rounds up, spreads its window, or tells where the maximum is"
    harmless = padding.value is None or padding.value == float("-inf")
    if harmless or (padding.value == 0.0 and never_negative(graph, pad)):
        return {}
    return f"it pads with {padding.value}, and an input may be less"


_ROWS: Mapping[str, Callable[[Graph, gs.Node, gs.Node, _Padding], _Extra | str]] = {
    "AveragePool": _average_pool,
    "Conv": _conv,
    "MaxPool": _max_pool,
}
