"""What quantization is to do, as plain data: which tensor is stored on which grid, and why not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from graphopt.ir import Graph
from graphopt.quantize.calibrators import Calibrator
from graphopt.quantize.grid import BIAS, INT8, UINT8, Floats, Grid, asymmetric, largest, symmetric
from graphopt.quantize.observed import Observed
from graphopt.quantize.placement import Placement, Unit
from graphopt.quantize.portability import portable_bounds, saturating
from graphopt.quantize.rules import Role

__all__ = ["Plan", "make_plan", "watched"]

_BIAS_STEPS = 2.0**30
"""A bias takes at most so many steps, which leaves room for the products it is added to."""


@dataclass(frozen=True, eq=False)
class Plan:
    """Grids for everything that is stored in integers. Printing shows one tensor a line.

    activations  computed tensors, graph inputs among them
    operands     constants that a computation reads whole, as in x + constant
    weights      of layers, by name: tied weights are quantized once
    biases       by the layer's output: their step is that of its products
    """

    placement: Placement
    activations: Mapping[str, Grid]
    operands: Mapping[str, Grid] = field(default_factory=dict)
    weights: Mapping[tuple[str, int], Grid] = field(default_factory=dict)
    biases: Mapping[str, Grid] = field(default_factory=dict)

    @property
    def layers(self) -> tuple[Unit, ...]:
        """What multiplies with weights on integers."""
        return tuple(unit for unit in self.placement.units if unit.weight is not None)

    def saturating(self, graph: Graph) -> dict[str, int]:
        """How many output channels of each layer can saturate 16-bit sums of two products."""
        found = {}
        for unit in self.layers:
            weight = None if unit.weight is None else graph.constant(unit.weight)
            if weight is not None and unit.weight is not None:
                codes = self.weights[unit.weight, unit.axis].quantize(weight)
                found[unit.name] = int(saturating(codes, unit.axis).sum())
        return found

    def __str__(self) -> str:
        rows = [f"{name}: {_described(grid)}" for name, grid in self.activations.items()]
        rows += [f"{name}: {_described(grid)}" for (name, _), grid in self.weights.items()]
        rows += [f"{name}: {_described(grid)}" for name, grid in self.operands.items()]
        rows += [f"{name}: float, {why}" for name, why in self.placement.floats.items()]
        return "\n".join(rows)


def _described(grid: Grid) -> str:
    low, high = grid.limits()
    if grid.axis is None:
        return f"{grid.format.dtype} [{float(low):.4g}, {float(high):.4g}], zero {int(grid.zero)}"
    return (
        f"{grid.format.dtype} on axis {grid.axis}, {len(high)} channels, largest "
        f"{high.min():.4g} to {high.max():.4g}"
    )


def watched(placement: Placement) -> dict[str, tuple[str, ...]]:
    """The tensors to be observed for each group's grid: what is only moved shows nothing new."""
    moved = {
        name for unit in placement.units if unit.rule.role is Role.MOVE for name in unit.outputs
    }
    return {
        group: tuple(name for name in names if name not in moved)
        for group, names in placement.groups.items()
    }


def make_plan(
    graph: Graph,
    placement: Placement,
    seen: Mapping[str, Observed],
    calibrator: Calibrator,
    *,
    portable: bool = False,
) -> Plan:
    """Grids from what calibration has seen.

    If `portable`, weights that could saturate 16-bit sums get a coarser step.
    """
    activations: dict[str, Grid] = {}
    for group, names in watched(placement).items():
        together = _merged([seen[name] for name in names])
        grid = asymmetric(*calibrator(together, UINT8), UINT8)
        activations.update(dict.fromkeys(placement.groups[group], grid))
    operands = {
        name: asymmetric(float(array.min(initial=0)), float(array.max(initial=0)), UINT8)
        for unit in placement.units
        for name in unit.reads
        if (array := _floats(graph, name)) is not None
    }
    grids = _weight_grids(graph, placement, activations, portable=portable)
    biases = {
        unit.name: _bias_grid(unit, activations, grids)
        for unit in placement.units
        if unit.bias is not None and not unit.adds_bias
    }
    return Plan(placement, activations, operands, grids, biases)


def _merged(parts: Sequence[Observed]) -> Observed:
    whole, *others = parts
    for part in others:
        whole = whole.merge(part)
    return whole


def _floats(graph: Graph, name: str) -> Floats | None:
    array = graph.constant(name)
    return None if array is None else np.asarray(array, np.float32)


def _weight_grids(
    graph: Graph, placement: Placement, activations: Mapping[str, Grid], *, portable: bool
) -> dict[tuple[str, int], Grid]:
    """One symmetric grid for each weight: coarse enough for 32 bits to hold every bias."""
    bounds: dict[tuple[str, int], Floats] = {}
    for unit in placement.units:
        weight = None if unit.weight is None else _floats(graph, unit.weight)
        if weight is None or unit.weight is None:
            continue
        bound = largest(weight, unit.axis)
        if portable:
            bound = np.maximum(bound, portable_bounds(weight, unit.axis, INT8.high))
        bias = None if unit.bias is None else _floats(graph, unit.bias)
        if bias is not None:
            step = float(activations[unit.reads[0]].scale) * _BIAS_STEPS
            bound = np.maximum(bound, np.abs(bias.reshape(-1)) / step * INT8.high)
        key = unit.weight, unit.axis
        bounds[key] = np.maximum(bounds.get(key, bound), bound).astype(np.float32)
    return {key: symmetric(bound, INT8, key[1]) for key, bound in bounds.items()}


def _bias_grid(
    unit: Unit, activations: Mapping[str, Grid], weights: Mapping[tuple[str, int], Grid]
) -> Grid:
    """The grid of the layer's products: the input's step times each channel's weight step."""
    assert unit.weight is not None, "only layers have a bias"
    scale = activations[unit.reads[0]].scale * weights[unit.weight, unit.axis].scale
    return Grid(np.asarray(scale, np.float32), np.zeros(scale.shape, np.int32), BIAS, 0)
