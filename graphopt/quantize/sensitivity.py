"""Which layers lose the outputs on integers, and which go back to floats for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np

from graphopt.cost import node_macs
from graphopt.coupling.knapsack import choose
from graphopt.data import Dataset
from graphopt.ir import Graph
from graphopt.quantize.insertion import insert
from graphopt.quantize.placement import Unit
from graphopt.quantize.plan import Plan
from graphopt.rewrite.matching import is_op
from graphopt.runtime import Session

__all__ = ["Errors", "capped", "decibels", "layer_errors", "layers_to_free", "only"]

_BATCH = 8

_RUINED = 100.0
"""What an infinite relative square error counts as, where errors are added up."""


@dataclass(frozen=True)
class Errors:
    """What a graph gives on some inputs, to compare others with.

    Its outputs of floating type; where it has none, the floats from which the others are made.
    `names` are these, empty for outputs. `wanted` has a list of them for each batch.
    """

    dataset: Dataset
    wanted: Sequence[Sequence[np.ndarray]]
    threads: int
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, graph: Graph, dataset: Dataset, threads: int) -> Errors:
        judged = any(graph.is_float(name) for name in graph.outputs)
        names = () if judged else _floats_before_outputs(graph)
        return cls(dataset, [*_values(graph, names, dataset, threads)], threads, names)

    @property
    def judged(self) -> bool:
        """Whether there is anything to compare."""
        return any(self.wanted)

    def relative(self, graph: Graph) -> float:
        """The square error over the square, summed over what is compared.

        Infinite where sizes, which can depend on data (a detector's boxes), are others, or where
        other values are not finite. Holds what one batch gives, and `wanted`.
        """
        sums = np.zeros((2, len(self.wanted[0]) if self.wanted else 0))
        found = _values(graph, self.names, self.dataset, self.threads)
        with closing(found):
            for wanted, given in zip(self.wanted, found, strict=True):
                sums += np.array([*map(_squares, wanted, given)]).reshape(-1, 2).T
                if not np.isfinite(sums).all():
                    return math.inf
        return float((sums[0] / np.maximum(sums[1], 1e-30)).sum())


def _squares(wanted: np.ndarray, found: np.ndarray) -> tuple[float, float]:
    """The square error, which may be infinite, and the square of what is wanted."""
    if wanted.shape != found.shape:
        return math.inf, 0.0
    finite = np.isfinite(wanted)
    same = np.array_equal(found[~finite], wanted[~finite], equal_nan=True)
    if not same or not np.isfinite(found[finite]).all():
        return math.inf, 0.0
    right, made = (array[finite].astype(np.float64) for array in (wanted, found))
    return float(np.square(right - made).sum()), float(np.square(right).sum())


def _floats_before_outputs(graph: Graph) -> tuple[str, ...]:
    """The computed floats nearest to the outputs, sizes of tensors aside."""
    found: dict[str, None] = {}
    names = list(graph.outputs)
    seen = set(names)
    for name in names:
        maker = graph.producer(name)
        if maker is None or is_op(maker, "Shape", "Size"):
            continue
        sources = {str(tensor.name) for tensor in maker.inputs if tensor.name} - seen
        seen |= sources
        for source in sorted(sources):
            if graph.is_float(source) and graph.producer(source) is not None:
                found[source] = None
            else:
                names.append(source)
    return tuple(found)


def _values(
    graph: Graph, names: Sequence[str], dataset: Dataset, threads: int
) -> Generator[list[np.ndarray]]:
    """The floats among the outputs, or these tensors, for one batch after the other."""
    shown = graph.with_outputs(names) if names else graph
    with Session.open(shown, threads=threads) as session:
        for feeds in dataset.batches(_BATCH):
            yield [array for array in session.run(feeds) if array.dtype.kind == "f"]


def decibels(relative: float) -> float:
    """Signal over error, in decibels."""
    return math.inf if relative == 0 else -10 * math.log10(relative)


def capped(errors: Mapping[str, float]) -> dict[str, float]:
    """Errors that can be added up: an infinite one counts as the largest, and ruin at least."""
    known = [error for error in errors.values() if math.isfinite(error)]
    worst = max([_RUINED, *known])
    return {name: min(error, worst) for name, error in errors.items()}


def only(plan: Plan, units: Sequence[Unit]) -> Plan:
    """The plan of these units alone; grids stay as they are."""
    return replace(plan, placement=replace(plan.placement, units=tuple(units)))


def layer_errors(
    graph: Graph,
    plan: Plan,
    errors: Errors,
    progress: Callable[[float], None] = lambda fraction: None,
) -> dict[str, float]:
    """What each layer alone on integers does to the outputs: relative square errors.

    By the output of the layer's own node, which it has whatever it absorbs.
    """
    found = {}
    for count, unit in enumerate(plan.layers):
        alone = graph.clone()
        insert(alone, only(plan, [unit]))
        found[unit.nodes[0]] = errors.relative(alone)
        progress((count + 1) / len(plan.layers))
    return found


def layers_to_free(
    graph: Graph, plan: Plan, alone: Mapping[str, float], total: float, budget: float
) -> list[str]:
    """The layers whose return to floats takes the error to the budget, at the fewest MACs.

    Layers are named as by `layer_errors`. Errors of single layers are taken to add up, and those of
    the plan's layers to make up the whole between them.
    """
    macs, losses = node_macs(graph), capped(alone)
    names = [unit.nodes[0] for unit in plan.layers]
    if not math.isfinite(total):
        total = max([_RUINED, *losses.values()])
    scale = total / max(sum(losses[name] for name in names), 1e-30)
    items = {name: [(1.0, losses[name] * scale, float(macs.get(name, 0)) + 1.0)] for name in names}
    freed = choose(items, total - budget)
    return [name for name, part in freed.items() if part]
