"""Open the stored weights of a graph for training, and store them again.

While open, a weight is a float that goes through QuantizeLinear and DequantizeLinear, and biases
are floats: the torch view makes the pair a fake quantization that passes gradients.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from graphopt.ir import Array, Edit, Graph, NewNode, remade
from graphopt.quantize.biases import restep_biases, store_bias
from graphopt.quantize.grid import BIAS, INT4, INT8, Floats, Format, Grid
from graphopt.quantize.narrowing import activation_grids
from graphopt.quantize.portability import portable_bounds, saturating
from graphopt.quantize.scales import fit_grid
from graphopt.quantize.stored_layers import StoredLayer, find_stored_layers, step_of

__all__ = [
    "Opened",
    "close_weights",
    "gains_of",
    "open_weights",
]

_WEIGHTS: Mapping[int, Format] = {4: replace(INT4, low=-8), 8: INT8}


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
    portable: bool = False
    """Whether no sum of two products could leave 16 bits; see `portability`."""


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
        nodes.append(remade(read.node, {2: bias}))
    graph.apply(Edit(remove=tuple(removed), add=tuple(nodes), constants=constants))
    portable = not saturating(grid.quantize(values), channels).any()
    return Opened(read.output, weight, scale, zero, form, channels, bias, portable)


def close_weights(graph: Graph, opened: tuple[Opened, ...]) -> None:
    """Store what training has made of open weights and biases.

    Steps of tensors that other layers read have changed too, and so do those of their biases.
    A layer in which no sum of two products could saturate gets steps that keep it so.
    """
    for entry in opened:
        values, scale, zero = (
            graph.constants()[n] for n in (entry.weight, entry.scale, entry.zero)
        )
        steps = _bearing(graph, entry, np.asarray(scale, np.float32))
        if entry.portable:
            steps = _at_least(steps, portable_bounds(values, entry.axis, 1))
        grid = Grid(steps, zero, entry.format, entry.axis)
        rounder = graph.consumers(entry.weight)[0]
        reader = graph.consumers(rounder.outputs[0].name)[0]
        codes = graph.fresh(f"{entry.weight.removesuffix('_float')}_q")
        read = NewNode(
            "DequantizeLinear", (codes, entry.scale, entry.zero), (str(reader.outputs[0].name),),
            {"axis": entry.axis}, name=reader.name,
        )  # fmt: skip
        graph.set_constant(entry.scale, steps)
        constants = {codes: grid.quantize(values)}
        graph.apply(Edit(remove=(rounder, reader), add=(read,), constants=constants))
        if entry.bias is not None:
            _close_bias(graph, entry, grid)
    restep_biases(graph)
    graph.reshape_notice()
    graph.prune()


def _bearing(graph: Graph, entry: Opened, scale: Floats) -> Floats:
    """The steps of a weight, coarse enough for 32 bits to hold every bias.

    Channels whose weights are next to nothing can have a large one.
    """
    node = graph.producer(entry.output)
    assert node is not None, "a layer computes its output"
    step = step_of(graph, str(node.inputs[0].name))
    bias = None if entry.bias is None else graph.constant(entry.bias)
    if step is None or bias is None:
        return scale
    return _at_least(scale, np.abs(bias.astype(np.float64)) / (step * BIAS.high / 2))


def _at_least(scale: Floats, least: npt.NDArray[np.floating]) -> Floats:
    """Steps that are no finer than these, one for each channel or one for all."""
    held = np.maximum(scale, least if scale.size > 1 else least.max())
    return np.asarray(held, np.float32)


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


def gains_of(graph: Graph, opened: tuple[Opened, ...]) -> dict[str, float]:
    """For each scale that is to be learned the factor of its gradient; see StepSizes."""
    gains = {}
    for entry in opened:
        array = graph.constants()[entry.weight]
        share = array.size / array.shape[entry.axis]
        gains[entry.scale] = 1 / math.sqrt(share * entry.format.high)
    for scale, (zero, tensors) in activation_grids(graph).items():
        shape = graph.shape(tensors[0]) or ()
        share = math.prod(size for size in shape[1:] if isinstance(size, int))
        origin = graph.constant(zero)
        high = 15 if origin is not None and "4" in origin.dtype.name else 255
        gains[scale] = 1 / math.sqrt(max(share, 1) * high)
    return gains
