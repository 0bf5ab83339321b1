"""Where integers pay: islands of units between floats, timed one by one against floats."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from networkx.utils import UnionFind

from graphopt.ir import Graph, part
from graphopt.quantize.insertion import insert
from graphopt.quantize.placement import Unit
from graphopt.quantize.plan import Plan
from graphopt.quantize.sensitivity import only
from graphopt.runtime import BenchPlan, bench

__all__ = ["Island", "islands", "time_islands"]

_QUICK = BenchPlan(warmup=2, pairs=20, slow_pairs=3, min_seconds=0.15, max_seconds=2.0)


@dataclass(frozen=True, eq=False)
class Island:
    """Units that hand each other integers, with the tensors by which floats come in and go out."""

    units: tuple[Unit, ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...]

    @property
    def signature(self) -> tuple[object, ...]:
        """What islands that take equally long have in common, but for sizes."""
        return tuple((unit.op, len(unit.reads), unit.bounds) for unit in self.units)


def islands(graph: Graph, plan: Plan) -> list[Island]:
    """The plan's units, by who hands whom integers."""
    makers = {name: unit.name for unit in plan.placement.units for name in unit.outputs}
    sets = UnionFind([unit.name for unit in plan.placement.units])
    for unit in plan.placement.units:
        for name in unit.reads:
            if name in makers and name in plan.activations:
                sets.union(unit.name, makers[name])
    return [
        _island(graph, [unit for unit in plan.placement.units if unit.name in names])
        for names in sets.to_sets()
    ]


def _island(graph: Graph, units: Sequence[Unit]) -> Island:
    made = {name for unit in units for name in unit.outputs}
    gone = {name for unit in units for name in unit.nodes} | made
    reads = dict.fromkeys(n for u in units for n in u.reads if graph.constant(n) is None)
    writes = [
        name
        for unit in units
        for name in unit.outputs
        if graph.is_output(name)
        or any(node.outputs[0].name not in gone for node in graph.consumers(name))
    ]
    return Island(tuple(units), tuple(n for n in reads if n not in made), tuple(writes))


def time_islands(
    graph: Graph,
    plan: Plan,
    found: Sequence[Island],
    values: Mapping[str, np.ndarray],
    *,
    threads: int = 1,
    progress: Callable[[float], None] = lambda fraction: None,
) -> list[float]:
    """For each island, how long it takes on integers relative to floats, conversions included.

    `values` are the tensors that the islands read, for one input. Islands of the same operators
    and sizes are timed once.
    """
    known: dict[tuple[object, ...], float] = {}
    ratios = []
    for count, island in enumerate(found):
        feeds = {name: values[name] for name in island.reads}
        weights = tuple(graph.shape(u.weight) for u in island.units if u.weight is not None)
        key = (island.signature, tuple(array.shape for array in feeds.values()), weights)
        if key not in known:
            floats = part(graph, island.reads, island.writes)
            integers = floats.clone()
            insert(integers, only(plan, island.units))
            timing = bench(floats, integers, feeds=feeds, plan=replace(_QUICK, threads=threads))
            assert timing.ratio is not None, "two models were timed"
            known[key] = timing.ratio
        ratios.append(known[key])
        progress((count + 1) / len(found))
    return ratios
