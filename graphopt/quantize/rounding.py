"""Round weights to grids: to the nearest value, or so that what a layer gives changes least."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from graphopt.data import Dataset
from graphopt.ir import Array, Graph
from graphopt.quantize.gptq import sweep
from graphopt.quantize.grid import INT4, INT8, UINT4, UINT8, Format, Grid
from graphopt.quantize.scales import fit_grid
from graphopt.quantize.storage import Weight
from graphopt.refit.frontier import Frontier
from graphopt.refit.layers import Layer, find_layer
from graphopt.refit.walking import WIDEST

__all__ = ["Rounded", "Rounding", "round_weights"]

Doubles = npt.NDArray[np.float64]

_ROWS = 1 << 16
"""Rows of what a layer reads that its moments are taken of; of more, places are drawn."""

_SMALLER = {2: 0.75, 4: 0.5}
"""The part of its bytes that a stored weight may take at most, by the bytes of a number."""

_LEAST_HALF = 2.0**-14
"""The smallest step in halves that has all its digits."""

_PART = 1 << 18
"""Elements whose squares are added at once."""

_OVERHEAD = 256
"""Bytes that nodes and names of a stored weight take in a file."""

_SINGLE = np.dtype(np.float32)

_CENTRED = {4: replace(INT4, low=-8), 8: INT8}
_SHIFTED = {4: UINT4, 8: UINT8}


@dataclass(frozen=True)
class Rounding:
    """How weights are rounded; see the pass."""

    bits: int
    block: int
    symmetric: bool
    damping: float
    seed: int
    threads: int

    def format(self, bits: int) -> Format:
        return (_CENTRED if self.symmetric else _SHIFTED)[bits]


@dataclass
class Rounded:
    """For each weight its grid and codes, its relative square error, or why it stays float.

    `nearest` are those that went to the nearest values though there were inputs.
    """

    made: dict[str, tuple[Grid, Array]] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    left_alone: dict[str, str] = field(default_factory=dict)
    nearest: list[str] = field(default_factory=list)


def round_weights(
    graph: Graph,
    weights: Sequence[Weight],
    settings: Rounding,
    dataset: Dataset | None,
    progress: Callable[[float], None] = lambda fraction: None,
) -> Rounded:
    """Find grids and codes, in the order of the graph, which stays as it is.

    With a data set each layer reads what comes through the layers rounded before it, and the error
    is that of its outputs; without, every weight goes to the nearest value, and the error is its
    own.
    """
    work = graph.clone()
    frontier = None if dataset is None else Frontier(work, dataset, threads=settings.threads)
    found = Rounded()
    for number, weight in enumerate(weights):
        progress(number / len(weights))
        plan = _layout(weight, weight.array(graph), settings)
        if isinstance(plan, str):
            found.left_alone[weight.name] = plan
            continue
        layer = None if frontier is None else _solvable(work, weight)
        swept = None
        if frontier is not None and layer is not None:
            swept = _by_columns(frontier, weight, layer, plan, settings)
        if frontier is not None and swept is None:
            found.nearest.append(weight.name)
        grid, codes, error = swept or _nearest(weight.array(graph), plan, settings)
        found.made[weight.name] = grid, codes
        found.errors[weight.name] = error
        if frontier is not None:
            made = grid.dequantize(codes).astype(weight.array(work).dtype)
            work.set_constant(weight.name, np.ascontiguousarray(made.T) if weight.turn else made)
    return found


@dataclass(frozen=True)
class _Layout:
    """How the codes of one weight are laid out."""

    format: Format
    axis: int
    block: int


def _layout(weight: Weight, array: Array, settings: Rounding) -> _Layout | str:
    """Which scales a weight gets; or why it should stay as it is."""
    bits = 8 if weight.gathered else settings.bits
    depth = weight.depth if bits == 4 and settings.block else None
    blocked = depth is not None and array.shape[depth] >= settings.block
    scales = array.size // settings.block if blocked else array.shape[weight.channel]
    most = array.nbytes * _SMALLER[array.dtype.itemsize]
    if array.size * bits // 8 + array.dtype.itemsize * scales + _OVERHEAD > most:
        return "it would hardly get smaller"
    if blocked:
        assert depth is not None, "blocks are made along an axis"
        return _Layout(settings.format(bits), depth, settings.block)
    return _Layout(settings.format(bits), weight.channel, 0)


def _nearest(array: Array, plan: _Layout, settings: Rounding) -> tuple[Grid, Array, float]:
    grid = fit_grid(array, plan.format, plan.axis, plan.block, centred=settings.symmetric)
    grid = _as_stored(grid, array)
    codes = grid.quantize(array)
    wrong = grid.dequantize(codes) - array.astype(np.float32, copy=False)
    return grid, codes, _energy(wrong) / max(_energy(array), 1e-300)


def _as_stored(grid: Grid, array: Array) -> Grid:
    """The grid with the scales that a weight's own type can hold."""
    if array.dtype.itemsize == _SINGLE.itemsize:
        return grid
    halves = np.maximum(grid.scale, _LEAST_HALF).astype(array.dtype)
    return replace(grid, scale=halves.astype(_SINGLE))


def _energy(array: Array) -> float:
    """The sum of squares, in parts that are small beside a weight."""
    flat = array.reshape(-1)
    parts = (flat[start : start + _PART] for start in range(0, flat.size, _PART))
    return sum(float(np.square(part, dtype=np.float64).sum()) for part in parts)


def _solvable(graph: Graph, weight: Weight) -> Layer | None:
    """The layer whose moments can be taken; None for what several read, and what is too wide."""
    node = next((n for n in graph.consumers(weight.name)), None)
    layer = None if node is None else find_layer(graph, node)
    if layer is None or layer.weight != weight.name:
        return None
    array = graph.constant(weight.name)
    assert array is not None, "a layer has a constant weight"
    axis = 1 if layer.node.attrs.get("transB", 0) else 0
    columns = array[0].size if layer.node.op == "Conv" else array.shape[axis]
    return layer if columns <= WIDEST else None


def _by_columns(
    frontier: Frontier, weight: Weight, layer: Layer, plan: _Layout, settings: Rounding
) -> tuple[Grid, Array, float] | None:
    """None where moments are singular in spite of the damping."""
    array = weight.array(frontier.graph)
    moments = _moments(frontier, layer, settings)
    diagonal = moments.diagonal(axis1=1, axis2=2)
    outputs = _rows(array, layer).shape[1]
    importance = _back(np.repeat(diagonal[:, np.newaxis], outputs, axis=1), array, layer)
    grid = fit_grid(
        array,
        plan.format,
        plan.axis,
        plan.block,
        centred=settings.symmetric,
        importance=importance + 1e-12 * max(float(importance.max()), 1e-300),
    )
    grid = _as_stored(grid, array)
    scale, zero = (
        _rows(
            np.broadcast_to(grid.spread(part.astype(np.float64), array.shape), array.shape), layer
        )
        for part in (grid.scale, grid.zero)
    )
    limits = plan.format.low, plan.format.high
    matrix = _rows(array.astype(np.float64), layer)
    codes = np.empty_like(matrix)
    try:
        for group, gram in enumerate(moments):
            codes[group] = sweep(
                matrix[group], gram, scale[group], zero[group], limits, settings.damping
            )
    except np.linalg.LinAlgError:
        return None
    wrong = matrix - (codes - zero) * scale
    lost = np.einsum("goi,gij,goj->", wrong, moments, wrong, optimize=True)
    whole = np.einsum("goi,gij,goj->", matrix, moments, matrix, optimize=True)
    stored = _back(codes, array, layer).astype(plan.format.dtype)
    return grid, stored, float(lost / max(whole, 1e-300))


def _moments(frontier: Frontier, layer: Layer, settings: Rounding) -> Doubles:
    """Sums of products of what the layer multiplies: (group, column, column)."""
    rng = np.random.default_rng(settings.seed)
    count = -(-_ROWS // len(frontier.dataset))
    total: Doubles | None = None  # added to in place: it is large
    for made in frontier.batches([layer.data]):
        data = made[layer.data]
        rows = layer.rows(data, layer.places(data, count, rng))
        rows = rows[:, :, :-1] if layer.has_bias else rows
        gram = rows.transpose(0, 2, 1) @ rows
        if total is None:
            total = np.zeros(gram.shape)
        total += gram
    assert total is not None, "a data set has a batch"
    return total


def _rows(array: Array, layer: Layer) -> Doubles:
    """A weight as stored, as (group, output, column)."""
    if layer.node.op == "Conv":
        return np.array(array.reshape(layer.groups, len(array) // layer.groups, -1), np.float64)
    return np.array(array.T[np.newaxis], np.float64)


def _back(matrix: Doubles, array: Array, layer: Layer) -> Doubles:
    """The reverse of `_rows`."""
    return matrix.reshape(array.shape) if layer.node.op == "Conv" else matrix[0].T
