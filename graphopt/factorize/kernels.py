"""Layers that can be factorized, and the chains of layers that may take their place.

A kernel is (group, out, in, taps...), outputs and inputs counted per group, whatever the operator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from graphopt.ir import Array, Graph, is_uniform
from graphopt.rewrite.linear import LINEAR_OPS, LinearLayer, linear_layer
from graphopt.rewrite.matching import is_op

__all__ = ["Chain", "Doubles", "Kernel", "Part", "Sizes", "Step", "axis_attributes", "kernel_of"]

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Sizes:
    """What a layer reads and writes in one run of the model."""

    read: tuple[int, ...]
    written: tuple[int, ...]


@dataclass(frozen=True)
class Part:
    """One layer of a chain: how many weights it has, and which spatial axes have their final size.

    An axis that has not has the size that it has in the input.
    """

    weights: int
    done: tuple[bool, ...] = ()
    scatters: bool = False
    """Whether every place of the input, not of the output, is multiplied with all weights."""


@dataclass(frozen=True, eq=False)
class Step:
    """One layer of a chain; the weight as ONNX has it."""

    op: str
    weight: Doubles
    attrs: Mapping[str, object]


@dataclass(frozen=True, eq=False)
class Chain:
    """Layers in a row; `amount` computes the kernel that they amount to."""

    steps: tuple[Step, ...]
    amount: Callable[[], Doubles]

    @cached_property
    def kernel(self) -> Doubles:
        return self.amount()


@dataclass(frozen=True, eq=False)
class Kernel:
    """A Conv, ConvTranspose, Gemm or MatMul with a constant weight of its own."""

    layer: LinearLayer

    @cached_property
    def tensor(self) -> Doubles:
        """The kernel, its factor included: made when it is first asked for, for it is large."""
        return _tensor(self.layer)

    @property
    def shape(self) -> tuple[int, ...]:
        weight, groups = self.layer.weight, self.layer.groups
        first, second = len(weight) // groups, weight.shape[1]
        ends = (first, second) if self.layer.outputs_first else (second, first)
        return (groups, *ends, *weight.shape[2:])

    @property
    def node(self) -> gs.Node:
        return self.layer.node

    @property
    def name(self) -> str:
        """The name of the weight, by which the layer is reported."""
        return str(self.node.inputs[1].name)

    @property
    def output(self) -> str:
        return str(self.node.outputs[0].name)

    @property
    def groups(self) -> int:
        return self.shape[0]

    @property
    def outputs(self) -> int:
        return self.shape[1]

    @property
    def inputs(self) -> int:
        return self.shape[2]

    @property
    def taps(self) -> tuple[int, ...]:
        return self.shape[3:]

    @property
    def is_dense(self) -> bool:
        """Whether it is a matrix product."""
        return self.node.op in ("Gemm", "MatMul")

    @property
    def parts(self) -> tuple[Part, ...]:
        """The layer itself as a chain of one."""
        scatters = self.node.op == "ConvTranspose"
        return (Part(self.layer.weight.size, (True,) * len(self.taps), scatters),)

    def step(self, tensor: Doubles) -> Step:
        """The layer with another kernel, its factor in the weight."""
        weight = tensor.swapaxes(1, 2) if self.node.op == "ConvTranspose" else tensor
        if self.is_dense:
            weight = weight[0] if self.layer.outputs_first else weight[0].T
        else:
            weight = weight.reshape(-1, *weight.shape[2:])
        attrs = {key: value for key, value in self.node.attrs.items() if key != "alpha"}
        return Step(self.node.op, weight, attrs)

    def macs(self, parts: Sequence[Part], sizes: Sizes) -> int:
        """The multiply-accumulates of a chain of this layer's ends."""
        if self.is_dense:
            return math.prod(sizes.read[:-1]) * sum(part.weights for part in parts)
        total = 0
        for part in parts:
            pairs = zip(sizes.read[2:], sizes.written[2:], part.done, strict=True)
            places = [out if done and not part.scatters else given for given, out, done in pairs]
            total += sizes.read[0] * math.prod(places) * part.weights
        return total

    def bytes(self, parts: Sequence[Part]) -> int:
        """What the weights of a chain take."""
        return self.layer.weight.dtype.itemsize * sum(part.weights for part in parts)


def kernel_of(graph: Graph, node: gs.Node) -> Kernel | str | None:
    """Read a node as a layer that can be factorized; why not, or None if it is no such layer."""
    if not is_op(node, *LINEAR_OPS) or len(node.inputs) < 2:
        return None
    weight, name = graph.constant(node.inputs[1].name), node.inputs[1].name
    if (
        weight is None
        or weight.dtype.kind != "f"
        or graph.constant(node.inputs[0].name) is not None
    ):
        return None
    if len(graph.consumers(name)) > 1 or graph.is_output(name):
        return "its weight is shared"
    if is_uniform(weight):
        return "its weights are all equal"
    if not np.isfinite(weight).all():
        return "its weights are not finite"
    if not weight.any():
        return "its weights are all zero"
    layer = linear_layer(graph, node)
    if layer is None or weight.ndim < 2 or weight.size == 0:
        return "its weight is no matrix"
    if node.attrs.get("transA", 0):
        return "it transposes its input"
    return Kernel(layer)


def _tensor(layer: LinearLayer) -> Doubles:
    weight: Array = layer.weight
    grouped = weight.reshape(layer.groups, -1, *weight.shape[1:]).astype(np.float64) * layer.factor
    return np.ascontiguousarray(grouped if layer.outputs_first else grouped.swapaxes(1, 2))


def axis_attributes(
    node: gs.Node, taps: Sequence[int], axes: Collection[int], group: int
) -> dict[str, object]:
    """The attributes of a convolution that does along some axes what a node does."""
    rank = len(taps)
    attrs: dict[str, object] = {
        "kernel_shape": [taps[axis] if axis in axes else 1 for axis in range(rank)],
        "group": group,
    }
    for key in ("strides", "dilations"):
        given = node.attrs.get(key) or [1] * rank
        attrs[key] = [int(given[axis]) if axis in axes else 1 for axis in range(rank)]
    automatic = node.attrs.get("auto_pad", "NOTSET")
    if automatic not in ("NOTSET", b"NOTSET"):
        return {**attrs, "auto_pad": automatic}
    pads = node.attrs.get("pads") or [0] * 2 * rank
    attrs["pads"] = [int(pads[end]) if end % rank in axes else 0 for end in range(2 * rank)]
    return attrs
