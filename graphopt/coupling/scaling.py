"""Which indices of which axes can be scaled together without changing what a network computes.

Ties as in the table of coupled channels, with another question: where a tensor is divided by a
positive factor, what must be divided by the same one? Linear layers end it: they multiply the
factor into their weights, so what they read and what they write scale apart, depthwise
convolutions included. An operator that has no row is not homogeneous: all it touches stays.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from graphopt.coupling.axes import Atoms, Axes, Axis, Fixed, Unfit, size_of
from graphopt.coupling.rules import RULES, wire
from graphopt.coupling.site import Rules, Site
from graphopt.coupling.sizes import Sizes
from graphopt.coupling.solving import solve
from graphopt.ir import Array, Graph, is_uniform
from graphopt.rewrite.ramps import clamp

__all__ = ["SCALING", "Scalable", "scalable"]

_LARGEST = float(np.finfo(np.float32).max)
"""What exporters write where nothing is clamped."""


@dataclass(frozen=True, eq=False)
class Scalable:
    """For each tensor, which factor each index of each axis has; -1 where it must be 1.

    `count` is the number of factors. Computed tensors and constants are divided by theirs.
    """

    factors: Mapping[str, tuple[Atoms | None, ...]]
    count: int

    def along(self, tensor: str, axis: int) -> Atoms | None:
        """The factors of one axis; None if nothing of it can be scaled."""
        factors = self.factors.get(tensor)
        return None if factors is None else factors[axis]

    def divisor(self, tensor: str, scales: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """What a tensor is divided by, broadcastable to it; `scales` are the factors' values."""
        whole = np.append(scales, 1.0)
        factors = self.factors.get(tensor, ())
        divisor = np.ones((1,) * len(factors))
        for place, numbers in enumerate(factors):
            if numbers is not None:
                shape = [-1 if axis == place else 1 for axis in range(len(factors))]
                divisor = divisor * whole[numbers].reshape(shape)
        return divisor


def scalable(graph: Graph) -> Scalable:
    """Find every factor that a graph could be rescaled by; changes nothing."""
    wiring = wire(graph, Sizes(graph), SCALING)
    solution = solve(wiring)
    number = np.where(solution.pinned, -1, np.cumsum(~solution.pinned) - 1)
    factors = {}
    for name, axes in wiring.axes.items():
        found = tuple(_numbers(axis, number, solution.component) for axis in axes or ())
        if any(numbers is not None for numbers in found):
            factors[name] = found
    return Scalable(factors, int(np.count_nonzero(~solution.pinned)))


def _numbers(axis: Axis, number: Atoms, component: Atoms) -> Atoms | None:
    if isinstance(axis, Fixed):
        return None
    found = number[component[axis]]
    return found if (found >= 0).any() else None


# ---- linear layers -----------------------------------------------------------------------------


def _own(site: Site, index: int) -> Array:
    """A weight; those that are computed, or that others read too, cannot take a factor."""
    tensor, array = site.node.inputs[index], site.constant(index)
    if array is None or not site.literal(index):
        raise Unfit("its weights are computed")
    if len(tensor.outputs) != 1:
        raise Unfit("its weights are shared")
    if array.dtype.kind != "f" or is_uniform(array):
        raise Unfit("its weights are all one number, or integers")
    return array


def _check_bias(site: Site, channels: int) -> None:
    """A bias must be constant, and one number per channel or one for all."""
    if not site.has(2):
        return
    bias = site.constant(2)
    if bias is None or not site.literal(2) or len(site.node.inputs[2].outputs) != 1:
        raise Unfit("its bias is computed or shared")
    if bias.size not in (1, channels) or bias.shape[-1:] not in ((), (bias.size,)):
        raise Unfit("its bias is not per channel")


def convolution(site: Site) -> Sequence[Axes | None]:
    weight, groups = _own(site, 1), site.attribute("group", 1)
    if site.node.op == "ConvTranspose" and groups != 1:
        raise Unfit("has groups")
    channels = weight.shape[1 if site.node.op == "ConvTranspose" else 0]
    _check_bias(site, channels)
    data = site.axes(0)
    for axis in (data[0], *data[2:]):
        site.pin(axis, "adds one bias to all of it")
    batch, *places = site.held([size_of(data[0]), *[None] * (weight.ndim - 2)], "adds one bias")
    return [(batch, site.wiring.fresh(channels), *places)]


def general_product(site: Site) -> Sequence[Axes | None]:
    if site.attribute("transA", 0):
        raise Unfit("transposes its input")
    columns = _own(site, 1).shape[0 if site.attribute("transB", 0) else 1]
    _check_bias(site, columns)
    data = site.axes(0)
    site.pin(data[0], "adds one bias to all of it")
    return [(*site.held([size_of(data[0])], "adds a bias"), site.wiring.fresh(columns))]


def product(site: Site) -> Sequence[Axes | None]:
    weight, data = _own(site, 1), site.axes(0)
    if weight.ndim != 2:
        raise Unfit("multiplies with a stack of matrices")
    return [(*data[:-1], site.wiring.fresh(weight.shape[1]))]


def layer_norm(site: Site) -> Sequence[Axes | None]:
    """What it reads is normalised away; what it writes has a scale and a shift of its own."""
    data, scale = site.axes(0), _own(site, 1)
    _check_bias(site, scale.size)
    for axis in data:
        site.pin(axis, "normalises over it")
    shape = [size_of(axis) for axis in data]
    if site.node.outputs[1:] or scale.ndim != 1 or scale.shape[0] != shape[-1]:
        raise Unfit("returns its statistics, or has one scale for several channels")
    return [(*site.held(shape[:-1], "normalises"), site.wiring.fresh(scale.shape[0]))]


# ---- homogeneous operators ---------------------------------------------------------------------


def first(site: Site) -> Sequence[Axes | None]:
    """f(c x) = c f(x), whatever the other operands, which have no factor."""
    out = _beside(site, 0)
    return [out] * len(site.node.outputs)


def _beside(site: Site, place: int) -> Axes:
    """The axes of one operand, all others pinned; what these repeat it along has no factor."""
    mine = site.axes(place)
    others = [site.axes(i) for i in range(len(site.node.inputs)) if i != place and site.has(i)]
    for axes in others:
        site.wiring.pin_all(axes, site.fixed(None, "takes it as it is"))
    rank = max(len(axes) for axes in (mine, *others))
    out: list[Axis] = []
    for depth in range(rank, 0, -1):
        sizes = [size_of(axes[-depth]) for axes in (mine, *others) if len(axes) >= depth]
        held = len(mine) >= depth and (size_of(mine[-depth]) != 1 or set(sizes) == {1})
        wide = next((size for size in sizes if size != 1), 1)
        out.append(mine[-depth] if held else site.fixed(wide, "repeats it"))
    return tuple(out)


def scaled(site: Site) -> Sequence[Axes | None]:
    """x * c and x / c; where both are computed, the smaller one (a gate) stays as it is."""
    sizes = [_volume(site.axes(place)) for place in (0, 1)]
    gate = 1 if site.node.op == "Div" else int(np.argmin(sizes))
    constants = [place for place in (0, 1) if site.constant(place) is not None]
    if site.node.op == "Mul" and len(constants) == 1:
        gate = constants[0]
    if not constants and sizes[0] == sizes[1]:
        raise Unfit("multiplies what may be the same")
    return [_beside(site, 1 - gate)]


def _volume(axes: Axes) -> float:
    """How many elements, an open size being many."""
    return math.prod(float(size_of(axis) or 1e6) for axis in axes)


def added(site: Site) -> Sequence[Axes | None]:
    """Sums, maxima and minima: all operands alike; one number for all of them fits no factor."""
    operands = [site.axes(index) for index in range(len(site.node.inputs)) if site.has(index)]
    out = site.broadcast(operands)
    for place in range(1, len(out) + 1):
        if any(len(axes) < place or size_of(axes[-place]) == 1 for axes in operands):
            site.pin(out[-place], "adds one value to all of it")
    return [out]


def clip(site: Site) -> Sequence[Axes | None]:
    """Only a Relu in disguise is homogeneous."""
    bounds = clamp(site.sizes.graph, site.node)
    if bounds is None:
        raise Unfit("clamps it to what is computed")
    low, high = bounds
    if (low != 0 and low > -_LARGEST) or (high != 0 and high < _LARGEST):
        raise Unfit("clamps it")
    return [site.axes(0)]


def pad(site: Site) -> Sequence[Axes | None]:
    value = site.constant(2) if site.has(2) else np.float32(site.node.attrs.get("value", 0.0))
    if value is None or np.any(value != 0):
        raise Unfit("pads with another value than zero")
    return RULES["Pad"](site)


def reduction(site: Site) -> Sequence[Axes | None]:
    """What is summed or compared must have one factor."""
    data, made = site.axes(0), RULES[site.node.op](site)
    assert made[0] is not None, "a reduction has one output"
    for axis in data:
        if not any(axis is kept for kept in made[0]):
            site.pin(axis, "reduces over it")
    return made


def sizes_of(site: Site) -> Sequence[Axes | None]:
    """Factors change no sizes."""
    return [site.held([len(site.axes(0))], "is a shape")]


_SAME = """
    AveragePool Concat DepthToSpace Expand Flatten GlobalAveragePool GlobalMaxPool MaxPool Reshape
    Resize Slice SpaceToDepth Split Squeeze Tile Transpose Unsqueeze Upsample
"""

SCALING: Rules = {
    **{op: RULES[op] for op in _SAME.split()},
    **dict.fromkeys(["Abs", "Dropout", "Identity", "LeakyRelu", "Neg", "PRelu", "Relu"], first),
    **dict.fromkeys(["Add", "Max", "Mean", "Min", "Sub", "Sum"], added),
    **dict.fromkeys(
        ["ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"], reduction
    ),
    "Clip": clip,
    "Conv": convolution,
    "ConvTranspose": convolution,
    "Div": scaled,
    "Gemm": general_product,
    "LayerNormalization": layer_norm,
    "MatMul": product,
    "Mul": scaled,
    "Pad": pad,
    "Shape": sizes_of,
}
