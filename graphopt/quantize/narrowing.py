"""Put activations on grids of fewer bits for training, and let their codes take a byte after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir import Array, Edit, Graph, NewNode, remade
from graphopt.quantize.calibrators import shrunk_grid
from graphopt.quantize.grid import UINT4, UINT8, Format, Grid
from graphopt.quantize.observed import Observed
from graphopt.quantize.stored_layers import format_of
from graphopt.rewrite.matching import is_op

__all__ = [
    "activation_grids",
    "narrow_activations",
    "rounded_tensors",
    "widen_activations",
]

_ACTIVATIONS: Mapping[int, Format] = {4: UINT4, 8: UINT8}

_LEAST = 0.1
"""Activations have long tails: the part of their range that 4 bits may be left with."""


def rounded_tensors(graph: Graph) -> list[str]:
    """The computed tensors, and inputs, that are put on grids."""
    return [
        str(node.inputs[0].name)
        for node in graph.nodes
        if is_op(node, "QuantizeLinear") and graph.constant(node.inputs[0].name) is None
    ]


def narrow_activations(graph: Graph, bits: int, seen: Mapping[str, Observed]) -> list[str]:
    """Put what layers multiply on grids of fewer bits; return the scales that are new.

    `seen` is what `rounded_tensors` have shown. What the first layer reads, and what the
    last reads and gives, keeps its grid, and so does what no layer reads, as the terms of a sum.
    Where layers and others read a tensor it is rounded once more, for the layers alone.
    """
    form = _ACTIVATIONS[bits]
    kept = _kept(graph)
    changed = []
    for scale, (zero, tensors) in activation_grids(graph).items():
        layers, others = _readers(graph, scale, tensors)
        if scale in kept or not layers or not any(name in seen for name in tensors):
            continue
        # The ends of the old grid clamp for an activation that was absorbed, so they hold here too.
        low, high = _limits(graph, scale, zero)
        shown = reduce(Observed.merge, [seen[name] for name in tensors if name in seen])
        grid = shrunk_grid(shown, form, (float(low), float(high)), _LEAST)
        if others:
            scale = _round_again(graph, layers, scale, grid)
        else:
            graph.set_constant(scale, grid.scale)
            graph.set_constant(zero, grid.zero)
        changed.append(scale)
    graph.reshape_notice()
    return changed


def _readers(
    graph: Graph, scale: str, tensors: Sequence[str]
) -> tuple[list[gs.Node], list[gs.Node]]:
    """Layers that read what is on a grid as data, and all others that do.

    One that only moves values, and leaves them on the same grid, is neither.
    """
    backs = [
        back
        for node in graph.consumers(scale)
        if is_op(node, "QuantizeLinear")
        for back in graph.consumers(node.outputs[0].name)
    ]
    layers: list[gs.Node] = []
    others: list[gs.Node] = []
    for back in backs:
        name = str(back.outputs[0].name)
        if graph.is_output(name):
            others.append(back)
        for node in graph.consumers(name):
            if is_op(node, "Conv", "Gemm", "MatMul") and node.inputs[0].name == name:
                layers.append(node)
            elif str(node.outputs[0].name) not in tensors:
                others.append(node)
    return layers, others


def _round_again(graph: Graph, layers: Sequence[gs.Node], hint: str, grid: Grid) -> str:
    """Let layers read their data through another grid; its scale."""
    scale, zero = (graph.fresh(f"{hint}_{part}") for part in ("narrow", "narrow_zero"))
    nodes: list[NewNode] = []
    read: dict[str, str] = {}
    for layer in layers:
        name = str(layer.inputs[0].name)
        if name not in read:
            codes, read[name] = graph.fresh(f"{name}_narrow_q"), graph.fresh(f"{name}_narrow")
            nodes.append(NewNode("QuantizeLinear", (name, scale, zero), (codes,)))
            nodes.append(NewNode("DequantizeLinear", (codes, scale, zero), (read[name],)))
        nodes.append(remade(layer, {0: read[name]}))
    constants: dict[str, Array] = {scale: grid.scale, zero: grid.zero}
    graph.apply(Edit(remove=tuple(layers), add=tuple(nodes), constants=constants))
    return scale


def _limits(graph: Graph, scale: str, zero: str) -> tuple[np.float32, np.float32]:
    """The least and the largest value on a grid of activations."""
    step, origin = (graph.constants()[name] for name in (scale, zero))
    form = format_of(origin.dtype)
    assert form is not None, "zero points are integers"
    low, high = Grid(np.asarray(step, np.float32), origin, form).limits()
    return np.float32(low), np.float32(high)


def widen_activations(graph: Graph, scales: Sequence[str]) -> None:
    """Let codes of 4 bits take a byte, behind a Clip to their range.

    ONNX Runtime's optimizer makes invalid models of 4-bit activations.
    """
    for scale, (zero, _) in activation_grids(graph).items():
        if scale not in scales:
            continue
        bounds = tuple(np.array(bound) for bound in _limits(graph, scale, zero))
        origin = graph.constants()[zero]
        for node in [n for n in graph.consumers(scale) if is_op(n, "QuantizeLinear")]:
            data, clipped = str(node.inputs[0].name), graph.fresh(f"{node.inputs[0].name}_held")
            clip = NewNode("Clip", (data, *bounds), (clipped,))
            graph.apply(Edit(remove=(node,), add=(clip, remade(node, {0: clipped}))))
        graph.set_constant(zero, origin.astype(UINT8.dtype))
    graph.reshape_notice()


def activation_grids(graph: Graph) -> dict[str, tuple[str, list[str]]]:
    """For each scale of activations its zero point, and the tensors that are put on that grid."""
    found: dict[str, tuple[str, list[str]]] = {}
    for node in graph.nodes:
        if not is_op(node, "QuantizeLinear") or graph.constant(node.inputs[0].name) is not None:
            continue
        scale, zero = (str(tensor.name) for tensor in node.inputs[1:3])
        array = graph.constant(scale)
        if array is not None and array.size == 1:
            found.setdefault(scale, (zero, []))[1].append(str(node.inputs[0].name))
    return found


def _kept(graph: Graph) -> set[str]:
    """Scales of what the first layer reads, and of what the last reads and gives."""
    layers = [n for n in graph.nodes if is_op(n, "Conv", "Gemm", "MatMul")]
    if not layers:
        return set()
    names = [str(node.inputs[0].name) for node in (layers[0], layers[-1])]
    readers = [graph.producer(name) for name in names]
    readers += [
        node
        for node in graph.consumers(layers[-1].outputs[0].name)
        if is_op(node, "QuantizeLinear")
    ]
    return {
        str(node.inputs[1].name) for node in readers if node is not None and len(node.inputs) > 1
    }
