"""Put a chain of layers in the place of one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np

from graphopt.factorize.kernels import Chain, Doubles, Kernel
from graphopt.ir import Array, Edit, Graph, NewNode
from graphopt.rewrite.linear import layer_bias

__all__ = ["Replacement", "has_free_bias", "replacement"]


@dataclass(frozen=True, eq=False)
class Replacement:
    """A chain in a layer's own precision, for any graph that has the layer; `shift` is added to
    its bias."""

    steps: tuple[tuple[str, Array, Mapping[str, object]], ...]
    shift: Doubles | None

    @classmethod
    def of(cls, kernel: Kernel, chain: Chain, shift: Doubles | None) -> Self:
        dtype = kernel.layer.weight.dtype
        steps = tuple((s.op, s.weight.astype(dtype), s.attrs) for s in chain.steps)
        return cls(steps, shift)

    @property
    def is_finite(self) -> bool:
        return all(bool(np.isfinite(weight).all()) for _, weight, _ in self.steps)


def has_free_bias(graph: Graph, kernel: Kernel) -> bool:
    """Whether the layer's bias may be changed, or it may be given one."""
    return kernel.node.op != "MatMul" and not isinstance(layer_bias(graph, kernel.layer), str)


def replacement(graph: Graph, kernel: Kernel, chain: Replacement) -> tuple[Edit, list[str]]:
    """The edit that puts a chain in a layer's place, and the tensors between its layers.

    The bias stays on the last layer.
    """
    node = kernel.node
    name, between, added = node.inputs[0].name, [], []
    constants: dict[str, Array] = {}
    for number, (op, weight, attrs) in enumerate(chain.steps):
        last = number == len(chain.steps) - 1
        factor = graph.fresh(f"{kernel.name}_{number}")
        constants[factor] = weight
        inputs: list[str | Array] = [name, factor]
        if last:
            name = kernel.output
            op, bias, more = _biased(graph, kernel, op, chain.shift)
            inputs += bias
            attrs = {**attrs, **more}
        else:
            name = graph.fresh(f"{kernel.output}_{number}")
            between.append(name)
        title = node.name if last else f"{node.name}_{number}"
        added.append(NewNode(op, tuple(inputs), (name,), dict(attrs), name=title))
    return Edit(remove=(node,), add=tuple(added), constants=constants), between


def _biased(
    graph: Graph, kernel: Kernel, op: str, shift: Doubles | None
) -> tuple[str, list[str | Array], Mapping[str, object]]:
    """The last layer's operator, its bias if there is one, and attributes for it."""
    given = [tensor.name for tensor in kernel.node.inputs[2:3] if tensor.name]
    if shift is None or not has_free_bias(graph, kernel):
        attrs = {key: kernel.node.attrs[key] for key in ("beta",) if key in kernel.node.attrs}
        bias: list[str | Array] = list(given)
    else:
        old = layer_bias(graph, kernel.layer)
        assert not isinstance(old, str), "a bias that may be changed is known"
        total = shift if old is None else old + shift
        attrs, bias = {}, [total.astype(kernel.layer.weight.dtype)]
    if not kernel.is_dense:
        return op, bias, {}
    return ("Gemm", bias, attrs) if bias else ("MatMul", bias, {})
