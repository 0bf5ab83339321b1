"""Open the stored weights of a graph for training, and store them again.

While open, a weight is a float that goes through QuantizeLinear and DequantizeLinear, and biases
are floats: the torch view makes the pair a fake quantization that passes gradients.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir import Array, Edit, Graph, NewNode
from graphopt.quantize.biases import restep_biases, store_bias
from graphopt.quantize.calibrators import shrunk_grid
from graphopt.quantize.grid import INT4, INT8, UINT4, UINT8, Format, Grid
from graphopt.quantize.observed import Observed
from graphopt.quantize.scales import fit_grid
from graphopt.quantize.stored_layers import StoredLayer, find_stored_layers, format_of, step_of
from graphopt.rewrite.matching import is_op

__all__ = [
    "Opened",
    "close_weights",
    "gains_of",
    "narrow_activations",
    "open_weights",
    "rounded_tensors",
    "widen_activations",
]

_WEIGHTS: Mapping[int, Format] = {4: replace(INT4, low=-8), 8: INT8}
_ACTIVATIONS: Mapping[int, Format] = {4: UINT4, 8: UINT8}

_LEAST = 0.1
"""Activations have long tails: the part of their range that 4 bits may be left with."""


@dataclass(frozen=True)
class Opened:
    """One layer's open weight: its output, the float constant, the scale's and the zero's name."""

    output: str
    weight: str
    scale: str
    zero: str
    format: Format
    axis: int
    bias: str | None
    """The float bias that was stored before."""


def open_weights(graph: Graph, bits: int) -> tuple[Opened, ...]:
    """Make the weights of all stored layers floats on a grid of so many bits.

    The first and the last layer keep 8, as is usual: little is gained there and much lost.
    """
    layers = find_stored_layers(graph)
    ends = {layers[0].layer.output, layers[-1].layer.output} if layers else set()
    return tuple(
        _open(graph, layer, _WEIGHTS[8 if layer.layer.output in ends else bits]) for layer in layers
    )


def _open(graph: Graph, layer: StoredLayer, form: Format) -> Opened:
    read, stored = layer.layer, layer.weight
    values = stored.values(graph)
    channels = 0 if read.node.op == "Conv" or read.node.attrs.get("transB") else 1
    grid = stored.grid
    if form.dtype != grid.format.dtype or grid.axis != channels or grid.block:
        grid = fit_grid(values, form, channels)
    elif grid.zero.any():
        form = grid.format  # codes about another zero use all of the range
    weight, scale, zero, codes = (
        graph.fresh(f"{read.weight}_{part}") for part in ("float", "step", "origin", "steps")
    )
    constants: dict[str, Array] = {weight: values, scale: grid.scale, zero: grid.zero}
    ends = (scale, zero)
    nodes = [
        NewNode("QuantizeLinear", (weight, *ends), (codes,), {"axis": channels}),
        NewNode("DequantizeLinear", (codes, *ends), (read.weight,), {"axis": channels}),
    ]
    removed, bias = [stored.reader], None
    if layer.bias is not None:
        bias = graph.fresh(f"{read.bias}_float")
        constants[bias] = layer.bias.values(graph).reshape(-1)
        removed += [layer.bias.reader, read.node]
        nodes.append(_again(read.node, {2: bias}))
    graph.apply(Edit(remove=tuple(removed), add=tuple(nodes), constants=constants))
    return Opened(read.output, weight, scale, zero, form, channels, bias)


def _again(node: gs.Node, inputs: Mapping[int, str]) -> NewNode:
    names = tuple(inputs.get(i, str(tensor.name)) for i, tensor in enumerate(node.inputs))
    outputs = tuple(str(tensor.name) for tensor in node.outputs)
    return NewNode(node.op, names, outputs, dict(node.attrs), node.domain or "", node.name)


def close_weights(graph: Graph, opened: tuple[Opened, ...]) -> None:
    """Store what training has made of open weights and biases.

    Steps of tensors that other layers read have changed too, and so do those of their biases.
    """
    for entry in opened:
        values, scale, zero = (
            graph.constants()[n] for n in (entry.weight, entry.scale, entry.zero)
        )
        grid = Grid(np.asarray(scale, np.float32), zero, entry.format, entry.axis)
        rounder = graph.consumers(entry.weight)[0]
        reader = graph.consumers(rounder.outputs[0].name)[0]
        codes = graph.fresh(f"{entry.weight.removesuffix('_float')}_q")
        read = NewNode(
            "DequantizeLinear", (codes, entry.scale, entry.zero), (str(reader.outputs[0].name),),
            {"axis": entry.axis}, name=reader.name,
        )  # fmt: skip
        constants = {codes: grid.quantize(values)}
        graph.apply(Edit(remove=(rounder, reader), add=(read,), constants=constants))
        if entry.bias is not None:
            _close_bias(graph, entry, grid)
    restep_biases(graph)
    graph.reshape_notice()
    graph.prune()


def _close_bias(graph: Graph, entry: Opened, grid: Grid) -> None:
    """The step of a bias is that of the products it is added to."""
    node = graph.producer(entry.output)
    assert node is not None, "a layer computes its output"
    step = step_of(graph, str(node.inputs[0].name))
    bias = graph.constant(str(entry.bias))
    if step is None or bias is None:
        return
    values, steps = np.asarray(bias, np.float32), np.asarray(grid.scale * np.float32(step))
    store_bias(graph, node, str(entry.bias).removesuffix("_float"), values, steps)


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
    for scale, (zero, tensors) in _grids(graph).items():
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
        nodes.append(_again(layer, {0: read[name]}))
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
    for scale, (zero, _) in _grids(graph).items():
        if scale not in scales:
            continue
        bounds = tuple(np.array(bound) for bound in _limits(graph, scale, zero))
        origin = graph.constants()[zero]
        for node in [n for n in graph.consumers(scale) if is_op(n, "QuantizeLinear")]:
            data, clipped = str(node.inputs[0].name), graph.fresh(f"{node.inputs[0].name}_held")
            clip = NewNode("Clip", (data, *bounds), (clipped,))
            graph.apply(Edit(remove=(node,), add=(clip, _again(node, {0: clipped}))))
        graph.set_constant(zero, origin.astype(UINT8.dtype))
    graph.reshape_notice()


def _grids(graph: Graph) -> dict[str, tuple[str, list[str]]]:
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


def gains_of(graph: Graph, opened: tuple[Opened, ...]) -> dict[str, float]:
    """For each scale that is to be learned the factor of its gradient; see StepSizes."""
    gains = {}
    for entry in opened:
        array = graph.constants()[entry.weight]
        share = array.size / array.shape[entry.axis]
        gains[entry.scale] = 1 / math.sqrt(share * entry.format.high)
    for scale, (zero, tensors) in _grids(graph).items():
        shape = graph.shape(tensors[0]) or ()
        share = math.prod(size for size in shape[1:] if isinstance(size, int))
        origin = graph.constant(zero)
        high = 15 if origin is not None and "4" in origin.dtype.name else 255
        gains[scale] = 1 / math.sqrt(max(share, 1) * high)
    return gains
