"""Layers that multiply weights stored as integers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from graphopt.ir import Array, Edit, Graph, NewNode
from graphopt.quantize.grid import BIAS, Format, Grid
from graphopt.refit.layers import Layer
from graphopt.rewrite.matching import is_op

__all__ = [
    "Stored",
    "StoredLayer",
    "find_stored_layers",
    "format_of",
    "read_grid",
    "step_of",
    "unfit_layers",
    "write_bias",
]

Doubles = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Stored:
    """A constant that a DequantizeLinear reads: its codes' name and its grid."""

    codes: str
    reader: gs.Node
    grid: Grid

    def values(self, graph: Graph) -> npt.NDArray[np.float32]:
        codes = graph.constant(self.codes)
        assert codes is not None, "codes are constant"
        return self.grid.dequantize(codes)


@dataclass(frozen=True, eq=False)
class StoredLayer:
    """A Conv, Gemm or MatMul of a tensor with a stored weight; `layer` tells its rows."""

    layer: Layer
    weight: Stored
    bias: Stored | None
    """A bias that is stored too; a float one is `layer.bias`."""

    @property
    def factor(self) -> float:
        """What the product is multiplied with."""
        return float(self.layer.node.attrs.get("alpha", 1.0))

    def matrix(self, weight: Array) -> Doubles:
        """A weight of this layer, factor included, as (group, output, column)."""
        node, groups = self.layer.node, self.layer.groups
        if node.op == "Conv":
            return np.array(weight.reshape(groups, len(weight) // groups, -1), np.float64)
        turned = np.array(weight if node.attrs.get("transB", 0) else weight.T, np.float64)
        return turned[np.newaxis] * self.factor

    def weight_of(self, matrix: Doubles, like: Array) -> Doubles:
        """The reverse of `matrix`, which leaves the factor in."""
        if self.layer.node.op == "Conv":
            return np.asarray(matrix.reshape(like.shape))
        return np.asarray(matrix[0] if self.layer.node.attrs.get("transB", 0) else matrix[0].T)

    def bias_values(self, graph: Graph) -> Doubles | None:
        """What is added to each output; None where nothing is."""
        factor = float(self.layer.node.attrs.get("beta", 1.0))
        if self.bias is not None:
            return self.bias.values(graph).astype(np.float64).reshape(-1) * factor
        array = graph.constant(self.layer.bias) if self.layer.bias else None
        return None if array is None else array.astype(np.float64).reshape(-1) * factor


def find_stored_layers(graph: Graph) -> list[StoredLayer]:
    """The layers of the main scope whose weight is stored and read by nobody else, in order."""
    layers = (_layer(graph, node) for node in graph.nodes)
    return [layer for layer in layers if isinstance(layer, StoredLayer)]


def unfit_layers(graph: Graph) -> dict[str, str]:
    """Why other layers with a stored weight are none of these, by what they give."""
    found = ((node, _layer(graph, node)) for node in graph.nodes)
    return {str(node.outputs[0].name): why for node, why in found if isinstance(why, str)}


def _layer(graph: Graph, node: gs.Node) -> StoredLayer | str | None:
    """A layer with stored weights; or why it cannot be given others; None for all other nodes."""
    if not is_op(node, "Conv", "Gemm", "MatMul"):
        return None
    weight = _stored(graph, node.inputs[1].name)
    if weight is None or isinstance(weight, str):
        return weight
    if node.attrs.get("transA", 0):
        return "it reads its input transposed"
    if 0.0 in (node.attrs.get("alpha", 1.0), node.attrs.get("beta", 1.0)):
        return "it multiplies its product or its bias by 0"
    codes = graph.constant(weight.codes)
    assert codes is not None, "codes are constant"
    if node.op != "Conv" and codes.ndim != 2:
        return f"its weight has {codes.ndim} axes"
    width = len(codes) if node.op == "Conv" or node.attrs.get("transB") else codes.shape[1]
    bias_name = str(node.inputs[2].name) if len(node.inputs) > 2 else ""
    bias = _stored(graph, bias_name) if bias_name else None
    if isinstance(bias, str):
        return bias
    given = graph.constant(bias.codes if bias else bias_name) if bias_name else None
    if bias_name and (given is None or given.shape[-1:] != (given.size,) or given.size != width):
        return "its bias is not one constant for each output"
    layer = Layer(
        node, None, str(node.inputs[0].name), str(node.inputs[1].name), bias_name or None,
        str(node.outputs[0].name), int(node.attrs.get("group", 1)), codes.shape[2:],
    )  # fmt: skip
    return StoredLayer(layer, weight, bias)


def _stored(graph: Graph, name: str) -> Stored | str | None:
    """The codes and grid behind a tensor that one layer reads; or what is in the way, if any."""
    reader = graph.producer(name) if name else None
    if reader is None or not is_op(reader, "DequantizeLinear"):
        return None
    names = [str(tensor.name) for tensor in reader.inputs]
    codes = graph.constant(names[0])
    if codes is None:
        return None
    if any(len(graph.consumers(each)) != 1 for each in (name, names[0])) or graph.is_output(name):
        return f"{names[0]!r} is read by others too"
    if format_of(codes.dtype) is None:
        return f"{names[0]!r} holds {codes.dtype}, which are no integers"
    kind = graph.dtype(name)
    if kind is not None and kind != np.float32:
        return f"{names[0]!r} is read as {kind}"
    grid = read_grid(graph, reader, codes)
    return (
        f"the scale of {names[0]!r} is computed" if grid is None else Stored(names[0], reader, grid)
    )


def read_grid(graph: Graph, node: gs.Node, codes: Array) -> Grid | None:
    """The grid of a DequantizeLinear that reads such codes.

    None if its scale is computed, or codes are no integers.
    """
    names = [str(tensor.name) for tensor in node.inputs]
    scale, form = graph.constant(names[1]), format_of(codes.dtype)
    given = graph.constant(names[2]) if len(names) > 2 and names[2] else None
    if scale is None or form is None or (given is None and len(names) > 2 and names[2]):
        return None
    zero = np.zeros(scale.shape, codes.dtype) if given is None else given
    axis = None if scale.ndim == 0 else int(node.attrs.get("axis", 1)) % max(codes.ndim, 1)
    block = int(node.attrs.get("block_size", 0))
    return Grid(np.asarray(scale, np.float32), zero, form, axis, block)


def format_of(dtype: np.dtype[np.generic]) -> Format | None:
    """The whole range of an integer type; None for all others, as floats of 8 bits."""
    if dtype == BIAS.dtype:
        return BIAS
    digits = str(dtype).removeprefix("u").removeprefix("int")
    if not digits.isdecimal():
        return None
    bits = int(digits)
    signed = not str(dtype).startswith("u")
    low = -(2 ** (bits - 1)) if signed else 0
    return Format(dtype, low, low + 2**bits - 1)


def write_bias(graph: Graph, layer: StoredLayer, bias: Doubles, grid: Grid | None = None) -> None:
    """Give a layer that has a bias another one; a stored one keeps its steps.

    It gets those of the products it is added to if `grid`, of the layer's weight and with a scale
    for each output, is given.
    """
    name = layer.layer.bias
    assert name is not None, "the layer has a bias"
    values = bias / float(layer.layer.node.attrs.get("beta", 1.0))
    if layer.bias is not None:
        old = graph.constant(layer.bias.codes)
        assert old is not None, "codes are constant"
        stored, step = layer.bias.grid, step_of(graph, layer.layer.data)
        if grid is not None and step is not None:
            stored = _restep(graph, layer.bias, name, grid.scale * np.float32(step), old.ndim - 1)
        graph.set_constant(layer.bias.codes, stored.quantize(values.reshape(old.shape)))
        return
    array = graph.constant(name)
    assert array is not None, "a bias that is not stored is constant"
    if len(graph.consumers(name)) == 1 and not graph.is_output(name):
        graph.set_constant(name, np.asarray(values.reshape(array.shape), array.dtype))
        return
    node = layer.layer.node
    data, weight = (str(tensor.name) for tensor in node.inputs[:2])
    inputs = (data, weight, values.astype(array.dtype))
    made = NewNode(node.op, inputs, (layer.layer.output,), dict(node.attrs), name=node.name)
    graph.apply(Edit(remove=(node,), add=(made,)))


def _restep(graph: Graph, bias: Stored, name: str, steps: Floats, axis: int) -> Grid:
    """Let a bias be read with a step for each output, whatever its steps were; its new grid."""
    scale = graph.fresh(f"{bias.codes}_scale")
    inputs, attrs = (bias.codes, scale), {"axis": axis}
    node = NewNode("DequantizeLinear", inputs, (name,), attrs, name=bias.reader.name)
    graph.apply(Edit(remove=(bias.reader,), add=(node,), constants={scale: steps}))
    return Grid(steps, np.zeros(steps.shape, BIAS.dtype), BIAS, axis)


def step_of(graph: Graph, name: str) -> float | None:
    """The scale of a tensor that is read from a grid of its own."""
    reader = graph.producer(name)
    if reader is None or not is_op(reader, "DequantizeLinear"):
        return None
    scale = graph.constant(reader.inputs[1].name)
    return None if scale is None or scale.size != 1 else float(np.asarray(scale).reshape(()))
