"""Layers that a least-squares fit can solve: what they multiply, and their weights as matrices.

The matrix of a layer is (group, column, output): a column for each tap of each input channel of
the group, channel by channel, and a last one for the bias. Rows are places of the output.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from graphopt.errors import NotFinite
from graphopt.ir import Array, Edit, Graph, NewNode
from graphopt.runtime.patches import windows_of

__all__ = ["Doubles", "Floats", "Layer", "check_weights", "find_layer", "layer_before"]

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


_BETWEEN = frozenset(
    {
        "AveragePool",
        "BatchNormalization",
        "Celu",
        "Clip",
        "Elu",
        "Flatten",
        "Gelu",
        "GlobalAveragePool",
        "HardSigmoid",
        "HardSwish",
        "Identity",
        "LeakyRelu",
        "MaxPool",
        "Mish",
        "Pad",
        "PRelu",
        "Relu",
        "Selu",
        "Sigmoid",
        "Softplus",
        "Swish",
        "Tanh",
    }
)
"""Operators with one input (others constant) that a change passes without growing much."""


@dataclass(frozen=True, eq=False)
class Layer:
    """A Conv, Gemm or MatMul with a constant weight; `output` has its bias added."""

    node: gs.Node
    adder: gs.Node | None
    """The Add of a bias behind a MatMul."""
    data: str
    weight: str
    bias: str | None
    output: str
    groups: int
    kernel: tuple[int, ...]
    """Sizes; none for a product."""

    @property
    def taps(self) -> int:
        return math.prod(self.kernel)

    @property
    def channel_axis(self) -> int:
        """The axis of the output's channels."""
        return 1 if self.node.op == "Conv" else -1

    @property
    def has_bias(self) -> bool:
        """Whether the fit may have a bias: a product of matrices gets none that it had not."""
        return self.node.op != "MatMul" or self.bias is not None

    def matrix(self, graph: Graph) -> Doubles:
        bias = None if self.bias is None else _constant(graph, self.bias)
        return self._arranged(_constant(graph, self.weight), bias, self._alpha, self._beta)

    def slopes(self, weight: Array, bias: Array | None) -> Doubles:
        """Derivatives by weight and bias as one by the matrix."""
        return self._arranged(weight, bias, 1 / self._alpha, 1 / self._beta)

    def _arranged(self, weight: Array, bias: Array | None, alpha: float, beta: float) -> Doubles:
        double = weight.astype(np.float64) * alpha
        if self.node.op == "Conv":
            grouped = double.reshape(self.groups, len(double) // self.groups, -1)
            matrix = grouped.transpose(0, 2, 1)
        else:
            matrix = (double.T if self.node.attrs.get("transB") else double)[np.newaxis]
        if not self.has_bias:
            return matrix
        last = np.zeros(self.groups * matrix.shape[2])
        if bias is not None:
            last = last + bias.astype(np.float64).reshape(-1) * beta
        return np.concatenate([matrix, last.reshape(self.groups, 1, -1)], axis=1)

    def parted(self, graph: Graph, matrix: Doubles) -> tuple[Array, Array | None]:
        """Weight and bias, as the layer holds them, of a matrix; the reverse of `matrix`."""
        old = _constant(graph, self.weight)
        taken = matrix[:, :-1] if self.has_bias else matrix
        if self.node.op == "Conv":
            weight = taken.transpose(0, 2, 1).reshape(-1, old.shape[1], *old.shape[2:])
        else:
            weight = taken[0] / self._alpha
            weight = weight.T if self.node.attrs.get("transB") else weight
        if not self.has_bias:
            return np.ascontiguousarray(weight, old.dtype), None
        bias = matrix[:, -1].reshape(-1) / self._beta
        if self.bias is not None:
            shape = _constant(graph, self.bias).shape
            bias = bias.reshape(shape if math.prod(shape) == bias.size else -1)
        return np.ascontiguousarray(weight, old.dtype), np.ascontiguousarray(bias, old.dtype)

    def write(self, graph: Graph, matrix: Doubles) -> Layer:
        """Give the layer another matrix; the layer as it is afterwards."""
        weight, bias = self.parted(graph, matrix)
        graph.set_constant(self.weight, weight)
        if bias is None:
            return self
        if self.bias is None:
            return self._with_bias(graph, bias)
        graph.set_constant(self.bias, bias)
        return self

    @property
    def _alpha(self) -> float:
        return float(self.node.attrs.get("alpha", 1.0)) if self.node.op == "Gemm" else 1.0

    @property
    def _beta(self) -> float:
        """The factor of the bias; of one that counts for nothing, that of the bias to come."""
        return (_beta(self.node) or 1.0) if self.node.op == "Gemm" else 1.0

    def _with_bias(self, graph: Graph, bias: Array) -> Layer:
        attrs = {
            key: value for key, value in self.node.attrs.items() if (key, value) != ("beta", 0)
        }
        inputs = (self.data, self.weight, bias)
        node = NewNode(self.node.op, inputs, (self.output,), attrs, name=self.node.name)
        graph.apply(Edit(remove=(self.node,), add=(node,)))
        made = graph.producer(self.output)
        found = None if made is None else find_layer(graph, made)
        assert found is not None, "a layer with a bias is a layer"
        return found

    def count(self, data: Array) -> int:
        """How many places of the output there are for each input."""
        return math.prod(self._windows(data).shape[2 : 2 + self._rank(data)])

    def places(self, data: Array, count: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
        """Up to `count` places of the output for each input, drawn at random if there are more."""
        total = self.count(data)
        if total <= count:
            return np.arange(total)
        return np.sort(rng.choice(total, count, replace=False))

    def rows(self, data: Array, places: npt.NDArray[np.int64]) -> Floats:
        """What the matrix is multiplied with: (group, row, column)."""
        windows = self._windows(data)
        rank = self._rank(data)
        sizes = windows.shape[2 : 2 + rank]
        if len(places) < math.prod(sizes):
            index: list[slice | npt.NDArray[np.int64]] = [slice(None), slice(None)]
            index.extend(np.unravel_index(places, sizes))
            windows = windows[tuple(index)]
        batch, channels = windows.shape[:2]
        width, count = channels // self.groups, len(places)
        out = np.ones((self.groups, batch, count, width * self.taps + self.has_bias), np.float32)
        target = out[..., : width * self.taps].reshape(*out.shape[:3], width, self.taps)
        assert np.may_share_memory(target, out), "splitting the last axis needs no copy"
        spread = windows.reshape(batch, self.groups, width, count, self.taps)
        target[...] = spread.transpose(1, 0, 3, 2, 4)
        return out.reshape(self.groups, batch * count, -1)

    def results(self, output: Array, places: npt.NDArray[np.int64]) -> Floats:
        """Values of the output's shape at the same places: (group, row, output of the group)."""
        last = np.moveaxis(output, self.channel_axis, -1)
        flat = last.reshape(len(output), -1, last.shape[-1])
        if len(places) < flat.shape[1]:
            flat = flat[:, places]
        rows = flat.reshape(-1, self.groups, flat.shape[-1] // self.groups)
        return np.ascontiguousarray(rows.transpose(1, 0, 2), np.float32)

    def _rank(self, data: Array) -> int:
        return data.ndim - 2 if self.node.op == "Conv" else 1

    def _windows(self, data: Array) -> Floats:
        """(input, channel, *places, *taps), a view."""
        if self.node.op != "Conv":
            single: Floats = data.astype(np.float32, copy=False)
            return np.moveaxis(single.reshape(len(data), -1, data.shape[-1]), -1, 1)
        return windows_of(self.node, self.kernel, data)


def find_layer(graph: Graph, node: gs.Node) -> Layer | None:
    """Read a node as a layer that can be solved; None for all others."""
    if node.domain not in (None, "", "ai.onnx") or node.op not in ("Conv", "Gemm", "MatMul"):
        return None
    data, weight = node.inputs[0].name, node.inputs[1].name
    array = graph.constant(weight)
    if array is None or array.dtype.kind != "f" or graph.constant(data) is not None:
        return None
    if len(graph.consumers(weight)) > 1 or node.attrs.get("transA"):
        return None
    shape = graph.shape(data)
    if node.attrs.get("alpha", 1.0) == 0 or (shape is not None and len(shape) < 2):
        return None  # nothing to solve for, or no rows
    output = node.outputs[0].name
    if node.op == "MatMul":
        return _product(graph, node, array) if array.ndim == 2 else None
    bias = node.inputs[2].name if len(node.inputs) > 2 and node.inputs[2].name else None
    if node.op == "Gemm" and _beta(node) == 0:
        bias = None
    width = len(array) if node.op == "Conv" or node.attrs.get("transB") else array.shape[1]
    if bias is not None and not _solvable_bias(graph, bias, width):
        return None
    groups = int(node.attrs.get("group", 1))
    return Layer(node, None, data, weight, bias, output, groups, array.shape[2:])


def check_weights(graph: Graph) -> None:
    """Raise NotFinite, naming it, for a weight or bias of a layer that is not finite."""
    for node in graph.nodes:
        layer = find_layer(graph, node)
        for name in () if layer is None else (layer.weight, layer.bias):
            if name is not None and not np.isfinite(_constant(graph, name)).all():
                raise NotFinite(
                    f"refit: weight {name!r} holds NaN or infinite values; "
                    "look at how the model was trained or exported"
                )


def layer_before(graph: Graph, layer: Layer) -> Layer | None:
    """The layer before this one, if only activations and pools lie between, and nothing else reads.

    None otherwise.
    """
    name = layer.data
    while len(graph.consumers(name)) == 1 and not graph.is_output(name):
        maker = graph.producer(name)
        if maker is None:
            return None
        for node in (maker, *(graph.producer(t.name) for t in maker.inputs if maker.op == "Add")):
            found = None if node is None else find_layer(graph, node)
            if found is not None and found.output == name:
                return found
        if maker.op not in _BETWEEN or any(
            graph.constant(tensor.name) is None for tensor in maker.inputs[1:] if tensor.name
        ):
            return None
        name = maker.inputs[0].name
    return None


def _product(graph: Graph, node: gs.Node, weight: Array) -> Layer:
    """A MatMul, with the Add of a constant vector behind it as its bias."""
    output = node.outputs[0].name
    readers = graph.consumers(output)
    plain = Layer(node, None, node.inputs[0].name, node.inputs[1].name, None, output, 1, ())
    if len(readers) != 1 or readers[0].op != "Add" or graph.is_output(output):
        return plain
    names = [tensor.name for tensor in readers[0].inputs]
    other = names[1 - names.index(output)]
    if not _solvable_bias(graph, other, weight.shape[1]):
        return plain
    total = readers[0].outputs[0].name
    return Layer(node, readers[0], plain.data, plain.weight, other, total, 1, ())


def _solvable_bias(graph: Graph, name: str, width: int) -> bool:
    """Whether a tensor is a constant with a value for each output, that nothing else reads."""
    array = graph.constant(name)
    return (
        array is not None
        and array.size == width
        and (array.ndim == 0 or array.shape[-1] == width)
        and len(graph.consumers(name)) == 1
    )


def _beta(gemm: gs.Node) -> float:
    return float(gemm.attrs.get("beta", 1.0))


def _constant(graph: Graph, name: str) -> Array:
    array = graph.constant(name)
    assert array is not None, "layers have constant weights"
    return array
