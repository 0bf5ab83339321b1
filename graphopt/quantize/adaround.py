"""Round the stored weights of each layer anew, so that it gives what it gave in the original.

Layers are visited from front to back. What a layer reads comes through the layers rounded before,
what it should give is the original's; first the weights are solved for (least squares, drawn to
the old ones), for inputs are not what they were, then rounded column by column and, from there, by
gradients. The bias takes up what is left on average.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from graphopt import train
from graphopt.data import Dataset
from graphopt.ir import Array, Edit, Graph, NewNode
from graphopt.quantize.gptq import sweep
from graphopt.quantize.grid import INT4, INT8, Format, Grid
from graphopt.quantize.references import noted_references
from graphopt.quantize.scales import fit_grid
from graphopt.quantize.stored_layers import (
    StoredLayer,
    Target,
    find_stored_layers,
    find_target,
    write_bias,
)
from graphopt.refit.frontier import Frontier

__all__ = ["Anew", "Manner", "round_anew"]

Doubles = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]

_ROWS = 1 << 15
"""Rows of what a layer reads that it is fitted on; of more, places are drawn for each input."""

_BYTES = 512 << 20
"""What the rows of one layer may hold."""

_DOUBT = 0.3
"""How far towards the other neighbour weights stand when directions begin to be learned."""

_FULL_INT4 = replace(INT4, low=-8)


@dataclass(frozen=True)
class Manner:
    """How weights are rounded; `damping` also draws the solved weights to the old ones."""

    bits: int
    packed: bool
    steps: int
    batch: int
    rate: float
    sharpness: float
    damping: float
    seed: int
    threads: int
    device: str

    @property
    def format(self) -> Format:
        """The integers that are stored; without packing, 4 bits take a whole byte."""
        if self.bits == 4 and self.packed:
            return _FULL_INT4
        return INT8 if self.bits == 8 else replace(INT8, low=-(2 ** (self.bits - 1)),
                                                   high=2 ** (self.bits - 1) - 1)  # fmt: skip


@dataclass
class Anew:
    """The relative square error of each layer: rounded to the nearest, and as it is now."""

    errors: dict[str, tuple[float, float]] = field(default_factory=dict)
    left_alone: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Rows:
    """What a layer reads and should give, at the same places."""

    inputs: Floats
    targets: Floats
    clamp: tuple[float, float]

    def error(self, matrix: Doubles, bias: Doubles) -> float:
        """The square error of the clamped output, relative to what is wanted."""
        made = self.inputs @ matrix.transpose(0, 2, 1).astype(np.float32)
        made = np.clip(made + bias[:, np.newaxis].astype(np.float32), *self.clamp)
        wanted = np.clip(self.targets, *self.clamp)
        return float(np.square(made - wanted).mean() / max(float(np.square(wanted).mean()), 1e-30))


def round_anew(
    graph: Graph,
    original: Graph,
    dataset: Dataset,
    manner: Manner,
    progress: Callable[[float], None] = lambda fraction: None,
) -> Anew:
    """Give every layer with stored weights, and an original to compare with, new codes."""
    made = Frontier(graph, dataset, threads=manner.threads)
    wanted = Frontier(original, dataset, threads=manner.threads)
    references = noted_references(graph)
    found = Anew()
    layers = find_stored_layers(graph)
    for number, layer in enumerate(layers):
        progress(number / len(layers))
        target = find_target(graph, original, references, layer)
        if isinstance(target, str):
            found.left_alone[layer.layer.output] = target
            continue
        rows = _gather(made, wanted, layer, target, manner.seed + number)
        found.errors[layer.layer.output] = _round(graph, layer, rows, manner)
    return found


def _gather(
    made: Frontier, wanted: Frontier, layer: StoredLayer, target: Target, seed: int
) -> _Rows:
    rng, read = np.random.default_rng(seed), layer.layer
    inputs, targets = [], []
    columns = int(np.prod(_codes(made.graph, layer).shape[1:])) * read.groups
    count = min(_ROWS, _BYTES // (4 * max(columns, 1)))
    pairs = zip(made.batches([read.data]), wanted.batches([target.tensor]), strict=True)
    for found, original in pairs:
        data = found[read.data]
        places = read.places(data, max(count // len(made.dataset), 1), rng)
        taken = read.rows(data, places)
        inputs.append(taken[:, :, :-1] if read.has_bias else taken)
        targets.append(read.results(target.reference.of(original[target.tensor]), places))
    return _Rows(
        np.concatenate(inputs, axis=1), np.concatenate(targets, axis=1), (target.low, target.high)
    )


def _codes(graph: Graph, layer: StoredLayer) -> Array:
    codes = graph.constant(layer.weight.codes)
    assert codes is not None, "codes are constant"
    return codes


def _round(graph: Graph, layer: StoredLayer, rows: _Rows, manner: Manner) -> tuple[float, float]:
    """Round one layer; its error with the nearest codes and with those it has now."""
    old = layer.weight.values(graph)
    given = layer.bias_values(graph)
    groups, outputs, _ = layer.matrix(old).shape
    bias = np.zeros((groups, outputs)) if given is None else given.reshape(groups, outputs)
    gram = (rows.inputs.transpose(0, 2, 1) @ rows.inputs).astype(np.float64)
    solved = _solved(layer.matrix(old), rows, gram, bias, manner.damping)
    weight = layer.weight_of(solved, old).astype(np.float32)
    grid = _grid(layer, weight, gram, manner)
    scale, zero = (
        layer.matrix(np.broadcast_to(grid.spread(part, old.shape), old.shape))
        for part in (grid.scale, grid.zero)
    )
    limits = grid.format.low, grid.format.high
    nearest = layer.matrix(fit_grid(old, grid.format, grid.axis or 0, grid.block).round(old))
    before = rows.error(nearest, bias)
    codes = _best(solved, gram, scale, zero, limits, rows, bias, manner)
    matrix = (codes - zero) * scale
    if given is not None:
        bias = bias + _shift(rows, matrix, bias)
        write_bias(graph, layer, bias.reshape(-1))
    plain = layer.weight_of(codes, old)
    _write(graph, layer, grid, plain)
    return before, rows.error(matrix, bias)


def _solved(matrix: Doubles, rows: _Rows, gram: Doubles, bias: Doubles, damping: float) -> Doubles:
    """Weights that give the targets from the inputs there are now, near the old ones."""
    ridge = damping * np.maximum(gram.diagonal(axis1=1, axis2=2).mean(axis=1), 1e-12)
    left = rows.targets - bias[:, np.newaxis].astype(np.float32)
    left = left - rows.inputs @ matrix.transpose(0, 2, 1).astype(np.float32)
    cross = (rows.inputs.transpose(0, 2, 1) @ left).astype(np.float64)
    damped = gram + ridge[:, np.newaxis, np.newaxis] * np.eye(gram.shape[1])
    try:
        return np.asarray(matrix + np.linalg.solve(damped, cross).transpose(0, 2, 1))
    except np.linalg.LinAlgError:
        return matrix


def _grid(layer: StoredLayer, weight: Floats, gram: Doubles, manner: Manner) -> Grid:
    """A grid laid out as the old one, that loses least of what the layer gives."""
    diagonal = gram.diagonal(axis1=1, axis2=2)[:, np.newaxis]
    spread = np.broadcast_to(diagonal, layer.matrix(weight).shape)
    importance = np.abs(layer.weight_of(spread, weight))
    old = layer.weight.grid
    channels = 0 if layer.layer.node.op == "Conv" or layer.layer.node.attrs.get("transB") else 1
    axis = channels if old.axis is None else old.axis
    floor = 1e-9 * max(float(importance.max()), 1e-30)
    return fit_grid(weight, manner.format, axis, old.block, importance=importance + floor)


def _best(
    solved: Doubles,
    gram: Doubles,
    scale: Doubles,
    zero: Doubles,
    limits: tuple[int, int],
    rows: _Rows,
    bias: Doubles,
    manner: Manner,
) -> Doubles:
    """The codes with the least error: column by column, or from there by gradients."""
    wished = solved / scale + zero
    start = np.clip(np.rint(wished), *limits)
    with suppress(np.linalg.LinAlgError):
        parts = zip(solved, gram, scale, zero, strict=True)
        start = np.stack([sweep(*part, limits, manner.damping) for part in parts])
    if not manner.steps:
        return start
    # A weight may stay as it was rounded, or go one step towards what was wished.
    task = train.RoundingTask(
        codes=(start + _DOUBT * np.where(wished > start, 1, -1)).astype(np.float32),
        scale=scale.astype(np.float32),
        zero=zero.astype(np.float32),
        limits=limits,
        inputs=rows.inputs,
        targets=rows.targets,
        bias=bias.astype(np.float32),
        clamp=rows.clamp,
    )
    learned = train.learn_rounding(
        task,
        train.Descent(
            manner.steps, manner.batch, manner.rate, manner.sharpness, manner.seed, manner.device
        ),
    )
    errors = [rows.error((codes - zero) * scale, bias) for codes in (start, learned)]
    return learned if errors[1] < errors[0] else start


def _shift(rows: _Rows, matrix: Doubles, bias: Doubles) -> Doubles:
    """By how much each output is too low on average, before the clamp."""
    made = rows.inputs.mean(axis=1, dtype=np.float64)[:, np.newaxis] @ matrix.transpose(0, 2, 1)
    return np.asarray(rows.targets.mean(axis=1, dtype=np.float64) - made[:, 0] - bias)


def _write(graph: Graph, layer: StoredLayer, grid: Grid, codes: Doubles) -> None:
    """Store codes on another grid; the DequantizeLinear reads new scales, and no zero point."""
    name, reader = layer.weight.codes, layer.weight.reader
    scale = graph.fresh(f"{name}_scale")
    constants: dict[str, Array] = {scale: grid.scale}
    inputs = (name, scale)
    attrs = {"axis": grid.axis, **({"block_size": grid.block} if grid.block else {})}
    node = NewNode("DequantizeLinear", inputs, (layer.layer.weight,), attrs, name=reader.name)
    graph.set_constant(name, np.ascontiguousarray(codes).astype(grid.format.dtype))
    graph.apply(Edit(remove=(reader,), add=(node,), constants=constants))
    graph.reshape_notice()
