"""Means of activations from the statistics that BatchNormalization has, without any input.

A BatchNormalization gives shift and scale as mean and standard deviation of its output, taken as
normal; what a clamp makes of that is known in closed form (Nagel et al. 2019). Vectors have one
entry for each index of axis 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs
from scipy.special import ndtr

from graphopt.ir import Graph
from graphopt.rewrite.matching import is_op
from graphopt.rewrite.ramps import clamp

__all__ = ["Expected", "clamped", "expect"]

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Expected:
    """Mean and variance of each channel; the variance of a mean over places is not known."""

    mean: Doubles
    variance: Doubles | None


def clamped(mean: Doubles, variance: Doubles, low: float, high: float) -> Expected:
    """Mean and variance of a normal variable that is clamped to [low, high]."""
    spread = np.sqrt(np.maximum(variance, 1e-24))
    a, b = (low - mean) / spread, (high - mean) / spread
    inside = ndtr(b) - ndtr(a)
    slope_a, slope_b = _density(a), _density(b)
    first = mean * inside + spread * (slope_a - slope_b)
    ends_a = np.where(np.isfinite(a), a, 0.0) * slope_a
    ends_b = np.where(np.isfinite(b), b, 0.0) * slope_b
    second = (mean**2 + variance) * inside + 2 * mean * spread * (slope_a - slope_b)
    second = second + spread**2 * (ends_a - ends_b)
    for bound, share in ((low, ndtr(a)), (high, 1 - ndtr(b))):
        if math.isfinite(bound):
            first, second = first + bound * share, second + bound**2 * share
    return Expected(np.asarray(first), np.asarray(np.maximum(second - first**2, 0.0)))


def _density(x: Doubles) -> Doubles:
    return np.asarray(np.exp(-0.5 * np.square(x)) / math.sqrt(2 * math.pi))


def expect(graph: Graph) -> dict[str, Expected]:
    """What is known of the tensors of the main scope."""
    known: dict[str, Expected] = {}
    for node in graph.nodes:
        rule = _RULES.get(node.op) if is_op(node, *_RULES) else None
        found = None if rule is None else rule(graph, node, known)
        if found is not None:
            known[node.outputs[0].name] = found
    return known


Known = Mapping[str, Expected]


def _normalised(graph: Graph, node: gs.Node, known: Known) -> Expected | None:
    scale, shift = (graph.constant(tensor.name) for tensor in node.inputs[1:3])
    if scale is None or shift is None or node.attrs.get("training_mode", 0):
        return None
    return Expected(shift.astype(np.float64), np.square(scale.astype(np.float64)))


def _clip(graph: Graph, node: gs.Node, known: Known) -> Expected | None:
    bounds = clamp(graph, node)
    return None if bounds is None else _clamp(known.get(node.inputs[0].name), *bounds)


def _clamp(given: Expected | None, low: float, high: float) -> Expected | None:
    if given is None or given.variance is None:
        return None
    return clamped(given.mean, given.variance, low, high)


def _sum(graph: Graph, node: gs.Node, known: Known) -> Expected | None:
    """Summands are taken as independent."""
    parts = [known.get(tensor.name) for tensor in node.inputs]
    if any(part is None or part.variance is None for part in parts):
        return None
    sizes = {len(part.mean) for part in parts if part is not None}
    if len(sizes) != 1:
        return None
    width = sizes.pop()
    mean, variance = np.zeros(width), np.zeros(width)
    for part in parts:
        if part is not None and part.variance is not None:
            mean, variance = mean + part.mean, variance + part.variance
    return Expected(mean, variance)


def _average(graph: Graph, node: gs.Node, known: Known) -> Expected | None:
    given = known.get(node.inputs[0].name)
    return None if given is None else Expected(given.mean, None)


def _flat(graph: Graph, node: gs.Node, known: Known) -> Expected | None:
    """Channels stay what they are if there is one place only."""
    given, shape = known.get(node.inputs[0].name), graph.shape(node.outputs[0].name)
    if given is None or shape is None or len(shape) != 2 or shape[1] != len(given.mean):
        return None
    return given


_RULES: Mapping[str, Callable[[Graph, gs.Node, Known], Expected | None]] = {
    "Add": _sum,
    "BatchNormalization": _normalised,
    "Clip": _clip,
    "Flatten": _flat,
    "GlobalAveragePool": _average,
    "Relu": _clip,
    "Reshape": _flat,
}
