"""Which layers lose the outputs on integers, and which go back to floats for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from graphopt.cost import node_macs
from graphopt.coupling.knapsack import choose
from graphopt.data import Dataset
from graphopt.ir import Graph
from graphopt.quantize.insertion import insert
from graphopt.quantize.placement import Unit
from graphopt.quantize.plan import Plan
from graphopt.runtime import Session

__all__ = ["Errors", "decibels", "layer_errors", "layers_to_free", "only"]

_BATCH = 16


@dataclass(frozen=True)
class Errors:
    """The outputs of a graph on some inputs, to compare others with; `power` is their square."""

    dataset: Dataset
    wanted: Sequence[np.ndarray]
    threads: int

    @classmethod
    def of(cls, graph: Graph, dataset: Dataset, threads: int) -> Errors:
        return cls(dataset, _outputs(graph, dataset, threads), threads)

    def relative(self, graph: Graph) -> float:
        """The outputs' square error over their square, summed over outputs of floating type."""
        found = _outputs(graph, self.dataset, self.threads)
        total = 0.0
        for want, got in zip(self.wanted, found, strict=True):
            power = max(float((want**2).sum()), 1e-30)
            total += float(((want - got) ** 2).sum()) / power
        return total


def _outputs(graph: Graph, dataset: Dataset, threads: int) -> list[np.ndarray]:
    with Session.open(graph, threads=threads) as session:
        runs = [session.run(feeds) for feeds in dataset.batches(_BATCH)]
    columns = [column for column in zip(*runs, strict=True) if column[0].dtype.kind == "f"]
    return [np.concatenate([array.reshape(-1) for array in c]).astype(np.float64) for c in columns]


def decibels(relative: float) -> float:
    """Signal over error, in decibels."""
    return -10 * math.log10(relative) if relative > 0 else math.inf


def only(plan: Plan, units: Sequence[Unit]) -> Plan:
    """The plan of these units alone; grids stay as they are."""
    return replace(plan, placement=replace(plan.placement, units=tuple(units)))


def layer_errors(
    graph: Graph,
    plan: Plan,
    errors: Errors,
    progress: Callable[[float], None] = lambda fraction: None,
) -> dict[str, float]:
    """What each layer alone on integers does to the outputs: relative square errors."""
    found = {}
    for count, unit in enumerate(plan.layers):
        alone = graph.clone()
        insert(alone, only(plan, [unit]))
        found[unit.name] = errors.relative(alone)
        progress((count + 1) / len(plan.layers))
    return found


def layers_to_free(
    graph: Graph, plan: Plan, alone: Mapping[str, float], total: float, budget: float
) -> list[str]:
    """The layers whose return to floats takes the error to the budget, at the fewest MACs.

    Errors of single layers are taken to add up, and to make up the whole between them.
    """
    macs = node_macs(graph)
    scale = total / max(sum(alone.values()), 1e-30)
    items = {
        unit.name: [(1.0, alone[unit.name] * scale, float(macs.get(unit.nodes[0], 0)) + 1.0)]
        for unit in plan.layers
    }
    freed = choose(items, total - budget)
    return [name for name, part in freed.items() if part]
