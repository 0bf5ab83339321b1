"""Ranges of activations from the statistics that BatchNormalization has, without any input.

A BatchNormalization gives shift and scale as mean and standard deviation of its output, and stores
those of its input: values reach six deviations to either side of the mean (Nagel et al. 2019).
Operators behind it carry ends on. Vectors have one entry for each index of axis 1, or one for all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from graphopt.ir import Graph
from graphopt.quantize.expecting import clamped
from graphopt.quantize.references import Reference, noted_references
from graphopt.quantize.rules import RULES, Role
from graphopt.rewrite.linear import layer_bias, linear_layer
from graphopt.rewrite.matching import is_op
from graphopt.rewrite.ramps import clamp

__all__ = ["Reach", "reaches"]

Doubles = npt.NDArray[np.float64]

_DEVIATIONS = 6.0


@dataclass(frozen=True, eq=False)
class Reach:
    """Between which ends values are expected, and about which mean.

    `carried` through a layer with weights, after which it is no longer exact enough for another.
    """

    low: Doubles
    high: Doubles
    mean: Doubles
    carried: bool = False

    @classmethod
    def about(cls, mean: Doubles, deviation: Doubles) -> Reach:
        return cls(mean - _DEVIATIONS * deviation, mean + _DEVIATIONS * deviation, mean)

    @classmethod
    def between(cls, low: float, high: float) -> Reach:
        return cls(np.full(1, low), np.full(1, high), np.full(1, (low + high) / 2))

    def whole(self) -> Reach:
        """One range for all channels."""
        ends = self.low.min(initial=math.inf), self.high.max(initial=-math.inf)
        low, high, mean = np.array(ends[:1]), np.array(ends[1:]), np.atleast_1d(self.mean.mean())
        return Reach(low, high, mean, self.carried)

    def ends(self) -> tuple[float, float]:
        whole = self.whole()
        return float(whole.low[0]), float(whole.high[0])


def reaches(graph: Graph, original: Graph, inputs: tuple[float, ...] = ()) -> dict[str, Reach]:
    """Where the values of tensors in the main scope are expected to lie; what is unknown is left.

    `original` is the graph before BatchNormalization was folded: tensors that kept their names,
    or of which it is noted what they were, are those of it. `inputs` are the ends of all float
    inputs of the graph, if they are known.
    """
    given = {}
    if inputs:
        floats = [name for name in graph.inputs if graph.is_float(name)]
        given = {name: Reach.between(*inputs) for name in floats}
    before = _carried(original, given)
    references = noted_references(graph)
    for node in graph.nodes:
        for name in (str(tensor.name) for tensor in node.outputs):
            reference = references.get(name, Reference(name, {}))
            found = before.get(reference.tensor)
            if found is not None and reference.tensor in original:
                given[name] = _rescaled(found, reference)
    return _carried(graph, {**given, **{n: before[n] for n in graph.inputs if n in before}})


def _rescaled(reach: Reach, reference: Reference) -> Reach:
    for divisor in reference.divisors.values():
        parts = divisor.astype(np.float64)
        if len(parts) != len(reach.low):
            reach, parts = reach.whole(), np.atleast_1d(parts.min())
        reach = Reach(reach.low / parts, reach.high / parts, reach.mean / parts, reach.carried)
    return reach


def _carried(graph: Graph, given: Mapping[str, Reach]) -> dict[str, Reach]:
    """What is given, and what follows from it and from the graph's own statistics."""
    known = dict(given)
    measured = _measured(graph)
    known |= {
        name: measured[name] for name in graph.inputs if name in measured and name not in known
    }
    for node in graph.nodes:
        name = str(node.outputs[0].name) if node.outputs else ""
        if not name or name in known:
            continue
        rule = _RULES.get(node.op) if is_op(node, *_RULES) else None
        found = measured.get(name)
        if rule is not None and (found is None or is_op(node, "Clip", "Relu")):
            made = rule(graph, node, known)
            found = found if made is None else _marked(node, made, known)
        if found is not None:
            known.update(dict.fromkeys((str(tensor.name) for tensor in node.outputs), found))
    return known


def _marked(node: gs.Node, made: Reach, known: Mapping[str, Reach]) -> Reach:
    """What is added to or multiplied with a tensor of known statistics does not count."""
    sources = [known[tensor.name] for tensor in node.inputs if tensor.name in known]
    carried = bool(sources) and all(source.carried for source in sources)
    return replace(made, carried=carried or _RULES[node.op] is _linear)


def _measured(graph: Graph) -> dict[str, Reach]:
    """What BatchNormalization reads, by its stored statistics."""
    found = {}
    for node in graph.nodes:
        if not is_op(node, "BatchNormalization") or node.attrs.get("training_mode", 0):
            continue
        mean, variance = (graph.constant(tensor.name) for tensor in node.inputs[3:5])
        if mean is not None and variance is not None:
            deviation = np.sqrt(np.maximum(variance.astype(np.float64), 0.0))
            found[str(node.inputs[0].name)] = Reach.about(mean.astype(np.float64), deviation)
    return found


Known = Mapping[str, Reach]
_Row = Callable[[Graph, gs.Node, Known], Reach | None]


def _read(graph: Graph, node: gs.Node, known: Known) -> list[Reach] | None:
    """The ends of all that a node reads, constants among it; None if one is not known."""
    parts = []
    for tensor in node.inputs:
        array = graph.constant(tensor.name)
        part = known.get(tensor.name)
        if array is not None and array.size and np.isfinite(array.astype(np.float64)).all():
            part = Reach.between(float(array.min()), float(array.max()))
        if part is None:
            return None
        parts.append(part)
    return parts


def _normalised(graph: Graph, node: gs.Node, known: Known) -> Reach | None:
    scale, shift = (graph.constant(tensor.name) for tensor in node.inputs[1:3])
    if scale is None or shift is None or node.attrs.get("training_mode", 0):
        return None
    return Reach.about(shift.astype(np.float64), np.abs(scale.astype(np.float64)))


def _clip(graph: Graph, node: gs.Node, known: Known) -> Reach | None:
    """Ends are clamped; the mean is that of a clamped normal variable."""
    bounds, given = clamp(graph, node), known.get(node.inputs[0].name)
    if bounds is None:
        return None
    if given is None:
        return Reach.between(*bounds) if all(map(math.isfinite, bounds)) else None
    variance = np.square((given.high - given.low) / (2 * _DEVIATIONS))
    mean = clamped(given.mean, variance, *bounds).mean
    return Reach(np.clip(given.low, *bounds), np.clip(given.high, *bounds), mean)


def _sum(graph: Graph, node: gs.Node, known: Known) -> Reach | None:
    """Summands are taken as independent: distances from the mean add up in squares."""
    parts = _read(graph, node, known)
    if parts is None:
        return None
    if len({len(part.mean) for part in parts} - {1}) > 1:
        parts = [part.whole() for part in parts]
    mean, below, above = np.zeros(1), np.zeros(1), np.zeros(1)
    for part in parts:
        mean = mean + part.mean
        below, above = (below + (part.mean - part.low) ** 2, above + (part.high - part.mean) ** 2)
    return Reach(mean - np.sqrt(below), mean + np.sqrt(above), mean)


def _product(graph: Graph, node: gs.Node, known: Known) -> Reach | None:
    parts = _read(graph, node, known)
    if parts is None or len(parts) != 2:
        return None
    a, b = parts if len({len(part.mean) for part in parts} - {1}) < 2 else map(Reach.whole, parts)
    ends = np.stack([a.low * b.low, a.low * b.high, a.high * b.low, a.high * b.high])
    return Reach(ends.min(0), ends.max(0), np.clip(a.mean * b.mean, ends.min(0), ends.max(0)))


def _joined(graph: Graph, node: gs.Node, known: Known) -> Reach | None:
    parts = _read(graph, node, known)
    if not parts:
        return None
    ends = [part.whole() for part in parts]
    low, high = np.min([part.low for part in ends], 0), np.max([part.high for part in ends], 0)
    return Reach(low, high, np.mean([part.mean for part in ends], 0))


def _same(graph: Graph, node: gs.Node, known: Known) -> Reach | None:
    """Pools over places: the ends of each channel stay."""
    return known.get(node.inputs[0].name)


def _moved(graph: Graph, node: gs.Node, known: Known) -> Reach | None:
    """Where channels go is not followed."""
    given = known.get(node.inputs[0].name)
    return None if given is None else given.whole()


def _linear(graph: Graph, node: gs.Node, known: Known) -> Reach | None:
    """A layer that nothing normalises: channels are taken as independent, places as alike."""
    layer, given = linear_layer(graph, node), known.get(node.inputs[0].name)
    if layer is None or given is None or given.carried or is_op(node, "ConvTranspose"):
        return None
    bias = layer_bias(graph, layer)
    if isinstance(bias, str) or len(given.mean) not in (1, layer.inputs):
        return None
    weight = layer.weight.astype(np.float64) * layer.factor
    rows = weight if layer.outputs_first else weight.T
    rows = rows.reshape(
        layer.groups, layer.outputs // layer.groups, layer.inputs // layer.groups, -1
    )
    rising, falling = (np.square(np.maximum(part, 0).sum(-1)) for part in (rows, -rows))
    up, down = (
        np.square(np.broadcast_to(part, (layer.inputs,))).reshape(layer.groups, -1, 1)
        for part in (given.high - given.mean, given.mean - given.low)
    )
    mean = layer.response(given.mean) + (0.0 if bias is None else bias)
    above, below = (
        np.sqrt(rising @ a + falling @ b).reshape(-1) for a, b in ((up, down), (down, up))
    )
    return Reach(mean - below, mean + above, mean)


def _padded(graph: Graph, node: gs.Node, known: Known) -> Reach | None:
    """Zeros at the border are on every grid; another number must be known."""
    given = known.get(node.inputs[0].name)
    value = graph.constant(node.inputs[2].name) if len(node.inputs) > 2 else None
    number = float(node.attrs.get("value", 0.0)) if value is None else float(value.reshape(-1)[0])
    named = len(node.inputs) > 2 and bool(node.inputs[2].name)
    if given is None or (named and value is None):
        return None
    low, high = np.minimum(given.low, number), np.maximum(given.high, number)
    return Reach(low, high, given.mean)


def _leaky(graph: Graph, node: gs.Node, known: Known) -> Reach | None:
    given, slope = known.get(node.inputs[0].name), float(node.attrs.get("alpha", 0.01))
    if given is None or not 0 <= slope <= 1:
        return None
    low, high, mean = (np.maximum(x, slope * x) for x in (given.low, given.high, given.mean))
    return Reach(low, high, mean)


def _unit(graph: Graph, node: gs.Node, known: Known) -> Reach | None:
    return Reach.between(0.0, 1.0)


def _both_signs(graph: Graph, node: gs.Node, known: Known) -> Reach | None:
    return Reach.between(-1.0, 1.0)


_RULES: Mapping[str, _Row] = MappingProxyType(
    {
        **{op: _moved for op, rule in RULES.items() if rule.role is Role.MOVE},
        "Add": _sum,
        "AveragePool": _same,
        "BatchNormalization": _normalised,
        "Clip": _clip,
        "Concat": _joined,
        "Conv": _linear,
        "Gemm": _linear,
        "GlobalAveragePool": _same,
        "HardSigmoid": _unit,
        "LeakyRelu": _leaky,
        "MatMul": _linear,
        "MaxPool": _same,
        "Mul": _product,
        "Pad": _padded,
        "Relu": _clip,
        "Sigmoid": _unit,
        "Softmax": _unit,
        "Tanh": _both_signs,
    }
)
"""How each operator carries ends on; what has no row ends them."""
