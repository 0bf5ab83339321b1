"""Scan what cutting one family alone costs in error and gains in time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from graphopt.coupling import Coupling, couple, mask, remove
from graphopt.coupling.allocation import Candidates, Fitted
from graphopt.coupling.knapsack import Item, choose
from graphopt.coupling.removal import Plan
from graphopt.data import Dataset
from graphopt.ir import Graph
from graphopt.runtime.benchmark import BenchPlan, bench
from graphopt.runtime.session import Session

__all__ = ["cut", "errors_of_outputs", "fit_latency", "latency_ratio", "scan"]

Curves = Mapping[str, Sequence[tuple[float, float]]]

_BATCH = 32
_QUICK = BenchPlan(warmup=2, pairs=20, slow_pairs=3, min_seconds=0.2, max_seconds=2.0)


def scan(
    candidates: Candidates,
    ratios: Sequence[float],
    judge: Callable[[Plan], float],
    progress: Callable[[float], None] = lambda fraction: None,
) -> dict[str, list[tuple[float, float]]]:
    """For each family, the fraction of it that goes and the judgement of that cut alone."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for number, family in enumerate(candidates.families):
        curve: dict[float, float] = {}
        for ratio in ratios:
            widths = {f.name: float(f.size) for f in candidates.families}
            widths[family.name] = family.size * (1 - ratio)
            kept = candidates.plan(widths).get(family.name)
            gone = 0.0 if kept is None else 1 - len(kept) / family.size
            if kept is not None and gone not in curve:
                curve[gone] = judge({family.name: kept})
        curves[family.name] = sorted(curve.items())
        progress((number + 1) / len(candidates.families))
    return curves


def errors_of_outputs(
    coupling: Coupling, dataset: Dataset, *, threads: int = 1
) -> Callable[[Plan], float]:
    """A judge of plans: the outputs' mean square error relative to their variance."""
    wanted = _outputs(coupling.graph, dataset, threads)
    spreads = [max(float(array.var()), 1e-30) for array in wanted]

    def judge(plan: Plan) -> float:
        found = _outputs(mask(coupling, plan), dataset, threads)
        return sum(
            float(np.mean((a - b) ** 2)) / spread
            for a, b, spread in zip(found, wanted, spreads, strict=True)
        )

    return judge


def _outputs(graph: Graph, dataset: Dataset, threads: int) -> list[np.ndarray]:
    """All outputs of floating type over a data set, flat, in float64."""
    with Session.open(graph, threads=threads) as session:
        runs = [session.run(feeds) for feeds in dataset.batches(_BATCH)]
    columns = [column for column in zip(*runs, strict=True) if column[0].dtype.kind == "f"]
    return [np.concatenate([array.ravel() for array in c]).astype(np.float64) for c in columns]


def cut(graph: Graph, plan: Plan) -> Graph:
    """A copy without the channels that a plan lets go."""
    smaller = graph.clone()
    remove(smaller, couple(smaller), plan)
    return smaller


def latency_ratio(
    graph: Graph, feeds: Mapping[str, np.ndarray], *, threads: int = 1
) -> Callable[[Plan], float]:
    """A judge of plans: how long the cut model runs in ONNX Runtime, relative to the whole one.

    Both are timed in turn, so that what else the machine does slows both.
    """
    how = replace(_QUICK, threads=threads)

    def judge(plan: Plan) -> float:
        timing = bench(graph, cut(graph, plan), feeds=feeds, plan=how)
        assert timing.ratio is not None, "two models were timed"
        return timing.ratio

    return judge


_LEVELS = (0.25, 0.5, 0.75, 0.9)
_ROUNDS = 4
"""Savings of several families do not quite add up: what is missing is asked for again."""


def fit_latency(
    candidates: Candidates,
    judge: Callable[[Plan], float],
    target: float,
    progress: Callable[[float], None] = lambda fraction: None,
) -> Fitted:
    """A plan that runs in at most the fraction `target` of the time, by measured savings.

    Every family is timed at some widths alone, a knapsack picks the widths, and the whole plan is
    timed, which is what counts. The fastest plan found comes back if none is fast enough.
    """
    curves = scan(candidates, _LEVELS, judge, progress)
    items = {family.name: _items(candidates, family.name, curves) for family in candidates.families}
    sizes = {family.name: family.size for family in candidates.families}
    wanted = 1 - target
    plan, reached = {}, 1.0
    for _ in range(_ROUNDS):
        ratios = choose(items, wanted)
        tried = candidates.plan({name: sizes[name] * (1 - ratio) for name, ratio in ratios.items()})
        found = judge(tried)
        if found < reached:
            plan, reached = tried, found
        if found <= target:
            break
        wanted += found - target
    return Fitted(plan, reached, met=reached <= target)


def _items(candidates: Candidates, name: str, curves: Curves) -> list[Item]:
    """What each width saves and loses; one that is narrower never saves less."""
    family = next(family for family in candidates.families if family.name == name)
    items: list[Item] = []
    saved = 0.0
    for ratio, latency in curves[name]:
        saved = max(saved, 1 - latency)
        widths = {f.name: float(f.size) for f in candidates.families}
        widths[name] = family.size * (1 - ratio)
        items.append((ratio, saved, candidates.loss(candidates.plan(widths))))
    return items
