"""Where integers pay: which units to put on them, as a minimum cut between measured times.

Each unit takes one time on integers and one in floats, as kernels of the two whole graphs were
timed, and a tensor that passes from one to the other costs its conversion once. The cheapest
choice of all is a minimum cut: floats are the side of the source, integers that of the sink.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

import networkx as nx
import numpy as np

from graphopt.ir import Graph
from graphopt.quantize.insertion import insert
from graphopt.quantize.placement import Unit
from graphopt.quantize.plan import Plan
from graphopt.runtime import Kernel, Model, Session, kernels

__all__ = ["cheapest", "named", "paying_units", "times"]

_PER_ELEMENT = 1e-9
"""Seconds: QuantizeLinear or DequantizeLinear, and the change of layout that comes with it."""

_PER_NODE = 4e-6
"""Seconds that two more nodes take, however small."""

_DECORATION = re.compile(r"(_nchwc|_token_\d+)+$")
"""What ONNX Runtime appends to a name when it fuses nodes or changes their layout."""

_PROTOBUF_LIMIT = 2**31 - 2**20

_FUSED = frozenset({"Conv", "FusedConv"})

_FLOATS, _INTEGERS = "floats", "integers"


def paying_units(
    graph: Graph, plan: Plan, feeds: Mapping[str, np.ndarray], *, threads: int = 1
) -> list[Unit]:
    """The units that are to run on integers, for inputs of the sizes of `feeds`."""
    changed = graph.clone()
    insert(changed, plan)
    floats = times(graph, plan.placement.units, kernels(named(graph), feeds, threads=threads))
    integers = times(graph, plan.placement.units, kernels(changed, feeds, threads=threads))
    conversions = {
        name: _PER_NODE + _PER_ELEMENT * size
        for name, size in _sizes(graph, plan, feeds, threads).items()
    }
    return cheapest(graph, plan, floats, integers, conversions)


def cheapest(
    graph: Graph,
    plan: Plan,
    floats: Mapping[str, float],
    integers: Mapping[str, float],
    conversions: Mapping[str, float],
) -> list[Unit]:
    """The units on integers in the choice that takes the least time in all.

    Seconds of each unit in floats and on integers, and of each tensor's conversion.
    """
    network = _network(graph, plan, floats, integers, conversions)
    _, (_, chosen) = nx.minimum_cut(network, _FLOATS, _INTEGERS)
    return [unit for unit in plan.placement.units if _node(unit) in chosen]


def named(graph: Graph) -> Model:
    """The model with every node named, for ONNX Runtime's profile numbers those that are not."""
    if graph.size_bytes() >= _PROTOBUF_LIMIT:
        return graph
    model = graph.to_model()
    for node in model.graph.node:
        node.name = node.name or node.output[0]
    return model


def times(graph: Graph, units: Sequence[Unit], found: Collection[Kernel]) -> dict[str, float]:
    """Seconds of each unit, from the kernels that bear a name of its nodes or their outputs.

    A convolution fused with an Add behind it bears the Add's name, but the time is its own.
    """
    owners: dict[str, str] = {}
    for unit in units:
        for output in unit.nodes:
            maker = graph.producer(output)
            owners[output] = unit.name
            if maker is not None and maker.name:
                owners[maker.name] = unit.name
    seconds = dict.fromkeys((unit.name for unit in units), 0.0)
    for kernel in found:
        owner = owners.get(kernel.name) or owners.get(_DECORATION.sub("", kernel.name))
        if owner is not None and kernel.op not in ("QuantizeLinear", "DequantizeLinear"):
            seconds[owner] += kernel.seconds
    convolved = {kernel.name for kernel in found if kernel.op in _FUSED}
    fused = {owners.get(_DECORATION.sub("", name)) for name in convolved}
    for unit in units:
        if unit.weight is None or seconds[unit.name]:
            continue
        reader = next((u.name for u in units if unit.name in u.reads and u.name in fused), None)
        if reader is not None:
            seconds[unit.name], seconds[reader] = seconds[reader], 0.0
    return seconds


def _sizes(
    graph: Graph, plan: Plan, feeds: Mapping[str, np.ndarray], threads: int
) -> dict[str, int]:
    """Elements of each tensor with a grid, for inputs of the sizes of `feeds`."""
    computed = [name for name in plan.activations if name not in feeds]
    found = {name: feeds[name].size for name in plan.activations if name in feeds}
    if computed:
        part = graph.with_outputs(computed)
        with Session.open(part, threads=threads, optimize="none") as session:
            made = session.run({port.name: feeds[port.name] for port in session.inputs})
        found |= {name: array.size for name, array in zip(computed, made, strict=True)}
    return found


def _network(
    graph: Graph,
    plan: Plan,
    floats: Mapping[str, float],
    integers: Mapping[str, float],
    conversions: Mapping[str, float],
) -> nx.DiGraph:
    network = nx.DiGraph()
    units = plan.placement.units
    for unit in units:
        network.add_edge(_FLOATS, _node(unit), capacity=_nanoseconds(integers[unit.name]))
        network.add_edge(_node(unit), _INTEGERS, capacity=_nanoseconds(floats[unit.name]))
    makers = {name: _node(unit) for unit in units for name in unit.outputs}
    inside = {node for unit in units for node in unit.nodes} | set(makers)
    for name in plan.activations:
        cost = _nanoseconds(conversions[name])
        maker = makers.get(name, _FLOATS)
        readers = {_node(unit) for unit in units if name in unit.reads}
        if graph.is_output(name) or any(
            node.outputs[0].name not in inside for node in graph.consumers(name)
        ):
            readers.add(_FLOATS)
        into, out = f"into {name}", f"out of {name}"
        network.add_edge(maker, into, capacity=cost)
        network.add_edges_from((into, reader) for reader in readers - {_FLOATS})
        if maker != _FLOATS:
            network.add_edge(out, maker, capacity=cost)
            network.add_edges_from((reader, out) for reader in readers)
    return network


def _node(unit: Unit) -> str:
    """A unit's name in the network, where tensors have nodes of their own."""
    return f"unit {unit.name}"


def _nanoseconds(seconds: float) -> int:
    """Whole numbers, with which flows are exact."""
    return round(seconds * 1e9)
