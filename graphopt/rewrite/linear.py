"""Linear layers with constant weights, and per-channel maps folded into them.

A weight's first two axes count its channels, one axis the outputs and one the inputs, of which
one counts them per group only:

    Conv            (out, in / groups, taps...)          Gemm, transB   (out, in)
    ConvTranspose   (in, out / groups, taps...)          Gemm, MatMul   (in, out)

Everything is computed in double precision and rounded once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir import Array, Edit, Graph, NewNode, is_uniform
from graphopt.rewrite.affine import Affine, Vector
from graphopt.rewrite.matching import is_op

__all__ = [
    "LINEAR_OPS",
    "LinearLayer",
    "fold_after",
    "fold_before",
    "layer_bias",
    "linear_layer",
    "reading_layers",
    "rebuild",
]


@dataclass(frozen=True)
class LinearLayer:
    """A node y = W x + b whose W is a float constant."""

    node: gs.Node
    weight: Array
    outputs_first: bool
    """Whether the weight's axis 0 counts outputs."""
    groups: int = 1
    rank: int | None = None
    """Rank of x and y."""
    unpadded: bool = True
    """Whether each output sees the same taps, so that a shift of x is a shift of y."""
    factor: float = 1.0
    """What W x is multiplied by (Gemm's alpha)."""
    bias_factor: float = 1.0

    @property
    def outputs(self) -> int:
        return int(self.weight.shape[0] if self.outputs_first else self._second())

    @property
    def inputs(self) -> int:
        return int(self._second() if self.outputs_first else self.weight.shape[0])

    @property
    def channel_axis(self) -> int:
        """Where x and y have their channels, counted from the end."""
        return 1 - self.weight.ndim

    def _second(self) -> int:
        return int(self.weight.shape[1]) * self.groups

    def along(self, values: Vector, *, outputs: bool) -> Vector:
        """Per-channel values in a shape that broadcasts against the weight."""
        taps = (1,) * (self.weight.ndim - 2)
        if outputs == self.outputs_first or values.size == 1:
            return values.reshape(-1, 1, *taps)
        rows = values.reshape(self.groups, -1)
        if self.groups > 1:
            rows = np.repeat(rows, self.weight.shape[0] // self.groups, axis=0)
        return rows.reshape(*rows.shape, *taps)

    def response(self, inputs: Vector) -> Vector:
        """What the layer makes, before its bias, of an input that is constant per channel."""
        taps = tuple(range(2, self.weight.ndim))
        matrix: Vector = self.weight.astype(np.float64).sum(axis=taps)
        if not self.outputs_first:
            assert self.groups == 1, "only ConvTranspose has groups here, and it is never shifted"
            matrix = matrix.T
        grouped = matrix.reshape(self.groups, -1, matrix.shape[1])
        values = np.broadcast_to(inputs, (self.inputs,)).reshape(self.groups, -1, 1)
        return np.asarray(np.matmul(grouped, values).reshape(-1) * self.factor)


def linear_layer(graph: Graph, node: gs.Node) -> LinearLayer | None:
    """Read a node as a linear layer; None if it is none, or its weight is not constant.

    A weight that its file holds as one element is left alone too: changed, it would take its size.
    """
    row = _ROWS.get(node.op) if is_op(node, *_ROWS) else None
    weight = graph.constant(node.inputs[1].name) if len(node.inputs) > 1 else None
    if row is None or weight is None or not np.issubdtype(weight.dtype, np.floating):
        return None
    if is_uniform(weight):
        return None
    layer = row(graph, node, weight)
    return layer if layer is None or layer.weight.size else None


def reading_layers(graph: Graph, node: gs.Node) -> list[LinearLayer] | None:
    """The layers whose data a node's result is; None if anything else reads it."""
    name = node.outputs[0].name
    layers = []
    for reader in graph.consumers(name):
        layer = linear_layer(graph, reader)
        if layer is None or graph.scope_of(reader) is not graph.scope_of(node):
            return None
        if reader.inputs[0].name != name:
            return None
        layers.append(layer)
    return None if graph.is_output(name) or not layers else layers


def _conv(graph: Graph, node: gs.Node, weight: Array) -> LinearLayer:
    automatic = node.attrs.get("auto_pad", "NOTSET")
    pads = any(node.attrs.get("pads", ())) and automatic == "NOTSET"
    return LinearLayer(
        node,
        weight,
        outputs_first=True,
        groups=int(node.attrs.get("group", 1)),
        rank=weight.ndim,
        unpadded=not pads and automatic in ("NOTSET", "VALID"),
    )


def _conv_transpose(graph: Graph, node: gs.Node, weight: Array) -> LinearLayer:
    groups = int(node.attrs.get("group", 1))
    return LinearLayer(
        node, weight, outputs_first=False, groups=groups, rank=weight.ndim, unpadded=False
    )


def _gemm(graph: Graph, node: gs.Node, weight: Array) -> LinearLayer:
    return LinearLayer(
        node,
        weight,
        outputs_first=bool(node.attrs.get("transB", 0)),
        rank=2,
        factor=float(node.attrs.get("alpha", 1.0)),
        bias_factor=float(node.attrs.get("beta", 1.0)),
    )


def _matmul(graph: Graph, node: gs.Node, weight: Array) -> LinearLayer | None:
    shape = graph.shape(node.outputs[0].name)
    if weight.ndim != 2:
        return None
    rank = None if shape is None else len(shape)
    return LinearLayer(node, weight, outputs_first=False, rank=rank)


_ROWS: Mapping[str, Callable[[Graph, gs.Node, Array], LinearLayer | None]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
}

LINEAR_OPS = tuple(sorted(_ROWS))


def fold_after(graph: Graph, layer: LinearLayer, change: Affine, last: gs.Node) -> Edit | str:
    """Make a layer produce what `last` makes of its result; or say why that cannot be."""
    bias = layer_bias(graph, layer)
    if isinstance(bias, str):
        return bias
    if change.scale.size not in (1, layer.outputs):
        return f"{change.scale.size} factors do not fit {layer.outputs} channels"
    scale = np.broadcast_to(change.scale, (layer.outputs,))
    shifted = None if bias is None and not change.shifts() else np.zeros(layer.outputs)
    if shifted is not None:
        shifted = shifted + change.shift + scale * (0.0 if bias is None else bias)
    ends = (layer.node.inputs[0].name, last.outputs[0].name)
    edit = rebuild(graph, layer, _scaled(layer, scale, None), shifted, ends)
    return edit if isinstance(edit, str) else replace(edit, remove=(layer.node, last))


def fold_before(
    graph: Graph, layers: Sequence[LinearLayer], change: Affine, first: gs.Node
) -> Edit | str:
    """Make layers read what `first` reads instead of its result; or say why that cannot be."""
    whole = Edit(remove=(first,))
    for layer in layers:
        if change.shifts() and not layer.unpadded:
            return "a shift before a padded layer differs at the border"
        if layer.node.attrs.get("transA", 0):
            return "the layer transposes its input"
        if change.scale.size not in (1, layer.inputs):
            return f"{change.scale.size} factors do not fit {layer.inputs} channels"
        bias = layer_bias(graph, layer)
        if isinstance(bias, str):
            return bias
        if change.shifts():
            bias = layer.response(change.shift) + (0.0 if bias is None else bias)
        ends = (change.data, layer.node.outputs[0].name)
        edit = rebuild(graph, layer, _scaled(layer, None, change.scale), bias, ends)
        if isinstance(edit, str):
            return edit
        whole = Edit(
            remove=(*whole.remove, layer.node),
            add=(*whole.add, *edit.add),
            constants={**whole.constants, **edit.constants},
        )
    return whole


def layer_bias(graph: Graph, layer: LinearLayer) -> Vector | str | None:
    """The bias per channel; None if there is none, a reason if it cannot be told."""
    if len(layer.node.inputs) < 3 or not layer.node.inputs[2].name or layer.bias_factor == 0.0:
        return None
    value = graph.constant(layer.node.inputs[2].name)
    if value is None:
        return "its bias is computed"
    if value.size not in (1, layer.outputs) or value.shape[-1:] not in ((), (value.size,)):
        return "its bias is not per channel"
    whole = np.broadcast_to(value.astype(np.float64).reshape(-1), (layer.outputs,))
    return np.asarray(whole * layer.bias_factor)


def rebuild(
    graph: Graph, layer: LinearLayer, weight: Array, bias: Vector | None, ends: tuple[str, str]
) -> Edit | str:
    """The layer with another weight (factor included) and bias, reading and writing `ends`."""
    node, weight_name = layer.node, layer.node.inputs[1].name
    if len(graph.consumers(weight_name)) > 1 or graph.is_output(weight_name):
        return f"its weight {weight_name!r} is shared"
    if bias is not None and node.op == "MatMul" and layer.rank != 2:
        return "a MatMul of that rank has no bias"
    arrays = {weight_name: weight}
    inputs = [ends[0], weight_name]
    if bias is not None:
        name = _bias_name(graph, layer)
        with np.errstate(over="ignore"):
            arrays[name] = bias.astype(weight.dtype)
        inputs.append(name)
    if not all(bool(np.all(np.isfinite(array))) for array in arrays.values()):
        return f"the result is not finite in {weight.dtype}"
    op = "Gemm" if bias is not None and node.op == "MatMul" else node.op
    attrs = {key: value for key, value in node.attrs.items() if key not in ("alpha", "beta")}
    new = NewNode(op, tuple(inputs), (ends[1],), attrs, name=node.name)
    return Edit(remove=(node,), add=(new,), constants=arrays)


def _scaled(layer: LinearLayer, by_output: Vector | None, by_input: Vector | None) -> Array:
    """The weight times a factor per output and per input, without a copy in double precision."""
    factor: Vector = np.full((1,) * layer.weight.ndim, layer.factor)
    if by_output is not None:
        factor = factor * layer.along(by_output, outputs=True)
    if by_input is not None:
        factor = factor * layer.along(by_input, outputs=False)
    if np.all(factor == 1.0):
        return layer.weight
    result = np.empty(layer.weight.shape, layer.weight.dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        np.multiply(layer.weight, factor, out=result, casting="unsafe")
    return result


def _bias_name(graph: Graph, layer: LinearLayer) -> str:
    """The name of the bias there is, if it is the layer's own, or a new one beside the weight."""
    if len(layer.node.inputs) > 2 and layer.node.inputs[2].name:
        name = layer.node.inputs[2].name
        if len(graph.consumers(name)) == 1 and not graph.is_output(name):
            return str(name)
    weight = str(layer.node.inputs[1].name)
    stem, dot, leaf = weight.rpartition(".")
    return graph.fresh(f"{stem}.bias" if dot and leaf == "weight" else f"{weight}_bias")
