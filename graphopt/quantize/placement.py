"""Decide which nodes run on integers, and which tensors therefore get a grid, and which share one.

A layer runs on integers if its operator has a kernel and its weight is constant. What lies between
layers joins them where that saves going back to floats. Relu and Clip right behind are absorbed:
the ends of the grid clamp as they do.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

import numpy as np
import onnx_graphsurgeon as gs
from networkx.utils import UnionFind

from graphopt.errors import RecipeError
from graphopt.ir import Graph
from graphopt.quantize.rules import RULES, Role, Rule
from graphopt.rewrite.ramps import clamp

__all__ = ["Placement", "Unit", "check_patterns", "is_quantized", "is_quantized_op", "place"]

_ANYTHING = (-math.inf, math.inf)


@dataclass(frozen=True, eq=False)
class Unit:
    """One computation on integers, with what it absorbs; everything by name.

    nodes      by their first output: the operator, the Add of a bias behind a MatMul, the clamp
    reads      inputs that are read as integers, constants among them
    weight     of a layer, with the axis of its output channels
    outputs    after what is absorbed; without a grid behind them they are floats
    bounds     what the values are clamped to
    """

    rule: Rule
    op: str
    nodes: tuple[str, ...]
    reads: tuple[str, ...]
    outputs: tuple[str, ...]
    weight: str | None = None
    axis: int = 0
    bias: str | None = None
    bounds: tuple[float, float] = _ANYTHING

    @property
    def name(self) -> str:
        """By what a plan calls it: its first output."""
        return self.outputs[0]

    @property
    def adds_bias(self) -> bool:
        """Whether an Add behind the product keeps the bias, in floats."""
        return self.bias is not None and self.op == "MatMul" and not self.rule.instead


@dataclass(frozen=True, eq=False)
class Placement:
    """What runs on integers.

    units    in topological order
    groups   computed tensors with a grid, by the group of those that share it
    floats   nodes that stay in floating point though their operator has a kernel, and why
    """

    units: tuple[Unit, ...]
    groups: Mapping[str, tuple[str, ...]]
    floats: Mapping[str, str] = field(default_factory=dict)


_QUANTIZED_OPS = frozenset(
    {
        "ConvInteger", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv",
        "QLinearMatMul", "QuantizeLinear",
    }
)  # fmt: skip
_QUANTIZED_NAMES = ("DynamicQuantize", "MatMulNBits", "QAttention", "QGemm", "QLinear")


def is_quantized_op(node: gs.Node) -> bool:
    """Whether a node computes on integers of few bits, or converts to or from them."""
    return node.op in _QUANTIZED_OPS or node.op.startswith(_QUANTIZED_NAMES)


def is_quantized(graph: Graph) -> bool:
    """Whether a graph computes on integers of few bits already."""
    return any(is_quantized_op(node) for node in graph.all_nodes())


def check_patterns(graph: Graph, patterns: Sequence[str]) -> None:
    """Raise RecipeError for a pattern that no node, nothing computed and no operator has."""
    for pattern in patterns:
        if not any(_matches(node, (pattern,)) for node in graph.all_nodes()):
            raise RecipeError(
                f"quantize-static: exclude {pattern!r} names no node, no computed tensor and no "
                "operator of the model as this step finds it; correct it or take it out"
            )


def place(graph: Graph, exclude: Sequence[str] = (), floats: Collection[str] = ()) -> Placement:
    """Decide for the main scope of a graph.

    `exclude` are patterns (fnmatch) of nodes, of what they compute, or of operators that stay in
    floats, and that no layer absorbs; so do the units named in `floats`.
    """
    reasons: dict[str, str] = {}
    units: list[Unit] = []
    barred = {str(node.outputs[0].name) for node in graph.nodes if _matches(node, exclude)}
    for node in graph.nodes:
        if node.op not in RULES or node.domain not in (None, "", "ai.onnx"):
            continue
        found = "excluded" if node.outputs[0].name in barred else _unit(graph, node, barred)
        if isinstance(found, str):
            reasons[node.outputs[0].name] = found
        elif found is not None:
            units.append(found)
    whole = _with_clamps(graph, units, barred)
    freed = frozenset(floats)
    kept = _settled(graph, [unit for unit in whole if not freed & {unit.name, *unit.nodes}])
    joined = {node for unit in kept for node in unit.nodes}
    for unit in units:
        if unit.nodes[0] not in joined:
            reasons[unit.name] = "it would stand alone between floats"
    return Placement(tuple(kept), _groups(graph, kept), reasons)


def _matches(node: gs.Node, patterns: Sequence[str]) -> bool:
    names = [node.name, node.op, *(tensor.name for tensor in node.outputs)]
    return any(fnmatchcase(name, pattern) for pattern in patterns for name in names)


def _unit(graph: Graph, node: gs.Node, barred: Collection[str]) -> Unit | str | None:
    """What a node would be on integers, or why it cannot be; None if it computes no floats."""
    rule, outputs = RULES[node.op], _used(graph, node)
    data = [tensor.name for tensor in node.inputs]
    if not outputs or graph.dtype(outputs[0]) != np.float32:
        return None
    weight = len(data) > 1 and graph.constant(data[1]) is not None
    if reason := rule.refuse(graph, node):
        return reason
    if rule.role is Role.LAYER and not weight:
        if node.op != "MatMul" or graph.constant(data[0]) is not None:
            return "its weight is computed"
        return Unit(Rule(Role.COMPUTE), node.op, outputs[:1], tuple(data), outputs)
    if rule.role is Role.LAYER:
        return _layer(graph, node, rule, barred)
    if graph.constant(data[0]) is not None and rule.role is Role.MOVE:
        return "it reads a constant"
    reads = data[:1] if rule.role is Role.MOVE or rule.instead else data
    return Unit(rule, node.op, (node.outputs[0].name,), tuple(reads), outputs)


def _used(graph: Graph, node: gs.Node) -> tuple[str, ...]:
    """What of a node's results somebody wants."""
    return tuple(
        t.name
        for t in node.outputs
        if t.name and (graph.consumers(t.name) or graph.is_output(t.name))
    )


def _layer(graph: Graph, node: gs.Node, rule: Rule, barred: Collection[str]) -> Unit | str:
    data, outputs = [tensor.name for tensor in node.inputs], _used(graph, node)
    weight = graph.constant(data[1])
    assert weight is not None, "a layer has a constant weight"
    if weight.dtype != np.float32 or graph.constant(data[0]) is not None:
        return "its input is constant, or its weight no float32"
    if not np.isfinite(weight.astype(np.float32)).all():
        return "its weight is not finite"
    if node.op == "MatMul" and weight.ndim != 2:
        return f"its weight has {weight.ndim} axes"
    bias = data[2] if len(data) > 2 and data[2] else None
    if bias is not None and graph.constant(bias) is None:
        return "its bias is computed"
    nodes = outputs
    adder = _bias_adder(graph, node, weight.shape[1]) if node.op == "MatMul" else None
    if adder is not None and adder.outputs[0].name not in barred:
        bias = next(t.name for t in adder.inputs if graph.constant(t.name) is not None)
        outputs = (adder.outputs[0].name,)
        nodes = (*nodes, *outputs)
        if len(graph.shape(data[0]) or ()) == 2:
            rule = replace(rule, instead=("Gemm", {}))
    return Unit(rule, node.op, nodes, (data[0],), outputs, data[1], rule.weight_axis(node), bias)


def _bias_adder(graph: Graph, node: gs.Node, columns: int) -> gs.Node | None:
    """The Add of a bias behind a MatMul, if nothing else reads the product."""
    reader = _sole_reader(graph, node.outputs[0].name)
    if reader is None or reader.op != "Add":
        return None
    constants = [graph.constant(t.name) for t in reader.inputs]
    sizes = [array.shape for array in constants if array is not None]
    return reader if sizes == [(columns,)] else None


def _sole_reader(graph: Graph, name: str) -> gs.Node | None:
    readers = graph.consumers(name)
    if len(readers) != 1 or graph.is_output(name):
        return None
    inside = graph.scope_of(readers[0]) is graph.scope_of(graph.nodes[0])
    return readers[0] if inside else None


def _with_clamps(graph: Graph, units: Sequence[Unit], barred: Collection[str]) -> list[Unit]:
    """The units, each with the Relu or Clip behind it; those do not stand for themselves then."""
    made, taken = [], set[str]()
    for unit in units:
        if unit.nodes[0] in taken:
            continue
        taken.update(unit.nodes[1:])
        reader = _sole_reader(graph, unit.name) if len(unit.outputs) == 1 else None
        if reader is not None and reader.outputs[0].name in barred:
            reader = None
        bounds = None if reader is None else _grid_ends(graph, reader)
        if reader is not None and bounds is not None and unit.rule.role is not Role.MOVE:
            outputs = (reader.outputs[0].name,)
            taken.update(outputs)
            unit = replace(unit, nodes=(*unit.nodes, *outputs), outputs=outputs, bounds=bounds)
        made.append(unit)
    return made


def _grid_ends(graph: Graph, node: gs.Node) -> tuple[float, float] | None:
    """Between which bounds a node clamps, if a grid, which has a zero, can do that for it."""
    found = clamp(graph, node)
    return found if found is not None and found[0] <= 0 <= found[1] else None


def _settled(graph: Graph, units: Sequence[Unit]) -> list[Unit]:
    """Drop what does not lie between layers, until nothing more goes."""
    kept = list(units)
    while True:
        makers = {name for unit in kept for name in unit.outputs}
        read = {name for unit in kept for name in unit.reads}
        inputs = makers | set(graph.inputs)
        rest = [unit for unit in kept if _pays(unit, makers, inputs, read)]
        if len(rest) == len(kept):
            break
        kept = rest
    return [_float_out(unit, read) if unit.rule.floats_out else unit for unit in kept]


def _pays(unit: Unit, makers: set[str], inputs: set[str], read: set[str]) -> bool:
    """Whether a unit is a layer, or takes integers and hands them to another."""
    if unit.rule.role is Role.LAYER:
        return True
    sources = inputs if unit.rule.role is Role.MOVE else makers
    return any(name in sources for name in unit.reads) and any(n in read for n in unit.outputs)


def _float_out(unit: Unit, read: set[str]) -> Unit:
    """A layer that nothing reads as integers gives floats, and absorbs no clamp."""
    if unit.name in read or unit.bounds == _ANYTHING:
        return unit
    nodes = unit.nodes[:-1]
    return replace(unit, nodes=nodes, outputs=nodes[-1:], bounds=_ANYTHING)


def _groups(graph: Graph, units: Sequence[Unit]) -> dict[str, tuple[str, ...]]:
    """Computed tensors that get a grid, with those that share it, by the first of them."""
    read = {name for unit in units for name in unit.reads}
    made = {
        name for unit in units for name in unit.outputs if name in read or not unit.rule.floats_out
    }
    tensors = sorted(name for name in read | made if graph.constant(name) is None)
    sets = UnionFind(tensors)
    bounds: dict[str, tuple[float, float]] = {}
    for unit in units:
        found = {bounds.get(name, _ANYTHING) for name in unit.reads}
        made_within = unit.bounds
        if unit.rule.role is Role.MOVE:
            sets.union(unit.reads[0], *unit.outputs)
            made_within = found.pop()
        elif unit.op == "Concat" and len(found) == 1 and found >= {unit.bounds} - {_ANYTHING}:
            made_within = found.pop()
            sets.union(unit.name, *(n for n in unit.reads if _only_read_here(graph, sets, n)))
        bounds.update(dict.fromkeys(unit.outputs, made_within))
    return {min(group): tuple(sorted(group)) for group in sets.to_sets()}


def _only_read_here(graph: Graph, sets: UnionFind, name: str) -> bool:
    """Whether a tensor, and all whose grid it has, go to one reader: no other feels its grid."""
    group = next((g for g in sets.to_sets() if name in g), None)
    return group is not None and all(_sole_reader(graph, other) for other in group)
