"""What a family holds: the multiply-accumulates and parameters that run through its channels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.cost import node_macs, operator
from graphopt.coupling.axes import Atoms, Axis, Fixed
from graphopt.coupling.wiring import Wiring
from graphopt.ir import Graph

__all__ = ["Held", "held", "work_axes"]


@dataclass(frozen=True, order=True)
class Held:
    """What would go if all channels of a family went; ordered by MACs, then parameters."""

    macs: int
    parameters: int


_WEIGHT, _TURNED, _MATRICES = ((1, 1),), ((1, 0),), ((0, -1), (1, -2))
_CONTRACTED: Mapping[str, Sequence[tuple[int, int]]] = {
    "Conv": _WEIGHT,
    "ConvInteger": _WEIGHT,
    "ConvTranspose": _TURNED,
    "Gemm": _MATRICES,
    "MatMul": _MATRICES,
    "MatMulInteger": _MATRICES,
    "QLinearConv": ((3, 1),),
    "QLinearMatMul": ((0, -1), (3, -2)),
    "com.microsoft:DynamicQuantizeMatMul": _MATRICES,
    "com.microsoft:FusedConv": _WEIGHT,
    "com.microsoft:FusedGemm": _MATRICES,
    "com.microsoft:FusedMatMul": _MATRICES,
    "com.microsoft:MatMulIntegerToFloat": _MATRICES,
    "com.microsoft:TransposeMatMul": _MATRICES,
}
"""Inputs and their axis that a node sums over, before transA or transB; any of them will do."""


def held(
    graph: Graph, wiring: Wiring, component: Atoms, families: Mapping[str, Atoms]
) -> dict[str, Held]:
    """Count for every family; what runs through two families counts for both.

    `component` is the solver's number of each atom's channel; `families` are such numbers, by name.
    """
    names = list(families)
    owners = np.full(component.max(initial=-1) + 1, -1, np.int64)
    for number, name in enumerate(names):
        owners[families[name]] = number
    owner = owners[component]
    macs = _macs(graph, wiring, owner, len(names))
    parameters = np.zeros(len(names))
    for name, array in graph.constants().items():
        axes = wiring.axes.get(name)
        if axes is not None and (array.dtype.kind == "f" or array.dtype.itemsize == 1):
            parameters += array.size * _share(axes, owner, len(names))
    return {
        name: Held(round(float(macs[i])), round(float(parameters[i])))
        for i, name in enumerate(names)
    }


def _macs(graph: Graph, wiring: Wiring, owner: np.ndarray, count: int) -> np.ndarray:
    total = np.zeros(count)
    costs = node_macs(graph)
    for node in graph.nodes:
        name = next((tensor.name for tensor in node.outputs if tensor.name), node.name)
        if costs.get(name):
            total += costs[name] * _share(tuple(work_axes(node, wiring)), owner, count)
    return total


def work_axes(node: gs.Node, wiring: Wiring) -> Iterator[Axis]:
    """The axes a node's work is proportional to: its output's, and the one it sums over."""
    yield from wiring.axes.get(node.outputs[0].name) or ()
    found: list[Axis] = []
    for index, place in _CONTRACTED.get(operator(node), ()):
        if place < 0 and node.attrs.get("transB" if index else "transA"):
            place = -3 - place
        axes = wiring.axes.get(node.inputs[index].name)
        if axes and len(axes) >= max(-place, place + 1):
            found.append(axes[place])
    # What the caller gives has no channels; what it is multiplied with may have.
    yield from [*(axis for axis in found if not isinstance(axis, Fixed)), *found][:1]


def _share(axes: tuple[Axis, ...], owner: np.ndarray, count: int) -> np.ndarray:
    """Which part of a product of axes each family is involved in."""
    rest = np.ones(count)
    for axis in axes:
        if isinstance(axis, Fixed) or not len(axis):
            continue
        owners = owner[axis]
        found = np.bincount(owners[owners >= 0], minlength=count) if count else rest
        rest *= 1 - found / len(axis)
    return 1 - rest
