"""Channels whose value is a constant: found by following it through the graph.

A level is the value a channel has everywhere and for every input, NaN where it is not constant.
Levels start where a weight's row or a normalisation's scale is zero, as slimming leaves them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from graphopt.cost import operator
from graphopt.coupling.axes import Axis
from graphopt.coupling.families import Coupling
from graphopt.ir import Array
from graphopt.rewrite.ramps import clamp

__all__ = ["Level", "find_levels", "is_padded"]


@dataclass(frozen=True)
class Level:
    """The constant value of each index of one axis of a tensor."""

    axis: int
    values: npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Node:
    node: gs.Node
    coupling: Coupling
    levels: Mapping[str, Level]

    def constant(self, index: int) -> Array | None:
        if index >= len(self.node.inputs) or not self.node.inputs[index].name:
            return None
        return self.coupling.graph.constant(self.node.inputs[index].name)

    def level(self, index: int) -> Level | None:
        return self.levels.get(self.node.inputs[index].name)

    def axis(self, name: str, place: int) -> Axis | None:
        axes = self.coupling.axes(name)
        return None if not axes else axes[place]


_Row = Callable[[_Node], Level | None]


def is_padded(node: gs.Node) -> bool:
    """Whether a window reaches over the border, where a constant meets zeros."""
    automatic = node.attrs.get("auto_pad", "NOTSET")
    if automatic not in ("NOTSET", "VALID", b"NOTSET", b"VALID"):
        return True
    return any(int(amount) for amount in node.attrs.get("pads", ()))


def _convolution(node: _Node) -> Level | None:
    weight, bias = node.constant(1), node.constant(2)
    if weight is None or (len(node.node.inputs) > 2 and node.node.inputs[2].name and bias is None):
        return None
    shift = np.zeros(len(weight)) if bias is None else bias.astype(np.float64)
    sums = weight.reshape(len(weight), -1).astype(np.float64)
    values = np.where((sums == 0).all(axis=1), shift, np.nan)
    data = node.level(0)
    depthwise = weight.shape[1] == 1 and int(node.node.attrs.get("group", 1)) > 1
    if data is not None and data.axis == 1 and depthwise:
        source = np.repeat(data.values, len(weight) // len(data.values))
        flat = (source == 0) | (not is_padded(node.node))
        through = sums.sum(axis=1) * source + shift
        values = np.where(np.isnan(values) & flat, through, values)
    return Level(1, values)


def _product(node: _Node) -> Level | None:
    weight = node.constant(1)
    if weight is None or weight.ndim != 2 or node.node.attrs.get("transA"):
        return None
    rows = weight if node.node.attrs.get("transB") else weight.T
    shift = np.zeros(len(rows))
    if len(node.node.inputs) > 2 and node.node.inputs[2].name:
        bias = node.constant(2)
        if bias is None or bias.size not in (1, len(rows)):
            return None
        shift = shift + float(node.node.attrs.get("beta", 1.0)) * bias.astype(np.float64).reshape(
            -1
        )
    axes = node.coupling.axes(node.node.outputs[0].name)
    if not axes:
        return None
    return Level(len(axes) - 1, np.where((rows == 0).all(axis=1), shift, np.nan))


def _batch_norm(node: _Node) -> Level | None:
    parts = [node.constant(index) for index in (1, 2, 3, 4)]
    scale, shift, mean, variance = (None if p is None else p.astype(np.float64) for p in parts)
    if scale is None or shift is None or mean is None or variance is None:
        return None
    data = node.level(0)
    source = np.full(len(scale), np.nan) if data is None or data.axis != 1 else data.values
    root = np.sqrt(variance + float(node.node.attrs.get("epsilon", 1e-5)))
    return Level(1, np.where(scale == 0, shift, (source - mean) / root * scale + shift))


def _clip(node: _Node) -> Level | None:
    data, bounds = node.level(0), clamp(node.coupling.graph, node.node)
    if data is None or bounds is None:
        return None
    return Level(data.axis, np.clip(data.values, *bounds))


_Function = Callable[[npt.NDArray[np.float64], gs.Node], npt.NDArray[np.float64]]


def _pointwise(function: _Function) -> _Row:
    def row(node: _Node) -> Level | None:
        data = node.level(0)
        return None if data is None else Level(data.axis, function(data.values, node.node))

    return row


def _hard_sigmoid(values: npt.NDArray[np.float64], node: gs.Node) -> npt.NDArray[np.float64]:
    slope, shift = float(node.attrs.get("alpha", 0.2)), float(node.attrs.get("beta", 0.5))
    return np.clip(slope * values + shift, 0, 1)


def _leaky(values: npt.NDArray[np.float64], node: gs.Node) -> npt.NDArray[np.float64]:
    return np.where(values < 0, float(node.attrs.get("alpha", 0.01)) * values, values)


def _same(values: npt.NDArray[np.float64], node: gs.Node) -> npt.NDArray[np.float64]:
    return values


def _pool(node: _Node) -> Level | None:
    """An average that counts padding is no longer constant at the border."""
    data = node.level(0)
    if data is None or data.axis != 1:
        return None
    counted = node.node.op == "AveragePool" and int(node.node.attrs.get("count_include_pad", 0))
    if counted and is_padded(node.node):
        return Level(1, np.where(data.values == 0, 0.0, np.nan))
    return data


def _combined(combine: Callable[..., npt.NDArray[np.float64]]) -> _Row:
    """Two tensors, or a tensor and a constant with one value per channel (or one for all)."""

    def row(node: _Node) -> Level | None:
        axes = node.coupling.axes(node.node.outputs[0].name)
        known = [level for index in (0, 1) if (level := node.level(index)) is not None]
        if not axes or not known:
            return None
        back, size = _from_right(node, known[0]), len(known[0].values)
        operands = [_operand(node, index, back, size) for index in (0, 1)]
        if operands[0] is None or operands[1] is None:
            return None
        return Level(len(axes) - back, combine(operands[0], operands[1]))

    return row


def _from_right(node: _Node, level: Level) -> int:
    index = 0 if node.level(0) is level else 1
    return len(node.coupling.axes(node.node.inputs[index].name) or ()) - level.axis


def _operand(node: _Node, index: int, back: int, size: int) -> npt.NDArray[np.float64] | None:
    level, array = node.level(index), node.constant(index)
    if level is not None:
        fits = _from_right(node, level) == back and len(level.values) == size
        return level.values if fits else None
    if array is None:
        return None
    if array.size == 1:
        return np.full(size, float(array.reshape(-1)[0]))
    if array.ndim < back or array.shape[-back] != size or array.size != size:
        return None
    return array.reshape(-1).astype(np.float64)


def _moved(node: _Node) -> Level | None:
    """What only moves values takes each channel's level along, told by its atom."""
    data, source = node.level(0), node.node.inputs[0].name
    made = node.coupling.axes(node.node.outputs[0].name)
    if data is None or not made:
        return None
    atoms = node.axis(source, data.axis)
    if not isinstance(atoms, np.ndarray) or len(np.unique(atoms)) != len(atoms):
        return None
    order = np.argsort(atoms)
    for place, axis in enumerate(made):
        if isinstance(axis, np.ndarray) and np.isin(axis, atoms).all():
            found = order[np.searchsorted(atoms[order], axis)]
            return Level(place, data.values[found])
    return None


LEVELS: Mapping[str, _Row] = {
    **dict.fromkeys(("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"), _pool),
    **dict.fromkeys(("Clip", "Relu"), _clip),
    **dict.fromkeys(("Flatten", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"), _moved),
    "Add": _combined(np.add),
    "BatchNormalization": _batch_norm,
    "Conv": _convolution,
    "Dropout": _pointwise(_same),
    "Gemm": _product,
    "HardSigmoid": _pointwise(_hard_sigmoid),
    "HardSwish": _pointwise(lambda x, node: x * np.clip(x / 6 + 0.5, 0, 1)),
    "Identity": _pointwise(_same),
    "LeakyRelu": _pointwise(_leaky),
    "MatMul": _product,
    "Mul": _combined(np.multiply),
    "Sigmoid": _pointwise(lambda x, node: 1 / (1 + np.exp(-x))),
    "Sub": _combined(np.subtract),
    "Tanh": _pointwise(lambda x, node: np.tanh(x)),
}
"""Operators that hand constants on; after any other a channel is not known to be constant."""


def find_levels(coupling: Coupling) -> dict[str, Level]:
    """The levels of every tensor that has a constant channel."""
    levels: dict[str, Level] = {}
    for node in coupling.graph.nodes:
        row = LEVELS.get(operator(node))
        level = None if row is None else row(_Node(node, coupling, levels))
        if level is not None and not np.isnan(level.values).all():
            levels[node.outputs[0].name] = level
    return levels
