"""Round the weights of one layer, so that it gives what it should from the inputs there are now.

First the weights are solved for (least squares, drawn to the old ones), for inputs are not what
they were; then they are rounded column by column, changed one at a time while that helps, scales
too, and may be trained by gradients. The bias takes up what is left on average.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from graphopt import train
from graphopt.ir import Array, Edit, Graph, NewNode
from graphopt.quantize.descending import descend
from graphopt.quantize.gptq import sweep
from graphopt.quantize.grid import INT4, INT8, Format, Grid
from graphopt.quantize.portability import saturating
from graphopt.quantize.scales import fit_grid
from graphopt.quantize.solving import solve_again
from graphopt.quantize.stored_layers import StoredLayer, step_of, write_bias
from graphopt.refit.walking import WIDEST

__all__ = ["Manner", "Rows", "round_layer"]

Doubles = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]

_DOUBT = 0.3
"""How far towards the other neighbour weights stand when directions begin to be learned."""

_SAFE = 1e-6
"""Damping of moments that are damped already."""

_BYTE = 8
"""Bits."""

_FULL_INT4 = replace(INT4, low=-8)


@dataclass(frozen=True)
class Manner:
    """How weights are rounded; `damping` also draws the solved weights to the old ones."""

    bits: int
    end_bits: int | None
    packed: bool
    steps: int
    block_steps: int
    batch: int
    rate: float
    sharpness: float
    damping: float
    seed: int
    threads: int
    device: str

    @property
    def of_ends(self) -> Manner:
        """How the weights of the first and the last layer are rounded."""
        return replace(self, bits=self.bits if self.end_bits is None else self.end_bits)

    @property
    def format(self) -> Format:
        """The integers that are stored; without packing, 4 bits take a whole byte."""
        if self.bits == 4 and self.packed:
            return _FULL_INT4
        return INT8 if self.bits == _BYTE else replace(INT8, low=-(2 ** (self.bits - 1)),
                                                   high=2 ** (self.bits - 1) - 1)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Rows:
    """What a layer reads and should give, at the same places."""

    inputs: Floats
    targets: Floats
    clamp: tuple[float, float]

    def squares(self) -> Doubles:
        """The mean square of each column of what is read, as (group, column)."""
        sums = np.einsum("grc,grc->gc", self.inputs, self.inputs)
        return np.asarray(sums / self.inputs.shape[1], np.float64)

    def error(self, matrix: Doubles, bias: Doubles) -> float:
        """The square error of the clamped output, relative to what is wanted."""
        made = self.inputs @ matrix.transpose(0, 2, 1).astype(np.float32)
        made = np.clip(made + bias[:, np.newaxis].astype(np.float32), *self.clamp)
        wanted = np.clip(self.targets, *self.clamp)
        return float(np.square(made - wanted).mean() / max(float(np.square(wanted).mean()), 1e-30))


def round_layer(
    graph: Graph, layer: StoredLayer, rows: Rows, manner: Manner
) -> tuple[tuple[float, float], train.Unrounded]:
    """Round one layer: its error with the nearest codes and with those it has now.

    Also where its codes stand for a training that goes on from them. A layer too wide to solve for
    has the nearest codes to begin with, on a grid that minds how large its inputs are. One in which
    no sum of two products can leave 16 bits gets 7 bits instead of 8, so that none can afterwards.
    """
    if manner.bits == _BYTE and _portable(graph, layer):
        manner = replace(manner, bits=_BYTE - 1)
    old = layer.weight.values(graph)
    given = layer.bias_values(graph)
    groups, outputs, columns = layer.matrix(old).shape
    bias = np.zeros((groups, outputs)) if given is None else given.reshape(groups, outputs)
    solved, gram = layer.matrix(old), None
    if columns <= WIDEST:
        solved, gram = solve_again(
            solved, rows.inputs, rows.targets, bias, manner.damping, free=given is not None
        )
    weight = (layer.weight_of(solved, old) / layer.factor).astype(np.float32)
    grid = _grid(layer, weight, rows.squares() if gram is None else _diagonal(gram), manner)
    scale, zero = (
        layer.matrix(np.broadcast_to(grid.spread(part, old.shape), old.shape))
        for part in (grid.scale, grid.zero)
    )
    limits = grid.format.low, grid.format.high
    nearest = layer.matrix(fit_grid(old, grid.format, grid.axis or 0, grid.block).round(old))
    before = rows.error(nearest, bias)
    one = grid.axis == _channels(layer) and not grid.block
    if gram is None:
        start = _nearest(solved, scale, zero, limits)
    else:
        start = _swept(solved, gram, scale, zero, limits)
        start, fitted = descend(start, solved, gram, scale, zero, limits, fit_scale=one)
        if one:
            grid = replace(grid, scale=grid.scale * _outputs(fitted / scale).astype(np.float32))
            scale = fitted
    wished = solved / scale + zero
    if given is not None:
        bias = bias + _shift(rows, (start - zero) * scale, bias)
    codes = _best(start, wished, scale, zero, limits, rows, bias, manner)
    matrix = (codes - zero) * scale
    if given is not None:
        bias = bias + _shift(rows, matrix, bias)
        write_bias(graph, layer, bias.reshape(-1), grid if one else None)
    plain = layer.weight_of(codes, old)
    _write(graph, layer, grid, plain)
    unrounded = train.Unrounded(
        layer.weight_of(_leaning(codes, wished), old).astype(np.float32),
        np.asarray(grid.spread(grid.scale, old.shape), np.float32),
        grid.spread(grid.zero, old.shape).astype(np.float32),
        limits,
    )
    return (before, rows.error(matrix, bias)), unrounded


def _portable(graph: Graph, layer: StoredLayer) -> bool:
    """Whether a layer that multiplies bytes gives the same on processors without VNNI."""
    codes = graph.constant(layer.weight.codes)
    assert codes is not None, "codes are constant"
    on_integers = step_of(graph, layer.layer.data) is not None
    return on_integers and not saturating(codes, _channels(layer)).any()


def _leaning(codes: Doubles, wished: Doubles) -> Doubles:
    """Codes from which a weight may stay as it was rounded, or go one step to what was wished."""
    return np.asarray(codes + _DOUBT * np.where(wished > codes, 1, -1))


def _grid(layer: StoredLayer, weight: Floats, squares: Doubles, manner: Manner) -> Grid:
    """A grid laid out as the old one, that loses least of what the layer gives."""
    spread = np.broadcast_to(squares[:, np.newaxis], layer.matrix(weight).shape)
    importance = np.abs(layer.weight_of(spread, weight))
    old = layer.weight.grid
    axis = _channels(layer) if old.axis is None else old.axis
    floor = 1e-9 * max(float(importance.max()), 1e-30)
    return fit_grid(weight, manner.format, axis, old.block, importance=importance + floor)


def _diagonal(gram: Doubles) -> Doubles:
    return np.asarray(gram.diagonal(axis1=1, axis2=2))


def _channels(layer: StoredLayer) -> int:
    """The axis of a weight's outputs."""
    return 0 if layer.layer.node.op == "Conv" or layer.layer.node.attrs.get("transB") else 1


def _swept(
    solved: Doubles, gram: Doubles, scale: Doubles, zero: Doubles, limits: tuple[int, int]
) -> Doubles:
    """Codes found column by column, or the nearest where moments are singular."""
    with suppress(np.linalg.LinAlgError):
        return np.stack(
            [sweep(*part, limits, _SAFE) for part in zip(solved, gram, scale, zero, strict=True)]
        )
    return _nearest(solved, scale, zero, limits)


def _nearest(solved: Doubles, scale: Doubles, zero: Doubles, limits: tuple[int, int]) -> Doubles:
    return np.asarray(np.clip(np.rint(solved / scale + zero), *limits))


def _outputs(matrix: Doubles) -> Doubles:
    """One number for each output, of a matrix whose columns are alike."""
    return matrix[:, :, 0].reshape(-1)


def _best(
    start: Doubles,
    wished: Doubles,
    scale: Doubles,
    zero: Doubles,
    limits: tuple[int, int],
    rows: Rows,
    bias: Doubles,
    manner: Manner,
) -> Doubles:
    """The codes with the least error: those given, or what gradients make of them."""
    if not manner.steps:
        return start
    task = train.RoundingTask(
        codes=_leaning(start, wished).astype(np.float32),
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


def _shift(rows: Rows, matrix: Doubles, bias: Doubles) -> Doubles:
    """By how much each output is too low on average, before the clamp."""
    made = rows.inputs.mean(axis=1, dtype=np.float64)[:, np.newaxis] @ matrix.transpose(0, 2, 1)
    return np.asarray(rows.targets.mean(axis=1, dtype=np.float64) - made[:, 0] - bias)


def _write(graph: Graph, layer: StoredLayer, grid: Grid, codes: Doubles) -> None:
    """Store codes on another grid. Its zero is said only where ONNX Runtime's kernels want it."""
    name, reader = layer.weight.codes, layer.weight.reader
    scale, zero = graph.fresh(f"{name}_scale"), graph.fresh(f"{name}_zero")
    constants: dict[str, Array] = {scale: grid.scale}
    if grid.format.dtype == INT8.dtype:
        constants[zero] = grid.zero
    attrs = {"axis": grid.axis, **({"block_size": grid.block} if grid.block else {})}
    inputs = (name, *constants)
    node = NewNode("DequantizeLinear", inputs, (layer.layer.weight,), attrs, name=reader.name)
    graph.set_constant(name, np.ascontiguousarray(codes).astype(grid.format.dtype))
    graph.apply(Edit(remove=(reader,), add=(node,), constants=constants))
    graph.reshape_notice()
